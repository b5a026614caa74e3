//! Address spaces: what the image keeps of one, and which mappings can be kept at all.
//!
//! Contents are the bulk path and have their own files: `capture.rs` reads them, `restore.rs` and `fill.rs` put them back. Files and
//! shared memory behind mappings are objects of their own (`resource/backing.rs`).

pub(crate) mod attach;
pub(crate) mod capture;
pub(crate) mod fill;
pub(crate) mod guards;
pub(crate) mod kin;
pub(crate) mod lazy;
pub(crate) mod omitted;
pub(crate) mod restore;
pub(crate) mod room;
pub(crate) mod vdso;

use std::ops::Range;

use hdcr_image::hdcr_layout::MappingKind;
use hdcr_image::{Record, Tag};

use crate::error::{Owner, Refusal};
use crate::ids::Pid;
use crate::model;
use crate::procfs::MapLine;

/// A page.
pub(crate) const PAGE: u64 = 4096;
/// The end of what a program can map with four-level page tables (`arch/x86/include/asm/page_64_types.h`).
pub(crate) const END: u64 = 0x7fff_ffff_f000;

/// A name of a mapping that is not a file's (`PR_SET_VMA_ANON_NAME`).
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MappingName {
    #[prost(uint64, tag = "1")]
    pub(crate) start: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) name: Vec<u8>,
}

/// What the image keeps of an address space besides its mappings and pages.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MmRecord {
    /// The first eleven fields of `struct prctl_mm_map` (linux/prctl.h), `start_code` first, `env_end` last.
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) places: Vec<u64>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) auxv: Vec<u8>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) names: Vec<MappingName>,
    /// The code that the kernel gave the process, 0: none.
    #[prost(uint64, tag = "4")]
    pub(crate) vdso: u64,
    /// New mappings are locked (`mlockall(MCL_FUTURE)`): 0 no, 1 yes, 2 on fault.
    #[prost(uint32, tag = "5")]
    pub(crate) lock_future: u32,
    /// Guard regions (`MADV_GUARD_INSTALL`): start and end of each, in order.
    #[prost(uint64, repeated, tag = "6")]
    pub(crate) guards: Vec<u64>,
}

impl Record for MmRecord {
    const TAG: Tag = Tag(0x0110);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Bits of [`hdcr_image::hdcr_layout::Mapping::vm_flags`]; never reused. The codes are those of `VmFlags` in `smaps`
/// (`show_smap_vma_flags` in `fs/proc/task_mmu.c`).
pub(crate) const ADVICE: [([u8; 2], u64); 17] = [
    (*b"sr", 1 << 0),
    (*b"rr", 1 << 1),
    (*b"dc", 1 << 2),
    (*b"wf", 1 << 3),
    (*b"dd", 1 << 4),
    (*b"hg", 1 << 5),
    (*b"nh", 1 << 6),
    (*b"mg", 1 << 7),
    (*b"lo", 1 << 8),
    (*b"lf", 1 << 9),
    (*b"ac", 1 << 10),
    (*b"nr", 1 << 11),
    (*b"sl", 1 << 12),
    (*b"mw", 1 << 13),
    (*b"dp", 1 << 14),
    (*b"gd", 1 << 15),
    (*b"ht", 1 << 16),
];

/// The bit of a code.
pub(crate) const fn bit(code: [u8; 2]) -> u64 {
    let mut at = 0;
    while at < ADVICE.len() {
        let (known, bit) = ADVICE[at];
        if known[0] == code[0] && known[1] == code[1] {
            return bit;
        }
        at += 1;
    }
    0
}

/// Codes that say nothing that has to be put back by itself: permissions, what the kernel sets for a kind of mapping.
/// and that there may be guard regions, which are looked for.
const IMPLIED: [[u8; 2]; 13] =
    [*b"rd", *b"wr", *b"ex", *b"sh", *b"mr", *b"me", *b"ms", *b"sd", *b"mm", *b"de", *b"pf", *b"io", *b"gu"];

/// What a line of `smaps` is.
pub(crate) fn kind_of(line: &MapLine) -> MappingKind {
    match line.name.as_slice() {
        b"[vdso]" => MappingKind::Vdso,
        name if name.starts_with(b"[vvar") => MappingKind::Vvar,
        // The first segment of all has the number 0.
        _ if line.segment().is_some() => MappingKind::SharedMemory,
        _ if line.inode == 0 => MappingKind::Anonymous,
        _ if !line.shared() => MappingKind::PrivateFile,
        name if is_shared_memory(name) => MappingKind::SharedMemory,
        _ => MappingKind::SharedFile,
    }
}

fn is_shared_memory(name: &[u8]) -> bool {
    [b"/memfd:".as_slice(), b"/dev/zero (deleted)", b"[anon_shmem:"].iter().any(|start| name.starts_with(start))
}

/// What makes a mapping impossible to keep, by the codes of its flags: code of the refusal, cause, remedy.
const IMPOSSIBLE: [(&[[u8; 2]], &str, &str, &str); 4] = [
    (
        &[*b"um", *b"uw", *b"ui"],
        "mapping-userfaultfd",
        "it is registered with a userfaultfd: one of the program's own, or its memory is still being filled",
        "wait until the program has closed it, or until a lazy restore has come to its end",
    ),
    (&[*b"io", *b"pf"], "mapping-device", "it shows the memory of a device", "close the device before the checkpoint"),
    (
        &[*b"ss"],
        "mapping-shadow-stack",
        "shadow stacks cannot be made again from outside",
        "run the program with shadow stacks off",
    ),
    (&[*b"ht"], "mapping-hugetlb", "huge pages of hugetlbfs are not supported yet", "use transparent huge pages"),
];

/// The flag of a mapping whose writes are followed.
const FOLLOWED: [u8; 2] = *b"uw";

/// Why a mapping cannot be kept, if it cannot. `followed`: its keeper follows its writes.
pub(crate) fn obstacle(pid: Pid, line: &MapLine, followed: bool) -> Option<Refusal> {
    let stands = |code: &[u8; 2]| line.has(code) && !(followed && *code == FOLLOWED);
    if matches!(kind_of(line), MappingKind::Vdso | MappingKind::Vvar) || line.name == b"[vsyscall]" {
        return None;
    }
    let refuse = |code, cause: &str, remedy: &str| {
        Some(Refusal {
            code,
            object: format!("mapping {:#x}-{:#x}", line.range.start, line.range.end),
            owner: Owner {
                pid: Some(pid),
                path: (!line.name.is_empty()).then(|| model::path_of(&line.name)),
                ..Owner::default()
            },
            cause: cause.to_owned(),
            remedy: remedy.to_owned(),
        })
    };
    if let Some((_, code, cause, remedy)) = IMPOSSIBLE.iter().find(|(flags, ..)| flags.iter().any(stands)) {
        return refuse(code, cause, remedy);
    }
    if line.protection_key != 0 {
        return refuse("mapping-protection-key", "it has a memory protection key", "run the program without pkeys(7)");
    }
    if line.name.starts_with(b"/[aio]") {
        return refuse(
            "aio-context",
            "it is the ring of an asynchronous input/output context",
            "let the program end it first (io_destroy)",
        );
    }
    if line.name.starts_with(b"anon_inode:") || line.name.starts_with(b"/anon_inode:") {
        return refuse(
            "mapping-anon-inode",
            "it belongs to a kernel object that cannot be kept",
            "close that object before the checkpoint",
        );
    }
    let known =
        |code: &[u8; 2]| !stands(code) || IMPLIED.contains(code) || ADVICE.iter().any(|(known, _)| known == code);
    let unknown = line.vm_flags.iter().find(|code| !known(code))?;
    let name = String::from_utf8_lossy(unknown);
    refuse("mapping-flag", &format!("its flag \"{name}\" is not known to HDCR"), "update HDCR, or report the flag")
}

/// The bits of a line's codes.
pub(crate) fn advice_of(line: &MapLine) -> u64 {
    ADVICE.iter().filter(|(code, _)| line.has(code)).fold(0, |bits, (_, bit)| bits | bit)
}

/// Whether two ranges have an address in common.
pub(crate) fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
