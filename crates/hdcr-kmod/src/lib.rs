//! Sessions with the kernel module: what `/dev/hdcr` does, as safe calls.
//!
//! Nothing is decided here. The words of the interface are in `hdcr-abi`.

mod call;
mod session;

pub use session::{Held, Mapping, Restored, Session, SessionError};
