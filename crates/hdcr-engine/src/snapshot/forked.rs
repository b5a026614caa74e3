//! A process that was copied by copy-on-write in the stop: what the copy holds is read when the program runs again.
//!
//! A child does not get everything with its contents: what was kept from it by advice, huge pages that were reserved (a write
//! of the parent may take them from it) and what the copy does not show after all is read in the stop.

use std::ops::Range;

use hdcr_image::hdcr_layout::MappingKind;

use super::kept::length;
use super::outlet::Outlet;
use super::pageset::PageSet;
use super::pieces::groups;
use super::record::{MappingWay, Way, WaysRecord, Why};
use super::space::pages_of;
use crate::error::{Error, Result};
use crate::ids::{Pid, RemotePtr};
use crate::mechanism::{Frozen, MechanismError, Pages, Twin};
use crate::memory::kind_of;
use crate::model::ObjectId;
use crate::procfs::{self, MapLine};

/// A copied process.
#[derive(Debug)]
pub(crate) struct Forked {
    pid: Pid,
    id: ObjectId,
    twin: Box<dyn Twin>,
    /// Where the copy has what the process had.
    holds: PageSet,
    /// Mappings to be looked through.
    mappings: Vec<(Range<u64>, Pages)>,
    /// Pages that are known to be wanted.
    ranges: Vec<Range<u64>>,
    /// What is not to be read, in order.
    without: Vec<Vec<Range<u64>>>,
}

/// Whether a child gets this mapping with its contents, and keeps them.
fn inherited(line: &MapLine) -> bool {
    pages_of(line).is_some() && ![b"dc", b"wf", b"ht"].into_iter().any(|flag| line.has(flag))
}

fn changed(pid: Pid) -> Error {
    let what = "it has changed advice on its memory at the moment of the stop".to_owned();
    Error::Changed { subject: format!("process {pid}"), what }
}

impl Forked {
    /// In the stop: copies a process. `Err(why)` inside: it cannot be done for this one.
    pub(crate) fn begin(
        frozen: &mut dyn Frozen,
        (pid, id): (Pid, ObjectId),
        lines: &[MapLine],
    ) -> Result<std::result::Result<Self, MechanismError>> {
        let twin = match frozen.fork(pid) {
            Ok(twin) => twin,
            Err(error @ (MechanismError::System { .. } | MechanismError::Unsupported { .. })) => return Ok(Err(error)),
            Err(error) => return Err(error.into()),
        };
        let there = procfs::parse_smaps(&twin.mappings()?).ok_or_else(|| changed(pid))?;
        let there: PageSet = there.iter().filter(|line| !line.shared()).map(|line| line.range.clone()).collect();
        let wanted = lines.iter().filter(|line| inherited(line)).map(|line| line.range.clone());
        let holds = wanted.filter(|range| there.missing(range).is_empty()).collect();
        Ok(Ok(Self { pid, id, twin, holds, mappings: Vec::new(), ranges: Vec::new(), without: Vec::new() }))
    }

    /// All of the mappings that the copy holds are read from it; those it does not hold come back.
    pub(crate) fn take_mappings(&mut self, lines: &[MapLine], why: Why) -> (Vec<MapLine>, WaysRecord) {
        let mut left = Vec::new();
        let mut ways = WaysRecord::default();
        for line in lines {
            let Some(pages) = pages_of(line) else { continue };
            let held = self.holds.missing(&line.range).is_empty();
            let (way, why) = if held { (Way::Fork, why) } else { (Way::Copy, Why::NotInherited) };
            ways.mappings.push(MappingWay {
                start: line.range.start,
                end: line.range.end,
                way: way.into(),
                why: why.into(),
                pages: 0,
            });
            if held {
                self.mappings.push((line.range.clone(), pages));
            } else {
                left.push(line.clone());
            }
        }
        (left, ways)
    }

    /// These pages are read from the copy where it holds them; what it does not hold comes back.
    pub(crate) fn take_ranges(&mut self, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut left = Vec::new();
        for range in ranges {
            self.ranges.extend(self.holds.within(range));
            left.extend(self.holds.missing(range));
        }
        left
    }

    /// These are not read.
    pub(crate) fn leave_out(&mut self, ranges: Vec<Range<u64>>) {
        if !ranges.is_empty() {
            self.without.push(ranges);
        }
    }

    /// When the program runs again: reads everything and sends it.
    pub(crate) fn send(self, out: &mut Outlet, sent: &mut dyn FnMut(usize)) -> Result<()> {
        let lines = procfs::parse_smaps(&self.twin.flags()?).ok_or_else(|| changed(self.pid))?;
        let lost = |line: &MapLine| {
            kind_of(line) == MappingKind::Anonymous && line.has(b"wf") && !self.holds.within(&line.range).is_empty()
        };
        if lines.iter().any(lost) {
            return Err(changed(self.pid));
        }
        for (range, pages) in &self.mappings {
            let mut runs = self.twin.filled(range, *pages)?;
            for without in &self.without {
                runs = crate::memory::kin::without(runs, without);
            }
            self.send_runs(&runs, out, sent)?;
        }
        self.send_runs(&self.ranges, out, sent)
    }

    fn send_runs(&self, runs: &[Range<u64>], out: &mut Outlet, sent: &mut dyn FnMut(usize)) -> Result<()> {
        for group in groups(runs) {
            let len = group.iter().map(length).sum();
            let mut bytes = out.buffer(len);
            let mut rest = bytes.as_mut_slice();
            for range in &group {
                let (place, after) = rest.split_at_mut(length(range).min(rest.len()));
                self.twin.read(RemotePtr(range.start), place)?;
                rest = after;
            }
            out.pages(self.id.0, group, bytes)?;
            sent(len);
        }
        Ok(())
    }
}
