//! One run of one algorithm in one world.

use std::time::Duration;

use super::{Moment, Outcome, World};
use crate::algorithm::{Algorithm, Cost, Event, Facts, Fault, Kept, Kind, Level, Observation, Order, Recovery};

/// A checkpoint that is not durable yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    taken: Duration,
    progress: Duration,
    kind: Kind,
    level: Level,
    cost: Cost,
}

/// The state of a run.
struct Run<'a> {
    world: &'a World<'a>,
    now: Duration,
    progress: Duration,
    /// The furthest that it ever came.
    running_from: Duration,
    wake: Option<Duration>,
    pending: Option<Pending>,
    /// Checkpoints with the work that they hold.
    kept: Vec<(Kept, Duration)>,
    numbers: u64,
    facts: Facts,
    outcome: Outcome,
}

/// Runs an algorithm to the end of the work.
///
/// A checkpoint stops the program at once and becomes usable when it is durable; while one is on its way no other is
/// begun, and an order that comes in between is lost. An algorithm that never finishes the work because faults undo all of
/// it ends with the last fault, as none comes after it.
pub fn replay(algorithm: &mut dyn Algorithm, world: &World<'_>) -> Outcome {
    let facts = Facts { levels: world.levels.max(1), ..Facts::default() };
    let mut run = Run {
        world,
        now: Duration::ZERO,
        progress: Duration::ZERO,
        running_from: Duration::ZERO,
        wake: None,
        pending: None,
        kept: Vec::new(),
        numbers: 0,
        facts,
        outcome: Outcome { work: world.work, ..Outcome::default() },
    };
    let mut faults = world.faults.iter().peekable();
    run.tell(algorithm, Event::Started);
    loop {
        let end = run.running_from.max(run.now).saturating_add(world.work.saturating_sub(run.progress));
        let durable = run.pending.map(|pending| pending.taken.saturating_add(pending.cost.total));
        let wake = run.wake.filter(|_| run.pending.is_none()).map(|wake| wake.max(run.now));
        let fault = faults.peek().map(|fault| fault.at.max(run.now));
        let next = [Some(end), durable, wake, fault].into_iter().flatten().min().unwrap_or(end);
        run.advance(next);
        if fault == Some(next) && next < end {
            let mut hit = faults.next().copied();
            while let Some(fault) = hit {
                let up = run.fault(algorithm, &fault);
                hit = faults.next_if(|next| next.at < up).copied();
            }
            run.tell(algorithm, Event::Recovered { took: world.restart });
        } else if next == end {
            run.outcome.wall = end;
            return run.outcome;
        } else if durable == Some(next) {
            run.durable(algorithm);
        } else {
            run.wake = None;
            run.tell(algorithm, Event::Due);
        }
    }
}

impl Run<'_> {
    /// Time passes, and the program works unless it is stopped or down.
    fn advance(&mut self, to: Duration) {
        self.progress = self.progress.saturating_add(to.saturating_sub(self.now.max(self.running_from)));
        self.now = to;
    }

    fn tell(&mut self, algorithm: &mut dyn Algorithm, event: Event) {
        self.facts.kept = self.kept.iter().map(|(kept, _)| *kept).collect();
        self.facts.dirty_rate = (self.world.dirty_rate)(self.progress);
        let decision = algorithm.decide(&Observation { now: self.now, event, facts: &self.facts });
        if let Some(wake) = decision.wake {
            self.wake = Some(wake);
        }
        if let (Some(order), None) = (decision.checkpoint, self.pending) {
            self.begin(&order);
        }
    }

    fn begin(&mut self, order: &Order) {
        let last = self.kept.last().map_or(Duration::ZERO, |(_, progress)| *progress);
        let kind = if self.kept.is_empty() { Kind::Full } else { order.kind.unwrap_or_default() };
        let moment = Moment { kind, progress: self.progress, since: self.progress.saturating_sub(last) };
        let cost = (self.world.cost)(&moment);
        let cost = Cost { total: cost.total.max(cost.stopped), ..cost };
        self.pending = Some(Pending { taken: self.now, progress: self.progress, kind, level: order.level, cost });
        self.running_from = self.now.saturating_add(cost.stopped);
        self.outcome.stopped = self.outcome.stopped.saturating_add(cost.stopped);
    }

    fn durable(&mut self, algorithm: &mut dyn Algorithm) {
        let Some(pending) = self.pending.take() else { return };
        self.numbers = self.numbers.saturating_add(1);
        let base = match pending.kind {
            Kind::Full => None,
            Kind::Increment => self.kept.last().map(|(kept, _)| kept.number),
        };
        let Pending { taken, kind, level, cost, progress } = pending;
        self.kept.push((Kept { number: self.numbers, taken, kind, base, level, pinned: false }, progress));
        self.outcome.checkpoints = self.outcome.checkpoints.saturating_add(1);
        let kept: Vec<Kept> = self.kept.iter().map(|(kept, _)| *kept).collect();
        let given_up = algorithm.forget(&kept);
        self.kept.retain(|(kept, _)| !given_up.contains(&kept.number));
        self.tell(algorithm, Event::Checkpointed { kind, level, cost });
    }

    /// When the program runs again.
    fn fault(&mut self, algorithm: &mut dyn Algorithm, fault: &Fault) -> Duration {
        self.now = self.now.max(fault.at);
        self.pending = None;
        self.wake = None;
        self.outcome.faults = self.outcome.faults.saturating_add(1);
        self.kept.retain(|(kept, _)| kept.level >= fault.severity);
        self.without_orphans();
        let kept: Vec<Kept> = self.kept.iter().map(|(kept, _)| *kept).collect();
        let back_to = match algorithm.recover(fault, &kept) {
            Recovery::Rollback(number) => self.kept.iter().find(|(kept, _)| kept.number == number).map(|(_, at)| *at),
            Recovery::Begin | Recovery::GiveUp => None,
        };
        let back_to = back_to.unwrap_or_default();
        self.outcome.lost = self.outcome.lost.saturating_add(self.progress.saturating_sub(back_to));
        self.progress = back_to;
        let up = self.now.saturating_add(self.world.restart);
        self.running_from = up;
        self.now = up;
        up
    }

    /// An increment whose base is lost is lost, too.
    fn without_orphans(&mut self) {
        let mut whole: Vec<u64> = Vec::new();
        self.kept.retain(|(kept, _)| {
            let stands = kept.base.is_none_or(|base| whole.contains(&base));
            whole.extend(stands.then_some(kept.number));
            stands
        });
    }
}
