//! Files that the tree only reads, looked at when it runs again: programs, libraries, input.
//!
//! Their digests, and the contents of programs that no package brings back, cost more than all the rest of a small
//! capture and need no stop: nobody is expected to change them. When one changes in between, that shows in its times, and
//! nothing is said of it: a restore then goes by its size and time alone.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use hdcr_image::{Record, Tag};
use rustix::fs::Stat;

use super::contents::{self, InodeRecord, facts};
use super::{data, keep, patient};
use crate::error::{Error, Result};
use crate::mechanism::Deadline;
use crate::model::{self, ObjectId};

/// What an image holds of a file that is only read, besides its [`InodeRecord`], under the same id.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LateRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) digest: Vec<u8>,
    #[prost(bool, tag = "2")]
    pub(crate) sampled: bool,
    #[prost(bool, tag = "3")]
    pub(crate) contents: bool,
}

impl Record for LateRecord {
    const TAG: Tag = Tag(0x021b);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// A file that is still to be read.
#[derive(Debug)]
pub(crate) struct LateFile {
    pub(crate) id: ObjectId,
    /// Nothing: it is opened by its path, as the tree does not hold it.
    pub(crate) file: Option<OwnedFd>,
    pub(crate) path: PathBuf,
    /// As it was under the freeze.
    pub(crate) stat: Stat,
    /// Its contents are kept.
    pub(crate) contents: bool,
    /// When to give up.
    pub(crate) by: Deadline,
}

impl LateFile {
    /// Reads it; `put` stores pieces of contents. `None`: it has changed meanwhile, or its file
    /// system does not answer.
    pub(crate) fn read(&self, put: &mut dyn FnMut(u64, Vec<u8>) -> Result<()>) -> Result<Option<LateRecord>> {
        let size = self.stat.st_size.cast_unsigned();
        let opened = if self.file.is_none() { contents::open_quietly(&self.path) } else { None };
        let Some(file) = self.file.as_ref().or(opened.as_ref()) else { return Ok(None) };
        if self.contents
            && let Err(error) = patient::read(file, size, &self.path, self.by, put)
        {
            return if patient::is_late(&error) { Ok(None) } else { Err(error) };
        }
        let whole = self.contents || size <= keep::DIGEST_ALL && !keep::of_the_system(&self.path);
        let look = if whole { data::digest } else { data::sample };
        let digest = match patient::look(look, (file, size, &self.path), self.by) {
            Err(error) if patient::is_late(&error) => return Ok(None),
            other => other?,
        };
        let now = rustix::fs::fstat(file).map_err(Error::system("looking at a file", self.path.display()))?;
        // The inode may lose a name meanwhile: that is no change of what it holds.
        let same = |stat: &Stat| InodeRecord { ctime: 0, ctime_ns: 0, ..facts(stat) };
        let unchanged = same(&now) == same(&self.stat) && now.st_size == self.stat.st_size;
        Ok(unchanged.then_some(LateRecord { digest, sampled: !whole, contents: self.contents }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_meanwhile_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, "text").unwrap();
        let file = OwnedFd::from(std::fs::File::open(&path).unwrap());
        let stat = rustix::fs::fstat(&file).unwrap();
        let by = Deadline(std::time::Instant::now() + std::time::Duration::from_mins(1));
        let late = LateFile { id: ObjectId(1), file: Some(file), path: path.clone(), stat, contents: true, by };
        let mut pieces = 0;
        let record = late.read(&mut |_, _| {
            pieces += 1;
            Ok(())
        });
        let record = record.unwrap().unwrap();
        assert_eq!((record.digest, pieces), (blake3::hash(b"text").as_bytes().to_vec(), 1));
        std::fs::write(&path, "other").unwrap();
        assert_eq!(late.read(&mut |_, _| Ok(())).unwrap(), None);
    }
}
