//! Parallel jobs: several members that are checkpointed together, at one instant, and go back together.
//!
//! What is decided, and when, is decided by `hdcr-sync` alone. Here its events are made of what happens, and its effects
//! are carried out.
//!
//! - `room.rs`: the directory of a job in the store
//! - `lives.rs`: which agent runs where, and that nothing of a member runs
//! - `ledger.rs`: entries as bytes in the store
//! - `shares.rs`: what one member has written in one round
//! - `credentials.rs`: certificates of a job
//! - `letter.rs`: what travels besides the messages of the protocol
//! - `transport.rs`: gRPC with mutual TLS, the only file that knows of it; `bell.rs`: how its thread wakes a loop
//! - `agent/`: the agent of a host, which is the parent of the programs there
//! - `seat/`: the coordinator

pub(crate) mod agent;
mod bell;
pub(crate) mod credentials;
pub(crate) mod ledger;
pub(crate) mod letter;
pub(crate) mod lives;
pub(crate) mod room;
pub(crate) mod seat;
mod shares;
pub(crate) mod transport;
