//! The world: what can happen in it, and what then does.

use std::collections::{BTreeMap, BTreeSet};

use super::{Host, Programs};
use crate::channel::{ChannelEnd, EndPoint, Peer};
use crate::coordinator::{self, Coordinator};
use crate::ids::{Author, Boot, Incarnation, Member, Round, Seq, Stamp, Term};
use crate::ledger::{Decision, End, Entry, Outcome};
use crate::manifest::{EpochManifest, Share, ShareId};
use crate::message::{Order, Report};
use crate::participant::{self, Found, Participant, Work};
use crate::rules::Rules;

/// How often what may happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) checkpoints: u8,
    pub(crate) leases: u8,
    pub(crate) deadlines: u8,
    pub(crate) agents: u8,
    pub(crate) hosts: u8,
    pub(crate) coordinators: u8,
    pub(crate) suspicions: u8,
    pub(crate) unknowns: u8,
    pub(crate) failures: u8,
    pub(crate) deaths: u8,
    pub(crate) ends: u8,
    pub(crate) arrivals: u8,
    pub(crate) power: u8,
    pub(crate) packets: u8,
    pub(crate) boots: u8,
}

/// What a search is about.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Setup {
    pub(crate) rules: Rules,
    pub(crate) members: u32,
    /// Hosts beyond the members, with nothing on them.
    pub(crate) spares: u32,
    /// How many coordinators there can be, at once if they like.
    pub(crate) coordinators: usize,
    /// Whether a checkpoint is committed at the beginning.
    pub(crate) has_line: bool,
    /// Whether the first of the members is dead at the beginning.
    pub(crate) is_struck: bool,
    /// Whether the engine takes its time, so that something may happen in between.
    pub(crate) is_slow: bool,
    /// What a kernel or a store could do wrong.
    pub(crate) fault: Fault,
    pub(crate) budget: Budget,
}

/// What is promised from below the protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// The hold lets packets through.
    LeakyHold,
    /// Shares are said to be written before they are synced.
    UnsyncedShares,
    /// Entries are said to be written before they are synced.
    UnsyncedLedger,
}

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

impl Setup {
    pub(crate) fn world(&self) -> World {
        let members: BTreeSet<Member> = (0..self.members).map(Member).collect();
        let first = Round::default();
        let shares: Vec<Share> = members.iter().map(|member| share(*member, Vec::new())).collect();
        let manifest = EpochManifest { round: first, incarnation: Incarnation(0), previous: None, shares };
        let (line, decision) =
            if self.has_line { (Some(first), Decision::Commit(manifest)) } else { (None, Decision::View) };
        let entry = Entry {
            author: Author(0),
            term: Term(0),
            incarnation: Incarnation(0),
            view: members.clone(),
            suspects: BTreeSet::new(),
            line,
            decision,
        };
        let hosts = (0..self.members + self.spares).map(|number| {
            let mut host = Host::dead();
            let member = Member(number);
            let is_dead = self.is_struck && number == 0;
            if number < self.members && !is_dead {
                host.programs = Programs::Running(Incarnation(0));
            }
            let found = if number < self.members { Found::Tasks(Incarnation(0)) } else { Found::Nothing };
            host.agent = (!is_dead).then(|| Participant::with(self.rules, member, Boot(0), Some(&entry), found));
            host
        });
        let hosts = hosts.collect();
        let pairs = members.iter().flat_map(|a| members.iter().map(|b| (*a, *b))).filter(|(a, b)| a != b);
        let has_traffic = self.budget.packets > 0;
        let seat = Seat {
            machine: None,
            is_started: false,
            write: None,
            timer: None,
            excluding: BTreeSet::new(),
            collecting: None,
        };
        World {
            seats: vec![seat; self.coordinators],
            hosts,
            net: BTreeSet::new(),
            shares: manifest_shares(&entry),
            ledger: vec![(entry, true)],
            adrift: BTreeSet::new(),
            flows: pairs.filter(|_| has_traffic).map(|pair| (pair, Flow::default())).collect(),
            ends: BTreeMap::new(),
            cuts: BTreeMap::new(),
            told: BTreeSet::new(),
            denied: BTreeSet::new(),
            built: BTreeMap::new(),
            wrong: BTreeSet::new(),
            left: self.budget,
        }
    }
}

fn manifest_shares(entry: &Entry) -> BTreeMap<ShareId, bool> {
    match &entry.decision {
        Decision::Commit(manifest) => manifest.share_ids().map(|id| (id, true)).collect(),
        Decision::Claim | Decision::View | Decision::Rollback => BTreeMap::new(),
    }
}

fn share(member: Member, channels: Vec<ChannelEnd>) -> Share {
    Share { member, tasks: 1, bytes: 1, digest: [0; 32], channels }
}

impl World {
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
                self.left.power -= 1;
                self.shares.retain(|_, is_synced| *is_synced);
                self.ledger.retain(|(_, is_synced)| *is_synced);
            }
            Action::Send(from, to) => {
                self.left.packets -= 1;
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
                self.left.checkpoints -= 1;
                self.seat(*seat, coordinator::Event::Checkpoint);
            }
            Action::Deadline(seat) => {
                self.left.deadlines -= 1;
                if let Some(timer) = self.seats[*seat].timer.take() {
                    self.seat(*seat, coordinator::Event::Deadline(timer));
                }
            }
            Action::Suspect(seat, member) => {
                self.left.suspicions -= 1;
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
                self.left.coordinators -= 1;
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
        let host = &mut self.hosts[at(member)];
        match action {
            Action::Finish(_) => {
                if let Some((work, stamp)) = host.work.take() {
                    self.finish(setup, member, work, stamp);
                }
            }
            Action::Fail(_) => {
                self.left.failures -= 1;
                if let Some((work, stamp)) = host.work.take() {
                    self.agent(setup, member, participant::Event::Failed(work, stamp));
                }
            }
            Action::LeaseEnds(_) => {
                self.left.leases -= 1;
                if let Some(stamp) = host.lease.take() {
                    self.agent(setup, member, participant::Event::LeaseEnded(stamp));
                }
            }
            Action::AgentDies(_) => {
                self.left.agents -= 1;
                host.agent_dies();
            }
            Action::AgentStarts(_) => {
                self.left.boots -= 1;
                host.boot = host.boot.next();
                let found = host.runs().map_or(Found::Nothing, Found::Tasks);
                let last = self.ledger.last().map(|(entry, _)| entry);
                host.agent = Some(Participant::with(setup.rules, member, host.boot, last, found));
            }
            Action::HostDies(_) => {
                self.left.hosts -= 1;
                host.die();
            }
            Action::TaskDies(_) => {
                self.left.deaths -= 1;
                host.kill();
                self.agent(setup, member, participant::Event::Died);
            }
            Action::TasksEnd(_) => {
                self.left.ends -= 1;
                host.kill();
                self.agent(setup, member, participant::Event::Ended);
            }
            Action::TasksArrive(_) => {
                self.left.arrivals -= 1;
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
                self.left.unknowns -= 1;
                self.put(setup, seq, &entry);
                Outcome::Unknown
            }
            Landing::AdriftUnknown => {
                self.left.unknowns -= 1;
                self.adrift.insert((seq, entry));
                Outcome::Unknown
            }
        };
        self.seat(seat, coordinator::Event::Appended(seq, outcome));
    }

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
            Effect::Send(order) => {
                self.net.insert(Packet::Order(order));
            }
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
                participant::Effect::Send(report) => {
                    self.net.insert(Packet::Report(report));
                }
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
                if host.programs == Programs::Waiting {
                    host.programs = Programs::Running(stamp.incarnation);
                }
            }
            other => host.work = Some((other, stamp)),
        }
    }

    /// The engine has done what it was asked.
    fn finish(&mut self, setup: &Setup, member: Member, work: Work, stamp: Stamp) {
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

    /// Between the first and the last capture of a round nothing may run and no packet may move.
    fn look_at_cuts(&mut self) {
        let hosts = &self.hosts;
        for cut in self.cuts.values_mut().filter(|cut| cut.captured != cut.view) {
            cut.is_disturbed |= cut.view.iter().any(|member| hosts.get(at(*member)).is_some_and(|h| !h.is_still()));
        }
    }
}

/// One address a host: ports would only multiply the states.
fn point(member: Member) -> EndPoint {
    let [a, b, c, d] = member.0.to_le_bytes();
    EndPoint { address: [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], port: 1 }
}
