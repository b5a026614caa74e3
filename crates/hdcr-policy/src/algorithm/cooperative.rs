//! The program says when a checkpoint is cheap; another algorithm says when one is due.

use std::time::Duration;

use super::{Algorithm, Decision, Event, Fault, Kept, Looks, Observation, Order, Recovery};

/// A due checkpoint waits for a good moment, but not for ever.
#[derive(Debug)]
pub struct Cooperative {
    due: Box<dyn Algorithm + Send>,
    /// The order that waits.
    waits: Option<Order>,
    /// When the last checkpoint was durable, or the program began.
    since: Duration,
}

impl Cooperative {
    /// `due` says when a checkpoint is due.
    pub fn new(due: Box<dyn Algorithm + Send>) -> Self {
        Self { due, waits: None, since: Duration::ZERO }
    }
}

impl Algorithm for Cooperative {
    fn name(&self) -> &'static str {
        "cooperative"
    }

    fn looks(&self) -> Looks {
        self.due.looks()
    }

    fn decide(&mut self, seen: &Observation<'_>) -> Decision {
        match (seen.event, self.waits.take()) {
            // Due once more: it has waited as long again as it took to become due, and the program says nothing.
            (Event::GoodMoment | Event::Due, Some(order)) => return Decision::take(order),
            (Event::Started | Event::Recovered { .. } | Event::Checkpointed { .. }, _) => self.since = seen.now,
            (_, waiting) => self.waits = waiting,
        }
        let decision = self.due.decide(seen);
        let Some(order) = decision.checkpoint else { return decision };
        self.waits = Some(order);
        Decision::at(seen.now.saturating_add(seen.now.saturating_sub(self.since)))
    }

    fn forget(&mut self, kept: &[Kept]) -> Vec<u64> {
        self.due.forget(kept)
    }

    fn recover(&mut self, fault: &Fault, kept: &[Kept]) -> Recovery {
        self.due.recover(fault, kept)
    }
}
