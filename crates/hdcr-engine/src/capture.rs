//! The capture of a stopped tree, and what a kind has at hand while it captures.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

use hdcr_image::hdcr_layout::Registers;
use hdcr_image::{ProcessName, Record};
use nix::libc;

use crate::batch::{Arg, Batch, Replies};
use crate::checkpoint::{Request, Touched};
use crate::clock;
use crate::error::{Error, Result};
use crate::ids::{Fd, Pid, RemotePtr, Tid};
use crate::mechanism::{Frozen, FrozenProcess, MechanismError};
use crate::memory::omitted::{self, OmittedRecord};
use crate::memory::{self, MmRecord, kin};
use crate::model::{self, ObjectId};
use crate::openfile;
use crate::procfs::{self, MapLine};
use crate::progress::{self, Meter, Phase};
use crate::reports::{self, Child, Question};
use crate::resource::clone::Clones;
use crate::resource::inotify::Places;
use crate::resource::socket::{Census, Queues};
use crate::resource::unchanged::Unchanged;
use crate::resource::{FileView, contents, late, listed, touched};
use crate::segments;
use crate::semaphores;
use crate::snapshot::ahead::Ahead;
use crate::snapshot::outlet::Outlet;
use crate::snapshot::{choice, kept};
use crate::survey::{self, Judged};
use crate::task::{Answer, Site, TASKS, TaskView};
use crate::tree::ThreadRecord;

mod genealogy;

/// An open file of the tree with all descriptors that lead to it.
#[derive(Clone, Debug)]
pub(crate) struct OpenFile {
    /// Its identity.
    pub(crate) id: ObjectId,
    /// As seen through the first of its descriptors.
    pub(crate) view: FileView,
    /// All its descriptors.
    pub(crate) holders: Vec<(Pid, Fd)>,
}

/// A captured frame.
#[derive(Clone, Debug)]
pub(crate) struct PendingFrame {
    pub(crate) tag: u16,
    pub(crate) version: u16,
    pub(crate) id: ObjectId,
    pub(crate) body: Vec<u8>,
}

/// A capture in progress.
#[derive(Debug)]
pub struct Capture<'a> {
    /// The stopped tree.
    pub(crate) frozen: &'a mut dyn Frozen,
    /// What was asked for.
    pub(crate) request: &'a Request,
    /// Every open file of the tree, each once.
    pub(crate) files: Vec<OpenFile>,
    pub(crate) by_inode: BTreeMap<u64, Vec<usize>>,
    pub(crate) by_holder: BTreeMap<(Pid, Fd), usize>,
    pub(crate) frames: Vec<PendingFrame>,
    /// What was copied before, and the contents of objects that are kept until the tree runs (multiples of 4096 bytes).
    pub(crate) ahead: Ahead,
    pub(crate) shared: BTreeMap<(&'static str, u64, u64), ObjectId>,
    /// Files that open files and mappings share; what is kept of them is decided at the end.
    pub(crate) inodes: contents::Inodes,
    /// Those of them that are kept as clones.
    pub(crate) clones: Clones,
    /// Segments of System V shared memory that the tree has attached, by number.
    pub(crate) segments: BTreeMap<i32, segments::Met>,
    /// Files that are read when the tree runs again.
    pub(crate) late: Vec<late::LateFile>,
    /// What the image before holds already.
    pub(crate) unchanged: Unchanged,
    pub(crate) next_id: u64,
    /// Duplicates of open files that no process holds any more, because they are on their way in the queue of a socket.
    /// They stand in [`Capture::files`] without holders, and may be added while others are captured.
    pub(crate) in_flight: BTreeMap<ObjectId, OwnedFd>,
    /// Queues of the sockets of the tree, once looked at.
    pub(crate) queues: Option<Queues>,
    /// What the kernel says of UNIX sockets.
    pub(crate) census: Census,
    /// What the look under the freeze has seen.
    pub(crate) seen: survey::Seen,
    /// Where watched files are.
    pub(crate) places: Places,
    /// The processors that are there, once they are asked for.
    pub(crate) processors: Option<Vec<u8>>,
    /// What a restore must be able to do, by name.
    pub(crate) needs: Vec<String>,
    /// Pages that a process shares with its parent, by address space: the image holds them once.
    pub(crate) alike: BTreeMap<ObjectId, kin::Alike>,
    pub(crate) meter: Meter,
    /// Where contents go that are more than memory keeps.
    pub(crate) out: Option<&'a mut Outlet>,
}

/// What a capture leaves in memory.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) frames: Vec<PendingFrame>,
    pub(crate) ahead: Ahead,
    pub(crate) snapshot: String,
    pub(crate) late: Vec<late::LateFile>,
    pub(crate) clones: Clones,
    pub(crate) unchanged: Unchanged,
    pub(crate) processes: Vec<ProcessName>,
    pub(crate) command: Vec<Vec<u8>>,
    pub(crate) root_pid: i32,
    pub(crate) needs: Vec<String>,
}

impl<'a> Capture<'a> {
    /// A capture that has nothing yet.
    pub(crate) fn new(frozen: &'a mut dyn Frozen, request: &'a Request, out: Option<&'a mut Outlet>) -> Self {
        let meter = Meter::begin(&request.progress, Phase::Reading, || progress::own_memory(frozen.processes()));
        Self {
            frozen,
            request,
            files: Vec::new(),
            by_inode: BTreeMap::new(),
            by_holder: BTreeMap::new(),
            frames: Vec::new(),
            ahead: Ahead::default(),
            shared: BTreeMap::new(),
            inodes: contents::Inodes::default(),
            clones: Clones::default(),
            segments: BTreeMap::new(),
            late: Vec::new(),
            unchanged: Unchanged::default(),
            next_id: 0,
            in_flight: BTreeMap::new(),
            queues: None,
            census: Census::default(),
            seen: survey::Seen::default(),
            places: Places::default(),
            needs: Vec::new(),
            processors: None,
            alike: BTreeMap::new(),
            meter,
            out,
        }
    }
}

impl Capture<'_> {
    /// Adds a frame. Several frames may have one id when their tags differ.
    pub(crate) fn frame<R: Record>(&mut self, id: ObjectId, record: &R) -> Result<()> {
        let body = record.encode().map_err(|error| Error::Unsound(error.to_string()))?;
        self.frames.push(PendingFrame { tag: R::TAG.0, version: R::VERSION, id, body });
        Ok(())
    }

    /// A number for a new object.
    pub(crate) fn new_id(&mut self) -> ObjectId {
        self.next_id += 1;
        ObjectId(self.next_id)
    }

    /// The identity of a shared object (a pipe, a memfd, a socket pair) by kind, device and inode; `Err` holds a fresh
    /// one when it is met for the first time and has still to be captured by the caller.
    pub(crate) fn shared(
        &mut self,
        kind: &'static str,
        device: u64,
        inode: u64,
    ) -> std::result::Result<ObjectId, ObjectId> {
        if let Some(id) = self.shared.get(&(kind, device, inode)) {
            return Ok(*id);
        }
        let id = self.new_id();
        self.shared.insert((kind, device, inode), id);
        Err(id)
    }

    /// The open files of the tree that lead to an inode.
    pub(crate) fn with_inode(&self, inode: u64) -> impl Iterator<Item = &OpenFile> {
        self.by_inode.get(&inode).into_iter().flatten().filter_map(|at| self.files.get(*at))
    }

    /// Ends the capture when the time of the stop is over, in a long row of open files: so many of them are done.
    pub(crate) fn in_time(&self, view: &FileView, done: usize) -> Result<()> {
        if Instant::now() < self.request.by.0 {
            return Ok(());
        }
        let state = format!("{done} of its {} open files were read", self.files.len());
        Err(MechanismError::Late { operation: "show its open files", tid: Tid(view.pid.0), state }.into())
    }

    /// A duplicate of an open file, here.
    pub(crate) fn duplicate(&self, file: &OpenFile) -> Result<OwnedFd> {
        match self.in_flight.get(&file.id) {
            Some(own) => own.try_clone().map_err(Error::system("dup", file.id)),
            None => Ok(self.frozen.descriptor(file.view.pid, file.view.fd)?),
        }
    }

    /// The open file behind a descriptor of a process.
    pub(crate) fn behind(&self, pid: Pid, fd: Fd) -> Option<&OpenFile> {
        self.by_holder.get(&(pid, fd)).and_then(|at| self.files.get(*at))
    }

    /// Stores a piece of an object's contents (a file, a memfd). Offset and length are multiples of 4096: the last page
    /// of a file is filled up with zeros, and the record keeps the true length. Pieces of zeros take no room.
    pub(crate) fn content(&mut self, id: ObjectId, offset: u64, bytes: Vec<u8>) -> Result<()> {
        self.meter.add(bytes.len());
        if let (Some(out), false) = (&mut self.out, self.ahead.kept.takes(bytes.len())) {
            return out.piece(id.0, offset, bytes);
        }
        self.ahead.kept.keep(id, offset, bytes);
        Ok(())
    }

    /// Reads pages of a stopped process, through its memory file where that is given.
    pub(crate) fn memory(
        &mut self,
        (pid, id): (Pid, ObjectId),
        memory: Option<&File>,
        range: &Range<u64>,
    ) -> Result<()> {
        let len = kept::length(range);
        let frozen = &self.frozen;
        let read = |into: &mut [u8]| {
            match memory {
                Some(memory) => memory
                    .read_exact_at(into, range.start)
                    .map_err(Error::system("reading memory", format!("process {pid}")))?,
                None => frozen.read(pid, RemotePtr(range.start), into)?,
            }
            Ok(into.len())
        };
        if !self.ahead.kept.takes(len) {
            let mut bytes = vec![0; len];
            read(&mut bytes)?;
            return self.content(id, range.start, bytes);
        }
        self.meter.add(len);
        self.ahead.kept.fill(id, std::slice::from_ref(range), read)?;
        Ok(())
    }
}

/// One process while it is captured.
struct Subject {
    id: ObjectId,
    mm: ObjectId,
    lines: Vec<MapLine>,
    vdso: ObjectId,
    brk: usize,
    threads: Vec<(TaskView, ObjectId)>,
    /// What it was asked about its children.
    questions: Vec<Question>,
}

/// Captures a stopped tree. After an error `ahead` is as it was: giving it up takes time, and the tree stands still.
pub(crate) fn capture(
    frozen: &mut dyn Frozen,
    (request, touched): (&Request, Option<Touched<'_>>),
    out: &mut Outlet,
    ahead: &mut Ahead,
) -> Result<Taken> {
    let processes = frozen.processes().to_vec();
    let pids: Vec<Pid> = processes.iter().map(|process| process.pid).collect();
    if processes.iter().all(|process| process.threads.is_empty()) {
        return Err(Error::Changed {
            subject: "the tree".to_owned(),
            what: "none of its processes lives any more".to_owned(),
        });
    }
    let living = processes.iter().filter(|process| !process.threads.is_empty());
    ahead.only(&living.map(|process| process.pid).collect::<Vec<_>>(), out)?;
    let (look, places, seen) = look_again(request, &pids, ahead)?;
    for pid in choice::past_the_cache(&look) {
        ahead.give_up(pid, out)?;
    }
    let mut cx = Capture::new(frozen, request, Some(out));
    cx.next_id = ahead.next_id;
    cx.ahead = std::mem::take(ahead);
    cx.unchanged.known = cx.ahead.series().map(|series| series.known_files()).unwrap_or_default();
    (cx.places, cx.seen) = (places, seen);
    match everything(&mut cx, &processes, (look, touched)) {
        Ok(names) => Ok(taken(cx, names)),
        Err(error) => {
            *ahead = std::mem::take(&mut cx.ahead);
            Err(error)
        }
    }
}

/// All that the tree has, as it stands; its processes by name.
fn everything(
    cx: &mut Capture<'_>,
    processes: &[FrozenProcess],
    (mut look, touched): (survey::Look, Option<Touched<'_>>),
) -> Result<Vec<ProcessName>> {
    look.tasks.iter().for_each(|view| cx.frozen.shown(view.tid, &view.status));
    openfile::group(cx, std::mem::take(&mut look.files))?;
    let mut subjects = Vec::new();
    for process in processes {
        subjects.push(subject(cx, process, &mut look)?);
    }
    let mut replies = ask(cx, &mut subjects)?;
    let mut told = BTreeMap::new();
    for subject in &mut subjects {
        let speaker = subject.threads.first().and_then(|(view, _)| replies.get(&view.tid));
        told.extend(speaker.map(|asked| reports::read(&subject.questions, &asked.replies)).unwrap_or_default());
        answer(cx, subject, &mut replies)?;
    }
    alike(cx, processes, &subjects)?;
    for (process, subject) in processes.iter().zip(&subjects).filter(|(process, _)| !process.threads.is_empty()) {
        memory::capture::pages(cx, process.pid, subject.mm, &subject.lines)?;
        if let Some(omitted) = OmittedRecord::of(&subject.lines, &cx.request.omitted.of(process.pid)) {
            cx.frame(subject.mm, &omitted)?;
        }
    }
    let ids: Vec<(Pid, ObjectId)> =
        processes.iter().zip(&subjects).map(|(process, subject)| (process.pid, subject.id)).collect();
    openfile::capture(cx, &ids)?;
    let names = genealogy::capture(cx, processes, &subjects, &told)?;
    listed::note_listed(cx)?;
    match touched {
        Some(ask) => touched::note(cx, &ask()?),
        None => touched::note(cx, &cx.request.files.touched),
    }
    contents::finish(cx)?;
    semaphores::capture(cx)?;
    segments::capture(cx)?;
    let first = processes.first().map_or(Pid(0), |process| process.pid);
    let clocks = clock::capture(first);
    cx.frame(ObjectId(0), &clocks)?;
    cx.ahead.follow_new()?;
    Ok(names)
}

/// Finds pages that processes share since a fork, and has the image hold them once.
fn alike(cx: &mut Capture<'_>, processes: &[FrozenProcess], subjects: &[Subject]) -> Result<()> {
    let mut members = Vec::new();
    for (process, subject) in processes.iter().zip(subjects).filter(|(process, _)| !process.threads.is_empty()) {
        let lines = omitted::without(&subject.lines, &cx.request.omitted.of(process.pid));
        members.push(kin::Member { pid: process.pid, mm: subject.mm, lines });
    }
    cx.alike = kin::look(&members)?;
    for subject in subjects {
        let Some(alike) = cx.alike.get(&subject.mm) else { continue };
        cx.ahead.alike.extend(alike.ranges.iter().map(|range| (subject.mm, alike.from, range.clone())));
    }
    Ok(())
}

/// Looks at the tree once more, now that nothing moves: whatever came since the survey must be known too.
fn look_again(request: &Request, pids: &[Pid], ahead: &mut Ahead) -> Result<(survey::Look, Places, survey::Seen)> {
    let look = survey::look(pids, &ahead.known)?;
    let judged = survey::judge(request, &look, std::mem::take(&mut ahead.own), true)?;
    let Judged { refusals, places, shown, .. } = judged;
    if refusals.0.is_empty() { Ok((look, places, shown)) } else { Err(Error::Refused(refusals)) }
}

/// Takes a process out of the look. Everything that the mechanism's own work would change is read here, before the first
/// batch: the list of mappings, the code of the vdso.
fn subject(cx: &mut Capture<'_>, process: &FrozenProcess, look: &mut survey::Look) -> Result<Subject> {
    let id = cx.new_id();
    if process.threads.is_empty() {
        return Ok(Subject {
            id,
            mm: ObjectId(0),
            lines: Vec::new(),
            vdso: ObjectId(0),
            brk: 0,
            threads: Vec::new(),
            questions: Vec::new(),
        });
    }
    let gone = || Error::Changed {
        subject: format!("process {}", process.pid),
        what: "it was not seen under the freeze".into(),
    };
    let mm = cx.ahead.object(process.pid).unwrap_or_else(|| cx.new_id());
    let lines = memory::capture::own_lines(cx, process.pid, look.lines.remove(&process.pid).ok_or_else(gone)?);
    let vdso = memory::capture::vdso(cx, process.pid, &lines)?;
    let mut threads = Vec::new();
    for tid in &process.threads {
        let place = look.tasks.iter().position(|view| view.tid == *tid).ok_or_else(gone)?;
        threads.push((look.tasks.swap_remove(place), cx.new_id()));
    }
    Ok(Subject { id, mm, lines, vdso, brk: 0, threads, questions: Vec::new() })
}

/// What a thread is still to be told from its replies.
struct Asked {
    answers: Vec<Answer>,
    replies: Replies,
}

/// Asks all threads at once.
fn ask(cx: &mut Capture<'_>, subjects: &mut [Subject]) -> Result<BTreeMap<Tid, Asked>> {
    let mut work = Vec::new();
    let mut answers = Vec::new();
    let speakers = subjects.iter().filter_map(|subject| subject.threads.first());
    let children: Vec<Child> = speakers.map(|(view, _)| Child::of(view)).collect();
    for subject in subjects {
        for (index, (view, _)) in subject.threads.iter().enumerate() {
            let mut batch = Batch::new();
            if index == 0 {
                subject.brk = batch.call(libc::SYS_brk, &[Arg::Value(0)]);
                let own = children.iter().filter(|child| child.parent == view.pid);
                subject.questions = own.map(|child| reports::ask(&mut batch, child)).collect();
            }
            let kinds = TASKS.iter().filter(|kind| kind.site == Site::Thread || index == 0);
            answers.push(kinds.map(|kind| (kind.ask)(view, &mut batch)).collect::<Vec<_>>());
            work.push((view.tid, batch));
        }
    }
    let replies = cx.frozen.run(&work)?;
    let mut all = BTreeMap::new();
    for (((tid, batch), answers), replies) in work.iter().zip(answers).zip(replies) {
        if let Some((index, errno)) = replies.failure(batch) {
            let nr = batch.calls.get(index).map_or(0, |call| call.nr);
            let source = std::io::Error::from_raw_os_error(errno);
            return Err(Error::Call { operation: format!("asking by system call {nr}"), tid: *tid, source });
        }
        all.insert(*tid, Asked { answers, replies });
    }
    Ok(all)
}

/// Reads the replies of a process's threads, and describes them and their memory.
fn answer(cx: &mut Capture<'_>, subject: &mut Subject, all: &mut BTreeMap<Tid, Asked>) -> Result<()> {
    let threads = std::mem::take(&mut subject.threads);
    for (index, (view, id)) in threads.iter().enumerate() {
        let Some(asked) = all.remove(&view.tid) else { continue };
        for answer in asked.answers {
            answer(cx, *id, view, &asked.replies)?;
        }
        thread(cx, view.tid, *id)?;
        if index == 0 {
            let brk =
                memory::capture::brk_of(&asked.replies, subject.brk).ok_or_else(|| model::no_reply(view, "brk"))?;
            let places = memory::capture::places(&view.stat, brk).ok_or_else(|| model::no_reply(view, "stat"))?;
            let record = MmRecord {
                places,
                auxv: procfs::read(view.pid, "auxv")?,
                names: Vec::new(),
                vdso: subject.vdso.0,
                lock_future: 0,
                guards: memory::guards::of(view.pid, &subject.lines)?
                    .iter()
                    .flat_map(|at| [at.start, at.end])
                    .collect(),
            };
            memory::capture::describe(cx, view.pid, subject.mm, &subject.lines, record)?;
        }
    }
    subject.threads = threads;
    Ok(())
}

fn thread(cx: &mut Capture<'_>, tid: Tid, id: ObjectId) -> Result<()> {
    let timed = cx.frozen.timed_call(tid)?;
    let regs = cx.frozen.regs(tid)?;
    cx.frame(id, &Registers { words: regs.to_words() })?;
    let record = ThreadRecord {
        signal_mask: cx.frozen.signal_mask(tid)?,
        xstate: cx.frozen.xstate(tid)?,
        timed_call: timed.map_or(0, |timed| timed.nr),
        remaining_ns: timed.and_then(|timed| timed.remaining_ns),
    };
    cx.frame(id, &record)
}

fn taken(cx: Capture<'_>, processes: Vec<ProcessName>) -> Taken {
    let Capture { frames, ahead, late, clones, unchanged, needs, .. } = cx;
    let root = processes.first().map_or(Pid(0), |process| Pid(process.pid));
    let line = procfs::read(root, "cmdline").unwrap_or_default();
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    let command = line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    let snapshot = ahead.in_words();
    Taken { frames, ahead, snapshot, late, clones, unchanged, processes, command, root_pid: root.0, needs }
}
