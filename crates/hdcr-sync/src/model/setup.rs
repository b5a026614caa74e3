//! What a search or a simulation is about, and the world that it begins with.

use std::collections::{BTreeMap, BTreeSet};

use super::effects::share;
use super::world::{Flow, Seat};
use super::{Host, Programs, World};
use crate::ids::{Author, Boot, Incarnation, Member, Round, Term};
use crate::ledger::{Decision, Entry};
use crate::manifest::{EpochManifest, Share, ShareId};
use crate::participant::{Found, Participant};
use crate::rules::Rules;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) checkpoints: u8,
    pub(crate) leases: u8,
    pub(crate) deadlines: u8,
    pub(crate) agents: u8,
    pub(crate) hosts: u8,
    pub(crate) coordinators: u8,
    pub(crate) suspicions: u8,
    pub(crate) unknowns: u8,
    pub(crate) failures: u8,
    pub(crate) deaths: u8,
    pub(crate) ends: u8,
    pub(crate) arrivals: u8,
    pub(crate) power: u8,
    pub(crate) packets: u8,
    pub(crate) boots: u8,
}

/// What a search is about.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Setup {
    pub(crate) rules: Rules,
    pub(crate) members: u32,
    /// Hosts beyond the members, with nothing on them.
    pub(crate) spares: u32,
    /// How many coordinators there can be, at once if they like.
    pub(crate) coordinators: usize,
    /// Whether a checkpoint is committed at the beginning.
    pub(crate) has_line: bool,
    /// Whether the first of the members is dead at the beginning.
    pub(crate) is_struck: bool,
    /// Whether the engine takes its time, so that something may happen in between.
    pub(crate) is_slow: bool,
    /// What a kernel or a store could do wrong.
    pub(crate) fault: Fault,
    pub(crate) budget: Budget,
}

/// What is promised from below the protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// The hold lets packets through.
    LeakyHold,
    /// Shares are said to be written before they are synced.
    UnsyncedShares,
    /// Entries are said to be written before they are synced.
    UnsyncedLedger,
}

impl Setup {
    pub(crate) fn world(&self) -> World {
        let members: BTreeSet<Member> = (0..self.members).map(Member).collect();
        let first = Round::default();
        let shares: Vec<Share> = members.iter().map(|member| share(*member, Vec::new())).collect();
        let manifest = EpochManifest { round: first, incarnation: Incarnation(0), previous: None, shares };
        let (line, decision) =
            if self.has_line { (Some(first), Decision::Commit(manifest)) } else { (None, Decision::View) };
        let entry = Entry {
            author: Author(0),
            term: Term(0),
            incarnation: Incarnation(0),
            view: members.clone(),
            joined: BTreeSet::new(),
            suspects: BTreeSet::new(),
            line,
            decision,
        };
        let hosts = (0..self.members + self.spares).map(|number| {
            let mut host = Host::dead();
            let member = Member(number);
            let is_dead = self.is_struck && number == 0;
            if number < self.members && !is_dead {
                host.programs = Programs::Running(Incarnation(0));
            }
            let found = if number < self.members { Found::Tasks(Incarnation(0)) } else { Found::Nothing };
            host.agent = (!is_dead).then(|| Participant::with(self.rules, member, Boot(0), Some(&entry), found));
            host
        });
        let hosts = hosts.collect();
        let pairs = members.iter().flat_map(|a| members.iter().map(|b| (*a, *b))).filter(|(a, b)| a != b);
        let has_traffic = self.budget.packets > 0;
        let seat = Seat {
            machine: None,
            is_started: false,
            write: None,
            timer: None,
            excluding: BTreeSet::new(),
            collecting: None,
        };
        World {
            seats: vec![seat; self.coordinators],
            hosts,
            net: BTreeSet::new(),
            shares: manifest_shares(&entry),
            ledger: vec![(entry, true)],
            adrift: BTreeSet::new(),
            flows: pairs.filter(|_| has_traffic).map(|pair| (pair, Flow::default())).collect(),
            ends: BTreeMap::new(),
            cuts: BTreeMap::new(),
            told: BTreeSet::new(),
            denied: BTreeSet::new(),
            built: BTreeMap::new(),
            ran: BTreeSet::new(),
            lost: BTreeSet::new(),
            sent: None,
            wrong: BTreeSet::new(),
            left: self.budget,
        }
    }
}

fn manifest_shares(entry: &Entry) -> BTreeMap<ShareId, bool> {
    match &entry.decision {
        Decision::Commit(manifest) => manifest.share_ids().map(|id| (id, true)).collect(),
        Decision::Claim | Decision::View | Decision::Rollback => BTreeMap::new(),
    }
}
