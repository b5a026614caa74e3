//! By the dirty rate: a checkpoint when what would be lost is worth its price, and the price is low.
//!
//! The price of a checkpoint follows what the program changes meanwhile, so it waits for a quiet phase, and takes the
//! checkpoint at its beginning. The period is the exact one for the price *now*, looked at again a few times in each
//! period. Increments are [`Chain`](super::Chain)'s business: with it around this one, the price is theirs.

use std::time::Duration;

use super::exact::exact;
use super::learn::{Learnt, seconds};
use super::{Algorithm, Decision, Event, Looks, Observation, Order};
use crate::interval::pause_after_failure;

/// How many times in a period it looks.
const LOOKS: f64 = 8.0;
/// Never looks more often than this.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);
/// Nor more seldom.
const LONGEST_LOOK: Duration = Duration::from_mins(1);
/// The first checkpoint, from which the cost is learnt.
const FIRST: Duration = Duration::from_secs(1);

/// Adaptive by dirty rate.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Adaptive {
    learnt: Learnt,
    /// When the last checkpoint was taken, or the program began or came back.
    since: Duration,
    /// The dirty rate is known and this is the usual one, in bytes a second.
    usual: Option<f64>,
}

impl Adaptive {
    /// With a guess of the mean time between faults.
    pub fn guessing(between_faults: Duration) -> Self {
        Self { learnt: Learnt::guessing(between_faults), ..Self::default() }
    }

    /// The price of a checkpoint now: the learnt one, more or less as the program changes more or less than usual.
    fn price(&self, dirty_rate: Option<u64>) -> Option<Duration> {
        let price = self.learnt.latest_cost()?.as_secs_f64();
        let (Some(rate), Some(usual)) = (dirty_rate, self.usual) else { return Some(seconds(price)) };
        #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
        let ratio = if usual > 0.0 { (rate as f64 / usual).clamp(0.1, 10.0) } else { 1.0 };
        Some(seconds(price * ratio))
    }

    fn learn_rate(&mut self, dirty_rate: Option<u64>) {
        #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
        let found = dirty_rate.map(|rate| rate as f64);
        self.usual = match (self.usual, found) {
            (Some(usual), Some(found)) => Some(usual + 0.1 * (found - usual)),
            (usual, found) => found.or(usual),
        };
    }
}

fn look_again(now: Duration, period: Duration) -> Decision {
    let look = seconds(period.as_secs_f64() / LOOKS).clamp(SHORTEST_LOOK, LONGEST_LOOK);
    Decision::at(now.saturating_add(look))
}

impl Algorithm for Adaptive {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn looks(&self) -> Looks {
        Looks { memory: true, ..Looks::default() }
    }

    fn decide(&mut self, seen: &Observation<'_>) -> Decision {
        self.learnt.see(seen);
        match seen.event {
            Event::Started | Event::Recovered { .. } => {
                self.since = seen.now;
                Decision::at(seen.now.saturating_add(FIRST))
            }
            Event::Checkpointed { cost, .. } => {
                self.since = seen.now.saturating_sub(cost.total);
                let period = exact(cost.stopped, self.learnt.between_faults());
                look_again(seen.now, period)
            }
            Event::NotCheckpointed { failures } => {
                let period = self.price(seen.facts.dirty_rate).unwrap_or(FIRST);
                Decision::at(seen.now.saturating_add(pause_after_failure(period.max(FIRST), failures)))
            }
            Event::Due => {
                self.learn_rate(seen.facts.dirty_rate);
                let Some(price) = self.price(seen.facts.dirty_rate) else { return Decision::take(Order::default()) };
                let period = exact(price, self.learnt.between_faults());
                if seen.now.saturating_sub(self.since) >= period {
                    return Decision::take(Order::default());
                }
                look_again(seen.now, period)
            }
            Event::Notice { .. } | Event::Idle(_) | Event::GoodMoment => Decision::default(),
        }
    }
}
