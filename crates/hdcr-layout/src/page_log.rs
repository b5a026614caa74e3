//! One record of the page log: what changed in the page index of a chain of images.

use crate::cursor::{Field, Input, Output};
use crate::page_run::PAGE_SIZE;
use crate::{Layout, LayoutError, PageRunEntry};

/// A run takes the place of whatever was there.
const PUT: u32 = 1;
/// There is nothing any more.
const CUT: u32 = 2;

/// A change of the page index. Records are applied in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogRecord {
    /// A run takes the place of whatever a space held at its addresses.
    Put {
        /// The space.
        space: u64,
        /// The run.
        run: PageRunEntry,
    },
    /// A space holds nothing in a range.
    Cut {
        /// The space.
        space: u64,
        /// First address, on the border of a page.
        start: u64,
        /// The address behind the range, on the border of a page.
        end: u64,
    },
}

impl LogRecord {
    const NAME: &'static str = "page log record";

    /// Encoded size in bytes.
    pub const SIZE: usize = 64;

    /// Writes the record at the start of `out` and returns its size.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, LayoutError> {
        let mut out = Output::new(Self::NAME, out);
        match self {
            Self::Put { space, run } => {
                space.put(&mut out)?;
                PUT.put(&mut out)?;
                let mut entry = [0; PageRunEntry::SIZE];
                run.encode(&mut entry)?;
                entry.put(&mut out)?;
            }
            Self::Cut { space, start, end } => {
                space.put(&mut out)?;
                CUT.put(&mut out)?;
                start.put(&mut out)?;
                end.put(&mut out)?;
                [0_u8; 36].put(&mut out)?;
            }
        }
        Ok(Self::SIZE)
    }

    /// Reads the record at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), LayoutError> {
        let mut input = Input::new(Self::NAME, bytes);
        let space = u64::take(&mut input, "space")?;
        let record = match u32::take(&mut input, "kind")? {
            PUT => {
                let entry = input.array::<{ PageRunEntry::SIZE }>()?;
                Self::Put { space, run: PageRunEntry::decode(&entry)?.0 }
            }
            CUT => {
                let start = u64::take(&mut input, "start")?;
                let end = u64::take(&mut input, "end")?;
                if let Some(odd) = input.array::<36>()?.iter().find(|byte| **byte != 0) {
                    return Err(input.invalid("reserved byte", u64::from(*odd)));
                }
                let whole = |address: u64| address & PAGE_SIZE.wrapping_sub(1) == 0;
                if !whole(start) || !whole(end) || start >= end {
                    return Err(input.invalid("range", start));
                }
                Self::Cut { space, start, end }
            }
            other => return Err(input.invalid("kind", u64::from(other))),
        };
        Ok((record, Self::SIZE))
    }
}
