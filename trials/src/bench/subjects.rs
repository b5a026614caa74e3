//! The programs that are measured: all tell their gaps as `trials/bench/ticks.h` says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::bench::Place;
use crate::wait;

/// How long a program may take to begin, or to tell of its next second.
const LIMIT: Duration = Duration::from_mins(2);

/// A program to be measured.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) name: &'static str,
    pub(super) command: Vec<String>,
    /// MiB that the machine must have free for it, its images included.
    pub(super) needs: u64,
}

/// A program with its memory, its rate, threads, and whether in huge pages.
const MEMHOGS: [(&str, &[&str], u64); 6] = [
    ("memhog 64 MiB, 50 MiB/s", &["64", "50"], 1 << 10),
    ("memhog 1 GiB, 50 MiB/s", &["1024", "50"], 4 << 10),
    ("memhog 1 GiB, 200 MiB/s", &["1024", "200"], 4 << 10),
    ("memhog 1 GiB THP, 50 MiB/s", &["1024", "50", "4", "thp"], 4 << 10),
    ("memhog 4 GiB, 50 MiB/s", &["4096", "50"], 14 << 10),
    ("threads 500", &["64", "50", "500"], 2 << 10),
];

/// All of them that this machine can run.
pub(super) fn all(place: &Place) -> Result<Vec<Subject>> {
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let words = |first: PathBuf, more: &[&str]| {
        let more = more.iter().map(|word| (*word).to_owned());
        std::iter::once(text(first)).chain(more).collect::<Vec<String>>()
    };
    let memhog = place.compile("memhog.c", "memhog", &[])?;
    let mut all = Vec::new();
    for (name, arguments, needs) in MEMHOGS {
        all.push(Subject { name, command: words(memhog.clone(), arguments), needs });
    }
    let family = place.compile("family.c", "family", &[])?;
    all.push(Subject { name: "tree 50, 16 MiB heap", command: words(family, &["50", "16"]), needs: 4 << 10 });
    let python = PathBuf::from("/usr/bin/python3");
    let numpy = Command::new(&python).args(["-c", "import numpy"]).stderr(Stdio::null()).status();
    if numpy.is_ok_and(|status| status.success()) {
        let script = text(place.sources.join("bench/matrices.py"));
        all.push(Subject { name: "numpy 208 MiB", command: words(python, &[&script]), needs: 2 << 10 });
    }
    let pulse = text(place.compile("pulse.c", "pulse", &[])?);
    let redis = Command::new("redis-benchmark").arg("--version").stdout(Stdio::null()).status();
    if redis.is_ok_and(|status| status.success()) {
        let script = text(place.sources.join("bench/redis.sh"));
        all.push(Subject {
            name: "redis, benchmark",
            command: words(PathBuf::from("/bin/sh"), &[&script, &pulse]),
            needs: 2 << 10,
        });
    }
    Ok(all)
}

/// MiB that programs could have now.
pub(super) fn free_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

/// A second as the program saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tick {
    pub(super) gap_us: u64,
    /// On the monotonic clock.
    pub(super) ended_us: u64,
    /// How often it came by.
    pub(super) turns: u64,
}

/// A program that runs. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    /// Its first process, which leads its session.
    pub(super) pid: u32,
    folder: PathBuf,
}

impl Running {
    pub(super) fn start(subject: &Subject, folder: &Path) -> Result<Self> {
        let folder = folder.to_owned();
        fs::create_dir_all(&folder)?;
        let child = Command::new("setsid")
            .args(&subject.command)
            .current_dir(&folder)
            .env_remove("HDCR_STORE")
            .stdin(Stdio::null())
            .stdout(File::create(folder.join("ticks"))?)
            .stderr(File::create(folder.join("errors"))?)
            .spawn()
            .context("start a program by setsid")?;
        let running = Running { pid: child.id(), folder };
        running.ticks_after(0, 2)?;
        Ok(running)
    }

    /// What it told so far.
    pub(super) fn ticks(&self) -> Vec<Tick> {
        ticks_of(&self.folder.join("ticks"))
    }

    /// What it told after the first `known`, when that is at least `wanted` more.
    pub(super) fn ticks_after(&self, known: usize, wanted: usize) -> Result<Vec<Tick>> {
        wait::until("the next seconds of a program", LIMIT, || {
            let more: Vec<Tick> = self.ticks().into_iter().skip(known).collect();
            Ok((more.len() >= wanted).then_some(more))
        })
    }

    /// All its processes.
    pub(super) fn processes(&self) -> Vec<u32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
        numbers.filter(|pid| session_of(*pid) == Some(self.pid)).collect()
    }

    /// KiB of memory of all its processes, what they share counted once.
    pub(super) fn memory_kib(&self) -> Option<u64> {
        let of = |pid: u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
            let line = text.lines().find(|line| line.starts_with("Pss:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        self.processes().into_iter().map(of).sum()
    }

    /// Waits until none of its processes is left.
    pub(super) fn gone(&self) -> Result<()> {
        wait::until("the end of a program", LIMIT, || {
            let left = self.processes();
            for pid in &left {
                wait::reap(*pid);
            }
            Ok(left.is_empty().then_some(()))
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for pid in self.processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        self.gone().ok();
    }
}

fn session_of(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(3)?.parse().ok()
}

/// What a program told into a file.
pub(super) fn ticks_of(file: &Path) -> Vec<Tick> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.filter_map(tick_in).collect()
}

fn tick_in(line: &str) -> Option<Tick> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1)?.parse().ok()
    };
    Some(Tick { gap_us: after("max_gap_us")?, ended_us: after("ended_us")?, turns: after("turns").unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_second() {
        let tick = tick_in("tick 3 max_gap_us 1200 ended_us 77 turns 9\n");
        assert_eq!(tick, Some(Tick { gap_us: 1200, ended_us: 77, turns: 9 }));
        assert_eq!(tick_in("something else\n"), None);
    }
}
