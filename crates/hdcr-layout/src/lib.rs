//! Fixed layouts of an HDCR image: what both user space and the kernel module read and write.
//!
//! Everything is little-endian, has no implicit padding and needs no allocation: parts of variable length are borrowed
//! slices. This crate holds encodings only; it checks what one record can say about itself and nothing across records.
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod alone;
mod cursor;
mod error;
mod file;
mod frame;
mod header;
mod mapping;
mod page_log;
mod page_run;
mod record;
mod signal;
pub mod tag;
mod task;

#[cfg(test)]
mod checks;

pub use alone::{Pipe, Space, Thread, Tree, Words};
pub use error::LayoutError;
pub use file::{DescriptorEntry, PATH_LIMIT, PathFile};
pub use frame::FrameHeader;
pub use header::{ALONE_VERSION, FORMAT_VERSION, Header, MAGIC, PartKind};
pub use mapping::{Mapping, MappingKind};
pub use page_log::LogRecord;
pub use page_run::{Codec, PAGE_SIZE, PageRunEntry, RUN_PAGES};
pub use record::Layout;
pub use signal::{Itimer, PosixTimer, SignalAction};
pub use task::{Registers, Task, TaskState};
