//! Values that may be copied from and to user space byte by byte.
// SPDX-License-Identifier: GPL-2.0-only

use hdcr_abi::{
    CallRow, Calls, Capture, Freeze, Head, Hello, Kill, MappingRow, Mappings, Pages, PointerRow, Range, Registers,
    Restore, Signals, TaskRow, Tasks, Thaw, Waiting,
};

use crate::answer::Result;
use crate::glue;

/// A struct in which every byte pattern is a value, and no byte is padding.
///
/// # Safety
/// It is `repr(C)`, consists of whole numbers only, and has no padding.
pub(crate) unsafe trait Plain: Copy + Default {}

macro_rules! plain {
    ($($kind:ty),*) => {$(
        // SAFETY: the unit tests of hdcr-abi hold that its structs have no gap and consist of whole numbers; a byte is one.
        unsafe impl Plain for $kind {}
    )*};
}
plain!(
    CallRow, Calls, Capture, Freeze, Head, Hello, Kill, MappingRow, Mappings, Pages, PointerRow, Range, Registers,
    Restore, Signals, TaskRow, Tasks, Thaw, Waiting, u8
);

/// Reads one from the caller.
pub(crate) fn from_user<T: Plain>(at: u64) -> Result<T> {
    let mut value = T::default();
    all_from_user(at, core::slice::from_mut(&mut value))?;
    Ok(value)
}

/// Reads several from the caller.
pub(crate) fn all_from_user<T: Plain>(at: u64, into: &mut [T]) -> Result<()> {
    // SAFETY: the bytes are those of `into`, and whatever is written there is a value, as `T` is plain.
    unsafe { glue::from_user(at, into.as_mut_ptr().cast(), size_of_val(into)) }
}

/// Writes one to the caller.
pub(crate) fn to_user<T: Plain>(at: u64, value: &T) -> Result<()> {
    all_to_user(at, core::slice::from_ref(value))
}

/// Writes several to the caller.
pub(crate) fn all_to_user<T: Plain>(at: u64, values: &[T]) -> Result<()> {
    // SAFETY: the bytes are those of `values`, all of them initialised, as `T` is plain and has no padding.
    unsafe { glue::to_user(at, values.as_ptr().cast(), size_of_val(values)) }
}
