//! What the job did to files, for the keeper after this one: a kill or a reboot takes the table of the watch with it.
//!
//! `STORE/.jobs/NAME.touched` says for each checkpoint what a rollback to it undoes. It is written anew at most every second
//! and for at most a twentieth of the time, whole or not at all, and reaches the disk with each checkpoint. Whoever reads it
//! takes it for incomplete: nobody has watched what came after.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hdcr_image::JobName;
use serde::{Deserialize, Serialize};

use super::super::Keeper;
use crate::failure::{Failure, Result};
use crate::job;
use crate::told::Since;

const VERSION: u32 = 1;
/// A longer one is neither written nor read.
const MOST_BYTES: u64 = 32 << 20;
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// The part of the time that is given to it.
const PART: u32 = 20;

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    tables: BTreeMap<u64, Since>,
}

/// What an earlier keeper knew, and when this one writes next.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// By the number of a checkpoint that this keeper has not gone back to yet.
    earlier: BTreeMap<u64, Since>,
    written: u64,
    next: Option<Instant>,
}

fn path(store: &Path, name: &JobName) -> PathBuf {
    store.join(".jobs").join(format!("{name}.touched"))
}

/// What is remembered of a job; nothing when there is nothing that can be trusted.
pub(crate) fn read(store: &Path, name: &JobName) -> BTreeMap<u64, Since> {
    let path = path(store, name);
    let Ok(facts) = fs::symlink_metadata(&path) else { return BTreeMap::new() };
    let own = facts.is_file() && facts.uid() == rustix::process::geteuid().as_raw() && facts.mode() & 0o022 == 0;
    if !own || facts.len() > MOST_BYTES {
        tracing::warn!(path = %path.display(), "not used: it is too long, or somebody else may have written it");
        return BTreeMap::new();
    }
    let stored = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok());
    let Some(stored) = stored.filter(|stored| stored.version == VERSION) else {
        tracing::warn!(path = %path.display(), "not used: it cannot be read");
        return BTreeMap::new();
    };
    stored.tables.into_iter().map(|(number, since)| (number, since.unwatched_later())).collect()
}

/// Forgets it: the job has ended, or begins anew.
pub(crate) fn forget(store: &Path, name: &JobName) {
    if let Err(error) = fs::remove_file(path(store, name))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "what was remembered of files was not removed");
    }
}

fn write(store: &Path, name: &JobName, tables: BTreeMap<u64, Since>, durable: bool) -> Result<()> {
    let bytes = serde_json::to_vec(&Stored { version: VERSION, tables });
    let bytes = bytes.map_err(Failure::system("encoding what was done to files"))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MOST_BYTES {
        forget(store, name);
        return Ok(());
    }
    job::put(&path(store, name), &bytes, durable)
}

impl Keeper {
    /// Takes over what an earlier keeper knew of the files of this run.
    pub(in crate::keeper) fn remember_files(&mut self) {
        self.remembered.earlier = read(&self.plan.store, &self.plan.name);
    }

    /// There is no checkpoint any more to which anything could be undone.
    pub(in crate::keeper) fn forget_files(&mut self) {
        self.remembered.earlier.clear();
        forget(&self.plan.store, &self.plan.name);
    }

    /// What an earlier keeper knew is to be undone for a checkpoint that this one did not make. From here on this one
    /// watches what is done since.
    pub(super) fn known_earlier(&mut self, number: u64) -> Option<Since> {
        let since = self.remembered.earlier.get(&number).cloned()?;
        if let Some(watch) = &mut self.watch {
            watch.begin_from(number);
        }
        Some(since)
    }

    /// Files are as they were at a checkpoint: what was known before is done.
    pub(in crate::keeper) fn files_are_as_at(&mut self, number: u64) {
        self.remembered.earlier.remove(&number);
        self.write_files(false);
    }

    /// When there is something to be written down.
    pub(in crate::keeper) fn files_due(&self) -> Option<Instant> {
        let watch = self.watch.as_ref()?;
        (watch.told() != self.remembered.written).then(|| self.remembered.next.unwrap_or_else(Instant::now))
    }

    /// Writes down what is due.
    pub(in crate::keeper) fn write_files_when_due(&mut self) {
        if self.files_due().is_some_and(|due| due <= Instant::now()) {
            self.write_files(false);
        }
    }

    /// Writes down what a rollback undoes, for each checkpoint there is.
    pub(in crate::keeper) fn write_files(&mut self, durable: bool) {
        let Some(watch) = &self.watch else { return };
        let told = watch.told();
        let began = Instant::now();
        let mut tables = self.remembered.earlier.clone();
        for made in &self.made {
            if let Some(changes) = watch.since(made.number) {
                let since = Since::new(&changes, &self.plan.files, self.aside(made.number), self.plan.store.clone());
                tables.entry(made.number).or_insert(since);
            }
        }
        if let Err(failure) = write(&self.plan.store, &self.plan.name, tables, durable) {
            tracing::warn!(%failure, "a later keeper will not know what was done to files");
        }
        self.remembered.written = told;
        let pause = (began.elapsed() * PART).max(SHORTEST_PAUSE);
        self.remembered.next = Some(Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_is_read_as_incomplete_and_what_is_odd_is_not_used() {
        let store = tempfile::tempdir().unwrap();
        fs::create_dir(store.path().join(".jobs")).unwrap();
        let name = JobName::new("a").unwrap();
        assert!(read(store.path(), &name).is_empty());
        let tables = BTreeMap::from([(7, Since::default())]);
        write(store.path(), &name, tables, true).unwrap();
        let found = read(store.path(), &name);
        assert_eq!(found, BTreeMap::from([(7, Since::default().unwatched_later())]));
        assert!(found.values().all(|since| since.for_engine().incomplete));
        let path = path(store.path(), &name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(read(store.path(), &name).is_empty(), "anybody may have written it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "{").unwrap();
        assert!(read(store.path(), &name).is_empty());
        forget(store.path(), &name);
        assert!(!path.exists());
    }
}
