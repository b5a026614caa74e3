//! The look before the leap: what a tree holds and what stands in the way, found while it runs.

use std::collections::{BTreeMap, BTreeSet};

use hdcr_sys::kcmp::{self, Kind};

use crate::checkpoint::Request;
use crate::error::{Error, Owner, Refusal, Refusals, Result};
use crate::ids::{Pid, Tid};
use crate::memory;
use crate::openfile;
use crate::procfs::{self, MapLine};
use crate::resource::{self, FileView, backing};
use crate::task::{Site, TASKS, TaskView};
use crate::tree;

/// A survey in progress.
#[derive(Debug)]
pub struct Survey<'a> {
    /// What was asked for.
    pub(crate) request: &'a Request,
    /// The processes of the tree.
    pub(crate) pids: &'a BTreeSet<Pid>,
    /// The first process of it that lives.
    pub(crate) first: Option<Pid>,
    /// Every descriptor of every process of the tree.
    pub(crate) files: &'a [FileView],
    /// What stands in the way so far.
    pub(crate) refusals: Refusals,
    /// What does not stand in the way, but what a user should know (ends outside the tree and what becomes of them).
    pub(crate) notes: Vec<Refusal>,
    /// Places of [`Survey::files`] by inode.
    pub(crate) by_inode: BTreeMap<u64, Vec<usize>>,
    /// Files of mappings that have been looked at.
    pub(crate) seen: BTreeSet<((u32, u32), u64)>,
    /// The namespaces of this process by name, as far as they were asked for.
    pub(crate) own_namespaces: BTreeMap<&'static str, Option<Vec<u8>>>,
}

impl Survey<'_> {
    /// Adds an obstacle.
    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        if !self.refusals.0.contains(&refusal) {
            self.refusals.0.push(refusal);
        }
    }

    /// Adds a remark.
    pub(crate) fn note(&mut self, note: Refusal) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The descriptors of the tree that lead to an inode.
    pub(crate) fn with_inode(&self, inode: u64) -> impl Iterator<Item = &FileView> {
        self.by_inode.get(&inode).into_iter().flatten().filter_map(|at| self.files.get(*at))
    }
}

/// Everything that `/proc` shows of a tree at one moment.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) pids: Vec<Pid>,
    pub(crate) tasks: Vec<TaskView>,
    pub(crate) files: Vec<FileView>,
    pub(crate) lines: BTreeMap<Pid, Vec<MapLine>>,
}

/// Looks at the processes. One that is gone when we come to it is left out.
pub(crate) fn look(pids: &[Pid]) -> Result<Look> {
    let mut look = Look { pids: pids.to_vec(), tasks: Vec::new(), files: Vec::new(), lines: BTreeMap::new() };
    for pid in pids {
        match look_at(*pid, &mut look) {
            Ok(()) => {}
            Err(_) if procfs::stat(*pid).is_ok_and(|stat| stat.state == b'Z') || procfs::stat(*pid).is_err() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(look)
}

fn look_at(pid: Pid, look: &mut Look) -> Result<()> {
    if procfs::stat(pid)?.state == b'Z' && procfs::numbers(pid, "task")?.len() <= 1 {
        return Ok(());
    }
    for tid in procfs::numbers(pid, "task")? {
        match view(pid, Tid(tid)) {
            Ok(view) => look.tasks.push(view),
            Err(_) if procfs::read_thread(pid, Tid(tid), "stat").is_err() => {}
            Err(error) => return Err(error),
        }
    }
    look.files.extend(openfile::views(pid)?);
    let lines = procfs::parse_smaps(&procfs::read(pid, "smaps")?);
    look.lines.insert(
        pid,
        lines.ok_or_else(|| Error::Changed { subject: format!("process {pid}"), what: "unreadable smaps".into() })?,
    );
    Ok(())
}

pub(crate) fn view(pid: Pid, tid: Tid) -> Result<TaskView> {
    let stat = procfs::parse_stat(&procfs::read_thread(pid, tid, "stat")?);
    let stat = stat.ok_or_else(|| Error::Changed { subject: format!("task {tid}"), what: "unreadable stat".into() })?;
    Ok(TaskView { pid, tid, stat, status: procfs::status(pid, tid)? })
}

/// What stands in the way, and what is worth knowing.
pub(crate) fn judge(request: &Request, look: &Look) -> Result<(Refusals, Vec<Refusal>)> {
    let pids: BTreeSet<Pid> = look.pids.iter().copied().collect();
    let mut by_inode: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, view) in look.files.iter().enumerate() {
        by_inode.entry(view.stat.st_ino).or_default().push(index);
    }
    let mut survey = Survey {
        request,
        pids: &pids,
        first: look.tasks.iter().find(|task| task.stat.state != b'Z').map(|task| task.pid),
        files: &look.files,
        refusals: Refusals::default(),
        notes: Vec::new(),
        by_inode,
        seen: BTreeSet::new(),
        own_namespaces: BTreeMap::new(),
    };
    for task in &look.tasks {
        for kind in TASKS.iter().filter(|kind| kind.site == Site::Thread || task.leads()) {
            match (kind.survey)(&mut survey, task) {
                Err(_) if procfs::read_thread(task.pid, task.tid, "stat").is_err() => {}
                other => other?,
            }
        }
    }
    shared_halves(&mut survey, look);
    for view in &look.files {
        match resource::kind_of(view) {
            // What is gone meanwhile needs no look: the one under the freeze counts.
            Some(kind) => {
                openfile::while_open(view.pid, view.fd, || (kind.survey)(&mut survey, view))?;
            }
            None => survey.refuse(unknown(view)),
        }
    }
    for (pid, lines) in &look.lines {
        for line in lines {
            match memory::obstacle(*pid, line) {
                Some(refusal) => survey.refuse(refusal),
                None if line.inode != 0 => backing::survey(&mut survey, *pid, line),
                None => {}
            }
        }
    }
    Ok((survey.refusals, survey.notes))
}

fn unknown(view: &FileView) -> Refusal {
    view.refuse(
        "file-unknown",
        "open file",
        "HDCR does not know this kind of file",
        "close it before the checkpoint, or report it",
    )
}

/// Processes that share an address space, a descriptor table or directories without being threads of one process, and
/// threads that do not share them with their process.
fn shared_halves(survey: &mut Survey<'_>, look: &Look) {
    const HALVES: [(Kind, &str); 3] =
        [(Kind::Vm, "address space"), (Kind::Files, "descriptor table"), (Kind::Fs, "directories")];
    for (kind, name) in HALVES {
        let mut ordered: Vec<Pid> = Vec::new();
        for pid in look.lines.keys() {
            let place =
                ordered.binary_search_by(|other| kcmp::kcmp(other.0, pid.0, kind).unwrap_or(std::cmp::Ordering::Less));
            match place {
                Ok(same) => {
                    let other = ordered.get(same).map_or(0, |other| other.0);
                    if kind == Kind::Vm && in_vfork(look, [pid.0, other]) {
                        continue;
                    }
                    survey.refuse(shared(*pid, name, &format!("it is shared with process {other} by clone(2)")));
                }
                Err(place) => ordered.insert(place, *pid),
            }
        }
    }
    for task in look.tasks.iter().filter(|task| !task.leads()) {
        for (kind, name) in HALVES.iter().skip(1) {
            let same = kcmp::kcmp(task.pid.0, task.tid.0, *kind).map(std::cmp::Ordering::is_eq);
            let leader_lives =
                look.tasks.iter().any(|other| other.pid == task.pid && other.leads() && other.stat.state != b'Z');
            if leader_lives && same.is_ok_and(|same| !same) {
                survey.refuse(shared(Pid(task.tid.0), name, "this thread has its own by unshare(2)"));
            }
        }
    }
}

/// Whether one of two processes waits in `vfork(2)` (state D, kernel/fork.c `wait_for_vfork_done`) while it is looked at. It
/// is stopped only when the other one has executed its program; under the freeze no thread is in that state.
fn in_vfork(look: &Look, pids: [i32; 2]) -> bool {
    look.tasks.iter().any(|task| pids.contains(&task.pid.0) && task.stat.state == b'D')
}

fn shared(pid: Pid, name: &str, cause: &str) -> Refusal {
    Refusal {
        code: "task-sharing",
        object: name.to_owned(),
        owner: Owner { pid: Some(pid), fd: None, path: None },
        cause: cause.to_owned(),
        remedy: "checkpoint when the task has ended".to_owned(),
    }
}

/// The processes of a request's scope.
pub(crate) fn processes(request: &Request) -> Result<Vec<Pid>> {
    tree::list(request.scope)
}
