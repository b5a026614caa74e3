//! The Rust half of the module: sessions, freezes, and what is read under them. It knows no struct of the kernel.
//!
//! Reading order: `session.rs` (what is asked), `freeze.rs` (all or none), `read.rs`. Every call into C is in `glue.rs`.
// SPDX-License-Identifier: GPL-2.0-only
#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(missing_docs, unreachable_pub)]

mod answer;
mod build;
mod calls;
mod capture;
mod frames;
mod freeze;
mod glue;
mod image;
mod looking;
mod making;
mod panic;
mod plain;
mod read;
mod restore;
mod scope;
mod session;
mod table;

use core::ffi::c_void;

use session::Session;

/// A new session, or null when there is no memory.
#[unsafe(no_mangle)]
extern "C" fn hdcr_rs_open() -> *mut Session {
    glue::boxed(Session::new()).unwrap_or(core::ptr::null_mut())
}

/// # Safety
/// `session` comes from [`hdcr_rs_open`], was not released, and is used by nobody else meanwhile.
#[unsafe(no_mangle)]
unsafe extern "C" fn hdcr_rs_ioctl(session: *mut Session, command: u32, argument: u64) -> i64 {
    // SAFETY: the caller holds the session's mutex, so this is the only reference; it is alive by the demand above.
    let session = unsafe { &mut *session };
    session.answer(command, argument).map_or_else(|error| error.number(), |()| 0)
}

/// # Safety
/// As for [`hdcr_rs_ioctl`].
#[unsafe(no_mangle)]
unsafe extern "C" fn hdcr_rs_thaw(session: *mut Session) {
    // SAFETY: the caller holds the session's mutex, so this is the only reference; it is alive by the demand above.
    let session = unsafe { &mut *session };
    session.thaw();
}

/// # Safety
/// As for [`hdcr_rs_ioctl`]; it is not used afterwards.
#[unsafe(no_mangle)]
unsafe extern "C" fn hdcr_rs_release(session: *mut Session) {
    // SAFETY: it was made by `glue::boxed`, and the last user gives it away.
    unsafe { glue::unbox(session) };
}

/// # Safety
/// `work` is what was given to `hk_run_in_thread`, whose caller waits.
#[unsafe(no_mangle)]
unsafe extern "C" fn hdcr_rs_work(work: *mut Work<'_, '_>) -> i64 {
    // SAFETY: who gives work to a thread waits for its end and does not touch it meanwhile (`glue::run_in_thread`).
    let work = unsafe { &mut *work };
    let done = match work {
        Work::Copy(copying) => copying.run(),
        Work::CopyOnWrite(writing) => writing.copy_on_write(),
        Work::Capture(writing) => writing.run(),
    };
    done.map_or_else(|error| error.number(), |()| 0)
}

/// What a thread of the kernel does for a caller.
enum Work<'a, 'b> {
    Copy(&'a mut read::Copying<'b>),
    CopyOnWrite(&'a mut frames::Writing),
    Capture(&'a mut frames::Writing),
}

/// # Safety
/// `plan` and `site` are those of `making::Site::new`, and the caller is the task with that number.
#[unsafe(no_mangle)]
unsafe extern "C" fn hdcr_rs_build(plan: *const restore::Plan, site: *mut c_void, number: u32) -> i64 {
    // SAFETY: the plan outlives the site, which waits for whoever builds; nobody changes it.
    let plan = unsafe { &*plan };
    // SAFETY: the site is alive as long as one of its tasks builds.
    let crew = unsafe { making::Crew::of(site) }.ok_or(answer::Errno::INVAL);
    let built = crew.and_then(|crew| build::build(plan, &crew, number as usize));
    built.map_or_else(|error| error.number(), |()| 0)
}
