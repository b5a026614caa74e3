//! Entries of the ledger as bytes: what is written is read again, and nothing else is.

use std::collections::BTreeSet;

use hdcr_sync::channel::{ChannelEnd, EndPoint, Peer};
use hdcr_sync::ids::{Author, Epoch, Incarnation, Member, Round, Term};
use hdcr_sync::ledger::{Decision, Entry};
use hdcr_sync::manifest::{EpochManifest, Share};
use proptest::prelude::*;

fn entry(members: BTreeSet<u32>, number: u64, ends: usize) -> Entry {
    let round = Round { term: Term(number), epoch: Epoch(number / 2) };
    let point = |port| EndPoint { address: [7; 16], port };
    let end = ChannelEnd { local: point(1), remote: point(2), snd_una: 1, snd_nxt: 2, rcv_nxt: 3, peer: Peer::Closed };
    let share = |member: &u32| Share {
        member: Member(*member),
        tasks: 3,
        bytes: number,
        digest: [9; 32],
        channels: vec![end; ends],
    };
    let shares = members.iter().map(share).collect();
    let manifest = EpochManifest { round, incarnation: Incarnation(number), previous: Some(round), shares };
    Entry {
        author: Author(number),
        term: Term(number),
        incarnation: Incarnation(number),
        view: members.iter().copied().map(Member).collect(),
        joined: members.into_iter().filter(|member| member % 2 == 0).map(Member).collect(),
        suspects: BTreeSet::new(),
        line: Some(round),
        decision: Decision::Commit(manifest),
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(members in prop::collection::btree_set(any::<u32>(), 0..20), number: u64, ends in 0_usize..4) {
        let entry = entry(members, number, ends);
        prop_assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
    }

    #[test]
    fn a_changed_byte_is_found(members in prop::collection::btree_set(any::<u32>(), 0..5), at: prop::sample::Index, by in 1_u8..) {
        let mut bytes = entry(members, 5, 1).encode();
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        prop_assert!(Entry::decode(&bytes).is_err());
    }

    #[test]
    fn a_part_is_refused(cut in 1_usize..100) {
        let bytes = entry(BTreeSet::from([1, 2]), 5, 1).encode();
        prop_assert!(Entry::decode(&bytes[..bytes.len() - cut]).is_err());
    }

    /// With a sum that is right, so that what stands behind it is reached.
    #[test]
    fn hostile_bytes_end(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = b"HDCREPO\x01".to_vec();
        bytes.extend(body);
        let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        bytes.extend(sum.to_le_bytes());
        if let Ok(entry) = Entry::decode(&bytes) {
            prop_assert_eq!(entry.encode(), bytes);
        }
    }
}
