//! The journal of a roll-back: what has to be undone when it does not come to its end, written before it is done.
//!
//! A file of framed entries that only grows; a torn tail is an entry that was never acted upon. Its last entry says that
//! nothing is undone any more ([`Come`]): what is left to do then can be done again by whoever finds it. It is locked while
//! its restore lives, so that the next restore can tell a dead one from one at work.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use rustix::fs::FlockOperation;

use super::reserve;
use super::steps::Steps;
use crate::error::{Error, Owner, Refusal, Result};
use crate::rights::Rights;

/// What is to be undone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Undo {
    /// Nothing: an entry of another version.
    Nothing = 0,
    /// Remove a file of ours.
    Remove = 1,
    /// Write the kept copy back.
    WriteBack = 2,
    /// Remove a directory of ours.
    RemoveDirectory = 3,
    /// Move a file back to where it was.
    MoveBack = 4,
    /// Remove a socket of ours that nobody listens at, made at the entry's time or later.
    RemoveSocket = 5,
    /// Remove a name that a file of the program has beside its own.
    RemoveSecondName = 6,
    /// Nothing, nor any entry before: the roll-back is final.
    NoneAsFinal = 7,
    /// Nothing, nor any entry before: it is undone.
    NoneAsUndone = 8,
    /// Give a file, which has others, a name again.
    NameAgain = 9,
}

/// What becomes of something that was moved when the roll-back has come to its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Then {
    /// It is where it belongs.
    Nothing = 0,
    /// It stays for the user, for some time.
    Stays = 1,
    /// It goes.
    Goes = 2,
}

/// An entry.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Entry {
    #[prost(enumeration = "Undo", tag = "1")]
    pub(crate) undo: i32,
    /// The file.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) path: Vec<u8>,
    /// Where it was moved.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) moved: Vec<u8>,
    /// Its identity; an inode of 0: whatever has this name, as only we give such names.
    #[prost(uint64, tag = "4")]
    pub(crate) device: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) inode: u64,
    /// Its length and time before.
    #[prost(uint64, tag = "6")]
    pub(crate) size: u64,
    #[prost(int64, tag = "7")]
    pub(crate) mtime: i64,
    #[prost(uint32, tag = "8")]
    pub(crate) mtime_ns: u32,
    /// Number of the copy that holds its bytes from `from` on.
    #[prost(uint64, tag = "9")]
    pub(crate) copy: u64,
    #[prost(uint64, tag = "10")]
    pub(crate) from: u64,
    /// More of its identity: see [`super::witness`].
    #[prost(int64, tag = "11")]
    pub(crate) born: i64,
    #[prost(uint32, tag = "12")]
    pub(crate) born_ns: u32,
    #[prost(int32, tag = "13")]
    pub(crate) handle_kind: i32,
    #[prost(bytes = "vec", tag = "14")]
    pub(crate) handle: Vec<u8>,
    /// With whose rights it is undone; `false`: with those of whoever undoes it.
    #[prost(bool, tag = "15")]
    pub(crate) bound: bool,
    #[prost(uint32, tag = "16")]
    pub(crate) uid: u32,
    #[prost(uint32, tag = "17")]
    pub(crate) gid: u32,
    #[prost(uint32, repeated, tag = "18")]
    pub(crate) groups: Vec<u32>,
    #[prost(uint64, tag = "19")]
    pub(crate) capabilities: u64,
    /// Where the kept copy goes, to stay for some time.
    #[prost(bytes = "vec", tag = "20")]
    pub(crate) newer: Vec<u8>,
    #[prost(enumeration = "Then", tag = "21")]
    pub(crate) then: i32,
}

impl Entry {
    /// The same entry, to be undone with these rights.
    pub(crate) fn with_rights(self, rights: Option<&Rights>) -> Self {
        let Some(Rights { uid, gid, groups, capabilities }) = rights.cloned() else { return self };
        Self { bound: true, uid, gid, groups, capabilities, ..self }
    }

    /// With whose rights it is undone.
    pub(crate) fn rights(&self) -> Option<Rights> {
        self.bound.then(|| Rights::new(self.uid, self.gid, &self.groups, self.capabilities))
    }
}

/// How far a roll-back has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Come {
    /// It is to be undone, or to be made final.
    Open,
    /// It is undone; its copies go.
    Undone,
    /// It is final; what it leaves is put where it stays, and the rest goes.
    Final,
}

const NAME: &str = "rollback.journal";
const DIGEST: usize = 32;

/// An open and locked journal.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    file: File,
    come: Come,
}

/// Takes the lock. A process that another thread is just starting holds what we hold until it executes its program, also a
/// lock that we have given up: that is waited for.
fn is_locked(file: &File) -> bool {
    const TRIES: u32 = 100;
    const BETWEEN: Duration = Duration::from_millis(1);
    (0..TRIES).any(|again| {
        if again > 0 {
            std::thread::sleep(BETWEEN);
        }
        rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
    })
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    Error::system(operation, path.display())
}

impl Journal {
    /// Whether a directory has a journal.
    pub(crate) fn is_in(directory: &Path) -> bool {
        directory.join(NAME).symlink_metadata().is_ok()
    }

    /// Opens and locks the journal of a directory; also the entries of a roll-back that died there, as far as they count.
    pub(crate) fn open(directory: &Path) -> Result<(Self, Vec<Entry>)> {
        std::fs::create_dir_all(directory).map_err(failed("making the journal's directory", directory))?;
        // Who says where it lies may say so by links.
        let directory = &directory.canonicalize().map_err(failed("opening the journal", directory))?;
        let path = directory.join(NAME);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let opened = reserve::with_room(directory, 1, || options.open(&path));
        let mut file = opened.map_err(failed("opening the journal", &path))?;
        if !is_locked(&file) {
            return Err(Error::refuse(busy(&path)));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("reading the journal", &path))?;
        let mut entries = parse(&bytes);
        let is_end = |entry: &Entry| matches!(entry.undo(), Undo::NoneAsFinal | Undo::NoneAsUndone);
        let end = entries.iter().position(is_end);
        let come = match end.and_then(|end| entries.get(end)).map(Entry::undo) {
            Some(Undo::NoneAsFinal) => Come::Final,
            Some(_) => Come::Undone,
            None => Come::Open,
        };
        entries.truncate(end.unwrap_or(entries.len()));
        Ok((Self { directory: directory.to_owned(), file, come }, entries))
    }

    /// Adds an entry. It is safe against the death of this process, and after [`Journal::sync`] against a power cut.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<()> {
        let bytes = framed(entry);
        let before = self.file.metadata().map_err(failed("writing the journal", &self.directory))?.len();
        let written = reserve::with_room(&self.directory, 1, || {
            let written = self.file.write_all(&bytes);
            if written.is_err() {
                // Behind a torn entry none is found.
                self.file.set_len(before)?;
            }
            written
        });
        written.map_err(failed("writing the journal", &self.directory))
    }

    /// Waits until the entries are on the disk.
    pub(crate) fn sync(&self, steps: &Steps) -> Result<()> {
        let path = self.directory.join(NAME);
        steps.sync(&self.file, &path)?;
        steps.sync_directory_of(&path)
    }

    /// Where it lies.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a copy lies.
    pub(crate) fn copy(&self, number: u64) -> PathBuf {
        self.directory.join(format!("rollback.{number}"))
    }

    /// How far its roll-back has come.
    pub(crate) fn come(&self) -> Come {
        self.come
    }

    /// From here on nothing is undone any more.
    pub(crate) fn end(&mut self, come: Come, steps: &Steps) -> Result<()> {
        let undo = match come {
            Come::Open => return Ok(()),
            Come::Undone => Undo::NoneAsUndone,
            Come::Final => Undo::NoneAsFinal,
        };
        if self.come != Come::Open || self.file.metadata().is_ok_and(|file| file.len() == 0) {
            return Ok(());
        }
        let path = self.directory.join(NAME);
        steps.step("end", &path);
        if self.add(&Entry { undo: undo.into(), ..Entry::default() }).is_err() {
            // No room for a word: an empty journal says that nothing is undone. What was left over stays where it is.
            self.file.set_len(0).map_err(failed("ending the journal", &self.directory))?;
        }
        steps.sync(&self.file, &path)?;
        self.come = come;
        Ok(())
    }

    /// Removes the kept copies, and then the journal. May be done again when it died.
    pub(crate) fn clear(&self, copies: u64, steps: &Steps) -> Result<()> {
        for number in 1..=copies {
            steps.step("remove", &self.copy(number));
            match std::fs::remove_file(self.copy(number)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed("removing a kept copy", &self.copy(number))(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        let path = self.directory.join(NAME);
        steps.step("remove", &path);
        std::fs::remove_file(&path).map_err(failed("removing the journal", &path))
    }
}

/// An entry as it is written.
pub(crate) fn framed(entry: &Entry) -> Vec<u8> {
    let body = entry.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    [&length[..], &body, blake3::hash(&body).as_bytes()].concat()
}

/// The entries up to the first that is torn.
pub(crate) fn parse(bytes: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    while let Some((entry, tail)) = parse_one(rest) {
        entries.push(entry);
        rest = tail;
    }
    entries
}

fn parse_one(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (body, rest) = rest.split_at_checked(length)?;
    let (digest, rest) = rest.split_at_checked(DIGEST)?;
    if blake3::hash(body).as_bytes() != digest {
        return None;
    }
    Some((Entry::decode(body).ok()?, rest))
}

fn busy(path: &Path) -> Refusal {
    Refusal {
        code: "rollback-in-progress",
        object: "journal of a roll-back".to_owned(),
        owner: Owner { path: Some(path.to_owned()), ..Owner::default() },
        cause: "another restore is at work on these files".to_owned(),
        remedy: "wait for its end or end it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_a_torn_tail_and_odd_bytes_do_not_panic() {
        let directory = tempfile::tempdir().unwrap();
        let entry =
            |path: &[u8]| Entry { undo: Undo::Remove.into(), path: path.to_vec(), inode: 5, ..Entry::default() };
        let (mut journal, old) = Journal::open(directory.path()).unwrap();
        assert_eq!(old, []);
        journal.add(&entry(b"/a")).unwrap();
        journal.add(&entry(b"/b")).unwrap();
        assert!(Journal::open(directory.path()).is_err(), "locked");
        drop(journal);
        let path = directory.path().join(NAME);
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]).len(), usize::from(cut >= bytes.len() / 2), "{cut}");
        }
        assert_eq!(parse(&[0xff; 40]), []);
        let (mut journal, old) = Journal::open(directory.path()).unwrap();
        assert_eq!(old, [entry(b"/a"), entry(b"/b")]);
        journal.end(Come::Final, &Steps::default()).unwrap();
        drop(journal);
        let (journal, old) = Journal::open(directory.path()).unwrap();
        assert_eq!((journal.come(), old.len()), (Come::Final, 2));
        journal.clear(3, &Steps::default()).unwrap();
        assert!(!path.exists());
    }
}
