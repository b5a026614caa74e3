//! Reading an address space: its mappings, its places, its pages.

use std::fs::File;
use std::ops::Range;

use hdcr_image::List;
use hdcr_image::hdcr_layout::{Mapping, MappingKind};
use hdcr_sys::pagemap::{self, Wanted};
use nix::libc;

use super::kin;
use super::vdso::VdsoRecord;
use super::{MappingName, MmRecord, PAGE, advice_of, guards, kind_of, omitted, overlap};
use crate::batch::Replies;
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::{Pid, RemotePtr};
use crate::model::ObjectId;
use crate::procfs::{self, MapLine, Stat};
use crate::resource::backing;

/// Bytes read from a process at once: stays in the cache of a core.
const PIECE: u64 = 1 << 20;

/// The lines that belong to the program: without the mechanism's own and without what every process has by itself.
pub(crate) fn own_lines(cx: &Capture<'_>, pid: Pid, mut lines: Vec<MapLine>) -> Vec<MapLine> {
    let own = cx.frozen.own_ranges(pid);
    lines.retain(|line| line.name != b"[vsyscall]" && !own.iter().any(|range| overlap(range, &line.range)));
    lines
}

/// The code that the kernel gave the process. To be read before the first batch: that pokes into it.
pub(crate) fn vdso(cx: &mut Capture<'_>, pid: Pid, lines: &[MapLine]) -> Result<ObjectId> {
    let Some(line) = lines.iter().find(|line| kind_of(line) == MappingKind::Vdso) else { return Ok(ObjectId(0)) };
    let mut bytes = vec![0; usize::try_from(line.range.end - line.range.start).unwrap_or(0)];
    cx.frozen.read(pid, RemotePtr(line.range.start), &mut bytes)?;
    let digest = u128::from_le_bytes(blake3::hash(&bytes).as_bytes()[..16].try_into().unwrap_or_default());
    let (high, low) =
        (u64::try_from(digest >> 64).unwrap_or(0), u64::try_from(digest & u128::from(u64::MAX)).unwrap_or(0));
    match cx.shared("vdso", high, low) {
        Ok(known) => Ok(known),
        Err(id) => {
            cx.frame(id, &VdsoRecord { bytes })?;
            Ok(id)
        }
    }
}

/// Adds the frames of an address space: mappings with the objects behind them, places, names.
pub(crate) fn describe(cx: &mut Capture<'_>, pid: Pid, id: ObjectId, lines: &[MapLine], rest: MmRecord) -> Result<()> {
    let mut mappings = Vec::with_capacity(lines.len());
    let mut record = rest;
    for line in lines {
        let kind = kind_of(line);
        let behind = matches!(kind, MappingKind::PrivateFile | MappingKind::SharedFile | MappingKind::SharedMemory);
        let object = if behind { backing::capture(cx, pid, line)?.0 } else { 0 };
        if let Some(name) = anonymous_name(&line.name) {
            record.names.push(MappingName { start: line.range.start, name: name.to_vec() });
        }
        mappings.push(Mapping {
            start: line.range.start,
            end: line.range.end,
            offset: if behind { line.offset } else { 0 },
            vm_flags: advice_of(line),
            object,
            prot: prot_of(line),
            map_flags: flags_of(line),
            kind,
        });
    }
    cx.frame(id, &List(mappings))?;
    cx.frame(id, &record)
}

fn anonymous_name(name: &[u8]) -> Option<&[u8]> {
    let inner = name.strip_prefix(b"[anon:").or_else(|| name.strip_prefix(b"[anon_shmem:"))?;
    inner.strip_suffix(b"]")
}

fn prot_of(line: &MapLine) -> u32 {
    let bits = [(b'r', libc::PROT_READ), (b'w', libc::PROT_WRITE), (b'x', libc::PROT_EXEC)];
    bits.iter().filter(|(letter, _)| line.perms.contains(letter)).fold(0, |all, (_, bit)| all | bit.cast_unsigned())
}

/// Memory that the kernel may drop at any time (`linux/mman.h`, Linux 6.11): its pages are not kept, as a program must do
/// without them anyway. The state of `getrandom` in the vdso lies in it, and must not come back twice.
const MAP_DROPPABLE: i32 = 0x08;

fn flags_of(line: &MapLine) -> u32 {
    let sharing = match line.shared() {
        true => libc::MAP_SHARED,
        false if line.has(b"dp") => MAP_DROPPABLE,
        false => libc::MAP_PRIVATE,
    };
    let grows = if line.has(b"gd") { libc::MAP_GROWSDOWN } else { 0 };
    let reserve = if line.has(b"nr") { libc::MAP_NORESERVE } else { 0 };
    let anonymous = if line.inode == 0 && line.segment().is_none() { libc::MAP_ANONYMOUS } else { 0 };
    (sharing | grows | reserve | anonymous).cast_unsigned()
}

/// The places of `struct prctl_mm_map`, from `/proc/PID/stat` (proc(5), fields 26-28 and 45-51) and the break.
pub(crate) fn places(stat: &Stat, brk: u64) -> Option<Vec<u64>> {
    let at = |field: usize| stat.field(field).map(i64::cast_unsigned);
    Some(vec![at(26)?, at(27)?, at(45)?, at(46)?, at(47)?, brk, at(28)?, at(48)?, at(49)?, at(50)?, at(51)?])
}

/// The result of the `brk(0)` that the flow has put into the first batch.
pub(crate) fn brk_of(replies: &Replies, call: usize) -> Option<u64> {
    replies.result(call).map(i64::cast_unsigned)
}

/// Reads all pages that belong to this address space alone.
pub(crate) fn pages(cx: &mut Capture<'_>, pid: Pid, id: ObjectId, lines: &[MapLine]) -> Result<()> {
    let wanted = omitted::without(lines, &cx.request.omitted.of(pid));
    let mut copy = cx.ahead.copy(cx.frozen, (pid, id), &wanted)?;
    if cx.ahead.object(pid).is_some()
        && let Some(ways) = cx.ahead.last((pid, lines), cx.alike.get(&id), cx.out.as_deref_mut(), copy.take())?
    {
        return cx.frame(id, &ways);
    }
    let pagemap =
        File::open(procfs::path(pid, "pagemap")).map_err(Error::system("opening pagemap", format!("process {pid}")))?;
    let lines = wanted.as_slice();
    let guards = guards::of(pid, lines)?;
    // process_vm_readv pins what it reads, and pinning gives a process its own copy of a page that it shares.
    let gives = cx.alike.values().any(|alike| alike.from == id);
    let memory = if gives || cx.alike.contains_key(&id) { Some(memory(pid)?) } else { None };
    let left = match copy {
        Some((mut forked, why)) => {
            let (left, ways) = forked.take_mappings(lines, why);
            forked.leave_out(guards.clone());
            forked.leave_out(cx.alike.get(&id).map(|alike| alike.ranges.clone()).unwrap_or_default());
            cx.ahead.keep_copy(forked);
            cx.frame(id, &ways)?;
            Some(left)
        }
        None => None,
    };
    for line in left.as_deref().unwrap_or(lines) {
        let wanted = match kind_of(line) {
            MappingKind::Anonymous if line.has(b"dp") => continue,
            MappingKind::Anonymous => Wanted::Filled,
            MappingKind::PrivateFile => Wanted::Anonymous,
            MappingKind::SharedFile | MappingKind::SharedMemory | MappingKind::Vdso | MappingKind::Vvar => continue,
        };
        let alike = cx.alike.get(&id).map(|alike| alike.ranges.clone()).unwrap_or_default();
        let alike = alike.as_slice();
        // A look at what is known already takes as long as any other.
        let mut runs = Vec::new();
        for part in parts(&line.range, alike) {
            let found = pagemap::scan(&pagemap, part, wanted);
            runs.extend(found.map_err(Error::system("scanning pages", format!("process {pid}")))?);
        }
        for run in kin::without(guards::without(runs, &guards), alike) {
            read_run(cx, (pid, id), memory.as_ref(), run)?;
        }
    }
    Ok(())
}

/// A mapping without what is known of it, as long as these are few parts.
fn parts(range: &Range<u64>, known: &[Range<u64>]) -> Vec<Range<u64>> {
    const FEW: usize = 32;
    let parts = kin::without(vec![range.clone()], known);
    if parts.len() <= FEW { parts } else { vec![range.clone()] }
}

fn memory(pid: Pid) -> Result<File> {
    File::open(procfs::path(pid, "mem")).map_err(Error::system("opening memory", format!("process {pid}")))
}

fn read_run(cx: &mut Capture<'_>, (pid, id): (Pid, ObjectId), memory: Option<&File>, run: Range<u64>) -> Result<()> {
    let mut at = run.start;
    while at < run.end {
        let len = (run.end - at).min(PIECE - at % PIECE).max(PAGE);
        cx.memory((pid, id), memory, &(at..at + len))?;
        at += len;
    }
    Ok(())
}
