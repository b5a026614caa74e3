//! Who is there, who comes and who goes.

use std::collections::BTreeSet;

use super::{Coordinator, Effect, Known, Phase, Reason};
use crate::ids::{Boot, Member, Stamp, Stay};
use crate::ledger::Decision;
use crate::message::{Command, Condition, Next};
use crate::rules::Rule;

impl Coordinator {
    /// The term is claimed: who is there?
    pub(super) fn gather(&mut self, out: &mut Vec<Effect>) {
        self.phase = Phase::Gathering;
        self.hail(out);
        for member in &self.suspects {
            out.push(Effect::Exclude(*member, self.incarnation));
        }
        self.arm(out);
        self.judge(out);
    }

    /// Asks all who have not said hello: also hosts that nothing is known of, as they may be the only ones left.
    pub(super) fn hail(&self, out: &mut Vec<Effect>) {
        let all = self.view.iter().chain(&self.suspects).chain(&self.reachable);
        let silent: BTreeSet<Member> = all.filter(|member| !self.known.contains_key(member)).copied().collect();
        self.order_all(&silent, &Command::Hail, out);
    }

    /// Whether the run is whole, as soon as all of the view have said hello.
    fn judge(&mut self, out: &mut Vec<Effect>) {
        if self.phase != Phase::Gathering || !self.view.iter().all(|member| self.known.contains_key(member)) {
            return;
        }
        self.settle(out);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one report, and where effects go")]
    pub(super) fn hello(
        &mut self,
        from: Member,
        life: (Boot, Stay),
        stamp: Stamp,
        condition: Condition,
        out: &mut Vec<Effect>,
    ) {
        let before = self.known.get(&from).copied();
        // An answer to a hail from before a rollback tells of a run that is no more.
        let is_late = stamp.term != self.term || stamp.incarnation != self.incarnation;
        if is_late || before.is_some_and(|known| (known.boot, known.stay) > life) {
            return;
        }
        let (boot, stay) = life;
        self.known.insert(from, Known { boot, stay, condition });
        let is_new_life = before.is_some_and(|known| (known.boot, known.stay) < life);
        // Who is in the view and waits has not got its welcome: its tasks never ran.
        let waits = self.view.contains(&from) && condition == Condition::Waiting;
        let is_new = waits && self.joined.contains(&from);
        let has_ended = condition == Condition::Ended(self.incarnation);
        let is_whole = is_new || has_ended || condition == Condition::Running(self.incarnation);
        let is_rolling = matches!(self.phase, Phase::Fencing | Phase::Restoring | Phase::Releasing);
        // It left, and tasks are there again: they come in when those before are out.
        let is_again = waits && (self.phase == Phase::Viewing || self.leaves.contains(&from));
        if is_again {
            self.joins.insert(from);
        } else if self.view.contains(&from) && !is_rolling {
            self.is_broken |= !is_whole;
            if is_new {
                self.welcome(from, out);
            }
            if has_ended {
                self.leaves.insert(from);
            }
        } else if !is_rolling {
            self.outsider(from, condition, out);
        }
        match self.phase {
            Phase::Gathering => self.judge(out),
            Phase::Starved => self.roll_back(out),
            Phase::Round(_) if self.view.contains(&from) && (is_new_life || !is_whole) => {
                self.abort(Reason::Lost(from), out);
            }
            Phase::Ready if self.is_broken || !self.leaves.is_empty() || !self.joins.is_empty() => self.settle(out),
            Phase::Fencing | Phase::Restoring | Phase::Releasing => {
                let is_gone = self.phase == Phase::Releasing && condition == Condition::Empty;
                self.hello_in_rollback(from, is_new_life || is_gone, out);
            }
            _ => {}
        }
    }

    /// Who is not in the view has nothing to run.
    fn outsider(&mut self, from: Member, condition: Condition, out: &mut Vec<Effect>) {
        match condition {
            Condition::Waiting => {
                self.joins.insert(from);
            }
            Condition::Empty | Condition::Ended(_) => {
                self.suspects.remove(&from);
            }
            Condition::Running(_) | Condition::Between => {
                self.suspects.insert(from);
                self.order(from, Command::Fence(Next::Nothing), out);
            }
        }
    }

    fn welcome(&self, to: Member, out: &mut Vec<Effect>) {
        if let Some(known) = self.known.get(&to) {
            self.order(to, Command::Welcome(known.stay), out);
        }
    }

    pub(super) fn join(&mut self, from: Member, life: (Boot, Stay), stamp: Stamp, out: &mut Vec<Effect>) {
        // A participant that has heard no coordinator yet has no term: it is asked who it is first.
        if stamp.term != self.term || stamp.incarnation != self.incarnation {
            return self.order(from, Command::Hail, out);
        }
        self.hello(from, life, stamp, Condition::Waiting, out);
        if !self.rules.keep(Rule::JoinWaits) {
            self.welcome(from, out);
        }
    }

    pub(super) fn leave(&mut self, from: Member, stamp: Stamp, out: &mut Vec<Effect>) {
        if stamp.incarnation != self.incarnation || !self.view.contains(&from) {
            return;
        }
        self.leaves.insert(from);
        match self.phase {
            Phase::Round(_) => self.abort(Reason::Left(from), out),
            Phase::Ready => self.settle(out),
            _ => {}
        }
    }

    pub(super) fn change_view(&mut self, out: &mut Vec<Effect>) {
        let joins = self.joins.iter().filter(|m| self.known.contains_key(m) && !self.view.contains(m));
        let mut view: BTreeSet<Member> = self.view.iter().chain(joins).copied().collect();
        view.retain(|member| !self.leaves.contains(member));
        if view == self.view {
            self.joins.clear();
            self.leaves.clear();
            return;
        }
        let mut entry = self.entry(Decision::View);
        entry.joined = entry.joined.union(&self.joins).filter(|member| view.contains(member)).copied().collect();
        entry.view = view;
        self.phase = Phase::Viewing;
        self.append(entry, out);
    }

    pub(super) fn view_changed(&mut self, view: BTreeSet<Member>, out: &mut Vec<Effect>) {
        let new: BTreeSet<Member> = view.difference(&self.view).copied().collect();
        self.view = view;
        for member in &new {
            if let Some(known) = self.known.get_mut(member) {
                known.condition = Condition::Running(self.incarnation);
            }
            // Who went while the entry was written is missing from the run now.
            self.is_broken |= !self.known.contains_key(member);
        }
        self.leaves.retain(|member| self.view.contains(member));
        let stays = |member: &Member| self.view.contains(member) && !self.leaves.contains(member);
        let (inside, outside) = std::mem::take(&mut self.joins).into_iter().partition(stays);
        self.joins = outside;
        for member in new.union(&inside) {
            self.welcome(*member, out);
        }
        self.settle(out);
    }

    pub(super) fn lost(&mut self, member: Member, out: &mut Vec<Effect>) {
        self.known.remove(&member);
        self.reachable.remove(&member);
        self.joins.remove(&member);
        if !self.view.contains(&member) {
            return;
        }
        self.is_broken = true;
        match self.phase {
            Phase::Round(_) => self.abort(Reason::Lost(member), out),
            Phase::Ready | Phase::Gathering | Phase::Fencing | Phase::Restoring | Phase::Releasing => {
                self.roll_back(out);
            }
            _ => {}
        }
    }
}
