//! Trials of faults: the tool is killed, images are tampered with, surroundings fail; nobody may suffer from it.

mod conditions;
pub(crate) mod dice;
pub(crate) mod forge;
mod images;
mod kills;
mod subject;
mod table;
mod tool;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::faults::conditions::Conditions;
use crate::faults::dice::Dice;
use crate::faults::images::Tampered;
use crate::faults::kills::{Act, series, text};
use crate::faults::subject::Kind;
use crate::faults::table::{Row, Table};
use crate::faults::tool::Tool;

/// How much is done.
#[derive(Debug, Clone, Args)]
pub(crate) struct FaultArgs {
    /// How many times the tool is killed in each of checkpoint, checkpoint --kill and restore.
    #[arg(long, default_value_t = 60)]
    kills: u32,
    /// How many bits are flipped, and how many images forged.
    #[arg(long, default_value_t = 60)]
    flips: u32,
    /// Only cases whose name begins with one of these: checkpoint, restore, images, conditions.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only guests whose name begins with one of these.
    #[arg(long, value_delimiter = ',')]
    guests: Vec<String>,
    /// Repeats a run with the same random numbers.
    #[arg(long)]
    seed: Option<u64>,
    /// One JSON object a row instead of a table.
    #[arg(long)]
    json: bool,
    /// Keep the folder.
    #[arg(long)]
    keep: bool,
}

/// Runs all cases; true when nobody suffered.
pub(crate) fn run(args: &FaultArgs, hdcr: Option<&Path>, sources: &Path, build: &Path) -> Result<bool> {
    let began = Instant::now();
    let hdcr = hdcr.context("no hdcr binary was given")?;
    let hdcr = fs::canonicalize(hdcr).with_context(|| format!("find {}", hdcr.display()))?;
    let programs = Programs::build(&sources.join("faults"), &build.join("faults"))?;
    let folder = tempfile::Builder::new().prefix("hdcr-faults-").tempdir()?;
    let tool = Tool::new(&hdcr, folder.path())?;
    let seed = args.seed.map_or_else(random, Ok)?;
    let mut run = Run { args, programs, tool, dice: Dice::new(seed), table: Table::new(args.json)? };
    for act in [Act::Checkpoint, Act::CheckpointKill, Act::Restore] {
        if run.wants(act.name()) {
            run.guests(act)?;
        }
    }
    if run.wants("images") {
        run.images()?;
    }
    if run.wants("conditions") {
        run.conditions()?;
    }
    if args.keep {
        writeln!(io::stdout(), "kept in {}", folder.keep().display())?;
    }
    if !args.json {
        writeln!(io::stdout(), "seed {seed}, {:.0} s", began.elapsed().as_secs_f64())?;
    }
    run.table.close()
}

fn random() -> Result<u64> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes).into())
}

/// All cases of one run.
#[derive(Debug)]
struct Run<'a> {
    args: &'a FaultArgs,
    programs: Programs,
    tool: Tool,
    dice: Dice,
    table: Table,
}

impl Run<'_> {
    fn wants(&self, name: &str) -> bool {
        self.args.only.is_empty() || self.args.only.iter().any(|only| name.starts_with(only.as_str()))
    }

    /// One command with every guest.
    fn guests(&mut self, act: Act) -> Result<()> {
        let only = &self.args.guests;
        let mut kinds = self.programs.kinds()?;
        kinds.retain(|kind| only.is_empty() || only.iter().any(|name| kind.name.starts_with(name)));
        let each = self.args.kills.div_ceil(u32::try_from(kinds.len().max(1))?);
        for kind in kinds {
            self.table.add(&series(act, &kind, &self.tool, each, &mut self.dice)?)?;
        }
        if self.programs.java.is_none() && act == Act::Checkpoint {
            self.table.add(&Row::skipped("all, java", "no java compiler is installed"))?;
        }
        Ok(())
    }

    fn images(&mut self) -> Result<()> {
        let times = self.args.flips;
        let kind = self.programs.guest("8 threads", 8, 0, false)?;
        let tampered = Tampered::new(&kind, &self.tool)?;
        self.table.add(&tampered.flipped(times, &mut self.dice)?)?;
        self.table.add(&tampered.cut(times.div_ceil(4), &mut self.dice)?)?;
        self.table.add(&tampered.swapped()?)?;
        self.table.add(&tampered.versions()?)?;
        self.table.add(&tampered.forged(times, &mut self.dice)?)
    }

    fn conditions(&mut self) -> Result<()> {
        let times = self.args.kills.div_ceil(4);
        let kind = self.programs.guest("4 threads", 4, 0, false)?;
        let conditions = Conditions {
            tool: &self.tool,
            kind: &kind,
            tracer: self.programs.folder.join("tracer"),
            vforker: self.programs.folder.join("vforker"),
        };
        self.table.add(&conditions.disk_full()?)?;
        self.table.add(&conditions.store_removed(times, &mut self.dice)?)?;
        self.table.add(&conditions.target_dies(times, &mut self.dice)?)?;
        self.table.add(&conditions.traced()?)?;
        self.table.add(&conditions.uninterruptible()?)
    }
}

/// The compiled guests.
#[derive(Debug)]
struct Programs {
    folder: PathBuf,
    /// The folder of classes.
    java: Option<PathBuf>,
}

impl Programs {
    fn build(sources: &Path, into: &Path) -> Result<Self> {
        fs::create_dir_all(into)?;
        let folder = fs::canonicalize(into)?;
        let wanted: [(&str, &str, &[&str]); 4] = [
            ("guest.c", "guest", &["-pthread"]),
            ("guest.c", "guest-static", &["-pthread", "-static"]),
            ("tracer.c", "tracer", &[]),
            ("vforker.c", "vforker", &["-Wno-clobbered"]),
        ];
        for (source, name, flags) in wanted {
            let out = Command::new("gcc")
                .args(["-O1", "-g", "-Wall", "-Wextra"])
                .args(flags)
                .arg("-o")
                .arg(folder.join(name))
                .arg(sources.join(source))
                .output()
                .context("run gcc")?;
            if !out.status.success() {
                bail!("gcc {source}: {}", String::from_utf8_lossy(&out.stderr));
            }
        }
        let compiled = Command::new("javac").arg("-d").arg(&folder).arg(sources.join("Busy.java")).output();
        let java = compiled.is_ok_and(|out| out.status.success()).then(|| folder.clone());
        Ok(Programs { folder, java })
    }

    fn guest(&self, name: &'static str, threads: u32, children: usize, fixed: bool) -> Result<Kind> {
        ensure!(threads > 0, "a guest has a thread");
        let binary = self.folder.join(if fixed { "guest-static" } else { "guest" });
        let command = vec![text(&binary)?.to_owned(), threads.to_string(), children.to_string()];
        Ok(Kind { name, command, processes: 1 + children, by_file: false })
    }

    fn kinds(&self) -> Result<Vec<Kind>> {
        let mut kinds = vec![
            self.guest("1 thread", 1, 0, false)?,
            self.guest("8 threads", 8, 0, false)?,
            self.guest("64 threads", 64, 0, false)?,
            self.guest("static, 8 threads", 8, 0, true)?,
            self.guest("tree of 4", 4, 3, false)?,
        ];
        if let Some(classes) = &self.java {
            let words = ["java", "-XX:+UseSerialGC", "-Xmx64m", "-cp", text(classes)?, "Busy"];
            let command = words.iter().map(|&word| word.to_owned()).collect();
            kinds.push(Kind { name: "java", command, processes: 1, by_file: true });
        }
        Ok(kinds)
    }
}
