//! The agent of a host: parent and reaper of the programs there, and one loop that makes events of the protocol of what
//! happens, and carries out what it wants done. It decides nothing, and waits for nothing but for events.
//!
//! It is the first process of a pid namespace of its own, so that its death is the end of all below it, and the pids of an
//! image are free. Checkpoints and restores are made by workers, which wait at gates for the next step.
//!
//! - `taking.rs`: a checkpoint from gate to gate
//! - `building.rs`: a restore that is held until all hosts have built theirs
//! - `programs.rs`: programs begin and end, and all below is killed
//! - `entrance.rs`: how an agent begins

mod building;
mod entrance;
mod programs;
mod taking;

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hdcr_sync::Participant;
use hdcr_sync::ids::Stamp;
use hdcr_sync::message::Report;
use hdcr_sync::participant::{Effect, Event, Work};

use super::letter::{Notice, ToAgent, ToSeat};
use super::room::{Life, Room, Spec};
use super::transport::{HeardHere, Line};
use crate::failure::{Failure, Result};
use crate::host::Host;
use crate::process::next_change;
use crate::signals::{REQUESTS_TO_END, Signals};
use crate::worker::Worker;

use building::Building;
pub(crate) use entrance::enter;
use programs::{After, Killing, Programs};
use taking::Taker;

/// So often it is looked for what tells of itself by no descriptor.
const BEAT: Duration = Duration::from_secs(1);

/// The agent of a member.
#[derive(Debug)]
struct Agent {
    me: u32,
    job: String,
    room: Room,
    life: Life,
    spec: Spec,
    participant: Participant,
    line: Box<dyn Line>,
    signals: Signals,
    /// Standard input, output and error of programs that are brought back.
    stdio: [OwnedFd; 3],
    /// Where it is known that a worker is at the programs.
    at_work: PathBuf,
    /// What has happened and was not told to the participant yet.
    events: VecDeque<Event>,
    lease: Option<(Stamp, Instant)>,
    taker: Option<Taker>,
    /// Has taken a checkpoint, and ends.
    spent: Option<Worker>,
    building: Option<Building>,
    programs: Programs,
    killing: Option<Killing>,
    /// When it is looked for whether the job is over.
    next_look: Instant,
    /// It is over, with this status.
    over: Option<u8>,
}

impl Agent {
    /// Follows events until the job is over.
    fn until_over(&mut self) -> Result<u8> {
        loop {
            self.follow();
            if let Some(status) = self.over {
                return Ok(status);
            }
            self.wait()?;
            for heard in self.line.hear() {
                self.on_heard(heard);
            }
            while let Some(received) = self.signals.next() {
                if REQUESTS_TO_END.contains(&received.number) {
                    self.kill_all(After::Over);
                }
            }
            self.on_taker();
            self.on_builders();
            while let Some((pid, change)) = next_change() {
                self.on_change(pid, change);
            }
            self.look_whether_running();
            self.on_time();
        }
    }

    fn wait(&self) -> Result<()> {
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.line.fd()];
        fds.extend(self.taker.iter().map(|taker| taker.worker.as_fd()));
        fds.extend(self.building.iter().flat_map(Building::fds));
        self.signals.wait(&mut fds, Some(self.time_left())).map(drop)
    }

    fn time_left(&self) -> Duration {
        let lease = self.lease.map(|(_, until)| until);
        let taker = self.taker.as_ref().and_then(|taker| taker.until);
        let building = self.building.as_ref().map(|building| building.until);
        let killing = self.killing.as_ref().map(|killing| killing.next);
        let now = Instant::now();
        let first = [lease, taker, building, killing].into_iter().flatten().min();
        first.map_or(BEAT, |first| first.saturating_duration_since(now).min(BEAT))
    }

    /// Tells the participant what has happened, and does what it wants, until it wants nothing more.
    fn follow(&mut self) {
        while let Some(event) = self.events.pop_front() {
            tracing::trace!(?event, "agent {}", self.me);
            for effect in self.participant.step(event) {
                self.act(effect);
            }
        }
    }

    fn act(&mut self, effect: Effect) {
        tracing::trace!(?effect, "agent {}", self.me);
        match effect {
            Effect::Send(report) => self.send(report),
            Effect::ArmLease(stamp) => {
                let limit = if self.participant.is_at_gate() { self.gate_lease() } else { self.spec.lease };
                self.lease = Some((stamp, Instant::now() + limit));
            }
            Effect::DropLease => self.lease = None,
            Effect::Work(work, stamp) => self.work(work, stamp),
        }
    }

    /// Others may build larger images, and one may be built anew after a failure.
    fn gate_lease(&self) -> Duration {
        self.spec.lease.saturating_mul(4)
    }

    fn work(&mut self, work: Work, stamp: Stamp) {
        match work {
            Work::Quiesce => self.begin_taking(stamp),
            // What leads out of the tree is refused at the survey, so there is no network to be held.
            Work::Hold => self.events.push_back(Event::Done(Work::Hold, stamp)),
            Work::Freeze | Work::Capture => self.next_gate(&work, stamp),
            Work::Thaw => self.thaw(),
            Work::Persist => self.persist(stamp),
            // Each image is a whole one: nothing builds on it, and nothing was lost with one that was given up.
            Work::Settle => {}
            Work::Merge => self.give_up_taking(),
            Work::Admit => self.begin_program(),
            Work::Kill => self.kill_all(After::Killed(stamp)),
            Work::Restore(shares) => self.begin_building(shares, stamp),
            Work::Release => self.release(stamp),
        }
    }

    fn send(&self, report: Report) {
        self.line.tell(ToSeat::Report(report).encode());
    }

    fn tell(&self, notice: Notice) {
        self.line.tell(ToSeat::Notice(notice).encode());
    }

    /// A piece of work failed: people are told why, the protocol that it did.
    fn failed(&mut self, work: Work, stamp: Stamp, failure: Failure) {
        tracing::debug!(%failure, ?work, "agent {}", self.me);
        self.tell(Notice::Failed(failure));
        self.events.push_back(Event::Failed(work, stamp));
    }

    fn on_heard(&mut self, heard: HeardHere) {
        match heard {
            HeardHere::Came => {
                self.tell(Notice::Here { life: self.life.number, host: Host::here().called().to_owned() });
                self.tell_statuses();
            }
            // It goes on: a lease ends what must not.
            HeardHere::Went => {}
            HeardHere::Said(letter) => match ToAgent::decode(&letter) {
                Ok(ToAgent::Order(order)) if order.to.0 == self.me => self.events.push_back(Event::Order(order)),
                Ok(ToAgent::Order(order)) => tracing::warn!("an order for member {} came to {}", order.to.0, self.me),
                Ok(ToAgent::Finish(life)) if life >= self.life.number => self.kill_all(After::Over),
                Ok(ToAgent::Finish(_)) => {}
                Err(failure) => tracing::warn!(%failure, "from the coordinator"),
            },
        }
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if let Some((stamp, _)) = self.lease.filter(|(_, until)| *until <= now) {
            self.lease = None;
            self.events.push_back(Event::LeaseEnded(stamp));
        }
        self.end_late_taker(now);
        self.end_late_building(now);
        self.go_on_killing(now);
        if self.killing.is_none() && self.next_look <= now {
            self.next_look = now + BEAT;
            if self.is_left_alone() {
                self.kill_all(After::Over);
            }
        }
    }

    /// Whether the life that this belongs to is over, and nobody has said so.
    fn is_left_alone(&self) -> bool {
        let is_over = self.life.file("end.json").exists();
        is_over || self.room.life().ok().flatten().is_some_and(|present| present.number > self.life.number)
    }
}
