//! Sockets by raw addresses and options: `getsockopt(2)`, `sendmsg(2)` and their kin over plain bytes.
//!
//! An address is the bytes that the kernel gave (`struct sockaddr` of any family), so that a name is kept exactly: also
//! an abstract one with NUL bytes in it, and a path that lacks its terminating NUL.
#![expect(unsafe_code, reason = "message headers with ancillary data, and options of any size")]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

/// Room for an address of any family (`struct sockaddr_storage`).
const ADDRESS_ROOM: usize = 128;
/// The most descriptors that one message carries (`SCM_MAX_FD`).
const MAX_DESCRIPTORS: usize = 253;

/// Sender's credentials as a message carries them (`struct ucred`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Credentials {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// One message, or one piece of a stream.
#[derive(Debug, Default)]
pub struct Message {
    /// What arrived, cut at the size of the buffer.
    pub bytes: Vec<u8>,
    /// Its true length.
    pub len: usize,
    /// Whether a record ends with it (`MSG_EOR`).
    pub ends_record: bool,
    /// Who sent it, as a raw address; empty: nameless.
    pub from: Vec<u8>,
    /// Descriptors that came with it, new ones of this process.
    pub descriptors: Vec<OwnedFd>,
    /// Credentials that came with it.
    pub credentials: Option<Credentials>,
    /// Whether ancillary data did not fit or was of a kind that is not known here.
    pub unknown_ancillary: bool,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn length(bytes: &[u8]) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)
}

/// A new socket, closed on exec.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let fd = check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A new connected pair, closed on exec.
pub fn pair(domain: i32, kind: i32, protocol: i32) -> io::Result<[OwnedFd; 2]> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two numbers that the kernel writes.
    check(unsafe { libc::socketpair(domain, kind | libc::SOCK_CLOEXEC, protocol, fds.as_mut_ptr()) })?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    let first = unsafe { OwnedFd::from_raw_fd(fds[0]) };
    // SAFETY: as for the first one.
    let second = unsafe { OwnedFd::from_raw_fd(fds[1]) };
    Ok([first, second])
}

/// The value of an option, at most `room` bytes of it.
pub fn option(socket: impl AsFd, level: i32, name: i32, room: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0_u8; room];
    let mut len = length(&value)?;
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `value`, and the new length into `len`.
    check(unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len)
    })?;
    value.truncate(usize::try_from(len).unwrap_or(0));
    Ok(value)
}

/// The length that the kernel returns for an option when it is given no room.
pub fn option_length(socket: impl AsFd, level: i32, name: i32) -> io::Result<usize> {
    let mut len: libc::socklen_t = 0;
    // SAFETY: with a length of zero the kernel writes nothing to the null value, only the length into `len`.
    check(unsafe { libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, ptr::null_mut(), &raw mut len) })?;
    usize::try_from(len).map_err(io::Error::other)
}

/// The value of an option that is an `int`.
pub fn option_int(socket: impl AsFd, level: i32, name: i32) -> io::Result<i32> {
    let value = option(socket, level, name, size_of::<i32>())?;
    value.as_slice().try_into().map(i32::from_ne_bytes).map_err(io::Error::other)
}

/// Whether a socket joined a multicast group on a device (`MCAST_MSFILTER`); the group is a raw address.
pub fn in_multicast_group(socket: impl AsFd, level: i32, device: u32, group: &[u8]) -> io::Result<bool> {
    const MCAST_MSFILTER: i32 = 48;
    // struct group_filter: device, padding, address of 128 bytes, mode, number of sources, room for none.
    let mut filter = [0_u8; 8 + ADDRESS_ROOM + 8 + ADDRESS_ROOM];
    filter[..4].copy_from_slice(&device.to_ne_bytes());
    for (slot, byte) in filter.iter_mut().skip(8).take(ADDRESS_ROOM).zip(group) {
        *slot = *byte;
    }
    let mut len = length(&filter)?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads and writes at most `len` bytes, which is the size of `filter`.
    match check(unsafe { libc::getsockopt(socket, level, MCAST_MSFILTER, filter.as_mut_ptr().cast(), &raw mut len) }) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EINVAL | libc::ENODEV)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Sets an option.
pub fn set_option(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = length(value)?;
    // SAFETY: the kernel reads `len` bytes of `value`.
    check(unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), len) })?;
    Ok(())
}

/// Lets only those messages in which a program of classic BPF lets through (`SO_ATTACH_FILTER`).
pub fn attach_filter(socket: impl AsFd, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let whole = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let (socket, size) =
        (socket.as_fd().as_raw_fd(), libc::socklen_t::try_from(size_of_val(&whole)).map_err(io::Error::other)?);
    // SAFETY: the kernel reads `whole`, and from where that leads as many instructions as it says.
    check(unsafe {
        libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const whole).cast(), size)
    })?;
    Ok(())
}

/// Sets an option that is an `int`.
pub fn set_option_int(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(socket, level, name, &value.to_ne_bytes())
}

/// The socket's own address.
pub fn name(socket: impl AsFd) -> io::Result<Vec<u8>> {
    let mut room = [0_u8; ADDRESS_ROOM];
    let mut len = length(&room)?;
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `room`, and the true length into `len`.
    check(unsafe { libc::getsockname(socket.as_fd().as_raw_fd(), room.as_mut_ptr().cast(), &raw mut len) })?;
    Ok(cut(&room, len))
}

/// The address of the peer; `None` when there is none.
pub fn peer_name(socket: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    let mut room = [0_u8; ADDRESS_ROOM];
    let mut len = length(&room)?;
    // SAFETY: as for `name`.
    let result =
        check(unsafe { libc::getpeername(socket.as_fd().as_raw_fd(), room.as_mut_ptr().cast(), &raw mut len) });
    match result {
        Ok(_) => Ok(Some(cut(&room, len))),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(None),
        Err(error) => Err(error),
    }
}

fn cut(room: &[u8], len: libc::socklen_t) -> Vec<u8> {
    let len = usize::try_from(len).unwrap_or(0).min(room.len());
    room.get(..len).unwrap_or_default().to_vec()
}

/// Gives the socket an address.
pub fn bind(socket: impl AsFd, address: &[u8]) -> io::Result<()> {
    let len = length(address)?;
    // SAFETY: the kernel reads `len` bytes of `address`.
    check(unsafe { libc::bind(socket.as_fd().as_raw_fd(), address.as_ptr().cast(), len) })?;
    Ok(())
}

/// Connects the socket.
pub fn connect(socket: impl AsFd, address: &[u8]) -> io::Result<()> {
    let len = length(address)?;
    // SAFETY: the kernel reads `len` bytes of `address`.
    check(unsafe { libc::connect(socket.as_fd().as_raw_fd(), address.as_ptr().cast(), len) })?;
    Ok(())
}

/// Receives one message, or one piece of a stream, with what comes with it. `flags` may hold `MSG_PEEK`.
pub fn receive(socket: impl AsFd, room: usize, flags: i32) -> io::Result<Message> {
    let mut bytes = vec![0_u8; room];
    let mut from = [0_u8; ADDRESS_ROOM];
    // 64-bit words, so that the headers in it are aligned.
    let mut control = [0_u64; 160];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all fields of a msghdr may be zero.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_name = from.as_mut_ptr().cast();
    header.msg_namelen = length(&from)?;
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = flags | libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC;
    // SAFETY: `header` points to buffers of the sizes that it names, all of which live until after the call.
    let len = check_len(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) })?;
    bytes.truncate(len);
    let mut message = Message {
        bytes,
        len,
        ends_record: header.msg_flags & libc::MSG_EOR != 0,
        from: cut(&from, header.msg_namelen),
        unknown_ancillary: header.msg_flags & libc::MSG_CTRUNC != 0,
        ..Message::default()
    };
    read_ancillary(&header, &mut message);
    Ok(message)
}

fn read_ancillary(header: &libc::msghdr, message: &mut Message) {
    // SAFETY: `header` describes a control buffer that the kernel has filled in and that is still alive.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !at.is_null() {
        // SAFETY: `CMSG_FIRSTHDR` and `CMSG_NXTHDR` give null or a whole header inside of the control buffer.
        let entry = unsafe { ptr::read_unaligned(at) };
        // SAFETY: `at` points to a header of the control buffer.
        let data = unsafe { libc::CMSG_DATA(at) };
        // SAFETY: pure arithmetic.
        let head = usize::try_from(unsafe { libc::CMSG_LEN(0) }).unwrap_or(0);
        let len = entry.cmsg_len.saturating_sub(head);
        let mut body = vec![0_u8; len];
        // SAFETY: the kernel wrote `cmsg_len` bytes from the header on, and `body` is as long as what follows the header.
        unsafe { ptr::copy_nonoverlapping(data, body.as_mut_ptr(), len) };
        take_entry(entry.cmsg_level, entry.cmsg_type, &body, message);
        // SAFETY: as for `CMSG_FIRSTHDR`; `at` is a header of this buffer.
        at = unsafe { libc::CMSG_NXTHDR(header, at) };
    }
}

fn take_entry(level: i32, kind: i32, body: &[u8], message: &mut Message) {
    let mut words = body.as_chunks::<4>().0.iter().map(|word| i32::from_ne_bytes(*word));
    match (level, kind) {
        (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
            for fd in words {
                // SAFETY: the kernel has just installed this descriptor for us; nobody else knows it.
                message.descriptors.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
            if let (Some(pid), Some(uid), Some(gid)) = (words.next(), words.next(), words.next()) {
                message.credentials = Some(Credentials { pid, uid: uid.cast_unsigned(), gid: gid.cast_unsigned() });
            }
        }
        // A time stamp says when it arrived; it comes anew with the arrival of the restored message.
        (libc::SOL_SOCKET, libc::SCM_TIMESTAMP | libc::SCM_TIMESTAMPNS | libc::SCM_TIMESTAMPING) => {}
        _ => message.unknown_ancillary = true,
    }
}

/// What is sent by [`send`].
#[derive(Debug, Default)]
pub struct Outgoing<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// To whom, as a raw address; empty: to the peer.
    pub to: &'a [u8],
    /// Descriptors that go with it.
    pub descriptors: &'a [&'a OwnedFd],
    /// Credentials to claim.
    pub credentials: Option<Credentials>,
}

/// Sends one message without waiting; how many bytes went.
pub fn send(socket: impl AsFd, message: &Outgoing<'_>, flags: i32) -> io::Result<usize> {
    if message.descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut control = Vec::new();
    if !message.descriptors.is_empty() {
        let numbers = message.descriptors.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()).collect::<Vec<u8>>();
        push_entry(&mut control, libc::SCM_RIGHTS, &numbers);
    }
    if let Some(Credentials { pid, uid, gid }) = message.credentials {
        let body = [pid.to_ne_bytes(), uid.to_ne_bytes(), gid.to_ne_bytes()].concat();
        push_entry(&mut control, libc::SCM_CREDENTIALS, &body);
    }
    let mut iov = libc::iovec { iov_base: message.bytes.as_ptr().cast_mut().cast(), iov_len: message.bytes.len() };
    // SAFETY: all fields of a msghdr may be zero.
    let mut header: libc::msghdr = unsafe { zeroed() };
    if !message.to.is_empty() {
        header.msg_name = message.to.as_ptr().cast_mut().cast();
        header.msg_namelen = length(message.to)?;
    }
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !control.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(control.as_slice());
    }
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `header` points to buffers of the sizes that it names; the kernel only reads them.
    check_len(unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, flags) })
}

/// Appends one entry (`struct cmsghdr`: length, level, type, body, filled up to 8 bytes), as words so that it is aligned.
fn push_entry(control: &mut Vec<u64>, kind: i32, body: &[u8]) {
    let head = size_of::<libc::cmsghdr>();
    let mut entry = Vec::with_capacity(head + body.len() + 8);
    entry.extend_from_slice(&(head + body.len()).to_ne_bytes());
    entry.extend_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    entry.extend_from_slice(&kind.to_ne_bytes());
    entry.extend_from_slice(body);
    entry.resize(entry.len().next_multiple_of(8), 0);
    control.extend(entry.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_message_with_descriptors_and_credentials_can_be_peeked_and_stays() {
        let [a, b] = pair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0).unwrap();
        set_option_int(&b, libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        let me = Credentials {
            pid: i32::try_from(std::process::id()).unwrap(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let out = Outgoing { bytes: b"hello", to: &[], descriptors: &[&file, &file], credentials: Some(me) };
        assert_eq!(send(&a, &out, 0).unwrap(), 5);
        for flags in [libc::MSG_PEEK, 0] {
            let got = receive(&b, 3, flags | libc::MSG_DONTWAIT).unwrap();
            assert_eq!((got.bytes.as_slice(), got.len), (&b"hel"[..], 5));
            assert_eq!((got.descriptors.len(), got.credentials), (2, Some(me)));
            assert!(got.descriptors.iter().all(|fd| fd.as_raw_fd() > 2));
        }
        let empty = receive(&b, 3, libc::MSG_DONTWAIT).unwrap_err();
        assert_eq!(empty.raw_os_error(), Some(libc::EAGAIN));
    }

    #[test]
    fn names_are_kept_as_bytes() {
        let socket = socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
        let name_wanted = [&[1, 0, 0][..], b"hdcr\0odd\xff", std::process::id().to_string().as_bytes()].concat();
        bind(&socket, &name_wanted).unwrap();
        assert_eq!(name(&socket).unwrap(), name_wanted);
        assert_eq!(peer_name(&socket).unwrap(), None);
        assert_eq!(option_int(&socket, libc::SOL_SOCKET, libc::SO_TYPE).unwrap(), libc::SOCK_DGRAM);
    }
}
