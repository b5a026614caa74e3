//! A second copy of a program that runs (`hdcr restore --new-pids`, and every restore by a user who may not choose pids):
//! refused when it would roll back files that the first one writes, or System V objects that it uses, under it.

use std::fs;
use std::time::Duration;

use hdcr_image::ManifestFacts;

use super::{Surrounding, stop};
use crate::asking;
use crate::by_hand;
use crate::cli::RestoreArgs;
use crate::failure::{Failure, Result};
use crate::namespace;
use crate::parts;
use crate::process;
use crate::task::Place;

/// Objects that are named in a refusal.
const NAMED: usize = 4;

/// Refuses a copy whose files another one writes, or whose System V objects it uses, unless they are other files for it, or
/// the user has said so.
pub(crate) fn refuse(at: &Surrounding<'_>, args: &RestoreArgs, place: &Place) -> Result<()> {
    // Where it gets the same pids, the first one's stand in its way.
    let own_pids = args.new_pids || !namespace::may_choose_pids();
    if args.force || !own_pids || at.inside.is_some() {
        return Ok(());
    }
    let image = parts::open(place)?;
    let Some((first, is_known)) = first(at, place, &image.manifest().facts)? else { return Ok(()) };
    let is_moved = |path: &std::path::Path| args.map_path.iter().any(|map| path.starts_with(&map.old));
    let files = parts::written(&image)?;
    let files = files.iter().filter(|path| !is_moved(path)).map(|path| path.display().to_string());
    let objects: Vec<String> = files.chain(parts::overwritten(&image)?).collect();
    if objects.is_empty() {
        return Ok(());
    }
    let mut named: Vec<String> = objects.iter().take(NAMED).cloned().collect();
    let more = objects.len().saturating_sub(NAMED);
    named.extend((more > 0).then(|| format!("and {more} more")));
    let message = format!(
        "the program of {place} runs already, as pid {first}, and both would write {}: it would be rolled back under the one \
         that runs",
        named.join(", ")
    );
    // What hdcr has not started is ended as any other process is.
    let end = if is_known { "hdcr stop" } else { "kill" };
    Err(Failure::refused("copy-runs", message).remedy(format!(
        "end that one first (`{end} {first}`), or give this one other files (`--map-path OLD=NEW`); --force restores it \
         all the same"
    )))
}

/// The first process of a copy that runs here, as far as one can know, and whether `hdcr ps` shows it.
fn first(at: &Surrounding<'_>, place: &Place, facts: &ManifestFacts) -> Result<Option<(i32, bool)>> {
    if let Place::Store { root, job, .. } = place {
        let living = by_hand::living(root, &parts::job_name(job)?)?;
        if let Some(copy) = living.first() {
            return Ok(Some((copy.pid, true)));
        }
        let status = asking::status(&at.registry()?, job, Duration::from_secs(1)).ok().flatten();
        let kept = status.filter(|status| status.store == *root && status.phase != "ending");
        if let Some(pid) = kept.and_then(|status| status.pid) {
            return Ok(Some((pid, true)));
        }
    }
    // Whoever has its number and its command is it: the program that was checkpointed, or one that was restored from it.
    let mut line = facts.command.join(&0);
    line.push(0);
    let same = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == line);
    if line.len() <= 1 {
        return Ok(None);
    }
    let own = Some(facts.root_pid).filter(|pid| same(*pid) && process::lives(*pid));
    let found = own.or_else(|| inside(facts.root_pid).into_iter().find(|pid| same(*pid) && process::lives(*pid)));
    let is_shown = |pid: i32| {
        by_hand::all(&at.settings.store).iter().any(|(_, program)| program.pid == pid)
            || at.registry().is_ok_and(|registry| stop::job_with(&registry, pid).is_some())
    };
    Ok(found.map(|pid| (pid, is_shown(pid))))
}

/// Processes that have a number in a pid namespace right below this one, as those have that an ordinary user restores or runs.
fn inside(number: i32) -> Vec<i32> {
    let depth = process::numbers("self").len().max(1);
    let names =
        fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let found = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).map(|name| process::numbers(&name));
    let below = found.filter(|all| all.len() == depth + 1 && all.last() == Some(&number));
    below.filter_map(|all| all.first().copied()).collect()
}
