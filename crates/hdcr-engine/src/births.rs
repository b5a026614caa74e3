//! The steps of the plan, done in the nursery: processes, threads, stand-ins, sessions, groups, zombies.

use std::time::Duration;

use nix::libc;

use crate::batch::Arg;
use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};
use crate::mechanism::{self, Birth, MechanismError, Parent};
use crate::memory::overlap;
use crate::memory::restore::{self as space};
use crate::model::ObjectId;
use crate::plan::{Maker, Step};
use crate::procfs::{self, MapLine};
use crate::restore::{Restore, THREAD_FLAGS, TaskBatch};
use crate::stored::{self, Model};
use crate::task::Stage;
use crate::works::Works;

impl Works<'_> {
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
                let parent = self.model.processes.iter().find(|p| p.pid == *pid).and_then(|p| p.parent);
                if let Some((parent, _)) = parent {
                    self.limits_of(cx, parent, *pid)?;
                }
                self.nursery.end(pid.leader(), *end)?;
                parent.map_or(Ok(()), |(pid, _)| self.forget_child_signal(pid.leader()))
            }
            Step::EndLeader(pid) => {
                self.name(*pid)?;
                Ok(self.nursery.end(pid.leader(), mechanism::End::Exit(self.status(*pid)))?)
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
        if births.is_empty() { Ok(()) } else { self.born(&births) }
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
        self.born(&[birth(stand_in, Some(pid.leader()))])?;
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
        self.born(&[birth])?;
        if maker == Maker::Restorer && self.step_parent.is_none() {
            self.empty(pid)?;
        }
        Ok(())
    }

    fn born(&mut self, births: &[Birth]) -> Result<()> {
        const PAUSE: Duration = Duration::from_millis(20);
        born(births, PAUSE, &mut |births| self.nursery.birth(births))
    }

    /// Takes everything of this process out of a root's memory: its children then cost next to nothing.
    pub(crate) fn empty(&mut self, pid: Pid) -> Result<()> {
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

    /// The limits of a zombie are not kept, as nothing asks for them any more. It has those of its parent, from which they
    /// mostly came, and not those of the restoring process.
    fn limits_of(&mut self, cx: &Restore<'_>, parent: Pid, pid: Pid) -> Result<()> {
        let Some(parent) = self.model.processes.iter().find(|process| process.pid == parent) else { return Ok(()) };
        let batch = parent.threads.iter().find_map(|(tid, _)| cx.batches.get(&(Stage::Limits, *tid)));
        batch.map_or(Ok(()), |batch| self.run_one(pid.leader(), batch.clone()))
    }

    fn end_stand_in(&mut self, pid: Pid, parent: Option<Tid>) -> Result<()> {
        self.nursery.end(pid.leader(), mechanism::End::Exit(0))?;
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
}

/// Makes tasks of one parent, and waits a moment for a number that somebody short-lived has got since all were looked at.
fn born(
    births: &[Birth],
    pause: Duration,
    birth: &mut dyn FnMut(&[Birth]) -> mechanism::Result<Vec<Tid>>,
) -> Result<()> {
    const TRIES: usize = 100;
    let mut left = births;
    let mut tries = 0;
    loop {
        let taken = match birth(left) {
            Err(MechanismError::System { source, tid, .. }) if source.raw_os_error() == Some(libc::EEXIST) => tid,
            other => return other.map(drop).map_err(Error::from),
        };
        // Those before it are made.
        let at = left.iter().position(|birth| birth.tid == Some(taken)).unwrap_or(0);
        tries = if at > 0 { 1 } else { tries + 1 };
        left = left.get(at..).unwrap_or_default();
        if tries == TRIES {
            let holder = stored::holder_of(taken.0, &procfs::bands()).map(|holder| holder.cause);
            let holder = holder.unwrap_or_else(|| "somebody had it, who has ended since".to_owned());
            return Err(Error::refuse(stored::taken(taken.0, holder)));
        }
        std::thread::sleep(pause);
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
fn procfs_comm(model: &Model, pid: Pid) -> Vec<u8> {
    let Some(frame) = model.frames.get(&(<crate::tree::Tasks as hdcr_image::Record>::TAG.0, ObjectId(0))) else {
        return Vec::new();
    };
    let Ok(tasks) = crate::model::decode::<crate::tree::Tasks>(frame.version, &frame.body) else { return Vec::new() };
    let task = tasks.0.iter().find(|task| task.tid == pid.0);
    task.map(|task| task.comm.iter().copied().take_while(|byte| *byte != 0).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that are taken for so many tries; which calls were made, and what came of it.
    fn check(taken: &mut [(i32, usize)], expected: &[&[i32]]) -> Result<()> {
        let births = [3, 4, 5].map(|tid| thread_of(Pid(2), Tid(tid)));
        let mut calls: Vec<Vec<i32>> = Vec::new();
        let result = born(&births, Duration::ZERO, &mut |births| {
            calls.push(births.iter().filter_map(|birth| birth.tid).map(|tid| tid.0).collect());
            for tid in births.iter().filter_map(|birth| birth.tid) {
                if let Some((_, left)) = taken.iter_mut().find(|(number, left)| *number == tid.0 && *left > 0) {
                    *left -= 1;
                    let source = std::io::Error::from_raw_os_error(libc::EEXIST);
                    return Err(MechanismError::System { operation: "cloning it", tid, source });
                }
            }
            Ok(Vec::new())
        });
        calls.dedup();
        assert_eq!(calls, expected);
        result
    }

    #[test]
    fn a_number_that_is_taken_is_waited_for_and_its_holder_named() {
        check(&mut [], &[&[3, 4, 5]]).unwrap();
        check(&mut [(4, 7), (5, 99)], &[&[3, 4, 5], &[4, 5], &[5]]).unwrap();
        let refused = check(&mut [(4, 1000)], &[&[3, 4, 5], &[4, 5]]).unwrap_err();
        let Error::Refused(refusals) = refused else { panic!("{refused}") };
        assert_eq!((refusals.0[0].code, refusals.0[0].owner.pid), ("pid-taken", Some(Pid(4))));
    }
}
