//! One host of the model: its programs, its kernel's hold, its engine, its agent.

use std::collections::BTreeSet;

use crate::ids::{Boot, Incarnation, Round, Stamp};
use crate::manifest::ShareId;
use crate::participant::{Participant, Work};

/// The tasks of the job on a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Programs {
    None,
    Waiting,
    Running(Incarnation),
    Frozen(Incarnation),
    Gate(Incarnation),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Host {
    pub(crate) agent: Option<Participant>,
    pub(crate) boot: Boot,
    pub(crate) programs: Programs,
    /// What the programs were restored from; empty in the first incarnation.
    pub(crate) origin: BTreeSet<ShareId>,
    pub(crate) is_held: bool,
    pub(crate) work: Option<(Work, Stamp)>,
    pub(crate) lease: Option<Stamp>,
    pub(crate) image: Option<Round>,
    /// Its tasks have ended, and the agent was not told yet.
    pub(crate) has_news: bool,
}

impl Host {
    pub(crate) fn dead() -> Self {
        Host {
            agent: None,
            boot: Boot::default(),
            programs: Programs::None,
            origin: BTreeSet::new(),
            is_held: false,
            work: None,
            lease: None,
            image: None,
            has_news: false,
        }
    }

    /// All gone: power, or a fence from outside.
    pub(crate) fn die(&mut self) {
        *self = Host { boot: self.boot, ..Host::dead() };
    }

    /// The agent's process is killed: its kernel thaws what it held, and ends what it was building.
    pub(crate) fn agent_dies(&mut self) {
        self.agent = None;
        self.work = None;
        self.lease = None;
        self.image = None;
        self.has_news = false;
        self.thaw();
        if matches!(self.programs, Programs::Gate(_) | Programs::Waiting) {
            self.kill();
        }
    }

    pub(crate) fn thaw(&mut self) {
        self.is_held = false;
        if let Programs::Frozen(incarnation) = self.programs {
            self.programs = Programs::Running(incarnation);
        }
    }

    pub(crate) fn kill(&mut self) {
        self.programs = Programs::None;
        self.origin.clear();
        self.is_held = false;
    }

    /// The run that the programs belong to, unless they have never run.
    pub(crate) fn runs(&self) -> Option<Incarnation> {
        match self.programs {
            Programs::Running(incarnation) | Programs::Frozen(incarnation) => Some(incarnation),
            Programs::None | Programs::Waiting | Programs::Gate(_) => None,
        }
    }

    /// Whether nothing of it can change a captured state.
    pub(crate) fn is_still(&self) -> bool {
        match self.programs {
            Programs::Running(_) => false,
            Programs::Frozen(_) => self.is_held,
            Programs::None | Programs::Waiting | Programs::Gate(_) => true,
        }
    }
}
