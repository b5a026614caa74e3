//! What it costs a program to be a job while nothing of it is checkpointed: work of several kinds, done bare and under a keeper
//! in turns.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::bench::{BenchArgs, Place, busy, say};

/// Each kind of work is done so long in each round, in milliseconds.
const LENGTH: &str = "300";

/// One kind of work.
#[derive(Debug, Serialize)]
struct Row {
    work: String,
    /// How often it was done in that time, medians.
    bare: u64,
    job: u64,
    /// Of the time that it takes, what being a job adds.
    lost_percent: f64,
    /// The same between the two halves of the bare rounds: what the machine does by itself.
    noise_percent: f64,
}

/// Measures and tells.
pub(super) fn run(args: &BenchArgs, hdcr: &Path, place: &Place) -> Result<bool> {
    let program = place.compile("idle.c", "idle", &[])?;
    let before = busy();
    let mut rounds: [Vec<Counts>; 2] = Default::default();
    // The first round of each finds nothing in the caches.
    for turn in 0..=args.times {
        let bare = counts(Command::new(&program), place)?;
        let store = tempfile::Builder::new().prefix("hdcr-idle-").tempdir_in(&place.folder)?;
        let mut under = Command::new(hdcr);
        under.args(["--quiet", "run", "--name", "idle", "--every", "1h", "--"]).arg(&program);
        under.env("HDCR_STORE", store.path());
        let job = counts(under, place)?;
        if turn > 0 {
            rounds.iter_mut().zip([bare, job]).for_each(|(rounds, counts)| rounds.push(counts));
        }
    }
    let rows = rows(&rounds)?;
    if args.quiet() {
        say(&serde_json::to_string(&rows)?, false)?;
        return Ok(true);
    }
    if let Some(file) = &args.json {
        fs::write(file, serde_json::to_string_pretty(&rows)?)?;
    }
    say(&format!("load before: {before}, after: {}; {} rounds of {LENGTH} ms, in turns", busy(), args.times), false)?;
    say(&format!("{:<12}{:>12}{:>12}{:>12}{:>12}", "work", "bare", "job", "lost %", "noise %"), false)?;
    for Row { work, bare, job, lost_percent, noise_percent } in &rows {
        say(&format!("{work:<12}{bare:>12}{job:>12}{lost_percent:>12.1}{noise_percent:>12.1}"), false)?;
    }
    Ok(true)
}

/// How often each kind of work was done.
type Counts = BTreeMap<String, u64>;

/// Runs the program, by itself or by a command that it is given to.
fn counts(mut command: Command, place: &Place) -> Result<Counts> {
    let folder = tempfile::Builder::new().prefix("idle-").tempdir_in(&place.folder)?;
    let out = command.arg(LENGTH).current_dir(folder.path()).stdin(Stdio::null()).output().context("start it")?;
    ensure!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    counted(&String::from_utf8_lossy(&out.stdout))
}

fn counted(text: &str) -> Result<Counts> {
    let line = |line: &str| {
        let (work, count) = line.split_once(' ').with_context(|| format!("not a count: {line}"))?;
        Ok((work.to_owned(), count.parse()?))
    };
    text.lines().map(line).collect()
}

fn rows([bare, job]: &[Vec<Counts>; 2]) -> Result<Vec<Row>> {
    let kinds = bare.first().context("no rounds")?.keys();
    let row = |work: &String| {
        let of = |rounds: &[Counts]| median(rounds.iter().filter_map(|counts| counts.get(work).copied()));
        let (first, second): (Vec<_>, Vec<_>) = bare.iter().cloned().enumerate().partition(|(turn, _)| turn % 2 == 0);
        let half = |half: Vec<(usize, Counts)>| of(&half.into_iter().map(|(_, counts)| counts).collect::<Vec<_>>());
        let (own, its) = (of(bare), of(job));
        let row = Row {
            work: work.clone(),
            bare: own,
            job: its,
            lost_percent: lost(own, its),
            noise_percent: lost(half(first), half(second)).abs(),
        };
        Ok(row)
    };
    kinds.map(row).collect()
}

/// By how much one takes longer than the other, by how often each was done in the same time.
fn lost(own: u64, its: u64) -> f64 {
    let exact = |count: u64| u32::try_from(count).map_or(f64::INFINITY, f64::from);
    (exact(own) / exact(its.max(1)) - 1.0) * 100.0
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut all: Vec<u64> = values.collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_by_the_medians() {
        let round = |count| counted(&format!("malloc {count}\nread 7")).unwrap();
        let rows = rows(&[vec![round(90), round(100), round(110)], vec![round(50), round(80), round(50)]]).unwrap();
        let told: Vec<_> = rows.iter().map(|row| (row.work.as_str(), row.bare, row.job, row.lost_percent)).collect();
        assert_eq!(told, [("malloc", 100, 50, 100.0), ("read", 7, 7, 0.0)]);
        assert!(rows[0].noise_percent > 0.0 && rows[1].noise_percent < f64::EPSILON);
        assert!(counted("malloc").is_err() && counted("malloc many").is_err());
    }
}
