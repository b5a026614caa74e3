//! Calls with a time limit: what remains of it.
//!
//! A sleep that reports its rest has written it into the program's memory at the stop. For the others the kernel's list
//! of timers tells: the thread goes on with its call for a moment, up to the next border of a system call at most, and
//! the timer that is new in the list is its own. Other programs' timers come and go, so it is asked again until one is
//! left (the end of the call stays the same).

use std::collections::BTreeSet;
use std::fs;

use hdcr_engine::ids::RemotePtr;
use hdcr_engine::mechanism::{Deadline, Result, TimedCall};
use hdcr_engine::procfs;
use hdcr_engine::regs::Regs;

use crate::calls::Calls;
use crate::reenter;
use crate::registers::{Interrupted, RestartBlock, interrupted, waits_for_ever};
use crate::tracee::Tracee;

const POLL: u64 = 7;
const NANOSLEEP: u64 = 35;
const FUTEX: u64 = 202;
const CLOCK_NANOSLEEP: u64 = 230;

/// The list rounds, and what is read while frozen is a little late: a deadline may lie that much too far off.
const SLACK_NS: u64 = 2_000_000;

/// The monotonic clock of the machine, which the list of timers tells of, in nanoseconds: that of this process, without
/// the offset of a time namespace that it may be in.
pub(crate) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let text = procfs::at_once("/proc/self/timens_offsets").unwrap_or_default();
    let offset = offset(&String::from_utf8_lossy(&text));
    nanoseconds(now.tv_sec, now.tv_nsec).unwrap_or(0).saturating_add_signed(offset.saturating_neg())
}

/// The offset of the monotonic clock; none where the kernel knows no time namespaces.
fn offset(text: &str) -> i64 {
    let line = text.lines().find_map(|line| line.strip_prefix("monotonic")).unwrap_or_default();
    let mut words = line.split_ascii_whitespace().map_while(|word| word.parse::<i64>().ok());
    let (seconds, rest) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
    seconds.checked_mul(1_000_000_000).and_then(|ns| ns.checked_add(rest)).unwrap_or(0)
}

fn nanoseconds(seconds: i64, rest: i64) -> Option<u64> {
    let seconds = u64::try_from(seconds).ok()?;
    let rest = u64::try_from(rest).ok().filter(|rest| *rest < 1_000_000_000)?;
    seconds.checked_mul(1_000_000_000)?.checked_add(rest)
}

/// The timed call that a thread is in.
pub(crate) fn call_of(calls: &Calls, tracee: &mut Tracee, stopped_at: u64, by: Deadline) -> Result<Option<TimedCall>> {
    if interrupted(&tracee.own.regs) != Interrupted::Block || tracee.restart_block == RestartBlock::Lost {
        return Ok(None);
    }
    let regs = tracee.own.regs;
    let nr = regs.orig_ax;
    if waits_for_ever(&regs) {
        return Ok(Some(TimedCall { nr, remaining_ns: None }));
    }
    if let Some(reported_at) = reported_rest(&regs) {
        let remaining_ns = timespec(calls, tracee, reported_at);
        return Ok(Some(TimedCall { nr, remaining_ns }));
    }
    let longest = longest(calls, tracee);
    match end_by_list(calls, tracee, longest, by)? {
        Outcome::Ended => Ok(None),
        Outcome::Unknown => Ok(Some(TimedCall { nr, remaining_ns: None })),
        Outcome::End(end) => {
            let remaining_ns = Some(end.saturating_sub(stopped_at));
            Ok(Some(TimedCall { nr, remaining_ns }))
        }
    }
}

/// Where the kernel has written what remains, if the program asked for it.
fn reported_rest(regs: &Regs) -> Option<u64> {
    match regs.orig_ax {
        NANOSLEEP => Some(regs.si).filter(|at| *at != 0),
        CLOCK_NANOSLEEP => Some(regs.r10).filter(|at| *at != 0),
        _ => None,
    }
}

fn timespec(calls: &Calls, tracee: &Tracee, at: u64) -> Option<u64> {
    let mut bytes = [0; 16];
    calls.read(tracee.tid, RemotePtr(at), &mut bytes).ok()?;
    let (seconds, rest) = bytes.split_at_checked(8)?;
    nanoseconds(i64::from_le_bytes(seconds.try_into().ok()?), i64::from_le_bytes(rest.try_into().ok()?))
}

/// The whole time of the call, as far as its arguments still tell.
fn longest(calls: &Calls, tracee: &Tracee) -> Option<u64> {
    /// `FUTEX_CMD_MASK`: without the flags for private and real-time.
    const COMMAND: u64 = 0x7f;
    let regs = &tracee.own.regs;
    match regs.orig_ax {
        // An `int`: the upper half means nothing.
        POLL => (regs.dx & 0x7fff_ffff).checked_mul(1_000_000),
        NANOSLEEP => timespec(calls, tracee, regs.di),
        CLOCK_NANOSLEEP => timespec(calls, tracee, regs.dx),
        // Other futex waits take a point in time.
        FUTEX if regs.si & COMMAND == 0 => timespec(calls, tracee, regs.r10),
        _ => None,
    }
}

enum Outcome {
    /// When the call ends, on the monotonic clock.
    End(u64),
    /// The call has ended meanwhile; its result is in the registers.
    Ended,
    /// The list does not tell.
    Unknown,
}

/// Lets the thread into its call again and finds its timer in the list.
fn end_by_list(calls: &Calls, tracee: &mut Tracee, longest: Option<u64>, by: Deadline) -> Result<Outcome> {
    /// Other programs start a sleep in the same moment now and then; more often than this never.
    const ATTEMPTS: u32 = 8;
    if !reenter::possible(tracee) {
        return Ok(Outcome::Unknown);
    }
    let mut ends = Ends::default();
    for _ in 0..ATTEMPTS {
        let Some(before) = ends_in_list() else {
            return Ok(Outcome::Unknown);
        };
        let after = match reenter::observe(calls, tracee, by, ends_in_list)? {
            Some(Some(after)) => after,
            Some(None) => return Ok(Outcome::Unknown),
            None => return Ok(Outcome::Ended),
        };
        let now = now();
        let latest = longest.map_or(u64::MAX, |longest| now.saturating_add(longest) + SLACK_NS);
        if let Some(end) = ends.see(after.difference(&before).copied().filter(|end| *end <= latest).collect()) {
            return Ok(Outcome::End(end));
        }
    }
    Ok(Outcome::Unknown)
}

/// What may be the end of a call, by what was new in the list each time that the thread was let into it.
#[derive(Default)]
struct Ends(Option<BTreeSet<u64>>);

impl Ends {
    /// The end, once one alone was new two times: another program may begin a sleep just while the thread is still on its way
    /// to its own, but its timer is not new again.
    fn see(&mut self, new: BTreeSet<u64>) -> Option<u64> {
        let Some(earlier) = self.0.take() else {
            self.0 = Some(new);
            return None;
        };
        let both: BTreeSet<u64> = new.intersection(&earlier).copied().collect();
        if both.len() == 1 {
            return both.first().copied();
        }
        // None: one of the two looks came too early, and what is new now is as good as the first.
        self.0 = Some(if both.is_empty() { new } else { both });
        None
    }
}

/// The ends of all sleeps that the kernel has a timer for, on the monotonic clock. `None` when it does not tell.
fn ends_in_list() -> Option<BTreeSet<u64>> {
    Some(parse_list(&fs::read_to_string("/proc/timer_list").ok()?))
}

fn parse_list(text: &str) -> BTreeSet<u64> {
    let mut ends = BTreeSet::new();
    let mut offset = 0u64;
    let mut sleeper = false;
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(rest) = line.strip_prefix(".offset:") {
            let number = rest.split_ascii_whitespace().next();
            offset = number.and_then(|n| n.parse().ok()).unwrap_or(0);
        } else if let Some(rest) = line.strip_prefix("# expires at ") {
            let soft = rest.split('-').next().and_then(|n| n.parse::<u64>().ok());
            if let (true, Some(end)) = (sleeper, soft) {
                ends.insert(end.saturating_sub(offset));
            }
        } else if line.starts_with('#') {
            sleeper = line.contains("hrtimer_wakeup");
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_of_somebody_else_is_not_taken_for_the_call() {
        const OWN: u64 = 7;
        let looks = |looks: &[&[u64]]| {
            let mut ends = Ends::default();
            looks.iter().find_map(|new| ends.see(new.iter().copied().collect()))
        };
        assert_eq!(looks(&[&[OWN], &[OWN]]), Some(OWN));
        assert_eq!(looks(&[&[3], &[OWN]]), None, "the first look came before its timer");
        assert_eq!(looks(&[&[3], &[OWN], &[OWN]]), Some(OWN));
        assert_eq!(looks(&[&[3, OWN], &[OWN, 4]]), Some(OWN));
        assert_eq!(looks(&[&[], &[OWN, 4], &[4, OWN], &[OWN]]), Some(OWN));
        assert_eq!(looks(&[&[], &[], &[3]]), None);
    }

    #[test]
    fn the_offset_of_a_time_namespace_is_read() {
        assert_eq!(offset("monotonic         100         5\nboottime          7         0\n"), 100_000_000_005);
        assert_eq!(offset("monotonic          -1  500000000\n"), -500_000_000);
        assert_eq!(offset("odd"), 0);
    }

    #[test]
    fn sleepers_are_found_on_the_monotonic_clock() {
        let text = " clock 0:\n  .offset:     0 nsecs\nactive timers:\n #0: <00>, tick_nohz_handler, S:01\n \
                    # expires at 5-6 nsecs [in 1 to 2 nsecs]\n #1: <00>, hrtimer_wakeup, S:01\n \
                    # expires at 100-150 nsecs [in 1 to 2 nsecs]\n clock 1:\n  .offset:     1000 nsecs\n \
                    #0: <00>, hrtimer_wakeup, S:01\n # expires at 1200-1250 nsecs [in 1 to 2 nsecs]\n";
        assert_eq!(parse_list(text), BTreeSet::from([100, 200]));
    }
}
