//! Numbered entries, each written once if its place is free, and never changed: what a ledger is made of.
//!
//! An entry is written under a temporary name, synced, and linked to its number, which link(2) refuses when there is one
//! already, also on network file systems. What an entry says is its writer's matter.

use std::io;
use std::path::{Path, PathBuf};

use hdcr_image::StoreError;

use crate::disk::{Disk, Durability, Faults, failed, random_suffix};
use crate::error::Error;

/// Digits of a name: numbers sort as names do.
const DIGITS: usize = 20;
/// What the name of an entry in the making begins with.
const NEW: &str = ".new-";

/// A directory of entries.
#[derive(Clone, Debug)]
pub struct Entries {
    disk: Disk,
    directory: PathBuf,
}

/// What has become of an entry that was put.
#[derive(Debug)]
pub enum Put {
    /// It is there and will stay.
    Written,
    /// The place has this one; it may be the same from an attempt before.
    Taken(Vec<u8>),
    /// It is not there and never will be.
    Refused(StoreError),
    /// It may be there.
    Unknown(StoreError),
}

impl Entries {
    /// The entries of a directory, which is made when it is not there.
    pub fn open(directory: &Path, durability: Durability) -> Result<Self, Error> {
        Self::with(directory, durability, Faults::default())
    }

    /// The same, where calls fail as planned.
    pub fn with(directory: &Path, durability: Durability, faults: Faults) -> Result<Self, Error> {
        let entries = Self { disk: Disk { faults, durability }, directory: directory.to_owned() };
        entries.disk.create_dir_all(directory)?;
        Ok(entries)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:0DIGITS$}"))
    }

    /// The highest number that is taken.
    pub fn last(&self) -> Result<Option<u64>, Error> {
        let listing = |error| failed("listing", &self.directory, error);
        let mut last = None;
        for entry in std::fs::read_dir(&self.directory).map_err(listing)? {
            let name = entry.map_err(listing)?.file_name();
            let number = name.to_str().filter(|name| name.len() == DIGITS).and_then(|name| name.parse().ok());
            last = last.max(number);
        }
        Ok(last)
    }

    /// The entry at a place.
    pub fn read(&self, number: u64) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.look(number)?)
    }

    fn look(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(number);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path, error)),
        }
    }

    /// Puts an entry at a place that is free.
    pub fn put(&self, number: u64, bytes: &[u8]) -> Put {
        let part = match self.part(bytes) {
            Ok(part) => part,
            Err(error) => return Put::Refused(error),
        };
        let linked = self.disk.link_again(&part, &self.path(number));
        // Whatever has become of it, its other name is of no use.
        self.disk.remove_file(&part).ok();
        // What link(2) says may be wrong where a network lies between: what stands there counts.
        let there = self.disk.sync_dir(&self.directory).and_then(|()| self.look(number));
        match (linked, there) {
            (Ok(()), Ok(Some(there))) if there == bytes => Put::Written,
            (_, Ok(Some(there))) => Put::Taken(there),
            (Ok(()), Ok(None)) => Put::Unknown(failed("finding", &self.path(number), io::ErrorKind::NotFound.into())),
            (_, Err(error)) | (Err(error), Ok(None)) => Put::Unknown(error),
        }
    }

    /// The entry under a name of its own, synced.
    fn part(&self, bytes: &[u8]) -> Result<PathBuf, StoreError> {
        let part = self.directory.join(format!("{NEW}{}", random_suffix()?));
        let file = self.disk.create_file(&part)?;
        let written = self.disk.write(&file, &part, bytes).and_then(|()| self.disk.sync_file(&file, &part));
        if written.is_err() {
            self.disk.remove_file(&part).ok();
        }
        written.map(|()| part)
    }

    /// Removes what writers that died have left. Only when nobody writes.
    pub fn sweep(&self) {
        let Ok(all) = std::fs::read_dir(&self.directory) else { return };
        for entry in all.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(NEW)) {
            self.disk.remove_file(&entry.path()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_once() {
        let place = tempfile::tempdir().unwrap();
        let entries = Entries::open(&place.path().join("ledger"), Durability::None).unwrap();
        assert_eq!(entries.last().unwrap(), None);
        assert!(matches!(entries.put(0, b"a"), Put::Written));
        assert!(matches!(entries.put(0, b"b"), Put::Taken(there) if there == b"a"));
        assert!(matches!(entries.put(0, b"a"), Put::Taken(there) if there == b"a"));
        assert!(matches!(entries.put(12, b"c"), Put::Written));
        assert_eq!(entries.last().unwrap(), Some(12));
        assert_eq!(entries.read(0).unwrap(), Some(b"a".to_vec()));
        assert_eq!(entries.read(1).unwrap(), None);
        assert_eq!(std::fs::read_dir(place.path().join("ledger")).unwrap().count(), 2);
    }

    /// At whatever call it dies: an entry that was told to be there is there, one that was refused is not, and another
    /// writer finds the place whole or free.
    #[test]
    fn a_writer_that_dies_leaves_all_or_nothing() {
        for at in 0..12 {
            let place = tempfile::tempdir().unwrap();
            Entries::open(place.path(), Durability::Fsync).unwrap();
            let dying = Entries::with(place.path(), Durability::Fsync, Faults::die_at(at)).unwrap();
            let put = dying.put(3, b"first");
            let entries = Entries::open(place.path(), Durability::Fsync).unwrap();
            let there = entries.read(3).unwrap();
            assert!(there.as_deref().is_none_or(|there| there == b"first"), "{at}");
            match put {
                Put::Written => assert!(there.is_some(), "{at}"),
                Put::Refused(_) => assert!(there.is_none(), "{at}"),
                Put::Taken(_) => panic!("{at}: nobody else writes"),
                Put::Unknown(_) => {}
            }
            let next = entries.put(3, b"second");
            assert_eq!(matches!(next, Put::Written), there.is_none(), "{at}: {next:?}");
            entries.sweep();
            assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "{at}");
        }
    }

    #[test]
    fn of_many_writers_one_wins() {
        let place = tempfile::tempdir().unwrap();
        let entries = Entries::open(place.path(), Durability::None).unwrap();
        let won: usize = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8_u8)
                .map(|writer| {
                    let entries = &entries;
                    scope.spawn(move || (0..50).filter(|n| matches!(entries.put(*n, &[writer]), Put::Written)).count())
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).sum()
        });
        assert_eq!(won, 50);
    }
}
