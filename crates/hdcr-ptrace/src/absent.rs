//! Pages that come while a task runs already: [`AbsentPages`] by a userfaultfd of its address space that also serves the
//! faults of its system calls and tells what becomes of its mappings.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::OnceLock;

use hdcr_engine::ids::{Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::{AbsentPages, Happening, Hindrance, MechanismError, Result};
use hdcr_engine::procfs;
use hdcr_sys::page_faults::{self, Message, PageFaults};
use hdcr_sys::pagemap;

use crate::nursery::PtraceNursery;
use crate::pages::{usable, userfaultfd};

/// An address space.
#[derive(Debug)]
struct Absent {
    /// The task that it was made with.
    tid: Tid,
    faults: PageFaults,
    /// Opened once, so that it stays the one of this address space. `None`: it cannot be.
    pagemap: OnceLock<Option<File>>,
}

fn hindrance(found: page_faults::Hindrance) -> Hindrance {
    match found {
        page_faults::Hindrance::Present => Hindrance::Present,
        page_faults::Hindrance::Changing => Hindrance::Changing,
        page_faults::Hindrance::NoPlace => Hindrance::NoPlace,
        page_faults::Hindrance::Ended => Hindrance::Ended,
        page_faults::Hindrance::Other(errno) => Hindrance::Failed(errno.into()),
    }
}

impl AbsentPages for Absent {
    fn put(&self, at: RemotePtr, bytes: &[u8]) -> (usize, Option<Hindrance>) {
        let (done, found) = self.faults.put(at.0, bytes);
        (done, found.map(hindrance))
    }

    fn put_zeros(&self, pages: &Range<u64>) -> Option<Hindrance> {
        self.faults.put_zeros(pages.start, pages.end.saturating_sub(pages.start)).map(hindrance)
    }

    fn is_changing(&self) -> bool {
        self.faults.is_changing()
    }

    fn guards(&self, pid: Pid, range: &Range<u64>) -> Vec<Range<u64>> {
        let pagemap = self.pagemap.get_or_init(|| File::open(procfs::path(pid, "pagemap")).ok());
        let guards = pagemap.as_ref().map(|pagemap| pagemap::guards(pagemap, range.clone()));
        // It ends with its address space.
        guards.and_then(std::io::Result::ok).unwrap_or_default()
    }

    fn lives(&self) -> bool {
        self.faults.lives()
    }

    fn wake(&self, range: &Range<u64>) {
        if let Err(error) = self.faults.wake(range) {
            tracing::debug!(%error, "those who wait for a page were not woken");
        }
    }

    fn next(&self) -> Result<Option<Happening>> {
        let next = self.faults.next();
        let next =
            next.map_err(|source| MechanismError::System { operation: "hearing of faults", tid: self.tid, source })?;
        Ok(next.map(|message| match message {
            Message::Fault { at, tid } => Happening::Fault { at, tid: Tid(tid) },
            Message::Fork(faults) => {
                Happening::Fork(Box::new(Self { tid: self.tid, faults, pagemap: OnceLock::new() }))
            }
            Message::Moved { from, to, len } => Happening::Moved { from, to, len },
            Message::Removed(range) | Message::Unmapped(range) => Happening::Gone(range),
        }))
    }

    fn ready(&self) -> BorrowedFd<'_> {
        self.faults.as_fd()
    }
}

/// Registers mappings that have no page yet. All or none: what was registered is let go of with the userfaultfd.
pub(crate) fn open(
    nursery: &mut PtraceNursery,
    tid: Tid,
    mappings: &[Range<u64>],
) -> Result<Option<Box<dyn AbsentPages>>> {
    let Some(made) = userfaultfd(nursery, tid, page_faults::FLAGS)? else { return Ok(None) };
    let Some(faults) = usable(PageFaults::new(made)) else { return Ok(None) };
    for mapping in mappings {
        if usable(faults.register(mapping)).is_none() {
            return Ok(None);
        }
    }
    Ok(Some(Box::new(Absent { tid, faults, pagemap: OnceLock::new() })))
}
