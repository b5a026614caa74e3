//! The block at the start of each part of an image.

use crate::LayoutError;
use crate::cursor::{Field, Input, Output, stored_enum};

/// The first bytes of each part. The last two show a transfer in text mode.
pub const MAGIC: [u8; 8] = *b"HDCR\x1a\r\n\0";

/// The newest format that this build writes and reads.
pub const FORMAT_VERSION: u32 = 2;

/// The format of images that stand by themselves; what is newer is in a chain.
pub const ALONE_VERSION: u32 = 1;

stored_enum! {
    /// Which part of an image a file is.
    PartKind: u32 {
        /// The small self-describing root.
        Manifest = 1,
        /// The frames.
        Frames = 2,
        /// A segment of stored pages.
        Pages = 3,
        /// All parts of an image in one file.
        Bundle = 4,
        /// A log of the page index.
        Index = 5,
        /// An image that the kernel module wrote by itself, in one file.
        Alone = 6,
    }
}

/// Says what a part is and to which image it belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The format that the part is in.
    pub version: u32,
    /// Which part.
    pub kind: PartKind,
    /// The unique id of the image that began the part.
    pub image: [u8; 16],
    /// Number of the segment or log; 0 for other parts.
    pub number: u32,
    /// Stamp of the present use of a segment or log; 0 for other parts.
    pub generation: u64,
}

impl Header {
    const NAME: &'static str = "part header";

    /// Encoded size in bytes.
    pub const SIZE: usize = 64;

    /// Writes the block at the start of `out` and returns its size.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, LayoutError> {
        let mut out = Output::new(Self::NAME, out);
        MAGIC.put(&mut out)?;
        self.version.put(&mut out)?;
        self.kind.put(&mut out)?;
        self.image.put(&mut out)?;
        self.generation.put(&mut out)?;
        self.number.put(&mut out)?;
        [0_u8; 20].put(&mut out)?;
        Ok(Self::SIZE)
    }

    /// Reads the block at the start of `bytes`. Unknown versions are refused before anything else is looked at.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), LayoutError> {
        let mut input = Input::new(Self::NAME, bytes);
        if input.array::<8>()? != MAGIC {
            return Err(LayoutError::NotOurs);
        }
        let version = u32::take(&mut input, "version")?;
        if !(ALONE_VERSION..=FORMAT_VERSION).contains(&version) {
            return Err(LayoutError::Version { found: version });
        }
        let kind = PartKind::take(&mut input, "kind")?;
        let image = input.array()?;
        let generation = u64::take(&mut input, "generation")?;
        let number = u32::take(&mut input, "number")?;
        if let Some(odd) = input.array::<20>()?.iter().find(|byte| **byte != 0) {
            return Err(input.invalid("reserved byte", u64::from(*odd)));
        }
        let header = Self { version, kind, image, number, generation };
        Ok((header, Self::SIZE))
    }
}
