//! What an algorithm learns on the way: the price of a checkpoint and the mean time between faults.

use std::time::Duration;

use super::{Event, Kind, Observation};

/// A new cost weighs this much against all before it.
const WEIGHT: f64 = 0.25;

/// When the first checkpoint is taken.
const FIRST: Duration = Duration::from_secs(1);
/// The shortest period.
const SHORTEST: Duration = Duration::from_millis(10);
/// The longest period.
const LONGEST: Duration = Duration::from_hours(1);

/// The guess counts like so many faults.
const GUESS: f64 = 0.5;

/// Cost and faults as seen so far.
///
/// The mean time between faults begins as a guess, or as the time that passed without a fault when that is longer. Faults
/// that are seen shift it to what they say, `time / faults`; both are weighed as logarithms, because a guess may be wrong
/// by orders of magnitude, and then a few faults must be enough.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Learnt {
    guess: f64,
    faults: f64,
    now: f64,
    full: Option<f64>,
    increment: Option<f64>,
    latest: Kind,
    full_total: Option<f64>,
}

impl Default for Learnt {
    /// Guesses one fault a day: what a busy cluster gives a job of some hundred hosts.
    fn default() -> Self {
        Self::guessing(Duration::from_hours(24))
    }
}

impl Learnt {
    /// With a guess of the mean time between faults.
    pub fn guessing(between_faults: Duration) -> Self {
        let guess = between_faults.as_secs_f64();
        Self { guess, faults: 0.0, now: 0.0, full: None, increment: None, latest: Kind::Full, full_total: None }
    }

    /// Learns from what is seen.
    pub fn see(&mut self, seen: &Observation<'_>) {
        self.now = seen.now.as_secs_f64();
        if let Event::Checkpointed { kind, .. } = seen.event {
            self.latest = kind;
        }
        match seen.event {
            Event::Checkpointed { kind: Kind::Full, cost, .. } => {
                blend(&mut self.full, cost.stopped);
                blend(&mut self.full_total, cost.total);
            }
            Event::Checkpointed { kind: Kind::Increment, cost, .. } => blend(&mut self.increment, cost.stopped),
            Event::Recovered { .. } => self.faults += 1.0,
            Event::Started
            | Event::Due
            | Event::NotCheckpointed { .. }
            | Event::Notice { .. }
            | Event::Idle(_)
            | Event::GoodMoment => {}
        }
    }

    /// Mean time between faults.
    pub fn between_faults(&self) -> Duration {
        if self.faults < 1.0 {
            return seconds(self.guess.max(self.now));
        }
        let seen = (self.now / self.faults).max(f64::MIN_POSITIVE);
        let guess = self.guess.max(f64::MIN_POSITIVE);
        seconds(((GUESS * guess.ln() + self.faults * seen.ln()) / (GUESS + self.faults)).exp())
    }

    /// What a full checkpoint costs the program; `None` before the first.
    pub fn cost(&self) -> Option<Duration> {
        self.full.map(seconds)
    }

    /// What a checkpoint of the kind taken last costs the program.
    pub fn latest_cost(&self) -> Option<Duration> {
        match self.latest {
            Kind::Full => self.cost(),
            Kind::Increment => self.increment.map(seconds),
        }
    }

    /// The period from beginning to beginning by a formula of cost and mean time between faults that gives the work in
    /// between. The first checkpoint comes soon, as the cost is known only after it; none is ever later than an hour, as
    /// what was learnt of faults may be wrong.
    pub fn period(&self, work: impl Fn(Duration, Duration) -> Duration) -> Duration {
        self.cost()
            .map_or(FIRST, |cost| work(cost, self.between_faults()).saturating_add(cost).clamp(SHORTEST, LONGEST))
    }

    /// How long a full checkpoint takes until it is durable.
    pub fn latency(&self) -> Option<Duration> {
        self.full_total.map(seconds)
    }
}

fn blend(known: &mut Option<f64>, found: Duration) {
    let found = found.as_secs_f64();
    *known = Some(known.map_or(found, |known| known + WEIGHT * (found - known)));
}

/// A duration from seconds; what a duration cannot hold is the longest one.
pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}
