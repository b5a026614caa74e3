//! The ways in which HDCR is used: without root, with private pids, after a reboot, in the foreground, by a keeper, from
//! scripts. Each trial has a folder, a store and a place for running jobs of its own.

mod algorithms;
mod busy;
mod commands;
mod copies;
mod foreground;
mod guests;
mod jobs;
mod keeper;
mod kept;
mod lazy;
mod library;
mod manners;
mod memory;
mod paths;
mod pids;
mod reboot;
mod reports;
mod rollback;
pub(crate) mod stage;
mod terminal;
mod trouble;
mod trust;
mod user;
mod valgrind;

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;

use crate::Place;
use crate::report::{Finished, Outcome, Report};
use stage::{Lacking, Stage};

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct ModeArgs {
    /// Trials, by name or by the beginning of one; all when none is named.
    names: Vec<String>,
    /// One JSON object a line instead of text.
    #[arg(long)]
    json: bool,
    /// Keep the folders of trials that passed, too.
    #[arg(long)]
    keep: bool,
}

type Trial = (&'static str, fn(&mut Stage<'_>) -> Result<()>);

const TRIALS: &[Trial] = &[
    ("snapshot_fork", guests::by_fork),
    ("user_guests", user::guests),
    ("user_job", user::job),
    ("user_told", user::told),
    ("user_beside", user::beside),
    ("new_pids_guests", pids::guests),
    ("new_pids_taken", pids::taken),
    ("new_pids_of_threads", pids::of_threads),
    ("new_pids_job", pids::job),
    ("reboot_clocks", reboot::clocks),
    ("reboot_job", reboot::job),
    ("reboot_vdso", reboot::vdso),
    ("foreground_status", foreground::status),
    ("foreground_signals", foreground::signals),
    ("foreground_stdio", foreground::stdio),
    ("foreground_terminal", terminal::own_pids),
    ("foreground_terminal_new_pids", terminal::new_pids),
    ("foreground_terminal_tostop", terminal::tostop),
    ("foreground_terminal_hangup", terminal::hangup),
    ("foreground_terminal_rolled_back", terminal::rolled_back),
    ("commands_progress", terminal::progress),
    ("keeper_told", jobs::told),
    ("jobs_waits", jobs::waits),
    ("jobs_waits_for_address", jobs::waits_for_address),
    ("keeper_pids", keeper::pids),
    ("keeper_store_gone", keeper::store_gone),
    ("keeper_stopped", keeper::stopped),
    ("keeper_late", keeper::late),
    ("keeper_killed", keeper::killed),
    ("keeper_left", keeper::left),
    ("keeper_interrupted", rollback::interrupted),
    ("keeper_untold", rollback::untold),
    ("keeper_damaged", rollback::damaged),
    ("keeper_complete", rollback::complete),
    ("keeper_and_all_killed", rollback::all_killed),
    ("keeper_auto", keeper::auto),
    ("keeper_keeps", kept::limits),
    ("keeper_waits", keeper::waits),
    ("commands_check_waits", manners::check_waits),
    ("commands_slow", manners::slow),
    ("commands_mistyped", manners::mistyped),
    ("commands_pruned", kept::pruned),
    ("commands_base", kept::base),
    ("commands_bare", manners::bare),
    ("commands_busy", busy::told),
    ("commands_stopped", busy::stopped),
    ("keeper_starved", memory::starved),
    ("commands_verbose", reports::verbose),
    ("trust_store", trust::store),
    ("trust_store_of_user", trust::store_of_user),
    ("copies_by_hand", copies::by_hand),
    ("copies_by_hand_of_user", copies::by_hand_of_user),
    ("copies_second", copies::second),
    ("copies_second_of_user", copies::second_of_user),
    ("copies_second_with_semaphores", copies::second_with_semaphores),
    ("copies_elsewhere", copies::elsewhere),
    ("copies_taken_over", copies::taken_over),
    ("lazy_guests", lazy::zoo),
    ("lazy_killed", lazy::killed),
    ("lazy_keeper", lazy::keeper),
    ("lazy_parted", lazy::parted),
    ("lazy_crowd", lazy::crowd),
    ("library_branches", library::branches),
    ("library_hooks", library::hooks),
    ("library_examples", library::examples),
    ("library_python", library::python),
    ("library_memory", library::memory),
    ("library_hostile", library::hostile),
    ("library_of_user", library::of_user),
    ("library_by_hand", library::by_hand),
    ("library_valgrind", valgrind::alone),
    ("library_valgrind_kept", valgrind::kept),
    ("algorithm_own", algorithms::own),
    ("algorithm_examples", algorithms::examples),
    ("algorithm_of_user", algorithms::of_user),
    ("algorithm_lost", algorithms::lost),
    ("algorithm_notice", algorithms::notice),
    ("algorithm_word", algorithms::cooperative),
    ("commands_json", commands::json),
    ("commands_settings", commands::settings),
    ("commands_unwritable", reports::unwritable),
    ("commands_refused_beside", reports::refused_beside),
    ("commands_nothing_left", reports::nothing_left),
    ("commands_odd_store", paths::store),
    ("trouble_settings", trouble::settings),
    ("trouble_nothing", trouble::nothing),
    ("trouble_limits", trouble::limits),
];

/// Runs the trials that are wanted, one after the other: some of them need a pid, or a terminal, for themselves.
pub(crate) fn run(args: &ModeArgs, place: &Place) -> Result<bool> {
    let fits = |wanted: &String, name: &str| name.starts_with(wanted.as_str());
    for wanted in &args.names {
        ensure!(TRIALS.iter().any(|(name, _)| fits(wanted, name)), "no mode begins with {wanted}");
    }
    let wanted = |name: &str| args.names.is_empty() || args.names.iter().any(|wanted| fits(wanted, name));
    let trials: Vec<&Trial> = TRIALS.iter().filter(|(name, _)| wanted(name)).collect();
    let mut report = Report::new(args.json);
    for trial in trials {
        report.add(&run_one(trial, args, place)?)?;
    }
    report.close()
}

fn run_one((name, trial): &Trial, args: &ModeArgs, place: &Place) -> Result<Finished> {
    let began = Instant::now();
    let folder = tempfile::Builder::new().prefix(&format!("hdcr-mode-{name}-")).tempdir()?;
    let (outcome, log) = match &place.hdcr {
        None => (Outcome::Skipped("no hdcr binary was given".to_owned()), Vec::new()),
        Some(hdcr) => tried(*trial, hdcr, folder.path(), place)?,
    };
    let is_kept = args.keep || matches!(outcome, Outcome::Failed(_));
    Ok(Finished {
        name: (*name).to_owned(),
        mode: "mode".to_owned(),
        outcome,
        milliseconds: began.elapsed().as_millis(),
        checkpoint_milliseconds: Vec::new(),
        restore_milliseconds: Vec::new(),
        folder: is_kept.then(|| folder.keep()),
        log,
    })
}

fn tried(
    trial: fn(&mut Stage<'_>) -> Result<()>,
    hdcr: &Path,
    folder: &Path,
    place: &Place,
) -> Result<(Outcome, Vec<String>)> {
    let mut stage = Stage::new(hdcr, folder, place)?;
    let result = trial(&mut stage);
    let cleaned = stage.clean();
    let outcome = match result.and(cleaned) {
        Ok(()) => Outcome::Passed,
        Err(error) if error.is::<Lacking>() => Outcome::Skipped(error.to_string()),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    Ok((outcome, stage.log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_once() {
        let names: std::collections::BTreeSet<_> = TRIALS.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), TRIALS.len());
    }
}
