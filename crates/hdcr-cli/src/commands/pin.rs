//! `hdcr pin` and `hdcr unpin`: checkpoints that stay whatever is given up.

use std::path::Path;

use clap::Args;
use hdcr_image::JobName;
use hdcr_store::LONGEST_NOTE;
use serde::Serialize;

use super::Surrounding;
use crate::failure::{Failure, Result};
use crate::names;
use crate::output::Report;
use crate::parts;

/// `hdcr pin`.
#[derive(Debug, Args)]
#[command(after_help = "\
A pinned checkpoint stays when old ones are given up (`hdcr run --keep`, `hdcr prune`, room for clones), and `hdcr rm` refuses it, until \
`hdcr unpin`. It counts as one of those that are kept.

Examples:
  hdcr pin sim                        the newest checkpoint of a job
  hdcr pin sim@12 --note 'converged'  `hdcr list` shows the note")]
pub(crate) struct PinArgs {
    /// NAME@ID for one checkpoint, NAME for the newest of a job
    #[arg(required = true, value_name = "NAME[@ID]")]
    images: Vec<String>,
    /// What it is kept for
    #[arg(long, value_name = "TEXT", value_parser = note, default_value = "", hide_default_value = true)]
    note: String,
}

/// `hdcr unpin`.
#[derive(Debug, Args)]
#[command(after_help = "\
What is unpinned stays until something gives it up: the next checkpoint of its job by `hdcr run --keep`, `hdcr prune` or `hdcr rm`.

Examples:
  hdcr unpin sim@12
  hdcr unpin sim      all that are pinned of a job")]
pub(crate) struct UnpinArgs {
    /// NAME@ID for one checkpoint, NAME for all pinned ones of a job
    #[arg(required = true, value_name = "NAME[@ID]")]
    images: Vec<String>,
}

/// One line that can be shown.
fn note(text: &str) -> std::result::Result<String, String> {
    if text.len() > LONGEST_NOTE {
        return Err(format!("a note has at most {LONGEST_NOTE} bytes, and this one {}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err("a note is one line without control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// What stays, or may go again.
#[derive(Debug, Serialize)]
struct Pinned {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pinned: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unpinned: Vec<String>,
}

impl Report for Pinned {
    fn text(&self) -> String {
        match (self.pinned.as_slice(), self.unpinned.as_slice()) {
            ([], []) => "nothing was pinned".to_owned(),
            ([], unpinned) => format!("unpinned {}", unpinned.join(", ")),
            (pinned, _) => format!("pinned {}", pinned.join(", ")),
        }
    }
}

/// A job, its checkpoints, and the one that is named.
type Named = (JobName, Vec<u64>, Option<u64>);

fn named(store: &Path, text: &str) -> Result<Named> {
    let (name, number) = text.split_once('@').map_or((text, None), |(name, number)| (name, Some(number)));
    if let Some(failure) = names::a_process(name) {
        return Err(failure);
    }
    let job = parts::job_name(name)?;
    let all = parts::numbers(store, &job)?;
    let place = store.display();
    if all.is_empty() {
        return Err(Failure::refused("no-such-checkpoint", format!("no checkpoint of {job} in {place}")).remedy(
            names::no_checkpoint(store, name, "`hdcr list` shows all; an image in a file of yours stays by itself"),
        ));
    }
    let Some(number) = number else { return Ok((job, all, None)) };
    let number = number.parse().map_err(|_| Failure::usage(format!("\"{text}\" is neither NAME nor NAME@ID")))?;
    if all.contains(&number) {
        return Ok((job, all, Some(number)));
    }
    Err(Failure::refused("no-such-checkpoint", format!("no checkpoint {job}@{number} in {place}"))
        .remedy(names::there_are(job.as_str(), &all)))
}

/// All are looked up before anything is done.
fn all_named(at: &Surrounding<'_>, images: &[String]) -> Result<Vec<Named>> {
    at.trusted_store()?;
    images.iter().map(|text| named(&at.settings.store, text)).collect()
}

pub(crate) fn pin(at: &Surrounding<'_>, args: &PinArgs) -> Result<u8> {
    let mut pinned = Vec::new();
    for (job, all, number) in all_named(at, &args.images)? {
        let Some(number) = number.or(all.last().copied()) else { continue };
        parts::pin(&at.settings.store, &job, number, &args.note)?;
        pinned.push(format!("{job}@{number}"));
    }
    at.output.result(&Pinned { pinned, unpinned: Vec::new() })?;
    Ok(0)
}

pub(crate) fn unpin(at: &Surrounding<'_>, args: &UnpinArgs) -> Result<u8> {
    let store = &at.settings.store;
    let mut unpinned = Vec::new();
    for (job, _, number) in all_named(at, &args.images)? {
        let pins = parts::pins(store, &job)?;
        for number in pins.into_keys().filter(|pin| number.is_none_or(|number| number == *pin)) {
            if parts::unpin(store, &job, number)? {
                unpinned.push(format!("{job}@{number}"));
            }
        }
    }
    at.output.result(&Pinned { pinned: Vec::new(), unpinned })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_one_short_line() {
        assert_eq!(note("converged, Δ<1e-9").unwrap(), "converged, Δ<1e-9");
        assert!(note(&"x".repeat(LONGEST_NOTE)).is_ok() && note(&"x".repeat(LONGEST_NOTE + 1)).is_err());
        assert!(note("two\nlines").is_err() && note("\u{1b}[2J").is_err());
    }
}
