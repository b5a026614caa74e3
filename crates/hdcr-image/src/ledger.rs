//! The page index of an image in the making, and the log that hears of each change of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use hdcr_layout::{Codec, PAGE_SIZE, PageRunEntry};

use crate::error::ImageError;
use crate::index::{Counts, Index};
use crate::log::{LogState, LogWriter};
use crate::name::SnapshotId;
use crate::pack::There;
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
    /// Whether all of the index has to go to the log, which is a new one.
    is_fresh: bool,
    /// What has changed since the image before. Pages that come several times go to the log once, as they are at the end.
    touched: BTreeMap<u64, Ranges>,
    /// What spaces of the image before held that this one does not hold, unless it is said that one of its own does.
    aside: BTreeMap<u64, Index>,
}

/// By their starts; they neither overlap nor follow on one another.
type Ranges = BTreeMap<u64, u64>;

impl Ledger {
    /// An empty one with a log.
    pub(crate) fn first(sink: &mut dyn Sink) -> Result<Self, ImageError> {
        Ok(Self { log: Some(LogWriter::begin(sink, 0)?), is_fresh: true, ..Self::default() })
    }

    /// Goes on where an image left off. Its log is begun anew when it has grown long, or belongs to somebody else.
    pub(crate) fn onto(
        sink: &mut dyn Sink,
        base: &SnapshotId,
        spaces: BTreeMap<u64, Index>,
        log: &LogState,
    ) -> Result<Self, ImageError> {
        let mut ledger = Self { spaces, ..Self::default() };
        if !log.is_long_for(ledger.counts().runs) {
            ledger.log = LogWriter::go_on(sink, base, log)?;
        }
        if ledger.log.is_none() {
            let number = log.facts.number.checked_add(1);
            let number = number.ok_or(ImageError::TooLong { what: "a chain", len: u64::from(u32::MAX) })?;
            ledger.log = Some(LogWriter::begin(sink, number)?);
            ledger.is_fresh = true;
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
    pub(crate) fn put(&mut self, space: u64, run: PageRunEntry) {
        let index = self.spaces.entry(space).or_default();
        if run.codec == Codec::Zero && index.has(&run) {
            return;
        }
        index.insert(run);
        self.touch(space, run.address..run.end().unwrap_or(run.address));
    }

    /// The same with a run that is stored already, and may be there.
    pub(crate) fn put_anew(&mut self, space: u64, run: PageRunEntry) {
        if !self.spaces.get(&space).is_some_and(|index| index.has(&run)) {
            self.put(space, run);
        }
    }

    /// Takes what the space holds in a range out.
    pub(crate) fn cut(&mut self, space: u64, range: Range<u64>) {
        let Some(index) = self.spaces.get_mut(&space) else { return };
        if !index.cut(range.clone()) {
            return;
        }
        if index.counts().runs == 0 {
            self.spaces.remove(&space);
        }
        self.touch(space, range);
    }

    /// Notes that something has changed.
    fn touch(&mut self, space: u64, range: Range<u64>) {
        if self.is_fresh || self.log.is_none() || range.is_empty() {
            return;
        }
        let ranges = self.touched.entry(space).or_default();
        let Range { mut start, mut end } = range;
        let before = ranges.range(..=start).next_back().map(|(from, to)| (*from, *to));
        if let Some((from, to)) = before.filter(|(_, to)| *to >= start) {
            if to >= end {
                return;
            }
            start = from;
        }
        while let Some((from, to)) = ranges.range(start..=end).next().map(|(from, to)| (*from, *to)) {
            end = end.max(to);
            ranges.remove(&from);
        }
        ranges.insert(start, end);
    }

    /// Drops all other spaces; what those `aside` held can be brought back.
    pub(crate) fn keep(&mut self, keep: &[u64], aside: &[u64]) {
        let (keep, aside): (BTreeSet<&u64>, BTreeSet<&u64>) = (keep.iter().collect(), aside.iter().collect());
        let gone: Vec<u64> = self.spaces.keys().filter(|space| !keep.contains(space)).copied().collect();
        for space in gone {
            if let Some(index) = self.spaces.get(&space).filter(|_| aside.contains(&space)) {
                self.aside.insert(space, index.clone());
            }
            self.cut(space, EVERYTHING);
        }
    }

    /// Lets a space hold what one of the image before held that was put aside; `false`: there is nothing of it.
    pub(crate) fn bring(&mut self, space: u64, from: u64) -> bool {
        let runs: Vec<PageRunEntry> = self.aside.get(&from).map(|index| index.runs().collect()).unwrap_or_default();
        for run in &runs {
            self.put_anew(space, *run);
        }
        !runs.is_empty()
    }

    /// Lets a space hold in a range what another one holds there. What is alike already is not touched.
    pub(crate) fn alike(&mut self, space: u64, from: u64, range: &Range<u64>) {
        let within = |space: u64| self.spaces.get(&space).map(|index| index.within(range)).unwrap_or_default();
        let theirs = within(from);
        let ours: BTreeMap<u64, PageRunEntry> = within(space).into_iter().map(|run| (run.address, run)).collect();
        let mut at = range.start;
        for run in &theirs {
            self.cut_some(space, at..run.address);
            at = run.end().unwrap_or(u64::MAX);
            if ours.get(&run.address) != Some(run) {
                self.put(space, *run);
            }
        }
        self.cut_some(space, at..range.end);
    }

    fn cut_some(&mut self, space: u64, range: Range<u64>) {
        if !range.is_empty() {
            self.cut(space, range);
        }
    }

    /// Writes to the log what has changed, if all of it is there, and ends it.
    pub(crate) fn finish(mut self, there: &There<'_>) -> Result<Ended, ImageError> {
        let Some(mut log) = self.log.take() else { return Ok((self.spaces, None)) };
        if self.is_fresh {
            for (space, index) in &self.spaces {
                for run in index.runs() {
                    there.check(&run)?;
                    log.put(*space, run)?;
                }
            }
        }
        for (space, ranges) in std::mem::take(&mut self.touched) {
            for (start, end) in ranges {
                let index = self.spaces.get(&space);
                write_range((&mut log, there), space, index, &(start..end))?;
            }
        }
        Ok((self.spaces, Some(log.finish()?)))
    }
}

/// Writes what a space holds in a range now.
fn write_range(
    (log, there): (&mut LogWriter, &There<'_>),
    space: u64,
    index: Option<&Index>,
    range: &Range<u64>,
) -> Result<(), ImageError> {
    let mut at = range.start;
    for run in index.map(|index| index.within(range)).unwrap_or_default() {
        if at < run.address {
            log.cut(space, at..run.address)?;
        }
        there.check(&run)?;
        log.put(space, run)?;
        at = run.end().unwrap_or(u64::MAX);
    }
    if at < range.end { log.cut(space, at..range.end) } else { Ok(()) }
}
