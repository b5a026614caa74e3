//! The record of one coordinated checkpoint over all hosts: its being written is the commit.

use std::collections::BTreeSet;

use crate::channel::{self, ChannelEnd, Inconsistent};
use crate::ids::{Incarnation, Member, Round};

/// What one participant has written in one round, by name. The name is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareId {
    /// In which round.
    pub round: Round,
    /// By whom.
    pub member: Member,
}

/// What one participant has written in one round.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share {
    /// By whom.
    pub member: Member,
    /// How many tasks are in it.
    pub tasks: u32,
    /// How long it is.
    pub bytes: u64,
    /// Of its root manifest, which has the digests of all the rest.
    pub digest: [u8; 32],
    /// Connections with sequence numbers, as captured.
    pub channels: Vec<ChannelEnd>,
}

/// One committed checkpoint of the whole job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochManifest {
    /// Which.
    pub round: Round,
    /// Of which run of the job.
    pub incarnation: Incarnation,
    /// The one committed before, to fall back on.
    pub previous: Option<Round>,
    /// One for each member of the view, in the order of members.
    pub shares: Vec<Share>,
}

/// Why a manifest may not be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsound {
    /// The shares are not those of the view.
    Members,
    /// The cut is not consistent.
    Channels(Inconsistent),
}

impl EpochManifest {
    /// Names of all shares.
    pub fn share_ids(&self) -> impl Iterator<Item = ShareId> + '_ {
        self.shares.iter().map(|share| ShareId { round: self.round, member: share.member })
    }

    /// Whether all members of the view are in it, once each.
    pub fn covers(&self, view: &BTreeSet<Member>) -> bool {
        self.shares.iter().map(|share| share.member).eq(view.iter().copied())
    }

    /// Compares both ends of every connection inside the job.
    pub fn check_channels(&self) -> Result<(), Inconsistent> {
        let ends = self.shares.iter().flat_map(|s| s.channels.iter().map(move |end| (s.member, end)));
        channel::check(ends)
    }
}
