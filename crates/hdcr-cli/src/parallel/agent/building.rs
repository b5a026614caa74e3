//! A restore that is held until all hosts have built theirs.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use hdcr::Reason;
use hdcr_sync::ids::Stamp;
use hdcr_sync::manifest::ShareId;
use hdcr_sync::participant::{Event, Work};

use super::super::ledger::Ledger;
use super::super::room::damaged;
use super::super::{letter::Notice, shares};
use super::Agent;
use super::programs::After;
use crate::failure::{Class, Failure, Result};
use crate::foreground::KILL_LIMIT;
use crate::job::make_private;
use crate::kinds::Lazy;
use crate::namespace;
use crate::parts;
use crate::settings::restore_time;
use crate::task::{Gate, Greeting, Permit, Place, Reply, RestoreTask, Task};
use crate::worker::Worker;

/// Workers that build what belongs here.
#[derive(Debug)]
pub(super) struct Building {
    stamp: Stamp,
    shares: BTreeSet<ShareId>,
    builders: Vec<Builder>,
    /// They were told to let go.
    is_released: bool,
    /// Else all of it is killed.
    pub(super) until: Instant,
}

/// One of them.
#[derive(Debug)]
struct Builder {
    worker: Worker,
    id: ShareId,
    is_built: bool,
    /// The first processes, when they run.
    roots: Option<Vec<i32>>,
    /// The worker has ended, too: until then it would be one of the programs to a checkpoint.
    has_ended: bool,
}

impl Building {
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let talking = self.builders.iter().filter(|builder| builder.roots.is_none());
        talking.map(|builder| builder.worker.as_fd())
    }

    /// What is being done.
    fn work(&self) -> Work {
        if self.is_released { Work::Release } else { Work::Restore(self.shares.clone()) }
    }
}

impl Agent {
    /// Starts a worker for each share.
    pub(super) fn begin_building(&mut self, shares: BTreeSet<ShareId>, stamp: Stamp) {
        let (builders, until) = (Vec::new(), Instant::now());
        self.building = Some(Building { stamp, shares, builders, is_released: false, until });
        if let Err(failure) = self.start_builders() {
            self.building_failed(failure);
        }
    }

    fn start_builders(&mut self) -> Result<()> {
        let Some(building) = &mut self.building else { return Ok(()) };
        let ledger = Ledger::open(&self.life)?;
        let mut needed = BTreeSet::new();
        let mut tasks = Vec::new();
        let mut longest = Duration::ZERO;
        for id in &building.shares {
            let image = shares::image(&self.life, *id);
            let manifest = ledger.manifest(id.round)?;
            let share = manifest.iter().flat_map(|manifest| &manifest.shares).find(|share| share.member == id.member);
            let share = share.ok_or_else(|| damaged(&image, "it was never committed"))?;
            shares::verify(&self.life, id.round, share)?;
            let place = Place::Path(image);
            needed.extend(parts::numbers_needed(&place)?);
            let timeout = restore_time(self.spec.restore, share.bytes);
            longest = longest.max(timeout);
            let journals = self.life.file("journals").join(id.member.0.to_string());
            make_private(&journals)?;
            tasks.push((
                *id,
                RestoreTask {
                    place,
                    journals,
                    map_path: Vec::new(),
                    since: None,
                    // The time at the gate is none of its own.
                    timeout: timeout.saturating_add(self.spec.lease.saturating_mul(4)),
                    detach: false,
                    lazy: Lazy::Never,
                    progress: false,
                    by_gates: Some(self.spec.lease.saturating_mul(8)),
                    greeting: Greeting { count: stamp_count(building.stamp), reason: Reason::Crash, control: None },
                },
            ));
        }
        building.until = Instant::now() + longest.saturating_add(KILL_LIMIT);
        namespace::next_pid_after(needed.last().copied().unwrap_or(0).saturating_add(64));
        let stdio: Vec<BorrowedFd<'_>> = self.stdio.iter().map(std::os::fd::AsFd::as_fd).collect();
        for (id, task) in tasks {
            let worker = Worker::start(&Task::Restore(task), &stdio, &needed)?;
            building.builders.push(Builder { worker, id, is_built: false, roots: None, has_ended: false });
        }
        Ok(())
    }

    /// All hosts have built theirs.
    pub(super) fn release(&mut self, stamp: Stamp) {
        let Some(building) = self.building.as_mut().filter(|building| building.stamp == stamp) else {
            return self.events.push_back(Event::Failed(Work::Release, stamp));
        };
        building.is_released = true;
        building.until = Instant::now() + KILL_LIMIT;
        let told = building.builders.iter().try_for_each(|builder| builder.worker.tell(&Permit::Granted));
        if let Err(failure) = told {
            self.building_failed(failure);
        }
    }

    /// What the workers say.
    pub(super) fn on_builders(&mut self) {
        while let Some(building) = &mut self.building {
            let said = |builder: &&mut Builder| builder.roots.is_none() && builder.worker.has_said();
            let Some(builder) = building.builders.iter_mut().find(said) else { return };
            match builder.worker.answer() {
                Ok(Reply::Failed(failure)) | Err(failure) => return self.building_failed(failure),
                Ok(Reply::At(Gate::Built)) => {
                    builder.is_built = true;
                    self.look_whether_built();
                }
                Ok(Reply::Restored(restored)) => builder.roots = Some(restored.roots),
                Ok(_) => {}
            }
        }
    }

    /// A child has ended, which may be a worker that has done its work.
    pub(super) fn builder_ended(&mut self, pid: i32) -> bool {
        let mut builders = self.building.iter_mut().flat_map(|building| &mut building.builders);
        let Some(builder) = builders.find(|builder| builder.worker.pid() == pid) else { return false };
        builder.has_ended = true;
        true
    }

    fn look_whether_built(&mut self) {
        let Some(building) = &mut self.building else { return };
        if building.builders.iter().all(|builder| builder.is_built) {
            // From here on a lease of the protocol counts.
            building.until = Instant::now() + self.spec.lease.saturating_mul(8);
            self.events.push_back(Event::Done(building.work(), building.stamp));
        }
    }

    /// Whether all runs, and nothing of the restore is left.
    pub(super) fn look_whether_running(&mut self) {
        let has_come = |builder: &Builder| builder.roots.is_some() && builder.has_ended;
        let runs = |building: &mut Building| building.is_released && building.builders.iter().all(has_come);
        let Some(building) = self.building.take_if(runs) else { return };
        for builder in &building.builders {
            match shares::programs(&self.life, builder.id) {
                Ok(programs) => self.programs.come_back(&programs, builder.roots.as_deref().unwrap_or_default()),
                Err(failure) => {
                    self.building = Some(building);
                    return self.building_failed(failure);
                }
            }
        }
        self.events.push_back(Event::Done(Work::Release, building.stamp));
        // After that one: the end of what does not run yet would be unknown.
        self.look_for_early_ends();
    }

    pub(super) fn end_late_building(&mut self, now: Instant) {
        if self.building.as_ref().is_some_and(|building| building.until <= now) {
            self.building_failed(Failure::new(Class::Failed, "restore-late", "the restore takes too long"));
        }
    }

    /// What was built is of no use alone.
    fn building_failed(&mut self, failure: Failure) {
        let Some(building) = self.building.take() else { return };
        self.tell(Notice::Failed(failure));
        self.kill_all(After::Failed(building.work(), building.stamp));
    }
}

/// How often the job was brought back.
fn stamp_count(stamp: Stamp) -> u64 {
    stamp.incarnation.0
}
