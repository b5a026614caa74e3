//! `hdcr` itself in the guest: images that it makes through the module are restored by ptrace, and the other way round.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use hdcr_kmod::NEEDED;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::Test;
use crate::access::session;
use crate::board::{Board, Target, until};

pub(crate) const TESTS: [Test; 7] = [
    ("cross/one_thread", || both_ways("kept-threads", 1)),
    ("cross/threads_16", || both_ways("kept-threads", 16)),
    ("cross/sleepers", || both_ways("kept-sleepers", 5)),
    ("cross/tree_of_7_with_pipes", || both_ways("kept-tree", 7)),
    ("cross/under_a_debugger", under_a_debugger),
    ("cross/job_rolls_back", job_rolls_back),
    ("cross/refused_where_it_cannot_be", refused_where_it_cannot_be),
];

const HDCR: &str = "/hdcr";

/// Whether there is an `hdcr` here, and a module that it can use.
fn is_possible() -> bool {
    Path::new(HDCR).exists() && session().features() & NEEDED == NEEDED
}

fn hdcr(words: &[&str]) -> Output {
    let mut command = Command::new(HDCR);
    command.args(words).env_clear().env("HOME", "/tmp").stdin(Stdio::null());
    command.output().unwrap()
}

/// What it says, which must have gone well.
fn done(words: &[&str]) -> String {
    let output = hdcr(words);
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words:?}: {}\n{said}\n{told}", output.status);
    said.into_owned()
}

/// The status and what it says of one that must fail.
fn failed(words: &[&str]) -> (Option<i32>, String) {
    let output = hdcr(words);
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until no task of the tree is left: its first process may be ours, or that of the first process of the guest.
fn are_gone(pids: &[i32]) {
    let is_gone = |pid: &i32| {
        waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG)).ok();
        !fs::exists(format!("/proc/{pid}")).unwrap()
    };
    until("the numbers are free", || pids.iter().all(is_gone));
}

/// A process with all below it.
fn tree_of(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        at += 1;
        for entry in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let children = fs::read_to_string(entry.unwrap().path().join("children")).unwrap();
            all.extend(children.split_whitespace().map(|word| word.parse::<i32>().unwrap()));
        }
    }
    all
}

/// Checkpointed by the one, killed, restored; then what was restored by the other.
fn both_ways(kind: &str, workers: usize) {
    if !is_possible() {
        return;
    }
    let target = Target::start(kind, workers);
    let pid = target.pid().to_string();
    for mechanism in ["kernel", "ptrace"] {
        let image = format!("/tmp/{kind}-{pid}-{mechanism}.hdcr");
        let all = tree_of(target.pid());
        done(&["checkpoint", &pid, "-o", &image, "--mechanism", mechanism, "--kill"]);
        are_gone(&all);
        let shown = done(&["show", &image, "--json"]);
        assert!(shown.contains(&format!("\"{mechanism}\"")), "{shown}");
        done(&["restore", &image, "--detach"]);
        target.goes_on();
        assert_eq!(tree_of(target.pid()).len(), all.len());
        fs::remove_file(&image).unwrap();
    }
    let all = tree_of(target.pid());
    kill(Pid::from_raw(-target.pid()), Signal::SIGKILL).unwrap();
    are_gone(&all);
}

/// What a debugger holds and lets run is taken by the module, asked for or not; ptrace refuses it, and the debugger has it all
/// the time.
fn under_a_debugger() {
    if !is_possible() {
        return;
    }
    let mut target = Target::start("kept-threads", 1);
    let pid = target.pid().to_string();
    let tracer = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("TracerPid:")).unwrap().trim().to_owned()
    };
    ptrace::seize(Pid::from_raw(target.pid()), ptrace::Options::empty()).unwrap();
    let own = tracer();
    assert_ne!(own, "0");
    let image = format!("/tmp/debugged-{pid}.hdcr");
    let (status, said) = failed(&["checkpoint", &pid, "-o", &image, "--mechanism", "ptrace", "--json"]);
    assert_eq!(status, Some(69), "{said}");
    for mechanism in ["auto", "kernel"] {
        let said = done(&["checkpoint", &pid, "-o", &image, "--mechanism", mechanism, "--json"]);
        assert!(said.contains("tracer-left"), "{said}");
        assert_eq!(tracer(), own);
        target.goes_on();
    }
    kill(Pid::from_raw(target.pid()), Signal::SIGKILL).unwrap();
    target.end();
    done(&["restore", &image, "--detach"]);
    target.goes_on();
    assert_eq!(tracer(), "0");
    kill(Pid::from_raw(target.pid()), Signal::SIGKILL).unwrap();
    are_gone(&[target.pid()]);
    fs::remove_file(&image).unwrap();
}

/// A job whose checkpoints come through the module: killed, it is rolled back and goes on, twice.
fn job_rolls_back() {
    if !is_possible() {
        return;
    }
    let (path, told) = (Path::new("/tmp/board-job"), "/tmp/job.err");
    let board = Board::open(path);
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(HDCR);
    command.args(["run", "--name", "job", "--every", "500ms", "--mechanism", "kernel", "--"]).arg(program);
    command.args(["target", "kept-threads"]).arg(path).arg("2");
    command.env_clear().env("HOME", "/tmp").stdin(Stdio::null()).stdout(Stdio::null());
    let mut keeper = command.stderr(fs::File::create(told).unwrap()).spawn().unwrap();
    let root = keeper.id().cast_signed();
    let is_program = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != root && words.split(|byte| *byte == 0).any(|word| word == b"kept-threads")
    };
    let goes_on = || {
        let before = [0, 1].map(|worker| board.get(worker));
        until("the job counts", || [0, 1].iter().all(|worker| board.get(*worker) != before[*worker]));
    };
    for life in 1..3 {
        until("a checkpoint", || {
            let shown = hdcr(&["show", "job", "--json"]);
            String::from_utf8_lossy(&shown.stdout).contains("\"kernel\"")
        });
        let pid = tree_of(root).into_iter().find(is_program).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        until("the roll-back", || fs::read_to_string(told).unwrap().matches("rolled back to").count() == life);
        goes_on();
    }
    assert!(board.is_right());
    done(&["stop", "job"]);
    keeper.wait().unwrap();
    fs::remove_file(path).unwrap();
}

/// The module is refused by one code where it lacks something, or what was asked for with it; `auto` does without.
fn refused_where_it_cannot_be() {
    if !Path::new(HDCR).exists() {
        return;
    }
    let target = Target::start("kept-threads", 1);
    let pid = target.pid().to_string();
    let image = format!("/tmp/refused-{pid}.hdcr");
    let words = ["checkpoint", &pid, "-o", &image, "--json", "--mechanism"];
    if is_possible() {
        let (status, said) = failed(&[&words[..], &["kernel", "--snapshot", "fork"]].concat());
        assert!(status == Some(69) && said.contains("mechanism-snapshot"), "{said}");
    } else {
        let (status, said) = failed(&[&words[..], &["kernel"]].concat());
        assert!(status == Some(69) && said.contains("no-kernel-module"), "{said}");
    }
    assert!(!fs::exists(&image).unwrap());
    done(&[&words[..], &["auto"]].concat());
    target.goes_on();
    fs::remove_file(&image).unwrap();
}
