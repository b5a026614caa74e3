//! The end of a nursery: last states, deaths on purpose, and death of all.
//!
//! The service region leaves each address space by the last call of its last task: registers set by hand to a `syscall`
//! instruction in the region, `PTRACE_SYSCALL` twice. At the exit stop nothing of ours is mapped, and the kernel makes no
//! restart at such a stop, so interrupted calls are put before their instruction by hand.
//!
//! Then threads go into their timed calls (the clock runs from there), then stopped processes into their group stop.

use hdcr_engine::batch::{Arg, Batch};
use hdcr_engine::ids::{Pid, RemotePtr, Tid};
use hdcr_engine::mechanism::{End, Final, MechanismError, Nursery as _, Result, Resume, SigInfo};
use hdcr_engine::regs::Regs;
use hdcr_sys::ptrace::EVENT_STOP;
use hdcr_sys::wait::Seen;

use crate::calls::Patience;
use crate::freeze::late;
use crate::grace;
use crate::nursery::PtraceNursery;
use crate::registers::{Interrupted, NO_CALL, RestartBlock, before_call, interrupted, restarted_by_hand};
use crate::release::bury;
use crate::rendezvous::{any_stop, bit, syscall_stop};
use crate::tasks;

const MUNMAP: u64 = 11;
const RT_TGSIGQUEUEINFO: u64 = 297;
const EVERY_SIGNAL: u64 = u64::MAX;

/// Puts the last states in, in the order given.
pub(crate) fn all(nursery: &mut PtraceNursery, finals: &[Final]) -> Result<()> {
    for (index, last) in finals.iter().enumerate() {
        let space = nursery.task(last.tid)?.space;
        // Somebody else may still need the region in this address space: later in this list, or in a later call.
        let needed = nursery.tasks.iter().any(|(tid, task)| {
            let done = || finals.iter().take(index + 1).any(|f| f.tid == *tid);
            task.space == space && !task.finished && !task.ended && !done()
        });
        last_state(nursery, last, if needed { Region::Stays } else { Region::Goes })?;
        nursery.task_mut(last.tid)?.finished = true;
        nursery.finished.push(last.tid);
    }
    for last in finals {
        if let Resume::Timed { nr, args, scratch } = last.resume {
            begin_timed(nursery, last, (nr, args), scratch)?;
        }
    }
    for last in finals {
        // Only now the mask: until here no signal could come in between.
        nursery.calls.set_signal_mask(last.tid, last.signal_mask)?;
    }
    let mut stopped: Vec<Pid> = Vec::new();
    for last in finals {
        let process = nursery.task(last.tid)?.process;
        if let Some(signal) = last.stopped
            && !stopped.contains(&process)
        {
            stop_process(nursery, finals, process, signal)?;
            stopped.push(process);
        }
        if last.stopped.is_some() {
            nursery.task_mut(last.tid)?.stopped = true;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Region {
    Stays,
    Goes,
}

fn last_state(nursery: &mut PtraceNursery, last: &Final, region: Region) -> Result<()> {
    let tid = last.tid;
    if !last.xstate.is_empty() {
        nursery.calls.set_xstate(tid, &last.xstate)?;
    }
    nursery.calls.set_signal_mask(tid, EVERY_SIGNAL)?;
    let process = nursery.task(tid)?.process;
    for info in std::mem::take(&mut nursery.task_mut(tid)?.strangers) {
        queue_again(nursery, process, tid, &info)?;
    }
    if region == Region::Goes {
        let range = nursery.service_region();
        let args = [range.start, range.end - range.start, 0, 0, 0, 0];
        let result = call_by_hand(nursery, tid, MUNMAP, args)?;
        refuse_error("unmapping the service region", tid, result)?;
    }
    let regs = restarted_by_hand(&last.regs, RestartBlock::Lost);
    nursery.calls.set_registers(tid, &regs)
}

fn refuse_error(operation: &'static str, tid: Tid, result: u64) -> Result<()> {
    match result.cast_signed() {
        errno @ -4095..0 => Err(MechanismError::System {
            operation,
            tid,
            source: std::io::Error::from_raw_os_error(i32::try_from(-errno).unwrap_or(0)),
        }),
        _ => Ok(()),
    }
}

/// Queues a signal of the program that came at a rendezvous.
fn queue_again(nursery: &PtraceNursery, process: Pid, tid: Tid, info: &SigInfo) -> Result<()> {
    let at = nursery.scratch(info)?;
    let [a, b, c, d, ..] = *info;
    let signal = i32::from_le_bytes([a, b, c, d]);
    let word = |n: i32| i64::from(n).cast_unsigned();
    let args = [word(process.0), word(tid.0), word(signal), at, 0, 0];
    let result = call_by_hand(nursery, tid, RT_TGSIGQUEUEINFO, args)?;
    refuse_error("queueing a signal again", tid, result)
}

/// Makes one call in a task whose signals are all blocked; it stands at the exit stop afterwards.
fn call_by_hand(nursery: &PtraceNursery, tid: Tid, nr: u64, args: [u64; 6]) -> Result<u64> {
    let task = nursery.task(tid)?;
    let [di, si, dx, r10, r8, r9] = args;
    let regs =
        Regs { ip: nursery.syscall_instruction(), ax: nr, orig_ax: NO_CALL, di, si, dx, r10, r8, r9, ..task.born };
    nursery.calls.set_registers(tid, &regs)?;
    for _ in 0..2 {
        nursery.calls.cont_to_syscall(tid, 0)?;
        syscall_stop(&nursery.calls, task.process, tid, nursery.by)?;
    }
    Ok(nursery.calls.registers(tid)?.ax)
}

/// Lets a thread begin its timed call under a pending interrupt: the kernel makes a restart block and stops.
fn begin_timed(
    nursery: &mut PtraceNursery,
    last: &Final,
    (nr, [di, si, dx, r10, r8, r9]): (u64, [u64; 6]),
    scratch: Option<(RemotePtr, [u8; 16])>,
) -> Result<()> {
    let tid = last.tid;
    let process = nursery.task(tid)?.process;
    let mut before = [0; 16];
    if let Some((at, bytes)) = scratch {
        nursery.read(tid, at, &mut before)?;
        nursery.write(tid, &[(at, &bytes)])?;
    }
    let begin = Regs { di, si, dx, r10, r8, r9, ..before_call(&last.regs, nr) };
    let calls = nursery.calls.clone();
    calls.set_registers(tid, &begin)?;
    calls.cont_to_syscall(tid, 0)?;
    syscall_stop(&calls, process, tid, nursery.by)?;
    calls.interrupt(tid)?;
    calls.cont(tid, 0)?;
    stop_inside(nursery, process, tid)?;
    let ax = calls.registers(tid)?.ax;
    let mut regs = Regs { ax, orig_ax: nr, ..last.regs };
    if interrupted(&regs) == Interrupted::No {
        // Its condition held already: the true result.
        regs.orig_ax = NO_CALL;
    }
    calls.set_registers(tid, &regs)?;
    if let Some((at, _)) = scratch {
        nursery.write(tid, &[(at, &before)])?;
    }
    Ok(())
}

/// Waits for the stop that an interrupt asked for.
fn stop_inside(nursery: &PtraceNursery, process: Pid, tid: Tid) -> Result<i32> {
    loop {
        let status = any_stop(&nursery.calls, process, tid, nursery.by)?;
        if status >> 8 == EVENT_STOP {
            return Ok(status & 0xff);
        }
        nursery.calls.interrupt(tid)?;
        nursery.calls.cont(tid, 0)?;
    }
}

/// Brings all threads of a process into a group stop. By its own signal if that would stop it now, else `SIGSTOP`.
fn stop_process(nursery: &PtraceNursery, finals: &[Final], process: Pid, signal: i32) -> Result<()> {
    let of_it = |tid: Tid| nursery.tasks.get(&tid).is_some_and(|t| t.process == process);
    let mut threads = finals.iter().filter(|last| of_it(last.tid));
    let Some(first) = threads.next() else {
        return Ok(());
    };
    let status = tasks::status(process, first.tid).unwrap_or_default();
    let deaf = first.signal_mask | status.caught | status.ignored;
    let wanted = if deaf & bit(signal) == 0 { signal } else { libc::SIGSTOP };
    deliver_stop(nursery, process, first.tid, wanted)?;
    for other in threads {
        nursery.calls.cont(other.tid, 0)?;
        let signal = stop_inside(nursery, process, other.tid)?;
        if signal == libc::SIGTRAP {
            return Err(late("go into a group stop", process, other.tid));
        }
    }
    Ok(())
}

fn deliver_stop(nursery: &PtraceNursery, process: Pid, tid: Tid, wanted: i32) -> Result<()> {
    let calls = &nursery.calls;
    for signal in [wanted, libc::SIGSTOP] {
        calls.signal_thread(process, tid, libc::SIGSTOP)?;
        calls.cont(tid, 0)?;
        // The delivery stop of that SIGSTOP; others (an interrupt that was pending) are passed.
        let mut status = any_stop(calls, process, tid, nursery.by)?;
        while status >> 8 != 0 {
            calls.cont(tid, 0)?;
            status = any_stop(calls, process, tid, nursery.by)?;
        }
        // A stop signal of a terminal does nothing in an orphaned group: then the interrupt stops the thread before it
        // runs another instruction.
        calls.interrupt(tid)?;
        calls.cont(tid, signal)?;
        if stop_inside(nursery, process, tid)? != libc::SIGTRAP {
            return Ok(());
        }
    }
    Err(late("go into a group stop", process, tid))
}

/// Ends a process, or the leader alone when other threads live.
pub(crate) fn end(nursery: &mut PtraceNursery, tid: Tid, end: End) -> Result<()> {
    let process = nursery.task(tid)?.process;
    let alone = nursery.threads_of(process).len() == 1;
    match end {
        End::Exit(code) => {
            let mut batch = Batch::new();
            if alone {
                batch.call(libc::SYS_exit_group, &[code.into()]);
                nursery.run_to_death(tid, &batch)?;
            } else {
                batch.call(libc::SYS_exit, &[code.into()]);
                nursery.let_go_to_death(tid, &batch)?;
            }
        }
        End::Signal(signal) => die_by(nursery, process, tid, signal)?,
    }
    if alone {
        wait_for_death(nursery, process, tid)?;
        nursery.tasks.remove(&tid);
        return Ok(());
    }
    wait_for_zombie(nursery, process, tid)?;
    nursery.task_mut(tid)?.ended = true;
    Ok(())
}

fn die_by(nursery: &mut PtraceNursery, process: Pid, tid: Tid, signal: i32) -> Result<()> {
    if signal == libc::SIGKILL {
        return nursery.calls.kill(process, signal);
    }
    let mut batch = Batch::new();
    // No core file, whatever the limits and the pattern are.
    batch.call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), 0.into()]);
    let action = batch.room(32);
    batch.call(libc::SYS_rt_sigaction, &[signal.into(), Arg::Data(action), 0.into(), 8.into()]);
    nursery.run_all(&[(tid, batch)])?;
    nursery.calls.set_signal_mask(tid, 0)?;
    nursery.calls.cont(tid, signal)
}

/// Waits until a process is dead and hands it on to its parent; a child of the tool stays for the tool to reap.
fn wait_for_death(nursery: &PtraceNursery, process: Pid, tid: Tid) -> Result<()> {
    let mut patience = Patience::until(nursery.by);
    loop {
        match nursery.calls.look(tid) {
            Ok(Seen::Exited(_) | Seen::Killed(_)) => {
                bury(&nursery.calls, tid);
                return Ok(());
            }
            Err(MechanismError::Gone { .. }) => return Ok(()),
            Err(error) => return Err(error),
            Ok(Seen::Nothing | Seen::Stopped(_)) => {
                if !patience.wait() {
                    return Err(late("die", process, tid));
                }
            }
        }
    }
}

/// Waits until a leader whose threads live has ended; nobody can collect it.
fn wait_for_zombie(nursery: &PtraceNursery, process: Pid, tid: Tid) -> Result<()> {
    let mut patience = Patience::until(nursery.by);
    while tasks::state(process, tid).is_some_and(|state| !tasks::dead(state)) {
        if !patience.wait() {
            return Err(late("die", process, tid));
        }
    }
    Ok(())
}

/// Kills and reaps everything.
pub(crate) fn kill_all(nursery: &mut PtraceNursery) {
    let calls = nursery.calls.clone();
    let tasks = std::mem::take(&mut nursery.tasks);
    let strays = std::mem::take(&mut nursery.strays);
    let tids: Vec<Tid> = tasks.keys().copied().chain(strays).collect();
    for tid in &tids {
        let process = tasks.get(tid).map_or(Pid(tid.0), |task| task.process);
        // A dead leader takes no signal for its threads, so each is killed by itself.
        calls.signal_thread(process, *tid, libc::SIGKILL).ok();
    }
    let mut patience = Patience::until(grace());
    let mut left = tids;
    while !left.is_empty() {
        left.retain(|tid| match calls.look(*tid) {
            Ok(Seen::Exited(_) | Seen::Killed(_)) => {
                calls.collect(*tid);
                false
            }
            Ok(Seen::Nothing | Seen::Stopped(_)) => true,
            Err(_) => false,
        });
        if !left.is_empty() && !patience.wait() {
            tracing::warn!(?left, "tasks of a nursery did not die in time");
            return;
        }
    }
}
