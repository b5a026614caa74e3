//! Files that belong to no descriptor and no mapping: those that the user named, and companions of written files.
//!
//! Those that were there at the checkpoint are kept; what was not there is moved aside at a rollback, as a program might
//! take it for its own: a hot journal of sqlite that is younger than its database would spoil it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use hdcr_image::{Record, Tag};
use hdcr_layout::MAGIC;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::contents::{self, Met, Uses, note};
use super::{data, reopen};
use crate::capture::Capture;
use crate::checkpoint::{FilePolicy, FileRequest};
use crate::error::{Error, Owner, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::rights::Turn;
use crate::rollback::since::LONGEST_NAME;
use crate::rollback::{Action, Newer, since};
use crate::route;
use crate::survey::Survey;

/// The list of inodes that belong to no descriptor and no mapping, but to a path that the user named; one in an image.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListedRecord {
    /// Their objects.
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) ids: Vec<u64>,
    /// Directories that were walked, and the names that were in each.
    #[prost(message, repeated, tag = "2")]
    pub(crate) directories: Vec<ListedDirectory>,
    /// Paths at which there was nothing.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub(crate) absent: Vec<Vec<u8>>,
    /// What is left as it is, with all below it: stores, images, and what the user said that nobody minds.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub(crate) left: Vec<Vec<u8>>,
}

/// A directory that the user named (or one below it).
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ListedDirectory {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) path: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) names: Vec<Vec<u8>>,
}

impl Record for ListedRecord {
    const TAG: Tag = Tag(0x0218);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// The object under which [`ListedRecord`] is stored: there is only one.
pub(crate) const LISTED: ObjectId = ObjectId(0);

/// What a program may put beside a file that it writes in place, and take as a part of it when it finds it there: the
/// journals of sqlite.
const COMPANIONS: [&str; 3] = ["-journal", "-wal", "-shm"];

/// Something at or below a path that the user named.
struct Found {
    path: PathBuf,
    /// By this very path.
    named: bool,
}

impl Found {
    fn below(&self, names: &[Vec<u8>]) -> impl Iterator<Item = Self> {
        names.iter().map(|name| Self { path: self.path.join(OsStr::from_bytes(name)), named: false })
    }
}

/// What is left as it is, with all below it.
struct Left(Vec<PathBuf>);

impl Left {
    fn of(files: &FileRequest) -> Self {
        // Below one that is ignored something else may be kept.
        let kept = |top: &Path| {
            let below = |path: &Path| path != top && path.starts_with(top);
            files.policies.iter().any(|(path, policy)| *policy != FilePolicy::Ignore && below(path))
                || files.always.iter().any(|path| below(path))
        };
        let ignored = files.policies.iter().filter(|(path, policy)| *policy == FilePolicy::Ignore && !kept(path));
        let all = files.own.iter().chain(ignored.map(|(path, _)| path));
        Self(all.map(|path| without_links(path)).collect())
    }

    fn has(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().as_bytes();
        // An image that is being written has such a name beside its own.
        let beside = |left: &PathBuf| {
            let image = left.file_name().unwrap_or_default().as_bytes();
            path.parent() == left.parent() && name.starts_with(&[b".", image, b"."].concat())
        };
        data::ours(name) || self.0.iter().any(|left| path.starts_with(left) || beside(left))
    }
}

/// Whether it is an image, or a part of one: whatever its name, it holds what a restore brings back.
fn is_image(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    let file = contents::open_quietly(path).map(File::from);
    file.is_some_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == MAGIC
}

/// What the user named.
fn named(files: &FileRequest) -> Vec<Found> {
    files.always.iter().map(|path| Found { path: without_links(path), named: true }).collect()
}

/// Says which files below directories that the user named are left out, because this user may not read them.
pub(crate) fn survey(survey: &mut Survey<'_>) {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let (left, mut todo) = (Left::of(&survey.request.files), named(&survey.request.files));
    while let Some(found) = todo.pop() {
        if left.has(&found.path) {
            continue;
        }
        let Ok(stat) = rustix::fs::lstat(&found.path) else { continue };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let readable = if kind == FileType::RegularFile {
            contents::open_quietly(&found.path).is_some()
        } else {
            kind != FileType::Directory
                || data::names(&found.path).map(|names| todo.extend(found.below(&names))).is_ok()
        };
        if !readable && !found.named {
            let cause =
                "it lies below a path of --files, and this user may not read it: a roll-back leaves it as it is";
            survey.note(since::note(
                "listed-unreadable",
                &found.path,
                cause,
                "let the user read it if the program writes it",
            ));
        }
    }
}

/// Notes every regular file at or below the paths that the user named, and the companions of files that are written. What
/// this user may not read is left alone, unless the user named it.
pub(crate) fn note_listed(cx: &mut Capture<'_>) -> Result<()> {
    let (left, mut todo) = (Left::of(&cx.request.files), named(&cx.request.files));
    let mut list = ListedRecord::default();
    for file in contents::written(cx) {
        let name = file.file_name().unwrap_or_default().to_owned();
        // Nothing has a longer name.
        let fits = |suffix: &&&str| name.len() + suffix.len() <= LONGEST_NAME;
        let companions = COMPANIONS.iter().filter(fits).map(|suffix| {
            let mut companion = name.clone();
            companion.push(suffix);
            file.with_file_name(companion)
        });
        // Where this user may not look, the program has nothing of the kind either.
        let companions = companions.filter(|path| !rustix::fs::lstat(path).is_err_and(|error| error == Errno::ACCESS));
        todo.extend(companions.map(|path| Found { path, named: true }));
    }
    while let Some(found) = todo.pop() {
        if left.has(&found.path) {
            continue;
        }
        let path = found.path.clone();
        let stat = match rustix::fs::lstat(&path) {
            Err(Errno::NOENT | Errno::NOTDIR) => {
                list.absent.push(path.into_os_string().into_vec());
                continue;
            }
            Err(Errno::ACCESS) if !found.named => continue,
            other => other.map_err(Error::system("looking at a listed file", path.display()))?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::RegularFile && !found.named && is_image(&path) {
            continue;
        }
        if kind == FileType::RegularFile && (found.named || contents::open_quietly(&path).is_some()) {
            let owner = Owner { path: Some(path.clone()), ..Owner::default() };
            let met = Met { link: path.as_os_str().as_bytes(), stat: &stat, door: Some(path.clone()), owner };
            list.ids.push(note(cx, &met, Uses { listed: true, ..Uses::default() }).0);
        } else if kind != FileType::Directory {
            super::names::note(cx, &path, &stat, true);
        } else {
            let names = match data::names(&path) {
                Err(error) if !found.named && super::held::is_denied(&error) => continue,
                other => other?,
            };
            todo.extend(found.below(&names));
            list.directories.push(ListedDirectory { path: path.into_os_string().into_vec(), names });
        }
    }
    if list == ListedRecord::default() {
        return Ok(());
    }
    list.left = left.0.into_iter().map(|path| path.into_os_string().into_vec()).collect();
    cx.frame(LISTED, &list)
}

/// A path that the user has given, as the kernel tells it: what leads to it by links may lead elsewhere later.
fn without_links(path: &Path) -> PathBuf {
    let above = path.parent().and_then(|above| above.canonicalize().ok());
    above.zip(path.file_name()).map_or_else(|| path.to_owned(), |(above, name)| above.join(name))
}

/// Finds or makes the files that the user named, and moves aside what has come since.
pub(crate) fn restore(cx: &mut Restore<'_>) -> Result<()> {
    if !cx.has::<ListedRecord>(LISTED) {
        return Ok(());
    }
    let list = cx.record::<ListedRecord>(LISTED)?;
    for id in &list.ids {
        let _turn = reopen::turn_of_user(cx, ObjectId(*id))?;
        reopen::unheld(cx, ObjectId(*id))?;
    }
    let _turn = Turn::to_some(cx.rights.of_root())?;
    let mut newer = Vec::new();
    for path in &list.absent {
        newer.push(cx.mapped(&contents::checked_path(path)?));
    }
    for directory in &list.directories {
        let path = cx.mapped(&contents::checked_path(&directory.path)?);
        let names = match route::directory(&path) {
            Ok(open) => data::names(&data::door(&open))?,
            Err(Errno::LOOP) => {
                cx.notes.push(route::barred("directory", &path));
                continue;
            }
            Err(_) => Vec::new(),
        };
        let unknown = names.into_iter().filter(|name| !directory.names.contains(name) && !data::ours(name));
        newer.extend(unknown.map(|name| path.join(OsStr::from_bytes(&name))));
    }
    let left = list.left.iter().map(|path| Ok(cx.mapped(&contents::checked_path(path)?)));
    let left = Left(left.collect::<Result<_>>()?);
    newer.retain(|path| !left.has(path));
    newer.sort();
    newer.dedup();
    for path in newer {
        if route::is_barred(&path) {
            cx.notes.push(route::barred("file", &path));
            continue;
        }
        let there = route::lstat(&path).map(|there| FileType::from_raw_mode(there.st_mode));
        if there == Ok(FileType::RegularFile) && !is_image(&path) {
            let to = data::free_beside(&path, "newer", || cx.plan.number());
            let cause = format!("it was not there at the checkpoint; moved to {}", to.display());
            cx.notes.push(since::note("rollback-aside", &path, cause, "remove it when it is not needed"));
            cx.plan.add(Action::Aside { path, to }, Newer::Go)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back_as_it_was() {
        let directories = vec![ListedDirectory { path: b"/a".to_vec(), names: vec![b"b".to_vec()] }];
        let record =
            ListedRecord { ids: vec![1, 2], directories, absent: vec![b"/c".to_vec()], left: vec![b"/d".to_vec()] };
        assert_eq!(ListedRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
