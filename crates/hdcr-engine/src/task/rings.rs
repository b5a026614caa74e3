//! Rings of `io_uring` that a thread has registered (`IORING_REGISTER_RING_FDS`, Linux 5.18): they work without any descriptor or
//! mapping, and only the thread itself can be asked for them. They end in a refusal.

use nix::libc;

use super::TaskView;
use crate::batch::{Arg, Batch, Replies};
use crate::error::{Error, Result};

/// Rings that a thread can register (`IO_RINGFD_REG_MAX` of kernel `include/linux/io_uring_types.h`).
pub(super) const MOST: usize = 16;
/// `IORING_ENTER_REGISTERED_RING` of `<linux/io_uring.h>`: the first argument is a place, not a descriptor.
const REGISTERED: u64 = 1 << 4;

/// Asks a thread to submit nothing to each ring that it may have, and to wait for nothing.
pub(super) fn ask(batch: &mut Batch) -> [usize; MOST] {
    std::array::from_fn(|place| {
        let (place, none) = (Arg::Value(u64::try_from(place).unwrap_or(0)), Arg::Value(0));
        batch.try_call(libc::SYS_io_uring_enter, &[place, none, none, Arg::Value(REGISTERED), none, none])
    })
}

/// Refuses a thread that has one. A place without a ring is EBADF, a thread that never had any is EINVAL.
pub(super) fn refuse(task: &TaskView, asked: [usize; MOST], replies: &Replies) -> Result<()> {
    const NONE: [i32; 4] = [libc::EBADF, libc::EINVAL, libc::ENOSYS, libc::EPERM];
    let has_none =
        |call| replies.result(call).is_none_or(|result| NONE.iter().any(|error| result == -i64::from(*error)));
    if asked.into_iter().all(has_none) {
        return Ok(());
    }
    let cause = "it has registered a ring (io_uring_register(2)), and what it has begun cannot be taken over";
    Err(Error::refuse(task.refuse("io-uring", "io_uring instance", cause, "run the program without io_uring")))
}
