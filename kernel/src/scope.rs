//! Which of the tasks of the system are in a scope: pure, and tested on the host.
// SPDX-License-Identifier: GPL-2.0-only

use hdcr_abi::scope;

/// A task as it was seen in a look at all; the glue fills it in.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Row {
    /// The thread.
    pub(crate) tid: i32,
    /// Its process.
    pub(crate) tgid: i32,
    /// The parent of the process.
    pub(crate) ppid: i32,
    /// Its group.
    pub(crate) pgid: i32,
    /// Its session.
    pub(crate) sid: i32,
    /// Bits of [`row_flag`].
    pub(crate) flags: u32,
    /// When it was made; with the number it is never the same for two tasks.
    pub(crate) start: u64,
}

/// What a row says beside its numbers.
pub(crate) mod row_flag {
    /// A task that serves the kernel.
    pub(crate) const KERNEL: u32 = 1;
    /// It has ended.
    pub(crate) const DEAD: u32 = 2;
    /// The first process of the system.
    pub(crate) const INIT: u32 = 4;
    /// A thread of the caller.
    pub(crate) const CALLER: u32 = 8;
    /// In the cgroup that was asked for, or below.
    pub(crate) const IN_CGROUP: u32 = 16;
}

/// A set of process numbers: open addressing in memory that the caller gives, at least twice as large as the set gets.
pub(crate) struct Numbers<'a> {
    places: &'a mut [i32],
}

impl<'a> Numbers<'a> {
    /// An empty set in these places, which are zero.
    pub(crate) fn new(places: &'a mut [i32]) -> Self {
        Self { places }
    }

    fn place(&self, number: i32) -> Option<usize> {
        let count = self.places.len();
        let first = (number.unsigned_abs().wrapping_mul(0x9e37_79b1) as usize).checked_rem(count)?;
        let all = (first..count).chain(0..first);
        all.into_iter().find(|at| matches!(self.places.get(*at), Some(held) if *held == 0 || *held == number))
    }

    /// Whether a number is in it; 0 never is.
    pub(crate) fn has(&self, number: i32) -> bool {
        number != 0 && self.place(number).and_then(|at| self.places.get(at)) == Some(&number)
    }

    /// Puts a number in. True: it was not there.
    pub(crate) fn put(&mut self, number: i32) -> bool {
        let Some(held) = self.place(number).and_then(|at| self.places.get_mut(at)) else {
            return false;
        };
        let is_new = *held != number;
        *held = number;
        is_new
    }
}

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Scope {
    /// One of [`scope`].
    pub(crate) kind: u32,
    /// Which.
    pub(crate) id: u64,
}

impl Scope {
    /// Whether this is a scope at all.
    pub(crate) fn is_known(self) -> bool {
        let is_number = i32::try_from(self.id).is_ok_and(|number| number > 0);
        match self.kind {
            scope::PROCESS..=scope::SESSION | scope::LINE => is_number,
            scope::CGROUP => self.id > 0,
            _ => false,
        }
    }

    fn number(self) -> i32 {
        i32::try_from(self.id).unwrap_or(0)
    }

    /// Puts the processes of the scope into `chosen`, and those that are left out of it into `spared`.
    pub(crate) fn choose(self, rows: &[Row], chosen: &mut Numbers<'_>, spared: &mut Numbers<'_>) {
        let root = self.number();
        let leads = |row: &Row| row.tgid == root && row.sid == root;
        let whole_session = self.kind == scope::TREE && rows.iter().any(leads);
        if self.kind == scope::BELOW {
            let caller = rows.iter().find(|row| row.flags & row_flag::CALLER != 0 && row.ppid == root);
            if let Some(caller) = caller {
                spared.put(caller.tgid);
                grow(rows, spared, |_| true);
            }
        }
        for row in rows {
            let is_in = match self.kind {
                scope::PROCESS | scope::LINE => row.tgid == root,
                scope::TREE => row.tgid == root || whole_session && row.sid == root,
                scope::BELOW => row.ppid == root,
                scope::GROUP => row.pgid == root,
                scope::SESSION => row.sid == root,
                _ => row.flags & row_flag::IN_CGROUP != 0,
            };
            if is_in && !spared.has(row.tgid) {
                chosen.put(row.tgid);
            }
        }
        if matches!(self.kind, scope::TREE | scope::BELOW | scope::LINE) {
            grow(rows, chosen, |row| !spared.has(row.tgid));
        }
    }
}

/// Adds children until there are no more. Parents mostly come before their children, so one pass mostly does.
fn grow(rows: &[Row], set: &mut Numbers<'_>, may: impl Fn(&Row) -> bool) {
    let mut is_new = true;
    while is_new {
        is_new = false;
        for row in rows {
            if set.has(row.ppid) && may(row) {
                is_new |= set.put(row.tgid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tgid: i32, ppid: i32, pgid: i32, sid: i32) -> Row {
        Row { tid: tgid, tgid, ppid, pgid, sid, flags: 0, start: 1 }
    }

    fn check(kind: u32, id: u64, rows: &[Row], expected: &[i32]) {
        let (mut chosen, mut spared) = ([0; 64], [0; 64]);
        let (mut chosen, mut spared) = (Numbers::new(&mut chosen), Numbers::new(&mut spared));
        Scope { kind, id }.choose(rows, &mut chosen, &mut spared);
        let found: Vec<i32> = rows.iter().map(|row| row.tgid).filter(|tgid| chosen.has(*tgid)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn each_kind() {
        let rows = [row(1, 0, 1, 1), row(10, 1, 10, 10), row(11, 10, 11, 10), row(12, 11, 11, 10), row(13, 1, 13, 13)];
        check(scope::PROCESS, 11, &rows, &[11]);
        check(scope::TREE, 11, &rows, &[11, 12]);
        check(scope::LINE, 11, &rows, &[11, 12]);
        let led = [row(10, 1, 10, 10), row(11, 10, 11, 10), row(14, 1, 14, 10)];
        check(scope::TREE, 10, &led, &[10, 11, 14]);
        check(scope::LINE, 10, &led, &[10, 11]);
        check(scope::BELOW, 10, &rows, &[11, 12]);
        check(scope::GROUP, 11, &rows, &[11, 12]);
        check(scope::SESSION, 10, &rows, &[10, 11, 12]);
        check(scope::CGROUP, 5, &rows, &[]);
        check(scope::TREE, 99, &rows, &[]);
    }

    #[test]
    fn children_before_their_parents_are_found() {
        check(scope::TREE, 30, &[row(28, 29, 1, 1), row(29, 30, 1, 1), row(30, 1, 1, 1)], &[28, 29, 30]);
    }

    #[test]
    fn orphans_belong_to_the_tree_of_the_leader_of_their_session_only() {
        let rows = [row(10, 1, 10, 10), row(11, 10, 10, 10), row(12, 1, 10, 10)];
        check(scope::TREE, 10, &rows, &[10, 11, 12]);
        check(scope::TREE, 11, &rows, &[11]);
    }

    #[test]
    fn a_caller_below_the_root_is_spared_with_its_children() {
        let mut rows = [row(10, 1, 1, 1), row(11, 10, 1, 1), row(12, 11, 1, 1), row(13, 10, 1, 1), row(14, 13, 1, 1)];
        rows[1].flags = row_flag::CALLER;
        check(scope::BELOW, 10, &rows, &[13, 14]);
    }

    #[test]
    fn a_set_holds_what_was_put_in_and_nothing_else() {
        let mut places = [0; 8];
        let mut set = Numbers::new(&mut places);
        for number in [8, 16, 24, 1 << 22] {
            assert!(set.put(number));
            assert!(!set.put(number));
        }
        assert!(set.has(24) && !set.has(32) && !set.has(0));
    }

    #[test]
    fn odd_scopes_are_not_known() {
        for (kind, id) in
            [(0, 1), (8, 1), (scope::LINE, 0), (scope::TREE, 0), (scope::TREE, 1 << 31), (scope::CGROUP, 0)]
        {
            assert!(!Scope { kind, id }.is_known(), "{kind} {id}");
        }
        assert!(Scope { kind: scope::CGROUP, id: u64::MAX }.is_known());
    }
}
