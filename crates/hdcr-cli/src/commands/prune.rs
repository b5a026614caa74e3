//! `hdcr prune`: gives up old checkpoints by hand, by the rules by which `hdcr run` does.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{ArgGroup, Args};
use hdcr_image::JobName;
use serde::Serialize;

use super::Surrounding;
use super::rm::read_by;
use crate::duration;
use crate::failure::{Failure, Result};
use crate::job::{self, State};
use crate::kinds::{Keep, at_least_one};
use crate::names;
use crate::output::{Report, counted};
use crate::parts::{self, retention};

/// `hdcr prune`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("limits").required(true).multiple(true).args(["keep", "keep_for", "keep_size"])), after_help = "\
What any of the limits gives up goes, as with `hdcr run --keep`. The newest of a job always stays, and so do the one that a \
running job would go back to, one that is being restored, and jobs of another machine: these are named.

Examples:
  hdcr prune --keep 2 --dry-run   what would go, of all jobs
  hdcr prune sim --keep-for 2d    of one job what is older than two days
  hdcr prune --keep-size 10G      until no job takes more than 10 GiB")]
pub(crate) struct PruneArgs {
    /// Only these jobs [default: all in the store]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Keep the newest so many of each job
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    keep: Option<NonZeroUsize>,
    /// Give up those that are older than this, such as 12h or 2d
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    keep_for: Option<Duration>,
    /// Give up the oldest until those of each job take no more than this, such as 10G
    #[arg(long, value_name = "SIZE", value_parser = duration::parse_size)]
    keep_size: Option<u64>,
    /// Say what would go; remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// What is gone, or would go.
#[derive(Debug, Serialize)]
struct Pruned {
    /// Nothing was removed.
    dry_run: bool,
    removed: Vec<String>,
    /// What they alone took.
    freed: u64,
    /// What would have gone by the limits, and why it stays.
    kept: Vec<Kept>,
}

#[derive(Debug, Serialize)]
struct Kept {
    snapshot: String,
    why: String,
}

impl Report for Pruned {
    fn text(&self) -> String {
        let count = counted(self.removed.len(), "checkpoint", "checkpoints");
        let freed = duration::show_size(self.freed);
        let mut lines = vec![match (self.removed.is_empty(), self.dry_run) {
            (true, _) => "nothing to remove".to_owned(),
            (false, true) => format!("would remove {count} ({freed}): {}", self.removed.join(", ")),
            (false, false) => format!("removed {count} ({freed}): {}", self.removed.join(", ")),
        }];
        lines.extend(self.kept.iter().map(|kept| format!("  {} stays: {}", kept.snapshot, kept.why)));
        lines.join("\n")
    }
}

pub(crate) fn run(at: &Surrounding<'_>, args: &PruneArgs) -> Result<u8> {
    at.trusted_store()?;
    let store = &at.settings.store;
    let jobs = if args.names.is_empty() { parts::jobs(store)? } else { named(at, &args.names)? };
    let keep = Keep::of(args.keep, args.keep_for, args.keep_size);
    let mut pruned = Pruned { dry_run: args.dry_run, removed: Vec::new(), freed: 0, kept: Vec::new() };
    for job in jobs {
        of_job(at, &job, &keep, &mut pruned)?;
    }
    at.output.result(&pruned)?;
    Ok(0)
}

/// All are looked for before anything goes.
fn named(at: &Surrounding<'_>, names: &[String]) -> Result<Vec<JobName>> {
    let store = &at.settings.store;
    let known = |name: &String| {
        if let Some(failure) = names::a_process(name) {
            return Err(failure);
        }
        let job = parts::job_name(name)?;
        if parts::numbers(store, &job)?.is_empty() {
            let message = format!("no checkpoint of {job} in {}", store.display());
            let remedy = names::no_checkpoint(store, name, "`hdcr list` shows all");
            return Err(Failure::refused("no-such-checkpoint", message).remedy(remedy));
        }
        Ok(job)
    };
    names.iter().map(known).collect()
}

fn of_job(at: &Surrounding<'_>, job: &JobName, keep: &Keep, pruned: &mut Pruned) -> Result<()> {
    let store = &at.settings.store;
    let record = job::peek(store, job)?;
    if let Err(failure) = job::refuse_elsewhere(record.as_ref(), job) {
        pruned.kept.push(Kept { snapshot: job.to_string(), why: failure.message });
        return Ok(());
    }
    let numbers = parts::numbers(store, job)?;
    let record = record.filter(|record| record.state == State::Running);
    // What a crash of the job would go back to.
    let back = record.map(|record| match record.went_back {
        Some(went) => went.to,
        None => numbers.iter().copied().filter(|number| *number > record.after).max().unwrap_or(0),
    });
    let pins = parts::pins(store, job)?;
    let why = |number: u64| {
        if pins.contains_key(&number) {
            return Some(format!("it is pinned (`hdcr unpin {job}@{number}`)"));
        }
        if back == Some(number) {
            return Some("the job runs, and would go back to it".to_owned());
        }
        retention::reader(store, job, number).map(read_by)
    };
    let (gone, stays) = retention::plan(store, job, keep, &|number| why(number).is_some())?;
    pruned.freed = pruned.freed.saturating_add(retention::freed(store, job, &gone));
    for number in gone {
        if !pruned.dry_run {
            parts::remove(store, job, number)?;
        }
        pruned.removed.push(format!("{job}@{number}"));
    }
    pruned.kept.extend(stays.into_iter().map(|number| Kept {
        snapshot: format!("{job}@{number}"),
        why: why(number).unwrap_or_else(|| "it is the newest of its job (`hdcr rm` removes it)".to_owned()),
    }));
    Ok(())
}
