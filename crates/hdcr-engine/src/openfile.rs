//! Open files of a whole tree: which descriptors lead to the same one, and what every kind of them has.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use hdcr_image::hdcr_layout::DescriptorEntry;
use hdcr_image::{List, Record, Tag};
use hdcr_sys::kcmp::{self, Kind};
use hdcr_sys::owner;
use nix::libc;

use crate::capture::{Capture, OpenFile};
use crate::error::{Error, Result};
use crate::ids::{Fd, Pid};
use crate::model::{self, ObjectId};
use crate::numbers::{self, Beside};
use crate::procfs;
use crate::resource::{self, FileKind as _, FileView};

/// What every open file has, of whatever kind.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OpenFileRecord {
    /// Status flags (`O_APPEND`, `O_NONBLOCK`, ...) and access mode.
    #[prost(uint64, tag = "1")]
    pub(crate) flags: u64,
    /// Tag of the frame that says the rest.
    #[prost(uint32, tag = "2")]
    pub(crate) kind: u32,
    /// `f_owner_ex`, 0, 0: nobody is told.
    #[prost(int32, tag = "3")]
    pub(crate) owner_kind: i32,
    #[prost(int32, tag = "4")]
    pub(crate) owner_pid: i32,
    /// `F_GETSIG`.
    #[prost(int32, tag = "5")]
    pub(crate) signal: i32,
}

impl Record for OpenFileRecord {
    const TAG: Tag = Tag(0x0103);
    const VERSION: u16 = 1;
    model::prost_record!();
}

/// All descriptors of a process as `/proc` shows them. What is closed while we look is left out: the look under the freeze
/// is the one that counts.
pub(crate) fn views(pid: Pid) -> Result<Vec<FileView>> {
    let mut views = Vec::new();
    for number in procfs::numbers(pid, "fd")? {
        views.extend(while_open(pid, Fd(number), || view(pid, Fd(number)))?);
    }
    Ok(views)
}

/// Asks something about a descriptor of a process that may run; `None` when it is closed. A shell closes and opens the same
/// number again and again, so a failure counts only when it comes each time.
pub(crate) fn while_open<T>(pid: Pid, fd: Fd, mut ask: impl FnMut() -> Result<T>) -> Result<Option<T>> {
    const TIMES: u32 = 20;
    for _ in 1..TIMES {
        match ask() {
            Ok(answer) => return Ok(Some(answer)),
            Err(_) if procfs::link(pid, &format!("fd/{fd}")).is_err() => return Ok(None),
            Err(error) => tracing::trace!(%pid, %fd, %error, "asked again"),
        }
    }
    match ask() {
        // Open when it was looked whether it is closed, and closed whenever it was asked about.
        Err(Error::System { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        last => last.map(Some),
    }
}

pub(crate) fn view(pid: Pid, fd: Fd) -> Result<FileView> {
    let name = format!("fd/{fd}");
    let stat = procfs::stat_through(pid, &name);
    Ok(FileView {
        pid,
        fd,
        link: procfs::link(pid, &name)?,
        info: procfs::fd_info(pid, fd)?,
        stat: stat.map_err(Error::system("looking at a descriptor", format!("pid {pid}, fd {fd}")))?,
    })
}

/// Puts descriptors that lead to the same open file together (`kcmp`), and gives each file a number.
pub(crate) fn group(cx: &mut Capture<'_>, views: Vec<FileView>) -> Result<()> {
    type Look = (Vec<u8>, u64, u64, u64);
    let mut buckets: BTreeMap<Look, Vec<usize>> = BTreeMap::new();
    for view in views {
        let look = (view.link.clone(), view.info.flags & !cloexec(), view.info.pos, view.stat.st_ino);
        let bucket = buckets.entry(look).or_default();
        match find(&cx.files, bucket, &view)? {
            Ok(known) => {
                if let Some(file) = cx.files.get_mut(known) {
                    file.holders.push((view.pid, view.fd));
                    cx.by_holder.insert((view.pid, view.fd), known);
                }
            }
            Err(place) => {
                let id = cx.new_id();
                bucket.insert(place, cx.files.len());
                cx.by_inode.entry(view.stat.st_ino).or_default().push(cx.files.len());
                cx.by_holder.insert((view.pid, view.fd), cx.files.len());
                cx.files.push(OpenFile { id, holders: vec![(view.pid, view.fd)], view });
            }
        }
    }
    let used = cx.by_holder.keys().map(|(_, fd)| fd.0).collect();
    let kinds = cx.files.iter().filter_map(|file| Some((resource::kind_of(&file.view)?.tag, file.view.info.flags)));
    let pipes = cx.files.iter().filter(|file| resource::pipe::Pipe::claims(&file.view));
    let pipes: BTreeSet<u64> = pipes.map(|file| file.view.stat.st_ino).collect();
    numbers::must_suffice(&used, cx.files.len(), Beside::of(kinds, pipes.len()))
}

/// Binary search by the order that `kcmp` gives: the place of the file, or where it belongs.
fn find(files: &[OpenFile], bucket: &[usize], view: &FileView) -> Result<std::result::Result<usize, usize>> {
    let (mut low, mut high) = (0, bucket.len());
    while low < high {
        let middle = low.midpoint(high);
        let Some((index, other)) = bucket.get(middle).and_then(|index| Some((*index, files.get(*index)?))) else {
            break;
        };
        let order = compare((view.pid, view.fd), (other.view.pid, other.view.fd));
        match order.map_err(Error::system("comparing descriptors", format!("pid {}, fd {}", view.pid, view.fd)))? {
            Ordering::Equal => return Ok(Ok(index)),
            Ordering::Less => high = middle,
            Ordering::Greater => low = middle + 1,
        }
    }
    Ok(Err(low))
}

/// The order of two open files; by a living thread where a leader has ended, as that has no descriptors any more.
pub(crate) fn compare(one: (Pid, Fd), other: (Pid, Fd)) -> std::io::Result<Ordering> {
    let kind = Kind::File { a: one.1.0, b: other.1.0 };
    match kcmp::kcmp(one.0.0, other.0.0, kind) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            kcmp::kcmp(procfs::door(one.0), procfs::door(other.0), kind)
        }
        answer => answer,
    }
}

/// Captures every open file of the tree, and the table of every process.
pub(crate) fn capture(cx: &mut Capture<'_>, processes: &[(Pid, ObjectId)]) -> Result<()> {
    let mut tables: BTreeMap<Pid, Vec<DescriptorEntry>> = BTreeMap::new();
    // Before anything is decided on who holds the other end of what.
    resource::socket::look(cx)?;
    let mut index = 0;
    // Sockets add the files that are only on their way in their queues.
    while let Some(file) = cx.files.get(index).cloned() {
        let view = &file.view;
        cx.in_time(view, index)?;
        index += 1;
        let duplicate = cx.duplicate(&file)?;
        let kind = resource::kind_of(view).ok_or_else(|| Error::Changed {
            subject: format!("pid {}, fd {}", view.pid, view.fd),
            what: format!("it leads to {} now", String::from_utf8_lossy(&view.link)),
        })?;
        (kind.capture)(cx, file.id, view, &duplicate)?;
        cx.frame(file.id, &common(view, kind.tag, &duplicate)?)?;
        for (pid, fd) in &file.holders {
            let close =
                if *pid == view.pid && *fd == view.fd { view.info.flags } else { procfs::fd_info(*pid, *fd)?.flags };
            let flags = u32::from(close & cloexec() != 0);
            tables.entry(*pid).or_default().push(DescriptorEntry { object: file.id.0, fd: fd.0, flags });
        }
    }
    for (pid, id) in processes {
        let mut table = tables.remove(pid).unwrap_or_default();
        table.sort_by_key(|entry| entry.fd);
        cx.frame(*id, &List(table))?;
    }
    Ok(())
}

fn common(view: &FileView, kind: Tag, file: &OwnedFd) -> Result<OpenFileRecord> {
    let path_only = view.info.flags & path_flag() != 0;
    let (owner, signal) = if path_only { (owner::Owner::default(), 0) } else { told(view, file)? };
    Ok(OpenFileRecord {
        flags: view.info.flags & !cloexec(),
        kind: kind.0.into(),
        owner_kind: owner.kind,
        owner_pid: owner.pid,
        signal,
    })
}

/// Who is told about an open file, and by which signal.
pub(crate) fn told(view: &FileView, file: &OwnedFd) -> Result<(owner::Owner, i32)> {
    owner::get(file).map_err(Error::system("asking for the owner", format!("pid {}, fd {}", view.pid, view.fd)))
}

/// `O_CLOEXEC` as fdinfo shows it.
pub(crate) fn cloexec() -> u64 {
    u64::from(libc::O_CLOEXEC.unsigned_abs())
}

/// `O_PATH`.
pub(crate) fn path_flag() -> u64 {
    u64::from(libc::O_PATH.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Request;
    use crate::mechanism::{Deadline, MechanismError};
    use crate::resource::scene;

    #[test]
    fn a_row_of_open_files_ends_with_the_time_of_the_stop() {
        let file = std::fs::File::open("/dev/null").unwrap().into();
        scene::capture(&[&file], crate::checkpoint::FileRequest::default(), |cx| {
            let over = Request { by: Deadline(std::time::Instant::now()), ..cx.request.clone() };
            let mut tree = scene::NoTree;
            let mut late = Capture::new(&mut tree, &over, None);
            late.files.clone_from(&cx.files);
            for error in [resource::socket::look(&mut late).unwrap_err(), capture(&mut late, &[]).unwrap_err()] {
                assert!(matches!(error, Error::Mechanism(MechanismError::Late { .. })), "{error}");
                assert!(error.to_string().contains("0 of its 1 open files were read"), "{error}");
            }
        });
    }

    /// A program that opens and closes one number all the time is open whenever that is looked at.
    #[test]
    fn what_is_closed_whenever_it_is_asked_about_is_left_out() {
        let (null, own) = (std::fs::File::open("/dev/null").unwrap(), scene::own_pid());
        let fd = Fd(std::os::fd::AsRawFd::as_raw_fd(&null));
        let failing = |errno: i32| {
            while_open(own, fd, || -> Result<()> {
                Err(Error::system("asking", "it")(std::io::Error::from_raw_os_error(errno)))
            })
        };
        assert!(matches!(failing(libc::ENOENT), Ok(None)));
        assert!(failing(libc::EIO).is_err());
        assert!(matches!(while_open(own, fd, || Ok(1)), Ok(Some(1))));
    }
}
