//! Young's period (1974): the square root of twice the cost times the mean time between faults.
//!
//! The cost is measured, and the mean time between faults learnt on the way.

use std::time::Duration;

use super::fixed::periodic;
use super::learn::Learnt;
use super::{Algorithm, Decision, Observation};
use crate::interval;

/// Young's period.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Young {
    learnt: Learnt,
}

impl Young {
    /// With a guess of the mean time between faults.
    pub fn guessing(between_faults: Duration) -> Self {
        Self { learnt: Learnt::guessing(between_faults) }
    }
}

impl Algorithm for Young {
    fn name(&self) -> &'static str {
        "young"
    }

    fn decide(&mut self, seen: &Observation<'_>) -> Decision {
        self.learnt.see(seen);
        periodic(seen, self.learnt.period(interval::young))
    }
}
