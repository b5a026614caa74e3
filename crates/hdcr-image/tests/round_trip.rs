//! What goes in comes out; what was changed on the way does not.
#![expect(clippy::unwrap_used, reason = "tests may fail by panic")]

use std::collections::BTreeMap;

use hdcr_image::{
    Compression, ErrorClass, ImageError, ImageId, ImageReader, MemoryImage, MemorySource, Options, PartName, sample,
};

type Parts = BTreeMap<PartName, Vec<u8>>;
/// Everything that a reader lets out.
type Seen = (String, Vec<(u16, u16, u64, Vec<u8>)>, BTreeMap<(u64, u64), Vec<u8>>);

const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd(3)];

fn parts_of(compression: Compression, id: ImageId) -> Parts {
    let image = MemoryImage::new();
    sample::write(Box::new(image.sink(id)), Options { compression }).unwrap();
    image.parts().unwrap()
}

fn read(parts: &Parts) -> Result<Seen, ImageError> {
    let reader = ImageReader::open(&MemorySource::new(parts.clone()))?;
    reader.verify(&mut |_| ())?;
    let frames = reader.frames().map(|f| (f.tag.0, f.version, f.id, f.body.to_vec())).collect();
    let mut pages = BTreeMap::new();
    let mut bytes = Vec::new();
    for space in reader.spaces() {
        for run in reader.runs(space) {
            reader.read_run(run, &mut bytes)?;
            if run.is_zero() {
                bytes.resize(usize::try_from(run.size()).unwrap(), 0);
            }
            assert_eq!(bytes.len() as u64, run.size());
            for (page, at) in bytes.chunks(4096).zip(run.range().step_by(4096)) {
                assert!(pages.insert((space, at), page.to_vec()).is_none());
            }
        }
    }
    Ok((format!("{:?}", reader.manifest()), frames, pages))
}

#[test]
fn pages_and_frames_come_back() {
    for compression in ALL {
        let (_, frames, pages) = read(&parts_of(compression, sample::IMAGE)).unwrap();
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[1], (sample::UNKNOWN_TAG.0, 3, 9, b"a record of the future".to_vec()));
        let mut expected = BTreeMap::new();
        for (space, address, bytes) in sample::pages() {
            for (page, at) in bytes.chunks(4096).zip((address..).step_by(4096)) {
                expected.insert((space, at), page.to_vec());
            }
        }
        assert_eq!(pages, expected, "{compression:?}");
    }
}

#[test]
fn the_sample_never_changes() {
    for compression in ALL {
        assert_eq!(parts_of(compression, sample::IMAGE), parts_of(compression, sample::IMAGE));
    }
}

/// One flipped bit anywhere: refused, or nothing that is let out differs.
#[test]
fn each_flipped_bit_is_found() {
    for compression in ALL {
        let parts = parts_of(compression, sample::IMAGE);
        let whole = read(&parts).unwrap();
        for (name, bytes) in &parts {
            for at in (0..bytes.len()).step_by(if compression == Compression::Lz4 { 1 } else { 5 }) {
                let mut changed = parts.clone();
                changed.get_mut(name).unwrap()[at] ^= 1 << (at % 8);
                match read(&changed) {
                    Err(error) => {
                        let class = error.class();
                        assert!(matches!(class, ErrorClass::Corrupt | ErrorClass::Refused), "{name} {at}: {error}");
                    }
                    Ok(seen) => {
                        assert!(seen == whole, "{name} {at} {compression:?}: silently wrong");
                    }
                }
            }
        }
    }
}

#[test]
fn each_truncation_is_found() {
    let parts = parts_of(Compression::Lz4, sample::IMAGE);
    for (name, bytes) in &parts {
        for len in 0..bytes.len() {
            let mut changed = parts.clone();
            changed.get_mut(name).unwrap().truncate(len);
            let error = read(&changed).expect_err("a part that was cut off");
            assert_eq!(error.class(), ErrorClass::Corrupt, "{name} {len}: {error}");
        }
        let mut changed = parts.clone();
        changed.remove(name);
        assert!(read(&changed).is_err());
    }
}

#[test]
fn a_part_of_another_image_is_refused() {
    let ours = parts_of(Compression::Lz4, sample::IMAGE);
    let other = parts_of(Compression::Lz4, ImageId([7; 16]));
    for name in ours.keys() {
        let mut mixed = ours.clone();
        mixed.insert(*name, other[name].clone());
        let error = read(&mixed).unwrap_err();
        assert!(matches!(error, ImageError::Foreign { .. }), "{name}: {error}");
    }
    let mut mixed = ours.clone();
    mixed.insert(PartName::Frames, ours[&PartName::Pages(0)].clone());
    assert_eq!(read(&mixed).unwrap_err().class(), ErrorClass::Corrupt);
}

#[test]
fn a_segment_written_over_is_refused() {
    let mut parts = parts_of(Compression::Lz4, sample::IMAGE);
    // The generation stands behind magic, version, kind and image id.
    parts.get_mut(&PartName::Pages(0)).unwrap()[32] += 1;
    assert!(matches!(read(&parts).unwrap_err(), ImageError::Stale { found: 2, expected: 1, .. }));
}

#[test]
fn other_format_versions_are_refused_by_number() {
    let parts = parts_of(Compression::Lz4, sample::IMAGE);
    for name in parts.keys() {
        for version in [0, 3] {
            let mut changed = parts.clone();
            changed.get_mut(name).unwrap()[8] = version;
            let error = read(&changed).unwrap_err();
            assert!(matches!(error, ImageError::Version { found, known: 2, .. } if found == u32::from(version)));
            assert_eq!(error.class(), ErrorClass::Refused);
        }
    }
    // One that this build knows and that the other parts are not in.
    for name in parts.keys() {
        let mut changed = parts.clone();
        changed.get_mut(name).unwrap()[8] = 2;
        assert_eq!(read(&changed).unwrap_err().class(), ErrorClass::Corrupt, "{name}");
    }
}
