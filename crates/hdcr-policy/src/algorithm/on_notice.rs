//! A last checkpoint when the end is near: a preemption notice, `SIGTERM` of a batch system, a time limit.

use super::learn::Learnt;
use super::{Algorithm, Decision, Event, Fault, Kept, Looks, Observation, Recovery};

/// Another algorithm, and one more checkpoint at a notice.
#[derive(Debug)]
pub struct OnNotice {
    otherwise: Box<dyn Algorithm + Send>,
    learnt: Learnt,
}

impl OnNotice {
    /// `otherwise` decides as long as there is no notice.
    pub fn new(otherwise: Box<dyn Algorithm + Send>) -> Self {
        Self { otherwise, learnt: Learnt::default() }
    }
}

impl Algorithm for OnNotice {
    fn name(&self) -> &'static str {
        "on-notice"
    }

    fn looks(&self) -> Looks {
        self.otherwise.looks()
    }

    /// With a grace that is known to be too short for a checkpoint none is begun: half a checkpoint is worth nothing, and
    /// its stop would cost work.
    fn decide(&mut self, seen: &Observation<'_>) -> Decision {
        self.learnt.see(seen);
        let otherwise = self.otherwise.decide(seen);
        let needed = self.learnt.latency().unwrap_or_default();
        if let Event::Notice { grace } = seen.event
            && grace.is_none_or(|grace| !grace.is_zero() && grace >= needed)
        {
            return Decision { checkpoint: Some(otherwise.checkpoint.unwrap_or_default()), wake: otherwise.wake };
        }
        otherwise
    }

    fn forget(&mut self, kept: &[Kept]) -> Vec<u64> {
        self.otherwise.forget(kept)
    }

    fn recover(&mut self, fault: &Fault, kept: &[Kept]) -> Recovery {
        self.otherwise.recover(fault, kept)
    }
}
