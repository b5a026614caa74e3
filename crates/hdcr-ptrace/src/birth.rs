//! Making tasks: the first ones are clones of the tool itself, all others are cloned by their parents in batches.
//!
//! `CLONE_PTRACE` in a traced parent attaches the child at its birth, with the parent's options (so `EXITKILL`, too), and
//! without a stop of the parent. A clone of the tool watches the tool through a pidfd until it is attached.

use std::os::fd::AsFd;

use hdcr_engine::batch::{Arg, Batch};
use hdcr_engine::ids::{Pid, Tid};
use hdcr_engine::mechanism::{Birth, MechanismError, Parent, Result};
use hdcr_sys::birth::{CloneArguments, clone_waiting};
use hdcr_sys::ptrace::EVENT_STOP;
use nix::errno::Errno;

use crate::calls::failure;
use crate::nursery::{OPTIONS, PtraceNursery, mask};
use crate::rendezvous::any_stop;

fn bits(flags: libc::c_int) -> u64 {
    u64::try_from(flags).unwrap_or(0)
}

/// Makes all tasks; a parent may be one of them.
pub(crate) fn all(nursery: &mut PtraceNursery, births: &[Birth]) -> Result<Vec<Tid>> {
    let mut born: Vec<Option<Tid>> = vec![None; births.len()];
    let mut left: Vec<usize> = (0..births.len()).collect();
    while !left.is_empty() {
        let (ready, later): (Vec<usize>, Vec<usize>) = left.iter().partition(|index| {
            births.get(**index).is_some_and(|birth| match birth.parent {
                Parent::Caller | Parent::CallersParent => true,
                Parent::Task(tid) => nursery.tasks.contains_key(&tid),
            })
        });
        if ready.is_empty() {
            let orphan = later.first().and_then(|index| births.get(*index));
            return Err(MechanismError::Gone {
                operation: "cloning in its parent",
                tid: orphan.and_then(|birth| birth.tid).unwrap_or(Tid(0)),
            });
        }
        generation(nursery, births, &ready, &mut born)?;
        left = later;
    }
    Ok(born.into_iter().flatten().collect())
}

/// Makes the tasks whose parents are there.
fn generation(nursery: &mut PtraceNursery, births: &[Birth], ready: &[usize], born: &mut [Option<Tid>]) -> Result<()> {
    let mut by_parent: Vec<(Tid, Vec<usize>)> = Vec::new();
    for &index in ready {
        let Some(birth) = births.get(index) else {
            continue;
        };
        match birth.parent {
            Parent::Caller => note(born, index, clone_of_tool(nursery, birth, 0)?),
            Parent::CallersParent => {
                let flag = bits(libc::CLONE_PARENT);
                note(born, index, clone_of_tool(nursery, birth, flag)?);
            }
            Parent::Task(tid) => match by_parent.iter_mut().find(|(parent, _)| *parent == tid) {
                Some((_, indices)) => indices.push(index),
                None => by_parent.push((tid, vec![index])),
            },
        }
    }
    clone_in_parents(nursery, births, &by_parent, born)
}

fn note(born: &mut [Option<Tid>], index: usize, tid: Tid) {
    if let Some(place) = born.get_mut(index) {
        *place = Some(tid);
    }
}

/// Clones the tool, attaches to the clone and takes it in.
fn clone_of_tool(nursery: &mut PtraceNursery, birth: &Birth, flags: u64) -> Result<Tid> {
    let wanted = birth.tid.unwrap_or(Tid(0));
    // With CLONE_PARENT the clone ends with the tool's own signal to their common parent.
    let exit_signal = if flags == 0 { birth.exit_signal } else { 0 };
    let cloned = clone_waiting(birth.flags | flags, exit_signal, birth.tid.map(|tid| tid.0), nursery.guardian.as_fd());
    nursery.calls.steps.made_one();
    let tid = Tid(cloned.map_err(|errno| failure("cloning it", wanted, errno))?);
    let process = Pid(tid.0);
    let attached = nursery.calls.seize(tid, OPTIONS);
    if let Err(errno) = attached {
        nursery.calls.kill(process, libc::SIGKILL).ok();
        nursery.calls.collect(tid);
        return Err(failure("attaching to it", tid, errno));
    }
    nursery.strays.push(tid);
    nursery.calls.interrupt(tid)?;
    wait_for_birth(nursery, process, tid)?;
    nursery.calls.set_signal_mask(tid, mask())?;
    let space = nursery.next_space;
    nursery.next_space += 1;
    nursery.take_in(tid, process, space)?;
    let mut batch = Batch::new();
    batch.call(libc::SYS_close, &[nursery.guardian_number().into()]);
    nursery.run_all(&[(tid, batch)])?;
    Ok(tid)
}

fn wait_for_birth(nursery: &PtraceNursery, process: Pid, tid: Tid) -> Result<()> {
    loop {
        let status = any_stop(&nursery.calls, process, tid, nursery.by)?;
        if status >> 8 == EVENT_STOP {
            return Ok(());
        }
        nursery.calls.interrupt(tid)?;
        nursery.calls.cont(tid, 0)?;
    }
}

/// Clones in each parent all its children, in all parents at once.
fn clone_in_parents(
    nursery: &mut PtraceNursery,
    births: &[Birth],
    by_parent: &[(Tid, Vec<usize>)],
    born: &mut [Option<Tid>],
) -> Result<()> {
    let work: Vec<(Tid, Batch)> = by_parent
        .iter()
        .map(|(parent, indices)| {
            let mut batch = Batch::new();
            for birth in indices.iter().filter_map(|index| births.get(*index)) {
                add_clone(&mut batch, birth);
            }
            (*parent, batch)
        })
        .collect();
    let replies = nursery.run_all(&work)?;
    let mut first = Ok(());
    for (((parent, indices), replies), (_, batch)) in by_parent.iter().zip(replies).zip(&work) {
        for (&index, &result) in indices.iter().zip(&replies.results) {
            let (Some(birth), Ok(number)) = (births.get(index), i32::try_from(result)) else {
                continue;
            };
            if number > 0 {
                take_in_child(nursery, *parent, birth, Tid(number))?;
                note(born, index, Tid(number));
            }
        }
        if let Some((failed, errno)) = replies.failure(batch) {
            let birth = indices.get(failed).and_then(|index| births.get(*index));
            let wanted = birth.and_then(|birth| birth.tid).unwrap_or(*parent);
            let error = failure("cloning it", wanted, Errno::from_raw(errno));
            first = first.and(Err(error));
        }
    }
    first
}

fn take_in_child(nursery: &mut PtraceNursery, parent: Tid, birth: &Birth, tid: Tid) -> Result<()> {
    let parent = nursery.task(parent)?;
    let thread = birth.flags & bits(libc::CLONE_THREAD) != 0;
    let process = if thread { parent.process } else { Pid(tid.0) };
    let space = if birth.flags & bits(libc::CLONE_VM) != 0 {
        parent.space
    } else {
        nursery.next_space += 1;
        nursery.next_space - 1
    };
    nursery.strays.push(tid);
    wait_for_birth(nursery, process, tid)?;
    nursery.take_in(tid, process, space)
}

fn add_clone(batch: &mut Batch, birth: &Birth) {
    /// Offset of `set_tid` in `struct clone_args`.
    const SET_TID_AT: usize = 64;
    let mut flags = birth.flags | bits(libc::CLONE_PTRACE);
    if birth.tls != 0 {
        flags |= bits(libc::CLONE_SETTLS);
    }
    if birth.clear_tid != 0 {
        flags |= bits(libc::CLONE_CHILD_CLEARTID);
    }
    let arguments = CloneArguments {
        flags,
        child_tid: birth.clear_tid,
        exit_signal: u64::try_from(birth.exit_signal).unwrap_or(0),
        tls: birth.tls,
        set_tid_size: u64::from(birth.tid.is_some()),
        ..CloneArguments::default()
    };
    let at = batch.bytes(&arguments.to_bytes());
    if let Some(tid) = birth.tid {
        let number = batch.bytes(&tid.0.to_ne_bytes());
        batch.pointer(at + SET_TID_AT, number);
    }
    let len = u64::try_from(CloneArguments::LEN).unwrap_or(0);
    batch.call(libc::SYS_clone3, &[Arg::Data(at), len.into()]);
}
