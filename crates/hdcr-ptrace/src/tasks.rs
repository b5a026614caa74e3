//! What `/proc` tells about tasks: threads, children, state, signals.

use std::io;

use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::procfs;

/// The lists of threads that a freeze has looked at.
#[derive(Debug, Default)]
pub(crate) struct Listings {
    /// One of the last scan may lack threads.
    lacking: bool,
    /// How often that counted as news.
    counted: u32,
}

impl Listings {
    /// The threads of a process.
    pub(crate) fn threads(&mut self, pid: Pid) -> io::Result<Vec<Tid>> {
        let threads = procfs::listed(pid)?;
        self.lacking |= !threads.whole;
        Ok(threads.tids)
    }

    /// At the end of a scan: whether there is to be another one because of a list that did not have as many threads as its
    /// process. Not without end: of one that is not to be stopped (what is above a scope) no list may ever be right.
    pub(crate) fn look_again(&mut self) -> bool {
        const OFTEN: u32 = 32;
        let again = std::mem::take(&mut self.lacking) && self.counted < OFTEN;
        self.counted = self.counted.saturating_add(u32::from(again));
        again
    }
}

fn read_text(path: &str) -> io::Result<String> {
    let bytes = procfs::at_once(path)?;
    // Names of tasks may hold any byte; nothing that is looked for does.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where in the kernel a thread sleeps; empty when it runs or this user may not know.
pub(crate) fn wait_channel(pid: Pid, tid: Tid) -> String {
    let mut text = read_text(&format!("/proc/{pid}/task/{tid}/wchan")).unwrap_or_default();
    if text == "0" {
        text.clear();
    }
    text
}

/// Whether who sleeps there waits for a `vfork` child.
pub(crate) fn waits_for_vfork(wait_channel: &str) -> bool {
    ["kernel_clone", "vfork", "do_fork"].iter().any(|name| wait_channel.contains(name))
}

/// Whether who sleeps there is in a sleep that any signal ends, whatever brought it there: these functions of the kernel take
/// no lock that is slept for. Most threads of a large program sleep in one of them, and need no second look.
pub(crate) fn ended_by_signals(wait_channel: &str) -> bool {
    const PLACES: [&str; 8] = [
        "futex_do_wait",
        "futex_wait_queue",
        "futex_wait_queue_me",
        "hrtimer_nanosleep",
        "poll_schedule_timeout",
        "do_sigtimedwait",
        "__do_sys_pause",
        "__x64_sys_pause",
    ];
    // The compiler may have added something (`.constprop.0`).
    wait_channel.split('.').next().is_some_and(|name| PLACES.contains(&name))
}

/// The state letter of a thread; `None` when it is gone.
pub(crate) fn state(pid: Pid, tid: Tid) -> Option<char> {
    let stat = read_text(&format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    // The name in brackets may hold anything, brackets too; the last one closes it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}

/// Whether this is what is left of a dead task.
pub(crate) fn dead(state: char) -> bool {
    matches!(state, 'Z' | 'X')
}

/// What `/proc/PID/task/TID/status` tells.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Status {
    pub(crate) parent: i32,
    pub(crate) process: i32,
    pub(crate) tracer: i32,
    pub(crate) seccomp: u64,
    /// Innermost numbers of process and thread: as the task's own pid namespace has them.
    pub(crate) inner_process: i32,
    pub(crate) inner_thread: i32,
    pub(crate) caught: u64,
    pub(crate) ignored: u64,
    pub(crate) blocked: u64,
    pub(crate) pending: u64,
}

/// Reads the status of a thread; `None` when it is gone.
pub(crate) fn status(pid: Pid, tid: Tid) -> Option<Status> {
    Some(parse_status(&read_text(&format!("/proc/{pid}/task/{tid}/status")).ok()?))
}

fn parse_status(text: &str) -> Status {
    told(text.lines().filter_map(|line| line.split_once(':')))
}

/// A status from its lines.
pub(crate) fn told<'a>(lines: impl Iterator<Item = (&'a str, &'a str)>) -> Status {
    let mut status = Status::default();
    for (key, value) in lines {
        let last = value.split_ascii_whitespace().next_back().unwrap_or("");
        let number = || last.parse().unwrap_or(0);
        let bits = || u64::from_str_radix(last, 16).unwrap_or(0);
        match key {
            "PPid" => status.parent = number(),
            "Tgid" => status.process = number(),
            "TracerPid" => status.tracer = number(),
            "NStgid" => status.inner_process = number(),
            "NSpid" => status.inner_thread = number(),
            "Seccomp" => status.seccomp = bits(),
            "SigCgt" => status.caught = bits(),
            "SigIgn" => status.ignored = bits(),
            "SigBlk" => status.blocked = bits(),
            "SigPnd" | "ShdPnd" => status.pending |= bits(),
            _ => {}
        }
    }
    status
}

/// Reads the status of a process by its leader.
pub(crate) fn process_status(pid: Pid) -> Option<Status> {
    status(pid, pid.leader())
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use super::*;

    /// A program that is gone with the test.
    struct Removed(PathBuf);

    impl Drop for Removed {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).ok();
        }
    }

    /// One that is replaced all the time by a thread of its own is never taken for gone.
    #[test]
    fn no_listing_is_empty() -> Result<(), Box<dyn Error>> {
        const LISTINGS: u32 = 40_000;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/scenes.c");
        let program = Removed(std::env::temp_dir().join(format!("hdcr-execs-{}", std::process::id())));
        let built = Command::new("cc").args(["-O1", "-pthread", "-o"]).arg(&program.0).arg(source).status()?;
        assert!(built.success());
        let mut guest =
            Command::new(&program.0).arg("thread_execs_storm").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let pid = Pid(i32::try_from(guest.id())?);
        let mut empty = 0;
        for _ in 0..LISTINGS {
            empty += u32::from(procfs::threads(pid)?.is_empty());
        }
        let ended = guest.try_wait()?;
        guest.kill()?;
        guest.wait()?;
        assert_eq!((empty, ended), (0, None));
        Ok(())
    }

    #[test]
    fn what_may_lack_threads_is_looked_at_again_but_not_for_ever() {
        let mut listings = Listings::default();
        assert!(!listings.look_again());
        assert!(listings.threads(Pid(std::process::id().cast_signed())).is_ok());
        let mut again = 0;
        for _ in 0..1000 {
            listings.lacking = true;
            again += u32::from(listings.look_again());
            assert!(!listings.look_again(), "the next scan saw all");
        }
        assert!((1..1000).contains(&again));
    }

    #[test]
    fn only_light_sleeps_need_no_second_look() {
        for light in ["futex_do_wait", "poll_schedule_timeout.constprop.0"] {
            assert!(ended_by_signals(light));
        }
        for other in ["", "futex", "pipe_read", "do_epoll_wait", "kernel_clone", "folio_wait_bit_common"] {
            assert!(!ended_by_signals(other));
        }
    }

    #[test]
    fn status_lines_are_read() {
        let status = parse_status(
            "Name:\ta:b\nTgid:\t7\nPPid:\t3\nTracerPid:\t9\nNStgid:\t7\t1\nNSpid:\t8\t2\n\
             SigPnd:\t0000000000000001\nShdPnd:\t0000000000000200\nSigBlk:\t0000000000010000\n\
             SigIgn:\t0000000000001000\nSigCgt:\t0000000000000002\nSeccomp:\t2\n",
        );
        let expected = Status {
            parent: 3,
            process: 7,
            tracer: 9,
            seccomp: 2,
            inner_process: 1,
            inner_thread: 2,
            caught: 2,
            ignored: 0x1000,
            blocked: 0x10000,
            pending: 0x201,
        };
        assert_eq!(status, expected);
    }
}
