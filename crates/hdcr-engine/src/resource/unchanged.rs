//! Files that have not changed since the last image of a series: they are neither read nor stored again.
//!
//! What shows it are length and times, to the nanosecond. A file that is mapped shared is not judged by them: what is written
//! through memory changes the times at the first write only (`file_update_time` in mm/filemap.c).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Stat, StatFs};

use super::data;
use super::late::LateRecord;
use crate::model::ObjectId;

/// Device and number.
type Inode = (u64, u64);
/// Length, last change of contents, last change of anything: seconds and nanoseconds.
type Facts = (i64, (i64, u64), (i64, u64));

/// A file of an image.
#[derive(Clone, Debug)]
struct KnownFile {
    facts: Facts,
    id: ObjectId,
    /// Of one that is only read.
    late: Option<LateRecord>,
}

impl KnownFile {
    fn has_contents(&self) -> bool {
        self.late.as_ref().is_none_or(|record| record.contents)
    }
}

/// The files of an image that the next one may take over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known(BTreeMap<Inode, KnownFile>);

impl Known {
    /// The objects whose contents the image holds.
    pub(crate) fn objects(&self) -> Vec<u64> {
        self.0.values().filter(|file| file.has_contents()).map(|file| file.id.0).collect()
    }

    fn of(&self, stat: &Stat) -> Option<&KnownFile> {
        let (inode, facts) = facts_of(stat);
        self.0.get(&inode).filter(|known| known.facts == facts)
    }

    /// The object and the record of a file that is only read, if it is as it was.
    pub(crate) fn late(&self, stat: &Stat) -> Option<(ObjectId, &LateRecord)> {
        let known = self.of(stat)?;
        Some((known.id, known.late.as_ref()?))
    }

    /// The object that has the contents of a file, if it is as it was.
    fn contents(&self, stat: &Stat) -> Option<ObjectId> {
        self.of(stat).filter(|known| known.has_contents()).map(|known| known.id)
    }

    /// Adds a file that is about to be read, or was read, since `now` (seconds), unless it was changed so shortly before that
    /// another change may show the same times.
    pub(crate) fn add(&mut self, stat: &Stat, id: ObjectId, late: Option<LateRecord>, now: i64) {
        if !is_fresh(stat, now) {
            self.goes_on(stat, id, late);
        }
    }

    /// Adds a file that is as it was.
    pub(crate) fn goes_on(&mut self, stat: &Stat, id: ObjectId, late: Option<LateRecord>) {
        let (inode, facts) = facts_of(stat);
        self.0.insert(inode, KnownFile { facts, id, late });
    }
}

fn facts_of(stat: &Stat) -> (Inode, Facts) {
    let Stat { st_mtime, st_mtime_nsec, st_ctime, st_ctime_nsec, .. } = *stat;
    ((stat.st_dev, stat.st_ino), (stat.st_size, (st_mtime, st_mtime_nsec), (st_ctime, st_ctime_nsec)))
}

/// Whether a file system keeps the times of its files itself, on this machine, and exactly. What is known of one in a program
/// (FUSE) or elsewhere (NFS) may be as old as its cache, and some keep no times at all.
pub(crate) fn keeps_times(fs: &StatFs) -> bool {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const F2FS: u64 = 0xf2f5_2010;
    const ZFS: u64 = 0x2fc1_2fc1;
    const BCACHEFS: u64 = 0xca45_1a4e;
    const OVERLAY: u64 = 0x794c_7630;
    [EXT, XFS, BTRFS, F2FS, ZFS, BCACHEFS, OVERLAY].contains(&data::magic(fs))
}

/// Times are those of the last tick, on some file systems of the last two seconds.
fn is_fresh(stat: &Stat, now: i64) -> bool {
    const COARSE: i64 = 3;
    now.saturating_sub(stat.st_mtime.max(stat.st_ctime)) < COARSE
}

/// What a capture knows, and what it finds.
#[derive(Debug, Default)]
pub(crate) struct Unchanged {
    pub(crate) known: Arc<Known>,
    pub(crate) next: Known,
    /// Objects, and those of the image before that hold the same.
    pub(crate) brought: Vec<(ObjectId, ObjectId)>,
}

impl Unchanged {
    /// Whether the image before holds the contents of a file that would be read now.
    pub(crate) fn takes(&mut self, id: ObjectId, file: &OwnedFd, stat: &Stat) -> bool {
        if !rustix::fs::fstatfs(file).is_ok_and(|fs| keeps_times(&fs)) {
            return false;
        }
        self.shows_no_change(id, stat)
    }

    fn shows_no_change(&mut self, id: ObjectId, stat: &Stat) -> bool {
        if let Some(from) = self.known.contents(stat) {
            self.brought.push((id, from));
            self.next.goes_on(stat, id, None);
            return true;
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
        self.next.add(stat, id, None, now);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_the_same_times_and_length_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, "text").unwrap();
        let stat = || rustix::fs::stat(&path).unwrap();
        let mut first = Unchanged::default();
        assert!(
            !first.shows_no_change(ObjectId(7), &stat()) && first.next.objects().is_empty(),
            "it was made just now"
        );
        let mut known = Known::default();
        known.add(&stat(), ObjectId(7), None, stat().st_ctime + 3);
        let mut next = Unchanged { known: Arc::new(known), ..Unchanged::default() };
        assert!(next.shows_no_change(ObjectId(9), &stat()) && next.known.late(&stat()).is_none());
        assert_eq!((next.brought.as_slice(), next.next.objects()), (&[(ObjectId(9), ObjectId(7))][..], vec![9]));
        // Its times are set back, but for the one that nobody sets.
        let before = stat();
        std::fs::write(&path, "next").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(before.st_mtime.unsigned_abs(), 0);
        file.set_modified(time).unwrap();
        assert!(!next.shows_no_change(ObjectId(9), &stat()));
    }

    #[test]
    fn files_of_programs_and_of_other_machines_are_not_judged() {
        let keeps = |path: &str| keeps_times(&rustix::fs::statfs(path).unwrap());
        assert!(!keeps("/proc") && !keeps("/dev/shm"));
    }

    #[test]
    fn a_file_of_which_only_a_digest_is_kept_has_no_contents() {
        let stat = rustix::fs::stat("/proc/self/exe").unwrap();
        let mut known = Known::default();
        known.goes_on(&stat, ObjectId(3), Some(LateRecord::default()));
        assert!(known.objects().is_empty() && known.contents(&stat).is_none() && known.late(&stat).is_some());
    }
}
