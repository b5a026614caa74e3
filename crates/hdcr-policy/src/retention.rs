//! Which snapshots of a job are given up.

use std::collections::BTreeSet;

/// What a decision has to know of a snapshot. Snapshots are named by their place in the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stored {
    /// The place of the snapshot that this one is an increment of.
    pub base: Option<usize>,
    /// Somebody asked for it to be kept, or is reading it now.
    pub pinned: bool,
    /// It is of a life that was given up, or of an earlier run: it is given up before those that are not.
    pub left: bool,
}

/// The places of the snapshots to be given up, newest first, when `keep` are kept (at least one): the newest ones,
/// those that were left only where there is room.
///
/// `snapshots` are those of one job, oldest first. A snapshot is kept when it is pinned, or when one that is kept is an
/// increment of it, however far back; a base must be older than what builds on it, else it is not followed.
pub fn give_up(snapshots: &[Stored], keep: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..snapshots.len()).collect();
    order.sort_by_key(|place| snapshots.get(*place).is_none_or(|snapshot| !snapshot.left));
    let surplus = snapshots.len().saturating_sub(keep.max(1));
    let surplus: BTreeSet<usize> = order.into_iter().take(surplus).collect();
    let mut kept = BTreeSet::new();
    for (place, snapshot) in snapshots.iter().enumerate().rev() {
        if surplus.contains(&place) && !snapshot.pinned && !kept.contains(&place) {
            continue;
        }
        kept.insert(place);
        kept.extend(snapshot.base.filter(|base| *base < place));
    }
    (0..snapshots.len()).rev().filter(|place| !kept.contains(place)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list in one string: `f` full, `i` increment of the one before, `P` a pinned full one, `l` a full one that was left.
    fn check(list: &str, keep: usize, expected: &[usize]) {
        let snapshots: Vec<Stored> = list
            .chars()
            .enumerate()
            .map(|(place, kind)| Stored {
                base: (kind == 'i').then(|| place.wrapping_sub(1)),
                pinned: kind == 'P',
                left: kind == 'l',
            })
            .collect();
        assert_eq!(give_up(&snapshots, keep), expected, "{list} keep {keep}");
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
    }

    #[test]
    fn a_base_that_is_not_older_is_not_followed() {
        let strange = [Stored { base: Some(0), ..Stored::default() }, Stored { base: Some(7), ..Stored::default() }];
        assert_eq!(give_up(&strange, 1), [0]);
        check("i", 1, &[]);
    }
}
