//! A rename puts a directory in the place of an empty one. That is not told as a removal: the one that was there only changes its
//! attributes, as by a chmod(2), and is no more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use hdcr_policy::touched::{Event, Identity, Kind, Replaced};
use hdcr_sys::fanotify::{self, Happened};

use super::{Heard, Watch, What, places};

/// Directories that are no more, and whose attributes have changed.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// Where they were, by process, before any rename to there was heard.
    at: BTreeSet<(i32, PathBuf)>,
    /// Those that were never met: where they were is not known. The rename of a directory by the same process that came right
    /// before has replaced it, or the next one, if nothing else has made it go.
    unmet: BTreeMap<(i32, Identity), Option<Identity>>,
}

/// A rename of a directory that waits, and of which it is not known whether it has replaced something: where it went, and
/// who.
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
        let Some(known) = known else {
            let last = self.queue.waiting().iter().rfind(|heard| heard.pid == pid);
            let who = last.and_then(|heard| renamed(heard, pid)).map(|(_, who)| who.clone());
            self.joined.directories.unmet.insert((pid, gone), who);
            return;
        };
        self.places.gone(place.file_system, &place.directory);
        let fits = |heard: &Heard| renamed(heard, pid).is_some_and(|(to, who)| *who != gone && *to == known);
        match self.queue.waiting().iter().rposition(fits) {
            Some(position) => self.has_replaced(position),
            None => drop(self.joined.directories.at.insert((pid, known))),
        }
    }

    /// Whether a rename to there that is heard now has replaced a directory of which was heard before, as it was joined.
    pub(super) fn replaces_directory(&mut self, pid: i32, to: &Path, who: &Identity) -> Replaced {
        let mut unmet = self.joined.directories.unmet.iter_mut();
        if let Some((_, by)) = unmet.find(|((by, _), replaced)| *by == pid && replaced.is_none()) {
            *by = Some(who.clone());
        }
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
        self.joined.directories.unmet.retain(|(_, gone), _| Some(gone) != file.as_ref());
    }

    /// All was heard that there is.
    pub(super) fn replaced_directories(&mut self) {
        for ((pid, _), by) in std::mem::take(&mut self.joined.directories.unmet) {
            let fits = |heard: &Heard| renamed(heard, pid).is_some_and(|(_, who)| by.as_ref() == Some(who));
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
