//! Pending signals with everything that came with them, oldest first: of each thread, and of the process at its leader.
//!
//! Each task queues them to itself, which alone may be done with any `si_code` (kernel/signal.c `do_rt_sigqueueinfo`). Signals
//! that cannot be blocked do not stay pending: one that is seen at the freeze takes effect when the program goes on, so the
//! capture gives up and can be tried again.
//!
//! The signal of a periodic timer is left out. The kernel counts missed expiries and starts the timer again only for a signal
//! that it queued itself, so the timer is made to fire once more ([`super::posix_timers`]).

use std::collections::BTreeSet;

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::Tid;
use crate::mechanism::{Queue, SigInfo};
use crate::model;
use crate::restore::Restore;
use crate::tree::StoredProcess;

pub(crate) struct Pending;

/// The queues.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PendingRecord {
    /// `siginfo_t` of each signal for this thread.
    #[prost(bytes = "vec", repeated, tag = "1")]
    thread: Vec<Vec<u8>>,
    /// Of each signal for the process; only at its leader.
    #[prost(bytes = "vec", repeated, tag = "2")]
    shared: Vec<Vec<u8>>,
}

impl Record for PendingRecord {
    const TAG: Tag = Tag(0x030a);
    const VERSION: u16 = 1;
    model::prost_record!();
}

fn signal_of(info: &[u8]) -> Option<i32> {
    let bytes: [u8; 4] = info.get(..4)?.try_into().ok()?;
    Some(i32::from_le_bytes(bytes)).filter(|signal| (1..=64).contains(signal))
}

/// The timer that a signal comes from, if it comes from one of `timer_create(2)`.
pub(super) fn timer_of(info: &[u8]) -> Option<i32> {
    let int = |at: usize| Some(i32::from_le_bytes(info.get(at..at.checked_add(4)?)?.try_into().ok()?));
    (int(8)? == libc::SI_TIMER).then(|| int(16)).flatten()
}

/// A signal that takes effect at once when the program goes on.
fn unblockable(signal: i32) -> bool {
    signal == libc::SIGKILL || signal == libc::SIGSTOP
}

/// Which of these timers fire again by themselves.
fn periodic(cx: &mut Capture<'_>, task: &TaskView, timers: &BTreeSet<i32>) -> Result<BTreeSet<i32>> {
    if timers.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut batch = Batch::new();
    let ask = |timer: &i32| {
        let value = batch.room(32);
        batch.try_call(libc::SYS_timer_gettime, &[Arg::from(*timer), Arg::Data(value)]);
        (*timer, value)
    };
    let places: Vec<(i32, usize)> = timers.iter().map(ask).collect();
    let replies = cx.frozen.run(&[(task.tid, batch)])?;
    let replies = replies.first().ok_or_else(|| model::no_reply(task, "timer_gettime"))?;
    // The interval comes first; a timer that is gone leaves zeros.
    let repeats = |at: usize| replies.word(at).unwrap_or(0) != 0 || replies.word(at + 8).unwrap_or(0) != 0;
    Ok(places.into_iter().filter(|(_, at)| repeats(*at)).map(|(timer, _)| timer).collect())
}

fn keep(cx: &mut Capture<'_>, task: &TaskView, queue: Vec<SigInfo>) -> Result<Vec<Vec<u8>>> {
    if queue.iter().filter_map(|info| signal_of(info)).any(unblockable) {
        let what = "it is being stopped or killed".to_owned();
        return Err(Error::Changed { subject: format!("task {}", task.tid), what });
    }
    let timers = queue.iter().filter_map(|info| timer_of(info)).collect();
    let periodic = periodic(cx, task, &timers)?;
    let stays = |info: &SigInfo| timer_of(info).is_none_or(|timer| !periodic.contains(&timer));
    Ok(queue.into_iter().filter(stays).map(|info| info.to_vec()).collect())
}

/// A siginfo of an image, as the kernel takes it.
fn sound(task: Tid, info: &[u8]) -> Result<(i32, SigInfo)> {
    let parts = (|| Some((signal_of(info).filter(|signal| !unblockable(*signal))?, info.try_into().ok()?)))();
    parts.ok_or_else(|| Error::Unsound(format!("task {task} has a pending signal that cannot be")))
}

/// Whether a signal waits in the image for a process or one of its threads.
pub(crate) fn holds(cx: &Restore<'_>, process: &StoredProcess, signal: i32) -> Result<bool> {
    for (_, id) in process.threads.iter().filter(|(_, id)| cx.has::<PendingRecord>(*id)) {
        let record: PendingRecord = cx.record(*id)?;
        if record.thread.iter().chain(&record.shared).any(|info| signal_of(info) == Some(signal)) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl TaskKind for Pending {
    type Record = PendingRecord;
    type Asked = ();
    const SITE: Site = Site::Thread;

    fn ask(_task: &TaskView, _batch: &mut Batch) {}

    fn capture(cx: &mut Capture<'_>, task: &TaskView, (): (), _replies: &Replies) -> Result<PendingRecord> {
        let queue = cx.frozen.pending(task.tid, Queue::Thread)?;
        let thread = keep(cx, task, queue)?;
        let process = cx.frozen.processes().iter().find(|process| process.pid == task.pid);
        if process.and_then(|process| process.threads.first()) != Some(&task.tid) {
            return Ok(PendingRecord { thread, shared: Vec::new() });
        }
        let queue = cx.frozen.pending(task.tid, Queue::Shared)?;
        let shared = keep(cx, task, queue)?;
        Ok(PendingRecord { thread, shared })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: PendingRecord) -> Result<()> {
        if !record.shared.is_empty() {
            // Only a leader may queue just anything to the process. One that ended before its threads still lives now.
            let leader = cx.leader_of(task)?;
            queue(cx, leader, &record.shared, Queue::Shared)?;
        }
        if !record.thread.is_empty() {
            queue(cx, task, &record.thread, Queue::Thread)?;
        }
        Ok(())
    }
}

/// Has a thread queue signals to itself or to its process.
fn queue(cx: &mut Restore<'_>, task: Tid, infos: &[Vec<u8>], to: Queue) -> Result<()> {
    let batch = cx.batch(Stage::Pending, task);
    // Its numbers as its own pid namespace has them, which need not be those of the image.
    let pid = Arg::Result(batch.call("getting the process number", libc::SYS_getpid, &[]));
    let tid = Arg::Result(batch.call("getting the thread number", libc::SYS_gettid, &[]));
    for info in infos {
        let (signal, info) = sound(task, info)?;
        let (signal, info) = (Arg::from(signal), Arg::Data(batch.bytes(&info)));
        match to {
            Queue::Shared => {
                let label = "queueing a pending signal of the process";
                batch.call(label, libc::SYS_rt_sigqueueinfo, &[pid, signal, info]);
            }
            Queue::Thread => {
                let label = "queueing a pending signal of the thread";
                batch.call(label, libc::SYS_rt_tgsigqueueinfo, &[pid, tid, signal, info]);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(signal: i32) -> Vec<u8> {
        let mut info = vec![0; 128];
        info[..4].copy_from_slice(&signal.to_le_bytes());
        info
    }

    #[test]
    fn signals_that_cannot_be_pending_are_unsound() {
        for odd in [info(0), info(65), info(9), info(19), info(-1), info(5)[..127].to_vec(), vec![]] {
            assert!(sound(Tid(1), &odd).is_err());
        }
        assert_eq!(sound(Tid(1), &info(64)).unwrap().0, 64);
    }

    #[test]
    fn a_signal_of_a_timer_names_it() {
        let mut info = info(34);
        assert_eq!(timer_of(&info), None);
        info[8..12].copy_from_slice(&(-2_i32).to_le_bytes());
        info[16] = 5;
        assert_eq!(timer_of(&info), Some(5));
        assert_eq!(timer_of(&info[..18]), None);
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = PendingRecord { thread: vec![info(1), info(2)], shared: vec![info(34), info(34)] };
        assert_eq!(PendingRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
