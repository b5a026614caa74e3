//! Pages that a process shares with its parent since the fork: the image holds them once, and a restore lets them be
//! shared again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use hdcr_image::hdcr_layout::{Mapping, MappingKind};
use hdcr_image::{ImageReader, PageRun};
use hdcr_sys::same_pages::Frames;

pub(crate) use super::guards::without;
use super::restore::{StoredMm, first_prot, private};
use super::{PAGE, kind_of, overlap};
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::model::ObjectId;
use crate::procfs::{self, MapLine};

/// Mappings with less in common are read twice: cheaper than to look.
const WORTH: u64 = 256 << 10;
/// A parent is filled before its children are born when they share as much.
const HEIR: u64 = 1 << 20;

/// What a process shares with its parent.
#[derive(Clone, Debug)]
pub(crate) struct Alike {
    /// The parent's address space.
    pub(crate) from: ObjectId,
    /// Pages, in order.
    pub(crate) ranges: Vec<Range<u64>>,
}

/// A stopped process as this file sees it.
pub(crate) struct Member {
    pub(crate) pid: Pid,
    pub(crate) mm: ObjectId,
    /// Its mappings of which contents are wanted.
    pub(crate) lines: Vec<MapLine>,
}

/// Looks at stopped processes, parents before children: who shares which pages with its parent.
pub(crate) fn look(members: &[Member]) -> Result<BTreeMap<ObjectId, Alike>> {
    let mut all = BTreeMap::new();
    let mut frames: BTreeMap<Pid, Frames> = BTreeMap::new();
    for (index, member) in members.iter().enumerate() {
        let Ok(stat) = procfs::stat(member.pid) else { continue };
        let parent = members.iter().take(index).find(|other| other.pid == stat.ppid);
        let Some(parent) = parent else { continue };
        let places = in_both(&parent.lines, &member.lines);
        if places.is_empty() {
            continue;
        }
        let other = pagemap(member.pid)?;
        let theirs = match frames.entry(parent.pid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(entry) => entry.insert(Frames::new(pagemap(parent.pid)?)),
        };
        let mut ranges = Vec::new();
        for place in places {
            let same = theirs
                .same(&other, &place)
                .map_err(Error::system("comparing pages", format!("process {}", member.pid)))?;
            ranges.extend(same);
        }
        all.insert(member.mm, Alike { from: parent.mm, ranges });
    }
    Ok(all)
}

/// Whether the kernel shows us where memory lies; it does so to `CAP_SYS_ADMIN` alone, to others all of it lies at 0.
pub(crate) fn frames_are_shown() -> bool {
    const FRAME: u64 = (1 << 55) - 1;
    let here = [0_u8; 8];
    let entry = u64::try_from(std::ptr::from_ref(&here).addr()).unwrap_or(0) / PAGE * 8;
    let mut bytes = here;
    let pages = File::open("/proc/self/pagemap");
    pages.is_ok_and(|pages| pages.read_exact_at(&mut bytes, entry).is_ok()) && u64::from_ne_bytes(bytes) & FRAME != 0
}

fn pagemap(pid: Pid) -> Result<File> {
    File::open(procfs::path(pid, "pagemap")).map_err(Error::system("opening pagemap", format!("process {pid}")))
}

/// Where both have private memory of some size.
fn in_both(parent: &[MapLine], child: &[MapLine]) -> Vec<Range<u64>> {
    let own = |line: &&MapLine| {
        matches!(kind_of(line), MappingKind::Anonymous | MappingKind::PrivateFile) && !line.shared() && !line.has(b"dp")
    };
    let mut places = Vec::new();
    for line in child.iter().filter(own) {
        let first = parent.partition_point(|other| other.range.end <= line.range.start);
        let others = parent.iter().skip(first).take_while(|other| other.range.start < line.range.end);
        for other in others.filter(own).filter(|other| overlap(&other.range, &line.range)) {
            let place = line.range.start.max(other.range.start)..line.range.end.min(other.range.end);
            if place.end - place.start >= WORTH {
                places.push(place);
            }
        }
    }
    places
}

/// What a process that is being restored gets from the one that clones it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inherited {
    /// Mappings of its own that are there, in order.
    pub(crate) kept: Vec<Range<u64>>,
    /// Pages in them that are right already, in order.
    pub(crate) same: Vec<Range<u64>>,
    /// Pages in them that must go, in order.
    pub(crate) gone: Vec<Range<u64>>,
}

impl Inherited {
    /// Whether a mapping stays.
    pub(crate) fn keeps(&self, mapping: &Mapping) -> bool {
        self.kept.iter().any(|kept| kept.start == mapping.start && kept.end == mapping.end)
    }

    /// Whether it is worth the while.
    pub(crate) fn is_worth(&self) -> bool {
        self.same.iter().map(|range| range.end - range.start).sum::<u64>() >= HEIR
    }
}

/// Compares two address spaces of an image.
pub(crate) fn inherited(image: &ImageReader, parent: &StoredMm, child: &StoredMm) -> Inherited {
    let mut found = Inherited::default();
    for mapping in child.mappings.iter().filter(|mapping| mapping.kind == MappingKind::Anonymous && private(mapping)) {
        let at = parent.mappings.partition_point(|other| other.end <= mapping.start);
        let other = parent.mappings.get(at).filter(|other| other.start <= mapping.start && mapping.end <= other.end);
        let is_like = |other: &Mapping| {
            (other.kind, other.vm_flags, other.map_flags) == (mapping.kind, mapping.vm_flags, mapping.map_flags)
                && first_prot(parent, other) == first_prot(child, mapping)
        };
        if !other.is_some_and(is_like) {
            continue;
        }
        let range = mapping.start..mapping.end;
        found.kept.push(range.clone());
        compare(image.runs(parent.id.0), image.runs(child.id.0), &range, &mut found);
    }
    found
}

/// Goes through the pages of both in one mapping.
fn compare(parent: &[PageRun], child: &[PageRun], range: &Range<u64>, found: &mut Inherited) {
    let mut at = range.start;
    while at < range.end {
        let (theirs, their_end) = run_at(parent, at, range.end);
        let (own, own_end) = run_at(child, at, range.end);
        let end = their_end.min(own_end);
        if let Some(theirs) = stored(theirs) {
            match stored(own) {
                None => push(&mut found.gone, at..end),
                Some(own) if source(theirs, at) == source(own, at) => push(&mut found.same, at..end),
                Some(_) => {}
            }
        }
        at = end;
    }
}

/// The run that holds an address, and where it ends, or where the next one begins.
fn run_at(runs: &[PageRun], at: u64, limit: u64) -> (Option<&PageRun>, u64) {
    let run = runs.get(runs.partition_point(|run| run.range().end <= at));
    match run {
        Some(run) if run.address() <= at => (Some(run), run.range().end.min(limit)),
        Some(run) => (None, run.address().min(limit)),
        None => (None, limit),
    }
}

fn stored(run: Option<&PageRun>) -> Option<&PageRun> {
    run.filter(|run| !run.is_zero())
}

/// Where the bytes of a page lie in the image.
fn source(run: &PageRun, at: u64) -> (u32, u64, u64, u64) {
    let entry = run.entry();
    (entry.segment, entry.generation, entry.offset, u64::from(entry.skip) + (at - run.address()) / PAGE)
}

fn push(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => ranges.push(next),
    }
}
