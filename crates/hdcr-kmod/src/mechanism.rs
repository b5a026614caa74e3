//! The mechanism by the kernel module: tasks are stopped, asked and let go by a session, and nobody traces them.
//!
//! - A stop is seen by no parent and no tracer; what another tracer holds can be stopped as well, while it runs.
//! - The death of this process lets all go, whenever it comes: nothing was ever put into them.
//! - What the module cannot do is refused by name: threads in a group stop or in a stop of a tracer make no calls, trees are
//!   not made, memory is neither followed nor copied on write.

use std::cell::Cell;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdcr_abi::{feature, hold, scope, stand};
use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::{Capabilities, Deadline, Frozen, Mechanism, MechanismError, Nursery, Result, Scope};
use hdcr_engine::procfs;

use crate::frozen::{KernelFrozen, STOPPED, Stop};
use crate::session::{Session, SessionError};

/// What a module must be able to do for this mechanism.
pub const NEEDED: u64 = feature::CALLS | feature::FACTS;

/// How long tasks stand still for one that does not stop, at first; then twice as long, and so on.
const FIRST_SLICE: Duration = Duration::from_millis(200);
/// How long they run after that, at first; then twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Hears that a tree is about to stand still (true; none does when this fails) and that all go on (false).
pub type Hears = Rc<dyn Fn(bool) -> io::Result<()>>;

/// The mechanism.
pub struct Kernel {
    device: PathBuf,
    capabilities: Capabilities,
    pub(crate) hears: Option<Hears>,
    /// Requests made of the module.
    pub(crate) requests: Rc<Cell<u64>>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Kernel {
    /// By the module behind a device, of whose presence somebody has made sure ([`crate::Presence`], [`NEEDED`]).
    pub fn new(device: &Path) -> Self {
        let capabilities = Capabilities {
            rseq_configuration: true,
            duplicate_descriptors: true,
            timer_list: true,
            ..Capabilities::default()
        };
        Self { device: device.to_owned(), capabilities, hears: None, requests: Rc::default() }
    }

    /// Somebody hears when a tree stands still, and when it goes on.
    #[must_use]
    pub fn heard_by(self, hears: Hears) -> Self {
        Self { hears: Some(hears), ..self }
    }

    /// How many requests were made of the module.
    pub fn requests_made(&self) -> u64 {
        self.requests.get()
    }

    /// One attempt. `Ok(None)`: somebody waits for a `vfork` child that was stopped before it.
    fn attempt(&self, wanted: Scope, within: Duration) -> Result<Option<KernelFrozen>> {
        let top = top_of(wanted);
        let opened = Session::open(&self.device).map_err(|error| odd("opening the kernel module", top, error));
        let mut session = opened?;
        let (kind, id) = match wanted {
            Scope::Tree(pid) => (scope::LINE, pid),
            Scope::Below(pid) => (scope::BELOW, pid),
        };
        let stop = Stop::begin(self.hears.clone()).map_err(|source| {
            let operation = "having hdcr watched";
            MechanismError::System { operation, tid: top, source }
        })?;
        let since = Instant::now();
        let number = u64::try_from(id.0).unwrap_or(0);
        session.freeze(kind, number, within, 0).map_err(|error| refusal(error, top))?;
        let frozen = KernelFrozen::take(session, wanted, since, stop, Rc::clone(&self.requests))?;
        let waits = frozen.stands().find(|(_, how)| *how == stand::VFORK);
        Ok(waits.is_none().then_some(frozen))
    }
}

impl Mechanism for Kernel {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn freeze(&self, wanted: Scope, by: Deadline) -> Result<Box<dyn Frozen>> {
        refuse_own_ancestry(wanted)?;
        refuse_stopped(wanted)?;
        let (mut slice, mut pause) = (FIRST_SLICE, FIRST_PAUSE);
        loop {
            let left = by.0.saturating_duration_since(Instant::now());
            let failure = match self.attempt(wanted, slice.min(left)) {
                Ok(Some(frozen)) => return Ok(Box::new(frozen)),
                Ok(None) => late(waiting_parent(wanted)),
                Err(error @ MechanismError::Late { .. }) => {
                    slice = slice.saturating_mul(2);
                    error
                }
                Err(error) => return Err(error),
            };
            if Instant::now() + pause >= by.0 {
                return Err(failure);
            }
            std::thread::sleep(pause);
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
    }

    fn nursery(&self, _avoid: &[Range<u64>], _by: Deadline) -> Result<Box<dyn Nursery>> {
        let own = Tid(nix::unistd::getpid().as_raw());
        Err(MechanismError::Unsupported { tid: own, kind: "to make a tree by the kernel module" })
    }
}

fn top_of(wanted: Scope) -> Tid {
    match wanted {
        Scope::Tree(pid) | Scope::Below(pid) => pid.leader(),
    }
}

fn parent_of(pid: Pid) -> Pid {
    procfs::stat(pid).map_or(Pid(0), |stat| stat.ppid)
}

/// Nothing is touched when the caller stands in the scope. A keeper's checkpointer, its child, does not.
fn refuse_own_ancestry(wanted: Scope) -> Result<()> {
    let caller = Pid(nix::unistd::getpid().as_raw());
    let parent = parent_of(caller);
    let (top, mut pid) = match wanted {
        Scope::Tree(top) => (top, caller),
        Scope::Below(top) if parent == top => return Ok(()),
        Scope::Below(top) => (top, parent),
    };
    while pid.0 > 0 {
        if pid == top {
            return Err(MechanismError::HoldsCaller { pid: caller });
        }
        pid = parent_of(pid);
    }
    Ok(())
}

/// Nothing is touched when somebody stands where no calls are made.
fn refuse_stopped(wanted: Scope) -> Result<()> {
    let top = Pid(top_of(wanted).0);
    for pid in all_below(top) {
        if pid == top && matches!(wanted, Scope::Below(_)) {
            continue;
        }
        for tid in procfs::threads(pid).unwrap_or_default() {
            let stat = procfs::read_thread(pid, tid, "stat").ok().and_then(|text| procfs::parse_stat(&text));
            match stat.map(|stat| stat.state) {
                Some(b'T') => return Err(MechanismError::Unsupported { tid, kind: STOPPED }),
                Some(b't') => return Err(MechanismError::Unsupported { tid, kind: IN_STOP_OF_TRACER }),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Who waits for a `vfork` child now, or else the top of the scope.
fn waiting_parent(wanted: Scope) -> Tid {
    let top = top_of(wanted);
    let pids = all_below(Pid(top.0));
    let waits = |pid: &Pid| wait_channel(pid.leader()).contains("vfork");
    pids.into_iter().find(waits).map_or(top, Pid::leader)
}

/// A process with all below it.
fn all_below(top: Pid) -> Vec<Pid> {
    std::iter::once(top).chain(procfs::below(top)).collect()
}

fn wait_channel(tid: Tid) -> String {
    fs::read_to_string(format!("/proc/{tid}/wchan")).unwrap_or_default()
}

/// The error of a thread that was not stopped in time, with what it is seen doing.
fn late(tid: Tid) -> MechanismError {
    let stat = fs::read(format!("/proc/{tid}/stat")).ok().and_then(|text| procfs::parse_stat(&text));
    let state = stat.map_or('?', |stat| char::from(stat.state));
    let state = match wait_channel(tid).as_str() {
        "" | "0" => format!("state {state}"),
        channel => format!("state {state} in {channel}"),
    };
    MechanismError::Late { operation: "stop", tid, state }
}

/// Why the module stopped nobody, in the words of the engine.
fn refusal(error: SessionError, top: Tid) -> MechanismError {
    let SessionError::Freeze { hold: why, culprit, source, .. } = error else {
        return odd("freezing it", top, error);
    };
    let tid = if culprit > 0 { Tid(culprit) } else { top };
    match (why, source.raw_os_error()) {
        (hold::SLEEPS | hold::VFORK | hold::LATE | hold::TOO_MANY, _) => late(tid),
        (hold::TRACED, _) => MechanismError::Unsupported { tid, kind: IN_STOP_OF_TRACER },
        (hold::OTHER_SESSION, _) => MechanismError::Unsupported { tid, kind: "held by another session of the module" },
        (hold::NOT_PERMITTED, _) | (hold::UNSUPPORTED, Some(libc::EPERM)) => MechanismError::NotPermitted { tid },
        (hold::UNSUPPORTED, Some(libc::EDEADLK)) => MechanismError::HoldsCaller { pid: Pid(tid.0) },
        (hold::UNSUPPORTED, _) => MechanismError::Unsupported { tid, kind: "a task that serves the kernel" },
        (_, Some(libc::ESRCH)) => MechanismError::Gone { operation: "freezing it", tid },
        (_, _) => MechanismError::System { operation: "freezing it", tid, source },
    }
}

/// What a thread is that makes no calls.
pub(crate) const IN_STOP_OF_TRACER: &str = "standing in a stop of its tracer, where it makes no calls";

/// Any other failure of the module.
pub(crate) fn odd(operation: &'static str, tid: Tid, error: SessionError) -> MechanismError {
    let source = error.errno().map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error);
    if source.raw_os_error() == Some(libc::ESRCH) {
        return MechanismError::Gone { operation, tid };
    }
    MechanismError::System { operation, tid, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_module_are_those_of_the_engine() {
        let refused = |hold, errno| {
            let source = io::Error::from_raw_os_error(errno);
            refusal(SessionError::Freeze { hold, culprit: 7, state: 0, source }, Tid(3))
        };
        assert!(matches!(refused(hold::VFORK, libc::ETIMEDOUT), MechanismError::Late { tid: Tid(7), .. }));
        assert!(matches!(refused(hold::NOT_PERMITTED, libc::EPERM), MechanismError::NotPermitted { .. }));
        assert!(matches!(refused(hold::NONE, libc::ESRCH), MechanismError::Gone { .. }));
        assert!(matches!(refused(hold::NONE, libc::ENOMEM), MechanismError::System { .. }));
        assert!(matches!(refused(hold::TRACED, libc::ETIMEDOUT), MechanismError::Unsupported { .. }));
    }

    #[test]
    fn nothing_is_asked_of_a_module_for_a_scope_with_the_caller() {
        let own = Pid(nix::unistd::getpid().as_raw());
        let by = Deadline(Instant::now());
        let kernel = Kernel::new(Path::new("/nonexistent/hdcr"));
        for pid in [own, Pid(1)] {
            assert!(matches!(kernel.freeze(Scope::Tree(pid), by), Err(MechanismError::HoldsCaller { .. })));
        }
    }
}
