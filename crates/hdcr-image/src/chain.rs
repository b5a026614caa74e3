//! Where a committed image leaves off, for the next one to go on from.

use std::collections::BTreeMap;
use std::fmt;

use crate::delta::{base_of, is_delta};
use crate::error::ImageError;
use crate::index::{Index, PageRun};
use crate::log::{LogState, replay};
use crate::manifest::SegmentFacts;
use crate::name::SnapshotId;
use crate::number::len;
use crate::pack::Bases;
use crate::reader::{check_sum, identity, open_segments, read_from, read_manifest};
use crate::sink::Source;
use crate::squash::Upkeep;

/// Where a committed image leaves off, for the next one to go on from: the index of all its pages, its segments, its log.
pub struct Chain {
    pub(crate) id: SnapshotId,
    pub(crate) spaces: BTreeMap<u64, Index>,
    pub(crate) segments: Vec<SegmentFacts>,
    pub(crate) log: LogState,
    pub(crate) bases: Bases,
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
        let open = open_segments(source, &manifest)?;
        let mut bases = Bases::new();
        for run in spaces.values().flat_map(Index::runs) {
            PageRun::check(run, &manifest.segments)?;
            if is_delta(&run) && !bases.contains_key(&identity(&run)) {
                let mut stored = vec![0; len(u64::from(run.length))];
                read_from(&open, &run, &mut stored)?;
                check_sum(&run, &stored)?;
                bases.insert(identity(&run), *base_of(&run, &stored, &manifest.segments)?.entry());
            }
        }
        let log = LogState { facts, digest };
        Ok(Self { id: manifest.id, spaces, segments: manifest.segments, log, bases, upkeep: Upkeep::default() })
    }

    /// The image that it leads from.
    pub fn snapshot(&self) -> &SnapshotId {
        &self.id
    }
}
