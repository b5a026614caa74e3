//! Shared memory that no descriptor leads to, read where processes have it mapped.

use nix::libc;

use crate::capture::Capture;
use crate::error::Result;
use crate::ids::{Pid, RemotePtr};
use crate::mechanism::MechanismError;
use crate::memory::PAGE;
use crate::model::ObjectId;

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
