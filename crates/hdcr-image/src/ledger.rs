//! The page index of an image in the making, and the log that hears of each change of it.

use std::collections::BTreeMap;
use std::ops::Range;

use hdcr_layout::{Codec, PAGE_SIZE, PageRunEntry};

use crate::error::ImageError;
use crate::index::{Counts, Index};
use crate::log::{LogState, LogWriter};
use crate::name::SnapshotId;
use crate::sink::Sink;

/// Behind the last page that there can be.
const EVERYTHING: Range<u64> = 0..u64::MAX - (PAGE_SIZE - 1);

/// The index at the end; the log, and how much was added to it.
pub(crate) type Ended = (BTreeMap<u64, Index>, Option<(LogState, u64)>);

/// The index of all spaces.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    spaces: BTreeMap<u64, Index>,
    /// `None` for an image that stands by itself.
    log: Option<LogWriter>,
}

impl Ledger {
    /// An empty one with a log.
    pub(crate) fn first(sink: &mut dyn Sink) -> Result<Self, ImageError> {
        Ok(Self { spaces: BTreeMap::new(), log: Some(LogWriter::begin(sink, 0)?) })
    }

    /// Goes on where an image left off. Its log is begun anew when it has grown long, or belongs to somebody else.
    pub(crate) fn onto(
        sink: &mut dyn Sink,
        base: &SnapshotId,
        spaces: BTreeMap<u64, Index>,
        log: &LogState,
    ) -> Result<Self, ImageError> {
        let mut ledger = Self { spaces, log: None };
        if !log.is_long_for(ledger.counts().runs) {
            ledger.log = LogWriter::go_on(sink, base, log)?;
        }
        if ledger.log.is_none() {
            let number = log.facts.number.checked_add(1);
            let number = number.ok_or(ImageError::TooLong { what: "a chain", len: u64::from(u32::MAX) })?;
            let mut fresh = LogWriter::begin(sink, number)?;
            for (space, index) in &ledger.spaces {
                index.runs().try_for_each(|run| fresh.put(*space, *run))?;
            }
            ledger.log = Some(fresh);
        }
        Ok(ledger)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.spaces.values().map(Index::counts).fold(Counts::default(), Counts::plus)
    }

    /// The index.
    pub(crate) fn spaces(&self) -> &BTreeMap<u64, Index> {
        &self.spaces
    }

    /// Puts a run over whatever the space held there.
    pub(crate) fn put(&mut self, space: u64, run: PageRunEntry) -> Result<(), ImageError> {
        let index = self.spaces.entry(space).or_default();
        if run.codec == Codec::Zero && index.has(&run) {
            return Ok(());
        }
        index.insert(run);
        self.log.as_mut().map_or(Ok(()), |log| log.put(space, run))
    }

    /// The same with a run that is stored already, and may be there.
    pub(crate) fn put_anew(&mut self, space: u64, run: PageRunEntry) -> Result<(), ImageError> {
        let there = self.spaces.get(&space).is_some_and(|index| index.has(&run));
        if there { Ok(()) } else { self.put(space, run) }
    }

    /// Takes what the space holds in a range out.
    pub(crate) fn cut(&mut self, space: u64, range: Range<u64>) -> Result<(), ImageError> {
        let Some(index) = self.spaces.get_mut(&space) else { return Ok(()) };
        if !index.cut(range.clone()) {
            return Ok(());
        }
        if index.counts().runs == 0 {
            self.spaces.remove(&space);
        }
        self.log.as_mut().map_or(Ok(()), |log| log.cut(space, range))
    }

    /// Drops all other spaces.
    pub(crate) fn keep(&mut self, keep: &[u64]) -> Result<(), ImageError> {
        let gone: Vec<u64> = self.spaces.keys().filter(|space| !keep.contains(space)).copied().collect();
        gone.into_iter().try_for_each(|space| self.cut(space, EVERYTHING))
    }

    /// Lets a space hold in a range what another one holds there. What is alike already is not touched.
    pub(crate) fn alike(&mut self, space: u64, from: u64, range: &Range<u64>) -> Result<(), ImageError> {
        let within = |space: u64| self.spaces.get(&space).map(|index| index.within(range)).unwrap_or_default();
        let theirs = within(from);
        let ours: BTreeMap<u64, PageRunEntry> = within(space).into_iter().map(|run| (run.address, run)).collect();
        let mut at = range.start;
        for run in &theirs {
            self.cut_some(space, at..run.address)?;
            at = run.end().unwrap_or(u64::MAX);
            if ours.get(&run.address) != Some(run) {
                self.put(space, *run)?;
            }
        }
        self.cut_some(space, at..range.end)
    }

    fn cut_some(&mut self, space: u64, range: Range<u64>) -> Result<(), ImageError> {
        if range.is_empty() { Ok(()) } else { self.cut(space, range) }
    }

    /// Ends the log.
    pub(crate) fn finish(self) -> Result<Ended, ImageError> {
        Ok((self.spaces, self.log.map(LogWriter::finish).transpose()?))
    }
}
