//! Paths in messages and records: text where they are text, else their bytes, so that none is lost; and as they are shown.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserializer, Serializer};

/// For `#[serde(with)]`.
pub(crate) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => to.serialize_str(text),
        None => to.collect_seq(path.as_os_str().as_bytes()),
    }
}

/// For `#[serde(with)]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    from.deserialize_any(Either)
}

/// A path for people and programs that read text: what is no text in it is replaced.
pub(crate) fn shown(path: &Path) -> PathBuf {
    PathBuf::from(path.to_string_lossy().into_owned())
}

struct Either;

impl<'de> Visitor<'de> for Either {
    type Value = PathBuf;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path as text or bytes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PathBuf, E> {
        Ok(PathBuf::from(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<PathBuf, A::Error> {
        let mut path = Vec::new();
        while let Some(byte) = bytes.next_element()? {
            path.push(byte);
        }
        Ok(PathBuf::from(OsString::from_vec(path)))
    }
}

/// The same for several.
pub(crate) mod list {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct One(#[serde(with = "super")] PathBuf);

    pub(crate) fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(|path| One(path.clone())))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<One>::deserialize(from)?.into_iter().map(|one| one.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(PartialEq, Debug, Serialize, Deserialize)]
    struct Message {
        #[serde(with = "super")]
        one: PathBuf,
        #[serde(with = "super::list")]
        many: Vec<PathBuf>,
    }

    #[test]
    fn no_path_is_lost_and_text_stays_text() {
        let odd = PathBuf::from(OsString::from_vec(b"/a\xff\n\"".to_vec()));
        let message = Message { one: odd.clone(), many: vec![PathBuf::from("/\u{e4}"), odd.clone()] };
        let text = serde_json::to_string(&message).unwrap();
        assert!(text.contains("\"/\u{e4}\""), "{text}");
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), message);
        assert_eq!(shown(&odd), PathBuf::from("/a\u{fffd}\n\""));
    }
}
