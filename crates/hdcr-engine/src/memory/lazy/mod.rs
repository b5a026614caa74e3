//! Memory that comes when it is touched: the program runs at once, its pages are served and filled behind.
//!
//! Only private anonymous memory comes so, and only what nothing else makes special: see [`is_plain`]. What threads stand on,
//! and what the kernel writes to by itself, is put in before the release ([`hot`]): not every access of the kernel waits for
//! a page (mm/gup.c without `FOLL_UNLOCKABLE`, fs/userfaultfd.c for a task that exits).

mod advice;
pub(crate) mod hot;
mod ledger;
mod place;
mod server;
#[cfg(test)]
mod testing;
mod waiters;

use std::num::NonZero;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use hdcr_image::hdcr_layout::{Mapping, MappingKind};
use hdcr_image::{ImageReader, PageRun};
use nix::libc;

use self::ledger::Ledger;
use self::place::Place;
use self::server::Server;
use super::fill::within;
use super::restore::{StoredMm, private};
use super::{PAGE, bit};
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::mechanism::AbsentPages;
use crate::progress::{Meter, Phase, Progress};

/// More threads only wait for the lock of one address space.
const FILLERS: usize = 3;

/// Whether memory may come when it is touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Lazy {
    /// Never: all of it is there before the program runs.
    #[default]
    Never,
    /// Where it saves time.
    Large,
    /// Wherever it can be.
    Always,
}

impl Lazy {
    /// A mapping with fewer bytes of pages is filled at once.
    fn least_of_mapping(self) -> u64 {
        match self {
            Self::Never => u64::MAX,
            Self::Large => 1 << 20,
            Self::Always => PAGE,
        }
    }

    /// So is a process with fewer bytes in such mappings.
    fn least_of_process(self) -> u64 {
        match self {
            Self::Never => u64::MAX,
            Self::Large => 16 << 20,
            Self::Always => PAGE,
        }
    }
}

/// What a lazy restore stands on.
#[derive(Debug)]
pub struct Lazily {
    /// Which memory.
    pub which: Lazy,
    /// Becomes readable when the process has died that keeps missing pages missing, and ends the tree, should this one die.
    pub standby: OwnedFd,
}

/// Whether a mapping is nothing but memory of the program's own. Not the stack of the first thread, where `/proc` reads
/// arguments and environment without waiting; nothing that is locked, sealed, merged, or not for children; nothing that cannot
/// be written.
fn is_plain(mm: &StoredMm, mapping: &Mapping, always_huge: bool) -> bool {
    const SPECIAL: [[u8; 2]; 8] = [*b"gd", *b"lo", *b"lf", *b"sl", *b"wf", *b"dc", *b"hg", *b"mg"];
    let mut guards = mm.record.guards.chunks_exact(2).filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)));
    // Arguments, environment.
    let mut places = mm.record.places.iter().skip(7);
    mapping.kind == MappingKind::Anonymous
        && private(mapping)
        && mapping.prot & libc::PROT_WRITE.cast_unsigned() != 0
        && SPECIAL.iter().all(|code| mapping.vm_flags & bit(*code) == 0)
        && (!always_huge || mapping.vm_flags & bit(*b"nh") != 0)
        && guards.all(|(start, end)| end <= mapping.start || mapping.end <= start)
        && !places.any(|place| (mapping.start..mapping.end).contains(place))
}

/// Whether a mapping is accounted for though it cannot be written: made again without a page of its own, it is so only when
/// it was one with neighbours that have pages (mm/mprotect.c).
fn keeps_account(mapping: &Mapping) -> bool {
    mapping.vm_flags & bit(*b"ac") != 0 && mapping.prot & libc::PROT_WRITE.cast_unsigned() == 0
}

/// Private anonymous mappings that touch one another.
fn rows(mappings: &[Mapping]) -> Vec<&[Mapping]> {
    let is_own = |mapping: &Mapping| mapping.kind == MappingKind::Anonymous && private(mapping);
    mappings.chunk_by(|a, b| a.end == b.start && is_own(a) && is_own(b)).collect()
}

/// The mappings of a process whose pages may come later.
pub(crate) fn choose(image: &ImageReader, mm: &StoredMm, lazy: Lazy, always_huge: bool) -> Vec<Range<u64>> {
    let runs = image.runs(mm.id.0);
    let stored = |range: &Range<u64>| -> u64 {
        within(runs, range).iter().filter(|run| !run.is_zero()).map(PageRun::size).sum()
    };
    let rows = rows(&mm.mappings);
    let needs_row = |mapping: &Mapping| keeps_account(mapping) && stored(&(mapping.start..mapping.end)) == 0;
    let plain = rows.into_iter().filter(|row| !row.iter().any(needs_row));
    let plain = plain.flatten().filter(|mapping| is_plain(mm, mapping, always_huge));
    let sized = plain.map(|mapping| mapping.start..mapping.end).map(|range| (stored(&range), range));
    let chosen: Vec<_> = sized.filter(|(size, _)| *size >= lazy.least_of_mapping()).collect();
    if chosen.iter().map(|(size, _)| *size).sum::<u64>() < lazy.least_of_process() {
        return Vec::new();
    }
    chosen.into_iter().map(|(_, range)| range).collect()
}

/// Address spaces that come later, registered.
#[derive(Debug, Default)]
pub(crate) struct Absent(Vec<Place>);

impl Absent {
    /// Takes on the registered mappings of a process.
    pub(crate) fn add(&mut self, mm: &StoredMm, pid: Pid, mappings: &[Range<u64>], pages: Box<dyn AbsentPages>) {
        let mut ledger = Ledger::default();
        for mapping in mappings {
            ledger.add(mapping.clone(), mapping.start);
        }
        self.0.push(Place::new(pages, mm.id.0, Some(pid), ledger));
    }

    /// Begins to serve them; `None` when there are none.
    pub(crate) fn serve(self, image: &Arc<ImageReader>, lazily: &Lazily) -> Result<Option<Filling>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let server = Arc::new(Server::new(Arc::clone(image), self.0)?);
        let standby = lazily.standby.try_clone().map_err(Error::system("watching the one that stands by", "pidfd"))?;
        let listening = Arc::clone(&server);
        let listener = std::thread::Builder::new().name("faults".to_owned());
        let listener = listener.spawn(move || listening.listen(standby.as_fd()));
        let listener = listener.map_err(Error::system("beginning to serve pages", "this process"))?;
        Ok(Some(Filling { server, listener: Some(listener) }))
    }
}

/// What came of the filling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filled {
    /// How often the program had to wait for a page.
    pub faults: u64,
}

/// A program that runs while its memory is filled. As long as this lives it never sees a page that is not its own; when it
/// is dropped before all is filled, whoever still misses a page must have been ended before.
#[derive(Debug)]
pub struct Filling {
    server: Arc<Server>,
    listener: Option<JoinHandle<()>>,
}

impl Filling {
    /// Puts pages in at once, with their neighbours: those at these addresses that are missing.
    pub(crate) fn bring(&self, pid: Pid, addresses: &[u64]) -> Result<()> {
        self.server.bring(pid, addresses)
    }

    /// Fills all that is missing. On an error the tree has to be ended; until that is done this must live.
    pub fn fill(&mut self, progress: &Progress) -> Result<Filled> {
        let meter = Meter::begin(progress, Phase::Filling, || 0);
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        std::thread::scope(|scope| {
            for _ in 1..processors.min(FILLERS) {
                if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, || self.server.fill(&meter)) {
                    tracing::debug!(%error, "a thread less to fill memory");
                }
            }
            self.server.fill(&meter);
        });
        self.finish();
        match self.server.trouble() {
            Some(error) => Err(error),
            None => Ok(Filled { faults: self.server.faults() }),
        }
    }

    fn finish(&mut self) {
        self.server.end();
        if let Some(listener) = self.listener.take()
            && listener.join().is_err()
        {
            self.server.fail(Error::Unsound("the thread that serves pages has died".to_owned()));
        }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.finish();
    }
}
