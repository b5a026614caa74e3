//! What travels between a coordinator and an agent: messages of the protocol as they are, and notices in JSON.

use hdcr_sync::message::{Order, Report};
use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure, Result};

/// The first byte of a message of the protocol.
const MESSAGE: u8 = 1;
/// And of a notice.
const NOTICE: u8 = 2;

/// From a coordinator to an agent.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum ToAgent {
    Order(Order),
    /// The life with this number, or an earlier one, is over: everything of it is to be ended.
    Finish(u64),
}

/// From an agent to a coordinator.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum ToSeat {
    Report(Report),
    Notice(Notice),
}

/// What an agent tells besides.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) enum Notice {
    /// The first one of each connection: which life of the job it belongs to, and where it runs.
    Here { life: u64, host: String },
    /// The program of a member has ended by itself with this status.
    Ended { member: u32, status: u8 },
    /// It was killed by this signal.
    Killed { member: u32, signal: i32 },
    /// A piece of work failed.
    Failed(Failure),
    /// A share is written: its images were taken in a stop of so many microseconds.
    Written { stopped_us: u64, bytes: u64 },
}

#[derive(Serialize, Deserialize)]
struct Finish {
    finish: u64,
}

impl ToAgent {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Order(order) => tagged(MESSAGE, order.encode()),
            Self::Finish(life) => json(&Finish { finish: *life }),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        match bytes.split_first() {
            Some((&MESSAGE, rest)) => Order::decode(rest).map(Self::Order).map_err(|error| bad(&error)),
            Some((&NOTICE, rest)) => {
                serde_json::from_slice::<Finish>(rest).map(|it| Self::Finish(it.finish)).map_err(|error| bad(&error))
            }
            _ => Err(bad(&"of no known kind")),
        }
    }
}

impl ToSeat {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Report(report) => tagged(MESSAGE, report.encode()),
            Self::Notice(notice) => json(notice),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        match bytes.split_first() {
            Some((&MESSAGE, rest)) => Report::decode(rest).map(Self::Report).map_err(|error| bad(&error)),
            Some((&NOTICE, rest)) => serde_json::from_slice(rest).map(Self::Notice).map_err(|error| bad(&error)),
            _ => Err(bad(&"of no known kind")),
        }
    }
}

fn tagged(kind: u8, bytes: Vec<u8>) -> Vec<u8> {
    std::iter::once(kind).chain(bytes).collect()
}

/// These types have nothing that JSON cannot say.
fn json<T: Serialize>(value: &T) -> Vec<u8> {
    tagged(NOTICE, serde_json::to_vec(value).unwrap_or_default())
}

fn bad(why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Class::Corrupt, "bad-message", format!("a message is none: {why}"))
}

#[cfg(test)]
mod tests {
    use hdcr_sync::ids::{Boot, Member, Stamp, Stay};
    use hdcr_sync::message::{Command, Word};

    use super::*;

    #[test]
    fn letters_arrive_as_they_were_sent_and_nothing_else_does() {
        let (to, from, stamp) = (Member(1), Member(1), Stamp::default());
        let order = Order { to, boot: None, stamp, line: None, what: Command::Hail };
        for letter in [ToAgent::Order(order), ToAgent::Finish(7)] {
            assert_eq!(ToAgent::decode(&letter.encode()).unwrap(), letter);
            assert!(ToSeat::decode(&letter.encode()).is_err());
        }
        let report = Report { from, boot: Boot(1), stay: Stay(0), stamp, what: Word::Leave };
        let failed = Failure::refused("x", "y");
        for letter in [ToSeat::Report(report), ToSeat::Notice(Notice::Failed(failed))] {
            assert_eq!(ToSeat::decode(&letter.encode()).unwrap(), letter);
            assert!(ToAgent::decode(&letter.encode()).is_err());
        }
        for bytes in [&[][..], &[0], &[1], &[2], &[3, 4], b"\x02{}"] {
            assert!(ToAgent::decode(bytes).is_err() && ToSeat::decode(bytes).is_err(), "{bytes:?}");
        }
    }
}
