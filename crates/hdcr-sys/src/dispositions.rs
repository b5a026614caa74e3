//! What `SIGPIPE` and `SIGCHLD` were when this program was started. The start-up code of Rust has the first one ignored
//! before `main` runs, and service managers start programs with it ignored. Under an ignored `SIGCHLD` no end of a child is
//! ever told, so it gets its default here. Both are noted before `main` in the environment, where they go on to the process
//! that becomes the user's program, which takes them out.
#![expect(unsafe_code, reason = "code before main, and the environment of the C library")]

use std::ffi::CStr;

use libc::c_int;

/// The signals, and what is set when they were ignored.
const NOTED: [(c_int, &CStr); 2] = [(libc::SIGPIPE, c"HDCR_SIGPIPE_IGNORED"), (libc::SIGCHLD, c"HDCR_SIGCHLD_IGNORED")];

// SAFETY: the C library calls what is listed there, once, before `main`.
#[unsafe(link_section = ".init_array")]
#[used]
static NOTE: extern "C" fn() = note;

extern "C" fn note() {
    for (signal, name) in NOTED {
        if is_ignored(signal) {
            // SAFETY: before `main` there is one thread, and both strings end with a NUL.
            unsafe { libc::setenv(name.as_ptr(), c"1".as_ptr(), 1) };
        }
    }
    // SAFETY: sets a disposition that needs no code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

fn is_ignored(signal: c_int) -> bool {
    // SAFETY: of zeros it is a valid value.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only; the kernel's answer is written to `now`.
    let asked: c_int = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// Gives both back as they were, and takes the notes out of the environment. For a process with one thread that is about
/// to execute another program.
pub fn give_back() {
    for (signal, name) in NOTED {
        // SAFETY: the caller has one thread; the string ends with a NUL.
        let ignored = !unsafe { libc::getenv(name.as_ptr()) }.is_null();
        // SAFETY: as above.
        unsafe { libc::unsetenv(name.as_ptr()) };
        let action = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: sets a disposition that needs no code.
        unsafe { libc::signal(signal, action) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_up_code_ignores_it() {
        assert!(is_ignored(libc::SIGPIPE) && !is_ignored(libc::SIGCHLD));
    }
}
