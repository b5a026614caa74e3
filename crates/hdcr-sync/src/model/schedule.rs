//! Random schedules: storms of faults, and after each a calm in which the job must come to a commit.

use super::random::Random;
use super::storm::Storm;
use super::world::{Landing, Packet};
use super::{Action, Budget, Programs, Setup};
use crate::coordinator::Coordinator;
use crate::ids::Member;
use crate::ledger::Decision;
use crate::rules::Rules;

/// What is rare, and may be left out of a schedule altogether.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Lease,
    Deadline,
    Fails,
    AgentDies,
    HostDies,
    CoordinatorDies,
    Rival,
    Cut,
    Unknown,
    Adrift,
    TaskDies,
    TasksEnd,
    TasksArrive,
    PowerCut,
    Suspect,
    Late,
}

const FAULTS: [Fault; 16] = [
    Fault::Lease,
    Fault::Deadline,
    Fault::Fails,
    Fault::AgentDies,
    Fault::HostDies,
    Fault::CoordinatorDies,
    Fault::Rival,
    Fault::Cut,
    Fault::Unknown,
    Fault::Adrift,
    Fault::TaskDies,
    Fault::TasksEnd,
    Fault::TasksArrive,
    Fault::PowerCut,
    Fault::Suspect,
    Fault::Late,
];

/// How a schedule is drawn.
pub(crate) struct Plan {
    pub(crate) setup: Setup,
    faults: Vec<Fault>,
    /// One in so many steps of a storm is a fault.
    rate: usize,
    /// One in so many messages is lost, or comes again.
    lost: usize,
    again: usize,
    steps: usize,
    storms: usize,
}

/// What a schedule that kept every obligation has come to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) steps: usize,
    pub(crate) commits: usize,
    pub(crate) rollbacks: usize,
    /// Of one calm, for each host.
    pub(crate) longest_calm: usize,
    pub(crate) most_ticks: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Tally) {
        self.steps += other.steps;
        self.commits += other.commits;
        self.rollbacks += other.rollbacks;
        self.longest_calm = self.longest_calm.max(other.longest_calm);
        self.most_ticks = self.most_ticks.max(other.most_ticks);
    }
}

/// What is broken if a calm does not end.
pub(crate) const L2: &str = "L2: after the last fault a round is committed within a bound";

/// Steps of a calm, for each host.
const BOUND: usize = 600;

/// How often nothing is on its way in a calm, and time passes.
const TICKS: usize = 40;

impl Plan {
    pub(crate) fn new(seed: u64, rules: Rules, most: usize) -> (Plan, Random) {
        let mut random = Random::new(seed);
        let hosts = match random.below(100) {
            0..60 => 2 + random.below(3),
            60..86 => 5 + random.below(6),
            86..97 => 11 + random.below(14),
            _ => 25 + random.below(40),
        };
        let hosts = hosts.min(most);
        let spares = random.below(hosts.min(3));
        let hosts32 = |n: usize| u32::try_from(n).unwrap_or(1);
        let packets = u8::from(hosts <= 4 && random.once_in(2));
        let setup = Setup {
            rules,
            members: hosts32(hosts - spares),
            spares: hosts32(spares),
            coordinators: 1,
            has_line: !random.once_in(5),
            is_slow: true,
            budget: Budget { packets, ..Budget::default() },
            ..Setup::default()
        };
        let mut faults: Vec<Fault> = FAULTS.into_iter().filter(|_| random.once_in(2)).collect();
        if faults.is_empty() {
            faults.push(Fault::Late);
        }
        let round = 14 * hosts;
        let chatter = [0, 4 * round, round, 1 + round / 8];
        let plan = Plan {
            setup,
            faults,
            rate: 2 + round / [1, 2, 4, 16][random.below(4)],
            lost: chatter[random.below(4)],
            again: [0, round, 10, 3][random.below(4)],
            steps: round * (2 + random.below(16)),
            storms: 1 + random.below(4),
        };
        (plan, random)
    }

    /// Few hosts on which tasks come and go, and much of the past comes again.
    pub(crate) fn haunted(seed: u64, rules: Rules) -> (Plan, Random) {
        let (mut plan, mut random) = Plan::new(seed, rules, 3);
        let kinds = [
            Fault::TasksArrive,
            Fault::TasksEnd,
            Fault::HostDies,
            Fault::AgentDies,
            Fault::TaskDies,
            Fault::Rival,
            Fault::CoordinatorDies,
        ];
        plan.faults = kinds.into_iter().filter(|_| random.once_in(2)).collect();
        plan.faults.extend([Fault::Late; 8]);
        plan.rate = 2 + random.below(6);
        plan.again = 0;
        (plan, random)
    }

    /// From the first storm to the last calm; the storm is given back also when it has broken something.
    pub(crate) fn run(&self, random: &mut Random) -> (Storm, Result<Tally, &'static str>) {
        let mut storm = Storm::new(self.setup);
        let mut tally = Tally::default();
        for _ in 0..self.storms {
            let broken = self.storm(&mut storm, random).and_then(|()| calm(&mut storm, random, &mut tally));
            if let Err(must) = broken {
                return (storm, Err(must));
            }
        }
        tally.steps = storm.schedule.len();
        for (entry, _) in &storm.world.ledger {
            match entry.decision {
                Decision::Commit(_) => tally.commits += 1,
                Decision::Rollback => tally.rollbacks += 1,
                Decision::Claim | Decision::View => {}
            }
        }
        (storm, Ok(tally))
    }

    fn storm(&self, storm: &mut Storm, random: &mut Random) -> Result<(), &'static str> {
        // What has come once and may come again.
        let mut seen: Vec<(usize, Packet)> = Vec::new();
        for _ in 0..self.steps {
            if random.once_in(self.rate) {
                let fault = self.faults[random.below(self.faults.len())];
                strike(storm, random, fault, &seen)?;
                continue;
            }
            if random.below(100) < 70 && !storm.flight.is_empty() {
                let place = random.below(storm.flight.len());
                let (seat, packet) = storm.flight.swap_remove(place);
                let member = end(&packet);
                if storm.cuts.contains(&(seat, member)) || random.once_in(self.lost) {
                    continue;
                }
                if random.once_in(self.again) {
                    storm.flight.push((seat, packet.clone()));
                }
                if seen.len() < 100 + 20 * storm.world.hosts.len() {
                    seen.push((seat, packet.clone()));
                } else {
                    let place = random.below(seen.len());
                    seen[place] = (seat, packet.clone());
                }
                arrive(storm, seat, packet)?;
                continue;
            }
            if let Some(action) = usual(storm, random) {
                storm.apply(action)?;
            }
        }
        Ok(())
    }
}

fn end(packet: &Packet) -> Member {
    match packet {
        Packet::Order(order) => order.to,
        Packet::Report(report) => report.from,
    }
}

/// Nothing comes of a message to whom is not there.
fn arrive(storm: &mut Storm, seat: usize, packet: Packet) -> Result<(), &'static str> {
    let is_heard = match &packet {
        Packet::Order(order) => storm.world.hosts[super::world::at(order.to)].agent.is_some(),
        Packet::Report(_) => storm.world.seats[seat].machine.is_some(),
    };
    if is_heard { storm.apply(Action::Deliver(seat, packet)) } else { Ok(()) }
}

/// Something that happens also when nothing goes wrong.
fn usual(storm: &Storm, random: &mut Random) -> Option<Action> {
    let start = random.below(storm.world.hosts.len());
    let live = storm.live();
    if live.is_empty() {
        return random.once_in(4).then(|| Action::Start(storm.world.seats.len().max(1)));
    }
    let number = live[random.below(live.len())];
    let seat = &storm.world.seats[number];
    let machine = seat.machine.as_ref()?;
    match random.below(40) {
        0..18 => storm.host(start, |host| host.work.is_some()).map(Action::Finish),
        18..20 => storm.host(start, |host| host.has_news).map(Action::EndIsHeard),
        20..24 => seat.write.as_ref().map(|_| Action::Write(number, Landing::Known)),
        24..28 => storm.stale_link(start),
        28..31 => machine.is_ready().then_some(Action::Checkpoint(number)),
        31 => seat.excluding.iter().next().map(|(member, incarnation)| Action::Excluded(number, *member, *incarnation)),
        32 => (0..storm.world.seats.len()).find(|s| storm.world.seats[*s].collecting.is_some()).map(Action::Collect),
        33 => storm.world.adrift.iter().next().map(|(seq, entry)| Action::Land(*seq, entry.clone())),
        34 => random.once_in(storm.world.hosts.len()).then_some(Action::Resend(number)),
        35 => storm.host(start, |host| host.agent.is_none()).map(Action::AgentStarts),
        36 => machine.is_deposed().then_some(Action::CoordinatorDies(number)),
        _ => flow(storm, random),
    }
}

fn flow(storm: &Storm, random: &mut Random) -> Option<Action> {
    let pairs: Vec<(Member, Member)> = storm.world.flows.keys().copied().collect();
    if pairs.is_empty() {
        return None;
    }
    let (from, to) = pairs[random.below(pairs.len())];
    let host = |member| &storm.world.hosts[super::world::at(member)];
    let (a, b) = (host(from), host(to));
    let is_free = !a.is_held && !b.is_held && a.programs != Programs::None && b.programs != Programs::None;
    match random.below(3) {
        0 => matches!(a.programs, Programs::Running(_)).then_some(Action::Send(from, to)),
        1 => is_free.then_some(Action::Carry(from, to)),
        _ => is_free.then_some(Action::Acknowledge(from, to)),
    }
}

fn strike(storm: &mut Storm, random: &mut Random, fault: Fault, seen: &[(usize, Packet)]) -> Result<(), &'static str> {
    let start = random.below(storm.world.hosts.len());
    let member = Storm::member(start);
    let live = storm.live();
    let number = if live.is_empty() { 0 } else { live[random.below(live.len())] };
    let action = match fault {
        Fault::Lease => storm.host(start, |host| host.lease.is_some()).map(Action::LeaseEnds),
        Fault::Deadline => storm.world.seats[number].timer.map(|_| Action::Deadline(number)),
        Fault::Fails => {
            let can_fail = |work: &crate::participant::Work| *work != crate::participant::Work::Kill;
            storm.host(start, |host| host.work.as_ref().is_some_and(|(w, _)| can_fail(w))).map(Action::Fail)
        }
        Fault::AgentDies => storm.host(start, |host| host.agent.is_some()).map(Action::AgentDies),
        Fault::HostDies => Some(Action::HostDies(member)),
        Fault::CoordinatorDies => (!live.is_empty()).then_some(Action::CoordinatorDies(number)),
        Fault::Rival => (live.len() < 3).then_some(Action::Start(storm.world.seats.len())),
        Fault::Cut => {
            if !storm.cuts.remove(&(number, member)) {
                storm.cuts.insert((number, member));
            }
            None
        }
        Fault::Unknown | Fault::Adrift => {
            let landing = if fault == Fault::Adrift { Landing::AdriftUnknown } else { Landing::LandedUnknown };
            storm.world.seats[number].write.as_ref().map(|_| Action::Write(number, landing))
        }
        Fault::TaskDies => {
            storm.host(start, |host| host.agent.is_some() && host.runs().is_some()).map(Action::TaskDies)
        }
        Fault::TasksEnd => {
            let runs = |p: &Programs| matches!(p, Programs::Running(_));
            storm.host(start, |host| host.agent.is_some() && runs(&host.programs)).map(Action::TasksEnd)
        }
        Fault::TasksArrive => {
            let is_free = |host: &super::Host| host.agent.is_some() && host.work.is_none();
            storm.host(start, |host| is_free(host) && host.programs == Programs::None).map(Action::TasksArrive)
        }
        Fault::PowerCut => return power_cut(storm, random),
        Fault::Suspect => (!live.is_empty()).then_some(Action::Suspect(number, member)),
        Fault::Late => {
            let Some((seat, packet)) = seen.get(random.below(seen.len())).cloned() else { return Ok(()) };
            return arrive(storm, seat, packet);
        }
    };
    action.map_or(Ok(()), |action| storm.apply(action))
}

/// All hosts and coordinators are gone, and what was not synced; rarer than other faults, as it ends everything.
fn power_cut(storm: &mut Storm, random: &mut Random) -> Result<(), &'static str> {
    if !random.once_in(4) {
        return Ok(());
    }
    for number in 0..storm.world.hosts.len() {
        storm.apply(Action::HostDies(Storm::member(number)))?;
    }
    for seat in storm.live() {
        storm.apply(Action::CoordinatorDies(seat))?;
    }
    storm.apply(Action::PowerCut)
}

/// No fault any more: whatever was begun ends, and a round is committed.
pub(crate) fn calm(storm: &mut Storm, random: &mut Random, tally: &mut Tally) -> Result<(), &'static str> {
    storm.cuts.clear();
    for number in 0..storm.world.hosts.len() {
        let member = Storm::member(number);
        let is_last = number + 1 == storm.world.hosts.len() && storm.world.hosts.iter().all(|h| h.agent.is_none());
        let host = &storm.world.hosts[number];
        if host.agent.is_none() && (is_last || host.programs != Programs::None || !random.once_in(4)) {
            storm.apply(Action::AgentStarts(member))?;
        }
    }
    let began = storm.world.ledger.len();
    let mut ticks = 0;
    let bound = BOUND * (2 + storm.world.hosts.len()) + 4 * storm.flight.len();
    for step in 0..bound {
        if is_calm(storm, began) {
            let each = step / storm.world.hosts.len();
            tally.longest_calm = tally.longest_calm.max(each);
            tally.most_ticks = tally.most_ticks.max(ticks);
            return Ok(());
        }
        if let Some(action) = pending(storm, random) {
            storm.apply(action)?;
        } else {
            ticks += 1;
            if ticks > TICKS {
                break;
            }
            tick(storm, random, ticks)?;
        }
    }
    Err(L2)
}

fn is_calm(storm: &Storm, began: usize) -> bool {
    let ledger = &storm.world.ledger;
    let commits = ledger.iter().skip(began).any(|(entry, _)| matches!(entry.decision, Decision::Commit(_)));
    let is_over = ledger.last().is_some_and(|(entry, _)| entry.view.is_empty());
    let machines = || storm.world.seats.iter().flat_map(|seat| &seat.machine);
    let is_hopeless = machines().any(Coordinator::is_hopeless) && storm.world.newest_commit().is_none();
    commits || is_over || is_hopeless
}

/// Something that has to happen before time passes.
fn pending(storm: &mut Storm, random: &mut Random) -> Option<Action> {
    let start = random.below(storm.world.hosts.len());
    let live = storm.live();
    let is_deposed = |seat: &&usize| storm.world.seats[**seat].machine.as_ref().is_some_and(Coordinator::is_deposed);
    if let Some(seat) = live.iter().find(is_deposed) {
        return Some(Action::CoordinatorDies(*seat));
    }
    if live.is_empty() {
        return Some(Action::Start(storm.world.seats.len()));
    }
    // Who was excluded may come back.
    if storm.world.hosts.iter().all(|host| host.agent.is_none()) {
        return Some(Action::AgentStarts(Storm::member(start)));
    }
    let mut choices: Vec<Action> = Vec::new();
    choices.extend(storm.host(start, |host| host.work.is_some()).map(Action::Finish));
    choices.extend(storm.host(start, |host| host.has_news).map(Action::EndIsHeard));
    choices.extend(storm.stale_link(start));
    choices.extend(storm.world.adrift.iter().next().map(|(seq, entry)| Action::Land(*seq, entry.clone())));
    for number in live {
        let seat = &storm.world.seats[number];
        choices.extend(seat.write.as_ref().map(|_| Action::Write(number, Landing::Known)));
        choices.extend(seat.collecting.as_ref().map(|_| Action::Collect(number)));
        let first = seat.excluding.iter().next();
        choices.extend(first.map(|(member, incarnation)| Action::Excluded(number, *member, *incarnation)));
    }
    while !storm.flight.is_empty() && (choices.is_empty() || random.below(10) < 7) {
        let place = random.below(storm.flight.len());
        let (seat, packet) = storm.flight.swap_remove(place);
        let is_heard = match &packet {
            Packet::Order(order) => storm.world.hosts[super::world::at(order.to)].agent.is_some(),
            Packet::Report(_) => storm.world.seats[seat].machine.is_some(),
        };
        if is_heard {
            return Some(Action::Deliver(seat, packet));
        }
    }
    let place = random.below(choices.len());
    (!choices.is_empty()).then(|| choices.swap_remove(place))
}

/// Nothing is on its way: who waits asks again, and then gives up.
fn tick(storm: &mut Storm, random: &mut Random, ticks: usize) -> Result<(), &'static str> {
    for number in storm.live() {
        let Some(machine) = &storm.world.seats[number].machine else { continue };
        if machine.is_ready() {
            storm.apply(Action::Checkpoint(number))?;
        } else if !ticks.is_multiple_of(3) {
            storm.apply(Action::Resend(number))?;
        } else if storm.world.seats[number].timer.is_some() {
            storm.apply(Action::Deadline(number))?;
        }
    }
    if ticks % 3 == 2 && random.once_in(2) {
        for number in 0..storm.world.hosts.len() {
            if storm.world.hosts[number].lease.is_some() {
                storm.apply(Action::LeaseEnds(Storm::member(number)))?;
            }
        }
    }
    Ok(())
}
