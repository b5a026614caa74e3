//! Whether the program's user may open the files of an image as the program had them open: what a restore finds out when it
//! opens them, for whoever only asks. Opens nothing for writing.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use hdcr_image::Record;
use hdcr_image::hdcr_layout::DescriptorEntry;
use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::OFlags;

use super::contents::{self, Life};
use super::regfile::RegFileRecord;
use super::{data, held, reopen};
use crate::error::{Refusal, Result};
use crate::ids::Pid;
use crate::model::ObjectId;
use crate::restore::mapped;
use crate::rights::{Rights, Turn};
use crate::stored::{self, Model};
use crate::task::creds;

/// The open files that could not be opened, each once. What cannot be found at all is told by [`reopen::obstacles`].
pub(crate) fn obstacles(model: &Model, map_path: &[(PathBuf, PathBuf)], stdio: &[OwnedFd]) -> Result<Vec<Refusal>> {
    let rights = creds::rights(model)?;
    let mut found = Vec::new();
    let mut told = BTreeSet::new();
    for id in stored::ids(&model.frames, RegFileRecord::TAG) {
        let open = stored::one::<RegFileRecord>(&model.frames, id)?;
        let inode = ObjectId(open.inode);
        let record = reopen::record_of(&model.frames, inode)?;
        if told.contains(&inode.0) || reopen::kind_of(&record)?.0 != Life::Named {
            continue;
        }
        let path = mapped(map_path, &record.checked_path()?);
        let writes = open.writes_to(inode);
        let rights = rights.of_any(holders(model, id));
        let Some(file) = seen(rights, &path)? else { continue };
        let own = writes && stdio.iter().any(|output| leads(output, &file));
        // What somebody else had opened for the program is opened by this process, if it is that very file.
        let opens = || -> Result<bool> { Ok(held::is_the_one(&record, &file) && may(None, &file, writes)?) };
        if !(own || may(rights, &file, writes)? || opens()?) {
            told.insert(inode.0);
            found.push(held::refusal(&record));
        }
    }
    Ok(found)
}

/// The processes that have an open file.
fn holders(model: &Model, id: ObjectId) -> impl Iterator<Item = Pid> {
    let has = move |table: &[DescriptorEntry]| table.iter().any(|entry| entry.object == id.0);
    model.tables.iter().filter(move |(_, table)| has(table)).map(|(pid, _)| *pid)
}

/// The file at a path, when the program's user finds one.
fn seen(rights: Option<&Rights>, path: &Path) -> Result<Option<OwnedFd>> {
    let _turn = Turn::to_some(rights)?;
    Ok(reopen::look(path).ok())
}

/// Whether a file may be opened with these rights; with those of this process when there are none.
fn may(rights: Option<&Rights>, file: &OwnedFd, writes: bool) -> Result<bool> {
    let _turn = Turn::to_some(rights)?;
    let wanted = if writes { AccessFlags::W_OK } else { AccessFlags::R_OK };
    let asked = faccessat(rustix::fs::CWD, &data::door(file), wanted, AtFlags::AT_EACCESS);
    Ok(!matches!(asked, Err(nix::errno::Errno::EACCES | nix::errno::Errno::EPERM)))
}

/// Whether a standard stream of the restoring command writes to the file.
fn leads(output: &OwnedFd, file: &OwnedFd) -> bool {
    let writes = rustix::fs::fcntl_getfl(output).is_ok_and(|flags| flags & OFlags::RWMODE != OFlags::RDONLY);
    let (output, file) = (rustix::fs::fstat(output), rustix::fs::fstat(file));
    writes && output.is_ok_and(|output| file.is_ok_and(|file| contents::same(&output, &file)))
}
