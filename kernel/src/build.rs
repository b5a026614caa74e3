//! What each task of a restore does before its first instruction: it builds itself from the plan.
// SPDX-License-Identifier: GPL-2.0-only

use core::ffi::CStr;

use hdcr_layout::{Codec, DescriptorEntry, Mapping, MappingKind, PageRunEntry, SignalAction, Space, Task, Thread};
use xxhash_rust::xxh3::xxh3_64;

use crate::answer::{Errno, Result};
use crate::making::Crew;
use crate::restore::Plan;
use crate::table::Table;

/// The longest run.
const RUN: usize = 1 << 20;
const PAGE: u64 = 4096;

/// Builds the calling task, which is this one of the plan.
pub(crate) fn build(plan: &Plan, crew: &Crew, number: usize) -> Result<()> {
    let task = plan.tasks.get(number).ok_or(Errno::INVAL)?;
    if task.tid == task.tgid {
        process(plan, crew, task)?;
    }
    thread(plan, crew, number, task)
}

fn id_of(number: i32) -> u64 {
    u64::from(number.unsigned_abs())
}

/// Children are cloned while there is little to be copied, threads when all is there.
fn process(plan: &Plan, crew: &Crew, leader: &Task) -> Result<()> {
    crew.clear()?;
    let is_child = |task: &Task| task.ppid == leader.tid && task.tid == task.tgid;
    for (number, child) in plan.tasks.iter().enumerate().filter(|(_, task)| is_child(task)) {
        crew.process(number, child.tid, child.exit_signal.unsigned_abs())?;
    }
    space(plan, crew, leader)?;
    descriptors(plan, crew, leader)?;
    for action in plan.image.records::<SignalAction>(id_of(leader.tid))? {
        let SignalAction { handler, flags, restorer, mask, signal } = action?;
        // The actions of SIGKILL and SIGSTOP are nobody's to change.
        if signal != 9 && signal != 19 {
            crew.set_action(signal, &[handler, flags, restorer, mask]);
        }
    }
    let is_thread = |task: &Task| task.tgid == leader.tid && task.tid != leader.tid;
    for (number, thread) in plan.tasks.iter().enumerate().filter(|(_, task)| is_thread(task)) {
        crew.thread(number, thread.tid)?;
    }
    Ok(())
}

fn space(plan: &Plan, crew: &Crew, leader: &Task) -> Result<()> {
    let id = id_of(leader.tid);
    let space = plan.image.record::<Space>(id)?;
    // First, as a program cannot be changed while it is mapped.
    crew.set_program(plan.object(space.program)?)?;
    let mut files = Table::new();
    let mut special: Option<u64> = None;
    for mapping in plan.image.records::<Mapping>(id)? {
        let mapping = mapping?;
        if matches!(mapping.kind, MappingKind::Vdso | MappingKind::Vvar) {
            special = Some(special.map_or(mapping.start, |least| least.min(mapping.start)));
        } else {
            map(plan, crew, &mapping)?;
            if mapping.kind == MappingKind::PrivateFile {
                files.push((mapping.start, mapping.end))?;
            }
        }
    }
    if let Some(at) = special {
        crew.map_vdso(at)?;
    }
    fill(plan, crew, id, &files)?;
    crew.set_marks(&space.marks, &space.auxiliary.0)?;
    let folder = plan.folders.iter().find(|(folder, _)| *folder == space.folder).ok_or(Errno::INVAL)?;
    crew.set_folder(CStr::from_bytes_until_nul(&folder.1).map_err(|_| Errno::INVAL)?)
}

/// `MAP_SHARED`, `MAP_PRIVATE`, `MAP_GROWSDOWN`, `MAP_NORESERVE`, `MAP_STACK`; nothing else comes from an image.
const FLAGS: u32 = 0x1 | 0x2 | 0x100 | 0x4000 | 0x2_0000;

fn map(plan: &Plan, crew: &Crew, mapping: &Mapping) -> Result<()> {
    if mapping.map_flags & !FLAGS != 0 || mapping.prot & !7 != 0 || mapping.end >> 57 != 0 {
        return Err(Errno::INVAL);
    }
    let file = match mapping.kind {
        MappingKind::Anonymous => None,
        MappingKind::PrivateFile | MappingKind::SharedFile => Some((plan.object(mapping.object)?, mapping.offset)),
        MappingKind::SharedMemory | MappingKind::Vdso | MappingKind::Vvar => return Err(Errno::INVAL),
    };
    let length = mapping.end - mapping.start;
    crew.map(mapping.start, length, mapping.prot, u64::from(mapping.map_flags), file)
}

/// `files` are private mappings of files: elsewhere memory is zero already.
fn fill(plan: &Plan, crew: &Crew, id: u64, files: &[(u64, u64)]) -> Result<()> {
    let mut piece = Table::<u8>::filled(RUN)?;
    for run in plan.image.records::<PageRunEntry>(id)? {
        let run = run?;
        let length = usize::try_from(u64::from(run.pages) * PAGE).map_err(|_| Errno::INVAL)?;
        let piece = piece.get_mut(..length).ok_or(Errno::INVAL)?;
        match run.codec {
            Codec::Zero
                if files.iter().all(|(start, end)| run.address >= *end || run.address + length as u64 <= *start) =>
            {
                continue;
            }
            Codec::Zero => piece.fill(0),
            Codec::Plain if run.length as usize == length && run.skip == 0 => {
                plan.image.file.read(piece, run.offset)?;
                if xxh3_64(piece) != run.xxh3 {
                    return Err(Errno::INVAL);
                }
            }
            _ => return Err(Errno::INVAL),
        }
        crew.fill(run.address, piece)?;
    }
    Ok(())
}

fn descriptors(plan: &Plan, crew: &Crew, leader: &Task) -> Result<()> {
    let mut next = 0;
    for entry in plan.image.records::<DescriptorEntry>(id_of(leader.tid))? {
        let entry = entry?;
        let fd = u32::try_from(entry.fd).map_err(|_| Errno::INVAL)?;
        // By rising number, so that those below are taken or given back.
        if fd < next || entry.flags > 1 {
            return Err(Errno::INVAL);
        }
        crew.install(fd, plan.object(entry.object)?, entry.flags == 1)?;
        for gap in next..fd {
            crew.free_number(gap);
        }
        next = fd + 1;
    }
    Ok(())
}

fn thread(plan: &Plan, crew: &Crew, number: usize, task: &Task) -> Result<()> {
    let thread = plan.image.record::<Thread>(id_of(task.tid))?;
    let wide = [thread.blocked, thread.stack_at, thread.stack_size, thread.clear_tid, thread.robust_list, thread.rseq];
    let narrow = [thread.rseq_size, thread.rseq_signature, thread.stack_flags];
    crew.set_thread(number, &wide, &narrow, &task.comm)
}
