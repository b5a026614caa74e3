//! The roll-back of a program that has no checkpoint yet: its files as they were before it began, as far as that goes
//! without an image. Names are put back; of contents only what was added to a file of known length is taken away, and the
//! rest is named.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::Plan;
use super::since::{self, Since};
use crate::error::{Error, Refusal, Result};
use crate::model::ObjectId;
use crate::restore::{Contents, Restore};
use crate::rights::TreeRights;

/// There is no image.
#[derive(Debug)]
struct Nothing;

impl Contents for Nothing {
    fn pieces(&self, _id: ObjectId) -> Vec<(u64, u64)> {
        Vec::new()
    }

    fn zeros(&self, _id: ObjectId) -> Vec<(u64, u64)> {
        Vec::new()
    }

    fn read(&self, _id: ObjectId, _each: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        Ok(())
    }
}

/// Undoes what a program that is dead has done to files since its start, with the journal in a directory. On an error files
/// are as they were before. What a user should know is returned.
pub fn to_the_start(directory: &Path, since: &Since) -> Result<Vec<Refusal>> {
    let null = || -> Result<OwnedFd> {
        let opened = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        opened.map_err(Error::system("opening", "/dev/null"))
    };
    let frames = BTreeMap::new();
    let mut cx = Restore {
        frames: &frames,
        contents: &Nothing,
        made: BTreeMap::new(),
        parts: BTreeMap::new(),
        leads: BTreeMap::new(),
        batches: BTreeMap::new(),
        stdio: [null()?, null()?, null()?],
        shared_output: Vec::new(),
        map_path: &[],
        notes: Vec::new(),
        holders: BTreeMap::new(),
        room: 0..i32::MAX,
        making: BTreeSet::new(),
        inodes: crate::resource::reopen::OpenedInodes::default(),
        segments: crate::segments::Made::default(),
        semaphores: crate::semaphores::Made::default(),
        plan: Plan::at(directory)?,
        late: Vec::new(),
        apart: BTreeMap::new(),
        foreign: BTreeSet::new(),
        unheld: true,
        watched: true,
        rights: TreeRights::default(),
        greeting: &[],
    };
    since::names(&mut cx, since)?;
    since::contents(&mut cx, Some(since))?;
    cx.plan.prepare(&Nothing)?;
    cx.plan.apply(&Nothing)?;
    let mut notes = std::mem::take(&mut cx.notes);
    notes.extend(cx.plan.notes());
    end(cx.plan)?;
    for note in &mut notes {
        let cause = note.cause.replace("the image does not hold it", "there is no checkpoint that holds it");
        note.cause = cause.replace("after the checkpoint", "after the start of the program");
        note.cause = note.cause.replace("since the checkpoint", "since the start of the program");
        note.cause = note.cause.replace("at the checkpoint", "at the start of the program");
    }
    Ok(notes)
}

/// Makes the roll-back final. An error after that is none of the files'; one before leaves the files as they were before.
pub(super) fn end(plan: Plan) -> Result<()> {
    let Some(directory) = plan.journal.as_ref().map(|journal| journal.directory().to_owned()) else {
        return plan.finish();
    };
    let Err(error) = plan.finish() else { return Ok(()) };
    if super::is_final(&directory) {
        tracing::warn!(%error, "the journal of the roll-back was not removed");
        return Ok(());
    }
    super::repair(&directory)?;
    Err(error)
}
