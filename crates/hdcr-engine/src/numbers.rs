//! Numbers of descriptors: a restore holds all open files of a tree at once, under numbers of its own, before any of them comes
//! to the number that the program knows; beside them what the making of some holds until all are made ([`Beside`]).

use std::collections::BTreeSet;
use std::ops::Range;

use hdcr_image::{Record as _, Tag};
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Owner, Refusal, Result};
use crate::resource::fifo::FifoEndRecord;
use crate::resource::pty::TerminalRecord;
use crate::resource::regfile::RegFileRecord;
use crate::resource::socket::SocketRecord;

/// What the restoring process has open for itself.
const OWN: usize = 16;

fn at_most(limit: Option<u64>) -> i32 {
    limit.and_then(|limit| i32::try_from(limit).ok()).unwrap_or(i32::MAX)
}

/// How many there are for this process.
pub(crate) fn now() -> i32 {
    at_most(getrlimit(Resource::Nofile).current)
}

/// Numbers for what is open for the restore alone, which nobody of the tree uses: above all of the tree's, or the widest
/// gap between them when little is left above. Shells keep their script just below the limit, whatever that is.
pub(crate) fn room(used: &BTreeSet<i32>, limit: i32) -> Range<i32> {
    /// The restoring process has descriptors of its own below.
    const OWN: i32 = 64;
    const PLENTY: i32 = 1024;
    let after = used.last().map_or(0, |highest| highest.saturating_add(1));
    if limit.saturating_sub(after.max(OWN)) >= PLENTY {
        return after.max(OWN)..i32::MAX;
    }
    let starts = std::iter::once(0).chain(used.iter().map(|number| number.saturating_add(1)));
    let gaps = starts.zip(used.iter().copied().chain([limit]));
    let widest = gaps.max_by_key(|(start, end)| end.saturating_sub(*start));
    widest.map_or(after..i32::MAX, |(start, end)| if start == after { start..i32::MAX } else { start..end })
}

/// What a restore holds beside the open files themselves, at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Beside {
    /// At numbers that the tree does not use.
    lifted: usize,
    /// At the lowest numbers that are free.
    low: usize,
}

impl Beside {
    /// For open files, each of a kind and with its flags, and for so many pipes, whose ends they may be.
    pub(crate) fn of(files: impl Iterator<Item = (Tag, u64)>, pipes: usize) -> Self {
        const WRITES: u64 = 3;
        let mut all = Self { lifted: 0, low: pipes.saturating_mul(2) };
        for (kind, flags) in files {
            let (lifted, low) = match kind {
                // One that leads to the file, and one for its roll-back.
                RegFileRecord::TAG => (0, if flags & WRITES == 0 { 1 } else { 2 }),
                TerminalRecord::TAG => (1, 0),
                // One that keeps it open; the other end.
                FifoEndRecord::TAG | SocketRecord::TAG => (0, 1),
                _ => (0, 0),
            };
            (all.lifted, all.low) = (all.lifted.saturating_add(lifted), all.low.saturating_add(low));
        }
        all
    }
}

/// Refuses a tree of which no restore by this user can hold all open files.
pub(crate) fn must_suffice(used: &BTreeSet<i32>, files: usize, beside: Beside) -> Result<()> {
    let limit = at_most(getrlimit(Resource::Nofile).maximum);
    if suffices(used, files, beside, limit) {
        return Ok(());
    }
    let cause =
        format!("a restore holds the {files} of the program in more than one way at once, and may have {limit} in all");
    Err(Error::refuse(Refusal {
        code: "too-many-files",
        object: "open files".to_owned(),
        owner: Owner::default(),
        cause,
        remedy: "raise the hard limit of open files (`ulimit -H -n`) for hdcr, or let the program open fewer"
            .to_owned(),
    }))
}

fn suffices(used: &BTreeSet<i32>, files: usize, beside: Beside, limit: i32) -> bool {
    let room = room(used, limit);
    let free = usize::try_from(room.end.min(limit).saturating_sub(room.start)).unwrap_or(0);
    // What has no place below the room goes into it.
    let below = usize::try_from(room.start).unwrap_or(0);
    let above = beside.low.saturating_add(OWN).saturating_sub(below);
    files.saturating_add(beside.lifted).saturating_add(above) <= free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_held_at_once_is_known() {
        let used = |count: i32| (0..count).collect::<BTreeSet<i32>>();
        let twenty = |count: usize, lifted, low| {
            suffices(&used(i32::try_from(count).unwrap()), count, Beside { lifted, low }, 20_000)
        };
        assert!(twenty(7000, 0, 6990 + 5000));
        assert!(!twenty(7000, 0, 6990 + 6900));
        assert!(twenty(9000, 0, 0));
        assert!(!twenty(10_003, 0, 0));
        assert!(twenty(6500, 6500, 0));
        assert!(!twenty(8192, 8192, 0));
        assert!(suffices(&used(10), 10, Beside { lifted: 0, low: 9 }, 64));
        must_suffice(&used(4), 4, Beside { lifted: 0, low: 2 }).unwrap();
    }

    #[test]
    fn what_is_held_beside_an_open_file_is_counted() {
        let of = |kind, flags| Beside::of([(kind, flags)].into_iter(), 0);
        assert_eq!(of(RegFileRecord::TAG, 0), Beside { lifted: 0, low: 1 });
        assert_eq!(of(RegFileRecord::TAG, 2), Beside { lifted: 0, low: 2 });
        assert_eq!(of(SocketRecord::TAG, 2), Beside { lifted: 0, low: 1 });
        assert_eq!(of(TerminalRecord::TAG, 2), Beside { lifted: 1, low: 0 });
        assert_eq!(of(crate::resource::directory::DirectoryRecord::TAG, 0), Beside::default());
        assert_eq!(Beside::of(std::iter::empty(), 7), Beside { lifted: 0, low: 14 });
    }

    #[test]
    fn a_restore_finds_room_for_its_own_descriptors() {
        let room = |used: &[i32], limit| room(&used.iter().copied().collect(), limit);
        assert_eq!(room(&[0, 1, 2], 1_048_576), 64..i32::MAX);
        assert_eq!(room(&[0, 1, 2, 255], 20_000), 256..i32::MAX);
        assert_eq!(room(&[0, 1, 2, 255], 256), 3..255);
        assert_eq!(room(&[0, 1, 2, 63], 64), 3..63);
        assert_eq!(room(&[0, 1, 2, 1_048_575], 1_048_576), 3..1_048_575);
        assert_eq!(room(&[0, 1, 2, 10], 64), 11..i32::MAX);
        assert_eq!(room(&[], 64), 0..i32::MAX);
    }
}
