//! Restores whose memory comes when the program runs already: guests of the zoo, and the death of those who serve it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::guests::{self, Way};
use super::stage::{LIMIT, Stage, needs_root, reap_orphans, signal, with_command};
use crate::faults::dice::Dice;
use crate::guest;
use crate::trial::subject::Subject;
use crate::wait;

/// Guests with memory, threads and calls in which the kernel touches memory.
const GUESTS: [&str; 10] = [
    "anon_memory",
    "blocked_calls",
    "brk",
    "forked_memory",
    "guard_pages",
    "madvise_flags",
    "many_threads",
    "restart_calls",
    "robust_mutex",
    "threads",
];
/// Whose death is tried, so many times each.
const VICTIMS: [(Victim, usize); 3] = [(Victim::Server, 8), (Victim::Standby, 4), (Victim::Command, 4)];

/// One of the processes of a lazy restore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Server,
    Standby,
    Command,
}

/// All of their memory comes late, and nothing shows it when it is there.
pub(crate) fn zoo(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let way = Way { restore: vec!["--lazy", "always"], look: Some(filled), ..Way::default() };
    guests::all(stage, &GUESTS, &way)
}

/// Waits until a program has all of its memory.
fn filled(pid: u32) -> Result<()> {
    wait::until("all memory", LIMIT, || {
        let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
        let is_registered = |line: &str| line.starts_with("VmFlags:") && line.contains(" um ");
        Ok((!maps.lines().any(is_registered)).then_some(()))
    })
}

/// A program whose page server is killed goes on with its own memory or is dead; it never sees anything else. So with the
/// one that stands by, and with the command.
pub(crate) fn killed(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let guests = guest::find(&stage.place.sources.join("zoo"), &["changing_memory".to_owned()])?;
    let built = guest::build_all(&guests, &stage.place.build)?;
    let built = built.iter().find(|built| built.name == "changing_memory");
    let built = built.ok_or_else(|| anyhow::anyhow!("the guest is not there"))?;
    let binary = built.binary.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
    let folder = stage.path("guest");
    fs::create_dir(&folder)?;
    let mut subject = Subject::alone(&built.guest, binary, &folder, 1)?;
    subject.start()?;
    stage.is_waited_for(subject.pid);
    subject.await_ready(1)?;
    let pid = subject.pid.to_string();
    stage.expect(0, &["checkpoint", &pid, "--kill", "-o", "image"])?;
    subject.await_death(&[subject.pid])?;
    subject.is_child = false;
    subject.go(1, Duration::ZERO)?;
    let mut dice = Dice::new(1);
    let mut died = 0;
    for (victim, times) in VICTIMS {
        for round in 0..times {
            let ended = killed_once(stage, &subject, victim, &mut dice);
            let ended = ended.map_err(|error| error.context(format!("{victim:?}, round {round}")))?;
            died += usize::from(ended);
        }
    }
    let cleaned = subject.clean();
    stage.log.append(&mut subject.log);
    stage.log.push(format!("the program was killed {died} times"));
    cleaned
}

/// Whether the program ended without a verdict.
fn killed_once(stage: &mut Stage<'_>, subject: &Subject<'_>, victim: Victim, dice: &mut Dice) -> Result<bool> {
    let result = subject.folder.join("s.result");
    fs::remove_file(&result).ok();
    let mut command = stage.start(&["restore", "./image", "--lazy", "always"], "says")?;
    let found = wait::until("the processes of the restore", LIMIT, || {
        let workers = with_command(&stage.folder, |line| line == "hdcr __worker");
        let named = |name: &str| workers.iter().copied().find(|pid| comm(*pid) == name);
        let found = named("hdcr").zip(named("page-standby"));
        // On a fast machine all may be over before anybody looks.
        Ok((found.is_some() || result.exists()).then_some(found))
    })?;
    let found = found.unwrap_or_default();
    // Anywhere between the beginning and the time when all is there.
    let wanted = dice.below(24 << 10);
    let pages = || -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/statm", subject.pid)).unwrap_or_default();
        text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0)
    };
    let lives = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    wait::until("so many pages", LIMIT, || {
        let enough = pages() >= wanted / 3 || !lives(found.0) || result.exists();
        Ok(enough.then_some(()))
    })?;
    let pid = match victim {
        Victim::Server => found.0,
        Victim::Standby => found.1,
        Victim::Command => command.id(),
    };
    signal(pid, Signal::KILL);
    let verdict = wait::until("a verdict, or the end of the program", LIMIT, || {
        let verdict = fs::read_to_string(&result).ok();
        let ended = verdict.is_none() && comm(subject.pid).is_empty();
        Ok((verdict.is_some() || ended).then_some(verdict))
    })?;
    wait::end_of(&mut command, "the restore", LIMIT)?;
    // Without a command that lives, others reap what is left.
    stage.end_all()?;
    reap_orphans()?;
    wait::gone(subject.pid, LIMIT)?;
    if let Some(verdict) = &verdict {
        ensure!(verdict.trim() == "pass", "the program saw what is not its own: {verdict}; {}", stage.text("says"));
    }
    Ok(verdict.is_none())
}

/// A job that is rolled back with `--lazy` sees its own memory only, and comes back when who fills it is killed.
pub(crate) fn keeper(stage: &mut Stage<'_>) -> Result<()> {
    const SCRIPT: &str = "import zlib\nmemory = bytearray(bytes(range(1, 252)) * 600000)\nwhile True:\n    \
                          with open('sums', 'a') as sums: print(zlib.crc32(memory), file=sums)\n";
    let victims = [None, Some(Victim::Server), Some(Victim::Server), Some(Victim::Standby), Some(Victim::Server)];
    rolled_back(stage, "lazy-keeper", &[SCRIPT], &victims).map(drop)
}

/// What it says in `sums` changes as soon as it sees what is not its own.
const PARTED: &str = include_str!("lazy_parted.py");

/// A program that parts its mappings, moves them, gives them up and forks, by two threads, sees its own memory while that is
/// filled as well, and so do its children. It is never ended for it.
pub(crate) fn parted(stage: &mut Stage<'_>) -> Result<()> {
    let brought_back = rolled_back(stage, "lazy-parted", &[PARTED, "0"], &[None; 4])?;
    ensure!(brought_back == 0, "it was ended {brought_back} times: {}", stage.text("says"));
    Ok(())
}

/// So with more threads than are looked at to see which of them did something. There, two moves are two when they were seen
/// apart; a machine with other things to do may miss that once.
pub(crate) fn crowd(stage: &mut Stage<'_>) -> Result<()> {
    let brought_back = rolled_back(stage, "lazy-crowd", &[PARTED, "80"], &[None; 4])?;
    ensure!(brought_back <= 1, "it was ended {brought_back} times: {}", stage.text("says"));
    Ok(())
}

/// Rolls a job back, time and again, with and without victims among those who fill its memory; it says a sum of that. How
/// often the program had to be brought back because its memory could not be filled.
fn rolled_back(stage: &mut Stage<'_>, name: &str, script: &[&str], victims: &[Option<Victim>]) -> Result<usize> {
    const AGAIN: &str = "once more, with all of its memory";
    needs_root()?;
    let options = ["--every", "1h", "--lazy", "always", "--restarts", "50", "--file-policy", "sums=ignore"];
    let run = ["run", "--name", name].into_iter().chain(options).chain(["--", "python3", "-c"]);
    let run = run.chain(script.iter().copied());
    let mut job = stage.start(&run.collect::<Vec<_>>(), "says")?;
    let sums = stage.path("sums");
    let counted = || fs::read_to_string(&sums).unwrap_or_default().lines().count();
    let more = |before: usize| wait::until("more sums", LIMIT, || Ok((counted() >= before + 2).then_some(())));
    more(0)?;
    stage.expect(0, &["checkpoint", name])?;
    for (round, victim) in victims.iter().copied().enumerate() {
        signal(program(stage)?, Signal::KILL);
        wait::until("the roll-back", LIMIT, || {
            Ok(stage.text("says").contains(&format!("restart {} of 50", round + 1)).then_some(()))
        })?;
        if let Some(victim) = victim {
            kill_who_fills(stage, victim);
        }
        more(counted())?;
        wait::until("the end of the filling", LIMIT, || {
            let workers = with_command(&stage.folder, |line| line == "hdcr __worker");
            Ok((!workers.iter().any(|pid| comm(*pid) == "page-standby")).then_some(()))
        })?;
        // Where it could not be filled, the program has been ended by now, and is being brought back: the next round is about one
        // that runs.
        more(counted())?;
    }
    let brought_back = stage.text("says").matches(AGAIN).count();
    stage.log.push(format!("brought back {brought_back} times"));
    stage.expect(0, &["stop", name])?;
    wait::end_of(&mut job, "the job", LIMIT)?;
    let text = fs::read_to_string(&sums)?;
    let mut all = text.lines();
    let first = all.next().map(str::to_owned);
    ensure!(all.all(|line| Some(line) == first.as_deref()), "the program saw what is not its own: {text}");
    Ok(brought_back)
}

/// The program of the job, whatever its interpreter is called.
fn program(stage: &Stage<'_>) -> Result<u32> {
    wait::until("the program", LIMIT, || {
        let found = with_command(&stage.folder, |line| line.contains("zlib.crc32") && !line.contains(" --name "));
        Ok(if let [only] = found[..] { Some(only) } else { None })
    })
}

/// Kills one of those who fill a program's memory, unless they are done.
fn kill_who_fills(stage: &Stage<'_>, victim: Victim) {
    let wanted = if victim == Victim::Standby { "page-standby" } else { "hdcr" };
    let workers = with_command(&stage.folder, |line| line == "hdcr __worker");
    if workers.iter().any(|pid| comm(*pid) == "page-standby") {
        workers.iter().filter(|pid| comm(**pid) == wanted).for_each(|pid| signal(*pid, Signal::KILL));
    }
}

/// The name of a process that lives.
fn comm(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
    let living = name.filter(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']));
    living.map_or_else(String::new, |(name, _)| name.to_owned())
}
