//! Conversions between lengths in memory and lengths in an image.

/// A length in memory as a number; `usize` is never wider than 64 bits where this runs.
pub(crate) fn size(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// A stored length as a length in memory, saturated: no buffer is ever that long, so a bound check that follows fails.
pub(crate) fn len(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
