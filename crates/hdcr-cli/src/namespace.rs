//! A private pid namespace, in which every pid is free: with root's rights, or with a user namespace of one's own.
//!
//! This program starts itself once more as the first process of the namespace. That one mounts its own `/proc`, does the
//! work and reaps what is left; the outer one passes signals in and the exit status out. When the inner one ends, the
//! kernel ends everything in the namespace.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, configure_capability_in_ambient_set,
    set_capabilities,
};

use crate::failure::{Failure, Result};
use crate::process::{self, Change, next_change};
use crate::signals::{self, Signals};

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
    let mut reader = Some(reader);
    loop {
        let mut fds: Vec<_> = reader.iter().map(AsFd::as_fd).collect();
        let said = signals.wait(&mut fds, None)?.first() == Some(&true);
        while let Some(received) = signals.next() {
            if !received.by_terminal {
                process::signal(inner, received.number);
            }
        }
        if said && let Some(mut reader) = reader.take() {
            let mut text = String::new();
            let mut byte = [0];
            while reader.read(&mut byte).is_ok_and(|count| count == 1) && byte != *b"\n" {
                text.extend(byte.map(char::from));
            }
            if let Ok(pid) = text.parse()
                && ready(outer_pid(inner, pid).unwrap_or(inner))? == Outside::Leaves
            {
                return Ok(0);
            }
        }
        while let Some((pid, change)) = next_change() {
            if let (true, Change::Ended(death)) = (pid == inner, change) {
                return Ok(process::shell_status(death));
            }
        }
    }
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
    let private = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>);
    private.map_err(Failure::system("making mounts private"))?;
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

/// Makes the next pid of this namespace follow `last`; needs a namespace of one's own to be of any use.
pub(crate) fn next_pid_after(last: i32) {
    if let Err(error) = fs::write("/proc/sys/kernel/ns_last_pid", last.to_string()) {
        tracing::debug!(%error, "the next pid cannot be chosen");
    }
}

/// The pid here of a process that is `inner` in the namespace of process `first`.
fn outer_pid(first: i32, inner: i32) -> Option<i32> {
    process::below(first).into_iter().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.and_then(|numbers| numbers.split_whitespace().last()?.parse().ok()) == Some(inner)
    })
}
