//! `signalfd(2)`: a mask of signals; the signals themselves are those of the tasks.
//!
//! Captured: the mask. Reads: `/proc/PID/fdinfo` (fs/signalfd.c `signalfd_show_fdinfo`, since Linux 3.8).

use std::os::fd::OwnedFd;

use hdcr_image::{Record, Tag};

use super::{FileKind, FileView};
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;

pub(crate) struct SignalFd;

/// What is kept of a signalfd.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SignalFdRecord {
    #[prost(uint64, tag = "1")]
    mask: u64,
}

impl Record for SignalFdRecord {
    const TAG: Tag = Tag(0x0261);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl FileKind for SignalFd {
    type Record = SignalFdRecord;

    fn claims(view: &FileView) -> bool {
        view.is("anon_inode:[signalfd]")
    }

    fn capture(_cx: &mut Capture<'_>, view: &FileView, _file: &OwnedFd) -> Result<SignalFdRecord> {
        let mask = view.info.lines.hex("sigmask").ok_or_else(|| model::unreadable(view, "sigmask"))?;
        Ok(SignalFdRecord { mask })
    }

    fn restore(_cx: &mut Restore<'_>, id: ObjectId, record: SignalFdRecord) -> Result<OwnedFd> {
        hdcr_sys::signalfd::new(record.mask).map_err(Error::system("signalfd", id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs;
    use crate::resource::scene::own_pid;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_mask_with_real_time_signals_comes_back() {
        let mask = 1 << 63 | 1 << 39 | 1 << 9;
        let file = hdcr_sys::signalfd::new(mask).unwrap();
        let info = procfs::fd_info(own_pid(), crate::ids::Fd(file.as_raw_fd())).unwrap();
        assert_eq!(info.lines.hex("sigmask"), Some(mask));
        let record = SignalFdRecord { mask };
        assert_eq!(SignalFdRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
