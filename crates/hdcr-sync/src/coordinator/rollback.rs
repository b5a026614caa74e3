//! The way back: decided in the ledger, everything older killed, everything built, and then let run together.

use std::collections::{BTreeMap, BTreeSet};

use super::{Coordinator, Effect, Phase};
use crate::ids::Member;
use crate::ledger::Decision;
use crate::manifest::{EpochManifest, ShareId};
use crate::message::{Command, Next};
use crate::rules::Rule;

impl Coordinator {
    /// From any phase in which nothing is being written. A rollback that is under way is decided anew, as another
    /// incarnation: that makes it harmless to be struck in the middle of one.
    pub(super) fn roll_back(&mut self, out: &mut Vec<Effect>) {
        if self.line.is_none() {
            self.phase = Phase::Hopeless;
            out.push(Effect::Unrecoverable);
            return;
        }
        self.plan = self.placement();
        if self.plan.is_empty() {
            self.phase = Phase::Starved;
            return self.hail(out);
        }
        self.is_broken = false;
        self.joins.clear();
        self.leaves.clear();
        let mut entry = self.entry(Decision::Rollback);
        entry.incarnation = self.incarnation.next();
        entry.view = self.plan.keys().copied().collect();
        entry.joined.clear();
        if self.rules.keep(Rule::SuspectsRemembered) {
            entry.suspects = self.suspects.union(&self.view).copied().collect();
        } else {
            entry.suspects.clear();
        }
        self.phase = Phase::Deciding;
        if self.rules.keep(Rule::RollbackFirst) {
            self.append(entry, out);
        } else {
            self.incarnation = entry.incarnation;
            self.view = entry.view;
            self.suspects = entry.suspects;
            self.fence(out);
        }
    }

    /// Each share where it was, if that host is there; the others where fewest are.
    fn placement(&self) -> BTreeMap<Member, BTreeSet<ShareId>> {
        let mut plan: BTreeMap<Member, BTreeSet<ShareId>> = BTreeMap::new();
        let mut homeless = Vec::new();
        for id in self.line.iter().flat_map(EpochManifest::share_ids) {
            if self.known.contains_key(&id.member) {
                plan.entry(id.member).or_default().insert(id);
            } else {
                homeless.push(id);
            }
        }
        for id in homeless {
            let fewest = self.known.keys().min_by_key(|m| plan.get(m).map_or(0, BTreeSet::len)).copied();
            if let Some(member) = fewest {
                plan.entry(member).or_default().insert(id);
            }
        }
        plan
    }

    /// What was heard while the entry was written was about the run that is no more, but that somebody is gone.
    pub(super) fn decided(&mut self, out: &mut Vec<Effect>) {
        self.leaves.clear();
        self.joins.retain(|member| !self.view.contains(member));
        self.is_broken = !self.view.iter().all(|member| self.known.contains_key(member));
        if self.is_broken { self.roll_back(out) } else { self.fence(out) }
    }

    pub(super) fn fence(&mut self, out: &mut Vec<Effect>) {
        self.phase = Phase::Fencing;
        self.answered.clear();
        let all: BTreeSet<Member> = self.view.union(&self.suspects).copied().collect();
        for member in all {
            if self.known.contains_key(&member) {
                self.order_fence(member, out);
            } else {
                out.push(Effect::Exclude(member, self.incarnation));
            }
        }
        self.arm(out);
        self.fencing_done(out);
    }

    fn order_fence(&self, to: Member, out: &mut Vec<Effect>) {
        let next = if self.view.contains(&to) { Next::Restored } else { Next::Nothing };
        self.order(to, Command::Fence(next), out);
    }

    pub(super) fn fenced(&mut self, from: Member, out: &mut Vec<Effect>) {
        self.suspects.remove(&from);
        if self.phase == Phase::Fencing && self.view.contains(&from) {
            self.answered.insert(from);
        }
        self.fencing_done(out);
    }

    /// Nothing of an earlier incarnation is on that host.
    pub(super) fn cleared(&mut self, member: Member, out: &mut Vec<Effect>) {
        self.suspects.remove(&member);
        self.fencing_done(out);
    }

    fn fencing_done(&mut self, out: &mut Vec<Effect>) {
        let is_clear = self.suspects.is_empty() || !self.rules.keep(Rule::FenceBeforeRestore);
        if self.phase != Phase::Fencing || self.answered.len() != self.view.len() || !is_clear {
            return;
        }
        self.phase = Phase::Restoring;
        self.answered.clear();
        for (member, shares) in &self.plan {
            self.order(*member, Command::Restore(shares.clone()), out);
        }
        self.arm(out);
    }

    pub(super) fn restored(&mut self, from: Member, out: &mut Vec<Effect>) {
        if self.phase != Phase::Restoring || !self.view.contains(&from) {
            return;
        }
        self.answered.insert(from);
        if !self.rules.keep(Rule::RestoreBarrier) {
            self.order(from, Command::Release, out);
        }
        if self.answered.len() == self.view.len() {
            self.phase = Phase::Releasing;
            self.answered.clear();
            self.order_all(&self.view, &Command::Release, out);
            self.arm(out);
        }
    }

    pub(super) fn runs(&mut self, from: Member, out: &mut Vec<Effect>) {
        if self.phase != Phase::Releasing || !self.view.contains(&from) {
            return;
        }
        self.answered.insert(from);
        if self.answered.len() == self.view.len() {
            out.push(Effect::RolledBack(self.incarnation));
            self.settle(out);
        }
    }

    /// An agent that began anew has lost what it was building, and what ran already may be gone again; of a suspect has at
    /// least been heard.
    pub(super) fn hello_in_rollback(&mut self, from: Member, is_lost: bool, out: &mut Vec<Effect>) {
        if self.phase == Phase::Fencing || !self.view.contains(&from) {
            self.order_fence(from, out);
        } else if is_lost {
            self.roll_back(out);
        }
    }

    /// Targets that do not answer are gone; who is only suspected has to be excluded by other means.
    pub(super) fn rollback_is_late(&mut self, out: &mut Vec<Effect>) {
        let silent: BTreeSet<Member> = self.view.difference(&self.answered).copied().collect();
        if silent.is_empty() {
            for member in &self.suspects {
                out.push(Effect::Exclude(*member, self.incarnation));
            }
            return self.arm(out);
        }
        for member in &silent {
            self.known.remove(member);
        }
        self.roll_back(out);
    }

    pub(super) fn resend_rollback(&self, out: &mut Vec<Effect>) {
        for member in self.view.union(&self.suspects).filter(|member| !self.answered.contains(member)) {
            let shares = self.plan.get(member);
            match (&self.phase, shares) {
                (Phase::Fencing, _) => self.order_fence(*member, out),
                (Phase::Restoring, Some(shares)) => self.order(*member, Command::Restore(shares.clone()), out),
                (Phase::Releasing, Some(_)) => self.order(*member, Command::Release, out),
                _ => {}
            }
        }
    }
}
