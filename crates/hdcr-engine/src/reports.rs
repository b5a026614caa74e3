//! What `wait(2)` has still to tell a process of children that were stopped or went on.
//!
//! A report is a flag of the child (kernel/exit.c): that of a stop lasts until it is told or the child goes on, that of going
//! on until it is told or the child is stopped anew. Only the parent can ask, and can do so without taking it; what the tracer
//! is told is kept apart from that.

use std::collections::BTreeMap;

use nix::libc;

use crate::batch::{Arg, Batch, Replies};
use crate::error::Result;
use crate::ids::Pid;
use crate::restore::{Restore, TaskBatch};
use crate::task::{TaskView, pending};
use crate::tree::StoredProcess;
use crate::works::Works;

/// What has not been told yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Report {
    /// Nothing.
    None,
    /// That it was stopped by this signal.
    Stop(i32),
    /// That it has gone on.
    Continued,
}

/// A process of whom its parent may be asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Child {
    pid: Pid,
    pub(crate) parent: Pid,
    /// Its number as its own pid namespace has it.
    number: i32,
}

impl Child {
    pub(crate) fn of(view: &TaskView) -> Self {
        let inner = view.status.list("NSpid").and_then(|numbers| i32::try_from(*numbers.last()?).ok());
        Self { pid: view.pid, parent: view.stat.ppid, number: inner.unwrap_or(view.pid.0) }
    }
}

/// A question to a parent: about whom, by which call, and where the answer will be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    child: Pid,
    call: usize,
    info: usize,
}

/// Offsets in `siginfo_t` of a child, and how much of it `waitid(2)` writes.
const CODE_AT: usize = 8;
const STATUS_AT: usize = 24;
const INFO: usize = 28;

/// Appends the questions about a child to the batch of its parent.
pub(crate) fn ask(batch: &mut Batch, child: &Child) -> Question {
    let info = batch.room(INFO);
    let options = Arg::from(libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL);
    let by_number = Arg::from(libc::P_PID.cast_signed());
    let args = [by_number, Arg::from(child.number), Arg::Data(info), options, Arg::Value(0)];
    Question { child: child.pid, call: batch.try_call(libc::SYS_waitid, &args), info }
}

/// The answers, by child.
pub(crate) fn read(questions: &[Question], replies: &Replies) -> BTreeMap<Pid, Report> {
    let one = |question: &Question| {
        let int = |at: usize| {
            let bytes: [u8; 4] = replies.bytes(question.info.checked_add(at)?, 4)?.try_into().ok()?;
            Some(i32::from_le_bytes(bytes))
        };
        replies.result(question.call).filter(|result| *result == 0)?;
        let report = match int(CODE_AT)? {
            libc::CLD_STOPPED => Report::Stop(int(STATUS_AT)?),
            libc::CLD_CONTINUED => Report::Continued,
            _ => Report::None,
        };
        Some((question.child, report))
    };
    questions.iter().filter_map(one).collect()
}

impl Works<'_> {
    /// Has those go on of whom their parents have still to be told that they did. The kernel takes a stop that `SIGCONT` ends
    /// before all threads have come to it for one that was. Before any stage: both signals, and those to the parents, go when
    /// actions are set.
    pub(crate) fn continued(&mut self) -> Result<()> {
        let mut work = Vec::new();
        for process in self.living().into_iter().filter(|process| process.record.continued) {
            let mut batch = TaskBatch::default();
            let pid = Arg::Result(batch.call("getting the process number", libc::SYS_getpid, &[]));
            let tid = Arg::Result(batch.call("getting the thread number", libc::SYS_gettid, &[]));
            for signal in [libc::SIGSTOP, libc::SIGCONT] {
                batch.call("stopping and going on", libc::SYS_tgkill, &[pid, tid, Arg::from(signal)]);
            }
            work.push((process.pid.leader(), batch));
        }
        self.run(work)
    }

    /// The parent has been told of a stop now. If it knew of it long ago it must not be told again; and where `SIGCHLD` does
    /// not wait for it in the image, it has been taken. Where it was still to be told of something else, the kernel has queued
    /// no second one.
    pub(crate) fn settle_stop(&mut self, cx: &Restore<'_>, stopped: &StoredProcess) -> Result<()> {
        let parent = stopped.parent.and_then(|(pid, _)| self.model.processes.iter().find(|process| process.pid == pid));
        let Some(parent) = parent.filter(|parent| !parent.zombie()) else { return Ok(()) };
        let mut batch = TaskBatch::default();
        let set = batch.bytes(&(1_u64 << (libc::SIGCHLD - 1)).to_le_bytes());
        let at_once = batch.room(16);
        if stopped.exit_status == 0 {
            let options = Arg::from(libc::WSTOPPED | libc::WNOHANG | libc::__WALL);
            let who = [Arg::from(libc::P_PID.cast_signed()), Arg::from(stopped.pid.0)];
            let args = [who[0], who[1], Arg::Value(0), options, Arg::Value(0)];
            batch.try_call("forgetting a stop", libc::SYS_waitid, &args);
        }
        if !pending::holds(cx, parent, libc::SIGCHLD)? {
            let signal = [Arg::Data(set), Arg::Value(0), Arg::Data(at_once), Arg::Value(8)];
            batch.try_call("forgetting SIGCHLD", libc::SYS_rt_sigtimedwait, &signal);
        }
        self.run_one(parent.speaker(), batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_parent_answers_is_read() {
        let question = |child, call, info| Question { child: Pid(child), call, info };
        let mut data = vec![0; 4 * INFO];
        let mut info = |at: usize, code: i32, status: i32| {
            data[at + CODE_AT..at + CODE_AT + 4].copy_from_slice(&code.to_le_bytes());
            data[at + STATUS_AT..at + INFO].copy_from_slice(&status.to_le_bytes());
        };
        info(0, libc::CLD_STOPPED, libc::SIGTSTP);
        info(INFO, libc::CLD_CONTINUED, libc::SIGCONT);
        let replies = Replies { results: vec![0, 0, 0, -i64::from(libc::ECHILD)], data };
        let questions = [question(1, 0, 0), question(2, 1, INFO), question(3, 2, 2 * INFO), question(4, 3, 3 * INFO)];
        let expected = [(Pid(1), Report::Stop(libc::SIGTSTP)), (Pid(2), Report::Continued), (Pid(3), Report::None)];
        assert_eq!(read(&questions, &replies), BTreeMap::from(expected));
        // An answer that is not there.
        assert!(read(&[question(1, 7, 0), question(2, 0, usize::MAX)], &replies).is_empty());
    }
}
