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

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use hdcr_image::{ImageReader, ImageWriter, Record, Tag};
use rustix::fs::{Mode, OFlags};

use super::contents::{InodeRecord, open_quietly};
use super::data;
use crate::capture::Capture;
use crate::checkpoint::FileRequest;
use crate::error::{Error, Result};
use crate::model::{self, ObjectId};
use crate::stored::{self, Model};

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

/// So many an image has at most: each is open as long as the image is written or read.
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
pub(crate) struct NamelessClone {
    id: ObjectId,
    file: OwnedFd,
    size: u64,
    path: PathBuf,
}

/// The clones of a capture.
#[derive(Debug, Default)]
pub(crate) struct Clones {
    made: Vec<NamelessClone>,
    /// The room that the files take of which they are.
    room: u64,
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

/// The directory where the images lie, or will lie.
fn home(files: &FileRequest) -> Option<&Path> {
    files.clones.as_deref()?.ancestors().find(|above| above.is_dir())
}

/// Clones a file that takes so much room to one without a name; `None` where that cannot be.
fn clone(home: &Path, file: &OwnedFd, room: u64) -> Option<OwnedFd> {
    let kind = |fs: &rustix::fs::StatFs| data::magic(fs);
    let able = rustix::fs::fstatfs(file).ok().map(|fs| kind(&fs)).filter(|kind| ABLE.contains(kind))?;
    let there = rustix::fs::statfs(home).ok()?;
    let free = u64::try_from(there.f_bsize).ok()?.saturating_mul(there.f_bavail);
    if kind(&there) != able || free < room {
        return None;
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let clone = rustix::fs::open(home, flags, Mode::RUSR | Mode::WUSR).ok()?;
    match rustix::fs::ioctl_ficlone(&clone, file) {
        Ok(()) => Some(clone),
        Err(error) => {
            tracing::debug!(%error, home = %home.display(), "a file was not cloned");
            None
        }
    }
}

/// Whether a file that takes so much room can be cloned now, which is tried. What of it is not on the disk yet is written
/// there, for which a clone waits: the next one has less to wait for.
pub(crate) fn is_possible(files: &FileRequest, door: &Path, room: u64) -> bool {
    let Some(home) = home(files) else { return false };
    open_quietly(door).is_some_and(|file| clone(home, &file, room).is_some())
}

/// Clones a file that takes so much room as the contents of an object; its length, if that could be done.
pub(crate) fn take(cx: &mut Capture<'_>, id: ObjectId, (file, path): (&OwnedFd, &Path), room: u64) -> Option<u64> {
    let all = cx.clones.room.saturating_add(room);
    let home = home(&cx.request.files).filter(|_| cx.clones.made.len() < MANY)?;
    let clone = clone(home, file, all)?;
    let size = rustix::fs::fstat(&clone).ok()?.st_size.cast_unsigned();
    cx.clones.room = all;
    cx.clones.made.push(NamelessClone { id, file: clone, size, path: path.to_owned() });
    Some(size)
}

/// Refuses an image of which a clone is not what was cloned, as far as its length and samples show.
pub(crate) fn verified(image: &ImageReader, model: Model) -> Result<Model> {
    for facts in &image.manifest().clones {
        let id = ObjectId(facts.object);
        let path = model::path_of(&stored::one::<InodeRecord>(&model.frames, id)?.path);
        let told = stored::one::<CloneRecord>(&model.frames, id)?;
        let file = file_of(image, id).map(|file| file.try_clone_to_owned());
        let file = file.transpose().map_err(Error::system("opening a clone", path.display()))?;
        let fits = file.is_some_and(|file| CloneRecord::of(&file, facts.size, &path).is_ok_and(|now| now == told));
        if !fits {
            let cause = "the clone of it that is a part of the image is not what was cloned";
            return Err(Error::Unsound(format!("{}: {cause}", path.display())));
        }
    }
    Ok(model)
}

/// The file that is the contents of an object.
pub(crate) fn file_of(image: &ImageReader, id: ObjectId) -> Option<std::os::fd::BorrowedFd<'_>> {
    image.clone_of(id.0)?.file()
}

/// Makes a file what its clone is: at once where both can have their blocks in common. `false`: it has to be written.
pub(crate) fn give_back(file: &OwnedFd, clone: impl AsFd, size: u64) -> bool {
    // A block at the end of the clone that is not whole must not come into the middle of the file.
    let shorter = rustix::fs::fstat(file)
        .is_ok_and(|now| now.st_size.cast_unsigned() <= size || rustix::fs::ftruncate(file, size).is_ok());
    shorter
        && rustix::fs::ioctl_ficlone(file, clone)
            .inspect_err(|error| tracing::debug!(%error, "a clone is copied back"))
            .is_ok()
}
