//! Critical sections: while some thread is in one, no checkpoint is taken; while one is being taken, nobody enters.
//!
//! Each thread counts for itself; who enters pays one atomic addition. Order: a thread first counts itself in and then looks
//! at the gate, the agent first closes the gate and then looks at the counts; both sequentially consistent, so that one of
//! them sees the other. `gate` is the only lock here, and nothing else is taken under it.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{agent, ffi, process};

/// A part of a program that a checkpoint must not cut through. To be made once and kept: its label is never given back.
#[derive(Clone, Copy, Debug)]
pub struct Section(&'static Label);

/// What a section is called.
#[derive(Debug)]
pub(crate) struct Label(pub(crate) String);

/// This thread is inside; leaves when dropped, on the same thread.
#[derive(Debug)]
pub struct Inside(PhantomData<*const ()>);

impl Section {
    /// A section that is named by its label when it holds up a checkpoint.
    pub fn new(label: impl Into<String>) -> Self {
        Self(Box::leak(Box::new(Label(label.into()))))
    }

    /// Enters. Waits while a checkpoint is being taken, unless this thread is in a section already.
    pub fn enter(self) -> Inside {
        ffi::with_slot(|slot| slot.enter(self.0));
        Inside(PhantomData)
    }

    /// Enters if that needs no wait.
    pub fn try_enter(self) -> Option<Inside> {
        ffi::with_slot(|slot| slot.try_enter(self.0)).then(|| Inside(PhantomData))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        leave();
    }
}

/// Leaves the innermost section of this thread.
pub(crate) fn leave() {
    ffi::with_slot(Slot::leave);
}

/// Whether this thread is in a section.
pub(crate) fn is_inside() -> bool {
    ffi::with_slot(|slot| slot.depth.load(Ordering::SeqCst) > 0)
}

/// A thread that has entered a section once.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    tid: i32,
    depth: AtomicU32,
    /// The outermost section that it is in.
    label: AtomicPtr<Label>,
}

impl Slot {
    /// A thread makes itself known. `depth`: what it was in already, as a child of fork.
    pub(crate) fn of_this_thread(depth: u32) -> Arc<Self> {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        let slot = Arc::new(Self { tid, depth: AtomicU32::new(depth), ..Self::default() });
        let sections = &process::this().sections;
        sections.lock().push(Arc::clone(&slot));
        agent::begin();
        slot
    }

    pub(crate) fn depth(&self) -> u32 {
        self.depth.load(Ordering::SeqCst)
    }

    fn enter(&self, label: &'static Label) {
        while !self.try_enter(label) {
            process::this().sections.until_open(None);
        }
    }

    fn try_enter(&self, label: &'static Label) -> bool {
        let sections = &process::this().sections;
        if self.depth.fetch_add(1, Ordering::SeqCst) > 0 {
            return true;
        }
        self.label.store(std::ptr::from_ref(label).cast_mut(), Ordering::Relaxed);
        if !sections.is_closed.load(Ordering::SeqCst) || agent::is_this_thread() {
            return true;
        }
        self.leave();
        false
    }

    fn leave(&self) {
        let sections = &process::this().sections;
        if self.depth.fetch_sub(1, Ordering::SeqCst) == 1 && sections.is_closed.load(Ordering::SeqCst) {
            // Whoever waits looks at the counts under the lock.
            drop(sections.lock());
            sections.changed.notify_all();
        }
    }
}

/// The sections of a process.
#[derive(Debug, Default)]
pub(crate) struct Sections {
    is_closed: AtomicBool,
    gate: Mutex<Vec<Arc<Slot>>>,
    changed: Condvar,
}

impl Sections {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets nobody in any more and waits until nobody is inside. Else the gate is open again, and it is told who is.
    pub(crate) fn close(&self, until: Instant) -> Result<(), String> {
        self.is_closed.store(true, Ordering::SeqCst);
        let mut slots = self.lock();
        loop {
            // Of threads that have ended nobody else knows.
            slots.retain(|slot| Arc::strong_count(slot) > 1);
            let Some(inside) = slots.iter().find(|slot| slot.depth() > 0) else { return Ok(()) };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let label = ffi::label(&inside.label).map_or("?", |label| &label.0);
                let told = format!("thread {} is in its section {label}", inside.tid);
                drop(slots);
                self.open();
                return Err(told);
            }
            slots = self.changed.wait_timeout(slots, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets everybody in again.
    pub(crate) fn open(&self) {
        self.is_closed.store(false, Ordering::SeqCst);
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Waits until the gate is open.
    pub(crate) fn until_open(&self, limit: Option<Duration>) {
        let end = limit.map(|limit| Instant::now() + limit);
        let mut slots = self.lock();
        while self.is_closed.load(Ordering::SeqCst) {
            let left = end.map_or(Duration::from_hours(1), |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            slots = self.changed.wait_timeout(slots, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One after the other: a process has one gate.
    #[test]
    fn who_is_inside_is_waited_for_and_who_comes_later_waits() {
        who_is_inside_is_named();
        who_comes_to_a_closed_gate_waits_for_it();
    }

    fn who_is_inside_is_named() {
        let sections = &process::this().sections;
        let section = Section::new("ledger");
        let inside = section.enter();
        let nested = section.try_enter().unwrap();
        let told = sections.close(Instant::now()).unwrap_err();
        assert!(told.ends_with("is in its section ledger"), "{told}");
        drop(nested);
        sections.close(Instant::now()).unwrap_err();
        drop(inside);
        sections.close(Instant::now()).unwrap();
        assert!(section.try_enter().is_none());
        sections.open();
        drop(section.try_enter().unwrap());
        assert!(!is_inside());
    }

    fn who_comes_to_a_closed_gate_waits_for_it() {
        let sections = &process::this().sections;
        let section = Section::new("queue");
        let (entered, inside) = (Section::new("x").enter(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let closer = scope.spawn(|| sections.close(Instant::now() + Duration::from_mins(1)));
            while !sections.is_closed.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let late = scope.spawn(|| {
                let _inside = section.enter();
                inside.store(true, Ordering::SeqCst);
            });
            drop(entered);
            closer.join().unwrap().unwrap();
            assert!(!inside.load(Ordering::SeqCst));
            sections.open();
            late.join().unwrap();
        });
        assert!(inside.load(Ordering::SeqCst));
    }
}
