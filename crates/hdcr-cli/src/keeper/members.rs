//! What the program itself asks of its keeper (`hdcr::wire`): who it is, a checkpoint, a roll-back.
//!
//! The program is not trusted: only processes of the job are heard, each packet has its limit, there are so many
//! connections at most, and nobody is waited for.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use hdcr::Heard;
use hdcr::wire::{self, Answer, Ask, Welcome};

use super::asker::Asker;
use super::checkpoints::Wish;
use super::rounds::Rounds;
use super::{Keeper, Phase};
use crate::door::{Caller, Door};
use crate::failure::{Class, Failure, Result};
use crate::foreground::KILL_LIMIT;
use crate::kinds::Then;
use crate::output::counted;
use crate::process::{self, kill_all_below};

/// Connections of programs. This process inherits its limit of descriptors to the program, and must not raise it.
const CALLERS: usize = 512;

/// Parts of the memory of one process that can be left out.
const REGIONS: usize = 1024;
/// The thread of the library, which a process loses by an exec.
const AGENT: &str = "hdcr-agent";

/// The conversations with the program.
#[derive(Debug)]
pub(crate) struct Members {
    pub(super) door: Door,
    /// Have said nothing yet that takes time.
    callers: Vec<Caller>,
    pub(super) rounds: Rounds,
    /// What processes had left out in the image that they come from, until they say so themselves.
    from_image: BTreeMap<i32, Vec<(u64, u64)>>,
    /// Wants the job to go back.
    rollback: Option<(Caller, Option<u64>)>,
}

impl Members {
    pub(super) fn new(door: Door) -> Self {
        Self { door, callers: Vec::new(), rounds: Rounds::default(), from_image: BTreeMap::new(), rollback: None }
    }

    /// Where they speak. Nobody more is let in when there are too many.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let door = (self.count() < CALLERS).then(|| self.door.as_fd());
        door.into_iter().chain(self.callers.iter().chain(self.rounds.callers()).map(|caller| caller.link.as_fd()))
    }

    fn count(&self) -> usize {
        self.callers.len() + self.rounds.callers().count()
    }

    /// Those who have just connected and belong to the job.
    fn let_in(&mut self) {
        let own = std::process::id().cast_signed();
        while self.count() < CALLERS
            && let Some(caller) = self.door.next()
        {
            if process::is_below(caller.pid, own) {
                self.callers.push(caller);
            } else {
                tracing::debug!(pid = caller.pid, "somebody else than the program has connected");
            }
        }
    }

    /// The memory that is left out now: process, start, end. After an exec nothing is, whoever else has the connection.
    pub(super) fn omitted(&self) -> Vec<(i32, u64, u64)> {
        let own = self.callers.iter().map(|caller| (caller.pid, &caller.omitted));
        let all = own.chain(self.from_image.iter().map(|(pid, ranges)| (*pid, ranges)));
        let all = all.filter(|(pid, ranges)| !ranges.is_empty() && process::has_thread(*pid, AGENT));
        all.flat_map(|(pid, ranges)| ranges.iter().map(move |(start, end)| (pid, *start, *end))).collect()
    }

    /// A restored program has left this out.
    pub(super) fn come_from_image(&mut self, omitted: &[(i32, u64, u64)]) {
        self.from_image.clear();
        for (pid, start, end) in omitted {
            self.from_image.entry(*pid).or_default().push((*start, *end));
        }
    }

    /// Answers those who wait until no checkpoint is being taken that does not know what they leave out.
    fn tell_omitted(&mut self) {
        for caller in self.callers.iter_mut().filter(|caller| caller.waits) {
            caller.waits = false;
            if let Err(error) = caller.link.send(&Answer::Omitted {}) {
                tracing::debug!(%error, pid = caller.pid, "a program did not take its answer");
            }
        }
    }

    /// Whether a roll-back is to be made when nothing else is at work.
    pub(super) fn wants_back(&self) -> bool {
        self.rollback.is_some()
    }
}

impl Keeper {
    /// Hears the program.
    pub(super) fn on_members(&mut self) {
        self.on_rounds();
        self.members.let_in();
        for caller in std::mem::take(&mut self.members.callers) {
            match caller.link.hear() {
                Ok(Heard::Nothing) => self.members.callers.push(caller),
                Ok(Heard::Said(ask)) => self.on_ask(caller, &ask),
                Ok(Heard::Ended) => {}
                Err(error) => tracing::debug!(%error, pid = caller.pid, "a program says what is no request"),
            }
        }
        if !self.is_capturing() {
            self.members.tell_omitted();
        }
    }

    fn on_ask(&mut self, caller: Caller, ask: &Ask) {
        match *ask {
            Ask::Hello { .. } => {
                let welcome =
                    Welcome { version: wire::VERSION, job: self.plan.name.to_string(), count: self.record.returned };
                if caller.link.send(&Answer::Welcome(welcome)).is_ok() {
                    self.members.callers.push(caller);
                }
            }
            Ask::Checkpoint { timeout_ms } => {
                let timeout = timeout_ms.map_or(self.plan.timeout, Duration::from_millis).min(self.plan.timeout);
                let (then, asked) = (Then::GoOn, Instant::now());
                self.wishes.push_back(Wish {
                    asker: Asker::Program(caller),
                    target: None,
                    files: None,
                    timeout,
                    then,
                    asked,
                });
            }
            Ask::Omit { ref ranges } if ranges.len() <= REGIONS => {
                self.members.from_image.remove(&caller.pid);
                self.members.callers.push(Caller { omitted: ranges.clone(), waits: true, ..caller });
            }
            Ask::Omit { .. } => caller.failed(&Failure::refused("too-many-regions", "so much is not left out")),
            Ask::Moment {} => {
                self.members.callers.push(caller);
                self.on_good_moment();
            }
            Ask::Attend {} => self.members.rounds.attend(caller),
            // Of those only who attend.
            Ask::Ready { .. } | Ask::Veto { .. } => {}
            Ask::Rollback { to } => match self.members.rollback {
                None => self.members.rollback = Some((caller, to)),
                Some(_) => caller.failed(&Failure::new(Class::Changed, "rollback-runs", "a roll-back is under way")),
            },
        }
    }

    /// Goes back as the program has asked, if it can be done.
    pub(super) fn roll_back(&mut self) -> Result<()> {
        let Some((caller, to)) = self.members.rollback.take() else { return Ok(()) };
        let target = match to {
            None => self.line.newest(),
            Some(number) => self.line.find(number),
        };
        let Some(target) = target else {
            let what = to.map_or_else(|| "no checkpoint yet".to_owned(), |number| format!("no checkpoint {number}"));
            caller.failed(&Failure::refused("no-such-checkpoint", format!("the job has {what}")));
            return Ok(());
        };
        let ran = self.ran();
        let lost = crate::duration::show(ran.saturating_sub(target.at));
        let place = self.place(target.number);
        self.crash =
            Some(format!("job {}: rolled back to {place} as it asked for ({lost} of work undone)", self.plan.name));
        (self.ran_before, self.since) = (ran, Instant::now());
        self.phase = Phase::Restoring(target.number);
        self.end_series();
        kill_all_below(&self.signals, KILL_LIMIT, &mut |_, _| {})?;
        self.reason = hdcr::Reason::Rollback;
        self.restore(target)
    }

    /// Says to those who wait for the program's sake that it is over.
    pub(super) fn dismiss_members(&mut self, why: &Failure) {
        if let Some((caller, _)) = self.members.rollback.take() {
            caller.failed(why);
        }
        let left = self.members.callers.len();
        if left > 0 {
            tracing::debug!("{} left", counted(left, "connection", "connections"));
        }
        self.members.callers.clear();
        self.members.rounds.forget();
    }
}
