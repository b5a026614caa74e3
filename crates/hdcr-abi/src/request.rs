//! The requests, in the order of their numbers.

/// The letter of all requests.
const LETTER: u32 = 0xd7;

/// A request: its number and with it the number that `ioctl` takes.
pub trait Request: Copy {
    /// The number among the requests. Never used again for another one.
    const NUMBER: u32;
    /// `_IOWR(LETTER, NUMBER, Self)`: both ways, as answers are written into the request.
    const COMMAND: u32 = command(Self::NUMBER, size_of::<Self>());
    /// A request of this size without flags.
    const HEAD: Head = Head { size: size(size_of::<Self>()), flags: 0 };
}

/// The size of a request as its head names it; requests are smaller than a page.
#[expect(clippy::cast_possible_truncation, reason = "requests are smaller than a page, which a test holds")]
const fn size(bytes: usize) -> u32 {
    bytes as u32
}

const fn command(number: u32, bytes: usize) -> u32 {
    (3 << 30) | (size(bytes) << 16) | (LETTER << 8) | number
}

/// Begins each request.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// Size of the whole request.
    pub size: u32,
    /// Bits of the request in question; unknown ones are refused.
    pub flags: u32,
}

/// Agrees on a version. Everything else is refused before it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hello {
    /// Size and flags.
    pub head: Head,
    /// The oldest version that the caller speaks.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
    /// Answer: the version that is spoken from now on.
    pub version: u32,
    /// Answer: the most threads that one freeze holds.
    pub threads: u32,
    /// Answer: bits of [`feature`].
    pub features: u64,
    /// Answer: bytes of the XSAVE area of a thread.
    pub xstate_size: u32,
    /// Zero.
    pub reserved: u32,
}

/// What this module can do on this kernel.
pub mod feature {
    /// Whether the caller may touch a task is asked of the kernel itself; else by opening `/proc/PID/mem` in its name.
    pub const ACCESS_CHECK: u64 = 1 << 0;
    /// What is queued in a task that did not answer can be taken back; else it runs later and does nothing.
    pub const TAKE_BACK: u64 = 1 << 1;
}

/// Which tasks a freeze means. `id` is a number in the caller's pid namespace, or that of a cgroup.
pub mod scope {
    /// The process `id`.
    pub const PROCESS: u32 = 1;
    /// The process `id` and all below it; when it leads a session, the whole session.
    pub const TREE: u32 = 2;
    /// All below the process `id`, without that one. When the caller is its child, the caller and what is below it are left out.
    pub const BELOW: u32 = 3;
    /// The process group `id`.
    pub const GROUP: u32 = 4;
    /// The session `id`.
    pub const SESSION: u32 = 5;
    /// The cgroup whose folder has the inode number `id`, in the unified hierarchy, with those below it.
    pub const CGROUP: u32 = 6;
}

/// Bits of the head of [`Freeze`].
pub mod freeze_flag {
    /// Processes that stand in a stop of a tracer outside of the scope count as frozen, though that tracer may read and
    /// write them, and what it lets go is caught before its next instruction.
    pub const HOLD_TRACED: u32 = 1 << 0;
}

/// Stops all tasks of a scope, or none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Freeze {
    /// Size and bits of [`freeze_flag`].
    pub head: Head,
    /// One of [`scope`].
    pub scope: u32,
    /// Zero.
    pub reserved: u32,
    /// Which.
    pub id: u64,
    /// How long it may take; at most [`crate::LONGEST_NS`].
    pub within_ns: u64,
    /// Answer: processes that are frozen, zombies among them.
    pub processes: u32,
    /// Answer: threads that are frozen.
    pub threads: u32,
    /// Answer: how often the tasks of the system were looked through.
    pub rounds: u32,
    /// Answer: why it failed, one of [`hold`].
    pub hold: u32,
    /// Answer: the thread that it failed for, or 0.
    pub culprit: i32,
    /// Answer: the kernel's state bits of that thread.
    pub culprit_state: u32,
    /// Answer: how long it took.
    pub took_ns: u64,
}

/// Why a task is not held.
pub mod hold {
    /// None is in the way.
    pub const NONE: u32 = 0;
    /// It sleeps in the kernel and cannot be woken before what it waits for is done.
    pub const SLEEPS: u32 = 1;
    /// It waits for the end or the exec of a `vfork` child that is not in the scope.
    pub const VFORK: u32 = 2;
    /// It stands in a stop of a tracer, which may let it make a system call at any time.
    pub const TRACED: u32 = 3;
    /// It runs in the kernel, or got no processor.
    pub const LATE: u32 = 4;
    /// Another session holds it.
    pub const OTHER_SESSION: u32 = 5;
    /// The caller may not touch it.
    pub const NOT_PERMITTED: u32 = 6;
    /// It is the caller, or a task that serves the kernel.
    pub const UNSUPPORTED: u32 = 7;
    /// New tasks came faster than they could be stopped.
    pub const TOO_MANY: u32 = 8;
}

macro_rules! asked {
    ($($(#[$meta:meta])* $name:ident;)*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct $name {
            /// Size and flags: none are known.
            pub head: Head,
        }
    )*};
}
asked! {
    /// Lets all go on.
    Thaw;
    /// Kills all with `SIGKILL`; none of them runs another instruction. Ends the freeze.
    Kill;
}

/// Lists what is frozen, as [`crate::TaskRow`]s by rising thread number.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tasks {
    /// Size and flags: none are known.
    pub head: Head,
    /// Address of the rows.
    pub at: u64,
    /// For how many there is room.
    pub room: u32,
    /// Answer: how many there are. When there are more than fit, those that fit were written.
    pub count: u32,
}

/// Lists mappings of a frozen thread, as [`crate::MappingRow`]s, each followed by its name and zeros up to a multiple of 8.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mappings {
    /// Size and flags: none are known.
    pub head: Head,
    /// Address of the rows.
    pub at: u64,
    /// Bytes that there are for them.
    pub room: u32,
    /// The thread.
    pub tid: i32,
    /// Where to begin. Answer: where to go on, or 0 when all were listed.
    pub from: u64,
    /// Answer: how many bytes were written.
    pub used: u32,
    /// Answer: how many mappings.
    pub count: u32,
}

/// Which registers are meant.
pub mod register_set {
    /// `struct user_regs_struct`.
    pub const GENERAL: u32 = 1;
    /// The XSAVE area.
    pub const XSTATE: u32 = 2;
}

/// Reads the registers of a frozen thread.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// Size and flags: none are known.
    pub head: Head,
    /// Where they go to.
    pub at: u64,
    /// Bytes that there are for them.
    pub room: u32,
    /// Answer: how many bytes were written.
    pub used: u32,
    /// The thread.
    pub tid: i32,
    /// One of [`register_set`].
    pub set: u32,
}

/// Bytes of memory.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// How many.
    pub length: u64,
}

/// Writes memory of a frozen thread to a regular file, one range after another, by a thread of the kernel.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pages {
    /// Size and flags: none are known.
    pub head: Head,
    /// Address of the [`Range`]s.
    pub ranges: u64,
    /// How many ranges, at most [`crate::RANGES`].
    pub count: u32,
    /// The thread.
    pub tid: i32,
    /// Where to begin in the file.
    pub offset: u64,
    /// Answer: how many bytes were written.
    pub written: u64,
    /// The file, open for writing.
    pub fd: i32,
    /// Zero.
    pub reserved: u32,
}

macro_rules! numbered {
    ($($number:literal $name:ident,)*) => {$(
        impl Request for $name {
            const NUMBER: u32 = $number;
        }
    )*};
}
numbered! {
    0 Hello,
    1 Freeze,
    2 Thaw,
    3 Kill,
    4 Tasks,
    5 Mappings,
    6 Registers,
    7 Pages,
}
