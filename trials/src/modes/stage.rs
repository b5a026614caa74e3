//! Where a trial plays: commands of the product with surroundings of their own, programs, and the end of all of them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, fchown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::Place;
use crate::trial::subject::{MARK, marked};
use crate::wait;

/// No step may take longer.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);
/// The ordinary user of the trials: nobody.
const NOBODY: u32 = 65534;

/// The machine or its kernel has not what the trial is about: a skip, not a failure.
#[derive(Debug)]
pub(crate) struct Lacking(pub(crate) &'static str);

impl std::fmt::Display for Lacking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Lacking {}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Said {
    /// As a shell shows it: 128 and the number of the signal for a death by one.
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn both(&self) -> String {
        format!("{}{}", self.out, self.err)
    }

    /// Whether all of these words are in what it said.
    pub(crate) fn names(&self, words: &[&str]) -> Result<()> {
        let text = self.both();
        for word in words {
            ensure!(text.contains(word), "it does not say {word}: {}", text.trim());
        }
        Ok(())
    }
}

/// What a trial has at hand.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) folder: PathBuf,
    pub(crate) place: &'a Place,
    pub(crate) log: Vec<String>,
    hdcr: PathBuf,
    user: Option<u32>,
    /// What the names of its files begin with.
    tag: String,
    commands: u32,
    surroundings: Vec<(&'static str, PathBuf)>,
    started: Arc<Mutex<Vec<(u32, String)>>>,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(hdcr: &Path, folder: &Path, place: &'a Place) -> Result<Self> {
        // A copy that every user can read and execute.
        let own = folder.join("bin");
        fs::create_dir(&own)?;
        let binary = own.join("hdcr");
        fs::copy(hdcr, &binary).context("copy hdcr")?;
        for path in [folder, &own, &binary] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        let folder = folder.to_owned();
        let (log, tag, surroundings, started) = Default::default();
        Ok(Stage { folder, place, log, hdcr: binary, user: None, tag, commands: 0, surroundings, started })
    }

    /// The same place for another thread, whose files have names of their own.
    pub(crate) fn beside(&self, name: &str) -> Stage<'a> {
        Stage {
            folder: self.folder.clone(),
            place: self.place,
            log: Vec::new(),
            hdcr: self.hdcr.clone(),
            user: self.user,
            tag: format!("{name}-"),
            commands: 0,
            surroundings: self.surroundings.clone(),
            started: Arc::clone(&self.started),
        }
    }

    /// Starts what is waited for by its handle, and so is never reaped as an orphan.
    pub(crate) fn spawn(&self, command: &mut Command) -> Result<Child> {
        let mut started = self.started();
        let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
        started.push((child.id(), began(child.id())));
        Ok(child)
    }

    /// Somebody else has started a child of the runner, and waits for it.
    pub(crate) fn is_waited_for(&self, pid: u32) {
        self.started().push((pid, began(pid)));
    }

    fn started(&self) -> MutexGuard<'_, Vec<(u32, String)>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps what has become a child of the runner and has ended, as the init of a machine does; not what was started here.
    fn reap_strangers(&self) -> Result<()> {
        let started = self.started();
        children()?.into_iter().filter(|pid| !started.contains(&(*pid, began(*pid)))).for_each(wait::reap);
        Ok(())
    }

    /// From now on everything is done as an ordinary user; when the runner is one, it stays itself.
    pub(crate) fn become_user(&mut self) -> Result<()> {
        if rustix::process::geteuid().is_root() {
            self.user = Some(NOBODY);
            chown(&self.folder, Some(NOBODY), Some(NOBODY))?;
        }
        Ok(())
    }

    /// A variable of the environment of all commands from now on.
    pub(crate) fn surround(&mut self, name: &'static str, path: &Path) {
        self.surroundings.push((name, path.to_owned()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn hdcr(&self) -> &Path {
        &self.hdcr
    }

    pub(crate) fn user(&self) -> Option<u32> {
        self.user
    }

    /// A command in the surroundings of the trial.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env(MARK, &self.folder)
            .env("HDCR_STORE", self.path("store"))
            .env("HOME", &self.folder)
            .env("XDG_RUNTIME_DIR", &self.folder)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_STATE_HOME")
            .stdin(Stdio::null())
            .envs(self.surroundings.iter().map(|(name, path)| (name, path)))
            .current_dir(&self.folder);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Runs a command of the product to its end.
    pub(crate) fn run(&mut self, arguments: &[&str]) -> Result<Said> {
        let mut command = self.command(&self.hdcr);
        command.args(arguments);
        self.end_of(command, &format!("hdcr {}", arguments.join(" ")))
    }

    /// Runs a command to its end; its output goes to files, as what it leaves behind may keep it open.
    pub(crate) fn end_of(&mut self, mut command: Command, what: &str) -> Result<Said> {
        self.commands += 1;
        let path = |end: &str| self.path(&format!("{}{}.{end}", self.tag, self.commands));
        let (out, err) = (path("out"), path("err"));
        let mut child =
            self.spawn(command.stdout(self.file(&out)?).stderr(self.file(&err)?)).context(what.to_owned())?;
        let ended = wait::until(what, LIMIT, || {
            self.reap_strangers()?;
            Ok(child.try_wait()?)
        });
        let status = shell(ended.or_else(|_| wait::end_of(&mut child, what, Duration::ZERO))?);
        let text = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let said = Said { status, out: text(&out)?, err: text(&err)? };
        self.log.push(format!("$ {what}"));
        self.log.extend(said.both().lines().map(str::to_owned));
        self.log.push(format!("-> {status}"));
        Ok(said)
    }

    /// Runs a command that must end with this status.
    pub(crate) fn expect(&mut self, status: i32, arguments: &[&str]) -> Result<Said> {
        let said = self.run(arguments)?;
        ensure!(
            said.status == status,
            "hdcr {} ended with {}: {}",
            arguments.join(" "),
            said.status,
            said.both().trim()
        );
        Ok(said)
    }

    /// Starts a command of the product in the background; what it says goes to the file.
    pub(crate) fn start(&mut self, arguments: &[&str], says: &str) -> Result<Child> {
        let file = self.file(&self.path(says))?;
        self.log.push(format!("$ hdcr {} > {says} &", arguments.join(" ")));
        let mut command = self.command(&self.hdcr);
        command.args(arguments).stdout(file.try_clone()?).stderr(file);
        self.spawn(&mut command)
    }

    /// Starts a shell script as a program of its own session.
    pub(crate) fn program(&mut self, script: &str) -> Result<Child> {
        let file = self.file(&self.path("program.out"))?;
        let mut command = self.command("setsid");
        command.args(["sh", "-c", script]).stdout(file.try_clone()?).stderr(file);
        self.spawn(&mut command)
    }

    /// A new file of the user of the trial: a program has it open, and must be able to open it again.
    fn file(&self, path: &Path) -> Result<File> {
        let file = File::create(path)?;
        fchown(&file, self.user, self.user)?;
        Ok(file)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Waits until a file says something.
    pub(crate) fn until_said(&mut self, name: &str, words: &str) -> Result<()> {
        let path = self.path(name);
        let said = wait::until(&format!("{words} in {name}"), LIMIT, || {
            Ok(fs::read_to_string(&path).unwrap_or_default().contains(words).then_some(()))
        });
        if said.is_err() {
            self.log.extend(self.text(name).lines().map(|line| format!("{name}: {line}")));
        }
        said
    }

    /// Waits until the counting program has come so far.
    pub(crate) fn until_counted(&mut self, name: &str, so_far: usize) -> Result<()> {
        let path = self.path(name);
        wait::until(&format!("line {so_far} of {name}"), LIMIT, || {
            Ok((fs::read_to_string(&path).unwrap_or_default().lines().count() >= so_far).then_some(()))
        })
    }

    /// The numbers 1 to `end`, each once and in order.
    pub(crate) fn counted(&self, name: &str, end: usize) -> Result<()> {
        let text = self.text(name);
        let right = text.lines().map(str::parse).eq((1..=end).map(Ok));
        ensure!(right, "{name} holds {} lines, ending in {:?}", text.lines().count(), text.lines().last());
        Ok(())
    }

    /// The one process of the trial whose command line begins like this; a shell is two for the moment before the exec of
    /// its command.
    pub(crate) fn only(&self, command: &str) -> Result<u32> {
        wait::until(&format!("one process {command}"), LIMIT, || {
            let found = with_command(&self.folder, |line| line.starts_with(command));
            Ok(if let [only] = found[..] { Some(only) } else { None })
        })
    }

    /// Kills every process of the trial and waits for the end of each.
    pub(crate) fn end_all(&self) -> Result<()> {
        // A shell may be about to start one more.
        wait::until("the end of all processes of the trial", LIMIT, || {
            let left = with_command(&self.folder, |_| true);
            for pid in &left {
                signal(*pid, Signal::KILL);
                wait::gone(*pid, LIMIT)?;
            }
            Ok(left.is_empty().then_some(()))
        })?;
        reap_orphans()
    }

    /// Kills what is left of the trial.
    pub(crate) fn clean(&mut self) -> Result<()> {
        let mark = format!("{MARK}={}", self.folder.display());
        wait::until("the last process of the trial", LIMIT, || {
            let left = marked(&mark);
            for pid in &left {
                signal(*pid, Signal::KILL);
                wait::reap(*pid);
            }
            Ok(left.is_empty().then_some(()))
        })
    }
}

/// For the trials of root's ways.
pub(crate) fn needs_root() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), Lacking("needs root"));
    Ok(())
}

/// A program that counts to `end` in an open file, and ends with 7.
pub(crate) fn counting(file: &str, end: usize) -> String {
    format!("exec 3>{file}; i=0; while [ $i -lt {end} ]; do i=$((i+1)); echo $i >&3; sleep 0.02; done; exit 7")
}

/// Sends a signal to a process that may be gone.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}

/// Reaps what has become a child of the runner and has ended. For moments in which no child of its own is about to end.
pub(crate) fn reap_orphans() -> Result<()> {
    children()?.into_iter().for_each(wait::reap);
    Ok(())
}

/// When a process began, which tells it from a later one of its number: a restored program has the one that it had.
fn began(pid: u32) -> String {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat);
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').nth(19).unwrap_or_default());
    rest.unwrap_or_default().to_owned()
}

/// Of the runner: an orphan becomes one of its first thread.
fn children() -> Result<Vec<u32>> {
    let own = std::process::id();
    let text = fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?;
    Ok(text.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

/// A status as a shell shows it.
pub(crate) fn shell(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The processes of this command line, as `/proc` shows it with spaces.
pub(crate) fn with_command(folder: &Path, is: impl Fn(&str) -> bool) -> Vec<u32> {
    let mark = format!("{MARK}={}", folder.display());
    let command = |pid: u32| {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    marked(&mark).into_iter().filter(|pid| is(command(*pid).trim())).collect()
}
