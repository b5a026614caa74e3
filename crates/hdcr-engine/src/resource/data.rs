//! The bytes of a file: read around its holes, digested, written in place. Never moves an offset that a program shares:
//! every descriptor here was opened by us.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::model::ObjectId;
use crate::restore::Contents;

/// Bytes that are read or written at once.
const PIECE: u64 = 1 << 20;
/// As much is read at once by [`read_small`]: below the 128 KiB from which on `malloc` maps new memory each time.
const SMALL: u64 = 96 << 10;
/// Bytes of a sample's head and of its tail.
const SAMPLE: u64 = 64 << 10;
/// Contents are stored in whole pages.
const PAGE: u64 = 4096;

/// The path under which a descriptor of ours can be opened anew.
pub(crate) fn door(file: impl AsFd) -> PathBuf {
    let number = std::os::fd::AsRawFd::as_raw_fd(&file.as_fd());
    PathBuf::from(format!("/proc/self/fd/{number}"))
}

/// `TMPFS_MAGIC` (`<linux/magic.h>`).
const TMPFS: u64 = 0x0102_1994;

/// Whether a file lies in memory only.
pub(crate) fn on_tmpfs(file: &OwnedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| magic(&fs) == TMPFS)
}

/// The same of what a path leads to.
pub(crate) fn path_on_tmpfs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| magic(&fs) == TMPFS)
}

/// The magic number of a file system, without the sign that some architectures give it.
pub(crate) fn magic(fs: &rustix::fs::StatFs) -> u64 {
    fs.f_type.cast_unsigned() & 0xffff_ffff
}

/// Whether a file lies on the device that the kernel names, as far as that can be told: a subvolume and a layered file
/// system show other numbers to `stat(2)` than those of their superblock.
pub(crate) fn is_on(path: &Path, stat: &Stat, device: (u32, u32)) -> bool {
    const BTRFS: u64 = 0x9123_683e;
    const OVERLAY: u64 = 0x794c_7630;
    let other = || rustix::fs::statfs(path).is_ok_and(|fs| [BTRFS, OVERLAY].contains(&magic(&fs)));
    (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)) == device || other()
}

/// The handle of a file, if its file system has such; with it the inode is found under whatever name.
pub(crate) fn handle_of(file: &OwnedFd) -> Option<(i32, Vec<u8>)> {
    hdcr_sys::handle::of(file.as_fd()).ok().map(|handle| (handle.kind, handle.bytes))
}

/// The names in a directory, in order.
pub(crate) fn names(directory: &Path) -> Result<Vec<Vec<u8>>> {
    let wrong = |error| Error::System {
        operation: "listing a directory",
        subject: directory.display().to_string(),
        source: error,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(wrong)? {
        names.push(entry.map_err(wrong)?.file_name().into_vec());
    }
    names.sort_unstable();
    Ok(names)
}

/// Fills a buffer from an offset; what lies behind the end of the file stays as it is. The number of bytes read.
fn read_at(file: impl AsFd, offset: u64, into: &mut [u8], subject: &Path) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(u64::try_from(done).unwrap_or_default());
        match rustix::io::pread(file.as_fd(), rest, at) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::system("reading a file", subject.display())(error)),
        }
    }
    Ok(done)
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or_default()
}

/// Hands over the data of a file below `size`, in pieces of whole pages; holes and pages of zeros at the ends of a piece
/// are left out.
pub(crate) fn read(
    file: &OwnedFd,
    size: u64,
    subject: &Path,
    each: &mut dyn FnMut(u64, Vec<u8>) -> Result<()>,
) -> Result<()> {
    read_by(PIECE, (file, size, subject), each)
}

/// The same in small pieces, for who drops each before the next.
pub(crate) fn read_small(
    file: &OwnedFd,
    size: u64,
    subject: &Path,
    each: &mut dyn FnMut(u64, Vec<u8>) -> Result<()>,
) -> Result<()> {
    read_by(SMALL, (file, size, subject), each)
}

fn read_by(
    piece: u64,
    (file, size, subject): (&OwnedFd, u64, &Path),
    each: &mut dyn FnMut(u64, Vec<u8>) -> Result<()>,
) -> Result<()> {
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.max(at),
            Err(Errno::NXIO) => return Ok(()),
            Err(_) => at,
        };
        // Where blocks are smaller than pages a hole may begin and end inside of a page: all of the page is read. The hole is
        // looked for from the data on, not from the begin of its page, which may lie in a hole itself.
        let end = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap_or(size);
        let end = end.next_multiple_of(PAGE).min(size);
        let start = data - data % PAGE;
        at = start;
        while at < end {
            let want = piece.min(end - at);
            let mut bytes = vec![0; length(want.next_multiple_of(PAGE))];
            let room = bytes.get_mut(..length(want)).unwrap_or_default();
            read_at(file, at, room, subject)?;
            if bytes.iter().any(|byte| *byte != 0) {
                each(at, bytes)?;
            }
            at = at.saturating_add(want.next_multiple_of(PAGE));
        }
        at = at.max(end);
        if end <= start {
            // A file system that knows no holes and answers nothing useful: never loop for ever.
            at = at.saturating_add(PAGE);
        }
    }
    Ok(())
}

/// The same as [`digest`], of a file whose data [`read`] hands over.
#[derive(Default)]
pub(crate) struct Digest {
    hasher: blake3::Hasher,
    at: u64,
}

impl Digest {
    /// Takes the next piece; what lies between it and the one before are zeros.
    pub(crate) fn add(&mut self, at: u64, bytes: &[u8], size: u64) {
        self.skip_to(at.min(size));
        let known = length(size.saturating_sub(at)).min(bytes.len());
        self.hasher.update(bytes.get(..known).unwrap_or_default());
        self.at = at.saturating_add(u64::try_from(known).unwrap_or_default());
    }

    fn skip_to(&mut self, end: u64) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while self.at < end {
            let step = (end - self.at).min(64 << 10);
            self.hasher.update(ZEROS.get(..length(step)).unwrap_or_default());
            self.at += step;
        }
    }

    /// That of the first `size` bytes.
    pub(crate) fn finish(mut self, size: u64) -> Vec<u8> {
        self.skip_to(size);
        self.hasher.finalize().as_bytes().to_vec()
    }
}

/// Digest of the first `size` bytes.
pub(crate) fn digest(file: &OwnedFd, size: u64, subject: &Path) -> Result<Vec<u8>> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; length(PIECE)];
    let mut at = 0;
    while at < size {
        let want = PIECE.min(size - at);
        let room = buffer.get_mut(..length(want)).unwrap_or_default();
        let count = read_at(file.as_fd(), at, room, subject)?;
        hasher.update(room.get(..count).unwrap_or_default());
        if count < room.len() {
            break;
        }
        at += want;
    }
    Ok(hasher.finalize().as_bytes().to_vec())
}

/// Digest of the head and of the tail of the first `size` bytes: tells whether a file that has grown still begins as the
/// same file, and whether a program is the same build (a build id lies in its head).
pub(crate) fn sample(file: &OwnedFd, size: u64, subject: &Path) -> Result<Vec<u8>> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
    for at in [0, size.saturating_sub(SAMPLE)] {
        let mut bytes = vec![0; length(SAMPLE.min(size))];
        let count = read_at(file.as_fd(), at, &mut bytes, subject)?;
        hasher.update(bytes.get(..count).unwrap_or_default());
    }
    Ok(hasher.finalize().as_bytes().to_vec())
}

/// Where the tail of a sample begins that its head does not cover, at a page.
fn tail_of(size: u64) -> u64 {
    let tail = size.saturating_sub(SAMPLE);
    SAMPLE.min(size).next_multiple_of(PAGE).max(tail - tail % PAGE)
}

/// Hands over the head and the tail of the first `size` bytes, in pieces of whole pages.
pub(crate) fn edges(
    file: &OwnedFd,
    size: u64,
    subject: &Path,
    each: &mut dyn FnMut(u64, Vec<u8>) -> Result<()>,
) -> Result<()> {
    for (at, end) in [(0, SAMPLE.min(size)), (tail_of(size), size)] {
        if at < end {
            let mut bytes = vec![0; length((end - at).next_multiple_of(PAGE))];
            read_at(file, at, bytes.get_mut(..length(end - at)).unwrap_or_default(), subject)?;
            each(at, bytes)?;
        }
    }
    Ok(())
}

/// Digest of some blocks between the edges of the first `size` bytes.
pub(crate) fn middle(file: &OwnedFd, size: u64, subject: &Path) -> Result<Vec<u8>> {
    const BLOCKS: u64 = 16;
    let (start, end) = (SAMPLE.min(size), tail_of(size).min(size));
    let mut hasher = blake3::Hasher::new();
    for number in 0..BLOCKS {
        let at = start + end.saturating_sub(start) / BLOCKS * number;
        let mut bytes = vec![0; length(PAGE.min(end.saturating_sub(at)))];
        let count = read_at(file, at, &mut bytes, subject)?;
        hasher.update(bytes.get(..count).unwrap_or_default());
    }
    Ok(hasher.finalize().as_bytes().to_vec())
}

/// Puts the edges of a file back, which hold what an object holds, and gives it its length.
pub(crate) fn put_edges(
    file: &OwnedFd,
    contents: &dyn Contents,
    id: ObjectId,
    size: u64,
    subject: &Path,
) -> Result<()> {
    contents.read(id, &mut |offset, bytes| {
        let room = length(size.saturating_sub(offset)).min(bytes.len());
        write_at(file, offset, bytes.get(..room).unwrap_or_default(), subject)
    })?;
    rustix::fs::ftruncate(file, size).map_err(Error::system("setting the length of a file", subject.display()))
}

/// Writes a whole buffer at an offset.
pub(crate) fn write_at(file: impl AsFd, offset: u64, bytes: &[u8], subject: &Path) -> Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(u64::try_from(done).unwrap_or_default());
        match rustix::io::pwrite(file.as_fd(), rest, at) {
            Ok(0) => return Err(Error::system("writing a file", subject.display())(Errno::IO)),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::system("writing a file", subject.display())(error)),
        }
    }
    Ok(())
}

/// Makes the first `size` bytes of a range zeros: as a hole where the file system has holes.
fn zero(file: impl AsFd, from: u64, to: u64, subject: &Path) -> Result<()> {
    if from >= to {
        return Ok(());
    }
    if rustix::fs::fallocate(file.as_fd(), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, to - from)
        .is_ok()
    {
        return Ok(());
    }
    let zeros = vec![0; length(PIECE)];
    let mut at = from;
    while at < to {
        let want = PIECE.min(to - at);
        write_at(file.as_fd(), at, zeros.get(..length(want)).unwrap_or_default(), subject)?;
        at += want;
    }
    Ok(())
}

/// Gives a file the contents of an object, in place: only what differs is written. `size` is the true length.
pub(crate) fn fill(file: &OwnedFd, contents: &dyn Contents, id: ObjectId, size: u64, subject: &Path) -> Result<()> {
    if contents.file(id)?.is_some_and(|clone| super::clone::give_back(file, clone, size)) {
        return Ok(());
    }
    let before = rustix::fs::fstat(file).map_err(Error::system("looking at a file", subject.display()))?;
    // What only appends is filled from its beginning on: each piece goes to the end, which is put where it belongs.
    let flags = rustix::fs::fcntl_getfl(file).map_err(Error::system("looking at a file", subject.display()))?;
    let end_at = |at| {
        if !flags.contains(OFlags::APPEND) {
            return Ok(());
        }
        rustix::fs::ftruncate(file, at).map_err(Error::system("setting the length of a file", subject.display()))
    };
    end_at(0)?;
    let before = if flags.contains(OFlags::APPEND) { 0 } else { before.st_size.cast_unsigned() };
    let mut done = 0;
    contents.read(id, &mut |offset, bytes| {
        let room = length(size.saturating_sub(offset).min(PIECE.max(u64::try_from(bytes.len()).unwrap_or_default())));
        let bytes = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        zero(file, done.min(before), offset.min(before), subject)?;
        end_at(offset)?;
        write_changed(file, offset, bytes, offset < before, subject)?;
        done = offset.saturating_add(u64::try_from(bytes.len()).unwrap_or_default());
        Ok(())
    })?;
    zero(file, done.min(before), size.min(before), subject)?;
    rustix::fs::ftruncate(file, size).map_err(Error::system("setting the length of a file", subject.display()))
}

/// Bytes that are compared at once.
const BLOCK: usize = 64 << 10;

/// Writes the blocks of a piece that differ from what is there.
fn write_changed(file: &OwnedFd, offset: u64, bytes: &[u8], overlaps: bool, subject: &Path) -> Result<()> {
    if !overlaps {
        return write_at(file, offset, bytes, subject);
    }
    let mut at = offset;
    let mut there = vec![0; BLOCK];
    for block in bytes.chunks(BLOCK) {
        let room = there.get_mut(..block.len()).unwrap_or_default();
        // One that is open for writing only is not compared.
        let count = read_at(file, at, room, subject).unwrap_or(0);
        if count < block.len() || *room != *block {
            write_at(file, at, block, subject)?;
        }
        at = at.saturating_add(u64::try_from(block.len()).unwrap_or_default());
    }
    Ok(())
}

/// Copies a range of one file into another, by reference where the file system can. Holes stay holes, unless the target only
/// appends; where nothing is copied the target must have nothing yet.
pub(crate) fn copy(from: &OwnedFd, range: Range<u64>, to: &OwnedFd, to_start: u64, subject: &Path) -> Result<()> {
    let failed = || Error::system::<Errno>("copying a file", subject.display());
    if rustix::fs::fcntl_getfl(to).is_ok_and(|flags| flags.contains(OFlags::APPEND)) {
        return copy_by_hand(from, range, to, to_start, subject);
    }
    let Range { start, end } = range;
    let mut at = start;
    while at < end {
        let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data.max(at),
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        if data >= end {
            break;
        }
        let hole = rustix::fs::seek(from, SeekFrom::Hole(data)).ok().filter(|hole| *hole > data);
        at = hole.unwrap_or(end).min(end);
        copy_whole(from, data..at, to, to_start.saturating_add(data - start), subject)?;
    }
    let whole = to_start.saturating_add(end.saturating_sub(start));
    let size = rustix::fs::fstat(to).map_err(failed())?.st_size.cast_unsigned();
    if size < whole { rustix::fs::ftruncate(to, whole).map_err(failed()) } else { Ok(()) }
}

fn copy_whole(from: &OwnedFd, range: Range<u64>, to: &OwnedFd, to_start: u64, subject: &Path) -> Result<()> {
    let (mut read_from, mut write_to, end) = (range.start, to_start, range.end);
    while read_from < end {
        let want = length((64 * PIECE).min(end - read_from));
        match rustix::fs::copy_file_range(from, Some(&mut read_from), to, Some(&mut write_to), want) {
            Ok(0) => return copy_by_hand(from, read_from..end, to, write_to, subject),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::BADF) => {
                return copy_by_hand(from, read_from..end, to, write_to, subject);
            }
            Err(error) => return Err(Error::system("copying a file", subject.display())(error)),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &OwnedFd, range: Range<u64>, to: &OwnedFd, to_start: u64, subject: &Path) -> Result<()> {
    let Range { start, end } = range;
    let mut buffer = vec![0; length(PIECE)];
    let mut at = start;
    while at < end {
        let room = buffer.get_mut(..length(PIECE.min(end - at))).unwrap_or_default();
        let count = read_at(from, at, room, subject)?;
        if count == 0 {
            let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(Error::system("copying a file", subject.display())(short));
        }
        write_at(to, to_start.saturating_add(at - start), room.get(..count).unwrap_or_default(), subject)?;
        at = at.saturating_add(u64::try_from(count).unwrap_or_default());
    }
    Ok(())
}

/// Whether a name is one that [`beside`] gives.
pub(crate) fn ours(name: &[u8]) -> bool {
    name.starts_with(b".") && name.windows(6).any(|part| part == b".hdcr-")
}

/// A name in the same directory that starts with a dot and is ours.
pub(crate) fn beside(path: &Path, word: &str, number: u64) -> PathBuf {
    let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
    let short = name.get(..name.len().min(200)).unwrap_or_default();
    let ours = [b".", short, format!(".hdcr-{word}-{number}").as_bytes()].concat();
    path.with_file_name(std::ffi::OsStr::from_bytes(&ours))
}

/// Such a name that is not taken. Those of earlier restores of the same image stay where they are.
pub(crate) fn free_beside(path: &Path, word: &str, mut number: impl FnMut() -> u64) -> PathBuf {
    loop {
        let place = beside(path, word, number());
        if place.symlink_metadata().is_err() {
            return place;
        }
    }
}

/// The name under which an inode lies in the directory of a path: where `sem_open(3)` and writers of whole files have
/// renamed it to. Gives up in large directories.
pub(crate) fn name_of(path: &Path, stat: &Stat) -> Option<PathBuf> {
    use std::os::unix::fs::DirEntryExt;
    const MANY: usize = 10_000;
    let entries = std::fs::read_dir(path.parent()?).ok()?.take(MANY).flatten();
    let mut same = entries.filter(|entry| entry.ino() == stat.st_ino).map(|entry| entry.path());
    same.find(|place| rustix::fs::lstat(place).is_ok_and(|found| super::contents::same(&found, stat)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_holes_of_its_original_and_its_length() {
        let (from, to) = (OwnedFd::from(tempfile::tempfile().unwrap()), OwnedFd::from(tempfile::tempfile().unwrap()));
        rustix::io::pwrite(&from, b"begin", 0).unwrap();
        rustix::io::pwrite(&from, b"middle", 100 << 20).unwrap();
        rustix::fs::ftruncate(&from, 200 << 20).unwrap();
        copy(&from, 2..(200 << 20), &to, 0, Path::new("x")).unwrap();
        let stat = rustix::fs::fstat(&to).unwrap();
        assert_eq!((stat.st_size, stat.st_blocks < 100), ((200 << 20) - 2, true));
        let mut bytes = [0; 6];
        rustix::io::pread(&to, &mut bytes, (100 << 20) - 2).unwrap();
        assert_eq!(&bytes, b"middle");
        // One that appends gets all of it, in order.
        let place = tempfile::NamedTempFile::new().unwrap();
        let flags = OFlags::WRONLY | OFlags::APPEND;
        let appends = rustix::fs::open(place.path(), flags, rustix::fs::Mode::empty()).unwrap();
        rustix::fs::ftruncate(&from, 3 << 20).unwrap();
        copy(&from, 0..(3 << 20), &appends, 0, Path::new("x")).unwrap();
        assert_eq!(std::fs::read(place.path()).unwrap().len(), 3 << 20);
    }

    #[test]
    fn pieces_have_the_digest_of_their_file() {
        let two = [70_000, 5 << 20];
        let cases: [(u64, &[u64]); 5] = [(0, &[]), (10_000, &[3]), (9 << 20, &[]), (6 << 20, &[0]), (6 << 20, &two)];
        for (size, places) in cases {
            let file = OwnedFd::from(tempfile::tempfile().unwrap());
            for at in places {
                rustix::io::pwrite(&file, &[7; 5_000], *at).unwrap();
            }
            rustix::fs::ftruncate(&file, size).unwrap();
            let mut kept = Digest::default();
            let mut add = |at, bytes: Vec<u8>| {
                kept.add(at, &bytes, size);
                Ok(())
            };
            read_small(&file, size, Path::new("x"), &mut add).unwrap();
            assert_eq!(kept.finish(size), digest(&file, size, Path::new("x")).unwrap(), "{size} {places:?}");
        }
    }

    #[derive(Debug)]
    struct Kept(Vec<(u64, Vec<u8>)>);

    impl Contents for Kept {
        fn pieces(&self, _id: ObjectId) -> Vec<(u64, u64)> {
            self.0.iter().map(|(at, bytes)| (*at, bytes.len() as u64)).collect()
        }

        fn zeros(&self, _id: ObjectId) -> Vec<(u64, u64)> {
            Vec::new()
        }

        fn read(&self, _id: ObjectId, each: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
            self.0.iter().try_for_each(|(at, bytes)| each(*at, bytes))
        }
    }

    #[test]
    fn contents_with_holes_come_back_in_place() {
        let file = tempfile::tempfile().unwrap();
        let mut old = vec![0_u8; 3 << 20];
        old[5000..5010].fill(7);
        let middle = (2 << 20) + 9;
        old[middle..middle + 100_000].fill(3);
        let size = (2 << 20) + 9 + 100_000;
        rustix::fs::ftruncate(&file, size).unwrap();
        let subject = Path::new("x");
        write_at(&file, 5000, &old[5000..5010], subject).unwrap();
        write_at(&file, middle as u64, &old[middle..middle + 100_000], subject).unwrap();
        let file = OwnedFd::from(file);
        let mut kept = Kept(Vec::new());
        read(&file, size, subject, &mut |at, bytes| {
            kept.0.push((at, bytes));
            Ok(())
        })
        .unwrap();
        assert!(kept.0.iter().all(|(at, bytes)| at % 4096 == 0 && bytes.len() % 4096 == 0));
        assert!(kept.0.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() < 1 << 20, "holes take no room");
        let before = digest(&file, size, subject).unwrap();
        // Grown, overwritten in a hole and in data, then filled again.
        write_at(&file, 0, &vec![9; 4 << 20], subject).unwrap();
        fill(&file, &kept, ObjectId(1), size, subject).unwrap();
        assert_eq!(rustix::fs::fstat(&file).unwrap().st_size.cast_unsigned(), size);
        assert_eq!(digest(&file, size, subject).unwrap(), before);
        // Shorter than it was.
        rustix::fs::ftruncate(&file, 10).unwrap();
        fill(&file, &kept, ObjectId(1), size, subject).unwrap();
        assert_eq!(digest(&file, size, subject).unwrap(), before);
        // Through a descriptor that only appends.
        let appends =
            rustix::fs::open(door(&file), OFlags::WRONLY | OFlags::APPEND, rustix::fs::Mode::empty()).unwrap();
        write_at(&appends, 0, b"more at the end", subject).unwrap();
        fill(&appends, &kept, ObjectId(1), size, subject).unwrap();
        assert_eq!(digest(&file, size, subject).unwrap(), before);
        let other = OwnedFd::from(tempfile::tempfile().unwrap());
        copy(&file, 100..size, &other, 100, subject).unwrap();
        assert_eq!(digest(&other, size, subject).unwrap(), before);
    }

    #[test]
    fn a_sample_tells_growth_from_change() {
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        let subject = Path::new("x");
        write_at(&file, 0, &vec![1; 300_000], subject).unwrap();
        let before = sample(&file, 300_000, subject).unwrap();
        write_at(&file, 300_000, b"more", subject).unwrap();
        assert_eq!(sample(&file, 300_000, subject).unwrap(), before);
        write_at(&file, 299_999, b"x", subject).unwrap();
        assert_ne!(sample(&file, 300_000, subject).unwrap(), before);
    }
}
