//! What a restore makes here, in the restoring process, before any task is born: open files, what lies behind mappings,
//! and the calls that put facts back.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use hdcr_image::Record as _;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;

use crate::batch::Arg;
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::memory::restore::{self as space, StoredMm};
use crate::model::ObjectId;
use crate::numbers;
use crate::openfile::{OpenFileRecord, path_flag};
use crate::resource::{backing, reopen};
use crate::restore::{Contents, Options, Restore};
use crate::rights::Turn;
use crate::rollback::Plan;
use crate::rollback::since::Since;
use crate::segments::{self, Made};
use crate::semaphores;
use crate::stored::{self, Model};
use crate::task::creds::CredsRecord;
use crate::task::{self, Stage};
use crate::tree::StoredProcess;
/// An address space that is to be made, with what lies behind its mappings.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) mm: StoredMm,
    pub(crate) behind: space::Behind,
    pub(crate) exe: i32,
    pub(crate) cwd: i32,
    pub(crate) root: Option<i32>,
}

/// A restore with nothing made yet.
pub(crate) fn context<'a>(model: &'a Model, contents: &'a dyn Contents, options: &'a Options) -> Result<Restore<'a>> {
    let mut holders: BTreeMap<ObjectId, Vec<(Pid, i32)>> = BTreeMap::new();
    let mut used = BTreeSet::new();
    for (pid, table) in &model.tables {
        for entry in table {
            used.insert(entry.fd);
            holders.entry(ObjectId(entry.object)).or_default().push((*pid, entry.fd));
        }
    }
    let stdio = [duplicate(&options.stdio[0])?, duplicate(&options.stdio[1])?, duplicate(&options.stdio[2])?];
    Ok(Restore {
        frames: &model.frames,
        contents,
        made: BTreeMap::new(),
        parts: BTreeMap::new(),
        leads: BTreeMap::new(),
        batches: BTreeMap::new(),
        stdio,
        shared_output: Vec::new(),
        map_path: &options.map_path,
        notes: Vec::new(),
        holders,
        room: numbers::room(&used, numbers::now()),
        making: BTreeSet::new(),
        inodes: reopen::OpenedInodes::default(),
        segments: Made::default(),
        semaphores: semaphores::Made::default(),
        plan: options.journal.as_deref().map(Plan::at).transpose()?.unwrap_or_default(),
        late: Vec::new(),
        apart: BTreeMap::new(),
        foreign: options.since.iter().flat_map(Since::foreign).map(std::path::Path::to_owned).collect(),
        unheld: false,
        watched: options.since.is_some(),
        rights: task::creds::rights(model)?,
        greeting: &options.greeting,
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

/// Puts in what every open file has: status flags. One that is shared with others (a standard stream of the restoring command)
/// appends as it did: they may rely on it.
pub(crate) fn common(id: ObjectId, file: &OwnedFd, record: &OpenFileRecord, is_shared: bool) -> Result<()> {
    if record.flags & path_flag() != 0 {
        return Ok(());
    }
    // `O_ASYNC` is for a holder to set (`owners`): what it is told of names the descriptor by which that was set.
    let settable = OFlag::O_APPEND | OFlag::O_DIRECT | OFlag::O_NOATIME | OFlag::O_NONBLOCK;
    let current = fcntl(file, FcntlArg::F_GETFL).map_err(Error::system("reading status flags", id))?;
    let wanted = OFlag::from_bits_truncate(i32::try_from(record.flags & 0x7fff_ffff).unwrap_or(0)) & settable;
    let current = OFlag::from_bits_truncate(current);
    let wanted = if is_shared { wanted | current & OFlag::O_APPEND } else { wanted };
    let other = current & !settable;
    if current & settable != wanted {
        fcntl(file, FcntlArg::F_SETFL(other | wanted)).map_err(Error::system("setting status flags", id))?;
    }
    Ok(())
}

/// Who is told about open files: put in by a holder, when all that can be told exist and it has its own credentials.
pub(crate) fn owners(cx: &mut Restore<'_>, model: &Model) -> Result<()> {
    /// What `F_SETFL` takes: the kernel leaves out what cannot be set (`SETFL_MASK`, fs/fcntl.c).
    const STATUS: u64 = 0o7_777_777;
    const F_SETSIG: i32 = 10;
    const F_SETOWN_EX: i32 = 15;
    for id in stored::ids(&model.frames, <OpenFileRecord as hdcr_image::Record>::TAG) {
        let record: OpenFileRecord = cx.record(id)?;
        let Some((pid, fd)) = cx.holders.get(&id).and_then(|holders| holders.first()).copied() else { continue };
        let holder = model.processes.iter().find(|process| process.pid == pid);
        let tells = record.flags & u64::try_from(libc::O_ASYNC).unwrap_or(0) != 0;
        let Some(holder) = holder.filter(|_| tells || record.owner_pid != 0 || record.signal != 0) else { continue };
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
        if tells {
            let flags = Arg::Value(record.flags & STATUS);
            batch.call("setting O_ASYNC", libc::SYS_fcntl, &[Arg::from(fd), Arg::from(libc::F_SETFL), flags]);
        }
    }
    Ok(())
}

/// Opens what lies behind mappings, and programs and directories, of every process.
pub(crate) fn spaces(cx: &mut Restore<'_>, model: &Model) -> Result<BTreeMap<Pid, Space>> {
    segments::make(cx, model)?;
    semaphores::make(cx, model)?;
    let mut spaces = BTreeMap::new();
    for process in model.processes.iter().filter(|process| !process.zombie()) {
        let _turn = Turn::to_some(cx.rights.of(process.pid))?;
        let mm = space::stored(cx, ObjectId(process.record.mm))?;
        let behind = space::open_backing(cx, &mm)?;
        let exe = backing::restore_path(cx, ObjectId(process.record.exe))?;
        let cwd = backing::restore_path(cx, ObjectId(process.record.cwd))?;
        let root = backing::restore_path(cx, ObjectId(process.record.root))?;
        let root = if is_root(cx, process)? { None } else { Some(root) };
        spaces.insert(process.pid, Space { mm, behind, exe, cwd, root });
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
        // Who may send it signals, and whose its files of `/proc` are, is asked of a leader even when it has ended.
        for process in model.processes.iter().filter(|_| kind.tag == CredsRecord::TAG) {
            let first = process.threads.first().filter(|(tid, _)| *tid != process.pid.leader() && !process.zombie());
            let frame = first.and_then(|(_, id)| model.frames.get(&(kind.tag.0, *id)));
            if let Some(frame) = frame {
                (kind.restore)(cx, process.pid.leader(), frame.version, &frame.body)?;
            }
        }
    }
    Ok(())
}

/// Lets the leader of a session on a terminal of the tree say again who is in its foreground. All signals are blocked, so
/// that `SIGTTOU` does not stop it in the background.
pub(crate) fn foreground(cx: &mut Restore<'_>, process: &StoredProcess) {
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
