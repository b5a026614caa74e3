//! Where the concrete parts meet: which mechanism, which store, which clock. The only file that names them.

mod checkpoints;
mod journals;
mod mechanisms;
pub(crate) mod retention;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use hdcr_engine::checkpoint::{
    self, Blind, CompressionRequest, EndPolicy, EndRequest, FilePolicy, FileRequest, Omitted, Request, SnapshotRequest,
};
use hdcr_engine::error::Error;
use hdcr_engine::ids::Pid;
use hdcr_engine::mechanism::{Deadline, Mechanism, MechanismError, Parent, Scope};
use hdcr_engine::progress::{Phase, Progress};
use hdcr_engine::restore::{self, Afterwards, Options, Told};
use hdcr_engine::show;
use hdcr_image::{Compression, ImageReader, JobName, Manifest, Outline, Sink, SnapshotId, Source};
use hdcr_ptrace::{Faults, Ptrace};
use hdcr_store::{DirectorySink, DirectoryStore, Durability, Entry, FileSink, Selector, open_path};

use crate::busy;
use crate::failure::{Failure, Obstacle, Result};
use crate::filling::{self, Unfilled, micros};
use crate::kinds::{self, PathMap};
use crate::machine;
use crate::names;
use crate::process;
use crate::progress::{Doing, Step};
use crate::task::{CheckpointTask, Gate, Place, Reply, RestoreTask, Restored, Target, Who};
use crate::terminal::Terminal;
use crate::told::{Since, Touched};

pub(crate) use checkpoints::{Listener, Session, checkpoint};
use journals::{HeldJournal, journal_name, keep_room};
pub(crate) use journals::{files_as_before, forget_files, forget_room, repair_files, settle_files, with_room};
pub(crate) use mechanisms::module;

/// So many bytes of names of files go into a message; a whole one may be a few times as long.
const MOST_NAMES: usize = 8 << 20;

/// How many ancestors a manifest names.
const LINEAGE: usize = 64;

/// The mechanism of this machine.
#[expect(clippy::disallowed_methods, reason = "trials name the call after which the mechanism is to die")]
fn mechanism() -> Ptrace {
    let die_after = std::env::var("HDCR_TRIAL_DIE_AFTER").ok().and_then(|text| text.parse().ok());
    Ptrace::new(Faults { die_after, ..Faults::default() })
}

/// Whether a keeper may follow the program.
fn is_followed(task: &CheckpointTask) -> bool {
    match task.who {
        Who::Tree(pid) => process::is_kept(pid),
        Who::Below(_) => task.stays,
    }
}

/// The rule that a trial leaves out, to show that an image without it is wrong.
#[expect(clippy::disallowed_methods, reason = "trials name the rule that is left out")]
fn blind() -> Option<Blind> {
    match std::env::var("HDCR_TRIAL_BLIND").ok()?.as_str() {
        "writes" => Some(Blind::Writes),
        "new_mappings" => Some(Blind::NewMappings),
        "gone" => Some(Blind::Gone),
        "private_files" => Some(Blind::PrivateFiles),
        _ => None,
    }
}

fn store(root: &Path) -> DirectoryStore {
    DirectoryStore::open(root, Durability::Fsync)
}

/// Tells the steps of the engine to a function that never waits.
pub(crate) fn steps_to(tell: impl Fn(Step) + Send + Sync + 'static) -> Progress {
    Progress::to(move |report| {
        let doing = match report.phase {
            Phase::Copying => Doing::Copying,
            Phase::Reading => Doing::Reading,
            Phase::Writing => Doing::Writing,
            Phase::Settling => Doing::Settling,
            Phase::Filling => Doing::Filling,
        };
        tell(Step { doing, done: report.done, total: report.total, round: report.round });
    })
}

fn omitted(task: &CheckpointTask) -> Omitted {
    let mut all = Omitted::default();
    for (pid, start, end) in &task.omitted {
        all.add(Pid(*pid), &(*start..*end));
    }
    all
}

fn request(task: &CheckpointTask, progress: Progress, by_module: bool) -> Request {
    let policy = |policy| match policy {
        kinds::FilePolicy::Auto => FilePolicy::Auto,
        kinds::FilePolicy::Content => FilePolicy::Content,
        kinds::FilePolicy::Truncate => FilePolicy::Truncate,
        kinds::FilePolicy::Verify => FilePolicy::Verify,
        kinds::FilePolicy::Ignore => FilePolicy::Ignore,
    };
    let rules = task.files.policies.iter().map(|rule| (rule.path.clone(), policy(rule.policy)));
    let ends = match task.files.ends {
        kinds::EndPolicy::Refuse => EndPolicy::Refuse,
        kinds::EndPolicy::Close => EndPolicy::Close,
        kinds::EndPolicy::Reconnect => EndPolicy::Reconnect,
    };
    Request {
        scope: match task.who {
            Who::Tree(pid) => Scope::Tree(Pid(pid)),
            Who::Below(pid) => Scope::Below(Pid(pid)),
        },
        by: Deadline(Instant::now() + task.timeout),
        files: FileRequest {
            always: task.files.always.clone(),
            limit: task.files.limit,
            touched: Vec::new(),
            policies: rules.collect(),
            clones: match &task.target {
                Target::Store { root, .. } => Some(root.clone()),
                Target::Directory(path) => path.parent().map(Path::to_owned),
                Target::File(_) => None,
            },
            own: own(task),
        },
        ends: EndRequest { default: ends, keepers: task.keepers.clone() },
        compression: match task.files.compress {
            kinds::Compress::Auto => CompressionRequest::Auto,
            kinds::Compress::None => CompressionRequest::Always(Compression::None),
            kinds::Compress::Lz4 => CompressionRequest::Always(Compression::Lz4),
            kinds::Compress::Zstd => CompressionRequest::Always(Compression::Zstd(3)),
        },
        snapshot: match task.files.snapshot {
            _ if by_module => SnapshotRequest::Copy,
            kinds::Snapshot::Auto => SnapshotRequest::Auto,
            kinds::Snapshot::Precopy => SnapshotRequest::Ahead,
            kinds::Snapshot::Fork => SnapshotRequest::Fork,
            kinds::Snapshot::Stop => SnapshotRequest::Copy,
        },
        followed: is_followed(task),
        omitted: omitted(task),
        blind: blind(),
        unseen: by_module,
        progress,
    }
}

/// The store, or the image: no file of the program, should it lie among those that are always kept.
fn own(task: &CheckpointTask) -> Vec<PathBuf> {
    let path = match &task.target {
        Target::Store { root, .. } => root,
        Target::Directory(path) | Target::File(path) => return vec![path.clone()],
    };
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let root = real(path);
    // Where the program works in the store itself its files are among those of the store.
    if task.files.always.iter().any(|top| real(top).starts_with(&root)) {
        return ["jobs", ".jobs", ".rollback", ".live", ".programs"].map(|name| root.join(name)).to_vec();
    }
    vec![root]
}

/// Where the image is written, and its path when that is not a store.
fn sink(target: &Target, programs: u64) -> Result<(Box<dyn Sink>, Option<PathBuf>)> {
    match target {
        Target::Store { root, job } => {
            Ok((Box::new(store(root).with_programs(programs).begin(&job_name(job)?)?), None))
        }
        Target::Directory(path) => Ok((Box::new(DirectorySink::create(path, Durability::Fsync)?), Some(path.clone()))),
        Target::File(path) => Ok((Box::new(FileSink::create(path, Durability::Fsync)?), Some(path.clone()))),
    }
}

/// The checkpoint at a place with all it came from, newest first.
fn lineage_from(place: &Place) -> Result<Vec<SnapshotId>> {
    let manifest = manifest(place)?;
    Ok(std::iter::once(manifest.id).chain(manifest.facts.lineage).take(LINEAGE).collect())
}

fn options(task: &RestoreTask, stdio: [OwnedFd; 3], journal: Option<PathBuf>, asked_by: Option<i32>) -> Options {
    Options {
        parent: Parent::CallersParent,
        afterwards: if task.detach { Afterwards::Leaves } else { Afterwards::Stays },
        stdio,
        map_path: task.map_path.iter().map(|PathMap { old, new }| (old.clone(), new.clone())).collect(),
        by: Deadline(Instant::now() + task.timeout),
        journal,
        since: task.since.as_ref().map(Since::for_engine),
        asked_by: asked_by.map(Pid),
        progress: Progress::default(),
        lazily: None,
        greeting: Vec::new(),
    }
}

/// Restores an image for a process, our parent; the roots become its children.
///
/// `told` is called before the program runs, and when it does, before the roll-back of its files is final.
pub(crate) fn restore(
    task: &RestoreTask,
    progress: Progress,
    stdio: [OwnedFd; 3],
    asked_by: Option<i32>,
    told: &mut dyn FnMut(Reply) -> Result<()>,
) -> Result<Option<Unfilled>> {
    let began = Instant::now();
    // Before there are threads, and a large index that it would have a copy of.
    let is_lazy = task.lazy != kinds::Lazy::Never;
    let mut standby = if is_lazy { filling::standby(&outline(&task.place)?, task.lazy)? } else { None };
    let image = Arc::new(open(&task.place)?);
    machine::fits(&image.manifest().facts)?;
    let mechanism = mechanism();
    let journal = HeldJournal::take(&task.journals, &journal_name(&task.place, image.manifest()))?;
    let options = options(task, stdio, Some(journal.directory().to_owned()), asked_by);
    let greeting = machine::greeting(task, &image.manifest().facts)?;
    let options = Options { progress, lazily: filling::lazily(standby.as_ref(), task.lazy)?, greeting, ..options };
    let mut is_filling = false;
    let filling = restore::restore(&mechanism, &image, &options, &mut |what| {
        let said = match what {
            Told::BeforeAllIsThere(pids) => {
                is_filling = true;
                let told = standby.as_mut().map(|standby| standby.tell(&filling::numbers(&pids)));
                told.transpose().map(|_| ())
            }
            Told::Built => task.by_gates.map_or(Ok(()), |_| told(Reply::At(Gate::Built))),
            Told::GoesNext(group) => {
                if let Some(parent) = asked_by.filter(|_| !task.detach) {
                    Terminal::hand_over_before(group, parent);
                }
                told(Reply::GoesNext)
            }
            Told::Runs(restored) => told(Reply::Restored(Restored {
                roots: filling::numbers(&restored.roots),
                processes: restored.processes,
                total_us: micros(began.elapsed()),
                calls: mechanism.calls_made(),
                notes: restored.notes.iter().map(obstacle).collect(),
                omitted: restored.omitted.iter().map(|(pid, range)| (pid.0, range.start, range.end)).collect(),
                filling: is_filling,
                touched: Touched::within(&restored.touched, MOST_NAMES),
            })),
        };
        said.map_err(|failure| Error::Unsound(failure.to_string()))
    });
    match (filling, standby) {
        (Ok(Some(filling)), Some(standby)) => {
            Ok(Some(Unfilled { filling, standby, began, place: task.place.to_string() }))
        }
        (Ok(None), Some(standby)) => {
            standby.dismiss();
            Ok(None)
        }
        // Who stands by sees this process end, and ends what is left.
        (filling, _) => filling.map(|_| None).map_err(|error| names::of_image(Failure::from(error), &task.place)),
    }
}

/// Refuses a tree that holds this very process, before anything of it is taken from others.
fn refuse_caller(who: Who) -> Result<()> {
    let own = std::process::id().cast_signed();
    match who {
        Who::Tree(pid) if pid == own || process::is_below(own, pid) => {
            Err(Error::Mechanism(MechanismError::HoldsCaller { pid: Pid(own) }).into())
        }
        Who::Tree(_) | Who::Below(_) => Ok(()),
    }
}

/// What stands in the way of a checkpoint, what is worth knowing, and how many processes there are.
pub(crate) fn check_processes(task: &CheckpointTask) -> Result<(Vec<Obstacle>, Vec<Obstacle>, usize)> {
    refuse_caller(task.who)?;
    let surveyed = checkpoint::survey(request(task, Progress::default(), mechanisms::by_module(task)?))?;
    if let Some(busy) = busy::alone_in_the_way(surveyed.refusals()) {
        return Err(busy);
    }
    Ok((
        surveyed.refusals().iter().map(obstacle).collect(),
        surveyed.notes().iter().map(obstacle).collect(),
        surveyed.processes(),
    ))
}

/// What stands in the way of a restore here and now, what is worth knowing, and how many processes there are.
pub(crate) fn check_image(task: &RestoreTask, stdio: [OwnedFd; 3]) -> Result<(Vec<Obstacle>, Vec<Obstacle>, usize)> {
    let image = open(&task.place)?;
    let mut obstacles: Vec<Obstacle> = machine::missing(&image.manifest().facts);
    let checked = restore::check(&image, &options(task, stdio, None, None));
    let (refusals, notes) = checked.map_err(|error| names::of_image(Failure::from(error), &task.place))?;
    obstacles.extend(refusals.iter().map(obstacle));
    Ok((obstacles, notes.iter().map(obstacle).collect(), image.manifest().facts.processes.len()))
}

fn source(place: &Place) -> Result<Box<dyn Source>> {
    match place {
        Place::Store { root, job, number } => Ok(store(root).source(&Selector::Snapshot(job_name(job)?, *number))?),
        Place::Path(path) if !path.exists() => {
            let message = format!("there is no file or directory {}", path.display());
            Err(Failure::refused("no-such-checkpoint", message)
                .remedy("a job or checkpoint is named without a slash (`hdcr list`), a process by its pid"))
        }
        Place::Path(path) => Ok(open_path(path).map_err(|error| {
            let failure = Failure::from(error);
            let named = failure.message.contains(&*path.to_string_lossy());
            if named { failure } else { failure.during(place) }
        })?),
    }
}

/// Opens an image and checks all but its pages.
pub(crate) fn open(place: &Place) -> Result<ImageReader> {
    ImageReader::open(&source(place)?).map_err(|error| names::of_image(Failure::from(error).during(place), place))
}

/// What an image tells before it is checked as a whole.
fn outline(place: &Place) -> Result<Outline> {
    Outline::of(&source(place)?).map_err(|error| names::of_image(Failure::from(error).during(place), place))
}

/// All numbers that an image needs, of processes and of threads: who restores it must have none of them.
pub(crate) fn numbers_needed(place: &Place) -> Result<BTreeSet<i32>> {
    restore::numbers(&outline(place)?).map_err(|error| names::of_image(Failure::from(error), place))
}

/// Reads the manifest of an image.
pub(crate) fn manifest(place: &Place) -> Result<Manifest> {
    ImageReader::manifest_of(&source(place)?)
        .map_err(|error| names::of_image(Failure::from(error).during(place), place))
}

/// Every record of an image in words.
pub(crate) fn records(image: &ImageReader) -> Vec<show::ShownFrame> {
    show::records(image)
}

/// The tree of an image with what it has open.
pub(crate) fn overview(image: &ImageReader) -> Result<show::Overview> {
    Ok(show::overview(image)?)
}

/// The files that a restore of an image may change.
pub(crate) fn written(image: &ImageReader) -> Result<Vec<PathBuf>> {
    Ok(show::written(image)?)
}

/// What else of this system it overwrites, in words.
pub(crate) fn overwritten(image: &ImageReader) -> Result<Vec<String>> {
    Ok(show::overwritten(image)?)
}

/// What a user means by a name, `NAME@ID` or a path. A name that the store does not know may be a file here.
pub(crate) fn resolve(root: &Path, text: &OsStr) -> Result<Place> {
    // What is no text can be a path alone.
    let Some(text) = text.to_str() else { return Ok(Place::Path(PathBuf::from(text))) };
    let store = store(root);
    let selector: Selector = match text.parse() {
        Ok(selector) => selector,
        Err(_) if Path::new(text).exists() => Selector::Path(PathBuf::from(text)),
        Err(error) => return Err(names::a_process(text).unwrap_or_else(|| error.into())),
    };
    match selector {
        Selector::Path(path) => Ok(Place::Path(path)),
        Selector::Snapshot(job, number) => {
            store.find(&Selector::Snapshot(job.clone(), number)).map_err(|error| {
                let numbers = store.sequences(&job).unwrap_or_default();
                let here = names::there_are(job.as_str(), &numbers);
                let remedy = if numbers.is_empty() { names::no_checkpoint(root, job.as_str(), &here) } else { here };
                Failure::from(error).remedy(remedy)
            })?;
            Ok(Place::Store { root: root.to_owned(), job: job.to_string(), number })
        }
        Selector::Newest(job) => match store.sequences(&job)?.last() {
            Some(number) => Ok(Place::Store { root: root.to_owned(), job: job.to_string(), number: *number }),
            None if Path::new(text).exists() => Ok(Place::Path(PathBuf::from(text))),
            None => {
                let otherwise = "`hdcr list` shows all; write a path with a slash in it: ./FILE";
                let remedy = names::no_checkpoint(root, job.as_str(), otherwise);
                let failure = store.find(&Selector::Newest(job)).err();
                Err(failure.map_or_else(|| Failure::usage(text), Failure::from).remedy(remedy))
            }
        },
    }
}

/// The checkpoints of a job, or of all, by job and then oldest first.
pub(crate) fn list(root: &Path, job: Option<&JobName>) -> Result<Vec<Entry>> {
    let store = store(root);
    Ok(job.map_or_else(|| store.list(), |job| store.list_job(job))?)
}

/// The jobs that have checkpoints.
pub(crate) fn jobs(root: &Path) -> Result<Vec<JobName>> {
    Ok(store(root).jobs()?)
}

/// The numbers of a job's checkpoints, oldest first.
pub(crate) fn numbers(root: &Path, job: &JobName) -> Result<Vec<u64>> {
    Ok(store(root).sequences(job)?)
}

/// Keeps a checkpoint, and says what for.
pub(crate) fn pin(root: &Path, job: &JobName, number: u64, note: &str) -> Result<()> {
    Ok(store(root).pin(job, number, note)?)
}

/// Lets go of a checkpoint; false when nobody kept it.
pub(crate) fn unpin(root: &Path, job: &JobName, number: u64) -> Result<bool> {
    Ok(store(root).unpin(job, number)?)
}

/// The pinned checkpoints of a job, and what for.
pub(crate) fn pins(root: &Path, job: &JobName) -> Result<BTreeMap<u64, String>> {
    Ok(store(root).pins(job)?)
}

/// Removes a checkpoint.
pub(crate) fn remove(root: &Path, job: &JobName, number: u64) -> Result<()> {
    Ok(store(root).remove(job, number)?)
}

/// What the mechanism can do on this kernel for this user.
pub(crate) fn capabilities() -> hdcr_engine::mechanism::Capabilities {
    *mechanism().capabilities()
}

/// Whether this user may hear of what programs do to files.
pub(crate) fn can_watch() -> bool {
    // Anybody may make a group; to hear of a whole file system takes more.
    let group = hdcr_sys::fanotify::Fanotify::new();
    group.and_then(|group| group.mark_file_system(Path::new("/"), hdcr_sys::fanotify::CREATE)).is_ok()
}

/// The same for a program that `hdcr run` has not started.
pub(crate) fn unwatched_by_hand() -> Obstacle {
    Obstacle {
        cause: "only a program that `hdcr run` has started is watched: of this one, files that are open at a checkpoint, and \
                those of --files, are rolled back"
            .to_owned(),
        remedy: "name with --files what the program opens and closes as it goes, or run it by `hdcr run`".to_owned(),
        ..unwatched()
    }
}

/// What follows when nobody hears what a program does to files.
pub(crate) fn unwatched() -> Obstacle {
    Obstacle {
        code: "files-unwatched".to_owned(),
        object: "files".to_owned(),
        pid: None,
        fd: None,
        path: None,
        cause: "this user may not watch what the program does to files (fanotify takes CAP_SYS_ADMIN): only files that are \
                open at a checkpoint, and those of --files, are rolled back"
            .to_owned(),
        remedy: "name with --files what the program opens and closes as it goes, or run it as root".to_owned(),
    }
}

/// Checks the name of a job.
pub(crate) fn job_name(name: &str) -> Result<JobName> {
    JobName::new(name).map_err(|error| Failure::usage(error.to_string()))
}

fn obstacle(refusal: &hdcr_engine::error::Refusal) -> Obstacle {
    Obstacle {
        code: refusal.code.to_owned(),
        object: refusal.object.clone(),
        pid: refusal.owner.pid.map(|pid| pid.0),
        fd: refusal.owner.fd.map(|fd| fd.0),
        path: refusal.owner.path.as_ref().map(|path| path.display().to_string()),
        cause: refusal.cause.clone(),
        remedy: refusal.remedy.clone(),
    }
}

/// The refusals of the engine as they are told.
pub(crate) fn obstacles(refusals: &[hdcr_engine::error::Refusal]) -> Vec<Obstacle> {
    refusals.iter().map(obstacle).collect()
}
