//! Pages into the address spaces of a tree in the making: read, checked, decompressed and put in by several threads.
//!
//! In two passes. The first puts pages into mappings that have none: there a page costs no fault, and none becomes a huge
//! one. Then mappings that want huge pages are advised, and whole blocks of them are written: each becomes a huge page, and
//! blocks that had only some pages do not grow.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use hdcr_image::hdcr_layout::MappingKind;
use hdcr_image::{GroupBuffers, ImageReader, PageRun};
use nix::libc;

use super::bit;
use super::kin::{self, Inherited};
use super::restore::{StoredMm, covered, private};
use crate::batch::Arg;
use crate::error::{Error, Result};
use crate::ids::RemotePtr;
use crate::mechanism::PageTarget;
use crate::restore::TaskBatch;
use crate::stored::Pages;

/// A huge page.
const BLOCK: u64 = 2 << 20;
/// Mappings with fewer bytes of pages are not worth the calls that prepare them.
const WORTH: u64 = 256 << 10;
/// Fewer bytes than this are no work for several threads.
const ALONE: u64 = 4 << 20;
/// More threads only wait for the memory and the lock of one address space.
const THREADS: usize = 4;

/// How the pages of an address space are put in.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// The address space in the image.
    space: u64,
    /// Mappings for the first pass that have no page yet, in order.
    pub(crate) fresh: Vec<Range<u64>>,
    /// Whole blocks that become huge pages, in order.
    dense: Vec<Range<u64>>,
    /// These, and pages that are there already or come later, in order: what the first pass leaves out.
    elsewhere: Vec<Range<u64>>,
    /// Mappings that these lie in, and that asked for huge pages.
    huge: Vec<Range<u64>>,
    /// Bytes of pages.
    bytes: u64,
}

/// Which pages are put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pass {
    /// Those outside of dense blocks.
    Sparse,
    /// Those in dense blocks.
    Dense,
}

/// An address space to be filled.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) pages: Box<dyn PageTarget>,
}

/// Looks at what the image holds of an address space, and refuses pages that have no place in it. What comes `later` is
/// left out.
pub(crate) fn layout(
    image: &ImageReader,
    mm: &StoredMm,
    inherited: Option<&Inherited>,
    later: &[Range<u64>],
) -> Result<Layout> {
    let always_huge = always_huge();
    let runs = image.runs(mm.id.0);
    if !mm.has_place_for_all()
        && let Some(run) = runs.iter().find(|run| !covered(mm, run.range()))
    {
        let what = if run.is_zero() { "zeros" } else { "pages" };
        return Err(Error::Unsound(format!(
            "{}: {what} at {:#x} lie in no mapping of their own",
            mm.id,
            run.address()
        )));
    }
    let mut layout = Layout { space: mm.id.0, ..Layout::default() };
    layout.bytes = runs.iter().filter(|run| !run.is_zero()).map(PageRun::size).sum();
    for mapping in mm.mappings.iter().filter(|mapping| mapping.kind == MappingKind::Anonymous && private(mapping)) {
        let range = mapping.start..mapping.end;
        if inherited.is_some_and(|inherited| inherited.keeps(mapping)) || later.contains(&range) {
            continue;
        }
        let runs = within(runs, &range);
        let bytes: u64 = runs.iter().filter(|run| !run.is_zero()).map(PageRun::size).sum();
        if bytes >= WORTH {
            layout.fresh.push(range.clone());
        }
        let advised = mapping.vm_flags & bit(*b"hg") != 0;
        if advised || always_huge && mapping.vm_flags & bit(*b"nh") == 0 {
            let before = layout.dense.len();
            layout.dense.extend(whole_blocks(runs, &range));
            if advised && layout.dense.len() > before {
                layout.huge.push(range);
            }
        }
    }
    layout.elsewhere.clone_from(&layout.dense);
    layout.elsewhere.extend(inherited.into_iter().flat_map(|inherited| inherited.same.iter().cloned()));
    layout.elsewhere.extend(later.iter().cloned());
    layout.elsewhere.sort_by_key(|range| range.start);
    if layout.bytes < WORTH << 2 {
        layout.fresh.clear();
    }
    Ok(layout)
}

/// Runs that have an address in a range.
pub(super) fn within<'r>(runs: &'r [PageRun], range: &Range<u64>) -> &'r [PageRun] {
    let from = runs.partition_point(|run| run.range().end <= range.start);
    let to = runs.partition_point(|run| run.address() < range.end);
    runs.get(from..to).unwrap_or_default()
}

/// Whether this machine gives huge pages to mappings that did not ask for them.
pub(crate) fn always_huge() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|text| text.contains("[always]"))
}

/// Blocks all of whose pages were there, zero or not, joined where they are neighbours.
fn whole_blocks(runs: &[PageRun], range: &Range<u64>) -> Vec<Range<u64>> {
    let mut rows: Vec<Range<u64>> = Vec::new();
    for run in runs {
        let run = run.range().start.max(range.start)..run.range().end.min(range.end);
        match rows.last_mut().filter(|last| last.end == run.start) {
            Some(last) => last.end = run.end,
            None => rows.push(run),
        }
    }
    let inner = rows.into_iter().map(|row| row.start.next_multiple_of(BLOCK)..row.end / BLOCK * BLOCK);
    inner.filter(|row| row.start < row.end).collect()
}

impl Layout {
    /// Whether there is something to do in the second pass.
    pub(crate) fn has_dense(&self) -> bool {
        !self.dense.is_empty()
    }

    /// The call that asks for huge pages, before the second pass.
    pub(crate) fn advise(&self, batch: &mut TaskBatch) {
        for range in &self.huge {
            let args = [Arg::Value(range.start), Arg::Value(range.end - range.start), Arg::from(libc::MADV_HUGEPAGE)];
            batch.call("advising on memory", libc::SYS_madvise, &args);
        }
    }

    /// Whether the first pass leaves all of these pages out.
    fn leaves_out(&self, pages: &Range<u64>) -> bool {
        let index = self.elsewhere.partition_point(|range| range.end <= pages.start);
        self.elsewhere.get(index).is_some_and(|range| range.start <= pages.start && pages.end <= range.end)
    }

    /// Runs by their places, without those that the first pass leaves out a group or more at a time: memory that comes later
    /// may be most of an image, in many runs.
    fn not_left_out(&self, runs: &[PageRun], pass: Pass) -> Vec<Range<usize>> {
        const GROUP: u64 = 1 << 20;
        let (mut parts, mut at) = (Vec::new(), 0);
        let large = self.elsewhere.iter().filter(|range| pass == Pass::Sparse && range.end - range.start >= GROUP);
        for range in large {
            let from = runs.partition_point(|run| run.address() < range.start).max(at);
            let to = runs.partition_point(|run| run.range().end <= range.end);
            if from < to {
                parts.push(at..from);
                at = to;
            }
        }
        parts.push(at..runs.len());
        parts
    }

    /// The parts of some pages that are put in by a pass, in order.
    fn stretches(&self, pages: &Range<u64>, pass: Pass) -> Vec<Range<u64>> {
        if pass == Pass::Sparse {
            return kin::without(vec![pages.clone()], &self.elsewhere);
        }
        let first = self.dense.partition_point(|dense| dense.end <= pages.start);
        let dense = self.dense.iter().skip(first).take_while(|dense| dense.start < pages.end);
        dense.map(|dense| dense.start.max(pages.start)..dense.end.min(pages.end)).collect()
    }
}

/// Pages that are read and put in together.
type Job<'a> = (&'a Target<'a>, Range<usize>);

/// Puts in all pages of a pass. On an error some may be in and others not.
pub(crate) fn fill(pages: &Pages<'_>, targets: &[Target<'_>], pass: Pass) -> Result<()> {
    let image = pages.image;
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for target in targets {
        let runs = image.runs(target.layout.space);
        let has_part = |group: &Range<usize>| {
            let runs = runs.get(group.clone()).unwrap_or_default();
            // Memory that comes later may be most of an image, in many runs.
            let whole = runs.first().zip(runs.last()).map(|(first, last)| first.address()..last.range().end);
            if pass == Pass::Sparse && whole.is_some_and(|whole| target.layout.leaves_out(&whole)) {
                return false;
            }
            let mut runs = runs.iter().filter(|run| !run.is_zero());
            runs.any(|run| !target.layout.stretches(&run.range(), pass).is_empty())
        };
        let space = target.layout.space;
        let parts = target.layout.not_left_out(runs, pass).into_iter();
        let groups = parts.flat_map(|part| image.groups_of(space, part)).filter(has_part);
        jobs.extend(groups.map(|group| (target, group)));
    }
    let bytes: u64 = targets.iter().map(|target| target.layout.bytes).sum();
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = if bytes < ALONE { 1 } else { processors.min(THREADS).min(jobs.len()) };
    share_out(&jobs, threads, |(target, group), buffers| one_group(pages, target, group.clone(), pass, buffers))
}

/// Every job once, by several threads; the first error ends all.
fn share_out<J: Sync>(
    jobs: &[J],
    threads: usize,
    work: impl Fn(&J, &mut GroupBuffers) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let first_error = Mutex::new(None);
    let run = || {
        let mut buffers = GroupBuffers::default();
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(job, &mut buffers) {
                next.store(jobs.len(), Ordering::Relaxed);
                first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Without another thread this one does all.
            if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, run) {
                tracing::debug!(%error, "a thread less to fill memory");
            }
        }
        run();
    });
    first_error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn one_group(
    pages: &Pages<'_>,
    target: &Target<'_>,
    group: Range<usize>,
    pass: Pass,
    buffers: &mut GroupBuffers,
) -> Result<()> {
    let read = pages.image.read_group(target.layout.space, group, buffers)?;
    let mut pieces = Vec::with_capacity(read.len());
    for (at, bytes) in read {
        for part in target.layout.stretches(&(at..at + bytes.len() as u64), pass) {
            let offset = |address: u64| usize::try_from(address - at).unwrap_or(bytes.len());
            let part_bytes = bytes.get(offset(part.start)..offset(part.end)).unwrap_or_default();
            pieces.push((RemotePtr(part.start), part_bytes));
        }
    }
    target.pages.put(&pieces)?;
    pages.meter.add(pieces.iter().map(|(_, bytes)| bytes.len()).sum());
    Ok(())
}

#[cfg(test)]
mod tests {
    use hdcr_image::{ImageId, ImageWriter, ManifestFacts, MemoryImage, Options};

    use super::*;

    fn layout_with(dense: &[Range<u64>]) -> Layout {
        Layout { space: 1, dense: dense.to_vec(), elsewhere: dense.to_vec(), ..Layout::default() }
    }

    #[test]
    fn both_passes_together_put_in_every_page_once() {
        let layout = layout_with(&[10..20, 30..40]);
        for pages in [0..5, 0..10, 0..50, 12..15, 15..35, 10..20, 20..30, 35..60] {
            let mut all = layout.stretches(&pages, Pass::Sparse);
            assert_eq!(layout.leaves_out(&pages), all.is_empty() && !pages.is_empty(), "{pages:?}");
            assert!(all.iter().all(|part| layout_with(&layout.dense).stretches(part, Pass::Dense).is_empty()));
            all.extend(layout.stretches(&pages, Pass::Dense));
            let mut bytes: Vec<u64> = all.into_iter().flatten().collect();
            bytes.sort_unstable();
            assert_eq!(bytes, pages.collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_comes_later_is_not_looked_at() {
        const PAGE: u64 = 4096;
        let memory = MemoryImage::new();
        let mut writer = ImageWriter::new(Box::new(memory.sink(ImageId([1; 16]))), Options::default()).unwrap();
        // Each second page is zero, so that each is a run.
        let bytes: Vec<u8> = (0..2048_u16).flat_map(|page| [u8::from(page % 2 == 0); 4096]).collect();
        writer.pages(1, 0, &bytes).unwrap();
        writer.finish(ManifestFacts::default()).unwrap();
        let image = ImageReader::open(&memory.source().unwrap()).unwrap();
        let runs = image.runs(1);
        assert_eq!(runs.len(), 2048);
        let parts = |later: &[Range<u64>], pass| layout_with(later).not_left_out(runs, pass);
        let later = [PAGE..3 * PAGE, 256 * PAGE..1280 * PAGE, 1800 * PAGE..9999 * PAGE];
        assert_eq!(parts(&later, Pass::Sparse), [0..256, 1280..1800, 2048..2048]);
        let all = vec![Range { start: 0, end: 2048 }];
        assert_eq!((parts(&later, Pass::Dense), parts(&[], Pass::Sparse)), (all.clone(), all));
        let read: Vec<usize> = parts(&later, Pass::Sparse)
            .into_iter()
            .flat_map(|part| image.groups_of(1, part))
            .flatten()
            .filter(|at| !runs[*at].is_zero())
            .collect();
        assert!(read.into_iter().eq((0..256).chain(1280..1800).step_by(2)));
    }

    #[test]
    fn every_job_is_done_once_or_the_error_told() {
        let done = Mutex::new(Vec::new());
        let jobs: Vec<u32> = (0..100).collect();
        let all = share_out(&jobs, 3, |job, _| {
            done.lock().unwrap().push(*job);
            Ok(())
        });
        all.unwrap();
        let mut done = done.into_inner().unwrap();
        done.sort_unstable();
        assert_eq!(done, jobs);
        let bad =
            share_out(&jobs, 3, |job, _| if *job == 7 { Err(Error::Unsound("seven".to_owned())) } else { Ok(()) });
        assert!(bad.unwrap_err().to_string().contains("seven"));
    }
}
