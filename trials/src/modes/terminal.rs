//! A restored program on a terminal, under a shell with job control: Ctrl-Z, `fg`, Ctrl-C.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::stage::{LIMIT, Stage, counting, needs_root, reap_orphans, signal, with_command};
use crate::product::utf8;
use crate::wait;

pub(crate) fn own_pids(stage: &mut Stage<'_>) -> Result<()> {
    on_terminal(stage, "")
}

pub(crate) fn new_pids(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    on_terminal(stage, "--new-pids")
}

/// A shell on a terminal of its own.
struct Shell {
    keys: File,
    process: Child,
    screen: PathBuf,
}

impl Shell {
    fn start(stage: &mut Stage<'_>) -> Result<Self> {
        let (pty, name) = terminal()?;
        let end = || rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
        let mut command = stage.command("setsid");
        command.args(["--ctty", "bash", "--norc", "--noprofile", "-i"]).env("PS1", "").env("TERM", "xterm");
        command.stdin(Stdio::from(end()?)).stdout(Stdio::from(end()?)).stderr(Stdio::from(end()?));
        let process = stage.spawn(&mut command)?;
        let keys = File::from(pty);
        let screen = stage.path("screen");
        let (mut from, mut to) = (keys.try_clone()?, File::create(&screen)?);
        // Ends with the last program that has the terminal open.
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        Ok(Shell { keys, process, screen })
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes()).context("press keys")
    }

    fn until_shown(&self, words: &str) -> Result<()> {
        let shown = || std::fs::read(&self.screen).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let found = wait::until(words, LIMIT, || Ok(shown()?.contains(words).then_some(())));
        found.with_context(|| format!("on the screen: {}", shown().unwrap_or_default()))
    }
}

/// Plays in an interactive shell, and ends it.
fn in_a_shell(stage: &mut Stage<'_>, play: fn(&mut Stage<'_>, &mut Shell) -> Result<()>) -> Result<()> {
    let mut shell = Shell::start(stage)?;
    let result = play(stage, &mut shell);
    signal(shell.process.id(), Signal::KILL);
    wait::end_of(&mut shell.process, "the shell", LIMIT)?;
    result
}

/// An interactive shell is rolled back: it reads from the terminal, and its jobs have their turns.
pub(crate) fn rolled_back(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    in_a_shell(stage, inner)
}

fn inner(stage: &mut Stage<'_>, shell: &mut Shell) -> Result<()> {
    let hdcr = utf8(stage.hdcr())?.to_owned();
    // At the checkpoint it is the shell that has the terminal, or a program in a group of its own.
    for (name, work, keys) in
        [("prompt", "", "echo prompt-again=$((40+2))"), ("below", "; cat > typed", "a line for cat")]
    {
        let run =
            format!("{hdcr} --quiet run --name {name} --every 1h -- bash --norc --noprofile -i; echo {name}-ended=$?");
        shell.press(&format!("{run}\necho $$ > pid-{name}; echo {name}=$((40+2)){work}\n"))?;
        shell.until_shown(&format!("{name}=42"))?;
        if !work.is_empty() {
            wait::until("cat", LIMIT, || Ok(stage.path("typed").exists().then_some(())))?;
        }
        stage.expect(0, &["checkpoint", name])?;
        signal(stage.text(&format!("pid-{name}")).trim().parse()?, Signal::KILL);
        wait::until("the roll-back", LIMIT, || {
            let told: serde_json::Value = serde_json::from_str(&stage.run(&["--json", "ps"])?.out)?;
            let jobs = told["jobs"].as_array().context("jobs")?;
            let job = jobs.iter().find(|job| job["name"] == name).context("the job has ended")?;
            Ok((job["phase"] == "running" && job["restarts"] == 1).then_some(()))
        })?;
        shell.press(&format!("{keys}\n"))?;
        if work.is_empty() {
            shell.until_shown("prompt-again=42")?;
        } else {
            stage.until_said("typed", keys)?;
            shell.press("\x04")?;
        }
        shell.press("exit 5\n")?;
        shell.until_shown(&format!("{name}-ended=5"))?;
    }
    Ok(())
}

/// `hdcr run` leads the session of a terminal that is closed (a window, a connection): the program is told.
pub(crate) fn hangup(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let (pty, name) = terminal()?;
    let end = || rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
    let script = "trap 'echo 1 > told; exit 3' HUP; echo 1 > begun; while :; do sleep 0.02; done";
    let mut command = stage.command("setsid");
    command.arg("--ctty").arg(stage.hdcr()).args(["--quiet", "run", "--name", "window", "--", "bash", "-c", script]);
    command.stdin(Stdio::from(end()?)).stdout(Stdio::from(end()?)).stderr(Stdio::from(end()?));
    let mut job = stage.spawn(&mut command)?;
    drop(command);
    stage.until_said("begun", "1")?;
    drop(pty);
    stage.until_said("told", "1")?;
    wait::end_of(&mut job, "the job", LIMIT).map(drop)
}

/// A new terminal: the side of its keys, and the name of the other one.
fn terminal() -> Result<(rustix::fd::OwnedFd, std::ffi::CString)> {
    let pty = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&pty)?;
    unlockpt(&pty)?;
    let name = ptsname(&pty, Vec::new())?;
    Ok((pty, name))
}

/// A program of the background that writes is stopped (`stty tostop`), and `hdcr run` with it; `fg` wakes both.
pub(crate) fn tostop(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    in_a_shell(stage, background)
}

fn background(stage: &mut Stage<'_>, shell: &mut Shell) -> Result<()> {
    let hdcr = utf8(stage.hdcr())?.to_owned();
    let script = "echo 1 > begun; while [ ! -e go ]; do sleep 0.02; done; echo word from below; echo 2 > written";
    shell.press(&format!("stty tostop; {hdcr} --quiet run --name below -- bash -c '{script}' &\n"))?;
    stage.until_said("begun", "1")?;
    let program = stage.only("bash -c echo 1")?;
    std::fs::write(stage.path("go"), "")?;
    wait::until("the stop of the program", LIMIT, || Ok((state(program) == Some('T')).then_some(())))?;
    let keeper = *with_command(&stage.folder, |line| line.contains("--name below")).first().context("no keeper")?;
    wait::until("the stop of the keeper", LIMIT, || Ok((state(keeper) == Some('T')).then_some(())))?;
    shell.press("jobs; echo told=$((40+2))\n")?;
    shell.until_shown("told=42")?;
    shell.until_shown("Stopped")?;
    ensure!(!stage.path("written").exists(), "it was not stopped before it wrote");
    shell.press("fg\n")?;
    shell.until_shown("word from below")?;
    stage.until_said("written", "2")?;
    wait::gone(program, LIMIT)
}

/// A bar on a terminal, for what takes a while; nothing of it with `--quiet`, with `--json`, or in a file.
pub(crate) fn progress(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let big = "exec perl -e '$x = \"0123456789abcdef\" x (48 << 20); open F, \">ready\"; sleep 1000'";
    let program = stage.program(big)?;
    wait::until("the memory of the program", LIMIT, || Ok(stage.path("ready").exists().then_some(())))?;
    let mut shell = Shell::start(stage)?;
    let result = bars(stage, &mut shell, &program.id().to_string());
    signal(shell.process.id(), Signal::KILL);
    wait::end_of(&mut shell.process, "the shell", LIMIT)?;
    result
}

fn bars(stage: &mut Stage<'_>, shell: &mut Shell, pid: &str) -> Result<()> {
    let hdcr = utf8(stage.hdcr())?.to_owned();
    let drawn = |shell: &Shell, word: &str| -> Result<bool> {
        Ok(String::from_utf8_lossy(&std::fs::read(&shell.screen)?).contains(word))
    };
    for option in ["--quiet", "--json"] {
        shell.press(&format!("{hdcr} {option} checkpoint {pid} -o image{option}; echo end{option}=$?\n"))?;
        shell.until_shown(&format!("end{option}=0"))?;
    }
    let said = stage.expect(0, &["checkpoint", pid, "-o", "image.file"])?;
    // One line when it takes a while, and no bar.
    let told = said.err.lines().filter(|line| !line.starts_with("hdcr: not done after ")).count();
    ensure!(!drawn(shell, "the program ")? && told == 0, "progress where nobody wants it: {}", said.err);
    shell.press(&format!("{hdcr} checkpoint {pid} --kill -o image; echo checkpoint=$?\n"))?;
    shell.until_shown("checkpoint=0")?;
    ensure!(drawn(shell, "copying the program ")?, "no bar for the checkpoint");
    wait::gone(pid.parse()?, LIMIT)?;
    shell.press(&format!("{hdcr} restore ./image --detach --stdio null; echo restore=$?\n"))?;
    shell.until_shown("restore=0")?;
    ensure!(drawn(shell, "filling memory ")?, "no bar for the restore");
    Ok(())
}

/// The letter of `/proc/PID/stat`.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim().chars().next()
}

fn on_terminal(stage: &mut Stage<'_>, option: &str) -> Result<()> {
    let program = stage.program(&counting("count", 100_000))?;
    stage.until_counted("count", 3)?;
    stage.expect(0, &["checkpoint", &program.id().to_string(), "--kill", "-o", "image"])?;
    wait::gone(program.id(), LIMIT)?;
    let mut shell = Shell::start(stage)?;
    let result = keys(stage, &mut shell, option);
    signal(shell.process.id(), Signal::KILL);
    wait::end_of(&mut shell.process, "the shell", LIMIT)?;
    result
}

fn keys(stage: &mut Stage<'_>, shell: &mut Shell, option: &str) -> Result<()> {
    // A program of this very terminal: started by the shell in a group of its own, checkpointed there.
    let script = counting("count", 100_000);
    std::fs::remove_file(stage.path("count"))?;
    // Not sh: dash makes its children by vfork(2), and Ctrl-Z at that moment stops the child alone, with or without hdcr.
    shell.press(&format!("bash -c '{script}'\n"))?;
    stage.until_counted("count", 5)?;
    let first = stage.only("bash -c exec")?;
    stage.expect(0, &["checkpoint", &first.to_string(), "--kill", "-o", "image.tty"])?;
    shell.press("echo first=$?\n")?;
    shell.until_shown("first=137")?;
    reap_orphans()?;
    let hdcr = utf8(stage.hdcr())?.to_owned();
    for (round, image) in [(1, "image.tty"), (2, "image")] {
        shell.press(&format!("{hdcr} restore ./{image} {option}\n"))?;
        let program = wait::until("the restored program", LIMIT, || {
            let is = |command: &str| ["sh -c exec", "bash -c exec"].iter().any(|begin| command.starts_with(begin));
            Ok(with_command(&stage.folder, is).first().copied())
        })?;
        let lines = stage.text("count").lines().count();
        stage.until_counted("count", lines + 3)?;
        if round == 1 {
            shell.press("\x1a")?;
            shell.until_shown("Stopped")?;
            wait::until("the stop of the program", LIMIT, || Ok((state(program) == Some('T')).then_some(())))?;
            shell.press("echo back at $((40+2))\n")?;
            shell.until_shown("back at 42")?;
            shell.press("fg\n")?;
            wait::until("the program goes on", LIMIT, || Ok((state(program) != Some('T')).then_some(())))?;
            let lines = stage.text("count").lines().count();
            stage.until_counted("count", lines + 3)?;
        }
        shell.press("\x03")?;
        wait::gone(program, LIMIT)?;
        reap_orphans()?;
        shell.press(&format!("echo round{round}=$?\n"))?;
        shell.until_shown(&format!("round{round}=130"))?;
    }
    Ok(())
}
