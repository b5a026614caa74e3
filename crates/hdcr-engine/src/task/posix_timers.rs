//! Timers of `timer_create(2)`, with their numbers, clocks, notifications and the time that remains.
//!
//! Which there are is read from `/proc/PID/timers`, what remains is asked for. Every timer goes on relative to now: whether
//! it was set to an absolute time is not to be seen. A periodic timer whose signal is pending fires at once: the kernel then
//! has the signal as its own again. How many expiries that signal had missed is not to be seen; the count starts anew. Numbers are given back with
//! `PR_TIMER_CREATE_RESTORE_IDS` (Linux 6.15), before that by using up those in between.

use std::collections::BTreeSet;

use hdcr_image::List;
use hdcr_layout::PosixTimer;
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView, pending};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::mechanism::Queue;
use crate::model;
use crate::procfs;
use crate::restore::{Restore, TaskBatch};
use crate::survey::Survey;

pub(crate) struct PosixTimers;

/// What is kept.
pub(crate) type PosixTimersRecord = List<PosixTimer>;

/// Size of `struct itimerspec`: interval, value, each in seconds and nanoseconds.
const ITIMERSPEC: usize = 32;
/// Size of `struct sigevent`.
const SIGEVENT: usize = 64;
const SECOND: u64 = 1_000_000_000;
/// Its signal is pending (in `flags`).
const PENDING: u32 = 1;
/// The shortest time, in nanoseconds.
const AT_ONCE: u64 = 1;
/// `PR_TIMER_CREATE_RESTORE_IDS` of `<linux/prctl.h>`.
const RESTORE_IDS: u64 = 77;
/// Clock numbers are those of the creating process or thread itself (kernel `include/linux/posix-timers.h`).
const OWN_PROCESS: i32 = -6;
const OWN_THREAD: i32 = -2;
/// The last two bits of a clock number that stands for an open clock device.
const DEVICE: i32 = 3;
/// Numbers that are used up, on kernels that give out the next number only.
const MOST_UNUSED: i32 = 65_536;

/// Parses `/proc/PID/timers`; times are still 0.
fn parse(text: &str) -> Option<Vec<PosixTimer>> {
    let mut timers: Vec<PosixTimer> = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(':')?;
        let value = value.trim();
        if key == "ID" {
            let id = value.parse().ok()?;
            timers.push(PosixTimer {
                value: 0,
                value_ns: 0,
                interval_ns: 0,
                id,
                clock: 0,
                signal: 0,
                notify: 0,
                tid: 0,
                overrun: 0,
                flags: 0,
            });
            continue;
        }
        let timer = timers.last_mut()?;
        match key {
            "signal" => {
                let (signal, data) = value.split_once('/')?;
                timer.signal = signal.parse().ok()?;
                timer.value = u64::from_str_radix(data.trim_start_matches("0x"), 16).ok()?;
            }
            "notify" => (timer.notify, timer.tid) = parse_notify(value)?,
            "ClockID" => timer.clock = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(timers)
}

/// `signal/pid.17`, `none/pid.17`, `signal/tid.18`.
fn parse_notify(value: &str) -> Option<(i32, i32)> {
    let (how, whom) = value.split_once('/')?;
    let (kind, number) = whom.split_once('.')?;
    let how = match how {
        "signal" => libc::SIGEV_SIGNAL,
        "none" => libc::SIGEV_NONE,
        "thread" => libc::SIGEV_THREAD,
        _ => return None,
    };
    match (kind, number.parse().ok()?) {
        ("pid", _) => Some((how, 0)),
        // The thread has ended: nobody is told any more.
        ("tid", 0) => Some((libc::SIGEV_NONE, 0)),
        ("tid", tid) => Some((how | libc::SIGEV_THREAD_ID, tid)),
        _ => None,
    }
}

/// Whether a timer of this clock can be made again in a process with these threads.
fn can_be_kept(clock: i32, pid: Pid, threads: &[i32]) -> bool {
    if clock >= 0 && clock != libc::CLOCK_THREAD_CPUTIME_ID {
        return true;
    }
    let of_a_thread = clock == libc::CLOCK_THREAD_CPUTIME_ID || clock == OWN_THREAD;
    if clock == OWN_PROCESS || of_a_thread {
        return !of_a_thread || threads.len() == 1;
    }
    // The clock of a numbered process or thread: the complement of its number above three bits.
    let number = !(clock >> 3);
    let per_thread = clock & 4 != 0;
    let own = if per_thread { threads.contains(&number) } else { number == pid.0 };
    clock & DEVICE != DEVICE && own
}

/// The timers of a process, their times still 0.
fn timers_of(task: &TaskView) -> Result<Vec<PosixTimer>> {
    let text = procfs::read(task.pid, "timers")?;
    parse(&String::from_utf8_lossy(&text)).ok_or_else(|| model::no_reply(task, "/proc/PID/timers"))
}

/// The timers whose signal is pending somewhere in the process.
fn fired(cx: &Capture<'_>, task: &TaskView) -> Result<BTreeSet<i32>> {
    let process = cx.frozen.processes().iter().find(|process| process.pid == task.pid);
    let mut infos = cx.frozen.pending(task.tid, Queue::Shared)?;
    for tid in process.into_iter().flat_map(|process| &process.threads) {
        infos.append(&mut cx.frozen.pending(*tid, Queue::Thread)?);
    }
    Ok(infos.iter().filter_map(|info| pending::timer_of(info)).collect())
}

fn split(ns: u64) -> (u64, u64) {
    (ns / SECOND, ns % SECOND)
}

fn put_words(batch: &mut TaskBatch, at: usize, words: &[u64]) {
    for (at, word) in (at..).step_by(8).zip(words) {
        batch.put(at, &word.to_le_bytes());
    }
}

/// A `struct sigevent`.
fn sigevent(batch: &mut TaskBatch, timer: &PosixTimer) -> usize {
    let event = batch.room(SIGEVENT);
    batch.put(event, &timer.value.to_le_bytes());
    batch.put(event + 8, &timer.signal.to_le_bytes());
    batch.put(event + 12, &timer.notify.to_le_bytes());
    batch.put(event + 16, &timer.tid.to_le_bytes());
    event
}

/// Creates and starts a timer that gets its number.
fn create(batch: &mut TaskBatch, timer: &PosixTimer) {
    let event = sigevent(batch, timer);
    let id = batch.bytes(&timer.id.to_le_bytes());
    let args = [Arg::from(timer.clock), Arg::Data(event), Arg::Data(id)];
    batch.call("creating a timer", libc::SYS_timer_create, &args);
    let value = match (timer.flags & PENDING, timer.value_ns) {
        (0, 0) => timer.interval_ns,
        (0, value) => value,
        _ => AT_ONCE,
    };
    if value == 0 {
        return;
    }
    let new = batch.room(ITIMERSPEC);
    let (interval, value) = (split(timer.interval_ns), split(value));
    put_words(batch, new, &[interval.0, interval.1, value.0, value.1]);
    let args = [Arg::from(timer.id), Arg::Value(0), Arg::Data(new), Arg::Value(0)];
    batch.call("starting a timer", libc::SYS_timer_settime, &args);
}

/// Creates and deletes timers so that the next one gets number `to`.
fn use_up(batch: &mut TaskBatch, from: i32, to: i32) {
    for unused in from..to {
        let none = PosixTimer {
            value: 0,
            value_ns: 0,
            interval_ns: 0,
            id: unused,
            clock: 0,
            signal: 0,
            notify: 1,
            tid: 0,
            overrun: 0,
            flags: 0,
        };
        create(batch, &none);
        batch.call("deleting a timer", libc::SYS_timer_delete, &[Arg::from(unused)]);
    }
}

fn put(batch: &mut TaskBatch, timers: &[PosixTimer], ids_settable: bool) {
    let mode = |on: u64| [Arg::Value(RESTORE_IDS), Arg::Value(on), Arg::Value(0), Arg::Value(0), Arg::Value(0)];
    if ids_settable {
        batch.call("giving timers their numbers", libc::SYS_prctl, &mode(1));
    }
    let mut next = 0;
    for timer in timers {
        if !ids_settable {
            use_up(batch, next, timer.id);
            next = timer.id.saturating_add(1);
        }
        create(batch, timer);
    }
    if ids_settable {
        batch.call("giving timers their numbers", libc::SYS_prctl, &mode(0));
    }
}

/// Checks what an image holds, and sorts it by number.
fn sound(task: Tid, mut timers: Vec<PosixTimer>) -> Result<Vec<PosixTimer>> {
    timers.sort_unstable_by_key(|timer| timer.id);
    let doubled = timers.windows(2).any(|pair| matches!(pair, [a, b] if a.id == b.id));
    if doubled || timers.iter().any(|timer| timer.id < 0) {
        return Err(Error::Unsound(format!("task {task} has two timers with one number")));
    }
    Ok(timers)
}

fn refusal(pid: Pid, timer: &PosixTimer, cause: &str, remedy: &str) -> Refusal {
    Refusal {
        code: "posix-timer",
        object: format!("timer {} of clock {}", timer.id, timer.clock),
        owner: Owner { pid: Some(pid), ..Owner::default() },
        cause: cause.to_owned(),
        remedy: remedy.to_owned(),
    }
}

impl TaskKind for PosixTimers {
    type Record = PosixTimersRecord;
    type Asked = Result<Vec<(PosixTimer, usize, usize)>>;
    const SITE: Site = Site::Process;

    fn survey(survey: &mut Survey<'_>, task: &TaskView) -> Result<()> {
        let timers = timers_of(task)?;
        let threads = if timers.is_empty() { Vec::new() } else { procfs::numbers(task.pid, "task")? };
        for timer in timers.iter().filter(|timer| !can_be_kept(timer.clock, task.pid, &threads)) {
            let cause = "it counts the time of another process, of a clock device, or of a thread that has ended or cannot be told";
            let remedy = "use a clock of the process, or pthread_getcpuclockid of a thread that lives";
            survey.refuse(refusal(task.pid, timer, cause, remedy));
        }
        Ok(())
    }

    fn ask(task: &TaskView, batch: &mut Batch) -> Self::Asked {
        let timers = timers_of(task)?;
        let ask_one = |timer: PosixTimer| {
            let value = batch.room(ITIMERSPEC);
            let call = batch.try_call(libc::SYS_timer_gettime, &[Arg::from(timer.id), Arg::Data(value)]);
            (timer, call, value)
        };
        Ok(timers.into_iter().map(ask_one).collect())
    }

    fn capture(
        cx: &mut Capture<'_>,
        task: &TaskView,
        asked: Self::Asked,
        replies: &Replies,
    ) -> Result<PosixTimersRecord> {
        let asked = asked?;
        let pending = if asked.is_empty() { BTreeSet::new() } else { fired(cx, task)? };
        let mut timers = Vec::new();
        for (mut timer, call, at) in asked {
            super::reply(task, replies, call, "timer_gettime")?;
            let words =
                (|| Some([replies.word(at)?, replies.word(at + 8)?, replies.word(at + 16)?, replies.word(at + 24)?]))();
            let [interval, interval_nanos, value, value_nanos] =
                words.ok_or_else(|| model::no_reply(task, "timer_gettime"))?;
            timer.interval_ns = interval.saturating_mul(SECOND).saturating_add(interval_nanos);
            timer.value_ns = value.saturating_mul(SECOND).saturating_add(value_nanos);
            if timer.interval_ns != 0 && pending.contains(&timer.id) {
                timer.flags |= PENDING;
            }
            timers.push(timer);
        }
        Ok(List(timers))
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: PosixTimersRecord) -> Result<()> {
        let timers = sound(task, record.0)?;
        if timers.is_empty() {
            return Ok(());
        }
        let refusals = Self::obstacles(task, &List(timers.clone()))?;
        if let Some(first) = refusals.into_iter().next() {
            return Err(Error::refuse(first));
        }
        put(cx.batch(Stage::Timers, task), &timers, hdcr_sys::task_attribute::timer_ids_settable());
        Ok(())
    }

    fn obstacles(task: Tid, record: &PosixTimersRecord) -> Result<Vec<Refusal>> {
        if hdcr_sys::task_attribute::timer_ids_settable() {
            return Ok(Vec::new());
        }
        let high = record.0.iter().filter(|timer| timer.id > MOST_UNUSED);
        let cause = "its number is too high for a kernel that gives out the next number only";
        Ok(high.map(|timer| refusal(Pid(task.0), timer, cause, "restore on Linux 6.15 or later")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdcr_image::Record;

    const TEXT: &str = "ID: 3\nsignal: 14/00007fff86e452a8\nnotify: signal/pid.17\nClockID: 1\n\
                        ID: 0\nsignal: 34/0000000000000000\nnotify: signal/tid.18\nClockID: -6\n";

    #[test]
    fn the_list_of_timers_is_read() {
        let timers = parse(TEXT).unwrap();
        assert_eq!((timers[0].id, timers[0].signal, timers[0].value, timers[0].clock), (3, 14, 0x7fff_86e4_52a8, 1));
        assert_eq!((timers[1].notify, timers[1].tid, timers[1].clock), (4, 18, -6));
        assert_eq!(parse("").unwrap(), vec![]);
        for odd in ["signal: 1/0\n", "ID: x\n", "ID: 1\nnotify: signal\n", "ID: 1\nodd: 1\n"] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn clocks_that_cannot_be_put_back_are_known() {
        let alone = [17];
        let two = [17, 18];
        assert!(can_be_kept(0, Pid(17), &two));
        assert!(can_be_kept(-2, Pid(17), &alone) && !can_be_kept(-2, Pid(17), &two));
        assert!(can_be_kept(-6, Pid(17), &two));
        // Process 17, process 18, threads 18 and 19 (which has ended), clock device behind descriptor 5.
        assert!(can_be_kept((!17 << 3) | 2, Pid(17), &two) && !can_be_kept((!18 << 3) | 2, Pid(17), &two));
        assert!(can_be_kept((!18 << 3) | 6, Pid(17), &two) && !can_be_kept((!19 << 3) | 6, Pid(17), &two));
        assert!(!can_be_kept((!5 << 3) | 3, Pid(17), &alone));
    }

    #[test]
    fn numbers_in_between_are_used_up_where_the_kernel_takes_none() {
        let timers = sound(Tid(1), parse(TEXT).unwrap()).unwrap();
        let (mut settable, mut counted) = (TaskBatch::default(), TaskBatch::default());
        put(&mut settable, &timers, true);
        put(&mut counted, &timers, false);
        assert_eq!((settable.labels.len(), counted.labels.len()), (4, 6));
        assert!(sound(Tid(1), [timers.clone(), timers].concat()).is_err());
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = List(parse(TEXT).unwrap());
        assert_eq!(PosixTimersRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
