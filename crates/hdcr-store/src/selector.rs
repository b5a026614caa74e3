//! How a user names a checkpoint.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use hdcr_image::JobName;

use crate::error::Error;

/// A checkpoint, as a user names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selector {
    /// `NAME`: the newest of a job.
    Newest(JobName),
    /// `NAME@ID`: one of a job.
    Snapshot(JobName, u64),
    /// An image directory or file: any text with a `/` in it, or that begins with a dot.
    Path(PathBuf),
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |reason: String| Error::BadSelector { text: text.to_owned(), reason };
        if text.contains('/') || text.starts_with('.') {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        let Some((name, id)) = text.split_once('@') else {
            return Ok(Self::Newest(JobName::new(text).map_err(|error| bad(error.to_string()))?));
        };
        let name = JobName::new(name).map_err(|error| bad(error.to_string()))?;
        let id = sequence(id).ok_or_else(|| bad("after the @ stands the number of a checkpoint".to_owned()))?;
        Ok(Self::Snapshot(name, id))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest(job) => job.fmt(f),
            Self::Snapshot(job, sequence) => write!(f, "{job}@{sequence}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// A number in the one way in which this store writes it.
pub(crate) fn sequence(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number > 0 && number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: impl Into<Option<Selector>>) {
        assert_eq!(text.parse().ok(), expected.into(), "{text}");
    }

    #[test]
    fn names_numbers_and_paths() {
        let job = |name: &str| JobName::new(name).unwrap();
        check("sim", Some(Selector::Newest(job("sim"))));
        check("sim@12", Some(Selector::Snapshot(job("sim"), 12)));
        check("./sim", Some(Selector::Path("./sim".into())));
        check("/a@1/b", Some(Selector::Path("/a@1/b".into())));
        check("..", Some(Selector::Path("..".into())));
        for text in
            ["", "@", "sim@", "sim@0", "sim@01", "sim@+1", "sim@-1", "sim@1@2", "@1", "a b", "sim@99999999999999999999"]
        {
            check(text, None);
        }
    }
}
