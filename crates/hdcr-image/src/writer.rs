//! Writing an image: frames and pages in any order, then the manifest.

use std::fs::File;
use std::ops::Range;

use hdcr_layout::{ALONE_VERSION, Codec, FORMAT_VERSION, Header, Layout, PageRunEntry, tag};

use crate::chain::Chain;
use crate::compress::Compression;
use crate::error::ImageError;
use crate::frames::FrameWriter;
use crate::index::{Counts, Index};
use crate::ledger::Ledger;
use crate::manifest::{CloneFacts, Manifest, ManifestFacts, PageFacts, SegmentFacts};
use crate::name::{PartName, SnapshotId};
use crate::number::size;
use crate::pack::Packer;
use crate::pages::{PageWriter, Stored};
use crate::record::{Record, Tag, encode_list};
use crate::segments::Segments;
use crate::sink::Sink;
use crate::squash::Upkeep;

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
    /// What an increment is on.
    base: Option<SnapshotId>,
    clones: Vec<CloneFacts>,
    sink: Box<dyn Sink>,
}

/// Entries of an index frame; more of them make more frames.
const INDEX_ENTRIES: usize = 1 << 16;

impl ImageWriter {
    /// Begins an image that stands by itself.
    pub fn new(sink: Box<dyn Sink>, options: Options) -> Result<Self, ImageError> {
        Self::begin(sink, ALONE_VERSION, |_| {
            let packer = Packer::new(options.compression, Segments::alone(), Ledger::default())?;
            Ok(PageWriter::new(packer, None))
        })
    }

    /// Begins a whole image that later ones may go on from.
    pub fn first(sink: Box<dyn Sink>, options: Options) -> Result<Self, ImageError> {
        Self::begin(sink, FORMAT_VERSION, |sink| {
            let packer = Packer::new(options.compression, Segments::first(), Ledger::first(sink)?)?;
            Ok(PageWriter::new(packer, Some(Upkeep::default())))
        })
    }

    /// Begins an increment: it holds what the chain's last image holds in the spaces `keep`, and nothing of the other
    /// spaces, until pages, forget and alike say otherwise. The sink must be able to share parts with that image. If the
    /// increment is given up, the image before is as it was, and [`Chain::open`] reads the chain back from it.
    pub fn onto(sink: Box<dyn Sink>, options: Options, chain: Chain, keep: &[u64]) -> Result<Self, ImageError> {
        Self::onto_with(sink, options, chain, (keep, &[]))
    }

    /// The same; what the chain's last image holds in the spaces of the second list is not in this one, but can be had without
    /// writing it anew ([`ImageWriter::bring`]).
    pub fn onto_with(
        sink: Box<dyn Sink>,
        options: Options,
        chain: Chain,
        (keep, aside): (&[u64], &[u64]),
    ) -> Result<Self, ImageError> {
        let Chain { id, spaces, segments, log, bases, upkeep } = chain;
        let base = id.clone();
        let mut writer = Self::begin(sink, FORMAT_VERSION, |sink| {
            let segments = Segments::onto(sink, &base, &segments)?;
            let mut ledger = Ledger::onto(sink, &base, spaces, &log)?;
            ledger.keep(keep, aside);
            let packer = Packer::new(options.compression, segments, ledger)?.with(bases);
            Ok(PageWriter::onto(packer, upkeep))
        })?;
        writer.base = Some(id);
        Ok(writer)
    }

    /// Closes segments that have so many bytes, or fewer than 64 MiB in any case: what is dead goes away by smaller pieces, and
    /// there are more files. Not for an image that stands by itself.
    #[must_use]
    pub fn with_segments_of(mut self, bytes: u64) -> Self {
        self.pages.close_segments_at(bytes);
        self
    }

    /// Compresses by so many threads besides this one, if there are more than one. The image is the same; an increment does
    /// not need them.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.pages.compress_by(threads);
        self
    }

    /// Compresses pages otherwise from now on: which way is the fastest depends on the pages and on where they go. Threads that
    /// compress ([`ImageWriter::with_threads`]) go on as they were told first.
    pub fn compress_by(&mut self, compression: Compression) -> Result<(), ImageError> {
        self.pages.compress_as(compression)
    }

    /// Keeps copies of so many bytes of the pages that increments write (64 MiB, unless it is said otherwise): of a page that comes again
    /// only the lines of 64 bytes that differ are stored.
    #[must_use]
    pub fn with_shadow_of(mut self, bytes: u64) -> Self {
        self.pages.limit_shadow(bytes);
        self
    }

    fn begin(
        mut sink: Box<dyn Sink>,
        version: u32,
        pages: impl FnOnce(&mut dyn Sink) -> Result<PageWriter, ImageError>,
    ) -> Result<Self, ImageError> {
        let image = sink.snapshot().image;
        let frames = FrameWriter::new(sink.part(PartName::Frames)?, image, version)?;
        let pages = pages(sink.as_mut())?;
        Ok(Self { frames, pages, base: None, clones: Vec::new(), sink })
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

    /// Lets a space hold all that a space of the chain's last image held which was put aside ([`ImageWriter::onto_with`]).
    /// `false`: nothing is known of it, or it held nothing.
    pub fn bring(&mut self, space: u64, from: u64) -> Result<bool, ImageError> {
        self.pages.bring(self.sink.as_mut(), space, from)
    }

    /// Says that a space holds in a range what another one holds there at the end: it is stored once. What is said first
    /// is done first.
    pub fn alike(&mut self, space: u64, from: u64, range: Range<u64>) -> Result<(), ImageError> {
        self.pages.alike(space, from, range)
    }

    /// Takes a clone of a file of the program as the contents of an object, each at most once. It has no name yet, is so long,
    /// and lies on the file system on which the image does.
    pub fn attach(&mut self, object: u64, clone: File, size: u64) -> Result<(), ImageError> {
        self.sink.attach(PartName::Clone(object), clone)?;
        self.clones.push(CloneFacts { object, size });
        Ok(())
    }

    /// Where contents lie that the image has in common with others.
    pub fn in_common(&mut self) -> &mut dyn Sink {
        self.sink.as_mut()
    }

    /// Writes the rest and makes all of it durable. It is not visible yet.
    pub fn persist(self, mut facts: ManifestFacts) -> Result<Durable, ImageError> {
        let Self { mut frames, pages, base, mut clones, mut sink } = self;
        clones.sort_unstable_by_key(|clone| clone.object);
        let stored = pages.finish(sink.as_mut())?;
        let pages = match &stored.log {
            None => {
                give_back(sink.as_mut(), &stored);
                write_index(&mut frames, &stored)?
            }
            Some(log) => page_facts(&stored, log.digest.finalize()),
        };
        facts.base = base.or(facts.base);
        let id = sink.snapshot().clone();
        let log = stored.log.as_ref().map(|log| log.facts);
        let segments = stored.segments.clone();
        let manifest = Manifest { id, facts, frames: frames.finish()?, segments, pages, log, clones };
        sink.persist(&manifest.encode()?)?;
        let Stored { segments, spaces, log, bases, upkeep, .. } = stored;
        let chain = log.map(|log| Chain { id: manifest.id.clone(), spaces, segments, log, bases, upkeep });
        Ok(Durable { manifest, chain, sink })
    }

    /// Writes the rest and commits.
    pub fn finish(self, facts: ManifestFacts) -> Result<Committed, ImageError> {
        self.persist(facts)?.commit()
    }

    /// Removes all that was written. The same as dropping it, but says when that failed.
    pub fn abort(self) -> Result<(), ImageError> {
        Ok(self.sink.abort()?)
    }
}

/// Tells the sink of what was stored and then replaced, as pages are that were copied while the program ran.
fn give_back(sink: &mut dyn Sink, stored: &Stored) {
    /// Less is not worth a call.
    const LEAST: u64 = 64 << 10;
    let runs = stored.spaces.values().flat_map(Index::runs).filter(|run| run.codec != Codec::Zero);
    let mut alive: Vec<(u32, u64, u64)> =
        runs.map(|run| (run.segment, run.offset, run.offset.saturating_add(u64::from(run.length)))).collect();
    alive.sort_unstable();
    for facts in &stored.segments {
        let mut at = size(Header::SIZE);
        let first = alive.partition_point(|(segment, ..)| *segment < facts.number);
        let own = alive.iter().skip(first).take_while(|(segment, ..)| *segment == facts.number);
        let ends = own.map(|(_, start, end)| (*start, *end)).chain([(facts.size, facts.size)]);
        for (start, end) in ends {
            if start.saturating_sub(at) >= LEAST {
                sink.unused(PartName::Pages(facts.number), at..start);
            }
            at = at.max(end);
        }
    }
}

/// Writes the index of an image that stands by itself.
fn write_index(frames: &mut FrameWriter, stored: &Stored) -> Result<PageFacts, ImageError> {
    let mut digest = blake3::Hasher::new();
    for (space, index) in &stored.spaces {
        let mut runs = index.runs();
        loop {
            let chunk: Vec<PageRunEntry> = runs.by_ref().take(INDEX_ENTRIES).collect();
            if chunk.is_empty() {
                break;
            }
            let body = encode_list(&chunk)?;
            digest.update(&space.to_le_bytes());
            digest.update(&body);
            frames.frame(Tag(tag::PAGE_INDEX), <PageRunEntry as Layout>::VERSION, *space, &body)?;
        }
    }
    Ok(page_facts(stored, digest.finalize()))
}

fn page_facts(stored: &Stored, digest: blake3::Hash) -> PageFacts {
    let counts = stored.spaces.values().map(Index::counts).fold(Counts::default(), Counts::plus);
    let bytes = |facts: &SegmentFacts| facts.size.saturating_sub(size(Header::SIZE));
    let stored_size = stored.segments.iter().map(bytes).fold(0, u64::saturating_add);
    PageFacts {
        runs: counts.runs,
        stored_pages: counts.stored,
        zero_pages: counts.zero,
        stored_size,
        added_size: if stored.log.is_some() { stored.added } else { stored_size },
        digest: digest.into(),
    }
}

/// What a commit leaves.
#[derive(Debug)]
pub struct Committed {
    /// The manifest of the image.
    pub manifest: Manifest,
    /// What it is called.
    pub id: SnapshotId,
    /// For the next one to go on from; `None` for an image that stands by itself.
    pub chain: Option<Chain>,
}

/// An image that is durable and not yet visible. Dropping it removes it.
#[derive(Debug)]
pub struct Durable {
    manifest: Manifest,
    chain: Option<Chain>,
    sink: Box<dyn Sink>,
}

impl Durable {
    /// What is about to be committed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Makes it visible. On an error nothing is.
    pub fn commit(self) -> Result<Committed, ImageError> {
        self.sink.commit()?;
        let id = self.manifest.id.clone();
        Ok(Committed { manifest: self.manifest, id, chain: self.chain })
    }

    /// Removes it.
    pub fn abort(self) -> Result<(), ImageError> {
        Ok(self.sink.abort()?)
    }
}
