//! Typed entries: a tag, a version, a body. The container carries them and knows none of them.

use std::fmt;

use hdcr_layout::Layout;
use prost::Message;

use crate::error::ErrorClass;

/// The number of a kind of record. Never reused for another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag(pub u16);

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a record cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// Nobody here knows this kind; leaving it out would restore something else than was saved.
    #[error("the image holds a record of unknown kind {tag} (version {version})")]
    Unknown {
        /// Its tag.
        tag: Tag,
        /// Its version.
        version: u16,
    },
    /// Written by a newer HDCR.
    #[error("the image holds a {name} record of version {version}; this build knows version {known}")]
    Newer {
        /// The kind.
        name: &'static str,
        /// The version found.
        version: u16,
        /// The version known.
        known: u16,
    },
    /// Another kind was wanted.
    #[error("a {name} record was wanted where the image holds kind {tag}")]
    Other {
        /// The kind wanted.
        name: &'static str,
        /// The kind found.
        tag: Tag,
    },
    /// The body is not one of this kind.
    #[error("malformed {name} record: {reason}")]
    Malformed {
        /// The kind.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl RecordError {
    /// A body that is not one of this kind.
    pub fn malformed(name: &'static str, reason: impl Into<String>) -> Self {
        Self::Malformed { name, reason: reason.into() }
    }

    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unknown { .. } | Self::Newer { .. } => ErrorClass::Refused,
            Self::Other { .. } | Self::Malformed { .. } => ErrorClass::Corrupt,
        }
    }
}

/// A kind of record.
pub trait Record: Sized {
    /// Its number in an image.
    const TAG: Tag;
    /// Raised when a field changes its meaning or a field is added that must not be ignored.
    const VERSION: u16;
    /// What messages call it.
    const NAME: &'static str;

    /// The body.
    fn encode(&self) -> Result<Vec<u8>, RecordError>;

    /// Reads a body that was written in this version, which is never higher than [`Record::VERSION`].
    fn decode(body: &[u8], version: u16) -> Result<Self, RecordError>;
}

/// The records that somebody can read: what [`first_unknown`] compares with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KnownTag {
    /// The kind.
    pub tag: Tag,
    /// The highest version known.
    pub version: u16,
    /// What messages call it.
    pub name: &'static str,
}

impl KnownTag {
    /// The entry for a kind of record.
    pub const fn of<R: Record>() -> Self {
        Self { tag: R::TAG, version: R::VERSION, name: R::NAME }
    }
}

/// Says which of the kinds found cannot be read by somebody who knows only `known`.
pub fn first_unknown(found: impl IntoIterator<Item = (Tag, u16)>, known: &[KnownTag]) -> Result<(), RecordError> {
    for (tag, version) in found {
        let kind = known.iter().find(|kind| kind.tag == tag).ok_or(RecordError::Unknown { tag, version })?;
        check_version(kind, version)?;
    }
    Ok(())
}

pub(crate) fn check_version(kind: &KnownTag, version: u16) -> Result<(), RecordError> {
    if version > kind.version {
        return Err(RecordError::Newer { name: kind.name, version, known: kind.version });
    }
    Ok(())
}

/// A list of records of fixed layout, as one record: a frame that holds a single one is a list of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct List<T>(pub Vec<T>);

impl<T: Layout> Record for List<T> {
    const TAG: Tag = Tag(T::TAG);
    const VERSION: u16 = T::VERSION;
    const NAME: &'static str = T::NAME;

    fn encode(&self) -> Result<Vec<u8>, RecordError> {
        encode_list(&self.0)
    }

    fn decode(body: &[u8], _: u16) -> Result<Self, RecordError> {
        let mut list = Vec::with_capacity(body.len().checked_div(T::SIZE).unwrap_or(0));
        for record in each(body) {
            list.push(record?);
        }
        Ok(Self(list))
    }
}

/// The records of a list, one after another.
pub(crate) fn each<T: Layout>(body: &[u8]) -> impl Iterator<Item = Result<T, RecordError>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let decoded = T::decode(rest).map_err(|error| RecordError::malformed(T::NAME, error.to_string()));
        // Nothing comes after what cannot be read.
        let used = decoded.as_ref().map_or(usize::MAX, |(_, used)| (*used).max(1));
        rest = rest.get(used..).unwrap_or_default();
        Some(decoded.map(|(record, _)| record))
    })
}

pub(crate) fn encode_list<T: Layout>(list: &[T]) -> Result<Vec<u8>, RecordError> {
    let mut body = vec![0; T::SIZE.saturating_mul(list.len())];
    let mut rest = body.as_mut_slice();
    for record in list {
        let used = record.encode(rest).map_err(|error| RecordError::malformed(T::NAME, error.to_string()))?;
        rest = rest.get_mut(used..).unwrap_or_default();
    }
    Ok(body)
}

impl<T: Layout> Record for T {
    const TAG: Tag = Tag(T::TAG);
    const VERSION: u16 = T::VERSION;
    const NAME: &'static str = T::NAME;

    fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let mut body = vec![0; T::SIZE];
        Layout::encode(self, &mut body).map_err(|error| RecordError::malformed(T::NAME, error.to_string()))?;
        Ok(body)
    }

    fn decode(body: &[u8], _: u16) -> Result<Self, RecordError> {
        let (record, used) =
            <T as Layout>::decode(body).map_err(|error| RecordError::malformed(T::NAME, error.to_string()))?;
        if used != body.len() {
            return Err(RecordError::malformed(T::NAME, "bytes follow the record"));
        }
        Ok(record)
    }
}

/// The body of a record that is stored as a protobuf message.
pub fn encode_wire<W: Message>(wire: &W) -> Vec<u8> {
    wire.encode_to_vec()
}

/// Reads a protobuf body. Fields that this build does not know are an error here, not dropped.
pub fn decode_wire<W: Message + Default>(name: &'static str, body: &[u8]) -> Result<W, RecordError> {
    let wire = W::decode(body).map_err(|error| RecordError::malformed(name, error.to_string()))?;
    if wire.encoded_len() != body.len() {
        return Err(RecordError::malformed(name, "it holds fields that this build does not know"));
    }
    Ok(wire)
}

/// Makes a checked type a [`Record`] whose body is a private protobuf message.
///
/// `wire_record!(Checked, Wire, tag 300, version 1, "socket")` needs `From<&Checked> for Wire` and
/// `TryFrom<Wire, Error = RecordError> for Checked`.
#[macro_export]
macro_rules! wire_record {
    ($checked:ty, $wire:ty, tag $tag:expr, version $version:expr, $name:expr) => {
        impl $crate::Record for $checked {
            const TAG: $crate::Tag = $crate::Tag($tag);
            const VERSION: u16 = $version;
            const NAME: &'static str = $name;

            fn encode(&self) -> ::core::result::Result<::std::vec::Vec<u8>, $crate::RecordError> {
                Ok($crate::encode_wire(&<$wire>::from(self)))
            }

            fn decode(body: &[u8], _version: u16) -> ::core::result::Result<Self, $crate::RecordError> {
                <Self as ::core::convert::TryFrom<$wire>>::try_from($crate::decode_wire::<$wire>($name, body)?)
            }
        }
    };
}
