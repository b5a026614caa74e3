//! Which agent of a member runs where, and that nothing of a member runs any more.
//!
//! An agent is the first process of a pid namespace: when it has ended, which is seen from outside, the kernel has ended
//! all below it before (`zap_pid_ns_processes`). That is what fences a member on the host that it runs on.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::room::{Life, read_json, write_json};
use crate::failure::{Failure, Result};
use crate::host::Host;
use crate::process;

/// An agent, as it is known to others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Lives {
    host: Host,
    /// The pid namespace in which it has this pid.
    #[serde(with = "crate::paths")]
    namespace: PathBuf,
    /// The first process of its own namespace.
    pid: i32,
    born: i64,
    /// Which life of the member's agent it is.
    pub(crate) boot: u64,
}

/// What is known of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// It runs, here.
    Here(i32),
    /// It has ended, and all below it.
    Gone,
    /// It cannot be seen from here.
    Elsewhere(String),
}

fn namespace() -> PathBuf {
    fs::read_link("/proc/self/ns/pid").unwrap_or_default()
}

fn path(life: &Life, member: u32, ending: &str) -> PathBuf {
    life.file("agents").join(format!("{member}.{ending}"))
}

/// Says that this agent of a member runs.
pub(crate) fn set(life: &Life, member: u32, pid: i32, boot: u64) -> Result<()> {
    let born = process::born(pid).unwrap_or(0);
    let lives = Lives { host: Host::here(), namespace: namespace(), pid, born, boot };
    write_json(&path(life, member, "json"), &lives)
}

/// The last agent of a member.
pub(crate) fn last(life: &Life, member: u32) -> Result<Option<Lives>> {
    read_json(&path(life, member, "json"))
}

impl Lives {
    /// Whether it runs.
    pub(crate) fn seen(&self) -> Seen {
        if self.host.is_elsewhere() {
            return Seen::Elsewhere(self.host.called().to_owned());
        }
        if !self.host.is_this_boot() {
            return Seen::Gone;
        }
        if self.namespace != namespace() {
            return Seen::Elsewhere(format!("{} (another pid namespace)", self.host.called()));
        }
        let lives = process::born(self.pid) == Some(self.born) && process::lives(self.pid);
        if lives { Seen::Here(self.pid) } else { Seen::Gone }
    }
}

/// Ends the agent of a member with all below it; what is known of it then.
pub(crate) fn end(life: &Life, member: u32) -> Result<Seen> {
    let Some(lives) = last(life, member)? else { return Ok(Seen::Gone) };
    let seen = lives.seen();
    if let Seen::Here(pid) = seen {
        process::signal(pid, Signal::SIGKILL as i32);
    }
    Ok(seen)
}

/// Takes the turn of a member's agent: no other one begins, and the one before, with all below it, has ended. What is
/// returned is to be kept.
pub(crate) fn take(life: &Life, member: u32) -> Result<File> {
    const LIMIT: Duration = Duration::from_secs(20);
    const PAUSE: Duration = Duration::from_millis(10);
    let path = path(life, member, "lock");
    let lock = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let lock = lock.map_err(Failure::system(format_args!("opening {}", path.display())))?;
    let end = Instant::now() + LIMIT;
    loop {
        let is_ours = lock.try_lock().is_ok();
        let before = last(life, member)?.map_or(Seen::Gone, |lives| lives.seen());
        // The lock is of the file system that hosts share: where that passes locks on, one elsewhere has ended.
        if is_ours && !matches!(before, Seen::Here(_)) {
            return Ok(lock);
        }
        if Instant::now() >= end {
            return Err(Failure::refused("agent-runs", format!("another agent of member {member} runs"))
                .remedy("end it first, or give this one another --member"));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Counts one more life of a member's agent.
pub(crate) fn next_boot(life: &Life, member: u32) -> Result<u64> {
    let mut boot = newest_boot(life, member)?.saturating_add(1);
    loop {
        let path = path(life, member, &format!("boot-{boot}"));
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(_) => return Ok(boot),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => boot = boot.saturating_add(1),
            Err(error) => return Err(Failure::system(format_args!("making {}", path.display()))(error)),
        }
    }
}

/// The newest life of a member's agent; 0: there was none.
pub(crate) fn newest_boot(life: &Life, member: u32) -> Result<u64> {
    let directory = life.file("agents");
    let entries = fs::read_dir(&directory).map_err(Failure::system(format_args!("listing {}", directory.display())))?;
    let prefix = format!("{member}.boot-");
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix(&prefix)?.parse().ok();
    Ok(entries.flatten().filter_map(number).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use hdcr_image::JobName;

    use super::super::room::Room;
    use super::*;

    #[test]
    fn one_agent_a_member_and_each_has_its_number() {
        let store = tempfile::tempdir().unwrap();
        let life = Room::of(store.path(), &JobName::new("sim").unwrap()).begin_life().unwrap();
        assert_eq!(end(&life, 4).unwrap(), Seen::Gone);
        let boots: Vec<u64> = (0..3).map(|_| next_boot(&life, 4).unwrap()).collect();
        assert_eq!((boots, newest_boot(&life, 4).unwrap(), newest_boot(&life, 44).unwrap()), (vec![1, 2, 3], 3, 0));
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id().cast_signed();
        set(&life, 4, pid, 3).unwrap();
        assert_eq!(last(&life, 4).unwrap().unwrap().seen(), Seen::Here(pid));
        child.stdin.take().unwrap().flush().unwrap();
        child.wait().unwrap();
        assert_eq!(last(&life, 4).unwrap().unwrap().seen(), Seen::Gone);
        take(&life, 4).unwrap();
    }
}
