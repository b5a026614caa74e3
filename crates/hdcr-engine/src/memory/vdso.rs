//! The code that the kernel gives every process (vdso(7)), on the kernel of the checkpoint and on another one.
//!
//! Addresses in it are all over a program: in libc's tables, in registers. On the same kernel it is moved to its place.
//! On another kernel its code is another one: then the old bytes are put at the old place as plain memory, with a jump
//! to the new code at the beginning of every function, and the new code stays where it was parked.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use hdcr_image::{Record, Tag};
use object::{Object, ObjectSymbol, SymbolKind};

use crate::error::{Error, Owner, Refusal, Result};
use crate::ids::Pid;
use crate::model;
use crate::procfs::MapLine;

/// The bytes of a vdso, kept once for all processes that have it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct VdsoRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) bytes: Vec<u8>,
}

impl Record for VdsoRecord {
    const TAG: Tag = Tag(0x0111);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// `jmp *0(%rip)` and the address: what replaces the beginning of an old function.
const JUMP: usize = 14;

/// The vdso of this process.
pub(crate) fn own(lines: &[&MapLine]) -> Result<Vec<u8>> {
    let Some(line) = lines.iter().find(|line| line.name == b"[vdso]") else { return Ok(Vec::new()) };
    let mut bytes = vec![0; usize::try_from(line.range.end - line.range.start).unwrap_or(0)];
    let memory = File::open("/proc/self/mem").map_err(Error::system("opening", "/proc/self/mem"))?;
    memory.read_exact_at(&mut bytes, line.range.start).map_err(Error::system("reading the vdso", "this process"))?;
    Ok(bytes)
}

/// The exported functions of a vdso: name, offset, size.
fn functions(bytes: &[u8]) -> Option<BTreeMap<Vec<u8>, (u64, u64)>> {
    let elf = object::File::parse(bytes).ok()?;
    let symbols = elf.dynamic_symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition());
    Some(
        symbols
            .filter_map(|symbol| Some((symbol.name_bytes().ok()?.to_vec(), (symbol.address(), symbol.size()))))
            .collect(),
    )
}

/// The old code with a jump to the new code, which begins at `at`, in place of each function.
pub(crate) fn forwarded(old: &[u8], new: &[u8], at: u64, pid: Pid) -> Result<Vec<u8>> {
    let refuse = |cause: String| Error::refuse(refusal(pid, &cause));
    let theirs = functions(old).ok_or_else(|| refuse("that of the checkpoint cannot be read".to_owned()))?;
    let ours = functions(new).ok_or_else(|| refuse("that of this kernel cannot be read".to_owned()))?;
    let mut bytes = old.to_vec();
    for (name, (offset, size)) in theirs {
        let text = String::from_utf8_lossy(&name).into_owned();
        let (target, _) = ours.get(&name).ok_or_else(|| refuse(format!("that of this kernel has no {text}")))?;
        let start = usize::try_from(offset).map_err(|_| refuse(format!("{text} lies nowhere")))?;
        let place = bytes.get_mut(start..start.saturating_add(JUMP)).filter(|_| size >= JUMP as u64);
        let place = place.ok_or_else(|| refuse(format!("{text} is too short for a jump")))?;
        let jump = [0xff, 0x25, 0, 0, 0, 0].into_iter().chain(at.saturating_add(*target).to_le_bytes());
        for (slot, byte) in place.iter_mut().zip(jump) {
            *slot = byte;
        }
    }
    Ok(bytes)
}

/// Why a program cannot go on over another vdso.
pub(crate) fn refusal(pid: Pid, cause: &str) -> Refusal {
    Refusal {
        code: "vdso-differs",
        object: "vdso".to_owned(),
        owner: Owner { pid: Some(pid), ..Owner::default() },
        cause: format!("the kernel gives programs other code (vdso(7)) than at the checkpoint, and {cause}"),
        remedy: "restore on the kernel of the checkpoint (`hdcr show` names it)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs;

    #[test]
    fn every_function_of_this_kernels_vdso_can_be_forwarded() {
        let own_pid = Pid(i32::try_from(std::process::id()).unwrap());
        let lines = procfs::parse_smaps(&procfs::read(own_pid, "smaps").unwrap()).unwrap();
        let bytes = own(&lines.iter().collect::<Vec<_>>()).unwrap();
        let names = functions(&bytes).unwrap();
        assert!(names.contains_key(b"__vdso_clock_gettime".as_slice()), "{names:?}");
        let forwarded = forwarded(&bytes, &bytes, 0x1000, own_pid).unwrap();
        let (offset, _) = names[b"__vdso_clock_gettime".as_slice()];
        let at = usize::try_from(offset).unwrap();
        assert_eq!(forwarded[at..at + 6], [0xff, 0x25, 0, 0, 0, 0]);
        assert_eq!(forwarded[at + 6..at + 14], (0x1000 + offset).to_le_bytes());
    }

    #[test]
    fn odd_bytes_are_refused() {
        assert!(forwarded(&[1, 2, 3], &[4], 0, Pid(1)).is_err());
        assert_eq!(functions(&[]), None);
    }
}
