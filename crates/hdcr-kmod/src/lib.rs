//! The kernel module: what `/dev/hdcr` does, as safe calls ([`Session`]), and the engine's mechanism over them ([`Kernel`]).
//!
//! Nothing is decided here. The words of the interface are in `hdcr-abi`.

mod batch;
mod call;
mod frozen;
mod mechanism;
mod presence;
mod session;

pub use mechanism::{Hears, Kernel, NEEDED};
pub use presence::{Presence, lacking};
pub use session::{Held, Mapping, Restored, Session, SessionError};
