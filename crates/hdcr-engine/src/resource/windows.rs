//! Shared memory that no descriptor leads to, read where processes have it mapped.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use hdcr_sys::pagemap::{self, Wanted};
use nix::libc;

use crate::capture::Capture;
use crate::error::{Error, Result};
use crate::ids::{Pid, RemotePtr};
use crate::mechanism::MechanismError;
use crate::memory::{PAGE, kin};
use crate::model::ObjectId;
use crate::procfs;

/// A part of a shared object that could only be read through a mapping of it.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) pid: Pid,
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) offset: u64,
}

/// Reads shared memory where it is mapped; what no process maps any more cannot be seen by any. A mapping may be longer than
/// its object, by mremap(2): there it cannot be read. The length that was read.
pub(super) fn keep_windows(cx: &mut Capture<'_>, id: ObjectId, windows: &[Window]) -> Result<u64> {
    const PIECE: u64 = 1 << 20;
    let mut windows = windows.to_vec();
    windows.sort_by_key(|window| window.offset);
    let mut done = 0_u64;
    for window in &windows {
        let end = window.offset.saturating_add(window.len);
        done = done.max(window.offset);
        while done < end {
            let len = PIECE.min(end - done);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
            let at = window.at.saturating_add(done - window.offset);
            let read = |bytes: &mut [u8], at| cx.frozen.read(window.pid, RemotePtr(at), bytes);
            if let Err(error) = read(&mut bytes, at) {
                let pages = readable(len / PAGE, |page| read(&mut [0], at.saturating_add(page * PAGE)));
                let last = windows.iter().max_by_key(|window| window.offset.saturating_add(window.len));
                // Nothing is readable behind the end of the object: else it is something else that cannot be read.
                let ends =
                    |last: &Window| cx.frozen.read(last.pid, RemotePtr(last.at + last.len - 1), &mut [0]).is_err();
                if !unreadable_page(&error) || pages >= len / PAGE || !last.is_some_and(ends) {
                    return Err(error.into());
                }
                bytes.truncate(usize::try_from(pages * PAGE).unwrap_or_default());
                cx.content(id, done, bytes)?;
                return Ok(done + pages * PAGE);
            }
            cx.content(id, done, bytes)?;
            done += len;
        }
    }
    Ok(done)
}

/// Reads a file where it is mapped private: pages that a process has written are its own, and not those of the file. Those that
/// nobody sees any more are zeros. Where what can be read ends, in bytes of the file.
pub(super) fn keep_seen(cx: &mut Capture<'_>, id: ObjectId, windows: &[Window]) -> Result<u64> {
    const PIECE: u64 = 1 << 20;
    let (mut known, mut end): (Vec<Range<u64>>, u64) = (Vec::new(), 0);
    for window in windows {
        let wrong = |what| Error::system(what, format!("process {}", window.pid));
        let open = |name| File::open(procfs::path(window.pid, name));
        let (memory, pagemap) =
            (open("mem").map_err(wrong("opening memory"))?, open("pagemap").map_err(wrong("opening pagemap"))?);
        let range = window.at..window.at.saturating_add(window.len);
        let own = pagemap::scan(&pagemap, range.clone(), Wanted::Anonymous).map_err(wrong("scanning pages"))?;
        let in_file = |range: &Range<u64>| {
            let shift = |at: u64| at.saturating_sub(window.at).saturating_add(window.offset);
            shift(range.start)..shift(range.end)
        };
        // Behind the end of the file nobody has a page.
        end = own.iter().map(|run| in_file(run).end).fold(end, u64::max);
        let of_file = kin::without(vec![range], &own).iter().map(in_file).collect();
        for run in kin::without(of_file, &known) {
            let mut at = run.start;
            while at < run.end {
                let len = PIECE.min(run.end - at);
                let place = window.at.saturating_add(at - window.offset);
                let bytes = seen(&memory, place, len).map_err(wrong("reading memory"))?;
                let count = bytes.len() as u64;
                if count > 0 {
                    cx.content(id, at, bytes)?;
                    end = end.max(at.saturating_add(count));
                }
                if count < len {
                    break;
                }
                at = at.saturating_add(len);
            }
            known.push(run);
            known.sort_unstable_by_key(|run| run.start);
        }
    }
    Ok(end)
}

/// As many whole pages as can be read: behind the end of the file there are none.
fn seen(memory: &File, at: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    if memory.read_exact_at(&mut bytes, at).is_ok() {
        return Ok(bytes);
    }
    let page = |page: u64| memory.read_exact_at(&mut [0], at.saturating_add(page * PAGE));
    let pages = readable(len / PAGE, page);
    bytes.truncate(usize::try_from(pages * PAGE).unwrap_or_default());
    memory.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// Whether there is no page, in the words of the two ways to read memory.
fn unreadable_page(error: &MechanismError) -> bool {
    matches!(error, MechanismError::System { source, .. } if matches!(source.raw_os_error(), Some(libc::EIO | libc::EFAULT)))
}

/// How many of some pages can be read before the first that cannot: it is followed by none that can.
fn readable<E>(pages: u64, mut read: impl FnMut(u64) -> std::result::Result<(), E>) -> u64 {
    let (mut low, mut high) = (0, pages);
    while low < high {
        let middle = low.midpoint(high);
        if read(middle).is_ok() { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_what_can_be_read_is_found() {
        for end in [0, 1, 5, 255, 256] {
            assert_eq!(readable(256, |page| if page < end { Ok(()) } else { Err(()) }), end);
        }
    }
}
