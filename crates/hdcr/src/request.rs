//! A request that is under way: a conversation of its own with the keeper, so that any number of threads may have one.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use crate::agent;
use crate::link::{Heard, Link};
use crate::outcome::{Failed, Outcome};
use crate::process;
use crate::sections;
use crate::wire::{Answer, Ask};

/// Hooks may take so long before who has asked is answered all the same.
const HOOKS: Duration = Duration::from_mins(1);

/// How a checkpoint is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// How long the job may stand still for it; `None`: as long as `hdcr run` allows.
    pub timeout: Option<Duration>,
}

impl Options {
    pub(crate) fn timeout_ms(self) -> Option<u64> {
        self.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A request that was made. Its descriptor can be read (poll(2)) when it is met or has failed. Who drops it does not want
/// it any more: a checkpoint that has not begun is not taken.
#[derive(Debug)]
pub struct Request {
    link: Link,
}

impl Request {
    pub(crate) fn begin(ask: &Ask) -> Result<Self, Failed> {
        // A checkpoint waits for the agent, and that for sections.
        if agent::is_this_thread() {
            return Err(Failed::in_the_way("in-hook", "a hook of the program asks for it"));
        }
        if sections::is_inside() {
            return Err(Failed::in_the_way("in-section", "the thread that asks for it is in a critical section"));
        }
        let mut failed = Failed::absent();
        for _ in 0..process::TRIES {
            let link = process::this().connect().ok_or_else(Failed::absent)?;
            match link.send(ask) {
                Ok(()) => return Ok(Self { link }),
                // Restored before it was asked, or the keeper has just ended.
                Err(error) => failed = Failed::unheard(&error),
            }
        }
        Err(failed)
    }

    /// What became of it, if that is known by now. To be asked once: what was heard is not said again.
    pub fn try_wait(&self) -> Option<Outcome> {
        self.wait(Some(Duration::ZERO))
    }

    /// Waits for so long, or without an end. `None`: nothing is known yet.
    pub fn wait(&self, limit: Option<Duration>) -> Option<Outcome> {
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let outcome = match self.link.wait(until) {
            Ok(Heard::Nothing) => return None,
            Ok(Heard::Said(Answer::Continued { image })) => Outcome::Continued { image },
            Ok(Heard::Said(Answer::Restored(greeting))) => {
                process::this().greeted(&greeting);
                Outcome::Restored(greeting.restored)
            }
            Ok(Heard::Said(Answer::Failed(failed))) => Outcome::Failed(failed),
            Ok(Heard::Said(
                Answer::Welcome(_) | Answer::Prepare { .. } | Answer::Resume { .. } | Answer::Omitted {},
            )) => Outcome::Failed(Failed::overtaken()),
            Ok(Heard::Ended) => Outcome::Failed(Failed::gone()),
            Err(error) => Outcome::Failed(Failed::unheard(&error)),
        };
        // The hooks of this branch have run when it is told.
        process::this().sections.until_open(Some(HOOKS));
        Some(outcome)
    }

    pub(crate) fn finish(self) -> Outcome {
        self.wait(None).unwrap_or_else(|| Outcome::Failed(Failed::gone()))
    }
}

impl AsFd for Request {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

impl AsRawFd for Request {
    fn as_raw_fd(&self) -> RawFd {
        self.link.as_raw_fd()
    }
}
