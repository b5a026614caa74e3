//! What waits to be read in UNIX sockets, with descriptors on their way in it (`SCM_RIGHTS`).
//!
//! Read by `MSG_PEEK`, which takes nothing away. Where one peek does not show all, `SO_PEEK_OFF` is set for the time of the
//! look and put back: were we killed in between, only a program that peeks itself could notice. A socket whose error is
//! still to be reported is not peeked beyond its bytes, since the kernel reports an error to whoever asks first.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use hdcr_sys::socket::{self as sys, Credentials, Message, Outgoing};
use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{subject, tcp};
use crate::capture::{Capture, OpenFile};
use crate::error::{Error, Refusal, Result};
use crate::ids::{Fd, Pid};
use crate::model::ObjectId;
use crate::{openfile, procfs};
use crate::resource::FileView;

/// Messages in a socket that we are ready to look at.
const MOST: usize = 1 << 20;
/// Bytes of a stream that go together with descriptors; what comes before them goes without.
const WITH_FILES: usize = 16 << 10;

/// A message, or a piece of a stream, that waits to be read.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Queued {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) bytes: Vec<u8>,
    /// Open files that come with it.
    #[prost(uint64, repeated, tag = "2")]
    pub(super) files: Vec<u64>,
    /// Name of the sender (`struct sockaddr_un`); empty: nameless.
    #[prost(bytes = "vec", tag = "3")]
    pub(super) from: Vec<u8>,
    /// Process, user and group of the sender; empty: not asked for.
    #[prost(uint32, repeated, tag = "4")]
    pub(super) credentials: Vec<u32>,
}

impl Queued {
    /// A message of the restoring command.
    pub(super) fn saying(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), ..Self::default() }
    }
}

/// Queues by the inode of the socket, and what is captured as a whole.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    queues: BTreeMap<u64, Vec<Queued>>,
    /// Ends of TCP connections that are captured, by inode.
    connected: BTreeSet<u64>,
}

impl Queues {
    pub(super) fn take(&mut self, inode: u64) -> Vec<Queued> {
        self.queues.remove(&inode).unwrap_or_default()
    }

    /// Whether a socket is an end of a TCP connection that is captured.
    pub(super) fn connects(&self, inode: u64) -> bool {
        self.connected.contains(&inode)
    }
}

/// Looks at the queues of all UNIX sockets of the tree, once, so that files which are only on their way are known before
/// anybody asks whether a peer lies in the tree; then at the TCP connections, which may be among those files.
pub(crate) fn look(cx: &mut Capture<'_>) -> Result<()> {
    if cx.queues.is_some() {
        return Ok(());
    }
    let mut queues = Queues::default();
    let (mut index, mut ends) = (0, Vec::new());
    while let Some(file) = cx.files.get(index).cloned() {
        cx.in_time(&file.view, index)?;
        index += 1;
        if !file.view.starts_with("socket:[") {
            continue;
        }
        let own = cx.duplicate(&file)?;
        if sys::option_int(&own, libc::SOL_SOCKET, libc::SO_DOMAIN).ok() == Some(libc::AF_UNIX) {
            let messages = peek(&file.view, &own)?;
            let mut queue = Vec::with_capacity(messages.len());
            for message in messages {
                queue.push(known(cx, &file.view, message)?);
            }
            queues.queues.insert(file.view.stat.st_ino, queue);
        } else {
            ends.extend(tcp::Candidate::of(&file, &own)?);
        }
    }
    queues.connected = tcp::look(cx, &ends)?;
    cx.queues = Some(queues);
    Ok(())
}

/// A message with its descriptors turned into open files of the tree.
fn known(cx: &mut Capture<'_>, view: &FileView, message: Message) -> Result<Queued> {
    if message.unknown_ancillary {
        let remedy = "let the program read its messages first";
        let refusal = view.refuse("socket-ancillary", "message in a socket", "something unknown comes with it", remedy);
        return Err(Error::refuse(refusal));
    }
    let mut files = Vec::with_capacity(message.descriptors.len());
    for fd in message.descriptors {
        files.push(open_file(cx, fd)?.0);
    }
    let words = |c: Credentials| vec![c.pid.cast_unsigned(), c.uid, c.gid];
    let credentials = message.credentials.map(words).unwrap_or_default();
    Ok(Queued { bytes: message.bytes, files, from: message.from, credentials })
}

/// The open file of the tree that a descriptor of ours leads to; a new one when nobody holds it.
fn open_file(cx: &mut Capture<'_>, fd: OwnedFd) -> Result<ObjectId> {
    let me = Pid(rustix::process::getpid().as_raw_nonzero().get());
    let own = Fd(fd.as_raw_fd());
    let stat = rustix::fs::fstat(&fd).map_err(Error::system("fstat", "a descriptor on its way"))?;
    for file in cx.with_inode(stat.st_ino) {
        let order = openfile::compare((file.view.pid, file.view.fd), (me, own));
        if order.map_err(Error::system("comparing descriptors", "a descriptor on its way"))?.is_eq() {
            return Ok(file.id);
        }
    }
    let link = procfs::link(me, &format!("fd/{own}"))?;
    let view = FileView { pid: me, fd: own, link, info: procfs::fd_info(me, own)?, stat };
    let id = cx.new_id();
    cx.by_inode.entry(stat.st_ino).or_default().push(cx.files.len());
    cx.files.push(OpenFile { id, view, holders: Vec::new() });
    cx.in_flight.insert(id, fd);
    Ok(id)
}

/// Everything that waits in a UNIX socket.
fn peek(view: &FileView, file: &OwnedFd) -> Result<Vec<Message>> {
    let failed = |error: io::Error| Error::System { operation: "peeking", subject: subject(view), source: error };
    let kind = sys::option_int(file, libc::SOL_SOCKET, libc::SO_TYPE).map_err(failed)?;
    if sys::option_int(file, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).map_err(failed)? != 0 {
        return Ok(Vec::new());
    }
    let mut polled = [PollFd::new(file, PollFlags::IN | PollFlags::RDHUP)];
    poll(&mut polled, Some(&Timespec::default())).map_err(Error::system("poll", subject(view)))?;
    let events = polled.first().map_or(PollFlags::empty(), PollFd::revents);
    let stream = kind == libc::SOCK_STREAM;
    // An unconnected stream has no queue, and says so by an error.
    let waiting = rustix::io::ioctl_fionread(file).ok().and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
    let failing = events.contains(PollFlags::ERR);
    // Empty messages count, but to a stream and where an error would be taken away by looking for them.
    let counted = kind == libc::SOCK_DGRAM || (kind == libc::SOCK_SEQPACKET && !failing);
    if !events.contains(PollFlags::IN) || (!counted && waiting == 0) {
        return Ok(Vec::new());
    }
    if !stream && failing {
        let remedy = "let the program read the error first";
        let cause = "an error is still to be reported, and looking at the messages behind it would take it away";
        return Err(Error::refuse(view.refuse("socket-error", "UNIX socket with messages", cause, remedy)));
    }
    let before = sys::option_int(file, libc::SOL_SOCKET, libc::SO_PEEK_OFF).map_err(failed)?;
    if stream && has_urgent(file) {
        return Err(Error::refuse(urgent(view)));
    }
    // With an offset set, every peek moves it.
    if stream && before < 0 {
        let first = sys::receive(file, waiting, libc::MSG_PEEK | libc::MSG_DONTWAIT).map_err(failed)?;
        if first.bytes.len() == waiting {
            return Ok(vec![first]);
        }
    }
    let ended = kind == libc::SOCK_SEQPACKET && events.intersects(PollFlags::RDHUP | PollFlags::HUP);
    let all = if ended { peek_ended(file, waiting) } else { peek_on(file, stream, waiting, End::WouldBlock) };
    let hides = all.as_ref().map_or(Ok(false), |all| hides_first(file, all, stream, ended));
    sys::set_option_int(file, libc::SOL_SOCKET, libc::SO_PEEK_OFF, before).map_err(failed)?;
    if hides.map_err(failed)? {
        return Err(Error::refuse(hidden(view)));
    }
    all.map_err(failed)
}

/// Whether an urgent byte waits in a stream (`unix_stream_recv_urg` in `net/unix/af_unix.c`).
fn has_urgent(file: &OwnedFd) -> bool {
    sys::receive(file, 1, libc::MSG_OOB | libc::MSG_PEEK | libc::MSG_DONTWAIT).is_ok()
}

fn urgent(view: &FileView) -> Refusal {
    let cause = "an urgent byte (`MSG_OOB`) waits in it, whose mark cannot be put back";
    view.refuse("socket-urgent", "UNIX socket with messages", cause, "let the program read it first")
}

/// The refusal of a queue with messages that nobody can see.
pub(super) fn hidden(view: &FileView) -> Refusal {
    let cause = "empty messages wait in it that were looked at before (by an earlier checkpoint): the kernel shows them once";
    view.refuse("socket-empty-message", "message in a socket", cause, "let the program read its messages first")
}

/// Whether an empty message waits before all that were seen: the kernel passes over one that somebody has peeked at
/// (net/core/datagram.c `__skb_try_recv_from_queue`), but not where no offset is asked for.
fn hides_first(file: &OwnedFd, seen: &[Message], stream: bool, ended: bool) -> io::Result<bool> {
    if stream || seen.first().is_some_and(|first| first.len == 0) {
        return Ok(false);
    }
    sys::set_option_int(file, libc::SOL_SOCKET, libc::SO_PEEK_OFF, -1)?;
    let asked = sys::option_int(file, libc::SOL_SOCKET, libc::SO_PASSCRED)?;
    if ended {
        sys::set_option_int(file, libc::SOL_SOCKET, libc::SO_PASSCRED, 1)?;
    }
    let first = sys::receive(file, 1, libc::MSG_PEEK | libc::MSG_DONTWAIT);
    sys::set_option_int(file, libc::SOL_SOCKET, libc::SO_PASSCRED, asked)?;
    match first {
        Ok(first) => Ok(first.len == 0 && !(ended && first.credentials.is_none())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the kernel charges a sender for such messages while they wait, found out by sending some.
pub(super) fn charge(kind: i32, messages: &[Queued]) -> Result<u64> {
    let mut known: BTreeMap<usize, u64> = BTreeMap::new();
    let mut sum: u64 = 0;
    for message in messages {
        let len = message.bytes.len();
        let one = match known.get(&len) {
            Some(one) => *one,
            None => charge_of(kind, &message.bytes)?,
        };
        known.insert(len, one);
        sum = sum.saturating_add(one);
    }
    Ok(sum)
}

fn charge_of(kind: i32, bytes: &[u8]) -> Result<u64> {
    let failed = |error: io::Error| Error::system("sending to ourselves", "a UNIX socket")(error);
    let [sender, _receiver] = sys::pair(libc::AF_UNIX, kind, 0).map_err(failed)?;
    super::unix_restore::widen(&sender).map_err(failed)?;
    send_once(&sender, &Outgoing { bytes, to: &[], descriptors: &[], credentials: None }).map_err(failed)?;
    let stat = rustix::fs::fstat(&sender).map_err(|error| failed(error.into()))?;
    Ok(super::census::ask(stat.st_ino)?.map_or(0, |seen| seen.outgoing.into()))
}

/// How a queue shows that nothing more is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// By an error.
    WouldBlock,
    /// By what looks like an empty message, but has no sender.
    Nobody,
}

/// Peeks messages of a socket whose peer sends no more. Its end looks like an empty message, but for the credentials that
/// every true message has when they are asked for.
fn peek_ended(file: &OwnedFd, waiting: usize) -> io::Result<Vec<Message>> {
    let asked = sys::option_int(file, libc::SOL_SOCKET, libc::SO_PASSCRED)?;
    sys::set_option_int(file, libc::SOL_SOCKET, libc::SO_PASSCRED, 1)?;
    let all = peek_on(file, false, waiting, End::Nobody);
    sys::set_option_int(file, libc::SOL_SOCKET, libc::SO_PASSCRED, asked)?;
    let mut all = all?;
    if asked == 0 {
        for message in &mut all {
            message.credentials = None;
        }
    }
    Ok(all)
}

/// Peeks message by message. `waiting` is the sum of all bytes, but with datagrams that of the first.
fn peek_on(file: &OwnedFd, stream: bool, waiting: usize, end: End) -> io::Result<Vec<Message>> {
    let peek_at = |at: usize| {
        let at = i32::try_from(at).map_err(io::Error::other)?;
        sys::set_option_int(file, libc::SOL_SOCKET, libc::SO_PEEK_OFF, at)
    };
    peek_at(0)?;
    let (mut all, mut total) = (Vec::new(), 0);
    let mut room = waiting.max(1 << 16);
    while all.len() < MOST && (!stream || total < waiting) {
        let message = match sys::receive(file, room, libc::MSG_PEEK | libc::MSG_DONTWAIT) {
            Ok(message) if end == End::Nobody && message.len == 0 && message.credentials.is_none() => break,
            Ok(message) => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        };
        if message.len > message.bytes.len() {
            room = message.len;
            peek_at(total)?;
            continue;
        }
        total += message.len;
        all.push(message);
    }
    Ok(all)
}

/// Sends what was queued by `sender`, which leads to the socket that had it.
pub(super) fn send(sender: impl AsFd, to: &[u8], message: &Queued, files: &[&OwnedFd], stream: bool) -> io::Result<()> {
    let lead = if files.is_empty() || !stream { 0 } else { message.bytes.len().saturating_sub(WITH_FILES) };
    let (lead, rest) = message.bytes.split_at_checked(lead).unwrap_or_default();
    let credentials = match message.credentials.as_slice() {
        [pid, uid, gid] => Some(Credentials { pid: pid.cast_signed(), uid: *uid, gid: *gid }),
        _ => None,
    };
    if !lead.is_empty() {
        send_all(&sender, &Outgoing { bytes: lead, to, descriptors: &[], credentials }, stream)?;
    }
    send_all(&sender, &Outgoing { bytes: rest, to, descriptors: files, credentials }, stream)
}

fn send_all(sender: impl AsFd, message: &Outgoing<'_>, stream: bool) -> io::Result<()> {
    let mut sent = send_once(&sender, message)?;
    while stream && sent < message.bytes.len() {
        let bytes = message.bytes.get(sent..).unwrap_or_default();
        sent += send_once(
            &sender,
            &Outgoing { bytes, to: message.to, descriptors: &[], credentials: message.credentials },
        )?;
    }
    Ok(())
}

/// Claims the sender's credentials where that is allowed: it takes privileges, and a process of that number.
fn send_once(sender: impl AsFd, message: &Outgoing<'_>) -> io::Result<usize> {
    let denied = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EPERM | libc::ESRCH));
    // A queue that does not take back what it held is an error, not a reason to wait for ever.
    let at_once = libc::MSG_DONTWAIT;
    match sys::send(&sender, message, at_once) {
        Err(error) if message.credentials.is_some() && denied(&error) => {
            let own =
                Outgoing { bytes: message.bytes, to: message.to, descriptors: message.descriptors, credentials: None };
            sys::send(&sender, &own, at_once)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::testing;

    fn texts(messages: &[Message]) -> Vec<(&[u8], usize)> {
        messages.iter().map(|message| (message.bytes.as_slice(), message.descriptors.len())).collect()
    }

    #[test]
    fn every_kind_of_queue_is_seen_and_kept() {
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            let [a, b] = sys::pair(libc::AF_UNIX, kind, 0).unwrap();
            for (bytes, files) in [(&b"one"[..], &[][..]), (b"two!", &[&file][..]), (b"three", &[])] {
                let message = Queued { bytes: bytes.to_vec(), ..Queued::default() };
                send(&a, &[], &message, files, kind == libc::SOCK_STREAM).unwrap();
            }
            let expected: &[(&[u8], usize)] = match kind {
                libc::SOCK_STREAM => &[(b"onetwo!", 1), (b"three", 0)],
                _ => &[(b"one", 0), (b"two!", 1), (b"three", 0)],
            };
            let view = testing::view("socket:[1]", 2);
            for _ in 0..2 {
                assert_eq!(texts(&peek(&view, &b).unwrap()), expected);
            }
            assert_eq!(sys::option_int(&b, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap(), -1);
            let first = sys::receive(&b, 100, libc::MSG_DONTWAIT).unwrap();
            assert_eq!((first.bytes.as_slice(), first.descriptors.len()), expected[0]);
        }
    }

    #[test]
    fn where_the_program_peeks_next_stays_and_an_urgent_byte_is_refused() {
        let view = testing::view("socket:[1]", 2);
        let [a, b] = sys::pair(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        send(&a, &[], &Queued { bytes: b"one message".to_vec(), ..Queued::default() }, &[], true).unwrap();
        sys::set_option_int(&b, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 5).unwrap();
        for _ in 0..2 {
            assert_eq!(texts(&peek(&view, &b).unwrap()), [(&b"one message"[..], 0)]);
            assert_eq!(sys::option_int(&b, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap(), 5);
        }
        // Urgent bytes came with Linux 5.15.
        if nix::sys::socket::send(a.as_raw_fd(), b"!", nix::sys::socket::MsgFlags::MSG_OOB).is_ok() {
            assert!(peek(&view, &b).unwrap_err().to_string().contains("socket-urgent"));
        }
    }

    #[test]
    fn an_empty_datagram_counts_and_a_large_stream_is_whole() {
        let view = testing::view("socket:[1]", 2);
        let expected = [(&b""[..], 0), (b"x", 0), (b"", 0), (b"", 0)];
        for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            for closed in [false, true] {
                let [a, b] = sys::pair(libc::AF_UNIX, kind, 0).unwrap();
                assert_eq!(texts(&peek(&view, &b).unwrap()), []);
                for bytes in expected.map(|(bytes, _)| bytes) {
                    send(&a, &[], &Queued { bytes: bytes.to_vec(), ..Queued::default() }, &[], false).unwrap();
                }
                let kept = (!closed).then_some(a);
                let seen = peek(&view, &b).unwrap();
                assert_eq!(texts(&seen), expected, "{kind} {closed}");
                assert!(seen.iter().all(|message| message.credentials.is_none()));
                assert_eq!(sys::option_int(&b, libc::SOL_SOCKET, libc::SO_PASSCRED).unwrap(), 0);
                drop(kept);
            }
        }
        let [a, b] = sys::pair(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        send(&a, &[], &Queued { bytes: bytes.clone(), ..Queued::default() }, &[], true).unwrap();
        assert_eq!(texts(&peek(&view, &b).unwrap()), [(&bytes[..], 0)]);
    }

    #[test]
    fn an_empty_message_that_is_shown_no_more_is_missed() {
        let view = testing::view("socket:[1]", 2);
        let queued = |bytes: &[u8]| Queued { bytes: bytes.to_vec(), ..Queued::default() };
        for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            for closed in [false, true] {
                let [a, b] = sys::pair(libc::AF_UNIX, kind, 0).unwrap();
                for bytes in [&b""[..], b"x"] {
                    send(&a, &[], &queued(bytes), &[], false).unwrap();
                }
                let kept = (!closed).then_some(a);
                assert_eq!(texts(&peek(&view, &b).unwrap()), [(&b""[..], 0), (b"x", 0)]);
                assert!(peek(&view, &b).unwrap_err().to_string().contains("socket-empty-message"), "{kind} {closed}");
                assert_eq!(sys::option_int(&b, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap(), -1);
                assert_eq!(sys::option_int(&b, libc::SOL_SOCKET, libc::SO_PASSCRED).unwrap(), 0);
                drop(kept);
            }
            let [a, b] = sys::pair(libc::AF_UNIX, kind, 0).unwrap();
            let all = [b"x".to_vec(), Vec::new(), vec![7; 100_000], Vec::new()];
            for bytes in &all {
                send(&a, &[], &queued(bytes), &[], false).unwrap();
            }
            let charged = |of: &OwnedFd| {
                let inode = rustix::fs::fstat(of).unwrap().st_ino;
                u64::from(super::super::census::ask(inode).unwrap().unwrap().outgoing)
            };
            let seen = |messages: Vec<Message>| messages.into_iter().map(|one| queued(&one.bytes)).collect::<Vec<_>>();
            let (first, second) = (seen(peek(&view, &b).unwrap()), seen(peek(&view, &b).unwrap()));
            assert_eq!((first.len(), second.len()), (4, 2));
            assert_eq!(charge(kind, &first).unwrap(), charged(&a));
            assert!(charge(kind, &second).unwrap() < charged(&a));
        }
    }

    #[test]
    fn a_reset_is_left_for_the_program() {
        let [a, b] = sys::pair(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        let message = Queued { bytes: b"unread".to_vec(), ..Queued::default() };
        send(&a, &[], &message, &[], true).unwrap();
        send(&b, &[], &message, &[], true).unwrap();
        drop(a);
        assert_eq!(peek(&testing::view("socket:[1]", 2), &b).unwrap().len(), 1);
        assert_eq!(sys::option_int(&b, libc::SOL_SOCKET, libc::SO_ERROR).unwrap(), libc::ECONNRESET);
    }
}
