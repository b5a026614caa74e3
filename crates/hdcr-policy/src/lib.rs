//! When, how and how much to checkpoint: pure functions from observations to decisions.
//!
//! One decision, one file. Nothing here reads a clock, a file or a random number; a decision is tested with tables.
#![forbid(unsafe_code)]

pub mod algorithm;
pub mod interval;
pub mod kin;
pub mod restart;
pub mod retention;
pub mod series;
pub mod simulator;
pub mod touched;
