//! Memory as files: memfds and shared anonymous memory.
//!
//! Captured: name, size, contents around their holes, seals, mode. Both come back as descriptors of ours, from which open
//! files and mappings are made; shared anonymous memory by a link of `/proc/self/map_files`, for which
//! `CAP_CHECKPOINT_RESTORE` is needed: without it a memfd stands in, which shows in `/proc/PID/maps` only.
//! Seals (Linux 3.17) that forbid what a restored mapping needs (`F_SEAL_FUTURE_WRITE`, 5.1) are put in by a task, when
//! all is mapped. Files in `/dev/shm` are ordinary files here: what is mapped shared there is always kept.

use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use nix::libc;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::contents::InodeRecord;
use super::data;
use super::reopen::{self, Opened};
use crate::batch::Arg;
use crate::error::{Error, Result};
use crate::model::ObjectId;
use crate::restore::Restore;
use crate::task::Stage;

/// Seals that come after the mappings.
const LATE: u32 = 0x10;

/// Makes a memfd again, filled and sealed.
pub(crate) fn make_memfd(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord) -> Result<Opened> {
    let name = OsStr::from_bytes(&record.path);
    let wrong = |what| Error::system(what, format!("memfd {}", name.display()));
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know MFD_EXEC; there it is what they do.
    let made = rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC);
    let made = match made {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        made => made,
    };
    let file = made.map_err(wrong("making a memfd"))?;
    data::fill(&file, cx.contents, id, record.size, std::path::Path::new(name))?;
    let file = cx.lift(file)?;
    reopen::own(&file, record.uid, record.gid, record.mode, std::path::Path::new(name))?;
    if record.seals & LATE == 0 {
        rustix::fs::fcntl_add_seals(&file, SealFlags::from_bits_retain(record.seals))
            .map_err(wrong("sealing a memfd"))?;
    } else if let Some(task) = cx.holders.values().flatten().map(|(pid, _)| pid.leader()).next() {
        let batch = cx.batch(Stage::Descriptors, task);
        let args = [Arg::from(file.as_raw_fd()), Arg::from(libc::F_ADD_SEALS), Arg::Value(record.seals.into())];
        batch.call("sealing a memfd", libc::SYS_fcntl, &args);
    }
    Ok(Opened::new(file))
}

/// Makes shared anonymous memory again, filled.
pub(crate) fn make_anonymous(cx: &mut Restore<'_>, id: ObjectId, record: &InodeRecord) -> Result<Opened> {
    let file = match hdcr_sys::anonymous::shared(record.size) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            rustix::fs::memfd_create("dev/zero", MemfdFlags::CLOEXEC)
                .map_err(Error::system("making shared memory", id))?
        }
        Err(error) => return Err(Error::system("making shared memory", id)(error)),
    };
    data::fill(&file, cx.contents, id, record.size, std::path::Path::new("shared memory"))?;
    Ok(Opened::new(file))
}
