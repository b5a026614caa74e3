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
    pub(crate) read: Result<Read>,
}

/// What it has read.
#[derive(Debug)]
pub(crate) struct Read {
    /// The mappings that it has gone by.
    pub(crate) lines: Vec<MapLine>,
    pub(crate) ways: WaysRecord,
    /// What the image holds and must not.
    pub(crate) forget: Vec<Range<u64>>,
    /// What is still to be read, as it does not fit the buffers.
    pub(crate) left: Vec<Range<u64>>,
}

impl Early {
    /// Begins it, with the mappings as they are before the mechanism does anything in the process.
    pub(crate) fn begin(space: Space, lines: Vec<MapLine>, kept: Kept) -> Result<Self> {
        let (pid, id) = (space.pid, space.id);
        let work = move || {
            let (mut space, mut kept) = (space, kept);
            let read = read(&mut space, lines, &mut kept);
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

/// The mappings of a stopped process, when they are the ones that are known.
pub(crate) fn lines(pid: Pid, known: &[MapLine]) -> Result<Option<Vec<MapLine>>> {
    Ok(flags::with_known_flags(maps(pid)?, known))
}

fn read(space: &mut Space, lines: Vec<MapLine>, kept: &mut Kept) -> Result<Read> {
    let Last { read, forget, ways } = space.last(&lines)?;
    let bytes: usize = read.iter().map(length).sum();
    if !kept.takes(bytes) {
        return Ok(Read { lines, ways, forget, left: read });
    }
    space.read(&read, kept, None)?;
    Ok(Read { lines, ways, forget, left: Vec::new() })
}
