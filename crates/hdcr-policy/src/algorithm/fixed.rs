//! A checkpoint every so often, whatever happens.

use std::time::Duration;

use super::{Algorithm, Decision, Event, Observation, Order};
use crate::interval::{Spent, pause_after, pause_after_failure};

/// A fixed period, from the beginning of one checkpoint to that of the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fixed {
    period: Duration,
}

impl Fixed {
    /// With this period.
    pub fn new(period: Duration) -> Self {
        Self { period }
    }
}

impl Algorithm for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn decide(&mut self, seen: &Observation<'_>) -> Decision {
        periodic(seen, self.period)
    }
}

/// The decision of everything that works by a period: it may be another one each time.
pub(super) fn periodic(seen: &Observation<'_>, period: Duration) -> Decision {
    match seen.event {
        Event::Due => Decision::take(Order::default()),
        Event::Started | Event::Recovered { .. } => Decision::at(seen.now.saturating_add(period)),
        Event::Checkpointed { cost, .. } => {
            let spent = Spent { took: cost.total, held_up: cost.total, worked: cost.total };
            Decision::at(seen.now.saturating_add(pause_after(period, spent, None)))
        }
        Event::NotCheckpointed { failures } => {
            Decision::at(seen.now.saturating_add(pause_after_failure(period, failures)))
        }
        Event::Notice { .. } | Event::Idle(_) | Event::GoodMoment => Decision::default(),
    }
}
