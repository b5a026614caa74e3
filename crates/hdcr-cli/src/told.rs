//! What a keeper that watches its job tells its workers: the files that the job has worked on, and what is to be undone.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_engine::rollback::since;
use hdcr_policy::touched::{Changes, Doubt, Kind};
use serde::{Deserialize, Serialize};

use crate::kinds::FilePolicy;
use crate::settings::Files;

/// A path whose name need not be text: each byte is a character.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Name(String);

impl From<&Path> for Name {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().iter().copied().map(char::from).collect())
    }
}

impl From<&Name> for PathBuf {
    fn from(name: &Name) -> Self {
        let bytes = name.0.chars().map(|character| u8::try_from(character).unwrap_or(b'?')).collect();
        Self::from(OsString::from_vec(bytes))
    }
}

/// The files that a job has worked on, the latest first.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Touched(pub(crate) Vec<Name>);

impl Touched {
    /// As many of them, from the first on, as have so many bytes together.
    pub(crate) fn within(paths: &[PathBuf], mut most: usize) -> Self {
        let fits = |path: &&PathBuf| {
            let rest = most.checked_sub(path.as_os_str().len());
            most = rest.unwrap_or(0);
            rest.is_some()
        };
        Self(paths.iter().take_while(fits).map(|path| Name::from(path.as_path())).collect())
    }

    /// As they are handed to the engine.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.0.iter().map(PathBuf::from).collect()
    }
}

impl From<&[PathBuf]> for Touched {
    fn from(paths: &[PathBuf]) -> Self {
        Self(paths.iter().map(|path| Name::from(path.as_path())).collect())
    }
}

/// What a job did to files since a checkpoint.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Since {
    aside: String,
    #[serde(with = "crate::paths")]
    shelter: PathBuf,
    newer: Vec<(Name, bool, Vec<u8>)>,
    moved: Vec<(Name, Name, Vec<u8>)>,
    directories: Vec<Name>,
    lost: Vec<Name>,
    written: Vec<Name>,
    lengths: Vec<(Name, u64, Duration)>,
    foreign: Vec<Name>,
    replaced: Vec<Name>,
    incomplete: bool,
    /// It was more than is kept.
    #[serde(default)]
    forgotten: bool,
    /// When something was heard last, where not all is known.
    #[serde(default)]
    heard: Option<Duration>,
    #[serde(default)]
    ignored: Vec<Name>,
    /// Of the newer ones those that are new names, perhaps of older files.
    #[serde(default)]
    further: Vec<Name>,
    /// Written under new names: perhaps older files.
    #[serde(default)]
    relinked: Vec<(Name, Vec<u8>)>,
    /// Of those whose length is known: what is cut off is kept.
    #[serde(default)]
    kept: Vec<Name>,
}

/// Whether what happens to a path is nobody's business.
fn ignored(files: &Files, path: &Path) -> bool {
    let fits = files.policies.iter().filter(|rule| path.starts_with(&rule.path));
    let longest = fits.max_by_key(|rule| rule.path.components().count());
    longest.is_some_and(|rule| rule.policy == FilePolicy::Ignore)
}

impl Since {
    /// From what the watch knows. `aside` names the directory for newer files in `shelter`.
    pub(crate) fn new(changes: &Changes, files: &Files, aside: String, shelter: PathBuf) -> Self {
        let counts = |path: &&PathBuf| !ignored(files, path);
        let names = |paths: &[PathBuf]| paths.iter().filter(counts).map(|path| Name::from(path.as_path())).collect();
        let doubts = |wanted: Doubt| {
            let doubtful = changes.doubtful.iter().filter(|(path, doubt)| *doubt == wanted && !ignored(files, path));
            doubtful.map(|(path, _)| Name::from(path.as_path())).collect()
        };
        let newer = changes.new.iter().filter(|new| !ignored(files, &new.at));
        let further = newer.clone().filter(|new| new.further).map(|new| Name::from(new.at.as_path())).collect();
        let relinked = changes.relinked.iter().filter(|(path, _)| !ignored(files, path));
        let moved = changes.moved.iter().filter(|moved| !ignored(files, &moved.at) && !ignored(files, &moved.home));
        let lengths = changes.lengths.iter();
        let rules = files.policies.iter().filter(|rule| rule.policy == FilePolicy::Ignore);
        Self {
            aside,
            shelter,
            newer: newer
                .map(|new| (Name::from(new.at.as_path()), new.kind == Kind::Directory, new.identity.clone()))
                .collect(),
            moved: moved
                .map(|moved| (Name::from(moved.at.as_path()), Name::from(moved.home.as_path()), moved.identity.clone()))
                .collect(),
            directories: names(&changes.directories),
            lost: names(&changes.lost),
            written: names(&changes.written),
            lengths: lengths.map(|length| (Name::from(length.path.as_path()), length.size, length.modified)).collect(),
            foreign: doubts(Doubt::Foreign),
            replaced: doubts(Doubt::Replaced),
            incomplete: changes.incomplete,
            forgotten: false,
            heard: None,
            ignored: rules.map(|rule| Name::from(rule.path.as_path())).collect(),
            further,
            relinked: relinked.map(|(path, identity)| (Name::from(path.as_path()), identity.clone())).collect(),
            kept: Vec::new(),
        }
    }

    /// What is cut off from these is kept: others may write to them, too.
    pub(crate) fn keeping<'a>(self, paths: impl Iterator<Item = &'a Path>) -> Self {
        Self { kept: paths.map(Name::from).collect(), ..self }
    }

    /// Of which nothing is known any more, but that something was. `aside` and `shelter` as in [`Since::new`].
    pub(crate) fn forgotten(aside: String, shelter: PathBuf) -> Self {
        Self { aside, shelter, incomplete: true, forgotten: true, ..Self::default() }
    }

    /// Forgets all of it but that it was.
    pub(crate) fn shortened(self) -> Self {
        Self::forgotten(self.aside, self.shelter)
    }

    /// As it counts when nobody has watched what came after it was heard: lengths say nothing any more.
    pub(crate) fn unwatched_later(self, heard: Option<Duration>) -> Self {
        // Where something was missed before, nobody knows when the last was done.
        let heard = self.heard.or(heard.filter(|_| !self.incomplete));
        Self { incomplete: true, heard, ..self.without_lengths() }
    }

    /// As it counts when others may have written to the files meanwhile.
    pub(crate) fn without_lengths(self) -> Self {
        Self { lengths: Vec::new(), ..self }
    }

    /// With what was done after it, by somebody else's account: that is undone first.
    pub(crate) fn with_later(self, later: Self) -> Self {
        fn both<T>(mut first: Vec<T>, then: Vec<T>) -> Vec<T> {
            first.extend(then);
            first
        }
        Self {
            newer: both(later.newer, self.newer),
            moved: both(later.moved, self.moved),
            directories: both(later.directories, self.directories),
            lost: both(later.lost, self.lost),
            written: both(later.written, self.written),
            foreign: both(later.foreign, self.foreign),
            replaced: both(later.replaced, self.replaced),
            incomplete: later.incomplete || self.incomplete,
            forgotten: later.forgotten || self.forgotten,
            heard: later.heard.or(self.heard),
            ignored: later.ignored,
            further: both(later.further, self.further),
            relinked: both(later.relinked, self.relinked),
            lengths: Vec::new(),
            kept: Vec::new(),
            aside: self.aside,
            shelter: self.shelter,
        }
    }

    /// As it is handed to the engine.
    pub(crate) fn for_engine(&self) -> since::Since {
        let paths = |names: &[Name]| names.iter().map(PathBuf::from).collect();
        let doubts = |names: &[Name], why: &'static str| -> Vec<(PathBuf, &'static str)> {
            names.iter().map(|name| (PathBuf::from(name), why)).collect()
        };
        let further: BTreeSet<&str> = self.further.iter().map(|name| name.0.as_str()).collect();
        let newer = self.newer.iter().map(|(at, directory, identity)| since::Newer {
            at: at.into(),
            directory: *directory,
            further: further.contains(at.0.as_str()),
            identity: identity.clone(),
        });
        let moved = self.moved.iter().map(|(at, home, identity)| since::Moved {
            at: at.into(),
            home: home.into(),
            identity: identity.clone(),
        });
        let lengths = self.lengths.iter().map(|(path, size, modified)| since::Length {
            path: path.into(),
            size: *size,
            modified: (i64::try_from(modified.as_secs()).unwrap_or(0), modified.subsec_nanos()),
            kept: self.kept.contains(path),
        });
        let foreign = "somebody else has worked on it since the checkpoint, too";
        let replaced = "it came to its name by a rename since the checkpoint, and may have replaced another one";
        since::Since {
            aside: OsStr::new(&self.aside).to_owned(),
            shelter: self.shelter.clone(),
            newer: newer.collect(),
            moved: moved.collect(),
            directories: paths(&self.directories),
            lost: paths(&self.lost),
            written: paths(&self.written),
            relinked: self.relinked.iter().map(|(path, identity)| (path.into(), identity.clone())).collect(),
            lengths: lengths.collect(),
            doubtful: [doubts(&self.foreign, foreign), doubts(&self.replaced, replaced)].concat(),
            incomplete: self.incomplete,
            forgotten: self.forgotten,
            heard: self.heard,
            ignored: paths(&self.ignored),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_later_is_undone_first() {
        let one = |name: &str| vec![Name(name.to_owned())];
        let since =
            |name: &str, incomplete| Since { written: one(name), lost: one(name), incomplete, ..Since::default() };
        let both = since("earlier", true).with_later(since("later", false)).for_engine();
        assert_eq!(both.written, ["later", "earlier"].map(PathBuf::from));
        assert!(both.incomplete && both.lengths.is_empty());
    }

    #[test]
    fn names_that_are_no_text_arrive() {
        let paths = [PathBuf::from(OsStr::from_bytes(b"/a\xff\n")), PathBuf::from("/\u{e4}")];
        let text = serde_json::to_string(&Touched::from(paths.as_slice())).unwrap();
        assert_eq!(serde_json::from_str::<Touched>(&text).unwrap().paths(), paths);
        assert_eq!(Touched::within(&paths, 7).paths(), paths);
        assert_eq!(Touched::within(&paths, 6).paths(), paths[..1]);
    }
}
