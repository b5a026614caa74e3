//! The mechanism by ptrace, `/proc` and pidfd, on x86-64: tasks are stopped, read, made and let go from outside.
//!
//! Invariants:
//! - **No target is harmed by our death at any point.** Stops are looked at and never collected (a collected signal is
//!   lost); a stub never runs before its heal is in place; a thread's signal mask differs from its program's only while
//!   the thread stands in a stub. Trials kill the tool after each of its calls ([`Faults`]).
//! - **A nursery's tasks die with the tool** (`PTRACE_O_EXITKILL`) until they are released.
//! - **Every wait has a deadline.** Nothing here blocks in the kernel for another task.
//! - **No thread stands still for long for one that does not stop**: all are let go and it is tried again.
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
mod release;
mod rendezvous;
mod repair;
mod standing;
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

use std::cell::{OnceCell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdcr_engine::ids::Tid;
use hdcr_engine::mechanism::{Capabilities, Deadline, Frozen, Mechanism, MechanismError, Nursery, Result, Scope};
use hdcr_sys::wait::Seen;

pub use faults::Faults;
pub use standing::Hears;

use calls::Calls;
use faults::Steps;
use freeze::Freezing;
use frozen::PtraceFrozen;
use nursery::PtraceNursery;
use standing::Standing;

/// Threads that are attached and have not stopped, so that they could not be let go.
pub(crate) type Stragglers = Rc<RefCell<Vec<Tid>>>;

/// How long a program runs after an attempt to stop it that some thread was late for; then twice as long, and so on: it
/// stands still for a small part of the time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// How long letting go may take, however late it is.
pub(crate) fn grace() -> Deadline {
    const GRACE: Duration = Duration::from_secs(2);
    Deadline(Instant::now() + GRACE)
}

/// The mechanism.
#[derive(Debug)]
pub struct Ptrace {
    calls: Calls,
    /// Asked of the kernel when somebody wants to know: it takes a clone of the tool.
    capabilities: OnceCell<Capabilities>,
    stragglers: Stragglers,
}

impl Ptrace {
    /// Ready at once. `faults` is for trials; its default is none.
    pub fn new(faults: Faults) -> Self {
        Self {
            calls: Calls { steps: Steps::new(faults), marks: waits::marks_are_kept(), standing: Standing::default() },
            capabilities: OnceCell::new(),
            stragglers: Stragglers::default(),
        }
    }

    /// Somebody hears when a tree stands still, and when it goes on.
    #[must_use]
    pub fn heard_by(mut self, hears: Rc<dyn Hears>) -> Self {
        self.calls.standing = Standing::heard_by(hears);
        self
    }

    /// How many calls on other tasks were made, for the choice of [`Faults::die_after`].
    pub fn calls_made(&self) -> u64 {
        self.calls.steps.made()
    }

    /// Whether threads are attached that a failed attempt could not let go: when such a one stops it stands still until
    /// the next attempt, or until this tracer ends.
    pub fn holds_late_threads(&self) -> bool {
        self.sweep();
        !self.stragglers.borrow().is_empty()
    }

    /// The program runs after an attempt that this thread was late for. Waits until it is time for another one: `false`
    /// when there is no time for that.
    fn pause(&self, late: Tid, (pause, by): (Duration, Deadline)) -> bool {
        const LOOK: Duration = Duration::from_millis(1);
        let again = Instant::now() + pause;
        loop {
            // One that has stopped stays so for the next attempt; where there are others, it does not stand for them.
            let waited_for = self.stragglers.borrow().as_slice() == [late];
            if waited_for && matches!(self.calls.look(late), Ok(Seen::Stopped(_))) {
                return true;
            }
            self.sweep();
            let now = Instant::now();
            if now >= by.0 || now >= again {
                return now < by.0;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Lets go of threads that have stopped since they were late.
    fn sweep(&self) {
        let now = Deadline(Instant::now());
        let mut late = self.stragglers.borrow_mut();
        late.retain(|tid| !release::let_go_of(&self.calls, *tid, now));
    }
}

impl Mechanism for Ptrace {
    fn capabilities(&self) -> &Capabilities {
        self.capabilities.get_or_init(probe::capabilities)
    }

    fn freeze(&self, scope: Scope, by: Deadline) -> Result<Box<dyn Frozen>> {
        self.sweep();
        let mut pause = FIRST_PAUSE;
        loop {
            let freezing = Freezing::new(&self.calls, scope, by);
            match PtraceFrozen::freeze(freezing, &self.calls, &self.stragglers, by) {
                Ok(frozen) => return Ok(Box::new(frozen)),
                Err(MechanismError::Late { tid, .. }) if self.pause(tid, (pause, by)) => {}
                Err(error) => {
                    self.sweep();
                    return Err(error);
                }
            }
            pause = pause.saturating_mul(2);
        }
    }

    fn nursery(&self, avoid: &[Range<u64>], by: Deadline) -> Result<Box<dyn Nursery>> {
        self.sweep();
        Ok(Box::new(PtraceNursery::new(&self.calls, avoid, by)?))
    }
}
