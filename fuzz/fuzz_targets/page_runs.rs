//! The page index and the stored bytes of an image, all digests and check sums being right.
#![no_main]

use hdcr_image::{Digest, PageFacts};
use hdcr_layout::{Codec, Layout, PageRunEntry, tag};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<(u16, u16, u16, u8, u8, &[u8])>, &[u8])| {
    let (runs, raw) = input;
    let mut segment = Vec::new();
    let mut index = Vec::new();
    let (mut stored_pages, mut zero_pages) = (0, 0);
    for (page, stored, skip, pages, codec, bytes) in &runs {
        let codec = Codec::from_number(u16::from(*codec)).unwrap_or(Codec::Lz4);
        let count = if codec == Codec::Zero { &mut zero_pages } else { &mut stored_pages };
        *count += u64::from(*pages);
        let zero = codec == Codec::Zero;
        let entry = PageRunEntry {
            address: u64::from(*page) * 4096,
            offset: if zero { 0 } else { 64 + segment.len() as u64 },
            generation: u64::from(!zero),
            xxh3: if zero { 0 } else { xxhash_rust::xxh3::xxh3_64(bytes) },
            pages: u32::from(*pages),
            segment: 0,
            length: if zero { 0 } else { bytes.len() as u32 },
            codec,
            stored: if zero { 0 } else { *stored },
            skip: if zero { 0 } else { *skip },
            reserved: 0,
        };
        let mut block = vec![0; PageRunEntry::SIZE];
        entry.encode(&mut block).expect("an entry fits its size");
        index.extend_from_slice(&block);
        segment.extend_from_slice(bytes);
    }
    index.extend_from_slice(raw);
    let digest = blake3::hash(&[1_u64.to_le_bytes().as_slice(), &index].concat());
    let pages = PageFacts {
        runs: (index.len() / PageRunEntry::SIZE) as u64,
        stored_pages,
        zero_pages,
        stored_size: segment.len() as u64,
        added_size: segment.len() as u64,
        digest: Digest(*digest.as_bytes()),
    };
    hdcr_fuzz::read(&hdcr_fuzz::image(&hdcr_fuzz::frame(tag::PAGE_INDEX, 1, 1, &index), 1, &segment, pages));
});
