//! A machine of its own for each kernel: QEMU without hardware help, as this may be a machine in a machine.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::check::{self, Counts};
use crate::kmod::archive::{Entry, pack};
use crate::shell::Shell;

/// For how long nothing may come from a guest of an idle machine: longer than any of its tests takes.
const SILENCE: Duration = Duration::from_mins(5);

/// What the suite of the mechanisms works on.
const PROGRAMS: [&str; 3] = ["guest", "scenes", "waits"];

/// What the kernel must not say.
const COMPLAINTS: [&str; 9] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "Kernel panic",
    "general protection",
    "INFO: task",
    "soft lockup",
    "rcu_preempt detected",
    "Unable to handle",
];

/// Where lines for the user go.
pub(super) type Tell<'a> = &'a mut dyn FnMut(&str) -> Result<()>;

/// What is run.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) name: String,
    pub(super) image: PathBuf,
    pub(super) module: PathBuf,
    pub(super) program: PathBuf,
    pub(super) hdcr: PathBuf,
    /// Features that the module is told not to find.
    pub(super) hide: u64,
}

/// Builds the test program.
pub(super) fn program(shell: &Shell) -> Result<PathBuf> {
    // Of the whole workspace, as its unit tests are built: what it shares with them is not built again.
    let build = ["test", "--quiet", "--workspace", "--test", "device", "--no-run"];
    ensure!(shell.run("cargo", &build)?, "the test program does not build");
    let told = shell.output("cargo", &[&build[..], &["--message-format=json"]].concat())?;
    let lines = told.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let path = lines.filter_map(|line| line.get("executable")?.as_str().map(PathBuf::from)).next_back();
    path.context("cargo does not say where the test program is")
}

/// Builds `hdcr` itself, as users get it.
pub(super) fn hdcr(shell: &Shell) -> Result<PathBuf> {
    ensure!(shell.build_product()?, "hdcr does not build");
    Ok(shell.target().join("release/hdcr"))
}

/// The libraries that programs are linked with, and the loader: `ldd(1)` tells where they are.
fn libraries(shell: &Shell, programs: [&Path; 2]) -> Result<BTreeSet<PathBuf>> {
    let programs = programs.map(|program| program.display().to_string());
    let told = shell.output("ldd", &[&programs[0], &programs[1]])?;
    let all: BTreeSet<PathBuf> = told.lines().filter_map(library).map(PathBuf::from).collect();
    ensure!(!all.is_empty(), "ldd tells of no library");
    Ok(all)
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`, `/lib64/ld-linux-x86-64.so.2 (0x...)`
fn library(line: &str) -> Option<&str> {
    let line = line.strip_prefix('\t')?;
    let place = line.split_once(" => ").map_or(line, |(_, place)| place);
    let place = place.split_once(" (")?.0;
    place.starts_with('/').then_some(place)
}

/// The folders that files lie in, those above first.
fn folders(files: &[(String, Vec<u8>)]) -> BTreeSet<String> {
    let above = files.iter().flat_map(|(name, _)| Path::new(name).ancestors().skip(1));
    above.map(|folder| folder.display().to_string()).filter(|folder| !folder.is_empty()).collect()
}

/// How a run ended.
enum Ending {
    /// The tests came to their end.
    Tested(Counts),
    /// The guest died before the first test, which emulated processors do now and then.
    NotBooted,
}

impl Guest {
    /// Boots, shows and counts the tests; the kernel's complaints count as a failed one.
    pub(super) fn run(&self, shell: &Shell, folder: &Path, names: &[String], tell: Tell<'_>) -> Result<Counts> {
        tell(&format!("--- guest: Linux {}", self.name))?;
        let root = self.root(shell, folder)?;
        for _ in 0..3 {
            match self.boot(&root, names, tell)? {
                Ending::Tested(counts) => return Ok(counts),
                Ending::NotBooted => tell("the guest did not come up; once more")?,
            }
        }
        bail!("the guest does not come up")
    }

    fn root(&self, shell: &Shell, folder: &Path) -> Result<PathBuf> {
        let mut files = Vec::new();
        for (name, path) in [("init", &self.program), ("hdcr.ko", &self.module), ("hdcr", &self.hdcr)] {
            let bare = folder.join(format!("{name}.bare"));
            let (from, to) = (path.display().to_string(), bare.display().to_string());
            ensure!(shell.run("strip", &["--strip-debug", "-o", &to, &from])?, "strip failed");
            files.push((name.to_owned(), fs::read(&bare)?));
        }
        for name in PROGRAMS {
            let program = folder.join(name);
            let source = shell.root.join(format!("crates/hdcr-ptrace/tests/guests/{name}.c"));
            let (to, from) = (program.display().to_string(), source.display().to_string());
            ensure!(shell.run("cc", &["-O1", "-static", "-pthread", "-s", "-o", &to, &from])?, "cc failed on {from}");
            files.push((format!("guests/{name}"), fs::read(&program)?));
        }
        for library in libraries(shell, [&self.program, &self.hdcr])? {
            let bytes = fs::read(&library).with_context(|| format!("read {}", library.display()))?;
            files.push((library.display().to_string().trim_start_matches('/').to_owned(), bytes));
        }
        let mut folders = folders(&files);
        folders.extend(["proc", "sys", "dev", "tmp"].map(str::to_owned));
        let folders = folders.iter().map(|name| Entry { name, mode: 0o040_755, bytes: &[] });
        let files = files.iter().map(|(name, bytes)| Entry { name, mode: 0o100_755, bytes });
        let entries: Vec<_> = folders.chain(files).collect();
        let root = folder.join("root.cpio");
        fs::write(&root, pack(&entries))?;
        Ok(root)
    }

    fn command(&self, root: &Path, names: &[String]) -> Command {
        let mut line =
            format!("console=ttyS0 panic=-1 no_timer_check loglevel=5 RUST_BACKTRACE=1 hdcr.hide={}", self.hide);
        if !names.is_empty() {
            line.push_str(" hdcr.tests=");
            line.push_str(&names.join(","));
        }
        // Trials may run beside it, which wait for people's programs; its tests wait for nobody else.
        let mut command = Command::new("nice");
        command.args([
            "qemu-system-x86_64",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max,-erms",
            "-m",
            "1536",
            "-smp",
            "2",
        ]);
        command.args(["-nic", "none", "-nographic", "-no-reboot"]);
        command.arg("-kernel").arg(&self.image).arg("-initrd").arg(root).arg("-append").arg(line);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    fn boot(&self, root: &Path, names: &[String], tell: Tell<'_>) -> Result<Ending> {
        let mut child = self.command(root, names).spawn().context("start qemu-system-x86_64 by nice")?;
        let lines = lines_of(child.stdout.take().context("the serial line")?);
        let heard = listen(&lines, &mut child, tell);
        child.kill().ok();
        child.wait()?;
        heard
    }
}

/// The serial line, as a thread reads it.
fn lines_of(serial: impl Read + Send + 'static) -> Receiver<String> {
    let (to, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut serial = BufReader::new(serial);
        let mut line = Vec::new();
        while serial.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if to.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    lines
}

/// A busy machine is waited for longer.
fn patience() -> Duration {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split('.').next().and_then(|whole| whole.parse::<u32>().ok()).unwrap_or(0);
    SILENCE * (1 + load / 2)
}

fn listen(lines: &Receiver<String>, child: &mut Child, tell: Tell<'_>) -> Result<Ending> {
    let mut heard = Heard::default();
    while heard.end.is_none() {
        let Ok(line) = lines.recv_timeout(patience()) else {
            let is_gone = child.try_wait()?.is_some();
            tell(if is_gone { "the guest ended before its tests did" } else { "nothing more comes from the guest" })?;
            break;
        };
        if heard.line(&line) {
            tell(&line)?;
        }
    }
    Ok(heard.ending())
}

/// What came over the serial line.
#[derive(Debug, Default)]
struct Heard {
    tests: u32,
    counts: Counts,
    complaints: u32,
    panics: bool,
    end: Option<i32>,
}

impl Heard {
    /// Takes a line in. True: it is worth showing.
    fn line(&mut self, line: &str) -> bool {
        if let Some(code) = line.strip_prefix("GUEST-END ") {
            self.end = Some(code.parse().unwrap_or(-1));
            return true;
        }
        if let Some(counts) = check::of_trials(line) {
            self.counts = counts;
        }
        if line.starts_with("test ") {
            self.tests += 1;
        }
        if COMPLAINTS.iter().any(|complaint| line.contains(complaint)) {
            self.complaints += 1;
        }
        // What firmware and kernel say at each boot is of no interest, unless something is wrong.
        let is_of_boot = line.starts_with('[') || self.tests == 0 && !self.is_worth(line);
        self.complaints > 0 || line.starts_with("test ") || !is_of_boot
    }

    /// Whether a line comes from a test, and not from firmware: what follows a panic does.
    fn is_worth(&mut self, line: &str) -> bool {
        self.panics |= line.starts_with("thread ");
        self.panics
    }

    fn ending(self) -> Ending {
        if self.end.is_none() && self.tests == 0 {
            return Ending::NotBooted;
        }
        let mut counts = self.counts;
        let is_whole = self.end == Some(0) && self.complaints == 0 && counts.passed > 0;
        if !is_whole && counts.failed == 0 {
            counts.failed = 1;
        }
        Ending::Tested(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let lines = [
            "/x/hdcr:",
            "\tlinux-vdso.so.1 (0x00007fde2a718000)",
            "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fde2961e000)",
            "\tlibgone.so => not found",
            "\t/lib64/ld-linux-x86-64.so.2 (0x00007fde2a71a000)",
        ];
        let found: Vec<_> = lines.into_iter().filter_map(library).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        let files = [("lib/a/libc.so.6".to_owned(), Vec::new()), ("init".to_owned(), Vec::new())];
        assert_eq!(folders(&files).into_iter().collect::<Vec<_>>(), ["lib", "lib/a"]);
    }

    fn check(lines: &[&str], expected: Option<(u32, u32)>) {
        let mut heard = Heard::default();
        for line in lines {
            heard.line(line);
        }
        let found = match heard.ending() {
            Ending::Tested(counts) => Some((counts.passed, counts.failed)),
            Ending::NotBooted => None,
        };
        assert_eq!(found, expected, "{lines:?}");
    }

    #[test]
    fn only_a_whole_run_without_complaints_has_passed() {
        let (test, counts, end) = ("test a/b ok (0.1 s)", "1 passed, 0 failed, 0 skipped", "GUEST-END 0");
        check(&[test, counts, end], Some((1, 0)));
        check(&[test, counts], Some((1, 1)));
        check(&[test, counts, "GUEST-END 1"], Some((1, 1)));
        check(&[test, "[ 1.0] WARNING: CPU: 0 PID: 1 at x", counts, end], Some((1, 1)));
        check(&[test, "Oops: 0000 [#1]"], Some((0, 1)));
        check(&[end], Some((0, 1)));
        check(&["Oops: int3"], None);
        check(&["test a FAILED", "0 passed, 1 failed, 0 skipped", "GUEST-END 1"], Some((0, 1)));
    }
}
