//! Overlays (overlayfs). What is done in one is done in its upper directory, too, behind its back, and heard there: that is not
//! to be undone there. Where the overlay itself can be watched (it takes the mount option `nfs_export`), all is heard of it by its
//! own names; else what is done in it is not known, and that is said.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hdcr_policy::touched::{Changes, Event, Identity};
use hdcr_sys::fanotify::{self, Happened};

use super::super::Keeper;
use super::{Watch, places};
use crate::failure::Obstacle;
use crate::parts;

/// So many processes of the job are asked what they have mounted.
const ASKED: usize = 32;

/// What lies behind overlays.
#[derive(Debug, Default)]
pub(super) struct Overlays {
    /// The devices that are watched.
    watched: BTreeSet<String>,
    /// The upper and working directories, and the overlay of each that is not watched.
    behind: BTreeMap<PathBuf, Option<PathBuf>>,
    /// Something was done in one that is not watched, since the last mark.
    lost: bool,
    /// Where; still to be told.
    untold: Option<PathBuf>,
    told: bool,
}

/// What lies behind an overlay.
#[derive(PartialEq, Eq, Debug)]
struct Overlay {
    device: String,
    at: PathBuf,
    upper: PathBuf,
    work: PathBuf,
}

/// A line of `mountinfo`, if it is about an overlay that may be written to.
fn parse(line: &[u8]) -> Option<Overlay> {
    let mut words = line.split(|byte| *byte == b' ');
    let device = String::from_utf8_lossy(words.nth(2)?).into_owned();
    let at = places::unescaped(words.nth(1)?);
    let mut words = words.skip_while(|word| *word != b"-").skip(1);
    let options = words.next().filter(|kind| *kind == b"overlay").and_then(|_| words.nth(1))?;
    let option = |name: &[u8]| {
        let values = options.split(|byte| *byte == b',').filter_map(|option| option.strip_prefix(name));
        values.map(places::unescaped).next()
    };
    Some(Overlay { device, at, upper: option(b"upperdir=")?, work: option(b"workdir=")? })
}

impl Overlay {
    /// Its upper and its working directory. They may be said from where the overlay was mounted: most likely above it.
    fn directories(&self) -> Option<[PathBuf; 2]> {
        let here = std::env::current_dir().ok();
        let mut bases = self.at.ancestors().chain(here.as_deref());
        bases.find_map(|base| {
            let [upper, work] = [&self.upper, &self.work].map(|path| base.join(path).canonicalize().ok());
            // It keeps this one there.
            let work = work.filter(|work| work.join("work").is_dir())?;
            Some([upper.filter(|upper| upper.is_dir())?, work])
        })
    }
}

impl Overlays {
    pub(super) fn new(watched: BTreeSet<String>) -> Self {
        let mut overlays = Self { watched, ..Self::default() };
        overlays.look(&fs::read("/proc/self/mountinfo").unwrap_or_default());
        overlays
    }

    fn look(&mut self, mountinfo: &[u8]) {
        for overlay in mountinfo.split(|byte| *byte == b'\n').filter_map(parse) {
            let unwatched = (!self.watched.contains(&overlay.device)).then(|| overlay.at.clone());
            for directory in overlay.directories().into_iter().flatten() {
                self.behind.entry(directory).or_insert_with(|| unwatched.clone());
            }
        }
    }

    /// Whether a path lies behind one.
    pub(super) fn hides(&self, path: &Path) -> bool {
        self.around(path).is_some()
    }

    fn around(&self, path: &Path) -> Option<&Option<PathBuf>> {
        if self.behind.is_empty() {
            return None;
        }
        path.ancestors().find_map(|above| self.behind.get(above))
    }

    /// Counts from here.
    pub(super) fn mark(&mut self) {
        self.lost = false;
    }

    /// Leaves out what lies behind one.
    pub(super) fn leave_out(&self, mut changes: Changes) -> Changes {
        if self.behind.is_empty() {
            return changes;
        }
        let count = |changes: &Changes| {
            changes.new.len()
                + changes.moved.len()
                + changes.directories.len()
                + changes.lost.len()
                + changes.written.len()
        };
        let before = count(&changes);
        let stays = |path: &PathBuf| !self.hides(path);
        changes.new.retain(|new| stays(&new.at));
        changes.moved.retain(|moved| stays(&moved.at) && stays(&moved.home));
        changes.directories.retain(stays);
        changes.lost.retain(stays);
        changes.written.retain(stays);
        changes.relinked.retain(|(path, _)| stays(path));
        changes.lengths.retain(|length| stays(&length.path));
        changes.doubtful.retain(|(path, _)| stays(path));
        changes.incomplete |= count(&changes) < before;
        changes
    }
}

impl Watch {
    /// Looks for overlays that were mounted since, also by the job in a mount namespace of its own.
    pub(super) fn look_for_overlays(&mut self) {
        let own = fs::read_link("/proc/self/ns/mnt").ok();
        let elsewhere = |pid: &i32| fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|there| Some(there) != own);
        let others: Vec<i32> = self.kin.members().take(ASKED).filter(elsewhere).collect();
        let others = others.into_iter().map(|pid| format!("/proc/{pid}/mountinfo"));
        for path in std::iter::once("/proc/self/mountinfo".to_owned()).chain(others) {
            self.overlays.look(&fs::read(path).unwrap_or_default());
        }
    }

    /// Whether something that the job has done was done behind an overlay. Names that it got or lost there are no others.
    pub(super) fn is_behind(&mut self, happened: &Happened, path: &Path) -> bool {
        let Some(overlay) = self.overlays.around(path) else { return false };
        if let Some(overlay) = overlay.clone() {
            if !self.overlays.told {
                self.overlays.told = true;
                self.overlays.untold = Some(overlay);
            }
            if !std::mem::replace(&mut self.overlays.lost, true) {
                self.lose();
            }
        }
        let renamed = happened.mask & fanotify::RENAME != 0;
        let file = happened.file.as_ref().filter(|_| !renamed).map_or_else(Identity::new, places::identity);
        if happened.mask & (fanotify::CREATE | fanotify::DELETE | fanotify::RENAME) != 0 {
            self.push(happened.pid, &file, Event::Unsure(path.to_owned()));
        }
        true
    }

    /// Whether a directory lies where nothing is heard.
    fn is_blind_in(&self, directory: &Path) -> bool {
        rustix::fs::stat(directory).is_ok_and(|facts| {
            let (major, minor) = (rustix::fs::major(facts.st_dev), rustix::fs::minor(facts.st_dev));
            let is_overlay = rustix::fs::statfs(directory).is_ok_and(|facts| facts.f_type == OVERLAY);
            is_overlay && !self.overlays.watched.contains(&format!("{major}:{minor}"))
        })
    }
}

/// `OVERLAYFS_SUPER_MAGIC` (`<linux/magic.h>`).
const OVERLAY: i64 = 0x794c_7630;

impl Keeper {
    /// The job begins in a directory of an overlay that cannot be watched: says so.
    pub(super) fn tell_blind(&mut self) {
        let Ok(here) = std::env::current_dir() else { return };
        if let Some(watch) = self.watch.as_mut().filter(|watch| watch.is_blind_in(&here)) {
            watch.overlays.told = true;
            self.tell_notes(&[unwatched(&here)]);
        }
    }

    /// Says once that the job works in an overlay that cannot be watched.
    pub(in crate::keeper) fn tell_overlay(&mut self) {
        let untold = self.watch.as_mut().and_then(|watch| watch.overlays.untold.take());
        if let Some(overlay) = untold {
            self.tell_notes(&[unwatched(&overlay)]);
        }
    }
}

fn unwatched(overlay: &Path) -> Obstacle {
    let cause = "it lies in an overlay (overlayfs) that cannot be watched: of what the program does to files there, only those \
                 that are open at a checkpoint, and those of --files, are rolled back";
    Obstacle {
        object: "directory".to_owned(),
        path: Some(String::from_utf8_lossy(overlay.as_os_str().as_bytes()).into_owned()),
        cause: cause.to_owned(),
        remedy: "name with --files what the program opens and closes as it goes, or mount the overlay with \
                 index=on,nfs_export=on"
            .to_owned(),
        ..parts::unwatched()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_an_overlay_is_known() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        for name in ["m", "u", "w/work"] {
            fs::create_dir_all(place.join(name)).unwrap();
        }
        let here = place.display();
        let said = |upper: &str, work: &str| {
            format!("1 1 0:40 / {here}/m rw - overlay ov rw,lowerdir=l,upperdir={upper},workdir={work},index=on\n")
        };
        let full = said(&format!("{here}/u"), &format!("{here}/w"));
        for line in [said("u", "w"), full] {
            for watched in [BTreeSet::new(), BTreeSet::from(["0:40".to_owned()])] {
                let is_watched = !watched.is_empty();
                let mut overlays = Overlays { watched, ..Overlays::default() };
                overlays.look(line.as_bytes());
                for name in ["u/x", "u", "w/work"] {
                    let around = overlays.around(&place.join(name)).map(Option::is_none);
                    assert_eq!(around, Some(is_watched), "{line}");
                }
                assert!(!overlays.hides(&place.join("m/x")) && !overlays.hides(&place.join("ux")));
                let changes = Changes { lost: vec![place.join("u/x"), place.join("m/x")], ..Changes::default() };
                let left = overlays.leave_out(changes);
                assert_eq!((left.lost, left.incomplete), (vec![place.join("m/x")], true));
            }
        }
        assert_eq!(parse(b"1 1 0:40 / /m rw - overlay ov rw,lowerdir=l:k"), None);
        assert_eq!(parse(b"1 1 0:40 / /m rw - ext4 ov rw,upperdir=u,workdir=w"), None);
    }
}
