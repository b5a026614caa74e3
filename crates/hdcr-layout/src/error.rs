//! What can be wrong with the bytes of a record.

use core::fmt;

/// Why a record could not be encoded or decoded. The class is always `Corrupt` (the bytes) or a caller's mistake (the room).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayoutError {
    /// The input ends inside the record.
    Short {
        /// The record.
        record: &'static str,
        /// Bytes that were missing.
        missing: usize,
    },
    /// The output has no room for the record.
    NoRoom {
        /// The record.
        record: &'static str,
        /// Bytes that did not fit.
        missing: usize,
    },
    /// A field holds a value that this record can never have.
    Invalid {
        /// The record.
        record: &'static str,
        /// The field.
        field: &'static str,
        /// The value found.
        value: u64,
    },
    /// The magic is not ours.
    NotOurs,
    /// Written in a format that this build does not read.
    Version {
        /// The version found.
        found: u32,
    },
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { record, missing } => write!(f, "{record} ends {missing} bytes early"),
            Self::NoRoom { record, missing } => {
                write!(f, "no room for {missing} bytes of {record}")
            }
            Self::Invalid { record, field, value } => {
                write!(f, "{record} has an impossible {field} ({value:#x})")
            }
            Self::NotOurs => f.write_str("not a part of an HDCR image"),
            Self::Version { found } => write!(f, "image format version {found} is not one that this build reads"),
        }
    }
}
