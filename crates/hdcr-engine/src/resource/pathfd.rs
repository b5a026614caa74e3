//! Descriptors opened with `O_PATH` on what is neither a file nor a directory: links, sockets, FIFOs, devices.
//!
//! Such a descriptor is a name for a place and nothing else. Captured: the path and the type of what lies there.

use std::os::fd::OwnedFd;

use hdcr_image::{Record, Tag};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::contents::{self, Life};
use super::{FileKind, FileView, regfile};
use crate::capture::Capture;
use crate::error::{Error, Owner, Refusal, Result};
use crate::model::{self, ObjectId};
use crate::restore::Restore;
use crate::route;
use crate::survey::Survey;

pub(crate) struct PathFd;

/// What is kept of it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PathFdRecord {
    #[prost(bytes = "vec", tag = "1")]
    path: Vec<u8>,
    /// The type bits of the mode.
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(uint32, tag = "3")]
    flags: u32,
}

impl Record for PathFdRecord {
    const TAG: Tag = Tag(0x0219);
    const VERSION: u16 = 1;
    model::prost_record!();
}

const TYPE: u32 = 0o170_000;

/// Whether it leads to a place in a file system, and not to a pipe, a socket or another object without a name.
fn is_named(view: &FileView) -> bool {
    view.starts_with("/")
}

fn nameless(view: &FileView) -> Refusal {
    let cause = "it was opened with O_PATH on something that has no name in a file system";
    view.refuse("path-gone", "O_PATH descriptor", cause, "close it before the checkpoint")
}

impl FileKind for PathFd {
    type Record = PathFdRecord;

    fn claims(view: &FileView) -> bool {
        let path_only = regfile::flags_of(view) & OFlags::PATH.bits() != 0;
        let other = !matches!(FileType::from_raw_mode(view.stat.st_mode), FileType::RegularFile | FileType::Directory);
        path_only && other
    }

    fn survey(survey: &mut Survey<'_>, view: &FileView) -> Result<()> {
        // `stat` of a link of /proc that leads to a symbolic link follows no further, so the identity is that of the link.
        if !is_named(view) {
            survey.refuse(nameless(view));
        } else if matches!(contents::life_of(&view.link, &view.stat).0, Life::Unlinked | Life::Elsewhere) {
            let cause = "what it leads to has been removed or renamed";
            survey.refuse(view.refuse("path-gone", "O_PATH descriptor", cause, "close it before the checkpoint"));
        }
        Ok(())
    }

    fn capture(_cx: &mut Capture<'_>, view: &FileView, _file: &OwnedFd) -> Result<PathFdRecord> {
        if !is_named(view) {
            return Err(Error::refuse(nameless(view)));
        }
        Ok(PathFdRecord { path: view.link.clone(), kind: view.stat.st_mode & TYPE, flags: regfile::flags_of(view) })
    }

    fn restore(cx: &mut Restore<'_>, id: ObjectId, record: PathFdRecord) -> Result<OwnedFd> {
        let _turn = cx.turn_of_holders(id)?;
        let path = cx.mapped(&contents::checked_path(&record.path)?);
        let file = match route::open(&path, OFlags::PATH, Mode::empty()) {
            Err(Errno::LOOP) => return Err(Error::refuse(route::barred("O_PATH descriptor", &path))),
            other => other.map_err(Error::system("opening a path", path.display()))?,
        };
        let stat = rustix::fs::fstat(&file).map_err(Error::system("looking at a path", path.display()))?;
        if stat.st_mode & TYPE == record.kind {
            return Ok(file);
        }
        let owner = Owner { path: Some(path), ..Owner::default() };
        let refusal = regfile::refuse_path(
            "file-replaced",
            "O_PATH descriptor",
            owner,
            "another kind of file lies there",
            "put it back",
        );
        Err(Error::refuse(refusal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_name_is_not_taken_for_the_thing_itself() {
        for (link, named) in [("pipe:[7]", false), ("socket:[7]", false), ("anon_inode:[eventfd]", false), ("/dev/null", true)]
        {
            let view = crate::resource::testing::view(link, OFlags::PATH.bits().into());
            assert_eq!(crate::resource::kind_of(&view).unwrap().tag, PathFdRecord::TAG, "{link}");
            assert_eq!(is_named(&view), named, "{link}");
        }
        assert!(!PathFd::claims(&crate::resource::testing::view("pipe:[7]", 0)));
    }

    #[test]
    fn the_record_comes_back_as_it_was() {
        let record = PathFdRecord { path: b"/a".to_vec(), kind: 0o120_000, flags: OFlags::PATH.bits() };
        assert_eq!(PathFdRecord::decode(&record.encode().unwrap(), 1).unwrap(), record);
    }
}
