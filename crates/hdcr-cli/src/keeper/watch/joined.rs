//! What the kernel joins. An event about a file by a process is joined to one that is the same but for what has happened,
//! as long as that one was not read: it is heard at the place of the earlier one, and not where it belongs
//! (`fanotify_merge` in fs/notify/fanotify/fanotify.c). What follows from the order has to be found in other ways.
//!
//! Kept is what was heard since the queue was last empty: nothing later is joined to what comes before that.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_policy::touched::{Event, Identity, Kind, Replaced, Side};
use hdcr_sys::fanotify::{self, Happened};
use hdcr_sys::handle::Handle;

use super::{Heard, Watch, What, identity, places};

/// A file of a process.
type Its = (i32, Identity);

/// What was heard since the queue was last empty.
#[derive(Debug, Default)]
pub(super) struct Joined {
    /// Files that have got or lost names.
    names: BTreeSet<Its>,
    /// Files of which a removal was heard, with something that came before it; that they lost a name is still to be heard.
    owed: BTreeSet<Its>,
    /// How many removals were heard.
    removed: BTreeMap<Its, u64>,
    links: BTreeMap<Its, Links>,
    renames: BTreeMap<Its, Renames>,
    pub(super) directories: super::directories::Gone,
}

/// Further names that a file has got.
#[derive(Debug)]
struct Links {
    file_system: u64,
    file: Handle,
    made: Vec<PathBuf>,
}

#[derive(Debug)]
struct Renames {
    kind: Kind,
    /// What was heard: from and to.
    seen: Vec<(PathBuf, PathBuf)>,
    /// Where it is, as it was told.
    here: PathBuf,
    /// More was told than heard: it may be heard yet.
    ahead: bool,
}

impl Renames {
    /// By which names it may have come somewhere again: the last is where it is.
    fn way(&self, arrived: impl Fn(&Path) -> bool) -> Option<Vec<PathBuf>> {
        let mut ways = vec![vec![self.here.clone()]];
        let mut met = BTreeSet::from([self.here.clone()]);
        let mut next = 0;
        while let Some(way) = ways.get(next).cloned() {
            next += 1;
            let at = way.last()?;
            for (_, to) in self.seen.iter().filter(|(from, _)| from == at) {
                if !met.insert(to.clone()) {
                    continue;
                }
                let longer = [way.as_slice(), std::slice::from_ref(to)].concat();
                if arrived(to) {
                    return Some(longer.into_iter().skip(1).collect());
                }
                ways.push(longer);
            }
        }
        None
    }
}

impl Joined {
    /// A file has got or lost a name. Whether a removal that was heard before is all that this is about.
    pub(super) fn names(&mut self, pid: i32, file: &Identity) -> bool {
        let its = (pid, file.clone());
        self.names.insert(its.clone());
        self.owed.remove(&its)
    }

    /// A name of a file was made or removed.
    /// Whether it got its name by a link, as far as that is known from what came before.
    fn name(&mut self, happened: &Happened, path: &Path) -> bool {
        const ONLY_REMOVED: u64 = fanotify::DELETE | fanotify::DIRECTORY;
        let (Some(place), Some(file)) = (&happened.place, &happened.file) else { return false };
        let its = (happened.pid, places::identity(file));
        let named = self.names.contains(&its);
        if happened.mask & fanotify::CREATE != 0 && named {
            let none = || Links { file_system: place.file_system, file: file.clone(), made: Vec::new() };
            self.links.entry(its.clone()).or_insert_with(none).made.push(path.to_owned());
        }
        if happened.mask & fanotify::DELETE != 0 {
            *self.removed.entry(its.clone()).or_default() += 1;
            if happened.mask & !ONLY_REMOVED != 0 && !named {
                self.owed.insert(its);
            }
        }
        named
    }

    /// A file is renamed by somebody who has renamed it before: what was told is behind by these renames.
    fn behind(&self, its: &Its, from: &Path) -> Vec<PathBuf> {
        let entry = self.renames.get(its).filter(|renames| renames.here != from);
        entry.and_then(|renames| renames.way(|to| to == from)).unwrap_or_default()
    }

    fn renamed(&mut self, its: Its, kind: Kind, from: &Path, to: &Path) {
        let none = || Renames { kind, seen: Vec::new(), here: PathBuf::new(), ahead: false };
        let renames = self.renames.entry(its).or_insert_with(none);
        let seen = (from.to_owned(), to.to_owned());
        if !renames.seen.contains(&seen) {
            renames.seen.push(seen);
        }
        to.clone_into(&mut renames.here);
    }

    /// Files that are not where they were told to be, with the ways to where they are.
    fn astray(&self) -> BTreeMap<Its, Vec<PathBuf>> {
        // Who was never renamed away from where it is has not come away from there unheard.
        let left = |renames: &&Renames| renames.seen.iter().any(|(from, _)| *from == renames.here);
        let there = |its: &Its, path: &Path| identity(path).is_some_and(|there| there == its.1);
        let left = self.renames.iter().filter(|(_, renames)| left(renames));
        let away = left.filter(|(its, renames)| !there(its, &renames.here));
        away.filter_map(|(its, renames)| Some((its.clone(), renames.way(|to| there(its, to))?))).collect()
    }

    /// Who is told to be at a name, of the files that a process has renamed.
    fn at(&self, pid: i32, path: &Path) -> Option<&Its> {
        let mut its = self.renames.iter().filter(|(its, renames)| its.0 == pid && renames.here == path);
        its.next().map(|(its, _)| its)
    }

    /// The queue is empty.
    fn over(&mut self) {
        let renames = mem::take(&mut self.renames).into_iter().filter(|(_, renames)| renames.ahead);
        let renames = renames.map(|(its, renames)| (its, Renames { ahead: false, ..renames })).collect();
        *self = Self { renames, ..Self::default() };
    }
}

impl Watch {
    /// A rename is about to be told.
    pub(super) fn join_rename(&mut self, pid: i32, kind: Kind, identity: &Identity, names: (&Path, &Path)) {
        let its = (pid, identity.clone());
        for to in self.joined.behind(&its, names.0) {
            self.rename_again(&its, &to);
        }
        self.joined.renamed(its, kind, names.0, names.1);
    }

    /// Something is about to be told of a file under one of its names. Whether it has got or lost a name before.
    pub(super) fn join_name(&mut self, happened: &Happened, path: &Path) -> bool {
        let named = self.joined.name(happened, path);
        let Some(file) = &happened.file else { return named };
        let its = (happened.pid, places::identity(file));
        // A further name is not where it has gone.
        if happened.mask & fanotify::CREATE == 0 {
            for to in self.joined.behind(&its, path) {
                self.rename_again(&its, &to);
            }
        }
        named
    }

    /// Whether one that was made then may have been there when the job was counted last.
    fn was_there(&self, born: Option<Duration>) -> bool {
        born.is_none_or(|born| self.queue.table().marked().is_none_or(|at| born < at))
    }

    /// Whether a file may have been there then.
    pub(super) fn may_be_old(&self, happened: &Happened) -> bool {
        let (Some(place), Some(file)) = (&happened.place, &happened.file) else { return true };
        self.was_there(self.places.links(place.file_system, file).1)
    }

    /// Tells that a file has gone once more to where it went before, or has changed places once more.
    fn rename_again(&mut self, its: &Its, to: &Path) {
        let other = self.joined.at(its.0, to).cloned();
        let told = |(other, renames): (&Its, &Renames)| (other.0 == its.0).then(|| renames.here.clone());
        let here = self.joined.renames.get(its).map(|renames| renames.here.clone());
        if self.joined.renames.iter().filter_map(told).filter(|told| Some(told) == here.as_ref()).count() > 1 {
            // One of them is not there, and not known to be elsewhere.
            self.lose();
        }
        let Some(renames) = self.joined.renames.get_mut(its) else { return };
        let (kind, from) = (renames.kind, mem::replace(&mut renames.here, to.to_owned()));
        if kind == Kind::Directory {
            self.places.renamed(&from, to);
        }
        let one = Side { path: from.clone(), kind, identity: its.1.clone() };
        let back = (to.to_owned(), from.clone());
        let other = other.and_then(|other| Some((self.joined.renames.get_mut(&other)?, other)));
        if let Some((renames, (_, identity))) = other.filter(|(renames, _)| renames.seen.contains(&back)) {
            renames.here.clone_from(&from);
            let other = Side { path: to.to_owned(), kind: renames.kind, identity };
            match (kind, other.kind) {
                (Kind::Directory, Kind::Directory) => self.places.exchanged(to, &from),
                (Kind::File, Kind::Directory) => self.places.renamed(to, &from),
                (_, Kind::File) => {}
            }
            return self.push(its.0, &Identity::new(), Event::Exchanged(one, other));
        }
        let Side { path: from, identity, .. } = one;
        let replaced = Replaced::No;
        self.push(its.0, &Identity::new(), Event::Renamed { from, to: to.to_owned(), kind, replaced, identity });
    }

    /// All was heard that there is: what was not heard because it was joined is told.
    pub(super) fn joined(&mut self) {
        let mut astray = self.joined.astray();
        // Each goes where nobody is told to be; two may change places.
        while let Some((its, to)) = self.goes_on(&astray) {
            self.rename_again(&its, &to);
            let others = self.joined.renames.iter_mut().filter(|(other, _)| other.0 == its.0);
            let here: BTreeMap<Its, PathBuf> =
                others.map(|(other, renames)| (other.clone(), renames.here.clone())).collect();
            astray.retain(|other, way| {
                let passed = way.iter().position(|name| Some(name) == here.get(other));
                way.drain(..passed.map_or(0, |passed| passed + 1));
                !way.is_empty()
            });
            if let Some(renames) = self.joined.renames.get_mut(&its) {
                renames.ahead = true;
            }
        }
        if !astray.is_empty() {
            self.lose();
        }
        self.replaced_unheard();
        self.replaced_directories();
        self.joined.over();
    }

    /// The next of those that are astray whose next name is free, or that of one that changes places with it.
    fn goes_on(&self, astray: &BTreeMap<Its, Vec<PathBuf>>) -> Option<(Its, PathBuf)> {
        let free = |its: &Its, to: &Path| {
            let here = self.joined.renames.get(its).map(|renames| renames.here.as_path());
            // Who is told to be there and is not, nor anywhere else, is gone.
            let there = |other: &Its| identity(to).is_some_and(|there| there == other.1);
            self.joined.at(its.0, to).is_none_or(|other| match astray.get(other) {
                Some(way) => way.first().map(PathBuf::as_path) == here,
                None => other == its || !there(other),
            })
        };
        let mut next = astray.iter().filter_map(|(its, way)| Some((its, way.first()?)));
        next.find(|(its, to)| free(its, to)).map(|(its, to)| (its.clone(), to.clone()))
    }

    /// That a rename has replaced a file is not heard where it belongs if the file had got another name just before: there
    /// are fewer names then than were heard of.
    fn replaced_unheard(&mut self) {
        let of = |heard: &Heard| match &heard.what {
            What::Event(Event::Renamed { kind: Kind::File, replaced: Replaced::Unknown, .. }) => Some(heard.pid),
            What::Event(_) | What::Names { .. } => None,
        };
        if self.joined.links.is_empty() {
            return;
        }
        let renamers: BTreeSet<i32> = self.queue.waiting().iter().filter_map(of).collect();
        let missing = self.joined.links.iter().filter(|((pid, _), _)| renamers.contains(pid)).filter(|(its, links)| {
            let removed = self.joined.removed.get(*its).copied().unwrap_or_default();
            let (names, born) = self.places.links(links.file_system, &links.file);
            let names = usize::try_from(names.saturating_add(removed));
            // One that was made without a name has one less; nothing that was made since is missed.
            self.was_there(born) && names.is_ok_and(|names| names < 1 + links.made.len())
        });
        let replaced: BTreeSet<(i32, PathBuf)> =
            missing.flat_map(|(its, links)| self.likely(its.0, links).into_iter().map(|to| (its.0, to))).collect();
        let unheard = |(place, heard): (usize, &Heard)| match &heard.what {
            What::Event(event @ Event::Renamed { to, kind: Kind::File, replaced: Replaced::Unknown, .. })
                if replaced.contains(&(heard.pid, to.clone())) =>
            {
                Some((place, event.clone()))
            }
            What::Event(_) | What::Names { .. } => None,
        };
        for (place, mut event) in self.queue.waiting().iter().enumerate().filter_map(unheard).collect::<Vec<_>>() {
            if let Event::Renamed { replaced, .. } = &mut event {
                *replaced = Replaced::Yes;
            }
            self.queue.amend(place, event);
        }
    }

    /// The names that renames have put in the place of a name of a file, as far as that can be told: what has a like name.
    fn likely(&self, pid: i32, links: &Links) -> Vec<PathBuf> {
        let targets =
            self.queue.waiting().iter().filter(|heard| heard.pid == pid).filter_map(|heard| match &heard.what {
                What::Event(Event::Renamed { to, kind: Kind::File, replaced: Replaced::Unknown, .. }) => {
                    Some(to.clone())
                }
                What::Event(_) | What::Names { .. } => None,
            });
        let targets: Vec<PathBuf> = targets.collect();
        let is_it = |to: &&PathBuf| links.made.contains(to) || self.queue.table().knows(to);
        let like = |to: &&PathBuf| {
            let of = |name: &PathBuf| name.parent() == to.parent() || name.file_name() == to.file_name();
            links.made.iter().any(of)
        };
        let (known, near): (Vec<_>, Vec<_>) =
            (targets.iter().filter(is_it).cloned().collect(), targets.iter().filter(like).cloned().collect());
        [known, near, targets].into_iter().find(|names| !names.is_empty()).unwrap_or_default()
    }
}
