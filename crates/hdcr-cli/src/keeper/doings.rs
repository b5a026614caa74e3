//! What the program does, by what the kernel counts of its processes: memory, pages touched for the first time, CPU time.

use std::time::{Duration, Instant};

use crate::process;

/// No more often is looked at every process.
const LEAST: Duration = Duration::from_millis(200);
/// How often is looked whether the program idles.
pub(super) const IDLE_LOOK: Duration = Duration::from_millis(500);

/// One look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counts {
    ticks: i64,
    faults: i64,
    pages: i64,
}

impl Counts {
    /// Of these processes together.
    fn of(pids: impl Iterator<Item = i32>) -> Self {
        const MINOR_FAULTS: usize = 10;
        const TIMES: [usize; 2] = [14, 15];
        const RESIDENT: usize = 24;
        let mut all = Self::default();
        for stat in pids.filter_map(process::stat) {
            let field = |number| stat.field(number).unwrap_or(0);
            all.ticks = TIMES.into_iter().fold(all.ticks, |sum, number| sum.saturating_add(field(number)));
            all.faults = all.faults.saturating_add(field(MINOR_FAULTS));
            all.pages = all.pages.saturating_add(field(RESIDENT));
        }
        all
    }
}

/// What was seen, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doings {
    last: Counts,
    at: Instant,
    /// Pages touched for the first time, in bytes a second.
    rate: Option<u64>,
    /// When CPU time was seen to pass last.
    busy: Instant,
}

impl Doings {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: Counts::default(), at: now, rate: None, busy: now }
    }

    /// Bytes of memory in use.
    pub(super) fn memory(&self) -> u64 {
        bytes(self.last.pages)
    }

    /// Bytes that change in a second. While a program is followed, the first write to a page after a checkpoint is counted as
    /// a fault by the kernel; else only new pages are.
    pub(super) fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// When was looked last.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// Since when the program does nothing.
    pub(super) fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.busy)
    }

    /// Looks, unless that was done just now; whether it was time.
    pub(super) fn look(&mut self, now: Instant, pids: impl FnOnce() -> Vec<i32>) -> bool {
        let passed = now.saturating_duration_since(self.at);
        let first = self.last == Counts::default();
        if passed < LEAST && !first {
            return false;
        }
        self.seen(now, Counts::of(pids().into_iter()), !first);
        true
    }

    fn seen(&mut self, now: Instant, counts: Counts, known: bool) {
        let passed = now.saturating_duration_since(self.at).as_millis().max(1);
        if counts.ticks != self.last.ticks {
            self.busy = now;
        }
        // Those of a process that has ended are gone.
        let faults = bytes(counts.faults.saturating_sub(self.last.faults).max(0));
        let rate = u128::from(faults).saturating_mul(1000).checked_div(passed).unwrap_or(0);
        self.rate = known.then(|| u64::try_from(rate).unwrap_or(u64::MAX));
        (self.last, self.at) = (counts, now);
    }
}

fn bytes(pages: i64) -> u64 {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    u64::try_from(pages).unwrap_or(0).saturating_mul(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_idleness_come_from_two_looks() {
        let begin = Instant::now();
        let mut doings = Doings::new(begin);
        doings.seen(begin, Counts { ticks: 5, faults: 100, pages: 50 }, false);
        assert_eq!((doings.memory(), doings.rate()), (bytes(50), None));
        let later = begin + Duration::from_secs(2);
        doings.seen(later, Counts { ticks: 5, faults: 300, pages: 60 }, true);
        assert_eq!((doings.rate(), doings.idle(later)), (Some(bytes(100)), Duration::from_secs(2)));
        doings.seen(later + Duration::from_secs(1), Counts { ticks: 6, faults: 200, pages: 60 }, true);
        assert_eq!((doings.rate(), doings.idle(later + Duration::from_secs(1))), (Some(0), Duration::ZERO));
    }

    #[test]
    fn a_process_is_seen() {
        let own = std::process::id().cast_signed();
        let mut doings = Doings::new(Instant::now());
        assert!(doings.look(Instant::now(), || vec![own]) && doings.memory() > 0);
        assert!(!doings.look(Instant::now(), || vec![own]));
    }
}
