//! The check of connections inside a job: what one end has sent against what the other end has got.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Member;

/// Address and port; IPv4 in the form that IPv6 has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndPoint {
    /// The address.
    pub address: [u8; 16],
    /// The port.
    pub port: u16,
}

/// One end of an established connection as it was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelEnd {
    /// This end.
    pub local: EndPoint,
    /// The other.
    pub remote: EndPoint,
    /// The oldest byte that was sent and not acknowledged.
    pub snd_una: u32,
    /// The next byte that will be sent first.
    pub snd_nxt: u32,
    /// The next byte that is expected.
    pub rcv_nxt: u32,
    /// Whether the other end has closed, and may be gone.
    pub peer: Peer,
}

/// What is known of the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// It must be there.
    Open,
    /// It has closed and may have been forgotten by its kernel.
    Closed,
}

/// Why a set of ends is no consistent cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Inconsistent {
    /// One address pair, the same direction, twice.
    Twice(Member, EndPoint),
    /// The other end is at an address of the job and was not captured.
    Missing(Member, EndPoint),
    /// The receiver has got what the sender has not sent: an orphan.
    Orphan(Member, EndPoint),
    /// The sender has forgotten what the receiver has not got.
    Lost(Member, EndPoint),
}

/// Whether `snd_una(A) <= rcv_nxt(B) <= snd_nxt(A)` for each connection and direction with both ends in the job.
pub fn check<'a>(ends: impl IntoIterator<Item = (Member, &'a ChannelEnd)>) -> Result<(), Inconsistent> {
    let mut found: BTreeMap<(EndPoint, EndPoint), (Member, &ChannelEnd)> = BTreeMap::new();
    for (member, end) in ends {
        if found.insert((end.local, end.remote), (member, end)).is_some() {
            return Err(Inconsistent::Twice(member, end.local));
        }
    }
    let inside: BTreeSet<[u8; 16]> = found.keys().map(|(local, _)| local.address).collect();
    for (member, end) in found.values() {
        let Some((_, other)) = found.get(&(end.remote, end.local)) else {
            if inside.contains(&end.remote.address) && end.peer == Peer::Open {
                return Err(Inconsistent::Missing(*member, end.local));
            }
            continue;
        };
        // Numbers wrap: of two within a window one is before the other.
        if !at_most(other.rcv_nxt, end.snd_nxt) {
            return Err(Inconsistent::Orphan(*member, end.local));
        }
        if !at_most(end.snd_una, other.rcv_nxt) {
            return Err(Inconsistent::Lost(*member, end.local));
        }
    }
    Ok(())
}

/// `a <= b` for numbers that wrap.
fn at_most(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(local: u16, remote: u16, numbers: [u32; 3]) -> ChannelEnd {
        let at = |port| EndPoint { address: [0; 16], port };
        let [snd_una, snd_nxt, rcv_nxt] = numbers;
        ChannelEnd { local: at(local), remote: at(remote), snd_una, snd_nxt, rcv_nxt, peer: Peer::Open }
    }

    fn check_ends(a: [u32; 3], b: [u32; 3]) -> Result<(), Inconsistent> {
        let (a, b) = (end(1, 2, a), end(2, 1, b));
        check([(Member(1), &a), (Member(2), &b)])
    }

    fn at(port: u16) -> EndPoint {
        EndPoint { address: [0; 16], port }
    }

    #[test]
    fn what_was_sent_and_not_received_is_in_the_senders_queue() {
        assert_eq!(check_ends([10, 20, 5], [5, 5, 10]), Ok(()));
        assert_eq!(check_ends([10, 20, 5], [5, 5, 20]), Ok(()));
    }

    #[test]
    fn orphans_and_losses_are_found() {
        assert_eq!(check_ends([10, 20, 5], [5, 5, 21]), Err(Inconsistent::Orphan(Member(1), at(1))));
        assert_eq!(check_ends([10, 20, 5], [5, 5, 9]), Err(Inconsistent::Lost(Member(1), at(1))));
        assert_eq!(check_ends([5, 5, 21], [10, 20, 5]), Err(Inconsistent::Orphan(Member(2), at(2))));
    }

    #[test]
    fn numbers_wrap() {
        assert_eq!(check_ends([u32::MAX - 1, 3, 7], [7, 7, 1]), Ok(()));
        assert_eq!(check_ends([u32::MAX, 3, 7], [7, 7, u32::MAX - 1]), Err(Inconsistent::Lost(Member(1), at(1))));
        assert_eq!(check_ends([u32::MAX, 3, 7], [7, 7, 4]), Err(Inconsistent::Orphan(Member(1), at(1))));
    }

    #[test]
    fn an_end_without_its_other_end() {
        let mut a = end(1, 2, [0; 3]);
        let one = |a: &ChannelEnd| check([(Member(1), a)]);
        assert_eq!(one(&a), Err(Inconsistent::Missing(Member(1), at(1))));
        a.peer = Peer::Closed;
        assert_eq!(one(&a), Ok(()));
        a.peer = Peer::Open;
        a.remote.address = [9; 16];
        assert_eq!(one(&a), Ok(()));
        assert_eq!(check([(Member(1), &a), (Member(2), &a)]), Err(Inconsistent::Twice(Member(2), at(1))));
    }
}
