//! `timerfd_create(2)`: a timer behind a descriptor.
//!
//! Captured: clock, flags of the last setting, what remains, interval, ticks that nobody has read. A timer set to an
//! absolute time keeps that time on its clock, others keep what remains. Not captured: a cancellation by a jump of the
//! clock (`TFD_TIMER_CANCEL_ON_SET`) that nobody has read. Reads: `timerfd_gettime(2)`, `/proc/PID/fdinfo` (since Linux
//! 3.17). Needs: `TFD_IOC_SET_TICKS` (`CONFIG_CHECKPOINT_RESTORE`) for unread ticks.

use std::os::fd::OwnedFd;

use hdcr_image::{Record, Tag};
use nix::libc;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::{FileKind, FileView};
use crate::batch::Arg;
use crate::capture::Capture;
use crate::clock;
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::model::{self, ObjectId};
use crate::procfs;
use crate::restore::Restore;
use crate::task::Stage;

/// `TFD_IOC_SET_TICKS` (include/uapi/linux/timerfd.h).
const SET_TICKS: i32 = 0x4008_5400;
const ABSOLUTE: u32 = 1;
const SECOND: i64 = 1_000_000_000;

pub(crate) struct TimerFd;

/// What is kept of a timerfd.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TimerFdRecord {
    #[prost(int32, tag = "1")]
    clock: i32,
    /// Flags of the last `timerfd_settime`.
    #[prost(uint32, tag = "2")]
    flags: u32,
    /// Until it expires, or at which time of its clock when it was set so; 0: not armed.
    #[prost(int64, tag = "3")]
    value_ns: i64,
    #[prost(int64, tag = "4")]
    interval_ns: i64,
    /// Expirations that nobody has read.
    #[prost(uint64, tag = "5")]
    ticks: u64,
}

impl Record for TimerFdRecord {
    const TAG: Tag = Tag(0x0260);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl FileKind for TimerFd {
    type Record = TimerFdRecord;

    fn claims(view: &FileView) -> bool {
        view.is("anon_inode:[timerfd]")
    }

    fn capture(_cx: &mut Capture<'_>, view: &FileView, file: &OwnedFd) -> Result<TimerFdRecord> {
        // Counts what has expired meanwhile, as a read would, and lets a periodic timer go on.
        rustix::time::timerfd_gettime(file).map_err(Error::system("timerfd_gettime", format!("fd {}", view.fd)))?;
        let info = procfs::fd_info(view.pid, view.fd)?;
        let get = |key: &str| info.lines.get(key).ok_or_else(|| model::unreadable(view, key));
        let read = |key: &str| get(key)?.parse().map_err(|_| model::unreadable(view, key));
        let span = |key: &str| nanoseconds(get(key)?).ok_or_else(|| model::unreadable(view, key));
        let clock = i32::try_from(read("clockid")?).map_err(|_| model::unreadable(view, "clockid"))?;
        let flags = info.lines.octal("settime flags").ok_or_else(|| model::unreadable(view, "settime flags"))?;
        let flags = model::low32(flags);
        let remaining = span("it_value")?;
        let absolute = flags & ABSOLUTE != 0 && remaining > 0;
        let value_ns = if absolute { remaining.saturating_add(now(view.pid, clock)) } else { remaining };
        let record = TimerFdRecord { clock, flags, value_ns, interval_ns: span("it_interval")?, ticks: read("ticks")? };
        Ok(if record.has_stopped() { TimerFdRecord { value_ns: record.begun_again(now(view.pid, clock)), ..record } } else { record })
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: TimerFdRecord) -> Result<OwnedFd> {
        let clock = clock_id(record.clock).ok_or_else(|| Error::Unsound(format!("{id}: clock {}", record.clock)))?;
        let file = rustix::time::timerfd_create(clock, TimerfdFlags::CLOEXEC);
        let file = file.map_err(Error::system("timerfd_create", id))?;
        match cx.holders.get(&id).and_then(|holders| holders.first()).copied() {
            Some((pid, number)) => set_in_task(cx, pid, number, &record),
            // Only on its way in a socket: nobody can set it but us.
            None => set_here(&file, &record).map_err(Error::system("timerfd_settime", id))?,
        }
        Ok(file)
    }
}

impl TimerFdRecord {
    /// Whether it is a periodic one that shows no time because it has expired since it was asked: the kernel lets it go on only when
    /// it is asked or read again (fs/timerfd.c). Set so, it would be disarmed for good. One that was disarmed has no ticks: setting
    /// a timer takes them away.
    fn has_stopped(&self) -> bool {
        self.value_ns == 0 && self.interval_ns > 0 && self.ticks > 0
    }

    /// Its value with a whole interval to go, on a clock that shows `now`.
    fn begun_again(&self, now: i64) -> i64 {
        if self.flags & ABSOLUTE != 0 { now.saturating_add(self.interval_ns) } else { self.interval_ns }
    }
}

/// The clock of a timer as the process sees it.
fn now(pid: Pid, clock: i32) -> i64 {
    match clock {
        libc::CLOCK_MONOTONIC => clock::seen_by(pid).0,
        libc::CLOCK_BOOTTIME | libc::CLOCK_BOOTTIME_ALARM => clock::seen_by(pid).1,
        _ => {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            time.tv_sec.saturating_mul(SECOND).saturating_add(time.tv_nsec)
        }
    }
}

fn clock_id(clock: i32) -> Option<TimerfdClockId> {
    match clock {
        libc::CLOCK_REALTIME => Some(TimerfdClockId::Realtime),
        libc::CLOCK_MONOTONIC => Some(TimerfdClockId::Monotonic),
        libc::CLOCK_BOOTTIME => Some(TimerfdClockId::Boottime),
        libc::CLOCK_REALTIME_ALARM => Some(TimerfdClockId::RealtimeAlarm),
        libc::CLOCK_BOOTTIME_ALARM => Some(TimerfdClockId::BoottimeAlarm),
        _ => None,
    }
}

/// Parses `(seconds, nanoseconds)`.
fn nanoseconds(text: &str) -> Option<i64> {
    let (seconds, nanoseconds) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    let (seconds, nanoseconds): (i64, i64) = (seconds.trim().parse().ok()?, nanoseconds.trim().parse().ok()?);
    seconds.checked_mul(SECOND)?.checked_add(nanoseconds)
}

fn spec(ns: i64) -> Timespec {
    Timespec { tv_sec: ns.max(0) / SECOND, tv_nsec: ns.max(0) % SECOND }
}

/// Lets the task set it, on the clocks that it sees, when its timers begin to count.
fn set_in_task(cx: &mut Restore<'_>, pid: Pid, number: i32, record: &TimerFdRecord) {
    let batch = cx.batch(Stage::Timers, pid.leader());
    let words = [spec(record.interval_ns), spec(record.value_ns)];
    let words = words.iter().flat_map(|spec| [spec.tv_sec, spec.tv_nsec]).flat_map(i64::to_ne_bytes);
    let at = batch.bytes(&words.collect::<Vec<u8>>());
    let args = [Arg::from(number), Arg::Value(record.flags.into()), Arg::Data(at), Arg::Value(0)];
    batch.call("setting a timer behind a descriptor", libc::SYS_timerfd_settime, &args);
    if record.ticks > 0 {
        let at = batch.bytes(&record.ticks.to_ne_bytes());
        let args = [Arg::from(number), Arg::from(SET_TICKS), Arg::Data(at)];
        batch.call("unread expirations of a timer", libc::SYS_ioctl, &args);
    }
}

fn set_here(file: &OwnedFd, record: &TimerFdRecord) -> rustix::io::Result<()> {
    let expired = record.ticks > 0;
    let (flags, value) = if expired { (0, 1) } else { (record.flags, record.value_ns) };
    let spec = Itimerspec { it_interval: spec(record.interval_ns), it_value: spec(value) };
    rustix::time::timerfd_settime(file, TimerfdTimerFlags::from_bits_retain(flags), &spec).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_parsed_and_odd_ones_refused() {
        assert_eq!(nanoseconds("(2, 974823865)"), Some(2_974_823_865));
        assert_eq!(nanoseconds("(0, 0)"), Some(0));
        for odd in ["", "(1)", "(1, x)", "(9223372036854775807, 1)", "1, 2"] {
            assert_eq!(nanoseconds(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_periodic_timer_that_has_just_expired_goes_on() {
        let record = |value_ns, interval_ns, ticks| TimerFdRecord { clock: 1, flags: 0, value_ns, interval_ns, ticks };
        assert!(record(0, 1_000, 1).has_stopped());
        let others = [record(5, 1_000, 1), record(0, 0, 1), record(0, 1_000, 0), record(0, 0, 0)];
        assert!(others.iter().all(|other| !other.has_stopped()));
        assert_eq!(record(0, 1_000, 1).begun_again(7), 1_000);
        assert_eq!(TimerFdRecord { flags: ABSOLUTE, ..record(0, 1_000, 1) }.begun_again(7), 1_007);
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = TimerFdRecord { clock: 7, flags: 1, value_ns: 5, interval_ns: 6, ticks: u64::MAX };
        assert_eq!(TimerFdRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
