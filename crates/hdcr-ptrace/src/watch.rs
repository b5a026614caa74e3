//! Writes followed by a userfaultfd of the target's own, which the target makes, lends and closes again.
//!
//! The context stays bound to the target's memory whoever holds it, so everything after the loan is done from here while
//! the target runs. `UFFD_FEATURE_WP_ASYNC` lets a write to a protected page through without asking anybody.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use hdcr_engine::batch::{Arg, Batch, Replies};
use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::{Followed, MechanismError, Pages, Result, Watch, Written};
use hdcr_sys::pagemap::{self, Then, Wanted};
use hdcr_sys::userfaultfd::{self, Habits, LAST_PAGE, WriteWitness};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};

use crate::calls::{Calls, failure};

/// The kernel takes at most this many pieces a call (`IOV_MAX`).
const PIECES: usize = 1024;
const PAGE: usize = 4096;
/// Memory that is scanned at once.
const SCAN: u64 = 128 << 20;
/// More at once no longer fits into the cache of a core.
const MOST: u64 = 1 << 20;

/// A batch that makes a userfaultfd and closes it again.
pub(crate) fn loan(flags: u64) -> Batch {
    let flags = flags | u64::from((libc::O_CLOEXEC | libc::O_NONBLOCK).cast_unsigned());
    let mut batch = Batch::new();
    let made = batch.call(libc::SYS_userfaultfd, &[flags.into()]);
    batch.call(libc::SYS_close, &[Arg::Result(made)]);
    batch
}

/// Why the first call of [`loan`] failed.
pub(crate) fn refusal(replies: &Replies) -> Errno {
    let result = replies.result(0).and_then(i64::checked_neg).and_then(|errno| i32::try_from(errno).ok());
    result.map_or(Errno::EIO, Errno::from_raw)
}

/// A followed address space.
#[derive(Debug)]
pub(crate) struct PtraceWatch {
    pid: Pid,
    witness: WriteWitness,
    pagemap: File,
    memory: File,
    /// Reading by `process_vm_readv` pins, and gives a process its own copy of a page that it shares since a fork.
    shares: bool,
    /// What the kernel is known to show; `None`: nothing is relied upon.
    habits: Option<Habits>,
}

impl PtraceWatch {
    /// Takes over the userfaultfd of a process by one of its threads.
    pub(crate) fn new(calls: &Calls, (pid, tid): (Pid, Tid), lent: OwnedFd, shares: bool) -> Result<Self> {
        let witness = WriteWitness::new(lent).map_err(|error| from_io("following its memory", pid, error))?;
        let (pagemap, memory) = (open(pid, "pagemap")?, calls.open_memory(pid, tid)?);
        Ok(Self { pid, witness, pagemap, memory, shares, habits: userfaultfd::habits().ok() })
    }

    /// What a scan found.
    fn found(&self, found: io::Result<Vec<Range<u64>>>) -> Result<Written> {
        match found {
            Ok(pages) => Ok(Written::Pages(pages)),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Written::Unfollowed),
            Err(error) => Err(from_io("looking for what it has written", self.pid, error)),
        }
    }

    fn scan(&self, range: &Range<u64>, wanted: Wanted) -> Result<Vec<Range<u64>>> {
        let found = pagemap::scan(&self.pagemap, range.clone(), wanted);
        found.map_err(|error| from_io("scanning its pages", self.pid, error))
    }

    /// Pages that are not there, but marked as protected or as guards: such a mark looks like a page that is swapped out. One
    /// that is filled after this look shows as written.
    fn marks(&self, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
        let Some(mark) = self.habits.map(|habits| habits.mark) else { return Ok(Vec::new()) };
        let absent = self.scan(range, Wanted::Absent)?;
        if absent.is_empty() || (mark & pagemap::PLACE == 0 && swaps()) {
            return Ok(Vec::new());
        }
        let mut marks: Vec<Range<u64>> = Vec::new();
        for part in absent.iter().flat_map(parts) {
            let mut entries = vec![0; length(&part) / PAGE];
            pagemap::entries(&self.pagemap, part.start, &mut entries)
                .map_err(|error| from_io("reading its pagemap", self.pid, error))?;
            for (page, entry) in part.step_by(PAGE).zip(entries) {
                if entry & !pagemap::SOFT_DIRTY == mark || entry & pagemap::GUARDED != 0 {
                    let next = page.saturating_add(PAGE as u64);
                    match marks.last_mut() {
                        Some(last) if last.end == page => last.end = next,
                        _ => marks.push(page..next),
                    }
                }
            }
        }
        Ok(marks)
    }

    /// Reads pages in one call.
    fn read_plain(&self, pages: &[Range<u64>], into: &mut [u8]) -> Result<usize> {
        let remote: Option<Vec<RemoteIoVec>> = pages
            .iter()
            .map(|range| Some(RemoteIoVec { base: usize::try_from(range.start).ok()?, len: length(range) }))
            .collect();
        let pid = nix::unistd::Pid::from_raw(self.pid.0);
        match process_vm_readv(pid, &mut [IoSliceMut::new(into)], &remote.unwrap_or_default()) {
            Ok(got) => Ok(got),
            Err(Errno::EFAULT | Errno::EPERM) => Ok(0),
            Err(errno) => Err(failure("reading its memory", self.pid.leader(), errno)),
        }
    }

    /// Reads pages one by one through the memory file, also those that the program itself may not read.
    fn read_hidden(&self, pages: &[Range<u64>], into: &mut [u8]) -> usize {
        let mut done = 0;
        for range in pages {
            let room = length(range);
            let Some(place) = into.get_mut(done..done + room) else { break };
            if self.memory.read_exact_at(place, range.start).is_err() {
                break;
            }
            done += room;
        }
        done
    }
}

pub(crate) fn open(pid: Pid, name: &str) -> Result<File> {
    File::open(format!("/proc/{pid}/{name}")).map_err(|error| from_io("opening what shows its memory", pid, error))
}

pub(crate) fn from_io(operation: &'static str, pid: Pid, source: io::Error) -> MechanismError {
    match source.raw_os_error() {
        Some(errno) => failure(operation, pid.leader(), Errno::from_raw(errno)),
        None => MechanismError::System { operation, tid: pid.leader(), source },
    }
}

/// Whether this machine swaps pages out.
fn swaps() -> bool {
    std::fs::read("/proc/swaps")
        .is_ok_and(|text| text.split(|byte| *byte == b'\n').nth(1).is_some_and(|line| !line.is_empty()))
}

/// A range in parts of at most [`MOST`] bytes.
fn parts(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let (start, end) = (range.start, range.end);
    (start..end).step_by(length(&(0..MOST))).map(move |at| at..at.saturating_add(MOST).min(end))
}

/// The parts of a range that lie in none of the others, which are in order.
fn without(range: &Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut at = range.start;
    let first = others.partition_point(|other| other.end <= range.start);
    for other in others.iter().skip(first).take_while(|other| other.start < range.end) {
        left.push(at..other.start.max(at));
        at = other.end.max(at);
    }
    left.push(at..range.end.max(at));
    left.retain(|piece| !piece.is_empty());
    left
}

fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)
}

/// Pieces that are read by one call: neither too many nor too much, one at least.
fn one_call(pages: &[Range<u64>]) -> &[Range<u64>] {
    let mut total = 0_u64;
    let fits = pages.iter().take(PIECES).take_while(|range| {
        total = total.saturating_add(range.end.saturating_sub(range.start));
        total <= MOST
    });
    let count = fits.count().max(1).min(pages.len());
    pages.get(..count).unwrap_or_default()
}

impl Watch for PtraceWatch {
    fn renew(&mut self) -> Result<()> {
        self.pagemap = open(self.pid, "pagemap")?;
        self.memory = open(self.pid, "mem")?;
        Ok(())
    }

    fn must_be_the_same(&self) -> Result<()> {
        // The kernel looks whether that is a place that can be at all, then for the address space, and then for what lies there
        // (fs/userfaultfd.c `userfaultfd_writeprotect`): should something, it counts as written.
        match self.witness.expose(&LAST_PAGE) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                Err(from_io("looking for its address space", self.pid, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn follow(&self, mapping: &Range<u64>) -> Result<Followed> {
        match self.witness.follow(mapping) {
            Ok(()) => Ok(Followed::Yes),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY) => Ok(Followed::Taken),
                // The last two: the address space has gone with an exec.
                Some(libc::EINVAL | libc::EPERM | libc::ENOMEM | libc::ESRCH) => Ok(Followed::Impossible),
                _ => Err(from_io("following a mapping", self.pid, error)),
            },
        }
    }

    fn take_written(&self, range: &Range<u64>) -> Result<Written> {
        self.found(pagemap::written(&self.pagemap, range.clone(), Then::Protect))
    }

    /// In pieces: each holds the lock of the memory map, and a call of the program's own may wait for that.
    fn written(&self, range: &Range<u64>) -> Result<Written> {
        let mut all: Vec<Range<u64>> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = at.saturating_add(SCAN).min(range.end);
            match self.found(pagemap::written(&self.pagemap, at..end, Then::Leave))? {
                Written::Pages(pages) => {
                    for run in pages {
                        match all.last_mut() {
                            Some(last) if last.end == run.start => last.end = run.end,
                            _ => all.push(run),
                        }
                    }
                }
                Written::Unfollowed => return Ok(Written::Unfollowed),
            }
            at = end;
        }
        Ok(Written::Pages(all))
    }

    fn may_have_vanished(&self, page: u64) -> Result<bool> {
        if self.habits.is_some_and(|habits| habits.tells_holes) {
            return Ok(false);
        }
        let there = pagemap::exists(&self.pagemap, page);
        there.map(|there| !there).map_err(|error| from_io("reading its pagemap", self.pid, error))
    }

    fn filled(&self, range: &Range<u64>, pages: Pages) -> Result<Vec<Range<u64>>> {
        let marks = self.marks(range)?;
        let wanted = match pages {
            Pages::Filled => Wanted::Filled,
            Pages::Anonymous => Wanted::Anonymous,
        };
        let found = self.scan(range, wanted)?;
        Ok(if marks.is_empty() { found } else { found.iter().flat_map(|range| without(range, &marks)).collect() })
    }

    fn read(&self, pages: &[Range<u64>], into: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        let mut rest = pages;
        while !rest.is_empty() {
            let some = one_call(rest);
            let wanted: usize = some.iter().map(length).sum();
            let Some(place) = into.get_mut(done..done + wanted) else { break };
            let got = if self.shares { 0 } else { self.read_plain(some, place)? };
            // What follows is not readable to the program itself, or gone.
            let got = if got == wanted { got } else { self.read_hidden(some, place) };
            done += got;
            if got < wanted {
                break;
            }
            rest = rest.get(some.len()..).unwrap_or_default();
        }
        Ok(done)
    }

    fn protect(&self, range: &Range<u64>) -> Result<()> {
        self.witness.protect(range).map_err(|error| from_io("protecting its pages", self.pid, error))
    }

    fn expose(&self, range: &Range<u64>) -> Result<()> {
        self.witness.expose(range).map_err(|error| from_io("taking the protection off its pages", self.pid, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_taken_out() {
        assert_eq!(without(&(2..9), &[0..3, 5..6, 8..12]), [3..5, 6..8]);
        assert_eq!(without(&(2..6), &[0..1, 3..4, 6..7]), [2..3, 4..6]);
        assert_eq!(without(&(2..4), &[0..3, 3..9]), []);
    }
}
