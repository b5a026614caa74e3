//! The protocol's real state machines in a model of everything around them, and what must hold in it.
//!
//! The network is the set of all messages ever sent: each may be delivered late, again, in any order, or never. The store
//! is a ledger and a set of shares. Crashes and ends of time are actions with a budget, so that the search ends.

mod actions;
mod effects;
mod host;
mod must;
mod search;
mod setup;
mod world;

pub(crate) use host::{Host, Programs};
pub(crate) use setup::{Budget, Fault, Setup};
pub(crate) use world::{Action, World};
