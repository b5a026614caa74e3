//! A checkpoint that a worker takes from gate to gate, as the protocol orders.

use std::time::{Duration, Instant};

use hdcr_sync::ids::{Member, Stamp};
use hdcr_sync::manifest::{Share, ShareId};
use hdcr_sync::participant::{Event, Work};

use super::super::letter::Notice;
use super::super::shares::{self, Program};
use super::Agent;
use crate::failure::{Class, Failure, Result};
use crate::task::{CheckpointTask, Checkpointed, Gate, Permit, Reply, Target, Task, Who};
use crate::worker::Worker;

/// A worker that was told to give up has so long for it.
const LEAVING: Duration = Duration::from_secs(2);

/// A worker that takes a checkpoint.
#[derive(Debug)]
pub(super) struct Taker {
    pub(super) worker: Worker,
    stamp: Stamp,
    id: ShareId,
    step: Step,
    /// Whose programs there are in what was read.
    programs: Vec<Program>,
    /// It is killed then.
    pub(super) until: Option<Instant>,
}

/// Where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Looks, and copies ahead.
    Preparing,
    /// Waits for the word to stop the programs.
    Ready,
    Stopping,
    /// Waits for the word to read them.
    Stopped,
    Reading,
    /// Waits for the word to let them go.
    HasRead,
    /// Lets them go, and writes.
    Writing,
    /// Was told to give up.
    Leaving,
}

impl Step {
    /// The piece of work that fails when it fails here.
    fn work(self) -> Work {
        match self {
            Self::Preparing | Self::Ready => Work::Quiesce,
            Self::Stopping | Self::Stopped => Work::Freeze,
            Self::Reading | Self::HasRead => Work::Capture,
            Self::Writing | Self::Leaving => Work::Persist,
        }
    }
}

impl Agent {
    /// Starts a worker, which copies ahead what it can.
    pub(super) fn begin_taking(&mut self, stamp: Stamp) {
        let before = self.taker.take().map(|taker| taker.worker);
        // One that still ends would be one of the programs.
        before.into_iter().chain(self.spent.take()).for_each(Worker::end);
        let id = ShareId { round: stamp.round(), member: Member(self.me) };
        match self.start_taker(id) {
            Ok(worker) => {
                self.taker =
                    Some(Taker { worker, stamp, id, step: Step::Preparing, programs: Vec::new(), until: None });
            }
            Err(failure) => self.failed(Work::Quiesce, stamp, failure),
        }
    }

    fn start_taker(&self, id: ShareId) -> Result<Worker> {
        let target = Target::Directory(shares::begin(&self.life, id)?);
        let (who, files) = (Who::Below(std::process::id().cast_signed()), self.spec.files.clone());
        let task = CheckpointTask {
            asks: true,
            by_gates: Some(self.spec.lease.saturating_mul(2)),
            ..CheckpointTask::of_any(who, target, files, self.spec.lease, self.at_work.clone())
        };
        Worker::start(&Task::Checkpoint(task), &[], &std::collections::BTreeSet::new())
    }

    /// The word to stop the programs, or to read them.
    pub(super) fn next_gate(&mut self, work: &Work, stamp: Stamp) {
        let Some(taker) = self.taker.as_mut().filter(|taker| taker.stamp == stamp) else {
            return self.events.push_back(Event::Failed(work.clone(), stamp));
        };
        let next = match (taker.step, work) {
            (Step::Ready, Work::Freeze) => Step::Stopping,
            (Step::Stopped, Work::Capture) => Step::Reading,
            _ => return self.events.push_back(Event::Failed(work.clone(), stamp)),
        };
        taker.step = next;
        if let Err(failure) = taker.worker.tell(&Permit::Granted) {
            self.taker_failed(failure);
        }
    }

    /// The programs go on: with what was read, or else without.
    pub(super) fn thaw(&mut self) {
        match &mut self.taker {
            Some(taker) if taker.step == Step::HasRead => {
                taker.step = Step::Writing;
                if let Err(failure) = taker.worker.tell(&Permit::Granted) {
                    self.taker_failed(failure);
                }
            }
            _ => self.give_up_taking(),
        }
    }

    /// It writes already.
    pub(super) fn persist(&mut self, stamp: Stamp) {
        if self.taker.as_ref().is_none_or(|taker| taker.stamp != stamp || taker.step != Step::Writing) {
            self.events.push_back(Event::Failed(Work::Persist, stamp));
        }
    }

    /// Nothing comes of this one. One that has stopped the programs lets them go before it ends.
    pub(super) fn give_up_taking(&mut self) {
        let Some(taker) = &mut self.taker else { return };
        match taker.step {
            Step::Leaving => {}
            Step::Preparing | Step::Writing => {
                if let Some(taker) = self.taker.take() {
                    taker.worker.end();
                }
            }
            Step::Ready | Step::Stopping | Step::Stopped | Step::Reading | Step::HasRead => {
                taker.step = Step::Leaving;
                taker.until = Some(Instant::now() + LEAVING);
                let over = Failure::new(Class::Changed, "round-over", "the checkpoint was given up");
                if taker.worker.tell(&Permit::Denied(over)).is_err() {
                    taker.until = Some(Instant::now());
                }
            }
        }
    }

    pub(super) fn end_late_taker(&mut self, now: Instant) {
        if let Some(taker) = self.taker.take_if(|taker| taker.until.is_some_and(|until| until <= now)) {
            taker.worker.end();
        }
    }

    /// What the worker says.
    pub(super) fn on_taker(&mut self) {
        while let Some(taker) = self.taker.as_mut().filter(|taker| taker.worker.has_said()) {
            let (next, done) = match (taker.worker.answer(), taker.step) {
                (Ok(Reply::Failed(failure)) | Err(failure), _) => return self.taker_failed(failure),
                (Ok(Reply::Checkpointed(done)), Step::Writing) => return self.has_written(&done),
                (Ok(Reply::Asking), Step::Preparing) => (Step::Ready, Work::Quiesce),
                (Ok(Reply::At(Gate::Stopped)), Step::Stopping) => (Step::Stopped, Work::Freeze),
                (Ok(Reply::At(Gate::Read)), Step::Reading) => (Step::HasRead, Work::Capture),
                (Ok(_), _) => continue,
            };
            if next == Step::HasRead {
                // As they stand still now: some may end while it is written, and are alive in it.
                taker.programs = self.programs.all();
            }
            taker.step = next;
            self.events.push_back(Event::Done(done, taker.stamp));
        }
    }

    fn taker_failed(&mut self, failure: Failure) {
        let Some(taker) = self.taker.take() else { return };
        taker.worker.end();
        if taker.step != Step::Leaving {
            self.failed(taker.step.work(), taker.stamp, failure);
        }
    }

    fn has_written(&mut self, done: &Checkpointed) {
        let Some(taker) = self.taker.take() else { return };
        let completed = self.completed(taker.id, &taker.programs, done);
        self.spent = Some(taker.worker);
        match completed {
            Ok(share) => {
                self.tell(Notice::Written { stopped_us: done.stopped_us, bytes: done.bytes });
                self.events.push_back(Event::Written(share, taker.stamp));
            }
            Err(failure) => self.failed(Work::Persist, taker.stamp, failure),
        }
    }

    fn completed(&self, id: ShareId, programs: &[Program], done: &Checkpointed) -> Result<Share> {
        shares::complete(&self.life, id, programs, done.processes, done.bytes)
    }
}
