//! What commands ask the coordinator of a job.

use serde::{Deserialize, Serialize};

use super::super::shares;
use super::super::transport::Question;
use super::{Ending, Seat};
use crate::failure::{Class, Failure, Result};

/// A question.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// How is it?
    Status,
    /// Take a checkpoint, and say when it is committed.
    Checkpoint,
    /// End the job for good.
    Abort,
}

/// An answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Status(Status),
    Committed { checkpoint: String, stopped_us: u64, bytes: u64 },
    Aborted,
    Failed(Failure),
}

/// How a job is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) job: String,
    /// In a word.
    pub(crate) state: String,
    /// The newest checkpoint.
    pub(crate) checkpoint: Option<String>,
    /// How often it was rolled back.
    pub(crate) rollbacks: u64,
    pub(crate) members: Vec<MemberStatus>,
}

/// How a member is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct MemberStatus {
    pub(crate) member: u32,
    /// Where its agent is, when there is a line to it.
    pub(crate) host: Option<String>,
    /// It has tasks of the job.
    pub(crate) takes_part: bool,
    /// How its program has ended, when it has.
    pub(crate) status: Option<u8>,
}

impl Ask {
    pub(crate) fn encode(self) -> Vec<u8> {
        serde_json::to_vec(&self).unwrap_or_default()
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|error| {
            Failure::new(Class::Corrupt, "bad-message", format!("the answer of the coordinator is none: {error}"))
        })
    }
}

impl Seat<'_> {
    pub(super) fn on_question(&mut self, question: Question) {
        match serde_json::from_slice::<Ask>(&question.what) {
            Ok(Ask::Status) => question.answer(Answer::Status(self.status()).encode()),
            Ok(Ask::Checkpoint) => {
                self.askers.push((question, false));
                self.wants_checkpoint();
            }
            Ok(Ask::Abort) => {
                question.answer(Answer::Aborted.encode());
                self.over = Some(Ending::Aborted);
            }
            Err(error) => {
                let failure = Failure::new(Class::Corrupt, "bad-message", format!("a question is none: {error}"));
                question.answer(Answer::Failed(failure).encode());
            }
        }
    }

    fn status(&self) -> Status {
        let member = |member| MemberStatus {
            member,
            host: self.agents.place(member).map(str::to_owned),
            takes_part: self.machine.view().contains(&hdcr_sync::ids::Member(member)),
            status: self.statuses.get(&member).copied(),
        };
        Status {
            job: self.name.to_string(),
            state: if self.is_complete() { self.machine.activity() } else { "starting" }.to_owned(),
            checkpoint: self.machine.committed_round().map(shares::called),
            rollbacks: self.machine.incarnation().0,
            members: (0..self.spec.members).map(member).collect(),
        }
    }
}
