//! `inotify(7)`: what is watched, under which numbers.
//!
//! Captured: every watch with its number, mask and the path of what it watches. Events that nobody has read cannot be seen
//! without taking them: after a restore the program reads one `IN_Q_OVERFLOW` in their place, which says by inotify's own
//! rules that some were lost. Refused: a watch on what has no path any more. Reads: `/proc/PID/fdinfo` (since Linux 3.8),
//! `open_by_handle_at(2)`; without `CAP_DAC_READ_SEARCH` the path is looked for among the open files and directories of
//! the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hdcr_image::{Record, Tag};
use hdcr_sys::handle::{self, Handle};
use nix::libc;
use rustix::fs::{Mode, OFlags, Stat, inotify};

use super::{FileKind, FileView, data, reopen};
use crate::capture::Capture;
use crate::error::{Error, Refusal, Result};
use crate::ids::Pid;
use crate::model::{self, ObjectId};
use crate::procfs;
use crate::restore::Restore;
use crate::survey::Survey;

/// Numbers that are used up to get to that of a watch.
const MOST_NUMBERS: i32 = 1 << 20;
/// Events after which we stop waiting for the queue to overflow.
const MOST_EVENTS: usize = 1 << 23;
/// `IN_Q_OVERFLOW` without a name.
const OVERFLOW_SIZE: u64 = 16;

pub(crate) struct Inotify;

/// What is kept of an inotify instance.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct InotifyRecord {
    #[prost(message, repeated, tag = "1")]
    watches: Vec<Watch>,
    /// Whether there were events that nobody had read.
    #[prost(bool, tag = "2")]
    unread: bool,
}

/// A watch.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Watch {
    #[prost(int32, tag = "1")]
    number: i32,
    #[prost(uint32, tag = "2")]
    mask: u32,
    #[prost(bytes = "vec", tag = "3")]
    path: Vec<u8>,
}

impl Record for InotifyRecord {
    const TAG: Tag = Tag(0x0262);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// A line of fdinfo.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Line {
    number: i32,
    inode: u64,
    device: (u32, u32),
    mask: u32,
    handle: Handle,
}

/// Parses `1 ino:3c4a7 sdev:fe00000 mask:100 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000`.
fn parse(text: &str) -> Option<Line> {
    let field = |key: &str| text.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix(':'));
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let device = u32::try_from(hex(field("sdev")?)?).ok()?;
    let digits = field("f_handle").unwrap_or_default().as_bytes();
    let pairs = digits.as_chunks::<2>().0.iter().map(|pair| hex(std::str::from_utf8(pair).ok()?));
    let bytes = pairs.map(|byte| u8::try_from(byte?).ok()).collect::<Option<_>>()?;
    let kind = i32::try_from(hex(field("fhandle-type").unwrap_or("0"))?).ok()?;
    Some(Line {
        number: i32::try_from(hex(text.split_ascii_whitespace().next()?)?).ok()?,
        inode: hex(field("ino")?)?,
        // The kernel's own form of a device number: 12 bits, 20 bits.
        device: (device >> 20, device & 0xf_ffff),
        mask: u32::try_from(hex(field("mask")?)?).ok()?,
        handle: Handle { kind, bytes },
    })
}

fn lines(view: &FileView) -> Result<Vec<Line>> {
    let all = view.info.lines.all("inotify wd");
    all.map(|text| parse(text).ok_or_else(|| model::unreadable(view, "inotify wd"))).collect()
}

/// Where watched files were looked for, and found: once for the whole tree, however many watches there are.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Device and place of each mount, as the root of a process has them.
    mounts: BTreeMap<Pid, Vec<(String, String)>>,
    /// What lies in the neighbourhood of a process, by inode number.
    nearby: BTreeMap<Pid, BTreeMap<u64, Vec<PathBuf>>>,
    found: BTreeMap<Watched, Option<PathBuf>>,
}

/// Who watches, inode, device, and the handle's bytes.
type Watched = (Pid, u64, (u32, u32), Vec<u8>);

impl Places {
    /// The path of what a watch is on, as the process's root has it.
    fn path_of(&mut self, pid: Pid, line: &Line) -> Option<PathBuf> {
        let key = (pid, line.inode, line.device, line.handle.bytes.clone());
        if let Some(known) = self.found.get(&key) {
            return known.clone();
        }
        let mounts = self.mounts.entry(pid).or_insert_with(|| mounts_of(pid));
        let path = by_handle(mounts, line).or_else(|| {
            let nearby = self.nearby.entry(pid).or_insert_with(|| nearby(pid));
            nearby.get(&line.inode)?.iter().find(|path| is_it(path, line)).cloned()
        });
        self.found.insert(key, path.clone());
        path
    }
}

fn is_it(path: &Path, line: &Line) -> bool {
    let Ok(file) = reopen::look(path) else { return false };
    let same = |stat: &Stat| stat.st_ino == line.inode;
    let Some(stat) = rustix::fs::fstat(&file).ok().filter(same) else { return false };
    // A number may be that of another file system, or of a file that is gone: a handle tells both.
    match data::handle_of(&file) {
        Some((kind, bytes)) if !line.handle.bytes.is_empty() => (kind, bytes) == (line.handle.kind, line.handle.bytes.clone()),
        Some(_) | None => data::is_on(path, &stat, line.device),
    }
}

fn mounts_of(pid: Pid) -> Vec<(String, String)> {
    let text = procfs::read(pid, "mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(2);
        let (device, place) = (words.next()?, words.nth(1)?);
        Some((device.to_owned(), place.replace("\\040", " ")))
    };
    String::from_utf8_lossy(&text).lines().filter_map(mount).collect()
}

fn by_handle(mounts: &[(String, String)], line: &Line) -> Option<PathBuf> {
    let wanted = format!("{}:{}", line.device.0, line.device.1);
    for (_, place) in mounts.iter().filter(|(device, _)| *device == wanted) {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(mount) = rustix::fs::open(place.as_str(), flags, Mode::empty()) else { continue };
        let Ok(found) = handle::open(&mount, &line.handle, libc::O_PATH) else { continue };
        let Ok(path) = fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())) else { continue };
        // Of a mount that shows only a part, others may show it under a path.
        if path.is_absolute() && is_it(&path, line) {
            return Some(path);
        }
    }
    None
}

/// The open files of the process, its directories, and what is directly in those.
fn nearby(pid: Pid) -> BTreeMap<u64, Vec<PathBuf>> {
    let numbers = procfs::numbers(pid, "fd").unwrap_or_default();
    let names = numbers.into_iter().map(|number| format!("fd/{number}")).chain(["cwd".to_owned(), "exe".to_owned()]);
    let places: Vec<PathBuf> = names.filter_map(|name| Some(model::path_of(&procfs::link(pid, &name).ok()?))).collect();
    let around = places.iter().filter_map(|place| place.parent().map(Path::to_owned));
    let mut directories: Vec<PathBuf> =
        around.chain(places.iter().cloned()).filter(|path| path.is_absolute()).collect();
    directories.push(PathBuf::from("/tmp"));
    let mut seen = BTreeSet::new();
    directories.retain(|path| seen.insert(path.clone()));
    let inside: Vec<PathBuf> = (directories.iter())
        .filter_map(|path| fs::read_dir(path).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    let mut by_inode: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for path in directories.into_iter().chain(inside) {
        if let Ok(found) = fs::symlink_metadata(&path) {
            by_inode.entry(found.ino()).or_default().push(path);
        }
    }
    by_inode
}

fn refusal(view: &FileView, line: &Line) -> Refusal {
    let cause = format!("watch {} is on inode {}, which has no path that can be found", line.number, line.inode);
    let remedy = "remove the watch before the checkpoint, or checkpoint as root";
    view.refuse("inotify-watch", "inotify instance", &cause, remedy)
}

impl FileKind for Inotify {
    type Record = InotifyRecord;

    fn claims(view: &FileView) -> bool {
        view.is("anon_inode:inotify") || view.is("anon_inode:[inotify]")
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        for line in lines(view)? {
            if survey.places.path_of(view.pid, &line).is_none() {
                survey.refuse(refusal(view, &line));
            }
        }
        if rustix::io::ioctl_fionread(view.duplicate()?).is_ok_and(|len| len > 0) {
            let becomes = "become one queue overflow (IN_Q_OVERFLOW) after a restore";
            survey.note(view.refuse("inotify-unread", "inotify instance", "events wait to be read", becomes));
        }
        Ok(())
    }

    fn capture(cx: &mut Capture<'_>, view: &FileView, file: &OwnedFd) -> Result<InotifyRecord> {
        let unread =
            rustix::io::ioctl_fionread(file).map_err(Error::system("FIONREAD", format!("fd {}", view.fd)))? > 0;
        let mut watches = Vec::new();
        for line in lines(view)? {
            let path = cx.places.path_of(view.pid, &line).ok_or_else(|| Error::refuse(refusal(view, &line)))?;
            watches.push(Watch { number: line.number, mask: line.mask, path: path.into_os_string().into_vec() });
        }
        Ok(InotifyRecord { watches, unread })
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, _record: InotifyRecord) -> Result<OwnedFd> {
        cx.late.push((watch_all, id));
        inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(Error::system("inotify_init", id))
    }
}

/// Adds the watches when all files are made, so that making them is not seen.
fn watch_all(cx: &mut Restore<'_>, id: ObjectId) -> Result<()> {
    let mut record: InotifyRecord = cx.record(id)?;
    let file = cx.open_file(id)?.try_clone().map_err(Error::system("dup", id))?;
    for watch in &mut record.watches {
        let path = cx.mapped(&super::contents::checked_path(&watch.path)?);
        watch.path = path.into_os_string().into_vec();
    }
    record.watches.sort_by_key(|watch| watch.number);
    let flags = rustix::fs::fcntl_getfl(&file).map_err(Error::system("F_GETFL", id))?;
    rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(Error::system("F_SETFL", id))?;
    fill(&file, &record).map_err(Error::system("watching files", id))?;
    rustix::fs::fcntl_setfl(&file, flags).map_err(Error::system("F_SETFL", id))
}

fn fill(file: &OwnedFd, record: &InotifyRecord) -> io::Result<()> {
    for watch in &record.watches {
        add(file, watch)?;
    }
    drain(file, 0)?;
    if record.unread { overflow(file) } else { Ok(()) }
}

/// Adds a watch under its number: the kernel counts up, so numbers that are not in use are used up.
fn add(file: &OwnedFd, watch: &Watch) -> io::Result<()> {
    let path = model::path_of(&watch.path);
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    for _ in 0..MOST_NUMBERS {
        let flags = inotify::WatchFlags::from_bits_retain(watch.mask);
        let number = inotify::add_watch(file, &path, flags).map_err(|error| failed(error.into()))?;
        if number == watch.number {
            return Ok(());
        }
        if number > watch.number {
            break;
        }
        inotify::remove_watch(file, number)?;
        // Each removal leaves an event.
        drain(file, 0)?;
    }
    Err(failed(io::Error::other(format!("it cannot have the number {} again", watch.number))))
}

/// Reads events until at most so many bytes of them are left.
fn drain(file: &OwnedFd, leave: u64) -> io::Result<()> {
    let mut room = vec![0; 1 << 16];
    loop {
        let left = rustix::io::ioctl_fionread(file)?;
        if left <= leave {
            return Ok(());
        }
        let len = usize::try_from(left - leave).unwrap_or(usize::MAX).min(room.len());
        rustix::io::read(file, room.get_mut(..len).unwrap_or_default())?;
    }
}

/// Makes the queue overflow by events of our own, and reads these, so that only the notice is left.
fn overflow(file: &OwnedFd) -> io::Result<()> {
    let directory = (["/dev/shm", "/tmp", "/run"].iter())
        .map(|base| Path::new(base).join(format!(".hdcr-events-{}", rustix::process::getpid().as_raw_nonzero())))
        .find(|directory| fs::create_dir(directory).is_ok());
    let directory = directory.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    let result = overflow_by(file, &directory);
    fs::remove_dir(&directory)?;
    result
}

fn overflow_by(file: &OwnedFd, directory: &Path) -> io::Result<()> {
    // Two kinds of events in turn: like ones in a row are counted as one.
    let flags = inotify::WatchFlags::OPEN | inotify::WatchFlags::CLOSE_NOWRITE | inotify::WatchFlags::ONLYDIR;
    let number = inotify::add_watch(file, directory, flags)?;
    let mut before = 0;
    let mut events = 0;
    loop {
        drop(fs::File::open(directory)?);
        let now = rustix::io::ioctl_fionread(file)?;
        events += 2;
        if now == before {
            break;
        }
        if events > MOST_EVENTS {
            return Err(io::Error::other("the queue of events does not overflow"));
        }
        before = now;
    }
    // Its own event does not fit any more.
    inotify::remove_watch(file, number)?;
    drain(file, OVERFLOW_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Fd;
    use crate::resource::scene::own_pid;

    fn seen(file: &OwnedFd) -> Vec<Watch> {
        let info = procfs::fd_info(own_pid(), Fd(file.as_raw_fd())).unwrap();
        let lines = info.lines.all("inotify wd").map(|text| parse(text).unwrap());
        let mut places = Places::default();
        let mut path = |line: &Line| places.path_of(own_pid(), line).unwrap().into_os_string().into_vec();
        let watches = lines.map(|line| Watch { number: line.number, mask: line.mask, path: path(&line) });
        let mut watches: Vec<Watch> = watches.collect();
        watches.sort_by_key(|watch| watch.number);
        watches
    }

    #[test]
    fn watches_come_back_under_their_numbers_and_lost_events_are_told() {
        let base = Path::new("/tmp").join(format!("hdcr-inotify-{}", rustix::process::getpid().as_raw_nonzero()));
        fs::create_dir_all(base.join("a b")).unwrap();
        let init = || inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        let old = init();
        for _ in 0..4 {
            let number = inotify::add_watch(&old, &base, inotify::WatchFlags::CREATE).unwrap();
            inotify::remove_watch(&old, number).unwrap();
        }
        inotify::add_watch(&old, base.join("a b"), inotify::WatchFlags::MODIFY).unwrap();
        inotify::add_watch(&old, &base, inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE).unwrap();
        let record = InotifyRecord { watches: seen(&old), unread: true };
        assert_eq!(record.watches.iter().map(|watch| watch.number).collect::<Vec<_>>(), [5, 6]);
        let new = init();
        fill(&new, &record).unwrap();
        assert_eq!(seen(&new), record.watches);
        let mut room = [0; 64];
        assert_eq!(rustix::io::read(&new, &mut room).unwrap(), 16);
        assert_eq!(u32::from_ne_bytes(room[4..8].try_into().unwrap()), libc::IN_Q_OVERFLOW);
        fs::write(base.join("new"), b"").unwrap();
        assert_eq!(rustix::io::read(&new, &mut room).unwrap(), 32);
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_watched_file_is_looked_for_once_with_and_without_handles() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        fs::write(&path, b"").unwrap();
        let file = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&file, &path, inotify::WatchFlags::MODIFY).unwrap();
        let _held = fs::File::open(&path).unwrap();
        let info = procfs::fd_info(own_pid(), Fd(file.as_raw_fd())).unwrap();
        let line = info.lines.all("inotify wd").next().and_then(parse).unwrap();
        let without = Line { handle: Handle { kind: 0, bytes: Vec::new() }, ..line.clone() };
        for line in [line, without] {
            fs::write(&path, b"").unwrap();
            let mut places = Places::default();
            assert_eq!(places.path_of(own_pid(), &line), Some(path.clone()));
            // Gone, and not looked for again.
            fs::rename(&path, directory.path().join("y")).unwrap();
            assert_eq!(places.path_of(own_pid(), &line), Some(path.clone()));
            fs::rename(directory.path().join("y"), &path).unwrap();
        }
    }

    #[test]
    fn odd_lines_are_refused() {
        let good = "1f ino:3c4a7 sdev:fe00003 mask:100 ignored_mask:0 fhandle-bytes:2 fhandle-type:1 f_handle:a7c4";
        let handle = Handle { kind: 1, bytes: vec![0xa7, 0xc4] };
        let line = Line { number: 31, inode: 0x3c4a7, device: (254, 3), mask: 0x100, handle };
        assert_eq!(parse(good), Some(line));
        for odd in ["", "1", "1 ino:x sdev:1 mask:1", "1 ino:1 sdev:1ffffffff mask:1", "1 ino:1 sdev:1"] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn another_file_with_the_number_of_a_watched_one_is_another_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = rustix::fs::stat(file.path()).unwrap();
        let (kind, bytes) = data::handle_of(&reopen::look(file.path()).unwrap()).unwrap_or_default();
        let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let line = Line { number: 1, inode: stat.st_ino, device, mask: 2, handle: Handle { kind, bytes } };
        assert!(is_it(file.path(), &line));
        let Some(last) = line.handle.bytes.last() else { return };
        let mut bytes = line.handle.bytes.clone();
        *bytes.last_mut().unwrap() = last.wrapping_add(1);
        assert!(!is_it(file.path(), &Line { handle: Handle { kind, bytes }, ..line }));
    }
}
