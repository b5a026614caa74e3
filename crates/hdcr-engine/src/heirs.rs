//! Memory that children get from their parents at their birth: a parent with which a child shares much is filled before
//! that child is cloned, so that what both have is there once.

use std::collections::{BTreeMap, BTreeSet};

use hdcr_image::ImageReader;
use hdcr_image::hdcr_layout::MappingKind;

use crate::build::Space;
use crate::error::Result;
use crate::ids::{Pid, Tid};
use crate::memory::kin::{self, Inherited};
use crate::memory::lazy::Lazy;
use crate::memory::restore::StoredMm;
use crate::plan::{Maker, Step};
use crate::stored::Pages;
use crate::tree::StoredProcess;
use crate::works::Works;

/// Who has what when it is born.
#[derive(Debug, Default)]
pub(crate) struct Heirs {
    /// Processes to be filled at once.
    parents: BTreeSet<Pid>,
    /// Those that are.
    filled: BTreeSet<Pid>,
    /// Whose memory a process was born with.
    bases: BTreeMap<Pid, Pid>,
}

impl Heirs {
    /// Looks who shares enough with its parent.
    pub(crate) fn plan(
        image: &ImageReader,
        processes: &[StoredProcess],
        spaces: &BTreeMap<Pid, Space>,
        steps: &[Step],
    ) -> Self {
        let mut heirs = Self::default();
        for step in steps {
            let Step::Birth { pid, maker: Maker::Parent(tid), .. } = step else { continue };
            let parent = owner(processes, *tid);
            if heirs.parents.contains(&parent) {
                continue;
            }
            let (Some(theirs), Some(own)) = (spaces.get(&parent), spaces.get(pid)) else { continue };
            if can_give(&theirs.mm) && kin::inherited(image, &theirs.mm, &own.mm).is_worth() {
                heirs.parents.insert(parent);
            }
        }
        heirs
    }

    /// Notes a birth.
    fn born(&mut self, pid: Pid, maker: Pid) {
        let base = if self.filled.contains(&maker) { Some(maker) } else { self.bases.get(&maker).copied() };
        if let Some(base) = base {
            self.bases.insert(pid, base);
        }
    }

    /// Whether a process has its memory already.
    pub(crate) fn has(&self, pid: Pid) -> bool {
        self.filled.contains(&pid)
    }
}

/// The process of a thread; stand-ins have none but themselves.
fn owner(processes: &[StoredProcess], tid: Tid) -> Pid {
    let owner = processes.iter().find(|process| process.threads.iter().any(|(own, _)| *own == tid));
    owner.map_or(Pid(tid.0), |process| process.pid)
}

/// Whether what the kernel gives a process lies where it can be found in a clone of it.
fn can_give(mm: &StoredMm) -> bool {
    mm.forwarded_range().is_none() && mm.mappings.iter().any(|mapping| mapping.kind == MappingKind::Vdso)
}

impl Works<'_> {
    /// After a birth: notes what the child was born with, and fills it when children of its own are to get from it.
    pub(crate) fn settle(&mut self, pages: &Pages<'_>, spaces: &BTreeMap<Pid, Space>, step: &Step) -> Result<()> {
        let (pid, maker) = match step {
            Step::Birth { pid, maker, .. } | Step::StandIn { pid, maker } => (*pid, *maker),
            Step::Orphan { pid, member, .. } => (*pid, Maker::Parent(*member)),
            Step::Session(_) | Step::Group(..) | Step::EndStandIn { .. } | Step::EndZombie(..) | Step::EndLeader(_) => {
                return Ok(());
            }
        };
        if let Maker::Parent(tid) | Maker::Sibling(tid) = maker {
            let maker = owner(&self.model.processes, tid);
            self.heirs.born(pid, maker);
        }
        if self.heirs.parents.contains(&pid) {
            self.occupy(pages, spaces, &[pid], Lazy::Never)?;
            self.heirs.filled.insert(pid);
        }
        Ok(())
    }

    /// What a process was born with, and what of it may stay.
    pub(crate) fn born_with<'s>(
        &self,
        image: &ImageReader,
        spaces: &'s BTreeMap<Pid, Space>,
        pid: Pid,
    ) -> Option<(&'s StoredMm, Inherited)> {
        let base = spaces.get(self.heirs.bases.get(&pid)?)?;
        let own = spaces.get(&pid)?;
        Some((&base.mm, kin::inherited(image, &base.mm, &own.mm)))
    }
}
