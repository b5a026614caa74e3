//! What is set up in a frozen process to run batches in it, and how it is taken away again.
//!
//! Order (the invariant: a thread's mask differs only while it stands in a stub, and a heal is in place before):
//! 1. *once* and its control block go into the tail of the vdso (or of some text), by the memory file.
//! 2. The runner makes `mmap` there: one private region, and makes its second half writable and not executable, in one visit.
//!    It stays at its rendezvous. So a process that may not have memory that is both (`PR_SET_MDWE`) can be visited as well.
//! 3. A *batch* block for each thread goes into the first half, by the memory file; tables go into the second one. When the
//!    runner has gone on to its block, the tail holds what it held before: it may be read as a part of the program.
//! 4. Back: all others home, *once* is put into the tail again, the runner makes the `munmap` there and goes home, and the
//!    tail holds what it held before.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::OwnedFd;

use hdcr_engine::batch::{Batch, Replies};
use hdcr_engine::ids::{Fd, Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::{Deadline, MechanismError, Result};
use hdcr_engine::regs::Regs;
use hdcr_sys::{dispatch, ptrace};
use nix::errno::Errno;

use crate::calls::{Calls, failure};
use crate::registers::{NO_CALL, RestartBlock};
use crate::rendezvous::{Meeting, bit, syscall_stop};
use crate::repair::Premises;
use crate::stub::{self, Control};
use crate::table;
use crate::tasks::{self, Status};
use crate::tracee::Tracee;

const MMAP: u64 = 9;
const MPROTECT: u64 = 10;
const MUNMAP: u64 = 11;
/// poll, nanosleep, futex, `clock_nanosleep`: they overwrite the thread's restart block.
const TAKES_RESTART_BLOCK: [u64; 4] = [7, 35, 202, 230];
/// Below the stack pointer the program may keep data (System V ABI).
const RED_ZONE: u64 = 128;
const PAGE: u64 = 4096;

/// The threads of the frozen scope.
pub(crate) type Threads = BTreeMap<Tid, Tracee>;

/// One batch to be run in a process.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) tid: Tid,
    pub(crate) batch: &'a Batch,
    /// Where its table lies; set when it is started.
    pub(crate) at: u64,
}

/// The rendezvous signal, and why the restart blocks may not survive it.
#[derive(Clone, Copy, Debug)]
struct Signal {
    number: i32,
    /// What a heal can count on: a handler that runs on the way destroys the restart block.
    restart_block: RestartBlock,
}

/// A process that is set up.
#[derive(Debug)]
pub(crate) struct Visit {
    runner: Tid,
    /// Where *once* lies.
    slot: u64,
    /// What was there before: zeros, or what a dead tracer left.
    slot_before: [u8; stub::ONCE_LEN],
    /// Whether *once* lies there.
    in_slot: bool,
    /// The runner's numbers as its own pid namespace has them.
    process: i32,
    thread: i32,
    signal: Signal,
    region: Range<u64>,
    /// Where the block of each thread lies, once it is written.
    blocks: BTreeMap<Tid, Block>,
    next_block: u64,
    /// Where tables are put.
    area: Range<u64>,
    /// A larger place for tables, mapped when the first did not suffice.
    extra: Option<Range<u64>>,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    at: u64,
    process: i32,
    thread: i32,
    written: bool,
}

/// A call that *once* makes after another one, with what that gave and so many bytes beyond as its first argument.
#[derive(Clone, Copy, Default, Debug)]
struct Second {
    /// Its number; 0: there is none.
    nr: u64,
    beyond: u64,
    args: [u64; 2],
}

fn offset(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(0)
}

fn unsupported(tid: Tid, kind: &'static str) -> MechanismError {
    MechanismError::Unsupported { tid, kind }
}

/// What does not change while the thread stands, so what was read once will do.
fn status_of(tracee: &Tracee) -> Result<Status> {
    let (pid, tid) = (tracee.pid, tracee.tid);
    let status = tracee.shown.clone().or_else(|| tasks::status(pid, tid));
    let status = status.ok_or(MechanismError::Gone { operation: "reading its status", tid })?;
    if status.seccomp != 0 {
        // The filter would judge the calls of the stub, and kill.
        return Err(unsupported(tid, "a task under seccomp"));
    }
    Ok(status)
}

/// What only a tracer can see: a thread whose system calls are handed to itself, which would get those of the stub too, and
/// one that may use I/O ports, which nobody can give back.
fn refuse_seen(threads: &[Tid]) -> Result<()> {
    /// `NT_386_IOPERM` of `<elf.h>`.
    const PORTS: i32 = 0x201;
    for tid in threads {
        if dispatch::is_on(tid.0).is_ok_and(|on| on == Some(true)) {
            return Err(unsupported(*tid, "a task with syscall user dispatch"));
        }
        if ptrace::register_set(tid.0, PORTS, size_of::<u64>()).is_ok() {
            return Err(unsupported(*tid, "a task with I/O ports (ioperm)"));
        }
    }
    Ok(())
}

/// Signals that are ignored by default.
const SILENT: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];

/// What is pending to some thread; asked only where it matters, else everything.
fn pending_to(pid: Pid, threads: &[Tid], blocked: u64) -> u64 {
    if SILENT.iter().any(|signal| blocked & bit(*signal) == 0) {
        return u64::MAX;
    }
    let one = |tid: &Tid| tasks::status(pid, *tid).map_or(u64::MAX, |status| status.pending);
    threads.iter().fold(0, |all, tid| all | one(tid))
}

/// The first signal that means nothing to any thread of the process. `blocked` is what some thread blocks, `pending` what is
/// pending to some thread: one that all block will do as well, as it is let through in a stub alone, but then nothing of the
/// program's own must be waiting behind it.
fn choose_signal(status: &Status, blocked: u64, pending: u64, tid: Tid) -> Result<Signal> {
    let open = |n: &i32| blocked & pending & bit(*n) == 0;
    let uncaught = |n: &i32| status.caught & bit(*n) == 0;
    // SIGCONT would end a group stop.
    let ignored = (1..=64).filter(|n| status.ignored & bit(*n) != 0 && *n != libc::SIGCONT);
    let mut unnoticed = SILENT.into_iter().chain(ignored).filter(|n| open(n) && uncaught(n));
    if let Some(number) = unnoticed.next() {
        let restart_block = RestartBlock::Kept;
        return Ok(Signal { number, restart_block });
    }
    // Caught: it is swallowed at the stop. Only if the tracer dies just then does the handler run once for nothing.
    let mut caught = SILENT.into_iter().filter(open);
    let number = caught.next().ok_or(unsupported(tid, "a task that leaves no signal to meet at"))?;
    let restart_block = RestartBlock::Lost;
    Ok(Signal { number, restart_block })
}

impl Visit {
    /// Sets a process up; `threads` are its stopped ones, `room` is what the first tables will need.
    pub(crate) fn set_up(
        calls: &Calls,
        premises: &Premises,
        tracees: &mut Threads,
        threads: &[Tid],
        (room, by): (usize, Deadline),
    ) -> Result<Self> {
        let Some(runner) = threads.first().and_then(|tid| tracees.get(tid)).cloned() else {
            return Err(MechanismError::Gone {
                operation: "setting it up",
                tid: threads.first().copied().unwrap_or(Tid(0)),
            });
        };
        let tid = runner.tid;
        let status = status_of(&runner)?;
        refuse_seen(threads)?;
        let masks = threads.iter().filter_map(|tid| tracees.get(tid));
        let blocked = masks.fold(0, |all, tracee| all | tracee.own.mask);
        let signal = choose_signal(&status, blocked, pending_to(runner.pid, threads, blocked), tid)?;
        let Some(tail) = premises.tail else {
            return Err(unsupported(tid, "a task without room in its vdso and in its text"));
        };
        let blocks_len = offset(threads.len() * stub::BATCH_STRIDE).next_multiple_of(PAGE);
        let area_len = offset(room).next_multiple_of(PAGE).max(PAGE);
        let (slot, slot_before) = tail.free_slot(calls, &premises.memory, tid)?;
        let mut visit = Self {
            runner: tid,
            slot,
            slot_before,
            in_slot: true,
            process: status.inner_process,
            thread: status.inner_thread,
            signal,
            region: 0..0,
            blocks: BTreeMap::new(),
            next_block: 0,
            area: 0..0,
            extra: None,
        };
        calls.force(&premises.memory, tid, visit.slot, stub::once_code())?;
        let Some(tracee) = tracees.get_mut(&tid) else {
            return Ok(visit);
        };
        match visit.map(calls, premises, tracee, (blocks_len, area_len, by)) {
            Ok(()) => Ok(visit),
            Err(error) => {
                // The thread goes home and the tail is put back, as at the end of a visit. One that does not even stop
                // stands in the stub, which heals it: nothing is taken away from under it.
                let home = tracee.stop(calls, crate::grace()).and_then(|()| tracee.go_home(calls));
                if home.is_ok() {
                    drop(visit.put_tail_back(calls, premises));
                }
                Err(error)
            }
        }
    }

    /// Maps the region in the runner. On an error nothing is mapped.
    fn map(
        &mut self,
        calls: &Calls,
        premises: &Premises,
        tracee: &mut Tracee,
        (blocks_len, area_len, by): (u64, u64, Deadline),
    ) -> Result<()> {
        const READ_EXECUTE: u64 = 5;
        const READ_WRITE: u64 = 3;
        let (tid, len) = (tracee.tid, blocks_len + area_len);
        let args = [0, len, READ_EXECUTE, 0x22, u64::MAX, 0];
        let then = Second { nr: MPROTECT, beyond: blocks_len, args: [area_len, READ_WRITE] };
        let (mapped, writable) = self.once(calls, premises, tracee, (MMAP, args, Some(then), by))?;
        let at = mapped_at(tid, mapped)?;
        if let Err(error) = mapped_at(tid, writable) {
            self.once(calls, premises, tracee, (MUNMAP, [at, len, 0, 0, 0, 0], None, by))?;
            return Err(error);
        }
        let area = at + blocks_len;
        self.region = at..at + len;
        self.next_block = at;
        self.area = area..at + len;
        Ok(())
    }

    /// Memory of ours in the process.
    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        let region = (!self.region.is_empty()).then(|| self.region.clone());
        region.into_iter().chain(self.extra.clone()).collect()
    }

    fn control(&self, tracee: &Tracee, process: i32, thread: i32) -> Control {
        Control {
            process,
            thread,
            signal: self.signal.number,
            mask: tracee.own.mask,
            regs: tracee.healed(self.signal.restart_block),
        }
    }

    /// Makes one call in the runner by *once*, and a second one if the first succeeded; their raw results.
    fn once(
        &self,
        calls: &Calls,
        premises: &Premises,
        tracee: &mut Tracee,
        (nr, [di, si, dx, r10, r8, r9], then, by): (u64, [u64; 6], Option<Second>, Deadline),
    ) -> Result<(u64, u64)> {
        let Second { nr: bx, beyond: r12, args: [r13, r14] } = then.unwrap_or_default();
        let control = self.control(tracee, self.process, self.thread);
        let control_at = self.slot + offset(stub::ONCE_CODE_LEN);
        calls.force(&premises.memory, tracee.tid, control_at, &control.encode())?;
        let regs = Regs {
            ip: self.slot,
            sp: tracee.own.regs.sp.wrapping_sub(RED_ZONE),
            orig_ax: NO_CALL,
            ax: nr,
            di,
            si,
            dx,
            r10,
            r8,
            r9,
            bx,
            r12,
            r13,
            r14,
            ..tracee.own.regs
        };
        tracee.start(calls, &regs, self.signal.number)?;
        let ip = self.slot + stub::once_rendezvous();
        let meeting = Meeting { ip, signal: self.signal.number };
        let met = tracee.meet(calls, meeting, by)?;
        Ok((met.bp, met.bx))
    }

    /// Makes room for tables: `need` bytes.
    pub(crate) fn widen(
        &mut self,
        calls: &Calls,
        premises: &Premises,
        tracees: &mut Threads,
        (need, by): (usize, Deadline),
    ) -> Result<()> {
        let need = offset(need);
        if need <= self.area.end - self.area.start {
            return Ok(());
        }
        let len = need.next_multiple_of(PAGE);
        let mut batch = Batch::new();
        if let Some(old) = self.extra.take() {
            // Its place is the area until the call is made, so the table of this very batch must not lie in it.
            self.area = old.start..old.start + PAGE;
            self.extra = Some(old);
        }
        let map = batch.call(9, &[0.into(), len.into(), 3.into(), 0x22.into(), (-1).into(), 0.into()]);
        let replies = self.run_one(calls, premises, tracees, (&batch, by))?;
        let at = replies.result(map).map_or(0, i64::cast_unsigned);
        let at = mapped_at(self.runner, at)?;
        self.area = at..at + len;
        if let Some(old) = self.extra.replace(at..at + len) {
            let mut batch = Batch::new();
            batch.call(11, &[old.start.into(), (old.end - old.start).into()]);
            self.run_one(calls, premises, tracees, (&batch, by))?;
        }
        Ok(())
    }

    fn run_one(
        &mut self,
        calls: &Calls,
        premises: &Premises,
        tracees: &mut Threads,
        (batch, by): (&Batch, Deadline),
    ) -> Result<Replies> {
        let mut job = Job { tid: self.runner, batch, at: 0 };
        self.start(calls, premises, tracees, std::slice::from_mut(&mut job))?;
        self.finish(calls, premises, tracees, (&job, by))
    }

    fn block(&mut self, tracee: &Tracee) -> Result<Block> {
        if let Some(block) = self.blocks.get(&tracee.tid) {
            return Ok(*block);
        }
        let (process, thread) = if tracee.tid == self.runner {
            (self.process, self.thread)
        } else {
            let status = status_of(tracee)?;
            (status.inner_process, status.inner_thread)
        };
        let block = Block { at: self.next_block, process, thread, written: false };
        self.next_block += offset(stub::BATCH_STRIDE);
        self.blocks.insert(tracee.tid, block);
        Ok(block)
    }

    /// Lets the threads of all jobs run. The room must have been made.
    pub(crate) fn start(
        &mut self,
        calls: &Calls,
        premises: &Premises,
        tracees: &mut Threads,
        jobs: &mut [Job<'_>],
    ) -> Result<()> {
        self.write_tables(calls, premises, tracees, jobs)?;
        for job in jobs {
            let regs = self.entry(tracees, job);
            if let (Some(regs), Some(tracee)) = (regs, tracees.get_mut(&job.tid)) {
                tracee.start(calls, &regs, self.signal.number)?;
            }
        }
        Ok(())
    }

    /// Runs a batch in the runner that begins with the loan of a descriptor: its first call makes one, and while the thread
    /// stands at the end of that call a duplicate of it is taken. The calls after it give it up; they are made even if
    /// this tracer dies meanwhile. `None`: the first call failed.
    pub(crate) fn borrow_descriptor(
        &mut self,
        calls: &Calls,
        premises: &Premises,
        tracees: &mut Threads,
        (batch, by): (&Batch, Deadline),
    ) -> Result<(Option<OwnedFd>, Replies)> {
        let mut job = Job { tid: self.runner, batch, at: 0 };
        self.write_tables(calls, premises, tracees, std::slice::from_mut(&mut job))?;
        let regs = self.entry(tracees, &job);
        let (Some(regs), Some(tracee)) = (regs, tracees.get_mut(&self.runner)) else {
            return Err(failure("running a batch", self.runner, Errno::ESRCH));
        };
        tracee.start_to_border(calls, &regs, self.signal.number)?;
        let (pid, tid) = (tracee.pid, tracee.tid);
        syscall_stop(calls, pid, tid, by)?;
        calls.cont_to_syscall(tid, 0)?;
        syscall_stop(calls, pid, tid, by)?;
        let made = i32::try_from(calls.registers(tid)?.ax.cast_signed()).unwrap_or(-1);
        let duplicate = if made < 0 { Ok(None) } else { calls.duplicate(pid, tid, Fd(made)).map(Some) };
        calls.cont(tid, 0)?;
        let replies = self.finish(calls, premises, tracees, (&job, by))?;
        Ok((duplicate?, replies))
    }

    /// Has the runner make a child with a copy of its memory as it is now, which ends by itself when it is let run. `None`: it
    /// may not, and why.
    pub(crate) fn fork(
        &mut self,
        calls: &Calls,
        premises: &Premises,
        tracees: &mut Threads,
        work: (&Batch, Deadline),
    ) -> Result<(Option<Tid>, Replies)> {
        let replies = self.run_one(calls, premises, tracees, work)?;
        Ok((tracees.get_mut(&self.runner).and_then(|runner| runner.born.take()), replies))
    }

    /// Writes blocks and tables of jobs.
    fn write_tables(
        &mut self,
        calls: &Calls,
        premises: &Premises,
        tracees: &mut Threads,
        jobs: &mut [Job<'_>],
    ) -> Result<()> {
        let mut pieces: Vec<(RemotePtr, Vec<u8>)> = Vec::new();
        let mut at = self.area.start;
        for job in jobs.iter_mut() {
            let Some(tracee) = tracees.get_mut(&job.tid) else {
                continue;
            };
            if job.batch.calls.iter().any(|call| TAKES_RESTART_BLOCK.contains(&call.nr)) {
                tracee.restart_block = RestartBlock::Lost;
            }
            let block = self.block(tracee)?;
            let control = self.control(tracee, block.process, block.thread).encode();
            let (block_at, bytes) = if block.written {
                (block.at + offset(stub::BATCH_CODE_LEN), control.to_vec())
            } else {
                (block.at, [&stub::batch_code()[..], &control].concat())
            };
            calls.force(&premises.memory, job.tid, block_at, &bytes)?;
            let bytes = table::encode(job.batch, at).map_err(|kind| unsupported(job.tid, kind))?;
            job.at = at;
            at += offset(bytes.len());
            pieces.push((RemotePtr(job.at), bytes));
        }
        let borrowed: Vec<_> = pieces.iter().map(|(at, b)| (*at, b.as_slice())).collect();
        calls.write(self.runner, &borrowed).map_err(|errno| failure("writing a batch", self.runner, errno))?;
        for job in jobs {
            if let Some(block) = self.blocks.get_mut(&job.tid) {
                block.written = true;
            }
        }
        Ok(())
    }

    /// The registers with which a thread begins its job.
    fn entry(&self, tracees: &Threads, job: &Job<'_>) -> Option<Regs> {
        let (tracee, block) = (tracees.get(&job.tid)?, self.blocks.get(&job.tid)?);
        Some(Regs {
            ip: block.at,
            sp: tracee.own.regs.sp.wrapping_sub(RED_ZONE),
            orig_ax: NO_CALL,
            ax: 0,
            bx: job.at,
            r12: job.at + offset(job.batch.calls.len() * table::ENTRY_LEN),
            ..tracee.own.regs
        })
    }

    /// Awaits a job that was started, and reads what came of it.
    pub(crate) fn finish(
        &mut self,
        calls: &Calls,
        premises: &Premises,
        tracees: &mut Threads,
        (job, by): (&Job<'_>, Deadline),
    ) -> Result<Replies> {
        let (Some(tracee), Some(block)) = (tracees.get_mut(&job.tid), self.blocks.get(&job.tid)) else {
            return Err(failure("running a batch", job.tid, Errno::ESRCH));
        };
        let ip = block.at + stub::batch_rendezvous();
        let meeting = Meeting { ip, signal: self.signal.number };
        // The stub holds the entry at which it stopped in bx.
        let done = tracee.meet(calls, meeting, by)?.bx;
        let mut bytes = vec![0; table::room(job.batch)];
        calls.read(self.runner, RemotePtr(job.at), &mut bytes)?;
        if self.in_slot && job.tid == self.runner {
            self.put_tail_back(calls, premises)?;
            self.in_slot = false;
        }
        Ok(table::decode(job.batch, job.at, done, &bytes))
    }

    /// Takes everything of ours out of the process and puts all its threads home.
    pub(crate) fn take_away(
        &mut self,
        calls: &Calls,
        premises: &Premises,
        tracees: &mut Threads,
        by: Deadline,
    ) -> Result<()> {
        let mut first = Ok(());
        if let Some(extra) = self.extra.take() {
            let mut batch = Batch::new();
            batch.call(11, &[extra.start.into(), (extra.end - extra.start).into()]);
            self.area = self.region.end - PAGE..self.region.end;
            first = self.run_one(calls, premises, tracees, (&batch, by)).map(drop);
        }
        let others: Vec<Tid> = self.blocks.keys().copied().collect();
        for tid in others.into_iter().filter(|tid| *tid != self.runner) {
            if let Some(tracee) = tracees.get_mut(&tid) {
                first = first.and(tracee.stop(calls, by));
                first = first.and(tracee.go_home(calls));
            }
        }
        let Some(runner) = tracees.get_mut(&self.runner) else {
            return first;
        };
        if !matches!(&first, Ok(()) | Err(MechanismError::Gone { .. })) {
            // A thread that did not come home stands in the region and heals there: the region stays for it.
            let home = runner.stop(calls, by).and_then(|()| runner.go_home(calls));
            return first.and(home);
        }
        first = first.and(runner.stop(calls, by));
        if !self.in_slot {
            calls.force(&premises.memory, self.runner, self.slot, stub::once_code())?;
            self.in_slot = true;
        }
        let (at, len) = (self.region.start, self.region.end - self.region.start);
        let unmapped = self.once(calls, premises, runner, (MUNMAP, [at, len, 0, 0, 0, 0], None, by));
        runner.stop(calls, by)?;
        first = first.and(unmapped.map(drop));
        first = first.and(runner.go_home(calls));
        first.and(self.put_tail_back(calls, premises))
    }

    fn put_tail_back(&self, calls: &Calls, premises: &Premises) -> Result<()> {
        calls.force(&premises.memory, self.runner, self.slot, &self.slot_before)
    }
}

fn mapped_at(tid: Tid, result: u64) -> Result<u64> {
    match result.cast_signed() {
        errno @ -4095..0 => Err(match i32::try_from(-errno) {
            Ok(libc::EACCES | libc::EPERM) => unsupported(tid, "a task that may not map writable code"),
            // Also EAGAIN: more than may be locked, and what is mapped next is locked.
            other => MechanismError::NoRoom { tid, source: Errno::from_raw(other.unwrap_or(0)).into() },
        }),
        _ => Ok(result),
    }
}
