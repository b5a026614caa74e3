//! Files and directories that are not where they were at the checkpoint, brought home.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::{LOOK, Newer, Since, aside, make_again, note, there};
use crate::error::{Error, Result};
use crate::resource::data;
use crate::restore::Restore;
use crate::rights::Turn;
use crate::rollback::{moving, rename};
use crate::route;

/// Something that is not at home.
struct Moved {
    at: PathBuf,
    home: PathBuf,
    directory: bool,
}

/// What is not where it was at the checkpoint, as it lies now.
#[derive(Default)]
struct Away {
    moved: Vec<Moved>,
    /// Which of them lies where, and which belongs where: those that are still to be moved.
    at: BTreeSet<(PathBuf, usize)>,
    homes: BTreeMap<PathBuf, Vec<usize>>,
    /// Those that are newer than the checkpoint.
    directories: Vec<Newer>,
    /// Files of which is written down that they go home, and which do so together: the disk is waited for once.
    going: Vec<(PathBuf, PathBuf)>,
    /// Where they go.
    taken: BTreeSet<PathBuf>,
}

impl Away {
    fn add(&mut self, moved: Moved) {
        let number = self.moved.len();
        self.at.insert((moved.at.clone(), number));
        self.homes.entry(moved.home.clone()).or_default().push(number);
        self.moved.push(moved);
    }

    /// One that belongs there, which is about to be moved.
    fn take(&mut self, home: &Path) -> Option<Moved> {
        let numbers = self.homes.get_mut(home)?;
        let number = numbers.pop()?;
        let Moved { at, home, directory } = self.moved.get(number)?;
        self.at.remove(&(at.clone(), number));
        Some(Moved { at: at.clone(), home: home.clone(), directory: *directory })
    }

    /// Those that lie at or below a path.
    fn below<'s>(&'s self, path: &'s Path) -> impl Iterator<Item = &'s (PathBuf, usize)> {
        let first = (path.to_owned(), 0);
        self.at.range((Bound::Included(first), Bound::Unbounded)).take_while(move |(at, _)| at.starts_with(path))
    }

    /// Whether something lies at a path that belongs elsewhere.
    fn is_in_the_way(&self, path: &Path) -> bool {
        let mut there = self.below(path).take_while(|(at, _)| at == path);
        there.any(|(_, number)| self.moved.get(*number).is_some_and(|moved| moved.home != path))
    }

    /// Something was renamed, with all that is in it.
    fn carry(&mut self, from: &Path, to: &Path) {
        let carried_ones: Vec<(PathBuf, usize)> = self.below(from).cloned().collect();
        for (at, number) in carried_ones {
            let now = carried(&at, from, to);
            self.at.remove(&(at, number));
            self.at.insert((now.clone(), number));
            if let Some(moved) = self.moved.get_mut(number) {
                moved.at = now;
            }
        }
        for newer in &mut self.directories {
            newer.at = carried(&newer.at, from, to);
        }
    }

    /// Those of which it is written down go home.
    fn go(&mut self, cx: &mut Restore<'_>) -> Result<()> {
        self.taken.clear();
        if self.going.is_empty() {
            return Ok(());
        }
        let _turn = Turn::to_some(cx.rights.of_root())?;
        cx.plan.sync()?;
        for (at, home) in std::mem::take(&mut self.going) {
            rename(&at, &home).map_err(Error::system("moving a file", at.display()))?;
            cx.contents.goes_on();
        }
        Ok(())
    }

    /// Moves at once, to be moved back when the restore fails.
    fn move_now(&mut self, cx: &mut Restore<'_>, from: &Path, to: &Path) -> Result<()> {
        self.go(cx)?;
        cx.plan.will_undo(moving(from, to))?;
        rename(from, to).map_err(Error::system("moving a file", from.display()))?;
        self.carry(from, to);
        Ok(())
    }
}

/// Makes removed directories again and renames files back: outer ones first, so that what lies in a directory finds it.
/// Returns the newer directories that have not gone aside.
pub(super) fn bring(
    cx: &mut Restore<'_>,
    directories: Vec<Newer>,
    since: &Since,
    shelter: &Path,
) -> Result<Vec<Newer>> {
    let mut away = Away { directories, ..Away::default() };
    {
        let _turn = Turn::to_some(cx.rights.of_root())?;
        for moved in &since.moved {
            let Some(file) = there(cx, &moved.at, &moved.identity, None) else { continue };
            let stat = rustix::fs::fstat(&file).map_err(Error::system("looking at a file", moved.at.display()))?;
            let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            away.add(Moved { at: moved.at.clone(), home: moved.home.clone(), directory });
        }
    }
    let homes = away.moved.iter().map(|moved| moved.home.clone());
    let mut wanted: Vec<PathBuf> = since.directories.iter().cloned().chain(homes).collect();
    wanted.sort_by_cached_key(|place| place.components().count());
    for place in wanted {
        make_room(cx, &mut away, since, shelter, &place)?;
        let _turn = Turn::to_some(cx.rights.of_root())?;
        if let Some(moved) = away.take(&place) {
            move_home(cx, &mut away, moved)?;
        } else {
            away.go(cx)?;
            make_again(cx, &place)?;
        }
        cx.contents.goes_on();
    }
    away.go(cx)?;
    Ok(away.directories)
}

/// What lies where something belongs, and belongs elsewhere itself, goes out of the way.
fn make_room(cx: &mut Restore<'_>, away: &mut Away, since: &Since, shelter: &Path, place: &Path) -> Result<()> {
    if let Some(position) = away.directories.iter().position(|newer| newer.at == place) {
        away.go(cx)?;
        let newer = away.directories.swap_remove(position);
        if let Some(to) = aside(cx, &newer, since, shelter)? {
            away.carry(place, &to);
        }
    }
    if away.is_in_the_way(place) {
        let _turn = Turn::to_some(cx.rights.of_root())?;
        let room = data::free_beside(place, "moved", || cx.plan.number());
        away.move_now(cx, place, &room)?;
    }
    Ok(())
}

fn move_home(cx: &mut Restore<'_>, away: &mut Away, Moved { at, home, directory }: Moved) -> Result<()> {
    if at == home {
        return Ok(());
    }
    let is_empty = || route::lstat(&home).is_err_and(|error| error == Errno::NOENT);
    if away.taken.contains(&home) || !is_empty() {
        // What is about to go may lie there still.
        away.go(cx)?;
    }
    if !is_empty() || home.parent().is_none_or(|above| route::directory(above).is_err()) {
        let cause = format!("it was {} at the checkpoint, and something else lies there now", home.display());
        cx.notes.push(note("rollback-left", &at, cause, LOOK));
        return Ok(());
    }
    if directory || away.below(&at).next().is_some() {
        return away.move_now(cx, &at, &home);
    }
    cx.plan.will_move(&at, &home)?;
    away.taken.insert(home.clone());
    away.going.push((at, home));
    Ok(())
}

/// Where something is after it, or a directory above it, was renamed.
fn carried(path: &Path, from: &Path, to: &Path) -> PathBuf {
    match path.strip_prefix(from) {
        Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
        Ok(rest) => to.join(rest),
        Err(_) => path.to_owned(),
    }
}
