//! The unused tail of the vdso's last page: executable, private once written, and not used by the program.
//!
//! A program without a vdso (valgrind starts them so) has such a tail in the last page of some program text: behind what
//! its ELF header says is of the segment.

use std::fs::{self, File};

use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::Result;
use hdcr_engine::text;

use crate::calls::Calls;
use crate::stub::ONCE_LEN;

const PAGE: u64 = 4096;
/// No vdso is larger.
const MOST_PAGES: u64 = 16;
const AT_SYSINFO_EHDR: u64 = 33;

/// The tail of a process's vdso, in slots of one *once* block each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tail {
    at: u64,
    slots: u64,
}

fn slot_len() -> u64 {
    u64::try_from(ONCE_LEN).unwrap_or(PAGE)
}

impl Tail {
    /// Finds it: in the last page of the vdso, else of some text. `None`: there is no room.
    pub(crate) fn find(calls: &Calls, memory: &File, pid: Pid, tid: Tid) -> Option<Self> {
        let image_at = |base| Self::of_image(calls, memory, tid, base);
        // The vector is the program's to change, so what it names is believed only when a vdso is there.
        let of_vdso = auxiliary_vector(pid, tid).and_then(image_at).or_else(|| from_maps(pid, tid).and_then(image_at));
        of_vdso.or_else(|| text::unused_end(pid, slot_len()).and_then(|unused| Self::between(unused.start, unused.end)))
    }

    fn between(end: u64, page_end: u64) -> Option<Self> {
        let at = end.checked_next_multiple_of(64)?;
        let slots = page_end.checked_sub(at)? / slot_len();
        (slots > 0).then_some(Self { at, slots })
    }

    fn of_image(calls: &Calls, memory: &File, tid: Tid, base: u64) -> Option<Self> {
        let mut head = [0u8; 64];
        calls.peek(memory, tid, base, &mut head).ok()?;
        let end = base.checked_add(image_end(&head)?)?;
        Self::between(end, end.checked_next_multiple_of(PAGE)?)
    }

    /// Whether an address lies in the tail.
    pub(crate) fn holds(&self, ip: u64) -> bool {
        ip.wrapping_sub(self.at) < self.slots * slot_len()
    }

    /// The slot that holds an address.
    pub(crate) fn slot_of(&self, ip: u64) -> Option<u64> {
        let within = ip.checked_sub(self.at)?;
        Some(self.at + within / slot_len() * slot_len())
    }

    /// A slot that holds nothing, else the last one: what a dead tracer left may still be returned into by a handler. With
    /// it comes what it holds, to be put back.
    pub(crate) fn free_slot(&self, calls: &Calls, memory: &File, tid: Tid) -> Result<(u64, [u8; ONCE_LEN])> {
        let mut last = (self.at, [0; ONCE_LEN]);
        for n in 0..self.slots {
            let at = self.at + n * slot_len();
            let mut bytes = [0; ONCE_LEN];
            calls.peek(memory, tid, at, &mut bytes)?;
            last = (at, bytes);
            if bytes.iter().all(|byte| *byte == 0) {
                break;
            }
        }
        Ok(last)
    }
}

/// The first byte behind everything that the ELF header of a vdso names (it is last in the section table).
fn image_end(head: &[u8; 64]) -> Option<u64> {
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let sections_at = u64::from_le_bytes(head.get(40..48)?.try_into().ok()?);
    let section_len = u16::from_le_bytes(head.get(58..60)?.try_into().ok()?);
    let sections = u16::from_le_bytes(head.get(60..62)?.try_into().ok()?);
    let end = sections_at.checked_add(u64::from(section_len) * u64::from(sections))?;
    let plausible = sections > 0 && end > 64 && end <= MOST_PAGES * PAGE;
    plausible.then_some(end)
}

fn auxiliary_vector(pid: Pid, tid: Tid) -> Option<u64> {
    let bytes = hdcr_engine::procfs::at_once(&format!("/proc/{pid}/task/{tid}/auxv")).ok()?;
    let mut pairs = bytes.chunks_exact(16).filter_map(|pair| {
        let (key, value) = pair.split_at_checked(8)?;
        Some((u64::from_le_bytes(key.try_into().ok()?), u64::from_le_bytes(value.try_into().ok()?)))
    });
    let (_, base) = pairs.find(|(key, _)| *key == AT_SYSINFO_EHDR)?;
    (base % PAGE == 0 && base != 0).then_some(base)
}

fn from_maps(pid: Pid, tid: Tid) -> Option<u64> {
    // Names of files need not be text.
    let maps = fs::read(format!("/proc/{pid}/task/{tid}/maps")).ok()?;
    let maps = String::from_utf8_lossy(&maps);
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (start, _) = line.split_once('-')?;
    u64::from_str_radix(start, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_behind_the_section_table() {
        let mut head = [0u8; 64];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[40..48].copy_from_slice(&0x1500u64.to_le_bytes());
        head[58] = 64;
        head[60] = 17;
        assert_eq!(image_end(&head), Some(0x1500 + 64 * 17));
        head[0] = 0;
        assert_eq!(image_end(&head), None);
    }

    #[test]
    fn slots_are_found_by_address() {
        let tail = Tail { at: 0x1a80, slots: 3 };
        let slot = u64::try_from(ONCE_LEN).unwrap();
        assert!(tail.holds(0x1a80) && !tail.holds(0x1a7f) && !tail.holds(0x1a80 + 3 * slot));
        assert_eq!(tail.slot_of(0x1a80 + slot + 5), Some(0x1a80 + slot));
    }
}
