//! The tags that the container and the kernel module know. A number is never used again for another meaning.
//!
//! 1-15 belong to the container, 16-255 to the records of this crate; the engine's records begin at 256.

/// Page runs of one address space: the frame's id is the space, its body a list of [`crate::PageRunEntry`].
pub const PAGE_INDEX: u16 = 1;
/// [`crate::Task`].
pub const TASK: u16 = 16;
/// [`crate::Registers`].
pub const REGISTERS: u16 = 17;
/// [`crate::Mapping`].
pub const MAPPING: u16 = 18;
/// [`crate::SignalAction`].
pub const SIGNAL_ACTION: u16 = 19;
/// [`crate::Itimer`].
pub const ITIMER: u16 = 20;
/// [`crate::PosixTimer`].
pub const POSIX_TIMER: u16 = 21;
/// [`crate::PathFile`].
pub const PATH_FILE: u16 = 22;
/// [`crate::DescriptorEntry`].
pub const DESCRIPTOR_ENTRY: u16 = 23;
/// [`crate::Tree`]; from here to [`XSTATE`] in images of the kernel module only.
pub const TREE: u16 = 24;
/// [`crate::Space`].
pub const SPACE: u16 = 25;
/// [`crate::Thread`].
pub const THREAD: u16 = 26;
/// [`crate::Pipe`].
pub const PIPE: u16 = 27;
/// The XSAVE area of a thread, as the kernel lays it out.
pub const XSTATE: u16 = 28;
/// The first tag that the container must not know.
pub const FIRST_FREE: u16 = 256;
