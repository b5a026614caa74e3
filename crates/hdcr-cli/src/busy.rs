//! One checkpoint of a process at a time: two would get in each other's way, and the second would take the traces of the
//! first for something that stands in the way.
//!
//! Each process of the tree is one byte of a file that its checkpoint holds locked. Such locks end with their holder, and the
//! kernel says who that is. Whoever has another place for running jobs (another user) is known by what it traces.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use hdcr_engine::error::Refusal;
use hdcr_engine::ids::Pid;
use hdcr_engine::procfs;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::failure::{Class, Failure, Result};
use crate::job::make_private;
use crate::process;
use crate::task::Who;

/// The code of the refusal.
pub(crate) const BUSY: &str = "busy";

/// The processes of a tree, taken for a checkpoint.
#[derive(Debug)]
pub(crate) struct AtWork {
    _locked: Option<File>,
}

impl AtWork {
    /// Takes the processes that there are now; refused when another hdcr has one of them.
    pub(crate) fn take(directory: &Path, who: Who) -> Result<Self> {
        let Some(file) = open(directory) else { return Ok(Self { _locked: None }) };
        let own = std::process::id().cast_signed();
        let (first, top) = match who {
            Who::Tree(pid) => (Some(pid), pid),
            Who::Below(pid) => (None, pid),
        };
        for pid in
            first.into_iter().chain(procfs::below(Pid(top)).into_iter().map(|pid| pid.0)).filter(|pid| *pid != own)
        {
            let at = place(pid);
            match fcntl(&file, FcntlArg::F_SETLK(&at)) {
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    let mut holder = at;
                    let found = fcntl(&file, FcntlArg::F_GETLK(&mut holder));
                    let holder = found.is_ok().then_some(holder.l_pid).filter(|pid| *pid > 0);
                    return Err(refusal(holder, pid));
                }
                Err(error) => tracing::debug!(%error, pid, "others will not see that this process is taken"),
                Ok(_) => {}
            }
        }
        Ok(Self { _locked: Some(file) })
    }
}

fn open(directory: &Path) -> Option<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let open = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        options.open(directory.join(".at-work"))
    };
    let opened = make_private(directory).and_then(|()| open().map_err(Failure::system("taking the processes")));
    opened.inspect_err(|failure| tracing::debug!(%failure, "others will not see what is at work")).ok()
}

/// The byte of a process: its number in its pid namespace, as this process sees it.
fn place(pid: i32) -> libc::flock {
    let space = std::fs::metadata("/proc/self/ns/pid").map_or(0, |found| std::os::unix::fs::MetadataExt::ino(&found));
    let space = i64::try_from(space & 0x3fff_ffff).unwrap_or(0);
    let kind = |kind: i32| i16::try_from(kind).unwrap_or(0);
    libc::flock {
        l_type: kind(libc::F_WRLCK),
        l_whence: kind(libc::SEEK_SET),
        l_start: space << 32 | i64::from(pid),
        l_len: 1,
        l_pid: 0,
    }
}

/// What is said to the second one.
pub(crate) fn refusal(holder: Option<i32>, pid: i32) -> Failure {
    let holder = holder.map_or_else(String::new, |holder| format!(" (process {holder})"));
    let message = format!("another hdcr{holder} is at work on process {pid}");
    Failure::new(Class::Changed, BUSY, message).remedy("try again when it is done, or let --wait TIME wait for that")
}

/// The hdcr that a thread belongs to; `None`: it is another program. One that is gone by now was one: a debugger stays.
pub(crate) fn is_hdcr(tracer: i32) -> Option<i32> {
    let status = procfs::read(Pid(tracer), "status").unwrap_or_default();
    let status = String::from_utf8_lossy(&status).into_owned();
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    let group = line.and_then(|number| number.trim().parse().ok()).unwrap_or(tracer);
    process::stat(group).is_none_or(|stat| stat.comm == b"hdcr").then_some(group)
}

/// When another hdcr is in the way, and no other tracer: the refusal that says so. Whatever else is seen may be that one's: a
/// tree in the making, its descriptors.
pub(crate) fn alone_in_the_way(refusals: &[Refusal]) -> Option<Failure> {
    let traced = || refusals.iter().filter(|refusal| refusal.code == "task-traced");
    let first_pid = traced().find_map(|refusal| refusal.owner.pid)?;
    let mut tracers = traced().map(|refusal| is_hdcr(refusal.owner.tracer?.0));
    let first = tracers.next()??;
    tracers.all(|other| other.is_some()).then(|| refusal(Some(first), first_pid.0))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use hdcr_engine::error::Owner;

    use super::*;

    /// The tracer is told as a value, whatever the words are, and is another hdcr in the eyes of this one when it is gone.
    #[test]
    fn an_hdcr_that_traces_is_alone_in_the_way() {
        let traced = |code, tracer: Option<i32>| Refusal {
            code,
            object: "task".to_owned(),
            owner: Owner { pid: Some(Pid(17)), tracer: tracer.map(Pid), ..Owner::default() },
            cause: "somebody traces it".to_owned(),
            remedy: String::new(),
        };
        // No process has this number.
        let gone = traced("task-traced", Some(i32::MAX));
        let busy = alone_in_the_way(&[gone.clone(), gone.clone()]).unwrap();
        assert!(busy.code == BUSY && busy.message.contains(&i32::MAX.to_string()), "{busy}");
        let other = std::process::id().cast_signed();
        for more in [traced("task-traced", Some(other)), traced("task-traced", None)] {
            assert_eq!(alone_in_the_way(&[gone.clone(), more]), None);
        }
        // As of a tree that is being restored.
        let end = traced("outside-end", None);
        assert_eq!(alone_in_the_way(&[end.clone(), gone]).map(|busy| busy.code), Some(BUSY.to_owned()));
        assert_eq!(alone_in_the_way(&[end]), None);
        assert_eq!(alone_in_the_way(&[]), None);
    }

    /// Locks do not bind the process that holds them, so another one has to: this test, run once more.
    #[test]
    fn who_is_at_work_is_named() {
        let own = std::process::id().cast_signed();
        if let Some(directory) =
            std::env::args().skip_while(|word| word != "--skip").nth(1).filter(|d| d.starts_with('/'))
        {
            let _held = AtWork::take(Path::new(&directory), Who::Tree(1)).unwrap();
            println!("\nheld {own}");
            // Until whoever started it has gone away.
            std::io::stdin().read_line(&mut String::new()).unwrap();
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut other = Command::new("/proc/self/exe")
            .args(["--exact", "busy::tests::who_is_at_work_is_named", "--nocapture", "--skip"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(other.stdout.take().unwrap()).lines();
        assert!(lines.map_while(std::result::Result::ok).any(|line| line == format!("held {}", other.id())));
        let refused = AtWork::take(directory.path(), Who::Tree(1)).unwrap_err();
        assert_eq!((refused.class, &*refused.code), (Class::Changed, BUSY));
        assert!(refused.message.contains(&format!("process {}", other.id())), "{refused}");
        other.kill().unwrap();
        other.wait().unwrap();
        AtWork::take(directory.path(), Who::Tree(1)).unwrap();
    }
}
