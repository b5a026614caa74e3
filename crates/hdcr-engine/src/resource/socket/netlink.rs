//! Netlink sockets: type, protocol, port, groups, options. Only while no message waits in them.

use std::io;
use std::os::fd::OwnedFd;

use hdcr_sys::socket as sys;
use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Family, subject, unknown};
use crate::error::{Error, Result};
use crate::resource::FileView;
use crate::survey::Survey;

/// What is kept of a netlink socket.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct NetlinkRecord {
    /// Its address (`struct sockaddr_nl`), with port 0 while it is not bound.
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    /// Bit map of its groups, in words of 32 bits.
    #[prost(uint32, repeated, tag = "2")]
    groups: Vec<u32>,
}

/// Protocols whose sockets hold nothing beyond port, groups and options while they are idle.
const PLAIN: [i32; 4] =
    [libc::NETLINK_ROUTE, libc::NETLINK_SOCK_DIAG, libc::NETLINK_KOBJECT_UEVENT, libc::NETLINK_GENERIC];

pub(super) fn survey(survey: &mut Survey<'_>, view: &FileView, family: Family) {
    if !PLAIN.contains(&family.protocol) {
        survey.refuse(unknown(view, family));
    }
}

pub(super) fn capture(view: &FileView, file: &OwnedFd, family: Family) -> Result<NetlinkRecord> {
    if !PLAIN.contains(&family.protocol) {
        return Err(Error::refuse(unknown(view, family)));
    }
    let mut polled = [PollFd::new(file, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).map_err(Error::system("poll", subject(view)))?;
    if !polled.first().is_some_and(|polled| polled.revents().is_empty()) {
        return Err(Error::Changed {
            subject: subject(view),
            what: "a netlink socket with an unread message".to_owned(),
        });
    }
    let name = sys::name(file).map_err(Error::system("getsockname", subject(view)))?;
    let groups = sys::option(file, libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS, 64);
    let groups = groups.map_err(Error::system("getsockopt", subject(view)))?;
    Ok(NetlinkRecord { name, groups: groups.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)).collect() })
}

pub(super) fn restore(file: &OwnedFd, record: &NetlinkRecord) -> io::Result<()> {
    let port = record.name.get(4..8).is_some_and(|port| port != [0; 4]);
    if port {
        let mut name = record.name.clone();
        // Groups are joined one by one below, the first 32 too.
        name.get_mut(8..12).into_iter().for_each(|groups| groups.fill(0));
        sys::bind(file, &name)?;
    }
    for (word, bits) in (0..).zip(&record.groups) {
        for bit in (0..32).filter(|bit| bits >> bit & 1 == 1) {
            sys::set_option_int(file, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, word * 32 + bit + 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::testing;

    #[test]
    fn port_and_groups_come_back() {
        let family = Family { domain: libc::AF_NETLINK, kind: libc::SOCK_RAW, protocol: libc::NETLINK_ROUTE };
        let old = sys::socket(family.domain, family.kind, family.protocol).unwrap();
        sys::bind(&old, &[&[16, 0, 0, 0][..], &[0; 4], &0x11_u32.to_ne_bytes()].concat()).unwrap();
        sys::set_option_int(&old, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, 33).unwrap();
        let view = testing::view("socket:[1]", 2);
        let record = capture(&view, &old, family).unwrap();
        drop(old);
        let new = sys::socket(family.domain, family.kind, family.protocol).unwrap();
        restore(&new, &record).unwrap();
        assert_eq!(capture(&view, &new, family).unwrap(), record);
        assert_eq!(record.groups.iter().map(|word| word.count_ones()).sum::<u32>(), 3);
    }
}
