//! Images made on top of one another, by the hundred: a guest that changes its memory in every way runs under a keeper at
//! full pace; links of the chain are picked at random, restored, and the guest checks each word against its model. Whoever
//! makes the images is killed at random moments meanwhile.

mod job;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::Place;
use crate::faults::dice::Dice;
use crate::guest;
use crate::modes::stage::Stage;
use crate::report::{Finished, Outcome, Report};
use job::{Job, Way};

/// How much to do.
#[derive(Debug, Args)]
pub(crate) struct ChainArgs {
    /// Links to be made.
    #[arg(long, default_value_t = 100)]
    links: u64,
    /// How many times the tool is killed while they are made.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// For the same moments and the same links again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep the folder when all is well, too.
    #[arg(long)]
    keep: bool,
}

/// Links of one life of the job; then some are restored, and it goes on from the last.
const STRETCH: u64 = 50;
/// Links that are restored after each life.
const TRIED: usize = 5;

/// What was done.
#[derive(Debug, Default)]
struct Done {
    links: u64,
    increments: u64,
    kills: u32,
    /// How often the disk was full for a while.
    fills: u32,
    restored: u64,
}

pub(crate) fn run(args: &ChainArgs, place: &Place) -> Result<bool> {
    let hdcr = place.hdcr.as_deref().context("no hdcr binary was given")?;
    let guests = guest::find(&place.sources.join("zoo"), &["changing_memory".to_owned()])?;
    let built = guest::build_all(&guests, &place.build)?;
    let built = built.into_iter().find(|built| built.name == "changing_memory").context("no such guest")?;
    let guest = built.binary.map_err(|why| anyhow::anyhow!("{why}"))?;
    let folder = tempfile::Builder::new().prefix("hdcr-chain-").tempdir()?;
    let mut stage = Stage::new(hdcr, folder.path(), place)?;
    let began = Instant::now();
    let mut done = Done::default();
    let result = all(args, &mut stage, &guest, &mut done).and_then(|()| rules(&mut stage, &guest));
    let cleaned = stage.clean();
    rustix::mount::unmount(stage.path("store"), rustix::mount::UnmountFlags::DETACH).ok();
    let mut report = Report::new(false);
    crate::report::print_words(&std::iter::once(told(&done)).collect())?;
    let outcome = match result.and(cleaned) {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    let is_kept = args.keep || matches!(outcome, Outcome::Failed(_));
    report.add(&Finished {
        name: "chain".to_owned(),
        mode: "chain".to_owned(),
        outcome,
        milliseconds: began.elapsed().as_millis(),
        checkpoint_milliseconds: Vec::new(),
        restore_milliseconds: Vec::new(),
        folder: is_kept.then(|| folder.keep()),
        log: stage.log,
    })?;
    report.close()
}

fn told(done: &Done) -> String {
    format!(
        "{} links ({} increments), the tool killed {} times, the disk full {} times, {} links restored without a wrong word",
        done.links, done.increments, done.kills, done.fills, done.restored
    )
}

/// A small disk for the store; false when this user may not have one.
fn disk(stage: &Stage<'_>) -> Result<bool> {
    let store = stage.path("store");
    fs::create_dir(&store)?;
    fs::set_permissions(&store, fs::Permissions::from_mode(0o700))?;
    let flags = rustix::mount::MountFlags::empty();
    Ok(rustix::mount::mount("hdcr-chain", &store, "tmpfs", flags, Some(c"size=1536m,mode=0700")).is_ok())
}

/// Rules of following, by name. That pages vanish with their table is told by the kernel of today.
const RULES: [&str; 3] = ["new_mappings", "gone", "private_files"];
/// Lives of a job without a rule, in one of which a link must be wrong.
const LIVES: usize = 6;

/// Without any one of the rules links are wrong: else the guest would not show what they are for.
fn rules(stage: &mut Stage<'_>, guest: &Path) -> Result<()> {
    for rule in RULES {
        let mut wrong = false;
        for _ in 0..LIVES {
            stage.run(&["rm", "chain"])?;
            let mut job = Job::start(stage, guest, &Way { every: "10ms", blind: Some(rule) })?;
            let before = job.newest();
            job.until(stage, before + 12)?;
            job.pause(stage)?;
            wrong = job.try_link(stage, job.newest()).is_err();
            stage.end_all()?;
            if wrong {
                break;
            }
        }
        ensure!(wrong, "images made without the rule of {rule} are right all the same");
    }
    Ok(())
}

fn all(args: &ChainArgs, stage: &mut Stage<'_>, guest: &Path, done: &mut Done) -> Result<()> {
    let mut dice = Dice::new(args.seed);
    let own_disk = disk(stage)?;
    while done.links < args.links {
        let left = args.links - done.links;
        let lives = left.div_ceil(STRETCH).max(1);
        let to_do = args.kills.saturating_sub(done.kills + done.fills);
        let kills = u32::try_from(u64::from(to_do).div_ceil(lives))?;
        let every = if lives.is_multiple_of(2) { "60ms" } else { "10ms" };
        let mut job = Job::start(stage, guest, &Way { every, blind: None })?;
        let before = job.newest();
        for kill in 0..kills {
            // The first link of a life shows that the job runs: before, a worker restores it.
            let after = (u64::from(kill) + 1) * STRETCH.min(left) / u64::from(kills + 1);
            job.until(stage, before + after.max(1))?;
            if own_disk && kill % 3 == 2 {
                job.fill_the_disk(stage, &mut dice)?;
                done.fills += 1;
            } else {
                done.kills += u32::from(job.kill_the_maker(&mut dice)?);
            }
        }
        job.until(stage, before + STRETCH.min(left))?;
        job.pause(stage)?;
        done.links += job.newest() - before;
        let links = job::links(stage)?;
        done.increments += links.iter().filter(|link| link.number > before && link.increment).count() as u64;
        ensure!(links.iter().any(|link| link.increment), "no link is an increment");
        for _ in 0..TRIED {
            let place = usize::try_from(dice.below(links.len() as u64))?;
            let link = links.get(place).context("a link")?;
            job.try_link(stage, link.number)?;
            done.restored += 1;
        }
        // Any link may go without harm to the others.
        let place = usize::try_from(dice.below(links.len() as u64 - 1))?;
        job::remove(stage, links.get(place).context("a link")?.number)?;
    }
    Ok(())
}
