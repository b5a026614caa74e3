//! Whether a process may have a copy of itself beside it for a while: its program must not come to a limit by that which it
//! would not have come to alone.

use std::fs;
use std::path::{Path, PathBuf};

use crate::ids::Pid;
use crate::procfs;

/// So many tasks must still fit below every limit.
const TASKS: u64 = 64;

/// Why a process of this size gets no copy; `None`: it may have one.
pub(crate) fn why_not(pid: Pid, size: u64) -> Option<&'static str> {
    if strict() {
        return Some("the machine promises no more memory than it has");
    }
    if available().is_none_or(|available| available < size) {
        return Some("the machine could not hold its memory twice");
    }
    let processes = procfs::limits(pid).ok().and_then(|limits| limits.get("Max processes")?.0);
    let most = number(Path::new("/proc/sys/kernel/pid_max")).into_iter().chain(processes).min();
    if most.zip(tasks()).is_none_or(|(most, tasks)| tasks.saturating_add(TASKS) > most) {
        return Some("few processes more may be made");
    }
    groups(pid).iter().find_map(|group| full(group, size))
}

fn strict() -> bool {
    number(Path::new("/proc/sys/vm/overcommit_memory")) == Some(2)
}

fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// All tasks of the machine: more than those of any user.
fn tasks() -> Option<u64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_ascii_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// The control groups of a process, as folders, with those around them.
fn groups(pid: Pid) -> Vec<PathBuf> {
    let text = procfs::read(pid, "cgroup").unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut all = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(kinds), Some(path)) = (parts.next(), parts.next()) else { continue };
        let top = Path::new("/sys/fs/cgroup").join(kinds);
        let group = top.join(path.trim_start_matches('/'));
        all.extend(group.ancestors().take_while(|folder| folder.starts_with(&top)).map(Path::to_owned));
    }
    all
}

fn full(group: &Path, size: u64) -> Option<&'static str> {
    let room = |most: &str, now: &str| Some(number(&group.join(most))?.saturating_sub(number(&group.join(now))?));
    if room("pids.max", "pids.current").is_some_and(|room| room < TASKS) {
        return Some("its control group may hold few processes more");
    }
    let memory = room("memory.max", "memory.current");
    let memory = memory.or_else(|| room("memory.limit_in_bytes", "memory.usage_in_bytes"));
    memory.is_some_and(|room| room < size).then_some("its control group could not hold its memory twice")
}

/// `None` also where there is no limit (`max`).
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_a_copy_of_more_than_there_is() {
        let own = Pid(std::process::id().try_into().unwrap());
        assert!(why_not(own, u64::MAX).is_some());
        assert!(available().unwrap() > 0 && tasks().unwrap() > 0);
    }

    #[test]
    fn a_full_group_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        put("pids.max", "max\n");
        put("pids.current", "70\n");
        put("memory.max", "1000000\n");
        put("memory.current", "900000\n");
        assert_eq!(full(folder.path(), 100_000), None);
        assert!(full(folder.path(), 100_001).unwrap().contains("memory"));
        put("pids.max", "100\n");
        assert!(full(folder.path(), 0).unwrap().contains("processes"));
    }
}
