//! A TCP connection whose ends stand still: how what its ends have not sent yet gets across, and how it is known that all
//! has arrived.
//!
//! Nothing is taken from a queue. The kernel moves bytes to the other end as soon as there is room and no reason to wait
//! for more: so the receiver is given room (`SO_RCVBUF`), looked at (`MSG_PEEK`, upon which the kernel tells the sender of
//! the room), and the sender told not to wait (`TCP_NODELAY`). All of that is put back. Were we killed in between, an end
//! would have a larger buffer, or send small pieces at once.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdcr_sys::sock_diag::{Diagnosis, TcpConnection, TcpSocket};
use hdcr_sys::socket as sys;
use rustix::net::{RecvFlags, recv};
use nix::libc::{self, IPPROTO_TCP, SO_RCVBUF, SO_RCVBUFFORCE, SO_RCVLOWAT, SOL_SOCKET, TCP_NODELAY};

/// Which buffer sizes the program has set itself (Linux 5.14): 2 receiving.
const SO_BUF_LOCK: i32 = 72;
const RECEIVING: i32 = 2;
/// Room beside what is known to come.
const SPARE: u64 = 256 << 10;
/// How long to wait for what only time brings: an acknowledgement that the kernel holds back.
const STEP: Duration = Duration::from_millis(1);

// States of include/net/tcp_states.h.
pub(super) const ESTABLISHED: u8 = 1;
pub(super) const FIN_WAIT1: u8 = 4;
pub(super) const FIN_WAIT2: u8 = 5;
pub(super) const TIME_WAIT: u8 = 6;
pub(super) const CLOSE: u8 = 7;
pub(super) const CLOSE_WAIT: u8 = 8;
pub(super) const LAST_ACK: u8 = 9;
pub(super) const LISTEN: u8 = 10;
pub(super) const CLOSING: u8 = 11;

/// Places in `struct tcp_info` (include/uapi/linux/tcp.h).
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
const NOT_SENT: usize = 144;
const BYTES_SENT: usize = 200;
const BYTES_RETRANSMITTED: usize = 208;

/// `TCP_INFO` of a socket, as long as the kernel makes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Info(Vec<u8>);

impl Info {
    pub(super) fn of(file: &OwnedFd) -> io::Result<Self> {
        sys::option(file, IPPROTO_TCP, libc::TCP_INFO, 256).map(Self)
    }

    pub(super) fn state(&self) -> u8 {
        self.0.first().copied().unwrap_or(CLOSE)
    }

    pub(super) fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    fn long(&self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.0.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }

    /// Bytes of data that were given to the network; `None` when the kernel does not tell (before Linux 4.19).
    pub(super) fn sent(&self) -> Option<u64> {
        self.long(BYTES_SENT)
    }
}

/// A connection with the ends that are at hand.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) kernel: &'a Diagnosis,
    /// The addresses as the near end has them.
    pub(super) ends: TcpConnection,
    pub(super) near: &'a OwnedFd,
    /// `None`: nobody holds it any more, or it was not accepted yet.
    pub(super) far: Option<&'a OwnedFd>,
}

/// One end at one moment.
#[derive(Debug)]
struct End<'a> {
    /// `None`: the kernel has forgotten it.
    seen: Option<TcpSocket>,
    file: Option<&'a OwnedFd>,
    info: Option<Info>,
}

/// A connection on which nothing is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Still {
    pub(super) near: Option<TcpSocket>,
    pub(super) far: Option<TcpSocket>,
}

impl Line<'_> {
    /// Lets all that is on its way arrive; `None` when that has not come to its end in time.
    pub(super) fn settle(&self, by: Instant) -> io::Result<Option<Still>> {
        let (mut changed, mut before) = (Vec::new(), None);
        let most = (most_at(Some(self.near))?, most_at(self.far)?);
        let outcome = loop {
            let (near, far) = (self.end(self.ends, Some(self.near))?, self.end(self.ends.reversed(), self.far)?);
            let (forth, back) = (near.has_reached(&far), far.has_reached(&near));
            if forth && back {
                // What was seen above is older than the answer that all has arrived.
                let far = self.kernel.tcp(&self.ends.reversed())?;
                break Some(Still { near: self.kernel.tcp(&self.ends)?, far });
            }
            if (!forth && far.holds_more_than(most.1)) || (!back && near.holds_more_than(most.0)) {
                break None;
            }
            if before == Some((near.seen, far.seen)) {
                if Instant::now() > by {
                    break None;
                }
                std::thread::sleep(STEP);
            }
            before = Some((near.seen, far.seen));
            for (from, to) in [(!forth).then_some((&near, &far)), (!back).then_some((&far, &near))].into_iter().flatten() {
                changed.extend(from.urge(to)?);
            }
        };
        for size in changed.into_iter().rev() {
            size.put_back()?;
        }
        Ok(outcome)
    }

    fn end<'a>(&self, ends: TcpConnection, file: Option<&'a OwnedFd>) -> io::Result<End<'a>> {
        let info = file.map(Info::of).transpose()?;
        Ok(End { seen: self.kernel.tcp(&ends)?, file, info })
    }
}

impl<'a> End<'a> {
    /// Whether all that was written here has arrived there. An end of the stream that has arrived has all before it. What
    /// has arrived but is not acknowledged yet is known by the counters of both ends.
    fn has_reached(&self, there: &End<'_>) -> bool {
        let Some(here) = self.seen.filter(|here| here.outgoing > 0) else { return true };
        if there.seen.is_some_and(|seen| matches!(seen.state, CLOSE_WAIT | LAST_ACK | CLOSING)) {
            return true;
        }
        let (Some(from), Some(to)) = (&self.info, &there.info) else { return false };
        let says_end = matches!(here.state, FIN_WAIT1 | LAST_ACK | CLOSING);
        if says_end || from.word(NOT_SENT) != Some(0) {
            return false;
        }
        let arrived = to.long(BYTES_RECEIVED);
        let sent = from.sent().zip(from.long(BYTES_RETRANSMITTED)).and_then(|(all, again)| all.checked_sub(again));
        // All that was ever given to the network: the side that connected counts its first segment as a byte.
        let given = from.long(BYTES_ACKED).map(|acked| acked + u64::from(here.outgoing));
        sent.is_some() && sent == arrived && (given == sent || given == sent.map(|sent| sent + 1))
    }

    /// Whether so much waits already that a writer whom nobody reads would be given room again and again, by each checkpoint.
    fn holds_more_than(&self, most: u32) -> bool {
        self.seen.is_some_and(|seen| seen.incoming > most)
    }

    /// Has the kernel bring more of what waits here to the other end. What is returned must be put back.
    fn urge(&self, there: &End<'a>) -> io::Result<Option<Size<'a>>> {
        let mut set = None;
        let waiting = self.seen.map_or(0, |seen| seen.outgoing);
        if let (Some(to), Some(seen)) = (there.file, there.seen) {
            set = make_room(to, u64::from(seen.incoming) + u64::from(waiting))?;
            if seen.incoming > 0 {
                // Looking has the kernel tell the sender of the room.
                let _seen = peek(to, &mut [0]);
            }
        }
        if let (Some(from), Some(1..)) = (self.file, self.info.as_ref().and_then(|info| info.word(NOT_SENT))) {
            let wanted = sys::option_int(from, IPPROTO_TCP, TCP_NODELAY)?;
            sys::set_option_int(from, IPPROTO_TCP, TCP_NODELAY, 1)?;
            sys::set_option_int(from, IPPROTO_TCP, TCP_NODELAY, wanted)?;
        }
        Ok(set)
    }
}

/// The size of a receiving buffer as it was. With more in it than that, the kernel takes nothing until it is read.
#[derive(Debug)]
struct Size<'a> {
    file: &'a OwnedFd,
    bytes: i32,
    lock: i32,
}

impl Size<'_> {
    fn put_back(&self) -> io::Result<()> {
        let half = self.bytes / 2;
        sys::set_option_int(self.file, SOL_SOCKET, SO_RCVBUFFORCE, half)
            .or_else(|_| sys::set_option_int(self.file, SOL_SOCKET, SO_RCVBUF, half))?;
        sys::set_option_int(self.file, SOL_SOCKET, SO_BUF_LOCK, self.lock)
    }
}

/// Gives a socket room for so many bytes, as far as this user may; what it had. Where it cannot be told who has set a size
/// (before Linux 5.14), it stays.
fn make_room(file: &OwnedFd, bytes: u64) -> io::Result<Option<Size<'_>>> {
    let Ok(lock) = sys::option_int(file, SOL_SOCKET, SO_BUF_LOCK) else { return Ok(None) };
    let size = sys::option_int(file, SOL_SOCKET, SO_RCVBUF)?;
    let wanted = room_for(bytes);
    if size >= wanted {
        return Ok(None);
    }
    if sys::set_option_int(file, SOL_SOCKET, SO_RCVBUFFORCE, wanted / 2).is_err() {
        let most = limit("rmem_max").saturating_mul(2);
        if size >= most {
            return Ok(None);
        }
        sys::set_option_int(file, SOL_SOCKET, SO_RCVBUF, wanted.min(most) / 2)?;
    }
    Ok(Some(Size { file, bytes: size, lock }))
}

/// What may wait to be read at an end before more is brought there: twice what the kernel lets wait (the most of `tcp_rmem`,
/// tcp(7); 6 MiB unless the machine is set otherwise), or what a program has asked for. A size that it has not asked for is
/// what the kernel made of what came, also by earlier checkpoints, and does not count.
fn most_at(file: Option<&OwnedFd>) -> io::Result<u32> {
    let asked = |file| sys::option_int(file, SOL_SOCKET, SO_BUF_LOCK).is_ok_and(|lock| lock & RECEIVING != 0);
    let size = file.filter(|file| asked(*file)).map(|file| sys::option_int(file, SOL_SOCKET, SO_RCVBUF)).transpose()?;
    Ok(by_itself().max(u32::try_from(size.unwrap_or(0)).unwrap_or(0).saturating_mul(2)))
}

fn by_itself() -> u32 {
    const LEAST: u32 = 24 << 20;
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_rmem").unwrap_or_default();
    let most = text.split_ascii_whitespace().nth(2).and_then(|word| word.parse::<u32>().ok()).unwrap_or(0);
    LEAST.max(most.saturating_mul(2))
}

fn room_for(bytes: u64) -> i32 {
    i32::try_from(bytes * 2 + SPARE).unwrap_or(i32::MAX)
}

/// Gives a socket of our own room, also where this user may not raise its buffer: one that waits for so many bytes
/// (`SO_RCVLOWAT`) gets the room for them, up to what the kernel itself would give it in time (`tcp_rmem`).
fn make_own_room(file: &OwnedFd, bytes: u64) -> io::Result<()> {
    make_room(file, bytes)?;
    if sys::option_int(file, SOL_SOCKET, SO_RCVBUF)? >= room_for(bytes) {
        return Ok(());
    }
    let lock = sys::option_int(file, SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
    sys::set_option_int(file, SOL_SOCKET, SO_BUF_LOCK, lock & !RECEIVING)?;
    let low = sys::option_int(file, SOL_SOCKET, SO_RCVLOWAT)?;
    sys::set_option_int(file, SOL_SOCKET, SO_RCVLOWAT, room_for(bytes) / 2)?;
    sys::set_option_int(file, SOL_SOCKET, SO_RCVLOWAT, low)
}

/// What an ordinary user may ask for as the size of a buffer.
fn limit(name: &str) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Looks at what waits to be read; how many bytes that was. Not `MSG_TRUNC`, which means something else to TCP.
pub(super) fn peek(file: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
    Ok(recv(file, into, RecvFlags::PEEK | RecvFlags::DONTWAIT)?.0)
}

/// Puts bytes into a connection, so that they wait to be read at its other end; whether all of them do so already.
pub(super) fn fill(from: &OwnedFd, to: &OwnedFd, bytes: &[u8]) -> io::Result<bool> {
    const MOST_WAITS: usize = 2000;
    if bytes.is_empty() {
        return Ok(true);
    }
    let waited = sys::option_int(from, IPPROTO_TCP, TCP_NODELAY)?;
    sys::set_option_int(from, IPPROTO_TCP, TCP_NODELAY, 1)?;
    make_own_room(to, u64::try_from(bytes.len()).unwrap_or(0))?;
    let (mut rest, mut waits) = (bytes, 0);
    loop {
        if !rest.is_empty() {
            match sys::send(from, &sys::Outgoing { bytes: rest, ..sys::Outgoing::default() }, 0) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && waits < MOST_WAITS => {}
                Err(error) => return Err(error),
            }
        }
        let arrived = usize::try_from(rustix::io::ioctl_fionread(to)?).is_ok_and(|arrived| arrived >= bytes.len());
        if arrived || waits >= MOST_WAITS {
            sys::set_option_int(from, IPPROTO_TCP, TCP_NODELAY, waited)?;
            return Ok(arrived);
        }
        let _seen = peek(to, &mut [0]);
        if waits > 0 {
            std::thread::sleep(STEP);
        }
        waits += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Shutdown, TcpListener, TcpStream};

    fn pair() -> (TcpConnection, OwnedFd, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        let ends = TcpConnection { local: near.local_addr().unwrap(), remote: near.peer_addr().unwrap() };
        (ends, near.into(), far.into())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn stuff(file: &OwnedFd) -> usize {
        let mut all = 0;
        let bytes = vec![7; 50_000];
        let piece = sys::Outgoing { bytes: &bytes, ..sys::Outgoing::default() };
        while let Ok(sent) = sys::send(file, &piece, 0) {
            all += sent;
        }
        all
    }

    #[test]
    fn what_waits_to_be_sent_arrives_and_sizes_stay_as_the_program_set_them() {
        let (ends, near, far) = pair();
        let size = sys::option_int(&near, SOL_SOCKET, SO_RCVBUF).unwrap();
        sys::set_option_int(&far, SOL_SOCKET, SO_RCVBUF, 30_000).unwrap();
        let (forth, back) = (stuff(&near), stuff(&far));
        let kernel = Diagnosis::open().unwrap();
        let line = Line { kernel: &kernel, ends, near: &near, far: Some(&far) };
        let still = line.settle(soon()).unwrap().unwrap();
        let seen = |of: Option<TcpSocket>| usize::try_from(of.unwrap().incoming).unwrap();
        assert_eq!((seen(still.far), seen(still.near)), (forth, back));
        assert_eq!(sys::option_int(&far, SOL_SOCKET, SO_RCVBUF).unwrap(), 60_000);
        assert_eq!(sys::option_int(&far, SOL_SOCKET, SO_BUF_LOCK).unwrap(), RECEIVING);
        assert_eq!(sys::option_int(&near, SOL_SOCKET, SO_RCVBUF).unwrap(), size);
        assert_eq!(sys::option_int(&near, SOL_SOCKET, SO_BUF_LOCK).unwrap(), 0);
        assert!(super::super::tcp::queue(&far).unwrap() == vec![7; forth]);
    }

    #[test]
    fn a_held_back_piece_and_the_end_of_the_stream_arrive() {
        let (ends, near, far) = pair();
        sys::set_option_int(&near, IPPROTO_TCP, libc::TCP_CORK, 1).unwrap();
        sys::send(&near, &sys::Outgoing { bytes: b"held back", ..sys::Outgoing::default() }, 0).unwrap();
        let kernel = Diagnosis::open().unwrap();
        let line = Line { kernel: &kernel, ends, near: &near, far: Some(&far) };
        assert_eq!(line.settle(soon()).unwrap().unwrap().far.unwrap().incoming, 9);
        assert_eq!(sys::option_int(&near, IPPROTO_TCP, TCP_NODELAY).unwrap(), 0);
        let near = TcpStream::from(near);
        near.shutdown(Shutdown::Write).unwrap();
        let near = OwnedFd::from(near);
        let line = Line { kernel: &kernel, ends, near: &near, far: Some(&far) };
        let still = line.settle(soon()).unwrap().unwrap();
        assert_eq!((still.far.unwrap().state, still.far.unwrap().incoming), (CLOSE_WAIT, 10));
    }

    #[test]
    fn what_an_end_that_nobody_holds_has_left_arrives() {
        let (ends, near, far) = pair();
        let left = stuff(&far);
        drop(far);
        let kernel = Diagnosis::open().unwrap();
        let still = Line { kernel: &kernel, ends, near: &near, far: None }.settle(soon()).unwrap().unwrap();
        assert_eq!(still.near.map(|near| (near.state, near.incoming as usize)), Some((CLOSE_WAIT, left + 1)));
    }

    #[test]
    fn what_waits_has_a_bound() {
        let (_, near, _far) = pair();
        let bound = most_at(None).unwrap();
        assert!(bound >= 24 << 20);
        // What the kernel gives it by itself, and what checkpoints have brought it to, do not raise the bound.
        let made = make_room(&near, u64::from(bound) * 2).unwrap();
        let Some(size) = made else { panic!("no room was made") };
        size.put_back().unwrap();
        assert_eq!(most_at(Some(&near)).unwrap(), bound);
        // What the program has asked for does.
        let asked = i32::try_from(bound).unwrap_or(i32::MAX);
        if sys::set_option_int(&near, SOL_SOCKET, SO_RCVBUFFORCE, asked).is_ok() {
            assert!(most_at(Some(&near)).unwrap() > bound);
        }
    }
}
