//! Reading an image from a directory or a file.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hdcr_image::bundle::BundleSource;
use hdcr_image::{CommonContents, ContentKey, PartName, ReadPart, Source, StoreError};
use rustix::fs::{Mode, OFlags};

use crate::disk::failed;
use crate::error::Error;
use crate::lock;

/// A committed image in a directory.
#[derive(Debug)]
pub struct DirectorySource {
    path: PathBuf,
    directory: Arc<OwnedFd>,
}

impl DirectorySource {
    /// Opens the directory; it may be renamed afterwards.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let directory =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed("opening", path, error.into()))?;
        Ok(Self { path: path.to_owned(), directory: Arc::new(directory) })
    }

    /// Opens a part that belongs to nobody else yet.
    pub(crate) fn own_part(&self, name: PartName) -> Result<Box<dyn ReadPart>, StoreError> {
        Ok(Box::new(self.open_part(name)?))
    }

    fn open_part(&self, name: PartName) -> Result<FilePart, StoreError> {
        let file_name = name.to_string();
        let path = self.path.join(&file_name);
        FilePart::open(&self.directory, &file_name, path)
    }
}

impl Source for DirectorySource {
    fn part(&self, name: PartName) -> Result<Box<dyn ReadPart>, StoreError> {
        let part = self.open_part(name)?;
        if matches!(name, PartName::Clone(_)) {
            let directory = Arc::clone(&self.directory);
            return Ok(Box::new(ClonePart { directory, name: name.to_string(), path: part.path }));
        }
        // As long as it is open, nobody writes over it.
        lock::hold(&part.file, &part.path)?;
        Ok(Box::new(part))
    }

    fn contents_in_common(&self) -> Option<Box<dyn CommonContents>> {
        Some(Box::new(InDirectory { path: self.path.clone(), directory: Arc::clone(&self.directory) }))
    }
}

/// The whole files of an image, opened when they are asked for: nobody writes over them.
#[derive(Debug)]
struct InDirectory {
    path: PathBuf,
    directory: Arc<OwnedFd>,
}

impl CommonContents for InDirectory {
    fn open(&self, key: &ContentKey) -> Result<File, StoreError> {
        let name = key.part();
        Ok(FilePart::open(&self.directory, &name, self.path.join(&name))?.file)
    }
}

/// A regular file.
#[derive(Debug)]
struct FilePart {
    file: File,
    path: PathBuf,
}

impl FilePart {
    fn open(directory: &OwnedFd, name: &str, path: PathBuf) -> Result<Self, StoreError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::openat(directory, name, flags, Mode::empty())
            .map_err(|error| failed("opening", &path, error.into()))?;
        Self::new(File::from(file), path)
    }

    fn new(file: File, path: PathBuf) -> Result<Self, StoreError> {
        let kind = file.metadata().map_err(|error| failed("reading", &path, error))?.file_type();
        if !kind.is_file() {
            let other = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
            return Err(failed("opening", &path, other));
        }
        Ok(Self { file, path })
    }
}

impl ReadPart for FilePart {
    fn size(&self) -> Result<u64, StoreError> {
        let metadata = self.file.metadata().map_err(|error| failed("reading", &self.path, error))?;
        Ok(metadata.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        self.file.read_exact_at(into, offset).map_err(|error| failed("reading", &self.path, error))
    }
}

/// A clone of a file of the program, opened when it is asked for: there may be many, and nobody writes over them.
#[derive(Debug)]
struct ClonePart {
    directory: Arc<OwnedFd>,
    name: String,
    path: PathBuf,
}

impl ClonePart {
    fn open(&self) -> Result<FilePart, StoreError> {
        FilePart::open(&self.directory, &self.name, self.path.clone())
    }
}

impl ReadPart for ClonePart {
    fn size(&self) -> Result<u64, StoreError> {
        self.open()?.size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        self.open()?.read_at(offset, into)
    }

    fn file(&self) -> Result<Option<File>, StoreError> {
        Ok(Some(self.open()?.file))
    }
}

/// Opens the image that a path leads to: an image directory, or one in a single file.
pub fn open_path(path: &Path) -> Result<Box<dyn Source>, Error> {
    let kind = std::fs::metadata(path).map_err(|error| failed("opening", path, error))?.file_type();
    let not_an_image = |what| Error::NotAnImage { path: path.to_owned(), what };
    if kind.is_dir() {
        if !path.join(PartName::Manifest.to_string()).exists() {
            return Err(not_an_image("a directory without a manifest"));
        }
        return Ok(Box::new(DirectorySource::open(path)?));
    }
    if !kind.is_file() {
        return Err(not_an_image("a special file"));
    }
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file =
        OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| failed("opening", path, error))?;
    let part = FilePart::new(file, path.to_owned())?;
    // As long as it is open, nobody writes over it.
    lock::hold(&part.file, path)?;
    Ok(Box::new(BundleSource::open(Arc::new(part))?))
}
