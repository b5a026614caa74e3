//! The program of a job begins, ends, is rolled back or begun anew.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hdcr_image::SnapshotId;
use hdcr_policy::restart::{Death, Decision, Ended, History, decide};
use nix::sys::signal::Signal;

use super::work::{Errand, Work};
use super::{Keeper, Line, Made, PAUSED, Phase};
use crate::duration;
use crate::failure::{Class, Failure, Result, chain};
use crate::foreground::{KILL_LIMIT, tell};
use crate::host::Host;
use crate::job::{Start, State, WentBack};
use crate::kinds::Lazy;
use crate::namespace;
use crate::output::counted;
use crate::parts;
use crate::process::{self, kill_all_below, shell_status};
use crate::settings::restore_time;
use crate::shortage::Shortage;
use crate::signals::REQUESTS_TO_END;
use crate::task::{Greeting, RestoreTask, Restored, Task};
use crate::worker::Worker;

/// A death so long after a passed-on request to end is still its consequence.
const CONSEQUENCE: Duration = Duration::from_secs(10);

impl Keeper {
    /// The first life: anew, or from where the last one stood.
    pub(super) fn begin(&mut self) -> Result<()> {
        match self.plan.start {
            Start::Anew => self.begin_anew(),
            Start::Again => {
                self.files_as_before_that_life();
                self.begin_anew()
            }
            Start::GoOn => {
                self.line = self.remembered()?;
                self.remember_files();
                let newest = self.line.newest();
                let newest = newest.ok_or_else(|| {
                    Failure::refused("no-such-checkpoint", "the job has no checkpoint to go on from")
                        .remedy("--fresh begins anew")
                })?;
                self.note(&format!(
                    "job {} goes on from its checkpoint {} (--fresh begins anew)",
                    self.plan.name,
                    self.place(newest.number)
                ));
                self.reason = hdcr::Reason::Resume;
                self.restore(newest)
            }
        }
    }

    /// The checkpoints of this run that an earlier keeper made, and where its last life was among them.
    fn remembered(&self) -> Result<Line> {
        let mut made: Vec<Made> = Vec::new();
        let mut images = Vec::new();
        let mut first = None;
        for entry in parts::list(&self.plan.store, Some(&self.plan.name))? {
            if entry.sequence <= self.record.after {
                continue;
            }
            let manifest = match entry.manifest {
                Ok(manifest) => manifest,
                Err(error) => {
                    let place = self.place(entry.sequence);
                    self.note(&format!("checkpoint {place} cannot be used: {}", chain(&error)));
                    continue;
                }
            };
            let time = manifest.facts.clocks.realtime_ns;
            let since = time.saturating_sub(*first.get_or_insert(time));
            let at = Duration::from_nanos(u64::try_from(since).unwrap_or(0));
            let known = |ancestor: &SnapshotId| images.iter().find(|(image, _)| *image == ancestor.image);
            let before = manifest.facts.lineage.iter().find_map(known).map(|(_, number)| *number);
            let increment = manifest.facts.base.is_some();
            made.push(Made { number: entry.sequence, at, when: None, before, increment });
            images.push((manifest.id.image, entry.sequence));
        }
        let newest = made.last().map(|made| made.number);
        let back = self.record.went_back.filter(|back| newest.is_some_and(|newest| newest <= back.newest));
        let back = back.map(|back| back.to).filter(|to| made.iter().any(|made| made.number == *to));
        Ok(Line::of(made, back.or(newest)))
    }

    /// Starts the program from its beginning.
    fn begin_anew(&mut self) -> Result<()> {
        self.forget_files();
        let unblock: Vec<String> = self.signals.to_unblock().iter().map(ToString::to_string).collect();
        let mut command = process::this_program();
        command.args(self.output.json.then_some("--json"));
        command.arg("__program");
        command.args(unblock.iter().map(|number| format!("--unblock={number}")));
        command.arg("--").args(&self.record.command);
        command.env(hdcr::wire::JOB, self.plan.name.as_str());
        match self.members.door.path() {
            Some(path) => command.env(hdcr::wire::CONTROL, path),
            None => command.env_remove(hdcr::wire::CONTROL),
        };
        self.watch_from_the_start();
        let child = command.spawn().map_err(Failure::system("starting the program"))?;
        self.came_from = None;
        self.line.begin_anew();
        self.record.went_back = None;
        self.lives_as(child.id().cast_signed(), Duration::ZERO);
        Ok(())
    }

    /// The program lives (again) as this process.
    fn lives_as(&mut self, main: i32, ran_before: Duration) {
        self.record.main = main;
        self.shortage = Shortage::of(main);
        self.record.main_born = process::born(main).unwrap_or(0);
        self.record.host = Host::here();
        self.record.state = State::Running;
        self.terminal.program_is(main);
        self.phase = Phase::Running;
        self.ran_before = ran_before;
        self.since = Instant::now();
        self.next_checkpoint = self.since + self.every();
        self.passed_on.clear();
        if self.stop.is_some() {
            process::signal(main, Signal::SIGTERM as i32);
        }
        self.remember();
        self.advise_life();
    }

    /// The program has ended. A checkpoint that already has all it needs may finish first.
    pub(super) fn on_death(&mut self, death: Death) -> Result<()> {
        self.ran_before += self.since.elapsed();
        self.since = Instant::now();
        self.phase = Phase::Dying(death);
        self.has_ended_under_notice();
        self.starved = death == Death::Signal(Signal::SIGKILL as i32) && self.shortage.has_killed();
        self.end_series();
        match &self.work {
            None => self.decide(death),
            Some(work) => {
                // A checkpoint of a program that has ended by its own will is of no use.
                let ends = work.may_be_left() && self.decision(death).0 == Decision::End;
                if ends || work.useless_after_death() {
                    process::signal(work.worker.pid(), Signal::SIGKILL as i32);
                }
                Ok(())
            }
        }
    }

    /// Decides what follows from an end, and does it.
    pub(super) fn decide(&mut self, death: Death) -> Result<()> {
        let (decision, ended) = self.decision(death);
        let decision = self.advised(decision, ended);
        let target = match decision {
            Decision::End => return self.end(death, ended.asked_for),
            Decision::GiveUp => return self.give_up(death),
            Decision::Begin => None,
            Decision::Rollback(place) => self.line.ways_back().get(place).copied(),
        };
        self.rhythm.failed();
        let restarts = self.history.restarts + 1;
        self.history = History { restarts, last_crash: Some(ended.at), last_target: target.map(|made| made.at) };
        let count = format!("restart {restarts} of {}", self.plan.rules.restarts);
        let what = match target {
            Some(made) => {
                let lost = duration::show(ended.at.saturating_sub(made.at));
                format!("rolled back to {} ({lost} of work repeated; {count})", self.place(made.number))
            }
            None => format!("there is no checkpoint yet, beginning anew ({count})"),
        };
        self.crash = Some(format!("job {}: {}; {what}", self.plan.name, self.told_of(death)));
        kill_all_below(&self.signals, KILL_LIMIT, &mut |_, _| {})?;
        if let Some(made) = target {
            self.reason = hdcr::Reason::Crash;
            return self.restore(made);
        }
        let notes = self.files_as_before();
        self.stdio_began.rewind(&self.stdio);
        // What was said before is gone by now where the output of the program was cut back.
        self.tell_crash();
        self.tell_rolled_back(&notes);
        self.record.returned = self.record.returned.saturating_add(1);
        self.begin_anew()
    }

    /// A death in words, with what has brought it about.
    pub(super) fn told_of(&self, death: Death) -> String {
        if self.starved { format!("{}, out of memory", tell(death)) } else { tell(death) }
    }

    fn decision(&self, death: Death) -> (Decision, Ended) {
        let ended = Ended { death, asked_for: self.asked_for(death), at: self.ran_before };
        let checkpoints: Vec<Duration> = self.line.ways_back().iter().map(|made| made.at).collect();
        (decide(&self.plan.rules, ended, self.history, &checkpoints), ended)
    }

    /// Whether a death is what somebody asked for.
    fn asked_for(&self, death: Death) -> bool {
        let recent = REQUESTS_TO_END
            .iter()
            .any(|signal| self.passed_on.get(signal).is_some_and(|when| when.elapsed() < CONSEQUENCE));
        let same = matches!(death, Death::Signal(signal) if self.passed_on.contains_key(&signal));
        self.stop.is_some() || same || recent
    }

    /// The job ends with its program.
    fn end(&mut self, death: Death, asked_for: bool) -> Result<()> {
        let stopped = self.stop.is_some();
        if stopped {
            kill_all_below(&self.signals, KILL_LIMIT, &mut |_, _| {})?;
        }
        self.tell_who_is_left();
        let finished = stopped || death == Death::Exit(0) || (matches!(death, Death::Exit(_)) && !asked_for);
        let state = if finished { State::Ended } else { State::Paused };
        if stopped {
            self.note(&format!("job {} was ended for good by `hdcr stop` ({})", self.plan.name, self.told_of(death)));
        }
        if let (State::Paused, Some(made)) = (state, self.line.newest()) {
            let place = self.place(made.number);
            self.note(&format!(
                "job {} was ended ({}); the same command goes on from {place}",
                self.plan.name,
                self.told_of(death)
            ));
        }
        self.finish(state, shell_status(death));
        Ok(())
    }

    /// It has crashed too often. All checkpoints stay.
    fn give_up(&mut self, death: Death) -> Result<()> {
        kill_all_below(&self.signals, KILL_LIMIT, &mut |_, _| {})?;
        self.verdict =
            Some(gave_up(self.plan.name.as_str(), &self.told_of(death), &self.why_given_up(), !self.line.is_empty()));
        self.finish(State::Paused, shell_status(death));
        Ok(())
    }

    /// Why nothing is tried any more.
    fn why_given_up(&self) -> String {
        match (&self.adviser, self.history.restarts) {
            (Some(adviser), _) if adviser.gave_up => format!("; algorithm {} gives up", adviser.called()),
            (_, 0) => "; --restarts 0 allows no restart".to_owned(),
            (_, 1) => " again, after 1 restart; giving up".to_owned(),
            (_, restarts) => format!(" again, after {restarts} restarts; giving up"),
        }
    }

    /// The job was checkpointed and ended on request.
    pub(super) fn pause(&mut self) {
        self.finish(State::Paused, PAUSED);
    }

    /// Brings a checkpoint back, in the way that was chosen for this job.
    pub(super) fn restore(&mut self, made: Made) -> Result<()> {
        self.restore_by(made, self.plan.lazy)
    }

    /// Starts the worker that brings a checkpoint back.
    pub(super) fn restore_by(&mut self, made: Made, lazy: Lazy) -> Result<()> {
        if let Some(other) = self.taken_over() {
            self.give_way(&other);
            return Ok(());
        }
        self.brings_back = lazy;
        let place = self.place(made.number);
        let found = parts::manifest(&place).and_then(|manifest| Ok((manifest, parts::numbers_needed(&place)?)));
        self.phase = Phase::Restoring(made.number);
        self.ended_early.clear();
        let (manifest, needed) = match found {
            Ok(found) => found,
            Err(failure) => return self.not_restored(failure),
        };
        let timeout = restore_time(self.plan.restore_timeout, manifest.total_size());
        if self.record.private_pids {
            namespace::next_pid_after(needed.last().copied().unwrap_or(0).saturating_add(64));
        }
        let bar = self.output.bar();
        let task = Task::Restore(RestoreTask {
            place,
            journals: self.plan.store.join(".rollback"),
            map_path: Vec::new(),
            since: self.undo_since(made.number),
            timeout,
            detach: false,
            lazy,
            progress: true,
            by_gates: None,
            greeting: Greeting {
                count: self.record.returned.saturating_add(1),
                reason: self.reason,
                control: self.members.door.path(),
            },
        });
        let descriptors: Vec<_> = self.stdio.iter().map(AsFd::as_fd).collect();
        match Worker::start(&task, &descriptors, &needed) {
            Ok(worker) => {
                self.set_apart_restorer(worker.pid());
                self.work = Some(Work::new(
                    worker,
                    Errand::Restore { bar, goes_next: false },
                    timeout.saturating_add(KILL_LIMIT),
                ));
                Ok(())
            }
            Err(failure) => self.not_restored(failure),
        }
    }

    /// The program runs again.
    pub(super) fn on_restored(&mut self, restored: &Restored) -> Result<()> {
        let Phase::Restoring(number) = self.phase else { return Ok(()) };
        let at = self.line.find(number).map_or(Duration::ZERO, |made| made.at);
        let main = restored.roots.iter().copied().find(|pid| *pid == self.record.main);
        let main = main.or_else(|| restored.roots.first().copied());
        let main =
            main.ok_or_else(|| Failure::new(Class::Corrupt, "no-root", "the checkpoint holds no living process"))?;
        self.patience = None;
        self.tell_crash();
        let took = duration::show(Duration::from_micros(restored.total_us));
        let processes = counted(restored.processes, "process", "processes");
        self.detail(&format!("{} restored: {processes} in {took}", self.place(number)));
        self.tell_rolled_back(&restored.notes);
        self.tell_unwatched();
        self.came_from = Some(self.place(number));
        self.members.come_from_image(&restored.omitted);
        self.record.went_back = self.line.came_back(number).map(|newest| WentBack { to: number, newest });
        if let Some(other) = self.taken_over() {
            self.give_way(&other);
            return Ok(());
        }
        if let Some(watch) = &mut self.watch {
            watch.knows_too(restored.touched.paths());
        }
        self.files_are_as_at(number);
        self.record.returned = self.record.returned.saturating_add(1);
        self.lives_as(main, at);
        match self.ended_early.remove(&main) {
            Some(death) => self.on_death(death),
            None => Ok(()),
        }
    }

    /// The user does not want what is being restored: nothing is left of it, and files are as they were.
    pub(super) fn give_up_restore(&mut self) -> Result<()> {
        let may_have_run = self.work.as_ref().is_some_and(Work::may_have_let_go);
        self.drop_work();
        kill_all_below(&self.signals, KILL_LIMIT, &mut |_, _| {})?;
        match self.phase {
            Phase::Restoring(number) if may_have_run => self.files_go_on_from(number),
            Phase::Restoring(number) | Phase::Waiting(number) => {
                parts::repair_files(&self.place(number), &self.plan.store.join(".rollback"));
                if let Some(watch) = &mut self.watch {
                    watch.not_rolled_back();
                }
            }
            Phase::Running | Phase::Dying(_) | Phase::Done(_) => {}
        }
        Ok(())
    }

    /// The worker that restored has ended, perhaps by a kill, when it had said that the program runs.
    pub(super) fn settle(&self) {
        if let Some(place) = &self.came_from {
            parts::settle_files(place, &self.plan.store.join(".rollback"));
        }
    }

    /// A restore failed: the one before is tried when the image is bad; else the job waits for its user.
    pub(super) fn not_restored(&mut self, failure: Failure) -> Result<()> {
        let Phase::Restoring(number) = self.phase else { return Ok(()) };
        kill_all_below(&self.signals, KILL_LIMIT, &mut |_, _| {})?;
        self.terminal.take_from_the_dead();
        parts::repair_files(&self.place(number), &self.plan.store.join(".rollback"));
        if let Some(watch) = &mut self.watch {
            watch.not_rolled_back();
        }
        self.cannot_go_on(number, failure)
    }

    /// The worker died when files were rolled back and the program may have run already: what that has done to files is
    /// of the job. It is another crash, right at the beginning.
    pub(super) fn died_letting_go(&mut self, failure: Failure) -> Result<()> {
        let Phase::Restoring(number) = self.phase else { return Ok(()) };
        kill_all_below(&self.signals, KILL_LIMIT, &mut |_, _| {})?;
        self.terminal.take_from_the_dead();
        self.files_go_on_from(number);
        self.cannot_go_on(number, failure)
    }

    /// Files are as at a checkpoint, but for what the program may have done since.
    fn files_go_on_from(&mut self, number: u64) {
        self.came_from = Some(self.place(number));
        self.settle();
        self.record.went_back = self.line.came_back(number).map(|newest| WentBack { to: number, newest });
        self.files_are_as_at(number);
    }

    /// Tries again, or an older one, or ends.
    fn cannot_go_on(&mut self, number: u64, mut failure: Failure) -> Result<()> {
        if self.has_patience(number, &failure) {
            return Ok(());
        }
        if let Some(crash) = self.crash.take() {
            self.note(&crash.replace("rolled back to", "it could not be rolled back to"));
        }
        let place = self.place(number);
        let bare = failure.message.strip_prefix(&format!("{place}: ")).map(str::to_owned);
        failure.message = bare.unwrap_or(failure.message);
        // Damaged, or no longer there (somebody removed it): an older one is better than none.
        let useless = failure.class == Class::Corrupt || ["store-gone", "no-such-checkpoint"].contains(&&*failure.code);
        if useless {
            failure.remedy = None;
            self.note(&format!("checkpoint {place} cannot be used: {failure}"));
            if let Some(older) = self.line.instead_of(number) {
                self.note(&format!("trying {} instead", self.place(older.number)));
                return self.restore(older);
            }
        }
        let status = failure.class.status();
        let failure = failure.during(format_args!("job {} cannot go on from {place}", self.plan.name));
        self.verdict = Some(match failure.remedy {
            Some(_) => failure,
            None if failure.class == Class::Corrupt => {
                failure.remedy("no other checkpoint is left; --fresh begins anew")
            }
            None if useless => failure.remedy("its checkpoints were removed; --fresh begins anew"),
            None => failure.remedy("its checkpoints are kept; the same command tries again"),
        });
        self.finish(State::Paused, status);
        Ok(())
    }
}

/// What is said when a job has crashed more often than it may, or its algorithm wants no more of it.
fn gave_up(job: &str, death: &str, why: &str, has_checkpoints: bool) -> Failure {
    let message = format!("job {job}: {death}{why}");
    Failure::new(Class::Failed, "gave-up", message).remedy(if has_checkpoints {
        format!("its checkpoints are kept (`hdcr list {job}`); `hdcr restore {job}@ID` tries one by hand")
    } else {
        "it has no checkpoint yet; the same command begins anew".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_up_promises_only_what_there_is() {
        let killed = tell(Death::Signal(Signal::SIGKILL as i32));
        let told = gave_up("sim", &killed, " again, after 2 restarts; giving up", true).to_string();
        assert!(told.starts_with("job sim: killed by SIGKILL again, after 2 restarts; giving up\n"), "{told}");
        assert!(told.contains("its checkpoints are kept"), "{told}");
        let told = gave_up("sim", &killed, "; --restarts 0 allows no restart", false).to_string();
        assert!(told.starts_with("job sim: killed by SIGKILL; --restarts 0 allows no restart\n"), "{told}");
        assert!(!told.contains("are kept") && !told.contains("restore"), "{told}");
    }
}
