//! Real processes that hold a little of everything and wait, for the engine to look at.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hdcr_engine::ids::Pid;

/// A shell with a child, a file that grows, one that is read, and a FIFO between them.
#[derive(Debug)]
pub(crate) struct Witness {
    shell: Child,
    pub(crate) child: Pid,
    pub(crate) folder: tempfile::TempDir,
}

const SCRIPT: &str = "mkfifo fifo; exec 3>>log 4<>notes 5<>fifo 0</dev/null; umask 027; echo one >&3; read line <&4; exec 1>/dev/null 2>&1; \
                      sleep 3600 3>&- & echo $! > child.new; mv child.new child; while :; do wait; done";

impl Witness {
    /// Started and seen to wait.
    pub(crate) fn start() -> Self {
        // Whoever loses its parent comes here and is reaped here, at once.
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)).unwrap();
        // What this process has from its own caller would lead out of the tree.
        hdcr_sys::close_range::close_on_exec_from(3).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes"), "first\nsecond\n").unwrap();
        let shell = Command::new("setsid")
            .args(["sh", "-c", SCRIPT])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let child = awaited(&folder.path().join("child"));
        let witness = Self { shell, child: Pid(child.trim().parse().unwrap()), folder };
        // Both have begun what they do to the end.
        until(|| witness.is_alone() && witness.tree().iter().all(|pid| is_asleep(*pid)));
        witness
    }

    pub(crate) fn root(&self) -> Pid {
        Pid(self.shell.id().try_into().unwrap())
    }

    pub(crate) fn tree(&self) -> [Pid; 2] {
        [self.root(), self.child]
    }

    /// Whether the shell has no child but the one that stays.
    fn is_alone(&self) -> bool {
        let root = self.root();
        let children = fs::read_to_string(format!("/proc/{root}/task/{root}/children")).unwrap_or_default();
        children.trim() == self.child.to_string()
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Ends both, so that their numbers are free.
    pub(crate) fn end(&mut self) {
        self.shell.kill().unwrap();
        self.shell.wait().unwrap();
        let child = rustix::process::Pid::from_raw(self.child.0).unwrap();
        rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
        until(|| {
            let reaped = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::NOHANG);
            matches!(reaped, Ok(Some(_)) | Err(rustix::io::Errno::CHILD))
        });
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if matches!(self.shell.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

/// In the call in which it stays: a shell in `wait4` or `rt_sigsuspend`, a sleep in `clock_nanosleep`.
fn is_asleep(pid: Pid) -> bool {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let (call, is_sleep) = (read("syscall"), read("comm") == "sleep\n");
    let calls: &[&str] = if is_sleep { &["230 "] } else { &["61 ", "130 "] };
    calls.iter().any(|number| call.starts_with(number))
}

fn awaited(path: &Path) -> String {
    until(|| path.exists());
    fs::read_to_string(path).unwrap()
}

/// Looks until it is so; at most a minute.
fn until(is: impl Fn() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while !is() {
        assert!(std::time::Instant::now() < end, "the witness does not come so far");
        std::thread::park_timeout(std::time::Duration::from_millis(1));
    }
}
