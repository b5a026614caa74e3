//! What has happened since one checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Changes, Doubt, Event, Identity, Kind, Length, Look, Moved, New, Past, Replaced, Side};

/// File systems take their times from a clock that stands still between two ticks.
const TICK: Duration = Duration::from_millis(20);

/// What was under a name at the checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// Something.
    Something,
    /// Not known.
    Unknown,
}

/// What is under a name now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Now {
    /// The file that had this name at the checkpoint.
    Old(PathBuf, Identity),
    /// One that was made since.
    New(Kind, Identity),
    /// Nothing.
    Nothing,
    /// Somebody else's.
    Foreign,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    at: Duration,
    incomplete: bool,
    before: BTreeMap<PathBuf, Before>,
    now: BTreeMap<PathBuf, Now>,
    written: BTreeSet<PathBuf>,
    lost: BTreeMap<PathBuf, Kind>,
    looks: BTreeMap<PathBuf, Look>,
    /// Files that were made since, and have the name yet under which they were made, or another one.
    made: BTreeSet<Identity>,
    /// Those that were not, but have got names since: how many.
    further: BTreeMap<Identity, u64>,
    /// Those that were written under one of these: which.
    relinked: BTreeMap<Identity, PathBuf>,
}

/// Takes everything below a directory out of a map by names.
pub(super) fn take_below<V>(map: &mut BTreeMap<PathBuf, V>, directory: &Path) -> Vec<(PathBuf, V)> {
    let names: Vec<PathBuf> = map
        .range(directory.to_owned()..)
        .map(|(name, _)| name)
        .take_while(|name| name.starts_with(directory))
        .filter(|name| *name != directory)
        .cloned()
        .collect();
    names.into_iter().filter_map(|name| map.remove_entry(&name)).collect()
}

/// Takes everything below two directories out of a map by names, with the names after these two were exchanged.
pub(super) fn take_both<V>(map: &mut BTreeMap<PathBuf, V>, one: &Path, other: &Path) -> Vec<(PathBuf, V)> {
    let (of_one, of_other) = (take_below(map, one), take_below(map, other));
    let of_one = of_one.into_iter().map(|(name, value)| (carried(&name, one, other), value));
    let of_other = of_other.into_iter().map(|(name, value)| (carried(&name, other, one), value));
    of_one.chain(of_other).collect()
}

/// The name of something in a directory after the directory was renamed.
pub(super) fn carried(name: &Path, from: &Path, to: &Path) -> PathBuf {
    match name.strip_prefix(from) {
        Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
        Ok(rest) => to.join(rest),
        Err(_) => name.to_owned(),
    }
}

impl State {
    pub(super) fn new(at: Duration) -> Self {
        Self {
            at,
            incomplete: false,
            before: BTreeMap::new(),
            now: BTreeMap::new(),
            written: BTreeSet::new(),
            lost: BTreeMap::new(),
            looks: BTreeMap::new(),
            made: BTreeSet::new(),
            further: BTreeMap::new(),
            relinked: BTreeMap::new(),
        }
    }

    /// In plain parts; `number` is that of the checkpoint.
    pub(super) fn past(&self, number: u64) -> Past {
        Past {
            number,
            at: self.at,
            incomplete: self.incomplete,
            before: self.before.iter().map(|(path, before)| (path.clone(), *before)).collect(),
            now: self.now.iter().map(|(path, now)| (path.clone(), now.clone())).collect(),
            written: self.written.iter().cloned().collect(),
            lost: self.lost.iter().map(|(path, kind)| (path.clone(), *kind)).collect(),
            further: self.further.iter().map(|(identity, names)| (identity.clone(), *names)).collect(),
            relinked: self.relinked(),
        }
    }

    /// From its parts.
    pub(super) fn of(past: Past) -> Self {
        let further: BTreeMap<Identity, u64> = past.further.into_iter().collect();
        let made = past.now.iter().filter_map(|(_, now)| match now {
            Now::New(Kind::File, identity) => Some(identity).filter(|identity| !further.contains_key(*identity)),
            Now::New(Kind::Directory, _) | Now::Old(..) | Now::Nothing | Now::Foreign => None,
        });
        Self {
            made: made.cloned().collect(),
            further,
            relinked: past.relinked.into_iter().map(|(path, identity)| (identity, path)).collect(),
            at: past.at,
            incomplete: past.incomplete,
            before: past.before.into_iter().collect(),
            now: past.now.into_iter().collect(),
            written: past.written.into_iter().collect(),
            lost: past.lost.into_iter().collect(),
            looks: BTreeMap::new(),
        }
    }

    fn relinked(&self) -> Vec<(PathBuf, Identity)> {
        self.relinked.iter().map(|(identity, path)| (path.clone(), identity.clone())).collect()
    }

    pub(super) fn at(&self) -> Duration {
        self.at
    }

    /// Whether it says what is under this very name.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.now.contains_key(path)
    }

    pub(super) fn knows(&self, path: &Path) -> bool {
        self.is_named(path) || self.is_in_new(path)
    }

    fn is_named(&self, path: &Path) -> bool {
        self.now.contains_key(path) || self.written.contains(path) || self.before.contains_key(path)
    }

    /// Whether it lies in a directory that the job has made.
    fn is_in_new(&self, path: &Path) -> bool {
        let above = path.ancestors().skip(1).find_map(|above| self.now.get(above));
        matches!(above, Some(Now::New(Kind::Directory, _)))
    }

    pub(super) fn tell(&mut self, event: &Event) {
        match event {
            Event::Created(path, kind, identity) => {
                if *kind == Kind::File {
                    self.further.remove(identity);
                    self.made.insert(identity.clone());
                }
                self.created(path, *kind, identity);
            }
            Event::Linked(path, identity) => {
                if !identity.is_empty() && !self.made.contains(identity) {
                    *self.further.entry(identity.clone()).or_default() += 1;
                }
                self.created(path, Kind::File, identity);
            }
            Event::Written(path, look) => self.wrote(path, *look),
            Event::Removed(path, kind) => self.removed(path, *kind),
            Event::Renamed { from, to, kind, replaced, identity } => {
                let moved = Moved { at: to.clone(), home: from.clone(), identity: identity.clone() };
                self.renamed(&moved, *kind, *replaced);
            }
            Event::Exchanged(one, other) => self.exchanged(one, other),
            Event::Seen(path, look) => self.seen(path, *look),
            Event::Foreign(path) => self.foreign(path),
            Event::ForeignGone(path) => self.foreign_gone(path),
            // In a directory of the job it is likelier the job's.
            Event::Unsure(path) if self.is_named(path) => self.foreign(path),
            Event::Unsure(_) => {}
            Event::Lost => self.incomplete = true,
        }
    }

    /// What is known under a name is another file now, with the same contents. Which it was.
    pub(super) fn placed(&mut self, path: &Path, identity: &Identity) -> Option<Identity> {
        let (Now::New(_, old) | Now::Old(_, old)) = self.now.get_mut(path)? else { return None };
        self.made.insert(identity.clone());
        Some(std::mem::replace(old, identity.clone()))
    }

    /// Which files it knows something of.
    pub(super) fn identities(&self) -> impl Iterator<Item = &Identity> {
        self.now.values().filter_map(|now| match now {
            Now::New(_, identity) | Now::Old(_, identity) => Some(identity),
            Now::Nothing | Now::Foreign => None,
        })
    }

    /// Files are others now, whatever their names.
    pub(super) fn replaced(&mut self, instead: &BTreeMap<Identity, Identity>) {
        for now in self.now.values_mut() {
            if let Now::New(_, identity) | Now::Old(_, identity) = now
                && let Some(other) = instead.get(identity)
            {
                self.made.insert(other.clone());
                identity.clone_from(other);
            }
        }
    }

    /// What is under a name: by what happened to it, else to a directory above it, else what always was.
    fn under(&self, path: &Path) -> Now {
        if let Some(now) = self.now.get(path) {
            return now.clone();
        }
        for directory in path.ancestors().skip(1) {
            match self.now.get(directory) {
                Some(Now::Old(home, _)) => {
                    return Now::Old(carried(path, directory, home), Identity::new());
                }
                Some(Now::New(..) | Now::Foreign) => return Now::Foreign,
                Some(Now::Nothing) | None => {}
            }
        }
        Now::Old(path.to_owned(), Identity::new())
    }

    fn note_before(&mut self, path: &Path, unless_known: Before) {
        if self.before.contains_key(path) {
            return;
        }
        let above = path.ancestors().skip(1).find_map(|directory| self.before.get(directory));
        let before = if above == Some(&Before::Nothing) { Before::Nothing } else { unless_known };
        self.before.insert(path.to_owned(), before);
    }

    fn lose(&mut self, now: &Now, kind: Kind) {
        match now {
            Now::Old(home, _) => drop(self.lost.insert(home.clone(), kind)),
            Now::New(_, identity) => {
                self.made.remove(identity);
                if let Some(names) = self.further.get_mut(identity) {
                    *names = names.saturating_sub(1);
                    if *names == 0 {
                        self.further.remove(identity);
                    }
                }
            }
            Now::Nothing | Now::Foreign => {}
        }
    }

    fn created(&mut self, path: &Path, kind: Kind, identity: &Identity) {
        self.note_before(path, Before::Nothing);
        if let Some(old) = self.now.get(path).cloned() {
            // Its removal was not seen.
            self.lose(&old, Kind::File);
        }
        self.now.insert(path.to_owned(), Now::New(kind, identity.clone()));
    }

    fn wrote(&mut self, path: &Path, look: Option<Look>) {
        // Open for writing is not yet written.
        if look.is_some_and(|look| look.changed.saturating_add(TICK) < self.at) {
            return;
        }
        match self.under(path) {
            Now::Old(home, _) => drop(self.written.insert(home)),
            Now::New(_, identity) if self.further.contains_key(&identity) => {
                self.relinked.insert(identity, path.to_owned());
            }
            Now::New(..) | Now::Nothing | Now::Foreign => {}
        }
    }

    fn removed(&mut self, path: &Path, kind: Kind) {
        let now = self.under(path);
        if matches!(&now, Now::Old(home, _) if home == path) {
            self.note_before(path, Before::Something);
        }
        self.lose(&now, kind);
        self.empty(path);
        if kind == Kind::Directory {
            drop(take_below(&mut self.looks, path));
        }
    }

    /// There is nothing under this name any more.
    fn empty(&mut self, path: &Path) {
        if self.before.get(path) == Some(&Before::Nothing) {
            self.before.remove(path);
            self.now.remove(path);
        } else {
            self.now.insert(path.to_owned(), Now::Nothing);
        }
    }

    /// What a rename takes from a name.
    fn taken_from(&mut self, from: &Path, identity: &Identity) -> Now {
        let what = match self.under(from) {
            Now::Old(home, _) => Now::Old(home, identity.clone()),
            Now::New(kind, _) => Now::New(kind, identity.clone()),
            // It came here without our notice.
            Now::Nothing | Now::Foreign => Now::Foreign,
        };
        if matches!(&what, Now::Old(home, _) if home == from) {
            self.note_before(from, Before::Something);
        }
        what
    }

    /// What a rename puts under a name.
    fn put(&mut self, to: &Path, what: Now) {
        // Back at home in its directory, wherever that is: as if nothing had happened.
        if let Now::Old(home, _) = &what {
            self.now.remove(to);
            if matches!(self.under(to), Now::Old(there, _) if there == *home) {
                self.lost.remove(home);
                if home == to {
                    self.before.remove(to);
                }
                return;
            }
        }
        self.now.insert(to.to_owned(), what);
    }

    fn put_below(&mut self, name: PathBuf, now: Now) {
        if matches!(now, Now::New(..) | Now::Old(..)) && !self.before.contains_key(&name) {
            self.note_before(&name, Before::Nothing);
        }
        self.now.insert(name, now);
    }

    fn exchanged(&mut self, one: &Side, other: &Side) {
        let from_one = self.taken_from(&one.path, &one.identity);
        let from_other = self.taken_from(&other.path, &other.identity);
        self.put(&other.path, from_one);
        self.put(&one.path, from_other);
        for (name, now) in take_both(&mut self.now, &one.path, &other.path) {
            self.put_below(name, now);
        }
    }

    fn renamed(&mut self, moved: &Moved, kind: Kind, replaced: Replaced) {
        let (from, to) = (moved.home.as_path(), moved.at.as_path());
        let what = self.taken_from(from, &moved.identity);
        match (self.now.get(to).cloned(), replaced) {
            (Some(there), _) => self.lose(&there, kind),
            (None, Replaced::Yes) => {
                let there = self.under(to);
                self.note_before(to, Before::Something);
                self.lose(&there, kind);
            }
            (None, Replaced::No) => self.note_before(to, Before::Nothing),
            (None, Replaced::Unknown) => self.note_before(to, Before::Unknown),
        }
        self.empty(from);
        if kind == Kind::Directory {
            // What is not there any more was not there in the one that had this name before.
            for (name, now) in take_below(&mut self.now, to) {
                if now != Now::Nothing {
                    self.now.insert(name, now);
                }
            }
        }
        self.put(to, what);
        if kind == Kind::Directory {
            for (name, now) in take_below(&mut self.now, from) {
                self.put_below(carried(&name, from, to), now);
            }
        }
    }

    fn seen(&mut self, path: &Path, look: Look) {
        // Unchanged since the checkpoint: so this was its length then.
        if look.changed.saturating_add(TICK) < self.at
            && let Now::Old(home, _) = self.under(path)
        {
            self.looks.entry(home).or_insert(look);
        }
    }

    fn foreign(&mut self, path: &Path) {
        if self.knows(path) {
            self.now.insert(path.to_owned(), Now::Foreign);
        }
    }

    /// Something of somebody else in a directory of the job is gone again; what the job has worked on as well stays in doubt.
    fn foreign_gone(&mut self, path: &Path) {
        if !self.is_named(path) {
            return;
        }
        if self.now.get(path) == Some(&Now::Foreign) && !self.before.contains_key(path) {
            self.now.remove(path);
        } else {
            self.foreign(path);
        }
    }

    pub(super) fn changes(&self) -> Changes {
        let mut changes = Changes { incomplete: self.incomplete, ..Changes::default() };
        for (at, now) in &self.now {
            match now {
                Now::Old(home, identity) => {
                    changes.moved.push(Moved { at: at.clone(), home: home.clone(), identity: identity.clone() });
                    self.doubt(at, &mut changes);
                }
                // In doubt it may stand for something that cannot be brought back: it stays.
                Now::New(..) if self.before.get(at) == Some(&Before::Unknown) => self.doubt(at, &mut changes),
                Now::New(kind, identity) => {
                    let further = self.further.contains_key(identity);
                    changes.new.push(New { at: at.clone(), kind: *kind, identity: identity.clone(), further });
                }
                Now::Foreign => changes.doubtful.push((at.clone(), Doubt::Foreign)),
                Now::Nothing => {}
            }
        }
        // In a directory that the job has made somebody else has put something: it stays.
        let shared = self.shared();
        let (stay, go) = changes.new.into_iter().partition(|new| shared.contains(new.at.as_path()));
        changes.new = go;
        changes.doubtful.extend(stay.into_iter().map(|new: New| (new.at, Doubt::Foreign)));
        // What lies in a new directory goes with it, but for what is in an old one that comes home from there, and further
        // names of what stays.
        changes.new.retain(|new| {
            let around = new.at.ancestors().skip(1).filter_map(|above| Some((above, self.now.get(above)?)));
            let mut around = around.filter(|(_, around)| matches!(around, Now::New(Kind::Directory, _) | Now::Old(..)));
            new.further || !matches!(around.next(), Some((above, Now::New(..))) if !shared.contains(above))
        });
        changes.relinked = self.relinked();
        changes.new.sort_by_key(|new| new.kind == Kind::Directory);
        let foreign = |path: &Path| self.now.get(path) == Some(&Now::Foreign);
        for (home, kind) in &self.lost {
            match kind {
                Kind::Directory => changes.directories.push(home.clone()),
                Kind::File => changes.lost.push(home.clone()),
            }
        }
        changes.written =
            self.written.iter().filter(|path| !foreign(path) && !self.lost.contains_key(*path)).cloned().collect();
        changes.lengths = changes
            .written
            .iter()
            .filter_map(|path| {
                let look = self.looks.get(path)?;
                Some(Length { path: path.clone(), size: look.size, modified: look.modified })
            })
            .collect();
        changes
    }

    /// Directories that the job has made, and in which somebody else has made something.
    fn shared(&self) -> BTreeSet<&Path> {
        let foreign = self.now.iter().filter(|(_, now)| **now == Now::Foreign).map(|(path, _)| path);
        let above = foreign.flat_map(|path| path.ancestors().skip(1));
        above.filter(|above| matches!(self.now.get(*above), Some(Now::New(Kind::Directory, _)))).collect()
    }

    fn doubt(&self, at: &Path, changes: &mut Changes) {
        if self.before.get(at) == Some(&Before::Unknown) {
            changes.doubtful.push((at.to_owned(), Doubt::Replaced));
        }
    }
}
