//! What is safe only because of how this library uses it: the one place of what a process knows, and who empties it when a
//! child is made.

use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::process::Process;

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

unsafe extern "C" fn in_child() {
    PROCESS.store(std::ptr::null_mut(), Ordering::Release);
}
