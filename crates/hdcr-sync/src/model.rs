//! The protocol's real state machines in a model of everything around them, and what must hold in it.
//!
//! `search.rs` tries every order of events within a budget. There the network is the set of all messages ever sent: each
//! may be delivered late, again, in any order, or never. `storms.rs` runs long random schedules of many hosts instead.

mod actions;
mod effects;
mod host;
mod must;
mod random;
mod schedule;
mod search;
mod setup;
mod shrink;
mod storm;
mod storms;
mod world;

pub(crate) use host::{Host, Programs};
pub(crate) use setup::{Budget, Fault, Setup};
pub(crate) use world::{Action, World};
