//! The fields of `/proc/PID/stat` and `status` that a restore must keep, and how those that move are made comparable.

use std::fs;
use std::path::Path;

/// Field numbers of `proc_pid_stat(5)` that are facts about the process; of the root the parent is the restorer.
const FACTS: [(usize, &str); 19] = [
    (5, "pgrp"),
    (6, "session"),
    (7, "tty_nr"),
    (8, "tpgid"),
    (20, "num_threads"),
    (26, "startcode"),
    (27, "endcode"),
    (28, "startstack"),
    (38, "exit_signal"),
    (45, "start_data"),
    (46, "end_data"),
    (47, "start_brk"),
    (48, "arg_start"),
    (49, "arg_end"),
    (50, "env_start"),
    (51, "env_end"),
    (52, "exit_code"),
    (4, "ppid"),
    (3, "state"),
];

/// Those that belong to a thread.
const SCHEDULING: [(usize, &str); 4] = [(18, "priority"), (19, "nice"), (40, "rt_priority"), (41, "policy")];

/// Lines of `status` that measure instead of state: sizes that follow from use, counters, queue lengths of the user.
const MEASURES: [&str; 22] = [
    "VmPeak",
    "VmSize",
    "VmHWM",
    "VmRSS",
    "RssAnon",
    "RssFile",
    "RssShmem",
    "VmData",
    "VmStk",
    "VmExe",
    "VmLib",
    "VmPTE",
    "VmSwap",
    "FDSize",
    "SigQ",
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
    "CoreDumping",
    "State",
    "PPid",
    "HugetlbPages",
    "Kthread",
];

/// The facts of a process.
pub(super) fn stat(path: &Path, is_root: bool) -> Vec<(&'static str, String)> {
    let words = words(path);
    let facts = FACTS.iter().filter(|(_, name)| !(is_root && *name == "ppid"));
    facts
        .map(|&(number, name)| {
            let value = field(&words, number);
            (name, if name == "state" { lasting(&value) } else { value })
        })
        .collect()
}

/// The facts of a thread.
pub(super) fn scheduling(path: &Path) -> Vec<(&'static str, String)> {
    let words = words(path);
    SCHEDULING.iter().map(|&(number, name)| (name, field(&words, number))).collect()
}

/// The lines of `status` that are facts.
pub(super) fn status(path: &Path, is_root: bool) -> Vec<(String, String)> {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let zombie = lines.clone().any(|(name, value)| name == "State" && value.trim_start().starts_with('Z'));
    // What the dead did about signals is nobody's business any more.
    let of_the_dead = |name: &str| zombie && (name.starts_with("Sig") || name == "ShdPnd");
    lines
        .filter(|(name, _)| !MEASURES.contains(name) || (*name == "PPid" && !is_root))
        .filter(|(name, _)| !of_the_dead(name))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Whether a thread runs, would run, or waits for a disk: what it is at may be over in an instant.
pub(super) fn at_work(path: &Path) -> bool {
    matches!(field(&words(path), 3).as_str(), "R" | "D")
}

/// Running and the kinds of sleeping come and go; stopped and dead are states to keep.
fn lasting(state: &str) -> String {
    match state {
        "T" | "Z" | "X" | "t" => state,
        _ => "alive",
    }
    .to_owned()
}

/// The words from the third field on: the second may hold spaces and parentheses.
fn words(path: &Path) -> Vec<String> {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(str::to_owned).collect()
}

fn field(words: &[String], number: usize) -> String {
    let at = number.checked_sub(3);
    at.and_then(|at| words.get(at)).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat");
        fs::write(&path, "42 (a) b) (c) S 1 42 43 0 -1 4194304").unwrap();
        let facts = stat(&path, false);
        assert!(facts.contains(&("pgrp", "42".to_owned())));
        assert!(facts.contains(&("session", "43".to_owned())));
        assert!(facts.contains(&("ppid", "1".to_owned())));
        assert!(facts.contains(&("state", "alive".to_owned())));
    }

    #[test]
    fn measures_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status");
        fs::write(&path, "Name:\tx\nVmRSS:\t 5 kB\nPPid:\t1\nSigBlk:\t00\n").unwrap();
        let names = |is_root| status(&path, is_root).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
        assert_eq!(names(true), ["Name", "SigBlk"]);
        assert_eq!(names(false), ["Name", "PPid", "SigBlk"]);
    }
}
