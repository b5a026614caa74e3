//! A program under `hdcr run`, killed at random moments and rolled back by itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::program::description::Description;
use crate::program::{LIMIT, Steps, step};
use crate::wait;

/// No step may take longer.
const STEP: Duration = Duration::from_mins(1);

/// Not in the environment of the job either: jobs are found where it says.
const RUNTIME: &str = "XDG_RUNTIME_DIR";

/// One program under HDCR.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) program: &'a Description,
    pub(crate) hdcr: &'a Path,
    pub(crate) place: &'a Path,
    pub(crate) store: PathBuf,
    pub(crate) kills: u32,
    /// How long the program takes undisturbed, if it ends by itself.
    pub(crate) ends_after: Option<Duration>,
    pub(crate) steps: &'a Steps,
}

/// A process, told from a later one of the same number by the time of its start.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Incarnation {
    pid: u32,
    /// As the program itself sees it: another one than ours when it runs in a private pid namespace.
    number: String,
    started: String,
}

impl Job<'_> {
    /// Runs to the end with all kills; the exit status of `hdcr run`.
    pub(crate) fn run(&self, log: &mut Vec<String>) -> Result<Option<i32>> {
        let hdcr = fs::canonicalize(self.hdcr)?;
        let hdcr_text = hdcr.to_string_lossy().into_owned();
        let store = self.store.to_string_lossy().into_owned();
        let restarts = (self.kills + 1).to_string();
        let name = self.name();
        let mut words = vec![hdcr_text.as_str(), "run", "--store", &store, "--name", &name];
        words.extend(["--every", &self.program.every, "--restarts", &restarts]);
        words.extend(self.program.options.iter().map(String::as_str));
        words.push("--");
        let mut child = self.program.start(self.place, &words)?;
        let result = self.disturb(&mut child, &hdcr, log);
        self.steps.bar.inc(1);
        let result = result.and_then(|()| self.steps.doing("running it to its end"));
        let result = result.and_then(|()| wait::end_of(&mut child, "hdcr run", LIMIT));
        self.steps.bar.inc(1);
        let text = fs::read(self.place.join("../stderr")).unwrap_or_default();
        log.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
        if result.is_err() {
            clean(&mut child)?;
        }
        let listed = Command::new(&hdcr).args(["list", "--store", &store]).output()?;
        log.extend(String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned));
        Ok(result?.code())
    }

    fn name(&self) -> String {
        let place = self.place.parent().and_then(Path::file_name);
        place.unwrap_or_default().to_string_lossy().into_owned()
    }

    fn disturb(&self, child: &mut Child, hdcr: &Path, log: &mut Vec<String>) -> Result<()> {
        self.steps.doing("running it under hdcr")?;
        let mut last = Self::await_other_than(None, child, hdcr)?;
        step(&self.program.begin, self.place, "begin")?;
        self.checkpoint(hdcr, log)?;
        for kill in 1..=self.kills {
            self.steps.bar.inc(1);
            self.steps.doing(&format!("kill {kill} of {}, and a roll-back", self.kills))?;
            let most = self.longest_pause();
            std::thread::sleep(random(most / 4, most));
            ensure!(child.try_wait()?.is_none(), "the program ended before kill {kill}");
            let pid = i32::try_from(last.pid).ok().and_then(Pid::from_raw).context("pid")?;
            let began = Instant::now();
            kill_process(pid, Signal::KILL).with_context(|| format!("kill {kill}"))?;
            last = Self::await_other_than(Some(&last), child, hdcr)?;
            let told = format!("kill {kill}: runs again after {} ms", began.elapsed().as_millis());
            self.steps.tell(&told)?;
            log.push(told);
        }
        step(&self.program.finish, self.place, "finish")
    }

    /// The longest time between two kills: all of them fit into the program's life, on a fast machine too.
    fn longest_pause(&self) -> Duration {
        const LONGEST: Duration = Duration::from_millis(1200);
        self.ends_after.map_or(LONGEST, |life| LONGEST.min(life / (self.kills + 1)))
    }

    /// One checkpoint for sure, so that the first kill has something to go back to.
    fn checkpoint(&self, hdcr: &Path, log: &mut Vec<String>) -> Result<()> {
        let out = self.place.join("../checkpoint.out");
        let file = File::create(&out)?;
        let mut command = Command::new(hdcr);
        command.arg("checkpoint").arg("--store").arg(&self.store).arg(self.name()).env_remove(RUNTIME);
        let mut child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        let status = wait::end_of(&mut child, "hdcr checkpoint", STEP)?;
        let text = fs::read_to_string(out)?;
        log.extend(text.lines().map(str::to_owned));
        ensure!(status.success(), "hdcr checkpoint: {}", text.trim());
        Ok(())
    }

    /// Waits until the root of the program runs in another incarnation.
    fn await_other_than(old: Option<&Incarnation>, child: &mut Child, hdcr: &Path) -> Result<Incarnation> {
        wait::until("the program to run (again)", STEP, || {
            if let Some(status) = child.try_wait()? {
                bail!("hdcr run ended: {status}");
            }
            // A rollback brings back the same number; what has another one is an orphan of the killed root.
            let is_new = |found: &Incarnation| old.is_none_or(|old| found.number == old.number && found != old);
            Ok(roots(child.id(), hdcr).into_iter().find(is_new))
        })
    }
}

/// After a failure: everything ends, HDCR first, so that it does not roll back. Programs may hide their environment and
/// leave their session, but what is below this runner or comes to it as an orphan is theirs.
pub(crate) fn clean(child: &mut Child) -> Result<()> {
    child.kill().ok();
    wait::until("the last process of the program", STEP, || {
        child.try_wait()?;
        let left = below(&processes(), std::process::id());
        for pid in left.iter().filter_map(|(pid, _)| i32::try_from(*pid).ok().and_then(Pid::from_raw)) {
            kill_process(pid, Signal::KILL).ok();
            // Not a child of ours is no error: its parent reaps it, or leaves it to us. The first one is reaped above.
            if pid.as_raw_nonzero().get() != child.id().cast_signed() {
                waitpid(Some(pid), WaitOptions::NOHANG).ok();
            }
        }
        Ok(left.is_empty().then_some(()))
    })
}

/// The topmost processes of the program: below the keeper, and not HDCR themselves.
fn roots(keeper: u32, hdcr: &Path) -> Vec<Incarnation> {
    let all = processes();
    let is_program = |pid: u32, stat: &Stat| {
        let runs = !matches!(stat.state.as_str(), "Z" | "X");
        runs && fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe != hdcr)
    };
    let ours: Vec<_> = below(&all, keeper).into_iter().filter(|(pid, stat)| is_program(*pid, stat)).collect();
    let is_top = |stat: &Stat| !ours.iter().any(|(pid, _)| *pid == stat.parent);
    let tops = ours.iter().filter(|(_, stat)| is_top(stat));
    tops.map(|(pid, stat)| Incarnation { pid: *pid, number: number_of(*pid), started: stat.started.clone() }).collect()
}

/// The number of a process in its own pid namespace.
fn number_of(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.and_then(|line| line.split_whitespace().last()).unwrap_or_default().to_owned()
}

/// What is said of a process.
#[derive(Debug, Clone)]
struct Stat {
    state: String,
    parent: u32,
    started: String,
}

/// All processes of the machine.
fn processes() -> BTreeMap<u32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

/// Those of them that come from one.
fn below(all: &BTreeMap<u32, Stat>, top: u32) -> Vec<(u32, Stat)> {
    let is_below = |start: &Stat| {
        let mut at = start.parent;
        for _ in 0..all.len() {
            match all.get(&at) {
                _ if at == top => return true,
                Some(stat) => at = stat.parent,
                None => return false,
            }
        }
        false
    };
    all.iter().filter(|(_, stat)| is_below(stat)).map(|(pid, stat)| (*pid, stat.clone())).collect()
}

/// State, parent and start time.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let words: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let word = |number: usize| words.get(number.checked_sub(3)?).copied();
    Some(Stat { state: word(3)?.to_owned(), parent: word(4)?.parse().ok()?, started: word(22)?.to_owned() })
}

/// A random time between two.
fn random(least: Duration, most: Duration) -> Duration {
    // Keys of the standard hasher are random for each state.
    let number = RandomState::new().build_hasher().finish();
    let part = u32::try_from(number % 1000).unwrap_or(0);
    least + (most.saturating_sub(least)) * part / 1000
}
