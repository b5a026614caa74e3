//! Which snapshots of a job are given up.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

/// What a decision has to know of a snapshot. Snapshots are named by their place in the list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stored {
    /// The place of the snapshot that this one is an increment of.
    pub base: Option<usize>,
    /// Somebody asked for it to be kept, or is reading it now.
    pub pinned: bool,
    /// It is of a life that was given up, or of an earlier run: it is given up before those that are not.
    pub left: bool,
    /// How long ago it was made.
    pub age: Duration,
    /// What it consists of, by numbers that several snapshots may have in common, with the bytes of each.
    pub parts: Vec<(u64, u64)>,
}

/// What is kept at most. What any of these gives up is given up; the newest snapshot never is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// So many snapshots.
    pub count: Option<usize>,
    /// Those of so long.
    pub age: Option<Duration>,
    /// So many bytes, what snapshots share counted once.
    pub bytes: Option<u64>,
}

/// The places of the snapshots to be given up, newest first. Those that were left stay only where there is room.
///
/// `snapshots` are those of one job, oldest first. A snapshot is kept when it is pinned, or when one that is kept is an
/// increment of it, however far back; a base must be older than what builds on it, else it is not followed.
pub fn give_up(snapshots: &[Stored], limits: &Limits) -> Vec<usize> {
    let mut order: Vec<(usize, &Stored)> = snapshots.iter().enumerate().collect();
    order.sort_by_key(|(_, snapshot)| !snapshot.left);
    let surplus = limits.count.map_or(0, |count| snapshots.len().saturating_sub(count.max(1)));
    let mut kept = BTreeSet::new();
    let (mut parts, mut bytes, mut is_full) = (HashSet::new(), 0_u64, false);
    for (rank, (place, snapshot)) in order.into_iter().enumerate().rev() {
        let forced = rank + 1 == snapshots.len() || snapshot.pinned || kept.contains(&place);
        let is_old = limits.age.is_some_and(|age| snapshot.age > age);
        if !forced && (rank < surplus || is_old || is_full) {
            continue;
        }
        let new: Vec<(u64, u64)> = snapshot.parts.iter().filter(|(part, _)| !parts.contains(part)).copied().collect();
        let with = new.iter().fold(bytes, |sum, (_, more)| sum.saturating_add(*more));
        if limits.bytes.is_some_and(|limit| with > limit) {
            // Nothing that goes sooner is kept in its place: what is left has no holes.
            is_full = true;
            if !forced {
                continue;
            }
        }
        bytes = with;
        parts.extend(new.into_iter().map(|(part, _)| part));
        let (mut at, mut base) = (place, Some(place));
        while let Some(next) = base {
            kept.insert(next);
            at = at.min(next);
            base = snapshots.get(next).and_then(|one| one.base).filter(|base| *base < at);
        }
    }
    (0..snapshots.len()).rev().filter(|place| !kept.contains(place)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(count: usize) -> Limits {
        Limits { count: Some(count), ..Limits::default() }
    }

    /// A list in one string: `f` full, `i` increment of the one before, `P` a pinned full one, `l` a full one that was left.
    fn check(list: &str, keep: usize, expected: &[usize]) {
        let snapshots: Vec<Stored> = list
            .chars()
            .enumerate()
            .map(|(place, kind)| Stored {
                base: (kind == 'i').then(|| place.wrapping_sub(1)),
                pinned: kind == 'P',
                left: kind == 'l',
                ..Stored::default()
            })
            .collect();
        assert_eq!(give_up(&snapshots, &count(keep)), expected, "{list} keep {keep}");
    }

    #[test]
    fn the_newest_are_kept_with_all_they_build_on() {
        check("", 3, &[]);
        check("ff", 3, &[]);
        check("fffff", 3, &[1, 0]);
        check("fffff", 0, &[3, 2, 1, 0]);
        check("fifii", 1, &[1, 0]);
        check("fifii", 3, &[1, 0]);
        check("fiiii", 1, &[]);
        check("Pffff", 2, &[2, 1]);
        check("fiPff", 1, &[3, 1, 0]);
    }

    #[test]
    fn those_that_were_left_go_first() {
        check("ffllf", 3, &[3, 2]);
        check("ffllf", 4, &[2]);
        check("llf", 1, &[1, 0]);
        check("fllff", 2, &[2, 1, 0]);
        let mut sizes = aged(&[(4, &[1]), (3, &[2]), (2, &[3])]);
        sizes[1].left = true;
        let limits = Limits { bytes: Some(20), ..Limits::default() };
        assert_eq!(give_up(&sizes, &limits), [1], "by size, too");
    }

    #[test]
    fn a_base_that_is_not_older_is_not_followed() {
        let strange = [Stored { base: Some(0), ..Stored::default() }, Stored { base: Some(7), ..Stored::default() }];
        assert_eq!(give_up(&strange, &count(1)), [0]);
        check("i", 1, &[]);
    }

    /// Snapshots of these ages in minutes and parts of 10 bytes each.
    fn aged(all: &[(u64, &[u64])]) -> Vec<Stored> {
        let stored = |(minutes, parts): &(u64, &[u64])| Stored {
            age: Duration::from_mins(*minutes),
            parts: parts.iter().map(|part| (*part, 10)).collect(),
            ..Stored::default()
        };
        all.iter().map(stored).collect()
    }

    #[test]
    fn what_is_too_old_goes_but_the_newest_stays() {
        let all = aged(&[(50, &[]), (40, &[]), (20, &[]), (10, &[])]);
        let by = |minutes| Limits { age: Some(Duration::from_mins(minutes)), ..Limits::default() };
        assert_eq!(give_up(&all, &by(60)), []);
        assert_eq!(give_up(&all, &by(40)), [0]);
        assert_eq!(give_up(&all, &by(1)), [2, 1, 0]);
        let both = Limits { count: Some(2), ..by(40) };
        assert_eq!(give_up(&all, &both), [1, 0], "each limit gives up what it does");
        assert_eq!(give_up(&all, &Limits::default()), [], "without a limit nothing goes");
        assert_eq!(give_up(&[], &by(1)), []);
    }

    #[test]
    fn what_is_too_large_goes_and_what_is_shared_counts_once() {
        let by = |bytes| Limits { bytes: Some(bytes), ..Limits::default() };
        let apart = aged(&[(3, &[1, 2]), (2, &[3]), (1, &[4])]);
        assert_eq!(give_up(&apart, &by(40)), []);
        assert_eq!(give_up(&apart, &by(39)), [0]);
        assert_eq!(give_up(&apart, &by(10)), [1, 0]);
        assert_eq!(give_up(&apart, &by(0)), [1, 0], "the newest stays whatever it takes");
        let shared = aged(&[(3, &[1, 2]), (2, &[1, 2, 3]), (1, &[1, 2, 3, 4])]);
        assert_eq!(give_up(&shared, &by(40)), []);
        let holes = aged(&[(4, &[1]), (3, &[2, 3, 4]), (2, &[5]), (1, &[6])]);
        assert_eq!(give_up(&holes, &by(30)), [1, 0], "a small old one is not kept in place of a large newer one");
        let mut pinned = aged(&[(4, &[1, 2, 3]), (3, &[4]), (2, &[5])]);
        pinned[0].pinned = true;
        assert_eq!(give_up(&pinned, &by(20)), [], "what is asked for is kept beside what fits");
    }
}
