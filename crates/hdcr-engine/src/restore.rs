//! A restore from the image to the running tree, and what a kind has at hand while it restores.
//!
//! The order: open every file here; make empty tasks, stopped, in the right sessions and groups; map and fill their
//! memory; put descriptors, facts, timers, signals, credentials in, stage by stage; then let all go at once. Until that
//! last moment the death of the restoring process ends the whole tree, and files are as they were.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hdcr_image::{ImageReader, Outline, Record, Tag};
use nix::libc;
use rustix::fs::SeekFrom;

use crate::batch::{Arg, Batch, OnError};
use crate::build;
use crate::clock;
use crate::error::{Error, Refusal, Refusals, Result};
use crate::heirs::Heirs;
use crate::ids::{Pid, Tid};
use crate::mechanism::{Deadline, Mechanism, Parent};
use crate::memory::PAGE;
pub use crate::memory::lazy::{Filled, Filling, Lazily, Lazy};
use crate::memory::omitted::OmittedRecord;
use crate::model::{self, ObjectId};
use crate::openfile::OpenFileRecord;
use crate::plan::{self, Step};
use crate::progress::{Laps, Meter, Phase, Progress};
use crate::resource;
use crate::resource::{clone, late, listed, permitted, reopen, touched};
use crate::rights::{TreeRights, Turn};
use crate::rollback::Plan;
use crate::rollback::since::{self, Since};
use crate::segments;
use crate::semaphores;
use crate::stored::{self, Asker, Model};
use crate::task::Stage;
use crate::tree::{StoredProcess, Tasks};
use crate::works::Works;

/// What the restoring command asks for.
#[derive(Debug)]
pub struct Options {
    /// Whose children the roots become: [`Parent::Caller`] or [`Parent::CallersParent`].
    pub parent: Parent,
    /// What becomes of that parent when the tree runs.
    pub afterwards: Afterwards,
    /// Standard input, output and error for what led out of the tree.
    pub stdio: [OwnedFd; 3],
    /// Old path prefixes and what they are now.
    pub map_path: Vec<(PathBuf, PathBuf)>,
    /// When to give up.
    pub by: Deadline,
    /// Where the roll-back of files keeps its journal and what it replaces; `None`: beside the files, safe against an
    /// error but not against the death of this process.
    pub journal: Option<PathBuf>,
    /// What the job did to files since the checkpoint, when it was watched.
    pub since: Option<Since>,
    /// The process that asked for this, our parent. When it dies before the tree is let go, nothing is restored, and files are put
    /// back. `None`: whoever asked does not matter.
    pub asked_by: Option<Pid>,
    /// Who is told how far it is.
    pub progress: Progress,
    /// Memory may come when the tree runs already; `None`: all of it comes before.
    pub lazily: Option<Lazily>,
    /// What the program finds in its sockets to whoever kept it ([`crate::checkpoint::EndRequest::keepers`]).
    pub greeting: Vec<u8>,
}

/// What whoever asked for a restore is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// These processes are about to be let go before all of their memory is there. On an error they are not.
    BeforeAllIsThere(Vec<Pid>),
    /// The tree is built and stopped, and files are rolled back. Who restores one part of several waits here until all are
    /// built. On an error it is not let go, and files are put back.
    Built,
    /// Files are rolled back, and the tree is let go next: who dies now may have let it go. On an error it is not. With the
    /// process group of the tree that had the terminal, if one had.
    GoesNext(Option<i32>),
    /// The tree runs.
    Runs(Restored),
}

/// What the parent of the roots does when the tree runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Afterwards {
    /// It stays until the roots have ended.
    Stays,
    /// It ends at once (`--detach`): roots that asked to be told of their parent's death are not told of this one.
    Leaves,
}

/// A tree that runs again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The processes whose parent lies outside of the tree.
    pub roots: Vec<Pid>,
    /// All processes.
    pub processes: usize,
    /// What became of files in the roll-back that a user should know.
    pub notes: Vec<Refusal>,
    /// Memory of which the image has no contents, as its program had asked.
    pub omitted: Vec<(Pid, Range<u64>)>,
    /// The files that it had worked on by the checkpoint and did not hold, as far as the image names them: the latest first.
    pub touched: Vec<PathBuf>,
}

/// The calls of one task in one stage, each with what it is for.
#[derive(Clone, Debug, Default)]
pub(crate) struct TaskBatch {
    pub(crate) batch: Batch,
    pub(crate) labels: Vec<&'static str>,
}

impl TaskBatch {
    /// Adds a call that must not fail; the label is what the error message says was being done.
    pub(crate) fn call(&mut self, label: &'static str, nr: i64, args: &[Arg]) -> usize {
        self.labels.push(label);
        self.batch.push(nr, args, OnError::Stop)
    }

    /// Adds a call whose failure does not matter.
    pub(crate) fn try_call(&mut self, label: &'static str, nr: i64, args: &[Arg]) -> usize {
        self.labels.push(label);
        self.batch.push(nr, args, OnError::Continue)
    }

    /// Puts bytes into the data area and returns their offset.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> usize {
        self.batch.bytes(bytes)
    }

    /// Reserves zeroed bytes and returns their offset.
    pub(crate) fn room(&mut self, len: usize) -> usize {
        self.batch.room(len)
    }

    /// Overwrites reserved bytes.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        for (slot, byte) in self.batch.data.iter_mut().skip(at).zip(bytes) {
            *slot = *byte;
        }
    }
}

/// A frame of the image.
#[derive(Clone, Debug)]
pub(crate) struct StoredFrame {
    pub(crate) version: u16,
    pub(crate) body: Vec<u8>,
}

/// Where the contents of objects come from.
pub trait Contents: std::fmt::Debug {
    /// The stored pieces of an object: byte offset and length, in order. What no piece covers is zeros.
    fn pieces(&self, id: ObjectId) -> Vec<(u64, u64)>;
    /// The stretches of an object that were found to hold only zeros, in order.
    fn zeros(&self, id: ObjectId) -> Vec<(u64, u64)>;
    /// Where the image has anything of an object, zeros too: in order, and neighbours as one.
    fn filled(&self, id: ObjectId) -> Vec<Range<u64>> {
        let mut all: Vec<(u64, u64)> = self.pieces(id).into_iter().chain(self.zeros(id)).collect();
        all.sort_unstable();
        joined(all.into_iter())
    }
    /// Reads all stored pieces of an object in order and hands over each.
    fn read(&self, id: ObjectId, each: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()>;
    /// The file that holds all contents of an object, to be cloned.
    fn file(&self, _id: ObjectId) -> Result<Option<OwnedFd>> {
        Ok(None)
    }
    /// The restore has come further, by something that has no bytes: whoever waits for it is told.
    fn goes_on(&self) {}
}

/// Stretches in order, by offset and length, without the borders between neighbours.
pub(crate) fn joined(all: impl Iterator<Item = (u64, u64)>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for (at, len) in all {
        let end = at.saturating_add(len);
        match joined.last_mut() {
            Some(last) if last.end >= at => last.end = last.end.max(end),
            _ => joined.push(at..end),
        }
    }
    joined
}

/// A restore in progress.
#[derive(Debug)]
pub struct Restore<'a> {
    /// Frames by (tag, id).
    pub(crate) frames: &'a BTreeMap<(u16, ObjectId), StoredFrame>,
    /// Reads contents of objects.
    pub(crate) contents: &'a dyn Contents,
    /// Open files that have been made, by their id.
    pub(crate) made: BTreeMap<ObjectId, OwnedFd>,
    /// Descriptors that shared objects keep until all their open files are made (the ends of a pipe, a memfd).
    pub(crate) parts: BTreeMap<ObjectId, Vec<OwnedFd>>,
    /// Directories that an open file of the tree leads to, and which: they need no descriptor of ours.
    pub(crate) leads: BTreeMap<ObjectId, ObjectId>,
    pub(crate) batches: BTreeMap<(Stage, Tid), TaskBatch>,
    /// Standard input, output and error of the restoring command: what stdio that led out of the tree becomes.
    pub(crate) stdio: [OwnedFd; 3],
    /// Those of them that are the output file of the tree, too, and are used in its place.
    pub(crate) shared_output: Vec<SharedOutput>,
    /// Old path prefixes and what they are now (`--map-path`).
    pub(crate) map_path: &'a [(PathBuf, PathBuf)],
    /// Descriptors of every open file: who holds it, and where.
    pub(crate) holders: BTreeMap<ObjectId, Vec<(Pid, i32)>>,
    /// Service descriptors have these numbers, none of which the tree uses.
    pub(crate) room: Range<i32>,
    /// Open files that are being made, against circles.
    pub(crate) making: BTreeSet<ObjectId>,
    /// Files that open files and mappings share, opened.
    pub(crate) inodes: reopen::OpenedInodes,
    /// Segments of System V shared memory, made.
    pub(crate) segments: segments::Made,
    /// Sets of System V semaphores, made.
    pub(crate) semaphores: semaphores::Made,
    /// What happens to the contents of files at the end.
    pub(crate) plan: Plan,
    /// What became of files that a user should know.
    pub(crate) notes: Vec<Refusal>,
    /// What can only be done when all open files are made: run once, in this order, before the first task is born. It
    /// may add to itself.
    pub(crate) late: Vec<(Late, ObjectId)>,
    /// Descriptors that lead elsewhere than their open file does: standard error of a terminal that is a file now. They
    /// go to their numbers in place of the file that the table names.
    pub(crate) apart: BTreeMap<(Pid, i32), OwnedFd>,
    /// Files that somebody else than the program is known to have written since the checkpoint.
    pub(crate) foreign: BTreeSet<PathBuf>,
    /// What is opened now is not held by the tree: named by the user, or worked on earlier.
    pub(crate) unheld: bool,
    /// It is known what was done to files since the checkpoint.
    pub(crate) watched: bool,
    /// With whose rights files are found and rolled back.
    pub(crate) rights: TreeRights,
    /// What waits in sockets to whoever kept the tree.
    pub(crate) greeting: &'a [u8],
}

/// A standard stream of the restoring command that is an open file of the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SharedOutput {
    /// Which stream: 1 or 2.
    pub(crate) number: usize,
    /// The open file in the image.
    pub(crate) id: ObjectId,
    /// Where the tree goes on writing.
    pub(crate) offset: u64,
}

/// A step of [`Restore::late`].
pub(crate) type Late = fn(&mut Restore<'_>, ObjectId) -> Result<()>;

impl Restore<'_> {
    /// Acts on files with the rights of those who hold an open file.
    pub(crate) fn turn_of_holders(&self, id: ObjectId) -> Result<Turn> {
        let holders = self.holders.get(&id).into_iter().flatten().map(|(pid, _)| *pid);
        Turn::to_some(self.rights.of_any(holders))
    }

    /// The batch of a task in a stage.
    pub(crate) fn batch(&mut self, stage: Stage, task: Tid) -> &mut TaskBatch {
        self.batches.entry((stage, task)).or_default()
    }

    /// Whether an object has a record of this kind.
    pub(crate) fn has<R: Record>(&self, id: ObjectId) -> bool {
        self.frames.contains_key(&(R::TAG.0, id))
    }

    /// The record of an object.
    pub(crate) fn record<R: Record>(&self, id: ObjectId) -> Result<R> {
        let frame = self.frames.get(&(R::TAG.0, id));
        let frame = frame.ok_or_else(|| Error::Unsound(format!("{id} has no {} record", R::NAME)))?;
        model::decode(frame.version, &frame.body)
    }

    /// The open file with an id, made now if it has not been made yet.
    pub(crate) fn open_file(&mut self, id: ObjectId) -> Result<&OwnedFd> {
        if !self.made.contains_key(&id) {
            let file = self.make(id)?;
            self.made.insert(id, file);
        }
        self.made.get(&id).ok_or_else(|| Error::Unsound(format!("{id} was not made")))
    }

    fn make(&mut self, id: ObjectId) -> Result<OwnedFd> {
        let unsound = |what: &str| Error::Unsound(format!("{id}: {what}"));
        if !self.making.insert(id) {
            return Err(unsound("it needs itself to be made"));
        }
        let common: OpenFileRecord = self.record(id)?;
        let tag = u16::try_from(common.kind).map_err(|_| unsound("no such kind of file"))?;
        let kind = resource::kind_with(Tag(tag)).ok_or_else(|| unsound("no such kind of file"))?;
        let frame = self.frames.get(&(tag, id)).ok_or_else(|| unsound("an open file without its record"))?;
        let file = (kind.restore)(self, id, frame.version, &frame.body)?;
        let file = self.lift(file)?;
        build::common(id, &file, &common, self.shared_output.iter().any(|shared| shared.id == id))?;
        self.making.remove(&id);
        Ok(file)
    }

    /// The leader of the process that a thread of the image belongs to.
    pub(crate) fn leader_of(&self, tid: Tid) -> Result<Tid> {
        let tasks: Tasks = self.record(ObjectId(0))?;
        let task = tasks.0.iter().find(|task| task.tid == tid.0);
        let task = task.ok_or_else(|| Error::Unsound(format!("task {tid} is in no process")))?;
        Ok(Tid(task.tgid))
    }

    /// Lets go of every descriptor that was made for the tree: none of them may keep the other end of a pipe open when
    /// the tree runs.
    pub(crate) fn put_down(&mut self) {
        self.made.clear();
        self.parts.clear();
        self.apart.clear();
    }

    /// A descriptor moved to a number that the tree does not use.
    pub(crate) fn lift(&self, file: OwnedFd) -> Result<OwnedFd> {
        if self.room.contains(&file.as_raw_fd()) {
            return Ok(file);
        }
        rustix::io::fcntl_dupfd_cloexec(file.as_fd(), self.room.start)
            .and_then(
                |moved| if self.room.contains(&moved.as_raw_fd()) { Ok(moved) } else { Err(rustix::io::Errno::MFILE) },
            )
            .map_err(Error::system("moving a descriptor", self.room.start))
    }

    /// A path of the image as it is called now.
    pub(crate) fn mapped(&self, path: &Path) -> PathBuf {
        mapped(self.map_path, path)
    }
}

/// A path of the image as it is called now.
pub(crate) fn mapped(map_path: &[(PathBuf, PathBuf)], path: &Path) -> PathBuf {
    for (old, new) in map_path {
        if let Ok(rest) = path.strip_prefix(old) {
            return if rest.as_os_str().is_empty() { new.clone() } else { new.join(rest) };
        }
    }
    path.to_owned()
}

/// What stands in the way of restoring an image here and now, and what is worth knowing. Touches nothing.
pub fn check(image: &ImageReader, options: &Options) -> Result<(Vec<Refusal>, Vec<Refusal>)> {
    let model = stored::read(image)?;
    let steps = plan::plan(&model.processes)?;
    let (mut refusals, notes) = stored::check(&model, &steps, Asker::Check)?;
    if options.since.is_none() {
        refusals.0.extend(reopen::obstacles(&model.frames, &options.map_path, &options.stdio)?);
    }
    refusals.0.extend(permitted::obstacles(&model, &options.map_path, &options.stdio)?);
    Ok((refusals.0, notes))
}

/// Restores a tree. On an error nothing of it lives, and files are as they were.
///
/// `told` is called when the tree has been let go and before the roll-back of files is made final. Whoever has heard of it
/// must make it final when this process dies in between (`rollback::settle`); whoever has not must end the tree and put
/// the files back (`rollback::repair`).
///
/// What is returned is still to be filled, if anything is.
pub fn restore(
    mechanism: &dyn Mechanism,
    image: &Arc<ImageReader>,
    options: &Options,
    told: &mut dyn FnMut(Told) -> Result<()>,
) -> Result<Option<Filling>> {
    let mut laps = Laps::begin("restore");
    let model = clone::verified(image, stored::read(image)?)?;
    let steps = plan::plan(&model.processes)?;
    laps.done(&format!("image read: {} processes by {} steps", model.processes.len(), steps.len()));
    stored::wait_for_numbers(stored::numbers(&model, &steps));
    let (mut refusals, _) = stored::check(&model, &steps, Asker::Restore)?;
    if options.since.is_none() {
        refusals.0.extend(reopen::obstacles(&model.frames, &options.map_path, &options.stdio)?);
    }
    if !refusals.0.is_empty() {
        return Err(Error::Refused(Refusals(refusals.0)));
    }
    laps.done("checked, nothing stands in the way");
    let meter = Meter::begin(&options.progress, Phase::Filling, || stored::size(image));
    let contents = stored::Pages { image, in_common: late::in_common(&model.frames)?, meter };
    let mut cx = build::context(&model, &contents, options)?;
    if let Some(since) = &options.since {
        since::names(&mut cx, since)?;
    }
    still_wanted(options)?;
    build::open_files(&mut cx, &model)?;
    let mut spaces = build::spaces(&mut cx, &model)?;
    build::facts(&mut cx, &model)?;
    build::owners(&mut cx, &model)?;
    cx.unheld = true;
    listed::restore(&mut cx)?;
    since::contents(&mut cx, options.since.as_ref())?;
    cx.unheld = false;
    clock::restore(&stored::one(&model.frames, ObjectId(0))?)?;
    laps.done("files found and opened");
    let mut works = Works::begin(mechanism, &cx, &model, &mut spaces, options)?;
    works.heirs = Heirs::plan(image, &model.processes, &spaces, &steps);
    for step in births_of(&steps) {
        works.step(&cx, step)?;
        works.settle(&contents, &spaces, step)?;
    }
    laps.done("empty tasks made");
    still_wanted(options)?;
    let lazily = options.lazily.as_ref();
    works.memory(&cx, &contents, &spaces, lazily.map_or(Lazy::Never, |lazily| lazily.which))?;
    laps.done("memory mapped and filled");
    for step in ends_of(&steps) {
        works.step(&cx, step)?;
    }
    works.abandon()?;
    let filling = works.serve(&cx, image, lazily)?;
    used_by_many(&mut cx, &model)?;
    works.stages(&mut cx, &spaces)?;
    for step in last_of(&steps) {
        works.step(&cx, step)?;
    }
    works.finals(&cx)?;
    laps.done("descriptors and state put in");
    roll_files_back(&mut cx, &contents, options)?;
    let_go(works, &mut cx, &model, filling.as_ref(), told)?;
    laps.done("files rolled back, the tree let go");
    if let Err(error) = cx.plan.finish() {
        // The tree runs: what is left over is only the journal.
        tracing::warn!(%error, "the journal of the roll-back was not removed");
    }
    Ok(filling)
}

/// What the tree has that belongs to no process. No journal puts it back: what the roll-back of files may fail for before it
/// touches any, it fails for before.
fn used_by_many(cx: &mut Restore<'_>, model: &Model) -> Result<()> {
    cx.plan.prepare(cx.contents)?;
    semaphores::restore(cx, model)?;
    segments::fill(cx, model)
}

/// Lets the tree go, and tells of it.
fn let_go(
    works: Works<'_>,
    cx: &mut Restore<'_>,
    model: &Model,
    filling: Option<&Filling>,
    told: &mut dyn FnMut(Told) -> Result<()>,
) -> Result<()> {
    if filling.is_some() {
        told(Told::BeforeAllIsThere(model.processes.iter().map(|process| process.pid).collect()))?;
    }
    told(Told::Built)?;
    told(Told::GoesNext(in_foreground(model)))?;
    // Others write there, too, until nothing can be refused any more.
    for SharedOutput { number, id, offset } in &cx.shared_output {
        let output = cx.stdio.get(*number).ok_or_else(|| Error::Unsound(format!("{id} is no output")))?;
        rustix::fs::seek(output, SeekFrom::Start(*offset)).map_err(Error::system("setting a file's offset", id))?;
    }
    works.release()?;
    cx.segments.keep();
    cx.semaphores.keep();
    let notes = std::mem::take(&mut cx.notes);
    if let Err(error) = told(Told::Runs(Restored { notes, touched: touched::names(cx), ..roots(model) })) {
        tracing::debug!(%error, "nobody listens");
    }
    Ok(())
}

/// All numbers of processes and threads that an image needs.
pub fn numbers(outline: &Outline) -> Result<BTreeSet<i32>> {
    let model = stored::glance(outline)?;
    Ok(stored::numbers(&model, &plan::plan(&model.processes)?))
}

/// Bytes of memory that an image holds, and of other contents.
pub fn memory(outline: &Outline) -> u64 {
    outline.manifest().pages.stored_pages.saturating_mul(PAGE)
}

fn roll_files_back(cx: &mut Restore<'_>, contents: &stored::Pages<'_>, options: &Options) -> Result<()> {
    cx.plan.prepare(contents)?;
    let notes = cx.plan.notes();
    cx.notes.extend(notes);
    still_wanted(options)?;
    cx.plan.apply(contents)?;
    cx.put_down();
    // That took its time: of a program that is let go now nobody would know.
    still_wanted(options)
}

/// Whether the process that asked for this still lives.
fn still_wanted(options: &Options) -> Result<()> {
    let parent = Pid(nix::unistd::getppid().as_raw());
    match options.asked_by {
        Some(asked_by) if asked_by != parent => Err(Error::Changed {
            subject: format!("process {asked_by}, which asked for the restore,"),
            what: "it has ended, nothing was restored".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// The group of the tree that had the terminal of its first process.
fn in_foreground(model: &Model) -> Option<i32> {
    let group = model.processes.first()?.record.tty_pgrp;
    model.processes.iter().any(|process| process.pgid == group && !process.zombie()).then_some(group)
}

fn roots(model: &Model) -> Restored {
    let roots = model.processes.iter().filter(|process| process.parent.is_none() && !process.zombie());
    Restored {
        roots: roots.map(|process| process.pid).collect(),
        processes: model.processes.len(),
        notes: Vec::new(),
        omitted: omitted(model),
        touched: Vec::new(),
    }
}

/// What was left out of the memory of each process.
fn omitted(model: &Model) -> Vec<(Pid, Range<u64>)> {
    let of = |process: &StoredProcess| {
        let frame = model.frames.get(&(OmittedRecord::TAG.0, ObjectId(process.record.mm)))?;
        let record: OmittedRecord = model::decode(frame.version, &frame.body).ok()?;
        Some(record.parts().map(|part| (process.pid, part)).collect::<Vec<_>>())
    };
    model.processes.iter().filter_map(of).flatten().collect()
}

fn births_of(steps: &[Step]) -> impl Iterator<Item = &Step> {
    let is = |step: &&Step| {
        matches!(
            step,
            Step::Birth { .. } | Step::Orphan { .. } | Step::StandIn { .. } | Step::Session(_) | Step::Group(..)
        )
    };
    steps.iter().filter(is)
}

fn ends_of(steps: &[Step]) -> impl Iterator<Item = &Step> {
    steps.iter().filter(|step| matches!(step, Step::EndStandIn { .. } | Step::EndZombie(..)))
}

fn last_of(steps: &[Step]) -> impl Iterator<Item = &Step> {
    steps.iter().filter(|step| matches!(step, Step::EndLeader(_)))
}

/// `clone(2)` flags of a thread.
pub(crate) const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;
