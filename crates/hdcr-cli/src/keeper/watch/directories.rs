//! A rename puts a directory in the place of an empty one. That is not told as a removal: the one that was there only changes its
//! attributes, as by a chmod(2), and is no more.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hdcr_policy::touched::{Event, Identity, Kind, Replaced};
use hdcr_sys::fanotify::{self, Happened};

use super::{Heard, Watch, What, places};

/// Directories that are no more, and whose attributes have changed.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// Where they were, by process, before any rename to there was heard.
    at: BTreeSet<(i32, PathBuf)>,
    /// Those that were never met, and the directory that was renamed last by the same process: which may have replaced it, if
    /// nothing else has made it go.
    unmet: BTreeSet<(i32, Identity, Identity)>,
}

/// A rename of a directory that waits, and of which it is not known whether it has replaced something: where it went, and who.
fn renamed(heard: &Heard, pid: i32) -> Option<(&PathBuf, &Identity)> {
    match &heard.what {
        What::Event(Event::Renamed { to, kind: Kind::Directory, replaced: Replaced::Unknown, identity, .. })
            if heard.pid == pid =>
        {
            Some((to, identity))
        }
        What::Event(_) | What::Names { .. } => None,
    }
}

impl Watch {
    /// A directory has got other attributes.
    pub(super) fn hear_directory(&mut self, happened: &Happened) {
        let Some(place) = &happened.place else { return };
        if place.name != b"." || self.places.links(place.file_system, &place.directory).0 > 0 {
            return;
        }
        let (pid, gone, known) = (happened.pid, places::identity(&place.directory), self.places.known(place));
        let fits = |heard: &Heard| {
            renamed(heard, pid).is_some_and(|(to, who)| *who != gone && known.as_ref().is_none_or(|known| known == to))
        };
        let position = self.queue.waiting().iter().rposition(fits);
        match (position, known) {
            (Some(position), Some(_)) => {
                self.places.gone(place.file_system, &place.directory);
                self.has_replaced(position);
            }
            (Some(position), None) => {
                let heard = self.queue.waiting().get(position).and_then(|heard| renamed(heard, pid));
                let unmet = heard.map(|(_, who)| (pid, gone, who.clone()));
                self.joined.directories.unmet.extend(unmet);
            }
            (None, Some(known)) => drop(self.joined.directories.at.insert((pid, known))),
            (None, None) => {}
        }
    }

    /// Whether a rename to there that is heard now has replaced a directory of which was heard before, as it was joined.
    pub(super) fn replaces_directory(&mut self, pid: i32, to: &Path) -> Replaced {
        let had = self.joined.directories.at.remove(&(pid, to.to_owned()));
        if had { Replaced::Yes } else { Replaced::Unknown }
    }

    /// A directory was removed: no rename has replaced it.
    pub(super) fn removed_directory(&mut self, happened: &Happened, path: &Path) {
        const REMOVED: u64 = fanotify::DELETE | fanotify::DIRECTORY;
        if happened.mask & REMOVED != REMOVED {
            return;
        }
        let file = happened.file.as_ref().map(places::identity);
        self.joined.directories.at.remove(&(happened.pid, path.to_owned()));
        self.joined.directories.unmet.retain(|(_, gone, _)| Some(gone) != file.as_ref());
    }

    /// All was heard that there is.
    pub(super) fn replaced_directories(&mut self) {
        for (pid, _, who) in std::mem::take(&mut self.joined.directories.unmet) {
            let fits = |heard: &Heard| renamed(heard, pid).is_some_and(|(_, renamed)| *renamed == who);
            if let Some(position) = self.queue.waiting().iter().rposition(fits) {
                self.has_replaced(position);
            }
        }
    }

    fn has_replaced(&mut self, position: usize) {
        let heard = self.queue.waiting().get(position).map(|heard| heard.what.clone());
        if let Some(What::Event(mut event)) = heard {
            if let Event::Renamed { replaced, .. } = &mut event {
                *replaced = Replaced::Yes;
            }
            self.queue.amend(position, event);
        }
    }
}
