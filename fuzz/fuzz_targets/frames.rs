//! The frames part of an image, its digest being right.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8], Vec<(u16, u16, &[u8])>)| {
    let (count, raw, frames) = input;
    hdcr_fuzz::read(&hdcr_fuzz::image(raw, u64::from(count), &[], hdcr_fuzz::no_pages()));
    let good: Vec<u8> =
        frames.iter().flat_map(|(tag, version, body)| hdcr_fuzz::frame(*tag, *version, 1, body)).collect();
    hdcr_fuzz::read(&hdcr_fuzz::image(&good, frames.len() as u64, &[], hdcr_fuzz::no_pages()));
});
