//! When a worker takes a checkpoint, and what becomes of its answer.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use hdcr_policy::algorithm::Kind;
use hdcr_policy::interval::{Spent, pause_after, pause_after_failure};
use hdcr_policy::series;
use serde::Serialize;

use super::asker::Asker;
use super::patience::{again_soon, met_in_a_moment};
use super::watch::Watch;
use super::watch::remembered::Life;
use super::work::{Errand, Work};
use super::{Keeper, Phase};
use crate::duration;
use crate::failure::{Class, Failure, Obstacle, Result};
use crate::foreground::KILL_LIMIT;
use crate::kinds::{Every, Increments, Then};
use crate::output::Report as _;
use crate::process;
use crate::progress::Bar;
use crate::settings::Files;
use crate::shortage::{self, Shortage};
use crate::task::{CheckpointTask, Checkpointed, Reply, Target, Task, Who};
use crate::told::Touched;
use crate::upright;
use crate::worker::Worker;

/// What somebody asked for through the registry.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(super) asker: Asker,
    pub(super) target: Option<Target>,
    pub(super) files: Option<Files>,
    /// How long the program may take to stop, also for the checkpoint that is at work when it is asked.
    pub(super) timeout: Duration,
    pub(super) then: Then,
    pub(super) asked: Instant,
}

/// A checkpoint, for programs that listen.
#[derive(Debug, Serialize)]
struct Told<'a> {
    checkpoint: &'a Checkpointed,
}

impl Keeper {
    /// How long nothing has to be done when nothing happens.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let next = match (&self.work, self.phase) {
            (Some(work), _) => Some(work.deadline),
            (None, Phase::Running) if !self.wishes.is_empty() || self.members.wants_back() => Some(Instant::now()),
            (None, Phase::Running) => self.stop.is_none().then(|| self.next_due()),
            (None, Phase::Waiting(_)) => self.patience.map(|patience| patience.next),
            (None, _) => None,
        };
        let next =
            next.into_iter().chain(self.members.rounds.until()).chain(self.wish_due()).chain(self.advice_due()).min();
        let stop = self.stop.as_ref().filter(|_| self.phase == Phase::Running).and_then(|stop| stop.deadline);
        let next = next.into_iter().chain(stop).chain([self.footing.next]).chain(self.files_due()).min();
        let left = next.map(|next| next.saturating_duration_since(Instant::now()));
        left.into_iter().chain(self.is_capturing().then_some(upright::LOOK)).min()
    }

    /// Does what is due.
    pub(super) fn on_time(&mut self) -> Result<()> {
        let now = Instant::now();
        self.stop_by_force(now);
        self.write_files_when_due();
        self.look_after_footing(now);
        self.give_up_round(now);
        if let Some(work) = &mut self.work {
            work.must_stand_upright();
        }
        if let Some(work) = self.work.as_mut().filter(|work| now >= work.deadline) {
            work.is_late();
        }
        self.give_up_wishes(now);
        self.on_advice(now);
        if self.work.is_none() && self.phase == Phase::Running {
            self.wishes.retain(|wish| wish.asker.is_there());
            if self.members.wants_back() {
                self.roll_back()?;
            } else if let Some(wish) = self.wishes.pop_front() {
                self.checkpoint(Some(wish));
            } else if self.stop.is_none() && self.wants_checkpoint(now) {
                self.checkpoint(None);
            }
        }
        self.try_again()
    }

    /// Starts a worker for a checkpoint.
    fn checkpoint(&mut self, wish: Option<Wish>) {
        let (keep, gives_up) = self.retention();
        let own = Target::Store { root: self.plan.store.clone(), job: self.plan.name.to_string() };
        let mut task = CheckpointTask {
            who: Who::Below(std::process::id().cast_signed()),
            keep: Some(keep),
            gives_up,
            line: self.line.numbers_of_line(),
            target: own,
            came_from: self.came_from.clone(),
            files: self.plan.files.clone(),
            timeout: self.plan.timeout,
            then: Then::GoOn,
            watched: self.watch.is_some(),
            jobs: self.jobs.clone(),
            omitted: self.members.omitted(),
            asks: self.members.rounds.are_wanted(),
            keepers: vec![self.members.door.address.clone()],
            // It tells that the work goes on.
            progress: true,
            stays: true,
            by_gates: None,
            series: None,
        };
        task.series = self.series_for(wish.is_none());
        let mut askers = Vec::new();
        if let Some(wish) = wish {
            if wish.target.is_none() && matches!(wish.asker, Asker::Program(_)) {
                askers = self.others_who_ask();
            }
            task.then = wish.then;
            task.timeout = wish.timeout;
            task.files = wish.files.unwrap_or(task.files);
            if let Some(target) = wish.target {
                (task.target, task.keep, task.series) = (target, None, None);
                task.gives_up.clear();
            }
            askers.push(wish.asker);
        }
        let (then, timeout, stays) = (task.then, task.timeout, task.stays);
        match self.worker_for(task) {
            Ok(worker) => {
                self.set_apart(worker.pid());
                let errand = Errand::Checkpoint { at: self.ran(), then, thawed: false, askers };
                // Freezing has its own deadline; writing may take longer than that.
                let work = Work::new(worker, errand, timeout.saturating_mul(20) + KILL_LIMIT);
                self.work = Some(Work { timeout: Some(timeout), ..work.staying(stays) });
            }
            Err(failure) => self.not_checkpointed(failure, askers, Duration::ZERO),
        }
    }

    /// Whether a checkpoint is being taken that may still read memory.
    pub(super) fn is_capturing(&self) -> bool {
        let errand = self.work.as_ref().map(|work| &work.errand);
        matches!(errand, Some(Errand::Checkpoint { thawed: false, .. }))
    }

    /// The other processes of the program that wait for a checkpoint: all are in the same image.
    fn others_who_ask(&mut self) -> Vec<Asker> {
        let is_other = |wish: &Wish| wish.target.is_none() && matches!(wish.asker, Asker::Program(_));
        let (others, left) = std::mem::take(&mut self.wishes).into_iter().partition(is_other);
        self.wishes = left;
        let others: VecDeque<Wish> = others;
        others.into_iter().map(|wish| wish.asker).collect()
    }

    /// The worker that has made the last image of the series, else a new one.
    fn worker_for(&mut self, task: CheckpointTask) -> Result<Worker> {
        let task = Task::Checkpoint(task);
        if let Some(worker) = self.spare.take() {
            match worker.with(&task, &[]) {
                Ok(worker) => return Ok(worker),
                Err(failure) => tracing::debug!(%failure, "another worker begins with a whole image"),
            }
        }
        Worker::start(&task, &[], &BTreeSet::new())
    }

    /// How soon after the last image the next one comes, if it goes on from that. `ordered`: the algorithm may have said so.
    pub(super) fn series_for(&mut self, ordered: bool) -> Option<Duration> {
        let kind = self.adviser.as_mut().and_then(|adviser| adviser.kind.take()).filter(|_| ordered);
        let may = self.plan.increments != Increments::Off;
        let wanted = match kind {
            Some(Kind::Full) if may => {
                // The first of a new series: an increment may follow.
                self.end_series();
                true
            }
            Some(_) => may,
            None => self.in_series(),
        };
        wanted.then(|| self.every())
    }

    /// Whether the next image goes on from the last one.
    fn in_series(&self) -> bool {
        match self.plan.increments {
            Increments::On => true,
            Increments::Off => false,
            Increments::Auto => series::pays(self.every(), self.whole),
        }
    }

    /// Ends the worker that waits for the next checkpoint: the next image is a whole one.
    pub(super) fn end_series(&mut self) {
        if let Some(worker) = self.spare.take() {
            worker.end();
        }
    }

    /// The worker has said something, or closed its end.
    pub(super) fn on_answer(&mut self) -> Result<()> {
        let Some(answer) = self.work.as_ref().map(|work| work.worker.answer()) else { return Ok(()) };
        if answer == Ok(Reply::Asking) {
            self.on_asking();
            return Ok(());
        }
        let Some(work) = &mut self.work else { return Ok(()) };
        let timeout = self.plan.timeout;
        match answer.map(|reply| work.take_in(reply, timeout)) {
            Ok(None) => {}
            Ok(Some(Reply::Frozen)) => {
                work.has_frozen();
                let touched = self.watch.as_mut().map(Watch::mark).unwrap_or_default();
                if let Err(failure) = work.worker.tell(&Touched::from(touched.as_slice())) {
                    tracing::debug!(%failure, "the worker does not listen");
                }
                self.unnamed.marked(touched);
            }
            Ok(Some(Reply::Thawed)) => {
                work.has_thawed();
                self.members.rounds.resume(true);
                if let Some(watch) = &mut self.watch {
                    watch.thawed();
                }
                if let Errand::Checkpoint { thawed, .. } = &mut work.errand {
                    *thawed = true;
                }
            }
            Ok(Some(reply)) => {
                work.answer = Some(reply);
                if work.is_done() {
                    return self.on_errand_done();
                }
            }
            Err(failure) => {
                work.listens = false;
                if !matches!(work.errand, Errand::Restore { goes_next: true, .. }) {
                    work.answer.get_or_insert(Reply::Failed(failure));
                }
            }
        }
        // A restored program may end at once; it must be known as ours before that is seen.
        if let Some(Reply::Restored(restored)) = &work.answer
            && let Phase::Restoring(number) = self.phase
        {
            let restored = restored.clone();
            work.errand = Errand::Restore { bar: Bar::default(), goes_next: true };
            if restored.filling {
                work.fills(number);
            }
            self.on_restored(&restored)?;
        }
        Ok(())
    }

    /// The worker has ended and is reaped: what it said last counts.
    pub(super) fn on_worker_end(&mut self) -> Result<()> {
        if let Some(work) = &mut self.work {
            work.stays = false;
        }
        // Who stands by for a page server has its end of the channel too, and may live on.
        while self.work.as_ref().is_some_and(|work| work.listens && work.worker.has_said()) {
            self.on_answer()?;
        }
        let Some(work) = self.work.take() else { return Ok(()) };
        self.conclude(work.errand, work.answer, work.began.elapsed())
    }

    /// The worker has done what it was asked for, and waits for more.
    fn on_errand_done(&mut self) -> Result<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        if self.phase == Phase::Running {
            self.spare = Some(work.worker);
        } else {
            work.worker.end();
        }
        self.conclude(work.errand, work.answer, work.began.elapsed())
    }

    fn conclude(&mut self, errand: Errand, answer: Option<Reply>, took: Duration) -> Result<()> {
        let silent = || Failure::new(Class::Internal, "worker-died", "a worker process died");
        // Of those that let the program go on it was told then.
        self.members.rounds.resume(matches!(answer, Some(Reply::Checkpointed(_))));
        match &answer {
            // The program may have gone elsewhere.
            Some(Reply::Checkpointed(_)) => self.shortage = Shortage::of(self.record.main),
            Some(Reply::Failed(failure)) if failure.code == shortage::CODE => self.shortage.was_our_worker(),
            _ => {}
        }
        match (errand, answer) {
            (Errand::Restore { .. }, Some(Reply::Restored(_))) => self.settle(),
            (Errand::Restore { .. }, Some(Reply::Failed(failure))) => return self.not_restored(failure),
            (Errand::Restore { goes_next: true, .. }, None) => return self.died_letting_go(silent()),
            (Errand::Restore { .. }, _) => return self.not_restored(silent()),
            (Errand::Filling { .. }, Some(Reply::Filled(filled))) => self.filled(filled),
            (Errand::Filling { number }, answer) => return self.not_filled(number, answer),
            (Errand::Checkpoint { at, askers, .. }, Some(Reply::Checkpointed(done))) => {
                self.checkpointed(&done, at, took);
                let then = done.then;
                for asker in askers {
                    asker.checkpointed(&done);
                }
                if then == Then::Kill {
                    self.end_series();
                    self.pause();
                    return process::kill_all_below(&self.signals, KILL_LIMIT, &mut |_, _| {});
                }
            }
            (Errand::Checkpoint { askers, .. }, answer) => {
                let failure = match answer {
                    Some(Reply::Failed(failure)) => failure,
                    _ => silent(),
                };
                self.not_checkpointed(self.as_it_came(failure), askers, took);
            }
        }
        match self.phase {
            Phase::Dying(death) => self.decide(death),
            Phase::Running | Phase::Restoring(_) | Phase::Waiting(_) | Phase::Done(_) => Ok(()),
        }
    }

    /// A worker that is of no use once the program has ended is killed: that is no fault of anybody's.
    fn as_it_came(&self, failure: Failure) -> Failure {
        let Phase::Dying(death) = self.phase else { return failure };
        if failure.code != "worker-died" {
            return failure;
        }
        let message =
            format!("the program of job {} ended while it was checkpointed: {}", self.plan.name, self.told_of(death));
        Failure::new(Class::Changed, "gone", message).remedy("try again if the job goes on")
    }

    /// When the next one comes, by what this one took. One that somebody wanted elsewhere says nothing of the job's own store,
    /// and the job cannot go back to it: its own comes as if that one had not been.
    fn pace(&mut self, done: &Checkpointed, took: Duration, now: Instant) -> Option<Spent> {
        if done.path.is_some() {
            return None;
        }
        self.rhythm.checkpointed(Duration::from_micros(done.stopped_us), Duration::from_micros(done.total_us));
        self.tell_every();
        let stood = Duration::from_micros(done.stopped_us.saturating_add(done.prepared_us));
        // What is written of an increment while the program runs holds it up little.
        let held_up = if done.increment { stood } else { took };
        let spent = Spent { took, held_up, worked: Duration::from_micros(done.worked_us) };
        self.next_checkpoint = now + pause_after(self.every(), spent, self.plan.budget);
        if !done.increment {
            self.whole = Some(took);
        }
        if self.trouble.take().is_some() {
            self.told_trouble = None;
            self.note(&format!("checkpoints of job {} work again", self.plan.name));
        }
        (self.failures, self.moments) = (0, 0);
        self.note_slow(done, took);
        Some(spent)
    }

    pub(super) fn checkpointed(&mut self, done: &Checkpointed, at: Duration, took: Duration) {
        let now = Instant::now();
        let spent = self.pace(done, took, now);
        if let (Some(number), None) = (done.number, &done.path) {
            self.line.push(number, at, now, done.increment);
            self.came_from = Some(self.place(number));
            if self.record.went_back.take().is_some() {
                self.remember();
            }
        }
        self.line.remove(&done.removed);
        if let (Some(watch), Some(number), None) = (&mut self.watch, done.number, &done.path) {
            watch.committed(number);
            self.tell_unnamed(number);
        }
        self.keep_what_counts();
        self.write_files(Life::GoesOn);
        let told = self.notes.iter().map(|note| &note.code).eq(done.notes.iter().map(|note| &note.code));
        if self.output.verbose > 0 {
            self.output.object_aside(&Told { checkpoint: done });
        }
        self.detail(&if told { done.line() } else { done.text() });
        if self.output.verbose == 0 {
            self.warn(&done.notes);
        }
        self.notes.clone_from(&done.notes);
        if let Some(spent) = spent {
            self.advise_of(done, spent);
        }
    }

    /// Tells also a user who is not curious, once, of what a roll-back would not bring back.
    fn warn(&mut self, notes: &[Obstacle]) {
        const WARNINGS: [&str; 3] = ["file-too-large", "semaphore-outside", "semaphores-unseen"];
        let known = &self.warned;
        let key = |note: &Obstacle| (note.code.clone(), note.path.clone().unwrap_or_else(|| note.object.clone()));
        let counts = |note: &&Obstacle| WARNINGS.contains(&note.code.as_str()) && !known.contains(&key(note));
        let fresh: Vec<Obstacle> = notes.iter().filter(counts).cloned().collect();
        self.tell_notes(&fresh);
        self.warned.extend(fresh.iter().map(key));
    }

    /// The time from one checkpoint to the next, now.
    pub(super) fn every(&self) -> Duration {
        if let Some(adviser) = &self.adviser {
            return adviser.every();
        }
        match self.plan.every {
            Every::Fixed(time) => time,
            Every::Auto => self.rhythm.choose(self.began.elapsed()).interval,
        }
    }

    /// Tells a curious user which interval was chosen, when it is clearly another one than before.
    fn tell_every(&mut self) {
        if self.plan.every != Every::Auto || self.adviser.is_some() {
            return;
        }
        let chosen = self.rhythm.choose(self.began.elapsed());
        let known = |told: Duration| told.abs_diff(chosen.interval) < told / 5;
        if !self.told_every.is_some_and(known) {
            self.told_every = Some(chosen.interval);
            let cost = chosen.cost.map_or_else(|| "?".to_owned(), duration::show);
            self.detail(&format!(
                "job {}: a checkpoint every {} (auto: one costs {cost}, a failure is expected every {})",
                self.plan.name,
                duration::show(chosen.interval),
                duration::show(chosen.between_failures)
            ));
        }
    }

    /// A checkpoint failed; the program goes on. Told once, until one works again.
    fn not_checkpointed(&mut self, failure: Failure, askers: Vec<Asker>, took: Duration) {
        if !askers.is_empty() {
            for asker in askers {
                asker.failed(&failure);
            }
            return;
        }
        let moment = met_in_a_moment(&failure, self.moments);
        self.moments = moment.map_or(0, |_| self.moments.saturating_add(1));
        self.failures = self.failures.saturating_add(u32::from(moment.is_none()));
        let soon = moment.or_else(|| again_soon(&failure, self.failures)).map(|pause| pause.min(self.every()));
        if self.failures > 1 && soon.is_none() {
            // What keeps the next image of a series from being made need not keep a whole one.
            self.end_series();
        }
        let pause = soon.unwrap_or_else(|| {
            let spent = Spent { took, held_up: Duration::ZERO, worked: took };
            pause_after_failure(self.every(), self.failures).max(pause_after(Duration::ZERO, spent, self.plan.budget))
        });
        self.next_checkpoint = Instant::now() + pause;
        if soon.is_some() {
            self.checkpoint_soon(pause);
        } else {
            self.advise_of_failure();
        }
        let told = self.trouble.as_ref() == Some(&failure.message);
        if self.phase == Phase::Running && !told && soon.is_none() {
            let text = format!("job {} runs on without a new checkpoint: {failure}", self.plan.name);
            self.trouble = Some(failure.message);
            // Said again when a roll-back has cut it off, as long as it holds.
            self.told_trouble = self.output.note_at_end(&text);
        }
    }

    /// Ends the worker, whatever it does.
    pub(super) fn drop_work(&mut self) {
        self.end_series();
        if let Some(work) = self.work.take() {
            work.worker.end();
        }
    }

    /// Ends the worker, but one that the program needs for its memory.
    pub(super) fn leave_work(&mut self) {
        if !self.work.as_ref().is_some_and(|work| matches!(work.errand, Errand::Filling { .. })) {
            self.drop_work();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::requests::Stop;
    use super::super::testing::{self, late_work};
    use super::*;
    use crate::progress::{Doing, Step};

    #[test]
    fn a_checkpoint_that_is_due_is_not_waited_for_in_a_job_that_is_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = testing::keeper(folder.path());
        let later = Duration::from_hours(1);
        keeper.footing.next = Instant::now() + later;
        keeper.next_checkpoint = Instant::now();
        assert_eq!(keeper.time_left(), Some(Duration::ZERO));
        keeper.stop = Some(Stop { deadline: Some(Instant::now() + later), clients: Vec::new() });
        assert!(keeper.time_left() > Some(later / 2), "it would look again and again: {:?}", keeper.time_left());
    }

    #[test]
    fn a_checkpoint_to_elsewhere_does_not_postpone_the_jobs_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = testing::keeper(folder.path());
        let due = Instant::now() + Duration::from_secs(5);
        (keeper.next_checkpoint, keeper.failures) = (due, 3);
        keeper.trouble = Some("the store is full".to_owned());
        let elsewhere = Checkpointed { path: Some("/mnt/image".into()), ..Checkpointed::default() };
        keeper.checkpointed(&elsewhere, Duration::ZERO, Duration::from_secs(1));
        assert!(keeper.next_checkpoint == due && keeper.failures == 3 && keeper.trouble.is_some());
        keeper.checkpointed(&Checkpointed::default(), Duration::ZERO, Duration::from_secs(1));
        assert!(keeper.next_checkpoint > due && keeper.failures == 0 && keeper.trouble.is_none());
    }

    #[test]
    fn who_asks_with_patience_is_given_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = testing::keeper(folder.path());
        let _far = late_work(&mut keeper);
        let (own, asked) = (Duration::from_secs(10), Duration::from_mins(10));
        for (timeout, at_least) in [(None, own), (Some(asked), asked)] {
            let work = keeper.work.as_mut().unwrap();
            work.timeout = timeout;
            work.halts(own);
            assert!(work.deadline > Instant::now() + at_least);
        }
    }

    #[test]
    fn a_worker_that_comes_further_is_not_late() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = testing::keeper(folder.path());
        let far = late_work(&mut keeper);
        keeper.work.as_mut().unwrap().limit = Duration::from_hours(1);
        far.send(&Reply::Progress(Step { doing: Doing::Writing, done: 1, total: 2, round: 0 }), &[]).unwrap();
        keeper.on_answer().unwrap();
        let work = keeper.work.as_ref().unwrap();
        assert!(work.deadline > Instant::now() + Duration::from_mins(30) && work.answer.is_none(), "{work:?}");
    }

    #[test]
    fn a_worker_that_is_late_is_told_of_as_late() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = testing::keeper(folder.path());
        let far = late_work(&mut keeper);
        keeper.next_checkpoint = Instant::now() + Duration::from_hours(1);
        keeper.on_time().unwrap();
        drop(far);
        keeper.on_worker_end().unwrap();
        let trouble = keeper.trouble.unwrap_or_default();
        assert!(trouble.contains("the checkpoint has not come further for"), "{trouble}");
    }

    #[test]
    fn nobody_is_waited_for_who_has_only_the_end_of_a_dead_worker() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = testing::keeper(folder.path());
        let far = late_work(&mut keeper);
        far.send(&Reply::Progress(Step { doing: Doing::Writing, done: 1, total: 2, round: 0 }), &[]).unwrap();
        keeper.on_worker_end().unwrap();
        assert!(keeper.work.is_none());
        let trouble = keeper.trouble.unwrap_or_default();
        assert!(trouble.contains("a worker process died"), "{trouble}");
        drop(far);
    }

    #[test]
    fn a_worker_that_is_about_to_end_is_given_nothing_more() {
        for (leaves, kept) in [(false, true), (true, false)] {
            let folder = tempfile::tempdir().unwrap();
            let mut keeper = testing::keeper(folder.path());
            let far = late_work(&mut keeper);
            keeper.phase = Phase::Running;
            let work = keeper.work.as_mut().unwrap();
            work.stays = true;
            let replies = [Reply::Leaving, Reply::Failed(Failure::new(Class::Failed, "late", "a thread did not stop"))];
            for reply in &replies[usize::from(!leaves)..] {
                far.send(reply, &[]).unwrap();
                keeper.on_answer().unwrap();
            }
            assert!(keeper.spare.is_some() == kept && keeper.work.is_none() == kept);
            keeper.on_worker_end().unwrap();
            assert_eq!(keeper.trouble.as_deref(), Some("a thread did not stop"));
            assert!(keeper.spare.is_some() == kept && keeper.work.is_none());
        }
    }
}
