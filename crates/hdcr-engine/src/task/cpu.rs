//! The extensions of the processor that a program may have found: a machine that lacks one is refused before a restore.
//!
//! Kept are those that the kernel lets programs use. Which of them a program has really used is not to be seen.

use hdcr_image::{Record, Tag};

use super::{Site, TaskKind, TaskView};
use crate::batch::{Batch, Replies};
use crate::capture::Capture;
use crate::error::{Owner, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::model;
use crate::restore::Restore;

pub(crate) struct Cpu;

/// Names of the extensions, as Rust and the compilers call them.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CpuRecord {
    #[prost(string, repeated, tag = "1")]
    features: Vec<String>,
}

impl Record for CpuRecord {
    const TAG: Tag = Tag(0x0313);
    const VERSION: u16 = 1;
    model::prost_record!();
}

macro_rules! detected {
    ($($name:tt),* $(,)?) => {
        [$(($name, std::arch::is_x86_feature_detected!($name))),*]
    };
}

/// What this machine has.
fn here() -> Vec<String> {
    let all = detected![
        "adx",
        "aes",
        "avx",
        "avx2",
        "avx512bf16",
        "avx512bitalg",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512f",
        "avx512fp16",
        "avx512ifma",
        "avx512vbmi",
        "avx512vbmi2",
        "avx512vl",
        "avx512vnni",
        "avx512vp2intersect",
        "avx512vpopcntdq",
        "avxifma",
        "avxneconvert",
        "avxvnni",
        "avxvnniint16",
        "avxvnniint8",
        "bmi1",
        "bmi2",
        "cmpxchg16b",
        "f16c",
        "fma",
        "fxsr",
        "gfni",
        "kl",
        "lzcnt",
        "movbe",
        "pclmulqdq",
        "popcnt",
        "rdrand",
        "rdseed",
        "rtm",
        "sha",
        "sha512",
        "sm3",
        "sm4",
        "sse3",
        "sse4.1",
        "sse4.2",
        "sse4a",
        "ssse3",
        "tbm",
        "vaes",
        "vpclmulqdq",
        "widekl",
        "xsave",
        "xsavec",
        "xsaveopt",
        "xsaves",
    ];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name.to_owned()).collect()
}

fn missing(record: &CpuRecord, here: &[String]) -> Vec<String> {
    record.features.iter().filter(|feature| !here.contains(feature)).cloned().collect()
}

impl TaskKind for Cpu {
    type Record = CpuRecord;
    type Asked = ();
    const SITE: Site = Site::Process;

    fn ask(_task: &TaskView, _batch: &mut Batch) {}

    fn capture(_cx: &mut Capture<'_>, _task: &TaskView, (): (), _replies: &Replies) -> Result<CpuRecord> {
        Ok(CpuRecord { features: here() })
    }

    fn restore(_cx: &mut Restore<'_>, _task: Tid, _record: CpuRecord) -> Result<()> {
        Ok(())
    }

    fn obstacles(task: Tid, record: &CpuRecord) -> Result<Vec<Refusal>> {
        let missing = missing(record, &here());
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![Refusal {
            code: "cpu-feature-missing",
            object: "processor".to_owned(),
            owner: Owner { pid: Some(Pid(task.0)), fd: None, path: None },
            cause: format!("this machine lacks {}, which the program may use", missing.join(", ")),
            remedy: "restore on a machine with the same processor or a newer one of its kind".to_owned(),
        }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_here_is_named() {
        let record = CpuRecord { features: vec!["fxsr".to_owned(), "flux".to_owned()] };
        assert_eq!(missing(&record, &here()), ["flux"]);
        assert_eq!(Cpu::obstacles(Tid(1), &CpuRecord { features: here() }).unwrap(), vec![]);
        assert_eq!(Cpu::obstacles(Tid(1), &record).unwrap().len(), 1);
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = CpuRecord { features: here() };
        assert_eq!(CpuRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
