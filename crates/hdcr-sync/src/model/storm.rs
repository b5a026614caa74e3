//! The world with a network in which messages are on their way, for schedules that are run and not searched.

use std::collections::{BTreeMap, BTreeSet};

use super::must::MUSTS;
use super::world::{Packet, at};
use super::{Action, Programs, Setup, World};
use crate::ids::{Boot, Member};

pub(crate) struct Storm {
    pub(crate) setup: Setup,
    pub(crate) world: World,
    /// What is on its way, and from or to which coordinator.
    pub(crate) flight: Vec<(usize, Packet)>,
    /// Whom each coordinator has been told to be connected.
    pub(crate) links: BTreeMap<(usize, Member), Boot>,
    /// Who cannot be reached.
    pub(crate) cuts: BTreeSet<(usize, Member)>,
    pub(crate) schedule: Vec<Action>,
}

impl Storm {
    pub(crate) fn new(setup: Setup) -> Self {
        let mut world = setup.world();
        world.sent = Some(Vec::new());
        let (links, cuts) = (BTreeMap::new(), BTreeSet::new());
        Storm { setup, world, flight: Vec::new(), links, cuts, schedule: Vec::new() }
    }

    /// Coordinators that live, whether or not they know that another has taken over.
    pub(crate) fn live(&self) -> Vec<usize> {
        (0..self.world.seats.len()).filter(|seat| self.world.seats[*seat].machine.is_some()).collect()
    }

    pub(crate) fn member(number: usize) -> Member {
        Member(u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// Does it, and says which obligation it has broken.
    pub(crate) fn apply(&mut self, action: Action) -> Result<(), &'static str> {
        let mut from = 0;
        match &action {
            Action::Deliver(seat, _)
            | Action::Start(seat)
            | Action::Checkpoint(seat)
            | Action::Deadline(seat)
            | Action::Resend(seat)
            | Action::Excluded(seat, ..)
            | Action::Write(seat, _) => from = *seat,
            Action::Lost(seat, member) | Action::Suspect(seat, member) => {
                from = *seat;
                self.links.remove(&(*seat, *member));
            }
            Action::Connect(seat, member) => {
                from = *seat;
                self.links.insert((*seat, *member), self.world.hosts[at(*member)].boot);
            }
            Action::CoordinatorDies(seat) => {
                self.flight.retain(|(other, packet)| other != seat || matches!(packet, Packet::Order(_)));
                self.links.retain(|(other, _), _| other != seat);
            }
            _ => {}
        }
        if let Action::Start(seat) = &action {
            let fresh = self.setup.world().seats;
            let missing = (*seat + 1).saturating_sub(self.world.seats.len());
            self.world.seats.extend(fresh.into_iter().cycle().take(missing));
        }
        self.world.act(&self.setup, &action);
        self.schedule.push(action);
        let sent = self.world.sent.as_mut().map(std::mem::take).unwrap_or_default();
        let live = self.live();
        for packet in sent {
            match &packet {
                Packet::Order(_) => self.flight.push((from, packet)),
                Packet::Report(_) => self.flight.extend(live.iter().map(|seat| (*seat, packet.clone()))),
            }
        }
        MUSTS.iter().find(|(_, holds)| !holds(&self.world)).map_or(Ok(()), |(must, _)| Err(*must))
    }

    /// As `apply`, if it can happen now; a message has to have been sent, but can come again.
    pub(crate) fn replay(&mut self, action: &Action) -> Result<(), &'static str> {
        if !self.can(action) {
            return Ok(());
        }
        if let Action::Deliver(_, packet) = action
            && let Some(place) = self.flight.iter().position(|(_, other)| other == packet)
        {
            self.flight.swap_remove(place);
        }
        self.apply(action.clone())
    }

    fn can(&self, action: &Action) -> bool {
        let seats = &self.world.seats;
        let seat = |number: usize| seats.get(number);
        let lives = |number: usize| seat(number).is_some_and(|seat| seat.machine.is_some());
        let host = |member: &Member| &self.world.hosts[at(*member)];
        let agent = |member: &Member| host(member).agent.is_some();
        match action {
            Action::Deliver(_, packet @ Packet::Order(order)) => agent(&order.to) && self.world.net.contains(packet),
            Action::Deliver(to, packet) => lives(*to) && self.world.net.contains(packet),
            Action::Start(number) => seat(*number).is_none_or(|seat| !seat.is_started),
            Action::Checkpoint(number)
            | Action::Resend(number)
            | Action::CoordinatorDies(number)
            | Action::Lost(number, _)
            | Action::Suspect(number, _) => lives(*number),
            Action::Connect(number, member) => lives(*number) && agent(member),
            Action::Deadline(number) => seat(*number).is_some_and(|seat| seat.timer.is_some()),
            Action::Excluded(number, member, incarnation) => {
                seat(*number).is_some_and(|seat| seat.excluding.contains(&(*member, *incarnation)))
            }
            Action::Write(number, _) => seat(*number).is_some_and(|seat| seat.write.is_some()),
            Action::Land(seq, entry) => self.world.adrift.contains(&(*seq, entry.clone())),
            Action::Collect(number) => seat(*number).is_some_and(|seat| seat.collecting.is_some()),
            Action::Finish(member) | Action::Fail(member) => host(member).work.is_some(),
            Action::LeaseEnds(member) => host(member).lease.is_some(),
            Action::AgentDies(member) => agent(member),
            Action::AgentStarts(member) => !agent(member),
            Action::HostDies(_) | Action::PowerCut => true,
            Action::TaskDies(member) => agent(member) && host(member).runs().is_some(),
            Action::TasksEnd(member) => agent(member) && matches!(host(member).programs, Programs::Running(_)),
            Action::EndIsHeard(member) => host(member).has_news,
            Action::TasksArrive(member) => {
                agent(member) && host(member).programs == Programs::None && host(member).work.is_none()
            }
            Action::Send(from, to) | Action::Carry(from, to) | Action::Acknowledge(from, to) => {
                self.world.flows.contains_key(&(*from, *to))
            }
        }
    }

    /// A coordinator and a host whose connection has come or gone, and what is to be said of it.
    pub(crate) fn stale_link(&self, start: usize) -> Option<Action> {
        let hosts = self.world.hosts.len();
        for seat in self.live() {
            for number in (0..hosts).map(|offset| (start + offset) % hosts) {
                let member = Storm::member(number);
                let host = &self.world.hosts[number];
                let is_there = host.agent.is_some() && !self.cuts.contains(&(seat, member));
                // Who was heard was connected, even if the word of that has not come.
                let is_known = self.world.seats[seat].machine.as_ref().is_some_and(|m| m.knows(member).is_some());
                match self.links.get(&(seat, member)) {
                    None if is_known && !is_there => return Some(Action::Suspect(seat, member)),
                    Some(boot) if !is_there || *boot != host.boot => return Some(Action::Suspect(seat, member)),
                    None if is_there => return Some(Action::Connect(seat, member)),
                    _ => {}
                }
            }
        }
        None
    }

    /// The first host from `start` on of which this is true.
    pub(crate) fn host(&self, start: usize, is_meant: impl Fn(&super::Host) -> bool) -> Option<Member> {
        let hosts = self.world.hosts.len();
        let mut numbers = (0..hosts).map(|offset| (start + offset) % hosts.max(1));
        numbers.find(|number| is_meant(&self.world.hosts[*number])).map(Storm::member)
    }
}
