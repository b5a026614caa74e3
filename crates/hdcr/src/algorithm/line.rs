//! The messages between a keeper and an algorithm outside of it: one JSON object a line, each way.
//!
//! The keeper says [`Hello`] and is answered by a [`Welcome`]; then it asks one [`Question`] after the other, and each has one
//! [`Answer`] with the same number. Keys that are not known are passed over, and whatever is left out has its default, so
//! that `{"id":7}` answers every question.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Cost, Event, Facts, Fault, Kept, Kind, Level, Recovery};

/// Version of these messages.
pub const VERSION: u32 = 1;
/// The longest line that the keeper writes, in bytes.
pub const LONGEST_QUESTION: usize = 32 << 10;
/// The longest line that is read as an answer, in bytes.
pub const LONGEST_ANSWER: usize = 8 << 10;
/// An answer has to come so soon.
pub const WITHIN: Duration = Duration::from_secs(2);
/// A question tells of so many checkpoints at most, the newest.
pub const KEPT: usize = 128;
/// No time is longer.
const LONGEST_TIME: Duration = Duration::from_hours(366 * 24);

/// What the keeper says first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the keeper.
    pub hdcr: u32,
    /// The job.
    #[serde(default)]
    pub job: String,
    /// How soon each answer has to come, this one too.
    #[serde(default)]
    pub within_ms: u64,
    /// The longest line that the keeper reads.
    #[serde(default)]
    pub longest: usize,
}

/// What the algorithm answers to that.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that it speaks: that of the keeper, or an older one.
    pub hdcr: u32,
    /// What it is called, for people.
    #[serde(default)]
    pub name: Option<String>,
    /// It wants to be told, once a second, that the program does nothing.
    #[serde(default)]
    pub idle: bool,
}

/// What the keeper asks.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Question {
    /// Counts the questions.
    pub id: u64,
    /// What is asked.
    #[serde(flatten)]
    pub asked: Asked,
}

/// One of the three calls of [`Algorithm`](super::Algorithm).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Asked {
    /// What is to be done now.
    Decide {
        /// What has happened.
        #[serde(flatten)]
        event: EventLine,
        /// Seconds since the job began.
        now_s: f64,
        /// How things stand.
        facts: FactsLine,
    },
    /// Which checkpoints are given up.
    Forget {
        /// All that can be gone back to, oldest first.
        kept: Vec<KeptLine>,
    },
    /// What would be done after such a fault. Asked beforehand: nobody waits for it when there is one.
    Recover {
        /// The fault.
        fault: FaultLine,
        /// As in [`Asked::Forget`].
        kept: Vec<KeptLine>,
    },
}

/// [`Event`] as it is written.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is what it is called in `Event`")]
pub enum EventLine {
    Started,
    Due,
    Checkpointed { kind: KindLine, level: u8, stopped_s: f64, total_s: f64, bytes: u64 },
    NotCheckpointed { failures: u32 },
    Recovered { took_s: f64 },
    Notice { grace_s: Option<f64> },
    Idle { idle_s: f64 },
    GoodMoment,
}

/// [`Kind`] as it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KindLine {
    /// All of the memory.
    #[default]
    Full,
    /// What changed.
    Increment,
    /// Whichever is cheaper.
    Any,
}

/// [`Facts`] as they are written.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is called in `Facts`")]
pub struct FactsLine {
    pub ran_s: f64,
    pub memory_bytes: u64,
    pub dirty_bytes_per_s: Option<u64>,
    pub levels: u8,
    pub kept: Vec<KeptLine>,
}

/// [`Kept`] as it is written.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is called in `Kept`")]
pub struct KeptLine {
    pub number: u64,
    pub taken_s: f64,
    pub kind: KindLine,
    pub base: Option<u64>,
    pub level: u8,
    pub pinned: bool,
}

/// [`Fault`] as it is written.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is called in `Fault`")]
pub struct FaultLine {
    pub at_s: f64,
    pub severity: u8,
    pub again: bool,
    pub last: Option<u64>,
}

/// What the algorithm answers.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// As in the question.
    pub id: u64,
    /// To `decide`: a checkpoint, now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<KindLine>,
    /// To `decide`: when it is to be asked again by `due`, on the clock of `now_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_s: Option<f64>,
    /// The same, counted from the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_s: Option<f64>,
    /// To `forget`: the numbers of those that are given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forget: Option<Vec<u64>>,
    /// To `recover`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recover: Option<RecoveryLine>,
}

/// [`Recovery`] as it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is what it is called in `Recovery`")]
pub enum RecoveryLine {
    Rollback(u64),
    Begin,
    GiveUp,
}

/// A time from seconds, whatever somebody has written for them.
pub fn time(seconds: f64) -> Duration {
    let longest = if seconds > 0.0 { LONGEST_TIME } else { Duration::ZERO };
    Duration::try_from_secs_f64(seconds).unwrap_or(longest).min(LONGEST_TIME)
}

impl From<KindLine> for Option<Kind> {
    fn from(kind: KindLine) -> Self {
        match kind {
            KindLine::Full => Some(Kind::Full),
            KindLine::Increment => Some(Kind::Increment),
            KindLine::Any => None,
        }
    }
}

impl From<Option<Kind>> for KindLine {
    fn from(kind: Option<Kind>) -> Self {
        match kind {
            Some(Kind::Full) => Self::Full,
            Some(Kind::Increment) => Self::Increment,
            None => Self::Any,
        }
    }
}

impl From<&Kept> for KeptLine {
    fn from(kept: &Kept) -> Self {
        let Kept { number, taken, kind, base, level, pinned } = *kept;
        Self { number, taken_s: taken.as_secs_f64(), kind: Some(kind).into(), base, level: level.0, pinned }
    }
}

impl From<&KeptLine> for Kept {
    fn from(kept: &KeptLine) -> Self {
        let KeptLine { number, taken_s, kind, base, level, pinned } = *kept;
        let kind = Option::from(kind).unwrap_or_default();
        Self { number, taken: time(taken_s), kind, base, level: Level(level), pinned }
    }
}

/// The newest of them.
pub fn kept(all: &[Kept]) -> Vec<KeptLine> {
    all.iter().skip(all.len().saturating_sub(KEPT)).map(KeptLine::from).collect()
}

impl From<&Facts> for FactsLine {
    fn from(facts: &Facts) -> Self {
        Self {
            ran_s: facts.ran.as_secs_f64(),
            memory_bytes: facts.memory,
            dirty_bytes_per_s: facts.dirty_rate,
            levels: facts.levels,
            kept: kept(&facts.kept),
        }
    }
}

impl From<&FactsLine> for Facts {
    fn from(facts: &FactsLine) -> Self {
        Self {
            ran: time(facts.ran_s),
            memory: facts.memory_bytes,
            dirty_rate: facts.dirty_bytes_per_s,
            levels: facts.levels.max(1),
            kept: facts.kept.iter().map(Kept::from).collect(),
        }
    }
}

impl From<Fault> for FaultLine {
    fn from(fault: Fault) -> Self {
        Self { at_s: fault.at.as_secs_f64(), severity: fault.severity.0, again: fault.again, last: fault.last }
    }
}

impl From<FaultLine> for Fault {
    fn from(fault: FaultLine) -> Self {
        Self { at: time(fault.at_s), severity: Level(fault.severity), again: fault.again, last: fault.last }
    }
}

impl From<Recovery> for RecoveryLine {
    fn from(recovery: Recovery) -> Self {
        match recovery {
            Recovery::Rollback(number) => Self::Rollback(number),
            Recovery::Begin => Self::Begin,
            Recovery::GiveUp => Self::GiveUp,
        }
    }
}

impl From<RecoveryLine> for Recovery {
    fn from(recovery: RecoveryLine) -> Self {
        match recovery {
            RecoveryLine::Rollback(number) => Self::Rollback(number),
            RecoveryLine::Begin => Self::Begin,
            RecoveryLine::GiveUp => Self::GiveUp,
        }
    }
}

impl From<Event> for EventLine {
    fn from(event: Event) -> Self {
        match event {
            Event::Started => Self::Started,
            Event::Due => Self::Due,
            Event::Checkpointed { kind, level, cost } => Self::Checkpointed {
                kind: Some(kind).into(),
                level: level.0,
                stopped_s: cost.stopped.as_secs_f64(),
                total_s: cost.total.as_secs_f64(),
                bytes: cost.bytes,
            },
            Event::NotCheckpointed { failures } => Self::NotCheckpointed { failures },
            Event::Recovered { took } => Self::Recovered { took_s: took.as_secs_f64() },
            Event::Notice { grace } => Self::Notice { grace_s: grace.map(|grace| grace.as_secs_f64()) },
            Event::Idle(idle) => Self::Idle { idle_s: idle.as_secs_f64() },
            Event::GoodMoment => Self::GoodMoment,
        }
    }
}

impl From<EventLine> for Event {
    fn from(event: EventLine) -> Self {
        match event {
            EventLine::Started => Self::Started,
            EventLine::Due => Self::Due,
            EventLine::Checkpointed { kind, level, stopped_s, total_s, bytes } => Self::Checkpointed {
                kind: Option::from(kind).unwrap_or_default(),
                level: Level(level),
                cost: Cost { stopped: time(stopped_s), total: time(total_s), bytes },
            },
            EventLine::NotCheckpointed { failures } => Self::NotCheckpointed { failures },
            EventLine::Recovered { took_s } => Self::Recovered { took: time(took_s) },
            EventLine::Notice { grace_s } => Self::Notice { grace: grace_s.map(time) },
            EventLine::Idle { idle_s } => Self::Idle(time(idle_s)),
            EventLine::GoodMoment => Self::GoodMoment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(asked: Asked, expected: &str) {
        let question = Question { id: 7, asked };
        let text = serde_json::to_string(&question).unwrap();
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Question>(&text).unwrap(), question);
    }

    #[test]
    fn questions_are_what_other_languages_are_told() {
        let cost = Cost { stopped: Duration::from_millis(4), total: Duration::from_millis(50), bytes: 8192 };
        let event = Event::Checkpointed { kind: Kind::Increment, level: Level(0), cost }.into();
        let kept =
            vec![KeptLine { number: 3, taken_s: 1.5, kind: KindLine::Increment, base: Some(2), ..KeptLine::default() }];
        let facts =
            FactsLine { ran_s: 2.0, memory_bytes: 4096, dirty_bytes_per_s: None, levels: 1, kept: kept.clone() };
        check(
            Asked::Decide { event, now_s: 2.25, facts },
            concat!(
                r#"{"id":7,"ask":"decide","event":"checkpointed","kind":"increment","level":0,"stopped_s":0.004,"#,
                r#""total_s":0.05,"bytes":8192,"now_s":2.25,"facts":{"ran_s":2.0,"memory_bytes":4096,"#,
                r#""dirty_bytes_per_s":null,"levels":1,"kept":[{"number":3,"taken_s":1.5,"kind":"increment","base":2,"#,
                r#""level":0,"pinned":false}]}}"#
            ),
        );
        let fault = FaultLine { at_s: 2.5, severity: 0, again: true, last: None };
        check(
            Asked::Recover { fault, kept: Vec::new() },
            r#"{"id":7,"ask":"recover","fault":{"at_s":2.5,"severity":0,"again":true,"last":null},"kept":[]}"#,
        );
        check(Asked::Forget { kept: Vec::new() }, r#"{"id":7,"ask":"forget","kept":[]}"#);
    }

    #[test]
    fn the_longest_question_is_short_enough() {
        let one =
            KeptLine { number: u64::MAX, taken_s: 1e7 + 0.123_456_789, base: Some(u64::MAX), ..KeptLine::default() };
        let facts = FactsLine {
            memory_bytes: u64::MAX,
            dirty_bytes_per_s: Some(u64::MAX),
            kept: vec![one; KEPT],
            ..FactsLine::default()
        };
        let question = Question { id: u64::MAX, asked: Asked::Decide { event: EventLine::Due, now_s: 1e7, facts } };
        assert!(serde_json::to_string(&question).unwrap().len() < LONGEST_QUESTION);
    }

    #[test]
    fn whatever_is_answered_is_a_time() {
        for (seconds, expected) in [(f64::NAN, Duration::ZERO), (-1.0, Duration::ZERO), (f64::INFINITY, LONGEST_TIME)] {
            assert_eq!(time(seconds), expected, "{seconds}");
        }
        assert_eq!((time(1e300), time(0.5)), (LONGEST_TIME, Duration::from_millis(500)));
    }

    #[test]
    fn a_short_answer_is_enough() {
        let answer: Answer = serde_json::from_str(r#"{"id":7}"#).unwrap();
        assert_eq!(answer, Answer { id: 7, ..Answer::default() });
        let answer: Answer = serde_json::from_str(r#"{"id":7,"recover":"begin","forget":[1]}"#).unwrap();
        assert_eq!((answer.recover, answer.forget), (Some(RecoveryLine::Begin), Some(vec![1])));
        for wrong in [r#"{"checkpoint":"full"}"#, r#"{"id":7,"checkpoint":"half"}"#, r#"{"id":-1}"#, "[]", ""] {
            assert!(serde_json::from_str::<Answer>(wrong).is_err(), "{wrong}");
        }
    }
}
