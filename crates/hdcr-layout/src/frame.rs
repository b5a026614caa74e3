//! The block before the body of each frame.

use crate::LayoutError;
use crate::cursor::{Field, Input, Output};

/// Says which record follows and how long it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Kind of the record.
    pub tag: u16,
    /// Version of its encoding.
    pub version: u16,
    /// Length of the body in bytes.
    pub length: u32,
    /// Which object the record is about.
    pub id: u64,
    /// XXH3 (64 bits) of the first 16 bytes of this block and the body.
    pub xxh3: u64,
}

impl FrameHeader {
    const NAME: &'static str = "frame header";

    /// Encoded size in bytes.
    pub const SIZE: usize = 24;
    /// How many of these bytes the check sum covers.
    pub const CHECKED: usize = 16;

    /// Writes the block at the start of `out` and returns its size.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, LayoutError> {
        let mut out = Output::new(Self::NAME, out);
        self.tag.put(&mut out)?;
        self.version.put(&mut out)?;
        self.length.put(&mut out)?;
        self.id.put(&mut out)?;
        self.xxh3.put(&mut out)?;
        Ok(Self::SIZE)
    }

    /// Reads the block at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), LayoutError> {
        let mut input = Input::new(Self::NAME, bytes);
        let header = Self {
            tag: u16::take(&mut input, "tag")?,
            version: u16::take(&mut input, "version")?,
            length: u32::take(&mut input, "length")?,
            id: u64::take(&mut input, "id")?,
            xxh3: u64::take(&mut input, "xxh3")?,
        };
        Ok((header, Self::SIZE))
    }
}
