//! Open character devices that keep no state: null, zero, full, random, urandom, and the kernel log for writing.
//!
//! Captured: which device, its path, flags. Terminals belong to another kind. Every other device is refused by name:
//! what a driver remembers of an open file cannot be seen.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use hdcr_image::{Record, Tag};
use rustix::fs::{FileType, Mode, OFlags};

use super::{FileKind, FileView, contents, regfile};
use crate::capture::Capture;
use crate::error::{Error, Owner, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::survey::Survey;

pub(crate) struct Device;

/// What is kept of an open device.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeviceRecord {
    #[prost(bytes = "vec", tag = "1")]
    path: Vec<u8>,
    #[prost(uint32, tag = "2")]
    major: u32,
    #[prost(uint32, tag = "3")]
    minor: u32,
    #[prost(uint32, tag = "4")]
    flags: u32,
}

impl Record for DeviceRecord {
    const TAG: Tag = Tag(0x0213);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// The usual path of a device that keeps no state (Documentation/admin-guide/devices.txt), by its number.
pub(crate) fn plain(major: u32, minor: u32) -> Option<&'static str> {
    match (major, minor) {
        (1, 3) => Some("/dev/null"),
        (1, 5) => Some("/dev/zero"),
        (1, 7) => Some("/dev/full"),
        (1, 8) => Some("/dev/random"),
        (1, 9) => Some("/dev/urandom"),
        (1, 11) => Some("/dev/kmsg"),
        _ => None,
    }
}

/// Terminals: `/dev/tty*`, `/dev/console`, `/dev/ptmx`, ptys.
fn terminal(major: u32) -> bool {
    matches!(major, 4 | 5 | 136..=143)
}

fn number(view: &FileView) -> (u32, u32) {
    (rustix::fs::major(view.stat.st_rdev), rustix::fs::minor(view.stat.st_rdev))
}

impl FileKind for Device {
    type Record = DeviceRecord;

    fn claims(view: &FileView) -> bool {
        let kind = FileType::from_raw_mode(view.stat.st_mode);
        kind == FileType::BlockDevice || (kind == FileType::CharacterDevice && !terminal(number(view).0))
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        let (major, minor) = number(view);
        let block = FileType::from_raw_mode(view.stat.st_mode) == FileType::BlockDevice;
        let name =
            if block { format!("block device {major}:{minor}") } else { format!("character device {major}:{minor}") };
        if block || plain(major, minor).is_none() {
            let cause = "what its driver remembers of an open file cannot be read";
            survey.refuse(view.refuse("device-unknown", &name, cause, "close it before the checkpoint"));
        } else if (major, minor) == (1, 11) && regfile::flags_of(view) & 0o3 != 1 {
            let cause = "the place in the kernel log up to which it has been read cannot be seen";
            survey.refuse(view.refuse("kernel-log", &name, cause, "close it before the checkpoint"));
        }
        Ok(())
    }

    fn capture(_cx: &mut Capture<'_>, view: &FileView, _file: &OwnedFd) -> Result<DeviceRecord> {
        let (major, minor) = number(view);
        if plain(major, minor).is_none() || FileType::from_raw_mode(view.stat.st_mode) == FileType::BlockDevice {
            return Err(Error::Changed {
                subject: format!("pid {}, fd {}", view.pid, view.fd),
                what: "an unknown device was opened".into(),
            });
        }
        let link = view.link.strip_suffix(b" (deleted)").unwrap_or(&view.link);
        Ok(DeviceRecord { path: link.to_vec(), major, minor, flags: regfile::flags_of(view) })
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: DeviceRecord) -> Result<OwnedFd> {
        let usual =
            plain(record.major, record.minor).ok_or_else(|| Error::Unsound(format!("{id} is an unknown device")))?;
        let path = cx.mapped(&contents::checked_path(&record.path)?);
        let flags = OFlags::from_bits_retain(record.flags & regfile::AT_OPEN) | OFlags::NONBLOCK | OFlags::NOCTTY;
        let places = [path.clone(), PathBuf::from(usual)];
        for place in places {
            let right = rustix::fs::stat(&place).is_ok_and(|stat| {
                let there = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                    && there == (record.major, record.minor)
            });
            if right {
                return rustix::fs::open(&place, flags | OFlags::CLOEXEC, Mode::empty())
                    .map_err(Error::system("opening a device", place.display()));
            }
        }
        let owner = Owner { path: Some(path), ..Owner::default() };
        let cause = format!("no device {}:{} is there", record.major, record.minor);
        Err(Error::refuse(regfile::refuse_path("device-missing", "device", owner, &cause, "make the device node")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_comes_back_and_terminals_are_left_to_others() {
        let record = DeviceRecord { path: b"/dev/null".to_vec(), major: 1, minor: 3, flags: 2 };
        assert_eq!(DeviceRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
        assert!(terminal(136) && terminal(5) && !terminal(1));
        assert_eq!(plain(1, 1), None, "/dev/mem");
    }
}
