//! A stopped tree: [`Frozen`] by a session of the module.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdcr_abi::{TaskRow, register_set, stand};
use hdcr_engine::batch::{Batch, Replies};
use hdcr_engine::ids::{Fd, Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::{
    Frozen, FrozenProcess, MechanismError, Queue, Result, Rseq, Scope, SigInfo, Stand, TimedCall, Watch,
};
use hdcr_engine::regs::Regs;
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::batch;
use crate::mechanism::{Hears, IN_STOP_OF_TRACER, odd};
use crate::session::{Session, SessionError};

/// `cs` of 64-bit user code.
const USER_CS: u64 = 0x33;
/// `restart_syscall`.
const RESTART_SYSCALL: u64 = 219;
/// `-ERESTART_RESTARTBLOCK`.
const BY_BLOCK: i64 = -516;
/// Length of `struct robust_list_head`, which the kernel insists on.
const ROBUST_LENGTH: u64 = 24;
/// A pidfd of one thread (`O_EXCL`, include/uapi/linux/pidfd.h).
const PIDFD_THREAD: u32 = 0o200;
/// What a thread is that makes no calls.
pub(crate) const STOPPED: &str = "stopped (by SIGSTOP or a terminal), where it makes no calls";

/// A tree stands still as long as this is there.
pub(crate) struct Stop(Option<Hears>);

impl Stop {
    pub(crate) fn begin(hears: Option<Hears>) -> io::Result<Self> {
        if let Some(hears) = &hears {
            hears(true)?;
        }
        Ok(Self(hears))
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        if let Some(hears) = &self.0 {
            hears(false).ok();
        }
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stop")
    }
}

/// One thread that is parked.
#[derive(Clone, Debug)]
struct Parked {
    row: TaskRow,
    regs: Regs,
}

/// A scope stopped by the module. Its session is dropped first: whoever hears of the end may rely on it.
#[derive(Debug)]
pub(crate) struct KernelFrozen {
    session: Session,
    processes: Vec<FrozenProcess>,
    parked: BTreeMap<Tid, Parked>,
    stands: Vec<(Tid, u32)>,
    since: Instant,
    /// When all stood still.
    stood: Instant,
    requests: Rc<Cell<u64>>,
    _stop: Stop,
}

impl KernelFrozen {
    /// Takes over what a session has stopped. What it cannot work with is let go, and named.
    pub(crate) fn take(
        session: Session,
        wanted: Scope,
        since: Instant,
        stop: Stop,
        requests: Rc<Cell<u64>>,
    ) -> Result<Self> {
        let stood = Instant::now();
        let top = match wanted {
            Scope::Tree(pid) | Scope::Below(pid) => pid,
        };
        let rows = session.tasks().map_err(|error| odd("listing it", top.leader(), error))?;
        let living: Vec<TaskRow> = rows.iter().filter(|row| row.stand != stand::DEAD).copied().collect();
        if matches!(wanted, Scope::Tree(_)) && !living.iter().any(|row| row.tgid == top.0) {
            return Err(MechanismError::Gone { operation: "freezing it", tid: top.leader() });
        }
        let mut frozen = Self {
            session,
            processes: family(&rows),
            parked: BTreeMap::new(),
            stands: living.iter().map(|row| (Tid(row.tid), row.stand)).collect(),
            since,
            stood,
            requests,
            _stop: stop,
        };
        for row in living {
            let tid = Tid(row.tid);
            match row.stand {
                stand::STOPPED => return Err(MechanismError::Unsupported { tid, kind: STOPPED }),
                stand::TRACED => return Err(MechanismError::Unsupported { tid, kind: IN_STOP_OF_TRACER }),
                // Whoever asked tries again.
                stand::VFORK => {}
                _ => {
                    let parked = frozen.park(row)?;
                    frozen.parked.insert(tid, parked);
                }
            }
        }
        Ok(frozen)
    }

    /// How each living thread was held.
    pub(crate) fn stands(&self) -> impl Iterator<Item = (Tid, u32)> + '_ {
        self.stands.iter().copied()
    }

    fn count(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    fn park(&self, row: TaskRow) -> Result<Parked> {
        let tid = Tid(row.tid);
        let mut regs = self.general(tid)?;
        if regs.cs != USER_CS {
            return Err(MechanismError::Unsupported { tid, kind: "a 32-bit task" });
        }
        if regs.orig_ax == RESTART_SYSCALL && regs.ax.cast_signed() == BY_BLOCK {
            self.count();
            let waiting = self.session.waiting(tid.0).map_err(|error| odd("reading its call", tid, error))?;
            regs.orig_ax = u64::try_from(waiting.call).unwrap_or(regs.orig_ax);
        }
        Ok(Parked { row, regs })
    }

    fn general(&self, tid: Tid) -> Result<Regs> {
        self.count();
        let mut words = [0; 27];
        let bytes = self.session.registers(tid.0, register_set::GENERAL, size_of_val(&words));
        let bytes = bytes.map_err(|error| odd("reading its registers", tid, error))?;
        for (word, from) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = from.try_into().map_or(0, u64::from_ne_bytes);
        }
        Ok(Regs::from_words(words))
    }

    fn parked(&self, tid: Tid) -> Result<&Parked> {
        self.parked.get(&tid).ok_or(not_in_scope(tid))
    }

    fn any_thread_of(&self, pid: Pid) -> Result<Tid> {
        let process = self.processes.iter().find(|process| process.pid == pid);
        let first = process.and_then(|process| process.threads.first().copied());
        first.ok_or(MechanismError::Gone { operation: "working with it", tid: pid.leader() })
    }

    fn run_one(&self, tid: Tid, batch: &Batch) -> Result<Replies> {
        /// Calls of a batch never wait; what is waited for is a processor.
        const LONGEST: Duration = Duration::from_secs(30);
        self.parked(tid)?;
        if batch.is_empty() {
            return Ok(Replies { results: Vec::new(), data: batch.data.clone() });
        }
        self.count();
        let large = || MechanismError::Unsupported { tid, kind: "to make more calls than the module takes at once" };
        let mut rows = batch::rows(batch).ok_or_else(large)?;
        let made = self.session.calls(tid.0, &mut rows, LONGEST);
        match made {
            Ok(made) => Ok(batch::replies(rows, made)),
            Err(error) => Err(refused(tid, error)),
        }
    }
}

/// Why a thread made no calls.
fn refused(tid: Tid, error: SessionError) -> MechanismError {
    match error.errno() {
        Some(libc::EPERM) => MechanismError::Unsupported { tid, kind: "under a seccomp filter" },
        Some(libc::EOPNOTSUPP) => MechanismError::Unsupported { tid, kind: "in a 32-bit system call (int 0x80)" },
        Some(errno @ (libc::ENOMEM | libc::EAGAIN)) => {
            MechanismError::NoRoom { tid, source: io::Error::from_raw_os_error(errno) }
        }
        Some(libc::ETIMEDOUT) => {
            MechanismError::Late { operation: "make the calls of a batch", tid, state: "parked".to_owned() }
        }
        _ => odd("making calls in it", tid, error),
    }
}

fn not_in_scope(tid: Tid) -> MechanismError {
    MechanismError::Gone { operation: "working with it (it is not in the frozen scope)", tid }
}

/// The processes, parents before children, each with its living threads, the leader first.
fn family(rows: &[TaskRow]) -> Vec<FrozenProcess> {
    let mut processes: BTreeMap<i32, (i32, Vec<Tid>)> = BTreeMap::new();
    for row in rows {
        let (_, threads) = processes.entry(row.tgid).or_insert((row.ppid, Vec::new()));
        if row.stand != stand::DEAD {
            threads.push(Tid(row.tid));
        }
    }
    for (pid, (_, threads)) in &mut processes {
        threads.sort_unstable_by_key(|tid| (tid.0 != *pid, tid.0));
    }
    let mut order: Vec<i32> =
        processes.iter().filter(|(_, (parent, _))| !processes.contains_key(parent)).map(|(pid, _)| *pid).collect();
    let mut at = 0;
    while let Some(pid) = order.get(at).copied() {
        at += 1;
        order.extend(processes.iter().filter(|(_, (parent, _))| *parent == pid).map(|(child, _)| *child));
    }
    let one = |pid: i32| {
        let (_, threads) = processes.remove(&pid)?;
        Some(FrozenProcess { pid: Pid(pid), zombie: threads.is_empty(), threads })
    };
    order.into_iter().filter_map(one).collect()
}

/// Whether the kernel keeps the time of the call that a thread is interrupted in.
fn keeps_time(regs: &Regs) -> bool {
    regs.orig_ax.cast_signed() >= 0 && regs.ax.cast_signed() == BY_BLOCK
}

impl Frozen for KernelFrozen {
    fn since(&self) -> Option<Instant> {
        Some(self.since)
    }

    fn processes(&self) -> &[FrozenProcess] {
        &self.processes
    }

    fn stand(&self, tid: Tid) -> Result<Stand> {
        self.parked(tid).map(|_| Stand::Running)
    }

    fn regs(&self, tid: Tid) -> Result<Regs> {
        Ok(self.parked(tid)?.regs)
    }

    fn xstate(&self, tid: Tid) -> Result<Vec<u8>> {
        self.parked(tid)?;
        self.count();
        let room = usize::try_from(self.session.xstate_size()).unwrap_or(0);
        let bytes = self.session.registers(tid.0, register_set::XSTATE, room);
        bytes.map_err(|error| odd("reading its vector registers", tid, error))
    }

    fn signal_mask(&self, tid: Tid) -> Result<u64> {
        Ok(self.parked(tid)?.row.blocked)
    }

    fn pending(&self, tid: Tid, queue: Queue) -> Result<Vec<SigInfo>> {
        self.parked(tid)?;
        self.count();
        let listed = self.session.signals(tid.0, queue == Queue::Shared);
        listed.map_err(|error| {
            if error.errno() == Some(libc::EOVERFLOW) {
                return MechanismError::Unsupported { tid, kind: "a task with more than 8,192 waiting signals" };
            }
            odd("reading its signals", tid, error)
        })
    }

    fn rseq(&self, tid: Tid) -> Result<Option<Rseq>> {
        let row = self.parked(tid)?.row;
        let found = Rseq { at: RemotePtr(row.rseq), size: row.rseq_size, signature: row.rseq_signature };
        Ok((row.rseq != 0).then_some(found))
    }

    fn robust_list(&self, tid: Tid) -> Result<(RemotePtr, u64)> {
        Ok((RemotePtr(self.parked(tid)?.row.robust_list), ROBUST_LENGTH))
    }

    fn timed_call(&mut self, tid: Tid) -> Result<Option<TimedCall>> {
        let regs = self.parked(tid)?.regs;
        if !keeps_time(&regs) {
            return Ok(None);
        }
        self.count();
        let waiting = self.session.waiting(tid.0).map_err(|error| odd("reading its call", tid, error))?;
        let stood = i64::try_from(self.stood.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let rest = u64::try_from(waiting.rest_ns.saturating_add(stood)).unwrap_or(0);
        Ok(Some(TimedCall { nr: regs.orig_ax, remaining_ns: (waiting.ends == 1).then_some(rest) }))
    }

    fn run(&mut self, work: &[(Tid, Batch)]) -> Result<Vec<Replies>> {
        work.iter().map(|(tid, batch)| self.run_one(*tid, batch)).collect()
    }

    fn read(&self, pid: Pid, at: RemotePtr, into: &mut [u8]) -> Result<()> {
        let tid = self.any_thread_of(pid)?;
        let failed = |source: io::Error| MechanismError::System { operation: "reading its memory", tid, source };
        let base = usize::try_from(at.0).map_err(|_| failed(Errno::EFAULT.into()))?;
        let remote = RemoteIoVec { base, len: into.len() };
        let got = match process_vm_readv(nix::unistd::Pid::from_raw(tid.0), &mut [IoSliceMut::new(into)], &[remote]) {
            Ok(got) => got,
            Err(Errno::EFAULT | Errno::EPERM) => 0,
            Err(errno) => return Err(failed(errno.into())),
        };
        let Some(rest) = into.get_mut(got..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
        // What follows is not readable to the program itself.
        let memory = File::open(format!("/proc/{pid}/task/{tid}/mem")).map_err(failed)?;
        memory.read_exact_at(rest, at.0.wrapping_add(u64::try_from(got).unwrap_or(0))).map_err(failed)
    }

    fn descriptor(&self, pid: Pid, fd: Fd) -> Result<OwnedFd> {
        let tid = self.any_thread_of(pid)?;
        // A leader that has ended has no descriptors any more; then by the thread (Linux 6.9).
        let flags = if tid == pid.leader() { PidfdFlags::empty() } else { PidfdFlags::from_bits_retain(PIDFD_THREAD) };
        let opened = rustix::process::Pid::from_raw(tid.0)
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|tid| pidfd_open(tid, flags))
            .and_then(|pidfd| pidfd_getfd(pidfd, fd.0, PidfdGetfdFlags::empty()));
        opened.map_err(|errno| match errno {
            rustix::io::Errno::SRCH => MechanismError::Gone { operation: "duplicating its descriptor", tid },
            other => MechanismError::System { operation: "duplicating its descriptor", tid, source: other.into() },
        })
    }

    fn follow(&mut self, pid: Pid) -> Result<Box<dyn Watch>> {
        let kind = "in the hands of the kernel module, which follows no writes: its memory is read in the stop";
        Err(MechanismError::Unsupported { tid: pid.leader(), kind })
    }

    fn own_ranges(&self, _pid: Pid) -> Vec<Range<u64>> {
        // What a batch needs is mapped only while it runs.
        Vec::new()
    }

    fn thaw(mut self: Box<Self>) -> Result<()> {
        let top = self.processes.first().map_or(Tid(0), |process| process.pid.leader());
        self.session.thaw().map_err(|error| odd("letting it go", top, error))
    }

    fn leave_stopped(self: Box<Self>) -> Result<()> {
        let mut first = Ok(());
        for process in self.processes.iter().filter(|process| !process.zombie) {
            let raw = nix::unistd::Pid::from_raw(process.pid.0);
            match nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGSTOP) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    let tid = process.pid.leader();
                    let failed = MechanismError::System { operation: "stopping it", tid, source: errno.into() };
                    first = first.and(Err(failed));
                }
            }
        }
        first.and(self.thaw())
    }

    fn kill(mut self: Box<Self>) -> Result<()> {
        /// Giving back the memory of a large program takes its time.
        const DEATH: Duration = Duration::from_mins(2);
        let top = self.processes.first().map_or(Tid(0), |process| process.pid.leader());
        let living = self.processes.iter().filter(|process| !process.zombie);
        let ends: Vec<(Tid, OwnedFd)> = living
            .filter_map(|process| {
                let pid = rustix::process::Pid::from_raw(process.pid.0)?;
                Some((process.pid.leader(), pidfd_open(pid, PidfdFlags::empty()).ok()?))
            })
            .collect();
        self.session.kill().map_err(|error| odd("killing it", top, error))?;
        let by = Instant::now() + DEATH;
        ends.iter().try_for_each(|(tid, end)| await_end(*tid, end, by))
    }
}

/// Waits until a process has ended.
fn await_end(tid: Tid, end: &OwnedFd, by: Instant) -> Result<()> {
    loop {
        let left = by.saturating_duration_since(Instant::now());
        let limit = left.try_into().unwrap_or_default();
        match poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&limit)) {
            Ok(1..) => return Ok(()),
            Ok(0) => {
                return Err(MechanismError::Late { operation: "die", tid, state: "killed".to_owned() });
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(MechanismError::System { operation: "waiting for its end", tid, source: errno.into() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tid: i32, process: i32, parent: i32, stand: u32) -> TaskRow {
        TaskRow { tid, tgid: process, ppid: parent, stand, ..TaskRow::default() }
    }

    #[test]
    fn parents_come_first_leaders_lead_and_the_dead_are_told_apart() {
        use stand::{DEAD, RUNNING};
        let rows = [
            row(5, 5, 40, RUNNING),
            row(6, 5, 40, RUNNING),
            row(7, 7, 20, DEAD),
            row(8, 9, 20, RUNNING),
            row(9, 9, 20, DEAD),
            row(20, 20, 1, RUNNING),
            row(40, 40, 20, RUNNING),
            row(41, 40, 20, DEAD),
        ];
        let found = family(&rows);
        let pids: Vec<i32> = found.iter().map(|process| process.pid.0).collect();
        assert_eq!(pids, [20, 7, 9, 40, 5]);
        assert!(found[1].zombie && !found[2].zombie);
        assert_eq!(found[2].threads, [Tid(8)]);
        assert_eq!(found[3].threads, [Tid(40)]);
        assert_eq!(found[4].threads, [Tid(5), Tid(6)]);
    }
}
