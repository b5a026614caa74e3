//! An image that lies in memory: for tests, and for callers that send it elsewhere.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::StoreError;
use crate::name::{ImageId, JobName, PartName, SnapshotId};
use crate::number::{len, size};
use crate::sink::{ReadPart, Sink, Source, WritePart};

type Parts = BTreeMap<PartName, Vec<u8>>;

/// Where a committed image appears. Clones show the same one.
#[derive(Clone, Debug, Default)]
pub struct MemoryImage {
    committed: Arc<Mutex<Option<(SnapshotId, Parts)>>>,
}

impl MemoryImage {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins an image with this id, outside of any job.
    pub fn sink(&self, image: ImageId) -> MemorySink {
        self.sink_as(SnapshotId { image, place: None })
    }

    /// Begins an image as the checkpoint of a job.
    pub fn sink_of(&self, image: ImageId, job: JobName, sequence: u64) -> MemorySink {
        self.sink_as(SnapshotId { image, place: Some((job, sequence)) })
    }

    fn sink_as(&self, snapshot: SnapshotId) -> MemorySink {
        MemorySink { snapshot, parts: Arc::default(), target: self.clone() }
    }

    /// The parts, once committed.
    pub fn parts(&self) -> Option<BTreeMap<PartName, Vec<u8>>> {
        let committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        committed.as_ref().map(|(_, parts)| parts.clone())
    }

    /// A part of the image that is committed now, if that is this one.
    fn part_of(&self, base: &SnapshotId, name: PartName) -> Result<Vec<u8>, StoreError> {
        let committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = committed.as_ref().filter(|(id, _)| id == base).map(|(_, parts)| parts);
        let part = parts.and_then(|parts| parts.get(&name)).cloned();
        part.ok_or_else(|| StoreError::new("sharing", format!("{name} of {base}"), io::ErrorKind::NotFound.into()))
    }

    /// The committed image.
    pub fn source(&self) -> Option<MemorySource> {
        self.parts().map(|parts| MemorySource { parts })
    }
}

/// An image being written to memory.
#[derive(Debug)]
pub struct MemorySink {
    snapshot: SnapshotId,
    parts: Arc<Mutex<Parts>>,
    target: MemoryImage,
}

impl Sink for MemorySink {
    fn snapshot(&self) -> &SnapshotId {
        &self.snapshot
    }

    fn part(&mut self, name: PartName) -> Result<Box<dyn WritePart>, StoreError> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(name, Vec::new());
        Ok(Box::new(MemoryPart { name, parts: Arc::clone(&self.parts) }))
    }

    fn can_share(&self, base: &SnapshotId) -> bool {
        self.target.part_of(base, PartName::Manifest).is_ok()
    }

    fn share(&mut self, base: &SnapshotId, name: PartName) -> Result<(), StoreError> {
        let bytes = self.target.part_of(base, name)?;
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(name, bytes);
        Ok(())
    }

    fn extend(&mut self, base: &SnapshotId, name: PartName, at: u64) -> Result<Box<dyn WritePart>, StoreError> {
        let mut bytes = self.target.part_of(base, name)?;
        bytes.truncate(len(at));
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(name, bytes);
        Ok(Box::new(MemoryPart { name, parts: Arc::clone(&self.parts) }))
    }

    fn reader(&self, name: PartName) -> Result<Box<dyn ReadPart>, StoreError> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        MemorySource { parts }.part(name)
    }

    fn persist(&mut self, manifest: &[u8]) -> Result<(), StoreError> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.insert(PartName::Manifest, manifest.to_vec());
        Ok(())
    }

    fn commit(self: Box<Self>) -> Result<(), StoreError> {
        let parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        *self.target.committed.lock().unwrap_or_else(PoisonError::into_inner) = Some((self.snapshot, parts));
        Ok(())
    }

    fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryPart {
    name: PartName,
    parts: Arc<Mutex<Parts>>,
}

impl WritePart for MemoryPart {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.entry(self.name).or_default().extend_from_slice(bytes);
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A committed image in memory.
#[derive(Clone, Debug)]
pub struct MemorySource {
    parts: Parts,
}

impl MemorySource {
    /// An image made of these parts, good or bad.
    pub fn new(parts: BTreeMap<PartName, Vec<u8>>) -> Self {
        Self { parts }
    }
}

impl Source for MemorySource {
    fn part(&self, name: PartName) -> Result<Box<dyn ReadPart>, StoreError> {
        let bytes = self
            .parts
            .get(&name)
            .ok_or_else(|| StoreError::new("opening", name.to_string(), io::ErrorKind::NotFound.into()))?;
        Ok(Box::new(MemoryBytes { name, bytes: bytes.clone() }))
    }
}

#[derive(Debug)]
struct MemoryBytes {
    name: PartName,
    bytes: Vec<u8>,
}

impl ReadPart for MemoryBytes {
    fn size(&self) -> Result<u64, StoreError> {
        Ok(size(self.bytes.len()))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        let from = len(offset);
        let found = self
            .bytes
            .get(from..from.saturating_add(into.len()))
            .ok_or_else(|| StoreError::new("reading", self.name.to_string(), io::ErrorKind::UnexpectedEof.into()))?;
        into.copy_from_slice(found);
        Ok(())
    }
}
