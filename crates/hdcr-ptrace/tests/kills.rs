//! Kill trial: a tool that dies by `SIGKILL` after its n-th call on another task, for every n, harms no target and leaves
//! no half-made task.
//!
//! A program of its own, because it starts itself again as the tool. `-- N` repeats the whole N times and adds a target with 64
//! threads, and those of other runtimes (Go, java) that are installed.

mod guests;
#[path = "guests/stranger.rs"]
mod stranger;

use std::error::Error;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use guests::{Guest, Link, Outcome};
use hdcr_engine::batch::{Arg, Batch};
use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::{Birth, Deadline, Final, Mechanism, Parent, Resume, Scope};
use hdcr_engine::regs::Regs;
use hdcr_ptrace::{Faults, Ptrace};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["--visit", pid, after] => tool(after, |mechanism| visit(mechanism, pid)),
        ["--make", after] => tool(after, make),
        [rounds] => rounds.parse().map_or_else(|_| trial(1), trial),
        _ => trial(1),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("kill trial failed: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) {
    // Nobody listens when this fails.
    writeln!(std::io::stdout(), "{line}").ok();
}

/// As the tool: does its work and tells how many calls that took, or dies on the way.
fn tool(after: &str, work: impl FnOnce(&Ptrace) -> Outcome<()>) -> Outcome<()> {
    let die_after = Some(after.parse()?).filter(|after| *after != 0);
    let mechanism = Ptrace::new(Faults { die_after, ..Faults::default() });
    work(&mechanism)?;
    say(&mechanism.calls_made().to_string());
    Ok(())
}

fn soon() -> Deadline {
    Deadline(Instant::now() + Duration::from_secs(20))
}

/// A whole visit of a checkpoint: freeze, look at timed calls, two batches, follow its memory, copy it, thaw, look into the
/// copy, and let go of all.
fn visit(mechanism: &Ptrace, pid: &str) -> Outcome<()> {
    let mut frozen = mechanism.freeze(Scope::Tree(Pid(pid.parse()?)), soon())?;
    let threads: Vec<Tid> = frozen.processes().iter().flat_map(|p| p.threads.clone()).collect();
    for tid in &threads {
        frozen.timed_call(*tid)?;
    }
    let mut batch = Batch::new();
    let pause = batch.bytes(&[0; 8]);
    batch.pointer(pause, pause);
    batch.call(libc::SYS_getpid, &[]);
    batch.call(libc::SYS_gettid, &[]);
    let work: Vec<(Tid, Batch)> = threads.iter().map(|tid| (*tid, batch.clone())).collect();
    for _ in 0..2 {
        for (tid, replies) in threads.iter().zip(frozen.run(&work)?) {
            if replies.result(1) != Some(i64::from(tid.0)) {
                return Err("gettid".into());
            }
        }
    }
    let (mut watches, mut twins) = (Vec::new(), Vec::new());
    for process in frozen.processes().to_vec() {
        watches.push(frozen.follow(process.pid)?);
        twins.push(frozen.fork(process.pid)?);
    }
    frozen.thaw()?;
    for twin in twins {
        if twin.mappings()?.is_empty() {
            return Err("an empty copy".into());
        }
    }
    drop(watches);
    Ok(())
}

/// A tree in the making, up to its release.
fn make(mechanism: &Ptrace) -> Outcome<()> {
    let birth = |parent| Birth { parent, tid: None, flags: 0, exit_signal: libc::SIGCHLD, tls: 0, clear_tid: 0 };
    let threads = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let thread = |parent| Birth { flags: u64::try_from(threads).unwrap_or(0), exit_signal: 0, ..birth(parent) };
    let mut nursery = mechanism.nursery(&[], soon())?;
    let root = *nursery.birth(&[birth(Parent::Caller)])?.first().ok_or("no root")?;
    let parent = Parent::Task(root);
    let others = nursery.birth(&[birth(parent), birth(parent), thread(parent), thread(parent)])?;
    let child = Parent::Task(*others.first().ok_or("no child")?);
    let deepest = nursery.birth(&[birth(child), thread(child)])?;
    let all: Vec<Tid> = [root].into_iter().chain(others.clone()).chain(deepest.clone()).collect();
    let mut batch = Batch::new();
    let text = batch.c_string(b"kill-trial");
    batch.call(libc::SYS_prctl, &[libc::PR_SET_NAME.into(), Arg::Data(text)]);
    nursery.run(&all.iter().map(|tid| (*tid, batch.clone())).collect::<Vec<_>>())?;
    let last = |tid: &Tid| Final {
        tid: *tid,
        regs: Regs { cs: 0x33, ss: 0x2b, flags: 0x202, orig_ax: u64::MAX, ..Regs::default() },
        xstate: Vec::new(),
        signal_mask: 0,
        resume: Resume::Plain,
        stopped: None,
    };
    let finals: Vec<Final> = all.iter().rev().map(last).collect();
    nursery.finish(&finals)?;
    Ok(())
}

/// What became of a tool.
enum End {
    /// It ended and made so many calls.
    Done(u64),
    Killed,
}

fn run_tool(arguments: &[&str]) -> Outcome<End> {
    let output = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if output.status.signal() == Some(libc::SIGKILL) {
        return Ok(End::Killed);
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(text.into());
    }
    Ok(End::Done(text.trim().parse()?))
}

fn trial(rounds: u32) -> Outcome<()> {
    let begin = Instant::now();
    let mut kills = 0;
    for _ in 0..rounds {
        for kind in ["s", "r", "p", "f", "F", "n", "t", "E", "T"] {
            kills += visits(kind, Link::Dynamic, 1)?;
        }
        kills += visits("srpfFntET", Link::Dynamic, 3)?;
        kills += visits("s", Link::Static, 1)?;
        kills += visits("Vrn", Link::Dynamic, 1)? + visits("V", Link::Static, 1)?;
        kills += makings()?;
    }
    if rounds > 1 {
        for link in [Link::Dynamic, Link::Static] {
            kills += visits("srpfFntE", link, 1)?;
            kills += visits(&"srpfFntE".repeat(8), link, 3)?;
        }
        for (runtime, question) in stranger::RUNTIMES {
            if stranger::there(runtime, question) {
                kills += visits_of(runtime, 1, 1)? + visits_of(runtime, 8, 1)? + visits_of(runtime, 64, 5)?;
            } else {
                say(&format!("visit {runtime}: skipped, it is not installed"));
            }
        }
    }
    say(&format!("kill trial: {kills} kills, no harm, {:?}", begin.elapsed()));
    Ok(())
}

fn named(what: &str, after: u64, error: &dyn Error) -> Box<dyn Error> {
    format!("{what}, killed after {after} calls: {error}").into()
}

/// No child of ours runs in a program; what is left of one is collected by the next visit that comes to its end.
fn no_copy(pid: u32, ended: bool) -> Outcome<()> {
    let by = Instant::now() + Duration::from_secs(10);
    loop {
        let mut left = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = std::fs::read_to_string(entry?.path().join("children")).unwrap_or_default();
            for child in children.split_ascii_whitespace() {
                let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
                let dead = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
                if !dead || (ended && stat.contains("(hdcr-snapshot)")) {
                    left.push(stat);
                }
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= by {
            return Err(format!("left: {left:?}").into());
        }
        std::thread::yield_now();
    }
}

/// Kills the tool after every `step`-th call of a visit to one and the same target.
fn visits(kinds: &str, link: Link, step: usize) -> Outcome<u64> {
    let mut guest = Guest::start(kinds, link)?;
    let pid = guest.target.to_string();
    let mut kills = 0;
    for after in (1..).step_by(step) {
        let end = run_tool(&["--visit", &pid, &after.to_string()]).map_err(|e| named(kinds, after, &*e))?;
        guest.works().map_err(|e| named(kinds, after, &*e))?;
        let ended = matches!(end, End::Done(_));
        no_copy(guest.target.0.unsigned_abs(), ended).map_err(|e| named(kinds, after, &*e))?;
        if let End::Done(made) = end {
            say(&format!("visit {kinds} ({link:?}): {made} calls, {kills} kills"));
            break;
        }
        kills += 1;
    }
    guest.end()?;
    Ok(kills)
}

/// Kills the tool after every `step`-th call of a visit to a program of another runtime with so many threads of its own.
fn visits_of(runtime: &str, threads: u32, step: usize) -> Outcome<u64> {
    let mut program = stranger::Stranger::start(runtime, threads)?;
    let pid = program.pid().to_string();
    let mut kills = 0;
    for after in (1..).step_by(step) {
        let end = run_tool(&["--visit", &pid, &after.to_string()]).map_err(|e| named(runtime, after, &*e))?;
        program.works().map_err(|e| named(runtime, after, &*e))?;
        let ended = matches!(end, End::Done(_));
        no_copy(program.pid(), ended).map_err(|e| named(runtime, after, &*e))?;
        if let End::Done(made) = end {
            say(&format!("visit {runtime}, {threads} threads: {made} calls, {kills} kills"));
            break;
        }
        kills += 1;
    }
    Ok(kills)
}

/// Kills the tool after every call of a making.
fn makings() -> Outcome<u64> {
    let mut kills = 0;
    for after in 1.. {
        let end = run_tool(&["--make", &after.to_string()]).map_err(|e| named("making", after, &*e))?;
        none_left().map_err(|e| named("making", after, &*e))?;
        if let End::Done(made) = end {
            say(&format!("making: {made} calls, {kills} kills"));
            break;
        }
        kills += 1;
    }
    Ok(kills)
}

/// No task of a making lives any more (all have the name of this program or the one they gave themselves). When their
/// new parent reaps them is its business.
fn none_left() -> Outcome<()> {
    let own = std::fs::read_to_string("/proc/self/comm")?;
    let by = Instant::now() + Duration::from_secs(10);
    loop {
        let mut left = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()).filter(|n| *n != std::process::id())
            else {
                continue;
            };
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let (comm, state) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") ")).unwrap_or_default();
            if (comm == own.trim_end() || comm == "kill-trial") && !state.starts_with(['Z', 'X']) {
                left.push(pid);
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= by {
            return Err(format!("left: {left:?}").into());
        }
        std::thread::yield_now();
    }
}
