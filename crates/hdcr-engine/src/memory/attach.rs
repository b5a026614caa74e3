//! Segments of System V shared memory in an address space: attached by the process itself, so that the kernel counts them,
//! and `shmdt(2)` finds every part of them.
//!
//! A program may have unmapped, protected or moved parts of an attachment. Then it is attached as a whole elsewhere, and the
//! parts are moved to their places: they stay parts of one attachment.

use std::collections::BTreeMap;

use hdcr_image::hdcr_layout::Mapping;
use nix::libc;

use super::restore::{Parked, StoredMm, may_write};
use crate::batch::Arg;
use crate::error::{Error, Result};
use crate::restore::TaskBatch;

/// The number of a segment and the bytes that it takes, by object.
pub(crate) type Segments = BTreeMap<u64, (i32, u64)>;

/// What one attachment shares: its segment, whether it may be written to, and where its first byte lies or would lie.
type Attachment = (u64, bool, u64);

/// All calls that attach segments.
pub(crate) fn attach(batch: &mut TaskBatch, mm: &StoredMm, segments: &Segments, parked: &Parked) -> Result<()> {
    let mut all: BTreeMap<Attachment, Vec<&Mapping>> = BTreeMap::new();
    for mapping in mm.mappings.iter().filter(|mapping| segments.contains_key(&mapping.object)) {
        let base = mapping.start.wrapping_sub(mapping.offset);
        all.entry((mapping.object, may_write(mapping), base)).or_default().push(mapping);
    }
    for ((object, writable, base), parts) in all {
        let Some((id, size)) = segments.get(&object).copied() else { continue };
        if parts.iter().any(|part| part.offset >= size || !part.offset.is_multiple_of(super::PAGE)) {
            return Err(Error::Unsound(format!("{}: shared memory {id} attached behind its end", mm.id)));
        }
        let whole = parts.len() == 1 && parts.iter().all(|part| (part.start, part.end - part.start) == (base, size));
        let at = if whole { base } else { parked.scratch };
        let flags = if writable { 0 } else { libc::SHM_RDONLY };
        batch.call("attaching shared memory", libc::SYS_shmat, &[Arg::from(id), Arg::Value(at), Arg::from(flags)]);
        let first = (libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 }).cast_unsigned();
        let mut before = None;
        for part in &parts {
            let prot = if whole { first } else { move_part(batch, part, before, (at, size, first)) };
            if part.prot != prot {
                protect(batch, part.start, part.end - part.start, part.prot);
            }
            before = Some(*part);
        }
        if !whole {
            batch.call("letting go of shared memory", libc::SYS_munmap, &[Arg::Value(at), Arg::Value(size)]);
        }
    }
    Ok(())
}

fn protect(batch: &mut TaskBatch, at: u64, length: u64, prot: u32) {
    let args = [Arg::Value(at), Arg::Value(length), Arg::Value(prot.into())];
    batch.call("protecting shared memory", libc::SYS_mprotect, &args);
}

/// Brings a part of an attachment to its place; the protection that it has then. A part may be longer than what is left of
/// the segment, by mremap(2). Two neighbours come with different protections: else the kernel joins them, and counts one.
fn move_part(
    batch: &mut TaskBatch,
    part: &Mapping,
    before: Option<&Mapping>,
    (at, size, first): (u64, u64, u32),
) -> u32 {
    let (from, length) = (at.saturating_add(part.offset), part.end - part.start);
    let here = length.min(size - part.offset);
    let mut prot = first;
    if let Some(before) = before.filter(|before| before.end == part.start) {
        prot = if before.prot == 0 { libc::PROT_READ.cast_unsigned() } else { 0 };
        protect(batch, from, here, prot);
    }
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED).cast_unsigned();
    let args =
        [Arg::Value(from), Arg::Value(here), Arg::Value(length), Arg::Value(flags.into()), Arg::Value(part.start)];
    batch.call("moving shared memory", libc::SYS_mremap, &args);
    prot
}
