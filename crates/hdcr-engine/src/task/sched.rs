//! How a thread is scheduled: policy and its parameters, nice value, processors, I/O priority, timer slack.
//!
//! Not kept: the slack that `PR_SET_TIMERSLACK` 0 would go back to, which no call shows; whether threads share an I/O
//! priority by `CLONE_IO`. A thread that may run on every processor of this machine may run on every one of the next.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView, own};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::model;
use crate::procfs;
use crate::restore::{Restore, TaskBatch};

pub(crate) struct Sched;

/// Everything about one thread.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SchedRecord {
    /// `struct sched_attr` as the kernel gave it.
    #[prost(bytes = "vec", tag = "1")]
    attributes: Vec<u8>,
    #[prost(sint32, tag = "2")]
    nice: i32,
    /// Mask of processors, little endian; empty: every one.
    #[prost(bytes = "vec", tag = "3")]
    processors: Vec<u8>,
    #[prost(uint32, optional, tag = "4")]
    io_priority: Option<u32>,
    /// Nanoseconds; 0 for real-time threads, whose slack cannot be set.
    #[prost(uint64, tag = "5")]
    timer_slack_ns: u64,
}

/// `struct sched_attr` with the utilization clamps (Linux 5.3).
const ATTRIBUTES: usize = 56;
/// Room for the mask of 8192 processors, the most that Linux can be built for.
const MASK: usize = 1024;
/// `IOPRIO_WHO_PROCESS` of `<linux/ioprio.h>`: one thread.
const WHO_PROCESS: u64 = 1;
/// `SCHED_FLAG_UTIL_CLAMP` of `<linux/sched.h>`: both clamps are set by the call.
const CLAMPS: u64 = 0x60;
/// Field number of the nice value in `/proc/PID/stat`.
const NICE: usize = 19;
const PRIORITY: usize = 18;
/// Place and value of the real-time class in an I/O priority.
const IO_CLASS: u32 = 13;
const IO_REAL_TIME: u32 = 1;
/// The largest clamp.
const FULL: u64 = 1024;

impl Record for SchedRecord {
    const TAG: Tag = Tag(0x0306);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Where the replies will be.
pub(crate) struct Asked {
    attributes: (usize, usize),
    mask: (usize, usize),
    io_priority: usize,
    slack: usize,
}

/// A list of ranges such as `0-3,8` as a mask.
fn mask_of(list: &str) -> Option<Vec<u8>> {
    let mut bits = vec![0; MASK];
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        for cpu in low.parse::<usize>().ok()?..=high.parse::<usize>().ok()?.min(MASK * 8) {
            *bits.get_mut(cpu / 8)? |= 1 << (cpu % 8);
        }
    }
    Some(bits)
}

/// The mask without its zeros at the end; nothing when it holds all that is in `online`.
fn trimmed(mask: &[u8], online: Option<&[u8]>) -> Vec<u8> {
    let covers =
        |online: &[u8]| online.iter().enumerate().all(|(at, want)| mask.get(at).copied().unwrap_or(0) & want == *want);
    if online.is_some_and(covers) {
        return Vec::new();
    }
    let end = mask.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    mask.get(..end).unwrap_or_default().to_vec()
}

/// The attributes as `sched_setattr` takes them: the clamps are named only where one was set.
fn settable(attributes: &[u8]) -> Option<[u8; ATTRIBUTES]> {
    let mut new: [u8; ATTRIBUTES] = attributes.try_into().ok()?;
    let size = u32::try_from(ATTRIBUTES).ok()?;
    new.get_mut(..4)?.copy_from_slice(&size.to_le_bytes());
    let word = |at: usize| new.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let (flags, clamps) = (word(8)?, word(48)?);
    let (low, high) = (clamps & 0xffff_ffff, clamps >> 32);
    let clamped = (low, high) != (0, 0) && (low, high) != (0, FULL);
    let flags = (flags & !CLAMPS) | if clamped { CLAMPS } else { 0 };
    new.get_mut(8..16)?.copy_from_slice(&flags.to_le_bytes());
    Some(new)
}

/// `sched_getattr` does not tell the nice value that a `SCHED_IDLE` thread was given with its policy, but its priority
/// (proc(5), field 18) was made from it.
fn with_idle_nice(attributes: &[u8], priority: Option<i64>) -> Vec<u8> {
    const SCHED_IDLE: [u8; 4] = 5_u32.to_le_bytes();
    let mut attributes = attributes.to_vec();
    let nice = priority.and_then(|priority| i32::try_from(priority - 20).ok());
    let idle = attributes.get(4..8) == Some(&SCHED_IDLE);
    if let (Some(nice), Some(place), true) = (nice, attributes.get_mut(16..20), idle) {
        place.copy_from_slice(&nice.to_le_bytes());
    }
    attributes
}

fn put_processors(batch: &mut TaskBatch, mask: &[u8]) {
    let all = [0xff; MASK];
    let mask = if mask.is_empty() { &all[..] } else { mask };
    let at = batch.bytes(mask);
    let args = [Arg::Value(0), Arg::Value(mask.len() as u64), Arg::Data(at)];
    batch.call("setting the processors of the thread", libc::SYS_sched_setaffinity, &args);
}

impl TaskKind for Sched {
    type Record = SchedRecord;
    type Asked = Asked;
    const SITE: Site = Site::Thread;

    fn ask(_task: &TaskView, batch: &mut Batch) -> Asked {
        let (attributes, mask) = (batch.room(ATTRIBUTES), batch.room(MASK));
        let attribute_args = [Arg::Value(0), Arg::Data(attributes), Arg::Value(ATTRIBUTES as u64), Arg::Value(0)];
        let mask_args = [Arg::Value(0), Arg::Value(MASK as u64), Arg::Data(mask)];
        Asked {
            attributes: (batch.try_call(libc::SYS_sched_getattr, &attribute_args), attributes),
            mask: (batch.try_call(libc::SYS_sched_getaffinity, &mask_args), mask),
            io_priority: batch.try_call(libc::SYS_ioprio_get, &[Arg::Value(WHO_PROCESS), Arg::Value(0)]),
            slack: batch.try_call(libc::SYS_prctl, &[Arg::from(libc::PR_GET_TIMERSLACK)]),
        }
    }

    fn capture(cx: &mut Capture<'_>, task: &TaskView, asked: Asked, replies: &Replies) -> Result<SchedRecord> {
        let missing = |what| move || model::no_reply(task, what);
        super::reply(task, replies, asked.attributes.0, "sched_getattr")?;
        let attributes = replies.bytes(asked.attributes.1, ATTRIBUTES).ok_or_else(missing("sched_getattr"))?;
        let attributes = with_idle_nice(attributes, task.stat.field(PRIORITY));
        super::reply(task, replies, asked.mask.0, "sched_getaffinity")?;
        let mask = replies.bytes(asked.mask.1, MASK).ok_or_else(missing("sched_getaffinity"))?;
        if cx.processors.is_none() {
            let online = procfs::at_once("/sys/devices/system/cpu/online");
            cx.processors = online.ok().and_then(|list| mask_of(&String::from_utf8_lossy(&list)));
        }
        let nice =
            task.stat.field(NICE).and_then(|nice| i32::try_from(nice).ok()).ok_or_else(missing("nice in stat"))?;
        Ok(SchedRecord {
            attributes,
            nice,
            processors: trimmed(mask, cx.processors.as_deref()),
            io_priority: super::optional(replies, asked.io_priority).map(model::low32),
            timer_slack_ns: super::reply(task, replies, asked.slack, "PR_GET_TIMERSLACK")?,
        })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: SchedRecord) -> Result<()> {
        let attributes = settable(&record.attributes);
        let attributes = attributes
            .ok_or_else(|| Error::Unsound(format!("scheduling attributes of task {task} have an odd size")))?;
        let batch = cx.batch(Stage::Thread, task);
        if record.timer_slack_ns != 0 {
            let args = [Arg::from(libc::PR_SET_TIMERSLACK), Arg::Value(record.timer_slack_ns)];
            batch.call("setting the timer slack", libc::SYS_prctl, &args);
        }
        if let Some(priority) = record.io_priority {
            let args = [Arg::Value(WHO_PROCESS), Arg::Value(0), Arg::Value(priority.into())];
            super::put_back(batch, priority == 0, "setting the I/O priority", libc::SYS_ioprio_set, &args);
        }
        put_processors(batch, &record.processors);
        let new = batch.bytes(&attributes);
        let args = [Arg::Value(0), Arg::Data(new), Arg::Value(0)];
        batch.call("setting the scheduling policy", libc::SYS_sched_setattr, &args);
        // After the policy: sched_setattr sets it for ordinary policies only and clears it for SCHED_IDLE; a real-time
        // thread keeps one beneath.
        let nice = [Arg::Value(0), Arg::Value(0), Arg::from(record.nice)];
        batch.call("setting the nice value", libc::SYS_setpriority, &nice);
        Ok(())
    }

    fn obstacles(task: Tid, record: &SchedRecord) -> Result<Vec<Refusal>> {
        if own::rules_system(own::CAP_SYS_NICE)? {
            return Ok(Vec::new());
        }
        let refusal = |cause| Refusal {
            code: "scheduling-beyond-own",
            object: "scheduling".to_owned(),
            owner: Owner { pid: Some(Pid(task.0)), ..Owner::default() },
            cause,
            remedy: "run hdcr with CAP_SYS_NICE, or raise the limits of nice and real-time priority".to_owned(),
        };
        Ok(causes(record, &allowance()?).into_iter().map(refusal).collect())
    }
}

/// What a user may give a thread without `CAP_SYS_NICE`.
struct Allowance {
    nice: i32,
    /// `RLIMIT_RTPRIO`.
    real_time: u64,
}

fn allowance() -> Result<Allowance> {
    let limits = procfs::limits(own::pid())?;
    let soft = |name: &str| limits.get(name).and_then(|limit| limit.0);
    let lowest = soft("Max nice priority").and_then(|limit| i32::try_from(limit).ok()).map_or(-20, |limit| 20 - limit);
    let current = own::stat()?.field(NICE).and_then(|nice| i32::try_from(nice).ok()).unwrap_or(0);
    Ok(Allowance { nice: lowest.min(current), real_time: soft("Max realtime priority").unwrap_or(u64::MAX) })
}

/// Why a thread cannot be scheduled so within an allowance.
fn causes(record: &SchedRecord, allowance: &Allowance) -> Vec<String> {
    let word =
        |at: usize| record.attributes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let (policy, priority) = (word(4).unwrap_or(0), u64::from(word(20).unwrap_or(0)));
    let mut causes = Vec::new();
    let real_time = [libc::SCHED_FIFO.unsigned_abs(), libc::SCHED_RR.unsigned_abs()].contains(&policy);
    if (real_time && priority > allowance.real_time) || policy == libc::SCHED_DEADLINE.unsigned_abs() {
        causes.push(format!("it has real-time policy {policy} with priority {priority}, which takes CAP_SYS_NICE"));
    }
    if record.nice < allowance.nice {
        causes.push(format!("its nice value {} is below the {} of this user", record.nice, allowance.nice));
    }
    if record.io_priority.is_some_and(|priority| priority >> IO_CLASS == IO_REAL_TIME) {
        causes.push("its input and output have real-time priority, which takes CAP_SYS_NICE".to_owned());
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_runs_everywhere_is_bound_to_nothing() {
        let online = mask_of("0-1,9\n").unwrap();
        assert_eq!(online.get(..3), Some(&[3, 2, 0][..]));
        assert_eq!(trimmed(&[3, 2, 0, 0], Some(&online)), Vec::<u8>::new());
        assert_eq!(trimmed(&[3, 0, 0, 0], Some(&online)), vec![3]);
        assert_eq!(trimmed(&[3, 2], None), vec![3, 2]);
        assert_eq!((mask_of("x"), mask_of("0-99999999999")), (None, None));
    }

    #[test]
    fn clamps_are_named_only_where_one_was_set() {
        let mut raw = [0; ATTRIBUTES];
        assert_eq!(settable(&raw).unwrap()[8], 0);
        raw[52..56].copy_from_slice(&1024_u32.to_le_bytes());
        assert_eq!(settable(&raw).unwrap()[8], 0);
        raw[48] = 7;
        assert_eq!(settable(&raw).unwrap()[8], 0x60);
        assert_eq!(settable(&raw).unwrap()[0], 56);
        assert_eq!(settable(&raw[1..]), None);
    }

    #[test]
    fn what_takes_a_right_is_named() {
        let mut record = SchedRecord { attributes: vec![0; ATTRIBUTES], nice: 0, ..SchedRecord::default() };
        let low = Allowance { nice: 0, real_time: 0 };
        assert_eq!(causes(&record, &low), Vec::<String>::new());
        record.attributes[4] = 1;
        record.attributes[20] = 9;
        record.nice = -1;
        record.io_priority = Some(1 << 13);
        assert_eq!(causes(&record, &low).len(), 3);
        assert_eq!(causes(&record, &Allowance { nice: -20, real_time: 9 }).len(), 1);
        assert!(allowance().is_ok());
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let attributes = vec![9; ATTRIBUTES];
        let record =
            SchedRecord { attributes, nice: -20, processors: vec![1], io_priority: Some(0), timer_slack_ns: 1 };
        assert_eq!(SchedRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
