//! Sockets: one kind of open file, since only the socket itself tells its family.
//!
//! UNIX sockets: `unix.rs`, `census.rs`, `queue.rs`, `name.rs`. TCP and UDP: `inet.rs`; TCP connections: `tcp.rs`, `tcp_restore.rs`,
//! `line.rs`. Netlink: `netlink.rs`. What every socket has in
//! the way of options: `options.rs`. Every other family is refused by name. Not captured: `SO_PEERCRED` (it becomes that
//! of the restoring command), `SO_COOKIE`.

mod census;
mod inet;
mod line;
mod name;
mod netlink;
mod options;
mod queue;
mod tcp;
mod tcp_restore;
mod unix;
mod unix_restore;

use std::os::fd::OwnedFd;

use hdcr_image::{Record, Tag};
use hdcr_sys::socket as sys;
use nix::libc;

use super::outside::{self, OutsideRecord};
use super::{FileKind, FileView};
use crate::capture::Capture;
use crate::error::{Error, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::survey::Survey;

pub(crate) use census::Census;
pub(crate) use name::nobody_answers;
pub(crate) use queue::{Queues, look};
pub(crate) use tcp::ConnectionRecord;

pub(crate) struct Socket;

/// What is kept of a socket.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SocketRecord {
    /// `AF_*`.
    #[prost(int32, tag = "1")]
    domain: i32,
    /// `SOCK_*`.
    #[prost(int32, tag = "2")]
    kind: i32,
    #[prost(int32, tag = "3")]
    protocol: i32,
    #[prost(message, repeated, tag = "4")]
    options: Vec<options::OptionValue>,
    #[prost(message, optional, tag = "5")]
    unix: Option<unix::UnixRecord>,
    #[prost(message, optional, tag = "6")]
    inet: Option<inet::InetRecord>,
    #[prost(message, optional, tag = "7")]
    netlink: Option<netlink::NetlinkRecord>,
    #[prost(message, optional, tag = "8")]
    outside: Option<OutsideRecord>,
}

impl Record for SocketRecord {
    const TAG: Tag = Tag(0x0254);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl SocketRecord {
    /// What a user knows it by: family, type, address.
    pub(crate) fn summary(&self) -> String {
        let family = match self.domain {
            1 => "UNIX",
            2 => "IPv4",
            10 => "IPv6",
            16 => "netlink",
            _ => "other",
        };
        let kind = match self.kind {
            1 => "stream",
            2 => "datagram",
            3 => "raw",
            5 => "seqpacket",
            _ => "other",
        };
        let unix = self.unix.as_ref().and_then(|unix| {
            let at = name::path(&unix.name).map(|path| path.display().to_string());
            at.or_else(|| (unix.pair != 0).then(|| format!("pair {}", unix.pair)))
        });
        let inet = self.inet.as_ref().and_then(|inet| {
            let what = match (inet.listening, inet.connected) {
                (true, _) => "listens at",
                (_, true) => "connected at",
                _ => "at",
            };
            Some(format!("{what} {}", inet_address(&inet.name)?))
        });
        [Some(family.to_owned()), Some(kind.to_owned()), unix, inet].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// The address in a `sockaddr_in` or `sockaddr_in6` (ip(7), ipv6(7)).
fn inet_address(bytes: &[u8]) -> Option<std::net::SocketAddr> {
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let address = match bytes.get(..2)? {
        [2, 0] => std::net::IpAddr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?),
        [10, 0] => std::net::IpAddr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?),
        _ => return None,
    };
    Some((address, port).into())
}

/// Domain, type and protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Family {
    domain: i32,
    kind: i32,
    protocol: i32,
}

impl Family {
    fn of(view: &FileView, file: &OwnedFd) -> Result<Self> {
        let ask =
            |name| sys::option_int(file, libc::SOL_SOCKET, name).map_err(Error::system("getsockopt", subject(view)));
        Ok(Self { domain: ask(libc::SO_DOMAIN)?, kind: ask(libc::SO_TYPE)?, protocol: ask(libc::SO_PROTOCOL)? })
    }
}

fn subject(view: &FileView) -> String {
    format!("pid {}, fd {}", view.pid, view.fd)
}

impl FileKind for Socket {
    type Record = SocketRecord;

    fn claims(view: &FileView) -> bool {
        view.starts_with("socket:[")
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        let file = view.duplicate()?;
        let family = Family::of(view, &file)?;
        if let Some(refusal) = filtered(view, &file) {
            survey.refuse(refusal);
        }
        match family.domain {
            libc::AF_UNIX => unix::survey(survey, view, &file),
            libc::AF_INET | libc::AF_INET6 => inet::survey(survey, view, &file, family),
            libc::AF_NETLINK => {
                netlink::survey(survey, view, family);
                Ok(())
            }
            _ => {
                survey.refuse(unknown(view, family));
                Ok(())
            }
        }
    }

    fn capture(cx: &mut Capture<'_>, view: &FileView, file: &OwnedFd) -> Result<SocketRecord> {
        let family = Family::of(view, file)?;
        if let Some(refusal) = filtered(view, file) {
            return Err(Error::refuse(refusal));
        }
        let mut record = SocketRecord {
            domain: family.domain,
            kind: family.kind,
            protocol: family.protocol,
            options: options::capture(file, family),
            ..SocketRecord::default()
        };
        match family.domain {
            libc::AF_UNIX => unix::capture(cx, view, file, &mut record)?,
            libc::AF_INET | libc::AF_INET6 => inet::capture(cx, view, file, &mut record)?,
            libc::AF_NETLINK => record.netlink = Some(netlink::capture(view, file, family)?),
            _ => return Err(Error::refuse(unknown(view, family))),
        }
        Ok(record)
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: SocketRecord) -> Result<OwnedFd> {
        if let Some(outside) = &record.outside {
            return outside::restore(cx, id, outside);
        }
        if record.unix.is_some() {
            return unix_restore::restore(cx, id, &record);
        }
        if record.kind == libc::SOCK_STREAM
            && let Some(inet) = &record.inet
        {
            // Before any socket listens that had accepted one of them.
            tcp_restore::connect_all(cx)?;
            if inet.connected {
                return tcp_restore::take(cx, id);
            }
        }
        let file = sys::socket(record.domain, record.kind, record.protocol).map_err(Error::system("socket", id))?;
        if let Some(inet) = &record.inet {
            return inet::restore(id, file, &record, inet);
        }
        if let Some(netlink) = &record.netlink {
            options::apply(&file, &record.options).map_err(Error::system("setting socket options", id))?;
            netlink::restore(&file, netlink).map_err(Error::system("binding a netlink socket", id))?;
            return Ok(file);
        }
        Err(Error::Unsound(format!("{id} is a socket of no family")))
    }
}

fn unknown(view: &FileView, family: Family) -> Refusal {
    let name = match family.domain {
        libc::AF_PACKET => "packet socket",
        libc::AF_VSOCK => "vsock socket",
        libc::AF_ALG => "kernel cryptography socket",
        libc::AF_BLUETOOTH => "bluetooth socket",
        libc::AF_CAN => "CAN socket",
        libc::AF_XDP => "XDP socket",
        libc::AF_TIPC => "TIPC socket",
        libc::AF_KEY => "key management socket",
        _ => "socket of a family that is not known here",
    };
    let cause = format!(
        "family {}, type {}, protocol {} cannot be made again with its state",
        family.domain, family.kind, family.protocol
    );
    view.refuse("socket-family", name, &cause, "close it before the checkpoint")
}

/// A socket with a packet filter. Asked without room for it, the kernel returns its length in instructions.
fn filtered(view: &FileView, file: &OwnedFd) -> Option<Refusal> {
    let filter = match sys::option_length(file, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER) {
        Ok(length) => length > 0,
        // An eBPF filter has no classic form (net/core/filter.c `sk_get_filter`).
        Err(error) => error.raw_os_error() == Some(libc::EACCES),
    };
    let refuse = || {
        let remedy = "detach the filter before the checkpoint";
        view.refuse("socket-filter", "socket with a BPF filter", "its filter cannot be put on again", remedy)
    };
    filter.then(refuse)
}
