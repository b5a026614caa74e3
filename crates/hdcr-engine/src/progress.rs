//! How far a checkpoint or a restore has come, told to whoever wants to watch; it costs nothing when nobody does.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::mechanism::FrozenProcess;
use crate::procfs;

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Memory is copied while the tree runs; what changes meanwhile is copied again.
    Copying,
    /// Memory and files of the stopped tree are read.
    Reading,
    /// What was read is written, while the tree runs.
    Writing,
    /// What was written is made durable; how long that takes nobody knows.
    Settling,
    /// Memory of the new tree is filled.
    Filling,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// What is being done.
    pub phase: Phase,
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all, as far as one can know; never less than `done`. What is copied again in rounds has no end that is known.
    pub total: u64,
    /// The round of copying; 0: it is not done in rounds.
    pub round: u32,
}

/// Who is told. It is called often, also while the tree stands still, and must not wait.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(Report) + Send + Sync>>);

impl Progress {
    /// Tells a function.
    pub fn to(told: impl Fn(Report) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(told)))
    }

    fn tell(&self, report: Report) {
        if let Some(told) = &self.0 {
            told(report);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(watched)" } else { "Progress" })
    }
}

/// Tells a curious user what was done, and how long each part of it took.
#[derive(Debug)]
pub struct Laps {
    what: &'static str,
    since: Instant,
}

impl Laps {
    /// Begins with the first part.
    pub fn begin(what: &'static str) -> Self {
        Self { what, since: Instant::now() }
    }

    /// This part is done, and the next one begins.
    pub fn done(&mut self, part: &str) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.since);
        tracing::debug!("{}: {part} ({:.1} ms)", self.what, took.as_secs_f64() * 1000.0);
        self.since = now;
    }
}

/// Counts the bytes of one phase.
#[derive(Debug)]
pub(crate) struct Meter {
    progress: Progress,
    phase: Phase,
    done: AtomicU64,
    total: u64,
    round: AtomicU32,
}

impl Meter {
    /// Begins a phase. `total` is asked for only when somebody watches.
    pub(crate) fn begin(progress: &Progress, phase: Phase, total: impl FnOnce() -> u64) -> Self {
        let total = if progress.0.is_some() { total() } else { 0 };
        let meter =
            Self { progress: progress.clone(), phase, done: AtomicU64::new(0), total, round: AtomicU32::new(0) };
        meter.add(0);
        meter
    }

    /// The next round begins.
    pub(crate) fn next_round(&self) {
        self.round.fetch_add(1, Ordering::Relaxed);
    }

    /// So many more bytes.
    pub(crate) fn add(&self, bytes: usize) {
        if self.progress.0.is_some() {
            let bytes = u64::try_from(bytes).unwrap_or(0);
            let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
            let round = self.round.load(Ordering::Relaxed);
            self.progress.tell(Report { phase: self.phase, done, total: self.total.max(done), round });
        }
    }
}

/// Memory that processes have of their own, in bytes: what a capture is going to read, as far as one can know.
pub(crate) fn own_memory(processes: &[FrozenProcess]) -> u64 {
    let kib = processes.iter().filter_map(|process| procfs::read(process.pid, "status").ok()).map(|status| {
        let lines = status.split(|byte| *byte == b'\n').map(String::from_utf8_lossy);
        let number = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
        lines
            .filter(|line| line.starts_with("RssAnon:") || line.starts_with("VmSwap:"))
            .filter_map(|l| number(&l))
            .sum()
    });
    kib.fold(0, u64::saturating_add).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::ids::Pid;

    #[test]
    fn bytes_are_counted_and_the_total_follows() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let progress =
            Progress::to(move |report| heard.lock().unwrap().push((report.done, report.total, report.round)));
        let meter = Meter::begin(&progress, Phase::Reading, || 10);
        meter.add(4);
        meter.next_round();
        meter.add(8);
        assert_eq!(*told.lock().unwrap(), [(0, 10, 0), (4, 10, 0), (12, 12, 1)]);
        Meter::begin(&Progress::default(), Phase::Writing, || unreachable!("nobody watches")).add(1);
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        let own = FrozenProcess { pid: Pid(std::process::id().cast_signed()), threads: Vec::new(), zombie: false };
        assert!(own_memory(&[own]) > 4096);
    }
}
