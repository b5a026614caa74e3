//! Fault points: the mechanism can be told to die by `SIGKILL` at any one of its calls, or to take one for failed, as trials
//! demand.

use std::cell::Cell;
use std::rc::Rc;

use nix::sys::signal::{Signal, raise};

/// Where the mechanism is to die, for trials; nowhere by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// The process kills itself with `SIGKILL` right after this many calls on other tasks (ptrace, memory, birth).
    pub die_after: Option<u64>,
    /// This call on another task is made and then reported as failed.
    pub fail_at: Option<u64>,
}

/// Counts calls on other tasks, and dies when told so.
#[derive(Clone, Debug)]
pub(crate) struct Steps {
    faults: Faults,
    made: Rc<Cell<u64>>,
}

impl Steps {
    pub(crate) fn new(faults: Faults) -> Self {
        Self { faults, made: Rc::new(Cell::new(0)) }
    }

    /// To be called after each call on another task.
    pub(crate) fn made_one(&self) {
        let made = self.made.get() + 1;
        self.made.set(made);
        if self.faults.die_after == Some(made) {
            // It cannot fail, and nothing could be done about it.
            raise(Signal::SIGKILL).ok();
        }
    }

    /// Whether the call that was counted last is to be reported as failed.
    pub(crate) fn spoiled(&self) -> bool {
        self.faults.fail_at == Some(self.made.get())
    }

    pub(crate) fn made(&self) -> u64 {
        self.made.get()
    }
}
