//! TCP connections whose ends lie in the tree: over the loopback or any other address of this host.
//!
//! Captured: both addresses, the bytes on their way in both directions, halves that are shut down, options, the limit of
//! the segments' size; an end whose peer is closed; a client that waits to be accepted by a listening socket of the tree and
//! has sent nothing. Not captured, since nobody outside can see them: sequence numbers, windows, time stamps, counters
//! (`TCP_INFO`). Refused: connections to somebody else, connections being made, urgent bytes, kernel TLS. Reads:
//! `sock_diag(7)`, `TCP_INFO`, `MSG_PEEK`; `line.rs` says how bytes arrive that were not sent yet.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdcr_image::{Record, Tag};
use hdcr_sys::sock_diag::{Diagnosis, TcpConnection, TcpSocket};
use hdcr_sys::socket as sys;
use nix::libc::{self, AF_INET, AF_INET6, IPPROTO_TCP, SOCK_STREAM, SOL_SOCKET};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::inet::{parse, show};
use super::line::{
    self, CLOSE, CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, Info, LAST_ACK, LISTEN, Line, TIME_WAIT,
};
use super::{Family, subject};
use crate::capture::{Capture, OpenFile};
use crate::error::{Error, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::procfs;
use crate::resource::{FileView, outside};
use crate::survey::Survey;

const TCP_ULP: i32 = 31;
/// Places in `struct tcp_info`: milliseconds since data was sent last, and the size of segments that was asked for.
const LAST_SENT: usize = 44;
const OWN_MSS: usize = 84;
/// Sizes that `TCP_MAXSEG` takes; what is larger is the kernel's own choice.
const SETTABLE_MSS: std::ops::Range<u32> = 88..32767;
/// What a connection has of the freeze to come to rest.
const PATIENCE: Duration = Duration::from_secs(1);

/// How the second end of a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Second {
    /// It is an open file of the tree.
    Held = 0,
    /// It is closed.
    Closed = 1,
    /// A listening socket of the tree has not accepted it yet.
    Unaccepted = 2,
}

/// A connection, with both ends.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ConnectionRecord {
    #[prost(message, optional, tag = "1")]
    pub(super) first: Option<EndRecord>,
    #[prost(message, optional, tag = "2")]
    pub(super) second: Option<EndRecord>,
    #[prost(enumeration = "Second", tag = "3")]
    pub(super) standing: i32,
    /// Milliseconds that a client has waited to be accepted.
    #[prost(uint32, tag = "4")]
    pub(super) waited: u32,
}

/// An end of a connection.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EndRecord {
    /// The open file; 0: none.
    #[prost(uint64, tag = "1")]
    pub(super) file: u64,
    /// Its address.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) name: Vec<u8>,
    /// What waits to be read at it.
    #[prost(bytes = "vec", tag = "3")]
    pub(super) received: Vec<u8>,
    /// Halves that are shut down: 1 reading, 2 writing.
    #[prost(uint32, tag = "4")]
    pub(super) shut: u32,
    /// The size of segments that it asks its peer for; 0: no limit of its own.
    #[prost(uint32, tag = "5")]
    pub(super) mss: u32,
    /// The address of its peer, as it is called at this end (IPv4 in IPv6, or not).
    #[prost(bytes = "vec", tag = "6")]
    pub(super) peer: Vec<u8>,
}

impl Record for ConnectionRecord {
    const TAG: Tag = Tag(0x0255);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Where the other end of a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Other {
    /// In the tree, with this inode.
    Inside(u64),
    /// Closed, or closing by itself.
    Closed,
    /// Known to the kernel, but not accepted yet.
    Unaccepted,
    /// Another program's, on this host or another one.
    Outside,
}

/// Both addresses, those of IPv4 as such; `None` when there are none.
fn ends_of(name: &[u8], peer: &[u8]) -> Option<TcpConnection> {
    let plain = |address: &[u8]| {
        Some(match parse(address)? {
            SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_none() => {
                let device = u32::from_ne_bytes(address.get(24..28)?.try_into().ok()?);
                SocketAddrV6::new(*v6.ip(), v6.port(), 0, device).into()
            }
            other @ (SocketAddr::V4(_) | SocketAddr::V6(_)) => {
                SocketAddr::new(other.ip().to_canonical(), other.port())
            }
        })
    };
    Some(TcpConnection { local: plain(name)?, remote: plain(peer)? })
}

/// Where the other end is; `inside` tells whether the tree has an inode.
fn other_end(kernel: &Diagnosis, ends: &TcpConnection, inside: impl FnOnce(u64) -> bool) -> io::Result<Other> {
    Ok(match kernel.tcp(&ends.reversed())? {
        Some(TcpSocket { inode: 1.., .. }) if ends.local == ends.remote => Other::Outside,
        Some(TcpSocket { inode: inode @ 1.., .. }) if inside(inode.into()) => Other::Inside(inode.into()),
        Some(TcpSocket { inode: 1.., .. }) => Other::Outside,
        // Whoever closes leaves these states.
        Some(TcpSocket { state: FIN_WAIT1 | FIN_WAIT2 | TIME_WAIT | CLOSE | LAST_ACK | CLOSING, .. }) => Other::Closed,
        Some(_) => Other::Unaccepted,
        None if is_local(ends.remote.ip()) => Other::Closed,
        None => Other::Outside,
    })
}

/// Whether an address is one of this host: another's cannot be bound.
fn is_local(ip: IpAddr) -> bool {
    let (domain, octets) = match ip {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    };
    let at = if domain == AF_INET { 4 } else { 8 };
    let bound = sys::socket(domain, libc::SOCK_DGRAM, 0).and_then(|probe| {
        let mut name = sys::name(&probe)?;
        name.iter_mut().skip(at).zip(&octets).for_each(|(slot, octet)| *slot = *octet);
        sys::bind(&probe, &name)
    });
    ip.is_loopback() || bound.is_ok()
}

/// Whether a socket is one that listens for this address.
fn listens_for(file: &OwnedFd, address: SocketAddr) -> bool {
    let listens = sys::option_int(file, SOL_SOCKET, libc::SO_ACCEPTCONN).is_ok_and(|listens| listens != 0);
    let name = sys::name(file).ok().filter(|_| listens).and_then(|name| parse(&name));
    name.is_some_and(|name| {
        let ip = name.ip().to_canonical();
        name.port() == address.port() && (ip.is_unspecified() || ip == address.ip())
    })
}

/// What can be seen of a connection's end alone and stands in the way.
fn obstacle(view: &FileView, file: &OwnedFd, info: &Info) -> Option<Refusal> {
    let refuse = |code, cause: &str, remedy: &str| Some(view.refuse(code, "TCP connection", cause, remedy));
    if !matches!(info.state(), ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING) {
        return refuse("tcp-connecting", "it is only being made", "try again when it is made or has failed");
    }
    let mut polled = [PollFd::new(file, PollFlags::PRI)];
    let polls = poll(&mut polled, Some(&Timespec::default())).is_ok();
    let events = polled.first().filter(|_| polls).map_or(PollFlags::ERR, PollFd::revents);
    if events.contains(PollFlags::PRI) {
        return refuse("tcp-urgent", "an urgent byte (`MSG_OOB`) waits in it, whose mark cannot be put back", READ_FIRST);
    }
    if events.contains(PollFlags::ERR) {
        return refuse("tcp-state", "an error is still to be reported", "let the program read it first");
    }
    if sys::option(file, IPPROTO_TCP, TCP_ULP, 16).is_ok_and(|name| !name.is_empty()) {
        return refuse("tcp-state", "the kernel works on its bytes (TLS), with keys that it does not show", CLOSE_IT);
    }
    if sys::option_int(file, SOL_SOCKET, libc::SO_PEEK_OFF).is_ok_and(|at| at >= 0) {
        return refuse("tcp-state", "it has a place for looking ahead (`SO_PEEK_OFF`)", CLOSE_IT);
    }
    None
}

const READ_FIRST: &str = "let the program read it first";
const CLOSE_IT: &str = "close it before the checkpoint";

fn leads_outside(view: &FileView, ends: &TcpConnection) -> Refusal {
    let cause = format!("it is connected from {} to {}, which is no socket of the tree", ends.local, ends.remote);
    let remedy = "close the connection before the checkpoint, or take its other end into the tree";
    view.refuse("tcp-established", "established TCP connection", &cause, remedy)
}

/// What stands in the way of a socket that is neither closed nor listening.
pub(super) fn survey(survey: &mut Survey<'_>, view: &FileView, file: &OwnedFd, info: &Info) -> Result<()> {
    if let Some(refusal) = obstacle(view, file, info) {
        survey.refuse(refusal);
        return Ok(());
    }
    let failed = |operation| Error::system::<io::Error>(operation, subject(view));
    let name = sys::name(file).map_err(failed("getsockname"))?;
    // It has ended meanwhile when it has no peer any more.
    let Some(peer) = sys::peer_name(file).map_err(failed("getpeername"))? else { return Ok(()) };
    let Some(ends) = ends_of(&name, &peer) else {
        let cause = format!("its addresses are {} and {}", show(&name), show(&peer));
        survey.refuse(view.refuse("tcp-state", "TCP connection", &cause, CLOSE_IT));
        return Ok(());
    };
    let kernel = Diagnosis::open().map_err(failed("opening sock_diag"))?;
    let inside = |inode: u64| survey.with_inode(inode).next().is_some() || holds_now(survey, inode);
    let in_the_way = match other_end(&kernel, &ends, inside).map_err(failed("asking sock_diag"))? {
        Other::Inside(_) => false,
        Other::Closed => lost(file, &kernel, &ends).map_err(failed("asking sock_diag"))?,
        Other::Unaccepted => !survey.files.iter().any(|other| is_listener(other, ends.remote)),
        Other::Outside => true,
    };
    // The other end may be on its way in a socket, which only the capture finds out.
    if in_the_way && !survey.files.iter().any(outside::carries_files) {
        survey.refuse(leads_outside(view, &ends));
    }
    Ok(())
}

/// Whether an end has lost its peer, without having been told: it will wait for ever.
fn lost(file: &OwnedFd, kernel: &Diagnosis, ends: &TcpConnection) -> io::Result<bool> {
    // In this order, as a peer that closes just now tells us before it is forgotten.
    let gone = kernel.tcp(&ends.reversed())?.is_none();
    Ok(gone && matches!(Info::of(file)?.state(), ESTABLISHED | FIN_WAIT1 | FIN_WAIT2))
}

fn is_listener(view: &FileView, address: SocketAddr) -> bool {
    view.starts_with("socket:[") && view.duplicate().is_ok_and(|file| listens_for(&file, address))
}

/// Whether a process of the tree holds a socket that it did not hold when its descriptors were listed.
fn holds_now(survey: &Survey<'_>, inode: u64) -> bool {
    let link = format!("socket:[{inode}]").into_bytes();
    survey.pids.iter().any(|pid| {
        let numbers = procfs::numbers(*pid, "fd").unwrap_or_default();
        numbers.into_iter().any(|fd| procfs::link(*pid, &format!("fd/{fd}")).is_ok_and(|found| found == link))
    })
}

/// An end of a connection in the tree.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    file: OpenFile,
    ends: TcpConnection,
    name: Vec<u8>,
    peer: Vec<u8>,
}

impl Candidate {
    /// An open file of the tree, if it is such an end.
    pub(super) fn of(file: &OpenFile, own: &OwnedFd) -> Result<Option<Self>> {
        let failed = |operation| Error::system::<io::Error>(operation, subject(&file.view));
        let family = Family::of(&file.view, own)?;
        let tcp = matches!(family.domain, AF_INET | AF_INET6) && family.kind == SOCK_STREAM;
        if !tcp || !matches!(family.protocol, 0 | IPPROTO_TCP) {
            return Ok(None);
        }
        let info = Info::of(own).map_err(failed("asking for TCP_INFO"))?;
        if matches!(info.state(), CLOSE | LISTEN) {
            return Ok(None);
        }
        if let Some(refusal) = obstacle(&file.view, own, &info) {
            return Err(Error::refuse(refusal));
        }
        let name = sys::name(own).map_err(failed("getsockname"))?;
        let peer = sys::peer_name(own).map_err(failed("getpeername"))?.unwrap_or_default();
        let ends = ends_of(&name, &peer).ok_or_else(|| {
            let cause = format!("its addresses are {} and {}", show(&name), show(&peer));
            Error::refuse(file.view.refuse("tcp-state", "TCP connection", &cause, CLOSE_IT))
        })?;
        Ok(Some(Self { file: file.clone(), ends, name, peer }))
    }

    fn refuse(&self, code: &'static str, cause: &str, remedy: &str) -> Error {
        Error::refuse(self.file.view.refuse(code, "TCP connection", cause, remedy))
    }
}

/// Captures all connections of the tree; the inodes of their ends.
pub(super) fn look(cx: &mut Capture<'_>, found: &[Candidate]) -> Result<BTreeSet<u64>> {
    let mut done = BTreeSet::new();
    if found.is_empty() {
        return Ok(done);
    }
    let kernel = Diagnosis::open().map_err(Error::system("opening sock_diag", "TCP connections"))?;
    let by = (Instant::now() + PATIENCE).min(cx.request.by.0);
    for candidate in found {
        let inode = candidate.file.view.stat.st_ino;
        if !done.insert(inode) {
            continue;
        }
        let inside = |inode| cx.with_inode(inode).next().is_some();
        let other = other_end(&kernel, &candidate.ends, inside);
        let other = other.map_err(Error::system("asking sock_diag", subject(&candidate.file.view)))?;
        let near = cx.duplicate(&candidate.file)?;
        let work = Work { candidate, near, kernel: &kernel, by };
        match other {
            Other::Inside(inode) => {
                done.insert(inode);
                let second = found.iter().find(|second| second.file.view.stat.st_ino == inode);
                let second = second.ok_or_else(|| Error::refuse(leads_outside(&candidate.file.view, &candidate.ends)))?;
                work.both(cx, second)?;
            }
            Other::Closed => work.closed(cx)?,
            Other::Unaccepted => work.unaccepted(cx)?,
            Other::Outside => return Err(Error::refuse(leads_outside(&candidate.file.view, &candidate.ends))),
        }
    }
    Ok(done)
}

/// A connection that is being captured.
struct Work<'a> {
    candidate: &'a Candidate,
    near: OwnedFd,
    kernel: &'a Diagnosis,
    by: Instant,
}

impl Work<'_> {
    fn settle(&self, far: Option<&OwnedFd>) -> Result<(Option<TcpSocket>, Option<TcpSocket>)> {
        let line = Line { kernel: self.kernel, ends: self.candidate.ends, near: &self.near, far };
        let still = line.settle(self.by);
        let still = still.map_err(Error::system("bringing a connection to rest", subject(&self.candidate.file.view)))?;
        let still = still.ok_or_else(|| {
            let cause = "bytes wait to be sent in it that the other end does not take";
            self.candidate.refuse("tcp-unsent", cause, "try again, or let the program read what was sent")
        })?;
        Ok((still.near, still.far))
    }

    /// The other end, as far as it can be told from this one.
    fn nobody(&self) -> EndRecord {
        let Candidate { name, peer, .. } = self.candidate;
        EndRecord { name: peer.clone(), peer: name.clone(), ..EndRecord::default() }
    }

    /// Both ends are files of the tree.
    fn both(&self, cx: &mut Capture<'_>, second: &Candidate) -> Result<()> {
        let far = cx.duplicate(&second.file)?;
        let (near_seen, far_seen) = self.settle(Some(&far))?;
        let first = end_record(self.candidate, &self.near, near_seen)?;
        let second = end_record(second, &far, far_seen)?;
        match (first, second) {
            // Both have ended: each is a socket whose connection is over.
            (None, None) => Ok(()),
            (Some(first), Some(second)) => record(cx, first, second, Second::Held, 0),
            _ => Err(self.candidate.refuse("tcp-state", "one of its ends has lost the other", CLOSE_IT)),
        }
    }

    /// The other end is closed.
    fn closed(&self, cx: &mut Capture<'_>) -> Result<()> {
        let (near_seen, _) = self.settle(None)?;
        let Some(first) = end_record(self.candidate, &self.near, near_seen)? else { return Ok(()) };
        // Its end of the stream must have arrived: it may not have gone without one.
        if near_seen.is_none_or(|seen| seen.state != CLOSE_WAIT) {
            return Err(Error::refuse(leads_outside(&self.candidate.file.view, &self.candidate.ends)));
        }
        let second = self.nobody();
        record(cx, first, second, Second::Closed, 0)
    }

    /// A listening socket has not accepted the other end yet.
    fn unaccepted(&self, cx: &mut Capture<'_>) -> Result<()> {
        let listening = cx.files.iter().filter(|file| file.view.starts_with("socket:["));
        let mut listening = listening.filter_map(|file| cx.duplicate(file).ok());
        if !listening.any(|file| listens_for(&file, self.candidate.ends.remote)) {
            return Err(Error::refuse(leads_outside(&self.candidate.file.view, &self.candidate.ends)));
        }
        let info = Info::of(&self.near).map_err(Error::system("asking for TCP_INFO", subject(&self.candidate.file.view)))?;
        let (near_seen, _) = self.settle(None)?;
        if info.sent() != Some(0) {
            let cause = "the listening socket of the tree that it leads to has not accepted it yet, and what was sent through it cannot be seen";
            return Err(self.candidate.refuse("tcp-unaccepted", cause, "try again when the program has accepted it"));
        }
        let first = end_record(self.candidate, &self.near, near_seen)?;
        let first = first.ok_or_else(|| self.candidate.refuse("tcp-state", "it has ended meanwhile", "try again"))?;
        let second = self.nobody();
        record(cx, first, second, Second::Unaccepted, info.word(LAST_SENT).unwrap_or(0))
    }
}

fn record(cx: &mut Capture<'_>, first: EndRecord, second: EndRecord, standing: Second, waited: u32) -> Result<()> {
    let id: ObjectId = cx.new_id();
    let mut record = ConnectionRecord { first: Some(first), second: Some(second), waited, ..ConnectionRecord::default() };
    record.set_standing(standing);
    cx.frame(id, &record)
}

/// What is kept of an end, as the kernel saw it last; `None`: its connection is over.
fn end_record(end: &Candidate, file: &OwnedFd, seen: Option<TcpSocket>) -> Result<Option<EndRecord>> {
    let failed = |operation| Error::system::<io::Error>(operation, subject(&end.file.view));
    let info = Info::of(file).map_err(failed("asking for TCP_INFO"))?;
    if info.state() == CLOSE {
        return Ok(None);
    }
    let seen = seen.ok_or_else(|| Error::Changed {
        subject: subject(&end.file.view),
        what: "the connection is not known to the kernel".to_owned(),
    })?;
    let received = queue(file).map_err(failed("peeking"))?;
    let ended = u32::from(matches!(info.state(), CLOSE_WAIT | LAST_ACK | CLOSING));
    let missing = i64::from(seen.incoming) - i64::try_from(received.len()).unwrap_or(i64::MAX);
    // The unread end of the stream counts as a byte.
    if missing != 0 && missing != i64::from(ended) {
        let cause = format!("{missing} bytes wait behind an urgent one (`MSG_OOB`) and cannot be seen");
        return Err(end.refuse("tcp-urgent", &cause, READ_FIRST));
    }
    Ok(Some(EndRecord {
        file: end.file.id.0,
        name: end.name.clone(),
        peer: end.peer.clone(),
        received,
        shut: seen.shut.into(),
        mss: info.word(OWN_MSS).filter(|mss| SETTABLE_MSS.contains(mss)).unwrap_or(0),
    }))
}

/// What waits to be read, left where it is.
pub(super) fn queue(file: &OwnedFd) -> io::Result<Vec<u8>> {
    let waiting = usize::try_from(rustix::io::ioctl_fionread(file)?).map_err(io::Error::other)?;
    // With nothing to show, the kernel would report an error to us that is the program's.
    if waiting == 0 {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; waiting];
    let seen = line::peek(file, &mut bytes)?;
    bytes.truncate(seen);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::testing;

    #[test]
    fn where_the_other_end_of_a_connection_is() {
        let kernel = Diagnosis::open().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ends = TcpConnection { local: client.local_addr().unwrap(), remote: client.peer_addr().unwrap() };
        let other = |inside: bool| other_end(&kernel, &ends, |_| inside).unwrap();
        assert_eq!(other(true), Other::Unaccepted);
        assert!(listens_for(&OwnedFd::from(listener.try_clone().unwrap()), ends.remote));
        assert!(!listens_for(&OwnedFd::from(listener.try_clone().unwrap()), ends.local));
        let server = listener.accept().unwrap().0;
        assert!(matches!(other(true), Other::Inside(_)));
        assert_eq!(other(false), Other::Outside);
        drop(server);
        assert_eq!(other(false), Other::Closed);
        let far = TcpConnection { local: ends.local, remote: "192.0.2.1:80".parse().unwrap() };
        assert_eq!(other_end(&kernel, &far, |_| true).unwrap(), Other::Outside);
    }

    #[test]
    fn addresses_of_ipv4_in_ipv6_are_those_of_ipv4() {
        let listener = std::net::TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = OwnedFd::from(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap());
        let server = OwnedFd::from(listener.accept().unwrap().0);
        let ends = |file: &OwnedFd| ends_of(&sys::name(file).unwrap(), &sys::peer_name(file).unwrap().unwrap()).unwrap();
        assert_eq!(ends(&client), ends(&server).reversed());
        assert!(Diagnosis::open().unwrap().tcp(&ends(&server)).unwrap().is_some_and(|server| server.inode > 0));
    }

    #[test]
    fn an_urgent_byte_and_a_connection_being_made_are_refused() {
        use std::os::fd::AsRawFd as _;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = OwnedFd::from(listener.accept().unwrap().0);
        let view = testing::view("socket:[1]", 2);
        let found = |file: &OwnedFd| obstacle(&view, file, &Info::of(file).unwrap()).map(|refusal| refusal.code);
        assert_eq!(found(&server), None);
        nix::sys::socket::send(client.as_raw_fd(), b"!", nix::sys::socket::MsgFlags::MSG_OOB).unwrap();
        assert_eq!(found(&server), Some("tcp-urgent"));
    }
}
