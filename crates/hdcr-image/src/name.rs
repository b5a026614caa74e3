//! Names of images, jobs and parts. The only way from a string of an image or a user to a place in a store.

use std::fmt;
use std::str::FromStr;

/// The unique id of one image. All its parts carry it, so that a part of another image is recognised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub [u8; 16]);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageId({self})")
    }
}

/// Names contents that many images have in common: their digest (BLAKE3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentKey(pub [u8; 32]);

impl ContentKey {
    /// What the names of such parts of an image begin with.
    pub const PREFIX: &str = "content-";

    /// That of all bytes that a reader gives.
    pub fn of(reader: impl std::io::Read) -> std::io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(reader)?;
        Ok(Self(*hasher.finalize().as_bytes()))
    }

    /// The name of the part of an image that holds it.
    pub fn part(&self) -> String {
        format!("{}{self}", Self::PREFIX)
    }
}

impl fmt::Display for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentKey({self})")
    }
}

/// Why a name cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{name:?} cannot be the name of a job: {reason}")]
pub struct NameError {
    name: String,
    reason: &'static str,
}

/// The name of a job: 1 to 64 ASCII letters, digits, `.`, `_`, `-` and `+`, beginning with a letter, digit or `_`, and
/// not a number alone, which means a process on the command line.
///
/// It can stand as a directory name, in a shell and before an `@` without quoting.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobName(String);

impl JobName {
    /// The longest name, in bytes.
    pub const LIMIT: usize = 64;

    /// Checks a name.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        match Self::fault(&name) {
            Some(reason) => Err(NameError { name, reason }),
            None => Ok(Self(name)),
        }
    }

    fn fault(name: &str) -> Option<&'static str> {
        let Some(first) = name.bytes().next() else {
            return Some("it is empty");
        };
        if name.len() > Self::LIMIT {
            return Some("it is longer than 64 bytes");
        }
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte)) {
            return Some("only letters, digits, '.', '_', '-' and '+' are allowed");
        }
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some("a number alone means a process");
        }
        (!first.is_ascii_alphanumeric() && first != b'_').then_some("it must begin with a letter, a digit or '_'")
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for JobName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

/// Names one committed checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotId {
    /// The image.
    pub image: ImageId,
    /// Its job and number in a store; `None` for an image that lies elsewhere.
    pub place: Option<(JobName, u64)>,
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some((job, sequence)) => write!(f, "{job}@{sequence}"),
            None => self.image.fmt(f),
        }
    }
}

/// A part of an image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PartName {
    /// The root that vouches for all others.
    Manifest,
    /// The frames.
    Frames,
    /// A segment of pages.
    Pages(u32),
    /// A log of the page index, in a chain of images.
    Index(u32),
    /// The contents of a file of the program, as a clone of it: by the object that it is.
    Clone(u64),
    /// All of them, in one file.
    Bundle,
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifest => f.write_str("manifest"),
            Self::Frames => f.write_str("frames"),
            Self::Pages(number) => write!(f, "pages-{number}"),
            Self::Index(number) => write!(f, "index-{number}"),
            Self::Clone(object) => write!(f, "clone-{object}"),
            Self::Bundle => f.write_str("bundle"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_store_are_refused() {
        for name in
            ["", ".", "..", ".a", "-a", "a/b", "/", "a\0", "a b", "a@1", "\u{e4}", "a\n", "4711", &"x".repeat(65)]
        {
            assert!(JobName::new(name).is_err(), "{name:?}");
        }
        for name in ["a", "_x", "7a", "sim-2.1+b", &"x".repeat(64)] {
            assert_eq!(JobName::new(name).unwrap().as_str(), name);
        }
    }
}
