//! Sessions with the kernel module: what `/dev/hdcr` does, as safe calls.
//!
//! Nothing is decided here. The words of the interface are in `hdcr-abi`.

mod call;
mod presence;
mod session;

pub use presence::{Presence, lacking};
pub use session::{Held, Mapping, Restored, Session, SessionError};
