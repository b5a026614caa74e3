//! The look before the leap: what a tree holds and what stands in the way, found while it runs.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hdcr_sys::kcmp::{self, Kind};

use crate::checkpoint::Request;
use crate::error::{Error, Owner, Refusal, Refusals, Result};
use crate::ids::{Pid, Tid};
use crate::mechanism::MechanismError;
use crate::memory;
use crate::openfile;
use crate::procfs::{self, MapLine};
use crate::resource::clone::Tries;
use crate::resource::inotify::Places;
use crate::resource::socket::Census;
use crate::resource::{self, FileView, backing};
use crate::segments;
use crate::semaphores;
use crate::snapshot::{flags, space};
use crate::task::creds::CredsRecord;
use crate::task::namespaces::Links;
use crate::task::{Site, TASKS, TaskView};
use crate::tree;

/// A survey in progress.
#[derive(Debug)]
pub struct Survey<'a> {
    /// What was asked for.
    pub(crate) request: &'a Request,
    /// The processes of the tree.
    pub(crate) pids: &'a BTreeSet<Pid>,
    /// The first process of it that lives.
    pub(crate) first: Option<Pid>,
    /// Every descriptor of every process of the tree.
    pub(crate) files: &'a [FileView],
    /// What stands in the way so far.
    pub(crate) refusals: Refusals,
    /// What does not stand in the way, but what a user should know (ends outside the tree and what becomes of them).
    pub(crate) notes: Vec<Refusal>,
    /// Places of [`Survey::files`] by inode.
    pub(crate) by_inode: BTreeMap<u64, Vec<usize>>,
    /// Files of mappings that have been looked at.
    pub(crate) seen: BTreeSet<((u32, u32), u64)>,
    /// Every living thread of the tree, and the number of each process.
    pub(crate) tids: BTreeSet<i32>,
    /// The ptys whose masters the tree holds, once they are asked for.
    pub(crate) masters: Option<BTreeSet<u32>>,
    /// Where watched files are.
    pub(crate) places: Places,
    /// What this process is.
    pub(crate) own: Own,
    /// What the capture need not look at again.
    pub(crate) shown: Seen,
    /// What is the same for all tasks, as far as it was asked for.
    pub(crate) common: Common,
    /// The tree stands still.
    pub(crate) frozen: bool,
    /// Which files can be cloned.
    pub(crate) clones: Tries,
    /// What the kernel says of UNIX sockets.
    pub(crate) census: Census,
}

/// What this process is and may, and what the machine grants to any, as far as it was asked for. The tree changes nothing
/// of it: what was told before the stop need not be asked again in it.
#[derive(Default, Debug)]
pub(crate) struct Own {
    /// The namespaces of this process by name.
    pub(crate) namespaces: BTreeMap<&'static str, Option<Vec<u8>>>,
    /// What it may.
    pub(crate) credentials: Option<CredsRecord>,
    /// Its control groups; nothing where there is no such file.
    pub(crate) groups: Option<Vec<u8>>,
    /// How many mappings a process may have.
    pub(crate) most_mappings: Option<usize>,
}

/// Texts of `/proc` about processes, by name.
#[derive(Default, Debug)]
pub(crate) struct Texts(BTreeMap<(Pid, &'static str), Vec<u8>>);

impl Texts {
    /// Keeps one.
    pub(crate) fn keep(&mut self, pid: Pid, name: &'static str, text: Vec<u8>) {
        self.0.insert((pid, name), text);
    }

    /// Takes one that was kept, or reads it.
    pub(crate) fn take(&mut self, pid: Pid, name: &'static str) -> Result<Vec<u8>> {
        self.0.remove(&(pid, name)).map_or_else(|| procfs::read(pid, name), Ok)
    }
}

/// What a survey has seen that the capture need not look at again, when it was made under the freeze.
#[derive(Default, Debug)]
pub(crate) struct Seen {
    /// What it has read.
    pub(crate) texts: Texts,
    /// There are no semaphores of System V at all: none can be the tree's, which stands still.
    pub(crate) no_semaphores: bool,
    /// Likewise no shared memory of System V.
    pub(crate) no_segments: bool,
}

/// What need not be asked for each task anew.
#[derive(Default, Debug)]
pub(crate) struct Common {
    /// Tracers that were met, and whether they are threads of this process.
    pub(crate) tracers: BTreeMap<u64, bool>,
    /// How many sets of semaphores there are.
    pub(crate) sets: Option<usize>,
    /// Whether memory lies on several nodes.
    pub(crate) nodes: Option<bool>,
    /// The link to the time namespace of the first process.
    pub(crate) clock: Option<Vec<u8>>,
}

impl<'a> Survey<'a> {
    fn begin((request, own): (&'a Request, Own), look: &'a Look, pids: &'a BTreeSet<Pid>, frozen: bool) -> Self {
        let mut by_inode: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, view) in look.files.iter().enumerate() {
            by_inode.entry(view.stat.st_ino).or_default().push(index);
        }
        Survey {
            request,
            pids,
            first: look.tasks.first().map(|task| task.pid),
            files: &look.files,
            refusals: Refusals::default(),
            notes: Vec::new(),
            by_inode,
            seen: BTreeSet::new(),
            tids: look.tasks.iter().map(|task| task.tid.0).chain(look.pids.iter().map(|pid| pid.0)).collect(),
            masters: None,
            places: Places::default(),
            own,
            shown: Seen::default(),
            common: Common::default(),
            frozen,
            clones: Tries::default(),
            census: Census::default(),
        }
    }
}

impl Survey<'_> {
    /// Adds an obstacle.
    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        if !self.refusals.0.contains(&refusal) {
            self.refusals.0.push(refusal);
        }
    }

    /// Adds a remark.
    pub(crate) fn note(&mut self, note: Refusal) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The descriptors of the tree that lead to an inode.
    pub(crate) fn with_inode(&self, inode: u64) -> impl Iterator<Item = &FileView> {
        self.by_inode.get(&inode).into_iter().flatten().filter_map(|at| self.files.get(*at))
    }
}

/// Everything that `/proc` shows of a tree at one moment.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) pids: Vec<Pid>,
    pub(crate) tasks: Vec<TaskView>,
    pub(crate) files: Vec<FileView>,
    pub(crate) lines: BTreeMap<Pid, Vec<MapLine>>,
}

/// Mappings with their flags, of processes whose memory is followed.
#[derive(Default, Debug)]
pub(crate) struct Known {
    /// As they were a moment ago.
    pub(crate) before: BTreeMap<Pid, Vec<MapLine>>,
    /// As they are, of some that stand still.
    pub(crate) now: BTreeMap<Pid, Vec<MapLine>>,
}

/// Looks at the processes. One that is gone when we come to it is left out. For those that are `known` the kernel need not
/// walk over all pages.
pub(crate) fn look(pids: &[Pid], known: &Known) -> Result<Look> {
    /// Below this many the start of a thread costs more than it gains.
    const MANY: usize = 6;
    let mut look = Look { pids: pids.to_vec(), tasks: Vec::new(), files: Vec::new(), lines: BTreeMap::new() };
    let looks = halves(pids, MANY, |pid| {
        let mut one = Look { pids: Vec::new(), tasks: Vec::new(), files: Vec::new(), lines: BTreeMap::new() };
        look_at(*pid, &mut one, known).map(|()| one)
    });
    for (pid, one) in pids.iter().zip(looks) {
        match one {
            Ok(mut one) => {
                look.tasks.append(&mut one.tasks);
                look.files.append(&mut one.files);
                look.lines.append(&mut one.lines);
            }
            Err(_) if procfs::stat(*pid).is_ok_and(|stat| stat.state == b'Z') || procfs::stat(*pid).is_err() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(look)
}

/// What is told of each, in order. The second half of many is looked at by a thread of its own: under the freeze a second
/// processor is idle.
fn halves<T: Sync, R: Send>(all: &[T], many: usize, look: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (mine, others) = all.split_at(if all.len() < many { all.len() } else { all.len() / 2 });
    if others.is_empty() {
        return mine.iter().map(look).collect();
    }
    std::thread::scope(|scope| {
        let other = scope.spawn(|| others.iter().map(&look).collect::<Vec<_>>());
        let mut told: Vec<R> = mine.iter().map(&look).collect();
        // It cannot have panicked; what it did not see is looked at here.
        told.extend(other.join().unwrap_or_else(|_| others.iter().map(&look).collect()));
        told
    })
}

/// The threads of a process that is there, by number.
fn threads_of(pid: Pid) -> Result<Vec<Tid>> {
    let operation = "listing threads";
    let mut tids = procfs::threads(pid).map_err(Error::system(operation, pid))?;
    if tids.is_empty() {
        return Err(MechanismError::Gone { operation, tid: pid.leader() }.into());
    }
    tids.sort_unstable();
    Ok(tids)
}

fn look_at(pid: Pid, look: &mut Look, known: &Known) -> Result<()> {
    /// Below this many the start of a thread costs more than it gains.
    const MANY: usize = 24;
    let mut common = None;
    let tids = threads_of(pid)?;
    for (tid, view) in tids.iter().zip(halves(&tids, MANY, |tid| view(pid, *tid))) {
        match view {
            // A dead thread holds nothing; the first living one speaks for the process.
            Ok(view) if procfs::dead(view.stat.state) => {}
            Ok(view) => {
                let speaks = common.is_none();
                let common = common.get_or_insert_with(|| Links::of_process(pid, *tid));
                let namespaces = view.namespaces.with(Arc::clone(common));
                look.tasks.push(TaskView { speaks, namespaces, ..view });
            }
            Err(_) if procfs::read_thread(pid, *tid, "stat").is_err() => {}
            Err(error) => return Err(error),
        }
    }
    if tids.len() <= 1 && common.is_none() && procfs::stat(pid)?.state == b'Z' {
        return Ok(());
    }
    look.files.extend(openfile::views(pid)?);
    look.lines.insert(pid, lines_of(pid, known)?);
    Ok(())
}

fn lines_of(pid: Pid, known: &Known) -> Result<Vec<MapLine>> {
    if let Some(lines) = known.now.get(&pid) {
        return Ok(lines.clone());
    }
    let followed = known.before.get(&pid);
    if let Some(known) = followed
        && let Some(lines) = flags::with_known_flags(space::maps(pid)?, known)
    {
        return Ok(lines);
    }
    let lines = procfs::parse_smaps(&procfs::read(pid, "smaps")?);
    let mut lines =
        lines.ok_or_else(|| Error::Changed { subject: format!("process {pid}"), what: "unreadable smaps".into() })?;
    if followed.is_some() {
        flags::without_ours(&mut lines);
    }
    Ok(lines)
}

/// A thread, without what all of its process have in common.
fn view(pid: Pid, tid: Tid) -> Result<TaskView> {
    let stat = procfs::parse_stat(&procfs::read_thread(pid, tid, "stat")?);
    let stat = stat.ok_or_else(|| Error::Changed { subject: format!("task {tid}"), what: "unreadable stat".into() })?;
    let (status, namespaces) = (procfs::status(pid, tid)?, Links::of_thread(pid, tid));
    Ok(TaskView { pid, tid, speaks: pid.leader() == tid, stat, status, namespaces })
}

/// What came of a survey.
#[derive(Debug)]
pub(crate) struct Judged {
    /// What stands in the way.
    pub(crate) refusals: Refusals,
    /// What is worth knowing.
    pub(crate) notes: Vec<Refusal>,
    /// Where watched files are.
    pub(crate) places: Places,
    /// So many bytes are lacking for clones.
    pub(crate) lacking: u64,
    /// What this process is.
    pub(crate) own: Own,
    /// What was seen.
    pub(crate) shown: Seen,
}

/// What stands in the way, and what is worth knowing.
pub(crate) fn judge(request: &Request, look: &Look, own: Own, frozen: bool) -> Result<Judged> {
    let pids: BTreeSet<Pid> = look.pids.iter().copied().collect();
    let mut survey = Survey::begin((request, own), look, &pids, frozen);
    for task in &look.tasks {
        for kind in TASKS.iter().filter(|kind| kind.site == Site::Thread || task.leads()) {
            match (kind.survey)(&mut survey, task) {
                Err(_) if procfs::read_thread(task.pid, task.tid, "stat").is_err() => {}
                other => other?,
            }
        }
    }
    semaphores::survey(&mut survey);
    segments::survey(&mut survey, &look.lines);
    resource::listed::survey(&mut survey);
    shared_halves(&mut survey, look)?;
    look.lines.keys().for_each(|pid| long_path(&mut survey, *pid));
    for view in &look.files {
        match resource::kind_of(view) {
            // What is gone meanwhile needs no look: the one under the freeze counts.
            Some(kind) => {
                openfile::while_open(view.pid, view.fd, || (kind.survey)(&mut survey, view))?;
            }
            None => survey.refuse(unknown(view)),
        }
    }
    let mut threads: BTreeMap<Pid, Vec<&TaskView>> = BTreeMap::new();
    for task in &look.tasks {
        threads.entry(task.pid).or_default().push(task);
    }
    for (pid, lines) in &look.lines {
        match memory::room::survey(&mut survey, threads.get(pid).map(Vec::as_slice).unwrap_or_default(), lines) {
            Err(_) if procfs::stat(*pid).is_err() => {}
            other => other?,
        }
        for line in lines {
            match memory::obstacle(*pid, line, request.followed) {
                Some(refusal) => survey.refuse(refusal),
                None if line.inode != 0 => backing::survey(&mut survey, *pid, line),
                None => {}
            }
        }
    }
    let Survey { refusals, notes, places, clones, own, shown, .. } = survey;
    Ok(Judged { refusals, notes, places, lacking: clones.lacking, own, shown })
}

/// A program whose path cannot be told.
fn long_path(survey: &mut Survey<'_>, pid: Pid) {
    if let Err(Error::Refused(refusals)) = procfs::link(pid, "exe") {
        refusals.0.into_iter().for_each(|refusal| survey.refuse(refusal));
    }
}

fn unknown(view: &FileView) -> Refusal {
    view.refuse(
        "file-unknown",
        "open file",
        "HDCR does not know this kind of file",
        "close it before the checkpoint, or report it",
    )
}

/// Processes that share an address space, a descriptor table or directories without being threads of one process, and
/// threads that do not share them with their process.
fn shared_halves(survey: &mut Survey<'_>, look: &Look) -> Result<()> {
    const HALVES: [(Kind, &str); 3] =
        [(Kind::Vm, "address space"), (Kind::Files, "descriptor table"), (Kind::Fs, "directories")];
    let speakers: Vec<&TaskView> =
        look.tasks.iter().filter(|task| task.leads() && look.lines.contains_key(&task.pid)).collect();
    for (kind, name) in HALVES {
        let mut ordered: Vec<&TaskView> = Vec::new();
        for task in &speakers {
            let Some(place) = place_among(&ordered, task, kind)? else { continue };
            match place {
                Ok(same) => {
                    let other = ordered.get(same).map_or(0, |other| other.pid.0);
                    if kind == Kind::Vm && in_vfork(look, [task.pid.0, other], survey.request.unseen) {
                        continue;
                    }
                    survey.refuse(shared(task.pid, name, &format!("it is shared with process {other} by clone(2)")));
                }
                Err(place) => ordered.insert(place, task),
            }
        }
    }
    for task in look.tasks.iter().filter(|task| !task.leads()) {
        let Some(speaker) = speakers.iter().find(|speaker| speaker.pid == task.pid) else { continue };
        for (kind, name) in HALVES.iter().skip(1) {
            if compared(speaker, task, *kind)?.is_some_and(Ordering::is_ne) {
                survey.refuse(shared(Pid(task.tid.0), name, "this thread has its own by unshare(2)"));
            }
        }
    }
    Ok(())
}

/// Where a task is among others by the order that the kernel gives their objects: at one that is the same, or between
/// two. `None`: it has ended.
fn place_among(
    ordered: &[&TaskView],
    task: &TaskView,
    kind: Kind,
) -> Result<Option<std::result::Result<usize, usize>>> {
    let (mut low, mut high) = (0_usize, ordered.len());
    while let Some(other) = ordered.get(low.midpoint(high)).filter(|_| low < high) {
        let middle = low.midpoint(high);
        match compared(other, task, kind)? {
            None if gone(task) => return Ok(None),
            // The other one has ended: what it was is no matter, but an order there must be.
            None | Some(Ordering::Less) => low = middle + 1,
            Some(Ordering::Equal) => return Ok(Some(Ok(middle))),
            Some(Ordering::Greater) => high = middle,
        }
    }
    Ok(Some(Err(low)))
}

fn gone(task: &TaskView) -> bool {
    procfs::read_thread(task.pid, task.tid, "stat")
        .ok()
        .and_then(|text| procfs::parse_stat(&text))
        .is_none_or(|stat| procfs::dead(stat.state))
}

/// Whether two tasks have the same object; `None` when one of them has ended. What the kernel does not tell is an error:
/// two halves of one object restored as two would go apart in silence.
fn compared(a: &TaskView, b: &TaskView, kind: Kind) -> Result<Option<Ordering>> {
    let tids = (a.tid, b.tid);
    told(kcmp::kcmp(a.tid.0, b.tid.0, kind), || gone(a) || gone(b), tids)
}

fn told(
    answer: std::io::Result<Ordering>,
    ended: impl FnOnce() -> bool,
    (a, b): (Tid, Tid),
) -> Result<Option<Ordering>> {
    match answer {
        Ok(order) => Ok(Some(order)),
        Err(_) if ended() => Ok(None),
        Err(source) => Err(Error::System {
            operation: "comparing two tasks (kcmp)",
            subject: format!("tasks {a} and {b}"),
            source,
        }),
    }
}

/// Whether one of two processes waits in `vfork(2)` (state D, kernel/fork.c `wait_for_vfork_done`) while it is looked at. It
/// is stopped only when the other one has executed its program; under the freeze no thread is in that state, or, where that is
/// not seen otherwise, none in that place.
fn in_vfork(look: &Look, pids: [i32; 2], unseen: bool) -> bool {
    let waits = |task: &TaskView| {
        let place = procfs::read_thread(task.pid, task.tid, "wchan").unwrap_or_default();
        let place = String::from_utf8_lossy(&place);
        ["kernel_clone", "vfork", "do_fork"].iter().any(|name| place.contains(name))
    };
    let mut seen = look.tasks.iter().filter(|task| pids.contains(&task.pid.0) && task.stat.state == b'D');
    seen.any(|task| !unseen || waits(task))
}

fn shared(pid: Pid, name: &str, cause: &str) -> Refusal {
    Refusal {
        code: "task-sharing",
        object: name.to_owned(),
        owner: Owner { pid: Some(pid), ..Owner::default() },
        cause: cause.to_owned(),
        remedy: "checkpoint when the task has ended".to_owned(),
    }
}

/// The processes of a request's scope.
pub(crate) fn processes(request: &Request) -> Result<Vec<Pid>> {
    tree::list(request.scope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_the_kernel_does_not_give_is_no_answer() {
        let denied = || Err(std::io::Error::from_raw_os_error(nix::libc::EPERM));
        let pair = (Tid(1), Tid(2));
        assert_eq!(told(Ok(Ordering::Less), || true, pair).unwrap(), Some(Ordering::Less));
        assert_eq!(told(denied(), || true, pair).unwrap(), None);
        assert!(told(denied(), || false, pair).is_err());
    }
}
