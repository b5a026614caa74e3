//! Functions of the C half that look at frozen tasks for an image (`glue/survey.c`, `glue/files.c`, `glue/space.c`).
// SPDX-License-Identifier: GPL-2.0-only

use core::ffi::c_void;

use crate::answer::{Errno, Result};
use crate::glue::{Memory, Park};

mod c {
    use core::ffi::c_void;

    use super::Fd;

    unsafe extern "C" {
        pub(super) fn hk_obstacle(task: *mut c_void, mm: *mut c_void) -> u32;
        pub(super) fn hk_surroundings(task: *mut c_void, out: *mut u64) -> u32;
        pub(super) fn hk_timed_call(task: *mut c_void, first_argument: u64) -> i32;
        pub(super) fn hk_action(task: *mut c_void, signal: u32, out: *mut u64);
        pub(super) fn hk_next_fd(task: *mut c_void, from: u32, out: *mut Fd, name: *mut u8, room: u32) -> i64;
        pub(super) fn hk_folder(task: *mut c_void, name: *mut u8, room: u32) -> u32;
        pub(super) fn hk_pipe_bytes(task: *mut c_void, fd: u32, into: *mut u8, room: u32) -> i64;
        pub(super) fn hk_mapped(
            mm: *mut c_void,
            at: u64,
            flags: *mut u64,
            out: *mut Fd,
            name: *mut u8,
            room: u32,
        ) -> i64;
        pub(super) fn hk_program(mm: *mut c_void, out: *mut Fd, name: *mut u8, room: u32) -> bool;
        pub(super) fn hk_marks(mm: *mut c_void, marks: *mut u64, auxiliary: *mut u64);
        pub(super) fn hk_filled(mm: *mut c_void, from: u64, end: u64, start: *mut u64, stop: *mut u64) -> i64;
    }
}

/// An open file: `struct hk_fd`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Fd {
    pub(crate) file: u64,
    pub(crate) object: u64,
    pub(crate) place: u64,
    pub(crate) fd: u32,
    pub(crate) closes: u32,
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) mode: u32,
    pub(crate) readers: u32,
    pub(crate) writers: u32,
    pub(crate) name: u32,
    pub(crate) references: u32,
    pub(crate) reserved: u32,
}

const _: () = assert!(size_of::<Fd>() == 64);

/// `HK_FD_`.
pub(crate) mod fd_kind {
    pub(crate) const PATH: u32 = 1;
    pub(crate) const READER: u32 = 2;
    pub(crate) const WRITER: u32 = 3;
}

/// What lies behind a mapping: `HK_MAPPED_`.
pub(crate) enum Mapped {
    Other,
    Nothing,
    File(Fd),
    Vdso,
    Vvar,
}

/// `HK_SURROUNDINGS`.
const SURROUNDINGS: usize = 64;

fn room(name: &[u8]) -> Result<u32> {
    u32::try_from(name.len()).map_err(|_| Errno::OVERFLOW)
}

/// The surroundings of the calling process.
pub(crate) fn own_surroundings() -> [u64; SURROUNDINGS] {
    surroundings_of(core::ptr::null_mut())
}

fn surroundings_of(task: *mut c_void) -> [u64; SURROUNDINGS] {
    let mut all = [0; SURROUNDINGS];
    // SAFETY: the task is alive or null, which means the caller; at most `SURROUNDINGS` numbers are written.
    unsafe { c::hk_surroundings(task, all.as_mut_ptr()) };
    all
}

impl Park {
    /// What no image can hold of it, one of `hdcr_abi::obstacle`.
    pub(crate) fn obstacle(&self, memory: &Memory) -> u32 {
        // SAFETY: the task is alive as long as the park, and the address space as its reference.
        unsafe { c::hk_obstacle(self.task(), memory.as_ptr()) }
    }

    /// What a restored process has from whoever restores it.
    pub(crate) fn surroundings(&self) -> [u64; SURROUNDINGS] {
        surroundings_of(self.task())
    }

    /// The call that the kernel goes on with when the task does.
    pub(crate) fn timed_call(&self, first_argument: u64) -> Option<u64> {
        // SAFETY: the task is alive as long as the park.
        u64::try_from(unsafe { c::hk_timed_call(self.task(), first_argument) }).ok()
    }

    /// Handler, flags, restorer and mask for a signal from 1 to 64.
    pub(crate) fn action(&self, signal: u32) -> [u64; 4] {
        let mut out = [0; 4];
        // SAFETY: the task is alive and has actions as long as it is parked; four numbers are written.
        unsafe { c::hk_action(self.task(), signal, out.as_mut_ptr()) };
        out
    }

    /// The first descriptor from a number on.
    pub(crate) fn next_fd(&self, from: u32, name: &mut [u8]) -> Result<Option<Fd>> {
        let room = room(name)?;
        let mut fd = Fd::default();
        // SAFETY: the task is alive; `fd` has the layout of `struct hk_fd`, `name` has `room` bytes.
        let found = unsafe { c::hk_next_fd(self.task(), from, &raw mut fd, name.as_mut_ptr(), room) };
        Ok((Errno::check(found)? != 0).then_some(fd))
    }

    /// The length of the path of its current folder, which is put into `name`; 0: it has none.
    pub(crate) fn folder(&self, name: &mut [u8]) -> Result<usize> {
        let room = room(name)?;
        // SAFETY: the task is alive; `name` has `room` bytes.
        Ok(unsafe { c::hk_folder(self.task(), name.as_mut_ptr(), room) } as usize)
    }

    /// What is in the pipe behind a descriptor.
    pub(crate) fn pipe_bytes(&self, fd: u32, into: &mut [u8]) -> Result<usize> {
        let room = room(into)?;
        // SAFETY: the task is alive; `into` has `room` bytes.
        let used = unsafe { c::hk_pipe_bytes(self.task(), fd, into.as_mut_ptr(), room) };
        usize::try_from(Errno::check(used)?).map_err(|_| Errno::OVERFLOW)
    }
}

impl Memory {
    /// What lies behind the mapping that begins at an address, and its `MAP_` flags.
    pub(crate) fn mapped(&self, at: u64, name: &mut [u8]) -> Result<(Mapped, u64)> {
        let room = room(name)?;
        let (mut flags, mut fd) = (0, Fd::default());
        // SAFETY: the address space is alive; the places are of the types that are written, `name` has `room` bytes.
        let kind = unsafe { c::hk_mapped(self.as_ptr(), at, &raw mut flags, &raw mut fd, name.as_mut_ptr(), room) };
        let mapped = match Errno::check(kind)? {
            1 => Mapped::Nothing,
            2 => Mapped::File(fd),
            3 => Mapped::Vdso,
            4 => Mapped::Vvar,
            _ => Mapped::Other,
        };
        Ok((mapped, flags))
    }

    /// The program of the process.
    pub(crate) fn program(&self, name: &mut [u8]) -> Result<Option<Fd>> {
        let room = room(name)?;
        let mut fd = Fd::default();
        // SAFETY: the address space is alive; `fd` has the layout of `struct hk_fd`, `name` has `room` bytes.
        let found = unsafe { c::hk_program(self.as_ptr(), &raw mut fd, name.as_mut_ptr(), room) };
        Ok(found.then_some(fd))
    }

    /// Where things lie, and the auxiliary vector.
    pub(crate) fn marks(&self) -> ([u64; 11], [u64; 64]) {
        let (mut marks, mut auxiliary) = ([0; 11], [0; 64]);
        // SAFETY: the address space is alive; 11 numbers are written, and fewer than 64.
        unsafe { c::hk_marks(self.as_ptr(), marks.as_mut_ptr(), auxiliary.as_mut_ptr()) };
        (marks, auxiliary)
    }

    /// The next pages in a range that hold what no file has, a MiB at most.
    pub(crate) fn filled(&self, from: u64, end: u64) -> Result<Option<(u64, u64)>> {
        let (mut start, mut stop) = (0, 0);
        // SAFETY: the address space is alive; two numbers are written.
        let found = unsafe { c::hk_filled(self.as_ptr(), from, end, &raw mut start, &raw mut stop) };
        Ok((Errno::check(found)? != 0).then_some((start, stop)))
    }
}
