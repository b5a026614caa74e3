//! What the effects of the machines do in the world: messages, writes, and the work of the engines.

use std::collections::BTreeSet;

use super::world::{Cut, Packet, at};
use super::{Fault, Programs, Setup, World};
use crate::channel::{ChannelEnd, EndPoint, Peer};
use crate::coordinator;
use crate::ids::{Member, Seq, Stamp};
use crate::ledger::{Decision, End};
use crate::manifest::{EpochManifest, Share, ShareId};
use crate::participant::{self, Work};

pub(super) fn share(member: Member, channels: Vec<ChannelEnd>) -> Share {
    Share { member, tasks: 1, bytes: 1, digest: [0; 32], channels }
}

impl World {
    /// Takes an event to a coordinator, and its effects into the world.
    pub(crate) fn seat(&mut self, seat: usize, event: coordinator::Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let Some(machine) = self.seats[seat].machine.as_mut() else { return };
            for effect in machine.step(event) {
                events.extend(self.of_coordinator(seat, effect));
            }
        }
    }

    fn of_coordinator(&mut self, seat: usize, effect: coordinator::Effect) -> Option<coordinator::Event> {
        use coordinator::Effect;
        match effect {
            Effect::ReadLedger => {
                let seq = Seq(u64::try_from(self.ledger.len()).ok()?.checked_sub(1)?);
                let last = self.ledger.last().map(|(entry, _)| (seq, entry.clone()));
                let manifest = self.newest_commit().cloned();
                return Some(coordinator::Event::Read(End { last, manifest }));
            }
            Effect::Append(seq, entry) => self.seats[seat].write = Some((seq, *entry)),
            Effect::Send(order) => self.send(Packet::Order(order)),
            Effect::Arm(timer) => self.seats[seat].timer = Some(timer),
            Effect::Exclude(member, incarnation) => {
                self.seats[seat].excluding.insert((member, incarnation));
            }
            Effect::Committed(round) => {
                self.told.insert(round);
            }
            Effect::Aborted(round, _) => {
                self.denied.insert(round);
            }
            Effect::Collect { keep, before } => {
                self.seats[seat].collecting = Some((keep, before));
            }
            Effect::RolledBack(_) | Effect::Unrecoverable | Effect::Deposed => {}
        }
        None
    }

    pub(crate) fn newest_commit(&self) -> Option<&EpochManifest> {
        self.ledger.iter().rev().find_map(|(entry, _)| match &entry.decision {
            Decision::Commit(manifest) => Some(manifest),
            Decision::Claim | Decision::View | Decision::Rollback => None,
        })
    }

    /// Takes an event to an agent, and its effects into the world.
    pub(crate) fn agent(&mut self, setup: &Setup, member: Member, event: participant::Event) {
        let Some(agent) = self.hosts[at(member)].agent.as_mut() else { return };
        for effect in agent.step(event) {
            let host = &mut self.hosts[at(member)];
            match effect {
                participant::Effect::Send(report) => self.send(Packet::Report(report)),
                participant::Effect::ArmLease(stamp) => host.lease = Some(stamp),
                participant::Effect::DropLease => host.lease = None,
                participant::Effect::Work(work, stamp) => self.work(member, work, stamp),
            }
        }
        let is_done = !setup.is_slow && self.hosts[at(member)].work.is_some();
        if is_done && let Some((work, stamp)) = self.hosts[at(member)].work.take() {
            self.finish(setup, member, work, stamp);
        }
    }

    fn work(&mut self, member: Member, work: Work, stamp: Stamp) {
        let host = &mut self.hosts[at(member)];
        match work {
            Work::Thaw => {
                host.thaw();
                host.work = None;
            }
            Work::Kill => {
                host.kill();
                host.image = None;
                host.work = Some((work, stamp));
            }
            Work::Settle => {
                host.image = None;
                host.work = None;
                let is_there = self.ledger.iter().any(|(entry, _)| entry.line == Some(stamp.round()));
                if !is_there {
                    self.wrong.insert("a dirty set is dropped by a commit only");
                }
            }
            Work::Merge => {
                host.image = None;
                host.work = None;
                self.denied.insert(stamp.round());
            }
            Work::Admit => {
                if self.lost.contains(&(member, stamp.incarnation)) {
                    self.wrong.insert("no new tasks in the place of lost ones");
                }
                if host.programs == Programs::Waiting {
                    host.programs = Programs::Running(stamp.incarnation);
                }
            }
            other => host.work = Some((other, stamp)),
        }
    }

    /// The engine has done what it was asked.
    pub(super) fn finish(&mut self, setup: &Setup, member: Member, work: Work, stamp: Stamp) {
        let host = &mut self.hosts[at(member)];
        match &work {
            Work::Freeze => {
                if let Programs::Running(incarnation) = host.programs {
                    host.programs = Programs::Frozen(incarnation);
                }
            }
            Work::Hold => host.is_held = setup.fault != Fault::LeakyHold,
            Work::Capture => {
                host.image = Some(stamp.round());
                let id = ShareId { round: stamp.round(), member };
                let ends = self.ends_of(member);
                if !ends.is_empty() {
                    self.ends.insert(id, ends);
                }
                let view = self.ledger.last().map(|(entry, _)| entry.view.clone()).unwrap_or_default();
                let cut = Cut { view, ..Cut::default() };
                self.cuts.entry(stamp.round()).or_insert(cut).captured.insert(member);
                self.look_at_cuts();
            }
            Work::Persist => {
                host.image = None;
                let id = ShareId { round: stamp.round(), member };
                self.shares.insert(id, setup.fault != Fault::UnsyncedShares);
                let channels = self.ends.remove(&id).unwrap_or_default();
                return self.agent(setup, member, participant::Event::Written(share(member, channels), stamp));
            }
            Work::Restore(shares) => {
                if !shares.iter().all(|id| self.shares.contains_key(id)) {
                    self.wrong.insert("what is restored is there");
                }
                host.programs = Programs::Gate(stamp.incarnation);
                host.origin.clone_from(shares);
                host.is_held = true;
                self.built.entry(stamp.incarnation).or_default().extend(shares);
            }
            Work::Release => {
                if let Programs::Gate(incarnation) = host.programs {
                    host.programs = Programs::Running(incarnation);
                }
                host.is_held = false;
                let again = host.origin.iter().filter(|id| !self.ran.insert((stamp.incarnation, **id))).count();
                if again > 0 {
                    self.wrong.insert("in one run of the job a share is let run once");
                }
                let all: BTreeSet<ShareId> = self.newest_commit().iter().flat_map(|m| m.share_ids()).collect();
                if self.built.get(&stamp.incarnation) != Some(&all) {
                    self.wrong.insert("nothing runs before all is built");
                }
            }
            Work::Quiesce | Work::Kill | Work::Thaw | Work::Settle | Work::Merge | Work::Admit => {}
        }
        self.agent(setup, member, participant::Event::Done(work, stamp));
    }

    fn ends_of(&self, member: Member) -> Vec<ChannelEnd> {
        let mut ends = Vec::new();
        for ((from, to), out) in self.flows.iter().filter(|((from, _), _)| *from == member) {
            let back = self.flows.get(&(*to, *from)).copied().unwrap_or_default();
            ends.push(ChannelEnd {
                local: point(*from),
                remote: point(*to),
                snd_una: out.acknowledged,
                snd_nxt: out.sent,
                rcv_nxt: back.received,
                peer: Peer::Open,
            });
        }
        ends
    }
}

/// One address a host: ports would only multiply the states.
fn point(member: Member) -> EndPoint {
    let [a, b, c, d] = member.0.to_le_bytes();
    EndPoint { address: [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], port: 1 }
}
