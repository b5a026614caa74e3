//! The coordinator of a parallel job: one loop that makes events of the protocol of what happens, and carries out what it
//! wants done. It decides nothing. Killed at any moment, it is begun again by the same command, and goes on from the ledger.
//!
//! - `course.rs`: lives of a job one after the other, until it has ended
//! - `effects.rs`: what the protocol wants done
//! - `launch.rs`: agents on this host; members that are away
//! - `questions.rs`: what commands ask

mod course;
mod effects;
mod launch;
pub(crate) mod questions;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use hdcr_image::JobName;
use hdcr_sync::Coordinator;
use hdcr_sync::coordinator::Event;
use hdcr_sync::ids::{Author, Incarnation, Member};

use super::ledger::Ledger;
use super::letter::{Notice, ToAgent, ToSeat};
use super::room::{Life, Spec};
use super::transport::{Exchange, Heard, Question};
use crate::failure::{Class, Failure, Result};
use crate::foreground::tell;
use crate::output::Output;
use crate::signals::{REQUESTS_TO_END, Signals};

pub(crate) use course::{ABORTED, Launcher, Plan, run};
use launch::Agents;

/// So often who has not answered is asked again.
const RESEND: Duration = Duration::from_secs(1);
/// So often it is looked for agents that have ended, and for what is late.
const BEAT: Duration = Duration::from_millis(50);

/// A member that ends with a status other than 0 may do so because another one is gone: that is heard of in this time.
const AFTERMATH: Duration = Duration::from_secs(1);

/// How a life of a job ends.
#[derive(Clone, PartialEq, Debug)]
enum Ending {
    /// All members have come to their end, or one has failed: the exit status.
    Ended(u8),
    /// Somebody has ended it for good.
    Aborted,
    /// It was lost before its first checkpoint.
    Lost,
    /// The coordinator was told to end by this signal; the same command goes on.
    Paused(i32),
    /// It is given up; the same command tries again.
    GaveUp(Failure),
    /// Another coordinator has it.
    Deposed,
}

/// The coordinator of one life.
#[derive(Debug)]
struct Seat<'a> {
    name: &'a JobName,
    output: Output,
    every: Duration,
    restarts: u32,
    life: Life,
    spec: Spec,
    ledger: Ledger,
    machine: Coordinator,
    exchange: &'a dyn Exchange,
    signals: &'a Signals,
    agents: Agents,
    events: VecDeque<Event>,
    /// What is told to the protocol later: a store that fails is not asked again at once.
    later: Option<(Instant, Event)>,
    /// Who has ever had tasks of this life.
    ever: BTreeSet<Member>,
    deadline: Option<(u64, Instant)>,
    resend: Instant,
    next_checkpoint: Instant,
    /// Who has to be excluded, for which run.
    excluding: BTreeMap<u32, Incarnation>,
    /// Who waits for a checkpoint; of those with `true` it has begun.
    askers: Vec<(Question, bool)>,
    /// How programs of this run have ended.
    statuses: BTreeMap<u32, u8>,
    /// Stop and size of each share of the round.
    written: Vec<(u64, u64)>,
    /// Rollbacks since the last checkpoint.
    rollbacks: u32,
    incarnation: Incarnation,
    /// Since when the job has been on its way back, and why.
    fell: Option<(Instant, String)>,
    /// A member that has ended with a status other than 0, and from when on the job ends with it.
    failing: Option<(Instant, u32, u8)>,
    /// What was last told of a round that was given up.
    trouble: Option<String>,
    /// The last failure of a member.
    failure: Option<(u32, Failure)>,
    over: Option<Ending>,
}

impl Seat<'_> {
    /// Follows events until this life is over.
    fn until_over(&mut self) -> Result<Ending> {
        self.events.push_back(Event::Start);
        loop {
            self.follow()?;
            if let Some(ending) = self.over.take() {
                return Ok(ending);
            }
            self.signals.wait(&mut [self.exchange.fd()], Some(self.time_left()))?;
            for heard in self.exchange.hear() {
                self.on_heard(heard);
            }
            while let Some(received) = self.signals.next() {
                if REQUESTS_TO_END.contains(&received.number) {
                    self.over = Some(Ending::Paused(received.number));
                }
            }
            self.agents.look(self.name.as_str());
            self.on_time();
        }
    }

    fn time_left(&self) -> Duration {
        let now = Instant::now();
        let deadline = self.deadline.map(|(_, at)| at);
        let later = self.later.as_ref().map(|(at, _)| *at);
        let first = [deadline, later, Some(self.next_checkpoint), Some(now + BEAT)].into_iter().flatten().min();
        first.map_or(BEAT, |first| first.saturating_duration_since(now))
    }

    fn follow(&mut self) -> Result<()> {
        while let Some(event) = self.events.pop_front() {
            tracing::trace!(?event, "coordinator");
            for effect in self.machine.step(event) {
                tracing::trace!(?effect, "coordinator");
                self.act(effect)?;
            }
            self.look_at_incarnation();
        }
        self.look_for_the_end();
        Ok(())
    }

    /// Each try to bring the job back is another incarnation.
    fn look_at_incarnation(&mut self) {
        let now = self.machine.incarnation();
        if now > self.incarnation {
            self.incarnation = now;
            self.rollbacks = self.rollbacks.saturating_add(1);
            self.statuses.clear();
            if let Some(member) = self.agents.first_away() {
                self.falls(format!("the agent of member {member} is gone"));
            } else {
                self.falls("members are gone".to_owned());
            }
            if self.rollbacks > self.restarts {
                self.over = Some(Ending::GaveUp(self.gave_up()));
            }
        }
    }

    fn gave_up(&self) -> Failure {
        let restarts = self.restarts;
        let message = format!("job {}: rolled back {restarts} times without a new checkpoint; giving up", self.name);
        let failure = Failure::new(Class::Failed, "gave-up", message);
        let because =
            self.failure.as_ref().map(|(member, failure)| format!("the last failure, of member {member}: {failure}"));
        let remedy = "its checkpoints are kept; the same command tries again, --fresh begins anew";
        failure.remedy(because.map_or_else(|| remedy.to_owned(), |because| format!("{because}\n{remedy}")))
    }

    /// Whether all members have had their turn in this life.
    fn is_complete(&self) -> bool {
        self.ever.len() >= usize::try_from(self.spec.members).unwrap_or(usize::MAX)
    }

    fn look_for_the_end(&mut self) {
        if self.over.is_none() && self.is_complete() && self.machine.is_ready() && self.machine.view().is_empty() {
            match self.failing.take() {
                Some((_, member, status)) => self.fails(member, status),
                None => self.over = Some(Ending::Ended(0)),
            }
        }
    }

    fn on_heard(&mut self, heard: Heard) {
        match heard {
            // It counts when it has said which life it belongs to.
            Heard::Came(_) => {}
            Heard::Went(member) => self.agents.went(member),
            Heard::Said(member, letter) => match ToSeat::decode(&letter) {
                Ok(ToSeat::Report(report)) if report.from.0 == member => {
                    if self.agents.place(member).is_some() {
                        self.events.push_back(Event::Report(report));
                    }
                }
                Ok(ToSeat::Report(report)) => {
                    tracing::warn!("member {member} speaks for member {}", report.from.0);
                }
                Ok(ToSeat::Notice(notice)) => self.on_notice(member, notice),
                Err(failure) => tracing::warn!(%failure, "from member {member}"),
            },
            Heard::Asked(question) => self.on_question(question),
        }
    }

    fn on_notice(&mut self, from: u32, notice: Notice) {
        let is_first = matches!(notice, Notice::Here { .. });
        if !is_first && self.agents.place(from).is_none() {
            // Of another life.
            return;
        }
        match notice {
            Notice::Here { life, host } if life == self.life.number && from < self.spec.members => {
                self.agents.came(from, host);
                self.events.push_back(Event::Connected(Member(from)));
            }
            Notice::Here { life, .. } => self.exchange.tell(from, ToAgent::Finish(life).encode()),
            Notice::Ended { member, status } => {
                self.statuses.insert(member, status);
                if status != 0 && self.fell.is_none() {
                    self.failing.get_or_insert((Instant::now() + AFTERMATH, member, status));
                }
            }
            Notice::Killed { member, signal } => {
                let death = tell(hdcr_policy::restart::Death::Signal(signal));
                self.falls(format!("member {member}: {death}"));
            }
            Notice::Failed(failure) => {
                tracing::debug!(%failure, "of member {from}");
                self.failure = Some((from, failure));
            }
            Notice::Written { stopped_us, bytes } => self.written.push((stopped_us, bytes)),
        }
    }

    /// Remembers why the job goes back, for when it is back.
    fn falls(&mut self, why: String) {
        if self.fell.is_none() {
            self.fell = Some((Instant::now(), why));
        }
        // It goes back with the others.
        self.failing = None;
    }

    /// Ends the job for a member that has failed by itself.
    fn fails(&mut self, member: u32, status: u8) {
        self.output.note(&format!("job {}: member {member} has ended with status {status}", self.name));
        self.over = Some(Ending::Ended(status));
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if let Some((_, member, status)) = self.failing.take_if(|(at, ..)| *at <= now) {
            self.fails(member, status);
        }
        if let Some((number, _)) = self.deadline.filter(|(_, at)| *at <= now) {
            self.deadline = None;
            self.events.push_back(Event::Deadline(number));
        }
        if let Some((_, event)) = self.later.take_if(|(at, _)| *at <= now) {
            self.events.push_back(event);
        }
        if self.resend <= now {
            self.resend = now + RESEND;
            self.events.push_back(Event::Resend);
        }
        if self.next_checkpoint <= now {
            self.next_checkpoint = now + self.every;
            self.wants_checkpoint();
        }
        if self.askers.iter().any(|(_, has_begun)| !has_begun) {
            self.wants_checkpoint();
        }
        for member in self.agents.lost(now) {
            self.falls(format!("the agent of member {member} is lost"));
            self.events.push_back(Event::Lost(Member(member)));
        }
        self.exclude(now);
        if let Some(member) = self.agents.in_vain() {
            let message = format!("job {}: the agent of member {member} ends whenever it is started", self.name);
            let failure = Failure::new(Class::Failed, "agent-fails", message);
            self.over = Some(Ending::GaveUp(failure.remedy("what it said stands above")));
        }
    }

    /// Before all members are there a checkpoint would leave some out for ever.
    fn wants_checkpoint(&mut self) {
        if self.machine.is_ready() && self.is_complete() && !self.machine.view().is_empty() {
            self.askers.iter_mut().for_each(|(_, has_begun)| *has_begun = true);
            self.events.push_back(Event::Checkpoint);
        }
    }
}

/// A number that no other coordinator has.
fn author() -> Result<Author> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(Failure::system("asking for a random number"))?;
    Ok(Author(u64::from_le_bytes(bytes)))
}
