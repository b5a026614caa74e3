//! File handles (`name_to_handle_at(2)`): find an inode again under whatever name it has now.
#![expect(unsafe_code, reason = "rustix and nix have no wrapper for these calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// What identifies an inode within its file system, across renames and reboots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handle {
    /// Kind of handle, the file system's own.
    pub kind: i32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// `MAX_HANDLE_SZ` of `<fcntl.h>`.
const MOST: usize = 128;

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct Raw {
    bytes: u32,
    kind: i32,
    handle: [u8; MOST],
}

/// The handle of an open file (`O_PATH` does). `EOPNOTSUPP`: its file system has none.
pub fn of(file: impl AsFd) -> io::Result<Handle> {
    let mut raw = Raw { bytes: 128, kind: 0, handle: [0; MOST] };
    let mut mount: libc::c_int = 0;
    let number = file.as_fd().as_raw_fd();
    // SAFETY: the path is a NUL-terminated string, `raw` has the layout of `struct file_handle` with the room that its
    // first field states, and `mount` is writable; all live over the call, which keeps none of them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            number,
            c"".as_ptr(),
            &raw mut raw,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let length = usize::try_from(raw.bytes).unwrap_or(MOST).min(MOST);
    Ok(Handle { kind: raw.kind, bytes: raw.handle.get(..length).unwrap_or_default().to_vec() })
}

/// Opens the inode with a handle in the file system that `mount` lies in. `ESTALE`: it is gone. Needs
/// `CAP_DAC_READ_SEARCH`.
pub fn open(mount: impl AsFd, handle: &Handle, flags: i32) -> io::Result<OwnedFd> {
    let mut raw = Raw { bytes: 0, kind: handle.kind, handle: [0; MOST] };
    let room = raw.handle.get_mut(..handle.bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
    room.copy_from_slice(&handle.bytes);
    raw.bytes = u32::try_from(handle.bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let number = mount.as_fd().as_raw_fd();
    // SAFETY: `raw` has the layout of `struct file_handle` with as many bytes as its first field states, and lives over
    // the call, which does not keep it.
    let result = unsafe { libc::syscall(libc::SYS_open_by_handle_at, number, &raw mut raw, flags | libc::O_CLOEXEC) };
    let number = libc::c_int::try_from(result).map_err(|_| io::ErrorKind::InvalidData)?;
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_renamed_file_is_found() {
        let directory = std::env::temp_dir().join(format!("hdcr-handle-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let (old, new) = (directory.join("old"), directory.join("new"));
        std::fs::write(&old, b"content").unwrap();
        let handle = of(std::fs::File::open(&old).unwrap());
        std::fs::rename(&old, &new).unwrap();
        let found = handle.and_then(|handle| open(std::fs::File::open(&directory).unwrap(), &handle, libc::O_RDONLY));
        std::fs::remove_dir_all(&directory).unwrap();
        match found {
            Ok(found) => {
                let mut text = String::new();
                std::fs::File::from(found).read_to_string(&mut text).unwrap();
                assert_eq!(text, "content");
            }
            // A user without the capability, or a file system without handles.
            Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP)), "{error}"),
        }
    }
}
