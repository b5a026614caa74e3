//! Every function of the C half, and owners for what it gives out. `glue/glue.h` is the other side of this file.
// SPDX-License-Identifier: GPL-2.0-only

use core::ffi::c_void;
use core::mem;
use core::ptr::{self, NonNull};
use core::slice;

use hdcr_abi::{CallRow, PointerRow};

use crate::answer::{Errno, Result};
use crate::scope::Row;

mod c {
    use core::ffi::c_void;

    use hdcr_abi::{CallRow, PointerRow};

    use super::{Facts, Look, Vma, Waits};
    use crate::scope::Row;

    unsafe extern "C" {
        pub(super) fn hk_features() -> u64;
        pub(super) fn hk_gate_new() -> *mut c_void;
        pub(super) fn hk_gate_wait(gate: *mut c_void, ns: u64) -> i64;
        pub(super) fn hk_gate_open(gate: *mut c_void);
        pub(super) fn hk_gate_put(gate: *mut c_void);
        pub(super) fn hk_park_add(gate: *mut c_void, tid: i32, start: u64, out: *mut *mut c_void) -> i64;
        pub(super) fn hk_park_drop(park: *mut c_void);
        pub(super) fn hk_park_state(park: *const c_void) -> u32;
        pub(super) fn hk_park_hold(park: *mut c_void) -> bool;
        pub(super) fn hk_park_task(park: *const c_void) -> *mut c_void;
        pub(super) fn hk_scan(rows: *mut Row, room: u32, cgroup: u64) -> i64;
        pub(super) fn hk_look(task: *mut c_void, out: *mut Look);
        pub(super) fn hk_facts(task: *mut c_void, out: *mut Facts);
        pub(super) fn hk_may_access(task: *mut c_void) -> bool;
        pub(super) fn hk_kill(task: *mut c_void) -> bool;
        pub(super) fn hk_xstate_size() -> u32;
        pub(super) fn hk_park_registers(park: *mut c_void, note: u32, out: *mut c_void, room: u32) -> i64;
        pub(super) fn hk_signals(task: *mut c_void, shared: bool, out: *mut u8, room: u32) -> i64;
        pub(super) fn hk_park_waiting(park: *mut c_void, out: *mut Waits) -> i64;
        pub(super) fn hk_park_run(park: *mut c_void, job: *mut c_void, ns: u64) -> i64;
        pub(super) fn hk_job_new(count: u32, size: u32, places: u32) -> *mut c_void;
        pub(super) fn hk_job_put(job: *mut c_void);
        pub(super) fn hk_job_calls(job: *mut c_void) -> *mut CallRow;
        pub(super) fn hk_job_data(job: *mut c_void) -> *mut u8;
        pub(super) fn hk_job_pointers(job: *mut c_void) -> *mut PointerRow;
        pub(super) fn hk_job_made(job: *mut c_void) -> u32;
        pub(super) fn hk_alloc(size: usize) -> *mut c_void;
        pub(super) fn hk_free(at: *mut c_void);
        pub(super) fn hk_from_user(to: *mut c_void, from: u64, size: usize) -> i64;
        pub(super) fn hk_to_user(to: u64, from: *const c_void, size: usize) -> i64;
        pub(super) fn hk_mm(task: *mut c_void) -> *mut c_void;
        pub(super) fn hk_mm_put(mm: *mut c_void);
        pub(super) fn hk_next_mapping(mm: *mut c_void, from: u64, out: *mut Vma, name: *mut u8, room: u32) -> i64;
        pub(super) fn hk_read_pages(mm: *mut c_void, at: u64, into: *mut c_void, bytes: u32) -> i64;
        pub(super) fn hk_file(fd: i32, writes: bool) -> *mut c_void;
        pub(super) fn hk_file_put(file: *mut c_void);
        pub(super) fn hk_write(file: *mut c_void, from: *const c_void, size: usize, at: *mut u64) -> i64;
        pub(super) fn hk_read(file: *mut c_void, into: *mut c_void, size: usize, at: u64) -> i64;
        pub(super) fn hk_size(file: *mut c_void) -> u64;
        pub(super) fn hk_now() -> u64;
        pub(super) fn hk_pause();
        pub(super) fn hk_copy_on_write(mm: *mut c_void, copy: *mut *mut c_void) -> i64;
        pub(super) fn hk_run_in_thread(work: *mut c_void) -> i64;
        pub(super) fn hk_called_off() -> bool;
        pub(super) fn hk_give_up(text: *const u8, length: u32) -> !;
    }
}

/// How a task stands that has not answered: `struct hk_look`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Look {
    /// One of [`kind`].
    pub(crate) kind: u32,
    /// The kernel's state bits.
    pub(crate) state: u32,
    /// Whether it is off the processor.
    pub(crate) off_cpu: u32,
    /// The process of its tracer or of its `vfork` child.
    pub(crate) other: i32,
}

/// `HK_KIND_`.
pub(crate) mod kind {
    pub(crate) const RUNNING: u32 = 1;
    pub(crate) const STOPPED: u32 = 2;
    pub(crate) const TRACED: u32 = 3;
    pub(crate) const TRACED_CALL: u32 = 4;
    pub(crate) const ENDED: u32 = 6;
    pub(crate) const VFORK: u32 = 7;
    pub(crate) const ENDING: u32 = 8;
}

/// What is known of a frozen task: `struct hk_facts`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Facts {
    pub(crate) tid: i32,
    pub(crate) tgid: i32,
    pub(crate) ppid: i32,
    pub(crate) pgid: i32,
    pub(crate) sid: i32,
    pub(crate) exit_signal: i32,
    pub(crate) exit_code: i32,
    pub(crate) stop_signal: u32,
    pub(crate) mm: u64,
    pub(crate) files: u64,
    pub(crate) fs: u64,
    pub(crate) sighand: u64,
    pub(crate) blocked: u64,
    pub(crate) clear_tid: u64,
    pub(crate) robust_list: u64,
    pub(crate) rseq: u64,
    pub(crate) rseq_size: u32,
    pub(crate) rseq_signature: u32,
    pub(crate) stack_at: u64,
    pub(crate) stack_size: u64,
    pub(crate) stack_flags: u32,
    pub(crate) alive: u32,
    pub(crate) comm: [u8; 16],
}

/// A call whose time the kernel keeps: `struct hk_waits`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Waits {
    pub(crate) rest_ns: i64,
    pub(crate) call: i32,
    pub(crate) ends: u32,
}

/// A mapping: `struct hk_vma`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Vma {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) offset: u64,
    pub(crate) inode: u64,
    pub(crate) device: u32,
    pub(crate) prot: u32,
    pub(crate) flags: u32,
    pub(crate) name: u32,
}

/// The answer of a task so far: `HK_QUEUED` and its kin.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Queued,
    Held,
    Parked,
    Gone,
    Dead,
}

/// What the tasks of one freeze wait at. Dropping it lets them go.
pub(crate) struct Gate(NonNull<c_void>);

impl Gate {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: it takes nothing and gives a reference or null.
        let gate = unsafe { c::hk_gate_new() };
        NonNull::new(gate).map(Self).ok_or(Errno::NOMEM)
    }

    /// Waits until nobody is waited for, or for a time.
    pub(crate) fn wait(&self, ns: u64) -> Result<()> {
        // SAFETY: the gate is alive as long as this reference is.
        Errno::check(unsafe { c::hk_gate_wait(self.0.as_ptr(), ns) }).map(|_| ())
    }

    /// Lets all go, now and later.
    pub(crate) fn open(&self) {
        // SAFETY: the gate is alive as long as this reference is.
        unsafe { c::hk_gate_open(self.0.as_ptr()) };
    }

    /// Stops a task at it.
    pub(crate) fn stop(&self, tid: i32, start: u64) -> Result<Park> {
        let mut park = ptr::null_mut();
        // SAFETY: the gate is alive; `park` is a place for a pointer, set when the answer is 0.
        Errno::check(unsafe { c::hk_park_add(self.0.as_ptr(), tid, start, &raw mut park) })?;
        NonNull::new(park).map(Park).ok_or(Errno::NOMEM)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
        // SAFETY: this reference is given back and not used again.
        unsafe { c::hk_gate_put(self.0.as_ptr()) };
    }
}

/// One task at a gate. It is let go by the gate; dropped before, it may stand at another one while it is still held here.
pub(crate) struct Park(NonNull<c_void>);

impl Park {
    pub(crate) fn answer(&self) -> Answer {
        // SAFETY: the park is alive as long as this reference is.
        match unsafe { c::hk_park_state(self.0.as_ptr()) } {
            1 => Answer::Queued,
            2 => Answer::Held,
            3 => Answer::Parked,
            4 => Answer::Gone,
            _ => Answer::Dead,
        }
    }

    /// It is not waited for any more.
    pub(crate) fn hold(&self) {
        // SAFETY: the park is alive as long as this reference is. That it answered meanwhile shows in its state.
        unsafe { c::hk_park_hold(self.0.as_ptr()) };
    }

    pub(crate) fn task(&self) -> *mut c_void {
        // SAFETY: the park is alive, and holds a reference on its task.
        unsafe { c::hk_park_task(self.0.as_ptr()) }
    }

    pub(crate) fn look(&self) -> Look {
        let mut look = Look::default();
        // SAFETY: the task is alive as long as the park; `look` has the layout of `struct hk_look`.
        unsafe { c::hk_look(self.task(), &raw mut look) };
        look
    }

    pub(crate) fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        // SAFETY: the task is alive as long as the park; `facts` has the layout of `struct hk_facts`.
        unsafe { c::hk_facts(self.task(), &raw mut facts) };
        facts
    }

    /// Whether the caller may do to the task what a tracer does.
    pub(crate) fn may_access(&self) -> bool {
        // SAFETY: the task is alive as long as the park.
        unsafe { c::hk_may_access(self.task()) }
    }

    pub(crate) fn kill(&self) {
        // SAFETY: the task is alive as long as the park. A process that has ended needs no signal.
        unsafe { c::hk_kill(self.task()) };
    }

    /// Registers of one set, of a task that is off the processor; how many bytes.
    pub(crate) fn registers(&self, note: u32, into: &mut [u8]) -> Result<usize> {
        let room = u32::try_from(into.len()).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: the park is alive as long as this reference; at most `room` bytes are written to `into`.
        let used =
            Errno::check(unsafe { c::hk_park_registers(self.0.as_ptr(), note, into.as_mut_ptr().cast(), room) })?;
        usize::try_from(used).map_err(|_| Errno::OVERFLOW)
    }

    /// Puts the signals that wait in a queue into `into`, 128 bytes each, as far as they fit; how many there are.
    pub(crate) fn signals(&self, shared: bool, into: &mut [u8]) -> Result<usize> {
        let room = u32::try_from(into.len() / 128).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: the task is alive as long as the park; at most `room` rows of 128 bytes are written to `into`.
        let count = Errno::check(unsafe { c::hk_signals(self.task(), shared, into.as_mut_ptr(), room) })?;
        usize::try_from(count).map_err(|_| Errno::OVERFLOW)
    }

    /// The call that it is interrupted in, if the kernel keeps its time.
    pub(crate) fn waiting(&self) -> Result<Waits> {
        let mut waits = Waits::default();
        // SAFETY: the park is alive as long as this reference; `waits` has the layout of `struct hk_waits`.
        Errno::check(unsafe { c::hk_park_waiting(self.0.as_ptr(), &raw mut waits) }).map(|_| waits)
    }

    /// Has it make calls, and waits for them.
    pub(crate) fn run(&self, job: Job, ns: u64) -> Result<Done> {
        // SAFETY: park and job are alive; whoever makes the calls has a reference of its own on the job.
        Errno::check(unsafe { c::hk_park_run(self.0.as_ptr(), job.at.as_ptr(), ns) })?;
        Ok(Done(job))
    }

    /// Its address space, if it has one.
    pub(crate) fn memory(&self) -> Result<Memory> {
        // SAFETY: the task is alive as long as the park.
        let mm = unsafe { c::hk_mm(self.task()) };
        NonNull::new(mm).map(Memory).ok_or(Errno::SRCH)
    }
}

impl Drop for Park {
    fn drop(&mut self) {
        // SAFETY: this reference is given back and not used again.
        unsafe { c::hk_park_drop(self.0.as_ptr()) };
    }
}

/// Calls that a parked task is to make, nobody else knows of them yet.
pub(crate) struct Job {
    at: NonNull<c_void>,
    count: usize,
    size: usize,
    places: usize,
}

impl Job {
    pub(crate) fn new(count: u32, size: u32, places: u32) -> Result<Self> {
        // SAFETY: any numbers may be asked for.
        let at = NonNull::new(unsafe { c::hk_job_new(count, size, places) }).ok_or(Errno::NOMEM)?;
        Ok(Self { at, count: count as usize, size: size as usize, places: places as usize })
    }

    pub(crate) fn calls(&mut self) -> &mut [CallRow] {
        // SAFETY: the job is alive.
        let at = unsafe { c::hk_job_calls(self.at.as_ptr()) };
        // SAFETY: it has that many rows, zeroed at first, and nobody else uses them: it was not given away, or is done.
        unsafe { slice::from_raw_parts_mut(at, self.count) }
    }

    pub(crate) fn data(&mut self) -> &mut [u8] {
        // SAFETY: the job is alive.
        let at = unsafe { c::hk_job_data(self.at.as_ptr()) };
        // SAFETY: it has that many bytes, zeroed at first, and nobody else uses them.
        unsafe { slice::from_raw_parts_mut(at, self.size) }
    }

    pub(crate) fn pointers(&mut self) -> &mut [PointerRow] {
        // SAFETY: the job is alive.
        let at = unsafe { c::hk_job_pointers(self.at.as_ptr()) };
        // SAFETY: it has that many rows, zeroed at first, and nobody else uses them.
        unsafe { slice::from_raw_parts_mut(at, self.places) }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // SAFETY: this reference is given back and not used again.
        unsafe { c::hk_job_put(self.at.as_ptr()) };
    }
}

/// Calls that were made: who made them does not touch them any more.
pub(crate) struct Done(Job);

impl Done {
    pub(crate) fn made(&self) -> u32 {
        // SAFETY: the job is alive.
        unsafe { c::hk_job_made(self.0.at.as_ptr()) }
    }

    pub(crate) fn calls(&mut self) -> &[CallRow] {
        self.0.calls()
    }

    pub(crate) fn data(&mut self) -> &[u8] {
        self.0.data()
    }
}

/// An address space.
pub(crate) struct Memory(NonNull<c_void>);

impl Memory {
    pub(crate) fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// A copy on write, as it is now. Only a thread of the kernel may ask for it.
    pub(crate) fn copy_on_write(&self) -> Result<Self> {
        let mut copy = ptr::null_mut();
        // SAFETY: the address space is alive; `copy` is a place for a reference, which is ours when the answer is 0.
        Errno::check(unsafe { c::hk_copy_on_write(self.0.as_ptr(), &raw mut copy) })?;
        NonNull::new(copy).map(Self).ok_or(Errno::NOMEM)
    }

    /// The first mapping that ends behind an address, its name put into `name`.
    pub(crate) fn next(&self, from: u64, name: &mut [u8]) -> Result<Option<Vma>> {
        let room = u32::try_from(name.len()).map_err(|_| Errno::OVERFLOW)?;
        let mut vma = Vma::default();
        // SAFETY: the address space is alive; `vma` has the layout of `struct hk_vma`, `name` has `room` bytes.
        let found = unsafe { c::hk_next_mapping(self.0.as_ptr(), from, &raw mut vma, name.as_mut_ptr(), room) };
        Ok((Errno::check(found)? != 0).then_some(vma))
    }

    /// Whole pages; how many bytes before the first page that could not be read.
    pub(crate) fn read(&self, at: u64, into: &mut [u8]) -> Result<usize> {
        let bytes = u32::try_from(into.len()).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: the address space is alive; at most `bytes` bytes are written to `into`.
        let read = Errno::check(unsafe { c::hk_read_pages(self.0.as_ptr(), at, into.as_mut_ptr().cast(), bytes) })?;
        usize::try_from(read).map_err(|_| Errno::OVERFLOW)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this reference is given back and not used again.
        unsafe { c::hk_mm_put(self.0.as_ptr()) };
    }
}

/// A file; its use by several tasks at once is the kernel's to order.
pub(crate) struct File(NonNull<c_void>);

// SAFETY: files are shared by all who have a reference.
unsafe impl Sync for File {}

impl File {
    /// # Safety
    /// It is null, or a reference that is given away.
    pub(crate) unsafe fn from_reference(file: *mut c_void) -> Option<Self> {
        NonNull::new(file).map(Self)
    }

    pub(crate) fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// Exactly so many bytes from a place.
    pub(crate) fn read(&self, into: &mut [u8], at: u64) -> Result<()> {
        // SAFETY: the file is alive; `into` has that many bytes.
        Errno::check(unsafe { c::hk_read(self.0.as_ptr(), into.as_mut_ptr().cast(), into.len(), at) }).map(|_| ())
    }

    pub(crate) fn size(&self) -> u64 {
        // SAFETY: the file is alive.
        unsafe { c::hk_size(self.0.as_ptr()) }
    }

    /// A regular file of the caller's, open for writing.
    pub(crate) fn to_write(fd: i32) -> Result<Self> {
        // SAFETY: any number may be asked for.
        NonNull::new(unsafe { c::hk_file(fd, true) }).map(Self).ok_or(Errno::BADF)
    }

    /// A regular file of the caller's, open for reading.
    pub(crate) fn to_read(fd: i32) -> Result<Self> {
        // SAFETY: any number may be asked for.
        NonNull::new(unsafe { c::hk_file(fd, false) }).map(Self).ok_or(Errno::BADF)
    }

    /// All of it, at `at`, which moves on.
    pub(crate) fn write(&self, bytes: &[u8], at: &mut u64) -> Result<()> {
        // SAFETY: the file is alive; `bytes` are that many, `at` is a number of ours.
        Errno::check(unsafe { c::hk_write(self.0.as_ptr(), bytes.as_ptr().cast(), bytes.len(), at) }).map(|_| ())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: this reference is given back and not used again.
        unsafe { c::hk_file_put(self.0.as_ptr()) };
    }
}

/// Fills `rows`; how many tasks there are.
pub(crate) fn scan(rows: &mut [Row], cgroup: u64) -> Result<usize> {
    let room = u32::try_from(rows.len()).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: at most `room` rows are written, which have the layout of `struct hk_row`.
    let count = Errno::check(unsafe { c::hk_scan(rows.as_mut_ptr(), room, cgroup) })?;
    usize::try_from(count).map_err(|_| Errno::OVERFLOW)
}

/// Bits of `hdcr_abi::feature`.
pub(crate) fn features() -> u64 {
    // SAFETY: it reads a number that is set before the first session.
    unsafe { c::hk_features() }
}

/// Bytes of the XSAVE area of a thread.
pub(crate) fn xstate_size() -> u32 {
    // SAFETY: it asks about the caller, who is alive.
    unsafe { c::hk_xstate_size() }
}

/// Zeroed memory.
pub(crate) fn alloc(size: usize) -> Option<NonNull<u8>> {
    // SAFETY: any size may be asked for.
    NonNull::new(unsafe { c::hk_alloc(size) }.cast())
}

/// # Safety
/// It comes from [`alloc`] and is not used again.
pub(crate) unsafe fn free(at: NonNull<u8>) {
    // SAFETY: as demanded.
    unsafe { c::hk_free(at.as_ptr().cast()) };
}

/// A value in memory of its own.
pub(crate) fn boxed<T>(value: T) -> Option<*mut T> {
    let at = alloc(size_of::<T>())?.cast::<T>().as_ptr();
    // SAFETY: the memory is ours, large enough, and aligned, as memory of the kernel is to 8 bytes and more.
    unsafe { at.write(value) };
    Some(at)
}

/// # Safety
/// It comes from [`boxed`] and is not used again.
pub(crate) unsafe fn unbox<T>(at: *mut T) {
    // SAFETY: it holds a value, as demanded.
    unsafe { ptr::drop_in_place(at) };
    // SAFETY: it came from `hk_alloc`, as demanded.
    unsafe { c::hk_free(at.cast()) };
}

/// # Safety
/// `to` has `size` bytes, for which every value will do.
pub(crate) unsafe fn from_user(from: u64, to: *mut u8, size: usize) -> Result<()> {
    // SAFETY: as demanded; the address in user space is checked by the callee.
    Errno::check(unsafe { c::hk_from_user(to.cast(), from, size) }).map(|_| ())
}

/// # Safety
/// `from` has `size` initialised bytes.
pub(crate) unsafe fn to_user(to: u64, from: *const u8, size: usize) -> Result<()> {
    // SAFETY: as demanded; the address in user space is checked by the callee.
    Errno::check(unsafe { c::hk_to_user(to, from.cast(), size) }).map(|_| ())
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn now() -> u64 {
    // SAFETY: it reads the clock.
    unsafe { c::hk_now() }
}

/// Sleeps for some microseconds.
pub(crate) fn pause() {
    // SAFETY: no lock of the kernel's is held here that forbids to sleep.
    unsafe { c::hk_pause() };
}

/// Has a thread of the kernel do the work and waits for its end.
pub(crate) fn run_in_thread(work: &mut crate::Work<'_, '_>) -> Result<()> {
    // SAFETY: `hdcr_rs_work` takes it as what it is; it outlives the call, which ends after the thread has.
    Errno::check(unsafe { c::hk_run_in_thread(ptr::from_mut(work).cast()) }).map(|_| ())
}

/// Whether the thread's work is not wanted any more.
pub(crate) fn is_called_off() -> bool {
    // SAFETY: it asks about the calling thread.
    unsafe { c::hk_called_off() }
}

/// Ends as a bug of the kernel does.
pub(crate) fn give_up(text: &[u8]) -> ! {
    let length = u32::try_from(text.len()).unwrap_or(0);
    // SAFETY: `text` has that many bytes.
    unsafe { c::hk_give_up(text.as_ptr(), length) }
}

const _: () = {
    assert!(size_of::<Look>() == 16);
    assert!(size_of::<Facts>() == 144);
    assert!(size_of::<Vma>() == 48);
    assert!(size_of::<Row>() == 32);
    assert!(size_of::<Waits>() == 16);
    assert!(size_of::<CallRow>() == 72);
    assert!(size_of::<PointerRow>() == 8);
    assert!(mem::offset_of!(Facts, comm) == 128);
};
