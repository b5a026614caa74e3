//! Which mechanism a checkpoint is made by, and whether that is there.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use hdcr_engine::mechanism::Mechanism;
use hdcr_kmod::{Kernel, NEEDED, Presence};
use hdcr_ptrace::{Hears, Ptrace};

use crate::busy;
use crate::failure::{Failure, Result, chain};
use crate::kinds::{MechanismChoice, Snapshot};
use crate::process;
use crate::slow;
use crate::task::{CheckpointTask, Who};

/// The code of a refusal because of the module.
const NO_MODULE: &str = "no-kernel-module";

fn device() -> PathBuf {
    Path::new("/dev").join(hdcr_abi::DEVICE)
}

/// How the kernel module stands to this process.
pub(crate) fn module() -> Presence {
    Presence::of(&device())
}

/// What keeps the module from being used, and what to do about it.
fn refusal(presence: &Presence) -> Option<Failure> {
    let (message, remedy) = match presence {
        Presence::Ready(features) if features & NEEDED == NEEDED => return None,
        Presence::Ready(_) => {
            ("the kernel module cannot have programs make calls on this kernel".to_owned(), "use --mechanism ptrace")
        }
        Presence::Absent => {
            ("the kernel module is not loaded".to_owned(), "load it (docs/kernel.md), or use --mechanism ptrace")
        }
        Presence::Closed => (
            "this user may not use the kernel module".to_owned(),
            "run hdcr as root or as a member of the group of /dev/hdcr, or use --mechanism ptrace",
        ),
        Presence::Misfit => (
            "the kernel module belongs to another version of hdcr".to_owned(),
            "load the one that belongs to this hdcr, or use --mechanism ptrace",
        ),
        Presence::Odd(error) => (
            format!("the kernel module does not answer as it should: {}", chain(error)),
            "use --mechanism ptrace, and see `dmesg`",
        ),
    };
    Some(Failure::refused(NO_MODULE, format!("{message}; nothing was touched")).remedy(remedy))
}

/// Whether a debugger or the like traces one of the program's processes: none of another hdcr, which is soon done.
fn is_traced(who: Who) -> bool {
    let pids = match who {
        Who::Tree(pid) => slow::tree_of(pid),
        Who::Below(pid) => process::below(pid),
    };
    pids.into_iter().filter_map(process::tracer).any(|tracer| busy::is_hdcr(tracer).is_none())
}

/// Whether a task is for the module.
pub(super) fn by_module(task: &CheckpointTask) -> Result<bool> {
    match task.files.mechanism {
        MechanismChoice::Ptrace => Ok(false),
        MechanismChoice::Auto => Ok(refusal(&module()).is_none() && is_traced(task.who)),
        MechanismChoice::Kernel => {
            let way = match task.files.snapshot {
                Snapshot::Precopy => Some("precopy"),
                Snapshot::Fork => Some("fork"),
                Snapshot::Auto | Snapshot::Stop => None,
            };
            if let Some(way) = way {
                let message = format!("the kernel module reads memory in the stop only, not as --snapshot {way} says");
                return Err(Failure::refused("mechanism-snapshot", message)
                    .remedy("use --snapshot stop or auto, or --mechanism ptrace"));
            }
            refusal(&module()).map_or(Ok(true), Err)
        }
    }
}

/// The mechanism of one checkpoint.
pub(super) enum Chosen<'a> {
    Ptrace(&'a Ptrace),
    Kernel(Kernel),
}

impl Chosen<'_> {
    pub(super) fn mechanism(&self) -> &dyn Mechanism {
        match self {
            Self::Ptrace(ptrace) => *ptrace,
            Self::Kernel(kernel) => kernel,
        }
    }

    /// As a manifest names it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ptrace(_) => "ptrace",
            Self::Kernel(_) => "kernel",
        }
    }

    pub(super) fn is_module(&self) -> bool {
        matches!(self, Self::Kernel(_))
    }

    /// Calls on other tasks, or requests of the module, so far.
    pub(super) fn calls_made(&self) -> u64 {
        match self {
            Self::Ptrace(ptrace) => ptrace.calls_made(),
            Self::Kernel(kernel) => kernel.requests_made(),
        }
    }
}

/// The mechanism for a task.
pub(super) fn choose<'a>(
    task: &CheckpointTask,
    ptrace: &'a Ptrace,
    hears: Option<&Rc<dyn Hears>>,
) -> Result<Chosen<'a>> {
    if !by_module(task)? {
        return Ok(Chosen::Ptrace(ptrace));
    }
    let kernel = Kernel::new(&device());
    let Some(hears) = hears.map(Rc::clone) else { return Ok(Chosen::Kernel(kernel)) };
    let tell = move |stands: bool| {
        if stands {
            return hears.stands();
        }
        hears.goes_on();
        Ok(())
    };
    Ok(Chosen::Kernel(kernel.heard_by(Rc::new(tell))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_cannot_be_used_is_refused_by_one_code() {
        assert!(refusal(&Presence::Ready(u64::MAX)).is_none());
        for presence in [Presence::Ready(0), Presence::Absent, Presence::Closed, Presence::Misfit] {
            let failure = refusal(&presence).unwrap();
            assert_eq!(failure.code, NO_MODULE);
            assert!(failure.remedy.unwrap().contains("--mechanism ptrace"));
        }
    }
}
