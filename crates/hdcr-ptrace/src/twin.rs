//! A copy of a process's memory as it was at one moment, by copy-on-write: a child that the process itself makes in the stop.
//!
//! The child never runs an instruction of the program. It is attached at its birth and has one way to go: it takes a name,
//! lets go of all descriptors (they are shared with its parent until then, never copied: no pipe has one end more) and ends;
//! before the call that ends it, it is stopped. So it is harmless whenever its tracer dies, and it dies then. Not within that
//! call: there no signal would kill it, and when memory is short the kernel would empty it under our eyes.
//!
//! It ends without a signal (`exit_signal` 0), so a parent that waits for its children neither hears nor sees of it, unless
//! it asks for such children (`__WALL`, `__WCLONE`). What is left of it is there until its parent collects it: in a second
//! stop of that process alone, or in the next freeze when the tracer was killed before.

use std::cell::Cell;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdcr_engine::batch::{Arg, Batch, Replies};
use hdcr_engine::ids::{Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::{Deadline, MechanismError, Pages, Result, Scope, Twin};
use hdcr_engine::procfs;
use hdcr_sys::pagemap::{self, Wanted};
use hdcr_sys::wait::Seen;
use nix::errno::Errno;

use crate::Stragglers;
use crate::calls::{Calls, Patience, failure};
use crate::freeze::{Freezing, late};
use crate::frozen::PtraceFrozen;
use crate::rendezvous::{any_stop, syscall_stop};
use crate::stub::CHILD_NAME;
use crate::watch::{from_io, open};

const OPTIONS: i32 = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;

/// A batch that makes the child.
pub(crate) fn birth() -> Batch {
    let mut batch = Batch::new();
    batch.try_call(libc::SYS_clone, &[libc::CLONE_FILES.into()]);
    batch
}

/// Why the call of [`birth`] failed.
pub(crate) fn refusal(replies: &Replies) -> Errno {
    let result = replies.result(0).and_then(i64::checked_neg).and_then(|errno| i32::try_from(errno).ok());
    result.map_or(Errno::EIO, Errno::from_raw)
}

/// A batch that collects what is left of a child.
pub(crate) fn burial(inner: i32) -> Batch {
    let mut batch = Batch::new();
    batch.try_call(libc::SYS_wait4, &[inner.into(), Arg::Value(0), (libc::WNOHANG | libc::__WALL).into()]);
    batch
}

/// Whether this is what is left of such a child, which its parent does not know of.
pub(crate) fn is_remains(pid: Pid) -> bool {
    /// Of `/proc/PID/stat`.
    const EXIT_SIGNAL: usize = 38;
    procfs::stat(pid)
        .is_ok_and(|stat| procfs::dead(stat.state) && stat.comm == CHILD_NAME && stat.field(EXIT_SIGNAL) == Some(0))
}

/// The copy.
#[derive(Debug)]
pub(crate) struct PtraceTwin {
    calls: Calls,
    stragglers: Stragglers,
    parent: Pid,
    child: Pid,
    /// Its parent is still in the hands of the freeze that this was made in, which collects what is left of it.
    held: Rc<Cell<bool>>,
    files: Option<(File, File)>,
}

impl PtraceTwin {
    /// Takes over a child that was attached at its birth: lets it go to its end and stop there.
    pub(crate) fn take(
        calls: &Calls,
        stragglers: &Stragglers,
        (parent, child): (Pid, Tid),
        held: &Rc<Cell<bool>>,
        by: Deadline,
    ) -> Result<Self> {
        let pid = Pid(child.0);
        let mut twin = Self {
            calls: calls.clone(),
            stragglers: stragglers.clone(),
            parent,
            child: pid,
            held: Rc::clone(held),
            files: None,
        };
        any_stop(calls, pid, child, by)?;
        loop {
            calls.cont_to_syscall(child, 0)?;
            syscall_stop(calls, pid, child, by)?;
            if calls.registers(child)?.orig_ax == libc::SYS_exit_group.cast_unsigned() {
                break;
            }
        }
        // Not before it has its name.
        calls.set_options(child, OPTIONS)?;
        twin.files = Some((open(pid, "pagemap")?, open(pid, "mem")?));
        Ok(twin)
    }

    fn list(&self, name: &str) -> Result<Vec<u8>> {
        procfs::at_once(&format!("/proc/{}/{name}", self.child))
            .map_err(|error| from_io("listing its mappings", self.parent, error))
    }

    fn files(&self) -> Result<&(File, File)> {
        self.files.as_ref().ok_or(failure("reading its copy", self.parent.leader(), Errno::ESRCH))
    }

    /// Ends the child, and has its parent collect what is left of it.
    fn finish(&mut self) -> Result<()> {
        /// Giving back the memory of a large program takes its time.
        const DEATH: Duration = Duration::from_mins(2);
        self.files = None;
        let tid = self.child.leader();
        let killed = self.calls.kill(self.child, libc::SIGKILL);
        let mut patience = Patience::until(Deadline(Instant::now() + DEATH));
        loop {
            match self.calls.look(tid) {
                Ok(Seen::Exited(_) | Seen::Killed(_)) => break,
                Ok(Seen::Nothing | Seen::Stopped(_)) if patience.wait() => {}
                Ok(_) => return Err(late("die", self.child, tid)),
                // Somebody has killed and collected it.
                Err(_) => return killed,
            }
        }
        self.calls.collect(tid);
        if self.held.get() || !is_remains(self.child) {
            return Ok(());
        }
        let freezing = Freezing::new(&self.calls, Scope::Tree(self.parent), crate::grace()).alone();
        let frozen = PtraceFrozen::freeze(freezing, &self.calls, &self.stragglers, crate::grace());
        match frozen {
            Ok(frozen) => drop(frozen),
            Err(MechanismError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Twin for PtraceTwin {
    fn mappings(&self) -> Result<Vec<u8>> {
        self.list("maps")
    }

    fn flags(&self) -> Result<Vec<u8>> {
        self.list("smaps")
    }

    fn filled(&self, range: &Range<u64>, pages: Pages) -> Result<Vec<Range<u64>>> {
        let wanted = match pages {
            Pages::Filled => Wanted::Filled,
            Pages::Anonymous => Wanted::Anonymous,
        };
        let found = pagemap::scan(&self.files()?.0, range.clone(), wanted);
        let found = found.map_err(|error| from_io("scanning the pages of its copy", self.parent, error))?;
        // The memory of a dead one looks empty.
        match self.calls.look(self.child.leader())? {
            Seen::Stopped(_) => Ok(found),
            Seen::Nothing | Seen::Exited(_) | Seen::Killed(_) => {
                Err(MechanismError::Gone { operation: "reading the copy of its memory", tid: self.child.leader() })
            }
        }
    }

    /// By the memory file: `process_vm_readv` pins, and would copy each page for the child.
    fn read(&self, at: RemotePtr, into: &mut [u8]) -> Result<()> {
        let read = self.files()?.1.read_exact_at(into, at.0);
        read.map_err(|error| from_io("reading its copy", self.parent, error))
    }
}

impl Drop for PtraceTwin {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!(parent = self.parent.0, child = self.child.0, %error, "a copy was not taken away");
        }
    }
}
