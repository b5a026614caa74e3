//! What a program that was killed together with whoever watched it may have done in its last moment: new names that nobody
//! has heard of, beside those that are known. They are named, as whose they are cannot be told.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{LAST_MOMENT, Since, changed, note};
use crate::resource::data;
use crate::restore::Restore;

/// An event is heard so long after it happened at most, but on a very busy machine.
const ON_THE_WAY: Duration = Duration::from_millis(100);
/// So many directories are looked at, so many names in each, and so many are told.
const DIRECTORIES: usize = 256;
const NAMES: usize = 10_000;
const TOLD: usize = 20;

const CAUSE: &str =
    "it was made or renamed in the moment in which the program was killed, perhaps by it: nobody has heard of it";
const REMEDY: &str = "look whether it is the program's, and move it away then";

/// Names what may be of the last moment; `known`: about these names nothing more is to be said.
pub(super) fn tell(cx: &mut Restore<'_>, since: &Since, known: &BTreeSet<PathBuf>) {
    let Some(heard) = since.heard else { return };
    let heard_of: BTreeSet<&Path> = since.written.iter().chain(&since.lost).map(PathBuf::as_path).collect();
    let is_ignored = |path: &Path| since.ignored.iter().any(|top| path.starts_with(top));
    let is_known = |path: &Path| known.contains(path) || heard_of.contains(path) || is_ignored(path);
    let when = heard.saturating_sub(ON_THE_WAY)..=heard.saturating_add(LAST_MOMENT);
    let entries = places(since).into_iter().filter_map(|place| fs::read_dir(place).ok());
    // What a roll-back that was killed has left under a name of ours goes by itself.
    let not_ours = |entry: &fs::DirEntry| !data::ours(entry.file_name().as_bytes());
    let entries = entries.flat_map(|entries| entries.flatten().take(NAMES)).filter(not_ours);
    let new = entries.filter(|entry| {
        let facts = entry.metadata().ok().filter(|facts| !facts.is_dir());
        facts.is_some_and(|facts| when.contains(&changed((facts.ctime(), facts.ctime_nsec().unsigned_abs()))))
    });
    let new: Vec<PathBuf> = new.map(|entry| entry.path()).filter(|path| !is_known(path)).take(TOLD).collect();
    cx.notes.extend(new.iter().map(|path| note("rollback-unheard", path, CAUSE, REMEDY)));
}

/// Where the program has worked since the checkpoint.
fn places(since: &Since) -> BTreeSet<&Path> {
    let newer = since.newer.iter().map(|newer| &newer.at);
    let moved = since.moved.iter().flat_map(|moved| [&moved.at, &moved.home]);
    let names = newer.chain(moved).chain(&since.lost).chain(&since.written);
    names.filter_map(|name| name.parent()).take(DIRECTORIES).collect()
}
