//! `hdcr check`: what stands in the way of a checkpoint or a restore. Touches nothing.

use serde::Serialize;

use super::Surrounding;
use super::checkpoint::pid;
use super::restore::{descriptors, place};
use crate::cli::CheckArgs;
use crate::failure::{Class, Obstacle, Result};
use crate::kinds::{StdioTarget, Then};
use crate::output::Report;
use crate::parts;
use crate::registry::{Answer, Request};
use crate::task::{CheckpointTask, RestoreTask, Target, Who};

/// What was found.
#[derive(Debug, Serialize)]
struct Checked {
    target: String,
    /// `checkpoint` or `restore`.
    operation: &'static str,
    possible: bool,
    processes: usize,
    refusals: Vec<Obstacle>,
    notes: Vec<Obstacle>,
}

impl Report for Checked {
    fn text(&self) -> String {
        let mut lines = vec![match self.refusals.len() {
            0 => format!("{}: {} of {} process(es) is possible", self.target, self.operation, self.processes),
            count => format!("{}: {} is refused, {count} object(s) stand in the way", self.target, self.operation),
        }];
        lines.extend(self.refusals.iter().map(|obstacle| format!("  {obstacle}")));
        lines.extend(self.notes.iter().map(|note| format!("  note: {note}")));
        lines.join("\n")
    }
}

pub(crate) fn run(at: &Surrounding<'_>, args: &CheckArgs) -> Result<u8> {
    let timeout = at.settings.checkpoint_timeout(None);
    let who = match pid(&args.target) {
        Some(pid) => Some(Who::Tree(pid)),
        None => match at.registry()?.ask(&args.target, &Request::Status, timeout) {
            Ok(Some(Answer::Status(status))) if !status.private_pids => Some(Who::Tree(status.pid)),
            _ => None,
        },
    };
    let (operation, found) = if let Some(who) = who {
        let target = Target::File(std::path::PathBuf::new());
        let files = at.settings.files(&args.files)?;
        let task = CheckpointTask {
            who,
            target,
            came_from: None,
            files,
            timeout,
            then: Then::GoOn,
            watched: false,
            keep: None,
        };
        ("checkpoint", parts::check_processes(&task)?)
    } else {
        let map_path = args.map_path.clone();
        let task = RestoreTask {
            place: place(at, &args.target)?,
            journals: at.settings.journals(),
            map_path,
            since: None,
            timeout,
            detach: false,
        };
        ("restore", parts::check_image(&task, descriptors(&StdioTarget::Null)?)?)
    };
    let (refusals, notes, processes) = found;
    let possible = refusals.is_empty();
    at.output.result(&Checked { target: args.target.clone(), operation, possible, processes, refusals, notes });
    Ok(if possible { 0 } else { Class::Refused.status() })
}
