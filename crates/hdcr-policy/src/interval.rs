//! When the next checkpoint begins, and which interval is the best for a cost and a failure rate.

use std::time::Duration;

use crate::algorithm::{Cost, Event, Facts, Kind, Learnt, Level, Observation, exact};

/// What one checkpoint has cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Spent {
    /// From its beginning to its end.
    pub took: Duration,
    /// What the program bore of that.
    pub held_up: Duration,
    /// Processor time of what made it.
    pub worked: Duration,
}

/// A share of the time in percent, 1 to 100.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget(u32);

impl Budget {
    /// `None`: it is not between 1 and 100.
    pub fn percent(share: u32) -> Option<Self> {
        (1..=100).contains(&share).then_some(Self(share))
    }
}

/// How long to wait after the end of a checkpoint before the next one begins.
///
/// The interval counts from beginning to beginning. When the program bore more than half of it the next one is late: the
/// program gets at least as much time as a checkpoint takes from it, so that it never spends most of its life in
/// checkpoints. With a budget, stops and processor time together have no larger share of the time than that.
pub fn pause_after(interval: Duration, spent: Spent, budget: Option<Budget>) -> Duration {
    let pause = interval.saturating_sub(spent.took).max(spent.held_up);
    let Some(Budget(share)) = budget else { return pause };
    let cost = spent.held_up.saturating_add(spent.worked);
    pause.max((cost.saturating_mul(100) / share.max(1)).saturating_sub(spent.took))
}

/// How long to wait after a checkpoint that failed: the interval, doubled with each failure in a row, at most 32 times.
pub fn pause_after_failure(interval: Duration, failures: u32) -> Duration {
    interval.saturating_mul(1 << failures.saturating_sub(1).min(5))
}

/// Young's interval (1974): the square root of twice the cost times the mean time between failures.
pub fn young(cost: Duration, between_failures: Duration) -> Duration {
    seconds((2.0 * cost.as_secs_f64() * between_failures.as_secs_f64()).sqrt())
}

/// Daly's interval (2006), the higher-order estimate: better than Young's where the cost is not small against the mean
/// time between failures; that mean itself where the cost is more than twice as large.
pub fn daly(cost: Duration, between_failures: Duration) -> Duration {
    let (cost, mean) = (cost.as_secs_f64(), between_failures.as_secs_f64());
    if mean <= 0.0 || cost >= 2.0 * mean {
        return between_failures;
    }
    let ratio = cost / (2.0 * mean);
    seconds((2.0 * cost * mean).sqrt() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - cost)
}

/// What a job has shown of itself so far: from it the interval of `--every auto` is chosen, by the exact best period for
/// what was learnt.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rhythm {
    learnt: Learnt,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self { learnt: Learnt::guessing(BELIEVED) }
    }
}

/// A chosen interval, and from what.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Chosen {
    /// From the beginning of a checkpoint to that of the next one.
    pub interval: Duration,
    /// What one costs; `None`: there was none yet.
    pub cost: Option<Duration>,
    /// The mean time between failures, as far as it is known.
    pub between_failures: Duration,
}

/// Never more often, however cheap it is.
const LEAST: Duration = Duration::from_secs(1);
/// Never more seldom: what is lost should be bearable, also when nothing has ever failed.
const MOST: Duration = Duration::from_hours(1);
/// Until the first checkpoint has shown what one costs.
const FIRST: Duration = Duration::from_secs(10);
/// Checkpoints take at most this part of the time of the program: one in so many.
const SHARE: u32 = 20;
/// The mean time between failures of a program that nothing is known of.
const BELIEVED: Duration = Duration::from_hours(12);

impl Rhythm {
    /// A checkpoint was made: it stopped the program for a while, and wrote while it ran. Beside a writer that has a core
    /// of its own the program loses less than all of that time; a quarter is what is counted.
    pub fn checkpointed(&mut self, stopped: Duration, in_all: Duration) {
        let lost = stopped.saturating_add(in_all.saturating_sub(stopped) / 4);
        let cost = Cost { stopped: lost, total: in_all, bytes: 0 };
        self.see(Event::Checkpointed { kind: Kind::Full, level: Level(0), cost }, Duration::ZERO);
    }

    /// The program has crashed.
    pub fn failed(&mut self) {
        self.see(Event::Recovered { took: Duration::ZERO }, Duration::ZERO);
    }

    fn see(&mut self, event: Event, now: Duration) {
        self.learnt.see(&Observation { now, event, facts: &Facts::default() });
    }

    /// The best interval by what was seen in `observed` of time.
    pub fn choose(mut self, observed: Duration) -> Chosen {
        self.see(Event::Due, observed);
        let (cost, between_failures) = (self.learnt.cost(), self.learnt.between_faults());
        let interval =
            cost.map_or(FIRST, |cost| self.learnt.period(exact).max(cost.saturating_mul(SHARE)).clamp(LEAST, MOST));
        Chosen { interval, cost, between_failures }
    }
}

/// A duration from seconds; what a duration cannot hold is the longest one.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_next_checkpoint_keeps_the_beat_or_gives_the_program_its_share() {
        for (interval, took, expected) in [
            (s(30), s(0), s(30)),
            (s(30), s(10), s(20)),
            (s(30), s(20), s(20)),
            (s(30), s(90), s(90)),
            (s(0), s(3), s(3)),
        ] {
            let spent = Spent { took, held_up: took, worked: took };
            assert_eq!(pause_after(interval, spent, None), expected, "{interval:?} {took:?}");
        }
        let spent = Spent { took: s(9), held_up: s(1), worked: s(4) };
        assert_eq!(pause_after(s(10), spent, None), s(1));
        assert_eq!(pause_after(s(10), spent, Budget::percent(10)), s(41));
        assert_eq!(pause_after(s(100), spent, Budget::percent(10)), s(91));
        assert_eq!((Budget::percent(0), Budget::percent(101)), (None, None));
    }

    #[test]
    fn failures_back_off() {
        for (failures, expected) in [(0, s(2)), (1, s(2)), (2, s(4)), (3, s(8)), (6, s(64)), (60, s(64))] {
            assert_eq!(pause_after_failure(s(2), failures), expected, "{failures}");
        }
    }

    #[test]
    fn the_interval_follows_cost_and_failures_within_bounds() {
        let chosen = |costs: &[u64], failures: u32, observed: Duration| {
            let mut rhythm = Rhythm::default();
            for ms in costs {
                rhythm.checkpointed(Duration::from_millis(*ms), Duration::from_millis(*ms));
            }
            for _ in 0..failures {
                rhythm.failed();
            }
            rhythm.choose(observed).interval.as_secs()
        };
        let hour = s(3_600);
        for (costs, failures, observed, expected) in [
            (&[][..], 0, s(0), 10),
            (&[20][..], 0, s(0), 41),
            (&[20], 0, hour, 41),
            (&[20], 0, s(86_400), 58),
            (&[20], 3, hour, 8),
            (&[1_000], 3, hour, 63),
            (&[20], 100_000, hour, 1),
            // A costly one: twenty times its cost, however often it fails.
            (&[60_000], 1_000, hour, 1_200),
            // And never so seldom that a day is lost.
            (&[600_000], 0, s(0), 3_600),
        ] {
            assert_eq!(chosen(costs, failures, observed), expected, "{costs:?} {failures} {observed:?}");
        }
    }

    #[test]
    fn the_last_costs_count_most() {
        let mut rhythm = Rhythm::default();
        rhythm.checkpointed(s(1), s(5));
        assert_eq!(rhythm.choose(s(0)).cost, Some(s(2)));
        rhythm.checkpointed(s(12), s(12));
        assert_eq!(rhythm.choose(s(0)).cost, Some(Duration::from_millis(4_500)));
    }

    #[test]
    fn young_and_daly_agree_with_the_papers() {
        let rows =
            [(s(60), s(86_400), 3219.9, 3180.1), (s(300), s(3_600), 1469.7, 1276.5), (s(100), s(10), 44.7, 10.0)];
        for (cost, mean, by_young, by_daly) in rows {
            let near = |found: Duration, wanted: f64| (found.as_secs_f64() - wanted).abs() < 1.0;
            assert!(near(young(cost, mean), by_young), "{:?}", young(cost, mean));
            assert!(near(daly(cost, mean), by_daly), "{:?}", daly(cost, mean));
        }
        assert_eq!(young(s(0), s(100)), s(0));
    }
}
