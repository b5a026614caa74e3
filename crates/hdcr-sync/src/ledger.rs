//! The one order of all decisions about a job: numbered entries, each written once if its place is free, never changed.
//!
//! The store keeps them as bytes. A place that is taken refuses the second writer (`link`, `If-None-Match: *`, a
//! transaction), and that is all that fences coordinators from one another.

use std::collections::BTreeSet;

use crate::codec::{Damaged, Reader, Writer};
use crate::ids::{Author, Incarnation, Member, Round, Seq, Term};
use crate::manifest::EpochManifest;

/// One decision, and all that a coordinator must know to go on from it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Who wrote it.
    pub author: Author,
    /// In which term.
    pub term: Term,
    /// The run of the job from here on.
    pub incarnation: Incarnation,
    /// Who has tasks of the job from here on.
    pub view: BTreeSet<Member>,
    /// Who of the view has come by a `View` since the last rollback: tasks that wait there have never run, those of others
    /// would stand in the place of what is to be restored.
    pub joined: BTreeSet<Member>,
    /// Who had tasks of an earlier run and is not known to be dead.
    pub suspects: BTreeSet<Member>,
    /// The newest committed round from here on.
    pub line: Option<Round>,
    /// What was decided.
    pub decision: Decision,
}

/// What can be decided.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// A coordinator begins its term.
    Claim,
    /// Members came or went.
    View,
    /// A checkpoint is committed.
    Commit(EpochManifest),
    /// The job goes back to `line` and becomes another incarnation.
    Rollback,
}

/// The end of a ledger as a coordinator reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The last entry.
    pub last: Option<(Seq, Entry)>,
    /// The newest committed manifest whose shares verify, by `line` of the last entry and `previous` from there on.
    pub manifest: Option<EpochManifest>,
}

/// How the writing of an entry has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is there and will stay.
    Written,
    /// The place has another entry; it may be one's own from an attempt before.
    Taken(Entry),
    /// It is certain that it is not there and never will be.
    Refused,
    /// It may be there, or come to be there.
    Unknown,
}

impl Entry {
    /// The bytes that a store keeps.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::begin();
        writer.entry(self);
        writer.finish()
    }

    /// Reads them again; whatever the bytes are, it ends, and takes no more room than they do.
    pub fn decode(bytes: &[u8]) -> Result<Entry, Damaged> {
        let mut reader = Reader::begin(bytes)?;
        let entry = reader.entry()?;
        reader.finish()?;
        Ok(entry)
    }
}
