//! Safe wrappers over the Linux calls that rustix and nix lack. No state, and nothing that a caller must decide.

pub mod close_range;
pub mod dispatch;
pub mod ptrace;
pub mod anonymous;
pub mod handle;
pub mod kcmp;
pub mod namespace;
pub mod owner;
pub mod pagemap;
pub mod task;
pub mod task_attribute;
pub mod wait;
pub mod birth;
pub mod births;
pub mod fanotify;
pub mod shared;
pub mod sock_diag;
pub mod socket;
pub mod signalfd;
pub mod terminal;
pub mod numbered;
pub mod pty_queue;
