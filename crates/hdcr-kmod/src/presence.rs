//! Whether the module is there, fits, and may be used.

use std::path::Path;

use hdcr_abi::feature;

use crate::session::{Session, SessionError};

/// How the module stands to this process.
#[derive(Debug)]
pub enum Presence {
    /// There is no device: the module is not loaded.
    Absent,
    /// This user may not open the device.
    Closed,
    /// It speaks another version than this build.
    Misfit,
    /// It is there, but does not answer as it should.
    Odd(SessionError),
    /// It may be used; it can do this of [`hdcr_abi::feature`].
    Ready(u64),
}

impl Presence {
    /// Asks the module behind a device. Nothing is frozen by that.
    pub fn of(device: &Path) -> Self {
        match Session::open(device) {
            Ok(session) => Self::Ready(session.features()),
            Err(SessionError::Version) => Self::Misfit,
            Err(SessionError::Open(error)) => match error.raw_os_error() {
                // A node that is left of a module that is gone has no driver.
                Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Self::Absent,
                Some(libc::EACCES | libc::EPERM) => Self::Closed,
                _ => Self::Odd(SessionError::Open(error)),
            },
            Err(other) => Self::Odd(other),
        }
    }
}

/// What of all that it could do a module cannot do here, in words: what it looks up by name was not found.
pub fn lacking(features: u64) -> Vec<&'static str> {
    const WORDS: [(u64, &str); 7] = [
        (feature::ACCESS_CHECK, "the check of ptrace (only CAP_SYS_PTRACE passes)"),
        (feature::TAKE_BACK, "taking stops back"),
        (feature::CLONE, "making tasks"),
        (feature::VDSO, "placing the vdso"),
        (feature::PIPES, "making pipes"),
        (feature::PROGRAM, "setting programs"),
        (feature::IDS, "setting sessions"),
    ];
    WORDS.into_iter().filter(|(bit, _)| features & bit == 0).map(|(_, word)| word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_device_of_the_module_is_told_apart() {
        assert!(matches!(Presence::of(Path::new("/nonexistent/hdcr")), Presence::Absent));
        assert!(matches!(Presence::of(Path::new("/dev/null")), Presence::Odd(_)));
    }

    #[test]
    fn what_a_module_lacks_is_named() {
        assert!(lacking(u64::MAX).is_empty());
        assert_eq!(lacking(!feature::PIPES), ["making pipes"]);
    }
}
