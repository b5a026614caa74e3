//! A stopped tree: [`Frozen`] by ptrace.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use hdcr_engine::batch::{Batch, Replies};
use hdcr_engine::ids::{Fd, Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::{
    Deadline, Frozen, FrozenProcess, MechanismError, Queue, Result, Rseq, SigInfo, Stand, TimedCall, Twin, Watch,
};
use hdcr_engine::procfs::KeyValues;
use hdcr_engine::regs::Regs;
use hdcr_sys::ptrace::SignalQueue;
use hdcr_sys::verdict;
use hdcr_sys::wait::Seen;
use nix::errno::Errno;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::calls::{Calls, Patience, as_rseq, failure};
use crate::freeze::{Caught, Freezing, forgive_dead, late, parent_of};
use crate::reenter;
use crate::registers::waits_for_ever;
use crate::release::{bury, let_go_of};
use crate::repair::{Premises, settle};
use crate::standing;
use crate::table;
use crate::tasks;
use crate::timed;
use crate::tracee::{Place, Tracee};
use crate::twin::{self, PtraceTwin};
use crate::visit::{Job, Threads, Visit};
use crate::waits;
use crate::watch::{self, PtraceWatch};
use crate::{Stragglers, grace};

/// A scope stopped by ptrace. It belongs to the thread that froze it: ptrace knows tracers by thread.
#[derive(Debug)]
pub(crate) struct PtraceFrozen {
    calls: Calls,
    by: Deadline,
    since: Instant,
    processes: Vec<FrozenProcess>,
    parents: BTreeMap<Pid, (Pid, Tid)>,
    tracees: Threads,
    premises: BTreeMap<Pid, Premises>,
    visits: BTreeMap<Pid, Visit>,
    /// When the last thread had stopped, on the monotonic clock in nanoseconds.
    stopped_at: u64,
    stragglers: Stragglers,
    /// Children that are copies, with their parents: what is left of a dead one is collected before its parent goes on.
    copies: Vec<(Pid, Pid)>,
    /// Not let go yet; known to the copies, too.
    held: Rc<Cell<bool>>,
    /// Let go, left stopped or killed.
    over: bool,
    /// Given up when all are let go.
    _stand: standing::Stand,
}

impl PtraceFrozen {
    pub(crate) fn freeze(freezing: Freezing<'_>, calls: &Calls, stragglers: &Stragglers, by: Deadline) -> Result<Self> {
        let stand = calls.standing.begin()?;
        let caught = match freezing.catch() {
            Ok(caught) => caught,
            Err((error, left)) => {
                let mut stragglers = stragglers.borrow_mut();
                stragglers.extend(left);
                stragglers.sort_unstable();
                stragglers.dedup();
                return Err(error);
            }
        };
        let stopped_at = timed::now();
        let Caught { mut processes, threads, parents, since } = caught;
        let mut copies = Vec::new();
        processes.retain(|process| {
            let ours = process.zombie && twin::is_remains(process.pid);
            copies.extend(ours.then(|| parent_of(process.pid)).map(|parent| (parent, process.pid)));
            !ours
        });
        let mut frozen = Self {
            calls: calls.clone(),
            by,
            since,
            processes,
            parents,
            tracees: BTreeMap::new(),
            premises: BTreeMap::new(),
            visits: BTreeMap::new(),
            stopped_at,
            stragglers: stragglers.clone(),
            copies,
            held: Rc::new(Cell::new(true)),
            over: false,
            _stand: stand,
        };
        let mut refused = Ok(());
        for (tid, attached) in threads {
            let settled =
                frozen.premises(attached.pid, tid).and_then(|premises| settle(calls, premises, tid, &attached));
            match settled {
                Ok(tracee) => {
                    frozen.tracees.insert(tid, tracee);
                }
                // A thread that cannot be worked with goes on as it is.
                Err(error) => {
                    drop(calls.detach(tid, 0));
                    refused = refused.and(Err(error));
                }
            }
        }
        stragglers.borrow_mut().retain(|tid| !frozen.tracees.contains_key(tid));
        for tracee in frozen.tracees.values_mut() {
            refused = refused.and(reenter::name_call(calls, tracee, by));
        }
        if refused.is_ok() && !frozen.copies.is_empty() {
            frozen.collect_copies();
            // Nothing of ours is in the way of those who look at the process now.
            refused = forgive_dead(frozen.withdraw(by));
        }
        // The drop lets the others go.
        refused.map(|()| frozen)
    }

    fn premises(&mut self, pid: Pid, tid: Tid) -> Result<&Premises> {
        match self.premises.entry(pid) {
            std::collections::btree_map::Entry::Occupied(there) => Ok(there.into_mut()),
            std::collections::btree_map::Entry::Vacant(room) => Ok(room.insert(Premises::open(&self.calls, pid, tid)?)),
        }
    }

    fn tracee(&self, tid: Tid) -> Result<&Tracee> {
        self.tracees.get(&tid).ok_or(not_in_scope(tid))
    }

    fn threads_of(&self, pid: Pid) -> Vec<Tid> {
        let process = self.processes.iter().find(|process| process.pid == pid);
        process.map(|process| process.threads.clone()).unwrap_or_default()
    }

    fn any_thread_of(&self, pid: Pid) -> Result<Tid> {
        let first = self.threads_of(pid).first().copied();
        first.ok_or(MechanismError::Gone { operation: "working in it", tid: pid.leader() })
    }

    /// Sets the process up for tables of this size.
    fn visit(&mut self, pid: Pid, room: usize) -> Result<()> {
        let threads = self.threads_of(pid);
        let Some(premises) = self.premises.get(&pid) else {
            return Err(not_in_scope(pid.leader()));
        };
        if let Some(visit) = self.visits.get_mut(&pid) {
            return visit.widen(&self.calls, premises, &mut self.tracees, (room, self.by));
        }
        let visit = Visit::set_up(&self.calls, premises, &mut self.tracees, &threads, (room, self.by))?;
        self.visits.insert(pid, visit);
        Ok(())
    }

    /// Puts every thread home and takes everything of ours out.
    fn withdraw(&mut self, by: Deadline) -> Result<()> {
        let mut first = Ok(());
        for (pid, mut visit) in std::mem::take(&mut self.visits) {
            if let Some(premises) = self.premises.get(&pid) {
                first = first.and(visit.take_away(&self.calls, premises, &mut self.tracees, by));
            }
        }
        first
    }

    fn release(&mut self, last_word: LastWord) -> Result<()> {
        if std::mem::replace(&mut self.over, true) {
            return Ok(());
        }
        let by = grace();
        self.held.set(false);
        self.by = by;
        self.collect_copies();
        let mut first = forgive_dead(self.withdraw(by));
        if last_word == LastWord::Stop {
            for process in self.processes.iter().filter(|process| !process.zombie) {
                let stopped = self.calls.kill(process.pid, libc::SIGSTOP);
                first = first.and(forgive_dead(stopped));
            }
        }
        // Children first, leaders last.
        for process in self.processes.iter().rev() {
            for tid in process.threads.iter().rev() {
                let Some(tracee) = self.tracees.get_mut(tid) else {
                    continue;
                };
                let detached = detach(&self.calls, tracee);
                if matches!(detached, Err(MechanismError::Gone { .. })) {
                    // Killed by somebody and perhaps still dying; its parent hears of it only through us.
                    let_go_of(&self.calls, *tid, by);
                }
                first = first.and(forgive_dead(detached));
                if tracee.running {
                    self.stragglers.borrow_mut().push(*tid);
                }
            }
        }
        first
    }

    /// Has parents collect what is left of dead copies. Those that live are collected later.
    fn collect_copies(&mut self) {
        for (parent, child) in std::mem::take(&mut self.copies) {
            if !twin::is_remains(child) {
                continue;
            }
            let inner = tasks::process_status(child).map_or(child.0, |status| status.inner_process);
            let tid = self.any_thread_of(parent);
            if let Err(error) = tid.and_then(|tid| self.run(&[(tid, twin::burial(inner))])) {
                tracing::warn!(parent = parent.0, child = child.0, %error, "what is left of a copy was not collected");
            }
        }
    }

    fn wait_until_dead(&self, by: Deadline) -> Result<()> {
        let mut patience = Patience::until(by);
        let mut left: Vec<&Tracee> = self.tracees.values().collect();
        loop {
            left.retain(|tracee| match self.calls.look(tracee.tid) {
                Ok(Seen::Exited(_) | Seen::Killed(_)) => {
                    bury(&self.calls, tracee.tid);
                    false
                }
                Ok(_) => true,
                Err(_) => false,
            });
            let Some(one) = left.first() else {
                return Ok(());
            };
            if !patience.wait() {
                return Err(late("die", one.pid, one.tid));
            }
        }
    }
}

/// How a frozen tree is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LastWord {
    /// As it stood.
    Go,
    /// In a group stop.
    Stop,
}

fn detach(calls: &Calls, tracee: &mut Tracee) -> Result<()> {
    tracee.stop(calls, grace())?;
    tracee.go_home(calls)?;
    if waits_for_ever(&tracee.own.regs) {
        // Made again as itself, see `Tracee::go_home`.
        tracee.place = Place::Stub;
        tracee.go_home(calls)?;
    }
    if let Some(signal) = tracee.missed.take() {
        calls.kill(tracee.pid, signal)?;
    }
    calls.detach(tracee.tid, 0)
}

fn not_in_scope(tid: Tid) -> MechanismError {
    MechanismError::Gone { operation: "working with it (it is not in the frozen scope)", tid }
}

impl Frozen for PtraceFrozen {
    fn since(&self) -> Option<Instant> {
        Some(self.since)
    }

    fn processes(&self) -> &[FrozenProcess] {
        &self.processes
    }

    fn parents(&self) -> Option<BTreeMap<Pid, (Pid, Tid)>> {
        Some(self.parents.clone())
    }

    fn shown(&mut self, tid: Tid, status: &KeyValues) {
        if let Some(tracee) = self.tracees.get_mut(&tid) {
            tracee.shown = Some(tasks::told(status.pairs()));
        }
    }

    fn stand(&self, tid: Tid) -> Result<Stand> {
        Ok(self.tracee(tid)?.stand)
    }

    fn regs(&self, tid: Tid) -> Result<Regs> {
        Ok(waits::seen(self.tracee(tid)?))
    }

    fn xstate(&self, tid: Tid) -> Result<Vec<u8>> {
        self.calls.xstate(self.tracee(tid)?.tid)
    }

    fn signal_mask(&self, tid: Tid) -> Result<u64> {
        Ok(self.tracee(tid)?.own.mask)
    }

    fn pending(&self, tid: Tid, queue: Queue) -> Result<Vec<SigInfo>> {
        let queue = match queue {
            Queue::Thread => SignalQueue::Thread,
            Queue::Shared => SignalQueue::Shared,
        };
        self.calls.pending(self.tracee(tid)?.tid, queue)
    }

    fn rseq(&self, tid: Tid) -> Result<Option<Rseq>> {
        Ok(self.calls.rseq(self.tracee(tid)?.tid)?.map(as_rseq))
    }

    fn robust_list(&self, tid: Tid) -> Result<(RemotePtr, u64)> {
        let tid = self.tracee(tid)?.tid;
        let (head, len) =
            hdcr_sys::task::robust_list(tid.0).map_err(|errno| failure("reading its robust list", tid, errno))?;
        Ok((RemotePtr(head), len))
    }

    fn timed_call(&mut self, tid: Tid) -> Result<Option<TimedCall>> {
        let tracee = self.tracees.get_mut(&tid).ok_or(not_in_scope(tid))?;
        timed::call_of(&self.calls, tracee, self.stopped_at, self.by)
    }

    fn run(&mut self, work: &[(Tid, Batch)]) -> Result<Vec<Replies>> {
        let mut by_process: BTreeMap<Pid, Vec<(usize, Job<'_>)>> = BTreeMap::new();
        let mut all = vec![Replies::default(); work.len()];
        for (index, (tid, batch)) in work.iter().enumerate() {
            let pid = self.tracee(*tid)?.pid;
            if batch.is_empty() {
                if let Some(replies) = all.get_mut(index) {
                    replies.data.clone_from(&batch.data);
                }
                continue;
            }
            let job = Job { tid: *tid, batch, at: 0 };
            by_process.entry(pid).or_default().push((index, job));
        }
        for (pid, jobs) in &by_process {
            let room = jobs.iter().map(|(_, job)| table::room(job.batch)).sum();
            self.visit(*pid, room)?;
        }
        let mut started = Vec::new();
        let mut first = Ok(());
        for (pid, jobs) in by_process {
            let (indices, mut jobs): (Vec<usize>, Vec<Job<'_>>) = jobs.into_iter().unzip();
            let there = self.visits.get_mut(&pid).zip(self.premises.get(&pid));
            if let (Ok(()), Some((visit, premises))) = (&first, there) {
                first = visit.start(&self.calls, premises, &mut self.tracees, &mut jobs);
                started.push((pid, indices, jobs));
            }
        }
        // All that run are awaited, whatever happened to one of them.
        for (pid, indices, jobs) in started {
            let (Some(visit), Some(premises)) = (self.visits.get_mut(&pid), self.premises.get(&pid)) else {
                continue;
            };
            for (index, job) in indices.into_iter().zip(&jobs) {
                if !self.tracees.get(&job.tid).is_some_and(|tracee| tracee.running) {
                    continue;
                }
                match visit.finish(&self.calls, premises, &mut self.tracees, (job, self.by)) {
                    Ok(replies) => {
                        if let Some(place) = all.get_mut(index) {
                            *place = replies;
                        }
                    }
                    Err(error) => first = first.and(Err(error)),
                }
            }
        }
        first.map(|()| all)
    }

    fn read(&self, pid: Pid, at: RemotePtr, into: &mut [u8]) -> Result<()> {
        let tid = self.any_thread_of(pid)?;
        let got = match self.calls.read_some(tid, at, into) {
            Ok(got) => got,
            Err(Errno::EFAULT | Errno::EPERM) => 0,
            Err(errno) => return Err(failure("reading its memory", tid, errno)),
        };
        let Some(rest) = into.get_mut(got..).filter(|rest| !rest.is_empty()) else {
            return Ok(());
        };
        // What follows is not readable to the program itself.
        let premises = self.premises.get(&pid).ok_or(not_in_scope(tid))?;
        let at = at.0.wrapping_add(u64::try_from(got).unwrap_or(0));
        self.calls.peek(&premises.memory, tid, at, rest)
    }

    fn descriptor(&self, pid: Pid, fd: Fd) -> Result<OwnedFd> {
        let tid = self.any_thread_of(pid)?;
        self.calls.duplicate(pid, tid, fd)
    }

    fn follow(&mut self, pid: Pid) -> Result<Box<dyn Watch>> {
        let tid = self.any_thread_of(pid)?;
        let wishes = [0, hdcr_sys::userfaultfd::USER_MODE_ONLY].map(watch::loan);
        self.visit(pid, wishes.iter().map(table::room).max().unwrap_or(0))?;
        let (Some(visit), Some(premises)) = (self.visits.get_mut(&pid), self.premises.get(&pid)) else {
            return Err(not_in_scope(tid));
        };
        let shares = self.processes.len() > 1;
        let mut refused = Errno::ENOSYS;
        for batch in &wishes {
            let work = (batch, self.by);
            let (lent, replies) = visit.borrow_descriptor(&self.calls, premises, &mut self.tracees, work)?;
            if let Some(lent) = lent {
                return PtraceWatch::new(&self.calls, (pid, tid), lent, shares)
                    .map(|watch| -> Box<dyn Watch> { Box::new(watch) });
            }
            refused = watch::refusal(&replies);
        }
        Err(failure("following its memory", tid, refused))
    }

    fn fork(&mut self, pid: Pid) -> Result<Box<dyn Twin>> {
        let tid = self.any_thread_of(pid)?;
        let batch = twin::birth();
        self.visit(pid, table::room(&batch))?;
        let (Some(visit), Some(premises)) = (self.visits.get_mut(&pid), self.premises.get(&pid)) else {
            return Err(not_in_scope(tid));
        };
        let (child, replies) = visit.fork(&self.calls, premises, &mut self.tracees, (&batch, self.by))?;
        let child = child.ok_or_else(|| failure("copying its memory", tid, twin::refusal(&replies)))?;
        self.copies.push((pid, Pid(child.0)));
        let born = (pid, child);
        let twin = PtraceTwin::take(&self.calls, &self.stragglers, born, &self.held, self.by)?;
        Ok(Box::new(twin))
    }

    fn own_ranges(&self, pid: Pid) -> Vec<Range<u64>> {
        self.visits.get(&pid).map(Visit::ranges).unwrap_or_default()
    }

    fn thaw(mut self: Box<Self>) -> Result<()> {
        self.release(LastWord::Go)
    }

    fn leave_stopped(mut self: Box<Self>) -> Result<()> {
        self.release(LastWord::Stop)
    }

    fn kill(mut self: Box<Self>) -> Result<()> {
        /// Giving back the memory of a large program takes its time.
        const DEATH: std::time::Duration = std::time::Duration::from_mins(2);
        // Else who inherits the children has to.
        self.by = grace();
        self.collect_copies();
        self.all_or_none()?;
        self.over = true;
        self.held.set(false);
        let mut first = Ok(());
        for process in self.processes.iter().filter(|process| !process.zombie) {
            let killed = self.calls.kill(process.pid, libc::SIGKILL);
            first = first.and(forgive_dead(killed));
        }
        first.and(self.wait_until_dead(Deadline(Instant::now() + DEATH)))
    }
}

impl PtraceFrozen {
    /// Has all processes killed by somebody who survives us: should we die between two of them, none is left behind.
    fn all_or_none(&self) -> Result<()> {
        let living: Vec<Pid> = self.processes.iter().filter(|process| !process.zombie).map(|p| p.pid).collect();
        let [first, _, ..] = living.as_slice() else { return Ok(()) };
        let failed = |source| MechanismError::System { operation: "killing the tree", tid: first.leader(), source };
        let opened: Vec<OwnedFd> = living
            .iter()
            .filter_map(|pid| rustix::process::Pid::from_raw(pid.0))
            .filter_map(|pid| match pidfd_open(pid, PidfdFlags::empty()) {
                Err(rustix::io::Errno::SRCH) => None,
                other => Some(other.map_err(|errno| failed(errno.into()))),
            })
            .collect::<Result<_>>()?;
        verdict::prepare(&opened).and_then(verdict::Verdict::pronounce).map_err(failed)
    }
}

impl Drop for PtraceFrozen {
    fn drop(&mut self) {
        if let Err(error) = self.release(LastWord::Go) {
            tracing::warn!(%error, "a tree was not thawed cleanly");
        }
    }
}
