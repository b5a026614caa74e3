//! The memory policy of a thread (`set_mempolicy(2)`). That of a mapping (`mbind(2)`) is refused where it can matter, on
//! machines with more than one memory node.

use hdcr_image::{Record, Tag};
use nix::libc;

use super::{Site, Stage, TaskKind, TaskView};
use crate::batch::{Arg, Batch, Replies};
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::Tid;
use crate::model;
use crate::procfs;
use crate::restore::Restore;
use crate::survey::Survey;

pub(crate) struct MemPolicy;

/// The policy.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MemPolicyRecord {
    /// `MPOL_*` with its flags.
    #[prost(uint32, tag = "1")]
    mode: u32,
    /// Nodes, little endian, without zeros at the end.
    #[prost(bytes = "vec", tag = "2")]
    nodes: Vec<u8>,
}

/// Room for 1024 nodes, the most that Linux can be built for.
const MASK: usize = 128;
/// The kernel takes the number of bits plus one.
const MOST: u64 = 1025;

/// Whether memory lies in more than one place here: else a policy decides nothing.
fn has_several_nodes() -> bool {
    let online = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    online.contains(['-', ','])
}

/// Whether not all mappings have one policy: that of the task is shown for those without their own (`numa_maps`, proc(5)).
fn differ(maps: &str) -> bool {
    let mut policies = maps.lines().filter_map(|line| line.split_ascii_whitespace().nth(1));
    policies.next().is_some_and(|first| policies.any(|policy| policy != first))
}

impl Record for MemPolicyRecord {
    const TAG: Tag = Tag(0x030e);
    const VERSION: u16 = 1;
    model::prost_record!();
}

impl TaskKind for MemPolicy {
    type Record = MemPolicyRecord;
    type Asked = (usize, usize, usize);
    const SITE: Site = Site::Thread;

    fn survey(survey: &mut Survey<'_>, task: &TaskView) -> Result<()> {
        if task.tid == task.pid.leader() && *survey.common.nodes.get_or_insert_with(has_several_nodes) {
            let maps = procfs::at_once(&format!("/proc/{}/numa_maps", task.pid)).unwrap_or_default();
            if differ(&String::from_utf8_lossy(&maps)) {
                let cause = "a part of its memory has a policy of its own (mbind(2)), which cannot be put back yet";
                let remedy = "give the policy to the program as a whole (numactl(8))";
                survey.refuse(task.refuse("memory-policy", "memory policy", cause, remedy));
            }
        }
        Ok(())
    }

    fn ask(_task: &TaskView, batch: &mut Batch) -> Self::Asked {
        let (mode, nodes) = (batch.room(8), batch.room(MASK));
        let args = [Arg::Data(mode), Arg::Data(nodes), Arg::Value(MOST), Arg::Value(0), Arg::Value(0)];
        (batch.try_call(libc::SYS_get_mempolicy, &args), mode, nodes)
    }

    fn capture(
        _cx: &mut Capture<'_>,
        task: &TaskView,
        asked: Self::Asked,
        replies: &Replies,
    ) -> Result<MemPolicyRecord> {
        let (call, mode, nodes) = asked;
        match replies.result(call) {
            Some(0) => {}
            // A kernel without NUMA, or a container that forbids the call: then no policy was ever set.
            Some(error) if [-i64::from(libc::ENOSYS), -i64::from(libc::EPERM)].contains(&error) => {
                return Ok(MemPolicyRecord::default());
            }
            _ => return Err(model::no_reply(task, "get_mempolicy")),
        }
        let parts = (|| Some((replies.word(mode)?, replies.bytes(nodes, MASK)?)))();
        let (mode, nodes) = parts.ok_or_else(|| model::no_reply(task, "get_mempolicy"))?;
        let end = nodes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        Ok(MemPolicyRecord { mode: model::low32(mode), nodes: nodes.get(..end).unwrap_or_default().to_vec() })
    }

    fn restore(cx: &mut Restore<'_>, task: Tid, record: MemPolicyRecord) -> Result<()> {
        if record.nodes.len() > MASK {
            return Err(Error::Unsound(format!("task {task} has a memory policy with too many nodes")));
        }
        let batch = cx.batch(Stage::Thread, task);
        let nodes = batch.room(MASK);
        batch.put(nodes, &record.nodes);
        let args = if record.nodes.is_empty() {
            [Arg::Value(record.mode.into()), Arg::Value(0), Arg::Value(0)]
        } else {
            [Arg::Value(record.mode.into()), Arg::Data(nodes), Arg::Value(MOST)]
        };
        super::put_back(batch, record.mode == 0, "setting the memory policy", libc::SYS_set_mempolicy, &args);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_with_a_policy_of_its_own_is_seen() {
        let of_task = "00400000 default file=/bin/sleep mapped=3 N0=3\n7ffc00000000 default stack anon=3 N0=3\n";
        assert!(!differ(of_task) && !differ(""));
        assert!(differ(&format!("{of_task}7f0000000000 bind:1 anon=256 dirty=256 N1=256\n")));
        assert!(!differ("00400000 interleave:0-1 file=/a\n00500000 interleave:0-1 anon=1 N0=1\n"));
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = MemPolicyRecord { mode: 0x8003, nodes: vec![0, 1] };
        assert_eq!(MemPolicyRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
