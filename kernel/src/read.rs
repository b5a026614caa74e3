//! What is read of a frozen scope: tasks, mappings, registers, memory.
// SPDX-License-Identifier: GPL-2.0-only

use hdcr_abi::{MappingRow, Mappings, Pages, RANGES, Range, Registers, Signals, TaskRow, Tasks, Waiting, register_set};

use crate::answer::{Errno, Result};
use crate::freeze::{Frozen, Member};
use crate::glue::{self, Facts, File, Memory};
use crate::plain;
use crate::table::Table;

/// The longest path that the kernel gives.
const NAME: usize = 4096;
/// Room for rows of mappings on their way to the caller.
const ROWS: usize = 64 << 10;
/// Memory on its way to a file.
const PIECE: usize = 256 << 10;
const PAGE: u64 = 4096;
/// `NT_PRSTATUS` and `NT_X86_XSTATE`.
const NOTES: [(u32, u32); 2] = [(register_set::GENERAL, 1), (register_set::XSTATE, 0x202)];

/// Who was seen first with something shared.
struct Shared {
    seen: Table<(u64, i32)>,
}

impl Shared {
    /// The first thread with the same; 0 when there is nothing. Mostly it is that of the thread before.
    fn first(&mut self, identity: u64, tid: i32) -> Result<i32> {
        if identity == 0 {
            return Ok(0);
        }
        if let Some((_, first)) = self.seen.iter().rev().find(|(seen, _)| *seen == identity) {
            return Ok(*first);
        }
        self.seen.push((identity, tid))?;
        Ok(tid)
    }
}

fn row(member: &Member, facts: &Facts, shared: &mut [Shared; 4]) -> Result<TaskRow> {
    let [memory, files, folders, actions] = shared;
    let tid = facts.tid;
    Ok(TaskRow {
        tid,
        tgid: facts.tgid,
        ppid: facts.ppid,
        pgid: facts.pgid,
        sid: facts.sid,
        exit_signal: facts.exit_signal,
        exit_code: facts.exit_code,
        stand: member.stand(),
        memory: memory.first(facts.mm, tid)?,
        files: files.first(facts.files, tid)?,
        folders: folders.first(facts.fs, tid)?,
        actions: actions.first(facts.sighand, tid)?,
        blocked: facts.blocked,
        clear_tid: facts.clear_tid,
        robust_list: facts.robust_list,
        rseq: facts.rseq,
        rseq_size: facts.rseq_size,
        rseq_signature: facts.rseq_signature,
        stack_at: facts.stack_at,
        stack_size: facts.stack_size,
        stack_flags: facts.stack_flags,
        stop_signal: facts.stop_signal,
        comm: facts.comm,
    })
}

/// The list of tasks.
pub(crate) fn tasks(frozen: &Frozen, request: &mut Tasks) -> Result<()> {
    let mut shared = [const { Shared { seen: Table::new() } }; 4];
    let mut rows = Table::new();
    for member in frozen.members() {
        let facts = member.park.facts();
        // What was killed and waited for meanwhile is not there any more.
        if facts.alive != 0 {
            rows.push(row(member, &facts, &mut shared)?)?;
        }
    }
    let fit = rows.get(..(request.room as usize).min(rows.len())).unwrap_or_default();
    plain::all_to_user(request.at, fit)?;
    request.count = u32::try_from(rows.len()).map_err(|_| Errno::OVERFLOW)?;
    Ok(())
}

/// The list of mappings, as far as there is room.
pub(crate) fn mappings(frozen: &Frozen, request: &mut Mappings) -> Result<()> {
    let memory = frozen.member(request.tid)?.park.memory()?;
    let room = (request.room as usize).min(ROWS);
    let (mut bytes, mut name) = (Table::<u8>::filled(room)?, Table::<u8>::filled(NAME)?);
    let (mut used, mut count, mut from) = (0, 0, request.from);
    while let Some(vma) = memory.next(from, &mut name)? {
        let text = name.get(..vma.name as usize).ok_or(Errno::OVERFLOW)?;
        let length = size_of::<MappingRow>() + text.len().next_multiple_of(8);
        let Some(place) = bytes.get_mut(used..used + length) else {
            break;
        };
        put_row(place, &row_of(&vma), text);
        (used, count, from) = (used + length, count + 1, vma.end);
    }
    if count == 0 && memory.next(from, &mut name)?.is_some() {
        return Err(Errno::OVERFLOW);
    }
    request.from = memory.next(from, &mut name)?.map_or(0, |next| next.start.max(from));
    plain::all_to_user(request.at, bytes.get(..used).unwrap_or_default())?;
    request.used = u32::try_from(used).map_err(|_| Errno::OVERFLOW)?;
    request.count = count;
    Ok(())
}

fn row_of(vma: &glue::Vma) -> MappingRow {
    MappingRow {
        start: vma.start,
        end: vma.end,
        offset: vma.offset,
        inode: vma.inode,
        device: vma.device,
        prot: vma.prot,
        flags: vma.flags,
        name: vma.name,
    }
}

/// Its fields in their order, without padding, then the name; what is left stays zero.
fn put_row(place: &mut [u8], row: &MappingRow, name: &[u8]) {
    let wide = [row.start, row.end, row.offset, row.inode].map(u64::to_ne_bytes);
    let narrow = [row.device, row.prot, row.flags, row.name].map(u32::to_ne_bytes);
    let all = wide.iter().flatten().chain(narrow.iter().flatten()).chain(name);
    for (to, from) in place.iter_mut().zip(all) {
        *to = *from;
    }
}

/// One set of registers.
pub(crate) fn registers(frozen: &Frozen, request: &mut Registers) -> Result<()> {
    let member = frozen.member(request.tid)?;
    let (_, note) = NOTES.into_iter().find(|(set, _)| *set == request.set).ok_or(Errno::INVAL)?;
    let mut bytes = Table::<u8>::filled((request.room as usize).min(PIECE))?;
    let used = member.park.registers(note, &mut bytes)?;
    plain::all_to_user(request.at, bytes.get(..used).ok_or(Errno::OVERFLOW)?)?;
    request.used = u32::try_from(used).map_err(|_| Errno::OVERFLOW)?;
    Ok(())
}

/// Bytes of a `siginfo_t`.
const SIGNAL: usize = 128;
/// The most signals that are listed at once.
const SIGNALS: usize = 8192;

/// The signals that wait in a queue.
pub(crate) fn signals(frozen: &Frozen, request: &mut Signals) -> Result<()> {
    if request.shared > 1 {
        return Err(Errno::INVAL);
    }
    let member = frozen.member(request.tid)?;
    let room = (request.room as usize).min(SIGNALS);
    let mut rows = Table::<u8>::filled(room * SIGNAL)?;
    let count = member.park.signals(request.shared == 1, &mut rows)?;
    plain::all_to_user(request.at, rows.get(..count.min(room) * SIGNAL).ok_or(Errno::OVERFLOW)?)?;
    request.count = u32::try_from(count).map_err(|_| Errno::OVERFLOW)?;
    Ok(())
}

/// A call whose time the kernel keeps.
pub(crate) fn waiting(frozen: &Frozen, request: &mut Waiting) -> Result<()> {
    if request.reserved != 0 {
        return Err(Errno::INVAL);
    }
    let found = frozen.member(request.tid)?.park.waiting()?;
    (request.call, request.rest_ns, request.ends) = (found.call, found.rest_ns, found.ends);
    Ok(())
}

/// Memory on its way to a file, by a thread of the kernel.
pub(crate) struct Copying<'a> {
    memory: Memory,
    file: File,
    ranges: &'a [Range],
    at: u64,
    piece: Table<u8>,
}

impl Copying<'_> {
    /// All ranges, in their order.
    pub(crate) fn run(&mut self) -> Result<()> {
        for range in self.ranges {
            let mut done = 0;
            while done < range.length {
                if glue::is_called_off() {
                    return Err(Errno::INTR);
                }
                let wanted = usize::try_from(range.length - done).unwrap_or(PIECE).min(PIECE);
                let piece = self.piece.get_mut(..wanted).ok_or(Errno::NOMEM)?;
                let read = self.memory.read(range.start + done, piece)?;
                self.file.write(piece.get(..read).ok_or(Errno::OVERFLOW)?, &mut self.at)?;
                done += read as u64;
            }
        }
        Ok(())
    }
}

/// Ranges of memory to a file.
pub(crate) fn pages(frozen: &Frozen, request: &mut Pages) -> Result<()> {
    if request.reserved != 0 || request.count > RANGES || request.offset > i64::MAX as u64 {
        return Err(Errno::INVAL);
    }
    let memory = frozen.member(request.tid)?.park.memory()?;
    let file = File::to_write(request.fd)?;
    let mut ranges = Table::<Range>::filled(request.count as usize)?;
    plain::all_from_user(request.ranges, &mut ranges)?;
    let is_odd = |range: &Range| {
        (range.start | range.length) % PAGE != 0
            || range.start.checked_add(range.length).is_none_or(|end| end >> 57 != 0)
    };
    if ranges.iter().any(is_odd) {
        return Err(Errno::INVAL);
    }
    let piece = Table::filled(PIECE)?;
    let mut copying = Copying { memory, file, ranges: &ranges, at: request.offset, piece };
    let result = glue::run_in_thread(&mut crate::Work::Copy(&mut copying));
    request.written = copying.at - request.offset;
    result
}
