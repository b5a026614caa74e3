//! UNIX sockets (unix(7)) of all three types: what they are connected to, their names, what waits in them.
//!
//! Captured: pairs with both ends in the tree, ends whose peer is closed, unconnected and bound sockets, datagram sockets
//! with a peer's name, listening sockets with those of the tree that wait to be accepted, halves shut down, queued bytes
//! and messages with descriptors, credentials and senders' names. Not captured: peer credentials (`SO_PEERCRED`), the
//! abstract name of a connected stream, out-of-band bytes, clients outside of the tree that wait to be accepted (they are
//! reset). Reads: `sock_diag(7)`, `MSG_PEEK`.

use std::os::fd::OwnedFd;
use std::path::Path;

use hdcr_sys::sock_diag::UnixSocket;
use hdcr_sys::socket as sys;
use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::census::Census;
use super::name::{self, Node};
use super::{SocketRecord, queue, subject};
use crate::capture::Capture;
use crate::checkpoint::{EndPolicy, EndRequest};
use crate::error::{Error, Refusal, Result};
use crate::model;
use crate::procfs;
use crate::resource::FileView;
use crate::resource::outside::{self, Fate, OutsideRecord};
use crate::survey::Survey;

const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;

/// How a UNIX socket stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Standing {
    /// Not connected, or a datagram socket with the name of a peer.
    Free = 0,
    Listening = 1,
    /// Connected to another socket of the tree.
    Paired = 2,
    /// Its peer is closed.
    Lone = 3,
    /// Connected, but not accepted yet.
    Waiting = 4,
    /// To be connected to the name of its peer outside of the tree again.
    Reconnect = 5,
}

/// What is kept of a UNIX socket.
#[derive(Clone, PartialEq, prost::Message)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the format")]
pub(super) struct UnixRecord {
    #[prost(enumeration = "Standing", tag = "1")]
    pub(super) standing: i32,
    /// Its address; two bytes or less: nameless.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) name: Vec<u8>,
    /// The file that bears its name, unless it is gone.
    #[prost(message, optional, tag = "3")]
    pub(super) node: Option<Node>,
    /// The address of the peer to connect to.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) peer_name: Vec<u8>,
    /// The pair that it is an end of, and which end.
    #[prost(uint64, tag = "5")]
    pub(super) pair: u64,
    #[prost(bool, tag = "6")]
    pub(super) second: bool,
    #[prost(uint32, tag = "7")]
    pub(super) backlog: u32,
    /// Open files that wait to be accepted, in their order.
    #[prost(uint64, repeated, tag = "8")]
    pub(super) waiting: Vec<u64>,
    #[prost(message, repeated, tag = "9")]
    pub(super) queue: Vec<queue::Queued>,
    /// Halves that are shut down: 1 reading, 2 writing.
    #[prost(uint32, tag = "10")]
    pub(super) shut: u32,
    /// `ECONNRESET` is still to be reported.
    #[prost(bool, tag = "11")]
    pub(super) reset: bool,
    /// `SO_PEEK_OFF`.
    #[prost(sint32, tag = "12")]
    pub(super) peek_off: i32,
    /// Whether the peer with that name is in the tree, so that connecting must succeed.
    #[prost(bool, tag = "13")]
    pub(super) peer_inside: bool,
    /// Its peer kept the tree: what the restoring command says waits in it. A reader that does not know this finds an end
    /// whose peer is closed.
    #[prost(bool, tag = "14")]
    pub(super) greeted: bool,
}

/// Where the peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Peer {
    None,
    /// In the tree, with this inode.
    Inside(u64),
    /// Closed.
    Gone,
    /// Connected to a listening socket that has not accepted it yet.
    Unaccepted,
    Outside,
}

fn peer(seen: &UnixSocket, inside: impl FnOnce(u64) -> bool) -> Peer {
    let streams = i32::from(seen.kind) != libc::SOCK_DGRAM;
    match seen.peer.map(u64::from) {
        None => Peer::None,
        Some(0) if streams && seen.state == ESTABLISHED && seen.shut != 3 => Peer::Unaccepted,
        Some(0) => Peer::Gone,
        Some(inode) if inside(inode) => Peer::Inside(inode),
        Some(_) => Peer::Outside,
    }
}

fn diagnose(census: &mut Census, view: &FileView) -> Result<UnixSocket> {
    census.ask(view.stat.st_ino)?.ok_or_else(|| Error::Changed {
        subject: subject(view),
        what: "the socket is not known to the kernel".to_owned(),
    })
}

pub(super) fn survey(survey: &mut Survey<'_>, view: &FileView, file: &OwnedFd) -> Result<()> {
    let seen = diagnose(&mut survey.census, view)?;
    let datagrams = i32::from(seen.kind) == libc::SOCK_DGRAM;
    let named = sys::peer_name(file).ok().flatten().filter(|name| name.len() > 2);
    match peer(&seen, |inode| survey.with_inode(inode).next().is_some()) {
        Peer::Outside | Peer::Unaccepted if leads_to_keeper(&survey.request.ends, named.as_deref()) => {}
        Peer::Outside if datagrams && named.is_some() => {
            let becomes = "is connected to the same name again after a restore, if somebody answers there";
            survey.note(view.refuse("outside-datagram", "UNIX datagram socket", &leads_to(named.as_deref()), becomes));
        }
        Peer::Outside => outside::report(survey, view, "UNIX socket", &leads_to(named.as_deref())),
        Peer::Unaccepted if !waits_inside(&mut survey.census, view, survey.files.iter()) => {
            outside::report(survey, view, "UNIX socket", &leads_to(named.as_deref()));
        }
        Peer::None | Peer::Inside(_) | Peer::Gone | Peer::Unaccepted => {}
    }
    Ok(())
}

/// Whether a socket is connected to whoever keeps the tree.
fn leads_to_keeper(ends: &EndRequest, peer_name: Option<&[u8]>) -> bool {
    peer_name.is_some_and(|name| ends.keepers.iter().any(|keeper| keeper == name))
}

fn leads_to(name: Option<&[u8]>) -> String {
    let shown = match name {
        Some(name) => match name::path(name) {
            Some(path) => path.display().to_string(),
            None => format!("@{}", String::from_utf8_lossy(name.get(3..).unwrap_or_default())),
        },
        None => "a socket without a name".to_owned(),
    };
    format!("its peer, {shown}, lies outside of the tree")
}

/// Whether the socket waits at a listening socket among these.
fn waits_inside<'a>(census: &mut Census, view: &FileView, mut among: impl Iterator<Item = &'a FileView>) -> bool {
    among.any(|other| {
        let seen = other.starts_with("socket:[").then(|| census.ask(other.stat.st_ino).ok().flatten()).flatten();
        seen.is_some_and(|seen| {
            seen.state == LISTEN && seen.waiting.iter().any(|inode| u64::from(*inode) == view.stat.st_ino)
        })
    })
}

pub(super) fn capture(cx: &mut Capture<'_>, view: &FileView, file: &OwnedFd, record: &mut SocketRecord) -> Result<()> {
    queue::look(cx)?;
    let seen = diagnose(&mut cx.census, view)?;
    let failed = |operation| Error::system::<std::io::Error>(operation, subject(view));
    let name = sys::name(file).map_err(failed("getsockname"))?;
    let mut unix = UnixRecord {
        node: node(view, &seen, &name),
        name,
        peer_name: sys::peer_name(file).map_err(failed("getpeername"))?.unwrap_or_default(),
        shut: seen.shut.into(),
        queue: cx.queues.as_mut().map(|queues| queues.take(view.stat.st_ino)).unwrap_or_default(),
        peek_off: sys::option_int(file, libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap_or(-1),
        reset: resets(file),
        ..UnixRecord::default()
    };
    if seen.state == LISTEN {
        unix.set_standing(Standing::Listening);
        unix.backlog = seen.outgoing;
        unix.waiting =
            seen.waiting.iter().filter_map(|inode| Some(cx.with_inode((*inode).into()).next()?.id.0)).collect();
    } else {
        let peer = peer(&seen, |inode| cx.with_inode(inode).next().is_some());
        match connected(cx, view, &seen, peer, &mut unix)? {
            Place::Inside => {}
            Place::Outside if leads_to_keeper(&cx.request.ends, Some(&unix.peer_name)) => {
                unix.set_standing(Standing::Lone);
                // What it was told before the checkpoint is no news after a restore.
                (unix.greeted, unix.queue) = (true, Vec::new());
            }
            Place::Outside => match outside::fate(cx, view) {
                Fate::Stream(stream) => {
                    record.outside = Some(OutsideRecord { stream, access: 2, ..OutsideRecord::default() });
                    return Ok(());
                }
                Fate::Policy(EndPolicy::Close) => unix.set_standing(Standing::Lone),
                Fate::Policy(EndPolicy::Reconnect) => unix.set_standing(Standing::Reconnect),
                Fate::Policy(EndPolicy::Refuse) => return Err(Error::refuse(refusal(view, &unix))),
            },
        }
    }
    record.unix = Some(unix);
    Ok(())
}

enum Place {
    Inside,
    Outside,
}

/// Settles how a socket that does not listen stands.
fn connected(
    cx: &mut Capture<'_>,
    view: &FileView,
    seen: &UnixSocket,
    peer: Peer,
    unix: &mut UnixRecord,
) -> Result<Place> {
    let datagrams = i32::from(seen.kind) == libc::SOCK_DGRAM;
    let named = unix.peer_name.len() > 2;
    match peer {
        Peer::None => unix.set_standing(Standing::Free),
        Peer::Gone | Peer::Outside if datagrams && named => unix.set_standing(Standing::Free),
        Peer::Gone => unix.set_standing(Standing::Lone),
        Peer::Outside => return Ok(Place::Outside),
        Peer::Unaccepted => {
            if !waits_inside(&mut cx.census, view, cx.files.iter().map(|file| &file.view)) {
                return Ok(Place::Outside);
            }
            if seen.outgoing > 0 {
                let what = "a connection that was not accepted yet and has data in it";
                return Err(Error::Changed { subject: subject(view), what: what.to_owned() });
            }
            unix.set_standing(Standing::Waiting);
        }
        Peer::Inside(inode) => {
            let other = cx.census.ask(inode)?;
            let theirs = if datagrams {
                other.as_ref().and_then(|other| other.peer).map(u64::from)
            } else {
                Some(view.stat.st_ino)
            };
            if theirs == Some(view.stat.st_ino) {
                refuse_hidden(view, seen.kind.into(), other.map_or(0, |other| other.outgoing.into()), &unix.queue)?;
                let (low, second) = (inode.min(view.stat.st_ino), inode < view.stat.st_ino);
                let (Ok(pair) | Err(pair)) = cx.shared("UNIX pair", 0, low);
                unix.set_standing(Standing::Paired);
                (unix.pair, unix.second) = (pair.0, second);
            } else if named {
                unix.set_standing(Standing::Free);
                unix.peer_inside = true;
            } else {
                let remedy = "close it before the checkpoint";
                let cause = "its peer has no name and is connected elsewhere";
                return Err(Error::refuse(view.refuse("unix-peer", "UNIX datagram socket", cause, remedy)));
            }
        }
    }
    Ok(Place::Inside)
}

/// Refuses an end in which more messages wait than could be seen: its only sender is charged for them.
fn refuse_hidden(view: &FileView, kind: i32, charged: u64, seen: &[queue::Queued]) -> Result<()> {
    if kind == libc::SOCK_STREAM || charged == 0 || charged <= queue::charge(kind, seen)? {
        return Ok(());
    }
    Err(Error::refuse(queue::hidden(view)))
}

fn refusal(view: &FileView, unix: &UnixRecord) -> Refusal {
    outside::refusal(
        view,
        "UNIX socket",
        &leads_to(Some(&unix.peer_name).filter(|name| name.len() > 2).map(Vec::as_slice)),
    )
}

/// The file that bears the name of a socket, if it is still there.
fn node(view: &FileView, seen: &UnixSocket, name: &[u8]) -> Option<Node> {
    let path = name::path(name)?;
    let base = if path.is_absolute() { "root" } else { "cwd" };
    let inner = path.strip_prefix("/").unwrap_or(path);
    let found = rustix::fs::lstat(procfs::path(view.pid, base).join(inner)).ok()?;
    let (inode, _) = seen.file?;
    if model::low32(found.st_ino) != inode {
        return None;
    }
    let base = procfs::link(view.pid, base).ok()?;
    let place = Path::new(&model::path_of(&base)).join(inner);
    let place = std::os::unix::ffi::OsStringExt::into_vec(place.into_os_string());
    Some(Node { place, mode: found.st_mode & 0o7777, uid: found.st_uid, gid: found.st_gid })
}

/// Whether an error waits to be reported; asking for it would take it away.
fn resets(file: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(file, PollFlags::empty())];
    let polls = poll(&mut polled, Some(&Timespec::default())).is_ok();
    polls && polled.first().is_some_and(|polled| polled.revents().contains(PollFlags::ERR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_peer_is() {
        let seen = |peer, shut| UnixSocket { kind: 1, state: ESTABLISHED, peer, shut, ..UnixSocket::default() };
        let check = |peer_seen, shut, expected| assert_eq!(peer(&seen(peer_seen, shut), |inode| inode == 7), expected);
        check(None, 0, Peer::None);
        check(Some(7), 0, Peer::Inside(7));
        check(Some(8), 0, Peer::Outside);
        check(Some(0), 3, Peer::Gone);
        check(Some(0), 0, Peer::Unaccepted);
    }

    #[test]
    fn a_pending_reset_is_seen_and_stays() {
        let [a, b] = sys::pair(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        assert!(!resets(&a));
        rustix::net::send(&a, b"unread", rustix::net::SendFlags::empty()).unwrap();
        drop(b);
        assert!(resets(&a) && resets(&a));
    }
}
