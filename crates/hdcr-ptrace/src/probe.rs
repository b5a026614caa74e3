//! What this kernel lets this user do, found by trying it on a short-lived clone of the tool.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::{Capabilities, Deadline};
use hdcr_sys::birth::clone_waiting;
use hdcr_sys::ptrace;
use nix::errno::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::calls::Calls;
use crate::faults::{Faults, Steps};
use crate::rendezvous::any_stop;
use crate::standing::Standing;

/// Probes all of it.
pub(crate) fn capabilities() -> Capabilities {
    let own = nix::unistd::getpid().as_raw();
    let mut found = Capabilities {
        timer_list: fs::read_to_string("/proc/timer_list").is_ok_and(|text| text.contains("expires at")),
        ..Capabilities::default()
    };
    let pidfd = rustix::process::Pid::from_raw(own).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let Some(pidfd) = pidfd else {
        return found;
    };
    // The pidfd itself is a descriptor of ours that is sure to be there.
    let number = std::os::fd::AsRawFd::as_raw_fd(&pidfd);
    found.duplicate_descriptors = pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).is_ok();
    // Our own number is taken: EEXIST when one may be chosen at all, EPERM when not.
    found.set_tid = clone_waiting(0, 0, Some(own), pidfd.as_fd()) == Err(Errno::EEXIST);
    on_a_clone(&mut found, pidfd.as_fd());
    found
}

fn on_a_clone(found: &mut Capabilities, guardian: BorrowedFd<'_>) {
    let Ok(child) = clone_waiting(0, 0, None, guardian) else {
        return;
    };
    let calls = Calls { steps: Steps::new(Faults::default()), marks: false, standing: Standing::default() };
    let (pid, tid) = (Pid(child), Tid(child));
    let by = Deadline(Instant::now() + Duration::from_secs(1));
    let with = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_SUSPEND_SECCOMP;
    found.suspend_seccomp = calls.seize(tid, with).is_ok();
    let seized = found.suspend_seccomp || calls.seize(tid, libc::PTRACE_O_EXITKILL).is_ok();
    if seized && calls.interrupt(tid).is_ok() && any_stop(&calls, pid, tid, by).is_ok() {
        found.rseq_configuration = ptrace::rseq_configuration(child).is_ok();
    }
    calls.kill(pid, libc::SIGKILL).ok();
    let mut patience = crate::calls::Patience::until(by);
    while calls.collect(tid) == hdcr_sys::wait::Seen::Nothing && patience.wait() {}
}
