//! Writing an image: frames, and the pages before them.
// SPDX-License-Identifier: GPL-2.0-only

use hdcr_abi::obstacle;
use hdcr_layout::{ALONE_VERSION, Codec, FrameHeader, Header, Layout, PageRunEntry, PartKind, tag};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::answer::{Errno, Result};
use crate::glue::{self, File, Memory};
use crate::table::Table;

const PAGE: u64 = 4096;
/// The longest run.
const RUN: usize = 1 << 20;
/// Where runs begin in the file.
const FIRST: u64 = 4096;

/// Why there is no image.
pub(crate) struct Obstacle {
    pub(crate) errno: Errno,
    pub(crate) number: u32,
    pub(crate) culprit: i32,
}

impl From<Errno> for Obstacle {
    fn from(errno: Errno) -> Self {
        Self { errno, number: obstacle::NONE, culprit: 0 }
    }
}

pub(crate) type Step<T> = core::result::Result<T, Obstacle>;

/// Frames in the making.
pub(crate) struct Frames {
    bytes: Table<u8>,
}

impl Frames {
    pub(crate) const fn new() -> Self {
        Self { bytes: Table::new() }
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        for byte in bytes {
            self.bytes.push(*byte)?;
        }
        Ok(())
    }

    pub(crate) fn put_record<T: Layout>(&mut self, record: &T) -> Result<()> {
        let mut room = [0; 1024];
        let size = record.encode(&mut room).map_err(|_| Errno::OVERFLOW)?;
        self.put(room.get(..size).ok_or(Errno::OVERFLOW)?)
    }

    /// A frame with what `fill` puts into it.
    pub(crate) fn frame(
        &mut self,
        (tag, version): (u16, u16),
        id: u64,
        fill: impl FnOnce(&mut Self) -> Step<()>,
    ) -> Step<()> {
        let start = self.bytes.len();
        self.put(&[0; FrameHeader::SIZE])?;
        fill(self)?;
        let length = u32::try_from(self.bytes.len() - start - FrameHeader::SIZE).map_err(|_| Errno::OVERFLOW)?;
        let mut header = FrameHeader { tag, version, length, id, xxh3: 0 };
        let mut head = [0; FrameHeader::SIZE];
        header.encode(&mut head).map_err(|_| Errno::OVERFLOW)?;
        let body = self.bytes.get(start + FrameHeader::SIZE..).unwrap_or_default();
        header.xxh3 = check_sum(&head, body);
        header.encode(&mut head).map_err(|_| Errno::OVERFLOW)?;
        self.bytes.get_mut(start..start + FrameHeader::SIZE).ok_or(Errno::OVERFLOW)?.copy_from_slice(&head);
        Ok(())
    }

    pub(crate) fn record<T: Layout>(&mut self, id: u64, record: &T) -> Step<()> {
        self.frame((T::TAG, T::VERSION), id, |frames| Ok(frames.put_record(record)?))
    }
}

/// The check sum of a frame.
pub(crate) fn check_sum(head: &[u8; FrameHeader::SIZE], body: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(head.get(..FrameHeader::CHECKED).unwrap_or_default());
    sum.update(body);
    sum.digest()
}

/// The number of an id in frames.
pub(crate) fn id_of(number: i32) -> u64 {
    u64::from(number.unsigned_abs())
}

/// A process whose memory is written.
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) memory: Memory,
    /// Private mappings.
    pub(crate) ranges: Table<(u64, u64)>,
    pub(crate) runs: Table<PageRunEntry>,
}

/// The writing, by a thread of the kernel.
pub(crate) struct Writing {
    frames: Frames,
    processes: Table<Process>,
    file: File,
    at: u64,
    piece: Table<u8>,
}

impl Writing {
    pub(crate) fn new(frames: Frames, processes: Table<Process>, file: File) -> Result<Self> {
        Ok(Self { frames, processes, file, at: FIRST, piece: Table::filled(RUN)? })
    }

    /// How many bytes of the file are written.
    pub(crate) fn written(&self) -> u64 {
        self.at
    }

    /// From now on each memory is a copy of what it was.
    pub(crate) fn copy_on_write(&mut self) -> Result<()> {
        for process in self.processes.iter_mut() {
            process.memory = process.memory.copy_on_write()?;
        }
        Ok(())
    }

    /// Pages, then frames, then the header.
    pub(crate) fn run(&mut self) -> Result<()> {
        for process in self.processes.iter_mut() {
            for (start, end) in process.ranges.iter() {
                let mut from = *start;
                while let Some((start, stop)) = process.memory.filled(from, *end)? {
                    from = stop;
                    let piece = self.piece.get_mut(..(stop - start) as usize).ok_or(Errno::OVERFLOW)?;
                    if process.memory.read(start, piece)? != piece.len() {
                        return Err(Errno::FAULT);
                    }
                    process.runs.push(store(&self.file, &mut self.at, start, piece)?)?;
                    if glue::is_called_off() {
                        return Err(Errno::INTR);
                    }
                }
            }
            let (runs, id) = (&process.runs, id_of(process.pid));
            let written = self
                .frames
                .frame((tag::PAGE_INDEX, 1), id, |frames| runs.iter().try_for_each(|run| Ok(frames.put_record(run)?)));
            written.map_err(|obstacle| obstacle.errno)?;
        }
        let begins = self.at;
        self.file.write(&self.frames.bytes, &mut self.at)?;
        let header =
            Header { version: ALONE_VERSION, kind: PartKind::Alone, image: [0; 16], number: 0, generation: begins };
        let mut head = [0; Header::SIZE];
        header.encode(&mut head).map_err(|_| Errno::OVERFLOW)?;
        self.file.write(&head, &mut 0)
    }
}

/// One run, whose bytes are `piece`.
fn store(file: &File, at: &mut u64, address: u64, piece: &[u8]) -> Result<PageRunEntry> {
    let pages = u32::try_from(piece.len() as u64 / PAGE).map_err(|_| Errno::OVERFLOW)?;
    let mut run = PageRunEntry {
        address,
        offset: 0,
        generation: 0,
        xxh3: 0,
        pages,
        segment: 0,
        length: 0,
        codec: Codec::Zero,
        stored: 0,
        skip: 0,
        reserved: 0,
    };
    if piece.iter().any(|byte| *byte != 0) {
        run.codec = Codec::Plain;
        run.offset = *at;
        run.generation = 1;
        run.xxh3 = xxh3_64(piece);
        run.length = u32::try_from(piece.len()).map_err(|_| Errno::OVERFLOW)?;
        run.stored = u16::try_from(pages).map_err(|_| Errno::OVERFLOW)?;
        file.write(piece, at)?;
    }
    Ok(run)
}
