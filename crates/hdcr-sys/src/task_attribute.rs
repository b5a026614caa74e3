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

#[cfg(test)]
mod tests {
    #[test]
    fn asking_twice_gives_the_same_answer() {
        assert_eq!(super::timer_ids_settable(), super::timer_ids_settable());
    }
}
