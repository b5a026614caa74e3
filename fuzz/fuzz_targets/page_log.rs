//! The log of an image in a chain, its digest being right: raw bytes, and records over any stored bytes.
#![no_main]

use hdcr_image::PageFacts;
use hdcr_layout::{Codec, LogRecord, PageRunEntry};
use libfuzzer_sys::fuzz_target;

type Record = (u8, u16, u16, u16, u8, u16, u16, u16);

fn record(record: &Record, segment: &[u8]) -> LogRecord {
    let (space, page, pages, stored, codec, skip, offset, length) = *record;
    let (space, address) = (u64::from(space), u64::from(page) * 4096);
    let Some(codec) = Codec::from_number(u16::from(codec % 8)) else {
        return LogRecord::Cut { space, start: address, end: address + u64::from(pages) * 4096 };
    };
    let zero = codec == Codec::Zero;
    let bytes = segment.get(usize::from(offset)..).unwrap_or_default();
    let bytes = bytes.get(..usize::from(length)).unwrap_or_default();
    let run = PageRunEntry {
        address,
        offset: if zero { 0 } else { 64 + u64::from(offset) },
        generation: u64::from(!zero),
        xxh3: if zero { 0 } else { xxhash_rust::xxh3::xxh3_64(bytes) },
        pages: u32::from(pages),
        segment: 0,
        length: if zero { 0 } else { u32::from(length) },
        codec,
        stored: if zero { 0 } else { stored },
        skip: if zero { 0 } else { skip },
        reserved: 0,
    };
    LogRecord::Put { space, run }
}

fuzz_target!(|input: ((u8, u8, u8), &[u8], Vec<Record>, &[u8])| {
    let ((runs, stored, zero), raw, records, segment) = input;
    let pages = PageFacts {
        runs: u64::from(runs),
        stored_pages: u64::from(stored),
        zero_pages: u64::from(zero),
        ..hdcr_fuzz::no_pages()
    };
    hdcr_fuzz::read(&hdcr_fuzz::chained(raw, segment, pages));
    let mut log = vec![0; records.len() * LogRecord::SIZE];
    for (given, block) in records.iter().zip(log.chunks_mut(LogRecord::SIZE)) {
        record(given, segment).encode(block).expect("a record fits its size");
    }
    hdcr_fuzz::read(&hdcr_fuzz::chained(&log, segment, pages));
});
