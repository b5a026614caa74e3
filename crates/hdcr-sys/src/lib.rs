//! Safe wrappers over the Linux calls that rustix and nix lack. No state, and nothing that a caller must decide.

pub mod anonymous;
pub mod birth;
pub mod births;
pub mod close_range;
pub mod dispatch;
pub mod fanotify;
pub mod handle;
pub mod kcmp;
pub mod missing;
pub mod namespace;
pub mod numbered;
pub mod owner;
pub mod pagemap;
pub mod ptrace;
pub mod pty_queue;
pub mod same_pages;
pub mod shared;
pub mod signalfd;
pub mod sigpipe;
pub mod sock_diag;
pub mod socket;
pub mod task;
pub mod task_attribute;
pub mod terminal;
pub mod userfaultfd;
pub mod wait;
