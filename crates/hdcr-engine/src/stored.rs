//! What an image says, decoded and checked before anything is made from it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use hdcr_image::hdcr_layout::{DescriptorEntry, Mapping, Registers};
use hdcr_image::{ContentKey, Frame, ImageReader, KnownTag, List, Outline, PageRun, Record as _, Tag, first_unknown};

use crate::began;
use crate::capture::PendingFrame;
use crate::clock::ClockRecord;
use crate::error::{Error, Owner, Refusal, Refusals, Result};
use crate::ids::Pid;
use crate::memory::MmRecord;
use crate::memory::omitted::OmittedRecord;
use crate::memory::vdso::VdsoRecord;
use crate::model::{self, ObjectId};
use crate::numbers::{self, Beside};
use crate::openfile::OpenFileRecord;
use crate::plan::{self, Step};
use crate::procfs::{self, Stat};
use crate::progress::Meter;
use crate::resource::pipe::PipeRecord;
use crate::resource::{self, clone, data};
use crate::restore::{Contents, StoredFrame, joined};
use crate::segments::{self, SegmentRecord};
use crate::semaphores::{self, SemaphoresRecord};
use crate::snapshot::record::WaysRecord;
use crate::task::TASKS;
use crate::tree::{self, ProcessRecord, StoredProcess, Tasks, ThreadRecord};

/// The frames of an image and the tree that they describe.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) frames: BTreeMap<(u16, ObjectId), StoredFrame>,
    pub(crate) processes: Vec<StoredProcess>,
    /// Descriptor tables by process.
    pub(crate) tables: BTreeMap<Pid, Vec<DescriptorEntry>>,
}

/// Every kind of record that this build can read.
pub(crate) fn known() -> Vec<KnownTag> {
    let own = [
        KnownTag::of::<Tasks>(),
        KnownTag::of::<Registers>(),
        KnownTag::of::<List<Mapping>>(),
        KnownTag::of::<List<DescriptorEntry>>(),
        KnownTag::of::<ProcessRecord>(),
        KnownTag::of::<ThreadRecord>(),
        KnownTag::of::<MmRecord>(),
        KnownTag::of::<OpenFileRecord>(),
        KnownTag::of::<ClockRecord>(),
        KnownTag::of::<VdsoRecord>(),
        KnownTag::of::<WaysRecord>(),
        KnownTag::of::<OmittedRecord>(),
        KnownTag::of::<SemaphoresRecord>(),
        KnownTag::of::<SegmentRecord>(),
    ];
    let files = resource::FILES.iter().map(|kind| KnownTag { tag: kind.tag, version: kind.version, name: kind.name });
    let tasks = TASKS.iter().map(|kind| KnownTag { tag: kind.tag, version: kind.version, name: kind.name });
    own.into_iter().chain(files).chain(tasks).chain(resource::OBJECTS.iter().copied()).collect()
}

/// Reads all frames and puts the tree together.
pub(crate) fn read(image: &ImageReader) -> Result<Model> {
    assemble(&image.frames().collect::<Vec<_>>())
}

/// The same before the image is checked as a whole.
pub(crate) fn glance(outline: &Outline) -> Result<Model> {
    assemble(&outline.frames().collect::<Vec<_>>())
}

fn assemble(stored: &[Frame<'_>]) -> Result<Model> {
    let kinds = stored.iter().map(|frame| (frame.tag, frame.version));
    first_unknown(kinds, &known()).map_err(|error| Error::Unsound(error.to_string()))?;
    let mut frames = BTreeMap::new();
    for frame in stored {
        let stored = StoredFrame { version: frame.version, body: frame.body.to_vec() };
        if frames.insert((frame.tag.0, ObjectId(frame.id)), stored).is_some() {
            return Err(Error::Unsound(format!("two frames of kind {} for object {}", frame.tag, frame.id)));
        }
    }
    let tasks: Tasks = one(&frames, ObjectId(0))?;
    let mut records = Vec::new();
    for id in ids(&frames, <ProcessRecord as hdcr_image::Record>::TAG) {
        records.push((id, one::<ProcessRecord>(&frames, id)?));
    }
    let mut processes = tree::assemble(&tasks, &records)?;
    tree::join_own(&mut processes, &procfs::stat(own_pid())?);
    let mut tables = BTreeMap::new();
    for process in &processes {
        let List(table) = one::<List<DescriptorEntry>>(&frames, process.id)?;
        tables.insert(process.pid, table);
    }
    Ok(Model { frames, processes, tables })
}

/// Whether a restore could make the tree of these frames. What nobody can make is refused while the program is still there: such an
/// image would be found out when it is needed.
pub(crate) fn must_be_born(pending: &[PendingFrame]) -> Result<()> {
    let kinds = [<Tasks as hdcr_image::Record>::TAG, <ProcessRecord as hdcr_image::Record>::TAG];
    let own = pending.iter().filter(|frame| kinds.contains(&Tag(frame.tag)));
    let stored = |frame: &PendingFrame| StoredFrame { version: frame.version, body: frame.body.clone() };
    let frames: BTreeMap<(u16, ObjectId), StoredFrame> =
        own.map(|frame| ((frame.tag, frame.id), stored(frame))).collect();
    let tasks: Tasks = one(&frames, ObjectId(0))?;
    let [_, process] = kinds;
    let records: Result<Vec<_>> = ids(&frames, process).into_iter().map(|id| Ok((id, one(&frames, id)?))).collect();
    match tree::assemble(&tasks, &records?).and_then(|processes| plan::plan(&processes)) {
        Err(Error::Unsound(why)) => Err(Error::refuse(Refusal {
            code: "tree-unborn",
            object: "process tree".to_owned(),
            owner: Owner::default(),
            cause: format!("no restore could make it again: {why}"),
            remedy: "try again when these processes have ended or were waited for, and report it".to_owned(),
        })),
        other => other.map(drop),
    }
}

/// The ids that have a frame of a kind.
pub(crate) fn ids(frames: &BTreeMap<(u16, ObjectId), StoredFrame>, tag: Tag) -> Vec<ObjectId> {
    frames.range((tag.0, ObjectId(0))..=(tag.0, ObjectId(u64::MAX))).map(|((_, id), _)| *id).collect()
}

pub(crate) fn one<R: hdcr_image::Record>(frames: &BTreeMap<(u16, ObjectId), StoredFrame>, id: ObjectId) -> Result<R> {
    let frame = frames.get(&(R::TAG.0, id)).ok_or_else(|| Error::Unsound(format!("{id} has no {} record", R::NAME)))?;
    model::decode(frame.version, &frame.body)
}

/// Who looks for what stands in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asker {
    /// One who only wants to know: numbers that a restore would wait for are no obstacle.
    Check,
    /// A restore that has waited. Numbers of groups and sessions it leaves to the kernel, at the births.
    Restore,
}

/// What stands in the way here and now, and what is worth knowing.
pub(crate) fn check(model: &Model, steps: &[Step], asker: Asker) -> Result<(Refusals, Vec<Refusal>)> {
    let mut refusals = Refusals::default();
    let mut notes = Vec::new();
    let bands = if asker == Asker::Check { procfs::bands() } else { Vec::new() };
    for tid in numbers(model, steps) {
        match holder_of(tid, &bands) {
            Some(holder) if holder.ended && asker == Asker::Check => notes.push(waits(tid, &holder.cause)),
            Some(holder) => refusals.0.push(taken(tid, holder.cause)),
            None => {}
        }
    }
    for kind in TASKS {
        for (tid, id) in model.processes.iter().flat_map(|process| &process.threads) {
            if let Some(frame) = model.frames.get(&(kind.tag.0, *id)) {
                refusals.0.extend((kind.obstacles)(*tid, frame.version, &frame.body)?);
            }
        }
    }
    let entries = || model.tables.values().flatten();
    let files: BTreeSet<u64> = entries().map(|entry| entry.object).collect();
    match numbers::must_suffice(&entries().map(|entry| entry.fd).collect(), files.len(), beside(model)?) {
        Err(Error::Refused(found)) => refusals.0.extend(found.0),
        other => other?,
    }
    let (in_the_way, worth_knowing) = segments::check(model)?;
    refusals.0.extend(in_the_way);
    refusals.0.extend(semaphores::check(model)?);
    notes.extend(worth_knowing);
    Ok((refusals, notes))
}

/// What a restore holds beside the open files.
fn beside(model: &Model) -> Result<Beside> {
    let common = ids(&model.frames, OpenFileRecord::TAG).into_iter().map(|id| {
        let common: OpenFileRecord = one(&model.frames, id)?;
        Ok((Tag(u16::try_from(common.kind).unwrap_or(0)), common.flags))
    });
    let common = common.collect::<Result<Vec<_>>>()?;
    Ok(Beside::of(common.into_iter(), ids(&model.frames, PipeRecord::TAG).len()))
}

fn own_pid() -> Pid {
    Pid(rustix::process::getpid().as_raw_nonzero().get())
}

/// All numbers that the tree needs, also those of dead leaders that stand-ins take.
pub(crate) fn numbers(model: &Model, steps: &[Step]) -> BTreeSet<i32> {
    let threads = model.processes.iter().flat_map(|process| &process.threads).map(|(tid, _)| tid.0);
    let stand_ins =
        steps.iter().filter_map(|step| if let Step::StandIn { pid, .. } = step { Some(pid.0) } else { None });
    model.processes.iter().map(|process| process.pid.0).chain(threads).chain(stand_ins).collect()
}

/// Gives those that have the numbers a moment to go. A tree that was just killed is reaped by its parent in its own time,
/// and a process that has only just begun is often a command that soon ends. No event tells of either.
pub(crate) fn wait_for_numbers(mut wanted: BTreeSet<i32>) {
    const STEP: Duration = Duration::from_millis(4);
    const STEPS: usize = 2500;
    for _ in 0..STEPS {
        wanted.retain(|tid| holder_of(*tid, &[]).is_some_and(|holder| holder.ended || holder.is_new));
        if wanted.is_empty() {
            return;
        }
        std::thread::sleep(STEP);
    }
}

/// The refusal that names who has a number.
pub(crate) fn taken(tid: i32, holder: String) -> Refusal {
    Refusal {
        code: "pid-taken",
        object: format!("process number {tid}"),
        owner: Owner { pid: Some(Pid(tid)), ..Owner::default() },
        cause: holder,
        remedy: "wait until it has ended, end it if it is this very program, or restore with --new-pids".to_owned(),
    }
}

/// What is to be known of a number that a restore waits for.
fn waits(tid: i32, cause: &str) -> Refusal {
    Refusal {
        code: "pid-waits",
        remedy:
            "a restore waits up to ten seconds for it; let its parent end or wait for it, or restore with --new-pids"
                .to_owned(),
        ..taken(tid, cause.to_owned())
    }
}

/// Who has a number.
#[derive(Debug)]
pub(crate) struct Holder {
    /// In words.
    pub(crate) cause: String,
    /// Whether it has ended, and only has not been waited for.
    pub(crate) ended: bool,
    /// Whether it has only just begun.
    pub(crate) is_new: bool,
}

/// Who has a number now: as a process or thread, or, among these processes, as the number of its group or session.
pub(crate) fn holder_of(tid: i32, bands: &[(Pid, Stat)]) -> Option<Holder> {
    let name = |stat: &Stat| String::from_utf8_lossy(&stat.comm).into_owned();
    // Threads have a directory too, though a listing of /proc does not show it.
    if let Ok(stat) = procfs::stat(Pid(tid)) {
        // A first thread that has ended before the others is not waited for by anybody.
        let ended = stat.state == b'Z' && procfs::survivor(Pid(tid)).is_none();
        let (comm, parent) = (name(&stat), stat.ppid);
        let cause = if ended {
            format!("it is still held by {comm}, which has ended and whose parent {parent} has not waited for it")
        } else {
            format!("it is in use by {comm}")
        };
        return Some(Holder { cause, ended, is_new: began::just_now(&stat) });
    }
    let members = || bands.iter().filter(|(_, stat)| stat.pgid == tid || stat.sid == tid);
    let (pid, stat) = members().find(|(_, stat)| stat.state != b'Z').or_else(|| members().next())?;
    let band = if stat.sid == tid { "session" } else { "process group" };
    let cause = format!("it is the number of the {band} of {} (pid {pid})", name(stat));
    Some(Holder { cause, ended: stat.state == b'Z', is_new: false })
}

/// Contents straight from the image.
#[derive(Debug)]
pub(crate) struct Pages<'a> {
    pub(crate) image: &'a ImageReader,
    /// Files that are the contents of objects, with their lengths.
    pub(crate) in_common: BTreeMap<ObjectId, (ContentKey, u64)>,
    pub(crate) meter: Meter,
}

/// Bytes of all contents of an image.
pub(crate) fn size(image: &ImageReader) -> u64 {
    image.spaces().flat_map(|space| image.runs(space)).filter(|run| !run.is_zero()).map(PageRun::size).sum()
}

impl Contents for Pages<'_> {
    fn pieces(&self, id: ObjectId) -> Vec<(u64, u64)> {
        self.image.runs(id.0).iter().filter(|run| !run.is_zero()).map(|run| (run.address(), run.size())).collect()
    }

    fn zeros(&self, id: ObjectId) -> Vec<(u64, u64)> {
        self.image.runs(id.0).iter().filter(|run| run.is_zero()).map(|run| (run.address(), run.size())).collect()
    }

    fn filled(&self, id: ObjectId) -> Vec<Range<u64>> {
        joined(self.image.runs(id.0).iter().map(|run| (run.address(), run.size())))
    }

    fn read(&self, id: ObjectId, each: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        if let Some(file) = self.file(id)? {
            let size = rustix::fs::fstat(&file).map_err(Error::system("looking at a clone", id))?.st_size;
            return data::read(&file, size.cast_unsigned(), Path::new("clone"), &mut |at, bytes| {
                self.meter.add(bytes.len());
                each(at, &bytes)
            });
        }
        let mut bytes = Vec::new();
        for run in self.image.runs(id.0).iter().filter(|run| !run.is_zero()) {
            self.image.read_run(run, &mut bytes)?;
            each(run.address(), &bytes)?;
            self.meter.add(bytes.len());
        }
        Ok(())
    }

    fn file(&self, id: ObjectId) -> Result<Option<OwnedFd>> {
        match self.in_common.get(&id) {
            Some((key, size)) => Ok(self.image.content_of(key, *size)?.map(OwnedFd::from)),
            None => clone::file_of(self.image, id),
        }
    }

    fn goes_on(&self) {
        self.meter.add(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn numbers_of_commands_that_have_just_begun_are_waited_for() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let tid = child.id().cast_signed();
        let holder = holder_of(tid, &[]).unwrap();
        assert!(!holder.ended, "{holder:?}");
        child.kill().unwrap();
        let reaped = std::thread::spawn(move || child.wait().unwrap());
        wait_for_numbers(BTreeSet::from([tid]));
        assert!(!reaped.join().unwrap().success());
        assert!(holder_of(tid, &[]).is_none());
        // Who has lived longer stays: nobody waits for that.
        wait_for_numbers(BTreeSet::from([1]));
        assert!(!holder_of(1, &[]).unwrap().is_new);
    }
}
