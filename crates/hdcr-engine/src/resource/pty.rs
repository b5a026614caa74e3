//! Terminals: ptys with both ends in the tree, and terminals that lead out of it.
//!
//! Captured of a pty: number, settings, size, packet mode, lock, exclusive mode, owner and mode of its file, every opening
//! of its slave, a master that is closed, and the bytes on their way in both directions. The number is kept when it is
//! free; else the file has another name after a restore, which is logged. An opening by `/dev/tty` becomes one of the
//! slave itself. Not captured: output stopped by `^S`, status bytes of packet mode, which of several lines that wait was
//! ended by `^D`. A terminal whose master lies outside becomes that of the restoring command, with its settings.
//! Reads: ioctls; the bytes are taken out and put back at once by a child process (see `hdcr_sys::pty_queue`).

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use hdcr_image::{Record, Tag};
use hdcr_sys::{pty_queue, terminal};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Uid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};

use super::outside::{self, OutsideRecord};
use super::{FileKind, FileView};
use crate::capture::{Capture, OpenFile};
use crate::error::{Error, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::survey::Survey;

/// Most ptys that are opened to get at one of a certain number.
const MOST: usize = 4096;
const ACCESS: u64 = 3;
/// Set in the flags of every file that was opened by name (fs/open.c).
const LARGEFILE: u64 = 0o100_000;

pub(crate) struct Terminal;

/// What is kept of an open terminal.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TerminalRecord {
    /// The pty; 0 when it leads out of the tree.
    #[prost(uint64, tag = "1")]
    pty: u64,
    #[prost(bool, tag = "2")]
    master: bool,
    #[prost(uint32, tag = "3")]
    access: u32,
    #[prost(message, optional, tag = "4")]
    outside: Option<OutsideRecord>,
    /// Whether it was opened by its name, and not by `TIOCGPTPEER`.
    #[prost(bool, tag = "5")]
    by_name: bool,
}

impl Record for TerminalRecord {
    const TAG: Tag = Tag(0x0268);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// What is kept of a pty.
#[derive(Clone, PartialEq, prost::Message)]
#[expect(clippy::struct_excessive_bools, reason = "each is a mode of its own, as the kernel has it")]
pub(crate) struct PtyRecord {
    #[prost(uint32, tag = "1")]
    number: u32,
    /// `struct termios2`.
    #[prost(bytes = "vec", tag = "2")]
    settings: Vec<u8>,
    /// `struct winsize`.
    #[prost(bytes = "vec", tag = "3")]
    size: Vec<u8>,
    #[prost(bool, tag = "4")]
    packets: bool,
    #[prost(bool, tag = "5")]
    locked: bool,
    #[prost(bool, tag = "6")]
    exclusive: bool,
    /// Whether the slave is open, or was.
    #[prost(bool, tag = "7")]
    slave: bool,
    #[prost(bytes = "vec", tag = "8")]
    input: Vec<u8>,
    #[prost(bytes = "vec", tag = "9")]
    output: Vec<u8>,
    /// Mode, user and group of the slave's file; empty: the master is closed, and there is none.
    #[prost(uint32, repeated, tag = "10")]
    file: Vec<u32>,
}

impl Record for PtyRecord {
    const TAG: Tag = Tag(0x0269);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// Which terminal a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Master(u32),
    Slave(u32),
    /// A slave whose master is closed.
    Dead(u32),
    /// `/dev/tty`: the terminal is to be asked.
    Current,
    Other,
}

fn end_of(view: &FileView) -> End {
    let (major, minor) = (rustix::fs::major(view.stat.st_rdev), rustix::fs::minor(view.stat.st_rdev));
    let number = || view.info.lines.number("tty-index").and_then(|number| u32::try_from(number).ok());
    match (major, minor) {
        (5, 2) => number().map_or(End::Other, End::Master),
        (5, 0) => End::Current,
        (136..=143, _) => {
            let number = slave_number(major, minor);
            if view.link.ends_with(b" (deleted)") { End::Dead(number) } else { End::Slave(number) }
        }
        _ => End::Other,
    }
}

fn slave_number(major: u32, minor: u32) -> u32 {
    major.saturating_sub(136).saturating_mul(256).saturating_add(minor)
}

/// Number of the pty behind a device number as ioctls and `/proc/PID/stat` have it; `None` when it is no slave.
fn pty_of(device: u64) -> Option<u32> {
    let device = model::low32(device);
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    (136..=143).contains(&major).then(|| slave_number(major, minor))
}

impl FileKind for Terminal {
    type Record = TerminalRecord;

    fn claims(view: &FileView) -> bool {
        let kind = rustix::fs::FileType::from_raw_mode(view.stat.st_mode);
        let major = rustix::fs::major(view.stat.st_rdev);
        kind == rustix::fs::FileType::CharacterDevice && matches!(major, 4 | 5 | 136..=143)
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        let number = match end_of(view) {
            End::Master(_) | End::Dead(_) => return discipline(survey, view),
            End::Slave(number) => Some(number),
            End::Current => terminal::device(view.duplicate()?).ok().and_then(|device| pty_of(device.into())),
            End::Other => None,
        };
        let masters = survey.masters.get_or_insert_with(|| masters_of(survey.files));
        let inside = number.is_some_and(|number| masters.contains(&number));
        if !inside {
            let name = String::from_utf8_lossy(&view.link).into_owned();
            let becomes = "becomes the terminal, or another standard stream, of the restoring command";
            survey.note(view.refuse(
                "outside-terminal",
                "terminal",
                &format!("{name} lies outside of the tree"),
                becomes,
            ));
        }
        Ok(())
    }

    fn capture(cx: &mut Capture<'_>, view: &FileView, file: &OwnedFd) -> Result<TerminalRecord> {
        let access = model::low32(view.info.flags & ACCESS);
        let by_name = view.info.flags & LARGEFILE != 0;
        let mut record = TerminalRecord { access, by_name, ..TerminalRecord::default() };
        let number = match end_of(view) {
            End::Master(number) => {
                record.master = true;
                Some(number)
            }
            End::Dead(number) => {
                let hung = PtyRecord { number, slave: true, ..PtyRecord::default() };
                record.pty = shared(cx, view, number, |_| Ok(hung))?.0;
                return Ok(record);
            }
            End::Slave(number) => Some(number),
            End::Current => terminal::device(file).ok().and_then(|device| pty_of(device.into())),
            End::Other => None,
        };
        let Some((number, master)) = number.and_then(|number| Some((number, master_of(cx, number)?))) else {
            record.outside = Some(leads_out(cx, view, file, access));
            return Ok(record);
        };
        record.pty = shared(cx, &master.view.clone(), number, |cx| pty(cx, number, &master))?.0;
        Ok(record)
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: TerminalRecord) -> Result<OwnedFd> {
        if let Some(outside) = &record.outside {
            return outside::restore(cx, id, outside);
        }
        let pty = ObjectId(record.pty);
        open_pair(cx, pty)?;
        let parts = cx.parts.get(&pty).map(Vec::as_slice).unwrap_or_default();
        let master = parts.first().ok_or_else(|| Error::Unsound(format!("{pty} is no pty")))?;
        if record.master {
            return master.try_clone().map_err(Error::system("dup", id));
        }
        let slave = open_slave(master, record.access);
        let slave = slave.and_then(|slave| if record.by_name { by_name(&slave, record.access) } else { Ok(slave) });
        slave.map_err(Error::system("opening the slave of a pty", id))
    }
}

/// The ptys whose masters are among these.
fn masters_of(files: &[FileView]) -> BTreeSet<u32> {
    let number = |view| if let End::Master(number) = end_of(view) { Some(number) } else { None };
    files.iter().filter_map(number).collect()
}

fn discipline(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
    if let Ok(number @ 1..) = terminal::discipline(view.duplicate()?) {
        survey.refuse(unusual(view, number));
    }
    Ok(())
}

fn unusual(view: &FileView, number: u32) -> Refusal {
    let cause = format!("it has line discipline {number}, whose state cannot be read");
    view.refuse("line-discipline", "terminal", &cause, "set the usual line discipline before the checkpoint")
}

fn master_of(cx: &Capture<'_>, number: u32) -> Option<OpenFile> {
    cx.files.iter().find(|file| end_of(&file.view) == End::Master(number)).cloned()
}

/// The identity of a pty, captured now when it is met for the first time.
fn shared(
    cx: &mut Capture<'_>,
    view: &FileView,
    number: u32,
    capture: impl FnOnce(&mut Capture<'_>) -> Result<PtyRecord>,
) -> Result<ObjectId> {
    // A dead slave is told from a living pty that has its number now by the inode of its file, which is gone.
    let device = if matches!(end_of(view), End::Dead(_)) { view.stat.st_ino } else { 0 };
    match cx.shared("pty", device, number.into()) {
        Ok(known) => Ok(known),
        Err(fresh) => {
            let record = capture(cx)?;
            cx.frame(fresh, &record)?;
            Ok(fresh)
        }
    }
}

/// A terminal outside: that of the restoring command.
fn leads_out(cx: &Capture<'_>, view: &FileView, file: &OwnedFd, access: u32) -> OutsideRecord {
    let stream = match outside::fate(cx, view) {
        outside::Fate::Stream(stream) => stream,
        outside::Fate::Policy(_) => outside::TERMINAL,
    };
    let termios = terminal::settings(file).map(|settings| settings.to_vec()).unwrap_or_default();
    OutsideRecord { stream, termios, access }
}

/// Everything about a pty whose master is in the tree.
fn pty(cx: &Capture<'_>, number: u32, master: &OpenFile) -> Result<PtyRecord> {
    let failed = |operation| Error::system::<std::io::Error>(operation, format!("pty {number}"));
    let file = cx.duplicate(master)?;
    if let Ok(number @ 1..) = terminal::discipline(&file) {
        return Err(Error::refuse(unusual(&master.view, number)));
    }
    let slave = cx.files.iter().find(|file| end_of(&file.view) == End::Slave(number));
    let mut record = PtyRecord {
        number,
        settings: terminal::settings(&file).map_err(failed("reading settings"))?.to_vec(),
        size: terminal::size(&file).map_err(failed("reading the size"))?.to_vec(),
        packets: terminal::packet_mode(&file).map_err(failed("reading packet mode"))?,
        locked: terminal::locked(&file).map_err(failed("reading the lock"))?,
        slave: slave.is_some() || hung(&file),
        ..PtyRecord::default()
    };
    if let Some(slave) = slave {
        let stat = slave.view.stat;
        record.file = vec![stat.st_mode & 0o7777, stat.st_uid, stat.st_gid];
        let slave = cx.duplicate(slave)?;
        record.exclusive = terminal::exclusive(&slave).map_err(failed("reading exclusive mode"))?;
        let waiting = pty_queue::look(file.as_fd(), slave.as_fd()).map_err(failed("looking at the bytes"))?;
        (record.input, record.output) = (waiting.input, waiting.output);
    }
    Ok(record)
}

/// Whether the slave was open and is closed by all.
fn hung(master: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(master, PollFlags::empty())];
    let answered = poll(&mut polled, Some(&Timespec::default())).is_ok();
    answered && polled.first().is_some_and(|polled| polled.revents().contains(PollFlags::HUP))
}

fn open_slave(master: &OwnedFd, access: u32) -> rustix::io::Result<OwnedFd> {
    // The kernel would keep O_CLOEXEC among the flags of the file itself, where the program can see it.
    let slave = ioctl_tiocgptpeer(master, OpenptFlags::from_bits_retain(access & 3) | OpenptFlags::NOCTTY)?;
    rustix::io::fcntl_setfd(&slave, rustix::io::FdFlags::CLOEXEC)?;
    Ok(slave)
}

/// The same terminal, opened as by its name.
fn by_name(slave: &OwnedFd, access: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::from_bits_retain(access & 3) | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(format!("/proc/self/fd/{}", slave.as_raw_fd()), flags, Mode::empty())
}

/// Makes a pty with both ends, to be filled when all files are made. The ends wait as parts: master, slave.
fn open_pair(cx: &mut Restore<'_>, pty: ObjectId) -> Result<()> {
    if cx.parts.contains_key(&pty) {
        return Ok(());
    }
    let record: PtyRecord = cx.record(pty)?;
    let failed = |operation| Error::system::<std::io::Error>(operation, pty);
    let living = !record.settings.is_empty();
    let master = open_master(living.then_some(record.number)).map_err(failed("opening a pty"))?;
    let master = cx.lift(master)?;
    terminal::set_locked(&master, 0).map_err(failed("unlocking a pty"))?;
    let mut parts = vec![master];
    if let (true, Some(master)) = (record.slave, parts.first()) {
        let slave = open_slave(master, 2).map_err(Error::system("opening the slave of a pty", pty))?;
        if let (Ok(settings), Ok(size)) = (record.settings.as_slice().try_into(), record.size.as_slice().try_into()) {
            terminal::set_settings(&slave, settings).map_err(failed("setting a terminal"))?;
            terminal::set_size(&slave, size).map_err(failed("setting the size of a terminal"))?;
        }
        if let [mode, uid, gid] = record.file.as_slice() {
            let owned = rustix::fs::fchown(&slave, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
            let moded = rustix::fs::fchmod(&slave, Mode::from_raw_mode(*mode));
            if let Err(error) = owned.and(moded) {
                tracing::info!(number = record.number, %error, "a terminal's file keeps another owner");
            }
        }
        parts.push(cx.lift(slave)?);
    } else if let (Some(master), Ok(settings)) = (parts.first(), record.settings.as_slice().try_into()) {
        terminal::set_settings(master, settings).map_err(failed("setting a terminal"))?;
        if let Ok(size) = record.size.as_slice().try_into() {
            terminal::set_size(master, size).map_err(failed("setting the size of a terminal"))?;
        }
    }
    cx.parts.insert(pty, parts);
    cx.late.push((fill, pty));
    Ok(())
}

/// Opens a master, of a certain number when that is free: the kernel gives the lowest, so the lower ones are held
/// meanwhile.
fn open_master(number: Option<u32>) -> std::io::Result<OwnedFd> {
    let open = || {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::open("/dev/ptmx", flags, Mode::empty())
    };
    let Some(wanted) = number else { return Ok(open()?) };
    let mut held = Vec::new();
    while held.len() < MOST {
        let master = open()?;
        let found = terminal::pty_number(&master)?;
        if found == wanted {
            return Ok(master);
        }
        held.push(master);
        if found > wanted {
            break;
        }
    }
    tracing::warn!(wanted, "the number of a pty is in use: its file has another name now");
    drop(held);
    Ok(open()?)
}

/// Puts the bytes and the modes in that would stand in the way before; closes the master of a dead slave.
fn fill(cx: &mut Restore<'_>, pty: ObjectId) -> Result<()> {
    let record: PtyRecord = cx.record(pty)?;
    let failed = |operation| Error::system::<std::io::Error>(operation, pty);
    let parts = cx.parts.get(&pty).map(Vec::as_slice).unwrap_or_default();
    let Some(master) = parts.first() else { return Ok(()) };
    let Ok(settings) = record.settings.as_slice().try_into() else {
        cx.parts.remove(&pty);
        return Ok(());
    };
    if let Some(slave) = parts.get(1) {
        pty_queue::put_input(master, slave, settings, &record.input).map_err(failed("filling a terminal"))?;
        pty_queue::put_output(slave, settings, &record.output).map_err(failed("filling a terminal"))?;
        if record.exclusive {
            terminal::set_exclusive(slave).map_err(failed("setting exclusive mode"))?;
        }
    }
    if record.packets {
        terminal::set_packet_mode(master, 1).map_err(failed("setting packet mode"))?;
    }
    if record.locked {
        terminal::set_locked(master, 1).map_err(failed("locking a pty"))?;
    }
    Ok(())
}

/// The number, here, of a slave of the tree by the device number that `/proc/PID/stat` had at the checkpoint.
pub(crate) fn slave_of(cx: &Restore<'_>, device: u64) -> Option<i32> {
    let wanted = pty_of(device)?;
    cx.frames.iter().filter(|((tag, _), _)| *tag == PtyRecord::TAG.0).find_map(|((_, id), frame)| {
        let record: PtyRecord = model::decode(frame.version, &frame.body).ok()?;
        let slave = cx.parts.get(id)?.get(1)?;
        (record.number == wanted && !record.settings.is_empty()).then(|| slave.as_raw_fd())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::FileRequest;
    use crate::resource::{kind_of, scene};

    #[test]
    fn device_numbers_are_taken_apart() {
        assert_eq!(pty_of(136 << 8 | 7), Some(7));
        assert_eq!(pty_of(0x0010_8801), Some(257));
        assert_eq!(pty_of(4 << 8 | 1), None);
        assert_eq!(pty_of(0), None);
    }

    #[test]
    fn a_pty_with_bytes_in_it_comes_back() {
        let master = open_master(None).unwrap();
        terminal::set_locked(&master, 0).unwrap();
        let slave = open_slave(&master, 2).unwrap();
        terminal::set_size(&master, &[9, 0, 99, 0, 0, 0, 0, 0]).unwrap();
        let settings = terminal::settings(&master).unwrap();
        pty_queue::put_input(&master, &slave, &settings, b"line\nhal").unwrap();
        pty_queue::put_output(&slave, &settings, b"said").unwrap();
        let view = crate::openfile::view(scene::own_pid(), crate::ids::Fd(slave.as_raw_fd())).unwrap();
        assert_eq!(kind_of(&view).map(|kind| kind.name), Some("pty"));
        let record = PtyRecord {
            number: terminal::pty_number(&master).unwrap(),
            settings: settings.to_vec(),
            size: terminal::size(&master).unwrap().to_vec(),
            slave: true,
            input: b"line\nhal".to_vec(),
            output: b"said".to_vec(),
            ..PtyRecord::default()
        };
        let waiting = pty_queue::look(master.as_fd(), slave.as_fd()).unwrap();
        assert_eq!((waiting.input, waiting.output), (record.input.clone(), record.output.clone()));
        drop((master, slave));
        let (_, image) = scene::capture(&[], FileRequest::default(), |cx| cx.frame(ObjectId(7), &record).unwrap());
        let journal = std::path::Path::new("/tmp").join(format!("hdcr-pty-{}", scene::own_pid()));
        let mut cx = scene::restore(&image, &journal, &[]);
        open_pair(&mut cx, ObjectId(7)).unwrap();
        fill(&mut cx, ObjectId(7)).unwrap();
        let [master, slave] = <[OwnedFd; 2]>::try_from(cx.parts.remove(&ObjectId(7)).unwrap()).unwrap();
        let waiting = pty_queue::look(master.as_fd(), slave.as_fd()).unwrap();
        assert_eq!((waiting.input, waiting.output), (record.input.clone(), record.output.clone()));
        assert_eq!(terminal::size(&slave).unwrap().to_vec(), record.size);
        assert_eq!(terminal::settings(&slave).unwrap().to_vec(), record.settings);
        scene::finish(cx);
    }
}
