//! What can happen next in a world.

use super::{Action, Programs, Setup, World};
use crate::ids::{Boot, Member};
use crate::model::world::{Landing, Packet, at};
use crate::participant::Work;
use crate::{coordinator, participant};

impl World {
    pub(crate) fn actions(&self, setup: &Setup, actions: &mut Vec<Action>) {
        for packet in &self.net {
            match packet {
                Packet::Order(_) => actions.push(Action::Deliver(0, packet.clone())),
                Packet::Report(_) => {
                    let seats = (0..self.seats.len()).filter(|seat| self.seats[*seat].machine.is_some());
                    actions.extend(seats.map(|seat| Action::Deliver(seat, packet.clone())));
                }
            }
        }
        for seat in 0..self.seats.len() {
            self.of_seat(seat, setup, actions);
        }
        for number in 0..self.hosts.len() {
            let member = Member(u32::try_from(number).unwrap_or(u32::MAX));
            self.of_host(member, setup, actions);
        }
        actions.extend(self.adrift.iter().map(|(seq, entry)| Action::Land(*seq, entry.clone())));
        if self.left.power > 0 {
            actions.push(Action::PowerCut);
        }
        self.of_flows(actions);
    }

    fn of_seat(&self, number: usize, setup: &Setup, actions: &mut Vec<Action>) {
        let seat = &self.seats[number];
        let Some(machine) = &seat.machine else {
            let is_turn = number == 0 || self.seats[number - 1].is_started;
            if is_turn && !seat.is_started {
                actions.push(Action::Start(number));
            }
            return;
        };
        if machine.is_ready() && self.left.checkpoints > 0 {
            actions.push(Action::Checkpoint(number));
        }
        if seat.timer.is_some() && self.left.deadlines > 0 {
            actions.push(Action::Deadline(number));
        }
        if seat.write.is_some() {
            actions.push(Action::Write(number, Landing::Known));
            if self.left.unknowns > 0 {
                actions.push(Action::Write(number, Landing::LandedUnknown));
                actions.push(Action::Write(number, Landing::AdriftUnknown));
            }
        }
        if seat.collecting.is_some() {
            actions.push(Action::Collect(number));
        }
        if self.left.coordinators > 0 {
            actions.push(Action::CoordinatorDies(number));
        }
        for (member, incarnation) in &seat.excluding {
            actions.push(Action::Excluded(number, *member, *incarnation));
        }
        for (member, host) in (0..).map(Member).zip(&self.hosts) {
            let known = machine.knows(member);
            if known.is_some() && host.agent.is_none() {
                actions.push(Action::Lost(number, member));
            }
            if known.is_some() && host.agent.is_some() && self.left.suspicions > 0 {
                actions.push(Action::Suspect(number, member));
            }
            // The members are hailed by each who claims; that they can be reached as well would only multiply the states.
            let is_news = member.0 >= setup.members || host.boot != Boot::default();
            if host.agent.is_some() && known != Some(host.boot) && is_news {
                actions.push(Action::Connect(number, member));
            }
        }
    }

    fn of_host(&self, member: Member, setup: &Setup, actions: &mut Vec<Action>) {
        let host = &self.hosts[at(member)];
        let left = &self.left;
        if host.agent.is_none() {
            if left.boots > 0 {
                actions.push(Action::AgentStarts(member));
            }
            if left.hosts > 0 && host.programs != Programs::None {
                actions.push(Action::HostDies(member));
            }
            return;
        }
        let mut offer = |may: bool, action: Action| actions.extend(may.then_some(action));
        let runs = matches!(host.programs, Programs::Running(_));
        offer(host.work.is_some(), Action::Finish(member));
        let may_fail = host.work.as_ref().is_some_and(|(work, _)| *work != Work::Kill);
        offer(may_fail && left.failures > 0, Action::Fail(member));
        offer(host.lease.is_some() && left.leases > 0, Action::LeaseEnds(member));
        offer(left.agents > 0, Action::AgentDies(member));
        offer(left.hosts > 0, Action::HostDies(member));
        offer(left.deaths > 0 && host.runs().is_some(), Action::TaskDies(member));
        offer(left.ends > 0 && runs, Action::TasksEnd(member));
        offer(host.has_news, Action::EndIsHeard(member));
        let is_free = host.programs == Programs::None && host.work.is_none() && member.0 >= setup.members;
        offer(left.arrivals > 0 && is_free, Action::TasksArrive(member));
    }

    fn of_flows(&self, actions: &mut Vec<Action>) {
        for ((from, to), flow) in &self.flows {
            let (a, b) = (&self.hosts[at(*from)], &self.hosts[at(*to)]);
            if self.left.packets > 0 && matches!(a.programs, Programs::Running(_)) {
                actions.push(Action::Send(*from, *to));
            }
            if a.is_held || b.is_held || a.programs == Programs::None || b.programs == Programs::None {
                continue;
            }
            if flow.received < flow.sent {
                actions.push(Action::Carry(*from, *to));
            }
            if flow.acknowledged < flow.received {
                actions.push(Action::Acknowledge(*from, *to));
            }
        }
    }

    /// Whether a message would change nothing: most do, as all that were ever sent are there for ever.
    pub(crate) fn is_idle(&self, action: &Action) -> bool {
        match action {
            Action::Deliver(_, Packet::Order(order)) => {
                let Some(agent) = &self.hosts[at(order.to)].agent else { return true };
                let mut after = agent.clone();
                let effects = after.step(participant::Event::Order(order.clone()));
                after == *agent
                    && effects.into_iter().all(|effect| match effect {
                        participant::Effect::Send(report) => self.net.contains(&Packet::Report(report)),
                        _ => false,
                    })
            }
            Action::Deliver(seat, Packet::Report(report)) => {
                let event = coordinator::Event::Report(report.clone());
                self.is_idle_for(*seat, event)
            }
            Action::Connect(seat, member) => self.is_idle_for(*seat, coordinator::Event::Connected(*member)),
            _ => false,
        }
    }

    fn is_idle_for(&self, seat: usize, event: coordinator::Event) -> bool {
        let Some(machine) = &self.seats[seat].machine else { return true };
        let mut after = machine.clone();
        let effects = after.step(event);
        after == *machine
            && effects.into_iter().all(|effect| match effect {
                coordinator::Effect::Send(order) => self.net.contains(&Packet::Order(order)),
                _ => false,
            })
    }
}
