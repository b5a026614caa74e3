//! Increments in a bounded chain, with another algorithm's sense of time.

use super::{Algorithm, Decision, Event, Fault, Kept, Kind, Looks, Observation, Recovery};

/// A full checkpoint, then so many increments, then a full one again.
#[derive(Debug)]
pub struct Chain {
    when: Box<dyn Algorithm + Send>,
    longest: usize,
    /// Increments since the last full one, as they were made: where each can be restored by itself, what is kept does not
    /// tell.
    made: usize,
}

impl Chain {
    /// `when` says when; a chain has at most `longest` increments.
    pub fn new(when: Box<dyn Algorithm + Send>, longest: usize) -> Self {
        Self { when, longest, made: 0 }
    }
}

/// How many increments stand between the newest checkpoint and its full one; `None` without any checkpoint.
fn length(kept: &[Kept]) -> Option<usize> {
    let mut one = kept.last()?;
    let mut length = 0_usize;
    // A chain is never longer than the list; the bound holds for lists that make no sense, too.
    for _ in kept {
        let Some(base) = one.base.and_then(|base| kept.iter().find(|other| other.number == base)) else { break };
        length = length.saturating_add(1);
        one = base;
    }
    Some(length)
}

impl Algorithm for Chain {
    fn name(&self) -> &'static str {
        "chain"
    }

    fn looks(&self) -> Looks {
        self.when.looks()
    }

    fn decide(&mut self, seen: &Observation<'_>) -> Decision {
        match seen.event {
            Event::Checkpointed { kind: Kind::Full, .. } => self.made = 0,
            Event::Checkpointed { kind: Kind::Increment, .. } => self.made = self.made.saturating_add(1),
            Event::Started
            | Event::Due
            | Event::NotCheckpointed { .. }
            | Event::Recovered { .. }
            | Event::Notice { .. }
            | Event::Idle(_)
            | Event::GoodMoment => {}
        }
        let mut decision = self.when.decide(seen);
        if let Some(order) = &mut decision.checkpoint {
            let length = length(&seen.facts.kept).map(|length| length.max(self.made));
            let room = length.is_some_and(|length| length < self.longest);
            order.kind = Some(if room { Kind::Increment } else { Kind::Full });
        }
        decision
    }

    fn forget(&mut self, kept: &[Kept]) -> Vec<u64> {
        self.when.forget(kept)
    }

    fn recover(&mut self, fault: &Fault, kept: &[Kept]) -> Recovery {
        self.when.recover(fault, kept)
    }
}
