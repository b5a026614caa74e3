//! The programs of an agent: how they begin, how they end, and how all of them are killed.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdcr_policy::restart::Death;
use hdcr_sync::ids::Stamp;
use hdcr_sync::participant::{Event, Work};
use nix::sys::signal::Signal;

use super::super::letter::Notice;
use super::super::shares::Program;
use super::Agent;
use crate::failure::{Class, Failure};
use crate::process::{self, Change, shell_status};

/// While all is being killed it is looked again so often.
const STEP: Duration = Duration::from_millis(5);
/// What does not end in this time is told of.
const LONG: Duration = Duration::from_secs(10);

/// The member that a program belongs to.
const MEMBER: &str = "HDCR_MEMBER";
/// How many members the job has.
const MEMBERS: &str = "HDCR_MEMBERS";

/// What runs here.
#[derive(Debug, Default)]
pub(super) struct Programs {
    running: Vec<Program>,
    /// Those that have come to their own end, with their status.
    ended: BTreeMap<u32, u8>,
    /// Children that ended before it was known whose they are.
    early: BTreeMap<i32, Death>,
    /// That all have ended was told to the participant.
    is_told: bool,
}

impl Programs {
    /// The programs of an image run again; those that are not among its roots had ended by then.
    pub(super) fn come_back(&mut self, programs: &[Program], roots: &[i32]) {
        for program in programs {
            if roots.contains(&program.pid) {
                self.running.push(*program);
            } else {
                self.ended.insert(program.member, 0);
            }
        }
    }

    /// All of them; one that has come to its end has no number. Only those with status 0 are there then: another status ends the
    /// job.
    pub(super) fn all(&self) -> Vec<Program> {
        let ended = self.ended.keys().map(|member| Program { member: *member, pid: 0 });
        self.running.iter().copied().chain(ended).collect()
    }
}

/// All below is being killed.
#[derive(Debug)]
pub(super) struct Killing {
    after: After,
    began: Instant,
    pub(super) next: Instant,
    is_told: bool,
}

/// What follows when nothing is left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum After {
    /// It was asked for.
    Killed(Stamp),
    /// A piece of work has failed, and this is what was left of it.
    Failed(Work, Stamp),
    /// The agent ends.
    Over,
}

impl Agent {
    /// Starts the program of this member from its beginning.
    pub(super) fn begin_program(&mut self) {
        let unblock: Vec<String> = self.signals.to_unblock().iter().map(ToString::to_string).collect();
        let mut command = process::this_program();
        command.arg("__program");
        command.args(unblock.iter().map(|number| format!("--unblock={number}")));
        command.arg("--").args(&self.spec.command).current_dir(&self.spec.directory);
        command.env(hdcr::wire::JOB, &self.job).env_remove(hdcr::wire::CONTROL);
        command.env(MEMBER, self.me.to_string()).env(MEMBERS, self.spec.members.to_string());
        let spawned = self.own_stdio().map(|[input, output, error]| {
            command.stdin(input).stdout(output).stderr(error);
            command.spawn()
        });
        match spawned.and_then(|spawned| spawned).map_err(Failure::system("starting the program")) {
            Ok(child) => {
                self.programs.is_told = false;
                self.programs.running.push(Program { member: self.me, pid: child.id().cast_signed() });
            }
            Err(failure) => {
                self.tell(Notice::Failed(failure));
                self.has_ended(self.me, Class::Failed.status());
                self.look_for_the_end();
            }
        }
    }

    fn own_stdio(&self) -> std::io::Result<[OwnedFd; 3]> {
        let [input, output, error] = &self.stdio;
        Ok([input.try_clone()?, output.try_clone()?, error.try_clone()?])
    }

    /// A child has changed.
    pub(super) fn on_change(&mut self, pid: i32, change: Change) {
        let Change::Ended(death) = change else { return };
        self.spent.take_if(|worker| worker.pid() == pid);
        if self.builder_ended(pid) {
            return;
        }
        match self.programs.running.iter().position(|program| program.pid == pid) {
            Some(place) => {
                let program = self.programs.running.remove(place);
                self.program_ended(program, death);
            }
            None if self.building.is_some() => {
                self.programs.early.insert(pid, death);
            }
            None => {}
        }
        self.look_for_the_end();
    }

    fn program_ended(&mut self, program: Program, death: Death) {
        match death {
            Death::Exit(_) => self.has_ended(program.member, shell_status(death)),
            Death::Signal(signal) => {
                self.tell(Notice::Killed { member: program.member, signal });
                self.events.push_back(Event::Died);
            }
        }
    }

    fn has_ended(&mut self, member: u32, status: u8) {
        self.programs.ended.insert(member, status);
        self.tell(Notice::Ended { member, status });
    }

    /// Programs of an image are let go; some may have ended since.
    pub(super) fn look_for_early_ends(&mut self) {
        let early = std::mem::take(&mut self.programs.early);
        for (pid, death) in early {
            self.on_change(pid, Change::Ended(death));
        }
        self.look_for_the_end();
    }

    /// Tells again how programs have ended: the coordinator may be another one, which does not know.
    pub(super) fn tell_statuses(&self) {
        for (member, status) in &self.programs.ended {
            self.tell(Notice::Ended { member: *member, status: *status });
        }
    }

    /// When the last program has ended, and all that it has left behind.
    fn look_for_the_end(&mut self) {
        let programs = &self.programs;
        let may_be = programs.running.is_empty() && !programs.ended.is_empty() && !programs.is_told;
        if !may_be || self.building.is_some() || self.killing.is_some() {
            return;
        }
        let worker = self.taker.as_ref().map(|taker| taker.worker.pid());
        let own = std::process::id().cast_signed();
        if process::below(own).into_iter().all(|pid| Some(pid) == worker) {
            self.programs.is_told = true;
            self.events.push_back(Event::Ended);
        }
    }

    /// Kills everything below, and does what follows when nothing is left.
    pub(super) fn kill_all(&mut self, after: After) {
        // Their processes are among those that are killed; the channels are closed here.
        self.taker = None;
        self.building = None;
        self.programs = Programs::default();
        let now = Instant::now();
        let began = self.killing.as_ref().map_or(now, |killing| killing.began);
        let is_over = self.killing.as_ref().is_some_and(|killing| killing.after == After::Over);
        let after = if is_over { After::Over } else { after };
        self.killing = Some(Killing { after, began, next: now, is_told: false });
        self.go_on_killing(now);
    }

    pub(super) fn go_on_killing(&mut self, now: Instant) {
        let Some(killing) = self.killing.as_mut().filter(|killing| killing.next <= now) else {
            return self.end_is_near();
        };
        let left = process::below(std::process::id().cast_signed());
        for pid in &left {
            process::signal(*pid, Signal::SIGKILL as i32);
        }
        killing.next = now + STEP;
        if left.is_empty() {
            let after = killing.after.clone();
            self.killing = None;
            return self.all_is_killed(after);
        }
        if !killing.is_told && now.saturating_duration_since(killing.began) > LONG {
            killing.is_told = true;
            let first = left.first().copied().unwrap_or(0);
            let message = format!("process {first} ({}) does not end although it was killed", process::name(first));
            self.tell(Notice::Failed(Failure::new(Class::Failed, "unkillable", message)));
        }
    }

    fn all_is_killed(&mut self, after: After) {
        match after {
            After::Killed(stamp) => self.events.push_back(Event::Done(Work::Kill, stamp)),
            After::Failed(work, stamp) => self.events.push_back(Event::Failed(work, stamp)),
            After::Over => self.over = Some(0),
        }
    }

    /// Grandchildren that become our own children tell nobody of their end but by being reaped.
    fn end_is_near(&mut self) {
        if self.killing.is_none() {
            self.look_for_the_end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an image tells of whose programs are in it, also of those that have left only others behind.
    #[test]
    fn who_has_ended_is_known_after_a_rollback() {
        let of = |member, pid| Program { member, pid };
        let mut before = Programs { running: vec![of(1, 70)], ..Programs::default() };
        before.ended.insert(0, 0);
        let told = before.all();
        assert_eq!(told, [of(1, 70), of(0, 0)]);
        let mut after = Programs::default();
        after.come_back(&told, &[70, 71]);
        assert_eq!((after.running.as_slice(), &after.ended), (&[of(1, 70)][..], &before.ended));
        // One that was among them and had ended by the time it was read.
        let mut later = Programs::default();
        later.come_back(&told, &[71]);
        assert!(later.running.is_empty() && later.ended.len() == 2);
    }
}
