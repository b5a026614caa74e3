//! Who is whose child, in which session and group: the frames of the tree itself.

use std::borrow::Cow;
use std::collections::BTreeMap;

use hdcr_image::hdcr_layout::{Task, TaskState};
use hdcr_image::{List, ProcessName};

use super::{Capture, Subject};
use crate::error::Result;
use crate::ids::{Pid, Tid};
use crate::mechanism::{FrozenProcess, Stand};
use crate::model::ObjectId;
use crate::procfs::{self, Stat};
use crate::reports::Report;
use crate::resource::backing;
use crate::tree::{self, Band, ProcessRecord};

/// Makes them; the processes by name.
pub(super) fn capture(
    cx: &mut Capture<'_>,
    processes: &[FrozenProcess],
    subjects: &[Subject],
    told: &BTreeMap<Pid, Report>,
) -> Result<Vec<ProcessName>> {
    let pids: Vec<Pid> = processes.iter().map(|process| process.pid).collect();
    let leaders = tree::Leaders::new(pids.iter().copied().collect());
    let parents = match cx.frozen.parents() {
        Some(seen) => seen,
        None => tree::parents(&pids)?,
    };
    let (mut tasks, mut names) = (Vec::new(), Vec::new());
    for (process, subject) in processes.iter().zip(subjects) {
        let parent = parents.get(&process.pid);
        let report = told.get(&process.pid).copied();
        let stopped = match process.threads.first().map(|tid| cx.frozen.stand(*tid)).transpose()? {
            Some(Stand::Stopped(signal)) => signal,
            Some(Stand::Running) | None => 0,
        };
        let stat = stat_of(process, subject, stopped)?;
        names.push(ProcessName { pid: process.pid.0, comm: stat.comm.clone() });
        let state = if stopped != 0 { TaskState::Stopped } else { TaskState::Running };
        let whole = Kin { process, ppid: parent.map_or(0, |(pid, _)| pid.0), stat: &stat, report };
        let leader_lives = process.threads.first() == Some(&process.pid.leader());
        if !leader_lives {
            let state = if process.threads.is_empty() { TaskState::Zombie } else { TaskState::DeadLeader };
            tasks.push(task(&whole, process.pid.leader(), &stat.comm, state));
        }
        for (view, _) in &subject.threads {
            tasks.push(task(&whole, view.tid, &view.stat.comm, state));
        }
        let living = !process.threads.is_empty();
        let record = ProcessRecord {
            pid: process.pid.0,
            parent_tid: parent.map_or(0, |(_, tid)| tid.0),
            session_leader: leaders.of(stat.sid, Band::Session).to_wire(),
            group_leader: leaders.of(stat.pgid, Band::Group).to_wire(),
            stopped,
            mm: subject.mm.0,
            exe: if living { backing::capture_path(cx, process.pid, "exe")?.0 } else { 0 },
            cwd: if living { backing::capture_path(cx, process.pid, "cwd")?.0 } else { 0 },
            root: if living { backing::capture_path(cx, process.pid, "root")?.0 } else { 0 },
            tty: stat.tty,
            tty_pgrp: stat.tty_pgrp,
            threads: subject.threads.iter().map(|(_, id)| id.0).collect(),
            continued: report == Some(Report::Continued),
        };
        cx.frame(subject.id, &record)?;
    }
    cx.frame(ObjectId(0), &List(tasks))?;
    Ok(names)
}

/// What `stat` tells of a whole process. That of its leader was read under the freeze, and tells the same but for times and
/// counts, which nobody needs here, and for how the process ended or was stopped.
fn stat_of<'a>(process: &FrozenProcess, subject: &'a Subject, stopped: i32) -> Result<Cow<'a, Stat>> {
    match subject.threads.first() {
        Some((view, _)) if view.tid == process.pid.leader() && stopped == 0 => Ok(Cow::Borrowed(&view.stat)),
        _ => procfs::stat(process.pid).map(Cow::Owned),
    }
}

struct Kin<'a> {
    process: &'a FrozenProcess,
    ppid: i32,
    stat: &'a Stat,
    report: Option<Report>,
}

fn task(kin: &Kin<'_>, tid: Tid, comm: &[u8], state: TaskState) -> Task {
    let mut name = [0; 16];
    for (slot, byte) in name.iter_mut().take(15).zip(comm) {
        *slot = *byte;
    }
    let number = |field| kin.stat.field(field).and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
    Task {
        tid: tid.0,
        tgid: kin.process.pid.0,
        ppid: kin.ppid,
        pgid: kin.stat.pgid,
        sid: kin.stat.sid,
        exit_signal: number(38),
        exit_status: match (state, kin.report) {
            // Before Linux 5.17 `stat` does not tell of stops.
            (TaskState::Stopped, Some(Report::Stop(signal))) => signal,
            (TaskState::Running, _) | (TaskState::Stopped, Some(_)) => 0,
            _ => number(52),
        },
        state,
        flags: 0,
        comm: name,
    }
}
