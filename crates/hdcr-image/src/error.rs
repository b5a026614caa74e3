//! What can go wrong with an image, and what a caller can do about it.

use std::io;

use hdcr_layout::LayoutError;

use crate::name::{ImageId, PartName};
use crate::record::RecordError;

/// What a caller can do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorClass {
    /// It cannot be done, and nothing was touched.
    Refused,
    /// What was looked at has changed meanwhile; another try may do.
    Changed,
    /// The system failed.
    Failed,
    /// The image is not what was written.
    Corrupt,
}

/// A store could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space is left, or a quota is used up.
    #[error("no space left for {subject} while {operation}")]
    Full {
        /// What was being done.
        operation: &'static str,
        /// File or directory.
        subject: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or directory that was there is gone.
    #[error("{subject} vanished while {operation}")]
    Vanished {
        /// What was being done.
        operation: &'static str,
        /// File or directory.
        subject: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process works there and does not end.
    #[error("another process holds {subject} locked")]
    Busy {
        /// The lock.
        subject: String,
    },
    /// Anything else.
    #[error("{operation} {subject} failed")]
    System {
        /// What was being done.
        operation: &'static str,
        /// File or directory.
        subject: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// Sorts an error of the system by what it means for a store.
    pub fn new(operation: &'static str, subject: impl Into<String>, source: io::Error) -> Self {
        let subject = subject.into();
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::Full { operation, subject, source };
        }
        if source.kind() == io::ErrorKind::NotFound {
            return Self::Vanished { operation, subject, source };
        }
        Self::System { operation, subject, source }
    }

    /// What a store that shares no parts between images answers.
    pub fn shares_nothing(subject: impl Into<String>) -> Self {
        Self::new("sharing", subject, io::ErrorKind::Unsupported.into())
    }

    /// The kind of the system's error.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Full { source, .. } | Self::Vanished { source, .. } | Self::System { source, .. } => source.kind(),
            Self::Busy { .. } => io::ErrorKind::WouldBlock,
        }
    }

    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Busy { .. } => ErrorClass::Changed,
            Self::Full { .. } | Self::Vanished { .. } | Self::System { .. } => ErrorClass::Failed,
        }
    }
}

/// An image could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A part is not what was written.
    #[error("{part} is corrupt: {reason}")]
    Corrupt {
        /// Which part.
        part: PartName,
        /// What gave it away.
        reason: String,
    },
    /// A part belongs to another image or to another use of its segment.
    #[error("{part} belongs to image {found}, not to {expected}")]
    Foreign {
        /// Which part.
        part: PartName,
        /// The image it says it is of.
        found: ImageId,
        /// The image it was found in.
        expected: ImageId,
    },
    /// A segment has been used for something else since.
    #[error("{part} was written over: generation {found} where {expected} is wanted")]
    Stale {
        /// Which part.
        part: PartName,
        /// The generation found.
        found: u64,
        /// The generation wanted.
        expected: u64,
    },
    /// Written in a format that this build does not read.
    #[error("{part} is in image format version {found}; this build reads version {known}")]
    Version {
        /// Which part.
        part: PartName,
        /// The version found.
        found: u32,
        /// The version known.
        known: u32,
    },
    /// The image is only what changed since another one.
    #[error("the image is an increment on image {base}, which this build cannot resolve")]
    Increment {
        /// The image that is missing.
        base: ImageId,
    },
    /// The image is not in a chain, so no increment can go on from it.
    #[error("image {image} stands by itself: no increment can go on from it")]
    Alone {
        /// The image.
        image: ImageId,
    },
    /// A record is unknown, too new or malformed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Pages were given that are not whole pages.
    #[error("{len} bytes at {address:#x} are not whole pages")]
    NotPages {
        /// Where.
        address: u64,
        /// How many bytes.
        len: usize,
    },
    /// A frame, a list or a name is longer than the format allows.
    #[error("{what} of {len} bytes is longer than an image can hold")]
    TooLong {
        /// What.
        what: &'static str,
        /// How long.
        len: u64,
    },
    /// A compressor failed.
    #[error("compressing pages failed")]
    Compress(#[source] io::Error),
}

impl ImageError {
    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Compress(_) => ErrorClass::Failed,
            Self::Corrupt { .. } | Self::Foreign { .. } | Self::Stale { .. } => ErrorClass::Corrupt,
            Self::Record(error) => error.class(),
            Self::Version { .. }
            | Self::Increment { .. }
            | Self::Alone { .. }
            | Self::NotPages { .. }
            | Self::TooLong { .. } => ErrorClass::Refused,
        }
    }

    pub(crate) fn corrupt(part: PartName, reason: impl Into<String>) -> Self {
        Self::Corrupt { part, reason: reason.into() }
    }

    pub(crate) fn layout(part: PartName, error: LayoutError) -> Self {
        match error {
            LayoutError::Version { found } => Self::Version { part, found, known: hdcr_layout::FORMAT_VERSION },
            LayoutError::Short { .. }
            | LayoutError::NoRoom { .. }
            | LayoutError::Invalid { .. }
            | LayoutError::NotOurs => Self::corrupt(part, error.to_string()),
        }
    }
}
