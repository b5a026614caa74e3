//! The ledger of a life: entries of the protocol as bytes in the store.

use std::collections::BTreeSet;
use std::path::PathBuf;

use hdcr_store::{Durability, Entries, Put};
use hdcr_sync::ids::{Member, Round, Seq};
use hdcr_sync::ledger::{Decision, End, Entry, Outcome};
use hdcr_sync::manifest::EpochManifest;

use super::room::{Life, damaged};
use super::shares;
use crate::failure::Result;

/// The ledger of one life.
#[derive(Debug)]
pub(crate) struct Ledger {
    life: Life,
    entries: Entries,
    directory: PathBuf,
}

impl Ledger {
    /// That of a life.
    pub(crate) fn open(life: &Life) -> Result<Self> {
        let directory = life.file("ledger");
        let entries = Entries::open(&directory, Durability::Fsync)?;
        Ok(Self { life: life.clone(), entries, directory })
    }

    /// Removes what writers that died have left. Only by who holds the job.
    pub(crate) fn sweep(&self) {
        self.entries.sweep();
    }

    fn read(&self, number: u64) -> Result<Option<Entry>> {
        let Some(bytes) = self.entries.read(number)? else { return Ok(None) };
        let path = || self.directory.join(number.to_string());
        Entry::decode(&bytes).map(Some).map_err(|error| damaged(&path(), &error.to_string()))
    }

    /// The last entry.
    pub(crate) fn last(&self) -> Result<Option<(Seq, Entry)>> {
        let Some(number) = self.entries.last()? else { return Ok(None) };
        Ok(self.read(number)?.map(|entry| (Seq(number), entry)))
    }

    /// All that a coordinator has to know to go on.
    pub(crate) fn end(&self) -> Result<End> {
        let last = self.last()?;
        let mut line = last.as_ref().and_then(|(_, entry)| entry.line);
        let mut manifest = None;
        while let Some(round) = line {
            let found = self.manifest(round)?;
            let whole = found.as_ref().is_some_and(|found| {
                let broken = found.shares.iter().find_map(|share| shares::verify(&self.life, round, share).err());
                if let Some(failure) = &broken {
                    tracing::warn!("checkpoint {} cannot be used: {failure}", shares::called(round));
                }
                broken.is_none()
            });
            if whole {
                manifest = found;
                break;
            }
            line = found.and_then(|found| found.previous);
        }
        Ok(End { last, manifest })
    }

    /// The record of a committed round.
    pub(crate) fn manifest(&self, round: Round) -> Result<Option<EpochManifest>> {
        let Some(last) = self.entries.last()? else { return Ok(None) };
        for number in (0..=last).rev() {
            if let Some(Entry { decision: Decision::Commit(manifest), .. }) = self.read(number)?
                && manifest.round == round
            {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// All that have ever had tasks of this life.
    pub(crate) fn ever(&self) -> Result<BTreeSet<Member>> {
        let mut ever = BTreeSet::new();
        let Some(last) = self.entries.last()? else { return Ok(ever) };
        for number in 0..=last {
            ever.extend(self.read(number)?.into_iter().flat_map(|entry| entry.view));
        }
        Ok(ever)
    }

    /// Writes an entry at its place, if that is free.
    pub(crate) fn append(&self, at: Seq, entry: &Entry) -> Outcome {
        match self.entries.put(at.0, &entry.encode()) {
            Put::Written => Outcome::Written,
            Put::Taken(bytes) => match Entry::decode(&bytes) {
                Ok(there) => Outcome::Taken(there),
                Err(error) => {
                    tracing::warn!("entry {} of the ledger: {error}", at.0);
                    Outcome::Unknown
                }
            },
            Put::Refused(error) => {
                tracing::warn!("entry {} of the ledger was not written: {error}", at.0);
                Outcome::Refused
            }
            Put::Unknown(error) => {
                tracing::warn!("whether entry {} of the ledger was written is not known: {error}", at.0);
                Outcome::Unknown
            }
        }
    }
}
