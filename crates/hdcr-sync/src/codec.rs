//! The bytes of ledger entries and messages: a fixed head, numbers in little endian, counted lists, a check sum at the end.
//!
//! `messages.rs` has those of messages.
//! No decoder of a library: this crate stands alone, and what it reads is one small message.

mod messages;

use std::collections::BTreeSet;

use crate::channel::{ChannelEnd, EndPoint, Peer};
use crate::ids::{Author, Epoch, Incarnation, Member, Round, Term};
use crate::ledger::{Decision, Entry};
use crate::manifest::{EpochManifest, Share};

/// The first eight bytes: what it is, and the version of its encoding.
pub(crate) type Head = [u8; 8];

const ENTRY: Head = *b"HDCREPO\x01";

/// No ledger entry is longer: 100,000 members with hundreds of connections each.
const LONGEST: usize = 1 << 30;

/// Why bytes are no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damaged {
    /// The head is another, or of a later version.
    Head,
    /// The check sum does not match.
    Sum,
    /// They end too early, or go on too long.
    Length,
    /// A number is not among those that can stand there.
    Value,
    /// Members are not in rising order.
    Order,
}

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Damaged::Head => "not an entry of this version",
            Damaged::Sum => "the check sum does not match",
            Damaged::Length => "the length is wrong",
            Damaged::Value => "a value is out of range",
            Damaged::Order => "members are out of order",
        })
    }
}

impl std::error::Error for Damaged {}

/// FNV-1a: finds damage, is no seal against people.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn begin() -> Self {
        Writer::begin_as(ENTRY)
    }

    fn begin_as(head: Head) -> Self {
        Writer(head.to_vec())
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let sum = sum(&self.0);
        self.0.extend(sum.to_le_bytes());
        self.0
    }

    fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    fn long(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn int(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    /// Lists beyond the range of the count cannot exist: they would not fit into memory.
    fn count(&mut self, count: usize) {
        self.int(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn members(&mut self, members: &BTreeSet<Member>) {
        self.count(members.len());
        for member in members {
            self.int(member.0);
        }
    }

    fn round(&mut self, round: Round) {
        self.long(round.term.0);
        self.long(round.epoch.0);
    }

    fn maybe_round(&mut self, round: Option<Round>) {
        self.byte(u8::from(round.is_some()));
        if let Some(round) = round {
            self.round(round);
        }
    }

    pub(crate) fn entry(&mut self, entry: &Entry) {
        self.long(entry.author.0);
        self.long(entry.term.0);
        self.long(entry.incarnation.0);
        self.members(&entry.view);
        self.members(&entry.joined);
        self.members(&entry.suspects);
        self.maybe_round(entry.line);
        match &entry.decision {
            Decision::Claim => self.byte(1),
            Decision::View => self.byte(2),
            Decision::Commit(manifest) => {
                self.byte(3);
                self.manifest(manifest);
            }
            Decision::Rollback => self.byte(4),
        }
    }

    fn manifest(&mut self, manifest: &EpochManifest) {
        self.round(manifest.round);
        self.long(manifest.incarnation.0);
        self.maybe_round(manifest.previous);
        self.count(manifest.shares.len());
        for share in &manifest.shares {
            self.share(share);
        }
    }

    fn share(&mut self, share: &Share) {
        self.int(share.member.0);
        self.int(share.tasks);
        self.long(share.bytes);
        self.0.extend(share.digest);
        self.count(share.channels.len());
        for end in &share.channels {
            self.end_point(end.local);
            self.end_point(end.remote);
            self.int(end.snd_una);
            self.int(end.snd_nxt);
            self.int(end.rcv_nxt);
            self.byte(u8::from(end.peer == Peer::Closed));
        }
    }

    fn end_point(&mut self, point: EndPoint) {
        self.0.extend(point.address);
        self.0.extend(point.port.to_le_bytes());
    }
}

pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Head and sum are looked at before anything else.
    pub(crate) fn begin(bytes: &'a [u8]) -> Result<Self, Damaged> {
        Reader::begin_as(ENTRY, bytes)
    }

    fn begin_as(head: Head, bytes: &'a [u8]) -> Result<Self, Damaged> {
        let (rest, tail) = bytes.split_last_chunk::<8>().ok_or(Damaged::Length)?;
        if bytes.len() > LONGEST {
            return Err(Damaged::Length);
        }
        let body = rest.strip_prefix(&head).ok_or(Damaged::Head)?;
        if sum(rest) != u64::from_le_bytes(*tail) {
            return Err(Damaged::Sum);
        }
        Ok(Reader(body))
    }

    pub(crate) fn finish(self) -> Result<(), Damaged> {
        if self.0.is_empty() { Ok(()) } else { Err(Damaged::Length) }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(Damaged::Length)?;
        self.0 = rest;
        Ok(*first)
    }

    fn byte(&mut self) -> Result<u8, Damaged> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn int(&mut self) -> Result<u32, Damaged> {
        self.take().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Result<u64, Damaged> {
        self.take().map(u64::from_le_bytes)
    }

    /// A list, item by item: it grows with what is really there, not with what its count says.
    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T, Damaged>) -> Result<Vec<T>, Damaged> {
        let count = self.int()?;
        (0..count).map(|_| item(self)).collect()
    }

    fn members(&mut self) -> Result<BTreeSet<Member>, Damaged> {
        let members = self.list(|r| r.int().map(Member))?;
        rising(members.iter())?;
        Ok(members.into_iter().collect())
    }

    fn round(&mut self) -> Result<Round, Damaged> {
        Ok(Round { term: Term(self.long()?), epoch: Epoch(self.long()?) })
    }

    fn maybe_round(&mut self) -> Result<Option<Round>, Damaged> {
        match self.byte()? {
            0 => Ok(None),
            1 => self.round().map(Some),
            _ => Err(Damaged::Value),
        }
    }

    pub(crate) fn entry(&mut self) -> Result<Entry, Damaged> {
        Ok(Entry {
            author: Author(self.long()?),
            term: Term(self.long()?),
            incarnation: Incarnation(self.long()?),
            view: self.members()?,
            joined: self.members()?,
            suspects: self.members()?,
            line: self.maybe_round()?,
            decision: match self.byte()? {
                1 => Decision::Claim,
                2 => Decision::View,
                3 => Decision::Commit(self.manifest()?),
                4 => Decision::Rollback,
                _ => return Err(Damaged::Value),
            },
        })
    }

    fn manifest(&mut self) -> Result<EpochManifest, Damaged> {
        let manifest = EpochManifest {
            round: self.round()?,
            incarnation: Incarnation(self.long()?),
            previous: self.maybe_round()?,
            shares: self.list(Reader::share)?,
        };
        rising(manifest.shares.iter().map(|share| &share.member))?;
        Ok(manifest)
    }

    fn share(&mut self) -> Result<Share, Damaged> {
        Ok(Share {
            member: Member(self.int()?),
            tasks: self.int()?,
            bytes: self.long()?,
            digest: self.take()?,
            channels: self.list(Reader::channel)?,
        })
    }

    fn channel(&mut self) -> Result<ChannelEnd, Damaged> {
        Ok(ChannelEnd {
            local: self.end_point()?,
            remote: self.end_point()?,
            snd_una: self.int()?,
            snd_nxt: self.int()?,
            rcv_nxt: self.int()?,
            peer: match self.byte()? {
                0 => Peer::Open,
                1 => Peer::Closed,
                _ => return Err(Damaged::Value),
            },
        })
    }

    fn end_point(&mut self) -> Result<EndPoint, Damaged> {
        Ok(EndPoint { address: self.take()?, port: self.take().map(u16::from_le_bytes)? })
    }
}

fn rising<'a>(members: impl Iterator<Item = &'a Member>) -> Result<(), Damaged> {
    if members.is_sorted_by(|a, b| a < b) { Ok(()) } else { Err(Damaged::Order) }
}
