//! A checkpoint or a restore in a process of its own, so that its crash harms nobody and a restore is cloned from something small.
//!
//! The worker is this same program. It gets its task over a socket that is its standard input, answers on it, and ends. It
//! stays in the process group of the command, because a restored tree is born into that group (a detached one into a group of
//! its own), but no signal of a terminal reaches it. When the command dies in a checkpoint, it dies; in a restore it leaves nothing half done: it gives
//! up before the program is let go, and puts files back, and comes to its end afterwards.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdcr_engine::progress::Progress;
use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus};
use rustix::time::Timespec;

use crate::channel::Channel;
use crate::failure::{Class, Failure, Result};
use crate::foreground::KILL_LIMIT;
use crate::keeper::PREPARING;
use crate::namespace;
use crate::parts::{self, Session};
use crate::process;
use crate::progress::Doing;
use crate::shortage::{self, Shortage};
use crate::task::{Permit, Reply, Task};
use crate::told::Touched;

/// Code of a failure: the keeper has not answered.
const SILENT: &str = "keeper-silent";
/// What a worker has begun to say it says within this time; it is waited for its words elsewhere, with other limits.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How often a worker is started anew because its pid is one that the image needs.
const TRIES: usize = 8;

/// A worker as its starter sees it.
#[derive(Debug)]
pub(crate) struct Worker {
    pid: i32,
    channel: Channel,
    /// As it was when it began its task.
    shortage: Shortage,
}

impl Worker {
    /// Starts a worker whose pid is not in `avoid` and gives it its task.
    pub(crate) fn start(task: &Task, stdio: &[BorrowedFd<'_>], avoid: &BTreeSet<i32>) -> Result<Self> {
        // Those in the way live until the right one is found, else it would get one of their numbers.
        let mut in_the_way = Vec::new();
        let found = loop {
            let worker = Self::spawn(task)?;
            let Some(last) = needed_from(avoid, worker.pid) else { break Ok(worker) };
            namespace::next_pid_after(last);
            in_the_way.push(worker);
            if in_the_way.len() == TRIES {
                break Err(Failure::refused("pid-in-use", "no process number is free that the image does not need")
                    .remedy("use --new-pids"));
            }
        };
        in_the_way.into_iter().for_each(Self::end);
        found?.with(task, stdio)
    }

    /// Gives it a task, the first or the next one. When that fails it is ended.
    pub(crate) fn with(mut self, task: &Task, stdio: &[BorrowedFd<'_>]) -> Result<Self> {
        self.shortage = Shortage::of(self.pid);
        match self.channel.send(task, stdio) {
            Ok(()) => Ok(self),
            Err(failure) => {
                let failure = if self.channel.is_closed() { self.died() } else { failure };
                self.end();
                Err(failure)
            }
        }
    }

    fn spawn(task: &Task) -> Result<Self> {
        let (near, far) = Channel::pair()?;
        near.wait_at_most(ANSWER_LIMIT)?;
        let mut command = process::this_program();
        command.args(crate::output::verbosity()).arg("__worker").stdin(Stdio::from(OwnedFd::from(far)));
        if matches!(task, Task::Restore(task) if task.detach) {
            // The tree is born into the group of its worker: in that of this command, the end of the last other member (of
            // the rest of a pipeline) would hang up what is stopped.
            command.process_group(0);
        }
        let child = command.spawn().map_err(Failure::system("starting a worker process"))?;
        Ok(Self { pid: child.id().cast_signed(), channel: near, shortage: Shortage::default() })
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells it what it has asked for: which files the program has worked on, or whether that may be stopped.
    pub(crate) fn tell<T: serde::Serialize>(&self, answer: &T) -> Result<()> {
        self.channel.send(answer, &[])
    }

    /// Whether its next answer, or its end, is there.
    pub(crate) fn has_said(&self) -> bool {
        self.channel.is_ready()
    }

    /// Its next answer, which has come or comes soon; its silent death is a failure.
    pub(crate) fn answer(&self) -> Result<Reply> {
        match self.channel.receive()? {
            Some((reply, _)) => Ok(reply),
            None => Err(self.died()),
        }
    }

    /// Waits until it has said that files are settled, for so long at most; false when it will not any more.
    pub(crate) fn settles(&self, limit: Duration) -> bool {
        let left = Timespec::try_from(limit).unwrap_or_default();
        matches!(rustix::event::poll(&mut [PollFd::new(&self.channel, PollFlags::IN)], Some(&left)), Ok(1))
            && matches!(self.answer(), Ok(Reply::Settled))
    }

    fn died(&self) -> Failure {
        if self.shortage.has_killed() {
            return shortage::failure(self.pid);
        }
        Failure::new(Class::Internal, "worker-died", format!("worker process {} died", self.pid))
            .remedy("the program is as it was before; run again with -v, and report it")
    }

    /// Waits until it has nothing more to say, for so long at most; `true` when it came to its own end, with success.
    pub(crate) fn comes_to_its_end(self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).unwrap_or_default();
            match rustix::event::poll(&mut [PollFd::new(&self.channel, PollFlags::IN)], Some(&left)) {
                Ok(0) => break,
                Ok(_) if self.answer().is_err() => break,
                Ok(_) | Err(_) => {}
            }
        }
        process::signal(self.pid, Signal::SIGKILL as i32);
        reap(self.pid, KILL_LIMIT).is_some_and(|status| status.exit_status() == Some(0))
    }

    /// Kills it when it still lives, and reaps it.
    pub(crate) fn end(self) {
        process::signal(self.pid, Signal::SIGKILL as i32);
        if reap(self.pid, KILL_LIMIT).is_none() {
            tracing::debug!(pid = self.pid, "the worker was reaped already, or does not end");
        }
    }
}

/// How a child has ended that was killed. One that waits inside the kernel, as for a network file system that does not answer,
/// may take for ever: after the limit it is left to whoever reaps all children.
fn reap(pid: i32, limit: Duration) -> Option<WaitStatus> {
    let pid = Pid::from_raw(pid)?;
    let end = Instant::now() + limit;
    if let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).unwrap_or_default();
            match rustix::event::poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
    }
    rustix::process::waitpid(Some(pid), WaitOptions::NOHANG).ok().flatten().map(|(_, status)| status)
}

impl AsFd for Worker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// What the worker process itself does.
pub(crate) fn work() -> Result<()> {
    process::take_name();
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(Failure::system("tying the worker to its command"))?;
    SigSet::all().thread_block().map_err(Failure::system("blocking signals"))?;
    raise_limits();
    let channel = Arc::new(Channel::on_stdin()?);
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    rustix::stdio::dup2_stdin(null.map_err(Failure::system("opening /dev/null"))?)
        .map_err(Failure::system("letting go of standard input"))?;
    let mut session = None;
    loop {
        let Some((task, stdio)) = channel.receive::<Task>()? else { return Ok(()) };
        if !perform(&channel, task, stdio, &mut session)? {
            return Ok(());
        }
    }
}

/// Whether a worker takes another task. Not when whoever gave this one has not answered in time, and may do so still: nothing
/// more can be heard on this channel. And not when threads are held that go on when this process ends.
fn stays(wanted: bool, reply: &Reply, session: &Session) -> bool {
    wanted && !matches!(reply, Reply::Failed(failure) if failure.code == SILENT) && !session.holds_late_threads()
}

/// Does one task. `false`: it was the last one.
fn perform(channel: &Arc<Channel>, task: Task, stdio: Vec<OwnedFd>, session: &mut Option<Session>) -> Result<bool> {
    let reply = match task {
        Task::Checkpoint(task) => {
            shortage::goes_first();
            let progress = progress(channel, task.progress);
            let session = session.get_or_insert_with(Session::new);
            let mut keeper = Keeper { channel, patience: task.by_gates };
            let done = parts::checkpoint(&task, session, &progress, &mut keeper);
            let reply = done.map_or_else(Reply::Failed, Reply::Checkpointed);
            let stays = stays(task.stays, &reply, session);
            if task.stays && !stays {
                // Said before the answer: who has that may give the next task at once.
                channel.send(&Reply::Leaving, &[])?;
            }
            channel.send(&reply, &[])?;
            return Ok(stays);
        }
        Task::Restore(task) => {
            let stdio = <[OwnedFd; 3]>::try_from(stdio)
                .map_err(|_| Failure::new(Class::Internal, "channel", "three descriptors were expected"))?;
            rustix::process::set_parent_process_death_signal(None)
                .map_err(Failure::system("untying the worker from its command"))?;
            let progress = progress(channel, task.progress);
            let mut told = |reply| {
                dies_before(&reply);
                let said = channel.send(&reply, &[]);
                if let (Some(patience), Reply::At(_)) = (task.by_gates, reply) {
                    return said.and_then(|()| permit(channel, patience));
                }
                said.unwrap_or_else(|failure| tracing::debug!(%failure, "nobody listens"));
                Ok(())
            };
            match parts::restore(&task, progress, stdio, channel.made_by(), &mut told) {
                Ok(None) => return Ok(false),
                Ok(Some(unfilled)) => {
                    if let Err(failure) = channel.send(&Reply::Settled, &[]) {
                        tracing::debug!(%failure, "nobody listens");
                    }
                    unfilled.fill(&Progress::default()).map_or_else(Reply::Failed, Reply::Filled)
                }
                Err(failure) => Reply::Failed(failure),
            }
        }
    };
    channel.send(&reply, &[])?;
    Ok(false)
}

/// For trials: dies when the tree that it restores runs and nobody has been told. Of when it is told by a FIFO.
#[expect(clippy::disallowed_methods, reason = "trials name the FIFO")]
fn dies_before(reply: &Reply) {
    let Some(fifo) = std::env::var_os("HDCR_TRIAL_DIE_UNTOLD").filter(|_| matches!(reply, Reply::Restored(_))) else {
        return;
    };
    if std::fs::read(fifo).is_ok_and(|word| word == b"die") {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).ok();
    }
}

/// Tells the starter how far the work is, a few times a second, when it wants to know.
fn progress(channel: &Arc<Channel>, wanted: bool) -> Progress {
    const BEAT: Duration = Duration::from_millis(100);
    if !wanted {
        return Progress::default();
    }
    let (channel, last) = (Arc::clone(channel), Mutex::new(Instant::now()));
    parts::steps_to(move |step| {
        let due = last.lock().is_ok_and(|mut last| {
            let due = last.elapsed() >= BEAT;
            if due {
                *last = Instant::now();
            }
            due
        });
        if due || step.doing == Doing::Settling {
            channel.offer(&Reply::Progress(step));
        }
    })
}

/// The soft limits of the caller's shell are not for this: all files of a whole tree are open in the worker at once, and
/// the tree is made with what is inherited from here. Every process of the tree gets its own limits back.
fn raise_limits() {
    use rustix::process::Resource;
    let all = [Resource::Nofile, Resource::As, Resource::Data, Resource::Stack, Resource::Memlock, Resource::Fsize];
    for resource in all {
        let limit = rustix::process::getrlimit(resource);
        let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
        if let Err(error) = rustix::process::setrlimit(resource, raised) {
            tracing::debug!(%error, ?resource, "a limit was not raised");
        }
    }
}

/// The last of the numbers of a program that a worker with this number, and what it starts, would take or come close to: threads
/// may have hundreds in a row. `None`: there is none.
fn needed_from(avoid: &BTreeSet<i32>, pid: i32) -> Option<i32> {
    /// So many a worker may have itself: threads, who stands by.
    const OWN: i32 = 32;
    let next = |from: i32| avoid.range(from..from.saturating_add(OWN)).next_back().copied();
    std::iter::successors(next(pid), |last| next(last.saturating_add(1))).last()
}

/// The keeper at the other end, who is told of a checkpoint.
struct Keeper<'a> {
    channel: &'a Channel,
    /// How long is waited at each gate, when there are gates.
    patience: Option<Duration>,
}

/// Waits for the word that the program may be stopped, or let go.
fn permit(channel: &Channel, limit: Duration) -> Result<()> {
    match heard::<Permit>(channel, limit, "the keeper does not say whether this may go on")? {
        Permit::Granted => Ok(()),
        Permit::Denied(failure) => Err(failure),
    }
}

impl parts::Listener for Keeper<'_> {
    fn tell(&mut self, reply: Reply) -> Result<()> {
        if let Err(failure) = self.channel.send(&reply, &[]) {
            // Then this process is about to die with its command.
            tracing::debug!(%failure, "nobody listens");
        }
        match (reply, self.patience) {
            (Reply::Asking, None) => permit(self.channel, PREPARING.saturating_mul(2)),
            // Others may be large: the program runs on meanwhile.
            (Reply::Asking, Some(patience)) => permit(self.channel, patience.saturating_mul(4)),
            (Reply::At(_), Some(patience)) => permit(self.channel, patience),
            _ => Ok(()),
        }
    }

    /// The program stands still, so this is not waited for for ever.
    fn touched(&mut self) -> Result<Vec<PathBuf>> {
        let cause = "the keeper does not answer while the program stands still";
        Ok(heard::<Touched>(self.channel, Duration::from_secs(2), cause)?.paths())
    }
}

/// What the keeper answers within a time.
fn heard<T: serde::de::DeserializeOwned>(channel: &Channel, limit: Duration, cause: &str) -> Result<T> {
    let silent = || Failure::new(Class::Changed, SILENT, cause);
    let mut polled = [PollFd::new(channel, PollFlags::IN)];
    let patience = Timespec::try_from(limit).map_err(|_| silent())?;
    match rustix::event::poll(&mut polled, Some(&patience)) {
        Ok(1) => Ok(channel.receive::<T>()?.ok_or_else(silent)?.0),
        _ => Err(silent()),
    }
}

#[cfg(test)]
impl Worker {
    /// One without a process, and its end of the channel.
    pub(crate) fn of_test() -> (Self, Channel) {
        let (near, far) = Channel::pair().unwrap();
        (Self { pid: 0, channel: near, shortage: Shortage::default() }, far)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_worker_stays_away_from_the_numbers_of_threads() {
        let avoid: BTreeSet<i32> = (100..300).chain([310, 500]).collect();
        let last = |pid| needed_from(&avoid, pid);
        assert_eq!([50, 80, 100, 299, 311, 469].map(last), [None, Some(310), Some(310), Some(310), None, Some(500)]);
    }

    use super::*;

    #[test]
    fn a_worker_that_does_not_end_is_not_waited_for() {
        let mut child = std::process::Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id().cast_signed();
        assert!(reap(pid, Duration::from_millis(20)).is_none());
        drop(child.stdin.take());
        assert_eq!(reap(pid, KILL_LIMIT).and_then(WaitStatus::exit_status), Some(0));
        assert!(reap(pid, KILL_LIMIT).is_none() && child.wait().is_err(), "it was reaped before");
    }
}
