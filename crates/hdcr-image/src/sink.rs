//! What a store implements: where parts are written, and where they are read.

use std::fmt::Debug;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use crate::error::StoreError;
use crate::name::{ContentKey, PartName, SnapshotId};

/// A part in the making.
pub trait WritePart: Send + Debug {
    /// Which use of the part this is: one more than the last one, when what was there is written over.
    fn generation(&self) -> u64 {
        1
    }

    /// Appends all the bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Says that nothing follows.
    fn close(self: Box<Self>) -> Result<(), StoreError>;
}

/// An image in the making. Nothing of it is visible before [`Sink::commit`]; dropping it before is an abort.
pub trait Sink: Send + Debug {
    /// What the image will be called.
    fn snapshot(&self) -> &SnapshotId;

    /// The directory in which the image is made, if it is one.
    fn home(&self) -> Option<&Path> {
        None
    }

    /// Begins a part. Each name at most once, never the manifest.
    fn part(&mut self, name: PartName) -> Result<Box<dyn WritePart>, StoreError>;

    /// Whether an image here can share parts with that one.
    fn can_share(&self, _base: &SnapshotId) -> bool {
        false
    }

    /// Takes a part of a committed image over as it is.
    fn share(&mut self, base: &SnapshotId, name: PartName) -> Result<(), StoreError> {
        Err(StoreError::shares_nothing(format!("{name} of {base}")))
    }

    /// The same, and goes on writing at this offset, where that image's bytes end. What lies behind it belongs to no
    /// image and is written over. `Busy` says that it belongs to one, or that somebody else goes on there already: what
    /// is to be written has to go to a part of its own.
    fn extend(&mut self, base: &SnapshotId, name: PartName, at: u64) -> Result<Box<dyn WritePart>, StoreError> {
        Err(StoreError::shares_nothing(format!("{name} of {base} from {at} on")))
    }

    /// Opens a part of this image that is shared, or as far as it is written.
    fn reader(&self, name: PartName) -> Result<Box<dyn ReadPart>, StoreError> {
        Err(StoreError::shares_nothing(name.to_string()))
    }

    /// Takes a file that has no name yet, and lies on the file system on which the image does, as a part.
    fn attach(&mut self, name: PartName, _file: File) -> Result<(), StoreError> {
        Err(StoreError::shares_nothing(name.to_string()))
    }

    /// The bytes for which there is room yet where contents are kept that many images have in common. `None`: there is no
    /// such place.
    fn room_in_common(&mut self) -> Option<u64> {
        None
    }

    /// Makes contents that are kept there already, and are so long, a part of this image too. `false`: they are not there.
    fn take_in_common(&mut self, _key: &ContentKey, _size: u64) -> bool {
        false
    }

    /// Keeps there what a file holds, all `size` bytes of it, and makes it a part of this image; its key. `None`: it cannot be
    /// kept.
    fn keep_in_common(&mut self, _file: &File, _size: u64) -> Result<Option<ContentKey>, StoreError> {
        Ok(None)
    }

    /// Says that nothing refers to these bytes of a part of this image: their room can be given back. All parts are closed.
    fn unused(&mut self, _name: PartName, _range: Range<u64>) {}

    /// Takes the manifest and makes everything durable, all parts being closed. It is still not visible.
    fn persist(&mut self, manifest: &[u8]) -> Result<(), StoreError>;

    /// Makes the image visible, and that durable. On an error nothing is visible.
    fn commit(self: Box<Self>) -> Result<(), StoreError>;

    /// Removes all that was written.
    fn abort(self: Box<Self>) -> Result<(), StoreError>;
}

/// A part to be read.
pub trait ReadPart: Send + Sync + Debug {
    /// Its present length in bytes.
    fn size(&self) -> Result<u64, StoreError>;

    /// Fills `into` from this offset; an end before that is an error of kind `UnexpectedEof`.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError>;

    /// The file that it is, opened, where it is one of its own.
    fn file(&self) -> Result<Option<File>, StoreError> {
        Ok(None)
    }
}

/// A committed image.
pub trait Source: Send + Sync + Debug {
    /// Opens a part. What was opened stays readable when the image is removed meanwhile.
    fn part(&self, name: PartName) -> Result<Box<dyn ReadPart>, StoreError>;

    /// What it has in common with other images of programs, if it has any.
    fn contents_in_common(&self) -> Option<Box<dyn CommonContents>> {
        None
    }
}

/// Whole files that an image has in common with others.
pub trait CommonContents: Send + Sync + Debug {
    /// Opens what has this key, for reading. Nobody has looked at what it holds.
    fn open(&self, key: &ContentKey) -> Result<File, StoreError>;
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn part(&self, name: PartName) -> Result<Box<dyn ReadPart>, StoreError> {
        (**self).part(name)
    }

    fn contents_in_common(&self) -> Option<Box<dyn CommonContents>> {
        (**self).contents_in_common()
    }
}
