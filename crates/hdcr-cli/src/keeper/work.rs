//! A worker at work for a keeper: what it does, how long it may take, and what is said when it is slow.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::process::Pid;

use super::Keeper;
use super::asker::Asker;
use super::filling;
use crate::duration;
use crate::failure::{Class, Failure};
use crate::foreground::KILL_LIMIT;
use crate::kinds::Then;
use crate::process;
use crate::progress::{Bar, Doing, Step};
use crate::slow;
use crate::task::{Checkpointed, Reply};
use crate::upright::{self, Stopped};
use crate::worker::Worker;

/// What a worker is doing.
#[derive(Debug)]
pub(super) enum Errand {
    /// A checkpoint: the run time at its beginning, and who asked for it.
    Checkpoint { at: Duration, then: Then, thawed: bool, askers: Vec<Asker> },
    /// A restore, with its progress, and whether files are rolled back and the program may run.
    Restore { bar: Bar, goes_next: bool },
    /// The memory of a program that was restored from this checkpoint and runs already.
    Filling { number: u64 },
}

/// A worker at work.
#[derive(Debug)]
pub(crate) struct Work {
    pub(super) worker: Worker,
    pub(super) errand: Errand,
    pub(super) began: Instant,
    /// It is killed when it has not come further for so long.
    pub(super) limit: Duration,
    pub(super) deadline: Instant,
    /// Its end of the channel is open.
    pub(super) listens: bool,
    /// How long whoever asked for it lets the program stand still; `None`: as the job says.
    pub(super) timeout: Option<Duration>,
    /// It has stopped the program, or is about to, and has so long to let it go on.
    pub(super) halting: Option<Duration>,
    /// Since when it has been stopping the program, and does not come further.
    pub(super) stopping: Option<Instant>,
    /// It stays when it has answered, for the next checkpoint.
    pub(super) stays: bool,
    /// What it does.
    pub(super) step: Option<Step>,
    pub(super) answer: Option<Reply>,
    pub(super) stopped: Stopped,
}

impl Work {
    pub(super) fn new(worker: Worker, errand: Errand, limit: Duration) -> Self {
        let now = Instant::now();
        let deadline = now + limit;
        let (listens, stays, timeout, halting, step, answer) = (true, false, None, None, None, None);
        Self {
            worker,
            errand,
            began: now,
            limit,
            deadline,
            listens,
            timeout,
            halting,
            stopping: None,
            stays,
            step,
            answer,
            stopped: Stopped::default(),
        }
    }

    /// Takes in what only this has to know; hands back what else it is.
    pub(super) fn take_in(&mut self, reply: Reply, timeout: Duration) -> Option<Reply> {
        match reply {
            Reply::Progress(step) => {
                self.is_at(step);
                match &mut self.errand {
                    Errand::Restore { bar, .. } => bar.teller().at(step),
                    Errand::Checkpoint { askers, .. } => askers.iter_mut().for_each(|asker| asker.tell(step)),
                    Errand::Filling { .. } => {}
                }
            }
            Reply::GoesNext => {
                if let Errand::Restore { goes_next, .. } = &mut self.errand {
                    *goes_next = true;
                }
            }
            // Its files are; what counts is how the filling ends.
            Reply::Settled => self.goes_on(),
            // Nothing that comes later is for it.
            Reply::Leaving => self.stays = false,
            Reply::Halting => self.halts(timeout),
            Reply::Asking
            | Reply::At(_)
            | Reply::Frozen
            | Reply::Thawed
            | Reply::Checkpointed(_)
            | Reply::Restored(_)
            | Reply::Filled(_)
            | Reply::Failed(_) => return Some(reply),
        }
        None
    }

    /// The worker stays when it has answered.
    pub(super) fn staying(self, stays: bool) -> Self {
        Self { stays, ..self }
    }

    /// Whether it has said all that it will say, and lives on.
    pub(super) fn is_done(&self) -> bool {
        self.stays && self.listens && matches!(self.answer, Some(Reply::Checkpointed(_) | Reply::Failed(_)))
    }

    /// It has come further.
    pub(super) fn goes_on(&mut self) {
        if self.halting.is_none() {
            self.deadline = Instant::now() + self.limit;
        }
    }

    /// The program stands still from now on, and that must not last.
    pub(super) fn halts(&mut self, timeout: Duration) {
        let timeout = self.timeout.unwrap_or(timeout);
        self.halting = Some(timeout);
        self.deadline = Instant::now() + timeout + KILL_LIMIT;
    }

    /// What it does now.
    pub(super) fn is_at(&mut self, step: Step) {
        self.goes_on();
        self.step = Some(step);
        self.stopping = (step.doing == Doing::Stopping).then(|| self.stopping.unwrap_or_else(Instant::now));
    }

    /// The program stands still.
    pub(super) fn has_frozen(&mut self) {
        self.stopping = None;
    }

    /// The program that it restored runs; its memory is still to come.
    pub(super) fn fills(&mut self, number: u64) {
        self.errand = Errand::Filling { number };
        self.answer = None;
        self.limit = filling::LIMIT;
        self.goes_on();
    }

    /// Kills a worker that somebody has stopped (`SIGSTOP`) while the program may stand still for it.
    pub(super) fn must_stand_upright(&mut self) {
        let capturing = matches!(self.errand, Errand::Checkpoint { thawed: false, .. });
        let pid = Pid::from_raw(self.worker.pid()).filter(|_| capturing && self.answer.is_none());
        if pid.is_some_and(|pid| self.stopped.too_long(pid)) {
            process::signal(self.worker.pid(), Signal::SIGKILL as i32);
            self.answer = Some(Reply::Failed(upright::failure()));
        }
    }

    /// The program goes on.
    pub(super) fn has_thawed(&mut self) {
        (self.halting, self.stopping) = (None, None);
        self.goes_on();
    }

    /// Whether files are rolled back, and the program may have run without our knowing it.
    pub(super) fn may_have_let_go(&self) -> bool {
        matches!(self.errand, Errand::Restore { goes_next: true, .. }) && self.answer.is_none()
    }

    /// Its time is over: it is killed, and has failed unless it has said something else.
    pub(super) fn is_late(&mut self) {
        process::signal(self.worker.pid(), Signal::SIGKILL as i32);
        self.deadline = Instant::now() + KILL_LIMIT;
        let (what, remedy) = match self.errand {
            Errand::Checkpoint { .. } => {
                ("checkpoint", "look whether the store is slow or stands still; --timeout gives more")
            }
            Errand::Restore { .. } | Errand::Filling { .. } => {
                ("restore", "`timeout` of [restore] in the configuration file gives it more time")
            }
        };
        if self.may_have_let_go() {
            // What it does not say any more tells what to do.
            return;
        }
        let limit = self.halting.unwrap_or(self.limit);
        let message = format!("the {what} has not come further for {}", duration::show(limit));
        self.answer.get_or_insert_with(|| Reply::Failed(Failure::new(Class::Failed, "late", message).remedy(remedy)));
    }

    /// What a checkpoint does that takes a while.
    pub(super) fn slowly(&self) -> Option<String> {
        let took = self.began.elapsed();
        let step = self.step.filter(|_| matches!(self.errand, Errand::Checkpoint { .. }) && took >= slow::PATIENCE)?;
        let tree = || {
            let own = std::process::id().cast_signed();
            process::below(own).into_iter().filter(|pid| *pid != self.worker.pid()).collect()
        };
        Some(format!("a checkpoint has been at work for {}: {}", duration::show(took), slow::doing(step, tree)))
    }

    /// Whether nobody waits for this worker.
    pub(super) fn may_be_left(&self) -> bool {
        matches!(&self.errand, Errand::Checkpoint { then: Then::GoOn, askers, .. } if askers.is_empty())
    }

    /// Whether the end of the program makes it pointless to wait for this worker.
    pub(super) fn useless_after_death(&self) -> bool {
        matches!(self.errand, Errand::Checkpoint { thawed: false, then: Then::GoOn, .. })
    }
}

impl Keeper {
    /// A checkpoint took longer than the time to the next one: told once, with what took it.
    pub(super) fn note_slow(&mut self, done: &Checkpointed, took: Duration) {
        /// At such a pace it is no surprise, and concerns the curious.
        const PACE: Duration = Duration::from_secs(1);
        let every = self.every();
        self.slow = (took > every).then(|| {
            let (took, every) = (duration::show(took), duration::show(every));
            let parts = done.longest();
            format!("the last checkpoint took {took} ({parts}), longer than the {every} between two")
        });
        let Some(slow) = self.slow.as_ref().filter(|_| !self.told_slow) else { return };
        let text = format!("job {}: {slow}; they come as often as they can", self.plan.name);
        if took >= PACE {
            self.note(&text);
        } else {
            self.detail(&text);
        }
        self.told_slow = took >= PACE || self.output.verbose > 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, late_work};
    use super::*;
    use crate::task::Took;

    #[test]
    fn a_checkpoint_that_takes_longer_than_the_interval_is_told_of_with_what_took_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = testing::keeper(folder.path());
        let took = vec![Took { part: "writing".to_owned(), us: 7_200_000_000 }];
        let done = Checkpointed { took, ..Checkpointed::default() };
        keeper.checkpointed(&done, Duration::ZERO, Duration::from_hours(2));
        let slow = keeper.slow.clone().unwrap_or_default();
        let words = "the last checkpoint took 2 h 0 min (writing 2 h 0 min), longer than the 1 h 0 min between two";
        assert!(slow == words && keeper.told_slow, "{slow}");
        keeper.checkpointed(&done, Duration::ZERO, Duration::from_secs(1));
        assert!(keeper.slow.is_none() && keeper.told_slow, "it is told once");
    }

    #[test]
    fn a_checkpoint_that_takes_a_while_is_told_of_with_what_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = testing::keeper(folder.path());
        let far = late_work(&mut keeper);
        far.send(&Reply::Progress(Step { doing: Doing::Writing, done: 1 << 20, total: 2 << 20, round: 0 }), &[])
            .unwrap();
        keeper.on_answer().unwrap();
        let work = keeper.work.as_mut().unwrap();
        assert_eq!(work.slowly(), None);
        work.began = work.began.checked_sub(Duration::from_mins(2)).unwrap();
        let told = work.slowly().unwrap();
        assert!(told.ends_with(": writing the checkpoint, 1.0 MiB of 2.0 MiB") && told.contains("2 min 0 s"), "{told}");
    }
}
