//! Coordinated checkpoints of a parallel job: the messages and the two state machines, and nothing else.
//!
//! `Coordinator::step` and `Participant::step` take an event and return effects. Sending, freezing, reading and writing
//! are effects; answers, the ends of leases and the death of others are events. Nothing here reads a clock, a file, a
//! socket or a random number. `docs/protocol.md` states the protocol and how each of its promises is checked.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions))]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an event that does not fit the state changes nothing, whatever it is"
)]

pub mod channel;
mod codec;
pub mod coordinator;
pub mod fanout;
pub mod ids;
pub mod ledger;
pub mod manifest;
pub mod message;
pub mod participant;
mod rules;

#[cfg(test)]
mod model;

pub use coordinator::Coordinator;
pub use participant::Participant;
