//! The works of a restore: what is opened here, and what is made in the nursery, in the order that `restore.rs` gives.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use hdcr_image::hdcr_layout::{Registers, TaskState};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;

use crate::batch::Arg;
use crate::error::{Error, Result};
use crate::ids::{Pid, RemotePtr, Tid};
use crate::mechanism::{Birth, Final, Mechanism, MechanismError, Nursery, Parent, Resume};
use crate::memory::restore::{self as space, Parked, StoredMm};
use crate::memory::vdso::{self, VdsoRecord};
use crate::memory::{self, overlap};
use crate::model::ObjectId;
use crate::openfile::{OpenFileRecord, path_flag};
use crate::plan::{Maker, Step};
use crate::procfs::{self, MapLine};
use crate::regs::Regs;
use crate::resource::backing;
use crate::restore::{Afterwards, Contents, Options, Restore, THREAD_FLAGS, TaskBatch};
use crate::rollback::Plan;
use crate::stored::{self, Model};
use crate::task::{self, STAGES, Stage};
use crate::tree::{StoredProcess, ThreadRecord};

/// An address space that is to be made, with the descriptors of what lies behind its mappings.
#[derive(Debug)]
pub(crate) struct Space {
    mm: StoredMm,
    descriptors: space::Descriptors,
    exe: i32,
    cwd: i32,
    root: Option<i32>,
}

/// A restore with nothing made yet.
pub(crate) fn context<'a>(model: &'a Model, contents: &'a dyn Contents, options: &'a Options) -> Result<Restore<'a>> {
    let mut holders: BTreeMap<ObjectId, Vec<(Pid, i32)>> = BTreeMap::new();
    let mut highest = 0;
    for (pid, table) in &model.tables {
        for entry in table {
            highest = highest.max(entry.fd);
            holders.entry(ObjectId(entry.object)).or_default().push((*pid, entry.fd));
        }
    }
    let stdio = [duplicate(&options.stdio[0])?, duplicate(&options.stdio[1])?, duplicate(&options.stdio[2])?];
    Ok(Restore {
        frames: &model.frames,
        contents,
        made: BTreeMap::new(),
        parts: BTreeMap::new(),
        batches: BTreeMap::new(),
        stdio,
        map_path: &options.map_path,
        notes: Vec::new(),
        holders,
        base: highest.saturating_add(1).max(64),
        making: std::collections::BTreeSet::new(),
        inodes: BTreeMap::new(),
        plan: options.journal.as_deref().map(Plan::at).transpose()?.unwrap_or_default(),
        late: Vec::new(),
        apart: BTreeMap::new(),
    })
}

fn duplicate(file: &OwnedFd) -> Result<OwnedFd> {
    file.try_clone().map_err(Error::system("duplicating a standard stream", "the restoring command"))
}

/// Makes every open file here.
pub(crate) fn open_files(cx: &mut Restore<'_>, model: &Model) -> Result<()> {
    for id in model.tables.values().flatten().map(|entry| ObjectId(entry.object)) {
        cx.open_file(id)?;
    }
    while !cx.late.is_empty() {
        for (step, id) in std::mem::take(&mut cx.late) {
            step(cx, id)?;
        }
    }
    Ok(())
}

/// Puts in what every open file has: status flags and who is told.
pub(crate) fn common(id: ObjectId, file: &OwnedFd, record: &OpenFileRecord) -> Result<()> {
    if record.flags & path_flag() != 0 {
        return Ok(());
    }
    let settable = OFlag::O_APPEND | OFlag::O_ASYNC | OFlag::O_DIRECT | OFlag::O_NOATIME | OFlag::O_NONBLOCK;
    let current = fcntl(file, FcntlArg::F_GETFL).map_err(Error::system("reading status flags", id))?;
    let wanted = OFlag::from_bits_truncate(i32::try_from(record.flags & 0x7fff_ffff).unwrap_or(0)) & settable;
    let other = OFlag::from_bits_truncate(current) & !settable;
    if OFlag::from_bits_truncate(current) & settable != wanted {
        fcntl(file, FcntlArg::F_SETFL(other | wanted)).map_err(Error::system("setting status flags", id))?;
    }
    Ok(())
}

/// Who is told about open files: put in by a holder, when all that can be told exist and it has its own credentials.
pub(crate) fn owners(cx: &mut Restore<'_>, model: &Model) -> Result<()> {
    const F_SETSIG: i32 = 10;
    const F_SETOWN_EX: i32 = 15;
    for id in stored::ids(&model.frames, <OpenFileRecord as hdcr_image::Record>::TAG) {
        let record: OpenFileRecord = cx.record(id)?;
        let Some((pid, fd)) = cx.holders.get(&id).and_then(|holders| holders.first()).copied() else { continue };
        let holder = model.processes.iter().find(|process| process.pid == pid);
        let Some(holder) = holder.filter(|_| record.owner_pid != 0 || record.signal != 0) else { continue };
        let batch = cx.batch(Stage::Last, holder.speaker());
        let owner = batch.room(8);
        batch.put(owner, &record.owner_kind.to_le_bytes());
        batch.put(owner + 4, &record.owner_pid.to_le_bytes());
        // Whom it named may be gone, here as there: nobody is told then.
        batch.try_call(
            "setting the owner of a file",
            libc::SYS_fcntl,
            &[Arg::from(fd), Arg::from(F_SETOWN_EX), Arg::Data(owner)],
        );
        batch.call(
            "setting the signal of a file",
            libc::SYS_fcntl,
            &[Arg::from(fd), Arg::from(F_SETSIG), Arg::from(record.signal)],
        );
    }
    Ok(())
}

/// Opens what lies behind mappings, and programs and directories, of every process.
pub(crate) fn spaces(cx: &mut Restore<'_>, model: &Model) -> Result<BTreeMap<Pid, Space>> {
    let mut spaces = BTreeMap::new();
    for process in model.processes.iter().filter(|process| !process.zombie()) {
        let mm = space::stored(cx, ObjectId(process.record.mm))?;
        let descriptors = space::open_backing(cx, &mm)?;
        let exe = backing::restore_path(cx, ObjectId(process.record.exe))?;
        let cwd = backing::restore_path(cx, ObjectId(process.record.cwd))?;
        let root = backing::restore_path(cx, ObjectId(process.record.root))?;
        let root = if is_root(cx, process)? { None } else { Some(root) };
        spaces.insert(process.pid, Space { mm, descriptors, exe, cwd, root });
    }
    Ok(spaces)
}

/// Whether a process's root directory is that of the restoring process.
fn is_root(cx: &Restore<'_>, process: &StoredProcess) -> Result<bool> {
    let theirs =
        cx.parts.get(&ObjectId(process.record.root)).and_then(|files| files.first()).map(rustix::fs::fstat).transpose();
    let theirs = theirs.map_err(Error::system("looking at a root directory", process.pid))?;
    let own = rustix::fs::stat("/").map_err(Error::system("looking at the root directory", "/"))?;
    Ok(theirs.is_none_or(|theirs| (theirs.st_dev, theirs.st_ino) == (own.st_dev, own.st_ino)))
}

/// Lets every kind of fact append its calls.
pub(crate) fn facts(cx: &mut Restore<'_>, model: &Model) -> Result<()> {
    for kind in task::TASKS {
        for (tid, id) in model.processes.iter().flat_map(|process| &process.threads) {
            if let Some(frame) = model.frames.get(&(kind.tag.0, *id)) {
                (kind.restore)(cx, *tid, frame.version, &frame.body)?;
            }
        }
    }
    Ok(())
}

/// Lets the leader of a session on a terminal of the tree say again who is in its foreground. All signals are blocked, so
/// that `SIGTTOU` does not stop it in the background.
fn foreground(cx: &mut Restore<'_>, process: &StoredProcess) {
    if process.sid != process.pid.0 || process.record.tty_pgrp <= 0 {
        return;
    }
    let Some(terminal) = crate::resource::terminal_of(cx, process.record.tty) else { return };
    let batch = cx.batch(Stage::Process, process.pid.leader());
    let group = batch.bytes(&process.record.tty_pgrp.to_ne_bytes());
    let args = [Arg::from(terminal), Arg::Value(libc::TIOCSPGRP), Arg::Data(group)];
    // The group may have ended while the terminal still names it.
    batch.try_call("foreground group of the terminal", libc::SYS_ioctl, &args);
}

/// The tree in the making.
#[derive(Debug)]
pub(crate) struct Works<'a> {
    nursery: Box<dyn Nursery>,
    model: &'a Model,
    parent: Parent,
    /// A parent of the roots for the time of their birth.
    step_parent: Option<Tid>,
    parked: Parked,
    lines: Vec<MapLine>,
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
        let parked = Parked { pieces };
        meet_kernel(cx, model, &own_vdso, &parked, spaces)?;
        let nursery = mechanism.nursery(&taken, options.by)?;
        let mut works = Self { nursery, model, parent: options.parent, step_parent: None, parked, lines };
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

    /// Does one step of the plan.
    pub(crate) fn step(&mut self, cx: &Restore<'_>, step: &Step) -> Result<()> {
        match step {
            Step::Birth { pid, maker, exit_signal } => self.birth(*pid, *maker, *exit_signal),
            Step::Orphan { pid, member, parent } => self.orphan(*pid, *member, *parent),
            Step::StandIn { pid, maker } => self.make(*pid, *maker, libc::SIGCHLD),
            Step::Session(pid) => self.session(cx, *pid),
            Step::Group(pid, group) => {
                let mut batch = TaskBatch::default();
                batch.call("entering a process group", libc::SYS_setpgid, &[Arg::Value(0), Arg::from(*group)]);
                self.run_one(pid.leader(), batch)
            }
            Step::EndStandIn { pid, parent } => self.end_stand_in(*pid, *parent),
            Step::EndZombie(pid, end) => {
                self.name(*pid)?;
                self.nursery.end(pid.leader(), *end)?;
                let parent = self.model.processes.iter().find(|p| p.pid == *pid).and_then(|p| p.parent);
                parent.map_or(Ok(()), |(pid, _)| self.forget_child_signal(pid.leader()))
            }
            Step::EndLeader(pid) => {
                Ok(self.nursery.end(pid.leader(), crate::mechanism::End::Exit(self.status(*pid)))?)
            }
        }
    }

    fn status(&self, pid: Pid) -> i32 {
        self.model
            .processes
            .iter()
            .find(|process| process.pid == pid)
            .map_or(0, |process| process.exit_status >> 8 & 0xff)
    }

    fn birth(&mut self, pid: Pid, maker: Maker, exit_signal: i32) -> Result<()> {
        self.make(pid, maker, exit_signal)?;
        self.threads(pid)
    }

    /// Makes the other threads of a process.
    fn threads(&mut self, pid: Pid) -> Result<()> {
        let Some(process) = self.model.processes.iter().find(|process| process.pid == pid) else { return Ok(()) };
        let others = process.threads.iter().filter(|(tid, _)| *tid != pid.leader());
        let births: Vec<Birth> = others.map(|(tid, _)| thread_of(pid, *tid)).collect();
        if !births.is_empty() {
            self.nursery.birth(&births)?;
        }
        Ok(())
    }

    /// Makes a process by a stand-in that dies, so that it comes to the nearest subreaper above.
    fn orphan(&mut self, pid: Pid, member: Tid, parent: Option<Pid>) -> Result<()> {
        self.subreaper(parent, 1)?;
        let birth = |parent, tid| Birth {
            parent: Parent::Task(parent),
            tid,
            flags: 0,
            exit_signal: libc::SIGCHLD,
            tls: 0,
            clear_tid: 0,
        };
        let made = self.nursery.birth(&[birth(member, None)])?;
        let stand_in = made.first().copied().ok_or_else(|| Error::Unsound("a stand-in was not made".to_owned()))?;
        self.nursery.birth(&[birth(stand_in, Some(pid.leader()))])?;
        self.threads(pid)?;
        self.end_stand_in(Pid(stand_in.0), Some(member))?;
        self.subreaper(parent, 0)
    }

    /// For a moment; what the process was at the checkpoint is put in with its other attributes.
    fn subreaper(&mut self, pid: Option<Pid>, value: i32) -> Result<()> {
        let Some(pid) = pid else { return Ok(()) };
        let mut batch = TaskBatch::default();
        batch.call("taking in orphans", libc::SYS_prctl, &[Arg::from(libc::PR_SET_CHILD_SUBREAPER), Arg::from(value)]);
        self.run_one(pid.leader(), batch)
    }

    fn make(&mut self, pid: Pid, maker: Maker, exit_signal: i32) -> Result<()> {
        let (parent, flags, exit_signal) = match maker {
            Maker::Restorer => (self.parent, 0, exit_signal),
            Maker::Parent(tid) => (Parent::Task(tid), 0, exit_signal),
            Maker::Sibling(tid) => (Parent::Task(tid), libc::CLONE_PARENT, 0),
        };
        let birth = Birth { parent, tid: Some(pid.leader()), flags: bits(flags), exit_signal, tls: 0, clear_tid: 0 };
        self.born(birth)?;
        if maker == Maker::Restorer && self.step_parent.is_none() {
            self.empty(pid)?;
        }
        Ok(())
    }

    /// Makes a process, and waits a moment for its number when somebody short-lived has it.
    fn born(&mut self, birth: Birth) -> Result<()> {
        const TRIES: usize = 100;
        const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
        for _ in 0..TRIES {
            match self.nursery.birth(&[birth]) {
                Err(MechanismError::System { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => {
                    std::thread::sleep(PAUSE);
                }
                other => return other.map(|_| ()).map_err(Error::from),
            }
        }
        let tid = birth.tid.map_or(0, |tid| tid.0);
        let holder = stored::holder_of(tid).unwrap_or_else(|| "a process group or session has it".to_owned());
        Err(Error::refuse(stored::taken(tid, holder)))
    }

    /// Takes everything of this process out of a root's memory: its children then cost next to nothing.
    fn empty(&mut self, pid: Pid) -> Result<()> {
        let mut batch = TaskBatch::default();
        if let Some(rseq) = self.nursery.rseq(pid.leader())? {
            // First of all: the kernel writes to it at any time, and kills the task when it is not there.
            const UNREGISTER: u64 = 1;
            let args = [
                Arg::Value(rseq.at.0),
                Arg::Value(rseq.size.into()),
                Arg::Value(UNREGISTER),
                Arg::Value(rseq.signature.into()),
            ];
            batch.call("unregistering rseq", libc::SYS_rseq, &args);
        }
        let lines: Vec<MapLine> =
            self.lines.iter().filter(|line| !overlap(&line.range, &self.nursery.service_region())).cloned().collect();
        space::empty(&mut batch, &lines, &self.nursery.service_region(), &self.parked);
        self.run_one(pid.leader(), batch)
    }

    fn session(&mut self, cx: &Restore<'_>, pid: Pid) -> Result<()> {
        let mut batch = TaskBatch::default();
        batch.call("beginning a session", libc::SYS_setsid, &[]);
        let tty =
            self.model.processes.iter().find(|process| process.pid == pid).map_or(0, |process| process.record.tty);
        if let Some(file) = crate::resource::terminal_of(cx, tty) {
            batch.call(
                "taking the terminal",
                libc::SYS_ioctl,
                &[Arg::from(file), Arg::Value(libc::TIOCSCTTY), Arg::Value(0)],
            );
        }
        self.run_one(pid.leader(), batch)
    }

    fn name(&mut self, pid: Pid) -> Result<()> {
        let comm = procfs_comm(self.model, pid);
        let mut batch = TaskBatch::default();
        let text = batch.batch.c_string(&comm);
        batch.try_call("naming a process", libc::SYS_prctl, &[Arg::from(libc::PR_SET_NAME), Arg::Data(text)]);
        self.run_one(pid.leader(), batch)
    }

    fn end_stand_in(&mut self, pid: Pid, parent: Option<Tid>) -> Result<()> {
        self.nursery.end(pid.leader(), crate::mechanism::End::Exit(0))?;
        let Some(parent) = parent else { return Ok(()) };
        let mut batch = TaskBatch::default();
        let (no_status, no_options) = (Arg::Value(0), Arg::Value(0));
        batch.call("reaping a stand-in", libc::SYS_wait4, &[Arg::from(pid.0), no_status, no_options, Arg::Value(0)]);
        self.run_one(parent, batch)?;
        self.forget_child_signal(parent)
    }

    /// A `SIGCHLD` that is pending because of our own doing goes away when its action is set to the default
    /// (kernel/signal.c `do_sigaction`).
    fn forget_child_signal(&mut self, tid: Tid) -> Result<()> {
        let mut batch = TaskBatch::default();
        let action = batch.room(32);
        batch.call(
            "forgetting SIGCHLD",
            libc::SYS_rt_sigaction,
            &[Arg::from(libc::SIGCHLD), Arg::Data(action), Arg::Value(0), Arg::Value(8)],
        );
        self.run_one(tid, batch)
    }

    /// Maps and fills all address spaces.
    pub(crate) fn memory(&mut self, cx: &Restore<'_>, spaces: &BTreeMap<Pid, Space>) -> Result<()> {
        let mut work = Vec::new();
        for process in self.living() {
            let Some(space) = spaces.get(&process.pid) else { continue };
            let mut batch = TaskBatch::default();
            space::map(&mut batch, &space.mm, &self.parked, &space.descriptors)?;
            work.push((process.pid.leader(), batch));
        }
        self.run(work)?;
        let mut work = Vec::new();
        for process in self.living() {
            let Some(space) = spaces.get(&process.pid) else { continue };
            space::fill(cx, self.nursery.as_mut(), process.pid.leader(), &space.mm)?;
            let mut batch = TaskBatch::default();
            space::protect(&mut batch, &space.mm);
            work.push((process.pid.leader(), batch));
        }
        self.run(work)
    }

    /// Puts descriptors at their numbers, then runs all stages.
    pub(crate) fn stages(&mut self, cx: &mut Restore<'_>, spaces: &BTreeMap<Pid, Space>) -> Result<()> {
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
                self.close_service(cx.base)?;
            }
        }
        Ok(())
    }

    /// Descriptor tables: everything of this process's own is closed, every file goes to its numbers.
    fn tables(&mut self, cx: &Restore<'_>) -> Result<()> {
        let mut work = Vec::new();
        for process in self.living() {
            let mut batch = TaskBatch::default();
            let last = u64::try_from(cx.base.saturating_sub(1)).unwrap_or(0);
            batch.call("closing descriptors", libc::SYS_close_range, &[Arg::Value(0), Arg::Value(last), Arg::Value(0)]);
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

    fn close_service(&mut self, base: i32) -> Result<()> {
        let mut work = Vec::new();
        for process in self.living() {
            let mut batch = TaskBatch::default();
            let all = u64::from(u32::MAX);
            batch.call(
                "closing service descriptors",
                libc::SYS_close_range,
                &[Arg::from(base), Arg::Value(all), Arg::Value(0)],
            );
            work.push((process.pid.leader(), batch));
        }
        self.run(work)
    }

    /// Puts the last state in and lets all go: children before parents, the leader of a process last.
    pub(crate) fn release(mut self, cx: &Restore<'_>) -> Result<()> {
        let mut finals = Vec::new();
        for process in self.model.processes.iter().rev().filter(|process| !process.zombie()) {
            let stopped = (process.state == TaskState::Stopped).then_some(process.record.stopped);
            for (tid, id) in process.threads.iter().rev() {
                finals.push(last_state(cx, *tid, *id, stopped)?);
            }
            // A stop that the parent has not waited for yet is still to be waited for.
            let known = process.exit_status == 0;
            if let (Some(_), Some((parent, _)), true) = (stopped, process.parent, known) {
                self.nursery.finish(&finals)?;
                finals.clear();
                self.forget_stop(process.pid, parent)?;
            }
        }
        self.nursery.finish(&finals)?;
        Ok(self.nursery.release()?)
    }

    /// The parent has been told of a stop that it knew of long ago.
    fn forget_stop(&mut self, pid: Pid, parent: Pid) -> Result<()> {
        let Some(parent) = self.model.processes.iter().find(|process| process.pid == parent) else { return Ok(()) };
        let mut batch = TaskBatch::default();
        let set = batch.bytes(&(1_u64 << (libc::SIGCHLD - 1)).to_le_bytes());
        let at_once = batch.room(16);
        let options = libc::WSTOPPED | libc::WNOHANG;
        let wait =
            [Arg::from(libc::P_PID.cast_signed()), Arg::from(pid.0), Arg::Value(0), Arg::from(options), Arg::Value(0)];
        batch.try_call("forgetting a stop", libc::SYS_waitid, &wait);
        let signal = [Arg::Data(set), Arg::Value(0), Arg::Data(at_once), Arg::Value(8)];
        batch.try_call("forgetting SIGCHLD", libc::SYS_rt_sigtimedwait, &signal);
        self.run_one(parent.speaker(), batch)
    }

    fn living(&self) -> Vec<&'a StoredProcess> {
        self.model.processes.iter().filter(|process| !process.zombie()).collect()
    }

    fn run_one(&mut self, tid: Tid, batch: TaskBatch) -> Result<()> {
        self.run(vec![(tid, batch)])
    }

    fn run(&mut self, work: Vec<(Tid, TaskBatch)>) -> Result<()> {
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

fn bits(flags: i32) -> u64 {
    u64::from(flags.cast_unsigned())
}

fn thread_of(pid: Pid, tid: Tid) -> Birth {
    Birth {
        parent: Parent::Task(pid.leader()),
        tid: Some(tid),
        flags: bits(THREAD_FLAGS),
        exit_signal: 0,
        tls: 0,
        clear_tid: 0,
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

fn procfs_comm(model: &Model, pid: Pid) -> Vec<u8> {
    let Some(frame) = model.frames.get(&(<crate::tree::Tasks as hdcr_image::Record>::TAG.0, ObjectId(0))) else {
        return Vec::new();
    };
    let Ok(tasks) = crate::model::decode::<crate::tree::Tasks>(frame.version, &frame.body) else { return Vec::new() };
    let task = tasks.0.iter().find(|task| task.tid == pid.0);
    task.map(|task| task.comm.iter().copied().take_while(|byte| *byte != 0).collect()).unwrap_or_default()
}

fn last_state(cx: &Restore<'_>, tid: Tid, id: ObjectId, stopped: Option<i32>) -> Result<Final> {
    let registers: Registers = cx.record(id)?;
    let record: ThreadRecord = cx.record(id)?;
    let mut regs = Regs::from_words(registers.words);
    let resume = resume(&mut regs, &record);
    Ok(Final { tid, regs, xstate: record.xstate, signal_mask: record.signal_mask, resume, stopped })
}

/// How an interrupted timed call goes on: begun anew with what remains of its time.
fn resume(regs: &mut Regs, record: &ThreadRecord) -> Resume {
    const RESTART_BLOCK: i64 = -516;
    const FUTEX_COMMAND: u64 = 0x7f;
    const FUTEX_WAIT: u64 = 0;
    if record.timed_call == 0 || regs.ax.cast_signed() != RESTART_BLOCK {
        return Resume::Plain;
    }
    let nr = record.timed_call;
    let original = [regs.di, regs.si, regs.dx, regs.r10, regs.r8, regs.r9];
    regs.orig_ax = nr;
    let Some(remaining) = record.remaining_ns else { return Resume::Plain };
    let mut timespec = [0; 16];
    timespec[..8].copy_from_slice(&(remaining / 1_000_000_000).to_le_bytes());
    timespec[8..].copy_from_slice(&(remaining % 1_000_000_000).to_le_bytes());
    // Below the red zone of the stack, where a signal frame would be put too; put back afterwards.
    let place = RemotePtr(regs.sp.wrapping_sub(128 + 16) & !15);
    let mut args = original;
    let argument = match nr {
        nr if nr == libc::SYS_poll.cast_unsigned() => {
            args[2] = remaining.div_ceil(1_000_000);
            return Resume::Timed { nr, args, scratch: None };
        }
        nr if nr == libc::SYS_nanosleep.cast_unsigned() => &mut args[0],
        nr if nr == libc::SYS_clock_nanosleep.cast_unsigned() => &mut args[2],
        // FUTEX_WAIT_BITSET takes an absolute time: the call is simply made again.
        nr if nr == libc::SYS_futex.cast_unsigned() && original[1] & FUTEX_COMMAND == FUTEX_WAIT => &mut args[3],
        _ => return Resume::Plain,
    };
    *argument = place.0;
    Resume::Timed { nr, args, scratch: Some((place, timespec)) }
}
