//! The look before the leap: what a tree holds and what stands in the way, found while it runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Refusal, Refusals};
use crate::ids::Pid;
use crate::resource::FileView;

/// A survey in progress.
#[derive(Debug)]
pub struct Survey<'a> {
    /// The processes of the tree.
    pub(crate) pids: &'a BTreeSet<Pid>,
    /// Every descriptor of every process of the tree.
    pub(crate) files: &'a [FileView],
    /// What stands in the way so far.
    pub(crate) refusals: Refusals,
    /// What does not stand in the way, but what a user should know (ends outside the tree and what becomes of them).
    pub(crate) notes: Vec<Refusal>,
    /// Places of [`Survey::files`] by inode.
    pub(crate) by_inode: BTreeMap<u64, Vec<usize>>,
}

impl Survey<'_> {
    /// Adds an obstacle.
    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        self.refusals.0.push(refusal);
    }

    /// Adds a remark.
    pub(crate) fn note(&mut self, note: Refusal) {
        self.notes.push(note);
    }

    /// The descriptors of the tree that lead to an inode.
    pub(crate) fn with_inode(&self, inode: u64) -> impl Iterator<Item = &FileView> {
        self.by_inode.get(&inode).into_iter().flatten().filter_map(|at| self.files.get(*at))
    }
}
