//! What a kind has at hand while it captures.

use std::collections::BTreeMap;

use hdcr_image::Record;

use crate::error::Result;
use crate::ids::{Fd, Pid};
use crate::mechanism::Frozen;
use crate::model::ObjectId;
use crate::resource::FileView;

/// An open file of the tree with all descriptors that lead to it.
#[derive(Clone, Debug)]
pub(crate) struct OpenFile {
    /// Its identity.
    pub(crate) id: ObjectId,
    /// As seen through the first of its descriptors.
    pub(crate) view: FileView,
    /// All its descriptors.
    pub(crate) holders: Vec<(Pid, Fd)>,
}

/// A captured frame.
#[derive(Clone, Debug)]
pub(crate) struct PendingFrame {
    pub(crate) tag: u16,
    pub(crate) version: u16,
    pub(crate) id: ObjectId,
    pub(crate) body: Vec<u8>,
}

/// A capture in progress.
#[derive(Debug)]
pub struct Capture<'a> {
    /// The stopped tree.
    pub(crate) frozen: &'a mut dyn Frozen,
    /// Every open file of the tree, each once.
    pub(crate) files: Vec<OpenFile>,
    pub(crate) by_inode: BTreeMap<u64, Vec<usize>>,
    pub(crate) frames: Vec<PendingFrame>,
    /// Contents of objects, as pieces (object, byte offset, bytes; a multiple of 4096 but for nothing).
    pub(crate) contents: Vec<(ObjectId, u64, Vec<u8>)>,
    pub(crate) shared: BTreeMap<(&'static str, u64, u64), ObjectId>,
    pub(crate) next_id: u64,
}

impl Capture<'_> {
    /// Adds a frame. Several frames may have one id when their tags differ.
    pub(crate) fn frame<R: Record>(&mut self, id: ObjectId, record: &R) -> Result<()> {
        self.frames.push(PendingFrame { tag: R::TAG.0, version: R::VERSION, id, body: record.encode() });
        Ok(())
    }

    /// A number for a new object.
    pub(crate) fn new_id(&mut self) -> ObjectId {
        self.next_id += 1;
        ObjectId(self.next_id)
    }

    /// The identity of a shared object (a pipe, a memfd, a socket pair) by kind, device and inode; `Err` holds a fresh
    /// one when it is met for the first time and has still to be captured by the caller.
    pub(crate) fn shared(&mut self, kind: &'static str, device: u64, inode: u64) -> std::result::Result<ObjectId, ObjectId> {
        if let Some(id) = self.shared.get(&(kind, device, inode)) {
            return Ok(*id);
        }
        let id = self.new_id();
        self.shared.insert((kind, device, inode), id);
        Err(id)
    }

    /// The open files of the tree that lead to an inode.
    pub(crate) fn with_inode(&self, inode: u64) -> impl Iterator<Item = &OpenFile> {
        self.by_inode.get(&inode).into_iter().flatten().filter_map(|at| self.files.get(*at))
    }

    /// The open file behind a descriptor of a process.
    pub(crate) fn behind(&self, pid: Pid, fd: Fd) -> Option<&OpenFile> {
        self.files.iter().find(|file| file.holders.contains(&(pid, fd)))
    }

    /// Stores a piece of an object's contents (a file, a memfd). Offset and length are multiples of 4096: the last page
    /// of a file is filled up with zeros, and the record keeps the true length. Pieces of zeros take no room.
    pub(crate) fn content(&mut self, id: ObjectId, offset: u64, bytes: Vec<u8>) -> Result<()> {
        self.contents.push((id, offset, bytes));
        Ok(())
    }
}
