//! Messages with descriptors between a command and the worker process it starts, over a pair of sockets.
//!
//! A message is its length in four bytes, then JSON; descriptors travel with the length. Both ends are this very program,
//! and still each message is limited and an end of the stream is an answer. Several threads may send: a message is whole.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::time::Timespec;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::{Class, Failure, Result};

/// The longest message in bytes; a list of obstacles of a large tree is some 100 KiB.
const LIMIT: usize = 64 << 20;
/// The most descriptors in a message.
const DESCRIPTORS: usize = 3;

/// One end.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    /// Held by who sends, until all of his message is on its way.
    sends: Mutex<()>,
}

impl Channel {
    /// A connected pair. Neither end goes to a program that is executed, unless it is made its standard input.
    pub(crate) fn pair() -> Result<(Self, Self)> {
        let made = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (near, far) = made.map_err(Failure::system("making a pair of sockets"))?;
        Ok((Self::over(near), Self::over(far)))
    }

    fn over(socket: OwnedFd) -> Self {
        Self { socket, sends: Mutex::new(()) }
    }

    /// From now on a message that does not come, or not any further, for so long is a failure.
    pub(crate) fn wait_at_most(&self, limit: Duration) -> Result<()> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(limit)).map_err(Failure::system("limiting a wait"))
    }

    /// Whether there is something to be received, or never will be.
    pub(crate) fn is_ready(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&now)) == Ok(1)
    }

    /// The end that a worker gets as its standard input.
    pub(crate) fn on_stdin() -> Result<Self> {
        let copy = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3);
        copy.map(Self::over).map_err(Failure::system("taking over standard input"))
    }

    /// The process that made the pair, when the kernel can name it.
    pub(crate) fn made_by(&self) -> Option<i32> {
        rustix::net::sockopt::socket_peercred(&self.socket).ok().map(|made| made.pid.as_raw_nonzero().get())
    }

    /// Whether the other end is gone.
    pub(crate) fn is_closed(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::HUP)
    }

    /// Sends a message with up to three descriptors.
    pub(crate) fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        self.send_whole(message, descriptors, self.sends.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends a short message unless the other end has not taken earlier ones: then it does without.
    pub(crate) fn offer<T: Serialize>(&self, message: &T) {
        let mut polled = [PollFd::new(&self.socket, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Who sends just now may wait for the other end.
        let Ok(turn) = self.sends.try_lock() else { return };
        if rustix::event::poll(&mut polled, Some(&now)) == Ok(1) && self.send_whole(message, &[], turn).is_err() {
            tracing::debug!("nobody listens");
        }
    }

    fn send_whole<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
        _turn: MutexGuard<'_, ()>,
    ) -> Result<()> {
        let body = serde_json::to_vec(message).map_err(Failure::system("encoding a message"))?;
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= LIMIT);
        let length = length.ok_or_else(|| broken("a message is too long"))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(broken("too many descriptors in a message"));
        }
        self.put(&length.to_le_bytes(), &mut control)?;
        self.put(&body, &mut SendAncillaryBuffer::default())
    }

    fn put(&self, mut bytes: &[u8], control: &mut SendAncillaryBuffer<'_, '_, '_>) -> Result<()> {
        while !bytes.is_empty() {
            match sendmsg(&self.socket, &[IoSlice::new(bytes)], control, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Failure::system("sending a message")(error)),
            }
            control.clear();
        }
        Ok(())
    }

    /// Waits for a message; `None` when the other end is gone.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        let mut length = [0; 4];
        let mut descriptors = Vec::new();
        if !self.fill(&mut length, &mut descriptors)? {
            return Ok(None);
        }
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > LIMIT {
            return Err(broken("a message is too long"));
        }
        let mut body = vec![0; length];
        if !self.fill(&mut body, &mut descriptors)? {
            return Ok(None);
        }
        let message = serde_json::from_slice(&body).map_err(Failure::system("decoding a message"))?;
        Ok(Some((message, descriptors)))
    }

    /// Fills a buffer; false when the stream ends first.
    fn fill(&self, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<bool> {
        let mut filled = 0;
        while filled < into.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let rest = into.get_mut(filled..).unwrap_or_default();
            match recvmsg(&self.socket, &mut [IoSliceMut::new(rest)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(got) if got.bytes == 0 => return Ok(false),
                Ok(got) => filled += got.bytes,
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Ok(false),
                Err(error) => return Err(Failure::system("receiving a message")(error)),
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
        }
        Ok(true)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

fn broken(what: &str) -> Failure {
    Failure::new(Class::Internal, "channel", what)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (near, far) = Channel::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let long = "x".repeat(100_000);
        near.send(&("one", 1), &[writer.as_fd()]).unwrap();
        near.send(&long, &[]).unwrap();
        drop(writer);
        let ((name, number), descriptors) = far.receive::<(String, u8)>().unwrap().unwrap();
        assert_eq!((name.as_str(), number, descriptors.len()), ("one", 1, 1));
        let mut sent = std::fs::File::from(descriptors.into_iter().next().unwrap());
        sent.write_all(b"through").unwrap();
        drop(sent);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert_eq!(far.receive::<String>().unwrap().unwrap().0, long);
        drop(near);
        assert!(far.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn messages_of_several_threads_arrive_whole() {
        const EACH: usize = 2000;
        let (near, far) = Channel::pair().unwrap();
        let of = |thread: usize| "x".repeat(1 + 50 * thread);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (near, text) = (&near, of(thread));
                scope.spawn(move || (0..EACH).for_each(|_| near.send(&text, &[]).unwrap()));
            }
            for _ in 0..4 * EACH {
                let (text, _) = far.receive::<String>().unwrap().unwrap();
                assert!((0..4).any(|thread| text == of(thread)), "{text}");
            }
        });
    }

    #[test]
    fn half_a_message_is_not_waited_for_without_limit() {
        let (near, far) = Channel::pair().unwrap();
        near.wait_at_most(Duration::from_millis(10)).unwrap();
        assert!(!near.is_ready());
        rustix::io::write(&far, &[9, 0, 0, 0, b'"']).unwrap();
        assert!(near.is_ready() && near.receive::<String>().is_err());
        drop(far);
        assert!(near.is_ready());
    }

    #[test]
    fn what_is_not_a_message_is_an_error() {
        let (near, far) = Channel::pair().unwrap();
        rustix::io::write(&near, &[0xff; 4]).unwrap();
        assert!(far.receive::<String>().is_err());
        let (near, far) = Channel::pair().unwrap();
        near.send(&7, &[]).unwrap();
        assert!(far.receive::<String>().is_err());
    }
}
