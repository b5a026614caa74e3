//! Small processes: each taken down and brought back many times by each tool.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::bench::figures::Spread;
use crate::bench::rival::{Cost, Request, Rival};
use crate::bench::{BenchArgs, Place, busy, say};
use crate::wait;

const LIMIT: Duration = Duration::from_secs(30);

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

/// Measures and prints; true when all could be measured.
pub(super) fn run(args: &BenchArgs, rivals: &[Rival], place: &Place) -> Result<bool> {
    let json = args.json.is_some();
    let measure = place.compile("measure.c", "measure", &[])?;
    say(&format!("load before: {}", busy()), json)?;
    head(json)?;
    for program in &programs(place)? {
        let folder = tempfile::Builder::new().prefix("hdcr-bench-").tempdir()?;
        for row in one_program(program, rivals, args.times, &measure, folder.path())? {
            print(&row, json)?;
        }
    }
    say(&format!("load after: {}", busy()), json)?;
    Ok(true)
}

type Program = (&'static str, Vec<String>);

fn programs(place: &Place) -> Result<Vec<Program>> {
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let mut all = vec![
        ("static C", vec![text(place.compile("quiet.c", "quiet-static", &["-static"])?)]),
        ("dynamic C", vec![text(place.compile("quiet.c", "quiet", &[])?)]),
    ];
    let python = PathBuf::from("/usr/bin/python3");
    if python.exists() {
        all.push(("python3", vec![text(python), text(place.sources.join("bench/quiet.py"))]));
    }
    Ok(all)
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
        let image = self.folder.join("image");
        let request = Request { pid: self.pid, image: &image, ends: true, over: false };
        let down = self.rival.checkpoint(&request, &self.folder, measure)?;
        wait::gone(self.pid, LIMIT)?;
        let back = self.rival.restore(&image, &self.folder, measure)?;
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
