//! Socket options by table: read as bytes, compared with those of the new socket, set where they differ.
//!
//! An option that this kernel does not have is left out. Buffer sizes are read doubled (socket(7)) and set as half.

use std::io;
use std::os::fd::OwnedFd;

use hdcr_sys::socket as sys;
use nix::libc::{
    self, AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPPROTO_UDP, SO_RCVBUF,
    SO_RCVBUFFORCE, SO_SNDBUF, SO_SNDBUFFORCE, SOCK_DGRAM, SOCK_STREAM, SOL_SOCKET,
};

use super::Family;

/// One option with its value.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OptionValue {
    #[prost(int32, tag = "1")]
    pub(super) level: i32,
    #[prost(int32, tag = "2")]
    pub(super) name: i32,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) value: Vec<u8>,
}

/// Room for the longest option here: names of devices and algorithms.
const ROOM: usize = 64;

// Numbers of include/uapi/asm-generic/socket.h that libc lacks.
const SO_BUF_LOCK: i32 = 72;
const SO_TXREHASH: i32 = 74;
const SO_RCVMARK: i32 = 75;
const SO_PASSPIDFD: i32 = 76;
const SO_PASSRIGHTS: i32 = 83;

/// Of every socket (socket(7)).
const ANY: &[i32] = &[
    libc::SO_REUSEADDR,
    libc::SO_REUSEPORT,
    libc::SO_DONTROUTE,
    libc::SO_BROADCAST,
    libc::SO_KEEPALIVE,
    libc::SO_OOBINLINE,
    libc::SO_NO_CHECK,
    libc::SO_PRIORITY,
    libc::SO_LINGER,
    libc::SO_PASSCRED,
    libc::SO_RCVLOWAT,
    libc::SO_RCVTIMEO,
    libc::SO_SNDTIMEO,
    libc::SO_BINDTODEVICE,
    libc::SO_TIMESTAMP,
    libc::SO_TIMESTAMPNS,
    libc::SO_TIMESTAMPING,
    libc::SO_PASSSEC,
    libc::SO_MARK,
    libc::SO_RXQ_OVFL,
    libc::SO_SELECT_ERR_QUEUE,
    libc::SO_BUSY_POLL,
    libc::SO_INCOMING_CPU,
    libc::SO_MAX_PACING_RATE,
    libc::SO_ZEROCOPY,
    SO_TXREHASH,
    SO_RCVMARK,
    SO_PASSPIDFD,
    SO_PASSRIGHTS,
    SO_SNDBUF,
    SO_RCVBUF,
    SO_BUF_LOCK,
];

/// tcp(7), include/uapi/linux/tcp.h.
const TCP: &[i32] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16, 17, 18, 23, 25, 27, 30, 34, 36, 37];

/// ip(7), include/uapi/linux/in.h.
const IP: &[i32] = &[1, 2, 4, 6, 7, 8, 10, 11, 12, 13, 15, 18, 19, 20, 21, 22, 23, 24, 25, 32, 33, 34, 49, 50, 51];

/// ipv6(7), include/uapi/linux/in6.h.
const IPV6: &[i32] =
    &[8, 16, 17, 18, 19, 23, 25, 26, 29, 49, 51, 53, 54, 56, 58, 60, 62, 66, 67, 70, 72, 73, 74, 75, 76, 77, 78];

/// udp(7).
const UDP: &[i32] = &[1, 100, 101, 102, 103, 104];

/// include/uapi/linux/netlink.h.
const NETLINK: &[i32] = &[3, 4, 5, 8, 10, 11, 12];

fn table(family: Family) -> Vec<(i32, &'static [i32])> {
    let mut table = vec![(SOL_SOCKET, ANY)];
    match family.domain {
        AF_INET => table.push((IPPROTO_IP, IP)),
        AF_INET6 => table.extend([(IPPROTO_IP, IP), (IPPROTO_IPV6, IPV6)]),
        AF_NETLINK => table.push((libc::SOL_NETLINK, NETLINK)),
        _ => {}
    }
    match (family.domain, family.kind) {
        (AF_INET | AF_INET6, SOCK_STREAM) => table.push((IPPROTO_TCP, TCP)),
        (AF_INET | AF_INET6, SOCK_DGRAM) => table.push((IPPROTO_UDP, UDP)),
        _ => {}
    }
    table
}

/// Every option of the tables that the socket answers to.
pub(super) fn capture(file: &OwnedFd, family: Family) -> Vec<OptionValue> {
    let mut out = Vec::new();
    for (level, names) in table(family) {
        for name in names.iter().copied().filter(|name| family.domain != AF_UNIX || *name != libc::SO_BINDTODEVICE) {
            if let Ok(value) = sys::option(file, level, name, ROOM) {
                out.push(OptionValue { level, name, value });
            }
        }
    }
    out
}

/// What a connection gave a socket, though nobody may set it so: what an accepted end has of the packet that it was made for,
/// and segments as large as the loopback takes.
const GIVEN: &[(i32, i32)] = &[
    (IPPROTO_TCP, libc::TCP_MAXSEG),
    (IPPROTO_IP, libc::IP_MULTICAST_IF),
    (IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_IF),
    (IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
];

/// Sets the options that the socket has not got already; the priority last, because `IP_TOS` sets it as well (net/ipv4
/// `__ip_sock_set_tos`).
pub(super) fn apply(file: &OwnedFd, options: &[OptionValue]) -> io::Result<()> {
    let is_priority = |option: &&OptionValue| (option.level, option.name) == (SOL_SOCKET, libc::SO_PRIORITY);
    let (last, first): (Vec<_>, Vec<_>) = options.iter().partition(is_priority);
    for option in first.into_iter().chain(last) {
        let now = sys::option(file, option.level, option.name, ROOM);
        if now.is_ok_and(|now| now == option.value) {
            continue;
        }
        let (level, name) = (option.level, option.name);
        match set(file, option) {
            Err(_) if GIVEN.contains(&(level, name)) => {}
            other => other.map_err(|error| {
                io::Error::new(error.kind(), format!("option {name} of level {level}: {error}"))
            })?,
        }
    }
    Ok(())
}

/// What an end of a TCP connection must have before it is connected.
const BEFORE: &[(i32, i32)] = &[
    (SOL_SOCKET, libc::SO_BINDTODEVICE),
    (IPPROTO_IP, libc::IP_TRANSPARENT),
    (IPPROTO_IP, libc::IP_FREEBIND),
    (IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    (IPPROTO_IPV6, libc::IPV6_FREEBIND),
];

/// What a connected socket refuses to be told, and what the kernel chooses itself while the connection lives: the size of
/// segments, the limit of the window, who waits to be accepted, data in the first segment.
const NOT_AFTER: &[(i32, i32)] = &[
    (IPPROTO_TCP, libc::TCP_MAXSEG),
    (IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (IPPROTO_TCP, libc::TCP_FASTOPEN),
    (IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT),
    (IPPROTO_TCP, libc::TCP_SAVE_SYN),
];

/// Sets what must be set before a socket is connected.
pub(super) fn apply_before(file: &OwnedFd, options: &[OptionValue]) -> io::Result<()> {
    let before = options.iter().filter(|option| BEFORE.contains(&(option.level, option.name)));
    apply(file, &before.cloned().collect::<Vec<_>>())
}

/// Sets the options of a connected socket. What may be sent ahead is the kernel's affair, unless the program has set it.
pub(super) fn apply_connected(file: &OwnedFd, options: &[OptionValue]) -> io::Result<()> {
    let locked = int(options, SOL_SOCKET, SO_BUF_LOCK).unwrap_or(3);
    let after = options.iter().filter(|option| match (option.level, option.name) {
        (SOL_SOCKET, SO_SNDBUF) => locked & 1 != 0,
        place => !BEFORE.contains(&place) && !NOT_AFTER.contains(&place),
    });
    apply(file, &after.cloned().collect::<Vec<_>>())
}

fn set(file: &OwnedFd, option: &OptionValue) -> io::Result<()> {
    match (option.level, option.name) {
        (SOL_SOCKET, SO_SNDBUF) => set_buffer(file, SO_SNDBUF, SO_SNDBUFFORCE, &option.value),
        (SOL_SOCKET, SO_RCVBUF) => set_buffer(file, SO_RCVBUF, SO_RCVBUFFORCE, &option.value),
        _ => sys::set_option(file, option.level, option.name, &option.value),
    }
}

fn set_buffer(file: &OwnedFd, plain: i32, forced: i32, value: &[u8]) -> io::Result<()> {
    let doubled = value.try_into().map(i32::from_ne_bytes).map_err(io::Error::other)?;
    let half = (doubled / 2).to_ne_bytes();
    // Above the system's limit only with CAP_NET_ADMIN; below it without.
    sys::set_option(file, SOL_SOCKET, forced, &half).or_else(|_| sys::set_option(file, SOL_SOCKET, plain, &half))
}

/// The value of an `int` option among the captured ones.
pub(super) fn int(options: &[OptionValue], level: i32, name: i32) -> Option<i32> {
    let found = options.iter().find(|option| (option.level, option.name) == (level, name))?;
    found.value.as_slice().try_into().ok().map(i32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_tcp_socket_come_back() {
        let family = Family { domain: AF_INET, kind: SOCK_STREAM, protocol: 0 };
        let socket = || sys::socket(AF_INET, SOCK_STREAM, 0).unwrap();
        let (old, new) = (socket(), socket());
        let set = [
            (SOL_SOCKET, libc::SO_REUSEPORT, 1),
            (SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (IPPROTO_TCP, libc::TCP_NODELAY, 1),
        ];
        for (level, name, value) in set {
            sys::set_option_int(&old, level, name, value).unwrap();
        }
        sys::set_option_int(&old, SOL_SOCKET, SO_RCVBUF, 30_000).unwrap();
        sys::set_option_int(&old, IPPROTO_TCP, libc::TCP_KEEPIDLE, 77).unwrap();
        sys::set_option_int(&old, IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 3).unwrap();
        sys::set_option_int(&old, IPPROTO_IP, libc::IP_TOS, 0x28).unwrap();
        // The kernel made it something else just now.
        sys::set_option_int(&old, SOL_SOCKET, libc::SO_PRIORITY, 4).unwrap();
        apply(&new, &capture(&old, family)).unwrap();
        assert_eq!(capture(&new, family), capture(&old, family));
        assert_eq!(int(&capture(&new, family), SOL_SOCKET, SO_RCVBUF), Some(60_000));
    }

    /// Whichever of the two ends is made by connecting.
    #[test]
    fn options_of_an_accepted_end_are_taken_by_a_connecting_one() {
        for (domain, address) in [(AF_INET, "127.0.0.1:0"), (AF_INET6, "[::1]:0")] {
            let Ok(listener) = std::net::TcpListener::bind(address) else { continue };
            let client = || OwnedFd::from(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let (first, accepted) = (client(), OwnedFd::from(listener.accept().unwrap().0));
            let family = Family { domain, kind: SOCK_STREAM, protocol: 0 };
            apply_connected(&client(), &capture(&accepted, family)).unwrap();
            // One whose connection was broken off is made fresh.
            sys::set_option(&first, SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
            drop(first);
            let fresh = sys::socket(domain, SOCK_STREAM, 0).unwrap();
            apply(&fresh, &capture(&accepted, family)).unwrap();
        }
    }

    #[test]
    fn a_fresh_socket_needs_nothing_set() {
        for (domain, kind) in [(AF_INET, SOCK_DGRAM), (AF_INET6, SOCK_STREAM), (AF_UNIX, SOCK_STREAM)] {
            let family = Family { domain, kind, protocol: 0 };
            let Ok(socket) = sys::socket(domain, kind, 0) else { continue };
            let options = capture(&socket, family);
            let other = sys::socket(domain, kind, 0).unwrap();
            assert_eq!(capture(&other, family), options);
            apply(&other, &options).unwrap();
        }
    }
}
