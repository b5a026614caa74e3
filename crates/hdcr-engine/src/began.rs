//! When the processes of a tree began: a number in what a dead process has left behind may be one of the tree's by now.

use std::collections::{BTreeMap, BTreeSet};

use rustix::time::{ClockId, clock_gettime};

use crate::ids::Pid;
use crate::procfs::{self, Stat};

/// The processes of a tree, and when each began, in whole seconds of the clock by which the kernel dates System V objects.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Began(BTreeMap<Pid, i64>);

/// Both times are of whole seconds, and of clocks that are read one after the other.
const SLACK: i64 = 1;

impl Began {
    /// Looks at every process. One that cannot be looked at is taken for an old one.
    pub(crate) fn of(tree: &BTreeSet<Pid>) -> Self {
        let boot = clock_gettime(ClockId::Realtime).tv_sec - clock_gettime(ClockId::Boottime).tv_sec;
        let ticks = i64::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100).max(1);
        let began = |pid: Pid| Some(boot + procfs::stat(pid).ok()?.field(22)? / ticks);
        Self(tree.iter().map(|pid| (*pid, began(*pid).unwrap_or(i64::MIN))).collect())
    }

    #[cfg(test)]
    pub(crate) fn at(tree: &[(i32, i64)]) -> Self {
        Self(tree.iter().map(|(pid, began)| (Pid(*pid), *began)).collect())
    }

    /// Whether a process of the tree has this number now.
    pub(crate) fn has(&self, pid: Pid) -> bool {
        self.0.contains_key(&pid)
    }

    /// Whether it was a process of the tree that did this, with this number: it had begun by then.
    pub(crate) fn did(&self, pid: Pid, when: i64) -> bool {
        self.0.get(&pid).is_some_and(|began| *began <= when.saturating_add(SLACK))
    }
}

/// A process that has only just begun is often one that soon ends: less than a second ago.
pub(crate) fn just_now(stat: &Stat) -> bool {
    let ticks = i64::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100).max(1);
    let now = clock_gettime(ClockId::Boottime);
    let now = now.tv_sec * ticks + now.tv_nsec * ticks / 1_000_000_000;
    stat.field(22).is_some_and(|began| now.saturating_sub(began) < ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_began_later_was_not_who_did_it() {
        let tree = Began::at(&[(7, 100)]);
        let did = |pid, when| tree.did(Pid(pid), when);
        assert!(did(7, 100) && did(7, 99) && did(7, 5000) && !did(7, 98) && !did(8, 100));
        assert!(tree.has(Pid(7)) && !tree.has(Pid(8)));
    }

    #[test]
    fn this_process_has_begun_a_while_ago() {
        let own = Pid(std::process::id().cast_signed());
        let now = clock_gettime(ClockId::Realtime).tv_sec;
        let tree = Began::of(&BTreeSet::from([own]));
        assert!(tree.did(own, now) && !tree.did(own, now - 1_000_000));
    }
}
