//! Pages put into a task that is being made, from any thread of ours: by a userfaultfd of the task's own address space
//! where pages are missing, else by `process_vm_writev(2)`.

use std::ops::Range;
use std::os::fd::OwnedFd;

use hdcr_engine::batch::{Arg, Batch};
use hdcr_engine::ids::{Fd, RemotePtr, Tid};
use hdcr_engine::mechanism::{Nursery, PageTarget, Result};
use hdcr_sys::missing::{MissingPages, USER_MODE_ONLY};
use nix::errno::Errno;

use crate::calls::{failure, write_pieces};
use crate::nursery::PtraceNursery;

/// An address space.
#[derive(Debug)]
struct Pages {
    tid: Tid,
    missing: Option<MissingPages>,
    /// What the userfaultfd has taken on, in order.
    fresh: Vec<Range<u64>>,
}

impl Pages {
    /// Cuts pages where what the userfaultfd has taken on begins or ends: the first of them, and whether it is in that.
    fn cut<'b>(&self, at: u64, bytes: &'b [u8]) -> (&'b [u8], bool) {
        let index = self.fresh.partition_point(|range| range.end <= at);
        let Some(next) = self.fresh.get(index) else { return (bytes, false) };
        let is_fresh = next.start <= at;
        let edge = if is_fresh { next.end } else { next.start };
        let len = usize::try_from(edge - at).unwrap_or(bytes.len()).min(bytes.len());
        (bytes.get(..len).unwrap_or_default(), is_fresh)
    }
}

impl PageTarget for Pages {
    fn put(&self, pieces: &[(RemotePtr, &[u8])]) -> Result<()> {
        let mut others = Vec::new();
        for (start, bytes) in pieces {
            let (mut at, mut rest) = (start.0, *bytes);
            while !rest.is_empty() {
                let (first, is_fresh) = self.cut(at, rest);
                match &self.missing {
                    Some(missing) if is_fresh => missing.put(at, first).map_err(|source| {
                        let errno = Errno::from_raw(source.raw_os_error().unwrap_or(libc::EIO));
                        failure("putting pages into it", self.tid, errno)
                    })?,
                    _ => others.push((RemotePtr(at), first)),
                }
                at = at.saturating_add(u64::try_from(first.len()).unwrap_or(0));
                rest = rest.get(first.len()..).unwrap_or_default();
            }
        }
        write_pieces(self.tid, &others).map_err(|errno| failure("writing its memory", self.tid, errno))
    }
}

/// The way into an address space. `fresh`: mappings, or parts of such, that have no page yet, in order.
pub(crate) fn open(nursery: &mut PtraceNursery, tid: Tid, fresh: &[Range<u64>]) -> Result<Box<dyn PageTarget>> {
    let mut pages = Pages { tid, missing: None, fresh: Vec::new() };
    if fresh.is_empty() {
        return Ok(Box::new(pages));
    }
    let made = userfaultfd(nursery, tid, libc::O_CLOEXEC | USER_MODE_ONLY)?;
    let Some(missing) = made.and_then(|made| usable(MissingPages::new(made))) else { return Ok(Box::new(pages)) };
    for range in fresh {
        match missing.register(range) {
            Ok(()) => pages.fresh.push(range.clone()),
            Err(error) => tracing::debug!(%error, ?range, "a mapping was not registered: its pages are written"),
        }
    }
    pages.missing = Some(missing);
    Ok(Box::new(pages))
}

/// A userfaultfd that the task makes and we take over; `None` where there is none to be had.
pub(crate) fn userfaultfd(nursery: &mut PtraceNursery, tid: Tid, flags: i32) -> Result<Option<OwnedFd>> {
    let mut batch = Batch::new();
    batch.try_call(libc::SYS_userfaultfd, &[Arg::from(flags)]);
    let replies = nursery.run(&[(tid, batch)])?;
    let made = replies.first().and_then(|replies| replies.result(0)).unwrap_or(-1);
    let Some(fd) = i32::try_from(made).ok().filter(|fd| *fd >= 0) else {
        tracing::debug!(made, "no userfaultfd");
        return Ok(None);
    };
    let process = nursery.task(tid)?.process;
    let ours = nursery.calls.duplicate(process, tid, Fd(fd));
    let mut batch = Batch::new();
    batch.call(libc::SYS_close, &[Arg::from(fd)]);
    nursery.run(&[(tid, batch)])?;
    Ok(ours.inspect_err(|error| tracing::debug!(%error, "the userfaultfd cannot be had")).ok())
}

/// What was made of a userfaultfd, if it can be used.
pub(crate) fn usable<T>(made: std::io::Result<T>) -> Option<T> {
    made.inspect_err(|error| tracing::debug!(%error, "the userfaultfd is of no use")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_cut_where_the_userfaultfd_begins_and_ends() {
        let pages = Pages { tid: Tid(1), missing: None, fresh: vec![10..20, 20..25, 40..50] };
        let bytes = [0; 100];
        for (at, expected) in
            [(0, (10, false)), (10, (10, true)), (22, (3, true)), (25, (15, false)), (60, (100, false))]
        {
            let (first, is_fresh) = pages.cut(at, &bytes);
            assert_eq!((first.len(), is_fresh), expected, "{at}");
        }
    }
}
