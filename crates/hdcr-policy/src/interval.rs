//! When the next checkpoint begins, and which interval is the best for a cost and a failure rate.

use std::time::Duration;

/// How long to wait after the end of a checkpoint before the next one begins.
///
/// The interval counts from beginning to beginning. A checkpoint that took longer than half of it makes the next one
/// late: the program gets at least as much time as the checkpoint took, so that it never spends most of its life in
/// checkpoints.
pub fn pause_after(interval: Duration, took: Duration) -> Duration {
    interval.saturating_sub(took).max(took)
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
            assert_eq!(pause_after(interval, took), expected, "{interval:?} {took:?}");
        }
    }

    #[test]
    fn failures_back_off() {
        for (failures, expected) in [(0, s(2)), (1, s(2)), (2, s(4)), (3, s(8)), (6, s(64)), (60, s(64))] {
            assert_eq!(pause_after_failure(s(2), failures), expected, "{failures}");
        }
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
