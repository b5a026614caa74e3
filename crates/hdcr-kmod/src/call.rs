//! The one system call that everything goes through.
#![expect(unsafe_code, reason = "the kernel writes into what a request points to")]

use std::os::fd::BorrowedFd;

use hdcr_abi::{Capture, Freeze, Hello, Kill, Mappings, Pages, Registers, Request, Restore, Tasks, Thaw};
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl};

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
                // that `into` and `of` borrow for the time of the call, with their lengths.
                unsafe { ioctl(device, call) }
            }
        }
    )*};
}
calls!(Capture, Restore, Hello, Freeze, Thaw, Kill, Tasks, Mappings, Registers, Pages);

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
