//! Why a command failed, as it is told to people, to scripts and between our own processes; and the exit status of each kind.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What the user can do about it; fixes the exit status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    /// The command line or the configuration is wrong.
    Usage,
    /// It cannot be done; nothing was touched.
    Refused,
    /// The program or the store changed while it was looked at; trying again may work.
    Changed,
    /// The system failed.
    Failed,
    /// The image is not what was written.
    Corrupt,
    /// A fault of HDCR's own.
    Internal,
    /// The program of `hdcr run` is there and cannot be executed.
    NotExecutable,
    /// The program of `hdcr run` is not there.
    NoProgram,
}

impl Class {
    /// The exit status, after sysexits(3) where it has one.
    pub(crate) const fn status(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::Corrupt => 65,
            Self::Refused => 69,
            Self::Internal => 70,
            Self::Failed => 71,
            Self::Changed => 75,
            Self::NotExecutable => 126,
            Self::NoProgram => 127,
        }
    }
}

/// One thing that stands in the way, or that a user should know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Obstacle {
    /// Stable code.
    pub(crate) code: String,
    /// What it is.
    pub(crate) object: String,
    /// Which process holds it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) pid: Option<i32>,
    /// Which descriptor.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) fd: Option<i32>,
    /// Which path.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) path: Option<String>,
    /// Why it stands in the way.
    pub(crate) cause: String,
    /// What can be done.
    pub(crate) remedy: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.code, self.object)?;
        let pid = self.pid.map(|pid| format!("pid {pid}"));
        let fd = self.fd.map(|fd| format!("fd {fd}"));
        let owner: Vec<String> = [pid, fd, self.path.clone()].into_iter().flatten().collect();
        if !owner.is_empty() {
            write!(f, " ({})", owner.join(", "))?;
        }
        write!(f, ": {}", self.cause)?;
        if !self.remedy.is_empty() {
            write!(f, "\n      {}", self.remedy)?;
        }
        Ok(())
    }
}

/// A failed command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What the user can do about it.
    pub(crate) class: Class,
    /// Stable code (`docs/errors.md`).
    pub(crate) code: String,
    /// What happened, with its causes.
    pub(crate) message: String,
    /// What to do, when there is something to say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) remedy: Option<String>,
    /// Everything that stands in the way.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) refusals: Vec<Obstacle>,
}

/// Result of a command or a part of it.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure in one sentence.
    pub(crate) fn new(class: Class, code: &str, message: impl Into<String>) -> Self {
        Self { class, code: code.to_owned(), message: message.into(), remedy: None, refusals: Vec::new() }
    }

    /// The command line is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, "usage", message)
    }

    /// It cannot be done.
    pub(crate) fn refused(code: &str, message: impl Into<String>) -> Self {
        Self::new(Class::Refused, code, message)
    }

    /// For `map_err`: a call of the system failed while something was done.
    pub(crate) fn system<E: StdError>(doing: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self::new(Class::Failed, "system", format!("{doing}: {}", chain(&error)))
    }

    /// Adds what to do about it.
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Says what was being done when it happened.
    pub(crate) fn during(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

/// An error with all its causes, each said once.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for refusal in &self.refusals {
            write!(f, "\n  {refusal}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  {remedy}")?;
        }
        Ok(())
    }
}

impl StdError for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("no space");
        let failure = Failure::system(format_args!("writing {}", "/x"))(inner);
        assert_eq!(failure.to_string(), "writing /x: no space");
        assert_eq!(failure.class.status(), 71);
    }

    #[test]
    fn a_failure_survives_the_way_between_our_processes() {
        let mut failure = Failure::refused("io-uring", "1 object stands in the way").remedy("close it");
        failure.refusals.push(Obstacle {
            code: "io-uring".to_owned(),
            object: "io_uring instance".to_owned(),
            pid: Some(7),
            fd: Some(3),
            path: None,
            cause: "its rings are the kernel's".to_owned(),
            remedy: "wait".to_owned(),
        });
        let text = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
        let shown = failure.to_string();
        assert!(shown.contains("[io-uring] io_uring instance (pid 7, fd 3): its rings"), "{shown}");
    }
}
