//! The C surface (`include/hdcr.h`): values in, values out, nothing decided here.
//!
//! What a caller gives room for begins with its size, so that a program of an older version is written no further than it
//! knows. A null pointer for an answer means that it is not wanted.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::hooks::{After, Hook, Veto};
use crate::outcome::{Class, Failed, Outcome, Restored};
use crate::{Inside, Options, Request, Section, sections};

/// `HDCR_CONTINUED` and its kin.
const CONTINUED: c_int = 0;
const RESTORED: c_int = 1;
const PENDING: c_int = 2;
const FAILED: c_int = -1;

/// `struct hdcr_options`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct COptions {
    size: usize,
    /// Milliseconds; 0: as `hdcr run` says.
    timeout_ms: u64,
}

/// `struct hdcr_report`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CReport {
    size: usize,
    /// How often the job was brought back.
    count: u64,
    /// Milliseconds from the checkpoint to the restore.
    passed_ms: u64,
    /// 0, or 1 to 4: refused, changed, failed, corrupt.
    class: c_int,
    reserved: c_int,
    image: [c_char; 320],
    reason: [c_char; 32],
    code: [c_char; 64],
    message: [c_char; 1024],
}

// As `trials/library/branches.c` has them.
const _: () = assert!(size_of::<CReport>() == 1472 && size_of::<COptions>() == 16);

impl CReport {
    fn new() -> Self {
        Self {
            size: size_of::<Self>(),
            count: 0,
            passed_ms: 0,
            class: 0,
            reserved: 0,
            image: [0; 320],
            reason: [0; 32],
            code: [0; 64],
            message: [0; 1024],
        }
    }

    fn of_restored(restored: &Restored) -> Self {
        let mut report = Self { count: restored.count, ..Self::new() };
        report.passed_ms = u64::try_from(restored.passed.as_millis()).unwrap_or(u64::MAX);
        put(&mut report.image, &restored.image);
        put(&mut report.reason, restored.reason.name());
        report
    }

    fn of_failed(failed: &Failed) -> Self {
        let class = match failed.class {
            Class::Refused => 1,
            Class::Changed => 2,
            Class::Failed => 3,
            Class::Corrupt => 4,
        };
        let mut report = Self { class, ..Self::new() };
        put(&mut report.code, &failed.code);
        put(&mut report.message, &failed.to_string());
        report
    }
}

/// As much of a text as there is room for, and a zero.
fn put(into: &mut [c_char], text: &str) {
    let room = into.len().saturating_sub(1);
    for (to, from) in into.iter_mut().take(room).zip(text.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
}

/// Writes as much of a report as the caller has room for.
///
/// # Safety
/// `to` is null, or points to as many writable bytes as its first member says.
unsafe fn tell(to: *mut CReport, report: &CReport) {
    if to.is_null() {
        return;
    }
    // SAFETY: the caller has set `size`, the first member.
    let size = unsafe { to.cast::<usize>().read() };
    let mut report = *report;
    report.size = size;
    let length = size.min(size_of::<CReport>());
    // SAFETY: `length` bytes can be written by what the caller says, and be read by the size of `report`; the two do not
    // overlap, as one of them is our own.
    unsafe { std::ptr::copy_nonoverlapping((&raw const report).cast::<u8>(), to.cast::<u8>(), length) };
}

/// # Safety
/// As [`tell`].
unsafe fn tell_outcome(to: *mut CReport, outcome: &Outcome) -> c_int {
    let (branch, report) = match outcome {
        Outcome::Continued { image } => {
            let mut report = CReport::new();
            put(&mut report.image, image);
            (CONTINUED, report)
        }
        Outcome::Restored(restored) => (RESTORED, CReport::of_restored(restored)),
        Outcome::Failed(failed) => (FAILED, CReport::of_failed(failed)),
    };
    // SAFETY: as for this function.
    unsafe { tell(to, &report) };
    branch
}

/// # Safety
/// `from` is null, or points to as many readable bytes as its first member says.
unsafe fn options(from: *const COptions) -> Options {
    if from.is_null() {
        return Options::default();
    }
    // SAFETY: the caller has set `size`, the first member.
    let size = unsafe { from.cast::<usize>().read() };
    if size < size_of::<COptions>() {
        return Options::default();
    }
    // SAFETY: all of it is there, by `size`.
    let given = unsafe { from.read() };
    Options { timeout: (given.timeout_ms > 0).then(|| Duration::from_millis(given.timeout_ms)) }
}

/// 1 under a keeper that has answered, else 0.
#[unsafe(no_mangle)]
pub extern "C" fn hdcr_is_enabled() -> c_int {
    c_int::from(crate::is_enabled())
}

/// How often the job was brought back, or begun anew after a crash.
#[unsafe(no_mangle)]
pub extern "C" fn hdcr_restart_count() -> u64 {
    crate::restart_count()
}

/// This is a good moment for a checkpoint.
#[unsafe(no_mangle)]
pub extern "C" fn hdcr_good_moment() {
    crate::good_moment();
}

/// Where this life came from: 1 and a report, or 0.
///
/// # Safety
/// `report` is null, or points to a `struct hdcr_report` whose size is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_restored(report: *mut CReport) -> c_int {
    let Some(restored) = crate::restored() else { return 0 };
    // SAFETY: as the caller promises.
    unsafe { tell(report, &CReport::of_restored(&restored)) };
    1
}

/// Writes the name of the job and a zero; its length, or -1 without HDCR. Nothing is cut off that would not fit: then only
/// the length is told.
///
/// # Safety
/// `name` points to `room` writable bytes, or `room` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_job(name: *mut c_char, room: usize) -> isize {
    let Some(job) = crate::job() else { return -1 };
    if job.len() < room {
        // SAFETY: there is room for all of it.
        unsafe { std::ptr::copy_nonoverlapping(job.as_ptr(), name.cast::<u8>(), job.len()) };
        // SAFETY: and for one byte more.
        let end = unsafe { name.add(job.len()) };
        // SAFETY: that byte.
        unsafe { end.write(0) };
    }
    isize::try_from(job.len()).unwrap_or(isize::MAX)
}

/// Takes a checkpoint and says on which branch the program is.
///
/// # Safety
/// `wanted` is null or points to a `struct hdcr_options`, `report` is null or points to a `struct hdcr_report`, each with
/// its size set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_checkpoint(wanted: *const COptions, report: *mut CReport) -> c_int {
    // SAFETY: as the caller promises.
    let wanted = unsafe { options(wanted) };
    let outcome = crate::checkpoint(&wanted);
    // SAFETY: as the caller promises.
    unsafe { tell_outcome(report, &outcome) }
}

/// Gives up this life and goes back to a checkpoint, the newest for 0. Returns -1, and only when that cannot be done.
///
/// # Safety
/// `report` is null, or points to a `struct hdcr_report` whose size is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_rollback(to: u64, report: *mut CReport) -> c_int {
    let failed = crate::rollback((to > 0).then_some(to));
    // SAFETY: as the caller promises.
    unsafe { tell_outcome(report, &Outcome::Failed(failed)) }
}

/// Asks for a checkpoint and does not wait. Null and a report when it cannot be asked for.
///
/// # Safety
/// As [`hdcr_checkpoint`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_request_begin(wanted: *const COptions, report: *mut CReport) -> *mut Request {
    // SAFETY: as the caller promises.
    let wanted = unsafe { options(wanted) };
    match crate::request(&wanted) {
        Ok(request) => Box::into_raw(Box::new(request)),
        Err(failed) => {
            // SAFETY: as the caller promises.
            unsafe { tell_outcome(report, &Outcome::Failed(failed)) };
            std::ptr::null_mut()
        }
    }
}

/// The descriptor of a request: it can be read when the request is met or has failed.
///
/// # Safety
/// `request` comes from [`hdcr_request_begin`] and was not given back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_request_fd(request: *const Request) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { request.as_ref() }.map_or(-1, AsRawFd::as_raw_fd)
}

/// Waits for so many milliseconds, without an end for a negative number: the branch, or `HDCR_PENDING`.
///
/// # Safety
/// As [`hdcr_request_fd`] and [`hdcr_rollback`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_request_wait(request: *const Request, limit_ms: i64, report: *mut CReport) -> c_int {
    // SAFETY: as the caller promises.
    let Some(request) = (unsafe { request.as_ref() }) else { return FAILED };
    match request.wait(u64::try_from(limit_ms).ok().map(Duration::from_millis)) {
        None => PENDING,
        // SAFETY: as the caller promises.
        Some(outcome) => unsafe { tell_outcome(report, &outcome) },
    }
}

/// `struct hdcr_event`.
#[repr(C)]
#[derive(Debug)]
pub struct CEvent {
    size: usize,
    /// 1: before, 2: after, 3: restored.
    when: c_int,
    /// After: the program was captured.
    captured: c_int,
    /// Restored: from what.
    report: *const CReport,
    /// Before: room for the reason of a veto.
    text: *mut c_char,
    room: usize,
}

const _: () = assert!(size_of::<CEvent>() == 40);

/// What a program gives for a hook.
type CHook = unsafe extern "C" fn(*mut CEvent, *mut c_void) -> c_int;

/// A hook and what it wants to be given.
#[derive(Clone, Copy)]
struct Given {
    hook: CHook,
    data: *mut c_void,
}

// SAFETY: the caller of `hdcr_on` promises that both may be used by the agent's thread.
unsafe impl Send for Given {}
// SAFETY: as above; only that thread uses them.
unsafe impl Sync for Given {}

impl Given {
    fn call(&self, event: &mut CEvent) -> c_int {
        // SAFETY: the caller of `hdcr_on` promises that it may be called with this.
        unsafe { (self.hook)(event, self.data) }
    }

    fn before(&self) -> Result<(), Veto> {
        let mut text: [c_char; 256] = [0; 256];
        let mut event = CEvent::of(1);
        (event.text, event.room) = (text.as_mut_ptr(), text.len());
        match self.call(&mut event) {
            0 => Ok(()),
            code => {
                let bytes = text.iter().map(|byte| byte.to_ne_bytes()[0]).take_while(|byte| *byte != 0);
                let text = String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned();
                Err(Veto { permanent: code < 0, code: code.saturating_abs(), text })
            }
        }
    }
}

impl CEvent {
    fn of(when: c_int) -> Self {
        let (report, text) = (std::ptr::null(), std::ptr::null_mut());
        Self { size: size_of::<Self>(), when, captured: 0, report, text, room: 0 }
    }
}

/// Sets a hook: its number, or 0 when there is no such time.
///
/// # Safety
/// `hook` may be called with `data` by another thread until it is taken away.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_on(when: c_int, order: c_int, hook: Option<CHook>, data: *mut c_void) -> u64 {
    let Some(hook) = hook else { return 0 };
    let given = Given { hook, data };
    match when {
        1 => crate::before(order, move || given.before()).0,
        2 => {
            let work = move |how| {
                let mut event = CEvent { captured: c_int::from(how == After::Captured), ..CEvent::of(2) };
                given.call(&mut event);
            };
            crate::after(order, work).0
        }
        3 => {
            let work = move |from: &Restored| {
                let report = CReport::of_restored(from);
                let mut event = CEvent { report: &raw const report, ..CEvent::of(3) };
                given.call(&mut event);
            };
            crate::on_restored(order, work).0
        }
        _ => 0,
    }
}

/// Takes a hook away. One that runs at the moment comes to its end.
#[unsafe(no_mangle)]
pub extern "C" fn hdcr_off(hook: u64) {
    Hook(hook).remove();
}

/// Makes a critical section.
///
/// # Safety
/// `label` is a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_section_new(label: *const c_char) -> *mut Section {
    // SAFETY: as the caller promises.
    let label = unsafe { CStr::from_ptr(label) };
    Box::into_raw(Box::new(Section::new(label.to_string_lossy())))
}

/// Enters a section; waits while a checkpoint is being taken.
///
/// # Safety
/// `section` comes from [`hdcr_section_new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_enter(section: *const Section) {
    // SAFETY: as the caller promises; it is never given back.
    let inside = unsafe { *section }.enter();
    keep(inside);
}

/// Enters a section if that needs no wait: 1, else 0.
///
/// # Safety
/// As [`hdcr_enter`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_try_enter(section: *const Section) -> c_int {
    // SAFETY: as the caller promises; it is never given back.
    let inside = unsafe { *section }.try_enter();
    c_int::from(inside.map(keep).is_some())
}

/// Leaves the innermost section of this thread.
#[unsafe(no_mangle)]
pub extern "C" fn hdcr_leave() {
    sections::leave();
}

/// Who is inside leaves by a call of his own.
fn keep(inside: Inside) {
    let _kept = std::mem::ManuallyDrop::new(inside);
}

/// # Safety
/// As [`hdcr_checkpoint`].
unsafe fn told(done: Result<(), Failed>, report: *mut CReport) -> c_int {
    match done {
        Ok(()) => 0,
        // SAFETY: as for this function.
        Err(failed) => unsafe { tell_outcome(report, &Outcome::Failed(failed)) },
    }
}

/// Leaves memory out of checkpoints: 0, or -1 and a report.
///
/// # Safety
/// As [`crate::exclude`]; `report` is null, or points to a `struct hdcr_report` whose size is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_exclude(start: *const c_void, length: usize, report: *mut CReport) -> c_int {
    // SAFETY: as the caller promises.
    let done = unsafe { crate::exclude(start.cast(), length) };
    // SAFETY: as the caller promises.
    unsafe { told(done, report) }
}

/// The same for secrets.
///
/// # Safety
/// As [`crate::secret`]; `report` is null, or points to a `struct hdcr_report` whose size is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_secret(start: *const c_void, length: usize, report: *mut CReport) -> c_int {
    // SAFETY: as the caller promises.
    let done = unsafe { crate::secret(start.cast(), length) };
    // SAFETY: as the caller promises.
    unsafe { told(done, report) }
}

/// Keeps memory again: 0, or -1 and a report.
///
/// # Safety
/// `report` is null, or points to a `struct hdcr_report` whose size is set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_include(start: *const c_void, length: usize, report: *mut CReport) -> c_int {
    let done = crate::include(start.cast(), length);
    // SAFETY: as the caller promises.
    unsafe { told(done, report) }
}

/// Gives a request back. A checkpoint that has not begun is not taken then.
///
/// # Safety
/// `request` is null, or comes from [`hdcr_request_begin`], and is used no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hdcr_request_free(request: *mut Request) {
    if !request.is_null() {
        // SAFETY: it was made by `Box::into_raw`.
        drop(unsafe { Box::from_raw(request) });
    }
}
