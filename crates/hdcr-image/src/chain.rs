//! Where a committed image leaves off, for the next one to go on from.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::ImageError;
use crate::index::{Index, PageRun};
use crate::log::{LogState, replay};
use crate::manifest::SegmentFacts;
use crate::name::SnapshotId;
use crate::reader::{open_segments, read_manifest};
use crate::sink::Source;
use crate::squash::Upkeep;

/// Where a committed image leaves off, for the next one to go on from: the index of all its pages, its segments, its log.
pub struct Chain {
    pub(crate) id: SnapshotId,
    pub(crate) spaces: BTreeMap<u64, Index>,
    pub(crate) segments: Vec<SegmentFacts>,
    pub(crate) log: LogState,
    pub(crate) upkeep: Upkeep,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, segments, log, .. } = self;
        f.debug_struct("Chain")
            .field("id", id)
            .field("segments", segments)
            .field("log", &log.facts)
            .finish_non_exhaustive()
    }
}

impl Chain {
    /// Reads it back from a committed image, after an aborted increment whose writer took the chain with it. An image that
    /// is in no chain is refused.
    pub fn open(source: &dyn Source) -> Result<Self, ImageError> {
        let manifest = read_manifest(source)?;
        let facts = manifest.log.ok_or(ImageError::Alone { image: manifest.id.image })?;
        let (spaces, digest) = replay(source, &manifest, &facts)?;
        open_segments(source, &manifest)?;
        for run in spaces.values().flat_map(Index::runs) {
            PageRun::check(*run, &manifest.segments)?;
        }
        let log = LogState { facts, digest };
        Ok(Self { id: manifest.id, spaces, segments: manifest.segments, log, upkeep: Upkeep::default() })
    }

    /// The image that it leads from.
    pub fn snapshot(&self) -> &SnapshotId {
        &self.id
    }
}
