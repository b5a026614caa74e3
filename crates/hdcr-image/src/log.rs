//! The page log: the page index of a chain of images, written as changes. Reading it back is applying them in order.

use std::collections::BTreeMap;
use std::ops::Range;

use hdcr_layout::{FORMAT_VERSION, Header, LogRecord, PageRunEntry, PartKind};

use crate::error::{ImageError, StoreError};
use crate::frames::{Output, check_header};
use crate::index::{Counts, Index};
use crate::manifest::{LogFacts, Manifest};
use crate::name::{PartName, SnapshotId};
use crate::number::{len, size};
use crate::sink::{Sink, Source};

/// How much is hashed and handed on at once, and read at once.
const PIECE: usize = 1024 * LogRecord::SIZE;
/// Logs of so many records are never begun anew.
const SHORT: u64 = 4096;

/// What an image says about its log, and the digest of what it covers, which goes on with the next image.
#[derive(Clone, Debug)]
pub(crate) struct LogState {
    pub(crate) facts: LogFacts,
    pub(crate) digest: blake3::Hasher,
}

impl LogState {
    /// Whether most of the log is about what is no more.
    pub(crate) fn is_long_for(&self, live: u64) -> bool {
        let bytes = self.facts.size.saturating_sub(size(Header::SIZE));
        let records = bytes.checked_div(size(LogRecord::SIZE)).unwrap_or(0);
        records > SHORT.max(live.saturating_mul(2))
    }
}

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct LogWriter {
    name: PartName,
    facts: LogFacts,
    out: Output,
    digest: blake3::Hasher,
    waiting: Vec<u8>,
    /// Bytes that were there before.
    before: u64,
}

impl LogWriter {
    /// Begins a log with this number.
    pub(crate) fn begin(sink: &mut dyn Sink, number: u32) -> Result<Self, ImageError> {
        let name = PartName::Index(number);
        let part = sink.part(name)?;
        let facts = LogFacts { number, generation: 1, size: 0, image: sink.snapshot().image };
        let header = header_of(&facts);
        let mut block = [0; Header::SIZE];
        header.encode(&mut block).map_err(|error| ImageError::layout(name, error))?;
        let out = Output::new(part, name, &header)?;
        let mut digest = blake3::Hasher::new();
        digest.update(&block);
        Ok(Self { name, facts, out, digest, waiting: Vec::new(), before: 0 })
    }

    /// Goes on with the log of the image before; `None` when that cannot be.
    pub(crate) fn go_on(sink: &mut dyn Sink, base: &SnapshotId, log: &LogState) -> Result<Option<Self>, ImageError> {
        let name = PartName::Index(log.facts.number);
        let before = log.facts.size;
        let part = match sink.extend(base, name, before) {
            Err(StoreError::Busy { .. }) => return Ok(None),
            other => other?,
        };
        let out = Output::resume(part, before);
        let digest = log.digest.clone();
        Ok(Some(Self { name, facts: log.facts, out, digest, waiting: Vec::new(), before }))
    }

    pub(crate) fn put(&mut self, space: u64, run: PageRunEntry) -> Result<(), ImageError> {
        self.record(&LogRecord::Put { space, run })
    }

    pub(crate) fn cut(&mut self, space: u64, range: Range<u64>) -> Result<(), ImageError> {
        self.record(&LogRecord::Cut { space, start: range.start, end: range.end })
    }

    fn record(&mut self, record: &LogRecord) -> Result<(), ImageError> {
        let mut block = [0; LogRecord::SIZE];
        record.encode(&mut block).map_err(|error| ImageError::layout(self.name, error))?;
        self.waiting.extend_from_slice(&block);
        if self.waiting.len() >= PIECE { self.hand_on() } else { Ok(()) }
    }

    fn hand_on(&mut self) -> Result<(), ImageError> {
        self.digest.update(&self.waiting);
        self.out.write(&self.waiting)?;
        self.waiting.clear();
        Ok(())
    }

    /// Writes the rest. Says as well how many bytes were added.
    pub(crate) fn finish(mut self) -> Result<(LogState, u64), ImageError> {
        self.hand_on()?;
        let written = self.out.written;
        self.out.close()?;
        let facts = LogFacts { size: written, ..self.facts };
        Ok((LogState { facts, digest: self.digest }, written.saturating_sub(self.before)))
    }
}

fn header_of(facts: &LogFacts) -> Header {
    Header {
        version: FORMAT_VERSION,
        kind: PartKind::Index,
        image: facts.image.0,
        number: facts.number,
        generation: facts.generation,
    }
}

/// Reads the log of an image and checks it against the manifest. Where its runs lie is not checked here.
pub(crate) fn replay(
    source: &dyn Source,
    manifest: &Manifest,
    facts: &LogFacts,
) -> Result<(BTreeMap<u64, Index>, blake3::Hasher), ImageError> {
    let name = PartName::Index(facts.number);
    let corrupt = |reason: &str| ImageError::corrupt(name, reason);
    let part = source.part(name)?;
    if part.size()? < facts.size {
        return Err(corrupt("it is shorter than the manifest says"));
    }
    let head = size(Header::SIZE);
    let records = facts.size.checked_sub(head).filter(|records| records.is_multiple_of(size(LogRecord::SIZE)));
    let records = records.ok_or_else(|| corrupt("what is covered of it are not whole records"))?;
    let mut piece = vec![0; Header::SIZE];
    part.read_at(0, &mut piece)?;
    check_header(name, &piece, &header_of(facts))?;
    let mut digest = blake3::Hasher::new();
    digest.update(&piece);
    let mut spaces: BTreeMap<u64, Index> = BTreeMap::new();
    let mut done = 0_u64;
    while done < records {
        piece.resize(len(records.saturating_sub(done)).min(PIECE), 0);
        part.read_at(head.saturating_add(done), &mut piece)?;
        digest.update(&piece);
        for block in piece.chunks_exact(LogRecord::SIZE) {
            let (record, _) = LogRecord::decode(block).map_err(|error| ImageError::layout(name, error))?;
            apply(&mut spaces, record);
        }
        done = done.saturating_add(size(piece.len()));
    }
    spaces.retain(|_, index| index.counts().runs > 0);
    if digest.finalize().as_bytes() != &manifest.pages.digest.0 {
        return Err(corrupt("its digest is not the one in the manifest"));
    }
    let counted = spaces.values().map(Index::counts).fold(Counts::default(), Counts::plus);
    if !counted.are_told_by(&manifest.pages) {
        return Err(corrupt("it does not lead to the page index that the manifest tells of"));
    }
    Ok((spaces, digest))
}

fn apply(spaces: &mut BTreeMap<u64, Index>, record: LogRecord) {
    match record {
        LogRecord::Put { space, run } => spaces.entry(space).or_default().insert(run),
        LogRecord::Cut { space, start, end } => {
            if let Some(index) = spaces.get_mut(&space) {
                index.cut(start..end);
            }
        }
    }
}
