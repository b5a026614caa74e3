//! TCP connections made again: each by a socket that listens at the address of one end for just this one, and the other end
//! that connects to it from its own address. That needs no privileges, and what a program of the tree can see is as it was.
//!
//! All of them are made before the first socket of the tree listens, since no second one may listen at its port; those
//! that wait to be accepted knock when all listen. Options come last: some would stand in the way of filling a connection,
//! and `SO_REUSEADDR` lets the sockets of one port be bound in any order.

use std::io;
use std::os::fd::OwnedFd;

use hdcr_image::Record;
use hdcr_sys::socket as sys;
use nix::libc::{self, IPPROTO_TCP, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;

use super::inet::{await_port, in_use, parse, port_taken, show, take_port};
use super::line;
use super::tcp::{ConnectionRecord, EndRecord, Second};
use super::{SocketRecord, options};
use crate::error::{Error, Owner, Refusal, Result};
use crate::model::ObjectId;
use crate::restore::Restore;
use crate::stored;

/// Ports that a socket may be given by the kernel (Linux 6.3).
const IP_LOCAL_PORT_RANGE: i32 = 51;
/// What the loopback may need for one packet.
const A_MOMENT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// An end that is to be made.
struct End {
    record: EndRecord,
    domain: i32,
    options: Vec<options::OptionValue>,
}

impl End {
    fn reuses(&self) -> bool {
        options::int(&self.options, SOL_SOCKET, SO_REUSEADDR).is_some_and(|reuses| reuses != 0)
    }

    /// A socket that bears nothing yet but what it must have before it is bound.
    fn socket(&self) -> io::Result<OwnedFd> {
        let file = sys::socket(self.domain, SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
        options::apply_before(&file, &self.options)?;
        if self.record.mss != 0 {
            sys::set_option(&file, IPPROTO_TCP, libc::TCP_MAXSEG, &self.record.mss.to_ne_bytes())?;
        }
        sys::set_option_int(&file, SOL_SOCKET, SO_REUSEADDR, 1)?;
        Ok(file)
    }
}

/// Makes all connections of the tree, once.
pub(super) fn connect_all(cx: &mut Restore<'_>) -> Result<()> {
    for id in stored::ids(cx.frames, ConnectionRecord::TAG) {
        if cx.parts.contains_key(&id) {
            return Ok(());
        }
        let record: ConnectionRecord = cx.record(id)?;
        let (first, second) = ends(cx, id, &record)?;
        if record.standing() == Second::Unaccepted {
            let file = first.socket().map_err(|error| failed(&first, error))?;
            match bind(&file, &first) {
                // It gets its port when it knocks.
                Err(error) if in_use(&error) => {}
                other => other.map_err(|error| failed(&first, error))?,
            }
            cx.parts.insert(ObjectId(first.record.file), vec![cx.lift(file)?]);
            if cx.late.iter().all(|(_, late)| *late != ObjectId(0)) {
                cx.late.push((knock_all, ObjectId(0)));
            }
        } else {
            // The side that had set `SO_REUSEADDR` is bound without fail, although its port may be in `TIME_WAIT`.
            let files = if second.reuses() || !first.reuses() {
                connect(&first, &second)?
            } else {
                let [second, first] = connect(&second, &first)?;
                [first, second]
            };
            exchange(&files, &first, &second).map_err(Error::system("filling a connection", id))?;
            for (file, end) in files.into_iter().zip([&first, &second]).filter(|(_, end)| end.record.file != 0) {
                cx.parts.insert(ObjectId(end.record.file), vec![cx.lift(file)?]);
            }
        }
        cx.parts.insert(id, Vec::new());
    }
    Ok(())
}

/// An end that [`connect_all`] has made.
pub(super) fn take(cx: &mut Restore<'_>, id: ObjectId) -> Result<OwnedFd> {
    let file = cx.parts.remove(&id).and_then(|mut files| files.pop());
    let file = file.ok_or_else(|| Error::Unsound(format!("{id} is no end of a connection")))?;
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty()).map_err(Error::system("setting status flags", id))?;
    cx.late.push((finish, id));
    Ok(file)
}

fn ends(cx: &Restore<'_>, id: ObjectId, record: &ConnectionRecord) -> Result<(End, End)> {
    let unsound = || Error::Unsound(format!("{id} is no connection"));
    let first = record.first.clone().ok_or_else(unsound)?;
    let second = record.second.clone().ok_or_else(unsound)?;
    let of = |file: u64| match file {
        0 => Ok(None),
        file => cx.record::<SocketRecord>(ObjectId(file)).map(Some),
    };
    let (own, other) = (of(first.file)?, of(second.file)?);
    let own = own.ok_or_else(unsound)?;
    let held = record.standing() == Second::Held;
    if held != other.is_some() {
        return Err(unsound());
    }
    let (domain, options) = other.map_or((own.domain, Vec::new()), |other| (other.domain, other.options));
    Ok((End { record: first, domain: own.domain, options: own.options }, End { record: second, domain, options }))
}

/// An error that says at which address.
fn failed(end: &End, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => port_taken(&end.record.name),
        Some(libc::EADDRNOTAVAIL) => Error::refuse(Refusal {
            code: "address-gone",
            object: format!("address {}", show(&end.record.name)),
            owner: Owner::default(),
            cause: "it is no address of this host any more".to_owned(),
            remedy: "give the host this address again (ip address add)".to_owned(),
        }),
        _ => Error::System {
            operation: "making a TCP connection",
            subject: show(&end.record.name),
            source: error,
        },
    }
}

/// Connects one end to the other.
fn connect(knocking: &End, listening: &End) -> Result<[OwnedFd; 2]> {
    let door = listening.socket().map_err(|error| failed(listening, error))?;
    await_port(&door, &listening.record.name, Some(1), true).map_err(|error| failed(listening, error))?;
    let client = knocking.socket().map_err(|error| failed(knocking, error))?;
    match bind(&client, knocking).and_then(|()| knock(&client, &knocking.record.peer)) {
        Err(error) if in_use(&error) => {
            knock_from_old(&client, knocking).map_err(|_| failed(knocking, error))?;
        }
        other => other.map_err(|error| failed(knocking, error))?,
    }
    let wanted = parse(&knocking.record.name).map(|address| (address.ip().to_canonical(), address.port()));
    let server = loop {
        wait(&door, PollFlags::IN).map_err(|error| failed(listening, error))?;
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let server = rustix::net::accept_with(&door, flags).map_err(|error| failed(listening, error.into()))?;
        let peer = sys::peer_name(&server).map_err(|error| failed(listening, error))?.unwrap_or_default();
        // Somebody else may have knocked.
        if parse(&peer).map(|address| (address.ip().to_canonical(), address.port())) == wanted {
            break server;
        }
    };
    Ok([client, server])
}

fn bind(file: &OwnedFd, end: &End) -> io::Result<()> {
    take_port(file, &end.record.name, None, true)
}

/// Connects a socket that does not block.
fn knock(file: &OwnedFd, to: &[u8]) -> io::Result<()> {
    match sys::connect(file, to) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            wait(file, PollFlags::OUT)?;
            match sys::option_int(file, SOL_SOCKET, libc::SO_ERROR)? {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
        other => other,
    }
}

fn wait(file: &OwnedFd, events: PollFlags) -> io::Result<()> {
    let mut polled = [PollFd::new(file, events)];
    match poll(&mut polled, Some(&A_MOMENT))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Connects from a port of which an old connection is in `TIME_WAIT`, which may not be bound: the kernel chooses the port
/// when connecting, and has only this one to choose. It takes it a second after the old connection has ended.
fn knock_from_old(file: &OwnedFd, end: &End) -> io::Result<()> {
    const TRIES: usize = 40;
    const STEP: std::time::Duration = std::time::Duration::from_millis(50);
    let port = parse(&end.record.name).map_or(0, |address| u32::from(address.port()));
    let mut name = end.record.name.clone();
    name.iter_mut().skip(2).take(2).for_each(|byte| *byte = 0);
    let in_use = || io::Error::from_raw_os_error(libc::EADDRINUSE);
    sys::set_option_int(file, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    sys::set_option(file, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, &(port | port << 16).to_ne_bytes())?;
    sys::bind(file, &name)?;
    for _ in 0..TRIES {
        match knock(file, &end.record.peer) {
            Ok(()) if sys::name(file)? == end.record.name => {
                sys::set_option(file, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, &0_u32.to_ne_bytes())?;
                return sys::set_option_int(file, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 0);
            }
            Ok(()) => return Err(in_use()),
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => std::thread::sleep(STEP),
            Err(error) => return Err(error),
        }
    }
    Err(in_use())
}

/// Puts what waits into both directions, and ends the halves that were ended.
fn exchange(files: &[OwnedFd; 2], first: &End, second: &End) -> io::Result<()> {
    let [one, other] = files;
    line::fill(other, one, &first.record.received)?;
    line::fill(one, other, &second.record.received)?;
    shut(one, &first.record, &second.record)?;
    shut(other, &second.record, &first.record)
}

fn shut(file: &OwnedFd, end: &EndRecord, peer: &EndRecord) -> io::Result<()> {
    if end.shut & 2 != 0 {
        rustix::net::shutdown(file, Shutdown::Write)?;
    }
    // An end whose peer has ended its half is told by that.
    if end.shut & 1 != 0 && peer.shut & 2 == 0 && peer.file != 0 {
        rustix::net::shutdown(file, Shutdown::Read)?;
    }
    Ok(())
}

/// Those who wait to be accepted knock, the longest waiting first.
fn knock_all(cx: &mut Restore<'_>, _: ObjectId) -> Result<()> {
    let mut waiting = Vec::new();
    for id in stored::ids(cx.frames, ConnectionRecord::TAG) {
        let record: ConnectionRecord = cx.record(id)?;
        if record.standing() == Second::Unaccepted {
            waiting.push((u32::MAX - record.waited, id, record));
        }
    }
    waiting.sort_by_key(|(order, id, _)| (*order, *id));
    for (_, id, record) in waiting {
        let (first, second) = ends(cx, id, &record)?;
        let file = cx.open_file(ObjectId(first.record.file))?.try_clone().map_err(Error::system("dup", id))?;
        let flags = rustix::fs::fcntl_getfl(&file).map_err(Error::system("reading status flags", id))?;
        let set = |flags| rustix::fs::fcntl_setfl(&file, flags).map_err(Error::system("setting status flags", id));
        set(flags | rustix::fs::OFlags::NONBLOCK)?;
        let bound = sys::name(&file).is_ok_and(|name| name == first.record.name);
        let knocked = if bound { knock(&file, &first.record.peer) } else { knock_from_old(&file, &first) };
        knocked.map_err(|error| failed(&first, error))?;
        set(flags)?;
        let quiet = EndRecord { file: 1, ..second.record };
        shut(&file, &first.record, &quiet).map_err(Error::system("shutdown", id))?;
    }
    Ok(())
}

/// Last step: options, when all sockets are bound and filled.
fn finish(cx: &mut Restore<'_>, id: ObjectId) -> Result<()> {
    let record: SocketRecord = cx.record(id)?;
    let file = cx.open_file(id)?;
    options::apply_connected(file, &record.options).map_err(Error::system("setting socket options", id))
}
