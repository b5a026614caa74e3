//! The keeper of a job: parent and reaper of the program, owner of its stdio, one thread that waits for events.
//!
//! Checkpoints and restores are made by workers, so that their crash harms neither the program nor the keeper. Only files it
//! puts right itself, while no program of the job runs or just as one begins: those that a restore which died had begun to roll
//! back, and those of a program that begins anew. That takes as long as the disk. What follows from an end is decided by
//! `hdcr-policy`.
//!
//! - `advice.rs`: an algorithm decides when checkpoints are taken; `decided.rs`: how that is told; `doings.rs`: what it is told of the program's doings
//! - `outside.rs`, `exec.rs`: one that is no part of this program
//! - `life.rs`: the program begins, ends, is rolled back
//! - `line.rs`: which checkpoints can be gone back to
//! - `footing.rs`: what it needs in the store and among the running jobs, made again when it is removed
//! - `checkpoints.rs`: when a worker is started and what becomes of its answer
//! - `work.rs`: what that worker does, and that it is slow
//! - `filling.rs`: the program runs, and its memory is still to come
//! - `patience.rs`: a restore waits for process numbers that others have
//! - `requests.rs`: what others ask for through the registry
//! - `stdio.rs`: standard input and output of a program that begins anew
//! - `members.rs`: what the program itself asks for
//! - `rounds.rs`: the program is asked before each checkpoint

mod advice;
mod asker;
mod checkpoints;
mod decided;
mod doings;
mod exec;
mod filling;
mod footing;
mod life;
mod line;
mod members;
mod outside;
mod patience;
mod requests;
mod rounds;
mod stdio;
#[cfg(test)]
mod testing;
mod watch;
mod work;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdcr::Link;
use hdcr_policy::interval::{Budget, Rhythm};
use hdcr_policy::restart::{Death, History, Rules};
use serde::Serialize;

use crate::algorithm::Choice;
use crate::door::Door;
use crate::failure::{Failure, Obstacle, Result, told};
use crate::job::{Held, Record, Start, State};
use crate::kinds::{Every, Increments, Keep, Lazy};
use crate::namespace;
use crate::output::{Output, Said};

use crate::parts;
use crate::process::{Change, next_change, signal};
use crate::registry::{Answer, Client, Listener};
use crate::settings::Files;
use crate::shortage::Shortage;
use crate::signals::{REQUESTS_TO_END, Received, Signals};
use crate::task::Place;
use crate::terminal::{Stop as Stopped, Terminal};
use crate::worker::Worker;

use advice::Adviser;
use checkpoints::Wish;
use footing::Footing;
use line::{Line, Made};
use members::Members;
use patience::Patience;
use requests::Stop;
pub(crate) use rounds::PREPARING;
use stdio::AsBegan;
use watch::Watch;
pub(crate) use watch::remembered;
use watch::remembered::Remembered;
use watch::unnamed::Unnamed;
use work::Work;

/// Exit status of a job that was checkpointed and ended on request: run it again.
pub(crate) const PAUSED: u8 = 75;

/// What a job is to do.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: hdcr_image::JobName,
    pub(crate) store: PathBuf,
    pub(crate) every: Every,
    /// Decides instead of that.
    pub(crate) algorithm: Option<Choice>,
    pub(crate) timeout: Duration,
    /// When it was chosen.
    pub(crate) restore_timeout: Option<Duration>,
    pub(crate) keep: Keep,
    pub(crate) budget: Option<Budget>,
    pub(crate) increments: Increments,
    /// Whether memory may come when the program runs again.
    pub(crate) lazy: Lazy,
    pub(crate) rules: Rules,
    pub(crate) files: Files,
    pub(crate) start: Start,
}

/// Where the job stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The program runs.
    Running,
    /// It has ended, and a worker is still to finish before it is decided what follows.
    Dying(Death),
    /// It is being restored from this checkpoint.
    Restoring(u64),
    /// It will be restored from this checkpoint when somebody else has let go of its process numbers.
    Waiting(u64),
    /// The job is over with this status.
    Done(u8),
}

/// So many of the last notes are said again when they were cut off.
const REPEATED: usize = 500;

/// The keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(super) plan: Plan,
    pub(super) output: Output,
    pub(super) held: Held,
    pub(super) record: Record,
    pub(super) signals: Signals,
    pub(super) terminal: Terminal,
    pub(super) listener: Listener,
    /// Where that socket lies.
    pub(super) jobs: PathBuf,
    pub(super) footing: Footing,
    pub(super) clients: Vec<Client>,
    pub(super) members: Members,
    /// Why the program is restored, when it is.
    pub(super) reason: hdcr::Reason,
    pub(super) stdio: [OwnedFd; 3],
    /// How they stood when it began.
    pub(super) stdio_began: AsBegan,
    /// Leads to the process outside of our pid namespace.
    pub(super) outside: Option<File>,
    pub(super) phase: Phase,
    /// Run time of the program at `since`.
    pub(super) ran_before: Duration,
    pub(super) since: Instant,
    pub(super) line: Line,
    /// The checkpoint that the present life came from or made last.
    pub(super) came_from: Option<Place>,
    pub(super) history: History,
    /// Signals that were passed on, and when.
    pub(super) passed_on: BTreeMap<i32, Instant>,
    /// Children that ended during a restore: the program may end before its restore is heard of.
    pub(super) ended_early: BTreeMap<i32, Death>,
    pub(super) next_checkpoint: Instant,
    pub(super) adviser: Option<Adviser>,
    /// What the job has shown of itself since `began`: for `--every auto`.
    pub(super) rhythm: Rhythm,
    pub(super) began: Instant,
    /// The interval that was told last.
    pub(super) told_every: Option<Duration>,
    /// Waits for process numbers that others have.
    pub(super) patience: Option<Patience>,
    /// How the restore that was begun last brings memory back: the next try does likewise.
    pub(super) brings_back: Lazy,
    pub(super) failures: u32,
    /// So many times in a row the program was met in a moment that passes.
    pub(super) moments: u32,
    pub(super) trouble: Option<String>,
    /// What checkpoints take longer than their interval for.
    pub(super) slow: Option<String>,
    /// That was told to the user.
    pub(super) told_slow: bool,
    /// Where the program is, as it was when it was last seen alive.
    pub(super) shortage: Shortage,
    /// It was killed for want of memory.
    pub(super) starved: bool,
    /// What is to be told of a crash when it is rolled back: told before, it would be cut off a file that the program has
    /// written to as well.
    pub(super) crash: Option<String>,
    /// What was told of earlier crashes in such a file: a rollback may cut it off.
    pub(super) told: Vec<Said>,
    /// That the job runs on without new checkpoints, in such a file.
    pub(super) told_trouble: Option<Said>,
    /// Notes of the last checkpoint; the same ones are not told again.
    pub(super) notes: Vec<Obstacle>,
    /// What was told of what a roll-back would not bring back: codes and objects.
    pub(super) warned: BTreeSet<(String, String)>,
    /// Hears what the program does to files; not without root.
    pub(super) watch: Option<Watch>,
    /// What checkpoints did not know of.
    pub(super) unnamed: Unnamed,
    /// What an earlier keeper has heard of that.
    pub(super) remembered: Remembered,
    pub(super) work: Option<Work>,
    /// Has made the last image and waits to make the next one on top of it.
    pub(super) spare: Option<Worker>,
    /// How long the last whole image took.
    pub(super) whole: Option<Duration>,
    pub(super) wishes: VecDeque<Wish>,
    pub(super) stop: Option<Stop>,
    /// What the job ended with when it was not by the program's own will.
    pub(super) verdict: Option<Failure>,
    /// Another machine has it now: its record is not ours to write.
    pub(super) is_others: bool,
}

/// What a keeper is made of.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) output: Output,
    pub(crate) held: Held,
    pub(crate) record: Record,
    pub(crate) listener: Listener,
    /// Where the program finds its keeper.
    pub(crate) door: Door,
    /// Where its socket lies.
    pub(crate) jobs: PathBuf,
    pub(crate) stdio: [OwnedFd; 3],
    pub(crate) outside: Option<File>,
    /// Leads to whoever runs an algorithm that is not the keeper's own.
    pub(crate) rule: Option<Link>,
}

impl Keeper {
    /// Runs a job to its end and returns the status of its program.
    pub(crate) fn run(plan: Plan, given: Given) -> Result<u8> {
        if rustix::process::getpid().as_raw_nonzero().get() != 1 {
            let own = Some(rustix::process::getpid());
            rustix::process::set_child_subreaper(own).map_err(Failure::system("becoming the reaper of the job"))?;
        }
        let mut keeper = Self::new(plan, given)?;
        keeper.begin_watching();
        keeper.begin()?;
        let ended = keeper.go_on();
        keeper.close(ended)
    }

    /// One that has done nothing yet.
    fn new(plan: Plan, given: Given) -> Result<Self> {
        let now = Instant::now();
        let adviser = Adviser::of(&plan, given.rule, now);
        Ok(Self {
            plan,
            adviser,
            output: given.output,
            held: given.held,
            record: given.record,
            signals: Signals::take()?,
            terminal: Terminal::open(),
            listener: given.listener,
            jobs: given.jobs,
            footing: Footing::new(now),
            clients: Vec::new(),
            members: Members::new(given.door),
            reason: hdcr::Reason::Crash,
            stdio_began: AsBegan::of(&given.stdio),
            stdio: given.stdio,
            outside: given.outside,
            phase: Phase::Running,
            ran_before: Duration::ZERO,
            since: now,
            line: Line::default(),
            came_from: None,
            history: History::default(),
            passed_on: BTreeMap::new(),
            ended_early: BTreeMap::new(),
            next_checkpoint: now,
            rhythm: Rhythm::default(),
            began: now,
            told_every: None,
            patience: None,
            brings_back: Lazy::Never,
            failures: 0,
            moments: 0,
            trouble: None,
            slow: None,
            told_slow: false,
            shortage: Shortage::default(),
            starved: false,
            crash: None,
            told: Vec::new(),
            told_trouble: None,
            notes: Vec::new(),
            warned: BTreeSet::new(),
            watch: None,
            unnamed: Unnamed::default(),
            remembered: Remembered::default(),
            work: None,
            spare: None,
            whole: None,
            wishes: VecDeque::new(),
            stop: None,
            verdict: None,
            is_others: false,
        })
    }

    /// Waits for events and follows them until the job is over.
    fn until_done(&mut self) -> Result<u8> {
        loop {
            if let Phase::Done(status) = self.phase {
                return Ok(status);
            }
            let ready = self.wait()?;
            if let Some(watch) = &mut self.watch {
                watch.drain();
                self.tell_overlay();
            }
            while let Some(received) = self.signals.next() {
                self.on_signal(received)?;
            }
            if ready.worker {
                self.on_answer()?;
            }
            // After the answer: the program may stand still, and wait for it.
            self.log_files();
            while let Some((pid, change)) = next_change() {
                self.on_change(pid, change)?;
            }
            if ready.listener {
                self.clients.extend(Client::accept(&self.listener));
            }
            self.on_clients();
            self.on_members();
            self.on_rule();
            self.on_time()?;
        }
    }

    fn wait(&self) -> Result<Ready> {
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.listener.socket.as_fd()];
        fds.extend(self.clients.iter().map(|client| client.stream.as_fd()));
        fds.extend(self.watch.iter().map(Watch::fd));
        fds.extend(self.members.fds());
        fds.extend(self.adviser.iter().filter_map(Adviser::fd));
        let listening = self.work.as_ref().filter(|work| work.listens);
        fds.extend(listening.map(|work| work.worker.as_fd()));
        let ready = self.signals.wait(&mut fds, self.time_left())?;
        Ok(Ready { listener: ready.first() == Some(&true), worker: listening.is_some() && ready.last() == Some(&true) })
    }

    fn on_signal(&mut self, received: Received) -> Result<()> {
        let request = REQUESTS_TO_END.contains(&received.number);
        match self.phase {
            Phase::Running => {
                if !self.holds_back(received) {
                    self.pass_on(received);
                }
                Ok(())
            }
            Phase::Restoring(_) | Phase::Waiting(_) if request => {
                self.give_up_restore()?;
                self.finish(State::Paused, crate::process::shell_status(Death::Signal(received.number)));
                Ok(())
            }
            Phase::Restoring(_) | Phase::Waiting(_) | Phase::Dying(_) | Phase::Done(_) => Ok(()),
        }
    }

    /// Passes a signal on to the program.
    pub(super) fn pass_on(&mut self, received: Received) {
        self.passed_on.insert(received.number, Instant::now());
        if !(received.by_terminal && self.terminal.shares_group()) {
            signal(self.record.main, received.number);
        }
    }

    fn on_change(&mut self, pid: i32, change: Change) -> Result<()> {
        let worker = self.work.as_ref().is_some_and(|work| work.worker.pid() == pid);
        match change {
            Change::Ended(_) if worker => self.on_worker_end(),
            Change::Ended(_) if self.spare.as_ref().is_some_and(|spare| spare.pid() == pid) => {
                self.spare = None;
                Ok(())
            }
            Change::Ended(death) if pid == self.record.main && self.phase == Phase::Running => self.on_death(death),
            Change::Ended(death) if matches!(self.phase, Phase::Restoring(_)) => {
                self.ended_early.insert(pid, death);
                Ok(())
            }
            Change::Stopped(signal) if pid == self.record.main => {
                if let (Stopped::Outside, Some(outside)) = (self.terminal.program_stopped(signal), &self.outside) {
                    namespace::tell_stopped(outside);
                }
                Ok(())
            }
            Change::Ended(_) | Change::Stopped(_) | Change::Continued => Ok(()),
        }
    }

    /// Remembers how the job ended and tells everybody who waits for it.
    fn close(mut self, ended: Result<u8>) -> Result<u8> {
        self.terminal.take_back();
        self.end_series();
        self.log_files();
        if ended.is_err() {
            self.leave_work();
            self.record.state = State::Paused;
        } else if self.record.state == State::Paused && !self.is_others {
            self.write_files_of_the_dead();
        }
        if !self.is_others
            && let Err(failure) = self.held.write(&self.record)
        {
            self.note(&failure.to_string());
        }
        let nothing_left = ended.is_ok() && !self.is_others && !self.may_be_needed();
        let status = *ended.as_ref().unwrap_or(&70);
        for client in self.stop.take().into_iter().flat_map(|stop| stop.clients) {
            client.answer(&Answer::Stopped(status));
        }
        let message = format!("job {} has ended", self.plan.name);
        let over = Failure::new(crate::failure::Class::Changed, "job-ended", message);
        for asker in self.wishes.drain(..).map(|wish| wish.asker) {
            asker.failed(&over);
        }
        for client in self.clients.drain(..) {
            client.answer(&Answer::Failed(over.clone()));
        }
        self.dismiss_members(&over);
        if nothing_left && let Err(failure) = self.held.forget() {
            self.output.detail(&failure.to_string());
        }
        match (self.verdict.take(), &ended) {
            (Some(verdict), _) => self.output.failure(&verdict, true),
            (None, Ok(status)) => self.output.object_aside(&Over {
                job: self.plan.name.to_string(),
                status: *status,
                goes_on: self.record.state == State::Paused && self.line.newest().is_some(),
                restarts: self.history.restarts,
                newest: self.line.newest().map(|made| made.number),
            }),
            (None, Err(_)) => {}
        }
        ended
    }

    /// Whether there is a checkpoint of the job, so that its record means something.
    fn may_be_needed(&self) -> bool {
        parts::numbers(&self.plan.store, &self.plan.name).map_or(true, |numbers| !numbers.is_empty())
    }

    /// Tells the user something, in what may be a file that is rolled back with the program.
    pub(super) fn note(&self, text: &str) {
        self.output.note_at_end(text);
    }

    /// Tells what a user should know of what was done.
    pub(super) fn tell_notes(&self, notes: &[Obstacle]) {
        for note in told(notes, self.output.verbose > 0) {
            self.note(&note);
        }
    }

    /// Likewise of what a roll-back has done: again after the next one, where that has cut it off.
    pub(super) fn tell_rolled_back(&mut self, notes: &[Obstacle]) {
        for note in told(notes, self.output.verbose > 0) {
            self.told.extend(self.output.note_at_end(&note));
        }
        let spare = self.told.len().saturating_sub(REPEATED);
        self.told.drain(..spare);
    }

    /// Tells of the crash that was rolled back, and once more of earlier ones where that has been cut off.
    pub(super) fn tell_crash(&mut self) {
        let Some(crash) = self.crash.take() else { return };
        let mut again = Vec::new();
        let mut trouble = None;
        if let Ok(file) = File::open("/proc/self/fd/2") {
            again = self.told.extract_if(.., |said| !said.stands_in(&file)).map(|said| said.text).collect();
            trouble = self.told_trouble.take_if(|said| !said.stands_in(&file));
        }
        for text in again.into_iter().chain([crash]) {
            self.told.extend(self.output.note_at_end(&text));
        }
        if let Some(said) = trouble {
            self.told_trouble = self.output.note_at_end(&said.text);
        }
    }

    /// Tells a curious user something.
    pub(super) fn detail(&self, text: &str) {
        if self.output.verbose > 0 {
            self.note(text);
        }
    }

    /// The job is over.
    pub(super) fn finish(&mut self, state: State, status: u8) {
        if state == State::Ended {
            self.forget_files();
        }
        self.record.state = state;
        self.record.status = Some(status);
        self.phase = Phase::Done(status);
    }

    /// How long the program has run, along the line of its checkpoints.
    pub(super) fn ran(&self) -> Duration {
        match self.phase {
            Phase::Running | Phase::Dying(_) => self.ran_before + self.since.elapsed(),
            Phase::Restoring(_) | Phase::Waiting(_) | Phase::Done(_) => self.ran_before,
        }
    }

    /// A checkpoint of this job in the store.
    pub(super) fn place(&self, number: u64) -> Place {
        Place::Store { root: self.plan.store.clone(), job: self.plan.name.to_string(), number }
    }
}

/// How a job ended, for programs.
#[derive(Debug, Serialize)]
struct Over {
    job: String,
    status: u8,
    /// The same command goes on from the newest checkpoint.
    goes_on: bool,
    restarts: u32,
    newest: Option<u64>,
}

/// Which descriptors have something to be read.
#[derive(Debug)]
struct Ready {
    listener: bool,
    worker: bool,
}
