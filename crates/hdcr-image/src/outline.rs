//! What an image tells soon, and without a promise.

use hdcr_layout::tag;

use crate::error::ImageError;
use crate::frames::{Frame, Frames};
use crate::manifest::Manifest;
use crate::reader::{frames_part, read_manifest};
use crate::record::Tag;
use crate::sink::Source;

/// The manifest of an image, and its frames without the index of its pages, which may be longer than all else. Each frame is
/// checked by its own sum, and nothing vouches for all of them: that an [`crate::ImageReader`] is opened does. So this is for
/// what has to be known early, and does no harm when it is wrong.
#[derive(Debug)]
pub struct Outline {
    manifest: Manifest,
    frames: Frames,
}

impl Outline {
    /// Reads it.
    pub fn of(source: &dyn Source) -> Result<Self, ImageError> {
        let manifest = read_manifest(source)?;
        let part = frames_part(source, &manifest)?;
        let frames = Frames::glance(part.as_ref(), &manifest, Tag(tag::PAGE_INDEX))?;
        Ok(Self { manifest, frames })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The frames in the order in which they were written, without the container's own.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        self.frames.iter()
    }
}
