//! Programs of every kind, frozen many times, each of which checks itself.
use std::time::Duration;

use hdcr_abi::{freeze_flag, hold, scope, stand};
use hdcr_kmod::Session;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Test;
use crate::access::{WITHIN, freeze, refused, session};
use crate::board::{Target, until};

pub(crate) const TESTS: [Test; 9] = [
    ("kinds/one_thread", || rounds("threads", 1, 50)),
    ("kinds/threads_64", || rounds("threads", 64, 30)),
    ("kinds/tree_of_20_with_pipes", || rounds("tree", 20, 30)),
    ("kinds/spinners", || rounds("spinners", 3, 30)),
    ("kinds/calls_that_wait_are_not_cut_short", || rounds("sleepers", 5, 30)),
    ("kinds/stopped", stopped),
    ("kinds/vfork_parent", vfork_parent),
    ("kinds/traced_and_running", traced_and_running),
    ("kinds/traced_and_stopped", traced_and_stopped),
];

/// Frozen and let go on many times; it stands still in between, and goes on right after.
fn rounds(kind: &str, workers: usize, count: u32) {
    let target = Target::start(kind, workers);
    let mut session = session();
    for round in 0..count {
        let held = freeze(&mut session, scope::TREE, target.id());
        let threads = u32::try_from(workers).unwrap();
        assert_eq!(held.threads, threads, "round {round}");
        assert_eq!(held.processes, if kind == "tree" { threads } else { 1 });
        target.stands_still(|| session.tasks().unwrap());
        session.thaw().unwrap();
        let before = target.counts();
        until("it goes on", || target.counts().iter().zip(&before).any(|(now, then)| now > then));
        target.is_right();
    }
    target.goes_on();
}

fn state_of(pid: i32) -> char {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    text.rsplit(") ").next().unwrap().chars().next().unwrap()
}

fn only_stand(session: &Session) -> u32 {
    let rows = session.tasks().unwrap();
    assert!(rows.iter().all(|row| row.stand == rows[0].stand), "{rows:?}");
    rows[0].stand
}

fn stopped() {
    let target = Target::start("threads", 3);
    let pid = Pid::from_raw(target.pid());
    let mut session = session();
    for _ in 0..10 {
        kill(pid, Signal::SIGSTOP).unwrap();
        until("it is stopped", || state_of(target.pid()) == 'T');
        freeze(&mut session, scope::TREE, target.id());
        // The last threads may still have been on their way into the stop.
        let stands: Vec<u32> = session.tasks().unwrap().iter().map(|row| row.stand).collect();
        assert!(stands.iter().all(|stand| [stand::STOPPED, stand::RUNNING].contains(stand)), "{stands:?}");
        // Continued while it is frozen it does not run.
        kill(pid, Signal::SIGCONT).unwrap();
        target.stands_still(|| session.tasks().unwrap());
        session.thaw().unwrap();
        target.goes_on();
    }
    kill(pid, Signal::SIGSTOP).unwrap();
    until("it is stopped", || state_of(target.pid()) == 'T');
    until("all are held as stopped", || {
        freeze(&mut session, scope::TREE, target.id());
        let stands = session.tasks().unwrap();
        session.thaw().unwrap();
        stands.iter().all(|row| row.stand == stand::STOPPED && row.stop_signal == libc::SIGSTOP.unsigned_abs())
    });
    assert_eq!(state_of(target.pid()), 'T');
    kill(pid, Signal::SIGCONT).unwrap();
    target.goes_on();
}

fn vfork_parent() {
    let target = Target::start("vfork", 1);
    until("it waits for its child", || state_of(target.pid()) == 'D');
    let mut session = session();
    let (reason, culprit, errno) = refused(&mut session, scope::PROCESS, target.id(), Duration::from_millis(50), 0);
    assert_eq!((reason, culprit, errno), (hold::VFORK, target.pid(), libc::ETIMEDOUT));
    for _ in 0..20 {
        let held = freeze(&mut session, scope::TREE, target.id());
        assert_eq!((held.processes, held.threads), (2, 2));
        let stands: Vec<u32> = session.tasks().unwrap().iter().map(|row| row.stand).collect();
        assert_eq!(stands, [stand::VFORK, stand::RUNNING]);
        session.thaw().unwrap();
    }
    freeze(&mut session, scope::TREE, target.id());
    let fifo = std::env::temp_dir().join(format!("fifo-{}", target.pid()));
    let mut opened = std::fs::File::options().read(true).write(true).open(&fifo).unwrap();
    std::io::Write::write_all(&mut opened, b"x").unwrap();
    assert_eq!(session.tasks().unwrap().len(), 2);
    assert_eq!(state_of(target.pid()), 'D');
    session.thaw().unwrap();
    until("the child has executed and ended", || target.counts()[0] > 0);
    target.goes_on();
    std::fs::remove_file(fifo).unwrap();
}

/// A process that a tracer follows, and that runs: the tracer sees nothing of it.
fn traced_and_running() {
    let target = Target::start("threads", 1);
    let pid = Pid::from_raw(target.pid());
    ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
    let mut session = session();
    for _ in 0..30 {
        freeze(&mut session, scope::TREE, target.id());
        target.stands_still(|| session.tasks().unwrap());
        session.thaw().unwrap();
        target.goes_on();
    }
    assert_eq!(waitpid(pid, Some(WaitPidFlag::WNOHANG)).unwrap(), WaitStatus::StillAlive);
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, None).unwrap();
    ptrace::detach(pid, None).unwrap();
    target.goes_on();
}

/// A process in a stop of a tracer that is not frozen with it.
fn traced_and_stopped() {
    let target = Target::start("threads", 1);
    let pid = Pid::from_raw(target.pid());
    let mut session = session();
    ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, None).unwrap();
    ptrace::syscall(pid, None).unwrap();
    waitpid(pid, None).unwrap();
    // Before a call: what lets it go lets it make that call.
    let short = Duration::from_millis(50);
    for flags in [0, freeze_flag::HOLD_TRACED] {
        let found = refused(&mut session, scope::TREE, target.id(), short, flags);
        assert_eq!(found, (hold::TRACED, target.pid(), libc::ETIMEDOUT), "{flags}");
    }
    ptrace::cont(pid, None).unwrap();
    // At a signal: it is caught before its next instruction.
    kill(pid, Signal::SIGWINCH).unwrap();
    assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Stopped(pid, Signal::SIGWINCH));
    let found = refused(&mut session, scope::TREE, target.id(), short, 0);
    assert_eq!(found.0, hold::TRACED);
    session.freeze(scope::TREE, target.id(), WITHIN, freeze_flag::HOLD_TRACED).unwrap();
    assert_eq!(only_stand(&session), stand::TRACED);
    ptrace::cont(pid, None).unwrap();
    target.stands_still(|| session.tasks().unwrap());
    session.thaw().unwrap();
    target.goes_on();
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, None).unwrap();
    ptrace::detach(pid, None).unwrap();
    target.goes_on();
}
