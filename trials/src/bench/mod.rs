//! Measurements beside CRIU, both in one run and in turns, so that both meet the same machine.

mod criu;
mod rival;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::bench::criu::Criu;
use crate::bench::rival::{Cost, Rival};
use crate::wait;

const LIMIT: Duration = Duration::from_secs(30);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// Small processes: checkpoint and restore.
    Small,
}

/// How it is measured.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    #[arg(value_enum)]
    what: Subject,
    /// How often each program is checkpointed and restored by each tool.
    #[arg(long, default_value_t = 15)]
    times: usize,
    /// Without CRIU.
    #[arg(long)]
    alone: bool,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// A row of the table.
#[derive(Debug, Serialize)]
struct Row {
    program: &'static str,
    tool: &'static str,
    act: &'static str,
    times: usize,
    wall_ms: Spread,
    stopped_ms: Option<Spread>,
    image_kib: u64,
    peak_kib: u64,
}

/// The least, the median and the most, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(microseconds: &mut [u64]) -> Option<Self> {
        microseconds.sort_unstable();
        let ms = |us: &u64| Duration::from_micros(*us).as_secs_f64() * 1000.0;
        Some(Spread {
            least: microseconds.first().map(ms)?,
            median: microseconds.get(microseconds.len() / 2).map(ms)?,
            most: microseconds.last().map(ms)?,
        })
    }

    fn text(self) -> String {
        format!("{:.1} ({:.1}-{:.1})", self.median, self.least, self.most)
    }
}

/// Measures and prints; true when all could be measured.
pub(crate) fn run(args: &BenchArgs, hdcr: Option<&Path>, sources: &Path, build: &Path) -> Result<bool> {
    let hdcr = fs::canonicalize(hdcr.context("no hdcr binary was given")?)?;
    let folder = build.join("bench");
    fs::create_dir_all(&folder)?;
    let folder = fs::canonicalize(folder)?;
    let measure = compile(&sources.join("bench/measure.c"), &folder.join("measure"), &[])?;
    let mut rivals = vec![Rival::Hdcr(hdcr)];
    if !args.alone {
        match Criu::get(&build.with_file_name("criu")) {
            Ok(criu) => {
                say(&format!("criu {}", criu.version()?), args.json)?;
                rivals.push(Rival::Criu(criu));
            }
            Err(error) => say(&format!("without criu: {error:#}"), args.json)?,
        }
    }
    let programs = programs(sources, &folder)?;
    say(&format!("load before: {}", load()), args.json)?;
    head(args.json)?;
    for program in &programs {
        let place = tempfile::Builder::new().prefix("hdcr-bench-").tempdir()?;
        for row in one_program(program, &rivals, args.times, &measure, place.path())? {
            print(&row, args.json)?;
        }
    }
    say(&format!("load after: {}", load()), args.json)?;
    Ok(true)
}

type Program = (&'static str, Vec<String>);

fn programs(sources: &Path, folder: &Path) -> Result<Vec<Program>> {
    let source = sources.join("bench/quiet.c");
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let mut all = vec![
        ("static C", vec![text(compile(&source, &folder.join("quiet-static"), &["-static"])?)]),
        ("dynamic C", vec![text(compile(&source, &folder.join("quiet"), &[])?)]),
    ];
    let python = PathBuf::from("/usr/bin/python3");
    if python.exists() {
        let script = fs::canonicalize(sources.join("bench/quiet.py"))?;
        all.push(("python3", vec![text(python), text(script)]));
    }
    Ok(all)
}

fn compile(source: &Path, into: &Path, flags: &[&str]) -> Result<PathBuf> {
    let out = Command::new("gcc").args(["-O1", "-Wall"]).args(flags).arg("-o").arg(into).arg(source).output()?;
    ensure!(out.status.success(), "gcc: {}", String::from_utf8_lossy(&out.stderr));
    Ok(into.to_owned())
}

/// Every tool in turn takes down and brings back a program of its own.
fn one_program(
    (name, command): &Program,
    rivals: &[Rival],
    times: usize,
    measure: &Path,
    place: &Path,
) -> Result<Vec<Row>> {
    let mut runs = Vec::new();
    for rival in rivals {
        runs.push(Series::start(rival, command, &place.join(rival.name()))?);
    }
    for _ in 0..times {
        for run in &mut runs {
            if run.broken.is_none()
                && let Err(error) = run.once(measure)
            {
                run.broken = Some(format!("{error:#}"));
            }
        }
    }
    let mut rows = Vec::new();
    for run in runs {
        if let Some(why) = &run.broken {
            say(&format!("{name}: {} failed: {why}", run.rival.name()), false)?;
            ensure!(run.rival.name() != "hdcr", "hdcr failed: {why}");
        }
        kill(run.pid);
        rows.extend(row(name, run.rival.name(), "checkpoint", &run.checkpoints));
        rows.extend(row(name, run.rival.name(), "restore", &run.restores));
    }
    Ok(rows)
}

fn row(program: &'static str, tool: &'static str, act: &'static str, costs: &[Cost]) -> Option<Row> {
    let mut wall: Vec<u64> = costs.iter().map(|cost| cost.wall_us).collect();
    let mut stopped: Vec<u64> = costs.iter().filter_map(|cost| cost.stopped_us).collect();
    Some(Row {
        program,
        tool,
        act,
        times: costs.len(),
        wall_ms: Spread::of(&mut wall)?,
        stopped_ms: Spread::of(&mut stopped),
        image_kib: costs.last().map_or(0, |cost| cost.image_bytes / 1024),
        peak_kib: costs.iter().map(|cost| cost.peak_kib).max().unwrap_or(0),
    })
}

/// One tool with one program.
#[derive(Debug)]
struct Series<'a> {
    rival: &'a Rival,
    pid: u32,
    folder: PathBuf,
    checkpoints: Vec<Cost>,
    restores: Vec<Cost>,
    broken: Option<String>,
}

impl<'a> Series<'a> {
    fn start(rival: &'a Rival, command: &[String], folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let child = Command::new("setsid")
            .args(command)
            .arg(folder.join("progress"))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start a program by setsid")?;
        let series = Series {
            rival,
            pid: child.id(),
            folder: folder.to_owned(),
            checkpoints: Vec::new(),
            restores: Vec::new(),
            broken: None,
        };
        series.moves()?;
        Ok(series)
    }

    /// The program counts on.
    fn moves(&self) -> Result<()> {
        let look = || fs::read_to_string(self.folder.join("progress")).unwrap_or_default();
        let before = look();
        wait::until("the progress of a program", LIMIT, || Ok((look() > before).then_some(())))
    }

    fn once(&mut self, measure: &Path) -> Result<()> {
        let down = self.rival.checkpoint(self.pid, &self.folder, measure)?;
        wait::gone(self.pid, LIMIT)?;
        let back = self.rival.restore(&self.folder, measure)?;
        self.moves()?;
        self.checkpoints.push(down);
        self.restores.push(back);
        Ok(())
    }
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::KILL).ok();
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

fn head(json: bool) -> Result<()> {
    let line = format!(
        "{:<10} {:<5} {:<11} {:>22} {:>22} {:>10} {:>9}",
        "program", "tool", "act", "wall ms (least-most)", "stopped ms", "image KiB", "peak KiB"
    );
    say(&line, json)
}

fn print(row: &Row, json: bool) -> Result<()> {
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string(row)?)?;
        return Ok(());
    }
    let stopped = row.stopped_ms.map_or_else(|| "-".to_owned(), Spread::text);
    let image = if row.image_kib == 0 { "-".to_owned() } else { row.image_kib.to_string() };
    let line = format!(
        "{:<10} {:<5} {:<11} {:>22} {:>22} {:>10} {:>9}",
        row.program,
        row.tool,
        row.act,
        row.wall_ms.text(),
        stopped,
        image,
        row.peak_kib
    );
    say(&line, false)
}

/// A line for people; on standard error when standard output is for programs.
fn say(line: &str, json: bool) -> Result<()> {
    let done = if json { writeln!(io::stderr(), "{line}") } else { writeln!(io::stdout(), "{line}") };
    Ok(done?)
}
