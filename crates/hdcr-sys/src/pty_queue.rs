//! The bytes on their way in a pty, in both directions.
//!
//! A terminal cannot be peeked: its bytes are taken out and put back at once, and its settings changed meanwhile. That is
//! done by a child process of a few system calls, which brings it to its end even if this process is killed in between.
//! Both ends must be at rest.
#![expect(unsafe_code, reason = "a child of a process with threads may only make plain system calls")]

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::terminal::{self, Settings};

/// Bytes in a pty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Waiting {
    /// Written to the master, to be read from the slave.
    pub input: Vec<u8>,
    /// Written to the slave, to be read from the master.
    pub output: Vec<u8>,
}

/// More than a pty holds in one direction: its line buffer, and the buffer before that.
const ROOM: usize = 1 << 17;
const WORD: usize = size_of::<u32>();
// Places and bits of `struct termios2` (asm-generic/termbits.h).
const INPUT_FLAGS: usize = 0;
const OUTPUT_FLAGS: usize = 4;
const LOCAL_FLAGS: usize = 12;
const CHARACTERS: usize = 17;
const OPOST: u32 = 1;
const ICANON: u32 = 2;
/// `ISIG`, `ECHO`, `ECHOE`, `ECHOK`, `ECHONL`, `NOFLSH`, `ECHOCTL`, `ECHOPRT`, `ECHOKE`, `IEXTEN`, `EXTPROC`.
const LIVELY: u32 = 0o1 | 0o10 | 0o20 | 0o40 | 0o100 | 0o1000 | 0o2000 | 0o4000 | 0o100_000 | 0o200_000;
/// `VMIN` and `VTIME`, `VEOL` and `VEOL2`.
const VTIME: usize = 5;
const VMIN: usize = 6;
const VEOL: usize = 11;
const VEOL2: usize = 16;
const CHARACTER_COUNT: usize = 19;

fn word(settings: &Settings, at: usize) -> u32 {
    settings.get(at..at + WORD).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn put_word(settings: &mut Settings, at: usize, value: u32) {
    for (slot, byte) in settings.iter_mut().skip(at).zip(value.to_ne_bytes()) {
        *slot = byte;
    }
}

/// Settings under which every byte that is written to the master reaches the slave as it is, line by line when `lines`.
fn literal(settings: &Settings, lines: bool) -> Settings {
    let mut out = *settings;
    put_word(&mut out, INPUT_FLAGS, 0);
    let canonical = if lines { ICANON } else { 0 };
    put_word(&mut out, LOCAL_FLAGS, word(settings, LOCAL_FLAGS) & !(LIVELY | ICANON) | canonical);
    for (index, slot) in out.iter_mut().skip(CHARACTERS).take(CHARACTER_COUNT).enumerate() {
        // A read that finds nothing returns at once; no character but the ends of lines is special.
        if !lines && (index == VTIME || index == VMIN) || lines && index != VEOL && index != VEOL2 {
            *slot = 0;
        }
    }
    out
}

fn unprocessed(settings: &Settings) -> Settings {
    let mut out = *settings;
    put_word(&mut out, OUTPUT_FLAGS, word(settings, OUTPUT_FLAGS) & !OPOST);
    out
}

fn canonical(settings: &Settings) -> bool {
    word(settings, LOCAL_FLAGS) & ICANON != 0
}

fn check(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Lets the kernel move what is written already to where a read finds it (`n_tty_poll` of the kernel).
fn settle(end: RawFd) {
    let mut polled = libc::pollfd { fd: end, events: libc::POLLIN, revents: 0 };
    // SAFETY: the kernel reads and writes one `pollfd`, which outlives the call.
    unsafe { libc::poll(&raw mut polled, 1, 0) };
}

fn write_all(end: RawFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel reads at most as many bytes as the slice has.
        let written = check(unsafe { libc::write(end, bytes.as_ptr().cast(), bytes.len()) })?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Puts bytes in as if they had been written to the master under these settings, but without what a terminal does on the
/// way: no echo, no signal, no editing.
pub fn put_input(master: impl AsFd, slave: impl AsFd, settings: &Settings, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    terminal::set_settings(&slave, &literal(settings, canonical(settings)))?;
    let written = write_all(master.as_fd().as_raw_fd(), bytes);
    settle(slave.as_fd().as_raw_fd());
    terminal::set_settings(&slave, settings)?;
    written
}

/// Puts bytes in as if they had been written to the slave, as they are.
pub fn put_output(slave: impl AsFd, settings: &Settings, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    terminal::set_settings(&slave, &unprocessed(settings))?;
    let written = write_all(slave.as_fd().as_raw_fd(), bytes);
    terminal::set_settings(&slave, settings)?;
    written
}

/// The bytes in a pty whose both ends are open and at rest. They are in it again when this returns.
pub fn look(master: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> io::Result<Waiting> {
    let settings = terminal::settings(slave)?;
    let mut room = vec![0_u8; ROOM];
    let (mut from, into) = io::pipe()?;
    // SAFETY: the child makes plain system calls only, on memory that exists already, and ends by `_exit`.
    let child = unsafe { libc::fork() };
    match child {
        0 => {
            // SAFETY: in the child nobody else uses this descriptor; without it a dead parent is noticed.
            unsafe { libc::close(from.as_raw_fd()) };
            let done = take_and_put_back(master, slave, &settings, &mut room, into.as_raw_fd());
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        child if child < 0 => return Err(io::Error::last_os_error()),
        _ => drop(into),
    }
    let mut text = Vec::new();
    let read = from.read_to_end(&mut text);
    let mut status = 0;
    // SAFETY: the kernel writes one `int`, which outlives the call.
    let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
    read?;
    if ended != child || status != 0 {
        return Err(io::Error::other("the bytes of a pty could not be looked at"));
    }
    let (head, rest) = text.split_first_chunk::<8>().ok_or(io::ErrorKind::UnexpectedEof)?;
    let len = usize::try_from(u64::from_ne_bytes(*head)).map_err(io::Error::other)?;
    let (input, output) = rest.split_at_checked(len).ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(Waiting { input: input.to_vec(), output: output.to_vec() })
}

/// The work of the child: no allocation, no lock.
fn take_and_put_back(
    master: BorrowedFd<'_>,
    slave: BorrowedFd<'_>,
    settings: &Settings,
    room: &mut [u8],
    tell: RawFd,
) -> io::Result<()> {
    let all = u64::MAX;
    let nowhere = std::ptr::null_mut::<u64>();
    // SAFETY: blocks all signals; the kernel reads the 8 bytes of `all` and writes nothing.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const all, nowhere, size_of::<u64>()) };
    settle(slave.as_raw_fd());
    terminal::set_settings(slave, &literal(settings, false))?;
    let taken = read_all(slave, room);
    terminal::set_settings(slave, settings)?;
    let input = room.get(..taken?).unwrap_or_default();
    let put_back = put_input(master, slave, settings, input);
    let len = u64::try_from(input.len()).unwrap_or(0).to_ne_bytes();
    put_back?;
    write_all(tell, &len)?;
    write_all(tell, input)?;
    settle(master.as_raw_fd());
    if terminal::incoming(master)? == 0 {
        return Ok(());
    }
    let packets = terminal::packet_mode(master)?;
    if packets {
        terminal::set_packet_mode(master, 0)?;
    }
    let output = read_all(master, room).and_then(|taken| {
        let output = room.get(..taken).unwrap_or_default();
        put_output(slave, settings, output).map(|()| output)
    });
    if packets {
        terminal::set_packet_mode(master, 1)?;
    }
    write_all(tell, output?)
}

/// Reads what there is, and never waits: what can be read is asked for first.
fn read_all(end: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<usize> {
    let mut taken = 0;
    loop {
        settle(end.as_raw_fd());
        let there = usize::try_from(terminal::incoming(end)?).unwrap_or(0);
        let free = room.get_mut(taken..).unwrap_or_default();
        if there == 0 || free.is_empty() {
            return Ok(taken);
        }
        let len = there.min(free.len());
        // SAFETY: the kernel writes at most `len` bytes, and `free` has at least as many.
        taken += check(unsafe { libc::read(end.as_raw_fd(), free.as_mut_ptr().cast(), len) })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt};
    use std::os::fd::OwnedFd;

    fn pty() -> (OwnedFd, OwnedFd) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        terminal::set_locked(&master, 0).unwrap();
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        (master, slave)
    }

    fn write(end: &OwnedFd, bytes: &[u8]) {
        write_all(end.as_raw_fd(), bytes).unwrap();
    }

    #[test]
    fn half_a_line_and_lines_and_output_are_seen_and_stay() {
        let (master, slave) = pty();
        let settings = terminal::settings(&slave).unwrap();
        let mut quiet = settings;
        put_word(&mut quiet, LOCAL_FLAGS, word(&settings, LOCAL_FLAGS) & !0o10);
        terminal::set_settings(&slave, &quiet).unwrap();
        write(&master, b"one\ntwo\nhal");
        write(&slave, b"said\n");
        let expected = Waiting { input: b"one\ntwo\nhal".to_vec(), output: b"said\r\n".to_vec() };
        for _ in 0..3 {
            assert_eq!(look(master.as_fd(), slave.as_fd()).unwrap(), expected);
        }
        assert_eq!(terminal::settings(&slave).unwrap(), quiet);
        settle(slave.as_raw_fd());
        assert_eq!(terminal::incoming(&slave).unwrap(), 8, "half a line is no line");
        write(&master, b"f\n");
        let mut room = [0; 64];
        for line in [&b"one\n"[..], b"two\n", b"half\n"] {
            settle(slave.as_raw_fd());
            let len = rustix::io::read(&slave, &mut room).unwrap();
            assert_eq!(&room[..len], line);
        }
    }

    #[test]
    fn an_empty_pty_stays_as_it_is() {
        let (master, slave) = pty();
        let before = terminal::settings(&slave).unwrap();
        assert_eq!(look(master.as_fd(), slave.as_fd()).unwrap(), Waiting::default());
        assert_eq!(terminal::settings(&slave).unwrap(), before);
    }
}
