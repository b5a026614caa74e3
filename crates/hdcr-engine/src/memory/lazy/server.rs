//! Who serves the pages of a program that runs already: one thread hears what happens and answers faults, others fill behind.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdcr_image::{GroupBuffers, ImageReader};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::ledger::Missing;
use super::place::{Place, Went};
use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::memory::PAGE;
use crate::progress::Meter;

/// Bytes that a filler reads at once.
const GROUP: u64 = 1 << 20;
/// Bytes that who waits for a page gets with it before the rest of what was read.
const NEAR: u64 = 64 << 10;
/// How long those wait who can do nothing now.
const PAUSE: Duration = Duration::from_micros(200);

/// How much of what was read is put in for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Much {
    /// What lies near it: before the release nobody waits for more.
    Near,
    All,
}

/// The address spaces that are being filled.
#[derive(Debug)]
pub(crate) struct Server {
    image: Arc<ImageReader>,
    /// Locked before the state of a place.
    places: Mutex<Vec<Arc<Place>>>,
    ended: AtomicBool,
    trouble: Mutex<Option<Error>>,
    /// Wakes the thread that listens.
    bell: OwnedFd,
    faults: AtomicU64,
}

impl Server {
    pub(crate) fn new(image: Arc<ImageReader>, places: Vec<Place>) -> Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bell = bell.map_err(Error::system("making a bell", "the page server"))?;
        let places = Mutex::new(places.into_iter().map(Arc::new).collect());
        let trouble = Mutex::new(None);
        Ok(Self { image, places, ended: AtomicBool::new(false), trouble, bell, faults: AtomicU64::new(0) })
    }

    fn places(&self) -> MutexGuard<'_, Vec<Arc<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Faults that were answered.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Ends all threads of the server.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.ring();
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn ring(&self) {
        if let Err(error) = rustix::io::write(&self.bell, &1_u64.to_ne_bytes()) {
            tracing::trace!(%error, "the bell rings already");
        }
    }

    /// Something went wrong: nobody is served any more.
    pub(crate) fn fail(&self, error: Error) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.end();
    }

    /// What went wrong.
    pub(crate) fn trouble(&self) -> Option<Error> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Listens until the end. `alarm` becomes readable when the one has died who would keep missing pages missing after us.
    pub(crate) fn listen(&self, alarm: BorrowedFd<'_>) {
        if let Err(error) = self.serve(alarm) {
            self.fail(error);
        }
    }

    fn serve(&self, alarm: BorrowedFd<'_>) -> Result<()> {
        let mut buffers = GroupBuffers::default();
        let mut waiting: Vec<(Arc<Place>, u64)> = Vec::new();
        while !self.has_ended() {
            let all: Vec<Arc<Place>> = self.places().clone();
            self.wait(&all, alarm, waiting.is_empty())?;
            waiting.extend(self.hear(&all)?);
            drop(all);
            let mut later = Vec::new();
            for (place, page) in waiting.drain(..) {
                if self.answer(&place, page, Much::All, &mut buffers)? == Went::Later {
                    later.push((place, page));
                } else {
                    self.faults.fetch_add(1, Ordering::Relaxed);
                }
            }
            waiting = later;
        }
        Ok(())
    }

    /// Hears all that happened; the pages that threads wait for.
    fn hear(&self, all: &[Arc<Place>]) -> Result<Vec<(Arc<Place>, u64)>> {
        let mut waiting = Vec::new();
        let mut births = false;
        for place in all {
            let mut places = self.places();
            // Copies are among the places before anybody can find that all is done.
            let heard = place.hear()?;
            births |= !heard.born.is_empty();
            places.extend(heard.born.into_iter().map(Arc::new));
            drop(places);
            waiting.extend(heard.faults.into_iter().map(|page| (Arc::clone(place), page)));
        }
        if births {
            // So there are never many more descriptors than processes, however fast they come and go.
            self.places().retain(|place| !place.is_done());
        }
        Ok(waiting)
    }

    /// Waits until something is to be heard, or somebody is to be looked at again.
    fn wait(&self, all: &[Arc<Place>], alarm: BorrowedFd<'_>, idle: bool) -> Result<()> {
        let readable = all.iter().map(|place| place.ready()).chain([self.bell.as_fd(), alarm]);
        let mut polled: Vec<PollFd<'_>> = readable.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let idle = idle && all.iter().all(|place| place.is_at_rest());
        let limit = rustix::time::Timespec::try_from(PAUSE).unwrap_or_default();
        match poll(&mut polled, if idle { None } else { Some(&limit) }) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::system("waiting for faults", "the page server")(errno)),
        }
        if polled.last().is_some_and(|alarm| !alarm.revents().is_empty()) {
            let what = "the process that stands by for the page server has died".to_owned();
            return Err(Error::Changed { subject: "the restore".to_owned(), what });
        }
        let mut count = [0; 8];
        if rustix::io::read(&self.bell, &mut count).is_ok() {
            tracing::trace!("the bell rang");
        }
        Ok(())
    }

    /// Puts in the page that somebody waits for, with its neighbours.
    fn answer(&self, place: &Place, page: u64, much: Much, buffers: &mut GroupBuffers) -> Result<Went> {
        let _urgent = place.urgent();
        let Some(missing) = place.missing_at(page) else { return place.put_zeros(page, None) };
        let from = missing.from.saturating_add(page.saturating_sub(missing.at.start));
        let here = Missing { at: page..page.saturating_add(PAGE), from };
        let Some(index) = self.run_at(place.space, from) else { return place.put_zeros(page, Some(&missing)) };
        let read = self.image.read_group(place.space, index..index.saturating_add(1), buffers)?;
        let Some((first, bytes)) = read.first().copied() else { return Ok(Went::Done) };
        let run = first..first.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
        let near = (from / NEAR * NEAR).max(run.start)..(from / NEAR * NEAR).saturating_add(NEAR).min(run.end);
        let next = if much == Much::All { run.end } else { near.end };
        let others = [near.end..run.end, run.start..near.start];
        for part in std::iter::once(near).chain(others).take(if much == Much::All { 3 } else { 1 }) {
            let wanted = here.beside(&part);
            let offset = |address: u64| usize::try_from(address.saturating_sub(first)).unwrap_or(usize::MAX);
            let bytes = bytes.get(offset(wanted.from)..offset(part.end)).unwrap_or_default();
            if place.put(&wanted, bytes)? == Went::Later {
                return Ok(Went::Later);
            }
        }
        place.look_near(here.beside(&(next..next)).at.start);
        Ok(Went::Done)
    }

    /// Puts pages in that a process of the tree in the making stands on.
    pub(crate) fn bring(&self, pid: Pid, addresses: &[u64]) -> Result<()> {
        let place = self.places().iter().find(|place| place.is_of(pid)).cloned();
        let Some(place) = place else { return Ok(()) };
        let mut buffers = GroupBuffers::default();
        for address in addresses {
            let page = address / PAGE * PAGE;
            if place.missing_at(page).is_some() && self.answer(&place, page, Much::Near, &mut buffers)? == Went::Later {
                let what = "a tree in the making changed its memory".to_owned();
                return Err(Error::Changed { subject: format!("process {pid}"), what });
            }
        }
        Ok(())
    }

    /// The run of the image that holds a page; `None`: it is not stored, that is, zeros.
    fn run_at(&self, space: u64, from: u64) -> Option<usize> {
        let runs = self.image.runs(space);
        let index = runs.partition_point(|run| run.range().end <= from);
        runs.get(index).is_some_and(|run| !run.is_zero() && run.address() <= from).then_some(index)
    }

    /// The runs that are read together from a page of the image on, and where the last of them ends; the end of all
    /// addresses when none follows.
    fn group_at(&self, space: u64, from: u64) -> (Range<usize>, u64) {
        let runs = self.image.runs(space);
        let first = runs.partition_point(|run| run.range().end <= from);
        let (mut bytes, mut group, mut end) = (0_u64, first..first, u64::MAX);
        for run in runs.iter().skip(first) {
            let more = if run.is_zero() { 0 } else { u64::from(run.entry().stored).saturating_mul(PAGE) };
            bytes = bytes.saturating_add(more);
            if bytes > GROUP && group.end > first {
                break;
            }
            group.end = group.end.saturating_add(1);
            end = run.range().end;
        }
        (group, end)
    }

    /// Fills what is missing until nothing is; several threads may do so.
    pub(crate) fn fill(&self, meter: &Meter) {
        if let Err(error) = self.fill_all(meter) {
            self.fail(error);
        }
    }

    fn fill_all(&self, meter: &Meter) -> Result<()> {
        let mut buffers = GroupBuffers::default();
        while !self.has_ended() {
            let Some(place) = self.next_place() else { return Ok(()) };
            let reach = |from| self.group_at(place.space, from).1.saturating_sub(from);
            let Some(taken) = place.take(reach) else {
                // Others are at work on the last pages.
                std::thread::sleep(PAUSE);
                continue;
            };
            let went = self.fill_group(&place, &taken, &mut buffers, meter);
            place.give_back(&taken);
            if went? == Went::Later {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    fn fill_group(&self, place: &Place, taken: &Missing, buffers: &mut GroupBuffers, meter: &Meter) -> Result<Went> {
        let (group, _) = self.group_at(place.space, taken.from);
        // Between what is stored, pages are zeros. Only those: what was moved away and back meanwhile is still missing.
        let mut before = taken.from;
        for (first, bytes) in self.image.read_group(place.space, group, buffers)? {
            while place.is_urgent() && !self.has_ended() {
                std::thread::yield_now();
            }
            let end = first.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
            if before < first {
                place.leave_out(&taken.beside(&(before..first)));
            }
            let wanted = taken.beside(&(first..end));
            let left_out = usize::try_from(wanted.from.saturating_sub(first)).unwrap_or(usize::MAX);
            if place.put(&wanted, bytes.get(left_out..).unwrap_or_default())? == Went::Later {
                return Ok(Went::Later);
            }
            before = end;
            meter.add(bytes.len());
        }
        if before == taken.from {
            // Nothing is stored from here on.
            place.leave_out(taken);
        }
        Ok(Went::Done)
    }

    /// A place in which pages are missing; those that are done are let go of. `None`: all are.
    fn next_place(&self) -> Option<Arc<Place>> {
        let mut places = self.places();
        let before = places.len();
        places.retain(|place| !place.is_done());
        if places.len() < before {
            // Who listens lets go of them, too.
            self.ring();
        }
        places.first().cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::testing::{OFF, Space, image, moved, pages, place};
    use super::*;
    use crate::mechanism::Happening;
    use crate::progress::{Phase, Progress};

    /// Who listens is given up after as much.
    const LIMIT: Duration = Duration::from_secs(20);

    /// Nothing more has to happen for that.
    #[test]
    fn who_listens_looks_again_until_all_are_at_rest() {
        let (place, space) = place(0..64, 0..64);
        let server = Server::new(image(&(0..64)), vec![place]).unwrap();
        space.lock().unwrap().tell(moved(0..64, OFF));
        space.lock().unwrap().slow = 1000;
        server.ring();
        let (alarm, _silent) = std::io::pipe().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| server.listen(alarm.as_fd()));
            let waits = scope.spawn(move || {
                let until = Instant::now() + LIMIT;
                while space.lock().unwrap().changing && Instant::now() < until {
                    std::thread::yield_now();
                }
                Instant::now() < until
            });
            let at_rest = waits.join();
            server.end();
            assert!(at_rest.unwrap());
        });
        assert!(server.places().iter().all(|place| place.is_at_rest()));
        assert!(server.trouble().is_none());
    }

    /// A part of what the image holds together, moved to the lowest addresses that a program may have.
    #[test]
    fn what_was_moved_far_down_is_filled_and_served() {
        let server = |told: Happening| {
            let (place, space) = place(16..26, 300..310);
            let server = Server::new(image(&(0..1024)), vec![place]).unwrap();
            space.lock().unwrap().tell(told);
            let place = Arc::clone(&server.places()[0]);
            place.hear().unwrap();
            (server, place, space)
        };
        let down = || moved(300..310, 16);
        let present = |space: &Mutex<Space>| space.lock().unwrap().present.iter().copied().collect::<Vec<_>>();
        let whole: Vec<u64> = (16..26).collect();
        let (filled, _, space) = server(down());
        filled.fill(&Meter::begin(&Progress::default(), Phase::Filling, || 0));
        assert!(filled.trouble().is_none());
        assert_eq!(present(&space), whole);
        let (asked, place, space) = server(down());
        let mut buffers = GroupBuffers::default();
        assert_eq!(asked.answer(&place, 20 * PAGE, Much::All, &mut buffers).unwrap(), Went::Done);
        assert_eq!(present(&space), whole);
    }

    /// Children that come and go while a filler is at work elsewhere.
    #[test]
    fn who_has_ended_is_let_go_of_at_the_next_birth() {
        let (parent, space) = place(0..64, 0..64);
        let server = Server::new(image(&(0..64)), vec![parent]).unwrap();
        for _ in 0..5 {
            let child = Arc::new(Mutex::new(Space::default()));
            space.lock().unwrap().tell(Happening::Fork(pages(&child)));
            let all = server.places().clone();
            server.hear(&all).unwrap();
            assert_eq!(server.places().len(), 2);
            child.lock().unwrap().gone = true;
        }
        assert!(server.next_place().is_some());
        assert_eq!(server.places().len(), 1);
    }
}
