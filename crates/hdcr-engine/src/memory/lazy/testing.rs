//! An address space and an image for the tests of this folder.

use std::collections::BTreeSet;
use std::io::{PipeReader, PipeWriter};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use hdcr_image::{ImageId, ImageReader, ImageWriter, ManifestFacts, MemoryImage, Options};

use super::ledger::{Ledger, Missing};
use super::place::{PAGE_LEN, Place};
use crate::ids::{Pid, RemotePtr};
use crate::mechanism::{self, AbsentPages, Happening, Hindrance};
use crate::memory::PAGE;

/// The address space of all images here.
pub(super) const SPACE: u64 = 1;
/// How far moves go, in pages.
pub(super) const OFF: u64 = 1 << 20;

/// Pages by number: mappings of them, what is in, and what happens at which call.
#[derive(Debug, Default)]
pub(super) struct Space {
    pub(super) mappings: Vec<Range<u64>>,
    pub(super) present: BTreeSet<u64>,
    pub(super) changing: bool,
    /// Who was heard goes on only after so many looks.
    pub(super) slow: usize,
    /// Moved away just before the next pages are put in, after the kernel has seen that nothing is changing.
    pub(super) moves: bool,
    pub(super) told: Vec<Happening>,
    pub(super) woken: Vec<u64>,
    pub(super) guards: Vec<Range<u64>>,
    /// All that had it have ended.
    pub(super) gone: bool,
}

impl Space {
    /// A thread waits to be heard.
    pub(super) fn tell(&mut self, happening: Happening) {
        self.told.push(happening);
        self.changing = true;
    }
}

#[derive(Debug)]
struct Model {
    space: Arc<Mutex<Space>>,
    ready: PipeReader,
    _silent: PipeWriter,
}

impl AbsentPages for Model {
    fn put(&self, at: RemotePtr, bytes: &[u8]) -> (usize, Option<Hindrance>) {
        let mut space = self.space.lock().unwrap();
        if space.changing {
            return (0, Some(Hindrance::Changing));
        }
        if std::mem::take(&mut space.moves) {
            let old = space.mappings.remove(0);
            space.mappings.push(old.start + OFF..old.end + OFF);
            space.tell(moved(old.clone(), old.start + OFF));
        }
        let (first, end) = (at.0 / PAGE, (at.0 + bytes.len() as u64) / PAGE);
        if !space.mappings.iter().any(|mapping| mapping.start <= first && end <= mapping.end) {
            return (0, Some(Hindrance::NoPlace));
        }
        for page in first..end {
            if !space.present.insert(page) {
                return (length(first..page), Some(Hindrance::Present));
            }
        }
        (bytes.len(), None)
    }

    fn put_zeros(&self, pages: &Range<u64>) -> Option<Hindrance> {
        self.put(RemotePtr(pages.start), &[0; PAGE_LEN]).1
    }

    fn is_changing(&self) -> bool {
        let mut space = self.space.lock().unwrap();
        if space.changing && space.told.is_empty() {
            space.changing = space.slow > 0;
            space.slow = space.slow.saturating_sub(1);
        }
        space.changing
    }

    fn guards(&self, _pid: Pid, range: &Range<u64>) -> Vec<Range<u64>> {
        let guards = self.space.lock().unwrap().guards.clone();
        let inside = |guard: &Range<u64>| guard.start.max(range.start)..guard.end.min(range.end);
        guards.iter().map(|guard| guard.start * PAGE..guard.end * PAGE).map(|guard| inside(&guard)).collect()
    }

    fn lives(&self) -> bool {
        !self.space.lock().unwrap().gone
    }

    fn wake(&self, range: &Range<u64>) {
        self.space.lock().unwrap().woken.push(range.start / PAGE);
    }

    fn next(&self) -> mechanism::Result<Option<Happening>> {
        Ok(self.space.lock().unwrap().told.pop())
    }

    fn ready(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.ready)
    }
}

/// A move of pages.
pub(super) fn moved(from: Range<u64>, to: u64) -> Happening {
    Happening::Moved { from: from.start * PAGE, to: to * PAGE, len: (from.end - from.start) * PAGE }
}

/// An address space of one mapping, in which pages are missing that had the same place in the image.
pub(super) fn place(mapping: Range<u64>, missing: Range<u64>) -> (Place, Arc<Mutex<Space>>) {
    parted(vec![mapping], missing)
}

/// One of several mappings.
pub(super) fn parted(mappings: Vec<Range<u64>>, missing: Range<u64>) -> (Place, Arc<Mutex<Space>>) {
    let space = Arc::new(Mutex::new(Space { mappings, ..Space::default() }));
    let mut ledger = Ledger::default();
    ledger.add(missing.start * PAGE..missing.end * PAGE, missing.start * PAGE);
    (Place::new(pages(&space), SPACE, Some(Pid(i32::MAX)), ledger), space)
}

/// Nothing is ever to be heard of it by `poll`.
pub(super) fn pages(space: &Arc<Mutex<Space>>) -> Box<dyn AbsentPages> {
    let (ready, silent) = std::io::pipe().unwrap();
    Box::new(Model { space: Arc::clone(space), ready, _silent: silent })
}

/// An image that holds these pages.
pub(super) fn image(pages: &Range<u64>) -> Arc<ImageReader> {
    let memory = MemoryImage::new();
    let mut writer = ImageWriter::new(Box::new(memory.sink(ImageId([1; 16]))), Options::default()).unwrap();
    writer.pages(SPACE, pages.start * PAGE, &vec![7; length(pages.clone())]).unwrap();
    writer.finish(ManifestFacts::default()).unwrap();
    Arc::new(ImageReader::open(&memory.source().unwrap()).unwrap())
}

pub(super) fn length(pages: Range<u64>) -> usize {
    pages.count() * PAGE_LEN
}

/// Pages and their bytes.
pub(super) fn all(pages: Range<u64>) -> (Missing, Vec<u8>) {
    let at = pages.start * PAGE..pages.end * PAGE;
    (Missing { from: at.start, at }, vec![7; length(pages)])
}
