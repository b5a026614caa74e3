//! A small image with one of everything, the same bytes each time: for golden images and tests.

use hdcr_layout::{Task, TaskState};

use crate::error::ImageError;
use crate::manifest::{Clocks, Manifest, ManifestFacts, ProcessName};
use crate::name::{ImageId, SnapshotId};
use crate::record::Tag;
use crate::sink::Sink;
use crate::writer::{ImageWriter, Options};

/// The id that a sample gets where the store lets its caller choose.
pub const IMAGE: ImageId = ImageId(*b"hdcr sample id 1");

/// The tag of a frame that no engine knows.
pub const UNKNOWN_TAG: Tag = Tag(0xfff0);

/// What the sample says of itself.
pub fn facts() -> ManifestFacts {
    ManifestFacts {
        hdcr_version: "0.1.0".to_owned(),
        architecture: "x86_64".to_owned(),
        cpu_features: vec!["avx2".to_owned(), "sse4_2".to_owned()],
        kernel_release: "6.18.0".to_owned(),
        boot_id: "00000000-0000-0000-0000-000000000000".to_owned(),
        host_name: "sample".to_owned(),
        clocks: Clocks {
            realtime_ns: 1_700_000_000_000_000_000,
            monotonic_ns: 5_000_000_000,
            boottime_ns: 6_000_000_000,
        },
        needs: vec!["sample".to_owned()],
        command: vec![b"sleep".to_vec(), b"\xff".to_vec()],
        root_pid: 100,
        processes: vec![ProcessName { pid: 100, comm: b"sleep".to_vec() }],
        base: None,
        lineage: Vec::new(),
        mechanism: "none".to_owned(),
        snapshot: "copy".to_owned(),
    }
}

/// The pages of the sample as (space, address, bytes), in the order in which they are written. The third replaces
/// the middle of the second.
pub fn pages() -> Vec<(u64, u64, Vec<u8>)> {
    let noise = |pages: u64, mut seed: u64| -> Vec<u8> {
        let next = || {
            // One step of a linear congruential generator; its top byte does not compress.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed.to_be_bytes().first().copied().unwrap_or_default()
        };
        std::iter::repeat_with(next).take(usize::try_from(pages.wrapping_mul(4096)).unwrap_or(0)).collect()
    };
    let text = b"forty-two bytes that repeat, again, again\n".repeat(400);
    let mut mixed = text.get(..2 * 4096).unwrap_or_default().to_vec();
    mixed.resize(5 * 4096, 0);
    mixed.extend_from_slice(text.get(..2 * 4096).unwrap_or_default());
    vec![
        (1, 0x40_0000, mixed),
        (1, 0x7f00_0000_0000, text.get(..3 * 4096).unwrap_or_default().to_vec()),
        (1, 0x7f00_0000_1000, noise(1, 7)),
        (2, 0x1000, vec![0; 4096]),
    ]
}

/// Writes the sample.
pub fn write(sink: Box<dyn Sink>, options: Options) -> Result<(Manifest, SnapshotId), ImageError> {
    let mut writer = ImageWriter::new(sink, options)?;
    let task = Task {
        tid: 100,
        tgid: 100,
        ppid: 0,
        pgid: 100,
        sid: 100,
        exit_signal: 17,
        exit_status: 0,
        state: TaskState::Running,
        flags: 0,
        comm: *b"sleep\0\0\0\0\0\0\0\0\0\0\0",
    };
    writer.record(100, &task)?;
    for (space, address, bytes) in pages() {
        writer.pages(space, address, &bytes)?;
    }
    writer.frame(UNKNOWN_TAG, 3, 9, b"a record of the future")?;
    writer.frame(UNKNOWN_TAG, 3, 10, b"")?;
    let committed = writer.finish(facts())?;
    Ok((committed.manifest, committed.id))
}
