//! Want of memory: who is killed for it, and whether somebody was.
//!
//! In a control group with a limit (a batch job, a container) the kernel kills the process that a point system names, as a rule
//! the largest. A checkpoint is taken beside the program and can be lost, the program cannot: whoever takes one puts itself
//! first. Not so the keeper, which must live, nor who fills the memory of a program, without whom that is lost as well, nor who
//! restores: what it makes inherits its score.

use std::fs;
use std::path::PathBuf;

use crate::failure::{Class, Failure};

/// Code of that failure.
pub(crate) const CODE: &str = "no-memory";

/// This process is killed before all others when there is no memory (proc(5), `oom_score_adj`).
pub(crate) fn goes_first() {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "1000") {
        tracing::debug!(%error, "the program may be killed for memory of this process");
    }
}

/// How often the kernel has killed for want of memory in the control group of a process.
#[derive(Debug, Default)]
pub(crate) struct Shortage {
    counts: Vec<PathBuf>,
    seen: u64,
}

impl Shortage {
    /// As it stands now, where a living process is.
    pub(crate) fn of(pid: i32) -> Self {
        let text = |path: String| fs::read_to_string(path).unwrap_or_default();
        let counts = counts(&text("/proc/self/mountinfo".to_owned()), &text(format!("/proc/{pid}/cgroup")));
        let seen = kills(&counts);
        Self { counts, seen }
    }

    /// One of those that it has killed since was a worker.
    pub(crate) fn was_our_worker(&mut self) {
        self.seen = self.seen.saturating_add(1);
    }

    /// Whether it has killed since.
    pub(crate) fn has_killed(&self) -> bool {
        kills(&self.counts) > self.seen
    }
}

/// What is said of a process of ours that was killed.
pub(crate) fn failure(pid: i32) -> Failure {
    let message = format!("the kernel killed process {pid} of hdcr: the control group is out of memory");
    Failure::new(Class::Failed, CODE, message).remedy("raise its memory limit; a program that ran before is as it was")
}

fn kills(counts: &[PathBuf]) -> u64 {
    let text = counts.iter().filter_map(|path| fs::read_to_string(path).ok());
    text.filter_map(|text| kills_in(&text)).sum()
}

fn kills_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// The files that count, of the first and of the second version of control groups.
fn counts(mounts: &str, groups: &str) -> Vec<PathBuf> {
    let found = mounts.lines().filter_map(|mount| {
        let (place, kind) = mount.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, at) = (place.next()?, place.next()?);
        let mut kind = kind.split(' ');
        let (kind, options) = (kind.next()?, kind.nth(1)?);
        let (wanted, file) = match kind {
            "cgroup2" => ("", "memory.events"),
            "cgroup" if options.split(',').any(|option| option == "memory") => ("memory", "memory.oom_control"),
            _ => return None,
        };
        let group = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|one| one == wanted).then_some(path)
        })?;
        let below = if root == "/" { group } else { group.strip_prefix(root)? };
        Some(PathBuf::from(at).join(below.trim_start_matches('/')).join(file))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_count_are_found() {
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      41 31 0:38 /box /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n";
        let found = counts(mounts, "8:pids:/a\n4:memory:/jobs/7\n0::/box/b\n");
        let paths = ["/sys/fs/cgroup/memory/jobs/7/memory.oom_control", "/sys/fs/cgroup/unified/b/memory.events"];
        assert_eq!(found, paths.map(PathBuf::from));
        assert!(counts(mounts, "").is_empty());
        assert!(counts("", "0::/").is_empty());
    }

    #[test]
    fn kills_are_counted() {
        assert_eq!(kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(kills_in("low 0\noom 1\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(kills_in(""), None);
        assert!(!Shortage::of(std::process::id().cast_signed()).has_killed());
    }
}
