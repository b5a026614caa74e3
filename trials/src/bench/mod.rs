//! Measurements beside CRIU, both in one run and in turns, so that both meet the same machine. Nothing is asserted.

mod criu;
mod figures;
mod idle;
mod limit;
mod often;
mod page;
mod rival;
mod series;
mod small;
mod subjects;
mod table;
mod threads;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::bench::criu::Criu;
use crate::bench::rival::Rival;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// Programs with much memory, many processes, many threads, at work: stop, gap, size, checkpoint, restore.
    All,
    /// Small processes: checkpoint and restore.
    Small,
    /// Checkpoints on top of one another, up to a hundred a second: rate, stops, what the program loses, what each adds.
    Often,
    /// A program that is a job while nothing of it is checkpointed: what that costs it, by the kind of its work.
    Idle,
    /// What each thread adds to a stop, and what the kernel asks for the steps of that.
    Threads,
}

/// How it is measured.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    #[arg(value_enum, default_value = "all")]
    what: What,
    /// How often each small program is checkpointed and restored by each tool; how many rounds there are of one that is not checkpointed.
    #[arg(long, default_value_t = 15)]
    times: usize,
    /// How often each program is measured with each tool.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only programs whose name begins so.
    #[arg(long)]
    only: Vec<String>,
    /// How long each program is measured under checkpoints that come often.
    #[arg(long, default_value_t = 10)]
    seconds: usize,
    /// Without CRIU.
    #[arg(long)]
    alone: bool,
    /// JSON: into a file, or to standard output in place of the table.
    #[arg(long, num_args = 0..=1, default_missing_value = "-", value_name = "FILE")]
    json: Option<PathBuf>,
    /// A page with plots, in one file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl BenchArgs {
    /// Whether standard output is for programs.
    fn quiet(&self) -> bool {
        self.json.as_deref() == Some(Path::new("-"))
    }
}

/// Measures and prints; true when all could be measured.
pub(crate) fn run(args: &BenchArgs, hdcr: Option<&Path>, sources: &Path, build: &Path) -> Result<bool> {
    let folder = build.join("bench");
    fs::create_dir_all(&folder)?;
    let hdcr = installed(hdcr.context("no hdcr binary was given")?, &folder)?;
    let place = Place { sources: fs::canonicalize(sources)?, folder: fs::canonicalize(&folder)? };
    match args.what {
        What::Often => return often::run(args, &hdcr, &place),
        What::Idle => return idle::run(args, &hdcr, &place),
        What::Threads => return threads::run(args, &hdcr, &place),
        What::All | What::Small => {}
    }
    let mut rivals = vec![Rival::Hdcr(hdcr)];
    if !args.alone {
        match Criu::get(&build.with_file_name("criu")) {
            Ok(criu) => {
                say(&format!("criu {}", criu.version()?), args.quiet())?;
                rivals.push(Rival::Criu(criu));
            }
            Err(error) => say(&format!("without criu: {error:#}"), args.quiet())?,
        }
    }
    match args.what {
        What::Small => small::run(args, &rivals, &place),
        What::All | What::Often | What::Idle | What::Threads => series::run(args, &rivals, &place),
    }
}

/// A copy, as an installed program is: what a linker has written piece by piece lies in small pieces in the page cache, too, and
/// starts a millisecond later.
fn installed(hdcr: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = fs::canonicalize(folder)?.join("hdcr");
    let fresh = copy.with_extension("new");
    fs::copy(hdcr, &fresh)?;
    // Or the first checkpoint that is made durable waits for it.
    fs::File::open(&fresh)?.sync_all()?;
    fs::rename(fresh, &copy)?;
    Ok(copy)
}

/// Where sources and compiled programs lie.
#[derive(Debug)]
struct Place {
    sources: PathBuf,
    folder: PathBuf,
}

impl Place {
    /// A program of `trials/bench`, compiled.
    fn compile(&self, source: &str, name: &str, flags: &[&str]) -> Result<PathBuf> {
        let into = self.folder.join(name);
        let source = self.sources.join("bench").join(source);
        let out = Command::new("gcc")
            .args(["-O2", "-Wall", "-pthread"])
            .args(flags)
            .arg("-o")
            .arg(&into)
            .arg(source)
            .output()?;
        ensure!(out.status.success(), "gcc: {}", String::from_utf8_lossy(&out.stderr));
        Ok(into)
    }
}

/// The load average: figures of a busy machine are worth less.
fn busy() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// A line for people; on standard error when standard output is for programs.
fn say(line: &str, quiet: bool) -> Result<()> {
    let done = if quiet { writeln!(io::stderr(), "{line}") } else { writeln!(io::stdout(), "{line}") };
    Ok(done?)
}
