//! Files as inodes: what the image keeps of a file that open files and mappings share, and of its contents.
//!
//! An inode is captured once, whoever leads to it: a descriptor, a mapping, the program file, or a path that the user
//! named. While the capture goes on only its uses are noted ([`note`]); at its end [`finish`] decides what is kept, as
//! only then it is known whether anything of the tree writes to it. The way back is in [`super::reopen`].

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use hdcr_image::{Record, Tag};
use rustix::fs::{Mode, OFlags, Stat};

use super::windows::Window;
use crate::capture::Capture;
use crate::error::{Error, Owner, Result};
use crate::model::{self, ObjectId};
use crate::procfs::MapLine;

mod finish;

pub(crate) use finish::finish;

/// How an inode can be met.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Life {
    /// Under its path.
    Named = 0,
    /// Nowhere: removed while it was in use.
    Unlinked = 1,
    /// Nowhere: made by `O_TMPFILE`.
    Nameless = 2,
    /// Its name is gone, but it has another, unknown one.
    Elsewhere = 3,
    /// `memfd_create(2)`.
    Memfd = 4,
    /// Shared anonymous memory: nothing but mappings lead to it.
    Anonymous = 5,
    /// A device that is mapped (`/dev/zero`).
    Device = 6,
}

/// What a restore does about the contents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Keep {
    /// They become those of the image.
    Contents = 0,
    /// The file is cut back to its length.
    Length = 1,
    /// They must be as they were.
    Unchanged = 2,
    /// They are left alone.
    AsItIs = 3,
}

/// Owner and mode of a directory above a file that may have to be made again.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ParentDirectory {
    #[prost(uint32, tag = "1")]
    pub(crate) mode: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) uid: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) gid: u32,
}

/// What is kept of an inode.
#[derive(Clone, PartialEq, prost::Message)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent fact, read by name")]
pub(crate) struct InodeRecord {
    /// The path, or the name of a memfd.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) path: Vec<u8>,
    #[prost(enumeration = "Life", tag = "2")]
    pub(crate) life: i32,
    #[prost(enumeration = "Keep", tag = "3")]
    pub(crate) keep: i32,
    #[prost(uint64, tag = "4")]
    pub(crate) device: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) inode: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) size: u64,
    #[prost(uint32, tag = "7")]
    pub(crate) mode: u32,
    #[prost(uint32, tag = "8")]
    pub(crate) uid: u32,
    #[prost(uint32, tag = "9")]
    pub(crate) gid: u32,
    #[prost(int64, tag = "10")]
    pub(crate) mtime: i64,
    #[prost(uint32, tag = "11")]
    pub(crate) mtime_ns: u32,
    #[prost(int64, tag = "12")]
    pub(crate) ctime: i64,
    #[prost(uint32, tag = "13")]
    pub(crate) ctime_ns: u32,
    /// The image holds the contents.
    #[prost(bool, tag = "14")]
    pub(crate) contents: bool,
    /// Digest of the whole (or of [`data::sample`] when [`InodeRecord::sampled`]); empty: none.
    #[prost(bytes = "vec", tag = "15")]
    pub(crate) digest: Vec<u8>,
    #[prost(bool, tag = "16")]
    pub(crate) sampled: bool,
    /// When the file has changed, a private copy of the old contents does as well: a program, a library.
    #[prost(bool, tag = "17")]
    pub(crate) stand_in: bool,
    /// Lies where a reboot removes it; made again at its path when missing.
    #[prost(bool, tag = "18")]
    pub(crate) volatile: bool,
    /// Times do not tell whether it has changed: something of the tree maps it shared and writable, or its last change
    /// was too short a time ago.
    #[prost(bool, tag = "19")]
    pub(crate) mapped: bool,
    /// `F_GET_SEALS`.
    #[prost(uint32, tag = "20")]
    pub(crate) seals: u32,
    /// Device number of a device.
    #[prost(uint64, tag = "21")]
    pub(crate) rdev: u64,
    /// Directories above, the root's first.
    #[prost(message, repeated, tag = "22")]
    pub(crate) parents: Vec<ParentDirectory>,
    /// `name_to_handle_at(2)`: type and bytes, to find the inode under whatever name.
    #[prost(int32, tag = "23")]
    pub(crate) handle_type: i32,
    #[prost(bytes = "vec", tag = "24")]
    pub(crate) handle: Vec<u8>,
    /// Where a file lies that was renamed while it was in use, as far as it was found: in the same directory.
    #[prost(bytes = "vec", tag = "25")]
    pub(crate) later_path: Vec<u8>,
    /// The image holds its head and its tail ([`data::edges`]): of a file that is cut back to its length, and may have been
    /// written elsewhere than at its end.
    #[prost(bool, tag = "26")]
    pub(crate) edges: bool,
    /// [`data::middle`] of such a one.
    #[prost(bytes = "vec", tag = "27")]
    pub(crate) middle: Vec<u8>,
    /// What it holds is executed: a program, or a library.
    #[prost(bool, tag = "28")]
    pub(crate) text: bool,
}

impl Record for InodeRecord {
    const TAG: Tag = Tag(0x0210);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl InodeRecord {
    /// The path, checked: absolute, without `..` and without a NUL.
    pub(crate) fn checked_path(&self) -> Result<PathBuf> {
        checked_path(&self.path)
    }

    /// The last name of the path, for messages and for private copies.
    pub(crate) fn name(&self) -> Vec<u8> {
        self.path.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec()
    }
}

/// Bytes of an image as a path: absolute, without `..` and without a NUL.
pub(crate) fn checked_path(bytes: &[u8]) -> Result<PathBuf> {
    let path = model::path_of(bytes);
    let sound =
        path.is_absolute() && !bytes.contains(&0) && !path.components().any(|part| part == Component::ParentDir);
    if sound { Ok(path) } else { Err(Error::Unsound(format!("{} is not an absolute path", path.display()))) }
}

/// How the tree uses an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent fact, read by name")]
pub(crate) struct Uses {
    /// Open for writing.
    pub(crate) write: bool,
    /// Written elsewhere than at its end: open without `O_APPEND`, or mapped shared and writable.
    pub(crate) overwrite: bool,
    /// Seen to be so: its offset is not at the end, or it is mapped.
    pub(crate) in_place: bool,
    /// Open for reading, or mapped private: what was read before must still be there.
    pub(crate) read: bool,
    /// Mapped shared.
    pub(crate) shared: bool,
    /// Mapped shared and writable.
    pub(crate) shared_write: bool,
    /// A program or a library: `exe`, or mapped private.
    pub(crate) program: bool,
    /// Something of the tree executes what it holds: `exe`, or mapped so.
    pub(crate) text: bool,
    /// Named by the user.
    pub(crate) listed: bool,
    /// Worked on earlier.
    pub(crate) touched: bool,
}

impl Uses {
    /// Whether nothing of the tree holds it: its name is known, and nothing else.
    fn only_by_name(self) -> bool {
        let by_name = Self { listed: self.listed, touched: self.touched, ..Self::default() };
        self == by_name
    }

    /// Whether it is executed, and nothing of the tree writes it: the tree can do with a private copy of it, and with nothing
    /// that holds anything else.
    pub(crate) fn is_text(self) -> bool {
        self.text && !self.write && !self.shared
    }

    fn join(&mut self, other: Self) {
        self.write |= other.write;
        self.overwrite |= other.overwrite;
        self.in_place |= other.in_place;
        self.read |= other.read;
        self.shared |= other.shared;
        self.shared_write |= other.shared_write;
        self.program |= other.program;
        self.text |= other.text;
        self.listed |= other.listed;
        self.touched |= other.touched;
    }
}

/// An inode as it was met.
#[derive(Debug)]
pub(crate) struct Met<'a> {
    /// What the link or the line of `maps` says.
    pub(crate) link: &'a [u8],
    /// `stat(2)` of it.
    pub(crate) stat: &'a Stat,
    /// A path through which it can be opened anew now, whatever its name.
    pub(crate) door: Option<PathBuf>,
    /// Who holds it, for messages.
    pub(crate) owner: Owner,
}

#[derive(Debug, Default)]
struct Pending {
    life: Life,
    path: Vec<u8>,
    stat: Option<Stat>,
    file: Option<OwnedFd>,
    /// Where it is opened when it is its turn: of files that the tree does not hold there may be more than can be open.
    door: Option<PathBuf>,
    uses: Uses,
    owner: Owner,
    windows: Vec<Window>,
    /// There is a clone of it.
    cloned: bool,
}

impl Pending {
    /// Opens what is not open, if it is that still.
    fn opened(&self) -> Option<OwnedFd> {
        let file = open_quietly(self.door.as_deref()?)?;
        let stat = rustix::fs::fstat(&file).ok()?;
        self.stat.as_ref().is_some_and(|met| same(met, &stat)).then_some(file)
    }
}

/// The inodes of a capture in progress.
#[derive(Debug, Default)]
pub(crate) struct Inodes {
    pending: BTreeMap<ObjectId, Pending>,
    /// Further names of files that the tree has worked on.
    pub(super) second_names: Vec<(ObjectId, PathBuf)>,
    /// Symbolic links and FIFOs.
    pub(super) names: Vec<super::names::Name>,
    /// The files of mappings by what `maps` shows: device and inode.
    pub(crate) lines: BTreeMap<(u64, u64), ObjectId>,
}

/// Notes that the tree uses an inode in some way; the object that stands for it.
pub(crate) fn note(cx: &mut Capture<'_>, met: &Met<'_>, uses: Uses) -> ObjectId {
    let id = match cx.shared("inode", met.stat.st_dev, met.stat.st_ino) {
        Ok(id) => id,
        Err(id) => {
            let (life, path) = life_of(met.link, met.stat);
            let mut pending = Pending { life, path, stat: Some(*met.stat), uses, ..Pending::default() };
            pending.owner = met.owner.clone();
            lead(&mut pending, met, uses);
            cx.inodes.pending.insert(id, pending);
            return id;
        }
    };
    if let Some(pending) = cx.inodes.pending.get_mut(&id) {
        pending.uses.join(uses);
        lead(pending, met, uses);
    }
    id
}

/// Whether an inode was noted under another name.
pub(super) fn has_other_name(cx: &Capture<'_>, id: ObjectId, path: &Path) -> bool {
    cx.inodes.pending.get(&id).is_some_and(|pending| pending.path != path.as_os_str().as_bytes())
}

/// Notes what leads to an inode.
fn lead(pending: &mut Pending, met: &Met<'_>, uses: Uses) {
    if pending.file.is_some() {
    } else if uses.only_by_name() {
        pending.door = pending.door.take().or_else(|| met.door.clone());
    } else {
        pending.file = met.door.as_deref().and_then(open_quietly);
    }
}

/// Notes a further use; `false` when nothing is known of the object.
pub(crate) fn use_again(cx: &mut Capture<'_>, id: ObjectId, uses: Uses) -> bool {
    let pending = cx.inodes.pending.get_mut(&id);
    pending.map(|pending| pending.uses.join(uses)).is_some()
}

/// Notes shared anonymous memory that cannot be opened.
pub(crate) fn note_anonymous(cx: &mut Capture<'_>, device: u64, line: &MapLine) -> ObjectId {
    match cx.shared("inode", device, line.inode) {
        Ok(id) => id,
        Err(id) => {
            let pending = Pending { life: Life::Anonymous, path: b"/dev/zero".to_vec(), ..Pending::default() };
            cx.inodes.pending.insert(id, pending);
            id
        }
    }
}

/// Notes a file that cannot be opened, and of which is known what private mappings show.
pub(crate) fn note_seen(cx: &mut Capture<'_>, device: u64, line: &MapLine, uses: Uses) -> ObjectId {
    let id = match cx.shared("inode", device, line.inode) {
        Ok(id) | Err(id) => id,
    };
    let path = line.name.strip_suffix(DELETED).unwrap_or(&line.name).to_vec();
    let pending = cx.inodes.pending.entry(id);
    pending.or_insert_with(|| Pending { life: Life::Unlinked, path, ..Pending::default() }).uses.join(uses);
    id
}

/// Notes that a part of an object that cannot be opened can be read in the memory of a process.
pub(crate) fn note_window(cx: &mut Capture<'_>, id: ObjectId, window: Window) {
    if let Some(pending) = cx.inodes.pending.get_mut(&id) {
        pending.windows.push(window);
    }
}

/// Opens for reading, without an access time when that is permitted.
pub(crate) fn open_quietly(door: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = |flags| rustix::fs::open(door, flags, Mode::empty());
    open(flags | OFlags::NOATIME).or_else(|_| open(flags)).ok()
}

/// Paths of files that the tree writes in place.
pub(crate) fn written(cx: &Capture<'_>) -> Vec<PathBuf> {
    let all = cx.inodes.pending.values();
    let written = all.filter(|pending| pending.life == Life::Named && pending.uses.overwrite);
    written.map(|pending| model::path_of(&pending.path)).collect()
}

const DELETED: &[u8] = b" (deleted)";

/// Whether two looks show the same inode.
pub(crate) fn same(a: &Stat, b: &Stat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

/// How an inode can be met, and under which path, by what the link of a descriptor or of a mapping says.
pub(crate) fn life_of(link: &[u8], stat: &Stat) -> (Life, Vec<u8>) {
    let leads = |path: &[u8]| rustix::fs::lstat(OsStr::from_bytes(path)).is_ok_and(|there| same(&there, stat));
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice {
        return (Life::Device, link.to_vec());
    }
    let Some(name) = link.strip_suffix(DELETED) else {
        // Where this user may not look, it is taken to be where the link says.
        let hidden = rustix::fs::lstat(OsStr::from_bytes(link)).is_err_and(|error| error == rustix::io::Errno::ACCESS);
        return (if hidden || leads(link) { Life::Named } else { Life::Elsewhere }, link.to_vec());
    };
    if leads(link) {
        return (Life::Named, link.to_vec());
    }
    if stat.st_nlink > 0 {
        return (if leads(name) { Life::Named } else { Life::Elsewhere }, name.to_vec());
    }
    let internal = rustix::fs::major(stat.st_dev) == 0;
    match name.strip_prefix(b"/memfd:") {
        Some(memfd) if internal => (Life::Memfd, memfd.to_vec()),
        _ if internal && name == b"/dev/zero" => (Life::Anonymous, name.to_vec()),
        _ if last_name(name).starts_with(b"#") => (Life::Nameless, name.to_vec()),
        _ => (Life::Unlinked, name.to_vec()),
    }
}

fn last_name(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or_default()
}

/// Identity, owner, mode and times.
pub(crate) fn facts(stat: &Stat) -> InodeRecord {
    InodeRecord {
        device: stat.st_dev,
        inode: stat.st_ino,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        ctime: stat.st_ctime,
        ctime_ns: u32::try_from(stat.st_ctime_nsec).unwrap_or_default(),
        rdev: stat.st_rdev,
        ..InodeRecord::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_its_path_is_checked() {
        let record = InodeRecord {
            path: b"/a/b".to_vec(),
            life: Life::Unlinked.into(),
            size: 7,
            contents: true,
            ..InodeRecord::default()
        };
        assert_eq!(InodeRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
        assert_eq!(record.checked_path().unwrap(), Path::new("/a/b"));
        for bad in ["", "a", "/a/../b", "/a\0"] {
            assert!(checked_path(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_life_of_a_file_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x (deleted)");
        std::fs::write(&path, b"x").unwrap();
        let link = path.as_os_str().as_bytes();
        let file = std::fs::File::open(&path).unwrap();
        let stat = || rustix::fs::fstat(&file).unwrap();
        assert_eq!(life_of(link, &stat()), (Life::Named, link.to_vec()));
        std::fs::rename(&path, directory.path().join("y")).unwrap();
        let gone = [link, b" (deleted)"].concat();
        assert_eq!(life_of(&gone, &stat()), (Life::Elsewhere, link.to_vec()));
        std::fs::remove_file(directory.path().join("y")).unwrap();
        assert_eq!(life_of(&gone, &stat()), (Life::Unlinked, link.to_vec()));
    }
}
