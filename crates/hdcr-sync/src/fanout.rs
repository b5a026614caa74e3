//! Who passes orders on to whom, so that nobody has to speak to thousands: a tree over the members in their order.

/// A tree in which everybody has at most `width` children; place 0 is next to the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tree {
    members: usize,
    width: usize,
}

/// Up to here the coordinator speaks to all itself.
pub const FLAT: usize = 64;

impl Tree {
    /// For so many members; a width of 0 counts as 1.
    pub fn new(members: usize, width: usize) -> Self {
        Tree { members, width: width.max(1) }
    }

    /// What suits so many members: flat up to 64, then a tree of 16.
    pub fn suited(members: usize) -> Self {
        Tree::new(members, if members <= FLAT { members } else { 16 })
    }

    /// To whom the coordinator speaks itself.
    pub fn roots(self) -> std::ops::Range<usize> {
        0..self.width.min(self.members)
    }

    /// To whom the one at `place` passes on.
    pub fn children(self, place: usize) -> std::ops::Range<usize> {
        let first = place.saturating_add(1).saturating_mul(self.width);
        first.min(self.members)..first.saturating_add(self.width).min(self.members)
    }

    /// Who passes on to the one at `place`; `None` is the coordinator.
    pub fn parent(self, place: usize) -> Option<usize> {
        place.checked_div(self.width)?.checked_sub(1)
    }

    /// How many times an order is passed on until the last has it.
    pub fn depth(self) -> usize {
        let mut place = self.members.checked_sub(1);
        let mut depth = 0_usize;
        while let Some(at) = place {
            depth = depth.saturating_add(1);
            place = self.parent(at);
        }
        depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_one_who_speaks_to_it() {
        for (members, width) in [(0, 4), (1, 4), (64, 64), (65, 16), (1000, 3), (10_000, 16)] {
            let tree = Tree::new(members, width);
            let mut reached: Vec<usize> = tree.roots().collect();
            for place in 0..members {
                reached.extend(tree.children(place));
                assert!(tree.children(place).all(|child| tree.parent(child) == Some(place)));
            }
            assert!(tree.roots().all(|root| tree.parent(root).is_none()));
            assert!(reached.into_iter().eq(0..members), "{members} {width}");
        }
        assert_eq!(Tree::suited(64).depth(), 1);
        assert_eq!(Tree::suited(10_000).depth(), 4);
    }
}
