//! The processes of a tree: who they are to each other, as captured and as the image keeps it.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use hdcr_image::hdcr_layout::{Task, TaskState};
use hdcr_image::{List, Record, Tag};

use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};
use crate::mechanism::{MechanismError, Scope};
use crate::model::{self, ObjectId};
use crate::procfs;

/// Where the leader of a session or of a process group is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leader {
    /// In the tree (alive or a zombie).
    InTree,
    /// Alive outside of the tree: at a restore, that of the restoring command takes its place.
    Outside,
    /// Gone; only the number lives on in the members.
    Dead,
}

/// What the image keeps of a process besides its [`Task`]s.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProcessRecord {
    #[prost(int32, tag = "1")]
    pub(crate) pid: i32,
    /// The thread of the parent whose child it is; 0 when the parent lies outside.
    #[prost(int32, tag = "2")]
    pub(crate) parent_tid: i32,
    /// Leader of its session: 0 in the tree, 1 outside, 2 dead.
    #[prost(uint32, tag = "3")]
    pub(crate) session_leader: u32,
    /// Leader of its group, likewise.
    #[prost(uint32, tag = "4")]
    pub(crate) group_leader: u32,
    /// Signal of a group stop, 0: it ran.
    #[prost(int32, tag = "5")]
    pub(crate) stopped: i32,
    /// Its address space; 0 for a zombie.
    #[prost(uint64, tag = "6")]
    pub(crate) mm: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) exe: u64,
    #[prost(uint64, tag = "8")]
    pub(crate) cwd: u64,
    #[prost(uint64, tag = "9")]
    pub(crate) root: u64,
    /// Controlling terminal's device number, 0: none.
    #[prost(uint64, tag = "10")]
    pub(crate) tty: u64,
    /// Foreground group of that terminal, as the session leader sees it.
    #[prost(int32, tag = "11")]
    pub(crate) tty_pgrp: i32,
    /// Frames of each thread have these ids, in the order of [`Task`]s.
    #[prost(uint64, repeated, tag = "12")]
    pub(crate) threads: Vec<u64>,
    /// Its parent has still to be told that it went on after a stop.
    #[prost(bool, tag = "13")]
    pub(crate) continued: bool,
}

impl Record for ProcessRecord {
    const TAG: Tag = Tag(0x0101);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Registers apart, what a thread needs at its release.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ThreadRecord {
    #[prost(uint64, tag = "1")]
    pub(crate) signal_mask: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) xstate: Vec<u8>,
    /// Number of an interrupted timed call, 0: none.
    #[prost(uint64, tag = "3")]
    pub(crate) timed_call: u64,
    /// What remained of it.
    #[prost(uint64, optional, tag = "4")]
    pub(crate) remaining_ns: Option<u64>,
}

impl Record for ThreadRecord {
    const TAG: Tag = Tag(0x0102);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Which processes form the tree, for `hdcr show` and the plan.
pub(crate) type Tasks = List<Task>;

/// The processes of a scope now, parents before children; zombies included. What appears while we look is found by the
/// next look, under the freeze.
pub(crate) fn list(scope: Scope) -> Result<Vec<Pid>> {
    // The keeper's checkpointer is its child too, and not part of the job.
    let own = Pid(rustix::process::getpid().as_raw_nonzero().get());
    let mut found: Vec<Pid> = match scope {
        Scope::Tree(root) => vec![root],
        Scope::Below(keeper) => {
            children(keeper)?.into_iter().map(|(_, child)| child).filter(|child| *child != own).collect()
        }
    };
    if let Some(root) = found.first() {
        procfs::stat(*root)?;
    }
    let mut seen: BTreeSet<Pid> = found.iter().copied().collect();
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        at += 1;
        for (_, child) in children(pid)? {
            if seen.insert(child) {
                found.push(child);
            }
        }
    }
    Ok(found)
}

/// The children of a process with the thread that has each. A process that is gone has none.
pub(crate) fn children(pid: Pid) -> Result<Vec<(Tid, Pid)>> {
    let mut found = Vec::new();
    for tid in procfs::threads(pid).unwrap_or_default() {
        let of_thread = procfs::children(pid, tid).map_err(Error::system("listing children", tid))?;
        found.extend(of_thread.into_iter().map(|child| (tid, child)));
    }
    match found.iter().find(|(_, child)| procfs::hidden(*child)) {
        Some((_, child)) => Err(MechanismError::NotPermitted { tid: child.leader() }.into()),
        None => Ok(found),
    }
}

/// Which thread is parent of each process of a tree.
pub(crate) fn parents(pids: &[Pid]) -> Result<BTreeMap<Pid, (Pid, Tid)>> {
    let mut parents = BTreeMap::new();
    for pid in pids {
        parents.extend(children(*pid)?.into_iter().map(|(tid, child)| (child, (*pid, tid))));
    }
    Ok(parents)
}

/// Which number of a process a leader gives: that of its session or that of its group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Band {
    Session,
    Group,
}

/// Where the leaders of a tree are. All processes are looked at once, and only when a leader has ended.
#[derive(Debug)]
pub(crate) struct Leaders {
    tree: BTreeSet<Pid>,
    /// Sessions and groups that have members outside of the tree.
    outside: OnceCell<BTreeSet<(Band, i32)>>,
}

impl Leaders {
    pub(crate) fn new(tree: BTreeSet<Pid>) -> Self {
        Self { tree, outside: OnceCell::new() }
    }

    /// Where the leader with this number is. A dead leader whose session or group has members outside of the tree (the shell
    /// of a batch system has gone, hdcr itself has not) counts as outside: the number is in use and cannot be taken again.
    pub(crate) fn of(&self, number: i32, band: Band) -> Leader {
        if self.tree.contains(&Pid(number)) {
            return Leader::InTree;
        }
        // Only a living process (or a zombie) has a directory in /proc.
        if number == 0 || procfs::is_shown(Pid(number)) {
            return Leader::Outside;
        }
        let outside = self.outside.get_or_init(|| {
            // A child of the tree that is not in it is a copy that the mechanism has made.
            let outside =
                |(pid, stat): &(Pid, procfs::Stat)| !self.tree.contains(pid) && !self.tree.contains(&stat.ppid);
            let members = procfs::bands().into_iter().filter(outside);
            members.flat_map(|(_, stat)| [(Band::Session, stat.sid), (Band::Group, stat.pgid)]).collect()
        });
        if outside.contains(&(band, number)) { Leader::Outside } else { Leader::Dead }
    }
}

/// Dead leaders whose session or group is that of the restoring process: its members join that one.
pub(crate) fn join_own(processes: &mut [StoredProcess], own: &procfs::Stat) {
    for process in processes {
        if process.session_leader == Leader::Dead && process.sid == own.sid {
            process.session_leader = Leader::Outside;
        }
        if process.group_leader == Leader::Dead && process.pgid == own.pgid {
            process.group_leader = Leader::Outside;
        }
    }
}

impl Leader {
    pub(crate) fn to_wire(self) -> u32 {
        match self {
            Self::InTree => 0,
            Self::Outside => 1,
            Self::Dead => 2,
        }
    }

    pub(crate) fn from_wire(word: u32) -> Result<Self> {
        match word {
            0 => Ok(Self::InTree),
            1 => Ok(Self::Outside),
            2 => Ok(Self::Dead),
            other => Err(Error::Unsound(format!("place of a leader {other}"))),
        }
    }
}

/// A process as the image describes it.
#[derive(Clone, Debug)]
pub(crate) struct StoredProcess {
    pub(crate) id: ObjectId,
    pub(crate) pid: Pid,
    /// Parent in the tree.
    pub(crate) parent: Option<(Pid, Tid)>,
    pub(crate) sid: i32,
    pub(crate) pgid: i32,
    pub(crate) session_leader: Leader,
    pub(crate) group_leader: Leader,
    pub(crate) exit_signal: i32,
    pub(crate) exit_status: i32,
    pub(crate) state: TaskState,
    pub(crate) record: ProcessRecord,
    /// Living threads with their frames' id; the first leads unless the leader is dead.
    pub(crate) threads: Vec<(Tid, ObjectId)>,
}

impl StoredProcess {
    /// Whether it is only a status that nobody has read yet.
    pub(crate) fn zombie(&self) -> bool {
        self.state == TaskState::Zombie
    }

    /// The thread that runs what concerns the whole process.
    pub(crate) fn speaker(&self) -> Tid {
        self.threads.first().map_or(self.pid.leader(), |(tid, _)| *tid)
    }
}

/// Puts the tree together from its frames, and refuses what cannot be a tree.
pub(crate) fn assemble(tasks: &Tasks, records: &[(ObjectId, ProcessRecord)]) -> Result<Vec<StoredProcess>> {
    let unsound = |what: &str| Error::Unsound(format!("the process tree: {what}"));
    let mut processes = Vec::new();
    let known: BTreeSet<i32> = tasks.0.iter().map(|task| task.tgid).collect();
    let mut seen = BTreeSet::new();
    for (id, record) in records {
        let own: Vec<&Task> = tasks.0.iter().filter(|task| task.tgid == record.pid).collect();
        let leader =
            own.iter().find(|task| task.tid == record.pid).ok_or_else(|| unsound("a process without a leader"))?;
        let living: Vec<&&Task> =
            own.iter().filter(|task| matches!(task.state, TaskState::Running | TaskState::Stopped)).collect();
        if living.len() != record.threads.len() || !seen.insert(record.pid) {
            return Err(unsound("threads or processes that do not match their records"));
        }
        if leader.state != TaskState::Zombie && (living.is_empty() || record.mm == 0) {
            return Err(unsound("a living process without threads or memory"));
        }
        let parent = known.contains(&leader.ppid).then_some((Pid(leader.ppid), Tid(record.parent_tid)));
        let threads = living.iter().zip(&record.threads).map(|(task, id)| (Tid(task.tid), ObjectId(*id))).collect();
        processes.push(StoredProcess {
            id: *id,
            pid: Pid(record.pid),
            parent,
            sid: leader.sid,
            pgid: leader.pgid,
            session_leader: Leader::from_wire(record.session_leader)?,
            group_leader: Leader::from_wire(record.group_leader)?,
            exit_signal: leader.exit_signal,
            exit_status: leader.exit_status,
            state: leader.state,
            record: record.clone(),
            threads,
        });
    }
    if seen != known {
        return Err(unsound("a process without a record"));
    }
    in_order(processes).ok_or_else(|| unsound("a circle of parents"))
}

/// The deepest tree that an image may hold.
const DEPTH: usize = 4096;

/// Parents before children.
fn in_order(mut left: Vec<StoredProcess>) -> Option<Vec<StoredProcess>> {
    let mut done: Vec<StoredProcess> = Vec::new();
    let mut placed: BTreeSet<Pid> = BTreeSet::new();
    // The plan of births follows the depth of the tree by recursion: no real tree is as deep as this.
    for _ in 0..DEPTH {
        if left.is_empty() {
            return Some(done);
        }
        let (ready, rest): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|p| p.parent.is_none_or(|(pid, _)| placed.contains(&pid)));
        if ready.is_empty() {
            return None;
        }
        placed.extend(ready.iter().map(|p| p.pid));
        done.extend(ready);
        left = rest;
    }
    left.is_empty().then_some(done)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use super::*;

    #[test]
    fn a_session_without_its_leader_is_the_trees_own_only_when_all_members_are() {
        let script = "for i in 1 2; do sleep 60 > /dev/null & echo $!; done";
        let mut command = Command::new("setsid");
        let mut shell = command.args(["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(shell.stdout.take().unwrap()).lines();
        let members: Vec<Pid> = lines.map(|line| Pid(line.unwrap().parse().unwrap())).collect();
        shell.wait().unwrap();
        let members: [Pid; 2] = members.try_into().unwrap();
        let [first, second] = members;
        let stat = procfs::stat(first).unwrap();
        assert_eq!(stat.sid, shell.id().cast_signed());
        let leaders = [vec![first], vec![first, second]].map(|tree| Leaders::new(tree.into_iter().collect()));
        let places = || leaders.each_ref().map(|l| [l.of(stat.sid, Band::Session), l.of(stat.pgid, Band::Group)]);
        let expected = [[Leader::Outside; 2], [Leader::Dead; 2]];
        assert_eq!(places(), expected);
        let handles =
            members.map(|pid| pidfd_open(rustix::process::Pid::from_raw(pid.0).unwrap(), PidfdFlags::empty()));
        for handle in handles {
            let handle = handle.unwrap();
            pidfd_send_signal(&handle, Signal::KILL).unwrap();
            poll(&mut [PollFd::new(&handle, PollFlags::IN)], None).unwrap();
        }
        // Asked again, nobody is looked at again.
        assert_eq!(places(), expected);
    }
}
