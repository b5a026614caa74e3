//! Reading an image: nothing is let out before it was checked.

use std::collections::BTreeMap;
use std::fs::File;

use hdcr_layout::{Codec, Header, Layout as _, PageRunEntry, PartKind, tag};
use xxhash_rust::xxh3::xxh3_64;

use crate::delta::{self, is_delta};
use crate::error::{ImageError, StoreError};
use crate::frames::{Frame, Frames, OTHER_INDEX, check_header};
use crate::index::{Counts, Index, PageRun};
use crate::log::replay;
use crate::manifest::{CloneFacts, LogFacts, Manifest, total_length};
use crate::name::{ContentKey, PartName};
use crate::number::{len, size};
use crate::record::{KnownTag, List, RecordError, Tag, check_version, each, first_unknown};
use crate::sink::{CommonContents, ReadPart, Source};

const PAGE: usize = 4096;

/// A segment that stays open as long as the image is read.
#[derive(Debug)]
pub(crate) struct Segment {
    number: u32,
    part: Box<dyn ReadPart>,
}

/// Reads stored bytes from the place of a run on, as many as there is room for.
pub(crate) fn read_from(segments: &[Segment], entry: &PageRunEntry, into: &mut [u8]) -> Result<(), ImageError> {
    let segment = segments.iter().find(|segment| segment.number == entry.segment);
    let segment = segment.ok_or_else(|| corrupt(entry, "a page run names a segment that is not there"))?;
    Ok(segment.part.read_at(entry.offset, into)?)
}

/// What is stored in one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoredBy {
    /// Pages.
    pub pages: u64,
    /// The bytes that they take.
    pub bytes: u64,
}

/// An image whose manifest, frames and page index are checked. Pages are checked as they are read.
#[derive(Debug)]
pub struct ImageReader {
    manifest: Manifest,
    frames: Frames,
    spaces: BTreeMap<u64, Vec<PageRun>>,
    segments: Vec<Segment>,
    clones: BTreeMap<u64, Box<dyn ReadPart>>,
    in_common: Option<Box<dyn CommonContents>>,
}

/// Reads and checks the manifest of an image and touches nothing else.
pub(crate) fn read_manifest(source: &dyn Source) -> Result<Manifest, ImageError> {
    let part = source.part(PartName::Manifest)?;
    let found = part.size()?;
    if found > Manifest::LIMIT {
        return Err(ImageError::TooLong { what: "a manifest", len: found });
    }
    let bytes = read_all(part.as_ref(), found)?;
    if total_length(&bytes).is_some_and(|told| told > bytes.len()) {
        // Said here because a version check still comes first for what is not cut off.
        Header::decode(&bytes).map_err(|error| ImageError::layout(PartName::Manifest, error))?;
        return Err(ImageError::corrupt(PartName::Manifest, "it ends early"));
    }
    Manifest::decode(&bytes)
}

fn read_all(part: &dyn ReadPart, found: u64) -> Result<Vec<u8>, ImageError> {
    let mut bytes = vec![0; len(found)];
    part.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Opens the frames of an image that can be read by itself.
pub(crate) fn frames_part(source: &dyn Source, manifest: &Manifest) -> Result<Box<dyn ReadPart>, ImageError> {
    if let Some(base) = manifest.facts.base.as_ref().filter(|_| manifest.log.is_none()) {
        return Err(ImageError::Increment { base: base.image });
    }
    let part = source.part(PartName::Frames)?;
    if part.size()? != manifest.frames.size {
        return Err(ImageError::corrupt(PartName::Frames, "its length is not the one in the manifest"));
    }
    Ok(part)
}

impl ImageReader {
    /// Opens all parts and checks manifest, frames and index.
    pub fn open(source: &dyn Source) -> Result<Self, ImageError> {
        let manifest = read_manifest(source)?;
        let part = frames_part(source, &manifest)?;
        let mut listed = Listed::new(&manifest);
        let frames = Frames::read(part.as_ref(), &manifest, &mut |frame| listed.take(frame))?;
        let spaces = match &manifest.log {
            None => listed.finish()?,
            Some(log) => read_log(source, &manifest, log)?,
        };
        let segments = open_segments(source, &manifest)?;
        let clones = open_clones(source, &manifest)?;
        let in_common = source.contents_in_common();
        Ok(Self { manifest, frames, spaces, segments, clones, in_common })
    }

    /// The manifest of an image alone.
    pub fn manifest_of(source: &dyn Source) -> Result<Manifest, ImageError> {
        read_manifest(source)
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// All frames in the order in which they were written, without the container's own.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        self.frames.iter()
    }

    /// Refuses the image when it holds a kind of record, or a version of one, that `known` does not name.
    pub fn refuse_unknown(&self, known: &[KnownTag]) -> Result<(), RecordError> {
        first_unknown(self.frames().map(|frame| (frame.tag, frame.version)), known)
    }

    /// The spaces that have pages.
    pub fn spaces(&self) -> impl Iterator<Item = u64> {
        self.spaces.keys().copied()
    }

    /// The clone of a file that is the contents of an object. The container vouches for its length alone: its bytes are on the
    /// disk where the program's own were.
    pub fn clone_of(&self, object: u64) -> Result<Option<File>, ImageError> {
        let file = self.clones.get(&object).map(|part| part.file()).transpose()?;
        Ok(file.flatten())
    }

    /// A whole file that the image has in common with others, which must be so long. What it holds is for the caller to check.
    pub fn content_of(&self, key: &ContentKey, size: u64) -> Result<Option<File>, ImageError> {
        let Some(all) = &self.in_common else { return Ok(None) };
        let file = all.open(key)?;
        let found = file.metadata().map_err(|error| StoreError::new("looking at", key.part(), error))?;
        Ok((found.is_file() && found.len() == size).then_some(file))
    }

    /// How pages are stored, by the way they are compressed.
    pub fn stored_by(&self) -> BTreeMap<&'static str, StoredBy> {
        let mut runs: Vec<&PageRunEntry> = self.spaces.values().flatten().map(PageRun::entry).collect();
        runs.sort_unstable_by_key(|entry| (entry.segment, entry.offset));
        let mut all: BTreeMap<_, StoredBy> = BTreeMap::new();
        let mut last = None;
        for entry in runs {
            let name = match entry.codec {
                Codec::Zero => continue,
                Codec::Plain => "none",
                Codec::Lz4 => "lz4",
                Codec::Zstd => "zstd",
                Codec::Delta | Codec::PackedDelta => "delta",
            };
            let so_far = all.entry(name).or_default();
            so_far.pages = so_far.pages.saturating_add(u64::from(entry.pages));
            // Pieces of what was stored together lie side by side here.
            if last.replace((entry.segment, entry.offset)) != Some((entry.segment, entry.offset)) {
                so_far.bytes = so_far.bytes.saturating_add(u64::from(entry.length));
            }
        }
        all
    }

    /// The runs of a space by address, none over another; empty for a space without pages.
    pub fn runs(&self, space: u64) -> &[PageRun] {
        self.spaces.get(&space).map_or(&[], Vec::as_slice)
    }

    /// Reads a run and leaves exactly its bytes in `into`; nothing for a zero run, which is not stored.
    pub fn read_run(&self, run: &PageRun, into: &mut Vec<u8>) -> Result<(), ImageError> {
        into.clear();
        let entry = run.entry();
        if entry.codec == Codec::Zero {
            return Ok(());
        }
        self.read_stored(entry, into)?;
        let skip = usize::from(entry.skip).saturating_mul(PAGE);
        into.truncate(skip.saturating_add(len(run.size())));
        into.drain(..skip.min(into.len()));
        Ok(())
    }

    /// Reads all pages that were stored together with a run.
    pub(crate) fn read_stored(&self, entry: &PageRunEntry, into: &mut Vec<u8>) -> Result<(), ImageError> {
        let mut stored = vec![0; len(u64::from(entry.length))];
        self.read_segment(entry, &mut stored)?;
        check_sum(entry, &stored)?;
        if entry.codec == Codec::Plain {
            *into = stored;
            return Ok(());
        }
        if is_delta(entry) {
            let base = self.base_of(entry, &stored)?;
            // Never changed lines again: this ends here.
            self.read_stored(base.entry(), into)?;
            into.truncate(usize::from(base.entry().skip).saturating_mul(PAGE).saturating_add(plain_size(entry)));
            into.drain(..usize::from(base.entry().skip).saturating_mul(PAGE).min(into.len()));
            return delta::apply(entry, &stored, into);
        }
        into.resize(plain_size(entry), 0);
        unpack(entry, &stored, into)
    }

    /// What the checked bytes of changed lines change.
    pub(crate) fn base_of(&self, entry: &PageRunEntry, stored: &[u8]) -> Result<PageRun, ImageError> {
        delta::base_of(entry, stored, &self.manifest.segments)
    }

    /// Reads stored bytes from the place of a run on, as many as there is room for.
    pub(crate) fn read_segment(&self, entry: &PageRunEntry, into: &mut [u8]) -> Result<(), ImageError> {
        read_from(&self.segments, entry, into)
    }
}

fn corrupt(entry: &PageRunEntry, reason: &str) -> ImageError {
    ImageError::corrupt(PartName::Pages(entry.segment), format!("{reason} (page {:#x})", entry.address))
}

/// Segment, offset, length, codec, pages, check sum.
pub(crate) type Identity = (u32, u64, u32, u16, u16, u64);

/// Runs that are equal in this are pieces of what was stored together.
pub(crate) fn identity(entry: &PageRunEntry) -> Identity {
    (entry.segment, entry.offset, entry.length, entry.codec.number(), entry.stored, entry.xxh3)
}

/// How many bytes the pages are that were stored together with a run.
pub(crate) fn plain_size(entry: &PageRunEntry) -> usize {
    usize::from(entry.stored).saturating_mul(PAGE)
}

/// Refuses stored bytes that are not what was written.
pub(crate) fn check_sum(entry: &PageRunEntry, stored: &[u8]) -> Result<(), ImageError> {
    if xxh3_64(stored) == entry.xxh3 {
        Ok(())
    } else {
        Err(corrupt(entry, "the check sum of a page run does not match"))
    }
}

/// Decompresses the stored bytes of a run into room of [`plain_size`].
pub(crate) fn unpack(entry: &PageRunEntry, stored: &[u8], into: &mut [u8]) -> Result<(), ImageError> {
    let found = match entry.codec {
        // Changed lines are no pages by themselves.
        Codec::Delta | Codec::PackedDelta => 0,
        Codec::Zero | Codec::Plain => stored.len(),
        Codec::Lz4 => {
            lz4_flex::block::decompress_into(stored, into).map_err(|error| corrupt(entry, &error.to_string()))?
        }
        Codec::Zstd => {
            zstd::bulk::decompress_to_buffer(stored, into).map_err(|error| corrupt(entry, &error.to_string()))?
        }
    };
    if found == plain_size(entry) {
        Ok(())
    } else {
        Err(corrupt(entry, "a page run has another length than its pages"))
    }
}

pub(crate) fn open_segments(source: &dyn Source, manifest: &Manifest) -> Result<Vec<Segment>, ImageError> {
    let mut segments = Vec::new();
    for facts in &manifest.segments {
        let name = PartName::Pages(facts.number);
        let part = source.part(name)?;
        if part.size()? < facts.size || facts.size < size(Header::SIZE) {
            return Err(ImageError::corrupt(name, "it is shorter than the manifest says"));
        }
        let header = Header {
            version: manifest.version(),
            kind: PartKind::Pages,
            image: facts.image.0,
            number: facts.number,
            generation: facts.generation,
        };
        check_header(name, &read_all(part.as_ref(), size(Header::SIZE))?, &header)?;
        segments.push(Segment { number: facts.number, part });
    }
    Ok(segments)
}

fn open_clones(source: &dyn Source, manifest: &Manifest) -> Result<BTreeMap<u64, Box<dyn ReadPart>>, ImageError> {
    let open = |facts: &CloneFacts| {
        let name = PartName::Clone(facts.object);
        let part = source.part(name)?;
        if part.size()? == facts.size {
            Ok((facts.object, part))
        } else {
            Err(ImageError::corrupt(name, "its length is not the one in the manifest"))
        }
    };
    manifest.clones.iter().map(open).collect()
}

/// The index of an image that stands by itself, as its frames come.
struct Listed<'a> {
    manifest: &'a Manifest,
    spaces: BTreeMap<u64, Vec<PageRun>>,
    counts: Counts,
}

impl<'a> Listed<'a> {
    fn new(manifest: &'a Manifest) -> Self {
        Self { manifest, spaces: BTreeMap::new(), counts: Counts::default() }
    }

    /// Takes the frame if it is of the index.
    fn take(&mut self, frame: &Frame<'_>) -> Result<bool, ImageError> {
        let corrupt = |reason: &str| ImageError::corrupt(PartName::Frames, reason);
        if frame.tag != Tag(tag::PAGE_INDEX) {
            return Ok(false);
        }
        if self.manifest.log.is_some() {
            return Err(corrupt("it holds an index of pages beside the log"));
        }
        check_version(&KnownTag::of::<List<PageRunEntry>>(), frame.version)?;
        let runs = self.spaces.entry(frame.id).or_default();
        let more = frame.body.len().checked_div(PageRunEntry::SIZE).unwrap_or(0);
        make_room(runs, more, self.manifest.pages.runs.saturating_sub(self.counts.runs));
        for entry in each::<PageRunEntry>(frame.body) {
            let entry = entry?;
            if is_delta(&entry) {
                return Err(corrupt("changed lines in an image that stands by itself"));
            }
            let run = PageRun::check(entry, &self.manifest.segments)?;
            if runs.last().is_some_and(|last| last.range().end > run.address()) {
                return Err(corrupt("page runs lie over one another"));
            }
            self.counts = self.counts.plus(Counts::of(run.entry()));
            runs.push(run);
        }
        Ok(true)
    }

    fn finish(self) -> Result<BTreeMap<u64, Vec<PageRun>>, ImageError> {
        if !self.counts.are_told_by(&self.manifest.pages) {
            return Err(ImageError::corrupt(PartName::Frames, OTHER_INDEX));
        }
        Ok(self.spaces)
    }
}

/// Room for so many more runs. A long list does not become twice as long for the last of them, which would need three times
/// its memory for a moment: it grows by a quarter, and by no more than may come.
fn make_room(runs: &mut Vec<PageRun>, more: usize, may_come: u64) {
    if runs.capacity().saturating_sub(runs.len()) < more {
        let ahead = runs.len().checked_div(4).unwrap_or(0).min(len(may_come));
        runs.reserve_exact(ahead.max(more));
    }
}

/// The index of an image in a chain.
fn read_log(
    source: &dyn Source,
    manifest: &Manifest,
    log: &LogFacts,
) -> Result<BTreeMap<u64, Vec<PageRun>>, ImageError> {
    let (spaces, _) = replay(source, manifest, log)?;
    let checked = |(space, index): (u64, Index)| {
        let mut runs = Vec::with_capacity(len(index.counts().runs));
        for run in index.into_runs() {
            runs.push(PageRun::check(run, &manifest.segments)?);
        }
        Ok((space, runs))
    };
    spaces.into_iter().map(checked).collect()
}
