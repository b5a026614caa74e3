//! States of programs that a freeze meets.

use std::time::{Duration, Instant};

use hdcr_engine::batch::Batch;
use hdcr_engine::ids::{Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::{Deadline, Frozen, Mechanism, MechanismError, Queue, Scope, Stand};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid as Raw;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid as Process, PidfdFlags, pidfd_open};

use super::scene::{Scene, state_of};
use super::{ensure, freeze, soon};
use crate::guests::Outcome;

fn run_getpid(frozen: &mut dyn Frozen, tids: &[Tid]) -> Outcome<()> {
    let mut batch = Batch::new();
    batch.call(libc::SYS_gettid, &[]);
    let work: Vec<_> = tids.iter().map(|tid| (*tid, batch.clone())).collect();
    for (tid, replies) in tids.iter().zip(frozen.run(&work)?) {
        ensure(replies.results == [i64::from(tid.0)], "gettid")?;
    }
    Ok(())
}

fn send(pid: Pid, signal: Signal) -> Outcome<()> {
    Ok(kill(Raw::from_raw(pid.0), signal)?)
}

/// Pending signals are seen and stay; one that comes while frozen is delivered once, afterwards.
pub(crate) fn pending_signals_stay(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut scene = Scene::start("pending")?;
    let tid = scene.pid.leader();
    let mut frozen = freeze(mechanism, scene.pid)?;
    let signal = |info: &[u8; 128]| i32::from_le_bytes([info[0], info[1], info[2], info[3]]);
    let own: Vec<i32> = frozen.pending(tid, Queue::Thread)?.iter().map(signal).collect();
    let shared: Vec<i32> = frozen.pending(tid, Queue::Shared)?.iter().map(signal).collect();
    ensure(own == [libc::SIGUSR1], "thread queue")?;
    ensure(shared == [libc::SIGRTMIN(); 2], "shared queue")?;
    ensure(frozen.signal_mask(tid)? & (1 << (libc::SIGUSR1 - 1)) != 0, "mask")?;
    send(scene.pid, Signal::SIGUSR2)?;
    run_getpid(frozen.as_mut(), &[tid])?;
    ensure(frozen.pending(tid, Queue::Shared)?.len() == 3, "still pending")?;
    frozen.thaw()?;
    scene.tell()?;
    scene.ends_well()
}

/// Whether a task stands still: for a tracer, or for the kernel module.
fn stands(tid: i32) -> bool {
    matches!(state_of(tid), Ok('t' | 'D'))
}

/// A whole tree, parents first; left stopped, it stops; killed, it dies.
pub(crate) fn whole_tree(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut scene = Scene::start("tree")?;
    let mut frozen = freeze(mechanism, scene.pid)?;
    let processes = frozen.processes().to_vec();
    ensure(processes.len() == 4 && processes[0].pid == scene.pid, "processes")?;
    ensure(processes[3].pid.0 == scene.said, "parents first")?;
    let tids: Vec<Tid> = processes.iter().flat_map(|p| p.threads.clone()).collect();
    ensure(tids.len() == 7, "threads")?;
    run_getpid(frozen.as_mut(), &tids)?;
    frozen.leave_stopped()?;
    scene.comes_to('T')?;
    let by = soon();
    for process in &processes {
        send(process.pid, Signal::SIGCONT)?;
        while state_of(process.pid.0)? == 'T' {
            ensure(Instant::now() < by.0, "it does not go on")?;
            std::thread::yield_now();
        }
    }
    scene.comes_to('S')?;
    let below = mechanism.freeze(Scope::Below(scene.pid), soon())?;
    ensure(below.processes().len() == 3, "below")?;
    ensure(stands(processes[1].pid.0), "frozen below")?;
    below.kill()?;
    ensure(matches!(state_of(processes[1].pid.0), Ok('Z') | Err(_)), "killed below")?;
    scene.tell()?;
    scene.ends_well()
}

/// A stopped job is seen as such, runs batches, and stays stopped until it is continued.
pub(crate) fn stopped_job_stays_stopped(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut scene = Scene::start("stopped")?;
    scene.comes_to('T')?;
    for _ in 0..3 {
        let mut frozen = freeze(mechanism, scene.pid)?;
        ensure(frozen.stand(scene.pid.leader())? == Stand::Stopped(libc::SIGTSTP), "stand")?;
        run_getpid(frozen.as_mut(), &[scene.pid.leader()])?;
        frozen.thaw()?;
        scene.comes_to('T')?;
    }
    send(scene.pid, Signal::SIGCONT)?;
    scene.tell()?;
    scene.ends_well()
}

/// A program that is in `vfork` most of the time is stopped every time; one that stays in it is let be, and its other thread
/// runs meanwhile.
pub(crate) fn vfork_in_progress(mechanism: &dyn Mechanism) -> Outcome<()> {
    let scene = Scene::start("vforks")?;
    for _ in 0..30 {
        let mut frozen = freeze(mechanism, scene.pid)?;
        run_getpid(frozen.as_mut(), &[scene.pid.leader()])?;
        frozen.thaw()?;
    }
    ensure(matches!(scene.state()?, 'S' | 'R' | 'D'), "it lives")?;
    let mut scene = Scene::start("vfork_waits")?;
    let threads = std::fs::read_dir(format!("/proc/{}/task", scene.pid))?;
    let names = threads.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let other = names.filter_map(|name| name.parse().ok()).map(Tid).find(|tid| *tid != scene.pid.leader());
    let other = other.ok_or("no thread")?;
    let before = run_time(scene.pid, other)?;
    let soon = Deadline(Instant::now() + Duration::from_millis(1500));
    match mechanism.freeze(Scope::Tree(scene.pid), soon) {
        Err(MechanismError::Late { tid, .. }) => ensure(tid == scene.pid.leader(), "who is late")?,
        other => return Err(format!("not late: {other:?}").into()),
    }
    // Let go only at the end, it would have run for some microseconds.
    ensure(run_time(scene.pid, other)? > before + 20_000_000, "it stood still for a thread that does not stop")?;
    scene.tell()?;
    // It stops when its child is gone, for it is still attached; whoever freezes next lets it go, perhaps to its end.
    drop(mechanism.freeze(Scope::Tree(scene.pid), super::soon()));
    scene.ends_well()
}

/// A zombie is a process without threads; a leader that has ended is not among the threads.
pub(crate) fn the_dead(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut scene = Scene::start("zombie")?;
    let frozen = freeze(mechanism, scene.pid)?;
    let zombie = frozen.processes().get(1).ok_or("no zombie")?;
    ensure(zombie.zombie && zombie.threads.is_empty(), "zombie")?;
    frozen.thaw()?;
    scene.tell()?;
    scene.ends_well()?;
    let mut scene = Scene::start("dead_leader")?;
    let mut frozen = freeze(mechanism, scene.pid)?;
    let process = frozen.processes().first().ok_or("no process")?.clone();
    ensure(!process.zombie && process.threads.len() == 1, "one thread")?;
    ensure(process.threads[0] != scene.pid.leader(), "not the leader")?;
    run_getpid(frozen.as_mut(), &process.threads)?;
    frozen.descriptor(scene.pid, hdcr_engine::ids::Fd(1))?;
    frozen.thaw()?;
    scene.tell()?;
    scene.ends_well()
}

/// Programs that leave no signal unused, and one whose only child dies meanwhile.
pub(crate) fn signals_all_taken(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut scene = Scene::start("catches_all")?;
    for _ in 0..10 {
        let mut frozen = freeze(mechanism, scene.pid)?;
        run_getpid(frozen.as_mut(), &[scene.pid.leader()])?;
        frozen.thaw()?;
    }
    scene.tell()?;
    scene.ends_well()?;
    let mut scene = Scene::start("blocks_all")?;
    let mut frozen = freeze(mechanism, scene.pid)?;
    let child = frozen.processes().get(1).ok_or("no child")?.pid;
    run_getpid(frozen.as_mut(), &[scene.pid.leader()])?;
    send(scene.pid, Signal::SIGURG)?;
    send(child, Signal::SIGKILL)?;
    run_getpid(frozen.as_mut(), &[scene.pid.leader()])?;
    frozen.thaw()?;
    scene.tell()?;
    scene.ends_well()
}

/// A thread that is stopped in an rseq critical section goes on at its abort handler, every time.
pub(crate) fn rseq_sections_abort(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut scene = Scene::start("rseq")?;
    let handler = u64::try_from(scene.said)?;
    let mut stops = 0;
    let mut before = None;
    for _ in 0..100 {
        let mut frozen = freeze(mechanism, scene.pid)?;
        let threads = frozen.processes().first().ok_or("no process")?.threads.clone();
        let worker = *threads.get(1).ok_or("no thread")?;
        let regs = frozen.regs(worker)?;
        // Stopped again before it has run an instruction of its own, it would be counted twice.
        let inside = regs.ip == handler && before.replace(regs) != Some(regs);
        let registration = frozen.rseq(worker)?.ok_or("no rseq")?;
        let mut section = [0; 8];
        frozen.read(scene.pid, RemotePtr(registration.at.0 + 8), &mut section)?;
        ensure(!inside || section == [0; 8], "section still named")?;
        stops += usize::from(inside);
        run_getpid(frozen.as_mut(), &threads)?;
        let ran = run_time(scene.pid, worker)?;
        frozen.thaw()?;
        let by = soon();
        while run_time(scene.pid, worker)? < ran + 50_000 {
            ensure(Instant::now() < by.0, "it does not run")?;
            std::thread::yield_now();
        }
    }
    scene.tell_number(stops)?;
    scene.ends_well()
}

/// How long a thread has run, in nanoseconds.
fn run_time(pid: Pid, tid: Tid) -> Outcome<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat"))?;
    Ok(text.split(' ').next().ok_or("schedstat")?.parse()?)
}

/// Who may not be frozen is told, and nothing happens to it.
pub(crate) fn refusals(mechanism: &dyn Mechanism) -> Outcome<()> {
    let own = Pid(i32::try_from(std::process::id())?);
    for scope in [Scope::Tree(own), Scope::Tree(Pid(1))] {
        let refused = mechanism.freeze(scope, soon());
        ensure(matches!(refused, Err(MechanismError::HoldsCaller { .. })), "caller")?;
    }
    let nobody = mechanism.freeze(Scope::Tree(Pid(4_000_000)), soon());
    ensure(matches!(nobody, Err(MechanismError::Gone { .. })), "gone")?;
    let mut scene = Scene::start("filtered")?;
    scene.comes_to('S')?;
    let mut frozen = freeze(mechanism, scene.pid)?;
    let refused = run_getpid(frozen.as_mut(), &[scene.pid.leader()]);
    ensure(refused.is_err(), "filtered")?;
    frozen.thaw()?;
    scene.tell()?;
    scene.ends_well()
}

/// Frozen by one, a process is refused to another.
pub(crate) fn held_by_another(mechanism: &dyn Mechanism, other: &(dyn Fn(Pid) -> bool + Sync)) -> Outcome<()> {
    let mut scene = Scene::start("zombie")?;
    let frozen = freeze(mechanism, scene.pid)?;
    let pid = scene.pid;
    let refused = std::thread::scope(|scope| scope.spawn(move || other(pid)).join());
    ensure(matches!(refused, Ok(true)), "traced")?;
    frozen.thaw()?;
    scene.tell()?;
    scene.ends_well()
}

/// Programs that make threads, processes and new images all the time.
pub(crate) fn storms(mechanism: &dyn Mechanism) -> Outcome<()> {
    for (name, times) in [("threads_storm", 40), ("forks_storm", 40), ("execs_storm", 40), ("thread_execs_storm", 40)] {
        let mut scene = Scene::start(name)?;
        for _ in 0..times {
            let mut frozen = freeze(mechanism, scene.pid)?;
            let processes = frozen.processes().to_vec();
            let tids: Vec<Tid> = processes.iter().flat_map(|p| p.threads.clone()).collect();
            ensure(tids.iter().all(|tid| stands(tid.0)), "all stopped")?;
            run_getpid(frozen.as_mut(), &tids).map_err(|error| format!("{name}: {error}"))?;
            frozen.thaw()?;
        }
        if !name.ends_with("execs_storm") {
            scene.tell()?;
            scene.ends_well().or_else(|error| if name == "forks_storm" { Ok(()) } else { Err(error) })?;
        }
    }
    Ok(())
}

/// A wait that stops end has its time once, however often it is frozen, and the whole of it.
pub(crate) fn waits_end(mechanism: &dyn Mechanism) -> Outcome<()> {
    let kinds = ["epoll", "epoll_pwait", "epoll_pwait2", "signal", "sem", "socket"];
    kinds.iter().try_for_each(|kind| ends_while_frozen(mechanism, kind).map_err(|e| format!("{kind}: {e}").into()))
}

/// Freezes it again and again, more often than its time is long.
fn ends_while_frozen(mechanism: &dyn Mechanism, kind: &str) -> Outcome<()> {
    /// Some times as many as fit into its time.
    const MOST: u32 = 60;
    const APART: Duration = Duration::from_millis(50);
    let scene = Scene::that_waits(kind)?;
    let exited = |wait: Duration| -> Outcome<bool> {
        let handle = pidfd_open(Process::from_raw(scene.pid.0).ok_or("pid")?, PidfdFlags::empty())?;
        let mut ends = [PollFd::new(&handle, PollFlags::IN)];
        Ok(poll(&mut ends, Some(&wait.try_into()?))? > 0)
    };
    let mut freezes = 0;
    while !exited(APART)? {
        freezes += 1;
        ensure(freezes < MOST, "it does not end")?;
        let mut frozen = match mechanism.freeze(Scope::Tree(scene.pid), soon()) {
            Err(MechanismError::Gone { .. }) => break,
            other => other?,
        };
        let regs = frozen.regs(scene.pid.leader())?;
        ensure(regs.ax >> 60 == 0 || regs.ax.cast_signed() < 0, "a number that is none")?;
        if freezes % 2 == 0 {
            run_getpid(frozen.as_mut(), &[scene.pid.leader()])?;
        }
        frozen.thaw()?;
    }
    scene.ends_well()
}

/// A call like the one before it has its whole time, though that one was put back and slept no more.
pub(crate) fn waits_begin_anew(mechanism: &dyn Mechanism) -> Outcome<()> {
    let mut scene = Scene::that_waits("anew")?;
    scene.comes_to('S')?;
    let frozen = freeze(mechanism, scene.pid)?;
    // What it waits for is there when it goes on.
    scene.tell()?;
    frozen.thaw()?;
    for _ in 0..200 {
        match mechanism.freeze(Scope::Tree(scene.pid), soon()) {
            Err(MechanismError::Gone { .. }) => break,
            other => other?.thaw()?,
        }
        if scene.state()? == 'Z' {
            break;
        }
        poll(&mut [], Some(&Duration::from_millis(20).try_into()?))?;
    }
    scene.ends_well()
}
