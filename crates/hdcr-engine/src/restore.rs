//! What a kind has at hand while it restores.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use hdcr_image::Record;

use crate::batch::{Arg, Batch, OnError};
use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};
use crate::model::{self, ObjectId};
use crate::task::Stage;

/// The calls of one task in one stage, each with what it is for.
#[derive(Debug, Default)]
pub(crate) struct TaskBatch {
    pub(crate) batch: Batch,
    pub(crate) labels: Vec<&'static str>,
}

impl TaskBatch {
    /// Adds a call that must not fail; the label is what the error message says was being done.
    pub(crate) fn call(&mut self, label: &'static str, nr: i64, args: &[Arg]) -> usize {
        self.labels.push(label);
        self.batch.push(nr, args, OnError::Stop)
    }

    /// Adds a call whose failure does not matter.
    pub(crate) fn try_call(&mut self, label: &'static str, nr: i64, args: &[Arg]) -> usize {
        self.labels.push(label);
        self.batch.push(nr, args, OnError::Continue)
    }

    /// Puts bytes into the data area and returns their offset.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> usize {
        self.batch.bytes(bytes)
    }

    /// Reserves zeroed bytes and returns their offset.
    pub(crate) fn room(&mut self, len: usize) -> usize {
        self.batch.room(len)
    }

    /// Overwrites reserved bytes.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        for (slot, byte) in self.batch.data.iter_mut().skip(at).zip(bytes) {
            *slot = *byte;
        }
    }
}

/// A frame of the image.
#[derive(Clone, Debug)]
pub(crate) struct StoredFrame {
    pub(crate) version: u16,
    pub(crate) body: Vec<u8>,
}

/// A restore in progress.
#[derive(Debug)]
pub struct Restore<'a> {
    /// Frames by (tag, id).
    pub(crate) frames: &'a BTreeMap<(u16, ObjectId), StoredFrame>,
    /// Reads contents of objects.
    pub(crate) contents: &'a dyn Contents,
    /// Open files that have been made, by their id.
    pub(crate) made: BTreeMap<ObjectId, OwnedFd>,
    /// Descriptors that shared objects keep until all their open files are made (the ends of a pipe, a memfd).
    pub(crate) parts: BTreeMap<ObjectId, Vec<OwnedFd>>,
    pub(crate) batches: BTreeMap<(Stage, Tid), TaskBatch>,
    /// Standard input, output and error of the restoring command: what stdio that led out of the tree becomes.
    pub(crate) stdio: [OwnedFd; 3],
    /// Old path prefixes and what they are now (`--map-path`).
    pub(crate) map_path: &'a [(PathBuf, PathBuf)],
    /// Descriptors of every open file: who holds it, and where.
    pub(crate) holders: BTreeMap<ObjectId, Vec<(Pid, i32)>>,
}

/// Where the contents of objects come from.
pub trait Contents: std::fmt::Debug {
    /// The stored pieces of an object: byte offset and length, in order. What no piece covers is zeros.
    fn pieces(&self, id: ObjectId) -> Vec<(u64, u64)>;
    /// Reads all stored pieces of an object in order and hands over each.
    fn read(&self, id: ObjectId, each: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()>;
}

impl Restore<'_> {
    /// The batch of a task in a stage.
    pub(crate) fn batch(&mut self, stage: Stage, task: Tid) -> &mut TaskBatch {
        self.batches.entry((stage, task)).or_default()
    }

    /// The record of an object.
    pub(crate) fn record<R: Record>(&self, id: ObjectId) -> Result<R> {
        let frame = self.frames.get(&(R::TAG.0, id));
        let frame = frame.ok_or_else(|| Error::Unsound(format!("{id} has no record {:#06x}", R::TAG.0)))?;
        model::decode(frame.version, &frame.body)
    }

    /// The open file with an id, made now if it has not been made yet.
    pub(crate) fn open_file(&mut self, _id: ObjectId) -> Result<&OwnedFd> {
        Err(Error::Unsound("not here yet".to_owned()))
    }

    /// A path of the image as it is called now.
    pub(crate) fn mapped(&self, path: &std::path::Path) -> PathBuf {
        for (old, new) in self.map_path {
            if let Ok(rest) = path.strip_prefix(old) {
                return if rest.as_os_str().is_empty() { new.clone() } else { new.join(rest) };
            }
        }
        path.to_owned()
    }
}
