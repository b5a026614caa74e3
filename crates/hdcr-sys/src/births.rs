//! The process connector (`linux/cn_proc.h`): which process has made which, and which have ended, told after it happened.
//!
//! Needs `CAP_NET_ADMIN`, and works only in the first pid and user namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// What is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A process was made. (Where threads are told too, one is told as a child of its process's parent with the number of its process.)
    Born {
        /// Whose child it is.
        parent: i32,
        /// The process.
        child: i32,
    },
    /// The first thread of a process has ended.
    Ended(i32),
    /// Events were lost.
    Overflow,
}

/// A subscription. Its descriptor is readable when there are events.
#[derive(Debug)]
pub struct Births(OwnedFd);

impl AsFd for Births {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const GROUP: u32 = 1;
const NETLINK_HEADER: usize = 16;
const HEADERS: usize = NETLINK_HEADER + 20;
const LISTEN: u32 = 1;
const FORK: u32 = 1;
const EXIT: u32 = 0x8000_0000;
const ACKNOWLEDGED: u32 = 0;
/// Room for what comes while the reader is busy.
const ROOM: usize = 8 << 20;

impl Births {
    /// Subscribes. An error: this kernel, this user or this namespace is not told.
    pub fn subscribe() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::CONNECTOR))?;
        if sockopt::set_socket_recv_buffer_size_force(&socket, ROOM).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, ROOM)?;
        }
        // Without it all is told, and thrown away here: that costs time, of those who make threads as well.
        let program = filter();
        crate::socket::attach_filter(&socket, &program).ok();
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUP))?;
        rustix::net::sendto(&socket, &request(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let births = Self(socket);
        // The kernel answers within the call; where it does not answer it will not tell anything.
        let mut buffer = [0_u8; 4096];
        while let Some(count) = births.receive(&mut buffer)? {
            if what(buffer.get(..count).unwrap_or_default()) == Some(ACKNOWLEDGED) {
                return Ok(births);
            }
        }
        Err(io::ErrorKind::Unsupported.into())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::net::recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((count, _)) => Ok(Some(count)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what there is without waiting, in order.
    pub fn read(&self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        let mut buffer = [0_u8; 4096];
        loop {
            match self.receive(&mut buffer) {
                Ok(Some(count)) => events.extend(parse(buffer.get(..count).unwrap_or_default())),
                Ok(None) => return Ok(events),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => events.push(Event::Overflow),
                Err(error) => return Err(error),
            }
        }
    }
}

/// `struct nlmsghdr`, `struct cn_msg`, and the one word that subscribes.
fn request() -> Vec<u8> {
    const LENGTH: u32 = 40;
    const DONE: u16 = 3;
    let mut bytes = LENGTH.to_ne_bytes().to_vec();
    bytes.extend(DONE.to_ne_bytes());
    bytes.extend([0; 10]);
    for word in [GROUP, GROUP, 0, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(4_u16.to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(LISTEN.to_ne_bytes());
    bytes
}

/// Lets through what is read here: births and ends of processes, not of threads, and what the kernel answers. The others would wake
/// the reader as often as a thread is made (`net/netlink/af_netlink.c`, `do_one_broadcast`).
fn filter() -> [libc::sock_filter; 15] {
    const LOAD: u16 = 0x20;
    const RETURN: u16 = 0x06;
    const IS: u16 = 0x15;
    const IS_THE_SAME: u16 = 0x1d;
    const KEEP: u16 = 0x07;
    const BODY: u32 = 36 + 16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // Words are loaded as if they came from a network.
    let is = |what: u32, then| step(IS, then, 0, what.to_be());
    [
        step(LOAD, 0, 0, 36),
        is(ACKNOWLEDGED, 11),
        is(FORK, 2),
        is(EXIT, 5),
        step(RETURN, 0, 0, 0),
        // 5: the child's own number, and that of its process.
        step(LOAD, 0, 0, BODY + 8),
        step(KEEP, 0, 0, 0),
        step(LOAD, 0, 0, BODY + 12),
        step(IS_THE_SAME, 4, 5, 0),
        // 9: both of who has ended.
        step(LOAD, 0, 0, BODY),
        step(KEEP, 0, 0, 0),
        step(LOAD, 0, 0, BODY + 4),
        step(IS_THE_SAME, 0, 1, 0),
        // 13: it is kept; 14: it is not.
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ]
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

fn what(message: &[u8]) -> Option<u32> {
    let ours = word(message, NETLINK_HEADER)? == GROUP && word(message, NETLINK_HEADER + 4)? == GROUP;
    ours.then(|| word(message, HEADERS)).flatten()
}

/// `struct proc_event`: what, cpu, time, then four words or two.
fn parse(message: &[u8]) -> Option<Event> {
    let pid = |place: usize| word(message, HEADERS + 16 + 4 * place).map(u32::cast_signed);
    match what(message)? {
        FORK => Some(Event::Born { parent: pid(1)?, child: pid(3)? }),
        EXIT => (pid(0)? == pid(1)?).then_some(Event::Ended(pid(1)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_told_with_its_parent_and_its_end() {
        let births = match Births::subscribe() {
            Ok(births) => births,
            Err(error) => {
                println!("skipped: no process connector here: {error}");
                return;
            }
        };
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = child.id().cast_signed();
        child.wait().unwrap();
        let parent = std::process::id().cast_signed();
        let mut events = births.read().unwrap();
        // The end is told after the child could be reaped.
        for _ in 0..1000 {
            if events.contains(&Event::Ended(pid)) {
                break;
            }
            let mut polled = [rustix::event::PollFd::new(&births, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut polled, Some(&rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
            events.extend(births.read().unwrap());
        }
        let born = events.iter().position(|event| *event == Event::Born { parent, child: pid });
        let ended = events.iter().position(|event| *event == Event::Ended(pid));
        assert!(born.is_some() && born < ended, "{events:?}");
    }

    #[test]
    fn threads_are_not_told() {
        let Ok(births) = Births::subscribe() else { return };
        let own = std::process::id().cast_signed();
        for _ in 0..100 {
            std::thread::spawn(|| ()).join().unwrap();
        }
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        let mut buffer = [0; 4096];
        let mut told = 0;
        // What others do meanwhile is told too, and what the kernel answers to other subscribers.
        while let Some(count) = births.receive(&mut buffer).unwrap() {
            let Some(event) = parse(&buffer[..count]) else { continue };
            assert!(!matches!(event, Event::Born { child, .. } if child == own), "a thread");
            told += 1;
        }
        assert!(told > 0, "the child is told");
    }

    #[test]
    fn what_is_too_short_is_nothing() {
        let whole = request();
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), None);
        }
    }
}
