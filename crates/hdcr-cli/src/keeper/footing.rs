//! What a keeper stands on: its record and lock in the store, its checkpoints there, its socket. Somebody may remove any
//! of it while the job runs; the keeper makes it again, says what is lost, and goes on.

use std::time::{Duration, Instant};

use super::{Keeper, Phase};
use crate::door::Door;
use crate::failure::{Failure, Result};
use crate::foreground::KILL_LIMIT;
use crate::host::Host;
use crate::job::{self, Held};
use crate::output::counted;
use crate::parts;
use crate::process;
use crate::registry::Registry;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// What was seen last.
#[derive(Debug)]
pub(crate) struct Footing {
    pub(super) next: Instant,
    /// What could not be made again; told once.
    trouble: Option<String>,
}

impl Footing {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now + LOOK, trouble: None }
    }
}

impl Keeper {
    /// Looks whether all is there that others find the job by, when it is time.
    pub(super) fn look_after_footing(&mut self, now: Instant) {
        if now < self.footing.next {
            return;
        }
        self.footing.next = now + LOOK;
        if let Some(other) = self.taken_over() {
            return self.give_way(&other);
        }
        let stands = self.hold_again().and_then(|()| self.listen_again());
        self.miss_checkpoints();
        match stands {
            Ok(()) => self.footing.trouble = None,
            Err(failure) if self.footing.trouble.as_ref() != Some(&failure.message) => {
                self.note(&format!("job {} runs on, but nobody can find it: {failure}", self.plan.name));
                self.footing.trouble = Some(failure.message);
            }
            Err(_) => {}
        }
    }

    /// The machine that has been told to run the job instead of this one, where locks do not reach from one to the other.
    pub(super) fn taken_over(&self) -> Option<Host> {
        let record = job::peek(&self.plan.store, &self.plan.name).ok().flatten()?;
        (!record.host.is_this_boot()).then_some(record.host)
    }

    /// Ends the job here: two of it would write the same files.
    pub(super) fn give_way(&mut self, other: &Host) {
        self.drop_work();
        let message = format!("job {} was taken over by host {}, and ends here", self.plan.name, other.called());
        let mut verdict = Failure::refused("taken-over", message);
        if let Err(failure) = process::kill_all_below(&self.signals, KILL_LIMIT, &mut |_, _| {}) {
            verdict = verdict.remedy(failure.to_string());
        }
        let status = verdict.class.status();
        self.verdict = Some(verdict);
        self.is_others = true;
        self.record.status = Some(status);
        self.phase = Phase::Done(status);
    }

    fn hold_again(&mut self) -> Result<()> {
        if self.held.is_there() {
            return Ok(());
        }
        if !self.held.is_locked() {
            // Not over a lock that is held by a keeper which has found the place empty.
            self.held = Held::take(&self.plan.store, &self.plan.name)?;
        }
        self.held.write(&self.record)?;
        let store = self.plan.store.display();
        self.note(&format!("the record of job {} in {store} was removed; it is made again", self.plan.name));
        Ok(())
    }

    fn listen_again(&mut self) -> Result<()> {
        if !self.members.door.is_there() {
            self.members.door = Door::open(&Registry::open(&self.jobs)?, &self.plan.name)?;
        }
        if self.listener.is_there() {
            return Ok(());
        }
        self.listener = Registry::open(&self.jobs)?.listen(&self.plan.name, &self.plan.store)?;
        self.note(&format!("the socket of job {} was removed; it is made again", self.plan.name));
        Ok(())
    }

    /// Checkpoints that are gone are no longer counted on; when the newest one is, another one is taken at once.
    fn miss_checkpoints(&mut self) {
        let busy = self.work.is_some() || self.phase != Phase::Running;
        let Some(newest) = self.line.newest().map(|made| made.number).filter(|_| !busy) else { return };
        let Ok(there) = parts::numbers(&self.plan.store, &self.plan.name) else { return };
        if there.contains(&newest) {
            return;
        }
        let lost: Vec<u64> = self.line.numbers().into_iter().filter(|number| !there.contains(number)).collect();
        self.line.remove(&lost);
        if there.is_empty() {
            // Numbers begin anew.
            (self.record.after, self.record.went_back) = (0, None);
            self.remember();
        }
        self.came_from = self.line.present().map(|number| self.place(number));
        self.keep_what_counts();
        self.note(&format!(
            "{} of job {} removed, the newest among them; a new one is taken now",
            counted(lost.len(), "checkpoint", "checkpoints"),
            self.plan.name
        ));
        self.checkpoint_soon(Duration::ZERO);
    }

    /// Writes the record. A job whose store is gone runs on: it is written when the store is there again.
    pub(super) fn remember(&mut self) {
        if let Err(failure) = self.held.write(&self.record) {
            tracing::debug!(%failure, "the record is written later");
        }
    }

    /// Whether there is a program that needs its keeper.
    pub(super) fn program_lives(&self) -> bool {
        self.phase == Phase::Running && process::lives(self.record.main)
    }

    /// Says who lives on when the job is over: daemons, and what was left in the background.
    pub(super) fn tell_who_is_left(&self) {
        let own = std::process::id().cast_signed();
        let worker = self.work.as_ref().map(|work| work.worker.pid());
        let left = process::below(own).into_iter().filter(|pid| Some(*pid) != worker && process::lives(*pid));
        let left: Vec<String> = left.map(|pid| format!("{pid} ({})", process::name(pid))).collect();
        if left.is_empty() {
            return;
        }
        let then = match (self.record.private_pids, left.len()) {
            (true, 1) => "ends with its pid namespace",
            (true, _) => "end with its pid namespace",
            (false, 1) => "runs on without a keeper",
            (false, _) => "run on without a keeper",
        };
        self.note(&format!(
            "job {} has ended; {} that it began {then}: {}",
            self.plan.name,
            counted(left.len(), "process", "processes"),
            left.join(", ")
        ));
    }

    /// Goes on after a failure of its own as long as there is a program that needs it.
    pub(super) fn go_on(&mut self) -> Result<u8> {
        const STUMBLES: usize = 8;
        let mut ended = self.until_done();
        for _ in 0..STUMBLES {
            match ended {
                Err(failure) if self.program_lives() => {
                    self.note(&format!("job {} runs on after a fault of its keeper: {failure}", self.plan.name));
                    ended = self.until_done();
                }
                over => return over,
            }
        }
        ended.map_err(|failure: Failure| {
            if !self.program_lives() {
                return failure;
            }
            let pid = self.record.main;
            failure.remedy(format!(
                "its program runs on without a keeper, as pid {pid}; `hdcr stop {}` ends it",
                self.plan.name
            ))
        })
    }
}
