//! The messages between a program and the keeper of its job.
//!
//! A program finds the keeper at the path in `HDCR_CONTROL`, a UNIX socket of type `SOCK_SEQPACKET`; each message is one
//! packet of JSON. A connection is one conversation: who has asked for a checkpoint on it hears the answer on it. A program
//! that is restored finds [`Answer::Restored`] in every connection that it had at the time of the checkpoint, and then its
//! end; what was said before on it and not read yet is gone.

use serde::{Deserialize, Serialize};

use crate::outcome::{Failed, Restored};

/// Version of these messages. A keeper answers what it knows, whatever the version of the other side.
pub const VERSION: u32 = 1;
/// The longest message in bytes.
pub const LIMIT: usize = 64 << 10;
/// Good moments that follow one another sooner are one.
pub const BETWEEN_MOMENTS: std::time::Duration = std::time::Duration::from_millis(10);
/// Names the job to its programs.
pub const JOB: &str = "HDCR_JOB";
/// The path of the socket.
pub const CONTROL: &str = "HDCR_CONTROL";

/// What a program asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Who the keeper is.
    Hello {
        /// [`VERSION`] of the program.
        version: u32,
    },
    /// A checkpoint of the job.
    Checkpoint {
        /// How long the job may stand still for it; the job's own limit when there is none.
        #[serde(default)]
        timeout_ms: Option<u64>,
    },
    /// The end of this life, and a new one from a checkpoint.
    Rollback {
        /// Its number; the newest when there is none.
        #[serde(default)]
        to: Option<u64>,
    },
    /// This is a good moment for a checkpoint: an algorithm may be waiting for one. Nothing is answered.
    Moment {},
    /// From now on the program is asked on this connection before each checkpoint.
    Attend {},
    /// The contents of this memory are left out of checkpoints, as long as this connection lives; all of it, each time.
    Omit {
        /// Start and end of each part.
        ranges: Vec<(u64, u64)>,
    },
    /// It is ready for the checkpoint of this round.
    Ready {
        /// As in [`Answer::Prepare`].
        round: u64,
    },
    /// It does not want this checkpoint.
    Veto {
        /// As in [`Answer::Prepare`].
        round: u64,
        /// Nor any other one, as long as this process lives.
        #[serde(default)]
        permanent: bool,
        /// A number of the program's own.
        #[serde(default)]
        code: i32,
        /// Why, for people.
        #[serde(default)]
        text: String,
    },
}

/// What the keeper answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Ask::Hello`].
    Welcome(Welcome),
    /// The checkpoint is durable.
    Continued {
        /// `JOB@NUMBER`.
        image: String,
    },
    /// The job was brought back from an image.
    Restored(Greeting),
    /// To [`Ask::Omit`]: no checkpoint is being taken that does not know of it.
    Omitted {},
    /// A checkpoint is about to be taken: [`Ask::Ready`] or [`Ask::Veto`] is expected.
    Prepare {
        /// Its number.
        round: u64,
        /// So soon; then it is taken all the same.
        within_ms: u64,
        /// When nothing was heard for so long after that, the keeper is not to be waited for any more.
        hold_ms: u64,
    },
    /// The program stood still and goes on, or there was no checkpoint after all.
    Resume {
        /// As in [`Answer::Prepare`].
        round: u64,
        /// The program has been captured. The image may still fail to become durable.
        captured: bool,
    },
    /// It cannot be done.
    Failed(Failed),
}

/// A keeper says who it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`] of the keeper.
    pub version: u32,
    /// The job.
    pub job: String,
    /// How often it was brought back or begun anew.
    pub count: u64,
}

/// What a restored program finds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// Where this life came from.
    #[serde(flatten)]
    pub restored: Restored,
    /// Where its keeper listens now; `None`: nobody does.
    #[serde(default)]
    pub control: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::outcome::Reason;

    fn check(answer: &Answer, expected: &str) {
        let text = serde_json::to_string(answer).unwrap();
        assert_eq!(text, expected);
        assert_eq!(&serde_json::from_str::<Answer>(&text).unwrap(), answer);
    }

    #[test]
    fn messages_are_what_other_languages_are_told() {
        let restored =
            Restored { count: 2, image: "a@7".to_owned(), reason: Reason::Crash, passed: Duration::from_millis(1500) };
        check(
            &Answer::Restored(Greeting { restored, control: None }),
            r#"{"restored":{"count":2,"image":"a@7","reason":"crash","passed_ms":1500,"control":null}}"#,
        );
        check(&Answer::Continued { image: "a@7".to_owned() }, r#"{"continued":{"image":"a@7"}}"#);
        let asked: Ask = serde_json::from_str(r#"{"checkpoint":{}}"#).unwrap();
        assert_eq!(asked, Ask::Checkpoint { timeout_ms: None });
    }

    #[test]
    fn a_reason_of_a_later_version_is_read() {
        let text = r#"{"count":1,"image":"a@1","reason":"moved","passed_ms":0}"#;
        assert_eq!(serde_json::from_str::<Restored>(text).unwrap().reason, Reason::Other);
    }
}
