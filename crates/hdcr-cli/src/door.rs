//! Where a keeper listens to the programs of its job (`hdcr::wire`): a socket beside that of the registry.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use hdcr::Link;
use hdcr_image::JobName;
use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with, sockopt,
};

use crate::failure::{Failure, Result};
use crate::registry::Registry;

/// Connections that may wait to be taken.
const BACKLOG: i32 = 128;

/// The socket; gone when dropped.
#[derive(Debug)]
pub(crate) struct Door {
    socket: OwnedFd,
    path: PathBuf,
    identity: (u64, u64),
    /// By this a checkpoint knows the ends of the program that lead here.
    pub(crate) address: Vec<u8>,
}

/// Somebody has connected.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) link: Link,
    /// Its process, as it is numbered here.
    pub(crate) pid: i32,
    /// What it leaves out of its memory.
    pub(crate) omitted: Vec<(u64, u64)>,
    /// It waits to hear that this is known.
    pub(crate) waits: bool,
}

impl Caller {
    /// Has said nothing yet.
    pub(crate) fn new(link: Link, pid: i32) -> Self {
        Self { link, pid, omitted: Vec::new(), waits: false }
    }
}

impl Door {
    /// Begins to listen for the programs of a job, in place of a keeper that is gone.
    pub(crate) fn open(registry: &Registry, name: &JobName) -> Result<Self> {
        let doing = || Failure::system::<std::io::Error>(format!("listening to the programs of job {name}"));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let socket = socket.map_err(|error| doing()(error.into()))?;
        let first = registry.address(&format!(".{name}.{}.control", std::process::id()));
        match fs::remove_file(&first) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(doing()(error)),
            Ok(()) | Err(_) => {}
        }
        // It appears under its name when it listens already.
        SocketAddrUnix::new(&first)
            .and_then(|address| bind(&socket, &address))
            .and_then(|()| rustix::fs::chmod(&first, Mode::RUSR | Mode::WUSR))
            .and_then(|()| listen(&socket, BACKLOG))
            .map_err(|error| doing()(error.into()))?;
        let address = hdcr_sys::socket::name(&socket).map_err(doing())?;
        let file = format!("{name}.control");
        fs::rename(&first, registry.address(&file)).map_err(doing())?;
        let path = registry.path(&file);
        let identity = fs::symlink_metadata(&path).map(|found| (found.dev(), found.ino())).map_err(doing())?;
        Ok(Self { socket, path, identity, address })
    }

    /// Where programs find it. `None`: its path is no text, and cannot be told.
    pub(crate) fn path(&self) -> Option<String> {
        self.path.to_str().map(str::to_owned)
    }

    /// Whether it can still be found under its name.
    pub(crate) fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }

    /// The next one who has connected and whose process can be named.
    pub(crate) fn next(&self) -> Option<Caller> {
        loop {
            let socket = accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()?;
            if let Ok(peer) = sockopt::socket_peercred(&socket) {
                return Some(Caller::new(Link::from(socket), peer.pid.as_raw_nonzero().get()));
            }
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if self.is_there()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(%error, path = %self.path.display(), "the socket could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_door_is_where_programs_are_told_and_goes_with_its_keeper() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(directory.path()).unwrap();
        let name = JobName::new("sim").unwrap();
        let door = Door::open(&registry, &name).unwrap();
        let path = door.path().unwrap();
        let near = Link::connect(Path::new(&path)).unwrap();
        assert_eq!(hdcr_sys::socket::peer_name(&near).unwrap().as_ref(), Some(&door.address));
        assert_eq!(door.next().unwrap().pid, std::process::id().cast_signed());
        assert!(door.next().is_none());
        // The next keeper takes the place of one that was killed.
        let second = Door::open(&registry, &name).unwrap();
        assert!(!door.is_there() && second.is_there());
        drop(door);
        assert!(second.is_there());
        drop(second);
        assert!(!Path::new(&path).exists());
    }
}
