//! What the ioctls of terminals and ptys say and set (`ioctl_tty(2)`), as plain bytes and numbers.
#![expect(unsafe_code, reason = "these ioctls have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `struct termios2`, as the kernel lays it out.
pub type Settings = [u8; 44];
/// `struct winsize`.
pub type Size = [u8; 8];

const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
const TIOCGWINSZ: u32 = 0x5413;
const TIOCSWINSZ: u32 = 0x5414;
const TIOCEXCL: u32 = 0x540c;
const TIOCGEXCL: u32 = 0x8004_5440;
const TIOCGETD: u32 = 0x5424;
const TIOCGDEV: u32 = 0x8004_5432;
const TIOCGPTN: u32 = 0x8004_5430;
const TIOCSPTLCK: u32 = 0x4004_5431;
const TIOCGPTLCK: u32 = 0x8004_5439;
const TIOCPKT: u32 = 0x5420;
const TIOCGPKT: u32 = 0x8004_5438;
const TIOCINQ: u32 = 0x541b;
const TIOCOUTQ: u32 = 0x5411;

fn get<const N: usize>(file: impl AsFd, request: u32) -> io::Result<[u8; N]> {
    let mut value = [0; N];
    // SAFETY: every request of this file that is passed here writes exactly N bytes, and `value` has as many.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request.into(), value.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn set<const N: usize>(file: impl AsFd, request: u32, value: &[u8; N]) -> io::Result<()> {
    // SAFETY: every request of this file that is passed here reads exactly N bytes of `value`.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request.into(), value.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn get_number(file: impl AsFd, request: u32) -> io::Result<u32> {
    get(file, request).map(u32::from_ne_bytes)
}

/// Settings of the terminal; of a pty they are the same at both ends.
pub fn settings(file: impl AsFd) -> io::Result<Settings> {
    get(file, TCGETS2)
}

/// Sets them at once.
pub fn set_settings(file: impl AsFd, settings: &Settings) -> io::Result<()> {
    set(file, TCSETS2, settings)
}

/// Rows and columns.
pub fn size(file: impl AsFd) -> io::Result<Size> {
    get(file, TIOCGWINSZ)
}

/// Sets rows and columns.
pub fn set_size(file: impl AsFd, size: &Size) -> io::Result<()> {
    set(file, TIOCSWINSZ, size)
}

/// Device number of the terminal itself, also through `/dev/tty` and through the master of a pty.
pub fn device(file: impl AsFd) -> io::Result<u32> {
    get_number(file, TIOCGDEV)
}

/// Number of the pty that a master leads to.
pub fn pty_number(master: impl AsFd) -> io::Result<u32> {
    get_number(master, TIOCGPTN)
}

/// Whether the slave is locked.
pub fn locked(master: impl AsFd) -> io::Result<bool> {
    get_number(master, TIOCGPTLCK).map(|lock| lock != 0)
}

/// Locks (1) or unlocks (0) the slave.
pub fn set_locked(master: impl AsFd, lock: i32) -> io::Result<()> {
    set(master, TIOCSPTLCK, &lock.to_ne_bytes())
}

/// Whether the master is in packet mode.
pub fn packet_mode(master: impl AsFd) -> io::Result<bool> {
    get_number(master, TIOCGPKT).map(|mode| mode != 0)
}

/// Puts the master into packet mode (1) or out of it (0).
pub fn set_packet_mode(master: impl AsFd, mode: i32) -> io::Result<()> {
    set(master, TIOCPKT, &mode.to_ne_bytes())
}

/// Whether nobody else may open it.
pub fn exclusive(file: impl AsFd) -> io::Result<bool> {
    get_number(file, TIOCGEXCL).map(|mode| mode != 0)
}

/// Lets nobody else open it.
pub fn set_exclusive(file: impl AsFd) -> io::Result<()> {
    set(file, TIOCEXCL, &[])
}

/// Number of its line discipline.
pub fn discipline(file: impl AsFd) -> io::Result<u32> {
    get_number(file, TIOCGETD)
}

/// Bytes that can be read here now.
pub fn incoming(file: impl AsFd) -> io::Result<u32> {
    get_number(file, TIOCINQ)
}

/// Bytes that were written here and are still on their way.
pub fn outgoing(file: impl AsFd) -> io::Result<u32> {
    get_number(file, TIOCOUTQ)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, openpt};

    #[test]
    fn a_master_tells_of_its_slave() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let number = pty_number(&master).unwrap();
        assert_eq!(device(&master).unwrap(), 136 << 8 | number & 0xff | (number & !0xff) << 12);
        assert!(locked(&master).unwrap());
        set_locked(&master, 0).unwrap();
        set_size(&master, &[24, 0, 80, 0, 0, 0, 0, 0]).unwrap();
        set_packet_mode(&master, 1).unwrap();
        assert!(!locked(&master).unwrap() && packet_mode(&master).unwrap() && !exclusive(&master).unwrap());
        assert_eq!(size(&master).unwrap(), [24, 0, 80, 0, 0, 0, 0, 0]);
        let old = settings(&master).unwrap();
        set_settings(&master, &old).unwrap();
        assert_eq!((settings(&master).unwrap(), incoming(&master).unwrap(), discipline(&master).unwrap()), (old, 0, 0));
    }
}
