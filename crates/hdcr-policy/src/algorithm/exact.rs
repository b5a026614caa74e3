//! The exact best period for faults that come with a constant rate, with the cost measured and the mean time between
//! faults learnt on the way.

use std::time::Duration;

use super::fixed::periodic;
use super::learn::{Learnt, seconds};
use super::{Algorithm, Decision, Observation};

/// The work `w` between checkpoints that loses least when faults come with a constant rate: it solves
/// `exp((w + cost) / mean) * (1 - w / mean) = 1` (Vaidya, IEEE Transactions on Computers 46(8), 1997), which is
/// `w = mean * (1 + W(-exp(-1 - cost / mean)))` with Lambert's W.
pub(crate) fn exact(cost: Duration, between_faults: Duration) -> Duration {
    let mean = between_faults.as_secs_f64();
    if mean <= 0.0 {
        return Duration::ZERO;
    }
    let ratio = cost.as_secs_f64() / mean;
    // In x = w / mean: ratio + x + ln(1 - x) falls from `ratio` without end on 0..1, so its zero is found by halving.
    let (mut low, mut high) = (0.0_f64, 1.0_f64);
    for _ in 0..64 {
        let middle = low.midpoint(high);
        if ratio + middle + (-middle).ln_1p() > 0.0 { low = middle } else { high = middle }
    }
    seconds(mean * low)
}

/// The exact best period.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Exact {
    learnt: Learnt,
}

impl Exact {
    /// With a guess of the mean time between faults.
    pub fn guessing(between_faults: Duration) -> Self {
        Self { learnt: Learnt::guessing(between_faults) }
    }
}

impl Algorithm for Exact {
    fn name(&self) -> &'static str {
        "exact"
    }

    fn decide(&mut self, seen: &Observation<'_>) -> Decision {
        self.learnt.see(seen);
        periodic(seen, self.learnt.period(exact))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_equation_is_solved() {
        let rows = [
            (0.01, 86_400.0, 41.56),
            (1.0, 86_400.0, 415.03),
            (300.0, 86_400.0, 7001.40),
            (60.0, 3_600.0, 617.89),
            (600.0, 3_600.0, 1699.23),
            (8_000.0, 3_600.0, 3450.39),
        ];
        for (cost, mean, expected) in rows {
            let found = exact(Duration::from_secs_f64(cost), Duration::from_secs_f64(mean)).as_secs_f64();
            assert!((found - expected).abs() < 0.01, "{cost} {mean}: {found}");
        }
        assert_eq!(exact(Duration::ZERO, Duration::from_secs(10)), Duration::ZERO);
        assert_eq!(exact(Duration::from_secs(1), Duration::ZERO), Duration::ZERO);
    }
}
