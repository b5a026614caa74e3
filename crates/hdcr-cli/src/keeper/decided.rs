//! What an algorithm has decided, as people and programs are told.

use std::time::Instant;

use hdcr::algorithm::line::{EventLine, FaultLine, KindLine, RecoveryLine};
use hdcr_policy::algorithm::{Event, Kind};
use serde::Serialize;

use super::Keeper;
use crate::duration;

/// What was decided last, for people.
#[derive(Clone, Debug)]
pub(super) struct Decided {
    words: String,
    when: Instant,
}

impl Decided {
    /// With the time since.
    pub(super) fn told(&self) -> String {
        format!("{}, {} ago", self.words, duration::show(self.when.elapsed()))
    }
}

/// A decision, for programs that listen.
#[derive(Debug, Serialize)]
struct Told<'a> {
    decided: Word<'a>,
}

/// The words of one.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Word<'a> {
    pub(super) job: &'a str,
    pub(super) algorithm: &'a str,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) event: Option<EventLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) checkpoint: Option<KindLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) in_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) forget: Option<&'a [u64]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fault: Option<FaultLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recover: Option<RecoveryLine>,
}

/// An event in words: why something was decided.
pub(super) fn why(event: Event) -> String {
    match event {
        Event::Started => "the program runs".to_owned(),
        Event::Due => "it is due".to_owned(),
        Event::Checkpointed { .. } => "the last one is durable".to_owned(),
        Event::NotCheckpointed { failures } => format!("failed {failures} times in a row"),
        Event::Recovered { .. } => "the program runs again".to_owned(),
        Event::Notice { .. } => "the end is announced".to_owned(),
        Event::Idle(_) => "the program idles".to_owned(),
        Event::GoodMoment => "the program says so".to_owned(),
    }
}

/// A checkpoint that is ordered, in words.
pub(super) fn kind_in_words(kind: Option<Kind>) -> &'static str {
    match kind {
        Some(Kind::Full) => "a full checkpoint now",
        Some(Kind::Increment) => "an increment now",
        None => "a checkpoint now",
    }
}

impl Keeper {
    /// To be filled.
    pub(super) fn told_of_algorithm(&self) -> Word<'_> {
        Word {
            job: self.plan.name.as_str(),
            algorithm: self.adviser.as_ref().map_or("", |adviser| adviser.called()),
            event: None,
            checkpoint: None,
            in_s: None,
            forget: None,
            fault: None,
            recover: None,
        }
    }

    /// Tells programs that listen.
    pub(super) fn tell_decided(&self, says: bool, told: &Word<'_>) {
        if says && self.output.verbose > 0 {
            self.output.object_aside(&Told { decided: told.clone() });
        }
    }

    /// Remembers a decision for `hdcr ps`, and tells a curious user.
    pub(super) fn has_decided(&mut self, words: &str, says: bool) {
        if says {
            let called = self.adviser.as_ref().map_or("", |adviser| adviser.called());
            self.detail(&format!("job {}: algorithm {called}: {words}", self.plan.name));
        }
        if let Some(adviser) = &mut self.adviser {
            adviser.decided = Some(Decided { words: words.to_owned(), when: Instant::now() });
        }
    }
}
