//! `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` as the tree sees them: they never go backwards.
//!
//! After a reboot, or on another machine, the clocks of the host may stand behind those of the checkpoint. The tree is
//! then born into a time namespace (`time_namespaces(7)`, Linux 5.6) in which they go on from where they were.

use std::fs;

use hdcr_image::{Record, Tag};
use rustix::time::{ClockId, clock_gettime};

use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::Pid;
use crate::model;
use crate::procfs;

/// The clocks at the freeze, in nanoseconds.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ClockRecord {
    #[prost(int64, tag = "1")]
    monotonic_ns: i64,
    #[prost(int64, tag = "2")]
    boottime_ns: i64,
}

impl Record for ClockRecord {
    const TAG: Tag = Tag(0x0104);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Offsets of a time namespace to the initial one, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Offsets {
    monotonic_ns: i64,
    boottime_ns: i64,
}

/// Parses `timens_offsets`: lines of clock, seconds, nanoseconds.
fn parse(text: &str) -> Offsets {
    let mut offsets = Offsets::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [clock, seconds, nanoseconds] = words.as_slice() else { continue };
        let value = seconds.parse::<i64>().ok().zip(nanoseconds.parse::<i64>().ok());
        let Some(value) = value.and_then(|(s, ns)| s.checked_mul(1_000_000_000)?.checked_add(ns)) else { continue };
        match *clock {
            "monotonic" | "1" => offsets.monotonic_ns = value,
            "boottime" | "7" => offsets.boottime_ns = value,
            _ => {}
        }
    }
    offsets
}

fn offsets_of(pid: Pid) -> Offsets {
    // A kernel without time namespaces has no such file, and no offsets.
    procfs::read(pid, "timens_offsets").map(|text| parse(&String::from_utf8_lossy(&text))).unwrap_or_default()
}

fn now(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

fn own() -> Pid {
    Pid(rustix::process::getpid().as_raw_nonzero().get())
}

/// `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME` as a process of the tree sees them now, in nanoseconds.
pub(crate) fn seen_by(pid: Pid) -> (i64, i64) {
    let clocks = capture(pid);
    (clocks.monotonic_ns, clocks.boottime_ns)
}

/// The clocks as a process of the tree sees them now.
pub(crate) fn capture(root: Pid) -> ClockRecord {
    let (theirs, ours) = (offsets_of(root), offsets_of(own()));
    ClockRecord {
        monotonic_ns: now(ClockId::Monotonic).saturating_add(theirs.monotonic_ns).saturating_sub(ours.monotonic_ns),
        boottime_ns: now(ClockId::Boottime).saturating_add(theirs.boottime_ns).saturating_sub(ours.boottime_ns),
    }
}

/// Makes the clocks go on for processes that are born from now on, when they would go backwards otherwise.
pub(crate) fn restore(record: &ClockRecord) -> Result<()> {
    let behind_monotonic = record.monotonic_ns.saturating_sub(now(ClockId::Monotonic)).max(0);
    let behind_boottime = record.boottime_ns.saturating_sub(now(ClockId::Boottime)).max(0);
    if behind_monotonic == 0 && behind_boottime == 0 {
        return Ok(());
    }
    let ours = offsets_of(own());
    let line =
        |clock: &str, ns: i64| format!("{clock} {} {}\n", ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    let text = line("monotonic", ours.monotonic_ns.saturating_add(behind_monotonic))
        + &line("boottime", ours.boottime_ns.saturating_add(behind_boottime));
    hdcr_sys::namespace::unshare_time()
        .and_then(|()| fs::write("/proc/self/timens_offsets", text))
        .map_err(|error| Error::refuse(refusal(&error)))
}

fn refusal(error: &std::io::Error) -> Refusal {
    Refusal {
        code: "clock-behind",
        object: "monotonic clock".to_owned(),
        owner: Owner::default(),
        cause: format!(
            "it stands behind that of the checkpoint (after a reboot), and a time namespace cannot be made: {error}"
        ),
        remedy: "restore as root, or with --new-pids in an own user namespace".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_in_nanoseconds() {
        let expected = Offsets { monotonic_ns: 86_400_000_000_005, boottime_ns: -1_000_000_000 };
        assert_eq!(parse("monotonic           86400         5\nboottime           -1         0\n"), expected);
        assert_eq!(parse("nonsense\nmonotonic x y\n"), Offsets::default());
    }
}
