//! `pipe(2)`: a pipe, and the open files that are its ends.
//!
//! Captured: size, the bytes in it, borders of packets (`O_DIRECT`), every opening of either end, closed ends. An end whose
//! other end lies outside of the tree: see `outside.rs`. Not captured: the owner that `fchown(2)` gave to the pipe.
//! Reads: a copy by `tee(2)` into a pipe of our own, which takes nothing away; `poll(2)` tells whether the other end lives.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use hdcr_image::{Record, Tag};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, tee};

use super::outside::{self, Fate, OutsideRecord};
use super::{FileKind, FileView};
use crate::capture::{Capture, OpenFile};
use crate::checkpoint::EndPolicy;
use crate::error::{Error, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::survey::Survey;

const ACCESS: u64 = 3;
const READ: u64 = 0;
const WRITE: u64 = 1;
/// Set in the flags of every file that was opened by name, and never by `pipe(2)` (fs/pipe.c).
const LARGEFILE: u64 = 0o100_000;
const DIRECT: u64 = 0o40_000;
/// Most bytes that one `tee` moves; more than any pipe holds.
const ALL: usize = 0x7fff_f000;

pub(crate) struct Pipe;

/// What is kept of one end.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PipeEndRecord {
    /// The pipe; 0 when the end leads out of the tree.
    #[prost(uint64, tag = "1")]
    pipe: u64,
    /// Access mode.
    #[prost(uint32, tag = "2")]
    access: u32,
    /// Whether it is not one of the two ends that the pipe was born with.
    #[prost(bool, tag = "3")]
    reopened: bool,
    #[prost(message, optional, tag = "4")]
    outside: Option<OutsideRecord>,
}

impl Record for PipeEndRecord {
    const TAG: Tag = Tag(0x0250);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// What is kept of a pipe.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PipeRecord {
    /// Capacity in bytes (`F_GETPIPE_SZ`).
    #[prost(uint64, tag = "1")]
    size: u64,
    #[prost(message, repeated, tag = "2")]
    pieces: Vec<Piece>,
}

/// Bytes in a pipe.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Piece {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
    /// Whether a read must end behind it.
    #[prost(bool, tag = "2")]
    packet: bool,
}

impl Record for PipeRecord {
    const TAG: Tag = Tag(0x0251);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Which ends the tree holds itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    read: bool,
    write: bool,
}

impl Held {
    fn of<'a>(views: impl Iterator<Item = &'a FileView>) -> Self {
        views.fold(Self { read: false, write: false }, |held, view| {
            let access = view.info.flags & ACCESS;
            Self { read: held.read || access != WRITE, write: held.write || access != READ }
        })
    }

    /// Whether the other end of `file` is held by somebody outside of the tree.
    fn leads_out(self, file: &OwnedFd, id: &FileView) -> Result<bool> {
        if self.read && self.write {
            return Ok(false);
        }
        let mut polled = [PollFd::new(file, PollFlags::empty())];
        poll(&mut polled, Some(&Timespec::default()))
            .map_err(Error::system("poll", format!("pid {}, fd {}", id.pid, id.fd)))?;
        let [polled] = polled;
        Ok(!polled.revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }
}

impl FileKind for Pipe {
    type Record = PipeEndRecord;

    fn claims(view: &FileView) -> bool {
        view.starts_with("pipe:[")
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        let held = Held::of(survey.with_inode(view.stat.st_ino).filter(|other| outside::same_object(other, view)));
        if (!held.read || !held.write) && held.leads_out(&view.duplicate()?, view)? {
            outside::report(survey, view, outside::PIPE, &leads_out(held));
        }
        Ok(())
    }

    fn capture(cx: &mut Capture<'_>, view: &FileView, file: &OwnedFd) -> Result<PipeEndRecord> {
        let same =
            || cx.with_inode(view.stat.st_ino).map(|file| &file.view).filter(|other| outside::same_object(other, view));
        let held = Held::of(same().chain([view]));
        let access = model::low32(view.info.flags & ACCESS);
        let mut record =
            PipeEndRecord { access, reopened: view.info.flags & LARGEFILE != 0, ..PipeEndRecord::default() };
        if held.leads_out(file, view)? {
            match outside::fate(cx, view) {
                Fate::Stream(stream) => {
                    record.outside = Some(OutsideRecord { stream, access, ..OutsideRecord::default() });
                    return Ok(record);
                }
                Fate::Policy(EndPolicy::Close) => {}
                Fate::Policy(_) => return Err(Error::refuse(outside::refusal(view, outside::PIPE, &leads_out(held)))),
            }
        }
        let packets = same().any(|other| other.info.flags & DIRECT != 0 && other.info.flags & ACCESS != READ);
        let reads =
            |other: &&OpenFile| outside::same_object(&other.view, view) && other.view.info.flags & ACCESS != WRITE;
        let reader = cx.with_inode(view.stat.st_ino).find(reads).cloned();
        let id = match cx.shared("pipe", view.stat.st_dev, view.stat.st_ino) {
            Ok(known) => known,
            Err(fresh) => {
                let reader = match reader {
                    _ if view.info.flags & ACCESS != WRITE => {
                        Some(file.try_clone().map_err(Error::system("dup", fresh))?)
                    }
                    Some(reader) => Some(cx.duplicate(&reader)?),
                    None => None,
                };
                let object =
                    contents(file, reader.as_ref(), packets).map_err(Error::system("copying a pipe", fresh))?;
                cx.frame(fresh, &object)?;
                fresh
            }
        };
        record.pipe = id.0;
        Ok(record)
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: PipeEndRecord) -> Result<OwnedFd> {
        if let Some(outside) = &record.outside {
            return outside::restore(cx, id, outside);
        }
        let pipe = ObjectId(record.pipe);
        if !cx.parts.contains_key(&pipe) {
            let object: PipeRecord = cx.record(pipe)?;
            let ends = make(&object).map_err(Error::system("making a pipe", pipe))?;
            cx.parts.insert(pipe, ends.into());
        }
        let parts = cx.parts.get(&pipe).map(Vec::as_slice).unwrap_or_default();
        let [reader, writer] = parts else { return Err(Error::Unsound(format!("{pipe} is not a pipe"))) };
        let natural = match (record.reopened, u64::from(record.access)) {
            (false, READ) => Some(reader),
            (false, WRITE) => Some(writer),
            _ => None,
        };
        match natural {
            Some(end) => end.try_clone().map_err(Error::system("dup", id)),
            None => open_again(writer.as_fd(), record.access).map_err(Error::system("opening a pipe again", id)),
        }
    }
}

fn leads_out(held: Held) -> String {
    let end = if held.read { "writing" } else { "reading" };
    format!("its {end} end is held outside of the tree")
}

/// Another opening of a pipe or FIFO that is already open.
pub(crate) fn open_again(end: BorrowedFd<'_>, access: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(access & 3) | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/self/fd/{}", end.as_raw_fd()), flags, Mode::empty())
}

/// Size and bytes of a pipe or FIFO; without a reading end its bytes are nobody's and are left out.
pub(crate) fn contents(end: &OwnedFd, reader: Option<&OwnedFd>, packets: bool) -> rustix::io::Result<PipeRecord> {
    let size = fcntl_getpipe_size(end)?;
    let pieces = match reader {
        Some(reader) => copy(reader, size, packets)?,
        None => Vec::new(),
    };
    Ok(PipeRecord { size: size as u64, pieces })
}

/// The bytes of a pipe, without taking them.
fn copy(reader: &OwnedFd, size: usize, packets: bool) -> rustix::io::Result<Vec<Piece>> {
    let (from, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    fcntl_setpipe_size(&into, size)?;
    match tee(reader, &into, ALL, SpliceFlags::NONBLOCK) {
        Ok(_) => {}
        Err(rustix::io::Errno::AGAIN) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    drop(into);
    let mut pieces: Vec<Piece> = Vec::new();
    loop {
        let left = usize::try_from(rustix::io::ioctl_fionread(&from)?).unwrap_or(0);
        if left == 0 {
            break;
        }
        let mut bytes = vec![0; left];
        let len = rustix::io::read(&from, bytes.as_mut_slice())?;
        bytes.truncate(len);
        // A read that gives less than there is ended at the border of a packet; of the last one only the writer knows.
        pieces.push(Piece { bytes, packet: packets || len < left });
    }
    let mixed = pieces.iter().any(|piece| piece.packet);
    if let Some(last) = pieces.last_mut() {
        last.packet |= mixed;
    }
    Ok(pieces)
}

fn make(record: &PipeRecord) -> rustix::io::Result<[OwnedFd; 2]> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    fill(&writer, record)?;
    Ok([reader, writer])
}

/// Sets the size of a pipe or FIFO and puts the bytes in.
pub(crate) fn fill(writer: &OwnedFd, record: &PipeRecord) -> rustix::io::Result<()> {
    let size = usize::try_from(record.size).map_err(|_| rustix::io::Errno::INVAL)?;
    if fcntl_getpipe_size(writer)? != size {
        fcntl_setpipe_size(writer, size)?;
    }
    for piece in &record.pieces {
        let mode = if piece.packet { OFlags::DIRECT } else { OFlags::empty() };
        rustix::fs::fcntl_setfl(writer, OFlags::NONBLOCK | mode)?;
        if rustix::io::write(writer, &piece.bytes)? != piece.bytes.len() {
            return Err(rustix::io::Errno::NOSPC);
        }
    }
    rustix::fs::fcntl_setfl(writer, OFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
    }

    fn read_all(end: &OwnedFd) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        let mut room = vec![0; 1 << 20];
        rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK).unwrap();
        while let Ok(len @ 1..) = rustix::io::read(end, room.as_mut_slice()) {
            out.push(room[..len].to_vec());
        }
        out
    }

    #[test]
    fn a_full_pipe_is_copied_and_keeps_its_bytes() {
        let (r, w) = pipe();
        fcntl_setpipe_size(&w, 1 << 17).unwrap();
        let bytes: Vec<u8> = (0..131_072_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        assert_eq!(rustix::io::write(&w, &bytes).unwrap(), bytes.len());
        let record = contents(&r, Some(&r), false).unwrap();
        let made = make(&PipeRecord::decode(&record.encode().unwrap(), 1).unwrap()).unwrap();
        assert_eq!(fcntl_getpipe_size(&made[0]).unwrap(), 1 << 17);
        assert_eq!(read_all(&made[0]).concat(), bytes);
        assert_eq!(read_all(&r).concat(), bytes);
    }

    #[test]
    fn packets_keep_their_borders() {
        let (r, w) = pipe();
        rustix::fs::fcntl_setfl(&w, OFlags::DIRECT | OFlags::NONBLOCK).unwrap();
        for packet in [&b"one"[..], b"", b"three", b"4"] {
            rustix::io::write(&w, packet).unwrap();
        }
        let record = contents(&r, Some(&r), true).unwrap();
        let [made, _writer] = make(&record).unwrap();
        assert_eq!(read_all(&made), [&b"one"[..], b"three", b"4"]);
        assert_eq!(read_all(&r).len(), 3);
    }

    #[test]
    fn an_end_without_its_peer_is_told_from_one_that_leads_out() {
        let view = crate::resource::testing::view("pipe:[1]", 0);
        let (r, w) = pipe();
        let reader_only = Held { read: true, write: false };
        assert!(reader_only.leads_out(&r, &view).unwrap());
        drop(w);
        assert!(!reader_only.leads_out(&r, &view).unwrap());
        let (r, w) = pipe();
        let writer_only = Held { read: false, write: true };
        assert!(writer_only.leads_out(&w, &view).unwrap());
        drop(r);
        assert!(!writer_only.leads_out(&w, &view).unwrap());
    }

    #[test]
    fn an_end_opened_again_shares_the_bytes() {
        let (r, w) = pipe();
        let again = open_again(r.as_fd(), 2).unwrap();
        rustix::io::write(&w, b"x").unwrap();
        assert_eq!(read_all(&again), [b"x"]);
        assert_eq!(contents(&r, Some(&r), false).unwrap().pieces, []);
    }
}
