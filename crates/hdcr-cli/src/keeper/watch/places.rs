//! From the directories that events name to paths: the file systems that are watched, and where they are mounted.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_sys::fanotify::Place;
use hdcr_sys::handle::{self, Handle};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

/// Kinds of file systems that hold no files of anybody.
const NO_FILES: &[&str] = &[
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "devpts",
    "devtmpfs",
    "mqueue",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "configfs",
    "fusectl",
    "hugetlbfs",
    "efivarfs",
    "binfmt_misc",
    "rpc_pipefs",
    "autofs",
    "nsfs",
    "selinuxfs",
];

/// A line of `mountinfo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    /// Device number, as text.
    pub(super) device: String,
    /// Which directory of the file system is mounted.
    root: PathBuf,
    /// Where.
    pub(super) at: PathBuf,
}

/// The mounts that may be written to, with real files behind them.
pub(super) fn writable_mounts() -> Vec<Mount> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut mounts: Vec<Mount> = text.split(|byte| *byte == b'\n').filter_map(parse).collect();
    if let Some(unlisted) = unlisted_root(&text) {
        mounts.push(unlisted);
    }
    mounts
}

/// In a chroot whose root is no mount point the list does not name the file system that the root is on.
fn unlisted_root(mountinfo: &[u8]) -> Option<Mount> {
    let names_root = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4) == Some(b"/");
    if mountinfo.split(|byte| *byte == b'\n').any(names_root) {
        return None;
    }
    let stat = rustix::fs::stat("/").ok()?;
    let device = format!("{}:{}", rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    // Which directory of its file system it is cannot be told: not the root.
    Some(Mount { device, root: PathBuf::from("/unknown"), at: PathBuf::from("/") })
}

/// `36 35 98:0 /root /at rw,noatime master:1 - ext4 /dev/root rw,errors=continue`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let device = String::from_utf8_lossy(words.nth(2)?).into_owned();
    let (root, at) = (unescaped(words.next()?), unescaped(words.next()?));
    let options = words.next()?;
    let mut words = words.skip_while(|word| *word != b"-").skip(1);
    let kind = words.next()?;
    let of_all = words.nth(1)?;
    let read_only = |options: &[u8]| options.split(|byte| *byte == b',').any(|option| option == b"ro");
    let files = !NO_FILES.iter().any(|name| name.as_bytes() == kind);
    (files && !read_only(options) && !read_only(of_all)).then_some(Mount { device, root, at })
}

/// Spaces and their like are written as `\040`.
pub(super) fn unescaped(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = byte.and_then(|_| after.get(3..)).unwrap_or(after);
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

/// A file system by one or several of its mounts.
#[derive(Debug)]
struct FileSystem {
    mounts: Vec<OwnedFd>,
}

/// All watched file systems, and the directories met so far.
#[derive(Debug, Default)]
pub(super) struct Places {
    systems: BTreeMap<u64, FileSystem>,
    known: BTreeMap<Key, PathBuf>,
    /// What lay in the directory that was renamed last, and itself.
    renamed_last: BTreeSet<Key>,
}

/// A directory: its file system and its handle.
type Key = (u64, Vec<u8>);

impl Places {
    /// Takes the mounts of one file system; an error in words when its directories could not be found again.
    pub(super) fn add(&mut self, mounts: &[&Mount]) -> Result<(), String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mut sorted = mounts.to_vec();
        // From the root of the file system every directory can be named.
        sorted.sort_by_key(|mount| mount.root.components().count());
        let mut opened = Vec::new();
        let mut number = None;
        for mount in sorted {
            let Ok(file) = rustix::fs::open(&mount.at, flags, Mode::empty()) else { continue };
            let statvfs = rustix::fs::fstatvfs(&file).map_err(|error| error.to_string())?;
            number = number.or(Some(statvfs.f_fsid));
            let handle = handle::of(&file).map_err(|error| format!("it has no file handles: {error}"))?;
            let again = handle::open(&file, &handle, OFlags::PATH.bits().cast_signed());
            again.map_err(|error| format!("its file handles cannot be opened: {error}"))?;
            opened.push(file);
        }
        let number = number.ok_or("it cannot be opened")?;
        self.systems.insert(number, FileSystem { mounts: opened });
        Ok(())
    }

    /// The path of a place, as far as it can be found.
    pub(super) fn path(&mut self, place: &Place) -> Option<PathBuf> {
        if let Some(known) = self.known(place) {
            return Some(known);
        }
        let directory = self.find(place.file_system, &place.directory)?;
        self.known.insert(key(place), directory);
        self.known(place)
    }

    /// The path of a place in a directory that was met before.
    pub(super) fn known(&self, place: &Place) -> Option<PathBuf> {
        let directory = self.known.get(&key(place))?;
        Some(if place.name == b"." { directory.clone() } else { directory.join(OsStr::from_bytes(&place.name)) })
    }

    /// Where a place is now: its directory may have been renamed since, of which is still to be heard.
    pub(super) fn now(&self, place: &Place) -> Option<PathBuf> {
        Some(self.find(place.file_system, &place.directory)?.join(OsStr::from_bytes(&place.name)))
    }

    fn find(&self, file_system: u64, directory: &Handle) -> Option<PathBuf> {
        let system = self.systems.get(&file_system)?;
        system.mounts.iter().find_map(|mount| {
            let file = handle::open(mount, directory, OFlags::PATH.bits().cast_signed()).ok()?;
            let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
            // Outside of what is mounted here, or removed, there is no such path.
            let (there, here) = (rustix::fs::lstat(&path).ok()?, rustix::fs::fstat(&file).ok()?);
            (path.is_absolute() && (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)).then_some(path)
        })
    }

    /// How many names a file has now, and when it was made, if its file system says that; 0: it is gone.
    pub(super) fn links(&self, file_system: u64, file: &Handle) -> (u64, Option<Duration>) {
        let mounts = self.systems.get(&file_system).map_or(&[][..], |system| &system.mounts);
        let found = mounts.iter().find_map(|mount| handle::open(mount, file, OFlags::PATH.bits().cast_signed()).ok());
        let stat = |file: OwnedFd| {
            rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::NLINK | StatxFlags::BTIME).ok()
        };
        let Some(stat) = found.and_then(stat) else { return (0, None) };
        let born = Duration::new(u64::try_from(stat.stx_btime.tv_sec).unwrap_or(0), stat.stx_btime.tv_nsec);
        (stat.stx_nlink.into(), Some(born).filter(|_| stat.stx_mask & StatxFlags::BTIME.bits() != 0))
    }

    /// A directory was made here, or is about to be renamed: later it may lie elsewhere.
    pub(super) fn met(&mut self, file_system: u64, directory: &Handle, path: &Path) {
        self.known.insert((file_system, identity(directory)), path.to_owned());
    }

    /// A directory is gone.
    pub(super) fn gone(&mut self, file_system: u64, directory: &Handle) {
        self.known.remove(&(file_system, identity(directory)));
    }

    /// A directory was renamed.
    pub(super) fn renamed(&mut self, from: &Path, to: &Path) {
        self.renamed_last = self.rename_but(from, to, &BTreeSet::new());
    }

    /// It has changed places with the one that was renamed last.
    pub(super) fn exchanged(&mut self, from: &Path, to: &Path) {
        let others = std::mem::take(&mut self.renamed_last);
        self.rename_but(from, to, &others);
    }

    fn rename_but(&mut self, from: &Path, to: &Path, others: &BTreeSet<Key>) -> BTreeSet<Key> {
        let mut renamed = BTreeSet::new();
        for (key, path) in self.known.iter_mut().filter(|(key, _)| !others.contains(*key)) {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
                renamed.insert(key.clone());
            }
        }
        renamed
    }
}

fn key(place: &Place) -> Key {
    (place.file_system, identity(&place.directory))
}

/// How many names the file at a path has.
pub(super) fn names(path: &Path) -> u64 {
    path.symlink_metadata().map_or(0, |facts| facts.nlink())
}

/// A handle as the bytes by which a file is known.
pub(super) fn identity(handle: &Handle) -> Vec<u8> {
    [&handle.kind.to_ne_bytes(), handle.bytes.as_slice()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_with_files_that_may_be_written() {
        let check = |line: &str, expected: Option<(&str, &str)>| {
            let found = parse(line.as_bytes());
            assert_eq!(
                found.as_ref().map(|mount| (mount.device.as_str(), mount.at.to_str().unwrap())),
                expected,
                "{line}"
            );
        };
        check("36 35 98:0 / /a\\040b rw,noatime master:1 - ext4 /dev/root rw,errors=continue", Some(("98:0", "/a b")));
        check("36 35 98:0 / /a ro,noatime - ext4 /dev/root rw", None);
        check("36 35 98:0 / /a rw - ext4 /dev/root ro", None);
        check("36 35 0:5 / /proc rw - proc proc rw", None);
        check("36 35 0:5 / /dev/shm rw - tmpfs tmpfs rw,size=1k", Some(("0:5", "/dev/shm")));
        check("36 35", None);
        check("", None);
    }

    #[test]
    fn a_root_that_is_no_mount_point_is_a_place_too() {
        let proc = b"36 35 0:5 / /proc rw - proc proc rw\n";
        assert_eq!(unlisted_root(proc).unwrap().at, Path::new("/"));
        assert_eq!(unlisted_root(&[proc.as_slice(), b"35 1 98:0 / / rw - ext4 /dev/root rw\n"].concat()), None);
    }
}
