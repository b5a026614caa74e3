//! What the kernel says of one UNIX socket (`sock_diag(7)`, `UNIX_DIAG`): its state, its peer, who waits at its door; and of
//! one TCP socket, found by its addresses (`INET_DIAG`). And the end of TCP connections that nobody holds any more
//! (`SOCK_DESTROY`).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const UDIAG_SHOW: u32 = 0x3f;
const UNIX_DIAG_VFS: u16 = 1;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_ICONS: u16 = 3;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_SHUTDOWN: u16 = 6;
const INET_DIAG_INFO: u16 = 2;
/// `<linux/inet_diag.h>`, Linux 4.14.
const INET_DIAG_MD5SIG: u16 = 18;
const INET_DIAG_SHUTDOWN: u16 = 8;
/// `TCP_LISTEN` of `include/net/tcp_states.h`.
const LISTEN: u8 = 10;

/// A UNIX socket as the kernel sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UnixSocket {
    /// `SOCK_STREAM`, `SOCK_DGRAM` or `SOCK_SEQPACKET`.
    pub kind: u8,
    /// 1 connected, 7 neither connected nor listening, 10 listening.
    pub state: u8,
    /// Inode of the peer; 0: the peer is closed or was not accepted yet; `None`: it has no peer.
    pub peer: Option<u32>,
    /// Inode and device of the file in the file system that bears its name.
    pub file: Option<(u32, u32)>,
    /// Inodes of the sockets that wait to be accepted, in their order.
    pub waiting: Vec<u32>,
    /// Bytes to be read, or how many wait to be accepted.
    pub incoming: u32,
    /// Bytes written and not yet read, or the length of the backlog.
    pub outgoing: u32,
    /// Which halves are shut down: 1 reading, 2 writing.
    pub shut: u8,
}

/// A socket to the kernel on which [`UnixSocket`]s are asked for.
#[derive(Debug)]
pub struct Diagnosis {
    socket: OwnedFd,
}

impl Diagnosis {
    /// Opens the socket to the kernel.
    pub fn open() -> io::Result<Self> {
        let protocol = Some(netlink::SOCK_DIAG);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        Ok(Self { socket })
    }

    /// The UNIX socket with an inode, in the network namespace of this process; `None` when there is none.
    pub fn unix(&self, inode: u32) -> io::Result<Option<UnixSocket>> {
        send(&self.socket, &request(inode, 0), SendFlags::empty())?;
        let mut answer = vec![0_u8; 1 << 16];
        let (len, _) = recv(&self.socket, answer.as_mut_slice(), RecvFlags::empty())?;
        let answer = answer.get(..len).unwrap_or_default();
        match word16(answer, 4) {
            Some(SOCK_DIAG_BY_FAMILY) => Ok(parse(answer)),
            Some(NLMSG_ERROR) => match word32(answer, 16).map(|code| code.cast_signed().wrapping_neg()) {
                Some(libc::ENOENT) => Ok(None),
                Some(code) => Err(io::Error::from_raw_os_error(code)),
                None => Err(io::Error::from(io::ErrorKind::InvalidData)),
            },
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }

    /// The UNIX sockets in the network namespace of this process, by inode: in one pass, while the kernel looks through all of
    /// them for each that is asked for by [`Self::unix`]. One that came or went meanwhile may be missing, and so may one with
    /// so many at its door that no message holds them, and all behind it.
    pub fn unix_all(&self) -> io::Result<BTreeMap<u32, UnixSocket>> {
        send(&self.socket, &request(0, NLM_F_DUMP), SendFlags::empty())?;
        let mut all = BTreeMap::new();
        let mut answer = vec![0_u8; 1 << 16];
        loop {
            let (len, _) = recv(&self.socket, answer.as_mut_slice(), RecvFlags::empty())?;
            match gather(answer.get(..len).unwrap_or_default(), &mut all)? {
                Listing::GoesOn => {}
                Listing::Ends => return Ok(all),
            }
        }
    }
}

/// Whether more messages of a listing follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Listing {
    GoesOn,
    Ends,
}

/// Adds the sockets of some messages of a listing.
fn gather(mut messages: &[u8], all: &mut BTreeMap<u32, UnixSocket>) -> io::Result<Listing> {
    let mutilated = || io::Error::from(io::ErrorKind::InvalidData);
    if messages.is_empty() {
        return Err(mutilated());
    }
    while !messages.is_empty() {
        let len = word32(messages, 0).and_then(|len| usize::try_from(len).ok()).filter(|len| *len >= 16);
        let len = len.ok_or_else(mutilated)?;
        let message = messages.get(..len).ok_or_else(mutilated)?;
        match word16(message, 4) {
            Some(NLMSG_DONE) => return Ok(Listing::Ends),
            Some(NLMSG_ERROR) => {
                let code = word32(message, 16).map(|code| code.cast_signed().wrapping_neg()).ok_or_else(mutilated)?;
                return Err(io::Error::from_raw_os_error(code));
            }
            Some(SOCK_DIAG_BY_FAMILY) => {
                let inode = word32(message, 20).ok_or_else(mutilated)?;
                all.insert(inode, parse(message).ok_or_else(mutilated)?);
            }
            _ => {}
        }
        messages = messages.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Listing::GoesOn)
}

/// Both ends of a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpConnection {
    /// The local address.
    pub local: SocketAddr,
    /// The remote address.
    pub remote: SocketAddr,
}

impl TcpConnection {
    /// As the other end has it.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { local: self.remote, remote: self.local }
    }
}

/// A TCP socket as the kernel sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpSocket {
    /// As in `TCP_INFO` (`include/net/tcp_states.h`).
    pub state: u8,
    /// Its inode; 0: nobody holds it any more, or it was not accepted yet.
    pub inode: u32,
    /// Bytes to be read; the end of the stream, unread, counts as one.
    pub incoming: u32,
    /// Bytes written that the peer has not acknowledged; the end of the stream counts as one.
    pub outgoing: u32,
    /// Which halves are shut down: 1 reading, 2 writing.
    pub shut: u8,
}

impl Diagnosis {
    /// Ends a TCP connection, also one in `TIME_WAIT` (not on every kernel). Needs `CAP_NET_ADMIN`.
    pub fn destroy(&self, connection: &TcpConnection) -> io::Result<()> {
        send(&self.socket, &about(SOCK_DESTROY, NLM_F_ACK, connection), SendFlags::empty())?;
        let mut answer = vec![0_u8; 1 << 12];
        let (len, _) = recv(&self.socket, answer.as_mut_slice(), RecvFlags::empty())?;
        match word32(answer.get(..len).unwrap_or_default(), 16).map(|code| code.cast_signed().wrapping_neg()) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }
}

impl Diagnosis {
    /// The TCP socket with these addresses, in the network namespace of this process; `None` when there is none.
    pub fn tcp(&self, connection: &TcpConnection) -> io::Result<Option<TcpSocket>> {
        send(&self.socket, &about(SOCK_DIAG_BY_FAMILY, 0, connection), SendFlags::empty())?;
        let mut answer = vec![0_u8; 1 << 12];
        let (len, _) = recv(&self.socket, answer.as_mut_slice(), RecvFlags::empty())?;
        let answer = answer.get(..len).unwrap_or_default();
        match word16(answer, 4) {
            // Where there is none, the kernel names the listening socket that a client would reach.
            Some(SOCK_DIAG_BY_FAMILY) => Ok(parse_tcp(answer).filter(|found| found.state != LISTEN)),
            Some(NLMSG_ERROR) => match word32(answer, 16).map(|code| code.cast_signed().wrapping_neg()) {
                Some(libc::ENOENT) => Ok(None),
                Some(code) => Err(io::Error::from_raw_os_error(code)),
                None => Err(io::Error::from(io::ErrorKind::InvalidData)),
            },
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }
}

impl Diagnosis {
    /// Whether a listening TCP socket has keys by which segments are signed (`TCP_MD5SIG`, tcp(7)). Without `CAP_NET_ADMIN` it
    /// never seems so.
    pub fn signs(&self, listener: SocketAddr) -> io::Result<bool> {
        let nobody = match listener {
            SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
            SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
        };
        let ends = TcpConnection { local: listener, remote: nobody };
        let mut question = about(SOCK_DIAG_BY_FAMILY, 0, &ends);
        // `idiag_ext`: keys come with TCP_INFO only (`inet_sk_diag_fill` in the kernel).
        question.get_mut(18).into_iter().for_each(|wanted| *wanted |= 1 << (INET_DIAG_INFO - 1));
        send(&self.socket, &question, SendFlags::empty())?;
        let mut answer = vec![0_u8; 1 << 14];
        let (len, _) = recv(&self.socket, answer.as_mut_slice(), RecvFlags::empty())?;
        let answer = answer.get(..len).unwrap_or_default();
        Ok(word16(answer, 4) == Some(SOCK_DIAG_BY_FAMILY) && has_attribute(answer, INET_DIAG_MD5SIG))
    }
}

/// Whether an attribute, not an empty one, follows a `struct inet_diag_msg`.
fn has_attribute(message: &[u8], wanted: u16) -> bool {
    let mut rest = message.get(88..).unwrap_or_default();
    while let (Some(len), Some(kind)) = (word16(rest, 0), word16(rest, 2)) {
        if kind == wanted && len > 4 {
            return true;
        }
        rest = rest.get(usize::from(len.max(4)).next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// Reads `struct inet_diag_msg` and what follows it.
fn parse_tcp(message: &[u8]) -> Option<TcpSocket> {
    let mut found = TcpSocket {
        state: *message.get(17)?,
        incoming: word32(message, 72)?,
        outgoing: word32(message, 76)?,
        inode: word32(message, 84)?,
        shut: 0,
    };
    let mut rest = message.get(88..).unwrap_or_default();
    while let (Some(len), Some(kind)) = (word16(rest, 0), word16(rest, 2)) {
        let len = usize::from(len);
        let body = rest.get(4..len)?;
        if kind == INET_DIAG_SHUTDOWN {
            found.shut = *body.first()?;
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(found)
}

/// `struct inet_diag_req_v2` behind its header.
fn about(what: u16, flags: u16, connection: &TcpConnection) -> Vec<u8> {
    let family: u8 = if connection.local.is_ipv4() { 2 } else { 10 };
    let octets = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(ip) => [&ip.octets()[..], &[0; 12]].concat(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut out = Vec::with_capacity(72);
    out.extend_from_slice(&72_u32.to_ne_bytes());
    out.extend_from_slice(&what.to_ne_bytes());
    out.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[family, 6, 1 << (INET_DIAG_SHUTDOWN - 1), 0]);
    out.extend_from_slice(&u32::MAX.to_ne_bytes());
    out.extend_from_slice(&connection.local.port().to_be_bytes());
    out.extend_from_slice(&connection.remote.port().to_be_bytes());
    out.extend(octets(&connection.local));
    out.extend(octets(&connection.remote));
    // The device that a link-local address is of.
    let device = if let SocketAddr::V6(v6) = connection.local { v6.scope_id() } else { 0 };
    out.extend_from_slice(&device.to_ne_bytes());
    out.extend_from_slice(&[0xff; 8]);
    out
}

fn request(inode: u32, flags: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(40);
    out.extend_from_slice(&40_u32.to_ne_bytes());
    out.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    out.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[1, 0, 0, 0]);
    for word in [u32::MAX, inode, UDIAG_SHOW, u32::MAX, u32::MAX] {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    out
}

fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn parse(message: &[u8]) -> Option<UnixSocket> {
    let mut found = UnixSocket { kind: *message.get(17)?, state: *message.get(18)?, ..UnixSocket::default() };
    let mut rest = message.get(32..)?;
    while let (Some(len), Some(kind)) = (word16(rest, 0), word16(rest, 2)) {
        let len = usize::from(len);
        let body = rest.get(4..len)?;
        match kind {
            UNIX_DIAG_VFS => found.file = Some((word32(body, 0)?, word32(body, 4)?)),
            UNIX_DIAG_PEER => found.peer = word32(body, 0),
            UNIX_DIAG_ICONS => found.waiting = body.as_chunks::<4>().0.iter().map(|w| u32::from_ne_bytes(*w)).collect(),
            UNIX_DIAG_RQLEN => (found.incoming, found.outgoing) = (word32(body, 0)?, word32(body, 4)?),
            UNIX_DIAG_SHUTDOWN => found.shut = *body.first()?,
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::{Outgoing, pair, send as send_message};

    #[test]
    fn both_ends_of_a_pair_name_each_other() {
        let [a, b] = pair(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        send_message(&a, &Outgoing { bytes: b"12345", ..Outgoing::default() }, 0).unwrap();
        let inode = |fd: &OwnedFd| u32::try_from(rustix::fs::fstat(fd).unwrap().st_ino).unwrap();
        let kernel = Diagnosis::open().unwrap();
        let (x, y) = (kernel.unix(inode(&a)).unwrap().unwrap(), kernel.unix(inode(&b)).unwrap().unwrap());
        assert_eq!((x.peer, y.peer), (Some(inode(&b)), Some(inode(&a))));
        assert_eq!((x.kind, x.state, y.incoming), (1, 1, 5));
        drop(b);
        // A process that another test is just starting holds it for a moment.
        let alone = (0..1_000_000).any(|_| kernel.unix(inode(&a)).unwrap().unwrap().peer == Some(0));
        assert!(alone, "the other end is closed");
        assert_eq!(kernel.unix(1).unwrap(), None);
    }

    #[test]
    fn a_listing_says_of_each_what_is_said_of_one() {
        let pairs: Vec<[OwnedFd; 2]> =
            (0..300).map(|_| pair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0).unwrap()).collect();
        send_message(&pairs[0][0], &Outgoing { bytes: b"12345", ..Outgoing::default() }, 0).unwrap();
        let kernel = Diagnosis::open().unwrap();
        let all = kernel.unix_all().unwrap();
        for end in pairs.iter().flatten() {
            let inode = u32::try_from(rustix::fs::fstat(end).unwrap().st_ino).unwrap();
            assert_eq!(all.get(&inode), kernel.unix(inode).unwrap().as_ref());
        }
        // The next question gets its own answer.
        assert_eq!(kernel.unix(1).unwrap(), None);
    }

    #[test]
    fn a_listener_with_keys_signs() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let kernel = Diagnosis::open().unwrap();
        assert!(!kernel.signs(address).unwrap());
        // `struct tcp_md5sig`: an address in 128 bytes, flags, prefix, length of the key, index, key.
        let octets = [&2_u16.to_ne_bytes()[..], &address.port().to_be_bytes(), &[127, 0, 0, 1], &[0; 120]].concat();
        let key = [&octets[..], &[0, 0, 3, 0, 0, 0, 0, 0], b"abc", &[0; 77]].concat();
        let rules = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN));
        if crate::socket::set_option(&listener, libc::IPPROTO_TCP, 14, &key).is_ok() && rules {
            assert!(kernel.signs(address).unwrap());
        }
    }

    #[test]
    fn an_attribute_is_found_where_it_is() {
        let row = |kind: u16, body: &[u8]| {
            let len = u16::try_from(4 + body.len()).unwrap();
            [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), body].concat()
        };
        let message = |rows: &[Vec<u8>]| [vec![0; 88], rows.concat()].concat();
        assert!(has_attribute(&message(&[row(8, &[0; 4]), row(18, &[1; 100])]), INET_DIAG_MD5SIG));
        assert!(!has_attribute(&message(&[row(8, &[0; 4]), row(18, &[])]), INET_DIAG_MD5SIG));
        for broken in [&[][..], &[0; 3], &[0; 200], &[255; 90]] {
            assert!(!has_attribute(broken, INET_DIAG_MD5SIG));
        }
    }

    #[test]
    fn a_mutilated_listing_is_none() {
        let word =
            |kind: u16| [&20_u32.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &(-1_i32).to_ne_bytes()].concat();
        let gathered = |bytes: &[u8]| gather(bytes, &mut BTreeMap::new()).map_err(|error| error.kind());
        assert_eq!(gathered(&word(NLMSG_DONE)), Ok(Listing::Ends));
        assert_eq!(gathered(&word(NLMSG_ERROR)), Err(io::ErrorKind::PermissionDenied));
        for broken in [&[][..], &[0; 3], &[0; 64], &[255; 64], &word(SOCK_DIAG_BY_FAMILY)] {
            assert_eq!(gathered(broken), Err(io::ErrorKind::InvalidData));
        }
    }

    #[test]
    fn a_tcp_socket_is_found_by_its_addresses() {
        use std::io::Write as _;
        use std::net::{Shutdown, TcpListener, TcpStream};
        use std::os::fd::AsFd as _;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let kernel = Diagnosis::open().unwrap();
        let ends = TcpConnection { local: client.local_addr().unwrap(), remote: client.peer_addr().unwrap() };
        let inode = |fd: &TcpStream| u32::try_from(rustix::fs::fstat(fd.as_fd()).unwrap().st_ino).unwrap();
        assert_eq!(kernel.tcp(&ends).unwrap().unwrap().inode, inode(&client));
        assert_eq!(kernel.tcp(&ends.reversed()).unwrap().unwrap().inode, 0);
        let server = listener.accept().unwrap().0;
        client.write_all(b"12345").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (near, far) = (kernel.tcp(&ends).unwrap().unwrap(), kernel.tcp(&ends.reversed()).unwrap().unwrap());
        assert_eq!((near.shut, far.inode, far.incoming, far.shut), (2, inode(&server), 6, 1));
        let nobody = TcpConnection { local: "127.0.0.1:1".parse().unwrap(), remote: ends.remote };
        assert_eq!(kernel.tcp(&nobody).unwrap(), None);
        // A client of the listening socket that is not there.
        assert_eq!(kernel.tcp(&nobody.reversed()).unwrap(), None);
    }

    #[test]
    fn a_mutilated_answer_is_no_socket() {
        assert_eq!(parse_tcp(&[0; 40]), None);
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[9; 33]).map(|s| s.kind), Some(9));
        assert_eq!(parse(&[&[0; 32][..], &[2, 0, 9, 0]].concat()), None);
    }
}
