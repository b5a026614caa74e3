//! Names of UNIX sockets: paths whose file is made again, paths whose file is gone, and abstract names.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hdcr_sys::socket as sys;
use nix::libc;
use rustix::fs::{FileType, Mode, OFlags};

use crate::route;

/// `struct sockaddr_un`: the family, then at most so many bytes of path.
const PATH_AT: usize = 2;
const PATH_MOST: usize = 108;

/// The path in an address; `None` when it is nameless or abstract.
pub(super) fn path(name: &[u8]) -> Option<&Path> {
    let bytes = name.get(PATH_AT..)?;
    let path = bytes.split(|byte| *byte == 0).next().filter(|path| !path.is_empty())?;
    Some(Path::new(OsStr::from_bytes(path)))
}

/// Whether an address is an abstract name.
pub(super) fn is_abstract(name: &[u8]) -> bool {
    name.len() > PATH_AT && name.get(PATH_AT) == Some(&0)
}

/// An address for a path.
pub(super) fn address(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.len() >= PATH_MOST || bytes.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let family = u16::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    Ok([&family.to_ne_bytes()[..], bytes, &[0]].concat())
}

/// An address that leads to a path of any length, as long as it is kept: a long one through its directory, opened.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) address: Vec<u8>,
    _directory: Option<OwnedFd>,
}

impl Way {
    /// To the socket with this name, from where this process is.
    pub(super) fn by_name(name: &[u8]) -> Self {
        Self { address: name.to_vec(), _directory: None }
    }

    /// To the socket at a path.
    pub(super) fn to(place: &Path) -> io::Result<Self> {
        match (address(place), place.parent(), place.file_name()) {
            (Err(_), Some(above), Some(name)) if place.as_os_str().len() >= PATH_MOST => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let directory = rustix::fs::open(above, flags, Mode::empty())?;
                let door = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
                Ok(Self { address: address(&door.join(name))?, _directory: Some(directory) })
            }
            (address, ..) => Ok(Self { address: address?, _directory: None }),
        }
    }
}

/// The file that bears a name.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Node {
    /// Where it is.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) place: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(super) mode: u32,
    #[prost(uint32, tag = "3")]
    pub(super) uid: u32,
    #[prost(uint32, tag = "4")]
    pub(super) gid: u32,
}

/// Why a name could not be given again.
#[derive(Debug)]
pub(super) enum Taken {
    /// Somebody answers under this path.
    Answers,
    /// A file that is no socket is there.
    OtherFile,
    /// Behind a link that somebody else may have put there.
    Behind,
    /// Something else.
    Failed(io::Error),
}

impl From<io::Error> for Taken {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Binds a socket to its path, with a file in the file system.
pub(super) fn bind_at(file: &OwnedFd, name: &[u8], node: &Node, place: &Path) -> Result<(), Taken> {
    if route::is_barred(place) {
        return Err(Taken::Behind);
    }
    let wanted = path(name).unwrap_or(place);
    if wanted == place {
        sys::bind(file, name)?;
    } else if let Some(base) = base_of(place, wanted) {
        let back = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)?;
        rustix::process::chdir(&base).map_err(io::Error::from)?;
        let bound = sys::bind(file, name);
        rustix::process::fchdir(back).map_err(io::Error::from)?;
        bound?;
    } else {
        sys::bind(file, &Way::to(place)?.address)?;
    }
    // By descriptor: the owner of the directory could put a link in its place meanwhile.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = route::open(place, flags, Mode::empty()).map_err(io::Error::from)?;
    let stat = rustix::fs::fstat(&made).map_err(io::Error::from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(io::Error::from(rustix::io::Errno::EXIST).into());
    }
    let door = format!("/proc/self/fd/{}", made.as_raw_fd());
    fs::set_permissions(&door, fs::Permissions::from_mode(node.mode & 0o7777))?;
    match std::os::unix::fs::chown(door, Some(node.uid), Some(node.gid)) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error.into()),
        _ => Ok(()),
    }
}

/// The directory from which a relative path leads to a place.
fn base_of(place: &Path, relative: &Path) -> Option<PathBuf> {
    if !relative.is_relative() || !place.ends_with(relative) {
        return None;
    }
    place.ancestors().nth(relative.components().count()).map(Path::to_owned)
}

/// Whether nobody answers at the socket of a path.
pub(crate) fn nobody_answers(place: &Path) -> bool {
    matches!(is_dead(libc::SOCK_DGRAM, place), Ok(true))
}

/// Whether the file of a dead socket lies at a path; an error when something else does.
pub(super) fn is_dead(kind: i32, place: &Path) -> Result<bool, Taken> {
    let Ok(found) = fs::symlink_metadata(place) else { return Ok(false) };
    if !found.file_type().is_socket() {
        return Err(Taken::OtherFile);
    }
    let probe = sys::socket(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK, 0)?;
    match sys::connect(&probe, &Way::to(place)?.address) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => Ok(true),
        _ => Err(Taken::Answers),
    }
}

/// Gives a socket a path as its name without leaving a file: within a root directory of our own, which is empty and is
/// removed at once. Needs `CAP_SYS_CHROOT`.
pub(super) fn bind_name_only(file: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let wanted = path(name).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let inner = wanted.strip_prefix("/").unwrap_or(wanted);
    if inner.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let base = private_directory()?;
    let result = inner.parent().map_or(Ok(()), |parent| fs::create_dir_all(base.join(parent)));
    let result = result.and_then(|()| inside(&base, || sys::bind(file, name)));
    fs::remove_dir_all(&base)?;
    result
}

fn private_directory() -> io::Result<PathBuf> {
    let number = rustix::process::getpid().as_raw_nonzero();
    let mut failure = io::Error::from_raw_os_error(libc::ENOENT);
    for base in ["/dev/shm", "/tmp", "/run"] {
        let directory = Path::new(base).join(format!(".hdcr-names-{number}"));
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Does something with `base` as root and current directory.
fn inside(base: &Path, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let open = |path| rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let (root, current) = (open("/")?, open(".")?);
    rustix::process::chdir(base)?;
    let result = match rustix::process::chroot(".") {
        Ok(()) => {
            let result = act();
            rustix::process::fchdir(root)?;
            rustix::process::chroot(".")?;
            result
        }
        Err(error) => Err(error.into()),
    };
    rustix::process::fchdir(current)?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        let directory =
            Path::new("/tmp").join(format!("hdcr-name-test-{}-{name}", rustix::process::getpid().as_raw_nonzero()));
        fs::create_dir_all(&directory).unwrap();
        directory.join("s")
    }

    #[test]
    fn a_dead_sockets_file_is_told_from_a_living_ones() {
        let place = place("dead");
        let name = address(&place).unwrap();
        let node = Node {
            place: Vec::new(),
            mode: 0o640,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let socket = || sys::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        sys::bind(socket(), &name).unwrap();
        let new = socket();
        assert!(matches!(is_dead(libc::SOCK_STREAM, &place), Ok(true)) && nobody_answers(&place));
        fs::remove_file(&place).unwrap();
        bind_at(&new, &name, &node, &place).unwrap();
        assert_eq!(sys::name(&new).unwrap(), name);
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o7777, 0o640);
        rustix::net::listen(&new, 1).unwrap();
        assert!(matches!(is_dead(libc::SOCK_STREAM, &place), Err(Taken::Answers)) && !nobody_answers(&place));
        fs::remove_file(&place).unwrap();
        fs::write(&place, b"").unwrap();
        assert!(matches!(is_dead(libc::SOCK_STREAM, &place), Err(Taken::OtherFile)));
        fs::remove_dir_all(place.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_path_longer_than_an_address_is_reached_through_its_directory() {
        let long = place("long").with_file_name("d".repeat(120));
        fs::create_dir_all(&long).unwrap();
        let place = long.join("s");
        let name = [&1_u16.to_ne_bytes()[..], b"s\0"].concat();
        let node = Node {
            place: Vec::new(),
            mode: 0o600,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let socket = || sys::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        let listener = socket();
        bind_at(&listener, &name, &node, &place).unwrap();
        assert_eq!(sys::name(&listener).unwrap(), name);
        assert!(matches!(is_dead(libc::SOCK_STREAM, &place), Ok(true)));
        rustix::net::listen(&listener, 1).unwrap();
        sys::connect(socket(), &Way::to(&place).unwrap().address).unwrap();
        fs::remove_dir_all(long.parent().unwrap()).unwrap();
    }

    #[test]
    fn names_are_told_apart() {
        assert_eq!(path(b"\x01\0/run/x\0"), Some(Path::new("/run/x")));
        assert_eq!(path(b"\x01\0"), None);
        assert_eq!(path(b"\x01\0\0abc"), None);
        assert!(is_abstract(b"\x01\0\0abc") && !is_abstract(b"\x01\0") && !is_abstract(b"\x01\0a"));
        assert_eq!(base_of(Path::new("/a/b/c"), Path::new("b/c")), Some(PathBuf::from("/a")));
        assert_eq!(base_of(Path::new("/a/b/c"), Path::new("x/c")), None);
    }
}
