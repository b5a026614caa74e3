//! One entry of the page index: pages in a row, and where their bytes lie.

use crate::cursor::{fixed_layout, stored_enum};
use crate::tag;

/// Size of a page in an image, whatever the machine's is.
pub const PAGE_SIZE: u64 = 4096;

/// The most pages that are stored together.
pub const RUN_PAGES: u16 = 256;

/// Size of an entry, with which the stored bytes of changed lines begin.
const DELTA_HEAD: u64 = 52;

stored_enum! {
    /// How the bytes of a run are stored.
    Codec: u16 {
        /// Not at all: every byte is zero.
        Zero = 0,
        /// As they are.
        Plain = 1,
        /// As one LZ4 block.
        Lz4 = 2,
        /// As one Zstandard frame.
        Zstd = 3,
        /// As changed lines of pages that are stored whole, in images of a chain.
        Delta = 4,
        /// The same, packed as one LZ4 block.
        PackedDelta = 5,
    }
}

fixed_layout! {
    /// Pages in a row. A run may be a piece of what was stored together, when later pages replaced the rest.
    PageRunEntry, tag tag::PAGE_INDEX, version 1, check PageRunEntry::check, {
        /// Address of the first page.
        address: u64,
        /// Where the stored bytes begin in the segment.
        offset: u64,
        /// The use of the segment in which they were written.
        generation: u64,
        /// XXH3 (64 bits) of the stored bytes.
        xxh3: u64,
        /// Pages of this run.
        pages: u32,
        /// Which segment of the image.
        segment: u32,
        /// Length of the stored bytes.
        length: u32,
        /// How they are stored.
        codec: Codec,
        /// Pages that were stored together (at most [`RUN_PAGES`]).
        stored: u16,
        /// How many of these lie before the first page of this run.
        skip: u16,
        /// Zero.
        reserved: u16,
    }
}

impl PageRunEntry {
    /// The address after the last page; `None` when there is none.
    pub fn end(&self) -> Option<u64> {
        u64::from(self.pages).checked_mul(PAGE_SIZE)?.checked_add(self.address)
    }

    fn check(&self) -> Result<(), (&'static str, u64)> {
        if self.address & PAGE_SIZE.wrapping_sub(1) != 0 {
            return Err(("address", self.address));
        }
        if self.pages == 0 || self.end().is_none() {
            return Err(("page count", u64::from(self.pages)));
        }
        if self.reserved != 0 {
            return Err(("reserved word", u64::from(self.reserved)));
        }
        match self.codec {
            Codec::Zero => self.check_zero(),
            Codec::Plain | Codec::Lz4 | Codec::Zstd | Codec::Delta | Codec::PackedDelta => self.check_stored(),
        }
    }

    fn check_zero(&self) -> Result<(), (&'static str, u64)> {
        let facts = [
            ("offset of a zero run", self.offset),
            ("generation of a zero run", self.generation),
            ("check sum of a zero run", self.xxh3),
            ("segment of a zero run", u64::from(self.segment)),
            ("length of a zero run", u64::from(self.length)),
            ("stored pages of a zero run", u64::from(self.stored)),
            ("skip of a zero run", u64::from(self.skip)),
        ];
        facts.into_iter().find(|fact| fact.1 != 0).map_or(Ok(()), Err)
    }

    fn check_stored(&self) -> Result<(), (&'static str, u64)> {
        if self.stored == 0 || self.stored > RUN_PAGES {
            return Err(("count of stored pages", u64::from(self.stored)));
        }
        let last = u64::from(self.skip).saturating_add(u64::from(self.pages));
        if last > u64::from(self.stored) {
            return Err(("place in its stored pages", last));
        }
        let plain = u64::from(self.stored).saturating_mul(PAGE_SIZE);
        let length = u64::from(self.length);
        let fits = match self.codec {
            Codec::Plain => length == plain,
            Codec::Zero | Codec::Lz4 | Codec::Zstd => length > 0 && length < plain,
            // Behind the entry of what they change.
            Codec::Delta | Codec::PackedDelta => length > DELTA_HEAD && length < plain,
        };
        if !fits || self.offset.checked_add(length).is_none() {
            return Err(("stored length", length));
        }
        Ok(())
    }
}
