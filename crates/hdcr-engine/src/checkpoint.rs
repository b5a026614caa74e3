//! A checkpoint from the request to the snapshot: each phase is a value that the next one consumes.
//!
//! [`survey`] → [`Surveyed`] → prepare → [`Prepared`] → freeze → [`Stopped`] → capture → [`Captured`] → thaw →
//! [`Pending`] → persist → [`Durable`] → commit.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdcr_image::{Durable, ImageWriter, ManifestFacts, Options, Sink};

use crate::capture::{self, Taken};
use crate::error::{Error, Refusal, Refusals, Result};
use crate::ids::Pid;
use crate::mechanism::{Deadline, Frozen, FrozenProcess, Mechanism, MechanismError, Scope, Stand};
pub use crate::memory::omitted::Omitted;
use crate::progress::{Meter, Phase, Progress};
pub use crate::resource::keep::NO_ROOM;
use crate::resource::late;
use crate::resource::unchanged::Unchanged;
use crate::snapshot::ahead::Ahead;
use crate::snapshot::choice::{self, Weight};
use crate::snapshot::outlet::Outlet;
pub use crate::snapshot::pace::CompressionRequest;
use crate::snapshot::record::Why;
pub use crate::snapshot::series::Series;
use crate::stored;
use crate::survey::{self, Judged};

/// What is to be checkpointed.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which tasks.
    pub scope: Scope,
    /// When to give up.
    pub by: Deadline,
    /// What becomes of file contents.
    pub files: FileRequest,
    /// What becomes of ends that lead out of the tree.
    pub ends: EndRequest,
    /// How pages are compressed.
    pub compression: CompressionRequest,
    /// Who is told how far it is.
    pub progress: Progress,
    /// How memory is read.
    pub snapshot: SnapshotRequest,
    /// The program is followed by its keeper (`userfaultfd(2)`, write protection), which is no obstacle.
    pub followed: bool,
    /// Memory whose contents are left out.
    pub omitted: Omitted,
    /// The mechanism stops tasks without being their tracer: what another one traces may be taken, and who stands still is
    /// seen to wait in the kernel.
    pub unseen: bool,
    /// A rule of following that is left out: for the trial that shows what it is for.
    pub blind: Option<Blind>,
}

/// A rule without which an image is wrong (`snapshot/space.rs`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blind {
    /// What was written after it was copied is read in the stop.
    Writes,
    /// Mappings that came, moved or grew are read in the stop.
    NewMappings,
    /// Pages that were given back are taken out of the image.
    Gone,
    /// Which pages of a private file mapping are private is asked again in the stop.
    PrivateFiles,
}

/// How memory is read (`--snapshot`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SnapshotRequest {
    /// Large processes are copied ahead, small ones in the stop.
    #[default]
    Auto,
    /// All are copied while they run, as far as that is possible, and in the stop only what they have written since.
    Ahead,
    /// All are copied by copy-on-write, by a child that each of them makes in the stop.
    Fork,
    /// All are copied in the stop.
    Copy,
}

/// Which file contents a checkpoint keeps (`--files`, `file-policy`).
#[derive(Clone, Debug, Default)]
pub struct FileRequest {
    /// Paths whose contents are always kept; a directory means all regular files below it.
    pub always: Vec<std::path::PathBuf>,
    /// Largest file that is kept because the tree writes to it, in bytes.
    pub limit: u64,
    /// Files that the tree has worked on, the latest first; those that it does not hold are kept up to `limit` together.
    pub touched: Vec<std::path::PathBuf>,
    /// Policy by path prefix, the longest prefix wins; what no prefix matches is `auto`.
    pub policies: Vec<(std::path::PathBuf, FilePolicy)>,
    /// Where the image will lie, if that is a directory: files on its file system may be kept as clones.
    pub clones: Option<std::path::PathBuf>,
    /// Stores and images: neither they nor what lies in them is a file of the program, wherever they lie.
    pub own: Vec<std::path::PathBuf>,
}

/// What becomes of a file's contents at a rollback.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FilePolicy {
    /// Written files are kept when small, appended ones cut back, files only read verified.
    #[default]
    Auto,
    /// Contents are kept whatever the size.
    Content,
    /// Cut back to the length at the checkpoint.
    Truncate,
    /// Must be unchanged (size, modification time, or content digest).
    Verify,
    /// Opened again as it is.
    Ignore,
}

/// What becomes of ends that lead out of the tree (`end-policy`). Standard streams become those of the restoring command
/// and datagram sockets with a path as their peer (`/dev/log`) are connected to it again, whatever is asked for here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndRequest {
    /// For every other end.
    pub default: EndPolicy,
    /// The socket addresses at which whoever keeps the tree listens to it: an end that leads there is found closed after a
    /// restore, with what the restoring command says to the program in it ([`crate::restore::Options::greeting`]).
    pub keepers: Vec<Vec<u8>>,
}

/// What becomes of an end whose other end lies outside of the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum EndPolicy {
    /// It stands in the way of a checkpoint.
    #[default]
    Refuse,
    /// The restored program finds the other end closed.
    Close,
    /// It is connected to the peer's name again; closed where the peer has no name or does not answer.
    Reconnect,
}

/// The next image of a series.
#[derive(Clone, Debug)]
pub struct Next {
    /// Which one.
    pub series: Series,
    /// So soon after the one before.
    pub pace: Duration,
}

/// A tree that was looked at and still runs.
#[derive(Debug)]
pub struct Surveyed {
    request: Request,
    refusals: Refusals,
    notes: Vec<Refusal>,
    processes: usize,
    weights: BTreeMap<Pid, Weight>,
    /// So many bytes are lacking for clones.
    lacking: u64,
    own: survey::Own,
}

/// A tree that runs, and of whose memory much is copied.
#[derive(Debug)]
pub struct Prepared {
    request: Request,
    out: Outlet,
    ahead: Ahead,
}

/// A stopped tree, not captured yet. Dropping it thaws.
#[derive(Debug)]
pub struct Stopped {
    request: Request,
    // Let go before the rest is dropped, which may take a while.
    frozen: Box<dyn Frozen>,
    out: Outlet,
    ahead: Ahead,
}

/// Tells which files the tree has worked on, the latest first. It may wait for that, while the tree stands still.
pub type Touched<'a> = &'a mut dyn FnMut() -> Result<Vec<std::path::PathBuf>>;

/// A captured tree, still stopped. Dropping it thaws and forgets.
#[derive(Debug)]
pub struct Captured {
    frozen: Box<dyn Frozen>,
    pending: Pending,
}

/// What was captured, to be made durable; the tree goes on (or is held by a [`Held`]).
#[derive(Debug)]
pub struct Pending {
    out: Outlet,
    taken: Taken,
    progress: Progress,
    /// Which it is one of.
    series: Option<Series>,
}

/// A tree that stays stopped until its snapshot is durable.
#[derive(Debug)]
pub struct Held(Box<dyn Frozen>);

/// So many times an obstacle must be seen before the tree is not even stopped for a closer look.
const LOOKS: usize = 3;

/// Looks at a tree while it runs. It changes under our eyes, and two files of `/proc` need not fit each other: what only
/// one look shows is left to the look under the freeze.
pub fn survey(request: Request) -> Result<Surveyed> {
    survey_again(request, &Series::default())
}

/// The same for a tree of which a series knows something already.
pub fn survey_again(request: Request, series: &Series) -> Result<Surveyed> {
    let known = series.known();
    let mut surveyed = survey_once(request, &known)?;
    for _ in 1..LOOKS {
        if surveyed.refusals.0.is_empty() {
            break;
        }
        let before = surveyed.refusals;
        surveyed = survey_once(surveyed.request, &known)?;
        surveyed.refusals.0.retain(|refusal| before.0.contains(refusal));
    }
    Ok(surveyed)
}

fn survey_once(request: Request, known: &survey::Known) -> Result<Surveyed> {
    /// A process of the tree that ends between two files of `/proc` is no reason to give up.
    const TRIES: usize = 5;
    let mut tries = 1..TRIES;
    loop {
        let looked = survey::processes(&request).and_then(|pids| {
            let look = survey::look(&pids, known)?;
            Ok((pids.len(), survey::judge(&request, &look, survey::Own::default(), false)?, choice::weigh(&look)))
        });
        match looked {
            Ok((processes, Judged { refusals, notes, lacking, own, .. }, weights)) => {
                return Ok(Surveyed { request, refusals, notes, processes, weights, lacking, own });
            }
            Err(error) if !is_gone(&error) || tries.next().is_none() => return Err(error),
            Err(_) => {}
        }
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Mechanism(MechanismError::Gone { .. }))
}

impl Surveyed {
    /// What stands in the way; empty: nothing does.
    pub fn refusals(&self) -> &[Refusal] {
        &self.refusals.0
    }

    /// What does not stand in the way but is worth knowing: ends outside of the tree and what becomes of them.
    pub fn notes(&self) -> &[Refusal] {
        &self.notes
    }

    /// So many bytes of room are lacking where the image will lie, when that is all that stands in the way ([`NO_ROOM`]).
    pub fn lacks_room(&self) -> Option<u64> {
        let only = !self.refusals.0.is_empty() && self.refusals.0.iter().all(|refusal| refusal.code == NO_ROOM);
        Some(self.lacking).filter(|_| only)
    }

    /// How many processes there are.
    pub fn processes(&self) -> usize {
        self.processes
    }

    /// Copies what can be copied while the tree runs. Refuses when anything stands in the way. What was copied goes to the
    /// sink at once.
    pub fn prepare(mut self, mechanism: &dyn Mechanism, sink: Box<dyn Sink>) -> Result<Prepared> {
        self.lies_in(sink.as_ref());
        let options = self.options()?;
        let out = Outlet::begin(ImageWriter::new(sink, options)?, self.request.compression)?;
        self.copy(mechanism, out, Ahead::default())
    }

    /// The same for the next image of a series, which holds anew only what was written since the last one that was
    /// committed. The first is a whole one.
    pub fn prepare_next(mut self, mechanism: &dyn Mechanism, sink: Box<dyn Sink>, next: &Next) -> Result<Prepared> {
        self.lies_in(sink.as_ref());
        let options = self.options()?;
        let (rest, chain) = next.series.take();
        let pace = chain.as_ref().map(|_| next.pace);
        let ahead = Ahead::of_series(&next.series, rest, pace);
        let writer = match chain {
            Some(chain) => {
                let aside = next.series.known_files().objects();
                ImageWriter::onto_with(sink, options, chain, (&ahead.objects(), &aside))?
            }
            None => ImageWriter::first(sink, options)?,
        };
        let out = Outlet::begin(writer, self.request.compression)?;
        self.copy(mechanism, out, ahead)
    }

    /// Clones are made where they get their names: whether that can be is known before the stop then.
    fn lies_in(&mut self, sink: &dyn Sink) {
        self.request.files.clones = sink.home().map(std::path::Path::to_owned);
    }

    fn options(&self) -> Result<Options> {
        if self.refusals.0.is_empty() {
            return Ok(Options { compression: self.request.compression.first() });
        }
        Err(Error::Refused(self.refusals.clone()))
    }

    fn copy(self, mechanism: &dyn Mechanism, mut out: Outlet, mut ahead: Ahead) -> Result<Prepared> {
        ahead.own = self.own;
        let chosen = choice::ahead(self.request.snapshot, ahead.span(), &self.weights);
        ahead.begin(mechanism, &self.request, &chosen, self.request.by)?;
        if ahead.follows() {
            let sizes = chosen.iter().filter_map(|pid| self.weights.get(pid)).map(|weight| weight.size);
            out.tell(Some(Meter::begin(&self.request.progress, Phase::Copying, || sizes.sum())));
            ahead.rounds(&mut out, self.request.snapshot == SnapshotRequest::Auto)?;
            out.tell(None);
        }
        let forks = choice::forks(self.request.snapshot, &self.weights);
        if !forks.is_empty() {
            let sizes = forks.iter().filter_map(|pid| Some((*pid, self.weights.get(pid)?.size)));
            ahead.fork(&sizes.collect::<Vec<_>>(), Why::Asked);
            ahead.look_at_mappings();
        }
        let rest = self.weights.iter().filter(|(pid, _)| ahead.object(**pid).is_none() && !ahead.forks(**pid));
        ahead.make_ready(rest.map(|(_, weight)| weight.size).sum());
        Ok(Prepared { request: self.request, out, ahead })
    }
}

impl Prepared {
    /// How long the tree stood still so that it could be copied while it ran.
    pub fn stood(&self) -> Duration {
        self.ahead.stood
    }

    /// Stops the tree.
    pub fn freeze(self, mechanism: &dyn Mechanism, by: Deadline) -> Result<Stopped> {
        let Self { mut request, mut out, mut ahead } = self;
        // What is done in the stop has the time of the stop.
        request.by = by;
        out.until(Some(by));
        let frozen = mechanism.freeze(request.scope, by)?;
        ahead.begin_early(frozen.processes())?;
        Ok(Stopped { request, frozen, out, ahead })
    }
}

impl Stopped {
    /// When it was stopped, if that was later than it was asked for.
    pub fn since(&self) -> Option<Instant> {
        self.frozen.since()
    }

    /// Looks again, and reads everything that is not copied yet. Refuses when anything stands in the way. What does not fit
    /// the buffer goes to the sink at once, the rest is kept until [`Pending::persist`].
    pub fn capture(self) -> Result<Captured> {
        self.capture_with(None)
    }

    /// The same, where somebody knows only now which files the tree has worked on ([`FileRequest::touched`]): he is asked as
    /// late as can be, so that he has the time of the other work to find out.
    pub fn capture_with(mut self, touched: Option<Touched<'_>>) -> Result<Captured> {
        let series = self.ahead.series();
        let taken = capture::capture(self.frozen.as_mut(), (&self.request, touched), &mut self.out, &mut self.ahead);
        // The tree goes on before anything else is given up.
        let Self { request, frozen, out, ahead } = self;
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => {
                drop(frozen);
                drop(ahead);
                return Err(error);
            }
        };
        Ok(Captured { frozen, pending: Pending { out, taken, progress: request.progress, series } })
    }
}

impl Captured {
    /// Lets the tree go on.
    pub fn thaw(self) -> Result<Pending> {
        let Self { frozen, mut pending } = self;
        frozen.thaw()?;
        pending.out.until(None);
        Ok(pending)
    }

    /// Keeps the tree stopped until the snapshot is durable.
    pub fn hold(self) -> (Pending, Held) {
        let Self { frozen, mut pending } = self;
        pending.out.until(None);
        (pending, Held(frozen))
    }
}

impl Held {
    /// Ends the tree; only for a durable snapshot.
    pub fn kill(self) -> Result<()> {
        Ok(self.0.kill()?)
    }

    /// Leaves it in a group stop. Given are the processes that ran before it: each has to be let go on by itself
    /// (`SIGCONT`), as they need not be one process group.
    pub fn leave_stopped(self) -> Result<Vec<Pid>> {
        let ran = |process: &&FrozenProcess| {
            let first = process.threads.first().filter(|_| !process.zombie);
            first.is_some_and(|tid| self.0.stand(*tid).is_ok_and(|stand| stand == Stand::Running))
        };
        let ran = self.0.processes().iter().filter(ran).map(|process| process.pid).collect();
        self.0.leave_stopped()?;
        Ok(ran)
    }

    /// Lets it go on after all.
    pub fn thaw(self) -> Result<()> {
        Ok(self.0.thaw()?)
    }
}

impl Pending {
    /// Bytes of memory and of files that were read for it; what was written meanwhile was read again.
    pub fn read(&self) -> u64 {
        self.out.sent().saturating_add(self.taken.ahead.kept_bytes())
    }

    /// Writes what is left and makes all of it durable. `facts` holds what only the edge knows (versions, clocks, host);
    /// processes and command are filled in here. It is not visible before [`Durable::commit`].
    pub fn persist(self, facts: ManifestFacts) -> Result<Durable> {
        let Self { mut out, mut taken, progress, series } = self;
        stored::must_be_born(&taken.frames)?;
        let total = || taken.ahead.kept_bytes();
        let meter = Meter::begin(&progress, Phase::Writing, total);
        taken.ahead.settle(&mut out, &mut |bytes| meter.add(bytes))?;
        let mut writer = out.end()?;
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
        let Unchanged { known, next, brought } = taken.unchanged;
        for (id, from) in brought {
            // One that is all hole has no pages.
            writer.bring(id.0, from.0)?;
        }
        taken.clones.store(&mut writer)?;
        let known = late::store(&taken.late, &mut writer, &known, next, now)?;
        if let Some(series) = &series {
            series.has_stored(known);
        }
        for frame in &taken.frames {
            writer.frame(hdcr_image::Tag(frame.tag), frame.version, frame.id.0, &frame.body)?;
        }
        let facts = ManifestFacts {
            processes: taken.processes,
            command: taken.command,
            root_pid: taken.root_pid,
            needs: taken.needs,
            snapshot: taken.snapshot,
            ..facts
        };
        Meter::begin(&progress, Phase::Settling, || 0);
        Ok(writer.persist(facts)?)
    }
}
