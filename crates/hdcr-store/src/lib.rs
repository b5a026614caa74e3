//! Where images lie: a directory of jobs, an image directory, or a single file.
//!
//! Beside images: numbered entries that are written once (`entries.rs`), of which the ledger of a parallel job is made.
//!
//! Nothing is visible before all of it is durable: parts are written under a temporary name, synced, and renamed at the
//! end. What a dead writer left behind is swept; a living writer's temporaries are locked and never touched.
//!
//! ```text
//! ROOT/jobs/NAME/.lock          held for moments only; holds the last number given
//! ROOT/jobs/NAME/.extending     locked by the one writer that goes on with parts of another image
//! ROOT/jobs/NAME/.free/         segments of images that are gone, to be written over
//! ROOT/jobs/NAME/7/             a committed image: manifest, frames, pages-0; in a chain its parts are the same files as
//!                               those of the image before, by hard links
//! ROOT/.programs/DIGEST         a program or a library that images hold, under a name more (content-DIGEST there)
//! ROOT/jobs/NAME/pin-7          7 stays until somebody unpins it; holds what for
//! ROOT/jobs/NAME/.new-8-RANDOM/ one in the making; its file .live is locked by the writer
//! ROOT/jobs/NAME/.gone-3-RANDOM one being removed
//! ```
//!
//! Lock order: the job's `.lock`, then `.live`, then `.extending`, then those of parts.
#![forbid(unsafe_code)]

mod directory;
mod disk;
mod entries;
mod error;
mod file;
mod lock;
mod pins;
mod pool;
mod selector;
mod share;
mod shelf;
mod source;
mod store;

pub use directory::DirectorySink;
pub use disk::{Durability, Faults};
pub use entries::{Entries, Put};
pub use error::Error;
pub use file::FileSink;
pub use hdcr_image::{JobName, SnapshotId};
pub use pins::LONGEST_NOTE;
pub use selector::Selector;
pub use source::{DirectorySource, open_path};
pub use store::{DirectoryStore, Entry};
