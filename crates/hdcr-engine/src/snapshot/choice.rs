//! Which processes are copied ahead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustix::fs::FileType;

use crate::checkpoint::SnapshotRequest;
use crate::ids::Pid;
use crate::memory::kin;
use crate::procfs;
use crate::resource::FileView;
use crate::snapshot::space::Span;
use crate::survey::Look;
use crate::task::TaskView;

/// A process with less memory of its own is read in the stop: following it would take longer than copying it.
const SMALL: u64 = 16 << 20;
/// The same for one that is followed already when the next image is made.
const SMALL_IN_SERIES: u64 = 1 << 20;
/// `O_DIRECT` (x86-64).
const DIRECT: u64 = 0o40_000;

/// A process as the choice sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Weight {
    /// Memory of its own, in bytes.
    pub(crate) size: u64,
    /// The same without what it shares since a fork, when its parent is in the tree: that is read once, in the stop.
    pub(crate) alone: u64,
    /// It has a file open past the page cache: a device may write into its memory behind its page table.
    pub(crate) direct: bool,
}

/// Weighs the processes of a look.
pub(crate) fn weigh(look: &Look) -> BTreeMap<Pid, Weight> {
    let size_of = |task: &TaskView| {
        let kib = |key| task.status.number(key).unwrap_or(0);
        kib("RssAnon").saturating_add(kib("VmSwap")).saturating_mul(1024)
    };
    let sizes: BTreeMap<Pid, u64> =
        look.tasks.iter().filter(|task| task.leads()).map(|task| (task.pid, size_of(task))).collect();
    let direct = past_the_cache(look);
    let mut seen = None;
    let mut weights = BTreeMap::new();
    for task in look.tasks.iter().filter(|task| task.leads()) {
        let size = size_of(task);
        let direct = direct.contains(&task.pid);
        let parent = task.status.number("PPid").and_then(|pid| i32::try_from(pid).ok()).map(Pid);
        let shares = size >= SMALL && parent.and_then(|parent| sizes.get(&parent)).is_some_and(|size| *size >= SMALL);
        let shares = shares && *seen.get_or_insert_with(kin::frames_are_shown);
        let alone = if shares { unshared(task.pid).unwrap_or(size).min(size) } else { size };
        weights.insert(task.pid, Weight { size, alone, direct });
    }
    weights
}

/// Bytes of memory that nobody else has.
fn unshared(pid: Pid) -> Option<u64> {
    let text = procfs::read(pid, "smaps_rollup").ok()?;
    let text = String::from_utf8_lossy(&text);
    let kib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    let dirty = kib("Private_Dirty:")?.saturating_add(kib("SwapPss:").unwrap_or(0));
    Some(dirty.saturating_add(kib("Private_Clean:").unwrap_or(0)).saturating_mul(1024))
}

/// Processes with a file open past the page cache.
pub(crate) fn past_the_cache(look: &Look) -> BTreeSet<Pid> {
    look.files.iter().filter(|file| reads_past_the_cache(file)).map(|file| file.pid).collect()
}

/// The flag means something else for a pipe.
fn reads_past_the_cache(file: &FileView) -> bool {
    let kind = FileType::from_raw_mode(file.stat.st_mode);
    file.info.flags & DIRECT != 0 && matches!(kind, FileType::RegularFile | FileType::BlockDevice)
}

/// The processes that are copied ahead.
pub(crate) fn ahead(wanted: SnapshotRequest, span: Span, weights: &BTreeMap<Pid, Weight>) -> Vec<Pid> {
    let least = match (wanted, span) {
        (SnapshotRequest::Copy | SnapshotRequest::Fork, _) => return Vec::new(),
        (SnapshotRequest::Auto, Span::OneImage) => SMALL,
        (SnapshotRequest::Auto, Span::Series) => SMALL_IN_SERIES,
        (SnapshotRequest::Ahead, _) => 0,
    };
    let counts = |weight: &Weight| if span == Span::Series { weight.size } else { weight.alone };
    let fits = |weight: &Weight| counts(weight) >= least && !weight.direct;
    for (pid, weight) in weights {
        let way = match weight {
            Weight { direct: true, .. } => "read in the stop, as a file is open past the page cache",
            weight if fits(weight) => "copied while it runs",
            weight if weight.alone < weight.size => "read in the stop, as it shares most of it since a fork",
            _ => "read in the stop, as it is small",
        };
        tracing::debug!("memory: process {pid}, {} MiB: {way}", weight.size >> 20);
    }
    weights.iter().filter(|(_, weight)| fits(weight)).map(|(pid, _)| *pid).collect()
}

/// Pages that are copied in a second, as an estimate for what has not begun: 1 GiB.
const COPIED: u64 = 262_144;

/// How long to look at what is written before so many pages are copied: a sixteenth of the time that the copy takes.
pub(crate) fn look_for(held: u64) -> Duration {
    const LEAST: Duration = Duration::from_millis(2);
    const MOST: Duration = Duration::from_millis(30);
    (Duration::from_secs(1) / 16).mul_f64(ratio(held, COPIED)).clamp(LEAST, MOST)
}

/// Whether a process that has written so many of its pages in that time writes faster than it is copied: what a second round
/// would find is no less than three quarters of what the first one did. Only what is too much for the stop counts.
pub(crate) fn too_fast(seen: u64, held: u64, took: Duration) -> bool {
    let rounds = Duration::from_secs(1).mul_f64(ratio(held, COPIED)).div_duration_f64(took);
    let again = ratio(seen, held) * rounds;
    too_much(held, held) && again > 0.75
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// What is left when a process writes faster than it can be copied ahead: reading so much in the stop takes longer than
/// copying its page tables, which takes as long as reading one page in sixteen, and it is copied by fork.
pub(crate) fn too_much(left: u64, held: u64) -> bool {
    const MANY: u64 = 4096;
    left > MANY && left > held / 8
}

/// The processes that are copied by fork on demand.
pub(crate) fn forks(wanted: SnapshotRequest, weights: &BTreeMap<Pid, Weight>) -> Vec<Pid> {
    let all = if wanted == SnapshotRequest::Fork { Some(weights.keys()) } else { None };
    all.into_iter().flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_processes_without_direct_files_are_copied_ahead() {
        let weight = |size, direct| Weight { size, alone: size, direct };
        let weights = BTreeMap::from([
            (Pid(1), weight(1 << 20, false)),
            (Pid(2), weight(64 << 20, false)),
            (Pid(3), weight(64 << 20, true)),
        ]);
        let once = Span::OneImage;
        assert_eq!(ahead(SnapshotRequest::Auto, once, &weights), [Pid(2)]);
        assert_eq!(ahead(SnapshotRequest::Auto, Span::Series, &weights), [Pid(1), Pid(2)]);
        assert_eq!(ahead(SnapshotRequest::Ahead, once, &weights), [Pid(1), Pid(2)]);
        assert_eq!(ahead(SnapshotRequest::Copy, Span::Series, &weights), []);
        assert_eq!(ahead(SnapshotRequest::Fork, once, &weights), []);
        assert_eq!(forks(SnapshotRequest::Fork, &weights), [Pid(1), Pid(2), Pid(3)]);
        assert_eq!(forks(SnapshotRequest::Auto, &weights), []);
    }

    #[test]
    fn who_writes_all_of_it_while_it_is_copied_is_too_fast() {
        let (page_of_gib, look) = (262_144, look_for(262_144));
        assert_eq!(look, Duration::from_millis(30));
        // 200 MiB/s of 1 GiB, and 3 GiB/s.
        assert!(!too_fast(1536, page_of_gib, look));
        assert!(too_fast(23_000, page_of_gib, look));
        // All of a little is read in the stop; nothing is not written fast.
        assert!(!too_fast(4000, 4000, look) && !too_fast(0, 0, look) && !too_fast(0, page_of_gib, look));
    }

    #[test]
    fn what_is_shared_since_a_fork_is_not_copied_ahead_for_each() {
        let weight = |alone| Weight { size: 64 << 20, alone, direct: false };
        let weights = BTreeMap::from([(Pid(1), weight(64 << 20)), (Pid(2), weight(1 << 20))]);
        assert_eq!(ahead(SnapshotRequest::Auto, Span::OneImage, &weights), [Pid(1)]);
        // Who is followed from image to image is read for what it wrote alone.
        assert_eq!(ahead(SnapshotRequest::Auto, Span::Series, &weights), [Pid(1), Pid(2)]);
    }

    #[test]
    fn memory_of_its_own_is_counted() {
        let own = Pid(std::process::id().cast_signed());
        assert!(unshared(own).is_some_and(|size| size > 0));
    }

    #[test]
    fn much_that_is_left_is_copied_by_fork() {
        assert!(too_much(40_000, 262_144));
        assert!(!too_much(30_000, 262_144) && !too_much(4000, 8000));
    }
}
