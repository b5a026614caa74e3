//! Segments made again, or those that the program has left behind, and their contents put back.
//!
//! A segment stays when its last process ends, unless it is marked for removal: the very one is there mostly, and goes back
//! in place. Where it is gone it is made again under its number, which the program has in its memory; where numbers cannot be
//! chosen only one that is marked comes back, under another number: nobody is to find it any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;

use hdcr_image::Record as _;
use hdcr_sys::segments::{self as sys, Attached};
use hdcr_sys::semaphores::Rights;
use nix::libc;

use super::{LOCKED, MARKED, Row, SegmentRecord, refusal, rows};
use crate::batch::Arg;
use crate::error::{Error, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::memory::{END, PAGE};
use crate::model::ObjectId;
use crate::procfs;
use crate::restore::Restore;
use crate::semaphores::place;
use crate::stored::{self, Model};
use crate::task::Stage;

/// Segments of a tree in the making. Those that were made for it go with it when it does not come to run.
#[derive(Debug, Default)]
pub(crate) struct Made {
    all: BTreeMap<ObjectId, Segment>,
    kept: bool,
}

#[derive(Debug)]
struct Segment {
    id: i32,
    record: SegmentRecord,
    /// It was not there.
    fresh: bool,
    /// Keeps one that is marked for removal until the tree has attached it.
    hold: Option<Attached>,
}

impl Made {
    /// The number of a segment here, and the bytes that it takes in an address space.
    pub(crate) fn of(&self, object: ObjectId) -> Option<(i32, u64)> {
        let segment = self.all.get(&object)?;
        Some((segment.id, segment.record.size.next_multiple_of(PAGE)))
    }

    /// The tree runs.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let fresh = self.all.values().filter(|segment| segment.fresh && !self.kept);
        for segment in fresh.filter(|segment| segment.record.mode & MARKED == 0) {
            if let Err(error) = sys::remove(segment.id) {
                tracing::debug!(%error, id = segment.id, "a segment of a tree that did not come to run stays");
            }
        }
    }
}

/// Where a segment comes back.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Room {
    /// In the one that was left behind.
    There,
    /// It has to be made.
    Free,
    /// Likewise, when one of the same key or number is gone that the program has made since.
    Newer(i32),
    /// Something else is there.
    Taken(Refusal),
}

/// Whether a segment is one that a process of the tree made or used last before it died, and that nobody has attached.
fn is_left(row: &Row, pids: &BTreeSet<i32>) -> bool {
    let alive = |pid: i32| procfs::stat(Pid(pid)).is_ok_and(|stat| !procfs::dead(stat.state));
    let of_tree = pids.contains(&row.creator) || pids.contains(&row.user);
    row.attached == 0 && of_tree && !alive(row.creator) && !alive(row.user)
}

fn pids_of(model: &Model) -> BTreeSet<i32> {
    model.processes.iter().map(|process| process.pid.0).collect()
}

fn room(record: &SegmentRecord, rows: &[Row], pids: &BTreeSet<i32>, same_place: bool) -> Room {
    let newer = |row: &Row| same_place && row.uid == record.uid && is_left(row, pids);
    let SegmentRecord { id, key, mode, uid, gid, size, .. } = *record;
    let taken = |cause: &str, remedy| Room::Taken(refusal("segment-taken", id, cause.to_owned(), remedy));
    let removes = "remove it with ipcrm(1) if nobody needs it";
    if let Some(row) = rows.iter().find(|row| row.id == id) {
        let alike = (row.key, row.uid, row.gid, row.size, row.mode & MARKED) == (key, uid, gid, size, mode & MARKED);
        return match (alike && same_place, row.attached) {
            (true, 0) => Room::There,
            (true, _) => taken("other processes have it attached by now", "let them let go of it"),
            (false, _) if mode & MARKED != 0 => Room::Free,
            (false, _) if newer(row) => Room::Newer(row.id),
            (false, _) => taken("another segment has its number", removes),
        };
    }
    match rows.iter().find(|row| key != libc::IPC_PRIVATE && row.key == key) {
        Some(row) if newer(row) => Room::Newer(row.id),
        Some(_) => taken("another segment has its key", removes),
        None => Room::Free,
    }
}

fn records(frames: &BTreeMap<(u16, ObjectId), crate::restore::StoredFrame>) -> Result<Vec<(ObjectId, SegmentRecord)>> {
    let mut all = Vec::new();
    for object in stored::ids(frames, SegmentRecord::TAG) {
        let record: SegmentRecord = stored::one(frames, object)?;
        if record.size == 0 || record.size > END {
            return Err(Error::Unsound(format!("{object}: shared memory of {} bytes", record.size)));
        }
        all.push((object, record));
    }
    // Those that are marked come first: their keys are free again at once.
    all.sort_by_key(|(_, record)| record.mode & MARKED == 0);
    Ok(all)
}

/// Whether this process may say which number the next segment gets: nothing is written.
fn may_choose() -> bool {
    OpenOptions::new().write(true).open("/proc/sys/kernel/shm_next_id").is_ok()
}

/// Why a number cannot be chosen.
const MAY_NOT: &str = "this user may not choose it";

fn no_number(id: i32, cause: &str) -> Refusal {
    let cause = format!("it is gone, and cannot be made again under its number: {cause}");
    refusal("segment-number", id, cause, "restore as root or with the capability CAP_CHECKPOINT_RESTORE")
}

/// `why` it does not get its own.
fn renumbered(id: i32, why: &str) -> Refusal {
    let cause = format!("it is marked for removal, and comes back under another number, as {why}");
    refusal("segment-renumbered", id, cause, "restore as root if something is to attach it by its number")
}

fn is_here(record: &SegmentRecord) -> bool {
    (record.boot.clone(), record.namespace.clone()) == place()
}

/// The segments of an image that are here, in words.
pub(crate) fn here(model: &Model) -> Result<Vec<String>> {
    let mut all = records(&model.frames)?;
    all.retain(|(_, record)| is_here(record));
    let rows = if all.is_empty() { Vec::new() } else { rows() };
    all.retain(|(_, record)| rows.iter().any(|row| row.id == record.id));
    Ok(all.iter().map(|(_, record)| format!("System V shared memory {}", record.id)).collect())
}

/// What stands in the way of the segments of an image, and what is worth knowing.
pub(crate) fn check(model: &Model) -> Result<(Vec<Refusal>, Vec<Refusal>)> {
    let (mut refusals, mut notes) = (Vec::new(), Vec::new());
    let (all, pids) = (records(&model.frames)?, pids_of(model));
    let (rows, may_choose) = if all.is_empty() { (Vec::new(), true) } else { (rows(), may_choose()) };
    for (_, record) in all {
        match room(&record, &rows, &pids, is_here(&record)) {
            Room::Taken(refusal) => refusals.push(refusal),
            Room::Free | Room::Newer(_) if may_choose => {}
            Room::Free | Room::Newer(_) if record.mode & MARKED != 0 => notes.push(renumbered(record.id, MAY_NOT)),
            Room::Free | Room::Newer(_) => refusals.push(no_number(record.id, MAY_NOT)),
            Room::There => {}
        }
    }
    Ok((refusals, notes))
}

/// Makes all segments of the image, still without their contents.
pub(crate) fn make(cx: &mut Restore<'_>, model: &Model) -> Result<()> {
    let pids = pids_of(model);
    for (object, record) in records(cx.frames)? {
        let mut found = room(&record, &rows(), &pids, is_here(&record));
        // One of its number, and one of its key.
        for _ in 0..2 {
            let Room::Newer(id) = found else { break };
            sys::remove(id).map_err(Error::system("removing shared memory", id))?;
            let cause = "the program made it after the checkpoint; it was removed".to_owned();
            cx.notes.push(refusal("segment-newer", id, cause, ""));
            found = room(&record, &rows(), &pids, is_here(&record));
        }
        let segment = match found {
            Room::Taken(refusal) => return Err(Error::refuse(refusal)),
            Room::There => Segment { id: record.id, record, fresh: false, hold: None },
            Room::Free | Room::Newer(_) => {
                let segment = make_one(record)?;
                if segment.id != segment.record.id {
                    let why = if may_choose() { "its place is in use" } else { MAY_NOT };
                    cx.notes.push(renumbered(segment.record.id, why));
                }
                segment
            }
        };
        let id = segment.id;
        let rights = Rights { mode: mode_of(&segment.record) | 0o600, ..rights_of(&segment.record) };
        cx.segments.all.insert(object, segment);
        sys::set_rights(id, rights).map_err(Error::system("setting the mode of shared memory", id))?;
    }
    Ok(())
}

fn mode_of(record: &SegmentRecord) -> u16 {
    u16::try_from(record.mode & 0o777).unwrap_or_default()
}

fn rights_of(record: &SegmentRecord) -> Rights {
    Rights { uid: record.uid, gid: record.gid, mode: mode_of(record) }
}

fn make_one(record: SegmentRecord) -> Result<Segment> {
    let wrong = |what| Error::system(what, format!("System V shared memory {}", record.id));
    let marked = record.mode & MARKED != 0;
    let (id, key) = (record.id, if marked { record.first_key } else { record.key });
    let wanted = may_choose().then_some(id);
    if wanted.is_none() && !marked {
        return Err(Error::refuse(no_number(id, MAY_NOT)));
    }
    let made = match sys::make(key, record.size, wanted) {
        // Somebody else has the key that it had once.
        Err(error) if marked && error.raw_os_error() == Some(libc::EEXIST) => {
            sys::make(libc::IPC_PRIVATE, record.size, wanted)
        }
        made => made,
    };
    let made = made.map_err(wrong("making"))?;
    if made != id && !marked {
        sys::remove(made).map_err(wrong("removing"))?;
        return Err(Error::refuse(no_number(id, "its place is in use")));
    }
    let mut hold = None;
    if marked {
        let attached = Attached::new(made, true);
        sys::remove(made).map_err(wrong("marking"))?;
        hold = Some(attached.map_err(wrong("attaching"))?);
    }
    Ok(Segment { id: made, record, fresh: true, hold })
}

/// Puts contents, mode and locks back. The tree has attached all, and stands still.
pub(crate) fn fill(cx: &mut Restore<'_>, model: &Model) -> Result<()> {
    let living: BTreeSet<Pid> = model.processes.iter().filter(|p| !p.zombie()).map(|p| p.pid).collect();
    let mut all = std::mem::take(&mut cx.segments.all);
    let filled = all.iter_mut().try_for_each(|(object, segment)| fill_one(cx, *object, segment));
    for segment in all.values().filter(|_| filled.is_ok()) {
        used_last(cx, segment, &living);
    }
    cx.segments.all = all;
    filled
}

fn fill_one(cx: &mut Restore<'_>, object: ObjectId, segment: &mut Segment) -> Result<()> {
    let (id, record) = (segment.id, &segment.record);
    let wrong = |what| Error::system(what, format!("System V shared memory {id}"));
    let attached = match segment.hold.take() {
        Some(hold) => hold,
        None => Attached::new(id, true).map_err(wrong("attaching"))?,
    };
    if !segment.fresh {
        attached.clear(record.size.next_multiple_of(PAGE)).map_err(wrong("clearing"))?;
    }
    // Contents behind its end are refused: an image is not trusted.
    cx.contents.read(object, &mut |offset, bytes| attached.write(offset, bytes).map_err(wrong("filling")))?;
    sys::set_rights(id, rights_of(record)).map_err(wrong("setting the mode of"))?;
    let locked = record.mode & LOCKED != 0;
    if let Err(error) = sys::lock(id, locked)
        && locked
    {
        let cause = format!("its pages cannot be locked in memory again: {error}");
        cx.notes.push(refusal("segment-unlocked", record.id, cause, "raise the limit of locked memory"));
    }
    Ok(())
}

/// The process that used it last does so again: others, and the next checkpoint, see the same.
fn used_last(cx: &mut Restore<'_>, segment: &Segment, living: &BTreeSet<Pid>) {
    let Some(any) = living.first().copied() else { return };
    let user = Some(Pid(segment.record.user)).filter(|user| living.contains(user)).unwrap_or(any);
    let batch = cx.batch(Stage::Descriptors, Tid(user.0));
    let args = [Arg::from(segment.id), Arg::Value(0), Arg::from(libc::SHM_RDONLY)];
    let at = batch.try_call("attaching shared memory", libc::SYS_shmat, &args);
    batch.try_call("letting go of shared memory", libc::SYS_shmdt, &[Arg::Result(at)]);
}

#[cfg(test)]
mod tests {
    use super::super::tests::ROW;
    use super::*;

    fn record() -> SegmentRecord {
        SegmentRecord {
            boot: b"a".to_vec(),
            namespace: b"ipc:[1]".to_vec(),
            id: ROW.id,
            key: ROW.key,
            first_key: ROW.key,
            mode: ROW.mode,
            uid: ROW.uid,
            gid: ROW.gid,
            size: ROW.size,
            user: ROW.user,
        }
    }

    fn code(room: &Room) -> &'static str {
        match room {
            Room::There => "there",
            Room::Free => "free",
            Room::Newer(_) => "newer",
            Room::Taken(refusal) => refusal.code,
        }
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let bytes = record().encode().unwrap();
        assert_eq!(SegmentRecord::decode(&bytes, 1).unwrap(), record());
    }

    #[test]
    fn what_was_left_behind_is_told_from_what_is_somebody_elses() {
        const DEAD: i32 = i32::MAX;
        let (none, ours) = (BTreeSet::new(), BTreeSet::from([DEAD]));
        let found = |row: Row| code(&room(&record(), &[row], &none, true));
        assert_eq!(code(&room(&record(), &[], &none, true)), "free");
        assert_eq!(found(ROW), "there");
        assert_eq!(code(&room(&record(), &[ROW], &none, false)), "segment-taken");
        assert_eq!(found(Row { attached: 1, ..ROW }), "segment-taken");
        assert_eq!(found(Row { size: 57, ..ROW }), "segment-taken");
        assert_eq!(found(Row { uid: 0, ..ROW }), "segment-taken");
        assert_eq!(found(Row { id: 1, ..ROW }), "segment-taken");
        assert_eq!(found(Row { id: 1, key: 3, ..ROW }), "free");
        // Made again after the checkpoint, by a process that has died since.
        let again = Row { id: 1, creator: DEAD, user: DEAD, ..ROW };
        assert_eq!(code(&room(&record(), &[again], &ours, true)), "newer");
        assert_eq!(code(&room(&record(), &[again], &ours, false)), "segment-taken");
        let living = std::process::id().cast_signed();
        for other in [Row { attached: 1, ..again }, Row { user: living, ..again }, Row { uid: 0, ..again }] {
            assert_eq!(code(&room(&record(), &[other], &ours, true)), "segment-taken");
        }
        let marked = SegmentRecord { key: 0, mode: ROW.mode | MARKED, ..record() };
        assert_eq!(code(&room(&marked, &[ROW], &none, true)), "free");
        let dying = Row { key: 0, mode: ROW.mode | MARKED, attached: 2, ..ROW };
        assert_eq!(code(&room(&marked, &[dying], &none, true)), "segment-taken");
    }
}
