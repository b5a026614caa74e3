//! Who belongs to a process: its threads, and what it has below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use nix::libc;

use super::{at_once, bands, processes, stat, survivor};
use crate::ids::{Pid, Tid};

/// The threads of a process as one or more listings show them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Threads {
    /// In the kernel's order; none when the process is gone.
    pub tids: Vec<Tid>,
    /// Whether they are as many as the kernel says: otherwise some may be missing.
    pub whole: bool,
}

/// The threads of a process, in the kernel's order; none when it is gone.
pub fn threads(pid: Pid) -> io::Result<Vec<Tid>> {
    listed(pid).map(|threads| threads.tids)
}

/// The threads of a process, and whether these are all.
///
/// The kernel walks from thread to thread and ends early at one that is released meanwhile (`fs/proc/base.c`, `next_tid`):
/// so a listing may lack threads, and at an exec by another thread than the first may be empty. It is compared with their
/// number and made again when the two differ; of a process that makes and ends threads all the time the longest of a few
/// is returned. An empty one of a process that is there is none.
pub fn listed(pid: Pid) -> io::Result<Threads> {
    let path = format!("/proc/{pid}/task");
    agreed(|| {
        let tids = list(&path)?;
        let known = match fs::metadata(&path) {
            Err(error) if gone(&error) => None,
            // A directory has two links more than directories in it (`proc_task_getattr`).
            other => Some(other?.nlink().saturating_sub(2)),
        };
        Ok((tids, known))
    })
}

/// Looks until a listing has as many threads as there are, `None` when their process is gone.
fn agreed(mut look: impl FnMut() -> io::Result<(Vec<Tid>, Option<u64>)>) -> io::Result<Threads> {
    /// Of a process that does not stand still.
    const FEW: u32 = 3;
    /// When nothing is seen of one that is there.
    const MANY: u32 = 32;
    let mut longest = Vec::new();
    for round in 1..=MANY {
        let (tids, known) = look()?;
        match (known, tids.len()) {
            (None, 0) => return Ok(Threads { tids, whole: true }),
            (Some(known), len @ 1..) if known == len as u64 => return Ok(Threads { tids, whole: true }),
            (_, len) if len > longest.len() => longest = tids,
            _ => {}
        }
        if round >= FEW && !longest.is_empty() {
            break;
        }
    }
    Ok(Threads { tids: longest, whole: false })
}

fn list(path: &str) -> io::Result<Vec<Tid>> {
    let listing = match fs::read_dir(path) {
        Err(error) if gone(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let mut tids = Vec::new();
    for entry in listing {
        match entry {
            Err(error) if gone(&error) => break,
            other => {
                if let Some(tid) = other?.file_name().to_str().and_then(|name| name.parse().ok()) {
                    tids.push(Tid(tid));
                }
            }
        }
    }
    Ok(tids)
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The processes that a thread has cloned, or has been given by the death of their parent. Where the kernel has no list of
/// them (`CONFIG_PROC_CHILDREN`), the first living thread of a process is taken for the parent of all its children.
pub fn children(pid: Pid, tid: Tid) -> io::Result<Vec<Pid>> {
    match at_once(&format!("/proc/{pid}/task/{tid}/children")) {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            Ok(text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).map(Pid).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
            let first = survivor(pid).unwrap_or(pid.leader());
            Ok(if lists_children() || tid != first { Vec::new() } else { children_by_parent(pid) })
        }
        Err(error) => Err(error),
    }
}

fn children_by_parent(pid: Pid) -> Vec<Pid> {
    let mut children = processes();
    children.retain(|child| stat(*child).is_ok_and(|stat| stat.ppid == pid));
    children
}

/// What is below a process, parents before their children; zombies too. For a look at a tree that may change meanwhile: some
/// may be missing when others end at that moment (proc(5), `children`).
pub fn below(top: Pid) -> Vec<Pid> {
    let by_parent = if lists_children() { None } else { Some(parents_of_all()) };
    let by_thread = |pid: Pid| {
        let tids = threads(pid).unwrap_or_default();
        tids.into_iter().flat_map(|tid| children(pid, tid).unwrap_or_default()).collect()
    };
    let children_of = |pid: Pid| match &by_parent {
        Some(all) => all.get(&pid).cloned().unwrap_or_default(),
        None => by_thread(pid),
    };
    let mut seen = BTreeSet::from([top]);
    let mut found = children_of(top);
    found.retain(|pid| seen.insert(*pid));
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        at += 1;
        found.extend(children_of(pid).into_iter().filter(|child| seen.insert(*child)));
    }
    found
}

fn lists_children() -> bool {
    fs::exists("/proc/thread-self/children").unwrap_or(false)
}

fn parents_of_all() -> BTreeMap<Pid, Vec<Pid>> {
    let mut children: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    for (pid, stat) in bands() {
        children.entry(stat.ppid).or_default().push(pid);
    }
    children
}

#[cfg(test)]
mod tests {
    use super::super::hidden;
    use super::*;

    #[test]
    fn children_are_found_without_the_kernels_list() {
        let own = Pid(std::process::id().cast_signed());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid(child.id().cast_signed());
        let tid = Tid(nix::unistd::gettid().as_raw());
        assert!(children(own, tid).unwrap().contains(&pid));
        assert!(children_by_parent(own).contains(&pid));
        assert!(!hidden(pid) && !hidden(own));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children_by_parent(own).contains(&pid));
        assert!(!hidden(pid));
    }

    #[test]
    fn threads_are_listed_and_none_of_whom_there_is_not() {
        let own = Pid(std::process::id().cast_signed());
        let (tells, waits) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || waits.recv().is_err());
        let tids = threads(own).unwrap();
        assert!(tids.contains(&own.leader()) && tids.len() >= 2);
        drop(tells);
        other.join().unwrap();
        assert_eq!(threads(Pid(i32::MAX)).unwrap(), []);
    }

    #[test]
    fn a_listing_that_lacks_threads_says_so() {
        let tids = |count: i32| (1..=count).map(Tid).collect::<Vec<_>>();
        let look = |rounds: &[(i32, Option<u64>)]| {
            let mut rounds = rounds.iter().copied().map(|(count, known)| (tids(count), known));
            agreed(|| rounds.next().ok_or_else(|| io::Error::other("looked once too often"))).unwrap()
        };
        assert_eq!(look(&[(2, Some(4)), (4, Some(4))]), Threads { tids: tids(4), whole: true });
        assert_eq!(look(&[(2, Some(4)), (3, Some(4)), (2, Some(3))]), Threads { tids: tids(3), whole: false });
        assert_eq!(
            look(&[(0, Some(1)), (0, Some(1)), (0, Some(1)), (1, Some(1))]),
            Threads { tids: tids(1), whole: true }
        );
        assert_eq!(look(&[(0, None)]), Threads { tids: vec![], whole: true });
        assert_eq!(look(&[(0, Some(2)); 32]), Threads { tids: vec![], whole: false });
    }

    /// A shell below a shell that another thread than the first has started.
    #[test]
    fn all_are_found_below_whichever_thread() {
        let own = Pid(std::process::id().cast_signed());
        let start = || {
            let script = "sleep 60 & echo $!; wait";
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap()
        };
        // It lives as long as its child: the children of a dead thread are given to another one.
        let (tells, waits) = std::sync::mpsc::channel::<()>();
        let (started, shells) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            started.send(start()).unwrap();
            assert!(waits.recv().is_err(), "it is told nothing");
        });
        let mut shell = shells.recv().unwrap();
        let mut line = String::new();
        let mut output = io::BufReader::new(shell.stdout.take().unwrap());
        io::BufRead::read_line(&mut output, &mut line).unwrap();
        let (first, second) = (Pid(shell.id().cast_signed()), Pid(line.trim().parse().unwrap()));
        let found = below(own);
        let place = |pid: Pid| found.iter().position(|found| *found == pid);
        assert!(place(first).unwrap() < place(second).unwrap());
        let by_parent = parents_of_all();
        assert!(by_parent.get(&own).unwrap().contains(&first) && by_parent.get(&first) == Some(&vec![second]));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(second.0), nix::sys::signal::Signal::SIGKILL).unwrap();
        shell.wait().unwrap();
        drop(tells);
        thread.join().unwrap();
        assert!(!below(own).contains(&first));
    }
}
