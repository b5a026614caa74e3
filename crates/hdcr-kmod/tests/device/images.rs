//! Programs captured to images by the module, killed, and made again from them.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use hdcr_abi::{capture_flag, feature, obstacle, scope};
use hdcr_kmod::{Restored, Session, SessionError};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Test;
use crate::access::{WITHIN, freeze, session};
use crate::board::{Target, until};

pub(crate) const TESTS: [Test; 12] = [
    ("images/one_thread", || rounds("kept-threads", 1, 5)),
    ("images/threads_64", || rounds("kept-threads", 64, 5)),
    ("images/spinners", || rounds("kept-spinners", 3, 5)),
    ("images/memory", || rounds("kept-memory", 1, 5)),
    ("images/tree_of_20_with_pipes", || rounds("kept-tree", 20, 5)),
    ("images/copied_on_write", || on_write("kept-memory", 1)),
    ("images/tree_copied_on_write", || on_write("kept-tree", 7)),
    ("images/looks_as_before", looks_as_before),
    ("images/what_is_in_the_way_is_named", what_is_in_the_way_is_named),
    ("images/a_number_in_use", a_number_in_use),
    ("images/damaged", damaged),
    ("images/hundred_rounds", hundred_rounds),
];

/// Whether the module can restore on this kernel.
fn can_restore(session: &Session) -> bool {
    let all = feature::CLONE | feature::VDSO | feature::PIPES | feature::PROGRAM | feature::IDS;
    session.features() & all == all
}

fn empty_file() -> (File, PathBuf) {
    let path = std::env::temp_dir().join(format!("image-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    (file, path)
}

fn why<T: std::fmt::Debug>(result: Result<T, SessionError>) -> (u32, i32, i32) {
    let Err(SessionError::Obstacle { number, task, source, .. }) = result else {
        panic!("not refused: {result:?}");
    };
    (number, task, source.raw_os_error().unwrap())
}

/// Captures all that is frozen, kills it, and waits until its numbers are free.
fn capture_and_kill(session: &mut Session, file: &File, root: i32) {
    let written = session.capture(file.as_fd(), 0).unwrap();
    assert_eq!(written, file.metadata().unwrap().len());
    let tids: Vec<i32> = session.tasks().unwrap().iter().map(|row| row.tid).collect();
    session.kill().unwrap();
    let root = Pid::from_raw(root);
    assert!(matches!(waitpid(root, None).unwrap(), WaitStatus::Signaled(_, Signal::SIGKILL, _)));
    until("the numbers are free", || tids.iter().all(|tid| !fs::exists(format!("/proc/{tid}")).unwrap()));
}

fn restore(session: &mut Session, file: &File) -> Restored {
    session.restore(file.as_fd(), WITHIN).unwrap()
}

fn end(root: i32) {
    kill(Pid::from_raw(-root), Signal::SIGKILL).unwrap();
    waitpid(Pid::from_raw(root), None).unwrap();
}

fn rounds(kind: &str, workers: usize, count: u32) {
    let target = Target::start(kind, workers);
    let mut session = session();
    for _ in 0..count {
        let held = freeze(&mut session, scope::TREE, target.id());
        let (file, path) = empty_file();
        if !can_restore(&session) {
            session.capture(file.as_fd(), 0).unwrap();
            session.thaw().unwrap();
            target.goes_on();
            assert_eq!(why(session.restore(file.as_fd(), WITHIN)), (obstacle::KERNEL, 0, libc::EOPNOTSUPP));
            continue;
        }
        capture_and_kill(&mut session, &file, target.pid());
        let made = restore(&mut session, &file);
        assert_eq!((made.root, made.processes, made.threads), (target.pid(), held.processes, held.threads));
        target.goes_on();
        // A second freeze of what was made finds it as the first did.
        let again = freeze(&mut session, scope::TREE, target.id());
        assert_eq!((again.processes, again.threads), (held.processes, held.threads));
        session.thaw().unwrap();
        fs::remove_file(path).unwrap();
    }
    if can_restore(&session) {
        target.goes_on();
        end(target.pid());
    }
}

/// The program runs on while its image is written, and then is set back to where it was.
fn on_write(kind: &str, workers: usize) {
    let target = Target::start(kind, workers);
    let mut session = session();
    for _ in 0..5 {
        freeze(&mut session, scope::TREE, target.id());
        let (file, path) = empty_file();
        if !can_restore(&session) {
            let found = why(session.capture(file.as_fd(), capture_flag::ON_WRITE));
            assert_eq!(found, (obstacle::KERNEL, 0, libc::EOPNOTSUPP));
            session.thaw().unwrap();
            target.goes_on();
            continue;
        }
        session.capture(file.as_fd(), capture_flag::ON_WRITE).unwrap();
        assert!(session.thaw().is_err(), "the capture ends the freeze");
        target.goes_on();
        let held = freeze(&mut session, scope::TREE, target.id());
        let (second, _) = empty_file();
        capture_and_kill(&mut session, &second, target.pid());
        let made = restore(&mut session, &file);
        assert_eq!((made.root, made.threads), (target.pid(), held.threads));
        target.goes_on();
        fs::remove_file(path).unwrap();
    }
    if can_restore(&session) {
        end(target.pid());
    }
}

/// A list of mappings with neighbours that are alike as one: the kernel merges them, or does not, by what was written there first.
fn merged(maps: &str) -> String {
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    // Start, end, offset, and what is said of both.
    let mut all: Vec<(u64, u64, u64, String)> = Vec::new();
    for line in maps.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (start, end) = words[0].split_once('-').unwrap();
        let (start, end, offset) = (number(start), number(end), number(words[2]));
        let said = [&words[1..2], &words[3..]].concat().join(" ");
        match all.last_mut() {
            Some(last)
                if last.1 == start && last.3 == said && (words[4] == "0" || last.2 + (start - last.0) == offset) =>
            {
                last.1 = end;
            }
            _ => all.push((start, end, offset, said)),
        }
    }
    let lines = all.iter().map(|(start, end, offset, said)| format!("{start:x}-{end:x} {offset:x} {said}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// What `/proc` shows of a process, without what changes by itself.
fn look(pid: i32) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for name in ["maps", "cmdline", "environ", "comm", "auxv", "limits", "cgroup"] {
        let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        all.push((name.to_owned(), if name == "maps" { merged(&text) } else { text }));
    }
    for name in ["exe", "cwd", "root"] {
        let path = fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
        all.push((name.to_owned(), path.display().to_string()));
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let same = |line: &&str| {
        let word = line.split(':').next().unwrap();
        let changing = ["Vm", "Rss", "State", "PPid", "voluntary", "nonvoluntary", "SigQ", "Mems", "x86"];
        !changing.iter().any(|start| word.starts_with(start))
    };
    all.extend(status.lines().filter(same).map(|line| ("status".to_owned(), line.to_owned())));
    let mut descriptors: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    descriptors.sort();
    for fd in descriptors {
        let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap();
        let info: Vec<&str> = info.lines().filter(|l| l.starts_with("pos") || l.starts_with("flags")).collect();
        all.push((format!("fd {fd}"), format!("{} {info:?}", link.display())));
    }
    all
}

fn looks_as_before() {
    let target = Target::start("kept-threads", 5);
    let mut session = session();
    if !can_restore(&session) {
        return;
    }
    let tids = || {
        let entries = fs::read_dir(format!("/proc/{}/task", target.pid())).unwrap();
        let mut tids: Vec<i32> = entries.map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
        tids.sort_unstable();
        tids
    };
    freeze(&mut session, scope::TREE, target.id());
    let (before, tids_before) = (look(target.pid()), tids());
    let rows = session.tasks().unwrap();
    let (file, path) = empty_file();
    capture_and_kill(&mut session, &file, target.pid());
    restore(&mut session, &file);
    freeze(&mut session, scope::TREE, target.id());
    let after = look(target.pid());
    assert_eq!(tids(), tids_before);
    for (then, now) in before.iter().zip(&after) {
        assert_eq!(now, then);
    }
    assert_eq!(after.len(), before.len());
    let rows_after = session.tasks().unwrap();
    for (then, now) in rows.iter().zip(&rows_after) {
        let mut then = *then;
        then.ppid = now.ppid;
        assert_eq!(*now, then);
    }
    session.thaw().unwrap();
    target.goes_on();
    end(target.pid());
    fs::remove_file(path).unwrap();
}

fn what_is_in_the_way_is_named() {
    let mut session = session();
    let mut check = |target: &Target, scope: u32, expected: u32| {
        freeze(&mut session, scope, target.id());
        let (file, path) = empty_file();
        let (number, culprit, errno) = why(session.capture(file.as_fd(), 0));
        assert_eq!((number, errno), (expected, libc::EOPNOTSUPP));
        assert!(culprit >= target.pid());
        assert_eq!(file.metadata().unwrap().len(), 0);
        session.thaw().unwrap();
        fs::remove_file(path).unwrap();
    };
    let tied = Target::start("threads", 1);
    check(&tied, scope::TREE, obstacle::FAMILY);
    let polls = Target::start("kept-sleepers", 5);
    check(&polls, scope::TREE, obstacle::DESCRIPTOR);
    let half = Target::start("kept-tree", 3);
    check(&half, scope::PROCESS, obstacle::DESCRIPTOR);
    let hidden = Target::start("kept-hidden", 1);
    let stopped = Target::start("kept-threads", 1);
    kill(Pid::from_raw(stopped.pid()), Signal::SIGSTOP).unwrap();
    until("it is stopped", || {
        let text = fs::read_to_string(format!("/proc/{}/stat", stopped.pid())).unwrap();
        text.contains(") T ")
    });
    check(&stopped, scope::TREE, obstacle::STAND);
    kill(Pid::from_raw(stopped.pid()), Signal::SIGCONT).unwrap();
    for target in [&tied, &polls, &half, &hidden, &stopped] {
        target.goes_on();
    }
    // What cannot be dumped can be captured, but not restored by one that can.
    freeze(&mut session, scope::TREE, hidden.id());
    let (file, path) = empty_file();
    session.capture(file.as_fd(), 0).unwrap();
    session.thaw().unwrap();
    hidden.goes_on();
    assert_eq!(why(session.restore(file.as_fd(), WITHIN)).0, obstacle::SURROUNDINGS);
    fs::remove_file(path).unwrap();
}

/// A restore that fails leaves nothing, whatever it failed at.
fn a_number_in_use() {
    let target = Target::start("kept-tree", 7);
    let mut session = session();
    if !can_restore(&session) {
        return;
    }
    freeze(&mut session, scope::TREE, target.id());
    let (file, path) = empty_file();
    session.capture(file.as_fd(), 0).unwrap();
    let tids: Vec<i32> = session.tasks().unwrap().iter().map(|row| row.tid).collect();
    session.thaw().unwrap();
    assert_eq!(why(session.restore(file.as_fd(), WITHIN)), (obstacle::TASK, 0, libc::EEXIST));
    target.goes_on();
    freeze(&mut session, scope::TREE, target.id());
    let (file, _) = empty_file();
    capture_and_kill(&mut session, &file, target.pid());
    // A thread of this process takes the number of each process in turn.
    for taken in &tids[1..] {
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let holder = hold_number(*taken, wait);
        let (number, root, _) = why(session.restore(file.as_fd(), WITHIN));
        assert_eq!((number, root), (obstacle::BUILD, target.pid()));
        waitpid(Pid::from_raw(root), None).unwrap();
        drop(release);
        holder.join().unwrap();
        until("nothing is left", || tids.iter().all(|tid| !fs::exists(format!("/proc/{tid}")).unwrap()));
    }
    restore(&mut session, &file);
    target.goes_on();
    end(target.pid());
    fs::remove_file(path).unwrap();
}

/// A thread of this process with a number.
fn hold_number(tid: i32, until_dropped: std::sync::mpsc::Receiver<()>) -> std::thread::JoinHandle<()> {
    fs::write("/proc/sys/kernel/ns_last_pid", (tid - 1).to_string()).unwrap();
    let holder = std::thread::spawn(move || {
        until_dropped.recv().ok();
    });
    assert!(fs::exists(format!("/proc/self/task/{tid}")).unwrap(), "the number {tid} went to somebody else");
    holder
}

fn damaged() {
    let target = Target::start("kept-threads", 2);
    let mut session = session();
    if !can_restore(&session) {
        return;
    }
    freeze(&mut session, scope::TREE, target.id());
    let (file, path) = empty_file();
    capture_and_kill(&mut session, &file, target.pid());
    let length = file.metadata().unwrap().len();
    let mut frames = [0; 8];
    file.read_exact_at(&mut frames, 32).unwrap();
    let frames = u64::from_le_bytes(frames);
    let refused = |session: &mut Session| {
        let (_, root, _) = why(session.restore(file.as_fd(), WITHIN));
        if root != 0 {
            // It may have been made before the damage was met.
            waitpid(Pid::from_raw(root), None).ok();
        }
        until("nothing is left", || !fs::exists(format!("/proc/{}", target.pid())).unwrap());
    };
    let places = (0..40).chain((frames..length).step_by(997)).chain((4096..frames).step_by(48 << 10));
    for place in places {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 0x41], place).unwrap();
        // The id of an image of the module's is nobody's to check, and the padding of the header nothing.
        if !(16..32).contains(&place) {
            refused(&mut session);
        }
        file.write_all_at(&byte, place).unwrap();
    }
    for cut in [length - 1, frames + 5, frames, 4096, 64, 63, 0] {
        let mut whole = vec![0; usize::try_from(length).unwrap()];
        file.read_exact_at(&mut whole, 0).unwrap();
        file.set_len(cut).unwrap();
        refused(&mut session);
        file.write_all_at(&whole, 0).unwrap();
    }
    restore(&mut session, &file);
    target.goes_on();
    end(target.pid());
    fs::remove_file(path).unwrap();
}

/// Kilobytes that the kernel keeps for itself.
fn kept_by_kernel() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let lines = text.lines().filter(|line| line.starts_with("SUnreclaim") || line.starts_with("KernelStack"));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

fn hundred_rounds() {
    let target = Target::start("kept-tree", 6);
    let mut session = session();
    if !can_restore(&session) {
        return;
    }
    let mut early = 0;
    for round in 0..100 {
        freeze(&mut session, scope::TREE, target.id());
        let (file, path) = empty_file();
        capture_and_kill(&mut session, &file, target.pid());
        restore(&mut session, &file);
        target.goes_on();
        fs::remove_file(path).unwrap();
        if round == 20 {
            early = kept_by_kernel();
        }
    }
    let late = kept_by_kernel();
    assert!(late < early + 2048, "the kernel kept {early} KiB after 20 rounds, {late} after 100");
    end(target.pid());
    let users = || fs::read_to_string("/sys/module/hdcr/refcnt").unwrap().trim().parse::<u32>().unwrap();
    until("only this session uses the module", || users() == 1);
}
