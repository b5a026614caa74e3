//! The mechanism by ptrace, `/proc` and pidfd, on x86-64: tasks are stopped, read, made and let go from outside.
//!
//! Invariants:
//! - **No target is harmed by our death at any point.** Stops are looked at and never collected (a collected signal is
//!   lost); a stub never runs before its heal is in place; a thread's signal mask differs from its program's only while
//!   the thread stands in a stub. Trials kill the tool after each of its calls ([`Faults`]).
//! - **A nursery's tasks die with the tool** (`PTRACE_O_EXITKILL`) until they are released.
//! - **Every wait has a deadline.** Nothing here blocks in the kernel for another task.
//! - Nothing of ours stays: no mapping, no mask, no descriptor, and the tail of the vdso is zero again.
//!
//! Order within a visit: attach and stop (`freeze`), repair what the stop did (`repair`, `reenter`), set up at the first
//! batch (`visit`), and back: threads home, region unmapped, vdso tail as it was, detached. Within a making: clones
//! (`birth`), batches (`nursery`), last states (`finish`, which may be called for children before their parent's last
//! batch, so that this can consume what it must not be told), one loop of detaching.
//!
//! While a process with several threads is being attached to, a second thread of ours collects its dead ones
//! (`undertaker`): without it a tracer and an exec wait for each other for ever.
//!
//! ptrace belongs to a thread, so a stopped tree and a nursery are used and dropped by the thread that made them. A
//! thread that does not stop before the deadline stays attached until it does and a later call of the same [`Ptrace`]
//! sweeps it, or until the tracer thread ends (the kernel lets go of everything then): visit from a thread that ends.

mod absent;
mod birth;
mod calls;
mod faults;
mod finish;
mod freeze;
mod frozen;
mod hole;
mod nursery;
mod pages;
mod probe;
mod reenter;
mod registers;
mod rendezvous;
mod repair;
mod stub;
mod table;
mod tasks;
mod timed;
mod tracee;
mod twin;
mod undertaker;
mod vdso;
mod visit;
mod waits;
mod watch;

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdcr_engine::ids::Tid;
use hdcr_engine::mechanism::{Capabilities, Deadline, Frozen, Mechanism, Nursery, Result, Scope};

pub use faults::Faults;

use calls::Calls;
use faults::Steps;
use freeze::Freezing;
use frozen::PtraceFrozen;
use nursery::PtraceNursery;

/// Threads that are attached and have not stopped, so that they could not be let go.
pub(crate) type Stragglers = Rc<RefCell<Vec<Tid>>>;

/// How long letting go may take, however late it is.
pub(crate) fn grace() -> Deadline {
    const GRACE: Duration = Duration::from_secs(2);
    Deadline(Instant::now() + GRACE)
}

/// The mechanism.
#[derive(Debug)]
pub struct Ptrace {
    calls: Calls,
    capabilities: Capabilities,
    stragglers: Stragglers,
}

impl Ptrace {
    /// Probes the kernel and is ready. `faults` is for trials; its default is none.
    pub fn new(faults: Faults) -> Self {
        Self {
            calls: Calls { steps: Steps::new(faults), marks: waits::marks_are_kept() },
            capabilities: probe::capabilities(),
            stragglers: Stragglers::default(),
        }
    }

    /// How many calls on other tasks were made, for the choice of [`Faults::die_after`].
    pub fn calls_made(&self) -> u64 {
        self.calls.steps.made()
    }

    /// Lets go of threads that have stopped since they were late.
    fn sweep(&self) {
        let now = Deadline(Instant::now());
        let mut late = self.stragglers.borrow_mut();
        late.retain(|tid| !freeze::let_go_of(&self.calls, *tid, now));
    }
}

impl Mechanism for Ptrace {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn freeze(&self, scope: Scope, by: Deadline) -> Result<Box<dyn Frozen>> {
        self.sweep();
        let freezing = Freezing::new(&self.calls, scope, by);
        let frozen = PtraceFrozen::freeze(freezing, &self.calls, &self.stragglers, by)?;
        Ok(Box::new(frozen))
    }

    fn nursery(&self, avoid: &[Range<u64>], by: Deadline) -> Result<Box<dyn Nursery>> {
        self.sweep();
        let mut options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;
        if self.capabilities.suspend_seccomp {
            options |= libc::PTRACE_O_SUSPEND_SECCOMP;
        }
        let nursery = PtraceNursery::new(&self.calls, options, avoid, by)?;
        Ok(Box::new(nursery))
    }
}
