//! Paths of a program's files, walked so that nobody else decides where they lead.
//!
//! The paths of an image are those that the kernel told: there was no symbolic link in them. One that is in the middle of
//! such a path now has been put there since, and in a directory that belongs to somebody else it may lead anywhere:
//! what is put back for a program of root would be put into the files of the system. So a link is followed only where
//! nobody but root and the user in whose name this thread acts can have put it: in a directory, below directories, that
//! belong to them, and in which others cannot change names (chmod(2), the sticky bit). Any other one is `ELOOP`. The last
//! part of a path is never followed, but for [`directory`]. All that is made, moved and removed goes by a descriptor of its
//! directory.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

use crate::error::{Owner, Refusal};
use crate::resource::data;
use crate::rights::Rights;

/// As many links as the kernel follows in a path (`path_resolution(7)`).
const LINKS: usize = 40;

const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o022;

type Result<T> = std::result::Result<T, Errno>;

/// Opens what lies at a path, and not what a link there leads to.
pub(crate) fn open(path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match without_links(path, flags, mode) {
        Err(Errno::LOOP | Errno::NOSYS) => {}
        other => return other,
    }
    let Ok((above, name)) = place(path) else { return directory(path) };
    rustix::fs::openat(above, name, flags, mode)
}

/// Opens a directory (`O_PATH`), also by a link at the end of its path.
pub(crate) fn directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match without_links(path, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NOSYS) => Walk::begin(path)?.walk(),
        other => other,
    }
}

/// The directory of a path and the name in it.
pub(crate) fn place(path: &Path) -> Result<(OwnedFd, &OsStr)> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((directory(above)?, name))
}

/// Whether a path cannot be walked because of a link that somebody else may have put there.
pub(crate) fn is_barred(path: &Path) -> bool {
    place(path).is_err_and(|error| error == Errno::LOOP)
}

/// What lies at a path.
pub(crate) fn lstat(path: &Path) -> Result<Stat> {
    let (above, name) = place(path)?;
    rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Removes a file.
pub(crate) fn unlink(path: &Path) -> Result<()> {
    let (above, name) = place(path)?;
    rustix::fs::unlinkat(above, name, AtFlags::empty())
}

/// Removes an empty directory.
pub(crate) fn rmdir(path: &Path) -> Result<()> {
    let (above, name) = place(path)?;
    rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)
}

/// Makes a directory.
pub(crate) fn mkdir(path: &Path, mode: Mode) -> Result<()> {
    let (above, name) = place(path)?;
    rustix::fs::mkdirat(above, name, mode)
}

/// Where a symbolic link leads.
pub(crate) fn read_link(path: &Path) -> Result<OsString> {
    let (above, name) = place(path)?;
    Ok(OsString::from_vec(rustix::fs::readlinkat(above, name, Vec::new())?.into_bytes()))
}

/// Makes a symbolic link.
pub(crate) fn symlink(target: &OsStr, path: &Path) -> Result<()> {
    let (above, name) = place(path)?;
    rustix::fs::symlinkat(target, above, name)
}

/// Makes a FIFO with exactly these permissions.
pub(crate) fn make_fifo(path: &Path, mode: Mode) -> Result<()> {
    let (above, name) = place(path)?;
    rustix::fs::mknodat(&above, name, FileType::Fifo, mode, 0)?;
    rustix::fs::chmodat(above, name, mode, AtFlags::empty())
}

/// Gives a name to somebody, and not what it leads to.
pub(crate) fn chown(path: &Path, user: Uid, group: Gid) -> Result<()> {
    let (above, name) = place(path)?;
    rustix::fs::chownat(above, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
}

/// Removes a directory with all that is in it.
pub(crate) fn remove_all(path: &Path) -> std::io::Result<()> {
    let (above, name) = place(path)?;
    // The library looks at no link within.
    std::fs::remove_dir_all(data::door(&above).join(name))
}

/// That there is such a link in the way to something.
pub(crate) fn barred(object: &str, path: &Path) -> Refusal {
    Refusal {
        code: "path-through-link",
        object: object.to_owned(),
        owner: Owner { path: Some(path.to_owned()), ..Owner::default() },
        cause: "its path goes through a symbolic link now, which somebody else than root and the program's user may have put \
             there, and not to what was there at the checkpoint: nothing behind it is touched"
            .to_owned(),
        remedy: "put the directory back, or give the path another place with --map-path".to_owned(),
    }
}

fn without_links(path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, path, flags, mode, resolve)
}

/// Who may put links into a path.
struct Trust {
    owners: [u32; 4],
}

impl Trust {
    fn now() -> Result<Self> {
        let acting = Rights::now().map_err(|_| Errno::PERM)?.uid;
        // In a user namespace root may be nobody; whoever has the root directory decides about every path anyway.
        let top = rustix::fs::stat("/")?.st_uid;
        Ok(Self { owners: [0, acting, rustix::process::geteuid().as_raw(), top] })
    }

    fn owns(&self, stat: &Stat) -> bool {
        self.owners.contains(&stat.st_uid)
    }

    /// Whether nobody else can change the names in a directory, at least not those of what is ours.
    fn keeps(&self, directory: &Stat) -> bool {
        self.owns(directory) && (directory.st_mode & OTHERS_WRITE == 0 || directory.st_mode & STICKY != 0)
    }
}

/// A walk along a path, a name at a time.
struct Walk {
    trust: Trust,
    at: OwnedFd,
    /// Whether nobody else has had a hand in all directories so far.
    kept: bool,
    links: usize,
    /// What is to come, the last first.
    left: Vec<OsString>,
}

impl Walk {
    fn begin(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = rustix::fs::open(".", flags, Mode::empty())?;
        let mut walk = Self { trust: Trust::now()?, at, kept: true, links: 0, left: Vec::new() };
        walk.kept = walk.trust.keeps(&rustix::fs::fstat(&walk.at)?);
        walk.put_before(path);
        Ok(walk)
    }

    fn put_before(&mut self, path: &Path) {
        let parts = path.components().filter(|part| *part != Component::CurDir);
        let parts: Vec<OsString> = parts.map(|part| part.as_os_str().to_owned()).collect();
        self.left.extend(parts.into_iter().rev());
    }

    fn walk(mut self) -> Result<OwnedFd> {
        while let Some(name) = self.left.pop() {
            self.step(&name)?;
        }
        Ok(self.at)
    }

    fn step(&mut self, name: &OsStr) -> Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = rustix::fs::openat(&self.at, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&next)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            self.kept = (self.kept || name == "/") && self.trust.keeps(&stat);
            self.at = next;
            return Ok(());
        }
        if kind != FileType::Symlink {
            return Err(Errno::NOTDIR);
        }
        self.links += 1;
        if !self.kept || !self.trust.owns(&stat) || self.links > LINKS {
            return Err(Errno::LOOP);
        }
        let target = rustix::fs::readlinkat(&next, "", Vec::new())?;
        self.put_before(Path::new(&OsString::from_vec(target.into_bytes())));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    use super::*;

    fn look(path: &Path) -> Result<OwnedFd> {
        open(path, OFlags::PATH, Mode::empty())
    }

    #[test]
    fn own_links_are_followed_and_those_of_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        let at = |name: &str| base.join(name);
        fs::create_dir_all(at("victim/deep")).unwrap();
        fs::write(at("victim/passwd"), "root").unwrap();
        fs::create_dir(at("work")).unwrap();
        symlink("../victim", at("work/data")).unwrap();
        symlink(at("work/data/deep"), at("work/far")).unwrap();
        symlink("passwd", at("victim/last")).unwrap();
        assert!(look(&at("work/data/passwd")).is_ok());
        assert!(look(&at("work/far/../passwd")).is_ok(), "by two links");
        assert!(directory(&at("work/data")).is_ok(), "at the end");
        let last = look(&at("work/data/last")).unwrap();
        assert!(FileType::from_raw_mode(rustix::fs::fstat(last).unwrap().st_mode) == FileType::Symlink);
        assert_eq!(open(&at("work/data/last"), OFlags::RDWR, Mode::empty()).unwrap_err(), Errno::LOOP);
        assert!(!is_barred(&at("work/data/last")) && !is_barred(&at("work/none/x")));
        assert_eq!(look(&at("work/data/passwd/x")).unwrap_err(), Errno::NOTDIR);
        assert_eq!(look(&at("work/none/x")).unwrap_err(), Errno::NOENT);
        // Who may write to the directory may put a link there.
        fs::set_permissions(at("work"), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(is_barred(&at("work/data/passwd")) && is_barred(&at("work/data/deep/new")));
        assert_eq!(look(&at("work/data/passwd")).unwrap_err(), Errno::LOOP);
        assert_eq!(mkdir(&at("work/data/new"), Mode::RWXU).unwrap_err(), Errno::LOOP);
        assert_eq!(unlink(&at("work/data/passwd")).unwrap_err(), Errno::LOOP);
        // What is in a directory in which everybody owns names of his own.
        fs::set_permissions(at("work"), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(look(&at("work/data/passwd")).is_ok());
        if rustix::process::geteuid().is_root() {
            lchown(at("work/data"), Some(12345), None).unwrap();
            assert!(is_barred(&at("work/data/passwd")));
            lchown(at("work/data"), Some(0), None).unwrap();
            fs::set_permissions(at("work"), fs::Permissions::from_mode(0o755)).unwrap();
            chown(at("work"), Some(12345), None).unwrap();
            assert!(is_barred(&at("work/data/passwd")));
            assert!(look(&at("work/data")).is_ok(), "the link itself");
        }
    }
}
