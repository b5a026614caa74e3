//! The unused end of program text: behind what the ELF header of a file says is of its segment, up to the end of the page.
//!
//! Nobody reads or executes what lies there, so a mechanism can make calls from it in a program without a vdso.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::ids::Pid;
use crate::memory::PAGE;
use crate::procfs;

/// The first text of a process with so many unused bytes in its last page, from a multiple of 64 on.
pub fn unused_end(pid: Pid, least: u64) -> Option<Range<u64>> {
    let maps = procfs::read(pid, "maps").ok()?;
    let memory = File::open(procfs::path(pid, "mem")).ok()?;
    let lines: Vec<Piece> = String::from_utf8_lossy(&maps).lines().filter_map(Piece::parse).collect();
    let mut texts = lines.iter().filter(|line| line.text);
    texts.find_map(|text| {
        let head = lines.iter().rfind(|line| line.file == text.file && line.offset == 0 && line.start <= text.start)?;
        let mut bytes = [0; 1024];
        memory.read_exact_at(&mut bytes, head.start).ok()?;
        let end = text_end(&bytes, head.start, text.start..text.end)?.checked_next_multiple_of(64)?;
        (text.end.checked_sub(end)? >= least).then_some(end..text.end)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

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
        head[56] = 200;
        assert_eq!(text_end(&head, base, 0..PAGE), None);
        let line = "04001000-04027000 r-xp 00001000 fe:00 325843       /usr/lib/ld.so";
        let piece = Piece::parse(line).unwrap();
        assert_eq!((piece.start, piece.end, piece.offset, piece.text), (0x400_1000, 0x402_7000, 0x1000, true));
        assert!(Piece::parse("04a43000-04e43000 rwxp 00000000 00:00 0 ").is_none());
    }

    #[test]
    fn this_program_has_such_an_end_or_has_none() {
        let own = Pid(i32::try_from(std::process::id()).unwrap());
        assert_eq!(unused_end(own, PAGE), None);
        assert!(unused_end(own, 0).is_some_and(|end| end.end % PAGE == 0 && end.end - end.start < PAGE));
    }
}
