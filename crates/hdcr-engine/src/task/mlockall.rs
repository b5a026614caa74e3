//! `mlockall(MCL_FUTURE)`: that memory mapped from now on is locked. What is locked already shows in each mapping.
//!
//! Nothing shows it, so it is tried: of a new page that is locked no part can be given back (`MADV_DONTNEED` is refused), and
//! one that is locked only on its first use is not there yet.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::Tid;
use crate::memory::room;
use crate::model;
use crate::restore::Restore;

pub(crate) struct MlockAll;

/// What is to come.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MlockAllRecord {
    /// `MCL_FUTURE`, perhaps with `MCL_ONFAULT`; 0: nothing.
    #[prost(uint32, tag = "1")]
    flags: u32,
}

const FUTURE: u32 = 2;
const ON_FAULT: u32 = 4;
const PAGE: u64 = 4096;

impl Record for MlockAllRecord {
    const TAG: Tag = Tag(0x0311);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Places of the replies.
pub(crate) struct Asked {
    map: usize,
    give_back: usize,
    present: usize,
}

impl TaskKind for MlockAll {
    type Record = MlockAllRecord;
    type Asked = Asked;
    const SITE: Site = Site::Process;

    fn ask(_task: &TaskView, batch: &mut Batch) -> Asked {
        let present = batch.room(8);
        let flags = Arg::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let args = [Arg::Value(0), Arg::Value(PAGE), Arg::from(libc::PROT_READ), flags, Arg::from(-1), Arg::Value(0)];
        let map = batch.try_call(libc::SYS_mmap, &args);
        let page = [Arg::Result(map), Arg::Value(PAGE)];
        batch.try_call(libc::SYS_mincore, &[page[0], page[1], Arg::Data(present)]);
        let give_back = batch.try_call(libc::SYS_madvise, &[page[0], page[1], Arg::from(libc::MADV_DONTNEED)]);
        batch.try_call(libc::SYS_munmap, &page);
        Asked { map, give_back, present }
    }

    fn capture(_cx: &mut Capture<'_>, task: &TaskView, asked: Asked, replies: &Replies) -> Result<MlockAllRecord> {
        let missing = || model::no_reply(task, "mlockall");
        let present = replies.word(asked.present).ok_or_else(missing)? & 1 == 1;
        let again = -i64::from(libc::EAGAIN);
        let flags = match (
            replies.result(asked.map).ok_or_else(missing)?,
            replies.result(asked.give_back).ok_or_else(missing)?,
        ) {
            // More than may be locked: only a locked mapping is refused so.
            (map, _) if map == again => FUTURE,
            (map, _) if map == -i64::from(libc::ENOMEM) => {
                return Err(Error::refuse(room::no_mapping(task, room::most_mappings())));
            }
            (map, _) if map < 0 => return Err(missing()),
            (_, 0) => 0,
            _ if present => FUTURE,
            _ => FUTURE | ON_FAULT,
        };
        Ok(MlockAllRecord { flags })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: MlockAllRecord) -> Result<()> {
        if record.flags != 0 {
            let args = [Arg::Value(record.flags.into())];
            // Without MCL_CURRENT it touches no mapping that is there.
            cx.batch(Stage::Thread, task).call("locking future memory", libc::SYS_mlockall, &args);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = MlockAllRecord { flags: FUTURE | ON_FAULT };
        assert_eq!(MlockAllRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
