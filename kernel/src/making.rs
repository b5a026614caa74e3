//! Functions of the C half that make tasks and what is in them (`glue/build.c`, and parts of `files.c` and `space.c`).
// SPDX-License-Identifier: GPL-2.0-only

use core::ffi::{CStr, c_void};
use core::ptr::{self, NonNull};

use crate::answer::{Errno, Result};
use crate::glue::File;
use crate::restore::Plan;

mod c {
    use core::ffi::{c_char, c_void};

    use crate::restore::Plan;

    unsafe extern "C" {
        #[expect(improper_ctypes, reason = "C gives it back as it is, and never looks into it")]
        pub(super) fn hk_site_new(plan: *const Plan, count: u32) -> *mut c_void;
        pub(super) fn hk_clone(site: *mut c_void, number: u32, tid: i32, thread: bool, exit_signal: u32) -> i64;
        pub(super) fn hk_site_wait(site: *mut c_void, until: u64) -> i64;
        pub(super) fn hk_site_fail(site: *mut c_void);
        pub(super) fn hk_site_open(site: *mut c_void);
        pub(super) fn hk_site_put(site: *mut c_void);
        pub(super) fn hk_set_registers(
            site: *mut c_void,
            number: u32,
            general: *const c_void,
            general_size: u32,
            xstate: *const c_void,
            xstate_size: u32,
        ) -> i64;
        pub(super) fn hk_set_ids(site: *mut c_void, number: u32, session: i32, group: i32);
        pub(super) fn hk_set_action(signal: u32, from: *const u64);
        pub(super) fn hk_set_blocked(site: *mut c_void, number: u32, blocked: u64);
        pub(super) fn hk_set_thread(wide: *const u64, narrow: *const u32, comm: *const u8) -> i64;
        pub(super) fn hk_set_folder(name: *const c_char) -> i64;
        pub(super) fn hk_set_program(file: *mut c_void) -> i64;
        pub(super) fn hk_map_vdso(at: u64) -> i64;
        pub(super) fn hk_open(path: *const c_char, flags: u32, mode: u32, place: u64) -> *mut c_void;
        pub(super) fn hk_pipe(files: *mut *mut c_void) -> i64;
        pub(super) fn hk_set_flags(file: *mut c_void, flags: u32);
        pub(super) fn hk_install(fd: u32, file: *mut c_void, closes: bool) -> i64;
        pub(super) fn hk_free_number(fd: u32);
        pub(super) fn hk_close_all();
        pub(super) fn hk_unmap_all() -> i64;
        pub(super) fn hk_map(start: u64, length: u64, prot: u32, flags: u64, file: *mut c_void, offset: u64) -> i64;
        pub(super) fn hk_fill(at: u64, from: *const c_void, length: u32) -> i64;
        pub(super) fn hk_set_marks(marks: *const u64, auxiliary: *const u64) -> i64;
    }
}

/// Tasks in the making. Dropped before it was opened, all of them are killed, and none builds any more.
pub(crate) struct Site {
    site: NonNull<c_void>,
    is_open: bool,
}

impl Site {
    /// For so many tasks of a plan.
    ///
    /// # Safety
    /// The plan outlives the site.
    pub(crate) unsafe fn new(plan: &Plan, count: usize) -> Result<Self> {
        let count = u32::try_from(count).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: the plan is used by tasks that build only, and those have done so when the site is dropped.
        let site = NonNull::new(unsafe { c::hk_site_new(plan, count) }).ok_or(Errno::NOMEM)?;
        Ok(Self { site, is_open: false })
    }

    fn crew(&self) -> Crew {
        Crew(self.site)
    }

    /// The first process, a child of the caller.
    pub(crate) fn begin(&self, number: usize, tid: i32, exit_signal: u32) -> Result<()> {
        self.crew().process(number, tid, exit_signal)
    }

    /// Until all are parked.
    pub(crate) fn wait(&self, until: u64) -> Result<()> {
        // SAFETY: the site is alive as long as this reference.
        Errno::check(unsafe { c::hk_site_wait(self.site.as_ptr(), until) }).map(|_| ())
    }

    /// Of a task that is parked.
    pub(crate) fn set_registers(&self, number: usize, general: &[u64; 27], xstate: &[u8]) -> Result<()> {
        let number = u32::try_from(number).map_err(|_| Errno::OVERFLOW)?;
        let size = u32::try_from(xstate.len()).map_err(|_| Errno::OVERFLOW)?;
        let (general, general_size) = (general.as_ptr().cast(), 27 * 8);
        // SAFETY: the site is alive and all its tasks are parked; the areas have the lengths that are given.
        let set = unsafe {
            c::hk_set_registers(self.site.as_ptr(), number, general, general_size, xstate.as_ptr().cast(), size)
        };
        Errno::check(set).map(|_| ())
    }

    /// Into the session and the group that these processes lead, if any.
    pub(crate) fn set_ids(&self, number: usize, session: Option<usize>, group: Option<usize>) {
        let plain = |at: Option<usize>| at.and_then(|at| i32::try_from(at).ok()).unwrap_or(-1);
        let (session, group) = (plain(session), plain(group));
        let Ok(number) = u32::try_from(number) else {
            return;
        };
        // SAFETY: the site is alive and all its tasks are parked; the numbers are those of tasks of it.
        unsafe { c::hk_set_ids(self.site.as_ptr(), number, session, group) };
    }

    /// Lets all go.
    pub(crate) fn open(mut self) {
        self.is_open = true;
        // SAFETY: the site is alive as long as this reference.
        unsafe { c::hk_site_open(self.site.as_ptr()) };
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !self.is_open {
            // SAFETY: the site is alive as long as this reference.
            unsafe { c::hk_site_fail(self.site.as_ptr()) };
        }
        // SAFETY: this reference is given back and not used again.
        unsafe { c::hk_site_put(self.site.as_ptr()) };
    }
}

/// The site as a task sees it that builds itself. What is done is done to the calling task.
pub(crate) struct Crew(NonNull<c_void>);

impl Crew {
    /// # Safety
    /// It is a site that is alive as long as this is used, and the caller is a task that it makes.
    pub(crate) unsafe fn of(site: *mut c_void) -> Option<Self> {
        NonNull::new(site).map(Self)
    }

    fn clone(&self, number: usize, tid: i32, thread: bool, exit_signal: u32) -> Result<()> {
        let number = u32::try_from(number).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: the site is alive, and the number is one of its tasks, each of which is cloned once.
        Errno::check(unsafe { c::hk_clone(self.0.as_ptr(), number, tid, thread, exit_signal) }).map(|_| ())
    }

    pub(crate) fn process(&self, number: usize, tid: i32, exit_signal: u32) -> Result<()> {
        self.clone(number, tid, false, exit_signal)
    }

    pub(crate) fn thread(&self, number: usize, tid: i32) -> Result<()> {
        self.clone(number, tid, true, 0)
    }

    pub(crate) fn set_thread(&self, number: usize, wide: &[u64; 6], narrow: &[u32; 3], comm: &[u8; 16]) -> Result<()> {
        let number = u32::try_from(number).map_err(|_| Errno::OVERFLOW)?;
        let (blocked, wide, narrow) = (wide[0], wide.as_ptr(), narrow.as_ptr());
        // SAFETY: the site is alive, and the number is that of the calling task.
        unsafe { c::hk_set_blocked(self.0.as_ptr(), number, blocked) };
        // SAFETY: six, three numbers and sixteen bytes are read.
        Errno::check(unsafe { c::hk_set_thread(wide, narrow, comm.as_ptr()) }).map(|_| ())
    }

    pub(crate) fn set_action(&self, signal: u32, action: &[u64; 4]) {
        debug_assert!((1..=64).contains(&signal));
        // SAFETY: the signal is one, as hdcr-layout decodes no other; four numbers are read.
        unsafe { c::hk_set_action(signal, action.as_ptr()) };
    }

    pub(crate) fn set_folder(&self, path: &CStr) -> Result<()> {
        // SAFETY: a text that ends with a zero.
        Errno::check(unsafe { c::hk_set_folder(path.as_ptr()) }).map(|_| ())
    }

    pub(crate) fn set_program(&self, file: &File) -> Result<()> {
        // SAFETY: the file is alive.
        Errno::check(unsafe { c::hk_set_program(file.as_ptr()) }).map(|_| ())
    }

    pub(crate) fn map_vdso(&self, at: u64) -> Result<()> {
        // SAFETY: the kernel checks the address.
        Errno::check(unsafe { c::hk_map_vdso(at) }).map(|_| ())
    }

    pub(crate) fn install(&self, fd: u32, file: &File, closes: bool) -> Result<()> {
        // SAFETY: the file is alive, and gets a reference of its own.
        Errno::check(unsafe { c::hk_install(fd, file.as_ptr(), closes) }).map(|_| ())
    }

    /// Gives a number back that was taken on the way to a higher one.
    pub(crate) fn free_number(&self, fd: u32) {
        // SAFETY: the table is the caller's own, and the number has no file.
        unsafe { c::hk_free_number(fd) };
    }

    /// Takes everything away that the task was born with: mappings and descriptors.
    pub(crate) fn clear(&self) -> Result<()> {
        // SAFETY: nothing in the task's address space is used any more; it has no instruction of its own yet.
        Errno::check(unsafe { c::hk_unmap_all() })?;
        // SAFETY: the table is the task's own.
        unsafe { c::hk_close_all() };
        Ok(())
    }

    pub(crate) fn map(&self, start: u64, length: u64, prot: u32, flags: u64, file: Option<(&File, u64)>) -> Result<()> {
        let (file, offset) = file.map_or((ptr::null_mut(), 0), |(file, offset)| (file.as_ptr(), offset));
        // SAFETY: the file is alive or null; the kernel checks the rest, and takes the place of no mapping.
        Errno::check(unsafe { c::hk_map(start, length, prot, flags, file, offset) }).map(|_| ())
    }

    pub(crate) fn fill(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len()).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: `bytes` has that many; the kernel checks the address.
        Errno::check(unsafe { c::hk_fill(at, bytes.as_ptr().cast(), length) }).map(|_| ())
    }

    pub(crate) fn set_marks(&self, marks: &[u64; 11], auxiliary: &[u64; 64]) -> Result<()> {
        // SAFETY: eleven numbers are read, and fewer than 64.
        Errno::check(unsafe { c::hk_set_marks(marks.as_ptr(), auxiliary.as_ptr()) }).map(|_| ())
    }
}

/// Opens a path in the caller's name.
pub(crate) fn open(path: &CStr, flags: u32, mode: u32, place: u64) -> Option<File> {
    // SAFETY: a text that ends with a zero.
    let file = unsafe { c::hk_open(path.as_ptr(), flags, mode, place) };
    // SAFETY: it is null, or a reference that is ours.
    unsafe { File::from_reference(file) }
}

/// The flags of an end of a pipe that are not those of every one.
pub(crate) fn set_flags(file: &File, flags: u32) {
    // SAFETY: the file is alive; flags that are not a pipe's are left out by the callee.
    unsafe { c::hk_set_flags(file.as_ptr(), flags) };
}

/// A new pipe: the end to read from, and the one to write to.
pub(crate) fn pipe() -> Result<(File, File)> {
    let mut files = [ptr::null_mut(); 2];
    // SAFETY: a place for two pointers.
    Errno::check(unsafe { c::hk_pipe(files.as_mut_ptr()) })?;
    // SAFETY: a reference that is ours.
    let reader = unsafe { File::from_reference(files[0]) };
    // SAFETY: a reference that is ours.
    let writer = unsafe { File::from_reference(files[1]) };
    reader.zip(writer).ok_or(Errno::NOMEM)
}
