//! A capture and a restore without a tree, for tests of kinds that need no task: the process itself is what is captured.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use hdcr_image::Compression;

use super::{contents, listed};
use crate::batch::{Batch, Replies};
use crate::capture::{Capture, OpenFile};
use crate::checkpoint::{CompressionRequest, FileRequest, Request};
use crate::error::Result;
use crate::ids::{Fd, Pid, RemotePtr, Tid};
use crate::mechanism::{
    self, Deadline, Frozen, FrozenProcess, MechanismError, Queue, Rseq, Scope, SigInfo, Stand, TimedCall, Watch,
};
use crate::model::ObjectId;
use crate::openfile;
use crate::regs::Regs;
use crate::restore::{Contents, Restore, StoredFrame};
use crate::rollback::Plan;

/// A stopped tree of which nothing can be asked.
#[derive(Debug)]
pub(crate) struct NoTree;

fn no<T>(operation: &'static str) -> mechanism::Result<T> {
    Err(MechanismError::Unsupported { tid: Tid(0), kind: operation })
}

impl Frozen for NoTree {
    fn processes(&self) -> &[FrozenProcess] {
        &[]
    }
    fn stand(&self, _: Tid) -> mechanism::Result<Stand> {
        no("stand")
    }
    fn regs(&self, _: Tid) -> mechanism::Result<Regs> {
        no("regs")
    }
    fn xstate(&self, _: Tid) -> mechanism::Result<Vec<u8>> {
        no("xstate")
    }
    fn signal_mask(&self, _: Tid) -> mechanism::Result<u64> {
        no("signal_mask")
    }
    fn pending(&self, _: Tid, _: Queue) -> mechanism::Result<Vec<SigInfo>> {
        no("pending")
    }
    fn rseq(&self, _: Tid) -> mechanism::Result<Option<Rseq>> {
        no("rseq")
    }
    fn robust_list(&self, _: Tid) -> mechanism::Result<(RemotePtr, u64)> {
        no("robust_list")
    }
    fn timed_call(&mut self, _: Tid) -> mechanism::Result<Option<TimedCall>> {
        no("timed_call")
    }
    fn run(&mut self, _: &[(Tid, Batch)]) -> mechanism::Result<Vec<Replies>> {
        no("run")
    }
    fn read(&self, _: Pid, _: RemotePtr, _: &mut [u8]) -> mechanism::Result<()> {
        no("read")
    }
    fn descriptor(&self, _: Pid, _: Fd) -> mechanism::Result<OwnedFd> {
        no("descriptor")
    }
    fn follow(&mut self, _: Pid) -> mechanism::Result<Box<dyn Watch>> {
        no("follow")
    }
    fn own_ranges(&self, _: Pid) -> Vec<Range<u64>> {
        Vec::new()
    }
    fn thaw(self: Box<Self>) -> mechanism::Result<()> {
        Ok(())
    }
    fn leave_stopped(self: Box<Self>) -> mechanism::Result<()> {
        Ok(())
    }
    fn kill(self: Box<Self>) -> mechanism::Result<()> {
        Ok(())
    }
}

/// This process.
pub(crate) fn own_pid() -> Pid {
    Pid(rustix::process::getpid().as_raw_nonzero().get())
}

/// What a capture left.
#[derive(Debug, Default)]
pub(crate) struct Image {
    frames: BTreeMap<(u16, ObjectId), StoredFrame>,
    pieces: Vec<(ObjectId, u64, Vec<u8>)>,
}

impl Image {
    /// What it says.
    pub(crate) fn frames(&self) -> &BTreeMap<(u16, ObjectId), StoredFrame> {
        &self.frames
    }
}

impl Contents for Image {
    fn pieces(&self, id: ObjectId) -> Vec<(u64, u64)> {
        let own = self.pieces.iter().filter(|(of, ..)| *of == id);
        own.map(|(_, at, bytes)| (*at, bytes.len() as u64)).collect()
    }

    fn zeros(&self, _id: ObjectId) -> Vec<(u64, u64)> {
        Vec::new()
    }

    fn read(&self, id: ObjectId, each: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        self.pieces.iter().filter(|(of, ..)| *of == id).try_for_each(|(_, at, bytes)| each(*at, bytes))
    }
}

/// Captures open files of this process, and what else the caller asks for.
pub(crate) fn capture(
    files: &[&OwnedFd],
    request: FileRequest,
    more: impl FnOnce(&mut Capture<'_>),
) -> (Vec<ObjectId>, Image) {
    capture_then(files, request, more, || {})
}

/// The same; something happens between the stop and what is read after it.
pub(crate) fn capture_then(
    files: &[&OwnedFd],
    request: FileRequest,
    more: impl FnOnce(&mut Capture<'_>),
    then: impl FnOnce(),
) -> (Vec<ObjectId>, Image) {
    let scope = Scope::Tree(own_pid());
    let request = Request {
        scope,
        by: Deadline(Instant::now() + std::time::Duration::from_mins(1)),
        files: request,
        ends: crate::checkpoint::EndRequest::default(),
        progress: crate::progress::Progress::default(),
        compression: CompressionRequest::Always(Compression::None),
        snapshot: crate::checkpoint::SnapshotRequest::Copy,
        followed: false,
        omitted: crate::checkpoint::Omitted::default(),
        blind: None,
        unseen: false,
    };
    let mut tree = NoTree;
    let mut cx = Capture::new(&mut tree, &request, None);
    let mut ids = Vec::new();
    for file in files {
        let view = openfile::view(own_pid(), Fd(file.as_raw_fd())).unwrap();
        let id = cx.new_id();
        cx.by_inode.entry(view.stat.st_ino).or_default().push(cx.files.len());
        cx.by_holder.insert((view.pid, view.fd), cx.files.len());
        cx.files.push(OpenFile { id, holders: vec![(view.pid, view.fd)], view });
        ids.push(id);
    }
    for (file, open) in files.iter().zip(cx.files.clone()) {
        let kind = super::kind_of(&open.view).unwrap();
        (kind.capture)(&mut cx, open.id, &open.view, &file.try_clone().unwrap()).unwrap();
    }
    more(&mut cx);
    listed::note_listed(&mut cx).unwrap();
    super::touched::note(&mut cx, &request.files.touched);
    contents::finish(&mut cx).unwrap();
    then();
    for file in std::mem::take(&mut cx.late) {
        if let Some(record) = file.read(&mut |at, bytes| cx.content(file.id, at, bytes)).unwrap() {
            cx.frame(file.id, &record).unwrap();
        }
    }
    let frames = cx.frames.into_iter();
    let frames = frames.map(|frame| ((frame.tag, frame.id), StoredFrame { version: frame.version, body: frame.body }));
    let pieces = cx.ahead.kept.pieces().map(|(id, at, bytes)| (id, at, bytes.to_vec())).collect();
    (ids, Image { frames: frames.collect(), pieces })
}

/// A restore of what was captured; its journal lies in `journal`.
pub(crate) fn restore<'a>(image: &'a Image, journal: &Path, map_path: &'a [(PathBuf, PathBuf)]) -> Restore<'a> {
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    Restore {
        frames: &image.frames,
        contents: image,
        made: BTreeMap::new(),
        parts: BTreeMap::new(),
        leads: BTreeMap::new(),
        batches: BTreeMap::new(),
        stdio: [null(), null(), null()],
        shared_output: Vec::new(),
        map_path,
        holders: BTreeMap::new(),
        room: 64..i32::MAX,
        late: Vec::new(),
        apart: BTreeMap::new(),
        making: BTreeSet::new(),
        inodes: super::reopen::OpenedInodes::default(),
        segments: crate::segments::Made::default(),
        semaphores: crate::semaphores::Made::default(),
        plan: Plan::at(journal).unwrap(),
        notes: Vec::new(),
        foreign: BTreeSet::new(),
        unheld: false,
        watched: false,
        rights: crate::rights::TreeRights::default(),
        greeting: &[],
    }
}

/// Makes an open file again.
pub(crate) fn make(cx: &mut Restore<'_>, id: ObjectId) -> Result<OwnedFd> {
    let found = super::FILES.iter().find_map(|kind| Some((kind, cx.frames.get(&(kind.tag.0, id))?)));
    let (kind, frame) = found.unwrap();
    (kind.restore)(cx, id, frame.version, &frame.body)
}

/// Brings a restore to its end.
pub(crate) fn finish(mut cx: Restore<'_>) {
    cx.plan.prepare(cx.contents).unwrap();
    cx.plan.apply(cx.contents).unwrap();
    cx.plan.finish().unwrap();
}
