//! The plain data of a tree: identities, and how records are put into frames and taken out.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use hdcr_image::Record;

use crate::error::{Error, Result};
use crate::resource::FileView;
use crate::task::TaskView;

/// Identity of an object of the image: an open file, a pipe, an address space, a task.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectId(pub u64);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {}", self.0)
    }
}

/// Bytes of a path as the kernel gave them.
pub(crate) fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// Decodes a frame's body.
pub(crate) fn decode<R: Record>(version: u16, body: &[u8]) -> Result<R> {
    R::decode(body, version).map_err(|error| Error::Unsound(format!("record {:#06x}: {error}", R::TAG.0)))
}

/// The error for a line of `/proc` that is not as it should be.
pub(crate) fn unreadable(view: &FileView, key: &str) -> Error {
    Error::Changed { subject: format!("pid {}, fd {}", view.pid, view.fd), what: format!("no readable {key} in fdinfo") }
}

/// The error for a task that did not answer a question.
pub(crate) fn no_reply(task: &TaskView, what: &str) -> Error {
    Error::Changed { subject: format!("task {}", task.tid), what: format!("no answer to {what}") }
}

/// The low half of a register or of two packed words.
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
pub(crate) const fn low32(word: u64) -> u32 {
    word as u32
}

/// The two functions of [`Record`] for a type that is its own prost message.
macro_rules! prost_record {
    () => {
        fn encode(&self) -> Vec<u8> {
            prost::Message::encode_to_vec(self)
        }

        fn decode(body: &[u8], version: u16) -> std::result::Result<Self, hdcr_image::RecordError> {
            hdcr_image::decode_prost(Self::TAG, Self::VERSION, version, body)
        }
    };
}
pub(crate) use prost_record;
