//! The container of an HDCR image: frames, page runs and the manifest that vouches for them.
//!
//! An image is a few named parts that a store keeps: the manifest, the frames, and segments of pages. This crate knows
//! their bytes and checks all of them before it lets anything out; it knows no file, no clock and no record by name.
//! `docs/format.md` describes the bytes.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

pub mod bundle;
mod chain;
mod compress;
mod delta;
mod error;
mod frames;
mod group;
mod index;
mod ledger;
mod log;
mod manifest;
mod memory;
mod name;
mod number;
mod outline;
mod pack;
mod pages;
mod reader;
mod record;
pub mod sample;
mod segments;
mod shadow;
mod sink;
mod squash;
mod verify;
mod wire;
mod workers;
mod writer;

pub use chain::Chain;
pub use compress::Compression;
pub use error::{ErrorClass, ImageError, StoreError};
pub use frames::{FRAME_LIMIT, Frame};
pub use group::GroupBuffers;
pub use hdcr_layout::PAGE_SIZE;
pub use index::PageRun;
pub use manifest::{
    Clocks, CloneFacts, Digest, FramesFacts, LogFacts, Manifest, ManifestFacts, PageFacts, ProcessName, SegmentFacts,
};
pub use memory::{MemoryImage, MemorySink, MemorySource};
pub use name::{ContentKey, ImageId, JobName, NameError, PartName, SnapshotId};
pub use outline::Outline;
pub use reader::{ImageReader, StoredBy};
pub use record::{KnownTag, List, Record, RecordError, Tag, decode_wire, encode_wire, first_unknown};
pub use sink::{CommonContents, ReadPart, Sink, Source, WritePart};
pub use verify::{Progress, Verified};
pub use writer::{Committed, Durable, ImageWriter, Options};

#[doc(hidden)]
pub use hdcr_layout;
#[doc(hidden)]
pub use prost;
