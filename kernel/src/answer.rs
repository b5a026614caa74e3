//! Error numbers, as `ioctl` gives them back.
// SPDX-License-Identifier: GPL-2.0-only

/// An error number. There is none but those named here and what the glue returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Errno(i64);

impl Errno {
    /// Not permitted.
    pub(crate) const PERM: Self = Self(-1);
    /// No such file.
    pub(crate) const NOENT: Self = Self(-2);
    /// No such task.
    pub(crate) const SRCH: Self = Self(-3);
    /// A signal came.
    pub(crate) const INTR: Self = Self(-4);
    /// No such descriptor, or not one that will do.
    pub(crate) const BADF: Self = Self(-9);
    /// No memory.
    pub(crate) const NOMEM: Self = Self(-12);
    /// Something is frozen already, or held by another session.
    pub(crate) const BUSY: Self = Self(-16);
    /// It is there already.
    pub(crate) const EXIST: Self = Self(-17);
    /// A number, size, flag or reserved word that is not known.
    pub(crate) const INVAL: Self = Self(-22);
    /// No such request.
    pub(crate) const NOTTY: Self = Self(-25);
    /// The scope holds the caller.
    pub(crate) const DEADLK: Self = Self(-35);
    /// Nothing is frozen.
    pub(crate) const NODATA: Self = Self(-61);
    /// An address without memory.
    pub(crate) const FAULT: Self = Self(-14);
    /// What cannot be done, for a reason that the answer names.
    pub(crate) const NOTSUPP: Self = Self(-95);
    /// More than fits.
    pub(crate) const OVERFLOW: Self = Self(-75);
    /// A version that is not spoken, or none was agreed on.
    pub(crate) const PROTO: Self = Self(-71);
    /// The deadline has passed.
    pub(crate) const TIMEDOUT: Self = Self(-110);

    /// As it goes to user space.
    pub(crate) const fn number(self) -> i64 {
        self.0
    }

    /// Sorts out what a function of the glue returned.
    pub(crate) fn check(result: i64) -> Result<u64> {
        u64::try_from(result).map_err(|_| Self(result))
    }
}

/// What everything here returns.
pub(crate) type Result<T> = core::result::Result<T, Errno>;
