//! When the program does nothing, its stop costs nothing.

use std::time::Duration;

use super::{Algorithm, Decision, Event, Fault, Kept, Looks, Observation, Order, Recovery};

/// Another algorithm, which is brought forward when the program idles.
#[derive(Debug)]
pub struct OnIdle {
    otherwise: Box<dyn Algorithm + Send>,
    idle: Duration,
    /// Not before this moment: one checkpoint for each stretch of work is enough.
    next: Duration,
}

impl OnIdle {
    /// `otherwise` decides while the program works; it counts as idle after `idle`.
    pub fn new(otherwise: Box<dyn Algorithm + Send>, idle: Duration) -> Self {
        Self { otherwise, idle, next: Duration::ZERO }
    }
}

impl Algorithm for OnIdle {
    fn name(&self) -> &'static str {
        "on-idle"
    }

    fn looks(&self) -> Looks {
        Looks { idleness: true, ..self.otherwise.looks() }
    }

    fn decide(&mut self, seen: &Observation<'_>) -> Decision {
        let mut decision = self.otherwise.decide(seen);
        match seen.event {
            Event::Idle(so_long) if so_long >= self.idle && seen.now >= self.next => {
                decision.checkpoint.get_or_insert_with(Order::default);
                // Idle since then: the same idleness is told of again and again.
                self.next = seen.now.saturating_add(so_long);
            }
            Event::Checkpointed { cost, .. } => {
                self.next = seen.now.saturating_add(self.idle).saturating_add(cost.total);
            }
            Event::Started
            | Event::Due
            | Event::NotCheckpointed { .. }
            | Event::Recovered { .. }
            | Event::Notice { .. }
            | Event::Idle(_)
            | Event::GoodMoment => {}
        }
        decision
    }

    fn forget(&mut self, kept: &[Kept]) -> Vec<u64> {
        self.otherwise.forget(kept)
    }

    fn recover(&mut self, fault: &Fault, kept: &[Kept]) -> Recovery {
        self.otherwise.recover(fault, kept)
    }
}
