//! Several levels: often to the near and cheap one, seldom to the far one that survives more.

use super::{Algorithm, Decision, Event, Fault, Kept, Level, Looks, Observation, Order, Recovery};

/// Every so-manieth checkpoint goes one level up: with a step of 8, each 8th to level 1, each 64th to level 2.
#[derive(Debug)]
pub struct Levels {
    when: Box<dyn Algorithm + Send>,
    step: u64,
    taken: u64,
}

impl Levels {
    /// `when` says when; `step` is at least 2.
    pub fn new(when: Box<dyn Algorithm + Send>, step: u64) -> Self {
        Self { when, step: step.max(2), taken: 0 }
    }

    /// The level of the checkpoint with this number, counted from 1. The first goes to the highest, so that there is
    /// something to go back to after any fault.
    fn level(&self, count: u64, levels: u8) -> Level {
        let highest = levels.saturating_sub(1);
        if count <= 1 {
            return Level(highest);
        }
        let mut rest = count;
        let mut level = 0;
        while level < highest && rest.is_multiple_of(self.step) {
            rest = rest.checked_div(self.step).unwrap_or(0);
            level = level.saturating_add(1);
        }
        Level(level)
    }
}

impl Algorithm for Levels {
    fn name(&self) -> &'static str {
        "levels"
    }

    fn looks(&self) -> Looks {
        self.when.looks()
    }

    fn decide(&mut self, seen: &Observation<'_>) -> Decision {
        if let Event::Checkpointed { .. } = seen.event {
            self.taken = self.taken.saturating_add(1);
        }
        let mut decision = self.when.decide(seen);
        if let Some(order) = decision.checkpoint.take() {
            let level = self.level(self.taken.saturating_add(1), seen.facts.levels);
            decision.checkpoint = Some(Order { level, ..order });
        }
        decision
    }

    /// The newest two of each level.
    fn forget(&mut self, kept: &[Kept]) -> Vec<u64> {
        let mut marked: Vec<Kept> = kept.to_vec();
        for level in 0..=u8::MAX {
            let of_it = |one: &&mut Kept| one.level == Level(level);
            marked.iter_mut().rev().filter(of_it).take(2).for_each(|one| one.pinned = true);
        }
        super::oldest_beyond(&marked, 1)
    }

    fn recover(&mut self, fault: &Fault, kept: &[Kept]) -> Recovery {
        self.when.recover(fault, kept)
    }
}
