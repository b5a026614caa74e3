//! Files that a path leads to, and the slots of descriptor tables.

use crate::cursor::{Field, Input, Output, fixed_layout};
use crate::{LayoutError, tag};

/// The longest path that the kernel takes, without its final zero byte.
pub const PATH_LIMIT: usize = 4095;

/// An open file description that is made again by opening a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathFile<'a> {
    /// Which description.
    pub object: u64,
    /// Its position.
    pub offset: u64,
    /// `O_*`.
    pub flags: u32,
    /// Type and permissions of the file, as `stat` shows them.
    pub mode: u32,
    /// Where it lies. Any bytes but zero; never empty.
    pub path: &'a [u8],
}

impl<'a> PathFile<'a> {
    /// The number of this kind in an image.
    pub const TAG: u16 = tag::PATH_FILE;
    /// Raised when a field changes its meaning.
    pub const VERSION: u16 = 1;
    /// The name that messages use.
    pub const NAME: &'static str = "PathFile";
    /// Encoded size in bytes, without the path.
    pub const FIXED_SIZE: usize = 28;

    /// Encoded size in bytes.
    pub fn size(&self) -> usize {
        Self::FIXED_SIZE.saturating_add(self.path.len())
    }

    /// Writes the record at the start of `out` and returns its size.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, LayoutError> {
        let length = self.checked_length()?;
        let mut out = Output::new(Self::NAME, out);
        self.object.put(&mut out)?;
        self.offset.put(&mut out)?;
        self.flags.put(&mut out)?;
        self.mode.put(&mut out)?;
        length.put(&mut out)?;
        out.bytes(self.path)?;
        Ok(self.size())
    }

    /// Reads a record from the start of `bytes` and returns it with its size.
    pub fn decode(bytes: &'a [u8]) -> Result<(Self, usize), LayoutError> {
        let mut input = Input::new(Self::NAME, bytes);
        let object = u64::take(&mut input, "object")?;
        let offset = u64::take(&mut input, "offset")?;
        let flags = u32::take(&mut input, "flags")?;
        let mode = u32::take(&mut input, "mode")?;
        let length = u32::take(&mut input, "path length")?;
        let too_long = input.invalid("path length", u64::from(length));
        let path = input.bytes(usize::try_from(length).map_err(|_| too_long)?)?;
        let file = Self { object, offset, flags, mode, path };
        file.checked_length()?;
        Ok((file, file.size()))
    }

    fn checked_length(&self) -> Result<u32, LayoutError> {
        let invalid = |field, value| LayoutError::Invalid { record: Self::NAME, field, value };
        let length = u32::try_from(self.path.len()).unwrap_or(u32::MAX);
        if self.path.is_empty() || self.path.len() > PATH_LIMIT {
            return Err(invalid("path length", u64::from(length)));
        }
        if self.path.contains(&0) {
            return Err(invalid("byte in its path", 0));
        }
        Ok(length)
    }
}

fixed_layout! {
    /// A slot of a descriptor table.
    DescriptorEntry, tag tag::DESCRIPTOR_ENTRY, version 1, check DescriptorEntry::check, {
        /// The open file description.
        object: u64,
        /// The descriptor's number.
        fd: i32,
        /// `FD_CLOEXEC` or nothing.
        flags: u32,
    }
}

impl DescriptorEntry {
    fn check(&self) -> Result<(), (&'static str, u64)> {
        if self.fd < 0 {
            return Err(("descriptor", u64::from(self.fd.unsigned_abs())));
        }
        Ok(())
    }
}
