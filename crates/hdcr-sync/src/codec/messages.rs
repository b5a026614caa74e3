//! The bytes of orders and reports, as they travel between hosts.

use std::collections::BTreeSet;

use super::{Damaged, Head, Reader, Writer};
use crate::ids::{Boot, Epoch, Incarnation, Member, Stamp, Stay, Term};
use crate::manifest::ShareId;
use crate::message::{Command, Condition, Next, Order, Report, Word};

const ORDER: Head = *b"HDCRORD\x01";
const REPORT: Head = *b"HDCRREP\x01";

impl Order {
    /// The bytes of this order.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::begin_as(ORDER);
        writer.int(self.to.0);
        writer.byte(u8::from(self.boot.is_some()));
        writer.long(self.boot.unwrap_or_default().0);
        writer.stamp(self.stamp);
        writer.maybe_round(self.line);
        writer.command(&self.what);
        writer.finish()
    }

    /// Reads them again; whatever the bytes are, it ends, and takes no more room than they do.
    pub fn decode(bytes: &[u8]) -> Result<Order, Damaged> {
        let mut reader = Reader::begin_as(ORDER, bytes)?;
        let to = Member(reader.int()?);
        let has_boot = reader.flag()?;
        let boot = Boot(reader.long()?);
        if !has_boot && boot != Boot::default() {
            return Err(Damaged::Value);
        }
        let boot = has_boot.then_some(boot);
        let order = Order { to, boot, stamp: reader.stamp()?, line: reader.maybe_round()?, what: reader.command()? };
        reader.finish()?;
        Ok(order)
    }
}

impl Report {
    /// The bytes of this report.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::begin_as(REPORT);
        writer.int(self.from.0);
        writer.long(self.boot.0);
        writer.long(self.stay.0);
        writer.stamp(self.stamp);
        writer.word(&self.what);
        writer.finish()
    }

    /// Reads them again; whatever the bytes are, it ends, and takes no more room than they do.
    pub fn decode(bytes: &[u8]) -> Result<Report, Damaged> {
        let mut reader = Reader::begin_as(REPORT, bytes)?;
        let report = Report {
            from: Member(reader.int()?),
            boot: Boot(reader.long()?),
            stay: Stay(reader.long()?),
            stamp: reader.stamp()?,
            what: reader.word()?,
        };
        reader.finish()?;
        Ok(report)
    }
}

impl Writer {
    fn stamp(&mut self, stamp: Stamp) {
        self.long(stamp.term.0);
        self.long(stamp.incarnation.0);
        self.long(stamp.epoch.0);
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::Hail => self.byte(1),
            Command::Welcome(stay) => {
                self.byte(2);
                self.long(stay.0);
            }
            Command::Begin => self.byte(3),
            Command::Freeze => self.byte(4),
            Command::Hold => self.byte(5),
            Command::Capture => self.byte(6),
            Command::Thaw => self.byte(7),
            Command::Commit => self.byte(8),
            Command::Abort => self.byte(9),
            Command::Fence(Next::Restored) => self.byte(10),
            Command::Fence(Next::Nothing) => self.byte(11),
            Command::Restore(shares) => {
                self.byte(12);
                self.count(shares.len());
                for share in shares {
                    self.round(share.round);
                    self.int(share.member.0);
                }
            }
            Command::Release => self.byte(13),
        }
    }

    fn word(&mut self, word: &Word) {
        match word {
            Word::Hello(condition) => {
                self.byte(1);
                self.condition(*condition);
            }
            Word::Join => self.byte(2),
            Word::Leave => self.byte(3),
            Word::Quiesced => self.byte(4),
            Word::Frozen => self.byte(5),
            Word::Held => self.byte(6),
            Word::Captured => self.byte(7),
            Word::Durable(share) => {
                self.byte(8);
                self.share(share);
            }
            Word::Failed => self.byte(9),
            Word::Fenced => self.byte(10),
            Word::Restored => self.byte(11),
            Word::Running => self.byte(12),
            Word::Superseded => self.byte(13),
        }
    }

    fn condition(&mut self, condition: Condition) {
        match condition {
            Condition::Empty => self.byte(1),
            Condition::Ended(incarnation) => {
                self.byte(2);
                self.long(incarnation.0);
            }
            Condition::Waiting => self.byte(3),
            Condition::Running(incarnation) => {
                self.byte(4);
                self.long(incarnation.0);
            }
            Condition::Between => self.byte(5),
        }
    }
}

impl Reader<'_> {
    fn flag(&mut self) -> Result<bool, Damaged> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Damaged::Value),
        }
    }

    fn stamp(&mut self) -> Result<Stamp, Damaged> {
        Ok(Stamp { term: Term(self.long()?), incarnation: Incarnation(self.long()?), epoch: Epoch(self.long()?) })
    }

    fn command(&mut self) -> Result<Command, Damaged> {
        Ok(match self.byte()? {
            1 => Command::Hail,
            2 => Command::Welcome(Stay(self.long()?)),
            3 => Command::Begin,
            4 => Command::Freeze,
            5 => Command::Hold,
            6 => Command::Capture,
            7 => Command::Thaw,
            8 => Command::Commit,
            9 => Command::Abort,
            10 => Command::Fence(Next::Restored),
            11 => Command::Fence(Next::Nothing),
            12 => Command::Restore(self.share_ids()?),
            13 => Command::Release,
            _ => return Err(Damaged::Value),
        })
    }

    fn share_ids(&mut self) -> Result<BTreeSet<ShareId>, Damaged> {
        let ids = self.list(|r| Ok(ShareId { round: r.round()?, member: Member(r.int()?) }))?;
        if !ids.is_sorted_by(|a, b| a < b) {
            return Err(Damaged::Order);
        }
        Ok(ids.into_iter().collect())
    }

    fn word(&mut self) -> Result<Word, Damaged> {
        Ok(match self.byte()? {
            1 => Word::Hello(self.condition()?),
            2 => Word::Join,
            3 => Word::Leave,
            4 => Word::Quiesced,
            5 => Word::Frozen,
            6 => Word::Held,
            7 => Word::Captured,
            8 => Word::Durable(self.share()?),
            9 => Word::Failed,
            10 => Word::Fenced,
            11 => Word::Restored,
            12 => Word::Running,
            13 => Word::Superseded,
            _ => return Err(Damaged::Value),
        })
    }

    fn condition(&mut self) -> Result<Condition, Damaged> {
        Ok(match self.byte()? {
            1 => Condition::Empty,
            2 => Condition::Ended(Incarnation(self.long()?)),
            3 => Condition::Waiting,
            4 => Condition::Running(Incarnation(self.long()?)),
            5 => Condition::Between,
            _ => return Err(Damaged::Value),
        })
    }
}
