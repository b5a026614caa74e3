//! The tree in the making: address spaces, descriptor tables, stages, and the release, in the order that `restore.rs` gives.
//! Births have their own file, `births.rs`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use hdcr_image::ImageReader;
use hdcr_image::hdcr_layout::Registers;
use nix::libc;

use crate::batch::Arg;
use crate::build::{Space, foreground};
use crate::error::{Error, Result};
use crate::heirs::Heirs;
use crate::ids::{Pid, Tid};
use crate::mechanism::{Birth, Mechanism, Nursery, Parent};
use crate::memory::fill::{self, Layout, Pass, Target};
use crate::memory::lazy::{self, Absent, Filling, Lazily, Lazy, hot};
use crate::memory::restore::{self as space, Parked, StoredMm};
use crate::memory::vdso::{self, VdsoRecord};
use crate::memory::{self};
use crate::model::ObjectId;
use crate::procfs::{self, MapLine};
use crate::regs::Regs;
use crate::restore::{Afterwards, Options, Restore, TaskBatch};
use crate::resume::last_state;
use crate::stored::{Model, Pages};
use crate::task::{STAGES, Stage};
use crate::tree::StoredProcess;
/// The tree in the making.
#[derive(Debug)]
pub(crate) struct Works<'a> {
    pub(crate) nursery: Box<dyn Nursery>,
    pub(crate) model: &'a Model,
    pub(crate) parent: Parent,
    /// A parent of the roots for the time of their birth.
    pub(crate) step_parent: Option<Tid>,
    pub(crate) parked: Parked,
    pub(crate) lines: Vec<MapLine>,
    /// Who gets memory from whom.
    pub(crate) heirs: Heirs,
    /// Memory that comes when the tree runs already.
    absent: Absent,
}

/// A place for `len` bytes that none of the ranges covers.
fn gap(ranges: &[Range<u64>], len: u64) -> Result<u64> {
    const START: u64 = 0x10_0000_0000;
    let mut sorted: Vec<&Range<u64>> = ranges.iter().collect();
    sorted.sort_by_key(|range| range.start);
    let mut at = START;
    for range in sorted {
        if range.start >= at.saturating_add(len) {
            break;
        }
        at = at.max(range.end);
    }
    if at.saturating_add(len) <= memory::END {
        Ok(at)
    } else {
        Err(Error::Unsound("no room in the address spaces".to_owned()))
    }
}

impl<'a> Works<'a> {
    /// Finds room that is free in all address spaces, and opens the nursery.
    pub(crate) fn begin(
        mechanism: &dyn Mechanism,
        cx: &Restore<'_>,
        model: &'a Model,
        spaces: &mut BTreeMap<Pid, Space>,
        options: &Options,
    ) -> Result<Self> {
        let own = Pid(rustix::process::getpid().as_raw_nonzero().get());
        let text = procfs::read(own, "smaps")?;
        let lines =
            procfs::parse_smaps(&text).ok_or_else(|| Error::Unsound("unreadable smaps of this process".to_owned()))?;
        let mut taken: Vec<Range<u64>> = spaces.values().flat_map(|space| space::ranges(&space.mm)).collect();
        taken.extend(lines.iter().map(|line| line.range.clone()));
        let kernels: Vec<&MapLine> = lines.iter().filter(|line| space::is_kernels(line)).collect();
        let own_vdso = vdso::own(&kernels)?;
        let len = kernels.iter().map(|line| line.range.end - line.range.start).sum();
        let mut at = gap(&taken, len)?;
        taken.push(at..at + len);
        let mut pieces = Vec::new();
        for line in kernels {
            let size = line.range.end - line.range.start;
            pieces.push((memory::kind_of(line), at..at + size));
            at += size;
        }
        let room = spaces.values().map(|space| space.behind.largest()).max().unwrap_or_default();
        let scratch = gap(&taken, room)?;
        taken.push(scratch..scratch.saturating_add(room));
        let parked = Parked { pieces, scratch };
        meet_kernel(cx, model, &own_vdso, &parked, spaces)?;
        let nursery = mechanism.nursery(&taken, options.by)?;
        let (heirs, absent) = (Heirs::default(), Absent::default());
        let mut works =
            Self { nursery, model, parent: options.parent, step_parent: None, parked, lines, heirs, absent };
        if options.afterwards == Afterwards::Leaves {
            works.adopt()?;
        }
        Ok(works)
    }

    /// Makes a parent for the roots that dies when all are born, so that they come to init or the next subreaper now, and
    /// not when the restoring command ends: that would fire their parent-death signal (`PR_SET_PDEATHSIG`).
    fn adopt(&mut self) -> Result<()> {
        let birth =
            Birth { parent: Parent::Caller, tid: None, flags: 0, exit_signal: libc::SIGCHLD, tls: 0, clear_tid: 0 };
        let made = self.nursery.birth(&[birth])?.first().copied();
        let tid = made.ok_or_else(|| Error::Unsound("a parent for the roots was not made".to_owned()))?;
        self.empty(Pid(tid.0))?;
        self.step_parent = Some(tid);
        self.parent = Parent::Task(tid);
        Ok(())
    }

    /// The roots come to their final parent.
    pub(crate) fn abandon(&mut self) -> Result<()> {
        match self.step_parent.take() {
            Some(tid) => Ok(self.nursery.end(tid, crate::mechanism::End::Exit(0))?),
            None => Ok(()),
        }
    }
    /// Maps and fills all address spaces, but for what comes later.
    pub(crate) fn memory(
        &mut self,
        cx: &Restore<'_>,
        pages: &Pages<'_>,
        spaces: &BTreeMap<Pid, Space>,
        lazy: Lazy,
    ) -> Result<()> {
        let left: Vec<Pid> = self.living().iter().map(|p| p.pid).filter(|pid| !self.heirs.has(*pid)).collect();
        self.occupy(pages, spaces, &left, lazy)?;
        let mut work = Vec::new();
        for process in self.living() {
            let Some(space) = spaces.get(&process.pid) else { continue };
            space::fill_rest(cx, self.nursery.as_mut(), process.pid.leader(), &space.mm)?;
            let mut batch = TaskBatch::default();
            space::protect(&mut batch, &space.mm);
            work.push((process.pid.leader(), batch));
        }
        self.run(work)
    }

    /// Serves what comes later, and brings what threads stand on.
    pub(crate) fn serve(
        &mut self,
        cx: &Restore<'_>,
        image: &Arc<ImageReader>,
        lazily: Option<&Lazily>,
    ) -> Result<Option<Filling>> {
        let absent = std::mem::take(&mut self.absent);
        let Some(lazily) = lazily else { return Ok(None) };
        let filling = absent.serve(image, lazily)?;
        for process in filling.iter().flat_map(|_| self.living()) {
            for (tid, id) in &process.threads {
                if let Some(filling) = &filling {
                    hot::bring(cx, self.nursery.as_ref(), filling, (process.pid, *tid, *id))?;
                }
            }
        }
        Ok(filling)
    }

    /// Maps and fills some of them, but for what may come later.
    pub(crate) fn occupy(
        &mut self,
        pages: &Pages<'_>,
        spaces: &BTreeMap<Pid, Space>,
        pids: &[Pid],
        lazy: Lazy,
    ) -> Result<()> {
        let mut work = Vec::new();
        let mut planned = Vec::new();
        for pid in pids {
            let Some(space) = spaces.get(pid) else { continue };
            let born_with = self.born_with(pages.image, spaces, *pid);
            let inherited = born_with.as_ref().map(|(_, inherited)| inherited);
            let mut batch = TaskBatch::default();
            if let Some((base, inherited)) = &born_with {
                space::leave(&mut batch, base, inherited, &self.parked);
            }
            space::map(&mut batch, &space.mm, inherited, &self.parked, &space.behind)?;
            work.push((pid.leader(), batch));
            planned.push((*pid, &space.mm, born_with.map(|(_, inherited)| inherited)));
        }
        self.run(work)?;
        let mut layouts = Vec::new();
        for (pid, mm, inherited) in planned {
            let lazy = if inherited.is_some() { Lazy::Never } else { lazy };
            let later = self.leave_for_later(pages.image, pid, mm, lazy)?;
            layouts.push((pid.leader(), fill::layout(pages.image, mm, inherited.as_ref(), &later)?));
        }
        self.fill(pages, &layouts)
    }

    /// The mappings of a process that come later, registered.
    fn leave_for_later(&mut self, image: &ImageReader, pid: Pid, mm: &StoredMm, lazy: Lazy) -> Result<Vec<Range<u64>>> {
        let mappings = match lazy {
            Lazy::Never => return Ok(Vec::new()),
            Lazy::Large | Lazy::Always => lazy::choose(image, mm, lazy, fill::always_huge()),
        };
        if mappings.is_empty() {
            return Ok(mappings);
        }
        let Some(pages) = self.nursery.absent(pid.leader(), &mappings)? else { return Ok(Vec::new()) };
        self.absent.add(mm, pid, &mappings, pages);
        Ok(mappings)
    }

    /// Puts all pages of the image in.
    fn fill(&mut self, pages: &Pages<'_>, layouts: &[(Tid, Layout)]) -> Result<()> {
        let mut targets = Vec::new();
        for (tid, layout) in layouts {
            targets.push(Target { layout, pages: self.nursery.pages(*tid, &layout.fresh)? });
        }
        fill::fill(pages, &targets, Pass::Sparse)?;
        drop(targets);
        let mut work = Vec::new();
        let mut targets = Vec::new();
        for (tid, layout) in layouts.iter().filter(|(_, layout)| layout.has_dense()) {
            let mut batch = TaskBatch::default();
            layout.advise(&mut batch);
            work.push((*tid, batch));
            targets.push(Target { layout, pages: self.nursery.pages(*tid, &[])? });
        }
        self.run(work)?;
        fill::fill(pages, &targets, Pass::Dense)
    }

    /// Puts descriptors at their numbers, then runs all stages.
    pub(crate) fn stages(&mut self, cx: &mut Restore<'_>, spaces: &BTreeMap<Pid, Space>) -> Result<()> {
        self.continued()?;
        self.tables(cx)?;
        for process in self.living() {
            let Some(space) = spaces.get(&process.pid) else { continue };
            let batch = cx.batch(Stage::Process, process.speaker());
            place(batch, space);
            foreground(cx, process);
        }
        for stage in STAGES {
            let keys: Vec<(Stage, Tid)> = cx.batches.keys().filter(|(at, _)| *at == stage).copied().collect();
            let work = keys.into_iter().filter_map(|key| Some((key.1, cx.batches.remove(&key)?))).collect();
            self.run(work)?;
            if stage == Stage::Process {
                self.close_service(&cx.room)?;
            }
        }
        Ok(())
    }

    /// Descriptor tables: everything of this process's own is closed, every file goes to its numbers.
    fn tables(&mut self, cx: &Restore<'_>) -> Result<()> {
        let mut work = Vec::new();
        for process in self.living() {
            let mut batch = TaskBatch::default();
            let all = u64::from(u32::MAX);
            if let Some(last) = cx.room.start.checked_sub(1).and_then(|last| u64::try_from(last).ok()) {
                let below = [Arg::Value(0), Arg::Value(last), Arg::Value(0)];
                batch.call("closing descriptors", libc::SYS_close_range, &below);
            }
            if cx.room.end < i32::MAX {
                let above = [Arg::from(cx.room.end), Arg::Value(all), Arg::Value(0)];
                batch.call("closing descriptors", libc::SYS_close_range, &above);
            }
            for entry in self.model.tables.get(&process.pid).into_iter().flatten() {
                let file = cx
                    .apart
                    .get(&(process.pid, entry.fd))
                    .or_else(|| cx.made.get(&ObjectId(entry.object)))
                    .ok_or_else(|| Error::Unsound(format!("no open file {}", entry.object)))?;
                let flags = if entry.flags & 1 != 0 { libc::O_CLOEXEC } else { 0 };
                batch.call(
                    "placing a descriptor",
                    libc::SYS_dup3,
                    &[Arg::from(file.as_raw_fd()), Arg::from(entry.fd), Arg::from(flags)],
                );
            }
            work.push((process.pid.leader(), batch));
        }
        self.run(work)
    }

    fn close_service(&mut self, room: &Range<i32>) -> Result<()> {
        let mut work = Vec::new();
        for process in self.living() {
            let mut batch = TaskBatch::default();
            let last = room.end.saturating_sub(1);
            batch.call(
                "closing service descriptors",
                libc::SYS_close_range,
                &[Arg::from(room.start), Arg::from(last), Arg::Value(0)],
            );
            work.push((process.pid.leader(), batch));
        }
        self.run(work)
    }

    /// Puts the last state in: children before parents, the leader of a process last.
    pub(crate) fn finals(&mut self, cx: &Restore<'_>) -> Result<()> {
        let mut finals = Vec::new();
        for process in self.model.processes.iter().rev().filter(|process| !process.zombie()) {
            let stopped = (process.record.stopped != 0).then_some(process.record.stopped);
            for (tid, id) in process.threads.iter().rev() {
                finals.push(last_state(cx, *tid, *id, stopped)?);
            }
            if stopped.is_some() && process.parent.is_some() {
                self.nursery.finish(&finals)?;
                finals.clear();
                self.settle_stop(cx, process)?;
            }
        }
        Ok(self.nursery.finish(&finals)?)
    }

    /// Lets all go, in the order in which their last state was put in. Nothing else is left to be done: the shorter this
    /// takes, the less can come between.
    pub(crate) fn release(self) -> Result<()> {
        Ok(self.nursery.release()?)
    }

    pub(crate) fn living(&self) -> Vec<&'a StoredProcess> {
        self.model.processes.iter().filter(|process| !process.zombie()).collect()
    }

    pub(crate) fn run_one(&mut self, tid: Tid, batch: TaskBatch) -> Result<()> {
        self.run(vec![(tid, batch)])
    }

    pub(crate) fn run(&mut self, work: Vec<(Tid, TaskBatch)>) -> Result<()> {
        let (labels, work): (Vec<_>, Vec<_>) =
            work.into_iter().filter(|(_, b)| !b.batch.is_empty()).map(|(tid, b)| (b.labels, (tid, b.batch))).unzip();
        if work.is_empty() {
            return Ok(());
        }
        let replies = self.nursery.run(&work)?;
        for ((labels, (tid, batch)), replies) in labels.iter().zip(&work).zip(&replies) {
            if let Some((index, errno)) = replies.failure(batch) {
                let label = labels.get(index).copied().unwrap_or("a call");
                let call = batch.calls.get(index).copied();
                tracing::debug!(label, tid = tid.0, errno, ?call, "a call failed in a new task");
                return Err(Error::Call {
                    operation: label.to_owned(),
                    tid: *tid,
                    source: std::io::Error::from_raw_os_error(errno),
                });
            }
        }
        Ok(())
    }
}
/// Directories and places of the program.
fn place(batch: &mut TaskBatch, space: &Space) {
    if let Some(root) = space.root {
        let dot = batch.batch.c_string(b".");
        batch.call("entering the root directory", libc::SYS_fchdir, &[Arg::from(root)]);
        batch.call("changing the root directory", libc::SYS_chroot, &[Arg::Data(dot)]);
    }
    batch.call("entering the current directory", libc::SYS_fchdir, &[Arg::from(space.cwd)]);
    space::set_places(batch, &space.mm, space.exe);
    space::lock(batch, &space.mm);
}

/// Compares the kernel's own code with that of the checkpoint. A thread that stood in it can only go on over the same one.
fn meet_kernel(
    cx: &Restore<'_>,
    model: &Model,
    own: &[u8],
    parked: &Parked,
    spaces: &mut BTreeMap<Pid, Space>,
) -> Result<()> {
    for process in &model.processes {
        let Some(space) = spaces.get_mut(&process.pid) else { continue };
        let id = ObjectId(space.mm.record.vdso);
        let old = if id.0 == 0 { None } else { Some(cx.record::<VdsoRecord>(id)?) };
        space.mm.meet_kernel(process.pid, own, parked, old)?;
        let Some(range) = space.mm.forwarded_range() else { continue };
        for (tid, id) in &process.threads {
            let registers: Registers = cx.record(*id)?;
            if range.contains(&Regs::from_words(registers.words).ip) {
                return Err(Error::refuse(vdso::refusal(Pid(tid.0), "this thread was in the middle of it")));
            }
        }
    }
    Ok(())
}
