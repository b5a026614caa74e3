//! What is safe only because of how this library uses it: the one place of what a process knows, and who empties it when a
//! child is made.

use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Once};

use crate::outcome::Failed;
use crate::process::Process;
use crate::regions::Kind;
use crate::sections::{Label, Slot};

/// What this process knows; null until somebody asks, and in a new child.
static PROCESS: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());
static AT_FORK: Once = Once::new();

/// What this process knows. It lives as long as the process: a lock in it may have been held by a thread that a child does
/// not have, so that a child gets a new one.
pub(crate) fn this_process() -> &'static Process {
    let known = PROCESS.load(Ordering::Acquire);
    let known = if known.is_null() { first(known) } else { known };
    // SAFETY: what is stored comes from `Box::leak` in `first`, is shared only, and is never freed.
    unsafe { &*known }
}

fn first(null: *mut Process) -> *mut Process {
    AT_FORK.call_once(|| {
        // SAFETY: `in_child` is async-signal-safe: it stores a pointer and does nothing else. Its code stays where it is: a
        // shared object that has registered one is taken off the list by the C library when it is unloaded.
        let registered = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        // Without it a child would take its parent's connections for its own; nothing else fails but for want of memory.
        debug_assert_eq!(registered, 0);
    });
    let new = std::ptr::from_mut(Box::leak(Box::default()));
    match PROCESS.compare_exchange(null, new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => new,
        Err(other) => {
            // SAFETY: `new` was made by `Box::leak` above, and nobody else has seen it.
            drop(unsafe { Box::from_raw(new) });
            other
        }
    }
}

thread_local! {
    /// Of which process this thread knows a slot, by the address of what is known of it: in a child it is another one.
    static SLOT: RefCell<Option<(usize, Arc<Slot>)>> = const { RefCell::new(None) };
    static IS_AGENT: Cell<bool> = const { Cell::new(false) };
}

/// Does something with the slot of this thread.
pub(crate) fn with_slot<T>(work: impl FnOnce(&Slot) -> T) -> T {
    let process = std::ptr::from_ref(this_process()).addr();
    let slot = SLOT.try_with(|known| {
        if let Ok(mut known) = known.try_borrow_mut() {
            let slot = match known.take() {
                Some((of, slot)) if of == process => slot,
                old => Slot::of_this_thread(old.map_or(0, |(_, slot)| slot.depth())),
            };
            *known = Some((process, Arc::clone(&slot)));
            return Some(slot);
        }
        None
    });
    match slot {
        Ok(Some(slot)) => work(&slot),
        // The thread is about to end, and is in no section for longer than this.
        Ok(None) | Err(_) => work(&Slot::default()),
    }
}

/// This thread is the agent.
pub(crate) fn become_agent() {
    IS_AGENT.set(true);
}

/// Whether it is.
pub(crate) fn is_agent() -> bool {
    IS_AGENT.try_with(Cell::get).unwrap_or(false)
}

/// The label that a slot names.
pub(crate) fn label(of: &AtomicPtr<Label>) -> Option<&'static Label> {
    // SAFETY: null, or what `Section::new` has leaked: nothing else is stored there.
    unsafe { of.load(Ordering::Relaxed).as_ref() }
}

/// Lets a child and a core dump have zeros in place of these pages; false when they are no memory for that.
pub(crate) fn keep_from_children(pages: &Range<usize>) -> bool {
    let start = std::ptr::without_provenance_mut(pages.start);
    let length = pages.end.saturating_sub(pages.start);
    // SAFETY: advice that changes what others get of these pages, not what this process finds in them.
    let wiped = unsafe { libc::madvise(start, length, libc::MADV_WIPEONFORK) };
    // SAFETY: likewise.
    let kept = unsafe { libc::madvise(start, length, libc::MADV_DONTDUMP) };
    wiped == 0 && kept == 0
}

/// Leaves memory out of checkpoints: it can be computed again. The pages that lie wholly in the range hold zeros in every life
/// that begins from an image. To be kept again ([`crate::include`]) before it is given back or used for anything else.
///
/// # Safety
/// Zeros must be valid contents of it, and nobody may hold a reference to it that says that it does not change.
pub unsafe fn exclude(start: *const u8, length: usize) -> Result<(), Failed> {
    this_process().regions.leave_out(start.addr(), length, Kind::Excluded)
}

/// The same for what nobody else may see: it is in no image, in no child of fork and in no core dump. To be called before
/// the secret is written to it.
///
/// # Safety
/// As [`exclude`], for a child of fork as well.
pub unsafe fn secret(start: *const u8, length: usize) -> Result<(), Failed> {
    this_process().regions.leave_out(start.addr(), length, Kind::Secret)
}

/// Makes a thread that takes no signal: it inherits the mask of the one that makes it.
pub(crate) fn without_signals<T>(work: impl FnOnce() -> T) -> T {
    let (mut all, mut before) = (MaybeUninit::<libc::sigset_t>::uninit(), MaybeUninit::<libc::sigset_t>::uninit());
    // SAFETY: the set is written, whatever was in it.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` was written above; `before` is written.
    let blocked = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let done = work();
    if blocked == 0 {
        // SAFETY: `before` was written by the call above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    }
    done
}

unsafe extern "C" fn in_child() {
    PROCESS.store(std::ptr::null_mut(), Ordering::Release);
}
