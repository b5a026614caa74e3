//! Trees that are made.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hdcr_engine::batch::{Arg, Batch};
use hdcr_engine::ids::{RemotePtr, Tid};
use hdcr_engine::mechanism::{Birth, End, Final, Mechanism, Nursery, Parent, Resume};
use hdcr_engine::regs::Regs;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid as Raw;

use super::{ensure, soon};
use crate::guests::Outcome;

/// Where the code of the made programs lies.
const CODE: u64 = 0x1234_5000;
/// `again: mov $34,%eax; syscall; jmp again` (pause).
const PAUSE: [u8; 9] = [0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
/// `syscall; lea 7(%rax),%edi; mov $231,%eax; syscall` (a call, then `exit_group` of its result and 7).
const EXIT: [u8; 12] = [0x0f, 0x05, 0x8d, 0x78, 7, 0xb8, 231, 0, 0, 0, 0x0f, 0x05];

const SIGCHLD: i32 = libc::SIGCHLD;

fn birth(parent: Parent, tid: Option<Tid>) -> Birth {
    Birth { parent, tid, flags: 0, exit_signal: SIGCHLD, tls: 0, clear_tid: 0 }
}

fn thread(parent: Tid, tid: Tid) -> Birth {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    Birth { flags: u64::try_from(flags).unwrap_or(0), exit_signal: 0, ..birth(Parent::Task(parent), Some(tid)) }
}

/// Numbers that no task has, far from those that the kernel gives next (other tests start tasks all the time). `quarter`
/// keeps those of several callers apart.
fn free_numbers(quarter: i32, count: usize) -> Vec<Tid> {
    let number = |file: &str| fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let most = number("/proc/sys/kernel/pid_max").unwrap_or(32768).min(4 << 20);
    let last = number("/proc/sys/kernel/ns_last_pid").unwrap_or(0);
    let far = (last + most / 4 * quarter) % (most - 4096) + 1024;
    (far..).filter(|n| !Path::new(&format!("/proc/{n}")).exists()).take(count).map(Tid).collect()
}

/// Maps a page of code in a process and fills it.
fn put_code(nursery: &mut dyn Nursery, tid: Tid, code: &[u8]) -> Outcome<()> {
    let mut batch = Batch::new();
    let args: [Arg; 6] = [CODE.into(), 4096.into(), 7.into(), 0x32.into(), (-1).into(), 0.into()];
    batch.call(libc::SYS_mmap, &args);
    let replies = nursery.run(&[(tid, batch)])?;
    ensure(replies.first().and_then(|r| r.result(0)) == i64::try_from(CODE).ok(), "mmap of code")?;
    nursery.write(tid, &[(RemotePtr(CODE), code)])?;
    let mut back = vec![0; code.len()];
    nursery.read(tid, RemotePtr(CODE), &mut back)?;
    ensure(back == code, "code")
}

fn last(tid: Tid) -> Final {
    Final {
        tid,
        regs: Regs { ip: CODE, cs: 0x33, ss: 0x2b, flags: 0x202, orig_ax: u64::MAX, ..Regs::default() },
        xstate: Vec::new(),
        signal_mask: 0,
        resume: Resume::Plain,
        stopped: None,
    }
}

fn field(tid: Tid, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Waits until a task sleeps in `pause`.
fn pauses(tid: Tid) -> Outcome<()> {
    let by = Instant::now() + Duration::from_secs(10);
    let path = format!("/proc/{tid}/syscall");
    while !fs::read_to_string(&path)?.starts_with("34 ") {
        ensure(Instant::now() < by, "it does not pause")?;
        std::thread::yield_now();
    }
    Ok(())
}

/// A tree of three processes and four more threads with chosen numbers, two zombies, all released.
pub(crate) fn nursery_makes_a_tree(mechanism: &dyn Mechanism) -> Outcome<()> {
    let numbers = free_numbers(1, 9);
    let [root, child, grandchild, t1, t2, t3, t4, exited, killed] = numbers[..] else {
        return Err("no free numbers".into());
    };
    let mut nursery =
        mechanism.nursery(&[0x1000_0000_0000..0x1000_0080_0000, 0x1000_0080_0000..0x1000_0100_0000], soon())?;
    ensure(nursery.service_region().start >= 0x1000_0100_0000, "avoided")?;
    nursery.birth(&[birth(Parent::Caller, Some(root))])?;
    let rest = [
        birth(Parent::Task(root), Some(child)),
        birth(Parent::Task(root), Some(exited)),
        birth(Parent::Task(root), Some(killed)),
        birth(Parent::Task(child), Some(grandchild)),
        thread(root, t1),
        thread(root, t2),
        thread(root, t3),
        thread(grandchild, t4),
    ];
    let born = nursery.birth(&rest)?;
    ensure(born == rest.map(|b| b.tid.unwrap_or(Tid(0))), "numbers")?;
    let alive = [root, child, grandchild, t1, t2, t3, t4];
    look_from_inside(nursery.as_mut(), &alive, &[root, child, grandchild])?;
    nursery.end(exited, End::Exit(5))?;
    nursery.end(killed, End::Signal(libc::SIGUSR2))?;
    reaped_by(nursery.as_mut(), root, exited, 5 << 8)?;
    for process in [root, child, grandchild] {
        put_code(nursery.as_mut(), process, &PAUSE)?;
    }
    let region = nursery.service_region();
    nursery.finish(&[t4, grandchild, child, t3, t2, t1, root].map(last))?;
    for process in [root, child, grandchild] {
        let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
        let ours = format!("{:x}-", region.start);
        ensure(!maps.lines().any(|line| line.starts_with(&ours)), "unmapped")?;
    }
    nursery.release()?;
    for tid in alive {
        pauses(tid)?;
        ensure(field(tid, "TracerPid").as_deref() == Some("0"), "traced")?;
        ensure(field(tid, "SigBlk").as_deref() == Some("0000000000000000"), "mask")?;
    }
    ensure(field(killed, "State").is_some_and(|s| s.starts_with('Z')), "zombie")?;
    ensure(field(t4, "Tgid") == Some(grandchild.to_string()), "thread")?;
    for process in [grandchild, child, root] {
        kill(Raw::from_raw(process.0), Signal::SIGKILL)?;
    }
    let root = Raw::from_raw(root.0);
    ensure(waitpid(root, None)? == WaitStatus::Signaled(root, Signal::SIGKILL, false), "end")
}

/// Each task finds itself where it should be.
fn look_from_inside(nursery: &mut dyn Nursery, all: &[Tid], line: &[Tid]) -> Outcome<()> {
    let mut batch = Batch::new();
    batch.call(libc::SYS_gettid, &[]);
    batch.call(libc::SYS_getppid, &[]);
    let work: Vec<_> = all.iter().map(|tid| (*tid, batch.clone())).collect();
    let replies = nursery.run(&work)?;
    let by_tid: BTreeMap<Tid, _> = all.iter().copied().zip(&replies).collect();
    for (tid, replies) in &by_tid {
        ensure(replies.result(0) == Some(i64::from(tid.0)), "gettid")?;
    }
    for pair in line.windows(2) {
        let parent = by_tid.get(&pair[1]).and_then(|r| r.result(1));
        ensure(parent == Some(i64::from(pair[0].0)), "getppid")?;
    }
    Ok(())
}

fn reaped_by(nursery: &mut dyn Nursery, parent: Tid, zombie: Tid, status: u64) -> Outcome<()> {
    let mut batch = Batch::new();
    let room = batch.room(8);
    batch.call(libc::SYS_wait4, &[zombie.0.into(), Arg::Data(room), libc::WNOHANG.into(), 0.into()]);
    let replies = nursery.run(&[(parent, batch)])?;
    let reply = replies.first().ok_or("no reply")?;
    ensure(reply.result(0) == Some(i64::from(zombie.0)), "reaped")?;
    ensure(reply.word(room) == Some(status), "status")
}

/// Nothing is left of a nursery that is given up.
pub(crate) fn nursery_dies_when_dropped(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut nursery = mechanism.nursery(&[], soon())?;
    let root = nursery.birth(&[birth(Parent::Caller, None)])?;
    let root = *root.first().ok_or("no root")?;
    let sibling = nursery.birth(&[birth(Parent::CallersParent, None)])?;
    let children = nursery.birth(&[birth(Parent::Task(root), None), birth(Parent::Task(root), None)])?;
    let mut all = vec![root];
    all.extend(children);
    drop(nursery);
    // The sibling is our parent's child: a zombie until that reaps it.
    let state = field(*sibling.first().ok_or("no sibling")?, "State");
    ensure(state.is_none_or(|s| s.starts_with('Z')), "sibling")?;
    for tid in all {
        let by = Instant::now() + Duration::from_secs(10);
        while Path::new(&format!("/proc/{tid}")).exists() {
            ensure(Instant::now() < by, "a task is left")?;
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// A thread goes on in a timed call with what remains of it.
pub(crate) fn timed_call_begins_again(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut nursery = mechanism.nursery(&[], soon())?;
    let root = nursery.birth(&[birth(Parent::Caller, None)])?;
    let root = *root.first().ok_or("no root")?;
    put_code(nursery.as_mut(), root, &EXIT)?;
    let mut state = last(root);
    // poll(NULL, 0, 1000) with 30 ms left.
    state.regs.ip = CODE + 2;
    state.regs.dx = 1000;
    state.regs.orig_ax = 7;
    state.regs.ax = (-516i64).cast_unsigned();
    state.resume = Resume::Timed { nr: 7, args: [0, 0, 30, 0, 0, 0], scratch: None };
    let begin = Instant::now();
    nursery.finish(&[state])?;
    nursery.release()?;
    let raw = Raw::from_raw(root.0);
    ensure(waitpid(raw, None)? == WaitStatus::Exited(raw, 7), "exit code")?;
    ensure(begin.elapsed() >= Duration::from_millis(30), "too short")
}

/// A process that is released in a group stop with a thread in a timed call, its parent not told of it; and one whose
/// leader has ended.
pub(crate) fn stopped_and_leaderless(mechanism: &dyn Mechanism) -> Outcome<()> {
    let numbers = free_numbers(2, 5);
    let [root, stopped, thread_of_stopped, leaderless, survivor] = numbers[..] else {
        return Err("no free numbers".into());
    };
    let mut nursery = mechanism.nursery(&[], soon())?;
    nursery.birth(&[
        birth(Parent::Caller, Some(root)),
        birth(Parent::Task(root), Some(stopped)),
        thread(stopped, thread_of_stopped),
        birth(Parent::Task(root), Some(leaderless)),
        thread(leaderless, survivor),
    ])?;
    nursery.end(leaderless, End::Exit(0))?;
    put_code(nursery.as_mut(), root, &PAUSE)?;
    put_code(nursery.as_mut(), stopped, &PAUSE)?;
    put_code(nursery.as_mut(), survivor, &PAUSE)?;
    let stop = |mut state: Final| {
        state.stopped = Some(libc::SIGTSTP);
        state
    };
    let mut timed = last(thread_of_stopped);
    timed.regs = Regs { ip: CODE, orig_ax: 7, ax: (-516i64).cast_unsigned(), dx: 100_000, ..timed.regs };
    // Its own instruction is not at ip - 2 here, so it is put there: `syscall` is the sixth byte of the code.
    timed.regs.ip = CODE + 7;
    timed.resume = Resume::Timed { nr: 7, args: [0, 0, 100_000, 0, 0, 0], scratch: None };
    nursery.finish(&[last(survivor), stop(timed), stop(last(stopped))])?;
    let mut consume = Batch::new();
    let told = consume.room(128);
    let options = libc::WSTOPPED | libc::WNOHANG;
    let pid = 1.into();
    consume.call(libc::SYS_waitid, &[pid, stopped.0.into(), Arg::Data(told), options.into(), 0.into()]);
    let replies = nursery.run(&[(root, consume)])?;
    let seen = replies.first().and_then(|r| r.word(told + 24)).ok_or("waitid")?;
    // In an orphaned group (of a batch system, say) SIGTSTP stops nobody: it is SIGSTOP then.
    ensure([19, 20].contains(&(seen & 0xffff_ffff)), "stopped by SIGTSTP")?;
    nursery.finish(&[last(root)])?;
    nursery.release()?;
    let by = Instant::now() + Duration::from_secs(10);
    while !field(stopped, "State").is_some_and(|s| s.starts_with('T')) {
        ensure(Instant::now() < by, "stopped")?;
        std::thread::yield_now();
    }
    ensure(field(leaderless, "State").is_some_and(|s| s.starts_with('Z')), "leaderless")?;
    pauses(survivor)?;
    kill(Raw::from_raw(stopped.0), Signal::SIGCONT)?;
    pauses(stopped)?;
    for process in [stopped, leaderless, root] {
        kill(Raw::from_raw(process.0), Signal::SIGKILL)?;
    }
    waitpid(Raw::from_raw(root.0), None)?;
    Ok(())
}
