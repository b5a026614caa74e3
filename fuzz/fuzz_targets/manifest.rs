//! The body of a manifest: what is read is written as the same bytes again.
#![no_main]

use hdcr_image::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let _bare = Manifest::decode(body);
    let bytes = hdcr_fuzz::manifest(body);
    if let Ok(manifest) = Manifest::decode(&bytes) {
        let again = manifest.encode().expect("it was short enough before");
        assert_eq!(Manifest::decode(&again).expect("it was good before"), manifest);
    }
});
