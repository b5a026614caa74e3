//! What `SIGPIPE` was when this program was started: the start-up code of Rust has it ignored before `main` runs, and
//! service managers start programs with it ignored. It is noted before that in the environment, where it goes on to the
//! process that becomes the user's program, which takes it out.
#![expect(unsafe_code, reason = "code before main, and the environment of the C library")]

use std::ffi::CStr;

use libc::c_int;

/// Set when `SIGPIPE` was ignored.
const NAME: &CStr = c"HDCR_SIGPIPE_IGNORED";

// SAFETY: the C library calls what is listed there, once, before `main`.
#[unsafe(link_section = ".init_array")]
#[used]
static NOTE: extern "C" fn() = note;

extern "C" fn note() {
    if is_ignored() {
        // SAFETY: before `main` there is one thread, and both strings end with a NUL.
        unsafe { libc::setenv(NAME.as_ptr(), c"1".as_ptr(), 1) };
    }
}

fn is_ignored() -> bool {
    // SAFETY: of zeros it is a valid value.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only; the kernel's answer is written to `now`.
    let asked: c_int = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}

/// Gives `SIGPIPE` back as it was, and takes the note out of the environment. For a process with one thread that is about
/// to execute another program.
pub fn give_back() {
    // SAFETY: the caller has one thread; the string ends with a NUL.
    let ignored = !unsafe { libc::getenv(NAME.as_ptr()) }.is_null();
    // SAFETY: as above.
    unsafe { libc::unsetenv(NAME.as_ptr()) };
    let action = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: sets a disposition that needs no code.
    unsafe { libc::signal(libc::SIGPIPE, action) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_up_code_ignores_it() {
        assert!(is_ignored());
    }
}
