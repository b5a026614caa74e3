//! What the job did to files, on the disk: a kill or a reboot takes the table of the watch with it.
//!
//! `STORE/.jobs/NAME.touched` holds the table in parts, whole or not at all. `NAME.touched.log` holds a line for each step
//! since, for the table whose generation its first line names; with another one it is of no use, and of no need. Its last
//! line may be half, and what follows a line that cannot be read is not used.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_image::JobName;
use hdcr_policy::touched::{Now, Past, Table};
use serde::{Deserialize, Serialize};

use super::queue::Queue;
use super::steps::{PastLine, Step, Waited};
use super::{START, UNFINISHED};
use crate::failure::{Failure, Result};
use crate::job;
use crate::settings::Files;
use crate::told::{Name, Since, Touched};

/// The first one had no log, and said what was to be undone instead of what had happened.
const FIRST: u32 = 1;
const VERSION: u32 = 2;
/// A longer one is neither written nor read: what it would say of the oldest checkpoints is left out, and that it was.
pub(super) const MOST_BYTES: u64 = 64 << 20;
/// More of a log is not read.
pub(super) const MOST_LOG: u64 = 256 << 20;
/// Beside its names an entry has so many bytes or less.
const ENTRY: u64 = 128;

/// The table, and what comes from keepers before.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) version: u32,
    /// Of which its log is.
    #[serde(default)]
    pub(super) generation: u64,
    /// Nothing of the job has lived after this was written.
    #[serde(default)]
    pub(super) complete: bool,
    /// It was written when nothing was heard.
    #[serde(default)]
    pub(super) deaf: bool,
    /// The job has lived without a keeper since.
    #[serde(default)]
    pub(super) lived: bool,
    /// What earlier keepers knew is to be undone for their checkpoints.
    #[serde(alias = "tables")]
    pub(super) earlier: BTreeMap<u64, Since>,
    /// Which files do not count.
    #[serde(default)]
    pub(super) files: Files,
    #[serde(default)]
    pub(super) past: Vec<PastLine>,
    /// Checkpoints of which nothing is known, but that something was done since.
    #[serde(default)]
    pub(super) forgotten: Vec<u64>,
    /// The files that the job has worked on.
    #[serde(default)]
    pub(super) known: Vec<Name>,
    /// And those that it has removed last.
    #[serde(default)]
    pub(super) gone: Vec<Name>,
    #[serde(default)]
    pub(super) waiting: Vec<Waited>,
}

/// What is to be undone.
#[derive(PartialEq, Debug, Default)]
pub(super) struct Known {
    /// For each checkpoint.
    pub(super) tables: BTreeMap<u64, Since>,
    /// For the one that was being taken.
    pub(super) unfinished: Option<Since>,
    /// For a program that begins anew.
    pub(super) start: Option<Since>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    generation: u64,
}

fn path(store: &Path, name: &JobName) -> PathBuf {
    store.join(".jobs").join(format!("{name}.touched"))
}

/// Where the steps after a table are.
pub(crate) fn log_of(table: &Path) -> PathBuf {
    let mut name = table.as_os_str().to_owned();
    name.push(".log");
    PathBuf::from(name)
}

/// Whether there is anything, though it may be of no use.
pub(super) fn is_there(store: &Path, name: &JobName) -> bool {
    path(store, name).symlink_metadata().is_ok()
}

/// When something was written down last: what is done to files is heard at once. From the epoch.
pub(super) fn heard(store: &Path, name: &JobName) -> Option<Duration> {
    let table = path(store, name);
    let written = |path: &Path| {
        let facts = fs::symlink_metadata(path).ok()?;
        Some(Duration::new(u64::try_from(facts.mtime()).ok()?, u32::try_from(facts.mtime_nsec()).ok()?))
    };
    written(&log_of(&table)).max(written(&table))
}

/// Forgets all of it.
pub(super) fn forget(store: &Path, name: &JobName) {
    let table = path(store, name);
    for path in [log_of(&table), table] {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "what was remembered of files was not removed");
        }
    }
}

/// An own file that nobody else can have written.
fn open(path: &Path, most: u64) -> Option<File> {
    let facts = fs::symlink_metadata(path).ok()?;
    let own = facts.is_file() && facts.uid() == rustix::process::geteuid().as_raw() && facts.mode() & 0o022 == 0;
    if !own || facts.len() > most {
        tracing::warn!(path = %path.display(), "not used: it is too long, or somebody else may have written it");
        return None;
    }
    File::open(path).ok()
}

/// The table as it was written last.
pub(super) fn stored(store: &Path, name: &JobName) -> Option<Stored> {
    let path = path(store, name);
    let mut bytes = Vec::new();
    open(&path, MOST_BYTES)?.read_to_end(&mut bytes).ok()?;
    let stored = serde_json::from_slice::<Stored>(&bytes).ok();
    let stored = stored.filter(|stored| [FIRST, VERSION].contains(&stored.version));
    if stored.is_none() {
        tracing::warn!(path = %path.display(), "not used: it cannot be read");
    }
    stored
}

impl Stored {
    /// Of a queue as it stands; what would be too long of older checkpoints gives way, and is not even copied.
    pub(super) fn of(queue: &Queue) -> Self {
        let mut left = MOST_BYTES;
        let (mut kept, mut forgotten) = (Vec::new(), Vec::new());
        for past in queue.table().past().rev() {
            left = left.saturating_sub(size(&past));
            if left == 0 {
                forgotten.extend(queue.table().numbers().take_while(|number| *number != past.number));
                forgotten.push(past.number);
                break;
            }
            kept.push(PastLine::from(past));
        }
        kept.reverse();
        Self {
            past: kept,
            forgotten,
            known: Touched::from(queue.table().touched().as_slice()).0,
            gone: Touched::from(queue.table().gone().as_slice()).0,
            waiting: queue.waiting().iter().map(Waited::from).collect(),
            ..Self::default()
        }
    }

    /// What is to be undone, with what the log tells.
    pub(super) fn known(self, store: &Path, name: &JobName) -> Known {
        let steps = steps(&log_of(&path(store, name)), self.generation);
        let past = self.past.into_iter().map(Past::from).collect();
        let files = |names: &[Name]| names.iter().map(PathBuf::from).collect();
        let table = Table::of(past, files(&self.known), files(&self.gone));
        let waited = self.waiting.into_iter().map(Step::from);
        let table = Queue::again(table, waited.chain(steps));
        let aside = |number| super::undone::aside(name, number);
        let since = |number| {
            let changes = table.since(number)?;
            Some(Since::new(&changes, &self.files, aside(number), store.to_owned()))
        };
        let later = table.first().filter(|_| !self.earlier.is_empty()).and_then(since);
        let with = |earlier: Since| match later.clone() {
            Some(later) => earlier.with_later(later),
            None => earlier,
        };
        let mut known: BTreeMap<u64, Since> =
            self.earlier.into_iter().map(|(number, earlier)| (number, with(earlier))).collect();
        for number in table.numbers().filter(|number| ![START, UNFINISHED].contains(number)) {
            if let (Some(since), false) = (since(number), known.contains_key(&number)) {
                known.insert(number, since);
            }
        }
        for number in self.forgotten {
            known.entry(number).or_insert_with(|| Since::forgotten(aside(number), store.to_owned()));
        }
        let earlier = known.remove(&UNFINISHED);
        let unfinished = since(UNFINISHED).or(earlier).filter(|_| !self.lived);
        Known { tables: known, unfinished, start: since(START) }
    }

    /// Writes it down, on the disk, in the place of what was there. Returns how long it is.
    pub(super) fn write(self, store: &Path, name: &JobName) -> Result<u64> {
        let bytes = Self { version: VERSION, ..self }.encoded(MOST_BYTES)?;
        job::put(&path(store, name), &bytes)?;
        Ok(length(&bytes))
    }

    /// As it is written; what is said of older checkpoints gives way when it is too long.
    fn encoded(mut self, most: u64) -> Result<Vec<u8>> {
        let failed = || Failure::system("encoding what was done to files");
        let bytes = serde_json::to_vec(&self).map_err(failed())?;
        if length(&bytes) <= most {
            return Ok(bytes);
        }
        drop(bytes);
        // Some for what is said of those that give way.
        let mut left = most - most / 8;
        self.known.clear();
        let mut fits = |number: u64, bytes: Vec<u8>| {
            let rest = left.checked_sub(length(&bytes));
            left = rest.unwrap_or(0);
            if rest.is_none() {
                tracing::warn!(
                    number,
                    "too long: a later keeper will not know what was done to files since a checkpoint"
                );
            }
            rest.is_some()
        };
        let past = std::mem::take(&mut self.past);
        for past in past.into_iter().rev() {
            if fits(past.number, serde_json::to_vec(&past).map_err(failed())?) {
                self.past.insert(0, past);
            } else {
                self.forgotten.push(past.number);
            }
        }
        for (number, since) in self.earlier.iter_mut().rev() {
            if !fits(*number, serde_json::to_vec(since).map_err(failed())?) {
                *since = std::mem::take(since).shortened();
            }
        }
        serde_json::to_vec(&self).map_err(failed())
    }
}

/// How long what is known since a checkpoint may get as text.
fn size(past: &Past) -> u64 {
    let name = |path: &PathBuf| ENTRY.saturating_add(u64::try_from(path.as_os_str().len()).unwrap_or(u64::MAX));
    let before = past.before.iter().map(|(path, _)| name(path));
    let now = past.now.iter().map(|(path, now)| match now {
        Now::Old(home, _) => name(path).saturating_add(name(home)),
        Now::New(..) | Now::Nothing | Now::Foreign => name(path),
    });
    let lost = past.lost.iter().map(|(path, _)| name(path));
    before.chain(now).chain(lost).chain(past.written.iter().map(name)).fold(0, u64::saturating_add)
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// The steps of a log, as far as it can be read and is of this table.
fn steps(path: &Path, generation: u64) -> impl Iterator<Item = Step> + use<> {
    let log = open(path, u64::MAX).map(|log| log.take(MOST_LOG));
    let mut lines = log.into_iter().flat_map(|log| BufReader::new(log).split(b'\n'));
    let header = lines.next().and_then(|line| serde_json::from_slice::<Header>(&line.ok()?).ok());
    let is_its = header.is_some_and(|header| header.generation == generation);
    let lines = lines.take_while(move |_| is_its);
    lines.map_while(|line| serde_json::from_slice::<Step>(&line.ok()?).ok())
}

/// The log of a table, as it is written.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    length: u64,
}

impl Log {
    /// Begins one for the table that was written last.
    pub(super) fn begin(store: &Path, name: &JobName, generation: u64) -> Result<Self> {
        let path = log_of(&path(store, name));
        let mut header = serde_json::to_vec(&Header { generation }).map_err(Failure::system("encoding a number"))?;
        header.push(b'\n');
        let file = job::new_file(&path, &header);
        let file = file.map_err(Failure::system(format_args!("writing {}", path.display())))?;
        Ok(Self { file, length: length(&header) })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Writes steps at its end. When that fails its end is of no use any more.
    pub(super) fn write(&mut self, steps: &[Step]) -> Result<()> {
        let mut lines = Vec::new();
        for step in steps {
            serde_json::to_writer(&mut lines, step).map_err(Failure::system("encoding what was done to files"))?;
            lines.push(b'\n');
        }
        self.file.write_all(&lines).map_err(Failure::system("writing what was done to files"))?;
        self.length = self.length.saturating_add(length(&lines));
        Ok(())
    }
}

/// A store with nothing in it, and the name of a job.
#[cfg(test)]
pub(super) fn scene() -> (tempfile::TempDir, JobName) {
    let store = tempfile::tempdir().unwrap();
    fs::create_dir(store.path().join(".jobs")).unwrap();
    (store, JobName::new("a").unwrap())
}

#[cfg(test)]
mod tests {
    use hdcr_policy::touched::{Event, Kind, Look, Replaced, Side};

    use super::super::queue::What;
    use super::*;

    fn made(queue: &mut Queue, name: &str) {
        let identity = name.as_bytes().to_vec();
        queue.hear(7, &identity, What::Event(Event::Created(PathBuf::from(name), Kind::File, identity.clone())));
    }

    /// One of each kind.
    fn some_of_all(queue: &mut Queue) {
        let (path, look) = (PathBuf::from("/w"), Look { size: 1, modified: Duration::MAX, changed: Duration::MAX });
        let side = |name: &str| Side { path: PathBuf::from(name), kind: Kind::Directory, identity: vec![1, 255] };
        let rename = |from: &str, to: &str| Event::Renamed {
            from: PathBuf::from(from),
            to: PathBuf::from(to),
            kind: Kind::File,
            replaced: Replaced::Unknown,
            identity: vec![3],
        };
        made(queue, "/new");
        let events = [
            Event::Written(path.clone(), Some(look)),
            Event::Written(PathBuf::from("/v"), None),
            Event::Removed(PathBuf::from("/gone"), Kind::File),
            Event::Exchanged(side("/d"), side("/e")),
            Event::Foreign(path.clone()),
            Event::ForeignGone(path.clone()),
            Event::Unsure(path),
            rename("/f", "/g"),
        ];
        for event in events {
            queue.hear(7, &vec![9], What::Event(event));
        }
        queue.hear(7, &vec![8], What::Names { removed: false });
        queue.hear(7, &vec![8], What::Names { removed: true });
        queue.hear(8, &vec![4], What::Event(rename("/h", "/i")));
        let place = queue.waiting().len() - 1;
        queue.amend(place, Event::Removed(PathBuf::from("/h"), Kind::File));
        queue.settle(None);
        queue.mark(UNFINISHED, Duration::from_secs(200));
        queue.renumber(UNFINISHED, 2);
        queue.mark(3, Duration::from_mins(5));
        queue.placed(&[(PathBuf::from("/new"), vec![5])]);
        made(queue, "/late");
        queue.settle(None);
        queue.keep(&[1, 2]);
        queue.lost();
        queue.hear(7, &vec![9], What::Event(rename("/late", "/later")));
        queue.settle(std::time::Instant::now().checked_sub(Duration::from_secs(1)));
    }

    #[test]
    fn a_table_and_its_log_tell_all_that_was_heard() {
        let (store, name) = scene();
        let mut queue = Queue::default();
        queue.mark(1, Duration::from_secs(100));
        made(&mut queue, "/a\u{e4}");
        queue.hear(7, &vec![9], What::Event(Event::Removed(PathBuf::from("/old"), Kind::File)));
        let stored = Stored { generation: 5, ..Stored::of(&queue) };
        queue.begin_log();
        stored.write(store.path(), &name).unwrap();
        let mut log = Log::begin(store.path(), &name, 5).unwrap();
        some_of_all(&mut queue);
        let waits = queue.waiting().len();
        log.write(&queue.take_log()).unwrap();
        assert!(waits > 0 && queue.take_log().is_empty());
        queue.settle(None);
        let expected = |number| {
            let changes = queue.table().since(number).unwrap();
            Since::new(&changes, &Files::default(), format!(".hdcr-aside-a-{number}"), store.path().to_owned())
        };
        let read = |store: &Path| super::stored(store, &name).unwrap().known(store, &name);
        let known = read(store.path());
        let tables = BTreeMap::from([(1, expected(1)), (2, expected(2))]);
        assert_eq!(known, Known { tables, ..Known::default() });
        // With half a line at its end, and with one of another table.
        let path = store.path().join(".jobs/a.touched.log");
        let text = fs::read(&path).unwrap();
        for length in 0..text.len() {
            fs::write(&path, text.get(..length).unwrap()).unwrap();
            assert!(read(store.path()).tables.contains_key(&1), "at {length}");
        }
        fs::write(&path, [b"{\"generation\":6}\n", text.as_slice()].concat()).unwrap();
        assert_eq!(read(store.path()).tables.len(), 1, "the table alone");
    }

    #[test]
    fn the_checkpoint_that_is_being_taken_is_known_without_a_number() {
        let (store, name) = scene();
        let mut queue = Queue::default();
        queue.mark(UNFINISHED, Duration::from_secs(100));
        made(&mut queue, "/a");
        Stored::of(&queue).write(store.path(), &name).unwrap();
        let Known { tables, unfinished, start } = stored(store.path(), &name).unwrap().known(store.path(), &name);
        assert!(tables.is_empty() && start.is_none());
        let unfinished = unfinished.unwrap();
        assert_eq!(unfinished.for_engine().newer.len(), 1);
        // The next keeper hands it on to the one after it.
        let earlier = BTreeMap::from([(UNFINISHED, unfinished.clone())]);
        (Stored { earlier, ..Stored::of(&Queue::default()) }).write(store.path(), &name).unwrap();
        let found = stored(store.path(), &name).unwrap().known(store.path(), &name);
        assert_eq!(found, Known { unfinished: Some(unfinished), ..Known::default() });
    }

    #[test]
    fn what_is_too_long_is_left_out_and_that_is_said() {
        let (store, name) = scene();
        let mut queue = Queue::default();
        for number in 1..=3 {
            queue.mark(number, Duration::from_secs(100));
        }
        for number in 0..100 {
            made(&mut queue, &format!("/a/{number}"));
        }
        queue.settle(None);
        let past: Vec<_> = queue.table().past().map(PastLine::from).collect();
        let length_of = |past: &PastLine| length(&serde_json::to_vec(past).unwrap());
        let earlier = BTreeMap::from([(0, Since::default())]);
        let stored = Stored { version: VERSION, earlier, ..Stored::of(&queue) };
        let bytes = stored.encoded(length_of(&past[0]) * 5 / 2).unwrap();
        let stored: Stored = serde_json::from_slice(&bytes).unwrap();
        let known = stored.known(store.path(), &name).tables;
        let known: Vec<_> = known.values().map(Since::for_engine).collect();
        assert_eq!(known.iter().map(|since| since.forgotten).collect::<Vec<_>>(), [true, true, false, false]);
        assert!(known[1].incomplete && known[1].newer.is_empty() && known[1].aside == ".hdcr-aside-a-1");
        assert_eq!(known[3].newer.len(), 100);
    }
}
