//! A guest that checks itself, watched from outside: does every thread make turns, has none found an error?

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::wait;

/// Where guests keep their board (`trials/faults/guest.c`), and its shape.
const BOARD: u64 = 0x6f00_0000_0000;
const MAGIC: u64 = 0x6864_6372_6661_7565;
const HEAD: usize = 128;
const LANE: usize = 64;

/// No guest may be silent for longer.
const LIMIT: Duration = Duration::from_secs(30);

/// A kind of guest.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) command: Vec<String>,
    pub(crate) processes: usize,
    /// Its progress stands in a file, not on a board.
    pub(crate) by_file: bool,
}

/// A guest that runs, or has run and is to run again.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) pid: u32,
    pub(crate) folder: PathBuf,
    pub(crate) kind: Kind,
}

/// What is seen of a guest at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Board {
    errors: u64,
    text: String,
    turns: Vec<u64>,
}

/// What became of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Life {
    Works,
    Gone,
    /// Some of it lives, or all of it lives and does not work.
    Broken(String),
}

impl Subject {
    /// Starts one in a session of its own and waits until it works.
    pub(crate) fn start(kind: &Kind, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let child = Command::new("setsid")
            .args(&kind.command)
            .arg(folder)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start a guest by setsid")?;
        let subject = Subject { pid: child.id(), folder: folder.to_owned(), kind: kind.clone() };
        let began = Instant::now();
        loop {
            match subject.works() {
                Ok(()) => return Ok(subject),
                Err(error) if began.elapsed() > LIMIT => return Err(error.context("a new guest")),
                Err(_) => {}
            }
        }
    }

    fn board(&self) -> Result<Board> {
        if self.kind.by_file {
            return self.progress();
        }
        let memory = File::open(format!("/proc/{}/mem", self.pid))?;
        let mut head = [0; HEAD];
        memory.read_exact_at(&mut head, BOARD).context("read the board")?;
        let word = |bytes: &[u8], at: usize| {
            let bytes = bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).unwrap_or_default();
            u64::from_le_bytes(bytes)
        };
        ensure!(word(&head, 0) == MAGIC, "the board is not ready");
        let lanes = usize::try_from(word(&head, 8))?;
        ensure!(lanes <= 1024, "the board says {lanes} lanes");
        let mut rows = vec![0; lanes * LANE];
        memory.read_exact_at(&mut rows, BOARD + 128)?;
        let text = head.get(24..).unwrap_or_default().split(|b| *b == 0).next().unwrap_or_default();
        Ok(Board {
            errors: word(&head, 16),
            text: String::from_utf8_lossy(text).into_owned(),
            turns: rows.chunks(LANE).map(|row| word(row, 0)).collect(),
        })
    }

    /// Errors in the first line, turns in the others.
    fn progress(&self) -> Result<Board> {
        // The file stays when it is dead, reaped or not.
        ensure!(!is_gone(self.pid), "it is gone");
        let text = fs::read_to_string(self.folder.join("progress"))?;
        let numbers: Vec<u64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
        let (errors, turns) = numbers.split_first().context("an empty file of progress")?;
        Ok(Board { errors: *errors, text: String::new(), turns: turns.to_vec() })
    }

    /// Every lane makes turns and none has found an error; nobody traces it.
    pub(crate) fn works(&self) -> Result<()> {
        let mut first = None;
        let end = Instant::now() + LIMIT;
        loop {
            let now = self.board();
            match (&first, now) {
                (_, Ok(now)) if now.errors > 0 => bail!("the guest found {} errors: {}", now.errors, now.text),
                (None, Ok(now)) => first = Some(now),
                (Some(before), Ok(now)) if has_moved(before, &now) => return Ok(()),
                (_, Err(error)) if is_gone(self.pid) => return Err(error),
                _ => {}
            }
            if Instant::now() >= end {
                bail!("the guest stands still: {}", self.stillness(first.as_ref()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn stillness(&self, first: Option<&Board>) -> String {
        let still = match (first, self.board()) {
            (Some(first), Ok(now)) => {
                let moved = first.turns.iter().zip(&now.turns).filter(|(a, b)| a != b).count();
                format!("{moved} of {} lanes move", now.turns.len())
            }
            (_, other) => format!("{other:?}"),
        };
        format!("{still}; {:?}", family())
    }

    /// Waits until it is clear what became of it after a tool has died.
    pub(crate) fn life(&self) -> Life {
        let end = Instant::now() + LIMIT;
        loop {
            let family = family();
            if family.is_empty() {
                return Life::Gone;
            }
            if family.len() == self.kind.processes {
                match self.works() {
                    Ok(()) => return Life::Works,
                    Err(_) if self::family().is_empty() => return Life::Gone,
                    Err(error) if Instant::now() >= end => return Life::Broken(format!("{error:#}")),
                    Err(error) if format!("{error:#}").contains("errors") => {
                        return Life::Broken(format!("{error:#}"));
                    }
                    Err(_) => {}
                }
            }
            if Instant::now() >= end {
                return Life::Broken(format!("{} processes are alive: {family:?}", family.len()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Kills everything below this process and waits for the last one.
pub(crate) fn end_all() -> Result<()> {
    wait::until("the end of a guest", LIMIT, || {
        let family = family();
        for member in &family {
            signal(member.pid, Signal::KILL);
        }
        Ok(family.is_empty().then_some(()))
    })
}

/// Not there any more, or dead and not yet reaped.
fn is_gone(pid: u32) -> bool {
    let stat = stat_of(pid);
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn has_moved(before: &Board, now: &Board) -> bool {
    before.turns.len() == now.turns.len() && before.turns.iter().zip(&now.turns).all(|(a, b)| *b >= a + 2)
}

/// A living process below this one: guests, tools and their orphans all are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) pid: u32,
    pub(crate) name: String,
    pub(crate) state: char,
}

/// Sends a signal; that it is gone already is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

/// What the kernel tells of a process; a name that came from a forged image need not be text.
fn stat_of(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// All living processes below this one; dead children of this one are reaped on the way.
pub(crate) fn family() -> Vec<Member> {
    let own = std::process::id();
    let mut members = Vec::new();
    let mut queue: Vec<(u32, u32)> = children(own).into_iter().map(|pid| (own, pid)).collect();
    while let Some((parent, pid)) = queue.pop() {
        let stat = stat_of(pid);
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") ")) else { continue };
        let state = rest.chars().next().unwrap_or('?');
        let is_dead = state == 'Z' || state == 'X';
        // The leader of threads that are still ending cannot be reaped yet: until then something of it lives.
        if is_dead && (parent != own || reap(pid)) {
            continue;
        }
        members.push(Member { pid, name: name.to_owned(), state });
        queue.extend(children(pid).into_iter().map(|child| (pid, child)));
    }
    members
}

/// Reaps a dead child of this process; false when it cannot be done yet.
fn reap(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_none_or(|pid| !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)))
}

fn children(pid: u32) -> Vec<u32> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
    }
    all
}
