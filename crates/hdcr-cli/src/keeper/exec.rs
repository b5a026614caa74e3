//! The algorithm outside is heard, and what it says is done.

use std::time::Instant;

use hdcr_policy::algorithm::Event;

use super::Keeper;
use super::advice::Rule;
use super::outside::{Happened, Outside};
use crate::duration;
use crate::failure::Failure;

/// No more of its words at once: others want to be heard as well.
const WORDS: usize = 64;

impl Keeper {
    fn outside(&mut self) -> Option<&mut Outside> {
        match self.adviser.as_mut().map(|adviser| &mut adviser.rule) {
            Some(Rule::Outside(outside)) => Some(outside),
            Some(Rule::Own(_)) | None => None,
        }
    }

    /// Hears it, and asks it what there is to be asked.
    pub(super) fn on_rule(&mut self) {
        for _ in 0..WORDS {
            let Some(happened) = self.outside().and_then(|outside| outside.hear().or_else(|| outside.ask())) else {
                return;
            };
            self.on_happened(happened);
        }
    }

    /// It has had its time.
    pub(super) fn on_late_rule(&mut self, now: Instant) {
        if let Some(happened) = self.outside().and_then(|outside| outside.is_late(now)) {
            self.on_happened(happened);
        }
    }

    /// Process numbers are needed that others have.
    pub(super) fn rule_makes_room(&mut self, failure: &Failure) {
        let numbers = failure.refusals.iter().filter(|refusal| refusal.code == "pid-taken");
        let taken: Vec<i32> = numbers.filter_map(|refusal| refusal.pid).collect();
        if let Some(outside) = self.outside() {
            outside.makes_room(&taken);
        }
    }

    fn on_happened(&mut self, happened: Happened) {
        let called = self.adviser.as_ref().map(|adviser| adviser.called().to_owned()).unwrap_or_default();
        match happened {
            Happened::Ready(name) => {
                let shown = if name.is_empty() { &called } else { &name };
                self.detail(&format!("job {}: algorithm {shown} decides", self.plan.name));
                if let Some(adviser) = self.adviser.as_mut() {
                    adviser.is_missed = false;
                    if !name.is_empty() {
                        adviser.called = name;
                    }
                }
                if self.program_lives() {
                    self.advise(Event::Started);
                    self.ask_of_faults();
                }
            }
            Happened::Decided(event, decision) => self.follow(event, &decision),
            Happened::GivesUp(numbers) => self.give_up_later(numbers),
            Happened::Said(line) => self.note(&format!("{called}: {line}")),
            Happened::Away(why, left) => {
                for (event, decision) in left {
                    self.follow(event, &decision);
                }
                let every = duration::show(self.falls_back());
                let text = format!(
                    "job {}: algorithm {called} {why}; without it there is a checkpoint every {every}",
                    self.plan.name
                );
                // Once, until it is there again.
                let is_known = self.adviser.as_mut().is_some_and(|it| std::mem::replace(&mut it.is_missed, true));
                if is_known { self.detail(&text) } else { self.note(&text) }
            }
        }
    }
}
