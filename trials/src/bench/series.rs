//! The rounds: in each, every tool in turn checkpoints and restores a program of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::fs::syncfs;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::bench::figures::{Act, Row, Sample, rows};
use crate::bench::limit::{self, Limits};
use crate::bench::rival::{self, Cost, Request, Rival, remove};
use crate::bench::subjects::{self, Running, Subject};
use crate::bench::{BenchArgs, Place, busy, page, say, table};

/// What is said beside the figures of CRIU.
pub(super) const NOTE: &str = "This kernel does not track written pages for CRIU (no soft-dirty), so CRIU has no \
                               pre-dump here: each of its checkpoints is a whole one, made while the program stands still.";

/// All that a run tells.
#[derive(Debug, Serialize)]
pub(super) struct Bench {
    pub(super) machine: Machine,
    pub(super) note: &'static str,
    /// GiB/s.
    pub(super) limits: Option<Limits>,
    pub(super) rows: Vec<Row>,
    pub(super) samples: Vec<Sample>,
    /// Tools that failed at a program, and why.
    pub(super) failures: BTreeMap<String, String>,
}

/// Where it ran.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) processor: String,
    pub(super) cores: usize,
    pub(super) memory_mib: u64,
    /// Seconds since 1970.
    pub(super) began: i64,
    pub(super) busy_before: String,
    pub(super) busy_after: String,
}

impl Machine {
    fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo");
        let model = processor.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(':')).map_or("unknown", |(_, name)| name.trim());
        let memory = read("/proc/meminfo");
        let kib = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.to_owned(),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_mib: kib.unwrap_or(0) / 1024,
            began: clock_gettime(ClockId::Realtime).tv_sec,
            busy_before: busy(),
            busy_after: String::new(),
        }
    }
}

/// Measures and tells; true when each tool of ours could do all.
pub(super) fn run(args: &BenchArgs, rivals: &[Rival], place: &Place) -> Result<bool> {
    let measure = place.compile("measure.c", "measure", &[])?;
    let copying = place.compile("copying.c", "copying", &[])?;
    let wanted = |subject: &Subject| args.only.is_empty() || args.only.iter().any(|o| subject.name.starts_with(o));
    let subjects: Vec<Subject> = subjects::all(place)?.into_iter().filter(wanted).collect();
    ensure!(!subjects.is_empty(), "no program has such a name");
    let memory = tempfile::Builder::new().prefix("hdcr-bench-").tempdir_in("/dev/shm")?;
    let disk = tempfile::Builder::new().prefix("hdcr-bench-").tempdir_in(&place.folder)?;
    let mut bench = Bench {
        machine: Machine::look(),
        note: NOTE,
        limits: None,
        rows: Vec::new(),
        samples: Vec::new(),
        failures: BTreeMap::new(),
    };
    let mut limits = Vec::new();
    for round in 0..args.rounds {
        limits.push(Limits::measure(memory.path(), disk.path(), &copying)?);
        for subject in &subjects {
            if subjects::free_mib().is_some_and(|free| free < subject.needs) {
                bench.failures.insert(subject.name.to_owned(), "not enough free memory".to_owned());
                continue;
            }
            for rival in rivals {
                let key = format!("{}: {}", subject.name, rival.name());
                if bench.failures.contains_key(&key) {
                    continue;
                }
                say(&format!("round {}: {key}", round + 1), true)?;
                let turn = Turn { subject, rival, round, measure: &measure, memory: memory.path(), disk: disk.path() };
                if let Err(error) = turn.all(&mut bench.samples) {
                    say(&format!("{key} failed: {error:#}"), true)?;
                    bench.failures.insert(key, format!("{error:#}"));
                }
            }
        }
        // What was measured so far is kept if this run is ended.
        bench.limits = limit::median(&limits);
        bench.rows = rows(&bench.samples);
        bench.machine.busy_after = busy();
        write(args, &bench)?;
    }
    tell(args, &bench)?;
    Ok(!bench.failures.keys().any(|key| key.ends_with(": hdcr")))
}

/// The files that were asked for.
fn write(args: &BenchArgs, bench: &Bench) -> Result<()> {
    if let Some(file) = &args.html {
        fs::write(file, page::html(bench)).with_context(|| format!("write {}", file.display()))?;
    }
    if let Some(file) = args.json.as_ref().filter(|_| !args.quiet()) {
        let text = serde_json::to_string_pretty(bench)?;
        fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn tell(args: &BenchArgs, bench: &Bench) -> Result<()> {
    if args.quiet() { say(&serde_json::to_string(bench)?, false) } else { table::print(bench) }
}

/// One tool with one program in one round.
#[derive(Debug)]
struct Turn<'a> {
    subject: &'a Subject,
    rival: &'a Rival,
    round: usize,
    measure: &'a Path,
    memory: &'a Path,
    disk: &'a Path,
}

impl Turn<'_> {
    fn all(&self, samples: &mut Vec<Sample>) -> Result<()> {
        let folder = self.disk.join("program");
        remove(&folder)?;
        let running = Running::start(self.subject, &folder)?;
        self.twice(&running, self.memory, (Act::Checkpoint, Act::Recycled), samples)?;
        self.twice(&running, self.disk, (Act::Durable, Act::DurableRecycled), samples)?;
        samples.push(self.restore(&running, &self.memory.join("image"), Act::Restore)?);
        if self.rival.name() == "hdcr" {
            samples.push(self.restore(&running, &self.memory.join("image"), Act::Lazy)?);
        }
        drop(running);
        remove(&self.memory.join("image"))
    }

    /// A checkpoint into a new file, and one over an old one.
    fn twice(
        &self,
        running: &Running,
        folder: &Path,
        (first, again): (Act, Act),
        samples: &mut Vec<Sample>,
    ) -> Result<()> {
        let image = folder.join("image");
        samples.push(self.checkpoint(running, &image, first)?);
        if let Rival::Hdcr(_) = self.rival {
            // The first one makes way for this, and is then there to be written over.
            let request = Request { pid: running.pid, image: &image, ends: false, over: true };
            self.rival.checkpoint(&request, self.disk, self.measure)?;
        }
        samples.push(self.checkpoint(running, &image, again)?);
        remove(&folder.join(".image.free"))?;
        remove(&image)
    }

    /// A checkpoint of a program that runs on.
    fn checkpoint(&self, running: &Running, image: &PathBuf, act: Act) -> Result<Sample> {
        let before = running.ticks();
        let begun = Instant::now();
        let busy = busy();
        let over = matches!(act, Act::Recycled | Act::DurableRecycled);
        let request = Request { pid: running.pid, image, ends: false, over };
        let mut cost = self.rival.checkpoint(&request, self.disk, self.measure)?;
        if act.is_durable() && self.rival.name() == "criu" {
            // It does not do so itself.
            syncfs(fs::File::open(image)?)?;
            cost.wall_us = u64::try_from(begun.elapsed().as_micros())?;
        }
        let known = running.ticks().len();
        // The first of them may still be about this checkpoint, the last two are quiet.
        running.ticks_after(known, 3)?;
        let during = running.ticks().into_iter().skip(before.len());
        let mut sample = self.sample(act, busy, cost);
        sample.gap_us = during.map(|tick| tick.gap_us).max();
        sample.idle_gap_us = before.iter().rev().take(2).map(|tick| tick.gap_us).max();
        Ok(sample)
    }

    /// A checkpoint that ends the program, and its restore.
    fn restore(&self, running: &Running, image: &PathBuf, act: Act) -> Result<Sample> {
        let memory_before = running.memory_kib();
        let request = Request { pid: running.pid, image, ends: true, over: false };
        self.rival.checkpoint(&request, self.disk, self.measure)?;
        running.gone()?;
        let known = running.ticks().len();
        let busy = busy();
        let begun = monotonic_us();
        let cost = match act {
            Act::Lazy => self.rival.restore_lazily(image, self.disk, self.measure)?,
            Act::Checkpoint | Act::Recycled | Act::Durable | Act::DurableRecycled | Act::Restore => {
                self.rival.restore(image, self.disk, self.measure)?
            }
        };
        let mut filled = cost.wall_us;
        if act == Act::Lazy {
            rival::filled(self.disk)?;
            filled = monotonic_us().saturating_sub(begun);
        }
        let first = running.ticks_after(known, 2)?.into_iter().find(|tick| tick.ended_us >= begun);
        let mut sample = self.sample(act, busy, cost);
        sample.first_us = first.map(|tick| tick.ended_us.saturating_sub(begun));
        sample.filled_us = Some(filled);
        sample.memory_kib = memory_before.zip(running.memory_kib());
        sample.image_kib = None;
        Ok(sample)
    }

    fn sample(&self, act: Act, busy: String, cost: Cost) -> Sample {
        Sample {
            subject: self.subject.name,
            tool: self.rival.name(),
            act,
            round: self.round,
            busy,
            wall_us: cost.wall_us,
            stopped_us: cost.stopped_us,
            gap_us: None,
            idle_gap_us: None,
            first_us: None,
            filled_us: None,
            image_kib: Some(cost.image_bytes / 1024),
            peak_kib: cost.peak_kib,
            memory_kib: None,
        }
    }
}

fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000 + part(now.tv_nsec) / 1000
}
