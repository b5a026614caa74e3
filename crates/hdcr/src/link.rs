//! A connection between a program and the keeper of its job; packets with a checked length, and no wait without a limit
//! that nobody asked for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use rustix::time::Timespec;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::LIMIT;

/// One end.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What came from the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard<T> {
    /// Nothing yet.
    Nothing,
    /// A message.
    Said(T),
    /// The other end is closed.
    Ended,
}

/// How long a keeper may have too much to do to take a new connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

impl Link {
    /// Connects to the keeper that listens at a path, however long that is.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // Descriptors 0 to 2 are those of the restoring command after a restore.
        let socket = rustix::io::fcntl_dupfd_cloexec(socket, 3)?;
        let (directory, file) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
        let way;
        let address = if let Ok(address) = SocketAddrUnix::new(path) {
            address
        } else {
            way = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            SocketAddrUnix::new(Path::new(&format!("/proc/self/fd/{}", way.as_raw_fd())).join(file))?
        };
        let end = Instant::now() + PATIENCE;
        loop {
            match connect(&socket, &address) {
                Ok(()) => return Ok(Self(socket)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if Instant::now() < end => std::thread::sleep(PAUSE),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a message; an error when the other end does not take it at once.
    pub fn send<T: Serialize>(&self, message: &T) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message is too long"));
        }
        loop {
            match send(&self.0, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What is there now.
    pub fn hear<T: DeserializeOwned>(&self) -> io::Result<Heard<T>> {
        let mut bytes = vec![0; LIMIT];
        let length = loop {
            match recv(&self.0, bytes.as_mut_slice(), RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                Ok((_, length)) => break length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Heard::Nothing),
                Err(Errno::CONNRESET) => return Ok(Heard::Ended),
                Err(error) => return Err(error.into()),
            }
        };
        if length == 0 {
            return Ok(Heard::Ended);
        }
        let message = bytes.get(..length).ok_or_else(|| io::Error::other("a message is too long"))?;
        Ok(Heard::Said(serde_json::from_slice(message)?))
    }

    /// Waits for a message until then; without an end when there is none.
    pub fn wait<T: DeserializeOwned>(&self, until: Option<Instant>) -> io::Result<Heard<T>> {
        loop {
            match self.hear()? {
                Heard::Nothing if !self.is_ready(until)? => return Ok(Heard::Nothing),
                Heard::Nothing => {}
                heard @ (Heard::Said(_) | Heard::Ended) => return Ok(heard),
            }
        }
    }

    /// Waits until there is something to hear; false when it is too late.
    fn is_ready(&self, until: Option<Instant>) -> io::Result<bool> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl From<OwnedFd> for Link {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{bind, listen, socketpair};

    use super::*;
    use crate::wire::Ask;

    fn pair() -> (Link, OwnedFd) {
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (Link(near), far)
    }

    /// What becomes of a packet that somebody sends.
    fn check(packet: &[u8], expected: &Result<Heard<Ask>, io::ErrorKind>) {
        let (near, far) = pair();
        send(&far, packet, SendFlags::empty()).unwrap();
        assert_eq!(&near.hear().map_err(|error| error.kind()), expected, "{:?}", packet.get(..40));
        assert_eq!(near.hear::<Ask>().unwrap(), Heard::Nothing);
    }

    #[test]
    fn hostile_packets_are_errors_and_cost_no_more_than_the_limit() {
        check(br#"{"hello":{"version":9}}"#, &Ok(Heard::Said(Ask::Hello { version: 9 })));
        check(b"\xff\xfe", &Err(io::ErrorKind::InvalidData));
        check(br#"{"hello":{"version":-1}}"#, &Err(io::ErrorKind::InvalidData));
        check(br#"{"rollback":{"to":1e99}}"#, &Err(io::ErrorKind::InvalidData));
        check(br#"{"end_of_the_world":{}}"#, &Err(io::ErrorKind::InvalidData));
        check("[".repeat(LIMIT).as_bytes(), &Err(io::ErrorKind::InvalidData));
        check(" ".repeat(LIMIT + 1).as_bytes(), &Err(io::ErrorKind::Other));
    }

    #[test]
    fn the_end_is_heard_after_what_was_said() {
        let (near, far) = pair();
        Link(far).send(&Ask::Hello { version: 1 }).unwrap();
        assert_eq!(near.wait(None).unwrap(), Heard::Said(Ask::Hello { version: 1 }));
        assert_eq!(near.wait::<Ask>(None).unwrap(), Heard::Ended);
    }

    #[test]
    fn a_wait_has_an_end() {
        let (near, _far) = pair();
        assert_eq!(near.wait::<Ask>(Some(Instant::now())).unwrap(), Heard::Nothing);
    }

    #[test]
    fn a_keeper_is_found_at_a_long_path() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let way = std::fs::File::open(&deep).unwrap();
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let short = format!("/proc/self/fd/{}/a.control", way.as_raw_fd());
        bind(&socket, &SocketAddrUnix::new(short).unwrap()).unwrap();
        listen(&socket, 1).unwrap();
        let near = Link::connect(&deep.join("a.control")).unwrap();
        near.send(&Ask::Rollback { to: None }).unwrap();
        assert_eq!(Link::connect(&deep.join("b")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
