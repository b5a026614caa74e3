//! Programs of jobs that were restored by hand (`hdcr restore NAME`): they have no keeper, and a keeper that brought the job
//! back beside one of them would make a second copy of it, which writes the same files.
//!
//! `STORE/.jobs/NAME.restored` lists them; who is dead is left out when it is written anew.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_image::JobName;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Result};
use crate::host::Host;
use crate::job::{is_at, make_private};
use crate::orphan;
use crate::process;
use crate::task::Place;

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ByHand {
    /// Its first process, as it is numbered where it was restored.
    pub(crate) pid: i32,
    born: i64,
    /// The number of its checkpoint.
    pub(crate) number: u64,
    host: Host,
}

pub(crate) fn path(store: &Path, name: &JobName) -> PathBuf {
    store.join(".jobs").join(format!("{name}.restored"))
}

/// The turn of a command that brings a job to life: from before it looks whether the job lives until whoever looks next can
/// see that it does. Else two of them would look at the same moment, and bring it back twice.
#[derive(Debug)]
pub(crate) struct JobTurn {
    path: PathBuf,
    lock: Option<fs::File>,
}

impl JobTurn {
    /// Takes the turn; another command is waited for, for a moment. Where nothing can be written (a store that is only read),
    /// it is nobody's.
    pub(crate) fn take(store: &Path, name: &JobName) -> Result<Self> {
        const TRIES: usize = 100;
        const PAUSE: Duration = Duration::from_millis(20);
        let path = store.join(".jobs").join(format!("{name}.turn"));
        for _ in 0..TRIES {
            let opened = make_private(&store.join(".jobs")).and_then(|()| {
                let mut options = fs::OpenOptions::new();
                let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
                options.create(true).truncate(false).write(true).mode(0o600).custom_flags(flags);
                options.open(&path).map_err(Failure::system(format_args!("opening {}", path.display())))
            });
            let lock = match opened {
                Ok(lock) => lock,
                Err(failure) => {
                    tracing::debug!(%failure, "others will not see that the job begins");
                    return Ok(Self { path, lock: None });
                }
            };
            match lock.try_lock() {
                Ok(()) if is_at(&lock, &path) => return Ok(Self { path, lock: Some(lock) }),
                Err(fs::TryLockError::Error(error)) => {
                    tracing::debug!(%error, "others will not see that the job begins");
                    return Ok(Self { path, lock: None });
                }
                Ok(()) | Err(fs::TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            }
        }
        let message = format!("another command is bringing job {name} to life at this moment");
        Err(Failure::refused("job-begins", message).remedy("see `hdcr ps` and `hdcr list` when it has done so"))
    }
}

impl Drop for JobTurn {
    fn drop(&mut self) {
        if self.lock.as_ref().is_some_and(|lock| is_at(lock, &self.path)) {
            fs::remove_file(&self.path).ok();
        }
    }
}

/// A list that cannot be read is not an empty one: it may name a program that runs.
fn read(store: &Path, name: &JobName) -> Result<Vec<ByHand>> {
    let path = path(store, name);
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Failure::system(format_args!("reading {}", path.display())))?,
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::system(format_args!("reading {}, which names programs of job {name} that run", path.display()))(error)
            .remedy("see that no program of the job runs any more, and remove that file")
    })
}

impl ByHand {
    fn lives(&self) -> bool {
        self.host.is_this_boot() && process::born(self.pid) == Some(self.born) && process::lives(self.pid)
    }
}

fn write(store: &Path, name: &JobName, all: &[ByHand]) -> Result<()> {
    let path = path(store, name);
    let doing = || Failure::system::<std::io::Error>(format!("writing {}", path.display()));
    if all.is_empty() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(doing()(error)),
            Ok(()) | Err(_) => Ok(()),
        };
    }
    let directory = store.join(".jobs");
    make_private(&directory)?;
    let mut file = tempfile::NamedTempFile::new_in(&directory).map_err(doing())?;
    file.write_all(&serde_json::to_vec(all).map_err(Failure::system("encoding a list"))?).map_err(doing())?;
    file.persist(&path).map_err(|error| doing()(error.error))?;
    Ok(())
}

/// The list, as it is changed by one command at a time: two would lose what the other one adds.
#[derive(Debug)]
struct Writing {
    _locked: Option<fs::File>,
}

impl Writing {
    /// Waits for its turn, but not for ever: who has stopped with it does not stop others. The list itself is put in place
    /// anew each time, so that its directory is what is locked.
    fn begin(store: &Path) -> Self {
        const TRIES: usize = 400;
        const PAUSE: Duration = Duration::from_millis(5);
        let directory = store.join(".jobs");
        let opened = make_private(&directory).ok().and_then(|()| fs::File::open(&directory).ok());
        let Some(file) = opened else { return Self { _locked: None } };
        for _ in 0..TRIES {
            match file.try_lock() {
                Ok(()) => return Self { _locked: Some(file) },
                Err(fs::TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
                Err(fs::TryLockError::Error(_)) => break,
            }
        }
        tracing::debug!(path = %directory.display(), "others may change a list at the same time");
        Self { _locked: None }
    }
}

/// Leaves out who is dead, and adds one.
fn change(place: &Place, new: Option<(i32, i64)>) {
    let Place::Store { root, job, number } = place else { return };
    let Ok(name) = JobName::new(job.as_str()) else { return };
    let _writing = Writing::begin(root);
    // One that cannot be read stays, and is told of by whoever asks.
    let mut all = match read(root, &name) {
        Ok(all) => all,
        Err(failure) => return tracing::debug!(%failure, "nobody will know of the restored program"),
    };
    all.retain(|other| other.lives() || other.host.is_elsewhere());
    if let Some((pid, born)) = new {
        all.push(ByHand { pid, born, number: *number, host: Host::here() });
    }
    if let Err(failure) = write(root, &name, &all) {
        tracing::debug!(%failure, "nobody will know of the restored program");
    }
}

/// Remembers a program that runs again. A store that cannot be written is no reason to end it.
pub(crate) fn runs(place: &Place, pid: i32) {
    change(place, process::born(pid).map(|born| (pid, born)));
}

/// Forgets programs that have ended. One that has the number of another by now is not that one.
pub(crate) fn has_ended(place: &Place) {
    change(place, None);
}

/// Those of a job that live here.
pub(crate) fn living(store: &Path, name: &JobName) -> Result<Vec<ByHand>> {
    Ok(read(store, name)?.into_iter().filter(ByHand::lives).collect())
}

/// All of a store that live here, by job. A list that cannot be read is told of.
pub(crate) fn all(store: &Path) -> Vec<(JobName, ByHand)> {
    let Ok(entries) = fs::read_dir(store.join(".jobs")) else { return Vec::new() };
    let file_names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let names = file_names.filter_map(|file| JobName::new(file.strip_suffix(".restored")?).ok());
    let mut names: Vec<JobName> = names.collect();
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    let mut found = Vec::new();
    for name in names {
        match living(store, &name) {
            Ok(living) => found.extend(living.into_iter().map(|program| (name.clone(), program))),
            Err(failure) => tracing::warn!(%failure, "programs that were restored by hand are not known"),
        }
    }
    found
}

/// Ends a program: all of its processes, asked first.
pub(crate) fn end(store: &Path, name: &JobName, program: &ByHand, grace: Duration) -> Result<()> {
    let path = path(store, name);
    let found = fs::symlink_metadata(&path).map_err(Failure::system(format_args!("looking at {}", path.display())))?;
    if found.uid() != rustix::process::geteuid().as_raw() {
        let message = format!("{} was written by user {}", path.display(), found.uid());
        return Err(Failure::refused("record-owner", message).remedy("end the program as the user whose it is"));
    }
    orphan::end_tree(program.pid, program.born, grace)?;
    let _writing = Writing::begin(store);
    let mut all = read(store, name)?;
    all.retain(|other| other.lives() || other.host.is_elsewhere());
    write(store, name, &all)
}

/// Refuses a job of which a program that was restored by hand still runs, here or (unless `take_over`) elsewhere.
pub(crate) fn refuse_beside(store: &Path, name: &JobName, take_over: bool) -> Result<()> {
    let _writing = take_over.then(|| Writing::begin(store));
    let all = read(store, name)?;
    if let Some(living) = all.iter().find(|other| other.lives()) {
        let ByHand { pid, number, .. } = living;
        let message =
            format!("the program of job {name} runs, as pid {pid}: it was restored by hand from {name}@{number}");
        return Err(Failure::refused("job-runs", message)
            .remedy(format!("end it first (`hdcr stop {pid}`), or take another --name or --store")));
    }
    match all.iter().find(|other| other.host.is_elsewhere()) {
        Some(other) if !take_over => Err(other.host.refusal(name.as_str())),
        Some(_) => write(store, name, &[]),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_one_commands_and_leaves_nothing() {
        let store = tempfile::tempdir().unwrap();
        let name = JobName::new("sim").unwrap();
        let turn = JobTurn::take(store.path(), &name).unwrap();
        assert!(turn.lock.is_some());
        assert_eq!(JobTurn::take(store.path(), &name).unwrap_err().code, "job-begins");
        drop(turn);
        assert!(!store.path().join(".jobs/sim.turn").exists());
        drop(JobTurn::take(store.path(), &name).unwrap());
    }

    #[test]
    fn the_living_are_known_and_the_dead_forgotten() {
        let store = tempfile::tempdir().unwrap();
        let name = JobName::new("sim").unwrap();
        let place = Place::Store { root: store.path().to_owned(), job: "sim".to_owned(), number: 3 };
        refuse_beside(store.path(), &name, false).unwrap();
        let own = std::process::id().cast_signed();
        runs(&place, own);
        let listed = all(store.path());
        assert!(matches!(&listed[..], [(job, one)] if *job == name && one.pid == own && one.number == 3), "{listed:?}");
        let refused = refuse_beside(store.path(), &name, true).unwrap_err();
        assert!(refused.code == "job-runs" && refused.message.contains(&format!("pid {own}")), "{refused}");
        // One that has ended does not take another one with it.
        has_ended(&place);
        assert_eq!(living(store.path(), &name).unwrap().len(), 1);
        // One that has its number now is not it.
        let dead = ByHand { pid: own, born: 1, number: 3, host: Host::here() };
        write(store.path(), &name, &[dead]).unwrap();
        refuse_beside(store.path(), &name, false).unwrap();
        has_ended(&place);
        assert!(!path(store.path(), &name).exists());
        let text = r#"[{"pid":1,"born":1,"number":3,"host":{"machine":"m","host":"far","boot":"b"}}]"#;
        fs::write(path(store.path(), &name), text).unwrap();
        let refused = refuse_beside(store.path(), &name, false).unwrap_err();
        assert!(refused.code == "job-elsewhere" && refused.message.contains("far"), "{refused}");
        refuse_beside(store.path(), &name, true).unwrap();
        refuse_beside(store.path(), &name, false).unwrap();
        // One that lost its end may have named somebody.
        for cut in ["", &text[..40]] {
            fs::write(path(store.path(), &name), cut).unwrap();
            runs(&place, own);
            let refused = refuse_beside(store.path(), &name, true).unwrap_err();
            assert!(refused.message.contains("sim.restored") && refused.remedy.is_some(), "{refused}");
            assert_eq!(fs::read_to_string(path(store.path(), &name)).unwrap(), cut);
        }
    }

    /// Several `hdcr restore --new-pids --detach` at the same moment.
    #[test]
    fn programs_that_begin_at_the_same_moment_are_all_known() {
        let store = tempfile::tempdir().unwrap();
        let name = JobName::new("sim").unwrap();
        let place = Place::Store { root: store.path().to_owned(), job: "sim".to_owned(), number: 3 };
        let sleeper = || std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let mut programs: Vec<_> = (0..16).map(|_| sleeper()).collect();
        std::thread::scope(|scope| {
            for program in &programs {
                scope.spawn(|| runs(&place, program.id().cast_signed()));
            }
        });
        let known = living(store.path(), &name).unwrap();
        for program in &mut programs {
            program.kill().unwrap();
            program.wait().unwrap();
        }
        assert_eq!(known.len(), programs.len());
        has_ended(&place);
        assert!(!path(store.path(), &name).exists());
    }
}
