//! A job as it is remembered beside its checkpoints: what it runs, and how it ended.
//!
//! `STORE/.jobs/NAME.json` is the record; `STORE/.jobs/NAME.lock` is locked by the keeper as long as it lives.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hdcr_image::JobName;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};
use crate::host::Host;
use crate::keeper::remembered;
use crate::parts;
use crate::process;

/// How a job stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It runs, or its keeper ended without a word (a reboot, a kill).
    Running,
    /// It was checkpointed and ended, was interrupted, or given up: it can go on.
    Paused,
    /// Its program ended by itself, or it was stopped for good.
    Ended,
}

/// What is remembered of a job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) command: Vec<OsString>,
    #[serde(with = "crate::paths")]
    pub(crate) directory: PathBuf,
    pub(crate) state: State,
    /// Its last exit status as a shell shows it.
    pub(crate) status: Option<u8>,
    /// Checkpoints up to this number belong to an earlier run of the same name.
    pub(crate) after: u64,
    /// The first process of the program.
    pub(crate) main: i32,
    /// Its birth in clock ticks since the boot, to know it again.
    pub(crate) main_born: i64,
    /// The machine on which it was born, and its boot.
    #[serde(flatten)]
    pub(crate) host: Host,
    /// It has a pid namespace of its own.
    pub(crate) private_pids: bool,
    /// How often it was brought back from a checkpoint, or begun anew after a crash.
    #[serde(default)]
    pub(crate) returned: u64,
    /// The present life came from a checkpoint that was not the newest, and has made none yet.
    #[serde(default)]
    pub(crate) went_back: Option<WentBack>,
}

/// A roll-back to an older checkpoint than the newest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct WentBack {
    pub(crate) to: u64,
    /// The newest one then: those up to here that `to` does not come from were made by a life that was given up.
    pub(crate) newest: u64,
}

/// What a keeper does with a record that it finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Start {
    /// Begin with nothing.
    Anew,
    /// Likewise, after a life that was cut short before its first checkpoint: among the files that there were before it.
    Again,
    /// Go on from the newest checkpoint of the run.
    GoOn,
}

/// Decides whether a run goes on; `newest` is the newest checkpoint that the store has of the job.
pub(crate) fn start(record: Option<&Record>, command: &[OsString], newest: Option<u64>, fresh: bool) -> Result<Start> {
    let Some(record) = record else { return Ok(Start::Anew) };
    let resumable = record.state != State::Ended && newest.is_some_and(|newest| newest > record.after);
    if !fresh && record.state != State::Ended && !resumable && record.command == command {
        return Ok(Start::Again);
    }
    if fresh || !resumable {
        return Ok(Start::Anew);
    }
    if record.command != command {
        let old = show(&record.command);
        return Err(Failure::refused("other-command", format!("the job has checkpoints of another command: {old}"))
            .remedy("give the same command to go on, --fresh to begin anew, or another --name"));
    }
    Ok(Start::GoOn)
}

/// A command as a user may have typed it.
pub(crate) fn show(command: &[OsString]) -> String {
    let words = command.iter().map(|word| {
        let word = word.to_string_lossy();
        if word.chars().any(char::is_control) {
            return format!("$'{}'", word.escape_debug());
        }
        let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,+@%^".contains(c));
        if plain { word.into_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A name for a job of this command: its last path component with what a name cannot hold left out.
pub(crate) fn name_of(command: &[OsString]) -> String {
    let last = command.first().and_then(|word| Path::new(word).file_name()).unwrap_or_default();
    let kept: String =
        last.to_string_lossy().chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(40).collect();
    let kept = kept.trim_start_matches(['.', '-']);
    if kept.is_empty() { "job".to_owned() } else { kept.to_owned() }
}

/// The record of a job, held by its keeper; nobody else can hold it at the same time.
#[derive(Debug)]
pub(crate) struct Held {
    store: PathBuf,
    name: JobName,
    path: PathBuf,
    lock: File,
}

/// Times that a lock is tried for: somebody may look whether a job is held, or remove the file of a job that he forgets.
const TRIES: usize = 20;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

impl Held {
    /// Takes hold of a job; refused when its keeper lives.
    pub(crate) fn take(store: &Path, name: &JobName) -> Result<Self> {
        let directory = store.join(".jobs");
        make_private(&directory).map_err(|failure| {
            failure.remedy("name a store that you can write with --store, HDCR_STORE or in the configuration file")
        })?;
        let path = directory.join(format!("{name}.json"));
        let lock_path = path.with_extension("lock");
        for _ in 0..TRIES {
            let lock = fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                .open(&lock_path);
            let lock = lock.map_err(Failure::system(format_args!("opening {}", lock_path.display())))?;
            match lock.try_lock() {
                Ok(()) if is_at(&lock, &lock_path) => {
                    return Ok(Self { store: store.to_owned(), name: name.clone(), path, lock });
                }
                Ok(()) | Err(fs::TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
                Err(fs::TryLockError::Error(error)) => {
                    return Err(Failure::system(format_args!("locking {}", lock_path.display()))(error));
                }
            }
        }
        Err(Failure::refused("job-runs", format!("job {name} is running already"))
            .remedy(format!("see `hdcr ps`; end it with `hdcr stop {name}`, or take another --name")))
    }

    /// Whether what is held is still found under its name: else somebody has removed the store, or something in it.
    pub(crate) fn is_there(&self) -> bool {
        self.is_locked() && self.path.exists()
    }

    /// Whether the lock is still the one that others meet.
    pub(crate) fn is_locked(&self) -> bool {
        is_at(&self.lock, &self.path.with_extension("lock"))
    }

    /// Reads the record, if there is one.
    pub(crate) fn read(&self) -> Result<Option<Record>> {
        read(&self.path)
    }

    /// Writes the record, whole or not at all.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record).map_err(Failure::system("encoding the record of a job"))?;
        let written = parts::with_room(&self.store, &self.name, || write_whole(&self.path, &bytes));
        written.map_err(Failure::system(format_args!("writing {}", self.path.display())))
    }
}

impl Held {
    /// Forgets the job.
    pub(crate) fn forget(self) -> Result<()> {
        let (record, touched) = (self.path.clone(), self.path.with_extension("touched"));
        let parts = [part_of(&record), part_of(&touched), remembered::log_of(&touched)];
        for path in parts.into_iter().chain([touched, record.with_extension("restored"), record]) {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Failure::system(format_args!("removing {}", path.display()))(error)),
            }
        }
        Ok(())
    }
}

impl Drop for Held {
    /// A job without a record is none.
    fn drop(&mut self) {
        if !self.path.exists()
            && self.is_locked()
            && let Err(error) = fs::remove_file(self.path.with_extension("lock"))
        {
            tracing::debug!(%error, "the lock of a job that is none was not removed");
        }
    }
}

/// Puts a file of a job in place, whole or not at all. Whoever holds the job is the only one to do so, so that what a killed
/// keeper has left half written has the name of the next one.
pub(crate) fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, bytes).map_err(Failure::system(format_args!("writing {}", path.display())))
}

fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = part_of(path);
    let written = new_file(&part, bytes).and_then(|file| file.sync_all());
    written.and_then(|()| fs::rename(&part, path)).inspect_err(|_| {
        // Half of it would only take room.
        fs::remove_file(&part).ok();
    })
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// A private file that begins with these bytes, in the place of what was there.
pub(crate) fn new_file(path: &Path, bytes: &[u8]) -> std::io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Whether an open file still has this name, so that its lock means something.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    let here = file.metadata().map(identity).ok();
    here.is_some() && here == fs::symlink_metadata(path).map(identity).ok()
}

/// Whether somebody holds a job now.
pub(crate) fn is_held(store: &Path, name: &JobName) -> bool {
    let lock = File::open(store.join(".jobs").join(format!("{name}.lock")));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

/// Reads the record of a job that may be held by its keeper.
pub(crate) fn peek(store: &Path, name: &JobName) -> Result<Option<Record>> {
    read(&store.join(".jobs").join(format!("{name}.json")))
}

/// A record names a process to be killed: one that somebody else has written is not believed.
pub(crate) fn refuse_foreign(store: &Path, name: &JobName) -> Result<()> {
    let path = store.join(".jobs").join(format!("{name}.json"));
    let found = fs::symlink_metadata(&path).map_err(Failure::system(format_args!("looking at {}", path.display())))?;
    let own = rustix::process::geteuid().as_raw();
    if found.uid() == own && found.is_file() {
        return Ok(());
    }
    let message = format!("{} was written by user {}, and you are user {own}", path.display(), found.uid());
    Err(Failure::refused("record-owner", message).remedy("end the job as the user whose job it is"))
}

fn read(path: &Path) -> Result<Option<Record>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(Failure::system(format_args!("reading {}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::system(format_args!("reading {}", path.display()))(error)),
    }
}

/// Forgets a job that has no keeper and no checkpoints any more.
pub(crate) fn forget(store: &Path, name: &JobName) -> Result<()> {
    Held::take(store, name)?.forget()
}

/// A directory that only its owner can look into, made when it is missing.
pub(crate) fn make_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(Failure::system(format_args!("making directory {}", path.display())))
}

/// Refuses a job that another machine runs, as far as its record tells.
pub(crate) fn refuse_elsewhere(record: Option<&Record>, name: &JobName) -> Result<()> {
    match record {
        Some(record) if record.state == State::Running && record.host.is_elsewhere() => {
            Err(record.host.refusal(name.as_str()))
        }
        Some(_) | None => Ok(()),
    }
}

impl Record {
    /// The program of an earlier keeper still runs although that keeper is gone.
    pub(crate) fn orphaned(&self) -> bool {
        self.state == State::Running && self.program_lives()
    }

    /// Its program lives, as far as it can be known from here: it is the very process, not one with its number after it,
    /// or after a reboot.
    pub(crate) fn program_lives(&self) -> bool {
        let same = self.host.is_this_boot() && process::born(self.main) == Some(self.main_born);
        !self.private_pids && same && process::lives(self.main)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    fn record(state: State) -> Record {
        Record {
            command: words("sim -n 3"),
            directory: PathBuf::from("/"),
            state,
            status: None,
            after: 4,
            main: 0,
            main_born: 0,
            host: Host::default(),
            private_pids: false,
            returned: 0,
            went_back: None,
        }
    }

    #[test]
    fn the_record_of_another_user_kills_nobody() {
        let store = tempfile::tempdir().unwrap();
        let name = JobName::new("a".to_owned()).unwrap();
        fs::create_dir(store.path().join(".jobs")).unwrap();
        let path = store.path().join(".jobs/a.json");
        fs::write(&path, "{}").unwrap();
        refuse_foreign(store.path(), &name).unwrap();
        // Only root can give a file away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert_eq!(refuse_foreign(store.path(), &name).unwrap_err().code, "record-owner");
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/proc/self/status", &path).unwrap();
        assert_eq!(refuse_foreign(store.path(), &name).unwrap_err().code, "record-owner");
    }

    #[test]
    fn a_job_goes_on_only_when_it_did_not_end() {
        let same = words("sim -n 3");
        for (state, newest, fresh, expected) in [
            (State::Running, Some(5), false, Start::GoOn),
            (State::Paused, Some(9), false, Start::GoOn),
            (State::Ended, Some(5), false, Start::Anew),
            (State::Running, Some(4), false, Start::Again),
            (State::Paused, None, false, Start::Again),
            (State::Running, None, false, Start::Again),
            (State::Running, None, true, Start::Anew),
            (State::Ended, None, false, Start::Anew),
            (State::Running, Some(5), true, Start::Anew),
        ] {
            assert_eq!(start(Some(&record(state)), &same, newest, fresh), Ok(expected), "{state:?} {newest:?} {fresh}");
        }
        assert_eq!(start(None, &same, Some(5), false), Ok(Start::Anew));
        let other = start(Some(&record(State::Running)), &words("sim -n 4"), Some(5), false).unwrap_err();
        assert!(other.to_string().contains("sim -n 3"));
        assert_eq!(start(Some(&record(State::Ended)), &words("x"), Some(5), false), Ok(Start::Anew));
        assert_eq!(start(Some(&record(State::Running)), &words("x"), None, false), Ok(Start::Anew));
    }

    #[test]
    fn a_program_of_an_earlier_boot_is_another_one() {
        let main = std::process::id().cast_signed();
        let main_born = process::born(main).unwrap();
        let mut own = Record { main, main_born, host: Host::here(), ..record(State::Running) };
        assert!(own.orphaned());
        let mut value = serde_json::to_value(&own).unwrap();
        value["boot"] = "10f7e6a2-0000-0000-0000-000000000000".into();
        own = serde_json::from_value(value).unwrap();
        assert!(!own.orphaned());
        own = Record { host: Host::here(), main_born: main_born - 1, ..own };
        assert!(!own.orphaned());
    }

    #[test]
    fn names_come_from_commands() {
        for (command, name) in [
            ("/usr/bin/python3 a.py", "python3"),
            ("./run.sh", "run.sh"),
            ("/", "job"),
            ("..", "job"),
            (".x", "x"),
            ("a@b", "ab"),
        ] {
            assert_eq!(name_of(&words(command)), name);
            JobName::new(name_of(&words(command))).unwrap();
        }
        assert_eq!(
            show(&[OsString::from("sh"), OsString::from("-c"), OsString::from("echo 'a'")]),
            r"sh -c 'echo '\''a'\'''"
        );
    }

    #[test]
    fn a_record_is_held_by_one_and_read_by_all() {
        let store = tempfile::tempdir().unwrap();
        let name = JobName::new("a").unwrap();
        let held = Held::take(store.path(), &name).unwrap();
        assert_eq!(held.read().unwrap(), None);
        assert!(is_held(store.path(), &name) && !held.is_there());
        held.write(&record(State::Running)).unwrap();
        assert!(held.is_there());
        assert_eq!(Held::take(store.path(), &name).unwrap_err().code, "job-runs");
        assert_eq!(peek(store.path(), &name).unwrap(), Some(record(State::Running)));
        // What a killed keeper has left half written.
        fs::write(part_of(&held.path), "{").unwrap();
        held.write(&record(State::Paused)).unwrap();
        assert_eq!(peek(store.path(), &name).unwrap(), Some(record(State::Paused)));
        assert_eq!(fs::read_dir(store.path().join(".jobs")).unwrap().count(), 2);
        drop(held);
        // A child that another test is just starting has a copy of the lock until its exec.
        let forgotten = (0..10_000).any(|_| {
            std::thread::yield_now();
            forget(store.path(), &name).is_ok()
        });
        assert!(forgotten);
        assert_eq!(peek(store.path(), &name).unwrap(), None);
    }
}
