//! Which pages of an address space are still to be put in, and where in the image each comes from.
//!
//! A page that the ledger does not name is in, or is zeros: nothing that was put in, given up or taken away may come back.

use std::collections::BTreeMap;
use std::ops::Range;

/// Pages in a row, here and in the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    end: u64,
    /// Address in the image of the first byte.
    from: u64,
}

/// A part of what is missing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Missing {
    /// Where it goes.
    pub(crate) at: Range<u64>,
    /// Address in the image of its first byte.
    pub(crate) from: u64,
}

impl Missing {
    /// Pages of the image around these, where they lie if all were moved together. Those that would lie before the first
    /// address there is do not: a mapping was parted, and this part was moved that far down. They are left out.
    pub(crate) fn beside(&self, pages: &Range<u64>) -> Self {
        let first = pages.start.max(self.from.saturating_sub(self.at.start));
        let place = |address: u64| match address.checked_sub(self.from) {
            Some(after) => self.at.start.saturating_add(after),
            None => self.at.start.saturating_sub(self.from.saturating_sub(address)),
        };
        Self { at: place(first)..place(pages.end.max(first)), from: first }
    }
}

/// What is missing, by address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ledger {
    pieces: BTreeMap<u64, Piece>,
}

impl Ledger {
    /// Whether nothing is missing.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds pages that are missing, in the place of what was noted there.
    pub(crate) fn add(&mut self, at: Range<u64>, from: u64) {
        self.cut(&at);
        if at.start < at.end {
            self.pieces.insert(at.start, Piece { end: at.end, from });
        }
    }

    /// Forgets a range.
    pub(crate) fn cut(&mut self, range: &Range<u64>) {
        for missing in self.within(range) {
            self.take(&missing, range);
        }
    }

    /// Takes a range out of the piece that holds `missing`.
    fn take(&mut self, missing: &Missing, range: &Range<u64>) {
        let Some((start, piece)) = self.pieces.range(..=missing.at.start).next_back().map(|(at, piece)| (*at, *piece))
        else {
            return;
        };
        self.pieces.remove(&start);
        if start < range.start {
            self.pieces.insert(start, Piece { end: range.start.min(piece.end), from: piece.from });
        }
        if range.end < piece.end {
            let skipped = range.end.saturating_sub(start);
            self.pieces.insert(range.end, Piece { end: piece.end, from: piece.from.saturating_add(skipped) });
        }
    }

    /// A mapping was moved: what was missing there is missing here, and nothing else is.
    pub(crate) fn moved(&mut self, from: u64, to: u64, len: u64) {
        let old = from..from.saturating_add(len);
        let all = self.within(&old);
        self.cut(&old);
        self.cut(&(to..to.saturating_add(len)));
        for Missing { at, from: source } in all {
            let place = |address: u64| to.saturating_add(address.saturating_sub(old.start));
            self.add(place(at.start)..place(at.end), source);
        }
    }

    /// What is missing in a range, in order.
    pub(crate) fn within(&self, range: &Range<u64>) -> Vec<Missing> {
        if range.start >= range.end {
            return Vec::new();
        }
        let before = self.pieces.range(..range.start).next_back().filter(|(_, piece)| piece.end > range.start);
        let others = self.pieces.range(range.start..range.end);
        let cut = |(start, piece): (&u64, &Piece)| {
            let at = (*start).max(range.start)..piece.end.min(range.end);
            let from = piece.from.saturating_add(at.start.saturating_sub(*start));
            Missing { at, from }
        };
        before.into_iter().chain(others).map(cut).filter(|missing| missing.at.start < missing.at.end).collect()
    }

    /// The piece that holds an address.
    pub(crate) fn at(&self, address: u64) -> Option<Missing> {
        let (start, piece) = self.pieces.range(..=address).next_back()?;
        (piece.end > address).then_some(Missing { at: *start..piece.end, from: piece.from })
    }

    /// The first piece from an address on.
    pub(crate) fn from(&self, address: u64) -> Option<Missing> {
        let next = || self.pieces.range(address..).next().map(|(at, p)| Missing { at: *at..p.end, from: p.from });
        match self.at(address) {
            Some(held) => {
                let skipped = address.saturating_sub(held.at.start);
                Some(Missing { at: address..held.at.end, from: held.from.saturating_add(skipped) })
            }
            None => next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same by single pages.
    #[derive(Default)]
    struct Plain(BTreeMap<u64, u64>);

    impl Plain {
        fn moved(&mut self, from: u64, to: u64, len: u64) {
            let all: Vec<_> = (from..from + len).map(|page| self.0.remove(&page)).collect();
            for (page, source) in (to..).zip(all) {
                match source {
                    Some(source) => self.0.insert(page, source),
                    None => self.0.remove(&page),
                };
            }
        }
    }

    fn pages(ledger: &Ledger) -> BTreeMap<u64, u64> {
        let all = ledger.within(&(0..u64::MAX));
        all.into_iter().flat_map(|missing| missing.at.zip(missing.from..)).collect()
    }

    #[test]
    fn it_knows_what_a_table_of_pages_knows() {
        // A small generator, so that every run is the same.
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = |limit: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % limit
        };
        let (mut ledger, mut plain) = (Ledger::default(), Plain::default());
        for _ in 0..20_000 {
            let (at, len, other) = (random(200), random(30), random(200));
            match random(4) {
                0 => {
                    let from = 1000 + random(1000);
                    ledger.add(at..at + len, from);
                    plain.0.extend((at..at + len).zip(from..));
                }
                1 | 2 => {
                    ledger.cut(&(at..at + len));
                    plain.0.retain(|page, _| !(at..at + len).contains(page));
                }
                _ => {
                    // The kernel refuses a move onto itself.
                    if at + len <= other || other + len <= at {
                        ledger.moved(at, other, len);
                        plain.moved(at, other, len);
                    }
                }
            }
            assert_eq!(pages(&ledger), plain.0);
            assert_eq!(ledger.is_empty(), plain.0.is_empty());
            assert_eq!(ledger.at(other).map(|m| m.from + (other - m.at.start)), plain.0.get(&other).copied());
            let next = plain.0.range(other..).next().map(|(page, from)| (*page, *from));
            assert_eq!(ledger.from(other).map(|m| (m.at.start, m.from)), next);
        }
    }

    #[test]
    fn what_would_lie_before_all_addresses_is_left_out() {
        let low = Missing { at: 16..20, from: 300 };
        assert_eq!(low.beside(&(256..512)), Missing { at: 0..228, from: 284 });
        assert_eq!(low.beside(&(290..310)), Missing { at: 6..26, from: 290 });
        assert_eq!(low.beside(&(100..200)), Missing { at: 0..0, from: 284 });
        let high = Missing { at: 900..901, from: 300 };
        assert_eq!(high.beside(&(256..512)), Missing { at: 856..1112, from: 256 });
    }

    #[test]
    fn in_what_is_no_range_nothing_is_missing() {
        let mut ledger = Ledger::default();
        ledger.add(0..100, 0);
        let backwards = Range { start: 60, end: 40 };
        assert_eq!(ledger.within(&backwards), []);
        ledger.cut(&backwards);
        assert_eq!(pages(&ledger).len(), 100);
    }
}
