//! The one system call that everything goes through.
#![expect(unsafe_code, reason = "the kernel writes into what a request points to")]

use std::os::fd::BorrowedFd;

use hdcr_abi::{
    Calls, Capture, Freeze, Hello, Kill, Mappings, Pages, Registers, Request, Restore, Signals, Tasks, Thaw, Waiting,
};
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl};

use crate::session::Rows;

/// The requests that hold no address, or whose addresses were put in by the functions below.
pub(crate) trait Call: Request {
    /// Makes the call; the answer is in the request afterwards.
    fn call(&mut self, device: BorrowedFd<'_>) -> Result<(), Errno>;
}

macro_rules! calls {
    ($($request:ident),*) => {$(
        impl Call for $request {
            fn call(&mut self, device: BorrowedFd<'_>) -> Result<(), Errno> {
                // SAFETY: the opcode says that the kernel reads and writes exactly this struct, of which every value is valid.
                let call = unsafe { Updater::<{ $request::COMMAND }, $request>::new(self) };
                // SAFETY: the device is the module's or knows no such opcode. Addresses in the request are those of buffers
                // that `into`, `of` and `of_calls` borrow for the time of the call, with their lengths.
                unsafe { ioctl(device, call) }
            }
        }
    )*};
}
calls!(Calls, Capture, Restore, Hello, Freeze, Thaw, Kill, Tasks, Mappings, Registers, Pages, Signals, Waiting);

/// Makes a call that fills a buffer: `aim` puts the address in.
pub(crate) fn into<C: Call, T>(
    call: &mut C,
    device: BorrowedFd<'_>,
    buffer: &mut [T],
    aim: fn(&mut C, u64, u32),
) -> Result<(), Errno> {
    let room = u32::try_from(buffer.len()).map_err(|_| Errno::OVERFLOW)?;
    aim(call, buffer.as_mut_ptr().expose_provenance() as u64, room);
    call.call(device)
}

/// Makes a call that reads a buffer: `aim` puts the address in.
pub(crate) fn of<C: Call, T>(
    call: &mut C,
    device: BorrowedFd<'_>,
    buffer: &[T],
    aim: fn(&mut C, u64, u32),
) -> Result<(), Errno> {
    let count = u32::try_from(buffer.len()).map_err(|_| Errno::OVERFLOW)?;
    aim(call, buffer.as_ptr().expose_provenance() as u64, count);
    call.call(device)
}

/// Makes the call that has a thread make calls: they come back with their results, and so does the data.
pub(crate) fn of_calls(request: &mut Calls, device: BorrowedFd<'_>, rows: &mut Rows) -> Result<(), Errno> {
    let count = |length: usize| u32::try_from(length).map_err(|_| Errno::OVERFLOW);
    request.count = count(rows.calls.len())?;
    request.size = count(rows.data.len())?;
    request.places = count(rows.pointers.len())?;
    request.calls = rows.calls.as_mut_ptr().expose_provenance() as u64;
    request.data = rows.data.as_mut_ptr().expose_provenance() as u64;
    request.pointers = rows.pointers.as_ptr().expose_provenance() as u64;
    request.call(device)
}
