//! The unused tail of the vdso's last page: executable, private once written, and not used by the program.
//!
//! A program without a vdso (valgrind starts them so) has such a tail in the last page of some program text: behind what
//! its ELF header says is of the segment.

use std::fs::{self, File};
use std::ops::Range;

use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::Result;

use crate::calls::Calls;
use crate::stub::ONCE_LEN;
use crate::tasks;

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
    /// Finds it. `None` when there is no vdso, or no room in its last page.
    pub(crate) fn find(calls: &Calls, memory: &File, pid: Pid, tid: Tid) -> Option<Self> {
        let image_at = |base| Self::of_image(calls, memory, tid, base);
        // The vector is the program's to change, so what it names is believed only when a vdso is there.
        let of_vdso = auxiliary_vector(pid, tid).and_then(image_at).or_else(|| from_maps(pid, tid).and_then(image_at));
        of_vdso.or_else(|| Self::of_text(calls, memory, pid, tid))
    }

    fn between(end: u64, page_end: u64) -> Option<Self> {
        let at = end.checked_next_multiple_of(64)?;
        let slots = page_end.checked_sub(at)? / slot_len();
        (slots > 0).then_some(Self { at, slots })
    }

    /// The first text with room in its last page.
    fn of_text(calls: &Calls, memory: &File, pid: Pid, tid: Tid) -> Option<Self> {
        let maps = fs::read(format!("/proc/{pid}/task/{tid}/maps")).ok()?;
        let lines: Vec<Piece> = String::from_utf8_lossy(&maps).lines().filter_map(Piece::parse).collect();
        let mut texts = lines.iter().filter(|line| line.text);
        texts.find_map(|text| {
            let head =
                lines.iter().rfind(|line| line.file == text.file && line.offset == 0 && line.start <= text.start)?;
            let mut bytes = [0; 1024];
            calls.peek(memory, tid, head.start, &mut bytes).ok()?;
            Self::between(text_end(&bytes, head.start, text.start..text.end)?, text.end)
        })
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

/// A mapping of a file.
#[derive(Debug)]
struct Piece {
    start: u64,
    end: u64,
    offset: u64,
    /// Device and inode.
    file: (String, String),
    /// Private, executable, and not to be written.
    text: bool,
}

impl Piece {
    /// A line of `maps`: `04001000-04027000 r-xp 00001000 fe:00 325843   /usr/lib/ld.so`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let mode = words.next()?;
        let offset = words.next()?;
        let (device, inode) = (words.next()?, words.next()?);
        let hex = |word| u64::from_str_radix(word, 16).ok();
        let piece = Self {
            start: hex(start)?,
            end: hex(end)?,
            offset: hex(offset)?,
            file: (device.to_owned(), inode.to_owned()),
            text: matches!(mode.as_bytes(), [b'r', b'-', b'x', b'p']),
        };
        (inode != "0").then_some(piece)
    }
}

/// Where the segment of an ELF file ends that is mapped at `text` up to its last page; `head` is the beginning of the file,
/// mapped at `base`.
fn text_end(head: &[u8; 1024], base: u64, text: Range<u64>) -> Option<u64> {
    const LOAD: u32 = 1;
    const EXECUTABLE: u32 = 1;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let word = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let short = |at: usize| Some(usize::from(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?)));
    let (table, len, count) = (usize::try_from(word(32)?).ok()?, short(54)?, short(56)?);
    let mut bias = None;
    for at in (0..count).filter_map(|index| table.checked_add(len.checked_mul(index)?)) {
        let (kind, flags) = (half(at)?, half(at.checked_add(4)?)?);
        if kind != LOAD {
            continue;
        }
        let (address, in_file, in_memory) = (word(at + 16)?, word(at + 32)?, word(at + 40)?);
        // The first segment is the one that holds the header.
        let bias = *bias.get_or_insert(base.wrapping_sub(address & !(PAGE - 1)));
        let end = bias.wrapping_add(address).checked_add(in_file)?;
        let here = text.start < end && end.checked_next_multiple_of(PAGE) == Some(text.end);
        if flags & EXECUTABLE != 0 && in_file == in_memory && here {
            return Some(end);
        }
    }
    None
}

fn auxiliary_vector(pid: Pid, tid: Tid) -> Option<u64> {
    let bytes = tasks::read_small(&format!("/proc/{pid}/task/{tid}/auxv")).ok()?;
    let mut pairs = bytes.chunks_exact(16).filter_map(|pair| {
        let (key, value) = pair.split_at_checked(8)?;
        Some((u64::from_le_bytes(key.try_into().ok()?), u64::from_le_bytes(value.try_into().ok()?)))
    });
    let (_, base) = pairs.find(|(key, _)| *key == AT_SYSINFO_EHDR)?;
    (base % PAGE == 0 && base != 0).then_some(base)
}

fn from_maps(pid: Pid, tid: Tid) -> Option<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/task/{tid}/maps")).ok()?;
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
    fn text_ends_where_its_segment_does() {
        let mut head = [0u8; 1024];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[32] = 64;
        (head[54], head[56]) = (56, 2);
        let mut put = |segment: usize, words: [u64; 7]| {
            for (at, word) in (64 + 56 * segment..).step_by(8).zip(words) {
                head[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        };
        let read_execute = 1 | 5 << 32;
        put(0, [1 | 4 << 32, 0, 0x40_0000, 0x40_0000, 0x1ec, 0x1ec, 0x1000]);
        put(1, [read_execute, 0x1000, 0x40_1000, 0x40_1000, 0x2aee, 0x2aee, 0x1000]);
        let base = 0x5555_0000_0000;
        let text = base + 0x1000..base + 0x4000;
        assert_eq!(text_end(&head, base, text.clone()), Some(base + 0x3aee));
        assert_eq!(text_end(&head, base, text.start..text.end + PAGE), None);
        assert_eq!(Tail::between(base + 0x3aee, text.end), Some(Tail { at: base + 0x3b00, slots: 2 }));
        assert_eq!(Tail::between(base + 0x3f00, text.end), None);
        head[56] = 200;
        assert_eq!(text_end(&head, base, 0..PAGE), None);
        let line = "04001000-04027000 r-xp 00001000 fe:00 325843       /usr/lib/ld.so";
        let piece = Piece::parse(line).unwrap();
        assert_eq!((piece.start, piece.end, piece.offset, piece.text), (0x400_1000, 0x402_7000, 0x1000, true));
        assert!(Piece::parse("04a43000-04e43000 rwxp 00000000 00:00 0 ").is_none());
    }

    #[test]
    fn slots_are_found_by_address() {
        let tail = Tail { at: 0x1a80, slots: 3 };
        let slot = u64::try_from(ONCE_LEN).unwrap();
        assert!(tail.holds(0x1a80) && !tail.holds(0x1a7f) && !tail.holds(0x1a80 + 3 * slot));
        assert_eq!(tail.slot_of(0x1a80 + slot + 5), Some(0x1a80 + slot));
    }
}
