//! One address space that is copied while its program runs.
//!
//! Order within a slice: protect, then look what is there, then copy. So whatever is written after the copy was begun is
//! seen by the next look. A page that was protected and could not be copied is *unsure*: it is read in the stop whatever
//! is said about it.

use std::collections::BTreeMap;
use std::ops::Range;

use hdcr_image::hdcr_layout::MappingKind;

use super::flags::Flags;
use super::kept::{Kept, length};
use super::outlet::Outlet;
use super::pageset::PageSet;
use super::pieces::{cut, groups};
use super::record::{MappingWay, Way, WaysRecord, Why};
use crate::checkpoint::Blind;
use crate::error::Result;
use crate::ids::Pid;
use crate::mechanism::{Followed, Pages, Watch, Written};
use crate::memory::{END, PAGE, kind_of, omitted, overlap};
use crate::model::ObjectId;
use crate::procfs::{self, MapLine};

/// Pages are protected and copied in pieces of this size, so that little is written in between.
const SLICE: u64 = 4 << 20;
/// What one page table of the lowest level covers.
const BLOCK: u64 = 2 << 20;
/// A smaller mapping is sooner read than followed.
const LEAST: u64 = 16 * PAGE;
/// So many mappings are followed at most, the largest ones: the program stands still for it.
const MOST: usize = 512;
/// Longer runs of written pages may be holes for the most part, and are looked at before they are read.
const SHORT: u64 = 4 * PAGE;

/// How long a process is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Span {
    /// Until one image is made.
    #[default]
    OneImage,
    /// From image to image.
    Series,
}

/// How an address space is followed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habit {
    pub(crate) span: Span,
    /// A rule that is left out.
    pub(crate) blind: Option<Blind>,
}

/// A followed address space and what the image holds of it.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) pid: Pid,
    /// Its object in the image.
    pub(crate) id: ObjectId,
    watch: Box<dyn Watch>,
    /// Pages that the image holds as they were when they were copied.
    copied: PageSet,
    unsure: PageSet,
    /// Pages that the image in the making holds otherwise than the last one that was committed.
    since: PageSet,
    habit: Habit,
    /// Mappings, by their starts, that cannot be followed, and why.
    refused: BTreeMap<u64, Why>,
    /// Mappings that came since it was last looked for what can be followed.
    new: Vec<Range<u64>>,
    /// What the program has asked to leave out.
    omitted: PageSet,
    /// The last image that was committed holds its pages under this number.
    pub(crate) in_base: bool,
    rounds: u32,
    pub(crate) flags: Flags,
}

/// Which pages of a mapping belong to its process alone; `None`: the mapping is not for this way.
pub(crate) fn pages_of(line: &MapLine) -> Option<Pages> {
    match kind_of(line) {
        // The page that all processes have above their memory.
        _ if line.range.end > END => None,
        MappingKind::Anonymous if line.has(b"dp") => None,
        MappingKind::Anonymous => Some(Pages::Filled),
        MappingKind::PrivateFile => Some(Pages::Anonymous),
        MappingKind::SharedFile | MappingKind::SharedMemory | MappingKind::Vdso | MappingKind::Vvar => None,
    }
}

/// Why a mapping is not even tried to be followed.
fn why_not(line: &MapLine) -> Option<Why> {
    if line.range.end - line.range.start < LEAST {
        return Some(Why::Small);
    }
    (kind_of(line) == MappingKind::PrivateFile && !line.perms.contains(&b'w')).then_some(Why::OnlyRead)
}

fn count(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| (range.end - range.start) / PAGE).sum()
}

impl Space {
    pub(crate) fn new(pid: Pid, id: ObjectId, watch: Box<dyn Watch>, habit: Habit) -> Self {
        Self {
            pid,
            id,
            watch,
            copied: PageSet::default(),
            unsure: PageSet::default(),
            since: PageSet::default(),
            habit,
            refused: BTreeMap::new(),
            new: Vec::new(),
            omitted: PageSet::default(),
            in_base: false,
            rounds: 0,
            flags: Flags::default(),
        }
    }

    /// The image in the making was committed: the next one goes on from it.
    pub(crate) fn committed(&mut self) {
        self.since = PageSet::default();
        self.in_base = true;
    }

    /// The image in the making will not be: the next one goes on from the one before, and has to say everything anew that
    /// this one has said.
    pub(crate) fn aborted(&mut self) {
        for range in std::mem::take(&mut self.since).ranges() {
            self.copied.add(&range);
            self.unsure.add(&range);
        }
    }

    /// Another image begins, on top of the last one.
    pub(crate) fn begin_again(&mut self) -> Result<()> {
        self.rounds = 0;
        self.watch.must_be_the_same()?;
        Ok(self.watch.renew()?)
    }

    /// The program leaves out this memory, and no other any more.
    pub(crate) fn leave_out(&mut self, omitted: PageSet) {
        for range in std::mem::replace(&mut self.omitted, omitted).ranges() {
            for again in self.omitted.missing(&range) {
                // Nothing says what was written to it meanwhile.
                self.unsure.add(&again);
            }
        }
    }

    /// Its mappings of which contents are wanted, as they are now.
    fn wanted(&self) -> Result<Vec<MapLine>> {
        Ok(omitted::without(&maps(self.pid)?, &self.omitted))
    }

    /// How many pages have to be read although nothing says that they were written.
    pub(crate) fn unsure_pages(&self) -> u64 {
        count(&self.unsure.ranges().collect::<Vec<_>>())
    }

    /// Follows all mappings that are worth it. Only in a stop: a mapping that is followed in part is two to the kernel, and the
    /// program cannot move it any more.
    pub(crate) fn follow(&mut self) -> Result<()> {
        let lines = maps(self.pid)?.into_iter();
        let worth = lines.filter(|line| pages_of(line).is_some() && why_not(line).is_none());
        self.new = worth.map(|line| line.range).collect();
        self.follow_new()
    }

    /// Follows what has come since. At the end of a stop: mappings that are followed alike may become one.
    pub(crate) fn follow_new(&mut self) -> Result<()> {
        let mut new = std::mem::take(&mut self.new);
        self.make_whole(&mut new)?;
        new.sort_by_key(|range| std::cmp::Reverse(range.end - range.start));
        for range in new.iter().take(MOST) {
            let why = match self.watch.follow(range)? {
                Followed::Yes => continue,
                Followed::Taken => Why::Taken,
                Followed::Impossible => Why::Impossible,
            };
            self.refused.insert(range.start, why);
        }
        Ok(())
    }

    /// Parts of a mapping become the whole of it: followed in part it would be two.
    fn make_whole(&self, new: &mut Vec<Range<u64>>) -> Result<()> {
        if new.is_empty() || self.omitted == PageSet::default() {
            return Ok(());
        }
        let lines = maps(self.pid)?.into_iter().map(|line| line.range);
        *new = lines.filter(|whole| new.iter().any(|part| overlap(part, whole))).collect();
        Ok(())
    }

    /// Begins to see what is written, and copies nothing yet: all is unsure. How many pages there are.
    pub(crate) fn see(&mut self) -> Result<u64> {
        for (range, which) in self.followed()? {
            let Written::Pages(written) = self.watch.written(&range)? else { continue };
            for slice in self.sort(&written, which)?.there.iter().flat_map(|run| cut(run, SLICE)) {
                self.unsure.add(&slice);
                self.watch.take_written(&slice)?;
            }
        }
        Ok(self.unsure_pages())
    }

    /// How many pages were written since they are seen.
    pub(crate) fn seen(&self) -> Result<u64> {
        let mut pages = 0;
        for (range, _) in self.followed()? {
            let Written::Pages(written) = self.watch.written(&range)? else { continue };
            pages += written.iter().map(|run| count(&self.unsure.within(run))).sum::<u64>();
        }
        Ok(pages)
    }

    /// Mappings that may be followed, as they are now.
    fn followed(&self) -> Result<Vec<(Range<u64>, Pages)>> {
        let lines = self.wanted()?.into_iter().filter(|line| why_not(line).is_none());
        Ok(lines.filter_map(|line| pages_of(&line).map(|which| (line.range, which))).collect())
    }

    /// One round: copies what was written since the last one. How many pages that were.
    pub(crate) fn round(&mut self, out: &mut Outlet) -> Result<u64> {
        self.rounds += 1;
        let mut pages = 0;
        for line in self.wanted()? {
            let Some(which) = pages_of(&line).filter(|_| why_not(&line).is_none()) else { continue };
            let first = line.range.start..line.range.start.saturating_add(PAGE);
            if self.watch.written(&first)? != Written::Unfollowed {
                pages += self.mapping(&line.range, which, out)?;
            }
        }
        Ok(pages)
    }

    /// A followed mapping: what was written. Only blocks that hold something are protected: protecting makes
    /// page tables, and a mapping may be far larger than what it holds.
    fn mapping(&mut self, range: &Range<u64>, which: Pages, out: &mut Outlet) -> Result<u64> {
        let mut pages = 0;
        for piece in self.unsure.within(range).iter().flat_map(|piece| cut(piece, SLICE)) {
            self.unsure.remove(&piece);
            pages += self.slice(&piece, which, Whole::Yes, out)?;
        }
        // It may have become several mappings just now; the next round meets each.
        let Written::Pages(written) = self.watch.written(range)? else { return Ok(pages) };
        let mut blocks = PageSet::default();
        for run in &written {
            for piece in self.sort(std::slice::from_ref(run), which)?.all() {
                let around = piece.start / BLOCK * BLOCK..piece.end.next_multiple_of(BLOCK);
                blocks.add(&(around.start.max(range.start)..around.end.min(range.end)));
            }
        }
        let slices: Vec<Range<u64>> = blocks.ranges().flat_map(|range| cut(&range, SLICE)).collect();
        for slice in slices {
            pages += self.slice(&slice, which, Whole::No, out)?;
        }
        Ok(pages)
    }

    /// What was found written is asked for again only when it was copied: after an error all of it is unsure.
    fn slice(&mut self, slice: &Range<u64>, which: Pages, whole: Whole, out: &mut Outlet) -> Result<u64> {
        let copied = self.copy_slice(slice, which, whole, out);
        if copied.is_err() {
            self.unsure.add(slice);
        }
        copied
    }

    fn copy_slice(&mut self, slice: &Range<u64>, which: Pages, whole: Whole, out: &mut Outlet) -> Result<u64> {
        let Written::Pages(written) = self.watch.take_written(slice)? else {
            self.unsure.add(slice);
            return Ok(0);
        };
        let found = match whole {
            Whole::Yes => self.sort(std::slice::from_ref(slice), which)?,
            Whole::No => self.sort(&written, which)?,
        };
        for gone in &found.gone {
            self.forget(gone, out)?;
        }
        self.copy(&found.there, out)?;
        Ok(count(&found.there))
    }

    /// Sorts written pages into those that hold something and those that do not any more.
    fn sort(&self, written: &[Range<u64>], which: Pages) -> Result<Sorted> {
        let mut sorted = Sorted::default();
        for run in written {
            // What could not be read before is looked at: it may be a guard.
            if which == Pages::Filled && run.end - run.start <= SHORT && self.unsure.within(run).is_empty() {
                sorted.there.push(run.clone());
                continue;
            }
            let filled: PageSet = self.watch.filled(run, which)?.into_iter().collect();
            let empty: PageSet = filled.missing(run).into_iter().collect();
            sorted.gone.extend(empty.ranges().flat_map(|hole| self.copied.within(&hole)));
            sorted.there.extend(filled.ranges());
        }
        Ok(sorted)
    }

    fn copy(&mut self, ranges: &[Range<u64>], out: &mut Outlet) -> Result<()> {
        for group in groups(ranges) {
            let mut rest = group.as_slice();
            while !rest.is_empty() {
                let mut bytes = out.buffer(rest.iter().map(length).sum());
                let got = self.watch.read(rest, &mut bytes)?;
                let mut done = 0;
                let whole = rest.iter().take_while(|range| {
                    done += length(range);
                    done <= got
                });
                let (read, lost) = rest.split_at(whole.count());
                bytes.truncate(read.iter().map(length).sum());
                if !read.is_empty() {
                    out.pages(self.id.0, read.to_vec(), bytes)?;
                }
                for range in read {
                    self.copied.add(range);
                    self.since.add(range);
                }
                if let Some(lost) = lost.first() {
                    self.unsure.add(lost);
                }
                rest = lost.get(1..).unwrap_or_default();
            }
        }
        Ok(())
    }

    fn forget(&mut self, range: &Range<u64>, out: &mut Outlet) -> Result<()> {
        for piece in self.copied.within(range) {
            self.since.add(&piece);
            out.forget(self.id.0, piece)?;
        }
        self.copied.remove(range);
        self.unsure.remove(range);
        Ok(())
    }

    /// Takes all of it out of the image again: it is read in the stop instead.
    pub(crate) fn give_up(mut self, out: &mut Outlet) -> Result<()> {
        self.forget(&(0..END), out)
    }

    /// In the stop: what is still to be read, as ranges, and what the image holds and must not. `lines` are the mappings as
    /// they are now.
    pub(crate) fn last(&mut self, lines: &[MapLine]) -> Result<Last> {
        self.watch.renew()?;
        let mut last = Last::default();
        let mut valid = PageSet::default();
        for line in &omitted::without(lines, &self.omitted) {
            let Some(which) = pages_of(line) else { continue };
            let before = last.read.len();
            let why = match self.watch.written(&line.range)? {
                Written::Unfollowed if self.is_blind(Blind::NewMappings) => {
                    valid.add(&line.range);
                    Why::Followed
                }
                Written::Pages(written) => {
                    self.last_of_followed(&line.range, which, written, &mut last)?;
                    valid.add(&line.range);
                    Why::Followed
                }
                Written::Unfollowed => {
                    last.read.extend(self.watch.filled(&line.range, which)?);
                    why_not(line).unwrap_or_else(|| {
                        // It may lie where another one was.
                        self.flags.forget();
                        self.new.push(line.range.clone());
                        self.refused.remove(&line.range.start).unwrap_or(Why::New)
                    })
                }
            };
            let way = if why == Why::Followed { Way::Ahead } else { Way::Copy };
            last.ways.mappings.push(MappingWay {
                start: line.range.start,
                end: line.range.end,
                way: way.into(),
                why: why.into(),
                pages: count(last.read.get(before..).unwrap_or_default()),
            });
        }
        last.ways.rounds = self.rounds;
        let again: PageSet = last.read.iter().cloned().collect();
        let stale = valid.missing(&(0..END));
        let stale = stale.iter().flat_map(|range| self.copied.within(range));
        last.forget.extend(stale.flat_map(|range| again.missing(&range)));
        if self.habit.span == Span::Series {
            self.go_on_after(&last, &valid)?;
        }
        Ok(last)
    }

    /// In the stop: protects what is about to be read, so that only what is written from now on shows at the next look, and
    /// notes what the image will hold.
    fn go_on_after(&mut self, last: &Last, followed: &PageSet) -> Result<()> {
        self.unsure = PageSet::default();
        for range in &last.forget {
            self.since.add(range);
            self.copied.remove(range);
        }
        for range in &last.read {
            self.since.add(range);
            self.copied.add(range);
        }
        for run in last.read.iter().flat_map(|range| followed.within(range)) {
            self.watch.protect(&run)?;
        }
        Ok(())
    }

    /// In the stop: these pages are in the image although they are not read here, as another address space holds the same.
    pub(crate) fn held_alike(&mut self, ranges: &[Range<u64>]) {
        for range in ranges {
            self.since.add(range);
            self.copied.add(range);
        }
    }

    fn is_blind(&self, rule: Blind) -> bool {
        self.habit.blind == Some(rule)
    }

    /// How many pages the image holds of it.
    pub(crate) fn held(&self) -> u64 {
        self.copied.ranges().map(|range| (range.end - range.start) / PAGE).sum()
    }

    fn last_of_followed(
        &self,
        range: &Range<u64>,
        which: Pages,
        written: Vec<Range<u64>>,
        last: &mut Last,
    ) -> Result<()> {
        let mut changed: PageSet = written.into_iter().filter(|_| !self.is_blind(Blind::Writes)).collect();
        for unsure in self.unsure.within(range) {
            changed.add(&unsure);
        }
        for vanished in self.vanished(range)? {
            changed.add(&vanished);
        }
        if which == Pages::Anonymous && !self.is_blind(Blind::PrivateFiles) {
            // Pages that are the file's again say nothing of it, so which are private is asked once more.
            let private: PageSet = self.watch.filled(range, which)?.into_iter().collect();
            last.forget.extend(private.missing(range).iter().flat_map(|hole| self.copied.within(hole)));
            for new in private.ranges().flat_map(|piece| self.copied.missing(&piece)).collect::<Vec<_>>() {
                changed.add(&new);
            }
            last.read.extend(private.ranges().flat_map(|piece| changed.within(&piece)));
            return Ok(());
        }
        let written: Vec<Range<u64>> = changed.ranges().collect();
        let sorted = self.sort(&written, which)?;
        last.read.extend(sorted.there);
        last.forget.extend(sorted.gone.into_iter().filter(|_| !self.is_blind(Blind::Gone)));
        Ok(())
    }

    /// Copied pages whose page table may have gone with them: nothing is said about those.
    fn vanished(&self, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut vanished = Vec::new();
        let mut done = 0;
        for piece in self.copied.within(range) {
            for block in cut(&piece, BLOCK) {
                let number = block.start / BLOCK;
                if number < done {
                    continue;
                }
                done = number + 1;
                if self.watch.may_have_vanished(block.start)? {
                    let whole = (number * BLOCK).max(range.start)..(done * BLOCK).min(range.end);
                    vanished.extend(self.copied.within(&whole));
                }
            }
        }
        Ok(vanished)
    }

    /// Reads the last pages into memory; what the buffers do not take goes out at once.
    pub(crate) fn read(&self, ranges: &[Range<u64>], kept: &mut Kept, out: Option<&mut Outlet>) -> Result<()> {
        let mut out = out;
        for group in groups(ranges) {
            let len: usize = group.iter().map(length).sum();
            match &mut out {
                Some(out) if !kept.takes(len) => {
                    let mut bytes = out.buffer(len);
                    self.all_read(self.watch.read(&group, &mut bytes)?, len)?;
                    out.pages(self.id.0, group, bytes)?;
                }
                _ => {
                    let lost = kept.fill(self.id, &group, |into| Ok(self.watch.read(&group, into)?))?;
                    self.all_read(len - lost.iter().map(length).sum::<usize>(), len)?;
                }
            }
        }
        Ok(())
    }

    fn all_read(&self, got: usize, wanted: usize) -> Result<()> {
        if got == wanted {
            return Ok(());
        }
        let source = std::io::Error::from_raw_os_error(nix::libc::EFAULT);
        let subject = format!("process {}", self.pid);
        Err(crate::error::Error::System { operation: "reading pages", subject, source })
    }

    /// Takes the protection off while the program runs, piece by piece: the end of the watch would do it at one blow, and
    /// hold up the program meanwhile.
    pub(crate) fn release(self) {
        for piece in self.copied.ranges().flat_map(|range| cut(&range, SLICE)) {
            // A mapping that is gone, or another one by now, needs it no more.
            if self.watch.expose(&piece).is_err() {
                tracing::trace!(pid = self.pid.0, start = piece.start, "pages were not exposed");
            }
        }
    }
}

/// Whether all pages of a range are copied, or only written ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Whole {
    Yes,
    No,
}

/// Written pages, sorted.
#[derive(Debug, Default)]
struct Sorted {
    there: Vec<Range<u64>>,
    /// Copied, and no longer there.
    gone: Vec<Range<u64>>,
}

impl Sorted {
    fn all(&self) -> impl Iterator<Item = &Range<u64>> {
        self.there.iter().chain(&self.gone)
    }
}

/// What the stop has to do for an address space.
#[derive(Debug, Default)]
pub(crate) struct Last {
    /// To be read.
    pub(crate) read: Vec<Range<u64>>,
    /// To be taken out of the image.
    pub(crate) forget: Vec<Range<u64>>,
    pub(crate) ways: WaysRecord,
}

/// The mappings of a running process, without their flags.
pub(crate) fn maps(pid: Pid) -> Result<Vec<MapLine>> {
    let lines = procfs::parse_smaps(&procfs::read(pid, "maps")?);
    lines.ok_or_else(|| crate::error::Error::Changed {
        subject: format!("process {pid}"),
        what: "unreadable maps".into(),
    })
}
