//! Replays faults against an algorithm and says what came of it: how much of the time was work.
//!
//! Time is simulated, from event to event. The program does one second of work in each second that it is neither stopped
//! for a checkpoint, nor down, nor doing again what a fault has undone.

mod replay;
mod trace;

use std::time::Duration;

use crate::algorithm::{Cost, Fault, Fixed, Kind};

pub use replay::replay;
pub use trace::{Law, faults};

/// A checkpoint about to be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Full or an increment.
    pub kind: Kind,
    /// How much work is done.
    pub progress: Duration,
    /// How much of it since the checkpoint before.
    pub since: Duration,
}

/// The program and what happens to it.
#[derive(Debug)]
pub struct World<'a> {
    /// How much work there is.
    pub work: Duration,
    /// What a checkpoint costs.
    pub cost: fn(&Moment) -> Cost,
    /// Bytes changed in a second at this point of the work, when that can be seen.
    pub dirty_rate: fn(Duration) -> Option<u64>,
    /// From a fault until the program runs again.
    pub restart: Duration,
    /// Faults by rising time. When they are used up, none comes any more.
    pub faults: &'a [Fault],
    /// How many levels there are.
    pub levels: u8,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// From the beginning to the end of the work.
    pub wall: Duration,
    /// All of the work, done once.
    pub work: Duration,
    /// Work that was done again.
    pub lost: Duration,
    /// Time stopped in checkpoints.
    pub stopped: Duration,
    /// Checkpoints that became durable.
    pub checkpoints: u32,
    /// Faults that hit it.
    pub faults: u32,
}

impl Outcome {
    /// Work by time: 1 is a program without checkpoints and faults.
    pub fn efficiency(&self) -> f64 {
        self.work.as_secs_f64() / self.wall.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// The fixed period that would have been best in this world, known only afterwards, and its outcome. It is looked for
/// between an eighth and eight times of `around`: in steps of a quarter, then around the best of these in steps of three
/// percent, so a little more might be had.
pub fn best_fixed(world: &World<'_>, around: Duration) -> (Duration, Outcome) {
    let (coarse, _) = best_of(world, around.div_f64(8.0), around.mul_f64(8.0), 1.25);
    best_of(world, coarse.div_f64(1.25), coarse.mul_f64(1.25), 1.03)
}

fn best_of(world: &World<'_>, from: Duration, to: Duration, step: f64) -> (Duration, Outcome) {
    let mut best = (from, replay(&mut Fixed::new(from), world));
    let mut period = from.mul_f64(step);
    while period < to {
        let outcome = replay(&mut Fixed::new(period), world);
        if outcome.wall < best.1.wall {
            best = (period, outcome);
        }
        period = period.mul_f64(step);
    }
    best
}

#[cfg(test)]
mod tests;
