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
    /// Whether the caller may touch a task is asked of the kernel itself; else only who has `CAP_SYS_PTRACE` may.
    pub const ACCESS_CHECK: u64 = 1 << 0;
    /// What is queued in a task that did not answer can be taken back; else it runs later and does nothing.
    pub const TAKE_BACK: u64 = 1 << 1;
    /// Tasks can be made; with [`VDSO`] and [`PROGRAM`] what a restore needs.
    pub const CLONE: u64 = 1 << 2;
    /// The vdso can be put at its place.
    pub const VDSO: u64 = 1 << 3;
    /// Pipes can be made.
    pub const PIPES: u64 = 1 << 4;
    /// A process can be given its program.
    pub const PROGRAM: u64 = 1 << 5;
    /// Processes can be put into sessions and groups.
    pub const IDS: u64 = 1 << 6;
    /// Parked threads can make system calls on themselves: [`super::Calls`].
    pub const CALLS: u64 = 1 << 7;
    /// [`super::Signals`] and [`super::Waiting`] are known. This is not looked up.
    pub const FACTS: u64 = 1 << 8;
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
    /// The process `id` and all below it, whatever it leads.
    pub const LINE: u32 = 7;
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

/// What an argument of a [`crate::CallRow`] is.
pub mod argument {
    /// A number as it is.
    pub const VALUE: u8 = 0;
    /// An offset in the data: becomes the address of that byte.
    pub const DATA: u8 = 1;
    /// The index of an earlier call: becomes its result.
    pub const RESULT: u8 = 2;
}

/// Has a parked thread make system calls on itself, one after another. Data that they read and write is put into private
/// memory of its process meanwhile, and comes back from there.
///
/// It is refused where the thread did not park, is in a 32-bit call, or stands under a seccomp filter, which would not see
/// the calls. Calls that take the place of what the thread stands in (`clone`, `execve`, `exit`, ..) are refused.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Calls {
    /// Size and flags: none are known.
    pub head: Head,
    /// Address of the [`crate::CallRow`]s, in which the results are put.
    pub calls: u64,
    /// Address of the data, which is read and written.
    pub data: u64,
    /// Address of [`crate::PointerRow`]s.
    pub pointers: u64,
    /// How many calls, at most [`crate::CALLS`].
    pub count: u32,
    /// Bytes of data, at most [`crate::CALL_DATA`].
    pub size: u32,
    /// How many pointers, at most [`crate::CALLS`].
    pub places: u32,
    /// The thread.
    pub tid: i32,
    /// How long the caller waits for them; at most [`crate::LONGEST_NS`].
    pub within_ns: u64,
    /// Answer: how many calls were made.
    pub made: u32,
    /// Zero.
    pub reserved: u32,
}

/// Lists the signals that wait in a queue of a frozen thread, oldest first, as `siginfo_t` of 128 bytes each.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Signals {
    /// Size and flags: none are known.
    pub head: Head,
    /// Address of the rows.
    pub at: u64,
    /// For how many there is room.
    pub room: u32,
    /// Answer: how many there are. When there are more than fit, those that fit were written.
    pub count: u32,
    /// The thread.
    pub tid: i32,
    /// 0: its own queue. 1: that of its process.
    pub shared: u32,
}

/// Tells of a call whose time the kernel keeps while it is interrupted.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Waiting {
    /// Size and flags: none are known.
    pub head: Head,
    /// The thread.
    pub tid: i32,
    /// Answer: the number of the call, or -1 when it is none that is known.
    pub call: i32,
    /// Answer: what remains of its time now; below zero when it is up.
    pub rest_ns: i64,
    /// Answer: whether it has an end, and that is known.
    pub ends: u32,
    /// Zero.
    pub reserved: u32,
}

/// Bits of the head of [`Capture`].
pub mod capture_flag {
    /// Memory is copied on write, and all are let go as soon as that is set up, which ends the freeze; the image is written
    /// while they run. When it fails before, they stay frozen.
    pub const ON_WRITE: u32 = 1 << 0;
}

/// Writes an image of all that is frozen into an empty regular file.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capture {
    /// Size and bits of [`capture_flag`].
    pub head: Head,
    /// The file, open for writing.
    pub fd: i32,
    /// Answer: what no image can hold, one of [`obstacle`].
    pub obstacle: u32,
    /// Answer: the thread that has it, or 0.
    pub culprit: i32,
    /// Zero.
    pub reserved: u32,
    /// Answer: bytes of the image.
    pub written: u64,
}

/// Makes the tree of an image again, below the calling process, and lets it go. What it fails for leaves nothing but a
/// zombie of its first process, for which the caller waits.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restore {
    /// Size and flags: none are known.
    pub head: Head,
    /// The image, open for reading.
    pub fd: i32,
    /// Zero.
    pub reserved: u32,
    /// How long it may take; at most [`crate::LONGEST_NS`].
    pub within_ns: u64,
    /// Answer: the first process.
    pub root: i32,
    /// Answer: what is in the way, one of [`obstacle`].
    pub obstacle: u32,
    /// Answer: processes.
    pub processes: u32,
    /// Answer: threads.
    pub threads: u32,
}

/// What an image cannot hold, or a restore cannot do.
pub mod obstacle {
    /// None is in the way.
    pub const NONE: u32 = 0;
    /// It is traced.
    pub const TRACED: u32 = 1;
    /// A 32-bit task.
    pub const NARROW: u32 = 2;
    /// A seccomp filter.
    pub const SECCOMP: u32 = 3;
    /// Signals are pending.
    pub const SIGNALS: u32 = 4;
    /// A timer is armed or made.
    pub const TIMERS: u32 = 5;
    /// It uses `io_uring`.
    pub const IO_URING: u32 = 6;
    /// It adopts orphans, or is told of the death of its parent.
    pub const FAMILY: u32 = 7;
    /// Debug registers, ports, or segments of its own.
    pub const PROCESSOR: u32 = 8;
    /// It is ending.
    pub const ENDING: u32 = 9;
    /// It is in other namespaces than the caller.
    pub const NAMESPACES: u32 = 10;
    /// It has another root folder than the caller.
    pub const ROOT: u32 = 11;
    /// What it maps is locked.
    pub const LOCKED: u32 = 12;
    /// Asynchronous input and output.
    pub const AIO: u32 = 13;
    /// Registered for `membarrier`.
    pub const MEMBARRIER: u32 = 14;
    /// A mapping that is neither private memory nor one of a file with a path.
    pub const MAPPING: u32 = 32;
    /// A descriptor that is neither of a file with a path nor of a pipe inside of the tree.
    pub const DESCRIPTOR: u32 = 33;
    /// It is stopped, a zombie, or waits for its `vfork` child.
    pub const STAND: u32 = 34;
    /// Processes share memory, descriptors, folders or signal actions, or threads of one do not.
    pub const SHARED: u32 = 35;
    /// Credentials, limits and the like differ inside of the tree, or from those of whoever restores it.
    pub const SURROUNDINGS: u32 = 36;
    /// It waits in a call that cannot be made again.
    pub const CALL: u32 = 37;
    /// Its program or its current folder has no path.
    pub const PLACE: u32 = 38;
    /// It is no image, or not one of a tree.
    pub const IMAGE: u32 = 64;
    /// A file of it cannot be opened.
    pub const FILE: u32 = 65;
    /// A number is in use, or tasks cannot be made.
    pub const TASK: u32 = 66;
    /// This kernel lacks what it needs: see [`feature`].
    pub const KERNEL: u32 = 67;
    /// A task could not build itself.
    pub const BUILD: u32 = 68;
    /// Registers that the kernel does not take.
    pub const REGISTERS: u32 = 69;
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
    8 Capture,
    9 Restore,
    10 Calls,
    11 Signals,
    12 Waiting,
}
