//! A set of pages, kept as ranges of addresses.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges, none over or beside another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageSet {
    /// End by start.
    ranges: BTreeMap<u64, u64>,
}

impl PageSet {
    /// Puts a range in.
    pub(crate) fn add(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        if let Some((before, upto)) = self.ranges.range(..=start).next_back().map(|(s, e)| (*s, *e))
            && upto >= start
        {
            start = before;
            end = end.max(upto);
            self.ranges.remove(&before);
        }
        while let Some((next, upto)) = self.ranges.range(start..=end).next().map(|(s, e)| (*s, *e)) {
            end = end.max(upto);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
    }

    /// Takes a range out.
    pub(crate) fn remove(&mut self, range: &Range<u64>) {
        for piece in self.within(range) {
            let Some((start, end)) = self.ranges.range(..=piece.start).next_back().map(|(s, e)| (*s, *e)) else {
                continue;
            };
            self.ranges.remove(&start);
            if start < piece.start {
                self.ranges.insert(start, piece.start);
            }
            if piece.end < end {
                self.ranges.insert(piece.end, end);
            }
        }
    }

    /// The parts of it that lie in a range, in order.
    pub(crate) fn within(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let before = self.ranges.range(..=range.start).next_back();
        let after = self.ranges.range(range.start.saturating_add(1)..range.end.max(range.start.saturating_add(1)));
        let all = before.into_iter().chain(after).map(|(start, end)| (*start).max(range.start)..(*end).min(range.end));
        all.filter(|piece| piece.start < piece.end).collect()
    }

    /// The parts of a range that are not in it, in order.
    pub(crate) fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        for piece in self.within(range) {
            if at < piece.start {
                missing.push(at..piece.start);
            }
            at = piece.end;
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    /// All of it.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }
}

impl FromIterator<Range<u64>> for PageSet {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(ranges: T) -> Self {
        let mut set = Self::default();
        for range in ranges {
            set.add(&range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Against a set of single numbers, with steps from a plain generator.
    #[test]
    fn it_does_what_a_set_of_pages_does() {
        let mut seed = 7_u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let (mut set, mut model) = (PageSet::default(), BTreeSet::new());
        for _ in 0..3000 {
            let start = next(60);
            let range = start..start + next(12);
            if next(2) == 0 {
                set.add(&range);
                model.extend(range);
            } else {
                set.remove(&range);
                model.retain(|page| !range.contains(page));
            }
            let found: Vec<u64> = set.ranges().flatten().collect();
            assert_eq!(found, model.iter().copied().collect::<Vec<_>>());
            let look = next(60)..next(80);
            let inside: Vec<u64> = set.within(&look).into_iter().flatten().collect();
            assert_eq!(inside, model.iter().copied().filter(|page| look.contains(page)).collect::<Vec<_>>());
            let outside: Vec<u64> = set.missing(&look).into_iter().flatten().collect();
            assert_eq!(outside, look.filter(|page| !model.contains(page)).collect::<Vec<_>>());
            assert!(set.ranges().zip(set.ranges().skip(1)).all(|(a, b)| a.end < b.start));
        }
    }
}
