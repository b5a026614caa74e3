//! Ranges of pages in pieces that can be worked on at once.

use std::ops::Range;

/// Bytes read at once.
const PIECE: u64 = 1 << 20;

/// A range in pieces that end at multiples of `size`.
pub(crate) fn cut(range: &Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> + use<> {
    let (mut at, end) = (range.start, range.end);
    std::iter::from_fn(move || {
        let next = (at - at % size).saturating_add(size).min(end);
        let piece = at..next;
        at = next;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Ranges in groups of at most [`PIECE`] bytes, longer ones cut.
pub(crate) fn groups(ranges: &[Range<u64>]) -> Vec<Vec<Range<u64>>> {
    let mut all: Vec<Vec<Range<u64>>> = Vec::new();
    let mut room = 0;
    for piece in ranges.iter().flat_map(|range| cut(range, PIECE)) {
        let len = piece.end - piece.start;
        if let Some(group) = all.last_mut().filter(|_| len <= room) {
            group.push(piece);
            room -= len;
        } else {
            all.push(vec![piece]);
            room = PIECE - len;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE;

    #[test]
    fn ranges_are_cut_at_multiples_and_grouped() {
        assert_eq!(cut(&(3..9), 4).collect::<Vec<_>>(), [3..4, 4..8, 8..9]);
        assert_eq!(cut(&(8..8), 4).count(), 0);
        let groups = groups(&[PAGE..2 * PAGE, PIECE..2 * PIECE, 3 * PIECE..3 * PIECE + PAGE]);
        assert_eq!(groups.len(), 3);
        assert_eq!(groups[1].as_slice(), std::slice::from_ref(&(PIECE..2 * PIECE)));
    }
}
