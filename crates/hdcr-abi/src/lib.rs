//! What the kernel module and user space say to one another through `/dev/hdcr`: requests and rows, and nothing else.
//!
//! Each open descriptor is a session. Its first request is [`Hello`]; every request begins with a [`Head`] that names its
//! size. A size, a flag, a number or a reserved word that is not known is refused, so that a later version can give it a
//! meaning. All structs consist of whole numbers, have no padding, and look the same to 64-bit and 32-bit programs.
#![no_std]
#![forbid(unsafe_code)]

mod request;
mod row;

#[cfg(test)]
mod tests;

pub use request::{
    Calls, Capture, Freeze, Head, Hello, Kill, Mappings, Pages, Range, Registers, Request, Restore, Signals, Tasks,
    Thaw, Waiting, argument, capture_flag, feature, freeze_flag, hold, obstacle, register_set, scope,
};
pub use row::{CallRow, MappingRow, PointerRow, TaskRow, mapping_flag, stand};

/// The version of everything here. Raised when a meaning changes; what is added keeps it.
pub const VERSION: u32 = 1;

/// Name of the device below `/dev`.
pub const DEVICE: &str = "hdcr";

/// The most threads that one freeze holds.
pub const THREADS: u32 = 65_536;

/// The most ranges of one [`Pages`].
pub const RANGES: u32 = 4_096;

/// The most calls, and pointers, of one [`Calls`].
pub const CALLS: u32 = 65_536;

/// The most bytes of data of one [`Calls`].
pub const CALL_DATA: u32 = 16 << 20;

/// The longest deadline of a freeze: a minute.
pub const LONGEST_NS: u64 = 60_000_000_000;
