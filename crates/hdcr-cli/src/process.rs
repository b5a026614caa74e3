//! Processes as the command line sees them: who is below whom, how children ended, and the end of a whole tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::procfs::{self, Stat};
use hdcr_policy::restart::Death;
use nix::sys::signal::{Signal, kill};
use rustix::process::{WaitOptions, WaitStatus};

use crate::failure::{Failure, Result};
use crate::signals::Signals;

/// The name of a process that stands by for a page server.
pub(crate) const STANDBY: &str = "page-standby";

/// What became of a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// It ended and is reaped.
    Ended(Death),
    /// It stopped by this signal.
    Stopped(i32),
    /// It goes on.
    Continued,
}

/// `/proc/PID/stat`; `None` when there is no such process (any more).
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    procfs::parse_stat(&procfs::read(Pid(pid), "stat").ok()?)
}

/// The numbers of a process, from our pid namespace to its own; none when it is gone. Its name, which stands there too, need
/// not be text.
pub(crate) fn numbers(process: &str) -> Vec<i32> {
    let status = fs::read(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"));
    let text = line.and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    text.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect()
}

/// Whether a process runs below one of this very program.
pub(crate) fn is_kept(pid: i32) -> bool {
    /// Trees are not so deep.
    const DEEP: usize = 256;
    let program = |pid: i32| fs::metadata(format!("/proc/{pid}/exe")).map(|found| (found.dev(), found.ino()));
    let Ok(own) = program(std::process::id().cast_signed()) else { return false };
    let mut ancestors = std::iter::successors(parent(pid), |pid| parent(*pid)).take(DEEP);
    ancestors.any(|pid| program(pid).is_ok_and(|found| found == own))
}

/// Whether a process is below another one.
pub(crate) fn is_below(pid: i32, ancestor: i32) -> bool {
    /// Trees are not so deep.
    const DEEP: usize = 4096;
    std::iter::successors(parent(pid), |pid| parent(*pid)).take(DEEP).any(|pid| pid == ancestor)
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.field(4).and_then(|parent| i32::try_from(parent).ok()).filter(|parent| *parent > 0)
}

/// Whether a process has a thread of this name.
pub(crate) fn has_thread(pid: i32, name: &str) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads
        .flatten()
        .any(|thread| fs::read(thread.path().join("comm")).is_ok_and(|comm| comm.trim_ascii() == name.as_bytes()))
}

/// The name of a process, as far as it can be read.
pub(crate) fn name(pid: i32) -> String {
    stat(pid).map_or_else(|| "?".to_owned(), |stat| String::from_utf8_lossy(&stat.comm).into_owned())
}

/// The moment a process was born, in clock ticks since the boot: with its pid, an identity.
pub(crate) fn born(pid: i32) -> Option<i64> {
    stat(pid)?.field(22)
}

/// The number of this boot of the machine; births are counted from it.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// A process that lives: it is there and is no zombie.
pub(crate) fn lives(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !ended(&stat))
}

/// Whether this is what is left of a process. One whose first thread alone has ended lives.
pub(crate) fn ended(stat: &Stat) -> bool {
    const NUM_THREADS: usize = 20;
    matches!(stat.state, b'Z' | b'X') && stat.field(NUM_THREADS).is_none_or(|threads| threads <= 1)
}

/// Who traces one of the threads of a process, if anybody does.
pub(crate) fn tracer(pid: i32) -> Option<i32> {
    let threads = procfs::threads(Pid(pid)).unwrap_or_default();
    let tracer = |tid: Tid| procfs::status(Pid(pid), tid).ok()?.number("TracerPid");
    threads.into_iter().filter_map(tracer).find_map(|tracer| i32::try_from(tracer).ok().filter(|tracer| *tracer != 0))
}

/// This program, to be started once more.
pub(crate) fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("hdcr");
    command
}

/// Shows this process under its own name, which it lost by being started from `/proc/self/exe`.
pub(crate) fn take_name() {
    // It cannot fail, and would do no harm.
    rustix::thread::set_name(c"hdcr").ok();
}

/// All pids that `/proc` shows.
pub(crate) fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Everything below a process, children before grandchildren; zombies too. Reads of every process of the machine, and misses none
/// ([`procfs::below`] is faster).
pub(crate) fn below(ancestor: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for pid in all() {
        if let Some(stat) = stat(pid) {
            children.entry(stat.ppid.0).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([ancestor]);
    let mut next = vec![ancestor];
    while let Some(parent) = next.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if seen.insert(*child) {
                found.push(*child);
                next.push(*child);
            }
        }
    }
    found
}

/// Sends a signal by number; false when the process is gone or is not ours.
pub(crate) fn signal(pid: i32, number: i32) -> bool {
    let signal = Signal::try_from(number).ok();
    pid > 0 && signal.is_some_and(|signal| kill(nix::unistd::Pid::from_raw(pid), signal).is_ok())
}

/// Sends a signal to a process group.
pub(crate) fn signal_group(group: i32, signal: Signal) -> bool {
    group > 1 && kill(nix::unistd::Pid::from_raw(-group), signal).is_ok()
}

/// Whether a process group has a member that this user may signal.
pub(crate) fn group_lives(group: i32) -> bool {
    group > 1 && kill(nix::unistd::Pid::from_raw(-group), None).is_ok()
}

/// The next child that changed, without waiting.
pub(crate) fn next_change() -> Option<(i32, Change)> {
    let options = WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED;
    let (pid, status) = rustix::process::wait(options).ok()??;
    Some((pid.as_raw_nonzero().get(), change(status)?))
}

fn change(status: WaitStatus) -> Option<Change> {
    if let Some(code) = status.exit_status() {
        return Some(Change::Ended(Death::Exit(code)));
    }
    if let Some(signal) = status.terminating_signal() {
        return Some(Change::Ended(Death::Signal(signal)));
    }
    if let Some(signal) = status.stopping_signal() {
        return Some(Change::Stopped(signal));
    }
    status.continued().then_some(Change::Continued)
}

/// The status that a shell would show for a death.
pub(crate) fn shell_status(death: Death) -> u8 {
    let number = match death {
        Death::Exit(code) => code & 0xff,
        Death::Signal(signal) => 128 + (signal & 0x7f),
    };
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// Kills and reaps everything below this process, looking again until nothing is left.
///
/// This process has to be the reaper of what is below it (pid 1, or a child subreaper), so that nothing slips away.
/// Who stands by for a page server is killed last: until then whoever misses a page waits, and is killed while it waits.
/// Children that ended are handed to `reaped`.
pub(crate) fn kill_all_below(signals: &Signals, limit: Duration, reaped: &mut dyn FnMut(i32, Death)) -> Result<()> {
    let end = Instant::now() + limit;
    let own = std::process::id().cast_signed();
    loop {
        while let Some((pid, change)) = next_change() {
            if let Change::Ended(death) = change {
                reaped(pid, death);
            }
        }
        let left = below(own);
        let Some(first) = left.first() else { return Ok(()) };
        let (last, others): (Vec<i32>, Vec<i32>) = left.iter().partition(|pid| name(**pid) == STANDBY);
        if Instant::now() >= end {
            let message = format!("process {first} ({}) does not end although it was killed", name(*first));
            return Err(Failure::new(crate::failure::Class::Failed, "unkillable", message)
                .remedy("it waits inside the kernel, often for a disk or a network file system that does not answer"));
        }
        for pid in if others.is_empty() { &last } else { &others } {
            signal(*pid, Signal::SIGKILL as i32);
        }
        // Also waits for grandchildren, which do not send SIGCHLD to this process before they are its own.
        signals.wait(&mut [], Some(Duration::from_millis(20)))?;
        Signals::discard_child_reports();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::Stdio;

    use super::*;

    #[test]
    fn statuses_are_those_of_a_shell() {
        for (death, status) in [
            (Death::Exit(0), 0),
            (Death::Exit(75), 75),
            (Death::Signal(9), 137),
            (Death::Signal(15), 143),
            (Death::Signal(64), 192),
        ] {
            assert_eq!(shell_status(death), status, "{death:?}");
        }
    }

    #[test]
    fn names_of_processes_need_not_be_text() {
        let odd = std::thread::spawn(|| {
            fs::write("/proc/thread-self/comm", b"k\xf6ln").unwrap();
            assert!(fs::read_to_string("/proc/thread-self/status").is_err(), "the kernel shows another name");
            numbers("thread-self")
        });
        assert_eq!(odd.join().unwrap().len(), numbers("self").len());
        assert!(numbers("self").contains(&std::process::id().cast_signed()) && numbers("none").is_empty());
    }

    #[test]
    fn children_and_grandchildren_are_found() {
        let mut shell =
            Command::new("sh").args(["-c", "cat; true"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = shell.id().cast_signed();
        shell.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let mut byte = [0];
        shell.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        let found = below(std::process::id().cast_signed());
        let at = found.iter().position(|p| *p == pid).expect("the shell");
        let cat = below(pid);
        assert_eq!(cat.len(), 1);
        assert!(found.iter().skip(at).any(|p| Some(p) == cat.first()));
        assert!(lives(pid) && born(pid).is_some());
        drop(shell.stdin.take());
        assert!(shell.wait().unwrap().success());
        assert!(!lives(pid));
    }
}
