//! A tree in the making: [`Nursery`] by ptrace.
//!
//! One service region, mapped shared by the tool and inherited by every clone at the same place: its head holds the
//! *once* code (whose first instruction is a `syscall`, for calls made with registers set by hand), then a *batch* block
//! for each task, then the tables, which are plain memory of the tool.
//!
//! All tasks have `PTRACE_O_EXITKILL` from their first instant, and block every signal but the rendezvous.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use hdcr_engine::batch::{Batch, Replies};
use hdcr_engine::ids::{Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::{
    AbsentPages, Birth, Deadline, End, Final, MechanismError, Nursery, PageTarget, Result, Rseq, SigInfo,
};
use hdcr_engine::regs::Regs;
use hdcr_sys::shared::SharedRegion;
use nix::errno::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::absent;
use crate::birth;
use crate::calls::{Calls, Patience, as_rseq, failure};
use crate::finish;
use crate::freeze::forgive_dead;
use crate::grace;
use crate::hole;
use crate::pages;
use crate::registers::NO_CALL;
use crate::rendezvous::{self, Meeting, all_but};
use crate::stub::{self, Control};
use crate::table;
use crate::tasks;

/// The rendezvous signal of new tasks.
pub(crate) const SIGNAL: i32 = libc::SIGURG;
/// The head of the region: *once*.
const HEAD: u64 = 1024;
/// Blocks of 1 KiB: more tasks than there are pids by default.
const BLOCKS: u64 = 64 << 20;
/// Tables, of one run.
const TABLES: u64 = 192 << 20;

/// A task of the nursery.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// The process it is a thread of.
    pub(crate) process: Pid,
    /// Its address space, as counted here.
    pub(crate) space: u32,
    /// Its block.
    pub(crate) block: u64,
    /// Registers as it was born with: segments, flags, thread pointer.
    pub(crate) born: Regs,
    /// Rendezvous signals that are not ours, to be queued again.
    pub(crate) strangers: Vec<SigInfo>,
    /// Its last state is in.
    pub(crate) finished: bool,
    /// A leader that has ended before its threads.
    pub(crate) ended: bool,
    /// It stands in a group stop.
    pub(crate) stopped: bool,
}

/// A tree in the making. It belongs to the thread that made it: ptrace knows tracers by thread.
#[derive(Debug)]
pub(crate) struct PtraceNursery {
    pub(crate) calls: Calls,
    pub(crate) by: Deadline,
    pub(crate) region: SharedRegion,
    pub(crate) tasks: BTreeMap<Tid, Task>,
    /// Ourselves, for clones that are not traced yet.
    pub(crate) guardian: OwnedFd,
    next_block: u64,
    pub(crate) next_space: u32,
    /// Cloned, and not yet taken in.
    pub(crate) strays: Vec<Tid>,
    /// In the order of [`Nursery::finish`].
    pub(crate) finished: Vec<Tid>,
    released: bool,
}

/// What every task of a nursery is attached with. Filters of the tool, which they inherit, cannot be suspended: whoever has one may
/// not ask for that (kernel/ptrace.c `check_ptrace_options`).
pub(crate) const OPTIONS: i32 = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;

fn system(operation: &'static str, errno: Errno) -> MechanismError {
    MechanismError::System { operation, tid: Tid(nix::unistd::gettid().as_raw()), source: errno.into() }
}

impl PtraceNursery {
    pub(crate) fn new(calls: &Calls, avoid: &[Range<u64>], by: Deadline) -> Result<Self> {
        let len = HEAD + BLOCKS + TABLES;
        let mapped = hole::find(len, avoid).and_then(|at| {
            let len = usize::try_from(len).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
            SharedRegion::map(at, len)
        });
        let region = mapped.map_err(|source| MechanismError::System {
            operation: "mapping the service region",
            tid: Tid(nix::unistd::gettid().as_raw()),
            source,
        })?;
        let guardian = rustix::process::Pid::from_raw(nix::unistd::getpid().as_raw())
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|own| pidfd_open(own, PidfdFlags::empty()))
            .map_err(|errno| system("opening ourselves", Errno::from_raw(errno.raw_os_error())))?;
        let start = region.range().start;
        let nursery = Self {
            calls: calls.clone(),
            by,
            region,
            tasks: BTreeMap::new(),
            guardian,
            next_block: start + HEAD,
            next_space: 0,
            strays: Vec::new(),
            finished: Vec::new(),
            released: false,
        };
        nursery.put(start, stub::once_code())?;
        Ok(nursery)
    }

    /// The number that the guardian has in clones of this process.
    pub(crate) fn guardian_number(&self) -> i32 {
        self.guardian.as_fd().as_raw_fd()
    }

    fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        if self.region.put(at, bytes) {
            return Ok(());
        }
        Err(system("writing the service region", Errno::ENOSPC))
    }

    fn tables(&self) -> Range<u64> {
        let range = self.region.range();
        range.start + HEAD + BLOCKS..range.end
    }

    pub(crate) fn task(&self, tid: Tid) -> Result<&Task> {
        self.tasks
            .get(&tid)
            .ok_or(MechanismError::Gone { operation: "working with it (it is not in the nursery)", tid })
    }

    pub(crate) fn task_mut(&mut self, tid: Tid) -> Result<&mut Task> {
        self.tasks
            .get_mut(&tid)
            .ok_or(MechanismError::Gone { operation: "working with it (it is not in the nursery)", tid })
    }

    /// Takes in a task that is stopped before its first instruction.
    pub(crate) fn take_in(&mut self, tid: Tid, process: Pid, space: u32) -> Result<()> {
        let born = self.calls.registers(tid)?;
        let block = self.next_block;
        if block + 1024 > self.tables().start {
            return Err(MechanismError::Unsupported { tid, kind: "one task too many" });
        }
        self.next_block += u64::try_from(stub::BATCH_STRIDE).unwrap_or(1024);
        let control = Control { process: process.0, thread: tid.0, signal: SIGNAL, mask: u64::MAX, regs: born };
        self.put(block, stub::batch_code())?;
        let behind = u64::try_from(stub::BATCH_CODE_LEN).unwrap_or(0);
        self.put(block + behind, &control.encode())?;
        let task =
            Task { process, space, block, born, strangers: Vec::new(), finished: false, ended: false, stopped: false };
        self.tasks.insert(tid, task);
        self.strays.retain(|stray| *stray != tid);
        Ok(())
    }

    /// Writes a table and lets its task run.
    fn start(&self, tid: Tid, batch: &Batch, at: u64) -> Result<()> {
        self.prepare(tid, batch, at)?;
        self.calls.cont(tid, 0)
    }

    /// Writes a table and sets its task's registers so that it runs it.
    fn prepare(&self, tid: Tid, batch: &Batch, at: u64) -> Result<()> {
        let task = self.task(tid)?;
        let kind = |kind| MechanismError::Unsupported { tid, kind };
        if task.finished || task.ended {
            return Err(kind("a task whose last state is in"));
        }
        let bytes = table::encode(batch, at).map_err(kind)?;
        self.put(at, &bytes)?;
        let entries = batch.calls.len() * table::ENTRY_LEN;
        let regs = Regs {
            ip: task.block,
            ax: 0,
            orig_ax: NO_CALL,
            bx: at,
            r12: at + u64::try_from(entries).unwrap_or(0),
            ..task.born
        };
        self.calls.set_registers(tid, &regs)
    }

    fn await_end(&mut self, tid: Tid, batch: &Batch, at: u64) -> Result<Replies> {
        let by = self.by;
        let calls = self.calls.clone();
        let task = self.task_mut(tid)?;
        let meeting = Meeting { ip: task.block + stub::batch_rendezvous(), signal: SIGNAL };
        let who = (task.process, tid);
        let regs = rendezvous::meet(&calls, who, meeting, by, (&mut task.strangers, &mut None))?;
        let mut bytes = vec![0; table::room(batch)];
        if !self.region.get(at, &mut bytes) {
            return Err(system("reading the service region", Errno::EFAULT));
        }
        Ok(table::decode(batch, at, regs.bx, &bytes))
    }

    /// Starts as many as there is room for, then awaits them.
    fn run_some(&mut self, work: &[(Tid, Batch)]) -> Result<Vec<Replies>> {
        let mut started = Vec::new();
        let mut first = Ok(());
        let mut at = self.tables().start;
        for (tid, batch) in work {
            if let Err(error) = self.start(*tid, batch, at) {
                first = Err(error);
                break;
            }
            started.push((*tid, batch, at));
            at += u64::try_from(table::room(batch)).unwrap_or(0);
        }
        let mut all = Vec::new();
        for (tid, batch, at) in started {
            match self.await_end(tid, batch, at) {
                Ok(replies) => all.push(replies),
                Err(error) => first = first.and(Err(error)),
            }
        }
        first.map(|()| all)
    }

    /// Runs batches, in several goes when their tables do not fit at once.
    pub(crate) fn run_all(&mut self, work: &[(Tid, Batch)]) -> Result<Vec<Replies>> {
        let tables = self.tables();
        let mut all = Vec::new();
        let mut rest = work;
        while !rest.is_empty() {
            let mut left = tables.end - tables.start;
            let fits = |(_, batch): &&(Tid, Batch)| {
                let need = u64::try_from(table::room(batch)).unwrap_or(u64::MAX);
                let fits = need <= left;
                left = left.saturating_sub(need);
                fits
            };
            let count = rest.iter().take_while(fits).count();
            let Some((some, others)) = rest.split_at_checked(count).filter(|_| count > 0) else {
                return Err(system("placing a batch", Errno::ENOSPC));
            };
            all.extend(self.run_some(some)?);
            rest = others;
        }
        Ok(all)
    }

    /// Starts a batch that its task does not survive.
    pub(crate) fn run_to_death(&self, tid: Tid, batch: &Batch) -> Result<()> {
        self.start(tid, batch, self.tables().start)
    }

    /// Lets a task go that ends by a batch of its own accord. A dead leader whose threads live cannot be let go any more,
    /// and would keep this tracer, and its parent waiting for it, as long as we live.
    pub(crate) fn let_go_to_death(&self, tid: Tid, batch: &Batch) -> Result<()> {
        self.prepare(tid, batch, self.tables().start)?;
        self.calls.detach(tid, 0)
    }

    /// The place of a `syscall` instruction in every task.
    pub(crate) fn syscall_instruction(&self) -> u64 {
        self.region.range().start
    }

    /// A place for the arguments of a call made by hand.
    pub(crate) fn scratch(&self, bytes: &[u8]) -> Result<u64> {
        let at = self.tables().start;
        self.put(at, bytes)?;
        Ok(at)
    }

    pub(crate) fn threads_of(&self, process: Pid) -> Vec<Tid> {
        let of_it = self.tasks.iter().filter(|(_, t)| t.process == process);
        of_it.map(|(tid, _)| *tid).collect()
    }
}

impl Nursery for PtraceNursery {
    fn service_region(&self) -> Range<u64> {
        self.region.range()
    }

    fn birth(&mut self, births: &[Birth]) -> Result<Vec<Tid>> {
        birth::all(self, births)
    }

    fn run(&mut self, work: &[(Tid, Batch)]) -> Result<Vec<Replies>> {
        self.run_all(work)
    }

    fn read(&self, tid: Tid, at: RemotePtr, into: &mut [u8]) -> Result<()> {
        self.task(tid)?;
        match self.calls.read(tid, at, into) {
            // After a change of credentials only ptrace itself is still allowed.
            Err(MechanismError::System { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                self.calls.peek_words(tid, at.0, into)
            }
            other => other,
        }
    }

    fn write(&mut self, tid: Tid, pieces: &[(RemotePtr, &[u8])]) -> Result<()> {
        self.task(tid)?;
        match self.calls.write(tid, pieces) {
            Ok(()) => Ok(()),
            Err(Errno::EPERM) => pieces.iter().try_for_each(|(at, bytes)| self.calls.poke_words(tid, at.0, bytes)),
            Err(errno) => Err(failure("writing its memory", tid, errno)),
        }
    }

    fn pages(&mut self, tid: Tid, fresh: &[Range<u64>]) -> Result<Box<dyn PageTarget>> {
        pages::open(self, tid, fresh)
    }

    fn absent(&mut self, tid: Tid, mappings: &[Range<u64>]) -> Result<Option<Box<dyn AbsentPages>>> {
        absent::open(self, tid, mappings)
    }

    fn rseq(&self, tid: Tid) -> Result<Option<Rseq>> {
        self.task(tid)?;
        Ok(self.calls.rseq(tid)?.map(as_rseq))
    }

    fn end(&mut self, tid: Tid, end: End) -> Result<()> {
        finish::end(self, tid, end)
    }

    fn finish(&mut self, finals: &[Final]) -> Result<()> {
        finish::all(self, finals)
    }

    fn release(mut self: Box<Self>) -> Result<()> {
        let unfinished = self.tasks.iter().find(|(_, t)| !t.finished && !t.ended);
        if let Some((tid, _)) = unfinished {
            return Err(MechanismError::Unsupported { tid: *tid, kind: "not finished" });
        }
        self.released = true;
        // From the first one on the tree runs, and may end: there is no way back, and nothing to report but an oddity.
        for tid in &self.finished {
            if let Err(error) = forgive_dead(self.calls.detach(*tid, 0)) {
                tracing::warn!(%error, "a restored task was not let go cleanly");
            }
            // Its parent, which comes later, finds it as stopped as it was.
            if let Some(task) = self.tasks.get(tid).filter(|task| task.stopped) {
                let mut patience = Patience::until(grace());
                while tasks::state(task.process, *tid).is_some_and(|state| state == 'R') && patience.wait() {}
            }
        }
        Ok(())
    }
}

impl Drop for PtraceNursery {
    fn drop(&mut self) {
        if !self.released {
            finish::kill_all(self);
        }
    }
}

/// The mask of new tasks.
pub(crate) fn mask() -> u64 {
    all_but(SIGNAL)
}
