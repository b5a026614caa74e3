//! In the stop: the last pages of a process that is alone in its tree, by a thread of its own while the rest of the tree is
//! looked at. The program stands still, so its processor is free.

use std::ops::Range;
use std::thread::JoinHandle;

use super::flags;
use super::kept::{Kept, length};
use super::record::WaysRecord;
use super::space::{Last, Space, maps};
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::model::ObjectId;
use crate::procfs::MapLine;

/// The thread at work.
#[derive(Debug)]
pub(crate) struct Early {
    pub(crate) pid: Pid,
    pub(crate) id: ObjectId,
    thread: JoinHandle<Finished>,
}

/// What comes back from it.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) space: Space,
    pub(crate) kept: Kept,
    /// `None`: the mappings are not those that were known, and it has done nothing.
    pub(crate) read: Result<Option<Read>>,
}

/// What it has read.
#[derive(Debug)]
pub(crate) struct Read {
    /// The mappings as it found them.
    pub(crate) lines: Vec<MapLine>,
    pub(crate) ways: WaysRecord,
    /// What the image holds and must not.
    pub(crate) forget: Vec<Range<u64>>,
    /// What is still to be read, as it does not fit the buffers.
    pub(crate) left: Vec<Range<u64>>,
}

impl Early {
    /// Begins it.
    pub(crate) fn begin(pid: Pid, space: Space, known: Vec<MapLine>, kept: Kept) -> Result<Self> {
        let id = space.id;
        let work = move || {
            let (mut space, mut kept) = (space, kept);
            let read = read(pid, &mut space, &known, &mut kept);
            Finished { space, kept, read }
        };
        let thread = std::thread::Builder::new().name("last pages".to_owned()).spawn(work);
        let thread = thread.map_err(Error::system("starting a thread", "what reads the last pages"))?;
        Ok(Self { pid, id, thread })
    }

    /// Waits for it. `None`: it died, and what was followed with it.
    pub(crate) fn end(self) -> Option<Finished> {
        self.thread.join().ok()
    }
}

fn read(pid: Pid, space: &mut Space, known: &[MapLine], kept: &mut Kept) -> Result<Option<Read>> {
    let Some(mut lines) = flags::with_known_flags(maps(pid)?, known) else { return Ok(None) };
    lines.retain(|line| line.name != b"[vsyscall]");
    let Last { read, forget, ways } = space.last(&lines)?;
    let bytes: usize = read.iter().map(length).sum();
    if !kept.takes(bytes) {
        return Ok(Some(Read { lines, ways, forget, left: read }));
    }
    space.read(&read, kept, None)?;
    Ok(Some(Read { lines, ways, forget, left: Vec::new() }))
}
