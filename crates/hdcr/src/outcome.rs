//! What became of a request, in the words that all three doors (Rust, C, Python) share.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// On which branch a program is after it has asked for a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The checkpoint is durable, and the program goes on.
    Continued {
        /// `JOB@NUMBER`.
        image: String,
    },
    /// This is a later life: the program was brought back from an image that was taken while it waited.
    Restored(Restored),
    /// There is no checkpoint, and the program goes on as before.
    Failed(Failed),
}

/// Where a life of the program came from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Restored {
    /// How often the job was brought back or begun anew, this time included.
    pub count: u64,
    /// The image, `JOB@NUMBER` or a path.
    pub image: String,
    /// Why.
    pub reason: Reason,
    /// Milliseconds from the checkpoint to the restore, by the clock of the day.
    #[serde(rename = "passed_ms", with = "milliseconds")]
    pub passed: Duration,
}

/// Why a program was restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It crashed.
    Crash,
    /// It asked for it.
    Rollback,
    /// The same `hdcr run` was given again.
    Resume,
    /// Somebody restored it by hand; no keeper watches over it.
    Hand,
    /// A reason that this version does not know.
    #[serde(other)]
    Other,
}

impl Reason {
    /// Its name on the wire and in C.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Rollback => "rollback",
            Self::Resume => "resume",
            Self::Hand => "hand",
            Self::Other => "other",
        }
    }
}

/// Why a request was not met.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failed {
    /// What can be done about it.
    pub class: Class,
    /// Stable code (`docs/errors.md`).
    pub code: String,
    /// What happened.
    pub message: String,
    /// What stands in the way, one by one.
    #[serde(default)]
    pub reasons: Vec<Obstacle>,
}

/// What the program can do about a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// It cannot be done as things are; nothing was touched.
    Refused,
    /// Something changed meanwhile; trying again may work.
    Changed,
    /// The system failed.
    Failed,
    /// An image is not what was written.
    Corrupt,
}

/// One thing that stands in the way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Obstacle {
    /// Stable code (`docs/errors.md`).
    pub code: String,
    /// What, whose and why, as a user would be told.
    pub text: String,
}

impl Failed {
    fn new(class: Class, code: &str, message: impl fmt::Display) -> Self {
        Self { class, code: code.to_owned(), message: message.to_string(), reasons: Vec::new() }
    }

    /// The program does not run under HDCR, or its keeper cannot be reached.
    pub(crate) fn absent() -> Self {
        Self::new(Class::Refused, "no-keeper", "the program does not run under `hdcr run`")
    }

    /// The keeper has gone before it answered.
    pub(crate) fn gone() -> Self {
        Self::new(Class::Failed, "keeper-gone", "the keeper of the job has ended")
    }

    /// The answer is of another kind than the question.
    pub(crate) fn overtaken() -> Self {
        Self::new(Class::Changed, "overtaken", "the job was restored meanwhile")
    }

    /// The caller himself stands in the way.
    pub(crate) fn in_the_way(code: &str, message: &str) -> Self {
        Self::new(Class::Refused, code, message)
    }

    pub(crate) fn unheard(error: &std::io::Error) -> Self {
        Self::new(Class::Failed, "keeper-unheard", format_args!("talking with the keeper of the job: {error}"))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.reasons.iter().try_for_each(|reason| write!(f, "\n  {}", reason.text))
    }
}

impl std::error::Error for Failed {}

/// Durations as whole milliseconds.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}
