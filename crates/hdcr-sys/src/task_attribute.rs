//! Whether this kernel has attributes of tasks that no crate knows yet.
#![expect(unsafe_code, reason = "raw system calls")]

/// Whether timers can be given their numbers: `PR_TIMER_CREATE_RESTORE_IDS` (Linux 6.15).
pub fn timer_ids_settable() -> bool {
    const RESTORE_IDS: libc::c_int = 77;
    const GET: libc::c_ulong = 2;
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: this option takes numbers, and asked to get its state changes nothing.
    let state = unsafe { libc::prctl(RESTORE_IDS, GET, UNUSED, UNUSED, UNUSED) };
    state >= 0
}

/// Whether a thread has a core scheduling cookie, which says who may share a core with it (`PR_SCHED_CORE`, Linux 5.14). False
/// where the kernel or the machine knows none, and where it does not tell.
pub fn has_core_cookie(tid: i32) -> bool {
    const SCHED_CORE: libc::c_int = 62;
    const GET: libc::c_ulong = 0;
    const OF_THREAD: libc::c_ulong = 0;
    let Ok(tid) = libc::c_ulong::try_from(tid) else { return false };
    let mut cookie = 0_u64;
    // SAFETY: asked to get, this option writes one word to its last argument, and that lives until the call returns.
    let result = unsafe { libc::prctl(SCHED_CORE, GET, tid, OF_THREAD, &raw mut cookie) };
    result == 0 && cookie != 0
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_ordinary_thread_has_no_core_cookie() {
        assert!(!super::has_core_cookie(nix::unistd::gettid().as_raw()));
        assert!(!super::has_core_cookie(-1));
    }

    #[test]
    fn asking_twice_gives_the_same_answer() {
        assert_eq!(super::timer_ids_settable(), super::timer_ids_settable());
    }
}
