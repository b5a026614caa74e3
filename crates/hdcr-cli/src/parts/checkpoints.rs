//! One checkpoint from the task to the answer, and what a worker keeps for the next one.

use std::cell::{Cell, RefCell};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdcr_engine::checkpoint::{self, Captured, Held, Next, Prepared, Series, Stopped, Surveyed};
use hdcr_engine::error::{Error, Refusals};
use hdcr_engine::mechanism::{Deadline, Mechanism};
use hdcr_engine::progress::{Laps, Progress};
use hdcr_image::{Chain, Committed, Manifest, ManifestFacts, Sink, SnapshotId};
use hdcr_ptrace::{Hears, Ptrace};
use hdcr_store::Selector;

use super::{job_name, lineage_from, mechanism, mechanisms, obstacle, request, sink, store};
use crate::busy::AtWork;
use crate::failure::{Obstacle, Result};
use crate::filling::{self, micros};
use crate::kinds::Then;
use crate::machine;
use crate::output::counted;
use crate::progress::{Doing, Step};
use crate::task::{CheckpointTask, Checkpointed, Gate, Reply, Target, Took};

/// What a worker has at hand from one checkpoint to the next.
#[derive(Debug)]
pub(crate) struct Session {
    mechanism: Ptrace,
    hears: Option<Rc<dyn Hears>>,
    series: Series,
    /// When the last image of the series was begun.
    last: Cell<Option<Instant>>,
    /// Checkpoints that were given up for room, of which nobody has been told yet.
    given_up: RefCell<Vec<u64>>,
}

impl Session {
    /// Nothing is followed yet.
    pub(crate) fn new() -> Self {
        Self {
            mechanism: mechanism(),
            hears: None,
            series: Series::default(),
            last: Cell::default(),
            given_up: RefCell::default(),
        }
    }

    /// Somebody hears when the program stands still.
    pub(crate) fn heard_by(self, hears: Rc<dyn Hears>) -> Self {
        Self { mechanism: self.mechanism.heard_by(Rc::clone(&hears)), hears: Some(hears), ..self }
    }

    /// Whether threads of the program are held that could not be let go: they are when this process ends.
    pub(crate) fn holds_late_threads(&self) -> bool {
        self.mechanism.holds_late_threads()
    }
}

/// Finds out what the next image of a series goes on from; when that is not known any more, it is a whole one.
fn go_on(series: &Series, target: &Target, sink: &dyn Sink, pace: Duration) -> Next {
    if let (Some(base), Target::Store { root, .. }) = (series.interrupted(), target) {
        let again = base.place.as_ref().map(|(job, number)| Selector::Snapshot(job.clone(), *number));
        let chain = again.and_then(|place| {
            let source = store(root).source(&place).ok()?;
            Chain::open(&source).inspect_err(|error| tracing::debug!(%error, "the image before")).ok()
        });
        if let Some(chain) = chain {
            series.resume(chain);
        }
    }
    if series.base().is_some_and(|base| !sink.can_share(&base)) {
        series.begin_anew();
    }
    Next { series: series.clone(), pace }
}

/// The program is ended or left stopped, or it goes on already. The snapshot is committed: nothing that comes after may turn
/// it into a failure.
/// Given are the processes that were left stopped.
fn ended(held: Option<Held>, then: Then) -> Vec<i32> {
    let ended = match (held, then) {
        (Some(held), Then::Kill) => held.kill().map(|()| Vec::new()),
        (Some(held), Then::Stop) => held.leave_stopped(),
        (Some(_), Then::GoOn) | (None, _) => Ok(Vec::new()),
    };
    let stopped = ended.unwrap_or_else(|error| {
        tracing::warn!(%error, "the checkpoint is made, but the program was not ended or stopped cleanly");
        Vec::new()
    });
    stopped.into_iter().map(|pid| pid.0).collect()
}

/// Copies what can be copied while the program runs. The path of an image that is not in a store comes with it.
fn prepare(
    task: &CheckpointTask,
    session: &Session,
    mechanism: &dyn Mechanism,
    surveyed: Surveyed,
) -> Result<(Prepared, Option<PathBuf>)> {
    let Session { series, .. } = session;
    if !surveyed.refusals().is_empty() {
        // Before anything is written.
        return Err(Error::Refused(Refusals(surveyed.refusals().to_vec())).into());
    }
    let (sink, path) = sink(&task.target, task.files.programs)?;
    let prepared = match task.series {
        None => {
            // Two cannot follow one program.
            series.begin_anew();
            surveyed.prepare(mechanism, sink)?
        }
        Some(pace) => {
            // What counts is not how soon the next one was wanted.
            let real = session.last.replace(Some(Instant::now())).map_or(pace, |last| pace.max(last.elapsed()));
            let next = go_on(series, &task.target, sink.as_ref(), real);
            surveyed.prepare_next(mechanism, sink, &next)?
        }
    };
    Ok((prepared, path))
}

/// Who hears of a checkpoint while it is taken.
pub(crate) trait Listener {
    /// Hears how far it is; in particular when the program stands still, if it is watched, and when it goes on.
    fn tell(&mut self, reply: Reply) -> Result<()>;

    /// Tells which files the program has worked on; asked for once after each [`Reply::Frozen`], and waited for.
    fn touched(&mut self) -> Result<Vec<PathBuf>>;
}

/// Stops the program; since when.
fn stop(
    task: &CheckpointTask,
    mechanism: &dyn Mechanism,
    prepared: Prepared,
    told: &mut dyn Listener,
) -> Result<(Stopped, Instant)> {
    if task.asks {
        told.tell(Reply::Asking)?;
    }
    if task.then == Then::GoOn {
        told.tell(Reply::Halting)?;
    }
    step(task, told, Doing::Stopping)?;
    let halted = Instant::now();
    // Copying ahead may take long, and nobody waits for it: the stop has its whole time left.
    let stopped = prepared.freeze(mechanism, Deadline(halted + task.timeout))?;
    let halted = stopped.since().unwrap_or(halted);
    gate(task, told, Gate::Stopped)?;
    Ok((stopped, halted))
}

/// Waits where somebody takes this from gate to gate. On an error the program is let go.
fn gate(task: &CheckpointTask, told: &mut dyn Listener, gate: Gate) -> Result<()> {
    if task.by_gates.is_some() { told.tell(Reply::At(gate)) } else { Ok(()) }
}

/// Reads all of a stopped program. Whoever watches it is asked for the names of files when he has had time to gather them.
fn capture(task: &CheckpointTask, stopped: Stopped, told: &mut dyn Listener) -> Result<Captured> {
    if !task.watched {
        return Ok(stopped.capture()?);
    }
    told.tell(Reply::Frozen)?;
    let mut answer = None;
    let captured = stopped.capture_with(Some(&mut || match answer.insert(told.touched()) {
        Ok(paths) => Ok(std::mem::take(paths)),
        Err(failure) => Err(Error::Unsound(failure.message.clone())),
    }));
    // Also when the program goes on because something failed: the answer must not be taken for one to the next question.
    match answer.unwrap_or_else(|| told.touched()) {
        Ok(_) => Ok(captured?),
        Err(failure) => Err(failure),
    }
}

/// Nobody else is at work on the program, and this process is no part of it.
fn alone_at_work(task: &CheckpointTask) -> Result<AtWork> {
    super::refuse_caller(task.who)?;
    AtWork::take(&task.jobs, task.who)
}

/// Tells what begins now, when somebody wants to hear that.
fn step(task: &CheckpointTask, told: &mut dyn Listener, doing: Doing) -> Result<()> {
    if task.progress { told.tell(Reply::Progress(Step::begins(doing))) } else { Ok(()) }
}

/// Each part of a checkpoint, told as it is done, and kept with its time.
#[derive(Debug)]
struct Parts {
    laps: Laps,
    since: Instant,
    took: Vec<Took>,
}

impl Parts {
    fn begin() -> Self {
        Self { laps: Laps::begin("checkpoint"), since: Instant::now(), took: Vec::new() }
    }

    /// One is done: in words for the curious, and its name.
    fn done(&mut self, words: &str, part: &str) {
        self.laps.done(words);
        let now = Instant::now();
        self.took.push(Took { part: part.to_owned(), us: micros(now.saturating_duration_since(self.since)) });
        self.since = now;
    }
}

/// Takes a checkpoint.
pub(crate) fn checkpoint(
    task: &CheckpointTask,
    session: &Session,
    progress: &Progress,
    told: &mut dyn Listener,
) -> Result<Checkpointed> {
    let (began, worked) = (Instant::now(), machine::worked());
    let series = &session.series;
    let _at_work = alone_at_work(task)?;
    let lineage = task.came_from.as_ref().map(lineage_from).transpose().unwrap_or_else(|failure| {
        // Somebody has removed it; what is made now does not build on it.
        tracing::debug!(%failure, "where the program came from is not known any more");
        None
    });
    let chosen = mechanisms::choose(task, &session.mechanism, session.hears.as_ref())?;
    let (mechanism, calls) = (chosen.mechanism(), chosen.calls_made());
    step(task, told, Doing::Looking)?;
    let mut laps = Parts::begin();
    let look = || Ok(checkpoint::survey_again(request(task, progress.clone(), chosen.is_module()), series)?);
    let mut surveyed = filling::when_filled(look)?;
    while give_up_for_room(task, &surveyed, session)? {
        surveyed = look()?;
    }
    laps.done(&format!("looked at {}", counted(surveyed.processes(), "process", "processes")), "looking");
    let mut notes: Vec<Obstacle> = surveyed.notes().iter().map(obstacle).collect();
    let (prepared, path) = prepare(task, session, mechanism, surveyed)?;
    laps.done("copied ahead what can be", "copying ahead");
    let prepared_for = prepared.stood();
    let facts = ManifestFacts { lineage: lineage.unwrap_or_default(), ..machine::facts(chosen.name(), "copy") };
    let (stopped, halted) = stop(task, mechanism, prepared, told)?;
    let facts = ManifestFacts { clocks: machine::clocks(), ..facts };
    laps.done("stopped", "stopping");
    let captured = capture(task, stopped, told)?;
    gate(task, told, Gate::Read)?;
    laps.done("read", "reading");
    let (pending, held, stopped_for) = if task.then == Then::GoOn {
        let pending = captured.thaw()?;
        let stopped_for = halted.elapsed();
        told.tell(Reply::Thawed)?;
        (pending, None, stopped_for)
    } else {
        let (pending, held) = captured.hold();
        (pending, Some(held), halted.elapsed())
    };
    laps.done(if held.is_some() { "kept stopped" } else { "let go" }, "letting go");
    let read = pending.read();
    let Committed { manifest, id: snapshot, chain } = pending.persist(facts)?.commit()?;
    laps.done(&format!("written and durable as {snapshot}"), "writing");
    notes.extend(reserve(&task.target));
    series.committed(chain);
    let left_stopped = ended(held, task.then);
    let removed = [session.given_up.take(), give_up(task, &snapshot)?].concat();
    Ok(Checkpointed {
        path: path.map(|path| path.display().to_string()),
        read,
        stopped_us: micros(stopped_for),
        prepared_us: micros(prepared_for),
        total_us: micros(began.elapsed()),
        worked_us: micros(machine::worked().saturating_sub(worked)),
        calls: chosen.calls_made().saturating_sub(calls),
        then: task.then,
        left_stopped,
        notes,
        removed,
        took: laps.took,
        ..committed(manifest, &snapshot, &task.target)
    })
}

/// Gives up an old checkpoint of a job when nothing stands in the way of a new one but that clones of the old ones take the room;
/// whether it is worth another look.
fn give_up_for_room(task: &CheckpointTask, surveyed: &Surveyed, session: &Session) -> Result<bool> {
    let (Target::Store { root, job }, Some(_)) = (&task.target, &task.keep) else { return Ok(false) };
    let Some(lacking) = surveyed.lacks_room() else { return Ok(false) };
    let given_up = super::retention::give_up_clones(root, &job_name(job)?, &task.line, lacking);
    // Told with the next checkpoint that is made.
    session.given_up.borrow_mut().extend(given_up.iter().map(|(number, _)| *number));
    Ok(given_up.is_some_and(|(_, more)| more))
}

/// Gives up what of the job is not to be kept: its numbers.
fn give_up(task: &CheckpointTask, snapshot: &SnapshotId) -> Result<Vec<u64>> {
    let (Target::Store { root, job }, Some(keep)) = (&task.target, task.keep) else { return Ok(Vec::new()) };
    let own = snapshot.place.as_ref().map(|(_, number)| *number);
    let line: Vec<u64> = task.line.iter().copied().chain(own).collect();
    Ok(super::retention::give_up(root, &job_name(job)?, &keep, &line, &task.gives_up))
}

/// Makes sure that there will be room for the journal of a roll-back, should the disk be full by then.
fn reserve(target: &Target) -> Option<Obstacle> {
    let Target::Store { root, job } = target else { return None };
    let failure = super::keep_room(root, job).err()?;
    Some(Obstacle {
        code: "no-reserve".to_owned(),
        object: "room for a roll-back".to_owned(),
        pid: None,
        fd: None,
        path: Some(root.display().to_string()),
        cause: failure.message,
        remedy: "free some room in the store: where there is none left, the job cannot be rolled back".to_owned(),
    })
}

/// The room that an image in one file takes: it may have holes where pages were replaced while it was written.
fn taken(target: &Target) -> Option<u64> {
    /// Of `st_blocks`.
    const BLOCK: u64 = 512;
    let Target::File(image) = target else { return None };
    let found = std::fs::metadata(image).ok()?;
    Some(found.blocks().saturating_mul(BLOCK).min(found.len()))
}

/// What an image says of itself.
fn committed(manifest: Manifest, snapshot: &SnapshotId, target: &Target) -> Checkpointed {
    Checkpointed {
        snapshot: snapshot.to_string(),
        number: snapshot.place.as_ref().map(|(_, number)| *number),
        processes: manifest.facts.processes.len(),
        increment: manifest.facts.base.is_some(),
        bytes: taken(target).unwrap_or_else(|| manifest.total_size()),
        added: manifest.added_size(),
        snapshot_by: manifest.facts.snapshot,
        ..Checkpointed::default()
    }
}
