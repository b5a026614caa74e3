//! TCP and UDP sockets that hold no conversation: listening, bound, fresh, and UDP sockets with the address of a peer. TCP
//! connections are in `tcp.rs` and `tcp_restore.rs`.
//!
//! Captured: addresses, options, backlog, a TCP socket whose connection is over, with what is still to be read in it. Not
//! captured: datagrams that wait to be read (UDP may lose them at any time), clients outside of the tree that wait to be
//! accepted (they are reset), multicast memberships (such a socket is refused). Refused: connected MPTCP, raw and other
//! protocols. A port is bound again at once although old
//! connections on it still close: by `SO_REUSEADDR`, and where the program had not set that itself by ending those
//! connections (`SOCK_DESTROY`, which needs `CAP_NET_ADMIN`), or by waiting for their end. Reads: `TCP_INFO`, `/proc/net/tcp`, `/proc/net/igmp`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use hdcr_sys::sock_diag::{Diagnosis, TcpConnection};
use hdcr_sys::socket as sys;
use nix::libc::{self, AF_INET, AF_INET6, IPPROTO_TCP, SO_REUSEADDR, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::line::{self, CLOSE, Info, LISTEN};
use super::{Family, SocketRecord, options, subject, tcp};
use crate::capture::Capture;
use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::Pid;
use crate::model::ObjectId;
use crate::procfs;
use crate::resource::FileView;
use crate::survey::Survey;

const MPTCP: i32 = 262;
/// Places in `struct tcp_info`: for a listening socket, how many wait and how many may.
const INFO_PENDING: usize = 24;
const INFO_BACKLOG: usize = 28;

/// What is kept of a TCP or UDP socket.
#[derive(Clone, PartialEq, prost::Message)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the format")]
pub(super) struct InetRecord {
    /// Its address.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) name: Vec<u8>,
    /// Address of the peer of a UDP socket; empty: none.
    #[prost(bytes = "vec", tag = "2")]
    peer: Vec<u8>,
    #[prost(bool, tag = "3")]
    pub(super) listening: bool,
    #[prost(uint32, tag = "4")]
    backlog: u32,
    /// A TCP socket whose connection is over.
    #[prost(bool, tag = "5")]
    over: bool,
    /// An end of a connection, which has a record of its own.
    #[prost(bool, tag = "6")]
    pub(super) connected: bool,
    /// What is still to be read where the connection is over.
    #[prost(bytes = "vec", tag = "7")]
    received: Vec<u8>,
    /// It is still to be reported that the peer has reset the connection.
    #[prost(bool, tag = "8")]
    reset: bool,
}

/// What a look at a socket shows.
#[derive(Debug)]
struct Look {
    state: u8,
    info: Vec<u8>,
    name: Vec<u8>,
    peer: Vec<u8>,
}

impl Look {
    fn at(view: &FileView, file: &OwnedFd, family: Family) -> Result<Self> {
        let failed = |operation| Error::system::<io::Error>(operation, subject(view));
        let info = match family.kind {
            SOCK_STREAM => {
                sys::option(file, IPPROTO_TCP, libc::TCP_INFO, 256).map_err(failed("asking for TCP_INFO"))?
            }
            _ => Vec::new(),
        };
        Ok(Self {
            state: info.first().copied().unwrap_or(CLOSE),
            info,
            name: sys::name(file).map_err(failed("getsockname"))?,
            peer: sys::peer_name(file).map_err(failed("getpeername"))?.unwrap_or_default(),
        })
    }

    fn word(&self, at: usize) -> u32 {
        let bytes = self.info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    }

    /// Whether it has, or is to have, a connection.
    fn connected(&self, family: Family) -> bool {
        family.kind == SOCK_STREAM && !matches!(self.state, CLOSE | LISTEN)
    }

    /// What stands in the way.
    fn refusal(&self, view: &FileView, file: &OwnedFd, family: Family) -> Option<Refusal> {
        let remedy = "close it before the checkpoint";
        let protocols: &[i32] =
            if family.kind == SOCK_STREAM { &[0, IPPROTO_TCP, MPTCP] } else { &[0, libc::IPPROTO_UDP] };
        if !matches!(family.kind, SOCK_STREAM | SOCK_DGRAM) || !protocols.contains(&family.protocol) {
            let cause =
                format!("type {} and protocol {} cannot be made again with their state", family.kind, family.protocol);
            return Some(view.refuse("raw-socket", "raw or unusual inet socket", &cause, remedy));
        }
        if self.connected(family) && family.protocol == MPTCP {
            let cause = format!("it is connected from {} to {} by MPTCP", show(&self.name), show(&self.peer));
            return Some(view.refuse("tcp-established", "established TCP connection", &cause, remedy));
        }
        if family.kind == SOCK_DGRAM && joined(file, family) {
            return Some(view.refuse(
                "multicast-membership",
                "UDP socket",
                "it is a member of a multicast group",
                remedy,
            ));
        }
        None
    }
}

/// Whether keys belong to a listening socket. Only whoever rules the network sees them.
fn signs(name: &[u8]) -> bool {
    let asked = parse(name).map(|address| Diagnosis::open().and_then(|kernel| kernel.signs(address)));
    asked.is_some_and(|answer| answer.unwrap_or(false))
}

/// An address as people write it.
pub(super) fn show(address: &[u8]) -> String {
    parse(address).map_or_else(|| "an unknown address".to_owned(), |address| address.to_string())
}

pub(super) fn parse(address: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(address.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(address.get(2..4)?.try_into().ok()?);
    match i32::from(family) {
        AF_INET => {
            let ip: [u8; 4] = address.get(4..8)?.try_into().ok()?;
            Some((Ipv4Addr::from(ip), port).into())
        }
        AF_INET6 => {
            let ip: [u8; 16] = address.get(8..24)?.try_into().ok()?;
            Some((Ipv6Addr::from(ip), port).into())
        }
        _ => None,
    }
}

/// Whether the socket joined a multicast group: it is asked about every group that its network namespace knows.
fn joined(file: &OwnedFd, family: Family) -> bool {
    let (level, file_name) =
        if family.domain == AF_INET { (libc::IPPROTO_IP, "igmp") } else { (libc::IPPROTO_IPV6, "igmp6") };
    let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file_name}")).unwrap_or_default();
    let groups = if family.domain == AF_INET { groups_v4(&text) } else { groups_v6(&text) };
    groups.iter().any(|(device, address)| sys::in_multicast_group(file, level, *device, address).unwrap_or(false))
}

/// Devices and groups in `/proc/net/igmp`: a line for each device, then a line for each group.
fn groups_v4(text: &str) -> Vec<(u32, Vec<u8>)> {
    let mut device = 0;
    let mut found = Vec::new();
    for line in text.lines().skip(1) {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if line.starts_with(char::is_numeric) {
            device = first.parse().unwrap_or(0);
        } else if let Ok(group) = u32::from_str_radix(first, 16) {
            let family = u16::try_from(AF_INET).unwrap_or_default();
            found.push((device, [&family.to_ne_bytes()[..], &[0; 2], &group.to_ne_bytes(), &[0; 8]].concat()));
        }
    }
    found
}

/// The same in `/proc/net/igmp6`: device, its name, group.
fn groups_v6(text: &str) -> Vec<(u32, Vec<u8>)> {
    let parse = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let device = words.next()?.parse().ok()?;
        let group = u128::from_str_radix(words.nth(1)?, 16).ok()?;
        let family = u16::try_from(AF_INET6).ok()?;
        Some((device, [&family.to_ne_bytes()[..], &[0; 6], &group.to_be_bytes(), &[0; 4]].concat()))
    };
    text.lines().filter_map(parse).collect()
}

pub(super) fn survey(survey: &mut Survey<'_>, view: &FileView, file: &OwnedFd, family: Family) -> Result<()> {
    if !matches!(family.kind, SOCK_STREAM | SOCK_DGRAM) {
        let look = Look { state: CLOSE, info: Vec::new(), name: Vec::new(), peer: Vec::new() };
        look.refusal(view, file, family).into_iter().for_each(|refusal| survey.refuse(refusal));
        return Ok(());
    }
    let look = Look::at(view, file, family)?;
    if let Some(refusal) = look.refusal(view, file, family) {
        survey.refuse(refusal);
    } else if look.connected(family) {
        let info = Info::of(file).map_err(Error::system("asking for TCP_INFO", subject(view)))?;
        tcp::survey(survey, view, file, &info)?;
    }
    if look.state == LISTEN && signs(&look.name) {
        let cause = "its segments are signed (TCP_MD5SIG), and clients without the key would get in";
        survey.refuse(view.refuse("tcp-signed", "listening TCP socket", cause, "close it before the checkpoint"));
    }
    if look.state == LISTEN && look.word(INFO_PENDING) > 0 {
        let becomes = "are reset when the program is killed for a rollback";
        let cause = format!("{} clients wait to be accepted", look.word(INFO_PENDING));
        survey.note(view.refuse("tcp-pending", "listening TCP socket", &cause, becomes));
    }
    if family.kind == SOCK_DGRAM && rustix::io::ioctl_fionread(file).is_ok_and(|len| len > 0) {
        survey.note(view.refuse(
            "udp-queue",
            "UDP socket",
            "datagrams wait to be read",
            "are lost after a restore, as UDP allows",
        ));
    }
    Ok(())
}

pub(super) fn capture(cx: &mut Capture<'_>, view: &FileView, file: &OwnedFd, record: &mut SocketRecord) -> Result<()> {
    let family = Family { domain: record.domain, kind: record.kind, protocol: record.protocol };
    let look = Look::at(view, file, family)?;
    if let Some(refusal) = look.refusal(view, file, family) {
        return Err(Error::refuse(refusal));
    }
    if look.connected(family) {
        if !cx.queues.as_ref().is_some_and(|queues| queues.connects(view.stat.st_ino)) {
            return Err(Error::Changed { subject: subject(view), what: "it is connected now".to_owned() });
        }
        record.inet = Some(InetRecord { name: look.name, connected: true, ..InetRecord::default() });
        return Ok(());
    }
    let mut polled = [PollFd::new(file, PollFlags::RDHUP)];
    poll(&mut polled, Some(&Timespec::default())).map_err(Error::system("poll", subject(view)))?;
    let events = polled.first().map_or(PollFlags::empty(), PollFd::revents);
    let listening = look.state == LISTEN;
    let over = family.kind == SOCK_STREAM && !listening && events.contains(PollFlags::RDHUP);
    let received = if over { tcp::queue(file).map_err(Error::system("peeking", subject(view)))? } else { Vec::new() };
    record.inet = Some(InetRecord {
        backlog: look.word(INFO_BACKLOG),
        name: look.name,
        peer: look.peer,
        listening,
        over,
        received,
        reset: over && events.contains(PollFlags::ERR),
        connected: false,
    });
    Ok(())
}

pub(super) fn restore(id: ObjectId, file: OwnedFd, record: &SocketRecord, inet: &InetRecord) -> Result<OwnedFd> {
    let failed = |operation| Error::system::<io::Error>(operation, id);
    if inet.over {
        return finished(record.domain, inet).map_err(failed("making a TCP socket whose connection is over"));
    }
    let tcp = record.kind == SOCK_STREAM;
    options::apply(&file, &record.options).map_err(failed("setting socket options"))?;
    let address = parse(&inet.name).filter(|address| address.port() != 0 || !address.ip().is_unspecified());
    let wanted = options::int(&record.options, SOL_SOCKET, SO_REUSEADDR).unwrap_or(0);
    if address.is_some() {
        if tcp {
            sys::set_option_int(&file, SOL_SOCKET, SO_REUSEADDR, 1).map_err(failed("setting SO_REUSEADDR"))?;
        }
        let taken = |error| if in_use(&error) { port_taken(&inet.name) } else { failed("binding a socket")(error) };
        await_port(&file, &inet.name, inet.listening.then_some(inet.backlog), tcp).map_err(taken)?;
        sys::set_option_int(&file, SOL_SOCKET, SO_REUSEADDR, wanted).map_err(failed("setting SO_REUSEADDR"))?;
    } else if inet.listening {
        return Err(Error::Unsound(format!("{id} listens without an address")));
    }
    if !inet.peer.is_empty() {
        sys::connect(&file, &inet.peer).map_err(failed("connecting a UDP socket"))?;
    }
    Ok(file)
}

pub(super) fn in_use(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EADDRINUSE)
}

/// [`take_port`], and where the remains of old connections hold the port that may not be ended by this user, once they have
/// ended by themselves, unless that takes longer than anybody waits for a restore: the kernel keeps them for a minute.
pub(super) fn await_port(file: &OwnedFd, name: &[u8], backlog: Option<u32>, tcp: bool) -> io::Result<()> {
    const STEP: Duration = Duration::from_millis(200);
    // Twenty seconds. Who has more patience than that tries again: by then it is known what is in the way.
    const STEPS: usize = 100;
    for _ in 0..STEPS {
        match take_port(file, name, backlog, tcp) {
            Err(error) if in_use(&error) && tcp && remains(name).is_some() => std::thread::sleep(STEP),
            other => return other,
        }
    }
    take_port(file, name, backlog, tcp)
}

/// The old connections of a port, when nobody holds a socket of it.
fn remains(name: &[u8]) -> Option<Vec<Entry>> {
    let port = parse(name)?.port();
    let found: Vec<Entry> = entries().into_iter().filter(|entry| entry.ends.local.port() == port).collect();
    (!found.is_empty() && found.iter().all(|entry| entry.inode == 0)).then_some(found)
}

/// Binds, and listens where a backlog is given. Where only the remains of old connections hold the port, they are ended
/// first.
pub(super) fn take_port(file: &OwnedFd, name: &[u8], backlog: Option<u32>, tcp: bool) -> io::Result<()> {
    let try_it = || {
        // A first try may have bound it and failed only to listen.
        if sys::name(file)? != name {
            sys::bind(file, name)?;
        }
        backlog.map_or(Ok(()), |backlog| listen(file, backlog))
    };
    match try_it() {
        Err(error) if in_use(&error) && tcp => {
            let Some(found) = remains(name) else { return Err(error) };
            let kernel = Diagnosis::open()?;
            for entry in &found {
                match kernel.destroy(&entry.ends) {
                    // It has ended by itself meanwhile.
                    Err(gone) if gone.raw_os_error() == Some(libc::ENOENT) => {}
                    // Not allowed, or not known to this kernel.
                    Err(_) => return Err(error),
                    Ok(()) => {}
                }
            }
            try_it()
        }
        other => other,
    }
}

fn listen(file: &OwnedFd, backlog: u32) -> io::Result<()> {
    Ok(rustix::net::listen(file, i32::try_from(backlog).unwrap_or(i32::MAX))?)
}

/// A line of `/proc/net/tcp`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    ends: TcpConnection,
    /// 0: it belongs to nobody any more.
    inode: u64,
}

/// All TCP sockets of this network namespace that have an address.
fn entries() -> Vec<Entry> {
    let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    [read("tcp"), read("tcp6")].iter().flat_map(|text| text.lines()).filter_map(entry).collect()
}

fn entry(line: &str) -> Option<Entry> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let ends = TcpConnection { local: hex_address(words.next()?)?, remote: hex_address(words.next()?)? };
    Some(Entry { ends, inode: words.nth(6)?.parse().ok()? })
}

/// An address as `/proc/net/tcp` shows it: words of 32 bits as they lie in memory, in hexadecimal.
fn hex_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words = ip.as_bytes().chunks(8).map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok());
    let words: Vec<[u8; 4]> = words.map(|word| word.map(u32::to_ne_bytes)).collect::<Option<_>>()?;
    match words.as_slice() {
        [v4] => Some((Ipv4Addr::from(*v4), port).into()),
        [_, _, _, _] => {
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            Some((Ipv6Addr::from(octets), port).into())
        }
        _ => None,
    }
}

pub(super) fn port_taken(name: &[u8]) -> Error {
    let port = parse(name).map_or(0, |address| address.port());
    let others = || entries().into_iter().filter(|entry| entry.ends.local.port() == port);
    let holder = others().filter(|entry| entry.inode != 0).find_map(|entry| holder(entry.inode));
    let cause = match &holder {
        Some(pid) => {
            let name = procfs::stat(*pid).map(|stat| String::from_utf8_lossy(&stat.comm).into_owned());
            format!("{} (pid {pid}) has it", name.unwrap_or_else(|_| "a process".to_owned()))
        }
        None if others().next().is_some_and(|entry| entry.inode == 0) => {
            "old connections of it still close and may not be overruled by this user".to_owned()
        }
        None => "another socket is bound to it".to_owned(),
    };
    Error::refuse(Refusal {
        code: "port-taken",
        object: format!("address {}", show(name)),
        owner: Owner { pid: holder, ..Owner::default() },
        cause,
        remedy: "end the program that has it (ss -anp shows which), or try again in a minute".to_owned(),
    })
}

/// A process that holds a socket, as far as this user may look.
fn holder(inode: u64) -> Option<Pid> {
    let link = format!("socket:[{inode}]").into_bytes();
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.map(Pid).find(|pid| {
        let numbers = procfs::numbers(*pid, "fd").unwrap_or_default();
        numbers.into_iter().any(|fd| procfs::link(*pid, &format!("fd/{fd}")).is_ok_and(|found| found == link))
    })
}

/// A TCP socket as it is after its connection has ended: a connection over the loopback that its peer reset.
fn finished(domain: i32, inet: &InetRecord) -> io::Result<OwnedFd> {
    let listener = sys::socket(domain, SOCK_STREAM, 0)?;
    let mut address = sys::name(&listener)?;
    if domain == AF_INET6 {
        address.get_mut(8..24).into_iter().for_each(|ip| ip.copy_from_slice(&Ipv6Addr::LOCALHOST.octets()));
    } else {
        address.get_mut(4..8).into_iter().for_each(|ip| ip.copy_from_slice(&Ipv4Addr::LOCALHOST.octets()));
    }
    sys::bind(&listener, &address)?;
    rustix::net::listen(&listener, 1)?;
    let file = sys::socket(domain, SOCK_STREAM, 0)?;
    sys::connect(&file, &sys::name(&listener)?)?;
    let peer = rustix::net::accept_with(&listener, rustix::net::SocketFlags::CLOEXEC)?;
    if !line::fill(&peer, &file, &inet.received)? {
        return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
    }
    sys::set_option(&peer, SOL_SOCKET, libc::SO_LINGER, &[1_i32.to_ne_bytes(), 0_i32.to_ne_bytes()].concat())?;
    drop(peer);
    if !inet.reset {
        // Takes the error away, as the program has done.
        sys::option_int(&file, SOL_SOCKET, libc::SO_ERROR)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::testing;

    fn family(domain: i32, kind: i32) -> Family {
        Family { domain, kind, protocol: 0 }
    }

    fn taken(file: &OwnedFd, domain: i32, kind: i32) -> SocketRecord {
        let look = Look::at(&testing::view("socket:[1]", 2), file, family(domain, kind)).unwrap();
        let inet = InetRecord {
            listening: look.state == LISTEN,
            backlog: look.word(INFO_BACKLOG),
            name: look.name,
            peer: look.peer,
            ..InetRecord::default()
        };
        let options = options::capture(file, family(domain, kind));
        SocketRecord { domain, kind, options, inet: Some(inet), ..SocketRecord::default() }
    }

    fn loopback(domain: i32) -> Vec<u8> {
        let mut name = sys::name(sys::socket(domain, SOCK_STREAM, 0).unwrap()).unwrap();
        match domain {
            AF_INET => name[4..8].copy_from_slice(&[127, 0, 0, 1]),
            _ => name[23] = 1,
        }
        name
    }

    fn again(record: &SocketRecord) -> Result<OwnedFd> {
        let file = sys::socket(record.domain, record.kind, 0).unwrap();
        restore(ObjectId(1), file, record, record.inet.as_ref().unwrap())
    }

    #[test]
    fn a_port_in_time_wait_is_bound_again_at_once() {
        let old = sys::socket(AF_INET, SOCK_STREAM, 0).unwrap();
        sys::bind(&old, &loopback(AF_INET)).unwrap();
        rustix::net::listen(&old, 7).unwrap();
        let record = taken(&old, AF_INET, SOCK_STREAM);
        let client = sys::socket(AF_INET, SOCK_STREAM, 0).unwrap();
        sys::connect(&client, &record.inet.as_ref().unwrap().name).unwrap();
        let server = rustix::net::accept(&old).unwrap();
        let busy = again(&record).unwrap_err();
        assert!(busy.to_string().contains("port-taken"), "{busy}");
        // The side that closes first keeps TIME_WAIT: ours, on the port of the listener.
        drop((server, old, client));
        // A process that another test has just made may have the old ones for a moment.
        let new = std::iter::repeat_with(|| again(&record)).take(1000).find_map(Result::ok).unwrap();
        assert_eq!(taken(&new, AF_INET, SOCK_STREAM), record);
        assert_eq!(record.inet.unwrap().backlog, 7);
    }

    #[test]
    fn udp_with_a_peer_and_tcp_over_ipv6_come_back() {
        let old = sys::socket(AF_INET, SOCK_DGRAM, 0).unwrap();
        sys::bind(&old, &loopback(AF_INET)).unwrap();
        sys::connect(&old, &sys::name(&old).unwrap()).unwrap();
        let record = taken(&old, AF_INET, SOCK_DGRAM);
        drop(old);
        assert_eq!(taken(&again(&record).unwrap(), AF_INET, SOCK_DGRAM), record);
        let Ok(old) = sys::socket(AF_INET6, SOCK_STREAM, 0) else { return };
        if sys::bind(&old, &loopback(AF_INET6)).is_ok() {
            rustix::net::listen(&old, 1).unwrap();
            let record = taken(&old, AF_INET6, SOCK_STREAM);
            drop(old);
            assert_eq!(taken(&again(&record).unwrap(), AF_INET6, SOCK_STREAM), record);
        }
    }

    #[test]
    fn a_connection_that_is_over_keeps_what_is_to_be_read_and_a_reset() {
        let view = testing::view("socket:[1]", 2);
        for reset in [false, true] {
            let inet = InetRecord { over: true, received: vec![3; 300_000], reset, ..InetRecord::default() };
            let over = finished(AF_INET, &inet).unwrap();
            let look = Look::at(&view, &over, family(AF_INET, SOCK_STREAM)).unwrap();
            assert_eq!((look.state, look.refusal(&view, &over, family(AF_INET, SOCK_STREAM))), (CLOSE, None));
            assert!(tcp::queue(&over).unwrap() == inet.received);
            let error = sys::option_int(&over, SOL_SOCKET, libc::SO_ERROR).unwrap();
            assert_eq!(error, if reset { libc::ECONNRESET } else { 0 });
        }
    }

    #[test]
    fn a_multicast_member_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.join_multicast_v4(&Ipv4Addr::new(239, 1, 2, 3), &Ipv4Addr::LOCALHOST).unwrap();
        let other = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        assert!(joined(&OwnedFd::from(socket), family(AF_INET, SOCK_DGRAM)));
        assert!(!joined(&other, family(AF_INET, SOCK_DGRAM)));
    }

    #[test]
    fn tables_of_sockets_with_odd_lines() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1\n\
                     1: 0100007F:1F91 0100007F:1F90 06 00000000:00000000 03:00000000 00000000 0 0 0 3\nx\n: :\n";
        let found: Vec<Entry> = table.lines().filter_map(entry).collect();
        let expected = [("127.0.0.1:8080", "0.0.0.0:0", 4711), ("127.0.0.1:8081", "127.0.0.1:8080", 0)];
        let shown =
            found.iter().map(|entry| (entry.ends.local.to_string(), entry.ends.remote.to_string(), entry.inode));
        assert_eq!(shown.collect::<Vec<_>>(), expected.map(|(a, b, n)| (a.to_owned(), b.to_owned(), n)));
        assert_eq!(hex_address("00000000000000000000000001000000:0050"), Some(([0, 0, 0, 0, 0, 0, 0, 1], 80).into()));
        assert_eq!(hex_address("x:y"), None);
    }
}
