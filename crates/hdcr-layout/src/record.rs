//! What all records of fixed layout have in common.

use crate::LayoutError;

/// A record of fixed size. A list of them is their bytes one after another.
pub trait Layout: Sized {
    /// The number of this kind in an image (see [`crate::tag`]).
    const TAG: u16;
    /// Raised when a field changes its meaning.
    const VERSION: u16;
    /// The name that messages use.
    const NAME: &'static str;
    /// Encoded size in bytes.
    const SIZE: usize;

    /// Writes the record at the start of `out` and returns its size.
    fn encode(&self, out: &mut [u8]) -> Result<usize, LayoutError>;

    /// Reads a record from the start of `bytes` and returns it with its size.
    fn decode(bytes: &[u8]) -> Result<(Self, usize), LayoutError>;
}
