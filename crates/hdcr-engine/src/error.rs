//! What can go wrong, in the four classes that a caller can act on.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::ids::{Fd, Pid, Tid};
use crate::mechanism::MechanismError;

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// It cannot be done, and nothing was touched.
    Refused,
    /// The target moved while it was looked at; trying again may work.
    Changed,
    /// The system failed us.
    Failed,
    /// The image is not what it claims to be.
    Corrupt,
}

/// Who holds the object that a [`Refusal`] is about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Owner {
    /// The process.
    pub pid: Option<Pid>,
    /// The descriptor.
    pub fd: Option<Fd>,
    /// The path.
    pub path: Option<PathBuf>,
    /// The thread that traces the process, where that is what stands in the way.
    pub tracer: Option<Pid>,
}

/// One thing that stands in the way of a checkpoint or a restore.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Stable code, never reused (`docs/errors.md`).
    pub code: &'static str,
    /// What it is: `io_uring instance`.
    pub object: String,
    /// Who holds it.
    pub owner: Owner,
    /// Why it stands in the way.
    pub cause: String,
    /// What the user can do.
    pub remedy: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(pid) = self.pid {
            parts.push(format!("pid {pid}"));
        }
        if let Some(fd) = self.fd {
            parts.push(format!("fd {fd}"));
        }
        if let Some(path) = &self.path {
            parts.push(path.display().to_string());
        }
        f.write_str(&parts.join(", "))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {} ({}): {}; {}", self.code, self.object, self.owner, self.cause, self.remedy)
    }
}

/// A list of refusals, one to a line when printed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Refusals(pub Vec<Refusal>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stand = if self.0.len() == 1 { "object stands" } else { "objects stand" };
        write!(f, "{} {stand} in the way", self.0.len())?;
        for refusal in &self.0 {
            write!(f, "\n  {refusal}")?;
        }
        Ok(())
    }
}

/// Why the engine did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Things stand in the way; nothing was touched.
    #[error("{0}")]
    Refused(Refusals),
    /// The target is no longer what the survey saw.
    #[error("{subject} changed while it was looked at: {what}")]
    Changed {
        /// What was looked at.
        subject: String,
        /// What is different.
        what: String,
    },
    /// A system call of ours failed.
    #[error("{operation} failed for {subject}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// To whom.
        subject: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A call made as a task failed.
    #[error("{operation} failed in task {tid}")]
    Call {
        /// What was being done.
        operation: String,
        /// The task.
        tid: Tid,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The mechanism failed.
    #[error(transparent)]
    Mechanism(#[from] MechanismError),
    /// The container failed.
    #[error(transparent)]
    Image(#[from] hdcr_image::ImageError),
    /// The image holds something that cannot be.
    #[error("the image is not sound: {0}")]
    Unsound(String),
}

/// Result of an engine operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Refused(_) => Class::Refused,
            Self::Changed { .. } => Class::Changed,
            // Nothing but a process that has ended answers so.
            Self::System { source, .. } if source.raw_os_error() == Some(nix::libc::ESRCH) => Class::Changed,
            Self::System { .. } | Self::Call { .. } => Class::Failed,
            Self::Mechanism(error) => match error {
                MechanismError::Gone { .. } => Class::Changed,
                MechanismError::Traced { .. }
                | MechanismError::NotPermitted { .. }
                | MechanismError::HoldsCaller { .. }
                | MechanismError::NoRoom { .. }
                | MechanismError::Unsupported { .. } => Class::Refused,
                MechanismError::Late { .. } | MechanismError::System { .. } => Class::Failed,
            },
            Self::Image(_) | Self::Unsound(_) => Class::Corrupt,
        }
    }

    /// A refusal of one object.
    pub fn refuse(refusal: Refusal) -> Self {
        Self::Refused(Refusals(vec![refusal]))
    }

    /// A failed system call of ours, for `map_err`.
    pub fn system<E: Into<io::Error>>(operation: &'static str, subject: impl fmt::Display) -> impl FnOnce(E) -> Self {
        let subject = subject.to_string();
        move |source| Self::System { operation, subject, source: source.into() }
    }
}
