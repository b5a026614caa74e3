//! Entries of the ledger, and messages, as bytes: what is written is read again, and nothing else is.

use std::collections::BTreeSet;

use hdcr_sync::channel::{ChannelEnd, EndPoint, Peer};
use hdcr_sync::ids::{Author, Boot, Epoch, Incarnation, Member, Round, Stamp, Stay, Term};
use hdcr_sync::ledger::{Decision, Entry};
use hdcr_sync::manifest::{EpochManifest, Share, ShareId};
use hdcr_sync::message::{Command, Condition, Next, Order, Report, Word};
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

/// The sum that stands at the end, made anew.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    bytes.extend(sum.to_le_bytes());
    bytes
}

fn commands() -> Vec<Command> {
    let id = |member| ShareId { round: Round { term: Term(3), epoch: Epoch(9) }, member: Member(member) };
    vec![
        Command::Hail,
        Command::Welcome(Stay(7)),
        Command::Begin,
        Command::Freeze,
        Command::Hold,
        Command::Capture,
        Command::Thaw,
        Command::Commit,
        Command::Abort,
        Command::Fence(Next::Restored),
        Command::Fence(Next::Nothing),
        Command::Restore(BTreeSet::from([id(1), id(5)])),
        Command::Release,
    ]
}

fn words() -> Vec<Word> {
    let Decision::Commit(manifest) = entry(BTreeSet::from([4]), 8, 2).decision else { return Vec::new() };
    let conditions = [
        Condition::Empty,
        Condition::Ended(Incarnation(2)),
        Condition::Waiting,
        Condition::Running(Incarnation(4)),
        Condition::Between,
    ];
    let plain = [
        Word::Join,
        Word::Leave,
        Word::Quiesced,
        Word::Frozen,
        Word::Held,
        Word::Captured,
        Word::Failed,
        Word::Fenced,
        Word::Restored,
        Word::Running,
        Word::Superseded,
    ];
    let durable = manifest.shares.into_iter().map(Word::Durable);
    conditions.into_iter().map(Word::Hello).chain(plain).chain(durable).collect()
}

const STAMP: Stamp = Stamp { term: Term(1), incarnation: Incarnation(2), epoch: Epoch(3) };

fn order(what: Command, boot: Option<Boot>) -> Order {
    Order { to: Member(6), boot, stamp: STAMP, line: Some(STAMP.round()), what }
}

fn report(what: Word) -> Report {
    Report { from: Member(6), boot: Boot(2), stay: Stay(1), stamp: STAMP, what }
}

#[test]
fn all_messages_are_read_as_they_were_written() {
    for what in commands() {
        for boot in [None, Some(Boot(5))] {
            let order = order(what.clone(), boot);
            assert_eq!(Order::decode(&order.encode()), Ok(order));
        }
    }
    for what in words() {
        let report = report(what);
        let bytes = report.encode();
        assert_eq!(Report::decode(&bytes), Ok(report));
        assert!(Order::decode(&bytes).is_err() && Entry::decode(&bytes).is_err());
    }
}

proptest! {
    #[test]
    fn a_changed_message_is_found(which: prop::sample::Index, at: prop::sample::Index, by in 1_u8..) {
        let (commands, words) = (commands(), words());
        let mut bytes = order(which.get(&commands).clone(), Some(Boot(1))).encode();
        let place = at.index(bytes.len());
        bytes[place] ^= by;
        prop_assert!(Order::decode(&bytes).is_err());
        let mut bytes = report(which.get(&words).clone()).encode();
        let place = at.index(bytes.len());
        bytes[place] ^= by;
        prop_assert!(Report::decode(&bytes).is_err());
    }

    #[test]
    fn hostile_messages_end(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = summed([b"HDCRORD\x01".to_vec(), body.clone()].concat());
        if let Ok(order) = Order::decode(&bytes) {
            prop_assert_eq!(order.encode(), bytes);
        }
        let bytes = summed([b"HDCRREP\x01".to_vec(), body].concat());
        if let Ok(report) = Report::decode(&bytes) {
            prop_assert_eq!(report.encode(), bytes);
        }
    }

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
        let bytes = summed([b"HDCREPO\x01".to_vec(), body].concat());
        if let Ok(entry) = Entry::decode(&bytes) {
            prop_assert_eq!(entry.encode(), bytes);
        }
    }
}
