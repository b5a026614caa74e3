//! `hdcr list`: what the store holds.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use hdcr_image::Manifest;
use rustix::time::ClockId;
use serde::Serialize;

use super::Surrounding;
use crate::cli::ListArgs;
use crate::duration;
use crate::failure::{Failure, Result};
use crate::job;
use crate::machine;
use crate::names;
use crate::output::Report;
use crate::parts;
use crate::paths::shown;
use crate::table::{Cut, Table};

/// One checkpoint.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) snapshot: String,
    pub(crate) image: Option<String>,
    pub(crate) age_s: Option<u64>,
    pub(crate) bytes: Option<u64>,
    /// Written for it alone; more than `bytes` when memory changed while it was copied and was written again.
    pub(crate) added: Option<u64>,
    pub(crate) processes: Option<usize>,
    pub(crate) command: Option<String>,
    /// The checkpoint this one came from.
    pub(crate) came_from: Option<String>,
    /// It holds anew only what was written since this checkpoint; it needs nothing of it any more.
    pub(crate) base: Option<String>,
    /// It stays until somebody unpins it, and what for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pinned: Option<String>,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fault: Option<String>,
}

#[derive(Debug, Serialize)]
struct Listed {
    store: std::path::PathBuf,
    checkpoints: Vec<Row>,
}

/// The column of the command; of what is pinned when something is.
const COMMAND: usize = 6;
/// Below the table, for people.
const SIZES: &str = "SIZE: of all its files, shared ones too; NEW: written for it (hdcr list --help)";

impl Listed {
    fn lines(&self, width: Option<usize>) -> String {
        if self.checkpoints.is_empty() {
            return format!("no checkpoints in {}", self.store.display());
        }
        let mut head = vec!["CHECKPOINT", "AGE", "SIZE", "NEW", "PROCESSES", "FROM", "COMMAND"];
        let has_pins = self.checkpoints.iter().any(|row| row.pinned.is_some());
        if has_pins {
            head.insert(COMMAND, "PINNED");
        }
        let rows = self.checkpoints.iter().map(|row| cells(row, has_pins));
        let table = Table::new(&head, rows).cut(&[(head.len() - 1, Cut::End)]).spare(&[4, 5]);
        let text = table.text(width);
        if width.is_some() { format!("{text}\n{SIZES}") } else { text }
    }
}

impl Report for Listed {
    fn text(&self) -> String {
        self.lines(None)
    }

    fn fitted(&self, width: usize) -> String {
        self.lines(Some(width))
    }
}

fn cells(row: &Row, with_pins: bool) -> Vec<String> {
    let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut cells = vec![
        row.snapshot.clone(),
        or(row.age_s.map(|age| duration::show(Duration::from_secs(age)))),
        or(row.bytes.map(duration::show_size)),
        or(row.added.map(duration::show_size)),
        or(row.processes.map(|count| count.to_string())),
        or(row.came_from.clone()),
        row.fault.clone().or_else(|| row.command.clone()).unwrap_or_default(),
    ];
    if with_pins {
        let what_for = row.pinned.clone().map(|note| if note.is_empty() { "yes".to_owned() } else { note });
        cells.insert(COMMAND, or(what_for));
    }
    cells
}

impl Row {
    /// What a manifest says, `now` being the wall clock in nanoseconds.
    pub(crate) fn of(snapshot: String, manifest: &Manifest, now: i64) -> Self {
        let facts = &manifest.facts;
        Self {
            snapshot,
            image: Some(manifest.id.image.to_string()),
            age_s: u64::try_from(now.saturating_sub(facts.clocks.realtime_ns)).ok().map(|age| age / 1_000_000_000),
            bytes: Some(manifest.total_size()),
            added: Some(manifest.added_size()),
            processes: Some(facts.processes.len()),
            command: Some(command(&facts.command)),
            came_from: facts.lineage.first().map(ToString::to_string),
            base: facts.base.as_ref().map(ToString::to_string),
            pinned: None,
            fault: None,
        }
    }
}

/// The command of a program; a title that it has written over its arguments (`nginx: worker`) as it stands there.
pub(crate) fn command(words: &[Vec<u8>]) -> String {
    match words {
        [title, rest @ ..] if !title.is_empty() && !rest.is_empty() && rest.iter().all(Vec::is_empty) => {
            String::from_utf8_lossy(title).trim_end().to_owned()
        }
        words => {
            let words: Vec<OsString> =
                words.iter().map(|word| String::from_utf8_lossy(word).into_owned().into()).collect();
            job::show(&words)
        }
    }
}

pub(crate) fn run(at: &Surrounding<'_>, args: &ListArgs) -> Result<u8> {
    let job = args.name.as_deref().map(parts::job_name).transpose()?;
    let now = machine::now(ClockId::Realtime);
    let row = |entry: hdcr_store::Entry| {
        let snapshot = format!("{}@{}", entry.job, entry.sequence);
        match &entry.manifest {
            Ok(manifest) => Row::of(snapshot, manifest, now),
            Err(error) => Row {
                snapshot,
                image: None,
                age_s: None,
                bytes: None,
                added: None,
                processes: None,
                command: None,
                came_from: None,
                base: None,
                pinned: None,
                fault: Some(crate::failure::chain(error)),
            },
        }
    };
    let store = &at.settings.store;
    let mut pins = BTreeMap::new();
    let mut pinned = |entry: &hdcr_store::Entry| {
        let of_job =
            pins.entry(entry.job.clone()).or_insert_with(|| parts::pins(store, &entry.job).unwrap_or_default());
        of_job.get(&entry.sequence).cloned()
    };
    let with_pin = |entry| Row { pinned: pinned(&entry), ..row(entry) };
    let checkpoints: Vec<Row> = parts::list(store, job.as_ref())?.into_iter().map(with_pin).collect();
    if let (Some(job), true) = (&job, checkpoints.is_empty()) {
        let store = at.settings.store.display();
        return Err(Failure::refused("no-such-checkpoint", format!("no checkpoint of {job} in {store}"))
            .remedy(names::no_checkpoint(&at.settings.store, job.as_str(), "`hdcr list` shows all")));
    }
    at.output.result(&Listed { store: shown(&at.settings.store), checkpoints })?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_one_word() {
        let shown = |words: &[&str]| command(&words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>());
        assert_eq!(shown(&["redis-server *:7799", "", "", ""]), "redis-server *:7799");
        assert_eq!(shown(&["sh", "-c", "", "a b"]), "sh -c '' 'a b'");
        assert_eq!((shown(&["true"]), shown(&[])), ("true".to_owned(), String::new()));
    }
}
