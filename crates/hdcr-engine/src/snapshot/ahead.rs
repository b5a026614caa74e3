//! From the first stop, which prepares, to the last one: what is copied in between.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::choice;
use super::early::{self, Early, Finished, Read};
use super::flags::Flags;
use super::forked::Forked;
use super::kept::{Kept, length};
use super::outlet::Outlet;
use super::record::{Way, WaysRecord, Why};
use super::series::{Rest, Series};
use super::space::{Habit, Last, Space, Span};
use super::spare;
use crate::checkpoint::Request;
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::mechanism::{Deadline, Frozen, FrozenProcess, Mechanism};
use crate::memory::kin;
use crate::model::ObjectId;
use crate::procfs::MapLine;
use crate::survey;

/// As few pages as this are read in the stop without another round: that takes some two milliseconds.
const FEW: u64 = 1000;
/// When so many rounds have not sufficed, more will not.
const ROUNDS: u32 = 12;
/// Room for what the stop reads of each page that the last round has copied.
const ROOM: u64 = 3 * 4096;
/// Bytes that go out at once.
const LOAD: usize = 1 << 20;
/// Room for what is never copied ahead.
const REST: u64 = 8 << 20;
/// At this pace and above, a round before the stop costs more than it saves.
const BRISK: Duration = Duration::from_millis(20);

/// What was copied before the stop, and what the stop finds prepared.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    spaces: BTreeMap<Pid, Space>,
    /// Buffers for the stop.
    pub(crate) kept: Kept,
    /// Mappings with their flags, as they were just before the stop, and as far as they were read in it.
    pub(crate) known: survey::Known,
    /// What was told of this process before the stop.
    pub(crate) own: survey::Own,
    /// Numbers that objects have already.
    pub(crate) next_id: u64,
    /// What an address space holds alike with another one (space, other, where): the image holds it once.
    pub(crate) alike: Vec<(ObjectId, ObjectId, Range<u64>)>,
    /// What the image holds and must not, found in the stop.
    forgotten: Vec<(ObjectId, Range<u64>)>,
    /// How long the tree stood still so that this could begin.
    pub(crate) stood: Duration,
    /// Processes that cannot be followed, and why.
    refused: BTreeMap<Pid, String>,
    /// Processes that could not be followed to the end this time, and why.
    lost: Vec<String>,
    /// Processes that are copied by fork in the stop, and why.
    forks: BTreeMap<Pid, Why>,
    /// Their copies.
    forked: Vec<Forked>,
    /// Pages that the last round has copied of each.
    left: BTreeMap<Pid, u64>,
    /// Reads the last pages already.
    early: Option<Early>,
    /// What it has kept.
    kept_early: Kept,
    /// Where what stays goes when the image is made.
    series: Option<Series>,
    /// This image goes on from another one, and the next comes so soon.
    pace: Option<Duration>,
}

impl Ahead {
    /// Goes on with what a series has followed. What has ended since is let go.
    pub(crate) fn of_series(series: &Series, rest: Rest, pace: Option<Duration>) -> Self {
        let Rest { spaces, refused, kept, kept_early, next_id } = rest;
        let mut ahead = Self::default();
        (ahead.refused, ahead.next_id) = (refused, next_id);
        (ahead.kept, ahead.kept_early) = (kept, kept_early);
        (ahead.series, ahead.pace) = (Some(series.clone()), pace);
        for (pid, mut space) in spaces {
            match space.begin_again() {
                Ok(()) => {
                    ahead.spaces.insert(pid, space);
                }
                Err(error) => tracing::debug!(pid = pid.0, %error, "is not followed any more"),
            }
        }
        ahead
    }

    /// Which series the image is one of.
    pub(crate) fn series(&self) -> Option<Series> {
        self.series.clone()
    }

    /// How long processes are followed.
    pub(crate) fn span(&self) -> Span {
        if self.series.is_some() { Span::Series } else { Span::OneImage }
    }

    /// Whether any process is followed.
    pub(crate) fn follows(&self) -> bool {
        !self.spaces.is_empty()
    }

    /// The objects whose pages stay from image to image: one that was first met by an image that was given up has none.
    pub(crate) fn objects(&self) -> Vec<u64> {
        self.spaces.values().filter(|space| space.in_base).map(|space| space.id.0).collect()
    }

    /// Begins to follow those of these processes that are not followed. If there are any, the tree stands still for a moment.
    pub(crate) fn begin(
        &mut self,
        mechanism: &dyn Mechanism,
        request: &Request,
        pids: &[Pid],
        by: Deadline,
    ) -> Result<()> {
        for (pid, space) in &mut self.spaces {
            space.leave_out(request.omitted.of(*pid));
        }
        let fresh = |pid: &&Pid| !self.spaces.contains_key(pid) && !self.refused.contains_key(pid);
        let pids: Vec<Pid> = pids.iter().filter(fresh).copied().collect();
        if pids.is_empty() {
            return Ok(());
        }
        let span = self.span();
        let began = Instant::now();
        let mut frozen = mechanism.freeze(request.scope, by)?;
        let began = frozen.since().unwrap_or(began);
        let alive: Vec<Pid> = frozen
            .processes()
            .iter()
            .filter(|process| !process.threads.is_empty())
            .map(|process| process.pid)
            .collect();
        for pid in pids.iter().filter(|pid| alive.contains(pid)) {
            match frozen.follow(*pid) {
                Ok(watch) => {
                    self.next_id += 1;
                    let habit = Habit { span, blind: request.blind };
                    let mut space = Space::new(*pid, ObjectId(self.next_id), watch, habit);
                    space.leave_out(request.omitted.of(*pid));
                    space.follow()?;
                    self.spaces.insert(*pid, space);
                }
                Err(error) => {
                    let why = why(*pid, &error.into());
                    self.refused.insert(*pid, why);
                }
            }
        }
        frozen.thaw()?;
        self.stood = began.elapsed();
        Ok(())
    }

    /// Copies in rounds until little is left.
    pub(crate) fn rounds(&mut self, out: &mut Outlet, auto: bool) -> Result<()> {
        let unsure: u64 = self.spaces.values().map(Space::unsure_pages).sum();
        if self.pace.is_some_and(|pace| pace <= BRISK) && unsure <= FEW {
            self.look_at_mappings();
            self.make_ready_for(FEW);
            return Ok(());
        }
        let forks = auto && self.series.is_none();
        if forks {
            self.fork_the_faster();
        }
        let mut before = self.round(out)?;
        let mut pages = before;
        for _ in 1..ROUNDS {
            if pages <= FEW {
                break;
            }
            pages = self.round(out)?;
            if pages > before / 4 * 3 {
                break;
            }
            before = pages;
        }
        if forks {
            self.fork_the_fast();
        }
        self.look_at_mappings();
        pages = pages.min(self.round(out)?.max(FEW));
        self.make_ready_for(pages);
        Ok(())
    }

    /// Processes that write faster than anybody copies are to be copied by fork, before anything is copied of them: each
    /// further copy would only make the image larger.
    fn fork_the_faster(&mut self) {
        let mut held = BTreeMap::new();
        for (pid, space) in &mut self.spaces {
            match space.see() {
                Ok(pages) => held.insert(*pid, pages),
                // A round says what is the matter.
                Err(_) => None,
            };
        }
        let began = Instant::now();
        std::thread::sleep(choice::look_for(held.values().sum()));
        let took = began.elapsed();
        let faster = |(pid, held): (Pid, u64)| {
            let seen = self.spaces.get(&pid)?.seen().ok()?;
            choice::too_fast(seen, held, took).then_some((pid, held.saturating_mul(PAGE)))
        };
        let faster: Vec<_> = held.into_iter().filter_map(faster).collect();
        self.fork(&faster, Why::Fast);
    }

    /// Processes that write faster than they can be copied ahead are to be copied by fork.
    fn fork_the_fast(&mut self) {
        let fast = |(pid, space): (&Pid, &Space)| {
            let left = self.left.get(pid).copied().unwrap_or(0);
            choice::too_much(left, space.held()).then_some((*pid, space.held().saturating_mul(PAGE)))
        };
        let fast: Vec<_> = self.spaces.iter().filter_map(fast).collect();
        self.fork(&fast, Why::Fast);
    }

    /// Processes, with what they hold, are to be copied by fork; not those that should not be there twice.
    pub(crate) fn fork(&mut self, processes: &[(Pid, u64)], why: Why) {
        for (pid, size) in processes {
            match spare::why_not(*pid, *size) {
                None => {
                    tracing::debug!("memory: process {pid}: is copied by fork");
                    self.forks.insert(*pid, why);
                }
                Some(cause) => {
                    self.lost.push(format!("process {pid} is not copied by fork: {cause}"));
                }
            }
        }
    }

    /// Whether a process is to be copied by fork.
    pub(crate) fn forks(&self, pid: Pid) -> bool {
        self.forks.contains_key(&pid)
    }

    /// In the stop: copies a process by fork when it is to be. `None`: it is read in the stop.
    pub(crate) fn copy(
        &mut self,
        frozen: &mut dyn Frozen,
        (pid, id): (Pid, ObjectId),
        lines: &[MapLine],
    ) -> Result<Option<(Forked, Why)>> {
        let Some(why) = self.forks.get(&pid) else { return Ok(None) };
        match Forked::begin(frozen, (pid, id), lines)? {
            Ok(forked) => Ok(Some((forked, *why))),
            Err(error) => {
                self.lost.push(self::why(pid, &error.into()));
                Ok(None)
            }
        }
    }

    /// The copy is read when the tree runs again.
    pub(crate) fn keep_copy(&mut self, forked: Forked) {
        self.forked.push(forked);
    }

    /// Touches buffers for so many pages of followed processes, and for what is not copied ahead.
    fn make_ready_for(&mut self, pages: u64) {
        let bytes = usize::try_from(pages.saturating_mul(ROOM)).unwrap_or(usize::MAX);
        let kept = if self.spaces.len() == 1 { &mut self.kept_early } else { &mut self.kept };
        kept.make_ready(bytes);
        self.make_ready(REST);
    }

    /// Touches buffers for so many bytes.
    pub(crate) fn make_ready(&mut self, bytes: u64) {
        self.kept.make_ready(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    /// One round in all processes that are not copied by fork; one in which it fails is given up.
    fn round(&mut self, out: &mut Outlet) -> Result<u64> {
        out.next_round();
        let mut pages = 0;
        let pids: Vec<Pid> = self.spaces.keys().copied().filter(|pid| !self.forks(*pid)).collect();
        for pid in pids {
            let Some(space) = self.spaces.get_mut(&pid) else { continue };
            match space.round(out) {
                Ok(more) => {
                    pages += more;
                    self.left.insert(pid, more);
                }
                // The image fails, and all go on with the next one.
                Err(error @ Error::Image(_)) => return Err(error),
                Err(error) => {
                    self.lost.push(why(pid, &error));
                    self.give_up(pid, out)?;
                }
            }
        }
        Ok(pages)
    }

    /// Reads what the kernel tells only together with a walk over all pages, so that the stop need not ask for it.
    pub(crate) fn look_at_mappings(&mut self) {
        for pid in self.forks.keys() {
            self.known.before.insert(*pid, Flags::default().look(*pid).to_vec());
        }
        for (pid, space) in &mut self.spaces {
            self.known.before.insert(*pid, space.flags.look(*pid).to_vec());
        }
    }

    /// How memory was read, for people.
    pub(crate) fn in_words(&self) -> String {
        let way = match (self.spaces.is_empty(), self.forked.is_empty()) {
            (true, true) => "copy",
            (false, true) => "precopy",
            (true, false) => "fork",
            (false, false) => "precopy and fork",
        };
        match self.refused.values().chain(&self.lost).next() {
            None => way.to_owned(),
            Some(cause) => format!("{way} ({cause})"),
        }
    }

    /// The object of a followed process's memory.
    pub(crate) fn object(&self, pid: Pid) -> Option<ObjectId> {
        let early = self.early.as_ref().filter(|early| early.pid == pid).map(|early| early.id);
        early.or_else(|| self.spaces.get(&pid).map(|space| space.id))
    }

    /// The tree stands still: when it is one process that is followed, its last pages are read while it is looked at.
    pub(crate) fn begin_early(&mut self, processes: &[FrozenProcess]) -> Result<()> {
        let [only] = processes else { return Ok(()) };
        if self.forks(only.pid) {
            return Ok(());
        }
        let known = self.known.before.get(&only.pid).map(Vec::as_slice).unwrap_or_default();
        // Without it, calls are made from the program's own text, which is then not what it was while it is read.
        let has_vdso = known.iter().any(|line| line.name == b"[vdso]");
        let Some(lines) = early::lines(only.pid, known)?.filter(|_| has_vdso) else { return Ok(()) };
        let Some(space) = self.spaces.remove(&only.pid) else { return Ok(()) };
        // Nothing moves until the mechanism does something in the process, and that is after the look.
        self.known.now.insert(only.pid, lines.clone());
        let lines = lines.into_iter().filter(|line| line.name != b"[vsyscall]").collect();
        let kept = std::mem::take(&mut self.kept_early);
        self.early = Some(Early::begin(space, lines, kept)?);
        Ok(())
    }

    /// Waits for the last pages; what was read.
    fn end_early(&mut self) -> Result<Option<Read>> {
        let Some(early) = self.early.take() else { return Ok(None) };
        let pid = early.pid;
        let died = || Error::Unsound("the thread that reads the last pages died".to_owned());
        let Finished { space, kept, read } = early.end().ok_or_else(died)?;
        self.spaces.insert(pid, space);
        self.kept_early = kept;
        read.map(Some)
    }

    /// In the stop: the rest of a followed process. `None`: it is not followed.
    pub(crate) fn last(
        &mut self,
        (pid, lines): (Pid, &[MapLine]),
        alike: Option<&kin::Alike>,
        out: Option<&mut Outlet>,
        copy: Option<(Forked, Why)>,
    ) -> Result<Option<WaysRecord>> {
        let early = self.end_early()?;
        let Some(space) = self.spaces.get_mut(&pid) else { return Ok(None) };
        let (read, forget, mut ways) = match early {
            Some(early) if early.lines == lines => (early.left, early.forget, early.ways),
            Some(_) => return Err(changed(pid)),
            None => {
                let Last { read, forget, ways } = space.last(lines)?;
                (read, forget, ways)
            }
        };
        if let Some(alike) = alike {
            space.held_alike(&alike.ranges);
        }
        let read = kin::without(read, alike.map(|alike| alike.ranges.as_slice()).unwrap_or_default());
        let read = match copy {
            Some((mut forked, why)) => {
                let left = forked.take_ranges(&read);
                for mapping in ways.mappings.iter_mut().filter(|mapping| mapping.pages > 0) {
                    (mapping.way, mapping.why, mapping.pages) = (Way::Fork.into(), why.into(), 0);
                }
                self.forked.push(forked);
                left
            }
            None => read,
        };
        self.forgotten.extend(forget.into_iter().map(|range| (space.id, range)));
        let mut out = out;
        let bytes: usize = read.iter().map(length).sum();
        if let Some(out) = out.as_deref_mut().filter(|_| !self.kept.takes(bytes)) {
            forget_all(&mut self.forgotten, out)?;
        }
        space.read(&read, &mut self.kept, out)?;
        Ok(Some(ways))
    }

    /// What is kept, by object.
    fn pieces(&self) -> impl Iterator<Item = (ObjectId, u64, &[u8])> {
        self.kept_early.pieces().chain(self.kept.pieces())
    }

    /// Bytes that are kept.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.pieces().map(|(_, _, bytes)| bytes.len() as u64).sum()
    }

    /// When the tree runs again: ends all following, takes out of the image what must not be in it, and sends what was kept.
    pub(crate) fn settle(&mut self, out: &mut Outlet, sent: &mut dyn FnMut(usize)) -> Result<()> {
        forget_all(&mut self.forgotten, out)?;
        out.alike(std::mem::take(&mut self.alike))?;
        std::mem::take(&mut self.forked).into_iter().try_for_each(|forked| forked.send(out, sent))?;
        if self.series.is_none() {
            std::mem::take(&mut self.spaces).into_values().for_each(Space::release);
        }
        let mut load = Load::default();
        for (id, at, bytes) in self.pieces() {
            for (piece, from) in bytes.chunks(LOAD).zip((at..).step_by(LOAD)) {
                if !load.takes(id, piece.len()) {
                    load.send(out, sent)?;
                }
                load.add(id, from, piece);
            }
        }
        load.send(out, sent)
    }

    /// At the end of the stop: follows what has come since the last one.
    pub(crate) fn follow_new(&mut self) -> Result<()> {
        if self.span() == Span::Series { self.spaces.values_mut().try_for_each(Space::follow_new) } else { Ok(()) }
    }

    /// Gives up those who are not among the living any more.
    pub(crate) fn only(&mut self, living: &[Pid], out: &mut Outlet) -> Result<()> {
        let followed: Vec<Pid> = self.spaces.keys().copied().collect();
        followed.into_iter().filter(|pid| !living.contains(pid)).try_for_each(|pid| self.give_up(pid, out))
    }

    /// Takes what was copied of a process out again: it is read in the stop.
    pub(crate) fn give_up(&mut self, pid: Pid, out: &mut Outlet) -> Result<()> {
        self.known.before.remove(&pid);
        self.known.now.remove(&pid);
        if self.end_early()?.is_some() {
            self.kept_early.clear();
        }
        match self.spaces.remove(&pid) {
            Some(space) => space.give_up(out),
            None => Ok(()),
        }
    }
}

/// Kept pieces of one object that go out together.
#[derive(Debug, Default)]
struct Load<'k> {
    id: Option<ObjectId>,
    ranges: Vec<Range<u64>>,
    pieces: Vec<&'k [u8]>,
    len: usize,
}

impl<'k> Load<'k> {
    fn takes(&self, id: ObjectId, more: usize) -> bool {
        self.pieces.is_empty() || (self.id == Some(id) && self.len.saturating_add(more) <= LOAD)
    }

    fn add(&mut self, id: ObjectId, at: u64, piece: &'k [u8]) {
        let end = at.saturating_add(u64::try_from(piece.len()).unwrap_or(0));
        match self.ranges.last_mut() {
            Some(last) if last.end == at => last.end = end,
            _ => self.ranges.push(at..end),
        }
        self.id = Some(id);
        self.pieces.push(piece);
        self.len = self.len.saturating_add(piece.len());
    }

    fn send(&mut self, out: &mut Outlet, sent: &mut dyn FnMut(usize)) -> Result<()> {
        let Self { id, ranges, pieces, len } = std::mem::take(self);
        let Some(id) = id else { return Ok(()) };
        let mut buffer = out.buffer(len);
        let mut rest = buffer.as_mut_slice();
        for piece in pieces {
            let (place, after) = rest.split_at_mut(piece.len().min(rest.len()));
            place.copy_from_slice(piece);
            rest = after;
        }
        out.pages(id.0, ranges, buffer)?;
        sent(len);
        Ok(())
    }
}

impl Drop for Ahead {
    /// What stays goes back to its series, whether the image was made or not.
    fn drop(&mut self) {
        if let Err(error) = self.end_early() {
            tracing::debug!(%error, "the last pages");
        }
        let Some(series) = self.series.take() else { return };
        let (mut kept, mut kept_early) = (std::mem::take(&mut self.kept), std::mem::take(&mut self.kept_early));
        kept.clear();
        kept_early.clear();
        let (spaces, refused) = (std::mem::take(&mut self.spaces), std::mem::take(&mut self.refused));
        let next_id = self.next_id;
        series.give_back(Rest { spaces, refused, kept, kept_early, next_id });
    }
}

/// Why a process is not followed, in words.
fn why(pid: Pid, error: &Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    tracing::info!(pid = pid.0, %error, "its memory is read in the stop");
    format!("process {pid}: {error}{cause}")
}

const PAGE: u64 = 4096;

fn changed(pid: Pid) -> Error {
    Error::Changed { subject: format!("process {pid}"), what: "its mappings have changed while it stood still".into() }
}

fn forget_all(forgotten: &mut Vec<(ObjectId, Range<u64>)>, out: &mut Outlet) -> Result<()> {
    forgotten.drain(..).try_for_each(|(id, range)| out.forget(id.0, range))
}
