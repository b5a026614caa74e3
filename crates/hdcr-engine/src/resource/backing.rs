//! Files behind mappings, programs, directories.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use hdcr_image::{Record, Tag};
use rustix::fs::{Mode, OFlags};

use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::model::{self, ObjectId};
use crate::procfs::{self, MapLine};
use crate::restore::Restore;
use crate::survey::Survey;

/// A file that is opened again by its path.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BackingRecord {
    #[prost(bytes = "vec", tag = "1")]
    path: Vec<u8>,
}

impl Record for BackingRecord {
    const TAG: Tag = Tag(0x020f);
    const VERSION: u16 = 1;
    model::prost_record!();
}

pub(crate) fn survey(_survey: &mut Survey<'_>, _pid: Pid, _line: &MapLine) -> Result<()> {
    Ok(())
}

pub(crate) fn capture(cx: &mut Capture<'_>, _pid: Pid, line: &MapLine) -> Result<ObjectId> {
    match cx.shared("backing", u64::from(line.device.0) << 32 | u64::from(line.device.1), line.inode) {
        Ok(id) => Ok(id),
        Err(id) => {
            cx.frame(id, &BackingRecord { path: line.name.clone() })?;
            Ok(id)
        }
    }
}

pub(crate) fn capture_path(cx: &mut Capture<'_>, pid: Pid, link: &str) -> Result<ObjectId> {
    let id = cx.new_id();
    let path = procfs::link(pid, link)?;
    cx.frame(id, &BackingRecord { path })?;
    Ok(id)
}

pub(crate) fn restore(cx: &mut Restore<'_>, id: ObjectId, writable: bool) -> Result<i32> {
    if let Some(file) = cx.made.get(&id) {
        return Ok(file.as_raw_fd());
    }
    let record: BackingRecord = cx.record(id)?;
    let path: PathBuf = cx.mapped(&model::path_of(&record.path));
    let flags = if writable { OFlags::RDWR } else { OFlags::RDONLY };
    let file: OwnedFd = rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::system("opening", path.display()))?;
    let file = cx.lift(file)?;
    let number = file.as_raw_fd();
    cx.made.insert(id, file);
    Ok(number)
}
