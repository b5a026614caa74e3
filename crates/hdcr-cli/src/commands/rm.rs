//! `hdcr rm`: removes checkpoints, one or all of a job.

use std::path::Path;

use hdcr_image::JobName;
use serde::Serialize;

use super::Surrounding;
use crate::by_hand::{self, JobTurn};
use crate::cli::RmArgs;
use crate::failure::{Failure, Result};
use crate::job::{self, State};
use crate::names;
use crate::orphan;
use crate::output::Report;
use crate::parts::{self, retention};
use crate::process::{self, STANDBY};

/// What is gone.
#[derive(Debug, Serialize)]
struct Gone {
    removed: Vec<String>,
    /// Whole jobs.
    forgotten: Vec<String>,
    /// What others of the job had in common with them, and keep.
    notes: Vec<String>,
}

impl Report for Gone {
    fn text(&self) -> String {
        let notes = self.notes.iter().map(|note| format!("\n  note: {note}"));
        let gone = if self.removed.is_empty() { &self.forgotten } else { &self.removed };
        match gone.as_slice() {
            [] => "nothing to remove".to_owned(),
            gone if self.removed.is_empty() => format!("removed what was remembered of {}", gone.join(", ")),
            gone => std::iter::once(format!("removed {}", gone.join(", "))).chain(notes).collect(),
        }
    }
}

pub(crate) fn run(at: &Surrounding<'_>, args: &RmArgs) -> Result<u8> {
    at.trusted_store()?;
    let store = &at.settings.store;
    // All is looked at before anything goes: half of a list would be removed in silence else.
    let wanted: Result<Vec<Wanted>> = args.images.iter().map(|text| wanted(at, text)).collect();
    let wanted = wanted?;
    refuse_pinned(store, &wanted)?;
    if !args.force {
        refuse_last(store, &wanted)?;
        refuse_read(store, &wanted)?;
    }
    let (mut removed, mut forgotten) = (Vec::new(), Vec::new());
    let notes = wanted.iter().flat_map(|wanted| bases(store, wanted)).collect();
    for Wanted { job, numbers, is_whole } in wanted {
        if is_whole {
            forget(store, &job, args.take_over)?;
            parts::forget_files(&at.settings.journals(), &job)?;
            forgotten.push(job.to_string());
        }
        for number in numbers {
            parts::remove(store, &job, number)?;
            removed.push(format!("{job}@{number}"));
        }
        if parts::numbers(store, &job)?.is_empty() {
            parts::forget_room(store, &job);
        }
    }
    at.output.result(&Gone { removed, forgotten, notes })?;
    Ok(0)
}

/// Forgets a job that does not run, while nobody can bring it to life.
fn forget(store: &Path, job: &JobName, take_over: bool) -> Result<()> {
    let _turn = JobTurn::take(store, job)?;
    refuse_restored(store, job)?;
    by_hand::refuse_beside(store, job, take_over)?;
    if !take_over {
        job::refuse_elsewhere(job::peek(store, job)?.as_ref(), job)?;
    }
    // Its keeper would go back to nothing.
    job::forget(store, job).map_err(|failure| match &*failure.code {
        "job-runs" => Failure::refused("job-runs", format!("job {job} is running, and may need its checkpoints"))
            .remedy(format!("end it first (`hdcr stop {job}`), or remove single ones (`hdcr rm {job}@ID`)")),
        _ => failure,
    })
}

/// A program that was restored by hand is known by the list of its job alone: nobody could find it any more, and the job could
/// begin beside it.
fn refuse_restored(store: &Path, job: &JobName) -> Result<()> {
    by_hand::living(store, job)?.first().map_or(Ok(()), |program| {
        let pid = program.pid;
        let message = format!("the program of job {job} runs, as pid {pid}: it was restored by hand");
        Err(Failure::refused("job-runs", message)
            .remedy(format!("end it first (`hdcr stop {pid}`), or remove single checkpoints (`hdcr rm {job}@ID`)")))
    })
}

/// What is to go.
struct Wanted {
    job: JobName,
    numbers: Vec<u64>,
    /// The whole job.
    is_whole: bool,
}

fn wanted(at: &Surrounding<'_>, text: &str) -> Result<Wanted> {
    let store = &at.settings.store;
    let (name, number) = text.split_once('@').map_or((text, None), |(name, number)| (name, Some(number)));
    if let Some(failure) = names::a_process(name) {
        return Err(failure);
    }
    let job = parts::job_name(name)?;
    let all = parts::numbers(store, &job)?;
    let has_left = number.is_none() && at.settings.journals().join(job.as_str()).is_dir();
    if all.is_empty() && !has_left && job::peek(store, &job)?.is_none() {
        let message = format!("no checkpoint of {job} in {}", store.display());
        return Err(Failure::refused("no-such-checkpoint", message).remedy(names::no_checkpoint(
            store,
            name,
            "`hdcr list` shows all; a file is removed with rm(1)",
        )));
    }
    let Some(number) = number else {
        refuse_orphan(at, &job)?;
        refuse_restored(store, &job)?;
        return Ok(Wanted { job, numbers: all, is_whole: true });
    };
    let number = number.parse().map_err(|_| Failure::usage(format!("\"{text}\" is neither NAME nor NAME@ID")))?;
    if !all.contains(&number) {
        let message = format!("no checkpoint {job}@{number} in {}", store.display());
        return Err(Failure::refused("no-such-checkpoint", message).remedy(names::there_are(job.as_str(), &all)));
    }
    Ok(Wanted { job, numbers: vec![number], is_whole: false })
}

/// A job that runs has a checkpoint to go back to, or its work so far is lost by the next crash.
fn refuse_last(store: &Path, wanted: &[Wanted]) -> Result<()> {
    for Wanted { job, is_whole, .. } in wanted {
        let Some(record) = job::peek(store, job)?.filter(|record| record.state == State::Running) else { continue };
        // Whether a whole job may go is looked at for itself.
        if *is_whole || !job::is_held(store, job) {
            continue;
        }
        let gone: Vec<u64> =
            wanted.iter().filter(|other| other.job == *job).flat_map(|other| other.numbers.iter().copied()).collect();
        let own: Vec<u64> = parts::numbers(store, job)?.into_iter().filter(|number| *number > record.after).collect();
        if !own.is_empty() && own.iter().all(|number| gone.contains(number)) {
            let message = format!("job {job} is running, and would have no checkpoint to go back to");
            return Err(Failure::refused("last-checkpoint", message).remedy(format!(
                "take another one first (`hdcr checkpoint {job}`), end the job (`hdcr stop {job}`), or give --force"
            )));
        }
    }
    Ok(())
}

/// Not with `--force` either: that is said of what was not thought of, and a pin was.
fn refuse_pinned(store: &Path, wanted: &[Wanted]) -> Result<()> {
    for Wanted { job, numbers, .. } in wanted {
        let pins = parts::pins(store, job)?;
        if let Some((number, note)) = pins.iter().find(|(number, _)| numbers.contains(number)) {
            let what_for = if note.is_empty() { String::new() } else { format!(": {note}") };
            return Err(Failure::refused("pinned", format!("{job}@{number} is pinned{what_for}"))
                .remedy(format!("unpin it first (`hdcr unpin {job}@{number}`)")));
        }
    }
    Ok(())
}

/// Why a checkpoint cannot go that somebody reads.
pub(super) fn read_by(pid: i32) -> String {
    let name = process::name(pid);
    let why = if ["hdcr", STANDBY].contains(&name.as_str()) {
        ": it is being restored, or memory of a program is still being filled from it"
    } else {
        ""
    };
    format!("process {pid} ({name}) reads it{why}")
}

/// A program whose memory is still to come would be killed when the rest cannot be read.
fn refuse_read(store: &Path, wanted: &[Wanted]) -> Result<()> {
    for Wanted { job, numbers, .. } in wanted {
        for number in numbers {
            if let Some(pid) = retention::reader(store, job, *number) {
                let message = format!("{job}@{number} is in use: {}", read_by(pid));
                return Err(Failure::refused("image-in-use", message)
                    .remedy("wait until that is done (`hdcr restore -v` says when), or give --force"));
            }
        }
    }
    Ok(())
}

/// Which checkpoints that stay go on from those that go.
fn bases(store: &Path, wanted: &Wanted) -> Vec<String> {
    let Wanted { job, numbers, is_whole } = wanted;
    let based = |number: &u64| {
        let on = retention::goes_on_from(store, job, *number).filter(|on| !is_whole && !numbers.contains(on))?;
        Some(format!("{job}@{on} goes on from {job}@{number}, and keeps what it needs of it"))
    };
    numbers.iter().filter_map(based).collect()
}

/// A program that has lost its keeper is known by its record alone: nobody could find it any more.
fn refuse_orphan(at: &Surrounding<'_>, job: &JobName) -> Result<()> {
    let store = &at.settings.store;
    if !job::peek(store, job)?.is_some_and(|record| record.orphaned()) {
        return Ok(());
    }
    orphan::find(&at.registry()?, job.as_str(), store)?.map_or(Ok(()), |orphan| Err(orphan.refusal()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Place;

    /// `hdcr ps` and `hdcr stop` would not know it any more.
    #[test]
    fn a_job_is_not_forgotten_while_a_program_of_it_runs() {
        let store = tempfile::tempdir().unwrap();
        let job = JobName::new("sim").unwrap();
        let own = std::process::id().cast_signed();
        let place = Place::Store { root: store.path().to_owned(), job: "sim".to_owned(), number: 1 };
        by_hand::runs(&place, own);
        let refused = forget(store.path(), &job, true).unwrap_err();
        assert!(refused.code == "job-runs" && refused.message.contains(&format!("pid {own}")), "{refused}");
        assert_eq!(by_hand::living(store.path(), &job).unwrap().len(), 1);
        std::fs::remove_file(by_hand::path(store.path(), &job)).unwrap();
        let turn = JobTurn::take(store.path(), &job).unwrap();
        assert_eq!(forget(store.path(), &job, false).unwrap_err().code, "job-begins");
        drop(turn);
        forget(store.path(), &job, false).unwrap();
    }
}
