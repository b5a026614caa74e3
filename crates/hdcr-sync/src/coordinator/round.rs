//! The way of one checkpoint: a barrier on each side of the capture, then one entry in the ledger.

use super::{Coordinator, Effect, Phase, Reason, Stage};
use crate::ids::{Member, Round};
use crate::ledger::Decision;
use crate::manifest::{EpochManifest, Share};
use crate::message::Command;
use crate::rules::Rule;

impl Stage {
    /// What is ordered to get there.
    fn command(self) -> Command {
        match self {
            Stage::Begin => Command::Begin,
            Stage::Freeze => Command::Freeze,
            Stage::Hold => Command::Hold,
            Stage::Capture => Command::Capture,
            Stage::Thaw | Stage::Done => Command::Thaw,
        }
    }

    /// Which rule has all members wait for one another before this is ordered.
    fn barrier(self) -> Option<Rule> {
        match self {
            Stage::Hold => Some(Rule::FreezeBarrier),
            Stage::Capture => Some(Rule::HoldBarrier),
            Stage::Thaw => Some(Rule::CaptureBarrier),
            Stage::Begin | Stage::Freeze | Stage::Done => None,
        }
    }
}

impl Coordinator {
    pub(super) fn begin_round(&mut self, out: &mut Vec<Effect>) {
        let all_known = self.view.iter().all(|member| self.known.contains_key(member));
        if self.phase != Phase::Ready || self.view.is_empty() || !all_known {
            return;
        }
        self.epoch = self.epoch.next();
        self.progress = self.view.iter().map(|member| (*member, Stage::Begin)).collect();
        self.missing = self.view.len();
        self.shares.clear();
        self.phase = Phase::Round(Stage::Begin);
        self.order_all(&self.view, &Command::Begin, out);
        self.arm(out);
    }

    pub(super) fn round(&self) -> Round {
        self.stamp().round()
    }

    /// `from` has done what was ordered, and is fit for `stage`.
    pub(super) fn reached(&mut self, from: Member, stage: Stage, out: &mut Vec<Effect>) {
        let Phase::Round(at) = self.phase else { return };
        let Some(before) = self.progress.get_mut(&from).filter(|before| **before < stage) else { return };
        let was_missing = *before <= at;
        *before = stage;
        if stage.barrier().is_some_and(|rule| !self.rules.keep(rule)) {
            self.order(from, stage.command(), out);
        }
        if was_missing && stage > at {
            self.missing = self.missing.saturating_sub(1);
        }
        self.pass_barrier(out);
    }

    fn pass_barrier(&mut self, out: &mut Vec<Effect>) {
        let Phase::Round(at) = self.phase else { return };
        if self.missing != 0 {
            return;
        }
        let stage = self.progress.values().copied().min().unwrap_or(at);
        self.phase = Phase::Round(stage);
        self.missing = self.progress.values().filter(|progress| **progress <= stage).count();
        if stage == Stage::Done {
            return self.commit(out);
        }
        if stage.barrier().is_none_or(|rule| self.rules.keep(rule)) {
            self.order_all(&self.view, &stage.command(), out);
        }
        self.arm(out);
    }

    pub(super) fn durable(&mut self, from: Member, share: Share, out: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Round(_)) || share.member != from {
            return;
        }
        self.shares.insert(from, share);
        if !self.rules.keep(Rule::DurableBarrier) {
            return self.commit(out);
        }
        self.reached(from, Stage::Done, out);
    }

    fn commit(&mut self, out: &mut Vec<Effect>) {
        let manifest = EpochManifest {
            round: self.round(),
            incarnation: self.incarnation,
            previous: self.line(),
            shares: std::mem::take(&mut self.shares).into_values().collect(),
        };
        if self.rules.keep(Rule::ChannelsChecked)
            && let Err(wrong) = manifest.check_channels()
        {
            return self.abort(Reason::Channels(wrong), out);
        }
        let mut entry = self.entry(Decision::Commit(manifest.clone()));
        entry.line = Some(manifest.round);
        if !self.rules.keep(Rule::CommitAfterWrite) {
            self.tell_commit(manifest.round, out);
        }
        self.phase = Phase::Committing(manifest);
        self.append(entry, out);
    }

    fn tell_commit(&self, round: Round, out: &mut Vec<Effect>) {
        out.push(Effect::Committed(round));
        self.order_all(&self.view, &Command::Commit, out);
    }

    pub(super) fn committed(&mut self, manifest: EpochManifest, out: &mut Vec<Effect>) {
        let mut keep = vec![manifest.round];
        keep.extend(manifest.previous);
        let bound = manifest.round;
        let endless = Round { term: crate::ids::Term(u64::MAX), ..bound };
        let before = if self.rules.keep(Rule::GarbageBounded) { bound } else { endless };
        self.line = Some(manifest);
        if self.rules.keep(Rule::CommitAfterWrite) {
            self.tell_commit(bound, out);
        }
        out.push(Effect::Collect { keep, before });
        self.settle(out);
    }

    pub(super) fn abort(&mut self, reason: Reason, out: &mut Vec<Effect>) {
        out.push(Effect::Aborted(self.round(), reason));
        self.order_all(&self.view, &Command::Abort, out);
        self.shares.clear();
        self.settle(out);
    }

    pub(super) fn resend_round(&self, out: &mut Vec<Effect>) {
        let Phase::Round(at) = self.phase else { return };
        for (member, progress) in &self.progress {
            if *progress <= at {
                self.order(*member, at.command(), out);
            }
        }
    }
}
