//! Checkpoint and restore of process trees: the model, the resources, and the order of both ways.
//!
//! The engine knows what has to be captured and in which order it is made again. It does not know *how* a task is
//! stopped or made to run a call (that is a [`mechanism::Mechanism`]), nor where an image lies (a store), nor when a
//! checkpoint is wanted (a policy).
#![forbid(unsafe_code)]

pub mod batch;
mod began;
mod births;
mod build;
pub mod capture;
pub mod checkpoint;
mod clock;
pub mod error;
mod flags;
mod heirs;
pub mod ids;
pub mod mechanism;
mod memory;
pub mod model;
mod numbers;
mod openfile;
mod plain;
mod plan;
pub mod procfs;
pub mod progress;
pub mod regs;
mod reports;
mod resource;
pub mod restore;
mod resume;
mod rights;
pub mod rollback;
mod route;
mod segments;
mod semaphores;
pub mod show;
mod snapshot;
mod stored;
pub mod survey;
mod task;
pub mod text;
mod tree;
pub mod verify;
mod works;
