//! A list in memory of the kernel that says no when there is none.
// SPDX-License-Identifier: GPL-2.0-only

use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};
use core::slice;

use crate::answer::{Errno, Result};
use crate::glue;

/// A list that grows by doubling. Dropping it drops what is in it.
pub(crate) struct Table<T> {
    at: NonNull<T>,
    room: usize,
    used: usize,
}

impl<T> Table<T> {
    /// An empty one without memory.
    pub(crate) const fn new() -> Self {
        Self { at: NonNull::dangling(), room: 0, used: 0 }
    }

    /// Appends one.
    pub(crate) fn push(&mut self, value: T) -> Result<()> {
        if self.used == self.room {
            self.grow((self.room * 2).max(16))?;
        }
        // SAFETY: `used` is less than `room` here, and that many values fit at `at`.
        let place = unsafe { self.at.as_ptr().add(self.used) };
        // SAFETY: the place is ours, holds no value, and is aligned, as memory of the kernel is to 8 bytes and more.
        unsafe { place.write(value) };
        self.used += 1;
        Ok(())
    }

    /// Drops those for which `keep` says no, and keeps the order of the others.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        let mut kept = 0;
        for i in 0..self.used {
            if !self.get(i).is_some_and(&mut keep) {
                continue;
            }
            self.swap(i, kept);
            kept += 1;
        }
        while self.used > kept {
            self.used -= 1;
            // SAFETY: this was the last value, and is none any more by the new count.
            let last = unsafe { self.at.as_ptr().add(self.used) };
            // SAFETY: it holds a value that nobody else knows.
            unsafe { ptr::drop_in_place(last) };
        }
    }

    fn grow(&mut self, room: usize) -> Result<()> {
        const { assert!(size_of::<T>() != 0) };
        let bytes = room.checked_mul(size_of::<T>()).ok_or(Errno::NOMEM)?;
        let new = glue::alloc(bytes).ok_or(Errno::NOMEM)?.cast::<T>();
        // SAFETY: `used` values are at the old place, the new one has room for more, and the two are different.
        unsafe { ptr::copy_nonoverlapping(self.at.as_ptr(), new.as_ptr(), self.used) };
        let (old, had) = (self.at, self.room);
        self.at = new;
        self.room = room;
        if had > 0 {
            // SAFETY: it came from `alloc` and its values have moved.
            unsafe { glue::free(old.cast()) };
        }
        Ok(())
    }
}

impl<T: Copy + Default> Table<T> {
    /// So many default values.
    pub(crate) fn filled(count: usize) -> Result<Self> {
        let mut table = Self::new();
        if count > 0 {
            table.grow(count)?;
        }
        for _ in 0..count {
            table.push(T::default())?;
        }
        Ok(table)
    }

    /// Forgets those behind the first `count`.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.used = self.used.min(count);
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the first `used` places hold values; without any, `at` is dangling and aligned, as an empty slice may be.
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.used) }
    }
}

impl<T> DerefMut for Table<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`; the table is borrowed for writing.
        unsafe { slice::from_raw_parts_mut(self.at.as_ptr(), self.used) }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        self.retain(|_| false);
        if self.room > 0 {
            // SAFETY: it came from `alloc` and holds no value any more.
            unsafe { glue::free(self.at.cast()) };
        }
    }
}
