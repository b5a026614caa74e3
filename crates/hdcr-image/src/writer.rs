//! Writing an image: frames and pages in any order, then the manifest.

use std::ops::Range;

use hdcr_layout::{Layout, PageRunEntry, tag};

use crate::error::ImageError;
use crate::frames::FrameWriter;
use crate::manifest::{Manifest, ManifestFacts, PageFacts};
use crate::name::{PartName, SnapshotId};
use crate::number::size;
use crate::pages::{Compression, PageWriter, Stored};
use crate::record::{Record, Tag, encode_list};
use crate::sink::Sink;

/// How an image is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// How pages are compressed.
    pub compression: Compression,
}

/// An image in the making. Dropped before it is committed, nothing of it stays.
#[derive(Debug)]
pub struct ImageWriter {
    frames: FrameWriter,
    pages: PageWriter,
    sink: Box<dyn Sink>,
}

/// Entries of an index frame; more of them make more frames.
const INDEX_ENTRIES: usize = 1 << 16;

impl ImageWriter {
    /// Begins an image.
    pub fn new(mut sink: Box<dyn Sink>, options: Options) -> Result<Self, ImageError> {
        let image = sink.snapshot().image;
        let frames = FrameWriter::new(sink.part(PartName::Frames)?, image)?;
        Ok(Self { frames, pages: PageWriter::new(options.compression)?, sink })
    }

    /// What the image will be called.
    pub fn snapshot(&self) -> &SnapshotId {
        self.sink.snapshot()
    }

    /// Adds a frame. Tags below [`hdcr_layout::tag::FIRST_FREE`] belong to fixed layouts.
    pub fn frame(&mut self, tag: Tag, version: u16, id: u64, body: &[u8]) -> Result<(), ImageError> {
        self.frames.frame(tag, version, id, body)
    }

    /// Adds a record about an object.
    pub fn record<R: Record>(&mut self, id: u64, record: &R) -> Result<(), ImageError> {
        self.frames.frame(R::TAG, R::VERSION, id, &record.encode()?)
    }

    /// Adds a list of records of fixed layout, to be read as a [`crate::List`].
    pub fn list<T: Layout>(&mut self, id: u64, list: &[T]) -> Result<(), ImageError> {
        self.frames.frame(Tag(T::TAG), T::VERSION, id, &encode_list(list)?)
    }

    /// Adds whole pages of a space. Later ones replace earlier ones at the same address, so that pages copied while
    /// the program runs may come again after the freeze.
    pub fn pages(&mut self, space: u64, address: u64, bytes: &[u8]) -> Result<(), ImageError> {
        self.pages.pages(self.sink.as_mut(), space, address, bytes)
    }

    /// Takes pages out again, for memory that was unmapped after it had been copied.
    pub fn forget(&mut self, space: u64, range: Range<u64>) -> Result<(), ImageError> {
        self.pages.forget(self.sink.as_mut(), space, range)
    }

    /// Says that a space holds in a range what another one holds there at the end: it is stored once. What is said first
    /// is done first.
    pub fn alike(&mut self, space: u64, from: u64, range: Range<u64>) -> Result<(), ImageError> {
        self.pages.alike(space, from, range)
    }

    /// Writes the rest and makes all of it durable. It is not visible yet.
    pub fn persist(self, facts: ManifestFacts) -> Result<Durable, ImageError> {
        let Self { mut frames, pages, mut sink } = self;
        let stored = pages.finish(sink.as_mut())?;
        let pages = write_index(&mut frames, &stored)?;
        let id = sink.snapshot().clone();
        let manifest = Manifest { id, facts, frames: frames.finish()?, segments: stored.segments, pages };
        sink.persist(&manifest.encode()?)?;
        Ok(Durable { manifest, sink })
    }

    /// Writes the rest and commits.
    pub fn finish(self, facts: ManifestFacts) -> Result<(Manifest, SnapshotId), ImageError> {
        self.persist(facts)?.commit()
    }

    /// Removes all that was written. The same as dropping it, but says when that failed.
    pub fn abort(self) -> Result<(), ImageError> {
        Ok(self.sink.abort()?)
    }
}

fn write_index(frames: &mut FrameWriter, stored: &Stored) -> Result<PageFacts, ImageError> {
    let mut digest = blake3::Hasher::new();
    let (mut runs, mut stored_pages, mut zero_pages) = (0_u64, 0_u64, 0_u64);
    for (space, index) in &stored.spaces {
        let entries: Vec<PageRunEntry> = index.runs().copied().collect();
        for entry in &entries {
            let pages = u64::from(entry.pages);
            let count = if entry.stored == 0 { &mut zero_pages } else { &mut stored_pages };
            *count = count.saturating_add(pages);
        }
        runs = runs.saturating_add(size(entries.len()));
        for chunk in entries.chunks(INDEX_ENTRIES) {
            let body = encode_list(chunk)?;
            digest.update(&space.to_le_bytes());
            digest.update(&body);
            frames.frame(Tag(tag::PAGE_INDEX), <PageRunEntry as Layout>::VERSION, *space, &body)?;
        }
    }
    let digest = digest.finalize().into();
    Ok(PageFacts { runs, stored_pages, zero_pages, stored_size: stored.size, digest })
}

/// An image that is durable and not yet visible. Dropping it removes it.
#[derive(Debug)]
pub struct Durable {
    manifest: Manifest,
    sink: Box<dyn Sink>,
}

impl Durable {
    /// What is about to be committed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Makes it visible. On an error nothing is.
    pub fn commit(self) -> Result<(Manifest, SnapshotId), ImageError> {
        self.sink.commit()?;
        let id = self.manifest.id.clone();
        Ok((self.manifest, id))
    }

    /// Removes it.
    pub fn abort(self) -> Result<(), ImageError> {
        Ok(self.sink.abort()?)
    }
}
