//! UNIX sockets made again: first every socket with its options and its name, then connections and queues, last what
//! would stand in the way of filling them (shut halves, buffer sizes, closed peers).

use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::OwnedFd;

use hdcr_sys::socket as sys;
use nix::libc;

use super::name::{self, Node, Taken, Way};
use super::unix::{Standing, UnixRecord};
use super::{SocketRecord, options, queue};
use crate::error::{Error, Owner, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::resource::data;
use crate::restore::Restore;
use crate::rollback::Witness;
use crate::{route, stored};
use hdcr_image::Record;

/// Room for what is being put into a queue, whatever its sizes say about the moment.
const FILLING: i32 = 64 << 20;

pub(super) fn restore(cx: &mut Restore<'_>, id: ObjectId, record: &SocketRecord) -> Result<OwnedFd> {
    let unix = record.unix.as_ref().ok_or_else(|| Error::Unsound(format!("{id} is no UNIX socket")))?;
    let failed = |operation| Error::system::<io::Error>(operation, id);
    let file = match unix.standing() {
        Standing::Paired => end_of(cx, record, unix)?,
        Standing::Lone => {
            let [own, other] = sys::pair(record.domain, record.kind, record.protocol).map_err(failed("socketpair"))?;
            cx.parts.insert(id, vec![other]);
            own
        }
        Standing::Reconnect => reconnect(cx, id, record, unix).map_err(failed("making a UNIX socket"))?,
        Standing::Free | Standing::Listening | Standing::Waiting => {
            sys::socket(record.domain, record.kind, record.protocol).map_err(failed("socket"))?
        }
    };
    options::apply(&file, &record.options).map_err(failed("setting socket options"))?;
    give_name(cx, id, &file, record, unix)?;
    if unix.standing() == Standing::Listening {
        let backlog = i32::try_from(unix.backlog).unwrap_or(i32::MAX);
        rustix::net::listen(&file, backlog).map_err(Error::system("listen", id))?;
    }
    cx.late.push((connect_and_fill, id));
    Ok(file)
}

fn end_of(cx: &mut Restore<'_>, record: &SocketRecord, unix: &UnixRecord) -> Result<OwnedFd> {
    let pair = ObjectId(unix.pair);
    let ends = match cx.parts.entry(pair) {
        Entry::Occupied(made) => made.into_mut(),
        Entry::Vacant(free) => {
            let ends = sys::pair(record.domain, record.kind, record.protocol);
            free.insert(ends.map_err(Error::system("socketpair", pair))?.into())
        }
    };
    let end = ends.get(usize::from(unix.second));
    let end = end.ok_or_else(|| Error::Unsound(format!("{pair} is no pair of sockets")))?;
    end.try_clone().map_err(Error::system("dup", pair))
}

/// A connection to the name of a peer outside of the tree; where nobody answers, one whose peer is closed.
fn reconnect(cx: &mut Restore<'_>, id: ObjectId, record: &SocketRecord, unix: &UnixRecord) -> io::Result<OwnedFd> {
    let file = sys::socket(record.domain, record.kind, record.protocol)?;
    let turn = cx.turn_of_holders(id).map_err(io::Error::other)?;
    let connected = way_to(cx, &unix.peer_name).and_then(|way| connect(&file, &way));
    drop(turn);
    if connected.is_ok() {
        return Ok(file);
    }
    let [own, other] = sys::pair(record.domain, record.kind, record.protocol)?;
    cx.parts.insert(id, vec![other]);
    Ok(own)
}

/// Connects without waiting for room in a backlog.
fn connect(file: &OwnedFd, way: &Way) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    rustix::fs::fcntl_setfl(file, flags | rustix::fs::OFlags::NONBLOCK)?;
    let connected = sys::connect(file, &way.address);
    rustix::fs::fcntl_setfl(file, flags)?;
    connected
}

/// The way to whoever has a name. A relative one leads on from where its owner was: it is looked for in the tree.
fn way_to(cx: &Restore<'_>, name: &[u8]) -> io::Result<Way> {
    match name::path(name) {
        Some(path) if path.is_absolute() => Way::to(&cx.mapped(path)),
        Some(_) => {
            let sockets = stored::ids(cx.frames, SocketRecord::TAG).into_iter();
            let mut same = sockets.filter_map(|id| cx.record::<SocketRecord>(id).ok()?.unix.filter(|of| of.name == name));
            same.find_map(|of| of.node).map_or_else(|| Ok(Way::by_name(name)), |node| way_to_node(cx, &node))
        }
        None => Ok(Way::by_name(name)),
    }
}

fn way_to_node(cx: &Restore<'_>, node: &Node) -> io::Result<Way> {
    Way::to(&cx.mapped(&model::path_of(&node.place)))
}

fn give_name(cx: &mut Restore<'_>, id: ObjectId, file: &OwnedFd, record: &SocketRecord, unix: &UnixRecord) -> Result<()> {
    let failed = |error| Error::System { operation: "naming a UNIX socket", subject: id.to_string(), source: error };
    let own_name = matches!(unix.standing(), Standing::Free | Standing::Listening | Standing::Waiting);
    if name::is_abstract(&unix.name) {
        let bound = if own_name { sys::bind(file, &unix.name) } else { Ok(()) };
        return bound.map_err(|error| {
            if !super::inet::in_use(&error) {
                return failed(error);
            }
            // As ss(8) shows it.
            let name = unix.name.get(3..).map(String::from_utf8_lossy).unwrap_or_default();
            taken_refusal(std::path::Path::new(&format!("@{name}")), "another program has this name")
        });
    }
    if name::path(&unix.name).is_none() {
        return Ok(());
    }
    match &unix.node {
        Some(node) if own_name => {
            let _turn = cx.turn_of_holders(id)?;
            let place = cx.mapped(&model::path_of(&node.place));
            make_way(cx, record.kind, &place)?;
            cx.plan.will_bind(&place)?;
            let bound = name::bind_at(file, &unix.name, node, &place);
            if let (Ok(()), Some(witness)) = (&bound, Witness::at(&place)) {
                cx.plan.will_make(&place, Some(witness))?;
            }
            bound.map_err(|taken| match taken {
                Taken::Failed(error) => failed(error),
                Taken::Answers => taken_refusal(&place, "another program answers under this path"),
                Taken::OtherFile => taken_refusal(&place, "another file is in its place"),
                Taken::Behind => Error::refuse(route::barred("socket", &place)),
            })
        }
        // Only the name, which nobody can reach: worth keeping where it can be kept.
        _ => match name::bind_name_only(file, &unix.name) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::debug!(%id, %error, "a UNIX socket stays without its name");
                Ok(())
            }
        },
    }
}

/// Moves the file of a dead socket aside, and makes the directories that are missing.
fn make_way(cx: &mut Restore<'_>, kind: i32, place: &std::path::Path) -> Result<()> {
    match name::is_dead(kind, place) {
        Ok(false) => {}
        Ok(true) => {
            let aside = data::free_beside(place, "old", || cx.plan.number());
            cx.plan.move_away(place, &aside)?;
        }
        Err(Taken::Answers) => return Err(taken_refusal(place, "another program answers under this path")),
        Err(Taken::Behind) => return Err(Error::refuse(route::barred("socket", place))),
        Err(Taken::OtherFile) => return Err(taken_refusal(place, "another file is in its place")),
        Err(Taken::Failed(error)) => {
            return Err(Error::System {
                operation: "naming a UNIX socket",
                subject: place.display().to_string(),
                source: error,
            });
        }
    }
    let missing: Vec<_> = place.ancestors().skip(1).take_while(|above| !above.exists()).collect();
    missing.into_iter().rev().try_for_each(|directory| cx.plan.make_directory(directory, 0o777))
}

fn taken_refusal(place: &std::path::Path, cause: &str) -> Error {
    Error::refuse(Refusal {
        code: "unix-name-taken",
        object: "name of a UNIX socket".to_owned(),
        owner: Owner { path: Some(place.to_owned()), ..Owner::default() },
        cause: cause.to_owned(),
        remedy: "end that program or move the file away, or give the path another place with --map-path".to_owned(),
    })
}

fn record_of(cx: &Restore<'_>, id: ObjectId) -> Result<(SocketRecord, UnixRecord)> {
    let mut record: SocketRecord = cx.record(id)?;
    let unix = record.unix.take().ok_or_else(|| Error::Unsound(format!("{id} is no UNIX socket")))?;
    Ok((record, unix))
}

fn own(cx: &mut Restore<'_>, id: ObjectId) -> Result<OwnedFd> {
    cx.open_file(id)?.try_clone().map_err(Error::system("dup", id))
}

/// Second step: those that wait knock, queues are filled, datagram sockets get their peer.
fn connect_and_fill(cx: &mut Restore<'_>, id: ObjectId) -> Result<()> {
    let _turn = cx.turn_of_holders(id)?;
    let (record, unix) = record_of(cx, id)?;
    let failed = |operation| Error::system::<io::Error>(operation, id);
    let way = |cx: &Restore<'_>| match &unix.node {
        Some(node) => way_to_node(cx, node),
        None => way_to(cx, &unix.name),
    };
    for client in &unix.waiting {
        let client = own(cx, ObjectId(*client))?;
        let knocked = way(cx).and_then(|way| connect(&client, &way));
        knocked.map_err(failed("knocking at a listening socket"))?;
    }
    let own_file = own(cx, id)?;
    let sender = match unix.standing() {
        Standing::Paired => cx.parts.get(&ObjectId(unix.pair)).and_then(|ends| ends.get(usize::from(!unix.second))),
        Standing::Lone | Standing::Reconnect | Standing::Free | Standing::Listening | Standing::Waiting => {
            cx.parts.get(&id).and_then(|ends| ends.first())
        }
    };
    let sender = sender.map(OwnedFd::try_clone).transpose().map_err(failed("dup"))?;
    let greeting = (unix.greeted && !cx.greeting.is_empty()).then(|| queue::Queued::saying(cx.greeting));
    for message in unix.queue.iter().chain(&greeting) {
        let files = message.files.iter().map(|file| own(cx, ObjectId(*file))).collect::<Result<Vec<_>>>()?;
        let files: Vec<&OwnedFd> = files.iter().collect();
        let stream = record.kind == libc::SOCK_STREAM;
        let sent = if let Some(sender) = &sender {
            widen(sender).and_then(|()| queue::send(sender, &[], message, &files, stream))
        } else {
            let sender = correspondent(cx, &message.from)?;
            way(cx).and_then(|way| queue::send(&sender, &way.address, message, &files, stream))
        };
        sent.map_err(failed("filling a socket"))?;
    }
    if unix.standing() == Standing::Free && unix.peer_name.len() > 2 {
        match way_to(cx, &unix.peer_name).and_then(|way| connect(&own_file, &way)) {
            Ok(()) => {}
            Err(error) if unix.peer_inside => return Err(failed("connecting a datagram socket")(error)),
            Err(error) => tracing::info!(%id, %error, "the peer of a datagram socket does not answer any more"),
        }
    }
    cx.late.push((finish, id));
    Ok(())
}

pub(super) fn widen(sender: &OwnedFd) -> io::Result<()> {
    let size = FILLING.to_ne_bytes();
    sys::set_option(sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &size)
        .or_else(|_| sys::set_option(sender, libc::SOL_SOCKET, libc::SO_SNDBUF, &size))
}

/// The socket of the tree with this name, or a passing one that bears it.
fn correspondent(cx: &mut Restore<'_>, name: &[u8]) -> Result<OwnedFd> {
    if name.len() > 2 {
        let tag = SocketRecord::TAG.0;
        let frames = cx.frames.iter().filter(|((frame, _), _)| *frame == tag);
        let same = frames.filter_map(|((_, id), frame)| {
            let record: SocketRecord = model::decode(frame.version, &frame.body).ok()?;
            record.unix.is_some_and(|unix| unix.name == name && unix.standing() == Standing::Free).then_some(*id)
        });
        if let Some(id) = same.collect::<Vec<_>>().first() {
            return own(cx, *id);
        }
    }
    let failed =
        |error| Error::System { operation: "making a sender", subject: "a datagram".to_owned(), source: error };
    let sender = sys::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).map_err(failed)?;
    widen(&sender).map_err(failed)?;
    if name::path(name).is_some() {
        if let Err(error) = name::bind_name_only(&sender, name) {
            tracing::debug!(%error, "a datagram loses its sender's name");
        }
    } else if name::is_abstract(name) {
        sys::bind(&sender, name).map_err(failed)?;
    }
    Ok(sender)
}

/// Third step, when all queues are filled.
fn finish(cx: &mut Restore<'_>, id: ObjectId) -> Result<()> {
    let (record, unix) = record_of(cx, id)?;
    let file = own(cx, id)?;
    let failed = |operation| Error::system::<io::Error>(operation, id);
    options::apply(&file, &record.options).map_err(failed("setting socket options"))?;
    if unix.peek_off >= 0 {
        let set = sys::set_option_int(&file, libc::SOL_SOCKET, libc::SO_PEEK_OFF, unix.peek_off);
        set.map_err(failed("setting SO_PEEK_OFF"))?;
    }
    if let Some(other) = cx.parts.remove(&id) {
        if unix.reset {
            // A peer that closes with something unread resets the connection.
            queue::send(&file, &[], &queue::Queued { bytes: vec![0], ..queue::Queued::default() }, &[], true)
                .map_err(failed("preparing a reset"))?;
        }
        drop(other);
        return Ok(());
    }
    let how = match unix.shut {
        1 => rustix::net::Shutdown::Read,
        2 => rustix::net::Shutdown::Write,
        3 => rustix::net::Shutdown::Both,
        _ => return Ok(()),
    };
    rustix::net::shutdown(&file, how).map_err(Error::system("shutdown", id))
}
