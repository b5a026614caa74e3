//! Checkpoints on top of one another, as often as that: what they cost the program, the disk and the processor. Each program
//! runs by itself first and after, so that its loss is against the same machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::bench::subjects::{Running, Subject, Tick, all, ticks_of};
use crate::bench::{BenchArgs, Place, busy, say};
use crate::wait;

/// The programs, and how often.
const ROWS: [(&str, &str); 6] = [
    ("memhog 1 GiB, 50 MiB/s", "10ms"),
    ("memhog 1 GiB, 50 MiB/s", "100ms"),
    ("memhog 1 GiB, 200 MiB/s", "100ms"),
    ("memhog 64 MiB, 50 MiB/s", "10ms"),
    ("redis, benchmark", "100ms"),
    ("redis, benchmark", "1s"),
];
/// Seconds of a program by itself.
const ALONE: usize = 5;
/// Checkpoints that are not counted: the first is a whole one.
const FIRST: usize = 3;
/// For a program to begin, and to end.
const LIMIT: Duration = Duration::from_mins(2);

/// One program at one pace.
#[derive(Debug, Serialize)]
struct Row {
    subject: &'static str,
    every: &'static str,
    /// Load average over one minute when it began.
    busy: String,
    seconds: usize,
    checkpoints: usize,
    a_second: f64,
    stop_median_us: u64,
    stop_p99_us: u64,
    stopped_percent: f64,
    /// Of the turns that the program makes by itself.
    lost_percent: f64,
    gap_us: u64,
    /// Of one checkpoint, the median.
    read_kib: u64,
    added_kib: u64,
    worked_us: u64,
    store_mib: u64,
}

/// What one checkpoint said of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Made {
    stopped_us: u64,
    read: u64,
    added: u64,
    worked_us: u64,
}

/// Measures and tells.
pub(super) fn run(args: &BenchArgs, hdcr: &Path, place: &Place) -> Result<bool> {
    let subjects = all(place)?;
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| name.starts_with(only));
    let mut rows = Vec::new();
    for (name, every) in ROWS.iter().filter(|(name, _)| wanted(name)) {
        let Some(subject) = subjects.iter().find(|subject| subject.name == *name) else { continue };
        say(&format!("{name}, every {every}"), true)?;
        rows.push(measure(args, hdcr, place, (subject, every)).with_context(|| format!("{name}, every {every}"))?);
    }
    ensure!(!rows.is_empty(), "no program has such a name");
    if args.quiet() {
        say(&serde_json::to_string(&rows)?, false)?;
        return Ok(true);
    }
    if let Some(file) = &args.json {
        fs::write(file, serde_json::to_string_pretty(&rows)?)?;
    }
    for row in &rows {
        say(&words(row), false)?;
    }
    Ok(true)
}

fn words(row: &Row) -> String {
    let ms = |us: u64| Duration::from_micros(us).as_secs_f64() * 1000.0;
    format!(
        "{}, every {}: {:.1} a second for {} s, stop {:.2} ms (p99 {:.2}), stopped {:.1} %, program lost {:.1} %, its longest \
         gap {:.1} ms; each reads {} KiB, adds {} KiB, takes {:.2} ms of processor; store {} MiB; load {}",
        row.subject,
        row.every,
        row.a_second,
        row.seconds,
        ms(row.stop_median_us),
        ms(row.stop_p99_us),
        row.stopped_percent,
        row.lost_percent,
        ms(row.gap_us),
        row.read_kib,
        row.added_kib,
        ms(row.worked_us),
        row.store_mib,
        row.busy
    )
}

fn measure(args: &BenchArgs, hdcr: &Path, place: &Place, (subject, every): (&Subject, &'static str)) -> Result<Row> {
    let busy = busy();
    let before = alone(subject, place)?;
    let store = tempfile::Builder::new().prefix("hdcr-often-").tempdir_in("/dev/shm")?;
    let folder = place.folder.join("often");
    let mut job = Job::start((subject, every), hdcr, store.path(), &folder)?;
    wait::until("the first checkpoints", LIMIT, || {
        job.lives()?;
        Ok((job.made().len() > FIRST).then_some(()))
    })?;
    let (made, ticks) = (job.made().len(), job.ticks().len());
    wait::until("so many seconds", LIMIT + Duration::from_secs(args.seconds as u64), || {
        job.lives()?;
        Ok((job.ticks().len() >= ticks + args.seconds).then_some(()))
    })?;
    let (all, seconds) = (job.made(), job.ticks());
    let store_mib = size_of(store.path())? >> 20;
    job.end()?;
    let after = alone(subject, place)?;
    let all = all.get(made..).unwrap_or_default();
    let seconds = seconds.get(ticks..).unwrap_or_default();
    let turns = |ticks: &[Tick]| median(ticks.iter().map(|tick| tick.turns));
    let own = u64::midpoint(turns(&before), turns(&after));
    let of = |value: fn(&Made) -> u64| all.iter().map(value);
    let stops: u64 = of(|made| made.stopped_us).sum();
    let time = exact(seconds.len() as u64);
    Ok(Row {
        subject: subject.name,
        every,
        busy,
        seconds: seconds.len(),
        checkpoints: all.len(),
        a_second: exact(all.len() as u64) / time,
        stop_median_us: median(of(|made| made.stopped_us)),
        stop_p99_us: part(of(|made| made.stopped_us), 99),
        stopped_percent: Duration::from_micros(stops).as_secs_f64() / time * 100.0,
        lost_percent: 100.0 - exact(turns(seconds)) / exact(own.max(1)) * 100.0,
        gap_us: seconds.iter().map(|tick| tick.gap_us).max().unwrap_or(0),
        read_kib: median(of(|made| made.read)) >> 10,
        added_kib: median(of(|made| made.added)) >> 10,
        worked_us: median(of(|made| made.worked_us)),
        store_mib,
    })
}

/// Some seconds of a program by itself.
fn alone(subject: &Subject, place: &Place) -> Result<Vec<Tick>> {
    let folder = place.folder.join("alone");
    fs::remove_dir_all(&folder).ok();
    let running = Running::start(subject, &folder)?;
    running.ticks_after(1, ALONE)
}

/// A program under a keeper.
#[derive(Debug)]
struct Job {
    keeper: Child,
    folder: PathBuf,
}

impl Job {
    fn start((subject, every): (&Subject, &str), hdcr: &Path, store: &Path, folder: &Path) -> Result<Self> {
        fs::remove_dir_all(folder).ok();
        fs::create_dir_all(folder)?;
        let keeper = Command::new(hdcr)
            .args(["--json", "-v", "run", "--name", "often", "--every", every, "--increments", "on", "--ends", "close"])
            .args(["--restarts", "0", "--"])
            .args(&subject.command)
            .env("HDCR_STORE", store)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(File::create(folder.join("ticks"))?)
            .stderr(File::create(folder.join("says"))?)
            .spawn()
            .context("start hdcr")?;
        Ok(Self { keeper, folder: folder.to_owned() })
    }

    fn lives(&mut self) -> Result<()> {
        if let Some(status) = self.keeper.try_wait()? {
            anyhow::bail!("the job ended ({status}): {}", fs::read_to_string(self.folder.join("says"))?.trim());
        }
        Ok(())
    }

    fn made(&self) -> Vec<Made> {
        let text = fs::read_to_string(self.folder.join("says")).unwrap_or_default();
        text.lines().filter_map(made_in).collect()
    }

    fn ticks(&self) -> Vec<Tick> {
        ticks_of(&self.folder.join("ticks"))
    }

    fn end(mut self) -> Result<()> {
        let pid = Pid::from_raw(self.keeper.id().cast_signed()).context("a pid")?;
        kill_process(pid, Signal::TERM)?;
        wait::end_of(&mut self.keeper, "the job", LIMIT)?;
        Ok(())
    }
}

/// A line in which a keeper tells of a checkpoint.
fn made_in(line: &str) -> Option<Made> {
    let told: serde_json::Value = serde_json::from_str(line).ok()?;
    let number = |key: &str| told["checkpoint"][key].as_u64();
    Some(Made {
        stopped_us: number("stopped_us")?,
        read: number("read")?,
        added: number("added")?,
        worked_us: number("worked_us")?,
    })
}

/// Counts here are far below what loses a digit.
fn exact(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

fn part(values: impl Iterator<Item = u64>, hundredths: usize) -> u64 {
    let mut all: Vec<u64> = values.collect();
    all.sort_unstable();
    all.get(all.len() * hundredths / 100).copied().unwrap_or(0)
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    part(values, 50)
}

/// Bytes of all files, each file once whatever it is called.
fn size_of(folder: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let (mut seen, mut total, mut folders) = (std::collections::BTreeSet::new(), 0, vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)?.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if seen.insert(metadata.ino()) {
                total += metadata.blocks() * 512;
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_is_understood() {
        let line = r#"{"checkpoint": {"snapshot": "a@2", "stopped_us": 5, "read": 7, "added": 6, "worked_us": 9}}"#;
        assert_eq!(made_in(line), Some(Made { stopped_us: 5, read: 7, added: 6, worked_us: 9 }));
        assert_eq!((made_in("something else"), made_in("{\"note\": 1}")), (None, None));
        assert_eq!((median([3, 1, 2].into_iter()), part([3, 1, 2].into_iter(), 99)), (2, 3));
    }
}
