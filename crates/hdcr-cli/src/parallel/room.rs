//! The directory of a parallel job in the store.
//!
//! ```text
//! STORE/parallel/NAME/lock            held by the coordinator
//!                     spec.json       what is run, as the last `hdcr job run` had it
//!                     coordinator.pem, agent.json   who may speak with whom
//!                     address         where the coordinator listens
//!                     life            the number of the present life
//!                     lives/N/ledger/ all decisions
//!                             shares/TERM.EPOCH/MEMBER/   an image; MEMBER.json: whose programs are in it
//!                             agents/ who runs where
//!                             journals/MEMBER/            what a roll-back of files replaces
//!                             end.json                    how the life has ended
//! ```
//!
//! A job that begins anew gets another life: nothing of the one before is taken for its own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_image::JobName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure, Result};
use crate::job::{make_private, put};
use crate::settings::Files;

/// How often a lock is tried that others may hold for moments, and the time between.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// What a job runs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) command: Vec<OsString>,
    #[serde(with = "crate::paths")]
    pub(crate) directory: PathBuf,
    pub(crate) members: u32,
    /// Where output and errors of members go, each to a file of its own.
    pub(crate) output: Option<PathBuf>,
    pub(crate) files: Files,
    /// How long a program may stand still.
    pub(crate) lease: Duration,
    /// How long a restore may take, when somebody has chosen that.
    pub(crate) restore: Option<Duration>,
}

/// How a life has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct End {
    /// The exit status of the job.
    pub(crate) status: u8,
}

/// The directory of a job.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    directory: PathBuf,
}

/// The directory of one of its lives.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    directory: PathBuf,
    pub(crate) number: u64,
}

/// Where parallel jobs lie in a store.
fn all(store: &Path) -> PathBuf {
    store.join("parallel")
}

/// The jobs of a store.
pub(crate) fn jobs(store: &Path) -> Vec<JobName> {
    let Ok(entries) = fs::read_dir(all(store)) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| JobName::new(entry.file_name().to_str()?).ok());
    let mut names: Vec<JobName> = names.collect();
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names
}

impl Room {
    /// That of a job, which need not be there.
    pub(crate) fn of(store: &Path, name: &JobName) -> Self {
        Self { directory: all(store).join(name.as_str()) }
    }

    /// That of a job that was run.
    pub(crate) fn existing(store: &Path, name: &JobName) -> Result<Self> {
        let room = Self::of(store, name);
        if room.file("spec.json").exists() {
            return Ok(room);
        }
        Err(Failure::refused("no-such-job", format!("there is no parallel job {name} in {}", store.display()))
            .remedy("`hdcr job list` shows all; `hdcr job run` begins one"))
    }

    /// A file of the job itself.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes the directory and takes its lock; refused when a coordinator lives.
    pub(crate) fn take(&self, name: &JobName) -> Result<File> {
        make_private(&self.directory)?;
        let path = self.file("lock");
        let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(Failure::system(format_args!("opening {}", path.display())))?;
        // Who only looks whether it is held, and a child of a coordinator that was killed before it has become an agent, hold it for
        // moments.
        let mut tried = lock.try_lock();
        for _ in 0..TRIES {
            if !matches!(tried, Err(fs::TryLockError::WouldBlock)) {
                break;
            }
            std::thread::sleep(PAUSE);
            tried = lock.try_lock();
        }
        match tried {
            Ok(()) => Ok(lock),
            Err(fs::TryLockError::WouldBlock) => {
                Err(Failure::refused("job-runs", format!("parallel job {name} is running already")).remedy(format!(
                    "see `hdcr job status {name}`; end it with `hdcr job abort {name}`, or take another --name"
                )))
            }
            Err(fs::TryLockError::Error(error)) => {
                Err(Failure::system(format_args!("locking {}", path.display()))(error))
            }
        }
    }

    /// Whether a coordinator lives.
    pub(crate) fn is_held(&self) -> bool {
        let lock = File::open(self.file("lock"));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
    }

    /// What is run.
    pub(crate) fn spec(&self) -> Result<Option<Spec>> {
        read_json(&self.file("spec.json"))
    }

    /// Says what is run.
    pub(crate) fn set_spec(&self, spec: &Spec) -> Result<()> {
        write_json(&self.file("spec.json"), spec)
    }

    /// Where its coordinator listens, or did.
    pub(crate) fn address(&self) -> Option<String> {
        fs::read_to_string(self.file("address")).ok().map(|text| text.trim().to_owned())
    }

    /// Says where the coordinator listens.
    pub(crate) fn set_address(&self, address: &str) -> Result<()> {
        put(&self.file("address"), address.as_bytes())
    }

    /// The present life, when there is one.
    pub(crate) fn life(&self) -> Result<Option<Life>> {
        let path = self.file("life");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::system(format_args!("reading {}", path.display()))(error)),
        };
        let number = text.trim().parse().map_err(|_| damaged(&path, "it is not a number"))?;
        Ok(Some(self.numbered(number)))
    }

    fn numbered(&self, number: u64) -> Life {
        Life { directory: self.directory.join("lives").join(number.to_string()), number }
    }

    /// Begins another life; those before are removed when nothing of them is needed any more.
    pub(crate) fn begin_life(&self) -> Result<Life> {
        let before = self.life()?;
        let life = self.numbered(before.as_ref().map_or(1, |life| life.number.saturating_add(1)));
        for part in ["ledger", "shares", "agents", "journals"] {
            make_private(&life.file(part))?;
        }
        // Before anything is committed in them.
        for directory in life.directory.ancestors().take(3) {
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(Failure::system(format_args!("syncing {}", directory.display())))?;
        }
        put(&self.file("life"), life.number.to_string().as_bytes())?;
        Ok(life)
    }

    /// Removes lives before this one.
    pub(crate) fn forget_before(&self, life: &Life) {
        let Ok(lives) = fs::read_dir(self.directory.join("lives")) else { return };
        for entry in lives.flatten() {
            let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            if number.is_some_and(|number| number < life.number)
                && let Err(error) = fs::remove_dir_all(entry.path())
            {
                tracing::debug!(%error, "an earlier life of the job was not removed");
            }
        }
    }
}

impl Life {
    /// A file or directory of it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// How it has ended, when it has.
    pub(crate) fn end(&self) -> Result<Option<End>> {
        read_json(&self.file("end.json"))
    }

    /// Says how it has ended.
    pub(crate) fn set_end(&self, end: End) -> Result<()> {
        write_json(&self.file("end.json"), &end)
    }
}

/// Reads a file of the job, when it is there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(path, &error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::system(format_args!("reading {}", path.display()))(error)),
    }
}

/// Writes a file of the job, whole or not at all.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(Failure::system("encoding a file of a job"))?;
    put(path, &bytes)
}

/// A file of the job is not what was written.
pub(crate) fn damaged(path: &Path, why: &str) -> Failure {
    Failure::new(Class::Corrupt, "job-damaged", format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_follows_another() {
        let store = tempfile::tempdir().unwrap();
        let name = JobName::new("sim").unwrap();
        let room = Room::of(store.path(), &name);
        assert!(Room::existing(store.path(), &name).is_err() && room.life_or_none().is_none());
        let lock = room.take(&name).unwrap();
        assert!(room.is_held() && room.take(&name).is_err_and(|failure| failure.code == "job-runs"));
        let first = room.begin_life().unwrap();
        first.set_end(End { status: 3 }).unwrap();
        assert_eq!(first.end().unwrap(), Some(End { status: 3 }));
        let second = room.begin_life().unwrap();
        assert_eq!((first.number, second.number, second.end().unwrap()), (1, 2, None));
        room.forget_before(&second);
        assert!(!first.file("ledger").exists() && second.file("ledger").exists());
        fs::write(second.file("end.json"), "{").unwrap();
        assert!(second.end().is_err_and(|failure| failure.class == Class::Corrupt));
        drop(lock);
        assert!(!room.is_held());
    }

    impl Room {
        fn life_or_none(&self) -> Option<Life> {
            self.life().unwrap()
        }
    }
}
