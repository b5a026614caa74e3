//! The world: what can happen in it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Budget, Fault, Host, Programs, Setup};
use crate::channel::ChannelEnd;
use crate::coordinator::{self, Coordinator};
use crate::ids::{Author, Incarnation, Member, Round, Seq};
use crate::ledger::{Entry, Outcome};
use crate::manifest::ShareId;
use crate::message::{Order, Report};
use crate::participant::{self, Found, Participant};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Seat {
    pub(crate) machine: Option<Coordinator>,
    pub(crate) is_started: bool,
    pub(crate) write: Option<(Seq, Entry)>,
    pub(crate) timer: Option<u64>,
    pub(crate) excluding: BTreeSet<(Member, Incarnation)>,
    pub(crate) collecting: Option<(Vec<Round>, Round)>,
}

/// One direction of a connection between two hosts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub(crate) sent: u32,
    pub(crate) received: u32,
    pub(crate) acknowledged: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Cut {
    /// Who is in the job as the first of them is captured.
    pub(crate) view: BTreeSet<Member>,
    pub(crate) captured: BTreeSet<Member>,
    pub(crate) is_disturbed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Packet {
    Order(Order),
    Report(Report),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) seats: Vec<Seat>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) net: BTreeSet<Packet>,
    pub(crate) ledger: Vec<(Entry, bool)>,
    /// Writes of which the writer does not know whether they will ever arrive.
    pub(crate) adrift: BTreeSet<(Seq, Entry)>,
    pub(crate) shares: BTreeMap<ShareId, bool>,
    pub(crate) flows: BTreeMap<(Member, Member), Flow>,
    pub(crate) ends: BTreeMap<ShareId, Vec<ChannelEnd>>,
    pub(crate) cuts: BTreeMap<Round, Cut>,
    pub(crate) told: BTreeSet<Round>,
    pub(crate) denied: BTreeSet<Round>,
    pub(crate) built: BTreeMap<Incarnation, BTreeSet<ShareId>>,
    /// What was let run, by the run that it was built for.
    pub(crate) ran: BTreeSet<(Incarnation, ShareId)>,
    /// Where tasks of a run were lost: the run is not whole any more, whoever comes in their place.
    pub(crate) lost: BTreeSet<(Member, Incarnation)>,
    /// What was sent since a simulation has looked; a search does not look.
    pub(crate) sent: Option<Vec<Packet>>,
    /// What went wrong in the very step.
    pub(crate) wrong: BTreeSet<&'static str>,
    pub(crate) left: Budget,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Deliver(usize, Packet),
    Start(usize),
    Checkpoint(usize),
    Deadline(usize),
    Resend(usize),
    Lost(usize, Member),
    Suspect(usize, Member),
    Connect(usize, Member),
    Excluded(usize, Member, Incarnation),
    Write(usize, Landing),
    Land(Seq, Entry),
    Collect(usize),
    CoordinatorDies(usize),
    Finish(Member),
    Fail(Member),
    LeaseEnds(Member),
    AgentDies(Member),
    AgentStarts(Member),
    HostDies(Member),
    TaskDies(Member),
    TasksEnd(Member),
    EndIsHeard(Member),
    TasksArrive(Member),
    PowerCut,
    Send(Member, Member),
    Carry(Member, Member),
    Acknowledge(Member, Member),
}

/// What becomes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Landing {
    Known,
    LandedUnknown,
    AdriftUnknown,
}

pub(super) fn at(member: Member) -> usize {
    usize::try_from(member.0).unwrap_or(usize::MAX)
}

/// A simulation has no budget.
fn spend(left: &mut u8) {
    *left = left.saturating_sub(1);
}

impl World {
    pub(super) fn send(&mut self, packet: Packet) {
        if let Some(sent) = &mut self.sent {
            sent.push(packet.clone());
        }
        self.net.insert(packet);
    }

    pub(crate) fn act(&mut self, setup: &Setup, action: &Action) {
        match action {
            Action::Deliver(_, Packet::Order(order)) => {
                self.agent(setup, order.to, participant::Event::Order(order.clone()));
            }
            Action::Land(seq, entry) => {
                self.adrift.remove(&(*seq, entry.clone()));
                self.put(setup, *seq, entry);
            }
            Action::PowerCut => {
                spend(&mut self.left.power);
                self.shares.retain(|_, is_synced| *is_synced);
                self.ledger.retain(|(_, is_synced)| *is_synced);
            }
            Action::Send(from, to) => {
                spend(&mut self.left.packets);
                self.flow(*from, *to, |flow| flow.sent += 1);
            }
            Action::Carry(from, to) => self.flow(*from, *to, |flow| flow.received = flow.sent),
            Action::Acknowledge(from, to) => self.flow(*from, *to, |flow| flow.acknowledged = flow.received),
            Action::Finish(member)
            | Action::Fail(member)
            | Action::LeaseEnds(member)
            | Action::AgentDies(member)
            | Action::AgentStarts(member)
            | Action::HostDies(member)
            | Action::TaskDies(member)
            | Action::TasksEnd(member)
            | Action::EndIsHeard(member)
            | Action::TasksArrive(member) => self.on_host(setup, *member, action),
            _ => self.on_seat(setup, action),
        }
        if !setup.is_slow {
            (0..self.seats.len()).for_each(|seat| self.collect(seat));
        }
        self.look_at_cuts();
    }

    /// Takes away what the last commit of this coordinator has made garbage.
    fn collect(&mut self, seat: usize) {
        if let Some((keep, before)) = self.seats[seat].collecting.take() {
            self.shares.retain(|id, _| id.round >= before || keep.contains(&id.round));
        }
    }

    fn on_seat(&mut self, setup: &Setup, action: &Action) {
        match action {
            Action::Deliver(seat, Packet::Report(report)) => {
                self.seat(*seat, coordinator::Event::Report(report.clone()));
            }
            Action::Start(seat) => {
                let author = Author(u64::try_from(*seat).unwrap_or(0) + 1);
                self.seats[*seat].is_started = true;
                self.seats[*seat].machine = Some(Coordinator::with(setup.rules, author));
                self.seat(*seat, coordinator::Event::Start);
            }
            Action::Checkpoint(seat) => {
                spend(&mut self.left.checkpoints);
                self.seat(*seat, coordinator::Event::Checkpoint);
            }
            Action::Deadline(seat) => {
                spend(&mut self.left.deadlines);
                if let Some(timer) = self.seats[*seat].timer.take() {
                    self.seat(*seat, coordinator::Event::Deadline(timer));
                }
            }
            Action::Resend(seat) => self.seat(*seat, coordinator::Event::Resend),
            Action::Suspect(seat, member) => {
                spend(&mut self.left.suspicions);
                self.seat(*seat, coordinator::Event::Lost(*member));
            }
            Action::Collect(seat) => self.collect(*seat),
            Action::Lost(seat, member) => self.seat(*seat, coordinator::Event::Lost(*member)),
            Action::Connect(seat, member) => self.seat(*seat, coordinator::Event::Connected(*member)),
            Action::Excluded(seat, member, incarnation) => {
                self.seats[*seat].excluding.remove(&(*member, *incarnation));
                self.hosts[at(*member)].die();
                self.seat(*seat, coordinator::Event::Excluded(*member, *incarnation));
            }
            Action::Write(seat, landing) => self.write(setup, *seat, *landing),
            Action::CoordinatorDies(seat) => {
                spend(&mut self.left.coordinators);
                let write = self.seats[*seat].write.take();
                self.adrift.extend(write);
                self.seats[*seat].machine = None;
                self.seats[*seat].timer = None;
                self.seats[*seat].excluding.clear();
            }
            _ => {}
        }
    }

    fn on_host(&mut self, setup: &Setup, member: Member, action: &Action) {
        if matches!(action, Action::HostDies(_) | Action::TaskDies(_)) {
            self.lost.extend(self.hosts[at(member)].runs().map(|incarnation| (member, incarnation)));
        }
        // Only orders come between the end of tasks and the word of it.
        if std::mem::take(&mut self.hosts[at(member)].has_news)
            && !matches!(action, Action::HostDies(_) | Action::AgentDies(_))
        {
            self.agent(setup, member, participant::Event::Ended);
        }
        let host = &mut self.hosts[at(member)];
        match action {
            Action::Finish(_) => {
                if let Some((work, stamp)) = host.work.take() {
                    self.finish(setup, member, work, stamp);
                }
            }
            Action::Fail(_) => {
                spend(&mut self.left.failures);
                if let Some((work, stamp)) = host.work.take() {
                    self.agent(setup, member, participant::Event::Failed(work, stamp));
                }
            }
            Action::LeaseEnds(_) => {
                spend(&mut self.left.leases);
                if let Some(stamp) = host.lease.take() {
                    self.agent(setup, member, participant::Event::LeaseEnded(stamp));
                }
            }
            Action::AgentDies(_) => {
                spend(&mut self.left.agents);
                host.agent_dies();
            }
            Action::AgentStarts(_) => {
                spend(&mut self.left.boots);
                host.boot = host.boot.next();
                let found = host.runs().map_or(Found::Nothing, Found::Tasks);
                let last = self.ledger.last().map(|(entry, _)| entry);
                host.agent = Some(Participant::with(setup.rules, member, host.boot, last, found));
            }
            Action::HostDies(_) => {
                spend(&mut self.left.hosts);
                host.die();
            }
            Action::TaskDies(_) => {
                spend(&mut self.left.deaths);
                host.kill();
                self.agent(setup, member, participant::Event::Died);
            }
            Action::TasksEnd(_) => {
                spend(&mut self.left.ends);
                host.kill();
                host.has_news = true;
            }
            Action::TasksArrive(_) => {
                spend(&mut self.left.arrivals);
                host.programs = Programs::Waiting;
                self.agent(setup, member, participant::Event::Arrived);
            }
            _ => {}
        }
    }

    fn flow(&mut self, from: Member, to: Member, change: impl Fn(&mut Flow)) {
        if let Some(flow) = self.flows.get_mut(&(from, to)) {
            change(flow);
        }
    }

    fn put(&mut self, setup: &Setup, seq: Seq, entry: &Entry) {
        let is_free = u64::try_from(self.ledger.len()).is_ok_and(|len| len == seq.0);
        if is_free {
            self.ledger.push((entry.clone(), setup.fault != Fault::UnsyncedLedger));
        }
    }

    fn write(&mut self, setup: &Setup, seat: usize, landing: Landing) {
        let Some((seq, entry)) = self.seats[seat].write.take() else { return };
        let outcome = match landing {
            Landing::Known => {
                self.put(setup, seq, &entry);
                let there = usize::try_from(seq.0).ok().and_then(|seq| self.ledger.get(seq));
                match there {
                    Some((there, _)) if *there == entry => Outcome::Written,
                    Some((there, _)) => Outcome::Taken(there.clone()),
                    None => Outcome::Unknown,
                }
            }
            Landing::LandedUnknown => {
                spend(&mut self.left.unknowns);
                self.put(setup, seq, &entry);
                Outcome::Unknown
            }
            Landing::AdriftUnknown => {
                spend(&mut self.left.unknowns);
                self.adrift.insert((seq, entry));
                Outcome::Unknown
            }
        };
        self.seat(seat, coordinator::Event::Appended(seq, outcome));
    }

    /// Between the first and the last capture of a round nothing may run and no packet may move.
    pub(super) fn look_at_cuts(&mut self) {
        let hosts = &self.hosts;
        for cut in self.cuts.values_mut().filter(|cut| cut.captured != cut.view) {
            cut.is_disturbed |= cut.view.iter().any(|member| hosts.get(at(*member)).is_some_and(|h| !h.is_still()));
        }
    }
}
