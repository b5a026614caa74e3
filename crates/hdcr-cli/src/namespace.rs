//! A private pid namespace, in which every pid is free: with root's rights, or with a user namespace of one's own.
//!
//! This program starts itself once more as the first process of the namespace. That one mounts its own `/proc`, does the
//! work and reaps what is left; the outer one passes signals in and the exit status out. When the inner one ends, the
//! kernel ends everything in the namespace.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hdcr_policy::restart::Death;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::process::{PidfdFlags, pidfd_open};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
    set_capabilities,
};

use crate::failure::{Class, Failure, Result};
use crate::process::{self, Change, next_change};
use crate::signals::{self, Signals};
use crate::terminal::Terminal;

/// Whether this process may give a new task the pid it wants, in the pid namespace it is in.
pub(crate) fn may_choose_pids() -> bool {
    capabilities(None)
        .is_ok_and(|sets| sets.effective.intersects(CapabilitySet::SYS_ADMIN | CapabilitySet::CHECKPOINT_RESTORE))
}

/// What the outer process does when the inner one says that the program runs.
pub(crate) type Ready<'a> = &'a mut dyn FnMut(i32) -> Result<Outside>;

/// Whether the outer process stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outside {
    /// It waits for the end.
    Waits,
    /// It leaves (`--detach`).
    Leaves,
}

/// Starts this program again, with the same arguments, inside of new namespaces, and waits for it. Returns its status.
pub(crate) fn outside(arguments: impl Iterator<Item = OsString>, ready: Ready<'_>) -> Result<u8> {
    let signals = Signals::take()?;
    separate()?;
    let (reader, writer) = std::io::pipe().map_err(Failure::system("making a pipe"))?;
    let mut command = process::this_program();
    command.arg(format!("--inside=/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd())).args(arguments);
    let child = command.spawn().map_err(Failure::system("starting the first process of a pid namespace"))?;
    let inner = child.id().cast_signed();
    let mut terminal = Terminal::open();
    let mut reader = Some(reader);
    let death = loop {
        let mut fds: Vec<_> = reader.iter().map(AsFd::as_fd).collect();
        let said = signals.wait(&mut fds, None)?.first() == Some(&true);
        while let Some(received) = signals.next() {
            if !received.by_terminal {
                process::signal(inner, received.number);
            }
        }
        if said {
            match reader.as_mut().and_then(hear) {
                Some(Said::Runs(pid)) => {
                    if ready(outer_pid(inner, pid).unwrap_or(inner))? == Outside::Leaves {
                        return Ok(0);
                    }
                }
                Some(Said::Stopped) => terminal.stop_for(),
                None => reader = None,
            }
        }
        if let Some(death) = end_of(inner) {
            break death;
        }
    };
    terminal.take_from_the_dead();
    Ok(process::shell_status(death))
}

/// The end of the first process of the namespace, when it has come.
fn end_of(inner: i32) -> Option<Death> {
    while let Some((pid, change)) = next_change() {
        if let (true, Change::Ended(death)) = (pid == inner, change) {
            return Some(death);
        }
    }
    None
}

/// What the inner process says to the outer one, a line each.
enum Said {
    /// The program runs as this pid.
    Runs(i32),
    /// The program was stopped from the terminal.
    Stopped,
}

/// The word for [`Said::Stopped`].
const STOPPED: &str = "stopped";

/// Hears the next thing; `None` when there is nobody any more who could say something.
fn hear(reader: &mut PipeReader) -> Option<Said> {
    let mut text = String::new();
    let mut byte = [0];
    while reader.read(&mut byte).is_ok_and(|count| count == 1) && byte != *b"\n" {
        text.extend(byte.map(char::from));
    }
    if text == STOPPED { Some(Said::Stopped) } else { text.parse().ok().map(Said::Runs) }
}

/// Goes into new namespaces; the next child is the first process of the pid namespace.
fn separate() -> Result<()> {
    let mut flags = CloneFlags::CLONE_NEWPID;
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let own_users = !capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    if own_users {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(|errno| {
        Failure::refused("namespaces", format!("a private pid namespace cannot be made: {errno}"))
            .remedy("see `hdcr doctor`; root can always")
    })?;
    if own_users {
        let write = |file: &str, text: String| {
            fs::write(format!("/proc/self/{file}"), text)
                .map_err(Failure::system(format_args!("writing /proc/self/{file}")))
        };
        write("uid_map", format!("{0} {0} 1", uid.as_raw()))?;
        write("setgroups", "deny".to_owned())?;
        write("gid_map", format!("{0} {0} 1", gid.as_raw()))?;
        keep_capabilities()?;
        // New capabilities made this process one that its own children may not look at.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
            .map_err(Failure::system("opening this process to its children"))?;
    }
    Ok(())
}

/// Lets the capabilities of the user namespace outlive an exec: an ordinary user loses them else.
fn keep_capabilities() -> Result<()> {
    let doing = || Failure::system::<rustix::io::Errno>("keeping the capabilities of the user namespace");
    let sets = capabilities(None).map_err(doing())?;
    set_capabilities(None, CapabilitySets { inheritable: sets.permitted, ..sets }).map_err(doing())?;
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if sets.permitted.contains(capability) {
            configure_capability_in_ambient_set(capability, true).map_err(doing())?;
        }
    }
    Ok(())
}

/// Lets go of what [`keep_capabilities`] gave, before the user's program is executed.
pub(crate) fn drop_capabilities() -> Result<()> {
    let doing = || Failure::system::<rustix::io::Errno>("dropping the capabilities of the user namespace");
    let sets = capabilities(None).map_err(doing())?;
    clear_ambient_capability_set().map_err(doing())?;
    set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..sets }).map_err(doing())
}

/// What the first process of a namespace does first; it can tell that the program runs by writing to what is returned.
pub(crate) fn inside(report: &Path) -> Result<File> {
    process::take_name();
    // The outer process had these blocked.
    signals::unblock(&(1..32).collect::<Vec<i32>>())?;
    let opened = fs::OpenOptions::new().write(true).open(report);
    let report = opened.map_err(Failure::system("opening the way to the outer process"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(Failure::system("making a mount namespace"))?;
    let private = |at| mount(None::<&str>, at, None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>);
    match private("/") {
        // In a chroot whose root is no mount point: what is mounted below is for nobody else all the same.
        Err(Errno::EINVAL) => private("/proc"),
        other => other,
    }
    .map_err(Failure::system("making mounts private"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).map_err(|errno| {
        Failure::refused("namespaces", format!("/proc cannot be mounted in a private pid namespace: {errno}"))
            .remedy("in a container whose /proc is partly masked this needs more rights; see `hdcr doctor`")
    })?;
    Ok(report)
}

/// Tells the outer process that the program runs as this pid.
pub(crate) fn tell_ready(mut report: &File, pid: i32) -> Result<()> {
    writeln!(report, "{pid}").map_err(Failure::system("telling that the program runs"))
}

/// Asks the outer process to stop, as the program did.
pub(crate) fn tell_stopped(mut report: &File) {
    if let Err(error) = writeln!(report, "{STOPPED}") {
        tracing::debug!(%error, "nobody is outside of the pid namespace");
    }
}

/// Makes the next pid of this namespace follow `last`; needs a namespace of one's own to be of any use.
pub(crate) fn next_pid_after(last: i32) {
    if let Err(error) = fs::write("/proc/sys/kernel/ns_last_pid", last.to_string()) {
        tracing::debug!(%error, "the next pid cannot be chosen");
    }
}

/// Runs this command once more, with the same arguments, in the namespaces of a process, when hdcr has made these for it
/// (`--new-pids`, an ordinary user); says there which pid it has. `None`: it is in no such namespace.
pub(crate) fn enter(pid: i32) -> Result<Option<u8>> {
    let Some(first) = first_of(pid) else { return Ok(None) };
    let inner = numbers(pid).last().copied().ok_or_else(|| Failure::refused("no-such-process", "it has ended"))?;
    let directory = std::env::current_dir().map_err(Failure::system("finding the current directory"))?;
    let process = rustix::process::Pid::from_raw(first);
    let process = process.map(|first| pidfd_open(first, PidfdFlags::empty())).transpose();
    let process = process.map_err(Failure::system("finding the namespaces of the program"))?;
    let process = process.ok_or_else(|| Failure::refused("no-such-process", "it has ended"))?;
    let mut flags = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
    let own_users = namespace_of("self", "user") != namespace_of(&first.to_string(), "user");
    if own_users {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    setns(&process, flags).map_err(|errno| {
        Failure::refused("not-permitted", format!("the namespaces of process {pid} cannot be entered: {errno}"))
            .remedy("run as the user who runs the program, or as root")
    })?;
    if own_users {
        keep_capabilities()?;
    }
    std::env::set_current_dir(&directory).map_err(Failure::system("going back to the current directory"))?;
    let mut command = process::this_program();
    command.arg(format!("--entered={inner}")).args(std::env::args_os().skip(1));
    let mut child = command.spawn().map_err(Failure::system("starting hdcr in the namespaces of the program"))?;
    let status = child.wait().map_err(Failure::system("waiting for hdcr in the namespaces of the program"))?;
    Ok(Some(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Class::Internal.status())))
}

/// Waits, as the first process of a namespace, for commands that have entered it ([`enter`]): they die with this process,
/// and the one that has just ended the program has still to say so.
pub(crate) fn wait_for_entered() {
    const STEP: Duration = Duration::from_millis(5);
    const STEPS: usize = 6000;
    // Their parents live outside.
    let entered = |pid: &i32| process::stat(*pid).is_some_and(|stat| stat.ppid.0 == 0 && stat.comm == b"hdcr");
    for _ in 0..STEPS {
        if !process::all().iter().any(|pid| *pid != 1 && process::lives(*pid) && entered(pid)) {
            return;
        }
        std::thread::sleep(STEP);
    }
}

/// The first process of the pid namespace that a process is in, when that is another one than ours and made by us.
fn first_of(pid: i32) -> Option<i32> {
    let theirs = namespace_of(&pid.to_string(), "pid")?;
    if Some(&theirs) == namespace_of("self", "pid").as_ref() {
        return None;
    }
    let mut first = pid;
    while numbers(first).last() != Some(&1) {
        first = process::stat(first)?.ppid.0;
    }
    let command = fs::read(format!("/proc/{first}/cmdline")).ok()?;
    let ours = command.split(|byte| *byte == 0).nth(1)?.starts_with(b"--inside=");
    (ours && namespace_of(&first.to_string(), "pid") == Some(theirs)).then_some(first)
}

fn namespace_of(process: &str, kind: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()
}

fn numbers(pid: i32) -> Vec<i32> {
    process::numbers(&pid.to_string())
}

/// The pid here of a process that is `inner` in the namespace of process `first`.
pub(crate) fn outer_pid(first: i32, inner: i32) -> Option<i32> {
    process::below(first).into_iter().find(|pid| numbers(*pid).last() == Some(&inner))
}
