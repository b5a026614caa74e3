//! The actions of a roll-back, done, and brought to the disk.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::steps::Steps;
use super::{Action, Changed, Planned, rename};
use crate::error::{Error, Result};
use crate::resource::data;
use crate::restore::Contents;
use crate::rights::Turn;
use crate::route;

/// More than so many files are not waited for one by one, but with all that their file system has to write.
pub(super) const MANY: usize = 64;

/// Does an action.
pub(super) fn apply(action: &Action, contents: &dyn Contents, steps: &Steps) -> Result<()> {
    match action {
        Action::Contents { path, file, id, size, changed } => {
            let file = file.reach(path)?;
            steps.step("write", path);
            data::fill(&file, contents, *id, *size, path)?;
            steps.step("time", path);
            set_time(&file, *changed, path)
        }
        Action::Edges { path, file, id, size, changed } => {
            let file = file.reach(path)?;
            steps.step("write", path);
            data::put_edges(&file, contents, *id, *size, path)?;
            steps.step("time", path);
            set_time(&file, *changed, path)
        }
        Action::Cut { path, file, size, changed } => {
            let file = file.reach(path)?;
            steps.step("cut", path);
            rustix::fs::ftruncate(&*file, *size).map_err(Error::system("cutting a file back", path.display()))?;
            set_time(&file, *changed, path)
        }
        Action::Place { path, from } => {
            steps.step("move", path);
            match rename(from, path) {
                Err(Errno::NOENT) if path.exists() => Ok(()),
                other => other.map_err(Error::system("giving a file its name", path.display())),
            }
        }
        Action::Aside { path, to } => {
            steps.step("move", path);
            match rename(path, to) {
                Err(Errno::NOENT) => Ok(()),
                other => other.map_err(Error::system("moving a newer file aside", path.display())),
            }
        }
    }
}

/// Waits until an action is on the disk.
fn sync(action: &Action, steps: &Steps) -> Result<()> {
    match action {
        Action::Contents { path, file, .. } | Action::Edges { path, file, .. } | Action::Cut { path, file, .. } => {
            steps.sync(&*file.reach(path)?, path)
        }
        Action::Place { path, .. } => {
            // A FIFO, or a file that its own mode forbids us to read, has nothing that a disk keeps, or is waited for below.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            if let Ok(file) = route::open(path, flags, Mode::empty()) {
                steps.sync(file, path)?;
            }
            steps.sync_directory_of(path)
        }
        Action::Aside { path, to } => {
            steps.sync_directory_of(path)?;
            steps.sync_directory_of(to)
        }
    }
}

/// The device of a directory in which something was done, if that is the device of the file as well.
fn device_of(action: &Action) -> Option<u64> {
    let directory = rustix::fs::fstat(route::directory(action.path().parent()?).ok()?).ok()?.st_dev;
    let file = match action {
        Action::Contents { file, .. } | Action::Edges { file, .. } | Action::Cut { file, .. } => file.device()?,
        Action::Place { .. } | Action::Aside { .. } => directory,
    };
    (file == directory).then_some(directory)
}

/// Waits until all actions are on the disk: when they are many, for all that their file systems have to write.
pub(super) fn sync_all(actions: &[Planned], many: bool, contents: &dyn Contents, steps: &Steps) -> Result<()> {
    let mut together: BTreeMap<u64, bool> = BTreeMap::new();
    for planned in actions {
        let _turn = Turn::to_some(planned.rights.as_ref())?;
        let device = if many { device_of(&planned.action) } else { None };
        let done = match device.map(|device| (device, together.get(&device))) {
            Some((_, Some(done))) => *done,
            Some((device, None)) => {
                let above = planned.action.path().parent().unwrap_or(Path::new("/"));
                *together.entry(device).or_insert(steps.sync_file_system_of(above)?)
            }
            None => false,
        };
        if !done {
            sync(&planned.action, steps)?;
            contents.goes_on();
        }
    }
    Ok(())
}

/// Puts the time of the last change back.
pub(crate) fn set_time(file: &OwnedFd, changed: Changed, path: &Path) -> Result<()> {
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let modified = Timespec { tv_sec: changed.seconds, tv_nsec: changed.nanoseconds.into() };
    match rustix::fs::futimens(file, &Timestamps { last_access: omit, last_modification: modified }) {
        // Only the owner may; the contents are what counts.
        Ok(()) | Err(Errno::PERM | Errno::ACCESS) => Ok(()),
        Err(error) => Err(Error::system("setting the time of a file", path.display())(error)),
    }
}
