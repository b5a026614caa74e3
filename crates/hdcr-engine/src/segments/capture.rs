//! What a capture keeps of segments: each once, with its contents.

use std::os::fd::OwnedFd;
use std::path::Path;

use hdcr_sys::segments::Attached;
use nix::libc;

use super::{Row, SegmentRecord, Use, rows, use_of};
use crate::batch::{Arg, Batch};
use crate::began::Began;
use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};
use crate::mechanism::FrozenProcess;
use crate::memory::PAGE;
use crate::model::ObjectId;
use crate::procfs::MapLine;
use crate::resource::{backing, contents, data};
use crate::semaphores::{lives, place};

/// A segment that a mapping of the tree shows.
#[derive(Debug)]
pub(crate) struct Met {
    object: ObjectId,
    /// Opened through the mapping, where this process may do so.
    file: Option<OwnedFd>,
    first_key: i32,
}

/// Notes the segment behind a mapping, once a segment; the object that stands for it.
pub(crate) fn note(cx: &mut Capture<'_>, pid: Pid, line: &MapLine, number: i32) -> ObjectId {
    if let Some(met) = cx.segments.get(&number) {
        return met.object;
    }
    let object = cx.new_id();
    let file = contents::open_quietly(&backing::link(pid, line));
    cx.segments.insert(number, Met { object, file, first_key: first_key(line) });
    object
}

fn first_key(line: &MapLine) -> i32 {
    let digits = line.name.get(5..13).and_then(|digits| std::str::from_utf8(digits).ok());
    digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default().cast_signed()
}

/// Keeps the segments that were noted, and those of the tree that nobody has attached.
pub(crate) fn capture(cx: &mut Capture<'_>) -> Result<()> {
    let rows = if cx.seen.no_segments { Vec::new() } else { rows() };
    let pids = || cx.frozen.processes().iter().map(|process| process.pid).collect();
    let tree = if rows.iter().any(|row| row.attached == 0) { Began::of(&pids()) } else { Began::default() };
    let mut met = std::mem::take(&mut cx.segments);
    for row in rows {
        if let Some(met) = met.remove(&row.id) {
            keep(cx, &row, &met)?;
        } else if row.attached == 0 && use_of(&row, &tree, &lives) == Use::Own {
            let met = Met { object: cx.new_id(), file: None, first_key: row.key };
            keep(cx, &row, &met)?;
        }
    }
    match met.keys().next() {
        None => Ok(()),
        Some(id) => Err(Error::Changed {
            subject: format!("System V shared memory {id}"),
            what: "it is attached, and not to be seen any more".to_owned(),
        }),
    }
}

fn keep(cx: &mut Capture<'_>, row: &Row, met: &Met) -> Result<()> {
    let subject = format!("System V shared memory {}", row.id);
    if let Some(file) = &met.file {
        let mut each = |offset, bytes| cx.content(met.object, offset, bytes);
        data::read(file, row.size, Path::new(&subject), &mut each)?;
    } else {
        let kept = keep_attached(cx, row, met.object, &subject);
        used_last(cx, row)?;
        kept?;
    }
    let (boot, namespace) = place();
    let Row { key, id, mode, size, user, uid, gid, .. } = *row;
    cx.frame(
        met.object,
        &SegmentRecord { boot, namespace, id, key, first_key: met.first_key, mode, uid, gid, size, user },
    )
}

/// This process was the last to use it now: one of the tree uses it once more, so that this is seen by nobody.
fn used_last(cx: &mut Capture<'_>, row: &Row) -> Result<()> {
    let speaker = |process: &FrozenProcess| Some((process.pid, *process.threads.first()?));
    let living: Vec<(Pid, Tid)> = cx.frozen.processes().iter().filter_map(speaker).collect();
    let user = living.iter().find(|(pid, _)| pid.0 == row.user).or_else(|| living.first());
    let Some((_, tid)) = user.copied() else { return Ok(()) };
    let mut batch = Batch::new();
    let at = batch.call(libc::SYS_shmat, &[Arg::from(row.id), Arg::Value(0), Arg::from(libc::SHM_RDONLY)]);
    batch.call(libc::SYS_shmdt, &[Arg::Result(at)]);
    // It may have no right to do so: then it is seen.
    cx.frozen.run(&[(tid, batch)])?;
    Ok(())
}

/// Reads it where it is attached for a moment by this process.
fn keep_attached(cx: &mut Capture<'_>, row: &Row, object: ObjectId, subject: &str) -> Result<()> {
    const PIECE: u64 = 1 << 20;
    let attached = Attached::new(row.id, false).map_err(Error::system("attaching", subject))?;
    let mut done = 0;
    while done < row.size {
        let length = PIECE.min((row.size - done).next_multiple_of(PAGE));
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        attached.read(done, &mut bytes).map_err(Error::system("reading", subject))?;
        if bytes.iter().any(|byte| *byte != 0) {
            cx.content(object, done, bytes)?;
        }
        done += length;
    }
    Ok(())
}
