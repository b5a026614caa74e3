//! Daly's period (2006), the higher-order estimate.
//! The cost is measured, and the mean time between faults learnt on the way.

use std::time::Duration;

use super::fixed::periodic;
use super::learn::Learnt;
use super::{Algorithm, Decision, Observation};
use crate::interval;

/// Daly's period (2006), the higher-order estimate.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Daly {
    learnt: Learnt,
}

impl Daly {
    /// With a guess of the mean time between faults.
    pub fn guessing(between_faults: Duration) -> Self {
        Self { learnt: Learnt::guessing(between_faults) }
    }
}

impl Algorithm for Daly {
    fn name(&self) -> &'static str {
        "daly"
    }

    fn decide(&mut self, seen: &Observation<'_>) -> Decision {
        self.learnt.see(seen);
        periodic(seen, self.learnt.period(interval::daly))
    }
}
