//! Resource limits of a process (`getrlimit(2)`).
//!
//! Read from `/proc/PID/limits`: prlimit(2) on another's process takes `CAP_SYS_RESOURCE`. Put back by the process itself, after
//! everything that a low limit would forbid. Time counted against `RLIMIT_CPU` starts anew.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView, own};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::model;
use crate::procfs::{self, Limits};
use crate::restore::Restore;

pub(crate) struct Rlimits;

/// All limits.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RlimitsRecord {
    #[prost(message, repeated, tag = "1")]
    limits: Vec<Limit>,
}

/// One limit; `u64::MAX`, as the kernel has it, is none.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Limit {
    #[prost(uint32, tag = "1")]
    resource: u32,
    #[prost(uint64, tag = "2")]
    soft: u64,
    #[prost(uint64, tag = "3")]
    hard: u64,
}

/// Names in `/proc/PID/limits`, in the order of their numbers.
const NAMES: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

impl Record for RlimitsRecord {
    const TAG: Tag = Tag(0x030b);
    const VERSION: u16 = 1;
    model::prost_record!();
}

fn name_of(resource: u32) -> Option<&'static str> {
    NAMES.get(usize::try_from(resource).ok()?).copied()
}

fn limits_of(pid: Pid) -> Result<RlimitsRecord> {
    limits_in(pid, &procfs::limits(pid)?)
}

/// The limits of a process; a line that is not there, or one with a name unknown here, is an error.
fn limits_in(pid: Pid, found: &Limits) -> Result<RlimitsRecord> {
    let row = |(resource, name): (u32, &&str)| {
        let (soft, hard) = found.get(*name)?;
        Some(Limit { resource, soft: soft.unwrap_or(u64::MAX), hard: hard.unwrap_or(u64::MAX) })
    };
    let limits: Option<Vec<Limit>> = (0..).zip(&NAMES).map(row).collect();
    let complete = limits.filter(|limits| limits.len() == found.len());
    let changed = || Error::Changed { subject: format!("process {pid}"), what: "unknown lines in limits".to_owned() };
    Ok(RlimitsRecord { limits: complete.ok_or_else(changed)? })
}

/// The limits that a user with limits `own` cannot set; with `CAP_SYS_RESOURCE`: none.
pub(crate) fn check(task: Tid, record: &RlimitsRecord, own: &RlimitsRecord) -> Vec<Refusal> {
    let hard_of = |resource| own.limits.iter().find(|limit| limit.resource == resource).map_or(0, |limit| limit.hard);
    let refusal = |limit: &Limit| Refusal {
        code: "limit-above-own",
        object: format!("limit \"{}\"", name_of(limit.resource).unwrap_or("?")),
        owner: Owner { pid: Some(Pid(task.0)), ..Owner::default() },
        cause: format!(
            "its hard limit {} is above the {} of this user",
            shown(limit.hard),
            shown(hard_of(limit.resource))
        ),
        remedy: "raise the hard limit of the shell that runs hdcr, or give it CAP_SYS_RESOURCE".to_owned(),
    };
    record.limits.iter().filter(|limit| limit.hard > hard_of(limit.resource)).map(refusal).collect()
}

fn shown(value: u64) -> String {
    if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() }
}

impl TaskKind for Rlimits {
    type Record = RlimitsRecord;
    type Asked = ();
    const SITE: Site = Site::Process;

    fn ask(_task: &TaskView, _batch: &mut Batch) {}

    fn capture(cx: &mut Capture<'_>, task: &TaskView, (): (), _replies: &Replies) -> Result<RlimitsRecord> {
        let text = cx.seen.texts.take(task.pid, "limits")?;
        limits_in(task.pid, &procfs::parse_limits(&String::from_utf8_lossy(&text)))
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: RlimitsRecord) -> Result<()> {
        for limit in &record.limits {
            if name_of(limit.resource).is_none() || limit.soft > limit.hard {
                return Err(Error::Unsound(format!("task {task} has a resource limit that cannot be")));
            }
            let batch = cx.batch(Stage::Limits, task);
            let new = batch.bytes(&limit.soft.to_le_bytes());
            batch.bytes(&limit.hard.to_le_bytes());
            let args = [Arg::Value(0), Arg::Value(limit.resource.into()), Arg::Data(new), Arg::Value(0)];
            batch.call("setting a resource limit", libc::SYS_prlimit64, &args);
        }
        Ok(())
    }

    fn obstacles(task: Tid, record: &RlimitsRecord) -> Result<Vec<Refusal>> {
        if own::rules_system(own::CAP_SYS_RESOURCE)? {
            return Ok(Vec::new());
        }
        Ok(check(task, record, &limits_of(own::pid())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(hard: u64) -> RlimitsRecord {
        RlimitsRecord { limits: vec![Limit { resource: 7, soft: 1, hard }] }
    }

    #[test]
    fn only_a_higher_hard_limit_stands_in_the_way() {
        assert_eq!(check(Tid(1), &record(9), &record(9)), vec![]);
        let found = check(Tid(1), &record(u64::MAX), &record(9));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].cause, "its hard limit unlimited is above the 9 of this user");
    }

    #[test]
    fn all_limits_of_this_process_are_known() {
        let own = limits_of(Pid(i32::try_from(std::process::id()).unwrap())).unwrap();
        assert_eq!(own.limits.len(), NAMES.len());
        assert_eq!(Rlimits::obstacles(Tid(1), &own).unwrap(), vec![]);
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = record(u64::MAX);
        assert_eq!(RlimitsRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
