//! Reading all of an image to say whether it is whole.

use hdcr_layout::{Codec, PageRunEntry};

use crate::error::ImageError;
use crate::index::PageRun;
use crate::reader::{ImageReader, identity};

/// How far a verification has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Stored bytes checked.
    pub done: u64,
    /// Stored bytes in all.
    pub total: u64,
}

/// What was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verified {
    /// Frames, as the manifest counts them: all were read when the image was opened.
    pub frames: u64,
    /// Stored runs, each read and decompressed.
    pub runs: usize,
    /// Their stored bytes.
    pub stored: u64,
}

impl ImageReader {
    /// Reads and checks every stored byte that a restore would use.
    pub fn verify(&self, progress: &mut dyn FnMut(Progress)) -> Result<Verified, ImageError> {
        // In the order of the file, and what several runs are pieces of once.
        let mut stored: Vec<&PageRunEntry> =
            self.spaces().flat_map(|space| self.runs(space)).map(PageRun::entry).collect();
        stored.retain(|entry| entry.codec != Codec::Zero);
        stored.sort_unstable_by_key(|entry| identity(entry));
        stored.dedup_by_key(|entry| identity(entry));
        let total = stored.iter().map(|entry| u64::from(entry.length)).fold(0, u64::saturating_add);
        let mut done = 0_u64;
        let mut bytes = Vec::new();
        for entry in &stored {
            self.read_stored(entry, &mut bytes)?;
            done = done.saturating_add(u64::from(entry.length));
            progress(Progress { done, total });
        }
        Ok(Verified { frames: self.manifest().frames.count, runs: stored.len(), stored: done })
    }
}
