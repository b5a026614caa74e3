//! What the program of a job does to files, heard by fanotify(7) while it runs: what a checkpoint has to keep, and what a
//! rollback has to undo.
//!
//! Nobody waits for this watch: it is told afterwards, and when it is too slow it loses events, notices that, and says
//! that it does not know all. What a process of somebody else does is never taken for the job's: whose a process was is
//! known by who has made whom (the process connector), also when it is gone; where that is not to be had, by `/proc`, and
//! what a process did that is gone when it is looked at is then nobody's.
//!
//! Heard: names made, removed and renamed, and the close of what was open for writing; writes and opens are not asked
//! for, as that would make every one of them slower. The length of a file that is first written after a checkpoint is
//! known when a look around right after the checkpoint has met it ([`Watch::thawed`]). Not heard: truncate(2) by path
//! without an open, and what happens on file systems mounted since the start.

mod directories;
mod joined;
mod overlays;
mod places;
mod queue;
pub(crate) mod remembered;
mod steps;
mod stored;
mod undone;
pub(crate) mod unnamed;
mod whose;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hdcr_policy::kin::{Kin, Whose};
use hdcr_policy::touched::{Changes, Event, Identity, Kind, Look, Replaced, Side, Table};
use hdcr_sys::births::Births;
use hdcr_sys::fanotify::{self, Emptied, Fanotify, Happened};
use rustix::event::epoll;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use crate::failure::{Failure, Result};
use crate::process;
use joined::Joined;
use overlays::Overlays;
use places::{Mount, Places};
use queue::{Heard, Queue, What};

const WANTED: u64 = fanotify::CREATE
    | fanotify::DELETE
    | fanotify::RENAME
    | fanotify::CLOSE_WRITE
    | fanotify::ATTRIB
    | fanotify::DIRECTORY;
/// So many times the queue is read at once; what is left keeps the descriptor readable.
const READS: usize = 64;
/// A rename says within the same call whether it has replaced something; this long is waited for that.
const SAME_CALL: Duration = Duration::from_secs(1);
/// So many directories are looked at after a checkpoint, the latest ones, and so many names in each.
const DIRECTORIES: usize = 32;
const NAMES: usize = 2000;
/// The number for the start of the program, before its first checkpoint.
const START: u64 = 0;
/// The number of a checkpoint that is not complete.
const UNFINISHED: u64 = u64::MAX;

/// The watch of a keeper.
#[derive(Debug)]
pub(crate) struct Watch {
    fanotify: Fanotify,
    births: Option<Births>,
    either: OwnedFd,
    keeper: i32,
    kin: Kin,
    /// Processes of the job that were met while they lived, where births are not told.
    sighted: BTreeSet<i32>,
    /// The worker that brought the job back last.
    restorer: Option<i32>,
    places: Places,
    queue: Queue,
    joined: Joined,
    overlays: Overlays,
    /// The table as it was before the rollback that is tried.
    before_rollback: Option<Table>,
    /// A rollback is tried: what was written down of the time before it counts until it is done.
    goes_back: bool,
    /// What a roll-back that goes on makes anew, if it is in the image, and was not heard of yet.
    made_anew: BTreeSet<PathBuf>,
    /// What was heard of it, still to be told: before anything that the job has done since.
    anew: Vec<(PathBuf, Identity)>,
    blind: Vec<String>,
}

impl Watch {
    /// Begins to watch what the processes below `keeper` (this process) do. Needs root and Linux 5.17.
    pub(crate) fn start(keeper: i32) -> Result<Self> {
        let doing = || Failure::system::<std::io::Error>("watching file systems");
        let fanotify = Fanotify::new().map_err(doing())?;
        let births = Births::subscribe().inspect_err(|error| tracing::debug!(%error, "births are not told")).ok();
        let mut places = Places::default();
        let mut blind = Vec::new();
        let mut watched = BTreeSet::new();
        let mounts = places::writable_mounts();
        let mut by_device: BTreeMap<&str, Vec<&Mount>> = BTreeMap::new();
        for mount in &mounts {
            by_device.entry(&mount.device).or_default().push(mount);
        }
        for (device, mounts) in &by_device {
            let Some(first) = mounts.first() else { continue };
            let marked = fanotify.mark_file_system(&first.at, WANTED).map_err(|error| error.to_string());
            match marked.and_then(|()| places.add(mounts)) {
                Ok(()) => drop(watched.insert((*device).to_owned())),
                Err(why) => blind.push(format!("{}: {why}", first.at.display())),
            }
        }
        if watched.is_empty() {
            let why = blind.first().map_or("there is none", String::as_str);
            return Err(Failure::refused("watch-unavailable", format!("no file system can be watched: {why}")));
        }
        let either = either_of(&fanotify, births.as_ref()).map_err(doing())?;
        // Births are heard from before this look, so that no child is missed.
        let kin = Kin::new(keeper, process::below(keeper));
        let (restorer, before_rollback, made_anew, anew) = (None, None, BTreeSet::new(), Vec::new());
        Ok(Self {
            fanotify,
            births,
            either,
            keeper,
            kin,
            sighted: BTreeSet::new(),
            restorer,
            places,
            queue: Queue::default(),
            joined: Joined::default(),
            overlays: Overlays::new(watched),
            before_rollback,
            goes_back: false,
            made_anew,
            anew,
            blind,
        })
    }

    /// Readable when [`Watch::drain`] has something to do.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.either.as_fd()
    }

    /// Where files are not watched, and why.
    pub(crate) fn blind(&self) -> &[String] {
        &self.blind
    }

    /// A child of the keeper that is not of the job: to be said before the next [`Watch::drain`].
    pub(crate) fn set_apart(&mut self, pid: i32) {
        self.kin.set_apart(pid);
    }

    /// A child of the keeper that is not of the job, and puts its files back: likewise.
    pub(crate) fn set_apart_restorer(&mut self, pid: i32) {
        self.restorer = Some(pid);
        self.kin.set_apart(pid);
    }

    /// Hears what there is.
    pub(crate) fn drain(&mut self) {
        let mut events = Vec::new();
        let mut emptied = Emptied::No;
        for _ in 0..READS {
            match self.fanotify.read(&mut events) {
                Ok(Emptied::No) => {}
                Ok(Emptied::Yes) => {
                    emptied = Emptied::Yes;
                    break;
                }
                Err(error) => {
                    tracing::warn!(%error, "file events cannot be read");
                    events.push(fanotify::Event::Overflow);
                    break;
                }
            }
        }
        // After the events, so that whoever made them has been born by now.
        self.hear_births();
        for event in events {
            match event {
                fanotify::Event::Happened(happened) => self.hear(&happened),
                fanotify::Event::Overflow => self.lose(),
            }
        }
        if self.kin.is_lost() {
            self.lose();
            self.kin.look(process::below(self.keeper));
        }
        if emptied == Emptied::Yes {
            self.joined();
            self.kin.turn(|pid| process::stat(pid).is_some());
        }
        self.settle(Instant::now().checked_sub(SAME_CALL));
    }

    fn push(&mut self, pid: i32, file: &Identity, event: Event) {
        self.queue.hear(pid, file, What::Event(event));
    }

    fn lose(&mut self) {
        self.push(0, &Identity::new(), Event::Lost);
    }

    fn hear(&mut self, happened: &Happened) {
        match self.whose(happened.pid) {
            Whose::Job => self.hear_job(happened),
            Whose::Own => self.hear_own(happened),
            Whose::Other => self.hear_other(happened, true),
            Whose::Unknown => self.hear_other(happened, false),
        }
    }

    /// A worker that takes a checkpoint holds duplicates of the job's open files, and may be the last to close one that the
    /// job has written. Whatever else a worker does to the job's files brings back what was.
    fn hear_own(&mut self, happened: &Happened) {
        self.follow(happened);
        if Some(happened.pid) == self.restorer {
            self.hear_made(happened);
        }
        if happened.mask & fanotify::CLOSE_WRITE == 0 || Some(happened.pid) == self.restorer {
            return;
        }
        let path = happened.place.as_ref().and_then(|place| self.places.known(place));
        if let Some(path) = path.filter(|path| self.queue.table().knows(path)) {
            let look = look(&path);
            self.push(happened.pid, &Identity::new(), Event::Written(path, look));
        }
    }

    /// What the worker that brings the job back makes anew gets its name by a rename. A look at it later would be too late: the
    /// job runs again by then, and may have put something else there.
    fn hear_made(&mut self, happened: &Happened) {
        let (Some(to), Some(file)) = (&happened.to, &happened.file) else { return };
        if happened.mask & fanotify::RENAME == 0 {
            return;
        }
        let identity = places::identity(file);
        if let Some(path) = self.places.path(to).filter(|_| happened.mask & fanotify::DIRECTORY != 0) {
            self.places.met(to.file_system, file, &path);
        }
        if let Some(path) = self.places.path(to).filter(|path| self.made_anew.remove(path)) {
            self.anew.push((path, identity));
        }
    }

    /// Only what it does to something that the job has worked on matters.
    fn hear_other(&mut self, happened: &Happened, sure: bool) {
        const MATTERS: u64 = fanotify::CREATE | fanotify::DELETE | fanotify::RENAME | fanotify::CLOSE_WRITE;
        if happened.mask & MATTERS == 0 {
            return;
        }
        let paths =
            [&happened.place, &happened.to].map(|place| place.as_ref().and_then(|place| self.places.known(place)));
        self.follow(happened);
        // What waits may be about it.
        let waits = !self.queue.waiting().is_empty();
        for path in
            paths.into_iter().flatten().filter(|path| waits || self.queue.table().knows(path)).collect::<Vec<_>>()
        {
            let gone = happened.mask & fanotify::CLOSE_WRITE == 0 && path.symlink_metadata().is_err();
            let event = match (sure, gone) {
                (true, true) => Event::ForeignGone(path),
                (true, false) => Event::Foreign(path),
                (false, _) => Event::Unsure(path),
            };
            self.push(happened.pid, &Identity::new(), event);
        }
    }

    fn hear_job(&mut self, happened: &Happened) {
        let (pid, mask) = (happened.pid, happened.mask);
        let file: Identity = happened.file.as_ref().map(places::identity).unwrap_or_default();
        let Some(place) = &happened.place else {
            if mask & fanotify::ATTRIB != 0 {
                let what = What::Names { removed: self.joined.names(pid, &file) };
                // It only says something of what came before it.
                if !self.queue.waiting().is_empty() {
                    self.queue.hear(pid, &file, what);
                }
            }
            return;
        };
        let kind = if mask & fanotify::DIRECTORY == 0 { Kind::File } else { Kind::Directory };
        if mask & !fanotify::DIRECTORY == fanotify::ATTRIB {
            return self.hear_directory(happened);
        }
        let Some(path) = self.places.path(place) else {
            // A directory that is gone already: its own removal is heard, too.
            return;
        };
        if self.is_behind(happened, &path) {
            return;
        }
        if mask & fanotify::RENAME != 0 {
            self.hear_rename(happened, path, kind, file);
            return;
        }
        self.hear_name(happened, &path, kind, &file);
    }

    fn hear_rename(&mut self, happened: &Happened, from: PathBuf, kind: Kind, identity: Identity) {
        let to = happened.to.as_ref().and_then(|to| self.places.path(to));
        let Some(to) = to.filter(|to| !self.is_behind(happened, to)) else {
            self.push(happened.pid, &identity, Event::Removed(from, kind));
            return;
        };
        self.join_rename(happened.pid, kind, &identity, (&from, &to));
        self.meet(happened, &from);
        let now = Side { path: from.clone(), kind, identity: identity.clone() };
        if self.is_exchange(happened.pid, &to, &now) {
            return;
        }
        let mut replaced = Replaced::Unknown;
        if kind == Kind::Directory {
            self.places.renamed(&from, &to);
            replaced = self.replaces_directory(happened.pid, &to, &identity);
        }
        self.push(happened.pid, &Identity::new(), Event::Renamed { from, to, kind, replaced, identity });
    }

    /// A directory that is made or renamed is known from then on, wherever it lies when something in it is heard.
    fn meet(&mut self, happened: &Happened, path: &Path) {
        let (Some(place), Some(file)) = (&happened.place, &happened.file) else { return };
        if happened.mask & fanotify::DIRECTORY == 0 {
            return;
        }
        if happened.mask & fanotify::DELETE != 0 && path.symlink_metadata().is_err() {
            self.places.gone(place.file_system, file);
        } else {
            self.places.met(place.file_system, file, path);
        }
    }

    /// Somebody who is not of the job, but may be who brings it back, renames directories in which it works.
    fn follow(&mut self, happened: &Happened) {
        if happened.mask & fanotify::DIRECTORY == 0 || happened.mask & fanotify::RENAME == 0 {
            return;
        }
        let from = happened.place.as_ref().and_then(|place| self.places.known(place));
        let to = happened.to.as_ref().and_then(|place| self.places.path(place));
        if let (Some(from), Some(to)) = (from, to) {
            self.places.renamed(&from, &to);
        }
    }

    /// An exchange is told of as two renames in one call, of two different files (`vfs_rename` in fs/namei.c).
    fn is_exchange(&mut self, pid: i32, to: &Path, other: &Side) -> bool {
        let Some(place) = self.queue.waiting().iter().rposition(|heard| heard.pid == pid) else { return false };
        let Some(Heard { what: What::Event(event), .. }) = self.queue.waiting().get(place) else { return false };
        let Event::Renamed { from, to: its_to, kind, identity, .. } = event else { return false };
        let known = !identity.is_empty() && !other.identity.is_empty();
        if !known || *identity == other.identity || *from != to || *its_to != other.path {
            return false;
        }
        let one = Side { path: from.clone(), kind: *kind, identity: identity.clone() };
        match (one.kind, other.kind) {
            (Kind::Directory, Kind::Directory) => self.places.exchanged(&other.path, to),
            (Kind::File, Kind::Directory) => self.places.renamed(&other.path, to),
            (_, Kind::File) => {}
        }
        self.queue.amend(place, Event::Exchanged(one, other.clone()));
        true
    }

    /// Several things that a process did to one name may have been joined into one event.
    fn hear_name(&mut self, happened: &Happened, path: &Path, kind: Kind, file: &Identity) {
        let named = self.join_name(happened, path);
        self.meet(happened, path);
        self.removed_directory(happened, path);
        let now = || happened.place.as_ref().and_then(|place| self.places.now(place));
        let seen = if path.symlink_metadata().is_ok() { Some(path.to_owned()) } else { now() };
        let there = seen.as_ref().is_some_and(|seen| seen.symlink_metadata().is_ok());
        let has = |bit: u64| happened.mask & bit != 0;
        let (created, removed) = (has(fanotify::CREATE), has(fanotify::DELETE));
        let removed_first = created && removed && there;
        let mut events = Vec::new();
        if removed_first {
            events.push(Event::Removed(path.to_owned(), kind));
        }
        if created {
            let is_further = || named || seen.as_ref().is_some_and(|seen| places::names(seen) > 1);
            events.push(if kind == Kind::File && is_further() && self.may_be_old(happened) {
                Event::Linked(path.to_owned(), file.clone())
            } else {
                Event::Created(path.to_owned(), kind, file.clone())
            });
        }
        if kind == Kind::File && has(fanotify::CLOSE_WRITE) {
            events.push(Event::Written(path.to_owned(), seen.as_deref().and_then(look)));
        }
        if removed && !removed_first {
            events.push(Event::Removed(path.to_owned(), kind));
        }
        for event in events {
            self.push(happened.pid, file, event);
        }
    }

    /// Hands what waits to the table, as far as it is known what it was.
    fn settle(&mut self, long_ago: Option<Instant>) {
        if !self.anew.is_empty() {
            self.queue.placed(&std::mem::take(&mut self.anew));
        }
        self.queue.settle(long_ago);
    }

    /// The job stands still for a checkpoint: it counts from here. Returns every file that the job has worked on, the
    /// latest first.
    pub(crate) fn mark(&mut self) -> Vec<PathBuf> {
        self.drain();
        self.settle(None);
        self.look_for_overlays();
        self.mark_now(UNFINISHED);
        let mut touched = self.queue.table().touched();
        touched.retain(|path| !self.overlays.hides(path));
        touched
    }

    /// The job goes on: looks around where it works, so that the length is known of what it writes next. What was
    /// changed since the mark is told from what was not by its time.
    pub(crate) fn thawed(&mut self) {
        let mut directories = self.queue.table().directories(DIRECTORIES);
        let current = self.kin.members().take(DIRECTORIES);
        directories.extend(current.filter_map(|pid| fs::read_link(format!("/proc/{pid}/cwd")).ok()));
        for (path, look) in looks(directories) {
            self.queue.seen(&Event::Seen(path, look));
        }
    }

    /// The job is about to begin, in the directory of this process: nothing of it is at work, and all is as it finds it.
    pub(crate) fn begins(&mut self) {
        self.begin_from(START);
        (self.before_rollback, self.goes_back) = (None, false);
        let mut directories = self.queue.table().directories(DIRECTORIES);
        directories.extend(std::env::current_dir());
        for (path, look) in looks(directories) {
            self.queue.seen(&Event::Seen(path, Look { changed: Duration::ZERO, ..look }));
        }
    }

    /// The checkpoint that was marked last is complete and has this number.
    pub(crate) fn committed(&mut self, number: u64) {
        self.queue.renumber(UNFINISHED, number);
    }

    /// The checkpoints that there still are.
    pub(crate) fn keep(&mut self, numbers: &[u64]) {
        self.queue.keep(&[numbers, &[UNFINISHED]].concat());
    }

    /// The job is dead and is about to be rolled back to a checkpoint: what has to be undone.
    /// `None`: it was taken before this watch began.
    pub(crate) fn roll_back(&mut self, number: u64) -> Option<Changes> {
        self.drain();
        self.settle(None);
        self.look_for_overlays();
        let changes = self.overlays.leave_out(self.queue.table().since(number)?);
        self.before_rollback = Some(self.queue.table().clone());
        self.queue.replace(|table| table.roll_back(number));
        self.overlays.mark();
        self.goes_back = true;
        self.made_anew = changes.lost.iter().chain(&changes.directories).cloned().collect();
        self.anew.clear();
        Some(changes)
    }

    /// Files are as they were at the checkpoint. Those that were gone are others now, and of the job all the same.
    pub(crate) fn rolled_back(&mut self) {
        self.before_rollback = None;
        self.goes_back = false;
        // What was not heard of: a name that it got in another way.
        self.drain();
        let left = std::mem::take(&mut self.made_anew);
        self.anew.extend(left.into_iter().filter_map(|path| identity(&path).map(|now| (path, now))));
        self.settle(Instant::now().checked_sub(SAME_CALL));
    }

    /// The job had worked on these files by the checkpoint that it has come back to: perhaps before this watch began.
    pub(crate) fn knows_too(&mut self, files: Vec<PathBuf>) {
        self.queue.replace(|table| table.knows_too(files));
    }

    /// Begins to count from a checkpoint that was not marked, of which files are about to be as they were.
    pub(crate) fn begin_from(&mut self, number: u64) {
        self.drain();
        self.settle(None);
        self.before_rollback = Some(self.queue.table().clone());
        self.goes_back = true;
        self.mark_now(number);
        self.queue.replace(|_| {});
    }

    fn mark_now(&mut self, number: u64) {
        self.queue.mark(number, now());
        self.overlays.mark();
    }

    /// The job is dead: what it did last is heard.
    pub(crate) fn end(&mut self) {
        self.drain();
        self.settle(None);
    }

    /// The first of the checkpoints from which it counts.
    pub(crate) fn first(&self) -> Option<u64> {
        self.queue.table().first()
    }

    /// What is different from a checkpoint.
    pub(crate) fn since(&self, number: u64) -> Option<Changes> {
        self.queue.table().since(number)
    }

    /// The rollback failed, and files are as they were before it.
    pub(crate) fn not_rolled_back(&mut self) {
        self.goes_back = false;
        if let Some(table) = self.before_rollback.take() {
            self.drain();
            self.queue.clear();
            self.anew.clear();
            self.made_anew.clear();
            self.queue.replace(|now| *now = table);
        }
    }
}

/// The time of day, from the epoch.
fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn either_of(fanotify: &Fanotify, births: Option<&Births>) -> std::io::Result<OwnedFd> {
    let either = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let data = epoll::EventData::new_u64(0);
    epoll::add(&either, fanotify, data, epoll::EventFlags::IN)?;
    if let Some(births) = births {
        epoll::add(&either, births, data, epoll::EventFlags::IN)?;
    }
    Ok(either)
}

/// Looks at what lies in some directories.
fn looks(directories: BTreeSet<PathBuf>) -> impl Iterator<Item = (PathBuf, Look)> {
    let entries = directories.into_iter().filter_map(|directory| fs::read_dir(directory).ok());
    let paths = entries.flat_map(|entries| entries.flatten().take(NAMES).map(|entry| entry.path()));
    paths.filter_map(|path| Some((path.clone(), look(&path)?)))
}

/// Who lies under a name now.
fn identity(path: &Path) -> Option<Identity> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    hdcr_sys::handle::of(&file).ok().map(|handle| places::identity(&handle))
}

/// A look at the regular file that lies under a name now.
fn look(path: &Path) -> Option<Look> {
    let wanted = StatxFlags::SIZE | StatxFlags::MTIME | StatxFlags::CTIME | StatxFlags::TYPE;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(rustix::fs::CWD, path, flags, wanted).ok()?;
    let time = |time: rustix::fs::StatxTimestamp| Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), time.tv_nsec);
    let regular = rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()) == rustix::fs::FileType::RegularFile;
    regular.then(|| Look { size: stat.stx_size, modified: time(stat.stx_mtime), changed: time(stat.stx_ctime) })
}

#[cfg(test)]
mod tests;
