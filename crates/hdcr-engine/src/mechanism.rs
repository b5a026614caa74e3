//! The primitives by which tasks are stopped, read, made and let go. Two mechanisms implement them.
//!
//! A mechanism decides nothing: it does not know which resource exists, in which order a tree is made, or what an image
//! is. All calls that can wait have a deadline, given when the stopped or the new tree is made.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::batch::{Batch, Replies};
use crate::ids::{Fd, Pid, RemotePtr, Tid};
use crate::procfs::KeyValues;
use crate::regs::Regs;

/// Which tasks are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// A process with everything below it.
    Tree(Pid),
    /// Everything below a process, without that process itself (the keeper of a job). When the caller is a child of that
    /// process (the keeper's checkpointer), the caller and what is below it are left out too.
    Below(Pid),
}

/// The moment at which an operation gives up. Made at the edge, where the clock may be read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Deadline(pub Instant);

/// What this mechanism can do on this kernel for this user; probed once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent fact about the kernel, read by name")]
pub struct Capabilities {
    /// `PTRACE_O_SUSPEND_SECCOMP` may be set.
    pub suspend_seccomp: bool,
    /// `PTRACE_GET_RSEQ_CONFIGURATION` exists (Linux 5.13).
    pub rseq_configuration: bool,
    /// `clone3` takes `set_tid` from this user in its own pid namespace.
    pub set_tid: bool,
    /// `pidfd_getfd` works (Linux 5.6).
    pub duplicate_descriptors: bool,
    /// The kernel shows timer expiry times in `/proc/timer_list` to this user.
    pub timer_list: bool,
}

/// What a mechanism may map in a process for each of its threads, besides the batches (see [`crate::batch::CALL_ROOM`]).
pub const THREAD_ROOM: usize = 1024;
/// Unused bytes of executable memory that a mechanism needs in a process: in its vdso, else at the end of its text.
pub const CODE_ROOM: u64 = 448;
/// How many mappings a process must be able to get for a mechanism to work in it.
pub const NEW_MAPPINGS: usize = 2;

/// Why a mechanism could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum MechanismError {
    /// The task is gone.
    #[error("task {tid} ended while {operation}")]
    Gone {
        /// What was being done.
        operation: &'static str,
        /// The task.
        tid: Tid,
    },
    /// Another tracer holds the task.
    #[error("task {tid} is traced by process {tracer}")]
    Traced {
        /// The task.
        tid: Tid,
        /// Who traces it.
        tracer: Pid,
    },
    /// This user may not touch the task.
    #[error("not permitted to trace task {tid}")]
    NotPermitted {
        /// The task.
        tid: Tid,
    },
    /// The task did not stop, or did not answer, before the deadline.
    #[error("task {tid} did not {operation} before the deadline ({state})")]
    Late {
        /// What was being waited for.
        operation: &'static str,
        /// The task.
        tid: Tid,
        /// What the task was seen doing, for example `state D in do_fork`.
        state: String,
    },
    /// The scope holds the process that asks.
    #[error("the scope holds the calling process {pid} itself")]
    HoldsCaller {
        /// The caller.
        pid: Pid,
    },
    /// A kind of task that this mechanism cannot work with.
    #[error("task {tid} is {kind}, which this mechanism cannot stop and heal")]
    Unsupported {
        /// The task.
        tid: Tid,
        /// What is in the way, for example `a 32-bit task`.
        kind: &'static str,
    },
    /// The limits of a process leave no room for the little that has to be mapped in it.
    #[error("task {tid} may not map the little memory that a checkpoint needs in it for a moment")]
    NoRoom {
        /// The task.
        tid: Tid,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A system call failed.
    #[error("{operation} failed for task {tid}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// The task.
        tid: Tid,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Result of a mechanism's primitive.
pub type Result<T> = std::result::Result<T, MechanismError>;

/// How a task stood when it was frozen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stand {
    /// It ran, or waited in a call.
    Running,
    /// It was in a group stop (`SIGSTOP`, `SIGTSTP`, ...) by this signal.
    Stopped(i32),
}

/// A process of a frozen tree with its threads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrozenProcess {
    /// The process.
    pub pid: Pid,
    /// Its stopped threads, leader first. A leader that has ended while other threads live is not among them.
    pub threads: Vec<Tid>,
    /// A whole zombie: no thread, only a status.
    pub zombie: bool,
}

/// The rseq registration of a thread (`PTRACE_GET_RSEQ_CONFIGURATION`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rseq {
    /// Address of `struct rseq`.
    pub at: RemotePtr,
    /// Registered size.
    pub size: u32,
    /// Signature before each abort handler.
    pub signature: u32,
}

/// A signal queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queue {
    /// Of one thread.
    Thread,
    /// Shared by the process.
    Shared,
}

/// `siginfo_t`, as the kernel lays it out.
pub type SigInfo = [u8; 128];

/// A timed call that was interrupted and holds a restart block in the kernel (`-ERESTART_RESTARTBLOCK`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimedCall {
    /// Which call: poll 7, nanosleep 35, futex 202, `clock_nanosleep` 230.
    pub nr: u64,
    /// What remains of its time at the freeze, in nanoseconds; `None` when it waits for ever or it could not be read.
    pub remaining_ns: Option<u64>,
}

/// A stopped tree. Dropping it thaws every task, and so does the death of the engine.
///
/// Reads may be made in any order; nothing here changes what the program can see of itself.
pub trait Frozen: fmt::Debug {
    /// All processes of the scope, parents before children.
    fn processes(&self) -> &[FrozenProcess];
    /// When the first task was stopped at the earliest, in the attempt that has stopped all. `None`: when it was asked for.
    fn since(&self) -> Option<Instant> {
        None
    }
    /// Which thread of which process of the scope is the parent of each, as far as one is, when that was seen with all of
    /// them stopped. `None`: look.
    fn parents(&self) -> Option<BTreeMap<Pid, (Pid, Tid)>> {
        None
    }
    /// What `status` of `/proc` says of a thread of the scope, read since it has stopped: it need not be read again.
    fn shown(&mut self, _tid: Tid, _status: &KeyValues) {}
    /// How the thread stood.
    fn stand(&self, tid: Tid) -> Result<Stand>;
    /// Its registers, with what a stop spoils already repaired: an interrupted rseq critical section stands at its abort
    /// handler, a call that the kernel ends with `EINTR` on any stop stands before its `syscall` instruction, a call
    /// restarted by `restart_syscall` shows its true number in `orig_ax`. Else as the kernel shows them (`ax` may be
    /// `-ERESTARTSYS` and its kin with `orig_ax` >= 0).
    fn regs(&self, tid: Tid) -> Result<Regs>;
    /// The whole XSAVE area.
    fn xstate(&self, tid: Tid) -> Result<Vec<u8>>;
    /// The blocked signals, bit n-1 for signal n.
    fn signal_mask(&self, tid: Tid) -> Result<u64>;
    /// Pending signals, oldest first.
    fn pending(&self, tid: Tid, queue: Queue) -> Result<Vec<SigInfo>>;
    /// The rseq registration, if any.
    fn rseq(&self, tid: Tid) -> Result<Option<Rseq>>;
    /// Head and length of the robust futex list.
    fn robust_list(&self, tid: Tid) -> Result<(RemotePtr, u64)>;
    /// The timed call whose restart block the kernel holds, if there is one. May let the thread run into the call again
    /// for some 100 us to learn what remains.
    fn timed_call(&mut self, tid: Tid) -> Result<Option<TimedCall>>;
    /// Runs each batch as its task: starts all, then awaits all. A task appears at most once.
    fn run(&mut self, work: &[(Tid, Batch)]) -> Result<Vec<Replies>>;
    /// Memory at an address, also of pages that the program itself may not read; exactly `into.len()` bytes.
    fn read(&self, pid: Pid, at: RemotePtr, into: &mut [u8]) -> Result<()>;
    /// A duplicate, here, of a descriptor of the process.
    fn descriptor(&self, pid: Pid, fd: Fd) -> Result<OwnedFd>;
    /// Prepares to follow what a process writes, beyond the thaw. An error: it cannot be done for this process.
    fn follow(&mut self, pid: Pid) -> Result<Box<dyn Watch>>;
    /// Copies the memory of a process as it is now, without reading it: the copy stays as it is when the process goes on. An
    /// error: it cannot be done for this process.
    fn fork(&mut self, pid: Pid) -> Result<Box<dyn Twin>> {
        Err(MechanismError::Unsupported { tid: pid.leader(), kind: "a task" })
    }
    /// Address ranges that hold something of the mechanism's own in this process (never part of an image).
    fn own_ranges(&self, pid: Pid) -> Vec<Range<u64>>;
    /// Lets all go on as they stood; a stopped job stays stopped.
    fn thaw(self: Box<Self>) -> Result<()>;
    /// Lets all go on into a group stop.
    fn leave_stopped(self: Box<Self>) -> Result<()>;
    /// Kills all with `SIGKILL` while none of them runs another instruction.
    fn kill(self: Box<Self>) -> Result<()>;
}

/// Whether a mapping is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Followed {
    /// It is, from now on.
    Yes,
    /// Something else follows it: a userfaultfd of the program's own.
    Taken,
    /// The kernel does not follow such a mapping.
    Impossible,
}

/// What was found written in a followed mapping.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Written {
    /// These pages, and with them some that hold nothing. Where a whole page table is gone see [`Watch::may_have_vanished`].
    Pages(Vec<Range<u64>>),
    /// The range, or a part of it, is not followed (any more): it is another mapping than the one that was.
    Unfollowed,
}

/// An address space in which writes are followed while its program runs. Dropping it ends that, and so does the death of
/// the engine; nothing of it stays in the program.
///
/// Ranges are multiples of a page. A range that is asked for must lie in one mapping.
pub trait Watch: fmt::Debug + Send {
    /// Looks at what the process is now: it may have executed another program since.
    fn renew(&mut self) -> Result<()>;
    /// An error when the address space is not there any more: its process has ended, or has executed another program.
    fn must_be_the_same(&self) -> Result<()>;
    /// Follows a whole mapping from now on.
    fn follow(&self, mapping: &Range<u64>) -> Result<Followed>;
    /// Pages written since they were protected, which are protected again; this makes page tables for a range that has none.
    /// After [`Written::Unfollowed`] any page of the range may have been protected.
    fn take_written(&self, range: &Range<u64>) -> Result<Written>;
    /// Pages written since they were protected.
    fn written(&self, range: &Range<u64>) -> Result<Written>;
    /// Whether pages may have vanished unseen with the whole page table that this page is in.
    fn may_have_vanished(&self, page: u64) -> Result<bool>;
    /// Pages of a range that hold something; never the zero page.
    fn filled(&self, range: &Range<u64>, pages: Pages) -> Result<Vec<Range<u64>>>;
    /// Reads pages while the program runs or stands still, in order and without gaps; how many bytes could be read
    /// before the first page that could not.
    fn read(&self, pages: &[Range<u64>], into: &mut [u8]) -> Result<usize>;
    /// Protects pages that are there, all in one mapping that is followed.
    fn protect(&self, range: &Range<u64>) -> Result<()>;
    /// Takes the protection off a range again, which holds up the program less than the end of the watch does.
    fn expose(&self, range: &Range<u64>) -> Result<()>;
}

/// The memory of a process as it was at a moment, by copy-on-write. Dropping it ends that, for which the process may stand
/// still for a moment; the death of the engine ends it as well.
///
/// Only mappings that a child inherits with their contents are in it.
pub trait Twin: fmt::Debug {
    /// The list of its mappings, as `/proc/PID/maps` shows it.
    fn mappings(&self) -> Result<Vec<u8>>;
    /// The same with their flags, as `/proc/PID/smaps` shows it; takes a walk over all pages.
    fn flags(&self) -> Result<Vec<u8>>;
    /// Pages of a range that hold something; never the zero page.
    fn filled(&self, range: &Range<u64>, pages: Pages) -> Result<Vec<Range<u64>>>;
    /// Memory at an address, also of pages that the program itself may not read; exactly `into.len()` bytes.
    fn read(&self, at: RemotePtr, into: &mut [u8]) -> Result<()>;
}

/// Which pages are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// All with contents.
    Filled,
    /// Those that do not belong to the mapped file.
    Anonymous,
}

/// Parent of a task made by [`Nursery::birth`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parent {
    /// The calling process.
    Caller,
    /// The parent of the calling process (`CLONE_PARENT`), so that the tree outlives the caller without a new parent.
    CallersParent,
    /// A task of the new tree.
    Task(Tid),
}

/// A task to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Birth {
    /// Who clones it.
    pub parent: Parent,
    /// The number it gets; `None`: any (a stand-in that dies before the release).
    pub tid: Option<Tid>,
    /// Further `clone(2)` flags: `CLONE_THREAD | CLONE_VM | ...`, `CLONE_PARENT`, `CLONE_FILES`. The mechanism adds its own.
    pub flags: u64,
    /// Signal to the parent at its end (0 for threads and with `CLONE_PARENT`).
    pub exit_signal: i32,
    /// TLS base for `CLONE_SETTLS`, else 0.
    pub tls: u64,
    /// Address for `CLONE_CHILD_CLEARTID`, else 0.
    pub clear_tid: u64,
}

/// How a task of the nursery ends, for zombies and stand-ins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// `exit_group(code)`.
    Exit(i32),
    /// Death by a signal, without a core file.
    Signal(i32),
}

/// How a thread goes on at its release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resume {
    /// With exactly the registers of [`Final::regs`]; the mechanism does by hand what the kernel does at a signal
    /// return (`ax` -512..-514: the call is made again; -516 without a timed call: likewise).
    Plain,
    /// In a timed call: it is begun with `args`, so that the kernel makes a restart block with the remaining time, then
    /// the registers of [`Final::regs`] are put in.
    Timed {
        /// Number of the call.
        nr: u64,
        /// Its arguments for the begin.
        args: [u64; 6],
        /// 16 bytes to be put at an address during the begin only (a timespec with the remaining time), if any.
        scratch: Option<(RemotePtr, [u8; 16])>,
    },
}

/// The last state of a thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Final {
    /// The thread.
    pub tid: Tid,
    /// General registers, as [`Frozen::regs`] gave them.
    pub regs: Regs,
    /// XSAVE area.
    pub xstate: Vec<u8>,
    /// Blocked signals.
    pub signal_mask: u64,
    /// How it goes on.
    pub resume: Resume,
    /// Left in a group stop by this signal.
    pub stopped: Option<i32>,
}

/// An address space into which pages are put, by several threads at once.
pub trait PageTarget: fmt::Debug + Send + Sync {
    /// Puts whole pages in, all pieces; no two callers put in the same page.
    fn put(&self, pieces: &[(RemotePtr, &[u8])]) -> Result<()>;
}

/// What happened in an address space whose pages come when they are touched.
#[derive(Debug)]
pub enum Happening {
    /// A thread waits for a page.
    Fault {
        /// The address it touched.
        at: u64,
        /// The thread.
        tid: Tid,
    },
    /// A process was cloned; what is missing here is missing in its own copy, too.
    Fork(Box<dyn AbsentPages>),
    /// A mapping was moved.
    Moved {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// How many bytes of it.
        len: u64,
    },
    /// Pages were given up, or their mapping was taken away: they are zeros, or nothing.
    Gone(Range<u64>),
}

/// What keeps pages from being put in.
#[derive(Debug)]
pub enum Hindrance {
    /// The next page is there already.
    Present,
    /// The address space is changing: what happens has to be heard first.
    Changing,
    /// The next page has no place (any more).
    NoPlace,
    /// The address space is gone.
    Ended,
    /// It failed.
    Failed(std::io::Error),
}

/// An address space in which pages are absent while its program runs. Whoever touches one waits until it is put in, as long
/// as anybody holds this; a program that could still miss a page must not outlive the last holder.
///
/// What happens has to be heard, or the program stands still.
pub trait AbsentPages: fmt::Debug + Send + Sync {
    /// Puts whole pages in: how many bytes, and what kept the rest out.
    fn put(&self, at: RemotePtr, bytes: &[u8]) -> (usize, Option<Hindrance>);
    /// Puts pages of zeros in; what kept them out.
    fn put_zeros(&self, pages: &Range<u64>) -> Option<Hindrance>;
    /// Whether something is happening that was not heard of to its end: no page can be put in meanwhile.
    fn is_changing(&self) -> bool;
    /// Guard regions (`MADV_GUARD_INSTALL`) in a range of the address space, which is that of `pid`; none where nobody can
    /// tell.
    fn guards(&self, _pid: Pid, _range: &Range<u64>) -> Vec<Range<u64>> {
        Vec::new()
    }
    /// Whether anybody has this address space.
    fn lives(&self) -> bool;
    /// Lets those who wait in a range look again.
    fn wake(&self, range: &Range<u64>);
    /// What happened next; `None` when there is nothing to be heard. Never waits.
    fn next(&self) -> Result<Option<Happening>>;
    /// Becomes readable when something has happened.
    fn ready(&self) -> BorrowedFd<'_>;
}

/// A tree in the making. All of it dies when the nursery is dropped before [`Nursery::release`], or when the engine dies.
///
/// Its tasks share one service region, mapped at the same place in all of them; they must not unmap it.
pub trait Nursery: fmt::Debug {
    /// Where the service region lies, in every task.
    fn service_region(&self) -> Range<u64>;
    /// Makes tasks, each stopped before its first instruction. Those of one parent are cloned in one batch.
    fn birth(&mut self, births: &[Birth]) -> Result<Vec<Tid>>;
    /// Runs each batch as its task: starts all, then awaits all.
    fn run(&mut self, work: &[(Tid, Batch)]) -> Result<Vec<Replies>>;
    /// The rseq registration of a task, if any: a clone of the caller inherits the caller's.
    fn rseq(&self, tid: Tid) -> Result<Option<Rseq>>;
    /// Reads memory of a task.
    fn read(&self, tid: Tid, at: RemotePtr, into: &mut [u8]) -> Result<()>;
    /// Writes memory of a task, all pieces; the mappings must be writable.
    fn write(&mut self, tid: Tid, pieces: &[(RemotePtr, &[u8])]) -> Result<()>;
    /// The way to put many pages into the address space of a task. `fresh`: private anonymous mappings, or parts of
    /// such, that have no page yet; nothing but this puts pages into them until it is dropped.
    fn pages(&mut self, tid: Tid, fresh: &[Range<u64>]) -> Result<Box<dyn PageTarget>>;
    /// Registers mappings, or parts of such, that have no page yet: from now on whoever touches a page there waits until it
    /// is put in. `None`: there is no such way here, or not for this user, and nothing was registered.
    fn absent(&mut self, _tid: Tid, _mappings: &[Range<u64>]) -> Result<Option<Box<dyn AbsentPages>>> {
        Ok(None)
    }
    /// Ends a process and waits until it is a zombie that its parent can reap. With other threads alive in it, only the
    /// leader ends.
    fn end(&mut self, tid: Tid, end: End) -> Result<()>;
    /// Takes the service region out of each process and puts the last state in: in the order given, which has the
    /// leader of a process after its other threads and children before parents. After it nothing of ours is left mapped.
    fn finish(&mut self, finals: &[Final]) -> Result<()>;
    /// Lets all tasks go, in the order given to [`Nursery::finish`].
    fn release(self: Box<Self>) -> Result<()>;
}

/// A way to stop, read, make and let go of tasks.
pub trait Mechanism: fmt::Debug {
    /// What it can do here.
    fn capabilities(&self) -> &Capabilities;
    /// Stops all tasks of the scope or none. Looks again until no new task appears; a `vfork` child runs on until its
    /// parent can be stopped.
    fn freeze(&self, scope: Scope, by: Deadline) -> Result<Box<dyn Frozen>>;
    /// An empty nursery whose service region lies outside of all `avoid` ranges.
    fn nursery(&self, avoid: &[Range<u64>], by: Deadline) -> Result<Box<dyn Nursery>>;
}
