//! Stopping a scope: look, attach, wait, and look again until nothing new is there and all are stopped.
//!
//! Order: a process's threads are looked for as soon as it is known; its children only below a thread that has stopped.
//! So a `vfork` child runs on until its parent can be stopped (the parent sleeps in the kernel until then; stopping the
//! child first would be a deadlock). The scan that ends the freeze is made with every known thread stopped.
//!
//! Those that stand wait for no other one longer than [`STANDING`]: then all are let go, and it is tried again when the late
//! one has come to a stop, or after a pause (`lib.rs`).
//!
//! `PTRACE_O_TRACECLONE` and `PTRACE_O_TRACEFORK` make what a not yet stopped thread clones ours from birth, so no chain
//! of clones runs ahead of the scan. `PTRACE_O_TRACEVFORK` is left out on purpose: such a child must run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::{Deadline, FrozenProcess, MechanismError, Result, Scope, Stand};
use hdcr_engine::procfs;
use hdcr_sys::ptrace::EVENT_STOP;
use hdcr_sys::wait::Seen;
use nix::errno::Errno;

use crate::calls::{Calls, Patience, failure};
use crate::release::{self, bury, let_go_of};
use crate::tasks;
use crate::twin;
use crate::undertaker::Undertaker;
use crate::waits;

const OPTIONS: i32 = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACESYSGOOD;

/// So long the threads that have stopped stand still for one that sleeps where no stop reaches it. Most such sleeps (a `vfork`
/// whose child executes its program at once, a read from a disk) are over by then, and few clients of a program have lost
/// patience.
const STANDING: Duration = Duration::from_millis(200);
/// The same for one that runs, or would if it got a processor.
const CROWDED: Duration = Duration::from_secs(2);

/// A thread that is attached.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) pid: Pid,
    /// How it stopped; `None`: not yet.
    pub(crate) stand: Option<Stand>,
    /// Where it slept before it was told to stop: afterwards nobody can tell.
    pub(crate) wait_channel: String,
}

/// What a freeze has got so far.
#[derive(Debug)]
pub(crate) struct Freezing<'a> {
    calls: &'a Calls,
    scope: Scope,
    by: Deadline,
    caller: Pid,
    tracer: Tid,
    began: Instant,
    /// When the last thread has stopped, or a new one was met.
    news: Instant,
    attached: BTreeMap<Tid, Attached>,
    /// What is left of dead tasks; they cannot be attached.
    dead: BTreeSet<Tid>,
    /// Attached by the kernel at their birth, and not yet met by a scan.
    born: BTreeSet<Tid>,
    /// The processes that the last scan saw, parents first, with their threads.
    seen: Vec<(Pid, Vec<Tid>)>,
    /// The parents of those that are below another one of them, as that scan saw them.
    parents: BTreeMap<Pid, (Pid, Tid)>,
    /// Needed as soon as a process has more than one thread.
    undertaker: Option<Undertaker>,
    /// A thread in uninterruptible sleep that was left alone for now.
    asleep: Option<(Pid, Tid)>,
    listings: tasks::Listings,
    /// Of the processes below, only what is left of children of ours.
    alone: bool,
}

/// A frozen scope.
#[derive(Debug)]
pub(crate) struct Caught {
    pub(crate) processes: Vec<FrozenProcess>,
    pub(crate) threads: BTreeMap<Tid, Attached>,
    /// Who is the parent of those that are below another one of them, seen with all of them stopped.
    pub(crate) parents: BTreeMap<Pid, (Pid, Tid)>,
    /// Nothing stood still before.
    pub(crate) since: Instant,
}

enum Attempt {
    /// Attached now.
    New,
    /// The kernel attached it at its birth.
    Born,
    /// Left alone until it leaves uninterruptible sleep.
    Asleep,
    /// Dead, but not yet gone.
    Dead,
    /// Gone.
    Gone,
}

impl<'a> Freezing<'a> {
    pub(crate) fn new(calls: &'a Calls, scope: Scope, by: Deadline) -> Self {
        Self {
            calls,
            scope,
            by,
            caller: Pid(nix::unistd::getpid().as_raw()),
            tracer: Tid(nix::unistd::gettid().as_raw()),
            began: Instant::now(),
            news: Instant::now(),
            attached: BTreeMap::new(),
            dead: BTreeSet::new(),
            born: BTreeSet::new(),
            seen: Vec::new(),
            parents: BTreeMap::new(),
            undertaker: None,
            asleep: None,
            listings: tasks::Listings::default(),
            alone: false,
        }
    }

    /// Only the process at the top.
    pub(crate) fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// Stops all or none. On an error the threads that could not be let go (they have not stopped, the kernel lets
    /// go only of stopped ones) are handed back.
    pub(crate) fn catch(mut self) -> std::result::Result<Caught, (MechanismError, Vec<Tid>)> {
        match self.refuse_own_ancestry().and_then(|()| self.stop_all()) {
            Ok(processes) => Ok(Caught { processes, threads: self.attached, parents: self.parents, since: self.began }),
            Err(error) => Err((error, self.let_go())),
        }
    }

    /// Nothing is touched when the caller stands in the scope. A keeper's checkpointer, its child, does not.
    fn refuse_own_ancestry(&self) -> Result<()> {
        let parent = parent_of(self.caller);
        let (top, mut pid) = match self.scope {
            Scope::Tree(top) => (top, self.caller),
            Scope::Below(top) if parent == top => return Ok(()),
            Scope::Below(top) => (top, parent),
        };
        while pid.0 > 0 {
            if pid == top {
                return Err(MechanismError::HoldsCaller { pid: self.caller });
            }
            pid = parent_of(pid);
        }
        Ok(())
    }

    fn stop_all(&mut self) -> Result<Vec<FrozenProcess>> {
        let mut patience = Patience::until(self.by);
        loop {
            let fresh = self.scan()?;
            let moved = self.wait_for_stops(&mut patience)?;
            let all = self.asleep.is_none() && self.attached.values().all(|a| a.stand.is_some());
            if all && fresh == 0 && !moved && self.still_stopped()? {
                break;
            }
            let idle = fresh == 0 && !moved;
            if !idle {
                self.news = Instant::now();
            }
            if (idle && !patience.wait()) || Instant::now() >= self.by.0 || self.is_stuck() {
                return Err(self.late());
            }
        }
        self.release_strays()?;
        self.processes()
    }

    /// Looks for tasks of the scope and attaches to those that are new; tells how many were.
    fn scan(&mut self) -> Result<usize> {
        let mut fresh = 0;
        self.seen.clear();
        self.parents.clear();
        self.asleep = None;
        let mut met = BTreeSet::new();
        let mut queue: VecDeque<Pid> = match self.scope {
            Scope::Tree(top) => VecDeque::from([top]),
            Scope::Below(top) => self.children_of_all(top)?.into(),
        };
        while let Some(pid) = queue.pop_front() {
            if pid == self.caller {
                return Err(MechanismError::HoldsCaller { pid });
            }
            if !met.insert(pid) {
                continue;
            }
            let tids = self.listings.threads(pid).map_err(|e| proc_failure("listing threads", pid, e))?;
            if tids.is_empty() {
                if self.scope == Scope::Tree(pid) {
                    return Err(gone("freezing it", pid.leader()));
                }
                if procfs::hidden(pid) {
                    return Err(MechanismError::NotPermitted { tid: pid.leader() });
                }
                continue;
            }
            if tids.len() > 1 {
                self.look_after(pid)?;
            }
            for &tid in &tids {
                fresh += usize::from(self.meet(pid, tid)?);
            }
            for &tid in &tids {
                if self.attached.get(&tid).is_some_and(|a| a.stand.is_some()) {
                    let mut below = children(pid, tid)?;
                    below.retain(|child| !self.alone || twin::is_remains(*child));
                    self.parents.extend(below.iter().map(|child| (*child, (pid, tid))));
                    queue.extend(below);
                }
            }
            self.seen.push((pid, tids));
        }
        Ok(fresh + usize::from(self.listings.look_again()))
    }

    fn children_of_all(&mut self, top: Pid) -> Result<Vec<Pid>> {
        let tids = self.listings.threads(top).map_err(|e| proc_failure("listing threads", top, e))?;
        if tids.is_empty() {
            return Err(gone("freezing what is below it", top.leader()));
        }
        let mut all = Vec::new();
        for tid in tids {
            all.extend(children(top, tid)?);
        }
        all.retain(|child| *child != self.caller);
        Ok(all)
    }

    /// Attaches to a thread unless it is known. True when it is new.
    fn meet(&mut self, pid: Pid, tid: Tid) -> Result<bool> {
        self.born.remove(&tid);
        if self.attached.contains_key(&tid) {
            return Ok(false);
        }
        if self.dead.contains(&tid) {
            if tasks::state(pid, tid).is_none_or(tasks::dead) {
                return Ok(false);
            }
            // Another thread of its process has executed a program, and with that has taken its number.
            self.dead.remove(&tid);
        }
        let wait_channel = tasks::wait_channel(pid, tid);
        match self.attempt(pid, tid, &wait_channel)? {
            Attempt::New => {
                self.note(pid, tid, wait_channel);
                // When it is gone the wait will find it missing.
                forgive_dead(self.calls.interrupt(tid))?;
                Ok(true)
            }
            Attempt::Born => {
                self.note(pid, tid, wait_channel);
                Ok(true)
            }
            Attempt::Asleep => {
                self.asleep = Some((pid, tid));
                Ok(false)
            }
            Attempt::Dead => {
                self.dead.insert(tid);
                if self.traced_by_us(pid, tid) {
                    // Born traced, dead before it was met: nobody else can collect it.
                    bury(self.calls, tid);
                }
                Ok(true)
            }
            Attempt::Gone => Ok(true),
        }
    }

    fn look_after(&mut self, pid: Pid) -> Result<()> {
        let undertaker = match self.undertaker.take() {
            Some(undertaker) => undertaker,
            None => Undertaker::start().map_err(|e| proc_failure("starting a thread", pid, e))?,
        };
        undertaker.look_after(pid);
        self.undertaker = Some(undertaker);
        Ok(())
    }

    fn note(&mut self, pid: Pid, tid: Tid, wait_channel: String) {
        let attached = Attached { pid, stand: None, wait_channel };
        self.attached.insert(tid, attached);
    }

    fn attempt(&self, pid: Pid, tid: Tid, wait_channel: &str) -> Result<Attempt> {
        /// A first thread that has ended, for another one of its process to become the program, cannot be attached to; the
        /// attempt waits for the end of that exec, and then the number is alive again. This often is enough for a program
        /// that does nothing else.
        const REPLACED: u32 = 16;
        // A running tracee cannot be let go again. So a sleep that no signal ends is waited out unattached, but for the
        // parent of a vfork child, which might never be caught awake.
        let may_be_deep = !tasks::ended_by_signals(wait_channel) && !tasks::waits_for_vfork(wait_channel);
        if may_be_deep && tasks::state(pid, tid) == Some('D') {
            return Ok(Attempt::Asleep);
        }
        let mut denied = 0;
        loop {
            match self.calls.seize(tid, OPTIONS) {
                Ok(()) => return Ok(Attempt::New),
                Err(Errno::ESRCH) => return Ok(Self::dead_or_gone(pid, tid)),
                Err(Errno::EPERM) => match self.not_permitted(pid, tid) {
                    Err(MechanismError::NotPermitted { .. }) if denied < REPLACED => denied += 1,
                    outcome => return outcome,
                },
                Err(errno) => return Err(failure("attaching to it", tid, errno)),
            }
        }
    }

    fn dead_or_gone(pid: Pid, tid: Tid) -> Attempt {
        match tasks::state(pid, tid) {
            Some(state) if tasks::dead(state) => Attempt::Dead,
            _ => Attempt::Gone,
        }
    }

    fn traced_by_us(&self, pid: Pid, tid: Tid) -> bool {
        tasks::status(pid, tid).is_some_and(|status| status.tracer == self.tracer.0)
    }

    fn not_permitted(&self, pid: Pid, tid: Tid) -> Result<Attempt> {
        let Some(status) = tasks::status(pid, tid) else {
            return Ok(Attempt::Gone);
        };
        if tasks::state(pid, tid).is_none_or(tasks::dead) {
            return Ok(Self::dead_or_gone(pid, tid));
        }
        if status.tracer == self.tracer.0 {
            return Ok(Attempt::Born);
        }
        if status.tracer != 0 {
            let tracer = Pid(status.tracer);
            return Err(MechanismError::Traced { tid, tracer });
        }
        Err(MechanismError::NotPermitted { tid })
    }

    /// Waits while stops come in; gives up for a new scan when none came for a while. True when any came.
    fn wait_for_stops(&mut self, patience: &mut Patience) -> Result<bool> {
        /// Looks at all without news before the tree is scanned again.
        const QUIET: u32 = 100;
        let mut moved = false;
        let mut quiet = 0;
        loop {
            let waiting: Vec<Tid> =
                self.attached.iter().filter(|(_, a)| a.stand.is_none()).map(|(tid, _)| *tid).collect();
            if waiting.is_empty() || quiet > QUIET {
                return Ok(self.drop_replaced(&waiting) || moved);
            }
            let mut news = false;
            for tid in waiting {
                news |= self.look_at(tid)?;
            }
            moved |= news;
            if news {
                quiet = 0;
                patience.renew();
                self.news = Instant::now();
            } else {
                quiet += 1;
                if !patience.wait() || self.is_stuck() {
                    return Err(self.late());
                }
            }
        }
    }

    /// Whether others have stood still long enough for those that do not stop.
    fn is_stuck(&self) -> bool {
        let waited = self.news.elapsed();
        if waited < STANDING || self.attached.values().all(|a| a.stand.is_none()) {
            return false;
        }
        let mut running = self.attached.iter().filter(|(_, a)| a.stand.is_none());
        let sleeps = running.any(|(tid, attached)| tasks::state(attached.pid, *tid) == Some('D'));
        waited >= CROWDED || self.asleep.is_some() || sleeps
    }

    /// Forgets numbers that a thread nobody has attached to has taken over by an exec: the next scan meets it. A child of
    /// this very process is otherwise waited for as if it were still traced. True when there were any.
    fn drop_replaced(&mut self, waiting: &[Tid]) -> bool {
        let before = self.attached.len();
        for tid in waiting {
            if self.attached.get(tid).is_some_and(|attached| !self.traced_by_us(attached.pid, *tid)) {
                self.attached.remove(tid);
            }
        }
        self.attached.len() < before
    }

    /// Looks at a thread that has not stopped. True when something happened to it.
    fn look_at(&mut self, tid: Tid) -> Result<bool> {
        match self.calls.look(tid) {
            Ok(Seen::Nothing) => Ok(false),
            Ok(Seen::Stopped(status)) => {
                self.stopped(tid, status)?;
                Ok(true)
            }
            Ok(Seen::Exited(_) | Seen::Killed(_)) | Err(MechanismError::Gone { .. }) => {
                self.forget(tid);
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    fn stopped(&mut self, tid: Tid, status: i32) -> Result<()> {
        let (signal, event) = (status & 0xff, status >> 8);
        if event == EVENT_STOP {
            let stand = match signal {
                libc::SIGTRAP => Stand::Running,
                signal => Stand::Stopped(signal),
            };
            if let Some(attached) = self.attached.get_mut(&tid) {
                attached.stand = Some(stand);
                return forgive_dead(waits::repeat_ended_call(self.calls, attached.pid, tid));
            }
            return Ok(());
        }
        // Registers of a clone event would be overwritten on return, and a signal stop is not a place to stay: on to the
        // stop that was asked for. Any stop forgets a pending interrupt, hence once more.
        if event != 0 {
            let born = self.calls.event_message(tid)?;
            if let Ok(born) = i32::try_from(born) {
                self.born.insert(Tid(born));
            }
        }
        let passed_on = if event == 0 { signal } else { 0 };
        let went_on = self.calls.interrupt(tid).and_then(|()| self.calls.cont(tid, passed_on));
        forgive_dead(went_on)
    }

    /// A dead thread: hands its report on, but leaves a child of this very process to whoever waits for it.
    fn forget(&mut self, tid: Tid) {
        if self.attached.remove(&tid).is_some() {
            bury(self.calls, tid);
        }
    }

    /// A sibling's exec takes over the leader's number, so a thread that had stopped may run again.
    fn still_stopped(&mut self) -> Result<bool> {
        let mut all = true;
        let tids: Vec<Tid> = self.attached.keys().copied().collect();
        for tid in tids {
            match self.calls.look(tid) {
                Ok(Seen::Stopped(status)) if status >> 8 == EVENT_STOP => {}
                Ok(Seen::Exited(_) | Seen::Killed(_)) | Err(MechanismError::Gone { .. }) => {
                    self.forget(tid);
                    all = false;
                }
                Ok(Seen::Nothing | Seen::Stopped(_)) => {
                    if let Some(attached) = self.attached.get_mut(&tid) {
                        attached.stand = None;
                    }
                    drop(self.calls.interrupt(tid));
                    all = false;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Tasks attached at birth that have left the scope (their parent died at once): let go.
    fn release_strays(&mut self) -> Result<()> {
        let inside: BTreeSet<Tid> = self.seen.iter().flat_map(|(_, t)| t).copied().collect();
        let mut strays = std::mem::take(&mut self.born);
        strays.extend(self.attached.keys().copied());
        let strays: Vec<Tid> = strays.difference(&inside).copied().collect();
        for (done, tid) in strays.iter().enumerate() {
            if !let_go_of(self.calls, *tid, self.by) {
                // All that are left are let go with the others.
                self.born.extend(strays.iter().skip(done));
                return Err(late("stop", Pid(tid.0), *tid));
            }
            self.attached.remove(tid);
        }
        Ok(())
    }

    fn processes(&self) -> Result<Vec<FrozenProcess>> {
        let mut processes = Vec::new();
        for (pid, tids) in &self.seen {
            let threads: Vec<Tid> = tids.iter().copied().filter(|tid| self.attached.contains_key(tid)).collect();
            let zombie = threads.is_empty();
            if zombie && self.scope == Scope::Tree(*pid) {
                return Err(gone("freezing it", pid.leader()));
            }
            processes.push(FrozenProcess { pid: *pid, threads, zombie });
        }
        Ok(processes)
    }

    fn late(&self) -> MechanismError {
        let running = self.attached.iter().find(|(_, a)| a.stand.is_none());
        let (pid, tid) = match (running, self.asleep) {
            (Some((tid, attached)), _) => (attached.pid, *tid),
            (None, Some(asleep)) => asleep,
            (None, None) => match self.scope {
                Scope::Tree(pid) | Scope::Below(pid) => (pid, pid.leader()),
            },
        };
        late("stop", pid, tid)
    }

    fn let_go(mut self) -> Vec<Tid> {
        let threads = std::mem::take(&mut self.attached);
        let tids = threads.keys().copied().chain(std::mem::take(&mut self.born));
        release::all(self.calls, tids.collect(), crate::grace())
    }
}

/// The parent of a process.
pub(crate) fn parent_of(pid: Pid) -> Pid {
    Pid(tasks::process_status(pid).map_or(0, |status| status.parent))
}

/// A task that somebody kills in the middle is no failure.
pub(crate) fn forgive_dead(result: Result<()>) -> Result<()> {
    match result {
        Err(MechanismError::Gone { .. }) => Ok(()),
        other => other,
    }
}

fn children(pid: Pid, tid: Tid) -> Result<Vec<Pid>> {
    procfs::children(pid, tid).map_err(|e| proc_failure("listing children", pid, e))
}

fn gone(operation: &'static str, tid: Tid) -> MechanismError {
    MechanismError::Gone { operation, tid }
}

fn proc_failure(operation: &'static str, pid: Pid, source: io::Error) -> MechanismError {
    MechanismError::System { operation, tid: pid.leader(), source }
}

/// The error of a thread that did not do something in time, with what it was seen doing.
pub(crate) fn late(operation: &'static str, pid: Pid, tid: Tid) -> MechanismError {
    let state = tasks::state(pid, tid).unwrap_or('?');
    let channel = tasks::wait_channel(pid, tid);
    let state = match channel.as_str() {
        "" => format!("state {state}"),
        channel => format!("state {state} in {channel}"),
    };
    MechanismError::Late { operation, tid, state }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a thread does that executes a program when the first one of its process has ended.
    #[test]
    fn a_number_that_comes_to_life_again_is_stopped() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid(child.id().cast_signed());
        let ptrace = crate::Ptrace::new(crate::Faults::default());
        let by = Deadline(Instant::now() + Duration::from_mins(1));
        let mut freezing = Freezing::new(&ptrace.calls, Scope::Tree(pid), by);
        freezing.dead.insert(pid.leader());
        let caught = freezing.catch();
        let left = caught.as_ref().map_or_else(
            |(_, left)| left.clone(),
            |caught| release::all(&ptrace.calls, caught.threads.keys().copied().collect(), by),
        );
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(left, []);
        let caught = caught.unwrap();
        assert_eq!(caught.processes, [FrozenProcess { pid, threads: vec![pid.leader()], zombie: false }]);
    }
}
