//! Images one after another of one tree: what stays between them, so that each holds anew only what was written since.
//!
//! The writes of large processes are followed on from image to image. An image that is not committed leaves nothing behind
//! but what it had taken out of the kernel's account: those pages are copied again for the next one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hdcr_image::{Chain, SnapshotId};

use super::kept::Kept;
use super::space::Space;
use crate::ids::Pid;
use crate::resource::unchanged::Known;
use crate::survey;

/// A series of images of one tree. Clones are the same one. Dropping the last ends the following.
#[derive(Clone, Debug, Default)]
pub struct Series(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    rest: Rest,
    chain: Option<Chain>,
    /// The last image that was committed.
    base: Option<SnapshotId>,
    /// An image was begun, and is not committed.
    open: bool,
    /// The files of the last image that was committed, and of one that may be.
    files: Arc<Known>,
    stored: Known,
}

/// What lies between two images.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    pub(crate) spaces: BTreeMap<Pid, Space>,
    /// Processes that cannot be followed, and why.
    pub(crate) refused: BTreeMap<Pid, String>,
    /// Buffers that are touched already.
    pub(crate) kept: Kept,
    pub(crate) kept_early: Kept,
    /// The highest number that an object has which stays.
    pub(crate) next_id: u64,
}

impl Series {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image that the next one goes on from.
    pub fn base(&self) -> Option<SnapshotId> {
        self.inner().base.clone()
    }

    /// The image that the next one goes on from and whose [`Chain`] went with one that was given up: it has to be opened
    /// again and given to [`Series::resume`]; else the next image is a whole one.
    pub fn interrupted(&self) -> Option<SnapshotId> {
        let inner = self.inner();
        if inner.chain.is_some() { None } else { inner.base.clone() }
    }

    /// The chain of the last image that was committed.
    pub fn resume(&self, chain: Chain) {
        let mut inner = self.inner();
        if inner.base.as_ref() == Some(chain.snapshot()) {
            inner.chain = Some(chain);
        }
    }

    /// The next image is a whole one, with nothing before it.
    pub fn begin_anew(&self) {
        *self.inner() = Inner::default();
    }

    /// The last image was committed: the next one goes on from it.
    pub fn committed(&self, chain: Option<Chain>) {
        let mut inner = self.inner();
        inner.open = false;
        inner.base = chain.as_ref().map(|chain| chain.snapshot().clone());
        inner.chain = chain;
        inner.files = Arc::new(std::mem::take(&mut inner.stored));
        inner.rest.spaces.values_mut().for_each(Space::committed);
    }

    /// Mappings with their flags, as far as they are known.
    pub(crate) fn known(&self) -> survey::Known {
        let inner = self.inner();
        let spaces = inner.rest.spaces.iter();
        let before = spaces.map(|(pid, space)| (*pid, space.flags.known().to_vec())).collect();
        survey::Known { before, ..survey::Known::default() }
    }

    /// The files that the last image holds.
    pub(crate) fn known_files(&self) -> Arc<Known> {
        Arc::clone(&self.inner().files)
    }

    /// The image that is on its way holds these files.
    pub(crate) fn has_stored(&self, files: Known) {
        self.inner().stored = files;
    }

    /// Begins the next image.
    pub(crate) fn take(&self) -> (Rest, Option<Chain>) {
        let mut inner = self.inner();
        if inner.chain.is_none() {
            *inner = Inner::default();
        }
        if std::mem::replace(&mut inner.open, true) {
            inner.rest.spaces.values_mut().for_each(Space::aborted);
        }
        (std::mem::take(&mut inner.rest), inner.chain.take())
    }

    /// The image is on its way, or given up.
    pub(crate) fn give_back(&self, rest: Rest) {
        self.inner().rest = rest;
    }
}
