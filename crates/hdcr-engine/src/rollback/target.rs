//! The file that an action is about, and how it is reached when its turn comes.

use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Witness;
use crate::error::{Error, Result};
use crate::resource::{data, held};
use crate::route;

/// A file that is written.
#[derive(Debug)]
pub(crate) enum Target {
    /// It stays open, whatever becomes of its name.
    Open(OwnedFd),
    /// One of which nothing is open, as there may be more than can be: it is opened by its name, and must be this one.
    Named(Witness),
}

/// An open file of an action.
pub(super) enum Reached<'a> {
    Open(&'a OwnedFd),
    Anew(OwnedFd),
}

impl Deref for Reached<'_> {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        match self {
            Self::Open(file) => file,
            Self::Anew(file) => file,
        }
    }
}

impl Target {
    /// By the name of an open file.
    pub(crate) fn named(file: &OwnedFd, path: &Path) -> Result<Self> {
        Ok(Self::Named(Witness::of(file, path)?))
    }

    /// The device that it lies on.
    pub(super) fn device(&self) -> Option<u64> {
        match self {
            Self::Open(file) => rustix::fs::fstat(file).ok().map(|stat| stat.st_dev),
            Self::Named(witness) => Some(witness.device),
        }
    }

    /// The file, with the rights that are in force.
    pub(super) fn reach(&self, path: &Path) -> Result<Reached<'_>> {
        let witness = match self {
            Self::Open(file) => return Ok(Reached::Open(file)),
            Self::Named(witness) => witness,
        };
        let failed = || Error::system::<Errno>("opening a file to roll it back", path.display());
        let looked = match route::open(path, OFlags::PATH, Mode::empty()) {
            Err(Errno::ACCESS) => {
                held::beyond_links(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC).map_err(failed())
            }
            // Whatever link leads there: it is looked at who it is.
            Err(Errno::LOOP) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty()).map_err(failed())
            }
            other => other.map_err(failed()),
        }?;
        if !witness.fits(&Witness::of(&looked, path)?) {
            let what = "another file came to its name while files were rolled back".to_owned();
            return Err(Error::Changed { subject: path.display().to_string(), what });
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(data::door(&looked), flags, Mode::empty());
        Ok(Reached::Anew(file.map_err(failed())?))
    }
}
