//! The ledger of a life: entries of the protocol as bytes in the store.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::PathBuf;

use hdcr_store::{Durability, Entries, Put};
use hdcr_sync::ids::{Member, Round, Seq};
use hdcr_sync::ledger::{Decision, End, Entry, Outcome};
use hdcr_sync::manifest::EpochManifest;

use super::room::{Life, damaged};
use super::shares;
use crate::failure::{Class, Failure, Result};

/// The ledger of one life.
#[derive(Debug)]
pub(crate) struct Ledger {
    life: Life,
    entries: Entries,
    directory: PathBuf,
    /// Where an entry may stand of which that is not known.
    unsure: Cell<Option<Seq>>,
}

impl Ledger {
    /// That of a life.
    pub(crate) fn open(life: &Life) -> Result<Self> {
        let directory = life.file("ledger");
        let entries = Entries::open(&directory, Durability::Fsync)?;
        Ok(Self { life: life.clone(), entries, directory, unsure: Cell::new(None) })
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

    /// One that must be there, as a later one is.
    fn earlier(&self, number: u64) -> Result<Entry> {
        self.read(number)?.ok_or_else(|| damaged(&self.directory.join(number.to_string()), "it is not there"))
    }

    /// The last entry.
    pub(crate) fn last(&self) -> Result<Option<(Seq, Entry)>> {
        let Some(number) = self.entries.last()? else { return Ok(None) };
        Ok(self.read(number)?.map(|entry| (Seq(number), entry)))
    }

    /// All that a coordinator has to know to go on. A checkpoint that is damaged is passed over; one that cannot be read now is an
    /// error: what is written next would give it up for good.
    pub(crate) fn end(&self) -> Result<End> {
        let last = self.last()?;
        let mut line = last.as_ref().and_then(|(_, entry)| entry.line);
        let mut manifest = None;
        while let Some(round) = line {
            let Some(found) = self.manifest(round)? else { break };
            let broken = found.shares.iter().find_map(|share| shares::verify(&self.life, round, share).err());
            match broken {
                None => {
                    manifest = Some(found);
                    break;
                }
                Some(failure) if failure.class != Class::Corrupt => {
                    return Err(failure.during(format_args!("checkpoint {} of the job", shares::called(round))));
                }
                Some(failure) => tracing::warn!("checkpoint {} cannot be used: {failure}", shares::called(round)),
            }
            line = found.previous.filter(|previous| *previous < round);
        }
        Ok(End { last, manifest })
    }

    /// The record of a committed round.
    pub(crate) fn manifest(&self, round: Round) -> Result<Option<EpochManifest>> {
        let Some(last) = self.entries.last()? else { return Ok(None) };
        for number in (0..=last).rev() {
            if let Entry { decision: Decision::Commit(manifest), .. } = self.earlier(number)?
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
            ever.extend(self.earlier(number)?.view);
        }
        Ok(ever)
    }

    /// Refuses to begin anew over checkpoints, none of which can be used.
    pub(crate) fn must_be_without(&self) -> Result<()> {
        let Some(last) = self.entries.last()? else { return Ok(()) };
        for number in 0..=last {
            if let Decision::Commit(manifest) = self.earlier(number)?.decision {
                let message = format!(
                    "no checkpoint of the job can be used any more, not even {}; what is left of them stays",
                    shares::called(manifest.round)
                );
                return Err(Failure::new(Class::Corrupt, "unsound", message)
                    .remedy("look at the store first; --fresh begins anew and removes them"));
            }
        }
        Ok(())
    }

    /// Writes an entry at its place, if that is free.
    pub(crate) fn append(&self, at: Seq, entry: &Entry) -> Outcome {
        let outcome = self.put(at, entry);
        // Once it may stand there, an attempt that comes to nothing does not tell that it never will.
        let outcome =
            if outcome == Outcome::Refused && self.unsure.get() == Some(at) { Outcome::Unknown } else { outcome };
        self.unsure.set((outcome == Outcome::Unknown).then_some(at));
        outcome
    }

    fn put(&self, at: Seq, entry: &Entry) -> Outcome {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use hdcr_image::JobName;
    use hdcr_store::Faults;
    use hdcr_sync::ids::{Author, Epoch, Incarnation, Term};
    use hdcr_sync::manifest::{Share, ShareId};

    use super::super::room::Room;
    use super::*;

    const fn round(epoch: u64) -> Round {
        Round { term: Term(1), epoch: Epoch(epoch) }
    }

    fn share(life: &Life, epoch: u64) -> Share {
        let id = ShareId { round: round(epoch), member: Member(0) };
        let image = shares::begin(life, id).unwrap();
        fs::create_dir(&image).unwrap();
        fs::write(image.join("manifest"), epoch.to_string()).unwrap();
        shares::complete(life, id, &[], 1, 1).unwrap()
    }

    fn entry(line: Option<Round>, decision: Decision) -> Entry {
        let view = BTreeSet::from([Member(0)]);
        let (joined, suspects) = (BTreeSet::new(), BTreeSet::new());
        Entry {
            author: Author::default(),
            term: Term(1),
            incarnation: Incarnation(0),
            view,
            joined,
            suspects,
            line,
            decision,
        }
    }

    /// A life with two committed checkpoints; `previous`: what the second one names as the first.
    fn scene(previous: Option<Round>) -> (tempfile::TempDir, Life, Ledger) {
        let store = tempfile::tempdir().unwrap();
        let life = Room::of(store.path(), &JobName::new("sim").unwrap()).begin_life().unwrap();
        let ledger = Ledger::open(&life).unwrap();
        assert_eq!(ledger.append(Seq(0), &entry(None, Decision::Claim)), Outcome::Written);
        for (epoch, previous) in [(1, None), (2, previous)] {
            let shares = vec![share(&life, epoch)];
            let commit = EpochManifest { round: round(epoch), incarnation: Incarnation(0), previous, shares };
            let commit = entry(Some(round(epoch)), Decision::Commit(commit));
            assert_eq!(ledger.append(Seq(epoch), &commit), Outcome::Written);
        }
        (store, life, ledger)
    }

    fn line(ledger: &Ledger) -> Option<Round> {
        ledger.end().unwrap().manifest.map(|manifest| manifest.round)
    }

    fn manifest(life: &Life, epoch: u64) -> PathBuf {
        shares::image(life, ShareId { round: round(epoch), member: Member(0) }).join("manifest")
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_and_no_job_begins_anew_over_one() {
        let (_store, life, ledger) = scene(Some(round(1)));
        assert_eq!(line(&ledger), Some(round(2)));
        fs::write(manifest(&life, 2), "other").unwrap();
        assert_eq!(line(&ledger), Some(round(1)));
        fs::remove_file(manifest(&life, 1)).unwrap();
        assert_eq!(line(&ledger), None);
        assert_eq!(ledger.must_be_without().unwrap_err().code, "unsound");
    }

    #[test]
    fn a_checkpoint_that_cannot_be_read_now_is_not_given_up() {
        let (_store, life, ledger) = scene(Some(round(1)));
        fs::remove_file(manifest(&life, 2)).unwrap();
        fs::create_dir(manifest(&life, 2)).unwrap();
        let failure = ledger.end().unwrap_err();
        assert!(failure.class != Class::Corrupt, "{failure}");
    }

    #[test]
    fn odd_ledgers_come_to_an_end() {
        let (_store, life, ledger) = scene(Some(round(2)));
        fs::write(manifest(&life, 2), "other").unwrap();
        assert_eq!(line(&ledger), None);
        // A place that no entry can have come to.
        let far = life.file("ledger").join(u64::MAX.to_string());
        fs::write(&far, entry(None, Decision::Claim).encode()).unwrap();
        assert!(ledger.ever().is_err() && ledger.manifest(round(1)).is_err() && ledger.must_be_without().is_err());
    }

    #[test]
    fn what_may_be_there_is_never_said_to_be_refused() {
        let mut unsure = 0;
        for at in 0..20 {
            let (_store, life, _) = scene(None);
            let entries = Entries::with(&life.file("ledger"), Durability::Fsync, Faults::die_at(at));
            let Ok(entries) = entries else { continue };
            let ledger =
                Ledger { life: life.clone(), entries, directory: life.file("ledger"), unsure: Cell::new(None) };
            let claim = entry(Some(round(2)), Decision::Claim);
            let first = ledger.append(Seq(3), &claim);
            let again = ledger.append(Seq(3), &claim);
            if first == Outcome::Unknown {
                unsure += 1;
                assert_ne!(again, Outcome::Refused, "{at}");
            }
        }
        assert!(unsure > 0);
    }
}
