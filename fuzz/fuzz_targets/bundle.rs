//! A whole image in one file: raw bytes, and a right directory over any pieces.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use hdcr_image::bundle::{BundleSource, BundleWriter};
use hdcr_image::{MemorySource, PartName, Source, sample};
use libfuzzer_sys::fuzz_target;

fn read(bytes: Vec<u8>) {
    let holder = MemorySource::new(BTreeMap::from([(PartName::Bundle, bytes)]));
    let file = holder.part(PartName::Bundle).expect("it was put in");
    if let Ok(source) = BundleSource::open(Arc::from(file)) {
        hdcr_fuzz::read(&source);
    }
}

fuzz_target!(|input: (&[u8], Vec<(u8, &[u8])>)| {
    let (raw, pieces) = input;
    read(raw.to_vec());
    let mut writer = BundleWriter::new(sample::IMAGE).expect("a header fits its size");
    let mut bytes = writer.header().to_vec();
    for (part, piece) in pieces {
        let part = match part % 4 {
            0 => PartName::Manifest,
            1 => PartName::Frames,
            number => PartName::Pages(u32::from(number)),
        };
        writer.appended(part, piece.len());
        bytes.extend_from_slice(piece);
    }
    bytes.extend_from_slice(&writer.finish());
    read(bytes);
});
