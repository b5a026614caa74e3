//! What a process stood in that is not put back but worth knowing: its control groups and its security label.
//!
//! Here are also keyrings of its own, about which only a thread itself can be asked, and which end in a refusal.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, TaskKind, TaskView, unsupported};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::Tid;
use crate::model;
use crate::restore::Restore;
use crate::survey::Survey;

pub(crate) struct Surroundings;

/// For `hdcr show` alone.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SurroundingsRecord {
    #[prost(bytes = "vec", tag = "1")]
    cgroups: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    label: Vec<u8>,
}

/// `KEYCTL_GET_KEYRING_ID` of `<linux/keyctl.h>`, and the keyrings of a thread and of a process. Not that of the session: with
/// none, the question itself would give the task one.
const GET_KEYRING_ID: u64 = 0;
const KEYRINGS: [(i32, &str); 2] = [(-1, "thread keyring"), (-2, "process keyring")];

/// Asks a thread for keyrings of its own. That of the process as well: one that a thread begins is not that of the others
/// (`install_process_keyring` in the kernel).
pub(super) fn ask_for_keyrings(batch: &mut Batch) -> [usize; 2] {
    KEYRINGS.map(|(keyring, _)| {
        let args = [Arg::Value(GET_KEYRING_ID), Arg::from(keyring), Arg::Value(0)];
        batch.try_call(libc::SYS_keyctl, &args)
    })
}

/// Refuses a thread that has one.
pub(super) fn refuse_keyrings(task: &TaskView, asked: [usize; 2], replies: &Replies) -> Result<()> {
    for (call, (_, name)) in asked.into_iter().zip(KEYRINGS) {
        if super::optional(replies, call).is_some() {
            let cause = "the kernel does not give away the keys in it";
            let remedy = "use the keyring of the user or session";
            return Err(Error::refuse(task.refuse("keyring", name, cause, remedy)));
        }
    }
    Ok(())
}

impl Record for SurroundingsRecord {
    const TAG: Tag = Tag(0x0312);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl TaskKind for Surroundings {
    type Record = SurroundingsRecord;
    type Asked = ();
    const SITE: Site = Site::Process;

    fn survey(survey: &mut Survey<'_>, task: &TaskView) -> Result<()> {
        unsupported::of_process(survey, task);
        Ok(())
    }

    fn ask(_task: &TaskView, _batch: &mut Batch) {}

    fn capture(cx: &mut Capture<'_>, task: &TaskView, (): (), _replies: &Replies) -> Result<SurroundingsRecord> {
        let mut read = |name| cx.seen.texts.take(task.pid, name).unwrap_or_default();
        Ok(SurroundingsRecord { cgroups: read("cgroup"), label: read("attr/current") })
    }

    fn restore(_cx: &mut Restore<'_>, _task: Tid, _record: SurroundingsRecord) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = SurroundingsRecord { cgroups: b"0::/a\n".to_vec(), label: b"unconfined\n".to_vec() };
        assert_eq!(SurroundingsRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
