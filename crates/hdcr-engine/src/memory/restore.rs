//! Making an address space again, from outside: batches that map, pages written by the engine, batches that protect.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use hdcr_image::List;
use hdcr_image::hdcr_layout::{Mapping, MappingKind};
use nix::libc;

use super::attach;
use super::kin::{self, Inherited};
use super::vdso::{self, VdsoRecord};
use super::{END, MmRecord, PAGE, bit};
use crate::batch::Arg;
use crate::error::{Error, Result};
use crate::ids::{Pid, RemotePtr, Tid};
use crate::mechanism::Nursery;
use crate::model::ObjectId;
use crate::procfs::MapLine;
use crate::resource::backing;
use crate::restore::{Restore, TaskBatch};

/// `MAP_FIXED_NOREPLACE` of Linux 4.17.
const NO_REPLACE: i32 = 0x10_0000;

/// An address space as the image describes it.
#[derive(Clone, Debug)]
pub(crate) struct StoredMm {
    pub(crate) id: ObjectId,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) record: MmRecord,
    /// The old code in a form that leads to the new one, when this kernel's is another than that of the checkpoint.
    forwarded: Option<Vec<u8>>,
    /// Addresses of the stored pages, in order.
    filled: Vec<Range<u64>>,
}

/// What the kernel gives every process, where it lies in a task that is being restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Parked {
    /// Mappings `[vvar]`, `[vvar_vclock]`, `[vdso]`, in order of address.
    pub(crate) pieces: Vec<(MappingKind, Range<u64>)>,
    /// Room that is free in all address spaces, for attachments that come to their place in parts.
    pub(crate) scratch: u64,
}

/// Reads an address space's frames and checks them.
pub(crate) fn stored(cx: &Restore<'_>, id: ObjectId) -> Result<StoredMm> {
    let List(mappings) = cx.record::<List<Mapping>>(id)?;
    let record: MmRecord = cx.record(id)?;
    let mut end = 0;
    for mapping in &mappings {
        if mapping.start < end || mapping.end > END {
            return Err(Error::Unsound(format!(
                "{id}: mappings overlap or leave the address space at {:#x}",
                mapping.start
            )));
        }
        end = mapping.end;
    }
    if record.places.len() != 11 {
        return Err(Error::Unsound(format!("{id}: {} places instead of 11", record.places.len())));
    }
    Ok(StoredMm { id, mappings, record, forwarded: None, filled: cx.contents.filled(id) })
}

/// All calls that empty an address space of everything but the service region, and bring the kernel's own mappings to the
/// parking place.
pub(crate) fn empty(batch: &mut TaskBatch, lines: &[MapLine], keep: &Range<u64>, parked: &Parked) {
    let own: Vec<&MapLine> = lines.iter().filter(|line| is_kernels(line)).collect();
    // Everything else first: the parking place may be in use by the restoring program itself.
    let keep = keep.start..keep.end.next_multiple_of(PAGE);
    let mut holes: Vec<Range<u64>> = own.iter().map(|line| line.range.clone()).chain([keep]).collect();
    holes.sort_by_key(|range| range.start);
    let mut at = 0;
    for hole in holes.into_iter().chain(std::iter::once(END..END)) {
        if at < hole.start {
            batch.call("emptying the address space", libc::SYS_munmap, &[Arg::Value(at), Arg::Value(hole.start - at)]);
        }
        at = hole.end;
    }
    for (line, (_, to)) in own.iter().zip(&parked.pieces) {
        relocate(batch, &line.range, to.start);
    }
}

/// Whether a mapping is one that the kernel gives every process.
pub(crate) fn is_kernels(line: &MapLine) -> bool {
    matches!(super::kind_of(line), MappingKind::Vdso | MappingKind::Vvar)
}

/// Moves a mapping.
fn relocate(batch: &mut TaskBatch, from: &Range<u64>, to: u64) {
    if from.start == to {
        return;
    }
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED).cast_unsigned();
    let len = from.end - from.start;
    let args = [Arg::Value(from.start), Arg::Value(len), Arg::Value(len), Arg::Value(flags.into()), Arg::Value(to)];
    batch.call("moving the vdso", libc::SYS_mremap, &args);
}

/// All calls by which a process that was born with another one's memory lets go of what it does not keep.
pub(crate) fn leave(batch: &mut TaskBatch, base: &StoredMm, inherited: &Inherited, parked: &Parked) {
    let theirs = base.mappings.iter().filter(|mapping| !is_kernel_kind(mapping));
    for range in kin::without(theirs.map(|mapping| mapping.start..mapping.end).collect(), &inherited.kept) {
        let args = [Arg::Value(range.start), Arg::Value(range.end - range.start)];
        batch.call("emptying the address space", libc::SYS_munmap, &args);
    }
    let kernels = base.mappings.iter().filter(|mapping| is_kernel_kind(mapping));
    for (mapping, (_, to)) in kernels.zip(&parked.pieces) {
        relocate(batch, &(mapping.start..mapping.end), to.start);
    }
    for range in &inherited.gone {
        let args = [Arg::Value(range.start), Arg::Value(range.end - range.start), Arg::from(libc::MADV_DONTNEED)];
        batch.call("removing pages", libc::SYS_madvise, &args);
    }
}

fn is_kernel_kind(mapping: &Mapping) -> bool {
    matches!(mapping.kind, MappingKind::Vdso | MappingKind::Vvar)
}

/// All calls that map an address space, but for what is inherited. `descriptors` gives the number of the service
/// descriptor of an object.
pub(crate) fn map(
    batch: &mut TaskBatch,
    mm: &StoredMm,
    inherited: Option<&Inherited>,
    parked: &Parked,
    behind: &Behind,
) -> Result<()> {
    place_kernels(batch, mm, parked)?;
    for mapping in &mm.mappings {
        let elsewhere = is_kernel_kind(mapping) || behind.segments.contains_key(&mapping.object);
        if elsewhere || inherited.is_some_and(|inherited| inherited.keeps(mapping)) {
            continue;
        }
        let fd = match mapping.object {
            0 => -1,
            object => *behind
                .descriptors
                .get(&(object, may_write(mapping)))
                .ok_or_else(|| Error::Unsound(format!("{}: no object {object}", mm.id)))?,
        };
        let flags = mapping.map_flags.cast_signed() | NO_REPLACE;
        let args = [
            Arg::Value(mapping.start),
            Arg::Value(mapping.end - mapping.start),
            Arg::Value(first_prot(mm, mapping).into()),
            Arg::from(flags),
            Arg::from(fd),
            Arg::Value(mapping.offset),
        ];
        batch.call("mapping memory", libc::SYS_mmap, &args);
    }
    attach::attach(batch, mm, &behind.segments, parked)
}

impl StoredMm {
    /// Compares the code that the kernel gives here with that of the checkpoint.
    pub(crate) fn meet_kernel(&mut self, pid: Pid, own: &[u8], parked: &Parked, old: Option<VdsoRecord>) -> Result<()> {
        let Some(old) = old.filter(|old| old.bytes != own) else { return Ok(()) };
        let at = parked.pieces.iter().find(|(kind, _)| *kind == MappingKind::Vdso).map(|(_, range)| range.start);
        let at = at.ok_or_else(|| Error::refuse(vdso::refusal(pid, "it gives none here")))?;
        let place = self.mappings.iter().find(|mapping| mapping.kind == MappingKind::Vdso);
        if place.is_none_or(|place| place.end - place.start != old.bytes.len() as u64) {
            return Err(Error::Unsound(format!("{}: the vdso has another size than its mapping", self.id)));
        }
        self.forwarded = Some(vdso::forwarded(&old.bytes, own, at, pid)?);
        Ok(())
    }

    /// Where the old code lies when it only leads to the new one.
    pub(crate) fn forwarded_range(&self) -> Option<Range<u64>> {
        self.forwarded.as_ref()?;
        self.mappings.iter().find(|mapping| mapping.kind == MappingKind::Vdso).map(|mapping| mapping.start..mapping.end)
    }
}

/// The vdso goes to its place, or away when the program had none; another kernel's stays where it was parked.
fn place_kernels(batch: &mut TaskBatch, mm: &StoredMm, parked: &Parked) -> Result<()> {
    if let Some(range) = mm.forwarded_range() {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | NO_REPLACE;
        let args = [
            Arg::Value(range.start),
            Arg::Value(range.end - range.start),
            Arg::from(prot),
            Arg::from(flags),
            Arg::from(-1),
            Arg::Value(0),
        ];
        batch.call("mapping the old vdso", libc::SYS_mmap, &args);
        return Ok(());
    }
    let stored: Vec<&Mapping> = mm.mappings.iter().filter(|mapping| is_kernel_kind(mapping)).collect();
    let alike = |mapping: &Mapping, (kind, range): &(MappingKind, Range<u64>)| {
        mapping.kind == *kind && mapping.end - mapping.start == range.end - range.start
    };
    let mut pieces = parked.pieces.iter();
    let mut placed = Vec::new();
    for mapping in &stored {
        // In order; what comes before it the program has given up.
        let Some(piece) = pieces.clone().find(|piece| alike(mapping, piece)) else { continue };
        pieces.by_ref().find(|other| *other == piece);
        placed.push((piece, mapping.start));
    }
    // Data for code that is not there is missed by nobody.
    let has_code = stored.iter().any(|mapping| mapping.kind == MappingKind::Vdso);
    if has_code && placed.len() != stored.len() {
        return Err(Error::Unsound(format!("{}: the kernel's own mappings have another shape than here", mm.id)));
    }
    for (_, range) in &parked.pieces {
        if !placed.iter().any(|((_, other), _)| other == range) {
            let len = range.end - range.start;
            batch.call("removing the vdso", libc::SYS_munmap, &[Arg::Value(range.start), Arg::Value(len)]);
        }
    }
    for ((_, range), to) in placed {
        relocate(batch, range, to);
    }
    Ok(())
}

/// The protection that a mapping is made with. Private memory that was writable once (`VM_ACCOUNT`, mm/mmap.c) or has
/// pages of its own is made writable, so that pages can be written and the kernel accounts for it as it did.
pub(crate) fn first_prot(mm: &StoredMm, mapping: &Mapping) -> u32 {
    let accounted = mapping.vm_flags & bit(*b"ac") != 0;
    if private(mapping) && (accounted || mm.has_pages(mapping)) {
        mapping.prot | (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned()
    } else {
        mapping.prot
    }
}

pub(crate) fn private(mapping: &Mapping) -> bool {
    matches!(mapping.kind, MappingKind::Anonymous | MappingKind::PrivateFile)
        && mapping.map_flags & libc::MAP_SHARED.cast_unsigned() == 0
}

impl StoredMm {
    /// Whether every stored page lies in a mapping whose pages the image may hold.
    pub(crate) fn has_place_for_all(&self) -> bool {
        self.filled.iter().all(|range| covered(self, range.clone()))
    }

    /// Whether the image holds pages of this mapping.
    fn has_pages(&self, mapping: &Mapping) -> bool {
        let first = self.filled.partition_point(|range| range.end <= mapping.start);
        self.filled.get(first).is_some_and(|range| range.start < mapping.end)
    }
}

/// Writes what is not pages of the image: the old vdso, and zeros.
pub(crate) fn fill_rest(cx: &Restore<'_>, nursery: &mut dyn Nursery, tid: Tid, mm: &StoredMm) -> Result<()> {
    if let (Some(range), Some(bytes)) = (mm.forwarded_range(), &mm.forwarded) {
        nursery.write(tid, &[(RemotePtr(range.start), bytes)])?;
    }
    clear(cx, nursery, tid, mm)
}

/// Writes the zeros that a file mapping needs: fresh anonymous memory has them by itself.
fn clear(cx: &Restore<'_>, nursery: &mut dyn Nursery, tid: Tid, mm: &StoredMm) -> Result<()> {
    let zeros = vec![0; 1 << 16];
    // There may be as many as pages, and few in such mappings.
    let all = cx.contents.zeros(mm.id);
    for mapping in mm.mappings.iter().filter(|mapping| mapping.kind == MappingKind::PrivateFile) {
        let first = all.partition_point(|(start, len)| start.saturating_add(*len) <= mapping.start);
        let within = all.iter().skip(first).take_while(|(start, _)| *start < mapping.end);
        for (start, end) in within.map(|(start, len)| (*start, start.saturating_add(*len))) {
            let mut at = mapping.start.max(start);
            while at < mapping.end.min(end) {
                let len = usize::try_from(mapping.end.min(end) - at).unwrap_or(zeros.len()).min(zeros.len());
                nursery.write(tid, &[(RemotePtr(at), zeros.get(..len).unwrap_or_default())])?;
                at += len as u64;
            }
        }
    }
    Ok(())
}

/// Whether every page of a range lies in a mapping whose pages the image may hold.
pub(crate) fn covered(mm: &StoredMm, range: Range<u64>) -> bool {
    have_place(&mm.mappings, range)
}

/// The same of mappings in order.
pub(crate) fn have_place(mappings: &[Mapping], range: Range<u64>) -> bool {
    let mut at = range.start;
    let first = mappings.partition_point(|mapping| mapping.end <= at);
    for mapping in mappings.iter().skip(first) {
        if mapping.start > at || !private(mapping) {
            return false;
        }
        at = mapping.end;
        if at >= range.end {
            return true;
        }
    }
    false
}

/// All calls that give mappings their true protection, advice, locks and names, once their pages are there.
pub(crate) fn protect(batch: &mut TaskBatch, mm: &StoredMm) {
    if let Some(range) = mm.forwarded_range() {
        let prot = libc::PROT_READ | libc::PROT_EXEC;
        batch.call(
            "protecting the old vdso",
            libc::SYS_mprotect,
            &[Arg::Value(range.start), Arg::Value(range.end - range.start), Arg::from(prot)],
        );
    }
    for (start, end) in mm.record.guards.chunks_exact(2).filter_map(|pair| Some((*pair.first()?, *pair.get(1)?))) {
        let args = [Arg::Value(start), Arg::Value(end.saturating_sub(start)), Arg::Value(MADV_GUARD_INSTALL)];
        batch.call("installing a guard region", libc::SYS_madvise, &args);
    }
    for mapping in &mm.mappings {
        if matches!(mapping.kind, MappingKind::Vdso | MappingKind::Vvar) {
            continue;
        }
        let place = [Arg::Value(mapping.start), Arg::Value(mapping.end - mapping.start)];
        if first_prot(mm, mapping) != mapping.prot {
            batch.call("protecting memory", libc::SYS_mprotect, &[place[0], place[1], Arg::Value(mapping.prot.into())]);
        }
        for (code, advice) in MADVICE {
            if mapping.vm_flags & bit(code) != 0
                && !(code == *b"nh" && mapping.map_flags & libc::MAP_STACK.cast_unsigned() != 0)
            {
                batch.call("advising on memory", libc::SYS_madvise, &[place[0], place[1], Arg::from(advice)]);
            }
        }
    }
    for name in &mm.record.names {
        let Some(mapping) = mm.mappings.iter().find(|mapping| mapping.start == name.start) else { continue };
        let text = batch.batch.c_string(&name.name);
        let args = [
            Arg::from(PR_SET_VMA),
            Arg::Value(0),
            Arg::Value(mapping.start),
            Arg::Value(mapping.end - mapping.start),
            Arg::Data(text),
        ];
        batch.try_call("naming memory", libc::SYS_prctl, &args);
    }
}

/// Locks and seals: after all that may still change the mapping.
pub(crate) fn lock(batch: &mut TaskBatch, mm: &StoredMm) {
    for mapping in &mm.mappings {
        let place = [Arg::Value(mapping.start), Arg::Value(mapping.end - mapping.start)];
        if mapping.vm_flags & bit(*b"lo") != 0 {
            let on_fault = u64::from(mapping.vm_flags & bit(*b"lf") != 0);
            batch.call("locking memory", libc::SYS_mlock2, &[place[0], place[1], Arg::Value(on_fault)]);
        }
    }
    if mm.record.lock_future != 0 {
        let on_fault = if mm.record.lock_future == 2 { libc::MCL_ONFAULT } else { 0 };
        batch.call("locking future memory", libc::SYS_mlockall, &[Arg::from(libc::MCL_FUTURE | on_fault)]);
    }
    for mapping in mm.mappings.iter().filter(|mapping| mapping.vm_flags & bit(*b"sl") != 0) {
        if !matches!(mapping.kind, MappingKind::Vdso | MappingKind::Vvar) {
            batch.call(
                "sealing memory",
                SYS_MSEAL,
                &[Arg::Value(mapping.start), Arg::Value(mapping.end - mapping.start), Arg::Value(0)],
            );
        }
    }
}

/// `PR_SET_VMA` of linux/prctl.h (Linux 5.17).
const PR_SET_VMA: i32 = 0x5356_4d41;
/// Linux 6.13 (asm-generic/mman-common.h).
const MADV_GUARD_INSTALL: u64 = 102;
/// `mseal(2)`, Linux 6.10.
const SYS_MSEAL: i64 = 462;

/// Advice by code (asm-generic/mman-common.h).
const MADVICE: [([u8; 2], i32); 8] = [
    (*b"sr", libc::MADV_SEQUENTIAL),
    (*b"rr", libc::MADV_RANDOM),
    (*b"dc", libc::MADV_DONTFORK),
    (*b"wf", libc::MADV_WIPEONFORK),
    (*b"dd", libc::MADV_DONTDUMP),
    (*b"hg", libc::MADV_HUGEPAGE),
    (*b"nh", libc::MADV_NOHUGEPAGE),
    (*b"mg", libc::MADV_MERGEABLE),
];

/// What lies behind the mappings of an address space.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Behind {
    /// Numbers of service descriptors by object and by whether they may write: a mapping made with one that may shows it.
    descriptors: BTreeMap<(u64, bool), i32>,
    /// Numbers and sizes of segments of System V shared memory by object.
    segments: attach::Segments,
}

impl Behind {
    /// The most that an attachment takes.
    pub(crate) fn largest(&self) -> u64 {
        self.segments.values().map(|(_, size)| *size).max().unwrap_or_default()
    }
}

/// The objects behind the mappings of an address space, opened.
pub(crate) fn open_backing(cx: &mut Restore<'_>, mm: &StoredMm) -> Result<Behind> {
    let mut behind = Behind::default();
    for mapping in mm.mappings.iter().filter(|mapping| mapping.object != 0) {
        if let Some(segment) = cx.segments.of(ObjectId(mapping.object)) {
            behind.segments.insert(mapping.object, segment);
            continue;
        }
        let key = (mapping.object, may_write(mapping));
        if let Entry::Vacant(place) = behind.descriptors.entry(key) {
            place.insert(backing::restore(cx, ObjectId(key.0), key.1)?);
        }
    }
    Ok(behind)
}

/// Whether a mapping was made with a descriptor that may write, and what it writes is seen by others.
pub(super) fn may_write(mapping: &Mapping) -> bool {
    mapping.map_flags & libc::MAP_SHARED.cast_unsigned() != 0 && mapping.vm_flags & bit(*b"mw") != 0
}

/// Calls of the leader that set the places of the program: break, arguments, environment, auxiliary vector, `exe`.
pub(crate) fn set_places(batch: &mut TaskBatch, mm: &StoredMm, exe: i32) {
    let auxv = batch.bytes(&mm.record.auxv);
    let map = batch.room(104);
    for (index, place) in mm.record.places.iter().enumerate() {
        batch.put(map + index * 8, &place.to_le_bytes());
    }
    batch.batch.pointer(map + 88, auxv);
    batch.put(map + 96, &u32::try_from(mm.record.auxv.len()).unwrap_or(0).to_le_bytes());
    batch.put(map + 100, &exe.to_le_bytes());
    let args = [Arg::from(libc::PR_SET_MM), Arg::from(libc::PR_SET_MM_MAP), Arg::Data(map), Arg::Value(104)];
    batch.call("setting the places of the program", libc::SYS_prctl, &args);
}

/// Names that the kernel gives by place alone say nothing that has to be put back.
pub(crate) fn ranges(mm: &StoredMm) -> Vec<Range<u64>> {
    mm.mappings.iter().map(|mapping| mapping.start..mapping.end).collect()
}
