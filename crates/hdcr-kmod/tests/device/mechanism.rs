//! What every mechanism must do (the suite of `hdcr-ptrace`), as far as the module can: it makes no trees, follows no writes,
//! copies nothing on write, and has no calls made by what stands in a stop.

use std::fs;
use std::path::Path;

use hdcr_abi::feature;
use hdcr_engine::ids::Pid;
use hdcr_engine::mechanism::{Mechanism, MechanismError, Scope};
use hdcr_kmod::{Kernel, NEEDED};

use crate::access::session;
use crate::board::Target;
use crate::{DEVICE, Test, suite};

macro_rules! conform {
    ($($name:ident),* $(,)?) => {
        &[$((concat!("mechanism/", stringify!($name)), {
            fn test() {
                if let Some(kernel) = kernel() {
                    suite::$name(&kernel).unwrap();
                }
            }
            test
        }),)*]
    };
}

pub(crate) const SUITE: &[Test] = conform![
    freeze_and_thaw,
    batch_results,
    many_threads,
    waits_go_on,
    remaining_time,
    pending_signals_stay,
    whole_tree,
    vfork_in_progress,
    signals_all_taken,
    refusals,
    rseq_sections_abort,
    storms,
];

pub(crate) const TESTS: [Test; 4] = [
    ("mechanism/the_dead", the_dead),
    ("mechanism/held_by_another", held_by_another),
    ("mechanism/what_is_stopped_is_refused", what_is_stopped_is_refused),
    ("mechanism/without_calls_nothing_is_asked", without_calls),
];

/// The mechanism, where the module can do what it needs.
fn kernel() -> Option<Kernel> {
    (session().features() & NEEDED == NEEDED).then(|| Kernel::new(Path::new(DEVICE)))
}

/// A process whose leader has ended is reached by another of its threads from Linux 6.9 on; before, hdcr refuses it.
fn the_dead() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    if let Some(kernel) = kernel().filter(|_| !release.starts_with("6.1.")) {
        suite::the_dead(&kernel).unwrap();
    }
}

fn held_by_another() {
    let other = |pid| {
        let refused = Kernel::new(Path::new(DEVICE)).freeze(Scope::Tree(pid), suite::soon());
        matches!(refused, Err(MechanismError::Unsupported { .. }))
    };
    if let Some(kernel) = kernel() {
        suite::held_by_another(&kernel, &other).unwrap();
    }
}

/// It is named before anybody is stopped.
fn what_is_stopped_is_refused() {
    let Some(kernel) = kernel() else { return };
    let target = Target::start("threads", 4);
    let raw = nix::unistd::Pid::from_raw(target.pid());
    nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGSTOP).unwrap();
    nix::sys::wait::waitpid(raw, Some(nix::sys::wait::WaitPidFlag::WUNTRACED)).unwrap();
    let refused = kernel.freeze(Scope::Tree(Pid(target.pid())), suite::soon());
    assert!(matches!(refused, Err(MechanismError::Unsupported { .. })), "{refused:?}");
    nix::sys::signal::kill(raw, nix::sys::signal::Signal::SIGCONT).unwrap();
    target.goes_on();
}

/// Where the function that makes calls is not found, the module says so beforehand.
fn without_calls() {
    let features = session().features();
    assert_ne!(features & feature::FACTS, 0);
    if features & feature::CALLS != 0 {
        return;
    }
    let target = Target::start("threads", 1);
    let kernel = Kernel::new(Path::new(DEVICE));
    let mut frozen = kernel.freeze(Scope::Tree(Pid(target.pid())), suite::soon()).unwrap();
    let mut batch = hdcr_engine::batch::Batch::new();
    batch.call(libc::SYS_getpid, &[]);
    let refused = frozen.run(&[(Pid(target.pid()).leader(), batch)]);
    assert!(matches!(refused, Err(MechanismError::Unsupported { .. })), "{refused:?}");
    frozen.thaw().unwrap();
    target.goes_on();
}
