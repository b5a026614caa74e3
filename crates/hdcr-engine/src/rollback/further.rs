//! Names that a file has got beside those that it keeps: there is nothing of their own in them. They are removed, and not moved
//! aside: the file has as many names then as at the checkpoint, for which a program may look.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, OFlags};
use rustix::io::Errno;

use super::steps::Steps;
use super::{Entry, Plan, Undo, Witness, bytes, undo};
use crate::error::{Error, Result};
use crate::resource::data;
use crate::route;

impl Plan {
    /// Says that a name of a file is removed, to be made again when the restore fails. It may be removed when that is on the
    /// disk ([`Plan::sync`]). `false`: the file could not be found again without it, and nothing was said.
    pub(crate) fn will_unname(&mut self, path: &Path, file: &OwnedFd) -> Result<bool> {
        let entry = Entry { undo: Undo::NameAgain.into(), path: bytes(path), ..Entry::default() };
        let entry = Witness::of(file, path)?.into_entry(entry);
        if undo::elsewhere(&entry, path, OFlags::PATH | OFlags::CLOEXEC).is_none() {
            return Ok(false);
        }
        self.write_down(entry)?;
        Ok(true)
    }

    /// Removes a name of which that was said.
    pub(crate) fn unname(&mut self, path: &Path, file: &OwnedFd) -> Result<()> {
        self.steps.step("remove", path);
        let is_it = Witness::at(path).is_some_and(|there| Witness::of(file, path).is_ok_and(|it| it.fits(&there)));
        if !is_it {
            return Ok(());
        }
        match route::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Error::system("removing a name", path.display())(error)),
        }
    }
}

/// Makes a name again, if it is free.
pub(super) fn name_again(entry: &Entry, target: &Path, steps: &Steps) -> Result<()> {
    let failed = Error::system::<Errno>("making a name again", target.display());
    let Ok((above, name)) = route::place(target) else { return Ok(()) };
    if let Some(there) = Witness::at(target) {
        if !Witness::in_entry(entry).fits(&there) {
            undo::warn_of_stranger(target);
        }
        return Ok(());
    }
    let Some(file) = undo::elsewhere(entry, target, OFlags::PATH | OFlags::CLOEXEC) else {
        undo::warn_of_stranger(target);
        return Ok(());
    };
    steps.step("name", target);
    match rustix::fs::linkat(CWD, data::door(&file), &above, name, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => steps.sync_directory_of(target),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}
