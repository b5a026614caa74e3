//! The root of an image: readable alone, and what vouches for all other parts.

use std::fmt;

use hdcr_layout::{ALONE_VERSION, FORMAT_VERSION, Header, PartKind};
use prost::Message;

use crate::error::ImageError;
use crate::name::{ImageId, JobName, PartName, SnapshotId};
use crate::number::{len, size};
use crate::wire;

/// A BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

/// The clocks at the moment of the checkpoint, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clocks {
    /// `CLOCK_REALTIME`.
    pub realtime_ns: i64,
    /// `CLOCK_MONOTONIC`.
    pub monotonic_ns: i64,
    /// `CLOCK_BOOTTIME`.
    pub boottime_ns: i64,
}

/// A process of the snapshot, as a list shows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProcessName {
    /// Its number in the tree's own pid namespace.
    pub pid: i32,
    /// Its name; need not be UTF-8.
    pub comm: Vec<u8>,
}

/// What the maker of a snapshot says about it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ManifestFacts {
    /// Version of HDCR that wrote it.
    pub hdcr_version: String,
    /// Architecture, for example `x86_64`.
    pub architecture: String,
    /// Processor features that the program may have found and now relies on.
    pub cpu_features: Vec<String>,
    /// Kernel release it was made on.
    pub kernel_release: String,
    /// Which boot of that machine.
    pub boot_id: String,
    /// That machine.
    pub host_name: String,
    /// Clocks at the checkpoint.
    pub clocks: Clocks,
    /// What a restore must be able to do, by name. A need that a reader does not know is refused by it.
    pub needs: Vec<String>,
    /// Arguments of the root process; need not be UTF-8.
    pub command: Vec<Vec<u8>>,
    /// The root process.
    pub root_pid: i32,
    /// All processes.
    pub processes: Vec<ProcessName>,
    /// The snapshot that this one is an increment on.
    pub base: Option<SnapshotId>,
    /// The snapshots that this run came from, newest first.
    pub lineage: Vec<SnapshotId>,
    /// By which mechanism, for example `ptrace`.
    pub mechanism: String,
    /// How memory was read, for example `copy`.
    pub snapshot: String,
}

/// The frames part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FramesFacts {
    /// Its exact length in bytes.
    pub size: u64,
    /// How many frames it holds.
    pub count: u64,
    /// Digest of all its bytes.
    pub digest: Digest,
}

/// A segment of pages that this image refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentFacts {
    /// Its number in the image.
    pub number: u32,
    /// The use of it that this image means.
    pub generation: u64,
    /// How many of its bytes this image covers. There may be more behind.
    pub size: u64,
    /// The image that began it.
    pub image: ImageId,
}

/// The log of the page index, of an image in a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogFacts {
    /// Its number in the image.
    pub number: u32,
    /// The use of it that this image means.
    pub generation: u64,
    /// How many of its bytes this image covers. There may be more behind.
    pub size: u64,
    /// The image that began it.
    pub image: ImageId,
}

/// A file of the program whose contents are kept as a clone of it (`ioctl_ficlone(2)`): a part of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CloneFacts {
    /// The object that the file is.
    pub object: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// What memory the image holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFacts {
    /// Runs in the index.
    pub runs: u64,
    /// Pages whose bytes are stored.
    pub stored_pages: u64,
    /// Pages that are zero and not stored.
    pub zero_pages: u64,
    /// Bytes that the stored ones take, compressed: all that the image covers.
    pub stored_size: u64,
    /// Bytes that this image added to what it shares with the one before.
    pub added_size: u64,
    /// Digest of the index of all runs: of its frames, or of the bytes covered of its log.
    pub digest: Digest,
}

/// The whole manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// The image and its place.
    pub id: SnapshotId,
    /// What its maker says.
    pub facts: ManifestFacts,
    /// The frames.
    pub frames: FramesFacts,
    /// The segments.
    pub segments: Vec<SegmentFacts>,
    /// The pages.
    pub pages: PageFacts,
    /// The log of the page index; `None` for an image that stands by itself.
    pub log: Option<LogFacts>,
    /// Files that are kept as clones, by object.
    pub clones: Vec<CloneFacts>,
}

/// Before the body: header, length of the body, digest of all other bytes.
const LENGTH_AT: usize = Header::SIZE;
const DIGEST_AT: usize = LENGTH_AT.saturating_add(8);
const BODY_AT: usize = DIGEST_AT.saturating_add(32);

impl Manifest {
    /// The longest manifest, in bytes.
    pub const LIMIT: u64 = 64 << 20;

    /// The bytes of the part `manifest`.
    pub fn encode(&self) -> Result<Vec<u8>, ImageError> {
        let body = wire::Manifest::from(self).encode_to_vec();
        let image = self.id.image.0;
        let header = Header { version: self.version(), kind: PartKind::Manifest, image, number: 0, generation: 0 };
        let mut bytes = vec![0; Header::SIZE];
        header.encode(&mut bytes).map_err(|error| ImageError::layout(PartName::Manifest, error))?;
        bytes.extend_from_slice(&size(body.len()).to_le_bytes());
        bytes.extend_from_slice(&envelope_digest(&bytes, &body));
        bytes.extend_from_slice(&body);
        if size(bytes.len()) > Self::LIMIT {
            return Err(ImageError::TooLong { what: "a manifest", len: size(bytes.len()) });
        }
        Ok(bytes)
    }

    /// Reads and checks the bytes of the part `manifest`, without looking at any other part.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
        let corrupt = |reason: &str| ImageError::corrupt(PartName::Manifest, reason);
        let (header, _) = Header::decode(bytes).map_err(|error| ImageError::layout(PartName::Manifest, error))?;
        let (head, rest) = bytes.split_at_checked(DIGEST_AT).ok_or_else(|| corrupt("it ends early"))?;
        let (digest, body) = rest.split_at_checked(32).ok_or_else(|| corrupt("it ends early"))?;
        let length = head.get(LENGTH_AT..).and_then(|length| length.try_into().ok()).map(u64::from_le_bytes);
        if length != Some(size(body.len())) {
            return Err(corrupt("its length is not what it says"));
        }
        if header.kind != PartKind::Manifest || header.number != 0 || header.generation != 0 {
            return Err(corrupt("it is another part of an image"));
        }
        if digest != envelope_digest(head, body) {
            return Err(corrupt("its digest does not match"));
        }
        let wire = wire::Manifest::decode(body).map_err(|error| corrupt(&error.to_string()))?;
        if wire.encoded_len() != body.len() {
            return Err(corrupt("it holds fields that this build does not know"));
        }
        if wire.log.is_some() != (header.version > ALONE_VERSION) {
            return Err(corrupt("it is of another version than what it holds"));
        }
        Self::from_wire(ImageId(header.image), wire).map_err(|reason| corrupt(&reason))
    }

    /// The version of the format that the image is in.
    pub fn version(&self) -> u32 {
        if self.log.is_some() { FORMAT_VERSION } else { ALONE_VERSION }
    }

    /// Its size, all parts together, also those that it shares with other images.
    pub fn total_size(&self) -> u64 {
        let segments = self.segments.iter().map(|segment| segment.size);
        let shared = segments.chain(self.log.map(|log| log.size));
        shared.fold(self.frames.size, u64::saturating_add)
    }

    /// The lengths of all files that are kept as clones: what of them takes room depends on what the program has written since.
    pub fn cloned_size(&self) -> u64 {
        self.clones.iter().map(|clone| clone.size).fold(0, u64::saturating_add)
    }

    /// What it added to the store, without what it shares with the image before.
    pub fn added_size(&self) -> u64 {
        self.frames.size.saturating_add(self.pages.added_size)
    }

    fn from_wire(image: ImageId, wire: wire::Manifest) -> Result<Self, String> {
        let segments = segments_from_wire(image, &wire)?;
        let clones = clones_from_wire(&wire.clones)?;
        let clocks = wire.clocks.ok_or("it has no clocks")?;
        let facts = ManifestFacts {
            hdcr_version: wire.hdcr_version,
            architecture: wire.architecture,
            cpu_features: wire.cpu_features,
            kernel_release: wire.kernel_release,
            boot_id: wire.boot_id,
            host_name: wire.host_name,
            clocks: Clocks {
                realtime_ns: clocks.realtime,
                monotonic_ns: clocks.monotonic,
                boottime_ns: clocks.boottime,
            },
            needs: wire.needs,
            command: wire.command,
            root_pid: wire.root_pid,
            processes: wire.processes.into_iter().map(|p| ProcessName { pid: p.pid, comm: p.comm }).collect(),
            base: wire.base.map(SnapshotId::try_from).transpose()?,
            lineage: wire.lineage.into_iter().map(SnapshotId::try_from).collect::<Result<_, _>>()?,
            mechanism: wire.mechanism,
            snapshot: wire.snapshot,
        };
        let place = wire.place.map(place_from_wire).transpose()?;
        Ok(Self {
            id: SnapshotId { image, place },
            facts,
            frames: wire.frames.ok_or("it has no frames")?.try_into()?,
            segments,
            pages: pages_from_wire(wire.pages.ok_or("it has no pages")?, wire.log.is_some())?,
            log: wire.log.map(|log| log_from_wire(image, &log)).transpose()?,
            clones,
        })
    }
}

fn envelope_digest(head: &[u8], body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    *hasher.finalize().as_bytes()
}

/// How long the whole part is, told by its first bytes; for a reader that must not read without end.
pub(crate) fn total_length(head: &[u8]) -> Option<usize> {
    let length = head.get(LENGTH_AT..DIGEST_AT)?.try_into().ok().map(u64::from_le_bytes)?;
    Some(len(length).saturating_add(BODY_AT))
}

fn segments_from_wire(image: ImageId, wire: &wire::Manifest) -> Result<Vec<SegmentFacts>, String> {
    let facts = |s: &wire::Segment| -> Result<SegmentFacts, String> {
        let owner = owner_from_wire(image, &s.image)?;
        Ok(SegmentFacts { number: s.number, generation: s.generation, size: s.size, image: owner })
    };
    let segments = wire.segments.iter().map(facts).collect::<Result<Vec<SegmentFacts>, String>>()?;
    if !segments.is_sorted_by(|a, b| a.number < b.number) {
        return Err("its segments are out of order".to_owned());
    }
    if wire.log.is_none() && segments.iter().any(|segment| segment.image != image) {
        return Err("a segment is of another image, though it is in no chain".to_owned());
    }
    Ok(segments)
}

fn clones_from_wire(wire: &[wire::ClonedFile]) -> Result<Vec<CloneFacts>, String> {
    let clones: Vec<_> = wire.iter().map(|clone| CloneFacts { object: clone.object, size: clone.size }).collect();
    if clones.is_sorted_by(|a, b| a.object < b.object) {
        Ok(clones)
    } else {
        Err("its clones are out of order".to_owned())
    }
}

fn log_from_wire(image: ImageId, wire: &wire::Log) -> Result<LogFacts, String> {
    let owner = owner_from_wire(image, &wire.image)?;
    Ok(LogFacts { number: wire.number, generation: wire.generation, size: wire.size, image: owner })
}

/// Nothing stands for this image.
fn owner_from_wire(image: ImageId, bytes: &[u8]) -> Result<ImageId, String> {
    match bytes {
        [] => Ok(image),
        other => other.try_into().map(ImageId).map_err(|_| "an image id is not 16 bytes long".to_owned()),
    }
}

fn owner_to_wire(image: ImageId, owner: ImageId) -> Vec<u8> {
    if owner == image { Vec::new() } else { owner.0.to_vec() }
}

fn place_from_wire(wire: wire::Place) -> Result<(JobName, u64), String> {
    let job = JobName::new(wire.job).map_err(|error| error.to_string())?;
    Ok((job, wire.sequence))
}

impl TryFrom<wire::Reference> for SnapshotId {
    type Error = String;

    fn try_from(wire: wire::Reference) -> Result<Self, String> {
        let image = wire.image.try_into().map_err(|_| "an image id is not 16 bytes long")?;
        Ok(Self { image: ImageId(image), place: wire.place.map(place_from_wire).transpose()? })
    }
}

impl TryFrom<wire::Frames> for FramesFacts {
    type Error = String;

    fn try_from(wire: wire::Frames) -> Result<Self, String> {
        Ok(Self { size: wire.size, count: wire.count, digest: digest_from_wire(wire.blake3)? })
    }
}

fn pages_from_wire(wire: wire::Pages, in_chain: bool) -> Result<PageFacts, String> {
    if !in_chain && wire.added != 0 {
        return Err("it adds to another image, though it is in no chain".to_owned());
    }
    Ok(PageFacts {
        runs: wire.runs,
        stored_pages: wire.stored,
        zero_pages: wire.zero,
        stored_size: wire.stored_size,
        added_size: if in_chain { wire.added } else { wire.stored_size },
        digest: digest_from_wire(wire.blake3)?,
    })
}

fn digest_from_wire(bytes: Vec<u8>) -> Result<Digest, String> {
    bytes.try_into().map(Digest).map_err(|_| "a digest is not 32 bytes long".to_owned())
}

impl From<&SnapshotId> for wire::Reference {
    fn from(id: &SnapshotId) -> Self {
        Self { image: id.image.0.to_vec(), place: place_to_wire(id) }
    }
}

fn place_to_wire(id: &SnapshotId) -> Option<wire::Place> {
    let (job, sequence) = id.place.as_ref()?;
    Some(wire::Place { job: job.to_string(), sequence: *sequence })
}

impl From<&Manifest> for wire::Manifest {
    fn from(manifest: &Manifest) -> Self {
        let facts = manifest.facts.clone();
        let process = |p: ProcessName| wire::Process { pid: p.pid, comm: p.comm };
        let image = manifest.id.image;
        let segment = |s: &SegmentFacts| wire::Segment {
            number: s.number,
            generation: s.generation,
            size: s.size,
            image: owner_to_wire(image, s.image),
        };
        let log = |log: LogFacts| wire::Log {
            number: log.number,
            generation: log.generation,
            size: log.size,
            image: owner_to_wire(image, log.image),
        };
        Self {
            hdcr_version: facts.hdcr_version,
            architecture: facts.architecture,
            cpu_features: facts.cpu_features,
            kernel_release: facts.kernel_release,
            boot_id: facts.boot_id,
            host_name: facts.host_name,
            clocks: Some(wire::Clocks {
                realtime: facts.clocks.realtime_ns,
                monotonic: facts.clocks.monotonic_ns,
                boottime: facts.clocks.boottime_ns,
            }),
            needs: facts.needs,
            place: place_to_wire(&manifest.id),
            command: facts.command,
            root_pid: facts.root_pid,
            processes: facts.processes.into_iter().map(process).collect(),
            base: facts.base.as_ref().map(wire::Reference::from),
            lineage: facts.lineage.iter().map(wire::Reference::from).collect(),
            mechanism: facts.mechanism,
            snapshot: facts.snapshot,
            frames: Some(wire::Frames {
                size: manifest.frames.size,
                count: manifest.frames.count,
                blake3: manifest.frames.digest.0.to_vec(),
            }),
            segments: manifest.segments.iter().map(segment).collect(),
            pages: Some(wire::Pages {
                runs: manifest.pages.runs,
                stored: manifest.pages.stored_pages,
                zero: manifest.pages.zero_pages,
                stored_size: manifest.pages.stored_size,
                blake3: manifest.pages.digest.0.to_vec(),
                added: if manifest.log.is_some() { manifest.pages.added_size } else { 0 },
            }),
            log: manifest.log.map(log),
            clones: manifest.clones.iter().map(|c| wire::ClonedFile { object: c.object, size: c.size }).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_clone_is_named_once_and_in_order() {
        let clones = |objects: &[u64]| {
            let wire: Vec<_> = objects.iter().map(|object| wire::ClonedFile { object: *object, size: 9 }).collect();
            clones_from_wire(&wire)
        };
        assert_eq!(clones(&[3, 7]).unwrap(), [CloneFacts { object: 3, size: 9 }, CloneFacts { object: 7, size: 9 }]);
        assert!(clones(&[7, 3]).is_err() && clones(&[7, 7]).is_err());
    }
}
