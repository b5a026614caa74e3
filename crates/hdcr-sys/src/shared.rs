//! Memory shared with tasks that are yet to be cloned: the same bytes at the same address here and there.
#![expect(unsafe_code, reason = "a raw mapping")]

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::ptr;

/// A shared anonymous mapping, readable, writable and executable, at a place of the caller's choice.
///
/// Other tasks write to it; that is why it is only ever copied from and to, and never borrowed.
#[derive(Debug)]
pub struct SharedRegion {
    base: *mut u8,
    len: usize,
}

impl SharedRegion {
    /// Maps it; nothing may lie there yet (`EEXIST`). Pages that are never touched cost nothing.
    pub fn map(at: u64, len: usize) -> io::Result<Self> {
        let at = usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        let hint = ptr::without_provenance_mut::<c_void>(at);
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new mapping that replaces nothing.
        let base = unsafe { libc::mmap(hint, len, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let region = Self { base: base.cast(), len };
        // A kernel older than 4.17 takes the address for a wish.
        if base.addr() != at {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        Ok(region)
    }

    /// Its addresses, here and in every task that inherits it.
    pub fn range(&self) -> Range<u64> {
        let start = u64::try_from(self.base.addr()).unwrap_or(0);
        start..start.saturating_add(u64::try_from(self.len).unwrap_or(0))
    }

    fn place(&self, at: u64, len: usize) -> Option<*mut u8> {
        let offset = usize::try_from(at.checked_sub(self.range().start)?).ok()?;
        let inside = offset.checked_add(len)? <= self.len;
        inside.then(|| self.base.wrapping_add(offset))
    }

    /// Copies bytes to an address in it. False, and nothing done, when they do not lie inside.
    #[must_use]
    pub fn put(&self, at: u64, bytes: &[u8]) -> bool {
        let Some(to) = self.place(at, bytes.len()) else {
            return false;
        };
        // SAFETY: `to` and the bytes behind it lie in the mapping; a slice of ours never overlaps it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        true
    }

    /// Copies bytes from an address in it. False, and nothing done, when they do not lie inside.
    #[must_use]
    pub fn get(&self, at: u64, into: &mut [u8]) -> bool {
        let Some(from) = self.place(at, into.len()) else {
            return false;
        };
        // SAFETY: `from` and the bytes behind it lie in the mapping; a slice of ours never overlaps it.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        true
    }
}

impl Drop for SharedRegion {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it exists.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_in_and_come_out_and_never_beside() {
        let region = SharedRegion::map(0x2345_0000_0000, 8192).unwrap();
        let range = region.range();
        assert_eq!(range, 0x2345_0000_0000..0x2345_0000_2000);
        assert!(region.put(range.start + 8190, b"ab"));
        let mut back = [0; 2];
        assert!(region.get(range.start + 8190, &mut back));
        assert_eq!(&back, b"ab");
        assert!(!region.put(range.start + 8191, b"ab"));
        assert!(!region.get(range.start - 1, &mut back));
        assert!(SharedRegion::map(range.start, 4096).is_err());
    }
}
