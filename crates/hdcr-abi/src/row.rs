//! The rows of lists.

/// One frozen thread, or a process that is a zombie.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TaskRow {
    /// The thread, as the caller's pid namespace numbers it; so are all numbers here.
    pub tid: i32,
    /// Its process.
    pub tgid: i32,
    /// The parent of that process.
    pub ppid: i32,
    /// Its process group.
    pub pgid: i32,
    /// Its session.
    pub sid: i32,
    /// The signal to the parent at its end.
    pub exit_signal: i32,
    /// What `wait` shows of a zombie.
    pub exit_code: i32,
    /// How it stands: one of [`stand`].
    pub stand: u32,
    /// The tid of the first thread in the list with the same address space; 0: none.
    pub memory: i32,
    /// The same for descriptors.
    pub files: i32,
    /// The same for current folder and root.
    pub folders: i32,
    /// The same for signal actions.
    pub actions: i32,
    /// Blocked signals, bit n-1 for signal n.
    pub blocked: u64,
    /// Where the kernel writes 0 at its end; 0: nowhere.
    pub clear_tid: u64,
    /// Head of the robust futex list.
    pub robust_list: u64,
    /// Address of its `struct rseq`; 0: none.
    pub rseq: u64,
    /// The registered size of that.
    pub rseq_size: u32,
    /// The signature before each abort handler.
    pub rseq_signature: u32,
    /// The alternate signal stack.
    pub stack_at: u64,
    /// Its size.
    pub stack_size: u64,
    /// `SS_*`.
    pub stack_flags: u32,
    /// The signal of a group stop.
    pub stop_signal: u32,
    /// Its name, ended by a zero byte.
    pub comm: [u8; 16],
}

/// A system call, and what came of it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CallRow {
    /// Its number.
    pub nr: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// Answer: its result, or an error number below zero.
    pub result: i64,
    /// What each argument is: one of [`crate::argument`].
    pub kinds: [u8; 6],
    /// 1: when it fails no other is made. Else 0.
    pub stops: u8,
    /// Zero.
    pub reserved: u8,
}

/// Eight bytes of the data of calls that become the address of another byte of it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PointerRow {
    /// Where the eight bytes are.
    pub place: u32,
    /// Which byte's address they become.
    pub target: u32,
}

/// How a thread was held.
pub mod stand {
    /// It ran, or waited in a call.
    pub const RUNNING: u32 = 1;
    /// In a group stop.
    pub const STOPPED: u32 = 2;
    /// In a stop of its tracer.
    pub const TRACED: u32 = 3;
    /// It waits for its `vfork` child.
    pub const VFORK: u32 = 4;
    /// It has ended, and was not waited for yet.
    pub const DEAD: u32 = 5;
}

/// One mapping.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MappingRow {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// Where it begins in its file.
    pub offset: u64,
    /// Inode number of its file, or 0.
    pub inode: u64,
    /// Number of the file system of its file (`st_dev`).
    pub device: u32,
    /// `PROT_*`.
    pub prot: u32,
    /// Bits of [`mapping_flag`].
    pub flags: u32,
    /// Length of its name: a path, or a word in brackets.
    pub name: u32,
}

/// What a mapping is.
pub mod mapping_flag {
    /// `MAP_SHARED`.
    pub const SHARED: u32 = 1 << 0;
    /// `MAP_GROWSDOWN`.
    pub const GROWS_DOWN: u32 = 1 << 1;
    /// Device memory, or memory that is not in any image.
    pub const DEVICE: u32 = 1 << 2;
    /// Huge pages of hugetlbfs.
    pub const HUGETLB: u32 = 1 << 3;
    /// Made by the kernel: `[vdso]` and the like.
    pub const SPECIAL: u32 = 1 << 4;
    /// `MADV_DONTFORK`.
    pub const NOT_FORKED: u32 = 1 << 5;
    /// `MADV_WIPEONFORK`.
    pub const WIPED_ON_FORK: u32 = 1 << 6;
    /// Locked.
    pub const LOCKED: u32 = 1 << 7;
}
