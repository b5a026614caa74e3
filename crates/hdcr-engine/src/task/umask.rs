//! `umask(2)` of a process, as `/proc/PID/status` shows it (Linux 4.7).

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::Result;
use crate::ids::Tid;
use crate::model;
use crate::restore::Restore;

pub(crate) struct Umask;

/// The mask.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct UmaskRecord {
    #[prost(uint32, tag = "1")]
    mask: u32,
}

impl Record for UmaskRecord {
    const TAG: Tag = Tag(0x0302);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl TaskKind for Umask {
    type Record = UmaskRecord;
    type Asked = ();
    const SITE: Site = Site::Process;

    fn ask(_task: &TaskView, _batch: &mut Batch) {}

    fn capture(_cx: &mut Capture<'_>, task: &TaskView, (): (), _replies: &Replies) -> Result<UmaskRecord> {
        let mask = task.status.octal("Umask").ok_or_else(|| model::no_reply(task, "Umask in status"))?;
        Ok(UmaskRecord { mask: model::low32(mask) })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: UmaskRecord) -> Result<()> {
        cx.batch(Stage::Process, task).call("setting the umask", libc::SYS_umask, &[Arg::Value(record.mask.into())]);
        Ok(())
    }
}
