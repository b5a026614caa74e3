//! A place for the service region: free here and wherever the new tree will have something.

use std::fs;
use std::io;
use std::ops::Range;

/// Above everything that programs choose for themselves, below where the kernel puts stacks and mappings.
const LOWEST: u64 = 0x1000_0000_0000;
const HIGHEST: u64 = 0x7000_0000_0000;
/// What is mapped here before the region is must not meet it.
const ALIGNMENT: u64 = 1 << 21;

/// The lowest range of this length that meets none of those to avoid and nothing of this process.
pub(crate) fn find(len: u64, avoid: &[Range<u64>]) -> io::Result<u64> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let own = maps.lines().filter_map(range_of_line);
    let mut taken: Vec<Range<u64>> = own.chain(avoid.iter().cloned()).collect();
    taken.sort_by_key(|range| range.start);
    lowest_gap(len, &taken).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

fn lowest_gap(len: u64, taken: &[Range<u64>]) -> Option<u64> {
    let mut at = LOWEST;
    for range in taken {
        if range.end > at && range.start < at.checked_add(len)? {
            at = range.end.checked_next_multiple_of(ALIGNMENT)?;
        }
    }
    (at.checked_add(len)? <= HIGHEST).then_some(at)
}

fn range_of_line(line: &str) -> Option<Range<u64>> {
    let (range, _) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(taken: &[(u64, u64)], expected: Option<u64>) {
        let taken: Vec<Range<u64>> = taken.iter().map(|(start, end)| *start..*end).collect();
        assert_eq!(lowest_gap(0x1000, &taken), expected);
    }

    #[test]
    fn the_lowest_gap_is_taken() {
        check(&[], Some(LOWEST));
        check(&[(0, LOWEST)], Some(LOWEST));
        check(&[(LOWEST - 8, LOWEST + 8)], Some(LOWEST + ALIGNMENT));
        let second = LOWEST + ALIGNMENT;
        check(&[(LOWEST, LOWEST + 1), (second, second + 1)], Some(second + ALIGNMENT));
        check(&[(0, HIGHEST)], None);
    }
}
