//! An image of a frozen tree, in the encoding of hdcr-layout: what is refused, what is written, in which order.
//!
//! Facts are gathered in the caller's name, as the paths of files are the caller's; a thread of the kernel writes. The
//! header comes last, so that a file without it is no image.
// SPDX-License-Identifier: GPL-2.0-only

use hdcr_abi::{Capture, feature, obstacle, stand};
use hdcr_layout::{
    DescriptorEntry, Layout, Mapping, MappingKind, PathFile, Pipe, Registers, SignalAction, Space, Task, TaskState,
    Thread, Tree, Words, tag,
};
use xxhash_rust::xxh3::Xxh3;

use crate::answer::{Errno, Result};
use crate::frames::{Frames, Obstacle, Process, Step, Writing, id_of};
use crate::freeze::{Frozen, Member};
use crate::glue::{self, Facts, File, Memory};
use crate::looking::{Fd, Mapped, fd_kind};
use crate::table::Table;

/// The longest path that the kernel gives.
const NAME: usize = 4096;
/// The most that a pipe holds.
const PIPE: usize = 1 << 20;
/// `NT_PRSTATUS` and `NT_X86_XSTATE`.
const NOTES: [u32; 2] = [1, 0x202];
/// Places in `struct user_regs_struct`.
const AX: usize = 10;
const DI: usize = 14;
const ORIG_AX: usize = 15;
const IP: usize = 16;
const RESTART_SYSCALL: u64 = 219;

fn refuse<T>(number: u32, culprit: i32) -> Step<T> {
    Err(Obstacle { errno: Errno::NOTSUPP, number, culprit })
}

/// XXH3 of what a restored process has from whoever restores it.
pub(crate) fn sum_of(surroundings: &[u64]) -> u64 {
    let mut sum = Xxh3::new();
    for word in surroundings {
        sum.update(&word.to_le_bytes());
    }
    sum.digest()
}

/// An end of a pipe.
#[derive(Default)]
struct End {
    /// Its number in the image; 0: nobody holds it.
    id: u64,
    flags: u32,
    /// How many descriptors there are of it anywhere, and in the tree.
    references: u32,
    seen: u32,
}

/// A pipe of the tree.
struct PipeSeen {
    object: u64,
    reader: End,
    writer: End,
    /// How many open files there are of each end.
    files: [u32; 2],
    /// Where to read it.
    member: usize,
    fd: u32,
}

struct Gather<'a> {
    frozen: &'a Frozen,
    frames: Frames,
    /// Open files and pipe ends by identity, with the number that they have in the image.
    objects: Table<(u64, u64)>,
    pipes: Table<PipeSeen>,
    processes: Table<Process>,
    name: Table<u8>,
}

/// The image of all that is frozen. With `on_write` the freeze ends as soon as memory is copied on write.
pub(crate) fn capture(frozen: &mut Option<Frozen>, request: &mut Capture, on_write: bool) -> Result<()> {
    let held = frozen.as_ref().ok_or(Errno::NODATA)?;
    if request.reserved != 0 {
        return Err(Errno::INVAL);
    }
    let file = File::to_write(request.fd)?;
    if file.size() != 0 {
        return Err(Errno::INVAL);
    }
    if on_write && glue::features() & feature::CLONE == 0 {
        request.obstacle = obstacle::KERNEL;
        return Err(Errno::NOTSUPP);
    }
    let (frames, processes) = gather(held).map_err(|Obstacle { errno, number, culprit }| {
        (request.obstacle, request.culprit) = (number, culprit);
        errno
    })?;
    let mut writing = Writing::new(frames, processes, file)?;
    if on_write {
        glue::run_in_thread(&mut crate::Work::CopyOnWrite(&mut writing))?;
        *frozen = None;
    }
    let result = glue::run_in_thread(&mut crate::Work::Capture(&mut writing));
    request.written = writing.written();
    result
}

fn gather(frozen: &Frozen) -> Step<(Frames, Table<Process>)> {
    let mut gather = Gather {
        frozen,
        frames: Frames::new(),
        objects: Table::new(),
        pipes: Table::new(),
        processes: Table::new(),
        name: Table::filled(NAME)?,
    };
    gather.tree()?;
    let members = frozen.members();
    for (at, leader) in members.iter().enumerate().filter(|(_, member)| member.tid == member.tgid) {
        gather.process(at, leader)?;
    }
    for member in members {
        gather.thread(member)?;
    }
    gather.write_pipes()?;
    Ok((gather.frames, gather.processes))
}

impl Gather<'_> {
    fn threads(&self, pid: i32) -> impl Iterator<Item = &Member> {
        self.frozen.members().iter().filter(move |member| member.tgid == pid)
    }

    /// Refuses what stands oddly; processes share nothing, threads everything; surroundings are the same.
    fn tree(&mut self) -> Step<()> {
        let members = self.frozen.members();
        let mut surroundings = None;
        let mut processes = 0;
        for member in members {
            if member.stand() != stand::RUNNING {
                return refuse(obstacle::STAND, member.tid);
            }
            let sum = sum_of(&member.park.surroundings());
            if *surroundings.get_or_insert(sum) != sum {
                return refuse(obstacle::SURROUNDINGS, member.tid);
            }
            let facts = member.park.facts();
            let leader = self.frozen.member(member.tgid).map_err(|_| Obstacle {
                errno: Errno::NOTSUPP,
                number: obstacle::STAND,
                culprit: member.tid,
            })?;
            if !shares_all(&facts, &leader.park.facts()) {
                return refuse(obstacle::SHARED, member.tid);
            }
            if member.tid == member.tgid {
                processes += 1;
                let kin = members.iter().filter(|other| other.tid == other.tgid && other.tid < member.tid);
                if kin.into_iter().any(|other| shares_any(&facts, &other.park.facts())) {
                    return refuse(obstacle::SHARED, member.tid);
                }
            }
        }
        let threads = u32::try_from(members.len()).map_err(|_| Errno::OVERFLOW)?;
        let surroundings = surroundings.ok_or(Errno::SRCH)?;
        let xstate_size = glue::xstate_size();
        self.frames.record(0, &Tree { surroundings, xstate_size, processes, threads, reserved: 0 })
    }

    fn process(&mut self, at: usize, leader: &Member) -> Step<()> {
        let pid = leader.tid;
        let memory = leader.park.memory()?;
        for member in self.threads(pid) {
            let number = member.park.obstacle(&memory);
            if number != obstacle::NONE {
                return refuse(number, member.tid);
            }
        }
        let rows = self.task_rows(pid)?;
        self.frames.frame((Task::TAG, Task::VERSION), id_of(pid), |frames| {
            rows.iter().try_for_each(|row| Ok(frames.put_record(row)?))
        })?;
        self.space(leader, &memory)?;
        let ranges = self.mappings(pid, &memory)?;
        self.actions(leader)?;
        self.descriptors(at, leader)?;
        self.processes.push(Process { pid, memory, ranges, runs: Table::new() })?;
        Ok(())
    }

    fn task_rows(&self, pid: i32) -> Step<Table<Task>> {
        let mut rows = Table::new();
        for member in self.threads(pid) {
            let facts = member.park.facts();
            let is_within = self.frozen.member(facts.ppid).is_ok();
            rows.push(Task {
                tid: facts.tid,
                tgid: facts.tgid,
                ppid: if is_within { facts.ppid } else { 0 },
                pgid: facts.pgid,
                sid: facts.sid,
                exit_signal: facts.exit_signal,
                exit_status: 0,
                state: TaskState::Running,
                flags: 0,
                comm: facts.comm,
            })?;
        }
        Ok(rows)
    }

    /// The number of a file by path, written down when it is new.
    fn path_file(&mut self, fd: &Fd) -> Step<u64> {
        if let Some((_, id)) = self.objects.iter().find(|(file, _)| *file == fd.file) {
            return Ok(*id);
        }
        let id = self.objects.len() as u64 + 1;
        self.objects.push((fd.file, id))?;
        self.write_path(id, fd)?;
        Ok(id)
    }

    fn write_path(&mut self, id: u64, fd: &Fd) -> Step<()> {
        let path = self.name.get(..fd.name as usize).unwrap_or_default();
        let file = PathFile { object: id, offset: fd.place, flags: fd.flags, mode: fd.mode, path };
        let mut bytes = Table::<u8>::filled(file.size())?;
        file.encode(&mut bytes).map_err(|_| Errno::OVERFLOW)?;
        self.frames.frame((PathFile::TAG, PathFile::VERSION), id, |frames| Ok(frames.put(&bytes)?))
    }

    fn space(&mut self, leader: &Member, memory: &Memory) -> Step<()> {
        let program = memory.program(&mut self.name)?.filter(|program| program.name > 0);
        let Some(program) = program else {
            return refuse(obstacle::PLACE, leader.tid);
        };
        let program = self.path_file(&program)?;
        let length = leader.park.folder(&mut self.name)?;
        if length == 0 {
            return refuse(obstacle::PLACE, leader.tid);
        }
        let folder = self.objects.len() as u64 + 1;
        // It has no identity that a file could have.
        self.objects.push((1, folder))?;
        let name = u32::try_from(length).map_err(|_| Errno::OVERFLOW)?;
        self.write_path(folder, &Fd { mode: 0o040_000, name, ..Fd::default() })?;
        let (marks, auxiliary) = memory.marks();
        self.frames.record(id_of(leader.tid), &Space { program, folder, marks, auxiliary: Words(auxiliary) })
    }

    /// All mappings; those whose pages are looked at are returned.
    fn mappings(&mut self, pid: i32, memory: &Memory) -> Step<Table<(u64, u64)>> {
        let (mut ranges, mut mappings) = (Table::new(), Table::new());
        let mut from = 0;
        while let Some(vma) = memory.next(from, &mut self.name)? {
            from = vma.end;
            let (mapped, flags) = memory.mapped(vma.start, &mut self.name)?;
            let map_flags = u32::try_from(flags).map_err(|_| Errno::OVERFLOW)?;
            let is_shared = flags & 1 != 0;
            let (kind, object) = match mapped {
                Mapped::Other => return refuse(obstacle::MAPPING, pid),
                Mapped::Nothing if is_shared => return refuse(obstacle::MAPPING, pid),
                Mapped::Nothing => (MappingKind::Anonymous, 0),
                Mapped::File(fd) if is_shared => (MappingKind::SharedFile, self.path_file(&fd)?),
                Mapped::File(fd) => (MappingKind::PrivateFile, self.path_file(&fd)?),
                Mapped::Vdso => (MappingKind::Vdso, 0),
                Mapped::Vvar => (MappingKind::Vvar, 0),
            };
            let (start, end, offset) = (vma.start, vma.end, vma.offset);
            mappings.push(Mapping { start, end, offset, vm_flags: 0, object, prot: vma.prot, map_flags, kind })?;
            if matches!(kind, MappingKind::Anonymous | MappingKind::PrivateFile) {
                ranges.push((start, end))?;
            }
        }
        self.frames.frame((Mapping::TAG, Mapping::VERSION), id_of(pid), |frames| {
            mappings.iter().try_for_each(|mapping| Ok(frames.put_record(mapping)?))
        })?;
        Ok(ranges)
    }

    fn actions(&mut self, leader: &Member) -> Step<()> {
        let id = id_of(leader.tid);
        self.frames.frame((SignalAction::TAG, SignalAction::VERSION), id, |frames| {
            for signal in 1..=64 {
                let [handler, flags, restorer, mask] = leader.park.action(signal);
                frames.put_record(&SignalAction { handler, flags, restorer, mask, signal })?;
            }
            Ok(())
        })
    }

    fn descriptors(&mut self, at: usize, leader: &Member) -> Step<()> {
        let mut entries = Table::new();
        let mut from = 0;
        while let Some(fd) = leader.park.next_fd(from, &mut self.name)? {
            from = fd.fd + 1;
            let object = match fd.kind {
                fd_kind::PATH if fd.name > 0 => self.path_file(&fd)?,
                fd_kind::READER | fd_kind::WRITER => self.pipe_end(at, &fd)?,
                _ => return refuse(obstacle::DESCRIPTOR, leader.tid),
            };
            let number = i32::try_from(fd.fd).map_err(|_| Errno::OVERFLOW)?;
            entries.push(DescriptorEntry { object, fd: number, flags: fd.closes })?;
        }
        self.frames.frame((DescriptorEntry::TAG, DescriptorEntry::VERSION), id_of(leader.tid), |frames| {
            entries.iter().try_for_each(|entry| Ok(frames.put_record(entry)?))
        })
    }

    fn pipe_end(&mut self, member: usize, fd: &Fd) -> Step<u64> {
        if let Some((_, id)) = self.objects.iter().find(|(file, _)| *file == fd.file) {
            let mut ends = self.pipes.iter_mut().flat_map(|pipe| [&mut pipe.reader, &mut pipe.writer]);
            if let Some(end) = ends.find(|end| end.id == *id) {
                end.seen += 1;
            }
            return Ok(*id);
        }
        let id = self.objects.len() as u64 + 1;
        self.objects.push((fd.file, id))?;
        let known = self.pipes.iter().position(|pipe| pipe.object == fd.object);
        let place = match known {
            Some(place) => place,
            None => {
                self.pipes.push(PipeSeen {
                    object: fd.object,
                    reader: End::default(),
                    writer: End::default(),
                    files: [fd.readers, fd.writers],
                    member,
                    fd: fd.fd,
                })?;
                self.pipes.len() - 1
            }
        };
        let pipe = self.pipes.get_mut(place).ok_or(Errno::OVERFLOW)?;
        let end = if fd.kind == fd_kind::READER { &mut pipe.reader } else { &mut pipe.writer };
        if end.id != 0 {
            // The same end, opened once more.
            return refuse(obstacle::DESCRIPTOR, self.frozen.members().get(member).map_or(0, |leader| leader.tid));
        }
        *end = End { id, flags: fd.flags, references: fd.references, seen: 1 };
        Ok(id)
    }

    /// Pipes that lead out of the tree, or whose ends were opened once more, are refused.
    fn write_pipes(&mut self) -> Step<()> {
        let mut bytes = Table::<u8>::filled(PIPE)?;
        for pipe in self.pipes.iter() {
            let member = self.frozen.members().get(pipe.member).ok_or(Errno::SRCH)?;
            let is_within = |end: &End, files: u32| u32::from(end.id != 0) == files && end.seen == end.references;
            if !is_within(&pipe.reader, pipe.files[0]) || !is_within(&pipe.writer, pipe.files[1]) {
                return refuse(obstacle::DESCRIPTOR, member.tid);
            }
            let used = member.park.pipe_bytes(pipe.fd, &mut bytes)?;
            let record = Pipe {
                reader: pipe.reader.id,
                writer: pipe.writer.id,
                reader_flags: pipe.reader.flags,
                writer_flags: pipe.writer.flags,
            };
            self.frames.frame((Pipe::TAG, Pipe::VERSION), 0, |frames| {
                frames.put_record(&record)?;
                Ok(frames.put(bytes.get(..used).unwrap_or_default())?)
            })?;
        }
        Ok(())
    }

    fn thread(&mut self, member: &Member) -> Step<()> {
        let id = id_of(member.tid);
        let mut words = registers(member)?;
        if !make_again(member, &mut words) {
            return refuse(obstacle::CALL, member.tid);
        }
        self.frames.record(id, &Registers { words })?;
        let facts = member.park.facts();
        self.frames.record(id, &thread_of(&facts))?;
        let mut xstate = Table::<u8>::filled(glue::xstate_size() as usize)?;
        let used = member.park.registers(NOTES[1], &mut xstate)?;
        if used != xstate.len() {
            return refuse(obstacle::PROCESSOR, member.tid);
        }
        self.frames.frame((tag::XSTATE, 1), id, |frames| Ok(frames.put(&xstate)?))
    }
}

fn shares_all(one: &Facts, other: &Facts) -> bool {
    (one.mm, one.files, one.fs, one.sighand) == (other.mm, other.files, other.fs, other.sighand) && one.mm != 0
}

fn shares_any(one: &Facts, other: &Facts) -> bool {
    one.mm == other.mm || one.files == other.files || one.fs == other.fs || one.sighand == other.sighand
}

fn thread_of(facts: &Facts) -> Thread {
    Thread {
        blocked: facts.blocked,
        stack_at: facts.stack_at,
        stack_size: facts.stack_size,
        clear_tid: facts.clear_tid,
        robust_list: facts.robust_list,
        rseq: facts.rseq,
        rseq_size: facts.rseq_size,
        rseq_signature: facts.rseq_signature,
        stack_flags: facts.stack_flags,
        reserved: 0,
    }
}

fn registers(member: &Member) -> Step<[u64; 27]> {
    let mut bytes = [0; 27 * 8];
    if member.park.registers(NOTES[0], &mut bytes)? != bytes.len() {
        return refuse(obstacle::NARROW, member.tid);
    }
    let mut words = [0; 27];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    Ok(words)
}

/// A call that was interrupted stands before its instruction again, its time from the beginning. False: which call it is
/// cannot be told.
fn make_again(member: &Member, words: &mut [u64; 27]) -> bool {
    let call = words[ORIG_AX];
    let result = words[AX].cast_signed();
    words[ORIG_AX] = u64::MAX;
    if call.cast_signed() < 0 || !matches!(result, -516 | -514..=-512) {
        return true;
    }
    let number = if call == RESTART_SYSCALL { member.park.timed_call(words[DI]) } else { Some(call) };
    let Some(number) = number else {
        return false;
    };
    words[AX] = number;
    words[IP] = words[IP].wrapping_sub(2);
    true
}
