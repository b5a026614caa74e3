//! The order in which a tree is born: pure, from who is whose child, in which session and group, to steps.
//!
//! A session can only be entered by birth, so a member is cloned by a task that is in it at that moment: its parent
//! before or after the parent's own `setsid`, a sibling with `CLONE_PARENT`, or a stand-in that takes the number of a dead
//! leader. Groups are joined afterwards, leaders first; a stand-in keeps the number of a dead group leader meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use hdcr_image::hdcr_layout::TaskState;

use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};
use crate::mechanism::End;
use crate::tree::{Leader, StoredProcess};

/// Who makes a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Maker {
    /// The restoring process; the child's parent is what the caller of the restore asked for.
    Restorer,
    /// A task, as its own child.
    Parent(Tid),
    /// A task, as its sibling.
    Sibling(Tid),
}

/// One step of the birth of a tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// A process of the tree is made; its threads follow at once.
    Birth {
        /// Its number.
        pid: Pid,
        /// By whom.
        maker: Maker,
        /// Signal to the parent at its end; 0 with [`Maker::Sibling`], which takes the sibling's.
        exit_signal: i32,
    },
    /// A process is made that came to its parent by the death of its own: a nameless stand-in in its session makes it and
    /// dies.
    Orphan {
        /// Its number.
        pid: Pid,
        /// A task of its session, below the new parent.
        member: Tid,
        /// Whose child it becomes, if that is in the tree.
        parent: Option<Pid>,
    },
    /// A stand-in with this number is made.
    StandIn {
        /// Its number, that of a dead leader.
        pid: Pid,
        /// By whom.
        maker: Maker,
    },
    /// The process begins a session.
    Session(Pid),
    /// The process enters a group of its session, or begins it when the number is its own.
    Group(Pid, i32),
    /// The stand-in has done its duty: it ends, and its parent (if that is a task of the tree) reaps it.
    EndStandIn {
        /// The stand-in.
        pid: Pid,
        /// Who reaps it; `None`: the parent of the roots.
        parent: Option<Tid>,
    },
    /// A zombie of the tree ends.
    EndZombie(Pid, End),
    /// A leader ends while its other threads live.
    EndLeader(Pid),
}

/// Where a session stands while the plan is made.
struct Planner<'a> {
    processes: &'a [StoredProcess],
    children: BTreeMap<Option<Pid>, Vec<usize>>,
    steps: Vec<Step>,
    /// Stand-ins with the thread that reaps them.
    stand_ins: BTreeMap<i32, Option<Tid>>,
    born: BTreeSet<Pid>,
}

/// A session as a plan sees it: all sessions led from outside are one, that of the restorer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Session {
    Restorers,
    Led(i32),
}

/// Makes the plan.
pub(crate) fn plan(processes: &[StoredProcess]) -> Result<Vec<Step>> {
    let mut children: BTreeMap<Option<Pid>, Vec<usize>> = BTreeMap::new();
    for (index, process) in processes.iter().enumerate() {
        children.entry(process.parent.map(|(pid, _)| pid)).or_default().push(index);
    }
    let mut planner =
        Planner { processes, children, steps: Vec::new(), stand_ins: BTreeMap::new(), born: BTreeSet::new() };
    planner.family(None, Session::Restorers)?;
    planner.groups();
    planner.ends();
    if planner.born.len() == processes.len() {
        Ok(planner.steps)
    } else {
        Err(Error::Unsound("a process that nobody can make".to_owned()))
    }
}

impl<'a> Planner<'a> {
    /// Makes the children of a process (or the roots), which stands in `born` until it begins a session of its own.
    fn family(&mut self, parent: Option<&'a StoredProcess>, born: Session) -> Result<()> {
        let own = parent.map(session);
        let begins = own.is_some_and(|own| own != born);
        let children: Vec<&'a StoredProcess> = self.of(parent);
        // Born into the session that the parent leaves (daemons), or into the only one it has.
        for child in children.iter().filter(|child| session(child) == born && begins) {
            self.birth(child, maker_of(parent, child), born)?;
        }
        if let (Some(parent), true) = (parent, begins) {
            if parent.sid != parent.pid.0 {
                return Err(Error::Unsound(format!(
                    "process {} is in a session that it cannot have entered",
                    parent.pid
                )));
            }
            self.steps.push(Step::Session(parent.pid));
        }
        let stands = own.unwrap_or(born);
        for child in children.iter().filter(|child| session(child) == stands || leads(child)) {
            if !self.born.contains(&child.pid) {
                self.birth(child, maker_of(parent, child), stands)?;
            }
        }
        for child in &children {
            if !self.born.contains(&child.pid) {
                self.stranger(parent, child, &children, stands)?;
            }
        }
        Ok(())
    }

    /// Makes a child of a session that is neither its parent's nor its own.
    fn stranger(
        &mut self,
        parent: Option<&'a StoredProcess>,
        child: &'a StoredProcess,
        siblings: &[&'a StoredProcess],
        stands: Session,
    ) -> Result<()> {
        let theirs = session(child);
        let member =
            siblings.iter().find(|other| self.born.contains(&other.pid) && session(other) == theirs && !other.zombie());
        if let Some(member) = member {
            return self.birth(child, Maker::Sibling(member.speaker()), theirs);
        }
        if child.session_leader != Leader::Dead {
            return self.orphan(parent, child);
        }
        if !self.stand_ins.contains_key(&child.sid) {
            let maker = maker_of(parent, child);
            self.steps.push(Step::StandIn { pid: Pid(child.sid), maker });
            self.steps.push(Step::Session(Pid(child.sid)));
            self.stand_ins.insert(child.sid, tid_of(maker));
        }
        debug_assert_ne!(stands, theirs);
        self.birth(child, Maker::Sibling(Tid(child.sid)), theirs)
    }

    /// A child that came to its parent by the death of its own, from a session led elsewhere in the tree. The only member left of
    /// it may be a zombie, which lives until all are born.
    fn orphan(&mut self, parent: Option<&'a StoredProcess>, child: &'a StoredProcess) -> Result<()> {
        let mut members = self.processes.iter().filter(|other| {
            session(other) == session(child) && self.born.contains(&other.pid) && self.below(other, parent)
        });
        let living = members.clone().find(|other| !other.zombie());
        let member = living.or_else(|| members.next());
        let member = member.ok_or_else(|| {
            Error::Unsound(format!(
                "process {} is in session {}, which none can be in where it is",
                child.pid, child.sid
            ))
        })?;
        self.steps.push(Step::Orphan {
            pid: child.pid,
            member: member.speaker(),
            parent: parent.map(|parent| parent.pid),
        });
        self.born.insert(child.pid);
        self.family(Some(child), session(child))
    }

    /// Whether a process is a descendant of another one (or of the keeper).
    fn below(&self, process: &StoredProcess, ancestor: Option<&StoredProcess>) -> bool {
        let Some(ancestor) = ancestor else { return true };
        let mut at = process.parent;
        while let Some((pid, _)) = at {
            if pid == ancestor.pid {
                return true;
            }
            at = self.processes.iter().find(|other| other.pid == pid).and_then(|other| other.parent);
        }
        false
    }

    fn birth(&mut self, child: &'a StoredProcess, maker: Maker, born: Session) -> Result<()> {
        let exit_signal = if matches!(maker, Maker::Sibling(_)) { 0 } else { child.exit_signal };
        self.steps.push(Step::Birth { pid: child.pid, maker, exit_signal });
        self.born.insert(child.pid);
        self.family(Some(child), born)
    }

    fn of(&self, parent: Option<&StoredProcess>) -> Vec<&'a StoredProcess> {
        let indices = self.children.get(&parent.map(|parent| parent.pid));
        indices.into_iter().flatten().filter_map(|index| self.processes.get(*index)).collect()
    }

    /// Groups, once all are born: leaders, stand-ins for dead leaders, members.
    fn groups(&mut self) {
        let processes = self.processes;
        for leader in processes.iter().filter(|p| p.pgid == p.pid.0 && !leads(p)) {
            self.steps.push(Step::Group(leader.pid, leader.pgid));
        }
        let members =
            || processes.iter().filter(|p| p.pgid != p.pid.0 && !leads(p) && p.group_leader != Leader::Outside);
        for member in members().filter(|p| p.group_leader == Leader::Dead) {
            if self.stand_ins.contains_key(&member.pgid) || self.steps.contains(&Step::Session(Pid(member.pgid))) {
                continue;
            }
            let maker =
                members().find(|other| other.pgid == member.pgid && !other.zombie()).unwrap_or(member).speaker();
            self.steps.push(Step::StandIn { pid: Pid(member.pgid), maker: Maker::Parent(maker) });
            self.steps.push(Step::Group(Pid(member.pgid), member.pgid));
            self.stand_ins.insert(member.pgid, Some(maker));
        }
        for member in members() {
            self.steps.push(Step::Group(member.pid, member.pgid));
        }
    }

    /// Stand-ins, zombies and dead leaders end when all others have what they need of them.
    fn ends(&mut self) {
        for (pid, parent) in &self.stand_ins {
            self.steps.push(Step::EndStandIn { pid: Pid(*pid), parent: *parent });
        }
        for process in self.processes {
            match process.state {
                TaskState::Zombie => self.steps.push(Step::EndZombie(process.pid, end_of(process.exit_status))),
                TaskState::DeadLeader => self.steps.push(Step::EndLeader(process.pid)),
                TaskState::Running | TaskState::Stopped => {}
            }
        }
    }
}

/// The thread whose child a process is. It may have ended since; the kernel then gave the child to another one.
fn maker_of(parent: Option<&StoredProcess>, child: &StoredProcess) -> Maker {
    let Some(parent) = parent else { return Maker::Restorer };
    let named = child.parent.map(|(_, tid)| tid).filter(|tid| parent.threads.iter().any(|(own, _)| own == tid));
    Maker::Parent(named.unwrap_or_else(|| parent.speaker()))
}

fn session(process: &StoredProcess) -> Session {
    match process.session_leader {
        Leader::Outside => Session::Restorers,
        Leader::InTree | Leader::Dead => Session::Led(process.sid),
    }
}

fn leads(process: &StoredProcess) -> bool {
    process.sid == process.pid.0
}

fn tid_of(maker: Maker) -> Option<Tid> {
    match maker {
        Maker::Parent(tid) => Some(tid),
        Maker::Restorer | Maker::Sibling(_) => None,
    }
}

/// How a process with this `wait` status ended.
fn end_of(status: i32) -> End {
    let signal = status & 0x7f;
    if signal == 0 { End::Exit(status >> 8 & 0xff) } else { End::Signal(signal) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectId;
    use crate::tree::ProcessRecord;

    /// A process by (pid, ppid, sid, pgid); numbers below 10 lie outside, numbers above 900 are dead.
    fn process((pid, parent, sid, group): (i32, i32, i32, i32)) -> StoredProcess {
        let leader = |number| match number {
            0..10 => Leader::Outside,
            901.. => Leader::Dead,
            _ => Leader::InTree,
        };
        StoredProcess {
            id: ObjectId(0),
            pid: Pid(pid),
            parent: (parent >= 10).then_some((Pid(parent), Tid(parent))),
            sid,
            pgid: group,
            session_leader: leader(sid),
            group_leader: leader(group),
            exit_signal: 17,
            exit_status: 0,
            state: TaskState::Running,
            record: ProcessRecord::default(),
            threads: vec![(Tid(pid), ObjectId(0))],
        }
    }

    fn check(tree: &[(i32, i32, i32, i32)], expected: &str) {
        let processes: Vec<StoredProcess> = tree.iter().copied().map(process).collect();
        let words = match plan(&processes) {
            Ok(steps) => steps.iter().map(word).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(words, expected);
    }

    fn word(step: &Step) -> String {
        let by = |maker: &Maker| match maker {
            Maker::Restorer => "us".to_owned(),
            Maker::Parent(tid) => tid.to_string(),
            Maker::Sibling(tid) => format!("~{tid}"),
        };
        match step {
            Step::Birth { pid, maker, .. } => format!("{pid}<{}", by(maker)),
            Step::Orphan { pid, member, .. } => format!("{pid}<{member}+"),
            Step::StandIn { pid, maker } => format!("({pid})<{}", by(maker)),
            Step::Session(pid) => format!("{pid}:sid"),
            Step::Group(pid, group) => format!("{pid}:pg{group}"),
            Step::EndStandIn { pid, .. } => format!("-({pid})"),
            Step::EndZombie(pid, _) | Step::EndLeader(pid) => format!("-{pid}"),
        }
    }

    #[test]
    fn a_shell_job_keeps_to_the_session_of_the_restorer() {
        check(&[(10, 1, 5, 10), (11, 10, 5, 10), (12, 10, 5, 12)], "10<us 11<10 12<10 10:pg10 12:pg12 11:pg10");
    }

    #[test]
    fn a_child_of_the_old_session_is_born_before_the_parent_leaves_it() {
        check(
            &[(10, 1, 5, 5), (11, 10, 11, 11), (12, 11, 5, 5), (13, 11, 11, 11)],
            "10<us 11<10 12<11 11:sid 13<11 13:pg11",
        );
    }

    #[test]
    fn a_member_of_a_siblings_session_is_born_as_its_sibling() {
        check(&[(10, 1, 10, 10), (11, 10, 11, 11), (12, 10, 11, 11)], "10<us 10:sid 11<10 11:sid 12<~11 12:pg11");
    }

    #[test]
    fn a_dead_session_leader_has_a_stand_in() {
        check(&[(10, 1, 10, 10), (12, 10, 950, 950)], "10<us 10:sid (950)<10 950:sid 12<~950 12:pg950 -(950)");
    }

    #[test]
    fn an_orphan_of_a_session_below_comes_to_the_keeper() {
        check(&[(10, 1, 10, 10), (11, 10, 11, 11), (12, 1, 11, 11)], "10<us 10:sid 11<10 11:sid 12<11+ 12:pg11");
    }

    /// A daemon whose maker has ended and was not waited for.
    #[test]
    fn a_zombie_that_leads_a_session_makes_its_orphans() {
        let mut leader = process((11, 10, 11, 11));
        leader.state = TaskState::Zombie;
        let processes = [process((10, 1, 10, 10)), leader, process((12, 1, 11, 11)), process((13, 10, 11, 11))];
        let words: Vec<String> = plan(&processes).unwrap().iter().map(word).collect();
        assert_eq!(words.join(" "), "10<us 10:sid 11<10 11:sid 13<11+ 12<13+ 12:pg11 13:pg11 -11");
    }

    #[test]
    fn a_dead_group_leader_has_a_stand_in() {
        check(
            &[(10, 1, 10, 10), (12, 10, 10, 960), (13, 10, 10, 960)],
            "10<us 10:sid 12<10 13<10 (960)<12 960:pg960 12:pg960 13:pg960 -(960)",
        );
    }

    #[test]
    fn what_cannot_have_come_about_is_refused() {
        let processes = [process((10, 1, 11, 10)), process((11, 10, 11, 11))];
        assert!(plan(&processes).is_err());
    }
}
