//! FIFOs: pipes with a name in the file system.
//!
//! Captured: where it is, size, the bytes in it when a process of the tree can read them, every opening of it. Made again
//! when it is missing; a nameless one under a name for a moment. Bytes that only somebody outside of the tree can read are
//! left to him. One that the program's user may not open is opened for it all the same when it is the very one that it had
//! (`held.rs`). Reads: `tee(2)` as for a pipe. No opening waits for a peer: one of both directions is held meanwhile.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use hdcr_image::{Record, Tag};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::outside;
use super::pipe::{self, PipeRecord};
use super::{FileKind, FileView, data, held};
use crate::capture::{Capture, OpenFile};
use crate::error::{Error, Owner, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::rights::Turn;
use crate::rollback::{self, Action, Newer, Witness};
use crate::route;

const ACCESS: u64 = 3;
const WRITE: u64 = 1;
const DIRECT: u64 = 0o40_000;
const DELETED: &[u8] = b" (deleted)";

pub(crate) struct Fifo;

/// What is kept of one opening.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FifoEndRecord {
    #[prost(uint64, tag = "1")]
    fifo: u64,
    #[prost(uint32, tag = "2")]
    access: u32,
}

impl Record for FifoEndRecord {
    const TAG: Tag = Tag(0x0252);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// What is kept of a FIFO.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FifoRecord {
    #[prost(bytes = "vec", tag = "1")]
    path: Vec<u8>,
    /// Whether its name was gone already.
    #[prost(bool, tag = "2")]
    deleted: bool,
    #[prost(uint32, tag = "3")]
    mode: u32,
    #[prost(uint32, tag = "4")]
    uid: u32,
    #[prost(uint32, tag = "5")]
    gid: u32,
    #[prost(message, optional, tag = "6")]
    pipe: Option<PipeRecord>,
    /// By these it is known again.
    #[prost(uint64, tag = "7")]
    device: u64,
    #[prost(uint64, tag = "8")]
    inode: u64,
    #[prost(int32, tag = "9")]
    handle_type: i32,
    #[prost(bytes = "vec", tag = "10")]
    handle: Vec<u8>,
}

impl Record for FifoRecord {
    const TAG: Tag = Tag(0x0253);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl FileKind for Fifo {
    type Record = FifoEndRecord;

    fn claims(view: &FileView) -> bool {
        view.starts_with("/") && FileType::from_raw_mode(view.stat.st_mode) == FileType::Fifo
    }

    fn capture(cx: &mut Capture<'_>, view: &FileView, file: &OwnedFd) -> Result<FifoEndRecord> {
        let access = model::low32(view.info.flags & ACCESS);
        let same: Vec<OpenFile> =
            cx.with_inode(view.stat.st_ino).filter(|other| outside::same_object(&other.view, view)).cloned().collect();
        let fifo = match cx.shared("FIFO", view.stat.st_dev, view.stat.st_ino) {
            Ok(known) => known,
            Err(fresh) => {
                let packets = same.iter().any(|other| other.view.info.flags & DIRECT != 0);
                let reader = same.iter().find(|other| other.view.info.flags & ACCESS != WRITE);
                let reader = reader.map(|reader| cx.duplicate(reader)).transpose()?;
                let pipe = pipe::contents(file, reader.as_ref(), packets);
                let pipe = pipe.map_err(Error::system("copying a FIFO", model::path_of(&view.link).display()))?;
                let (handle_type, handle) = data::handle_of(file).unwrap_or_default();
                let named = view.link.strip_suffix(DELETED).filter(|_| view.stat.st_nlink == 0);
                let record = FifoRecord {
                    path: named.unwrap_or(&view.link).to_vec(),
                    deleted: named.is_some(),
                    mode: view.stat.st_mode & 0o7777,
                    uid: view.stat.st_uid,
                    gid: view.stat.st_gid,
                    pipe: Some(pipe),
                    device: view.stat.st_dev,
                    inode: view.stat.st_ino,
                    handle_type,
                    handle,
                };
                cx.frame(fresh, &record)?;
                fresh
            }
        };
        Ok(FifoEndRecord { fifo: fifo.0, access })
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: FifoEndRecord) -> Result<OwnedFd> {
        let _turn = cx.turn_of_holders(id)?;
        let fifo = ObjectId(record.fifo);
        if !cx.parts.contains_key(&fifo) {
            let object: FifoRecord = cx.record(fifo)?;
            let path = cx.mapped(&super::contents::checked_path(&object.path)?);
            let keeper = make(cx, &path, fifo, &object)?;
            cx.parts.insert(fifo, vec![keeper]);
        }
        let keeper = cx.parts.get(&fifo).and_then(|parts| parts.first());
        let keeper = keeper.ok_or_else(|| Error::Unsound(format!("{fifo} is no FIFO")))?;
        let open = || pipe::open_again(keeper.as_fd(), record.access);
        let opened = match open() {
            Err(error) if held::DENIED.contains(&error) => {
                let object: FifoRecord = cx.record(fifo)?;
                if !is_the_one(&object, keeper) {
                    return Err(not_permitted(&model::path_of(&object.path)));
                }
                let _turn = Turn::home()?;
                open()
            }
            other => other,
        };
        opened.map_err(Error::system("opening a FIFO", id))
    }
}

/// Opens the FIFO for both directions, makes it first when it is missing, and puts its bytes in.
fn make(cx: &mut Restore<'_>, path: &Path, id: ObjectId, record: &FifoRecord) -> Result<OwnedFd> {
    let subject = path.display().to_string();
    let failed = |operation| Error::system::<Errno>(operation, &subject);
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = route::lstat(path);
    let keeper = match &found {
        Ok(stat) if !record.deleted && FileType::from_raw_mode(stat.st_mode) == FileType::Fifo => {
            match route::open(path, flags, Mode::empty()) {
                Err(error) if held::DENIED.contains(&error) => out_of_reach(path, flags, record)?,
                other => other.map_err(failed("opening a FIFO"))?,
            }
        }
        Ok(_) if !record.deleted => return Err(Error::refuse(taken(path))),
        Err(Errno::ACCESS) if !record.deleted => out_of_reach(path, flags, record)?,
        Err(Errno::LOOP) => return Err(Error::refuse(route::barred("FIFO", path))),
        Ok(_) | Err(_) => match fresh(cx, path, record) {
            Err(error) if held::is_denied(&error) => return Err(not_permitted(path)),
            other => other?,
        },
    };
    let pipe = record.pipe.as_ref().ok_or_else(|| Error::Unsound(format!("{id} is a FIFO without a pipe")))?;
    // What is in it already belongs to somebody outside who holds it open, and so do the bytes of the checkpoint.
    if rustix::io::ioctl_fionread(&keeper).map_err(failed("looking into a FIFO"))? == 0 {
        pipe::fill(&keeper, pipe).map_err(failed("filling a FIFO"))?;
    }
    Ok(keeper)
}

/// The very FIFO that somebody else had opened for the program.
fn out_of_reach(path: &Path, flags: OFlags, record: &FifoRecord) -> Result<OwnedFd> {
    let file = held::beyond_links(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC).ok();
    let file = file.filter(|file| is_the_one(record, file)).ok_or_else(|| not_permitted(path))?;
    let _turn = Turn::home()?;
    rustix::fs::open(data::door(&file), flags - OFlags::NOFOLLOW, Mode::empty()).map_err(|_| not_permitted(path))
}

/// Whether this is the FIFO that was captured, and not one that has got its number since.
fn is_the_one(record: &FifoRecord, file: &OwnedFd) -> bool {
    let same = |stat: rustix::fs::Stat| {
        let is_fifo = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo;
        is_fifo && (stat.st_dev, stat.st_ino) == (record.device, record.inode)
    };
    let handle = || data::handle_of(file).is_some_and(|handle| handle == (record.handle_type, record.handle.clone()));
    rustix::fs::fstat(file).is_ok_and(same) && (record.handle.is_empty() || handle())
}

fn not_permitted(path: &Path) -> Error {
    Error::refuse(Refusal {
        code: "file-not-permitted",
        object: "FIFO".to_owned(),
        owner: Owner { path: Some(path.to_owned()), ..Owner::default() },
        cause: "the program's user may neither open nor make it, and it is not the one that was open at the checkpoint"
            .to_owned(),
        remedy: "put a FIFO there that this user may open (mkfifo, chown)".to_owned(),
    })
}

/// A new one: under a name of ours until the end of the restore. A nameless one shows the name that it had, as far as that
/// can be given for a moment.
fn fresh(cx: &mut Restore<'_>, path: &Path, record: &FifoRecord) -> Result<OwnedFd> {
    let failed = |operation| Error::system::<Errno>(operation, path.display());
    let in_use = record.deleted && route::place(path).is_err();
    let around = if in_use { Path::new("/tmp").join(path.file_name().unwrap_or_default()) } else { path.to_owned() };
    let mut place = data::free_beside(&around, "new", || cx.plan.unique());
    cx.plan.will_make(&place, None)?;
    let keeper = born(&place, record).map_err(failed("making a FIFO"))?;
    if !record.deleted {
        cx.plan.add(Action::Place { path: path.to_owned(), from: place }, Newer::Go)?;
        return Ok(keeper);
    }
    cx.plan.will_make(&around, Some(Witness::of(&keeper, &place)?))?;
    if rollback::rename(&place, &around).is_ok() {
        place = around;
    }
    route::unlink(&place).map_err(failed("taking the name of a FIFO away"))?;
    Ok(keeper)
}

fn born(path: &Path, record: &FifoRecord) -> rustix::io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(record.mode & 0o7777);
    let (above, name) = route::place(path)?;
    rustix::fs::mknodat(&above, name, FileType::Fifo, mode, 0)?;
    // By descriptor: the owner of the directory could put a link in its place meanwhile.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(&above, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) != FileType::Fifo {
        return Err(Errno::EXIST);
    }
    rustix::fs::fchmod(&opened, mode)?;
    match rustix::fs::fchown(&opened, Some(Uid::from_raw(record.uid)), Some(Gid::from_raw(record.gid))) {
        // An ordinary user keeps it as its own.
        Ok(()) | Err(Errno::PERM) => Ok(opened),
        Err(error) => Err(error),
    }
}

fn taken(path: &Path) -> Refusal {
    Refusal {
        code: "fifo-replaced",
        object: "FIFO".to_owned(),
        owner: Owner { path: Some(path.to_owned()), ..Owner::default() },
        cause: "another file is in its place".to_owned(),
        remedy: "move that file away, or give the path another place with --map-path".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::scene::{self, Image};

    #[test]
    fn a_fifo_of_a_restore_that_fails_or_dies_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        let pipe = Some(PipeRecord::default());
        let record = FifoRecord { mode: 0o640, pipe, ..FifoRecord::default() };
        let image = Image::default();
        let journal = directory.path().join("journal");
        for dies in [false, true] {
            let mut cx = scene::restore(&image, &journal, &[]);
            make(&mut cx, &path, ObjectId(1), &record).unwrap();
            cx.plan.prepare(cx.contents).unwrap();
            cx.plan.apply(cx.contents).unwrap();
            assert!(path.exists());
            if dies {
                cx.plan.die();
                assert!(rollback::repair(&journal).unwrap());
            } else {
                drop(cx);
            }
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "only the journal's directory");
        }
    }

    #[test]
    fn a_fifo_with_bytes_is_made_again_with_and_without_a_name() {
        let directory = Path::new("/tmp").join(format!("hdcr-fifo-{}", rustix::process::getpid().as_raw_nonzero()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("f");
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"hello").unwrap();
        let pipe = Some(pipe::contents(&writer, Some(&reader), false).unwrap());
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let mut record = FifoRecord { mode: 0o640, uid, gid, pipe, ..FifoRecord::default() };
        for deleted in [true, false] {
            record.deleted = deleted;
            let image = Image::default();
            let mut cx = scene::restore(&image, &directory.join("journal"), &[]);
            let keeper = make(&mut cx, &path, ObjectId(1), &record).unwrap();
            assert!(!path.exists(), "not before the end of the restore");
            scene::finish(cx);
            let reader = pipe::open_again(keeper.as_fd(), 0).unwrap();
            let mut room = [0; 9];
            assert_eq!(rustix::io::read(&reader, &mut room).unwrap(), 5);
            assert_eq!(path.exists(), !deleted);
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
