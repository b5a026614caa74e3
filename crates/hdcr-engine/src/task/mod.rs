//! What hangs on a thread or on a process, one file a kind, and the list of them.
//!
//! Capture goes in two steps, so that a whole tree costs one batch a task: every kind first appends the calls by which
//! the kernel is asked ([`TaskKind::ask`]; a kind that reads `/proc` alone appends none), then reads the replies.
//! Restore appends calls to the batches of the task, one batch a [`Stage`].

use hdcr_image::{Record, Tag};

use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Owner, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::model::{self, ObjectId};
use crate::procfs::{KeyValues, Stat};
use crate::restore::{Restore, TaskBatch};
use crate::survey::Survey;

/// When a call is made in a task that is being restored. Within a stage, all tasks run at once; kinds in list order.
///
/// While a stage before [`Stage::Credentials`] runs, the task still has the identity and the capabilities of the
/// restoring user; all signals are blocked until its release.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Stage {
    /// Descriptors are put at their numbers (`dup3`), service descriptors are still open.
    Descriptors,
    /// Calls that need descriptors at their numbers: `EPOLL_CTL_ADD`, record locks.
    InTable,
    /// Facts of the whole process, run by its leader: directories, umask, personality, `PR_SET_MM_MAP`.
    Process,
    /// Facts of each thread, run by itself, when all threads exist.
    Thread,
    /// Timers that count.
    Timers,
    /// Signals that each task queues to itself.
    Pending,
    /// Resource limits.
    Limits,
    /// Credentials, of each thread.
    Credentials,
    /// What credentials would undo (dumpable, parent-death signal), and signal actions.
    Last,
}

/// Every stage in order.
pub(crate) const STAGES: [Stage; 9] = [
    Stage::Descriptors,
    Stage::InTable,
    Stage::Process,
    Stage::Thread,
    Stage::Timers,
    Stage::Pending,
    Stage::Limits,
    Stage::Credentials,
    Stage::Last,
];

/// A thread as `/proc` shows it.
#[derive(Clone, Debug)]
pub(crate) struct TaskView {
    /// Its process.
    pub(crate) pid: Pid,
    /// Itself.
    pub(crate) tid: Tid,
    /// Whether it speaks for its process: the leader, or the first thread that lives when the leader has ended.
    pub(crate) speaks: bool,
    /// `/proc/PID/task/TID/stat`.
    pub(crate) stat: Stat,
    /// `/proc/PID/task/TID/status`.
    pub(crate) status: KeyValues,
    /// `/proc/PID/task/TID/ns`.
    pub(crate) namespaces: namespaces::Links,
}

impl TaskView {
    /// Whether it speaks for its process.
    pub(crate) fn leads(&self) -> bool {
        self.speaks
    }

    /// A refusal that names this task.
    pub(crate) fn refuse(&self, code: &'static str, object: &str, cause: &str, remedy: &str) -> Refusal {
        Refusal {
            code,
            object: object.to_owned(),
            owner: Owner { pid: Some(Pid(self.tid.0)), ..Owner::default() },
            cause: cause.to_owned(),
            remedy: remedy.to_owned(),
        }
    }
}

/// What a kind hangs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Site {
    /// Every thread has its own.
    Thread,
    /// The process has one; asked of and restored by its leader.
    Process,
}

/// A kind of fact about a task.
pub(crate) trait TaskKind {
    /// What the image keeps.
    type Record: Record + std::fmt::Debug;
    /// Where the replies to [`TaskKind::ask`] will be found (call indices, data offsets).
    type Asked: 'static;
    /// What it hangs on.
    const SITE: Site;
    /// What stands in the way. Looks only; the program runs.
    fn survey(_survey: &mut Survey<'_>, _task: &TaskView) -> Result<()> {
        Ok(())
    }
    /// Appends the calls that ask the kernel, made as the task. Only calls that change nothing; `try_call` where a
    /// kernel or a user may not have it. Never a call that touches the restart block (nanosleep, poll, timed futex).
    fn ask(task: &TaskView, batch: &mut Batch) -> Self::Asked;
    /// Makes the record from `/proc`, from the mechanism (`cx.frozen`) and from the replies.
    fn capture(cx: &mut Capture<'_>, task: &TaskView, asked: Self::Asked, replies: &Replies) -> Result<Self::Record>;
    /// Appends the calls that put it back: [`Restore::batch`].
    fn restore(cx: &mut Restore<'_>, task: Tid, record: Self::Record) -> Result<()>;
    /// What this user on this machine could not put back, found before anything is made.
    fn obstacles(_task: Tid, _record: &Self::Record) -> Result<Vec<Refusal>> {
        Ok(Vec::new())
    }
}

/// The reply to a call that every kernel has.
pub(crate) fn reply(task: &TaskView, replies: &Replies, call: usize, what: &str) -> Result<u64> {
    optional(replies, call).ok_or_else(|| model::no_reply(task, what))
}

/// The reply to a call that a kernel or a machine may not have.
pub(crate) fn optional(replies: &Replies, call: usize) -> Option<u64> {
    replies.result(call).and_then(|result| u64::try_from(result).ok())
}

/// A call that puts a value back: it may fail only when the value is the one that a new task has anyway.
pub(crate) fn put_back(batch: &mut TaskBatch, usual: bool, label: &'static str, nr: i64, args: &[Arg]) -> usize {
    if usual { batch.try_call(label, nr, args) } else { batch.call(label, nr, args) }
}

/// The second half of a capture: reads the replies and adds the frame.
pub(crate) type Answer = Box<dyn FnOnce(&mut Capture<'_>, ObjectId, &TaskView, &Replies) -> Result<()>>;

/// A row of the list of kinds, with the types erased.
#[derive(Clone, Copy)]
pub(crate) struct TaskEntry {
    pub(crate) name: &'static str,
    pub(crate) tag: Tag,
    pub(crate) version: u16,
    pub(crate) site: Site,
    pub(crate) survey: fn(&mut Survey<'_>, &TaskView) -> Result<()>,
    pub(crate) ask: fn(&TaskView, &mut Batch) -> Answer,
    pub(crate) restore: fn(&mut Restore<'_>, Tid, u16, &[u8]) -> Result<()>,
    pub(crate) obstacles: fn(Tid, u16, &[u8]) -> Result<Vec<Refusal>>,
    pub(crate) show: fn(u16, &[u8]) -> String,
}

impl TaskEntry {
    const fn of<K: TaskKind>(name: &'static str) -> Self {
        Self {
            name,
            tag: K::Record::TAG,
            version: K::Record::VERSION,
            site: K::SITE,
            survey: K::survey,
            ask: |task, batch| {
                let asked = K::ask(task, batch);
                Box::new(move |cx, id, task, replies| {
                    let record = K::capture(cx, task, asked, replies)?;
                    cx.frame(id, &record)
                })
            },
            restore: |cx, task, version, body| {
                let record = model::decode::<K::Record>(version, body)?;
                K::restore(cx, task, record)
            },
            obstacles: |task, version, body| K::obstacles(task, &model::decode::<K::Record>(version, body)?),
            show: |version, body| match model::decode::<K::Record>(version, body) {
                Ok(record) => format!("{record:?}"),
                Err(error) => error.to_string(),
            },
        }
    }
}

/// Makes the modules, the table, and a compile-time check that no two kinds share a tag.
macro_rules! kinds {
    ($($module:ident::$kind:ident),* $(,)?) => {
        $(pub(crate) mod $module;)*
        /// Every kind, in the order in which their calls are made within a stage.
        pub(crate) const TASKS: &[TaskEntry] = &[$(TaskEntry::of::<$module::$kind>(stringify!($module))),*];
        const _: () = {
            let mut a = 0;
            while a < TASKS.len() {
                let mut b = a + 1;
                while b < TASKS.len() {
                    assert!(TASKS[a].tag.0 != TASKS[b].tag.0, "two kinds share a tag");
                    b += 1;
                }
                a += 1;
            }
        };
    };
}

mod attribute;
mod execmem;
pub(crate) mod namespaces;
mod own;
mod rings;
mod unsupported;

kinds! {
    surroundings::Surroundings,
    // Before the timers, and before anything is queued: what came up while the tree was made is discarded.
    sigactions::SigActions,
    umask::Umask,
    proc_files::ProcFiles,
    process_attributes::ProcessAttributes,
    membarrier::Membarrier,
    ldt::Ldt,
    comm::Comm,
    thread_attributes::ThreadAttributes,
    altstack::AltStack,
    thread_ids::ThreadIds,
    thread_area::ThreadArea,
    mempolicy::MemPolicy,
    mlockall::MlockAll,
    // Late among the calls of a thread: from then on it may be scheduled by rules that starve others.
    sched::Sched,
    itimers::Itimers,
    posix_timers::PosixTimers,
    pending::Pending,
    rlimits::Rlimits,
    creds::Creds,
}

/// The kind with a tag.
pub(crate) fn kind_with(tag: Tag) -> Option<&'static TaskEntry> {
    TASKS.iter().find(|kind| kind.tag == tag)
}
