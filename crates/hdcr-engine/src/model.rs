//! The plain data of a tree: identities, and how records are put into frames and taken out.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use hdcr_image::{Record, RecordError};

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
    let newer = || RecordError::Newer { name: R::NAME, version, known: R::VERSION };
    let record = if version > R::VERSION { Err(newer()) } else { R::decode(body, version) };
    record.map_err(|error| Error::Unsound(error.to_string()))
}

/// The error for a line of `/proc` that is not as it should be.
pub(crate) fn unreadable(view: &FileView, key: &str) -> Error {
    Error::Changed {
        subject: format!("pid {}, fd {}", view.pid, view.fd),
        what: format!("no readable {key} in fdinfo"),
    }
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

/// The rest of [`Record`] for a type that is its own prost message: its name, and both ways.
macro_rules! prost_record {
    () => {
        const NAME: &'static str = module_path!();

        fn encode(&self) -> std::result::Result<Vec<u8>, hdcr_image::RecordError> {
            Ok(hdcr_image::encode_wire(self))
        }

        fn decode(body: &[u8], _version: u16) -> std::result::Result<Self, hdcr_image::RecordError> {
            hdcr_image::decode_wire(Self::NAME, body)
        }
    };
}
pub(crate) use prost_record;
