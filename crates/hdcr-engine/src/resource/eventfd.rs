//! `eventfd(2)`: a 64-bit counter behind a descriptor.
//!
//! Captured: count, semaphore flag. Not captured: waiters (they are tasks, and restart their call).
//! Reads: `/proc/PID/fdinfo` (fs/eventfd.c `eventfd_show_fdinfo`; `eventfd-semaphore` since Linux 6.5).

use std::os::fd::OwnedFd;

use hdcr_image::{Record, Tag};
use rustix::event::EventfdFlags;

use super::{FileKind, FileView};
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;

pub(crate) struct EventFd;

/// What is kept of an eventfd.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct EventFdRecord {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(bool, tag = "2")]
    semaphore: bool,
}

impl Record for EventFdRecord {
    const TAG: Tag = Tag(0x0201);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl FileKind for EventFd {
    type Record = EventFdRecord;

    fn claims(view: &FileView) -> bool {
        view.is("anon_inode:[eventfd]")
    }

    fn capture(_cx: &mut Capture<'_>, view: &FileView, _file: &OwnedFd) -> Result<EventFdRecord> {
        let lines = &view.info.lines;
        let count = lines.hex("eventfd-count").ok_or_else(|| model::unreadable(view, "eventfd-count"))?;
        Ok(EventFdRecord { count, semaphore: lines.number("eventfd-semaphore") == Some(1) })
    }

    fn restore(_cx: &mut Restore<'_>, id: ObjectId, record: EventFdRecord) -> Result<OwnedFd> {
        let flags = if record.semaphore { EventfdFlags::SEMAPHORE } else { EventfdFlags::empty() };
        let file = rustix::event::eventfd(0, flags | EventfdFlags::CLOEXEC).map_err(Error::system("eventfd", id))?;
        if record.count > 0 {
            rustix::io::write(&file, &record.count.to_ne_bytes()).map_err(Error::system("filling an eventfd", id))?;
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = EventFdRecord { count: 42, semaphore: true };
        assert_eq!(EventFdRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
