//! What each thread of a program adds to its stop, beside what the kernel asks for the single steps of that.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::bench::{BenchArgs, Place, busy, say};

/// Idle threads of a program; what they add is told by one that has a single one.
const THREADS: u32 = 500;
const ROUNDS: &str = "9";

/// One row: microseconds for one thread.
#[derive(Debug, PartialEq, Serialize)]
struct Row {
    what: String,
    us: f64,
}

/// What a checkpoint tells of itself.
#[derive(Debug, Deserialize)]
struct Told {
    stopped_us: u64,
}

/// Measures and tells.
pub(super) fn run(args: &BenchArgs, hdcr: &Path, place: &Place) -> Result<bool> {
    let program = place.compile("threads.c", "threads", &[])?;
    let before = busy();
    let mut rows = kernel(&program)?;
    let mut many = Subject::start(&program, THREADS)?;
    let mut one = Subject::start(&program, 1)?;
    let mut stops: [Vec<u64>; 2] = Default::default();
    for _ in 0..args.times {
        stops[0].push(many.stop(hdcr, place)?);
        stops[1].push(one.stop(hdcr, place)?);
    }
    let [many, one] = stops.map(median);
    rows.push(Row { what: "hdcr".to_owned(), us: for_each(many, one) });
    if args.quiet() {
        say(&serde_json::to_string(&rows)?, false)?;
        return Ok(true);
    }
    if let Some(file) = &args.json {
        fs::write(file, serde_json::to_string_pretty(&rows)?)?;
    }
    say(&format!("load before: {before}, after: {}; {THREADS} idle threads, medians", busy()), false)?;
    say(&format!("stop of hdcr: {many} us, with one thread {one} us"), false)?;
    say(&format!("{:<14}{:>14}", "step", "us a thread"), false)?;
    rows.iter().try_for_each(|Row { what, us }| say(&format!("{what:<14}{us:>14.1}"), false))?;
    Ok(true)
}

/// What one thread costs the kernel, step by step.
fn kernel(program: &Path) -> Result<Vec<Row>> {
    let out = Command::new(program).args([&THREADS.to_string(), ROUNDS]).output().context("start it")?;
    ensure!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    told(&String::from_utf8_lossy(&out.stdout))
}

fn told(text: &str) -> Result<Vec<Row>> {
    let line = |line: &str| {
        let (what, ns) = line.split_once(' ').with_context(|| format!("not a time: {line}"))?;
        Ok(Row { what: what.to_owned(), us: ns.parse::<f64>()? / 1e3 })
    };
    text.lines().map(line).collect()
}

/// What each of the threads adds.
fn for_each(many: u64, one: u64) -> f64 {
    let exact = |us: u64| u32::try_from(us).map_or(f64::INFINITY, f64::from);
    (exact(many) - exact(one)) / f64::from(THREADS - 1)
}

fn median(mut all: Vec<u64>) -> u64 {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or(0)
}

/// An idle program.
#[derive(Debug)]
struct Subject(Child);

impl Subject {
    fn start(program: &Path, threads: u32) -> Result<Self> {
        let mut command = Command::new(program);
        command.args([&threads.to_string(), "1", "program"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut subject = Self(command.spawn().context("start a program with threads")?);
        let mut line = String::new();
        BufReader::new(subject.0.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "it is not ready: {line:?}");
        Ok(subject)
    }

    /// How long it stands still for a checkpoint.
    fn stop(&mut self, hdcr: &Path, place: &Place) -> Result<u64> {
        let folder = tempfile::Builder::new().prefix("threads-").tempdir_in(&place.folder)?;
        let image = folder.path().join("image");
        let mut command = Command::new(hdcr);
        command.args(["--json", "checkpoint", &self.0.id().to_string(), "-o"]).arg(&image);
        let out = command.output().context("start hdcr")?;
        ensure!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stdout).trim());
        let told: Told = serde_json::from_slice(&out.stdout).context("what hdcr says of a checkpoint")?;
        Ok(told.stopped_us)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            say(&format!("a program with threads: {error}"), false).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_adds_is_told() {
        let rows = told("stop 20500\nstat 7000\n").unwrap();
        assert_eq!(rows, [Row { what: "stop".into(), us: 20.5 }, Row { what: "stat".into(), us: 7.0 }]);
        assert!(told("stop").is_err() && told("stop long").is_err());
        assert!((for_each(5_990, 1_000) - 10.0).abs() < 1e-9);
        assert_eq!(median(vec![3, 1, 2]), 2);
    }
}
