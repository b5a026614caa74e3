//! Files whose contents are kept as clones of them, where their file system has such: those that are too large to be read in
//! the stop and kept a second time.
//!
//! A clone has all blocks in common with its file until one of the two is written (`ioctl_ficlone(2)`). It is made in the
//! stop, on the file system of the file, without a name, and becomes a part of the image: whoever removes the image removes
//! it, and of a checkpoint that is given up nothing is left. So the images have to lie on that file system too. A restore
//! clones it back.
//!
//! From then on each block that the program writes over takes room of its own. That a program meets a full disk because of us
//! is not to be: there must be room for all that it could write over until the next checkpoint.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use hdcr_image::{ImageReader, ImageWriter, Record, Tag};
use rustix::fs::{IFlags, Mode, OFlags};
use rustix::io::Errno;

use super::contents::{InodeRecord, open_quietly};
use super::data;
use crate::capture::Capture;
use crate::checkpoint::FileRequest;
use crate::error::{Error, Result};
use crate::model::{self, ObjectId};
use crate::stored::{self, Model};
use crate::survey::Survey;

/// What shows that a clone is still what was cloned, under the id of its file: the container vouches for its length alone.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct CloneRecord {
    /// [`data::sample`].
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) sample: Vec<u8>,
    /// [`data::middle`].
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) middle: Vec<u8>,
}

impl Record for CloneRecord {
    const TAG: Tag = Tag(0x021d);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl CloneRecord {
    fn of(clone: &OwnedFd, size: u64, path: &Path) -> Result<Self> {
        Ok(Self { sample: data::sample(clone, size, path)?, middle: data::middle(clone, size, path)? })
    }
}

/// So many an image has at most: each is open as long as the image is written.
const MANY: usize = 256;

/// File systems that may have clones, by their magic numbers (`<linux/magic.h>`, and those of ZFS and bcachefs).
const ABLE: [u64; 6] = [
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0xca45_1a4e, // bcachefs
    0x7461_636f, // OCFS2
    0x2fc1_2fc1, // ZFS
    0x794c_7630, // overlay, on one of them
];

/// A clone that has no name yet.
#[derive(Debug)]
struct NamelessClone {
    id: ObjectId,
    file: OwnedFd,
    size: u64,
    path: PathBuf,
}

/// The clones of a capture.
#[derive(Debug, Default)]
pub(crate) struct Clones {
    made: Vec<NamelessClone>,
    /// The room that the program can make them take by writing over what their files hold.
    room: u64,
    /// How long those took that are not needed.
    took: Duration,
}

impl Clones {
    /// Names them and stores what shows that they are whole. The program runs again, and what it writes does not reach them.
    pub(crate) fn store(self, writer: &mut ImageWriter) -> Result<()> {
        for NamelessClone { id, file, size, path } in self.made {
            let record = CloneRecord::of(&file, size, &path)?;
            let body = record.encode().map_err(|error| Error::Unsound(error.to_string()))?;
            writer.frame(CloneRecord::TAG, CloneRecord::VERSION, id.0, &body)?;
            writer.attach(id.0, File::from(file), size)?;
        }
        Ok(())
    }
}

/// Why there is no clone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoClone {
    /// There cannot be one.
    Impossible,
    /// There can, but there would be so much too little room for what is written over.
    Room { lacking: u64 },
    /// It was not made in time.
    Late,
}

/// What a survey has found out about clones.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    /// By device and number.
    answers: BTreeMap<(u64, u64), std::result::Result<(), NoClone>>,
    /// The room of those that are needed.
    room: u64,
    needed: usize,
    /// So much room is lacking for those that are needed.
    pub(crate) lacking: u64,
}

/// A file to be cloned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Original<'a> {
    pub(crate) path: &'a Path,
    /// What it takes on its disk.
    pub(crate) room: u64,
    /// The program may write over what it holds.
    pub(crate) overwritten: bool,
    /// Without a clone there is no checkpoint.
    pub(crate) needed: bool,
}

impl Original<'_> {
    /// The room that the program can make its clone take.
    fn at_risk(self) -> u64 {
        if self.overwritten { self.room } else { 0 }
    }
}

/// The directory where the image lies, or will lie.
fn home(files: &FileRequest) -> Option<&Path> {
    files.clones.as_deref()?.ancestors().find(|above| above.is_dir())
}

/// The room that there must be for so much that can be written over. Those that never write in place keep an old extent until all
/// of it is written over, and tell late, and not exactly, what is free for data: there much has to be left.
fn needed_room(there: &rustix::fs::StatFs, at_risk: u64) -> u64 {
    const IN_PLACE: [u64; 2] = [0x5846_5342, 0x7461_636f];
    if at_risk == 0 {
        return 0;
    }
    let (times, share) = if IN_PLACE.contains(&data::magic(there)) { (1, 64) } else { (4, 8) };
    let whole = u64::try_from(there.f_bsize).unwrap_or_default().saturating_mul(there.f_blocks);
    at_risk.saturating_mul(times).saturating_add(whole / share)
}

/// What a file system has left for everybody.
fn free(there: &rustix::fs::StatFs) -> u64 {
    u64::try_from(there.f_bsize).unwrap_or_default().saturating_mul(there.f_bavail)
}

/// How a clone is made.
#[derive(Clone, Copy, Debug)]
struct How {
    /// There must be room to write over so much.
    room: u64,
    by: Instant,
    /// What is not on the disk yet is written there before: a clone waits for it as well, and keeps all writers out meanwhile.
    flushed: bool,
}

/// Clones a file to one without a name: by a thread of its own, which is left to itself when it is not done in time.
fn nameless_clone(home: &Path, file: &OwnedFd, how: How) -> std::result::Result<OwnedFd, NoClone> {
    let How { room, by, flushed } = how;
    let there = || rustix::fs::statfs(home).map_err(|_| NoClone::Impossible);
    let kind = data::magic(&there()?);
    let able = rustix::fs::fstatfs(file).is_ok_and(|fs| data::magic(&fs) == kind && ABLE.contains(&kind));
    if !able {
        return Err(NoClone::Impossible);
    }
    if Instant::now() >= by {
        return Err(NoClone::Late);
    }
    let (sender, done) = sync_channel(1);
    let original = file.try_clone().map_err(|_| NoClone::Impossible)?;
    let place = home.to_owned();
    let work = move || {
        if flushed {
            rustix::fs::fdatasync(&original).ok();
        }
        drop(sender.send(clone_into(&place, &original)));
    };
    let thread = std::thread::Builder::new().name("clone".into()).spawn(work);
    thread.map_err(|_| NoClone::Impossible)?;
    let cloned = done.recv_timeout(by.saturating_duration_since(Instant::now())).map_err(|_| NoClone::Late)?;
    let now = there()?;
    let (left, room) = (free(&now), needed_room(&now, room));
    match cloned {
        // It could be made: now it is known that nothing but room may be lacking.
        Ok(_) if left < room => Err(NoClone::Room { lacking: room - left }),
        Ok(clone) => Ok(clone),
        Err(Errno::NOSPC | Errno::DQUOT) => Err(NoClone::Room { lacking: room.saturating_sub(left).max(1) }),
        Err(error) => {
            tracing::debug!(%error, home = %home.display(), "a file was not cloned");
            Err(NoClone::Impossible)
        }
    }
}

fn clone_into(home: &Path, original: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let clone = rustix::fs::open(home, flags, Mode::RUSR | Mode::WUSR)?;
    // On Btrfs a file whose blocks are written over in place has blocks in common only with others that are.
    if rustix::fs::ioctl_getflags(original).is_ok_and(|flags| flags.contains(IFlags::NOCOW)) {
        let flags = rustix::fs::ioctl_getflags(&clone)?;
        rustix::fs::ioctl_setflags(&clone, flags | IFlags::NOCOW)?;
    }
    rustix::fs::ioctl_ficlone(&clone, original)?;
    Ok(clone)
}

/// Whether a file can be cloned, which is tried, once for each file. What of it is not on the disk yet is written there, for which
/// a clone waits: the one in the stop has less to wait for. Under the freeze nothing is tried: the clone itself shows it.
pub(crate) fn is_possible(
    survey: &mut Survey<'_>,
    door: &Path,
    original: Original<'_>,
) -> std::result::Result<(), NoClone> {
    /// One that is not needed is not waited for any longer.
    const PATIENCE: Duration = Duration::from_secs(2);
    if survey.frozen {
        return Ok(());
    }
    let home = home(&survey.request.files).ok_or(NoClone::Impossible)?;
    let file = open_quietly(door).ok_or(NoClone::Impossible)?;
    let stat = rustix::fs::fstat(&file).map_err(|_| NoClone::Impossible)?;
    let tries = &mut survey.clones;
    if let Some(answer) = tries.answers.get(&(stat.st_dev, stat.st_ino)) {
        return *answer;
    }
    let end = survey.request.by.0;
    let by = if original.needed { end } else { end.min(Instant::now() + PATIENCE) };
    let room = tries.room.saturating_add(original.at_risk());
    let answer = if tries.needed < MANY {
        nameless_clone(home, &file, How { room, by, flushed: true }).map(drop)
    } else {
        Err(NoClone::Impossible)
    };
    match answer {
        Ok(()) if original.needed => (tries.room, tries.needed) = (room, tries.needed + 1),
        Err(NoClone::Room { lacking }) if original.needed => tries.lacking = tries.lacking.max(lacking),
        Ok(()) | Err(_) => {}
    }
    tries.answers.insert((stat.st_dev, stat.st_ino), answer);
    answer
}

/// Clones a file as the contents of an object; its length.
pub(crate) fn take(
    cx: &mut Capture<'_>,
    id: ObjectId,
    file: &OwnedFd,
    original: Original<'_>,
) -> std::result::Result<u64, NoClone> {
    /// So long the program may stand still for those that are not needed.
    const BUDGET: Duration = Duration::from_millis(200);
    /// A smaller file is not worth a part of the image.
    const LEAST: u64 = 1 << 20;
    if !original.needed && original.room < LEAST {
        return Err(NoClone::Impossible);
    }
    let home = home(&cx.request.files).filter(|_| cx.clones.made.len() < MANY).ok_or(NoClone::Impossible)?;
    let room = cx.clones.room.saturating_add(original.at_risk());
    let began = Instant::now();
    let by = if original.needed { cx.request.by.0 } else { began + BUDGET.saturating_sub(cx.clones.took) };
    let clone = nameless_clone(home, file, How { room, by, flushed: false });
    if !original.needed {
        cx.clones.took += began.elapsed();
    }
    let clone = clone?;
    let size = rustix::fs::fstat(&clone).map_err(|_| NoClone::Impossible)?.st_size.cast_unsigned();
    cx.clones.room = room;
    cx.clones.made.push(NamelessClone { id, file: clone, size, path: original.path.to_owned() });
    Ok(size)
}

/// Refuses an image of which a clone is not what was cloned, as far as its length and samples show.
pub(crate) fn verified(image: &ImageReader, model: Model) -> Result<Model> {
    let clones = &image.manifest().clones;
    if clones.len() > MANY || stored::ids(&model.frames, CloneRecord::TAG).len() != clones.len() {
        return Err(Error::Unsound(format!("{} clones are not what its records say", clones.len())));
    }
    for facts in clones {
        let id = ObjectId(facts.object);
        let record = stored::one::<InodeRecord>(&model.frames, id)?;
        let path = model::path_of(&record.path);
        let told = stored::one::<CloneRecord>(&model.frames, id)?;
        let is_meant = record.contents && record.size == facts.size;
        let now = file_of(image, id)?.map(|file| CloneRecord::of(&file, facts.size, &path)).transpose()?;
        if !is_meant || now != Some(told) {
            let cause = "the clone of it that is a part of the image is not what was cloned";
            return Err(Error::Unsound(format!("{}: {cause}", path.display())));
        }
    }
    Ok(model)
}

/// The file that is the contents of an object.
pub(crate) fn file_of(image: &ImageReader, id: ObjectId) -> Result<Option<OwnedFd>> {
    Ok(image.clone_of(id.0)?.map(OwnedFd::from))
}

/// Makes a file what its clone is: at once where both can have their blocks in common. `false`: it has to be written.
pub(crate) fn give_back(file: &OwnedFd, clone: impl AsFd, size: u64) -> bool {
    // A block at the end of the clone that is not whole must not come into the middle of the file.
    let shorter = rustix::fs::fstat(file)
        .is_ok_and(|now| now.st_size.cast_unsigned() <= size || rustix::fs::ftruncate(file, size).is_ok());
    let given = || rustix::fs::ioctl_ficlone(file, clone).and_then(|()| rustix::fs::ftruncate(file, size));
    shorter && given().inspect_err(|error| tracing::debug!(%error, "a clone is copied back")).is_ok()
}

#[cfg(test)]
mod tests;
