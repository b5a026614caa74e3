//! What the protocol wants done by a coordinator.

use std::time::{Duration, Instant};

use hdcr_sync::coordinator::{Effect, Event, Reason};
use hdcr_sync::ids::{Incarnation, Member, Round};
use hdcr_sync::ledger::Outcome;

use super::super::letter::ToAgent;
use super::super::lives::{self, Seen};
use super::super::shares;
use super::questions::Answer;
use super::{Ending, Seat};
use crate::duration;
use crate::failure::{Class, Failure, Result};
use crate::output::counted;

/// A store that has failed is asked again so much later.
const AGAIN: Duration = Duration::from_millis(500);
/// Writing a share, and bringing one back, takes so much longer than the programs may stand still.
const LONGER: Duration = Duration::from_mins(1);

impl Seat<'_> {
    pub(super) fn act(&mut self, effect: Effect) -> Result<()> {
        match effect {
            Effect::ReadLedger => {
                let end = self.ledger.end()?;
                self.ever = self.ledger.ever()?;
                self.incarnation = end.last.as_ref().map(|(_, entry)| entry.incarnation).unwrap_or_default();
                self.events.push_back(Event::Read(end));
            }
            Effect::Append(at, entry) => {
                let outcome = self.ledger.append(at, &entry);
                if outcome == Outcome::Written {
                    self.ever.extend(&entry.view);
                }
                let is_sure = matches!(outcome, Outcome::Written | Outcome::Taken(_));
                let event = Event::Appended(at, outcome);
                if is_sure {
                    self.events.push_back(event);
                } else {
                    self.later = Some((Instant::now() + AGAIN, event));
                }
            }
            Effect::Send(order) => self.exchange.tell(order.to.0, ToAgent::Order(order).encode()),
            Effect::Arm(number) => {
                let limit = self.spec.lease.saturating_mul(2).saturating_add(LONGER);
                self.deadline = Some((number, Instant::now() + limit));
            }
            Effect::Exclude(member, incarnation) => {
                self.excluding.insert(member.0, incarnation);
            }
            Effect::Committed(round) => self.committed(round),
            Effect::Aborted(round, reason) => self.aborted(round, reason),
            Effect::Collect { keep, before } => shares::collect(&self.life, &keep, before),
            Effect::RolledBack(incarnation) => self.rolled_back(incarnation),
            Effect::Unrecoverable => self.over = Some(Ending::Lost),
            Effect::Deposed => self.over = Some(Ending::Deposed),
        }
        Ok(())
    }

    fn committed(&mut self, round: Round) {
        let written = std::mem::take(&mut self.written);
        let stopped = written.iter().map(|(stopped, _)| *stopped).max().unwrap_or(0);
        let bytes = written.iter().map(|(_, bytes)| *bytes).sum();
        let members = counted(written.len(), "member", "members");
        self.output.detail(&format!(
            "job {}: checkpoint {}: {members}, {}, stopped for {}",
            self.name,
            shares::called(round),
            duration::show_size(bytes),
            duration::show(Duration::from_micros(stopped))
        ));
        (self.rollbacks, self.trouble, self.failure) = (0, None, None);
        self.next_checkpoint = Instant::now() + self.every;
        self.answer_askers(&Answer::Committed { checkpoint: shares::called(round), stopped_us: stopped, bytes });
    }

    fn aborted(&mut self, round: Round, reason: Reason) {
        self.written.clear();
        let because = self.failure.take().map(|(member, failure)| format!("member {member}: {failure}"));
        let text = because.unwrap_or_else(|| words(reason));
        let failure = Failure::new(Class::Changed, "round-over", format!("the checkpoint was given up: {text}"));
        self.answer_askers(&Answer::Failed(failure));
        if self.trouble.as_ref() == Some(&text) {
            return;
        }
        let told = format!("job {}: checkpoint {} was given up: {text}", self.name, shares::called(round));
        // Of these what follows is told by itself.
        if matches!(reason, Reason::Left(_) | Reason::Lost(_)) {
            return self.output.detail(&told);
        }
        self.output.note(&told);
        self.trouble = Some(text);
    }

    fn rolled_back(&mut self, incarnation: Incarnation) {
        let (since, why) = self.fell.take().unwrap_or((Instant::now(), "members are gone".to_owned()));
        let line = self.machine.committed_round().map(shares::called).unwrap_or_default();
        self.output.note(&format!(
            "job {}: {why}; rolled back to {line}, runs again after {} (rollback {})",
            self.name,
            duration::show(since.elapsed()),
            incarnation.0
        ));
        self.next_checkpoint = Instant::now() + self.every;
    }

    fn answer_askers(&mut self, answer: &Answer) {
        let (done, waiting) = std::mem::take(&mut self.askers).into_iter().partition(|(_, has_begun)| *has_begun);
        self.askers = waiting;
        let done: Vec<_> = done;
        for (question, _) in done {
            question.answer(answer.encode());
        }
    }

    /// Sees to it that nothing of members that are away runs. One whose agent is there is fenced by the protocol.
    pub(super) fn exclude(&mut self, now: Instant) {
        let away: Vec<(u32, Incarnation)> = self
            .excluding
            .iter()
            .filter(|(member, _)| self.agents.is_away(**member, now))
            .map(|(m, i)| (*m, *i))
            .collect();
        for (member, incarnation) in away {
            match lives::end(&self.life, member) {
                Ok(Seen::Gone) => {
                    self.excluding.remove(&member);
                    self.events.push_back(Event::Excluded(Member(member), incarnation));
                }
                // It is killed, and looked at again.
                Ok(Seen::Here(_)) => {}
                Ok(Seen::Elsewhere(host)) => {
                    let text = format!(
                        "job {}: member {member} was last seen on host {host} and does not answer; nothing goes on until \
                         its agent is back, or that host is known to be down",
                        self.name
                    );
                    if self.trouble.as_ref() != Some(&text) {
                        self.output.note(&text);
                        self.trouble = Some(text);
                    }
                }
                Err(failure) => tracing::warn!(%failure, "looking for the agent of member {member}"),
            }
        }
    }
}

/// Why a round was given up.
fn words(reason: Reason) -> String {
    match reason {
        Reason::Failed(member) => format!("member {} could not take it", member.0),
        Reason::Late => "a member did not answer in time".to_owned(),
        Reason::Lost(member) => format!("member {} is gone", member.0),
        Reason::Left(member) => format!("member {} has ended", member.0),
        Reason::Channels(_) => "connections between members do not match".to_owned(),
        Reason::Store => "the store could not take it".to_owned(),
    }
}
