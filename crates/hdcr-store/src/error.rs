//! Why a store could not find, keep or remove an image.

use std::path::PathBuf;

use hdcr_image::{ErrorClass, ImageError, JobName, StoreError};

/// An operation of a store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image is not good.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Nothing of this name was ever checkpointed here.
    #[error("no checkpoint of {job} in {}", root.display())]
    NoJob {
        /// The job.
        job: JobName,
        /// The store.
        root: PathBuf,
    },
    /// The job has no checkpoint of this number.
    #[error("no checkpoint {job}@{sequence} in {}", root.display())]
    NoSnapshot {
        /// The job.
        job: JobName,
        /// The number.
        sequence: u64,
        /// The store.
        root: PathBuf,
    },
    /// It is to stay.
    #[error("{job}@{sequence} is pinned")]
    Pinned {
        /// The job.
        job: JobName,
        /// The number.
        sequence: u64,
    },
    /// What the path leads to is not an image.
    #[error("{} is {what}, not an image", path.display())]
    NotAnImage {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// No image can be written there.
    #[error("{} cannot become an image: {why}", path.display())]
    BadTarget {
        /// The path.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// A text names neither a checkpoint nor a path.
    #[error("{text:?} names no checkpoint: {reason}")]
    BadSelector {
        /// The text.
        text: String,
        /// Why not.
        reason: String,
    },
}

impl Error {
    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Image(error) => error.class(),
            Self::NoJob { .. }
            | Self::NoSnapshot { .. }
            | Self::Pinned { .. }
            | Self::NotAnImage { .. }
            | Self::BadTarget { .. }
            | Self::BadSelector { .. } => ErrorClass::Refused,
        }
    }
}
