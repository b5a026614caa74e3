//! A program that was rolled back runs already, and its memory is still to come: what follows from how that ends.
//!
//! When a page server dies, the one that stands by ends the program. That is no crash of the program's own: it is brought
//! back from the same checkpoint, this time with all of its memory.

use std::time::Duration;

use hdcr_policy::restart::Death;
use nix::sys::signal::Signal;

use super::{Keeper, Phase};
use crate::duration;
use crate::failure::{Class, Failure, Result};
use crate::foreground::KILL_LIMIT;
use crate::kinds::Lazy;
use crate::output::counted;
use crate::process::kill_all_below;
use crate::task::{Filled, Reply};

/// How long the filling may take: as long as the slowest disk.
pub(super) const LIMIT: Duration = Duration::from_hours(6);

impl Keeper {
    /// All memory is there.
    pub(super) fn filled(&self, filled: Filled) {
        let took = duration::show(Duration::from_micros(filled.total_us));
        let waited = counted(usize::try_from(filled.faults).unwrap_or(usize::MAX), "page was", "pages were");
        self.detail(&format!("all memory is there, after {took}; {waited} waited for"));
    }

    /// The memory of a program could not be filled, and the program is ended for that.
    pub(super) fn not_filled(&mut self, number: u64, answer: Option<Reply>) -> Result<()> {
        self.settle();
        let killed = Death::Signal(Signal::SIGKILL as i32);
        match self.phase {
            // It has ended by itself before.
            Phase::Dying(death) if death != killed => return self.decide(death),
            Phase::Running | Phase::Dying(_) => {}
            Phase::Restoring(_) | Phase::Waiting(_) | Phase::Done(_) => return Ok(()),
        }
        // Until nothing is left of the program, who stands by keeps from it what is missing.
        kill_all_below(&self.signals, KILL_LIMIT, &mut |_, _| {})?;
        if self.phase == Phase::Running {
            self.ran_before += self.since.elapsed();
        }
        if self.stop.is_some() {
            return self.decide(killed);
        }
        self.phase = Phase::Restoring(number);
        let failure = match answer {
            Some(Reply::Failed(failure)) => failure,
            _ => Failure::new(Class::Internal, "filler-died", "the process that filled the program's memory died"),
        };
        if failure.class == Class::Corrupt {
            return self.not_restored(failure);
        }
        let place = self.place(number);
        self.crash = Some(format!(
            "job {}: {}, and the program was killed; brought back from {place} once more, with all of its memory",
            self.plan.name, failure.message
        ));
        match self.line.find(number) {
            Some(made) => self.restore_by(made, Lazy::Never),
            None => self.not_restored(failure),
        }
    }
}
