//! Whether a store, or an image, can be trusted with the rights of this user.
//!
//! Whoever writes to a store says what is executed as whom: its images hold memory and credentials, its records name
//! processes to be killed, its journals name files to be overwritten, and a link in it leads whatever is written or removed
//! elsewhere. So all of it has to belong to this user or to root, and nobody else may write to it. What only looks (`list`,
//! `show`, `verify`, `check`) takes every byte for hostile anyway and asks for nothing.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::failure::{Failure, Result};
use crate::task::Place;

/// Directories of a store, and how many levels below each are looked at: what a roll-back keeps has the owners of the files.
const PARTS: [(&str, u32); 3] = [("jobs", 2), (".jobs", 1), (".rollback", 1)];
const STICKY: u32 = 0o1000;

/// Who asks.
#[derive(Clone, Copy, Debug)]
struct User(u32);

impl User {
    fn trusts_owner(self, found: &Metadata) -> bool {
        found.uid() == 0 || found.uid() == self.0
    }

    /// What is wrong with something; `None`: it is only this user's to write. A group of a user's own is that user.
    fn doubt(self, path: &Path, found: &Metadata) -> Option<String> {
        if !self.trusts_owner(found) {
            return Some(format!("{} belongs to user {}", path.display(), found.uid()));
        }
        let (mode, is_link) = (found.mode(), found.is_symlink());
        let by_group = mode & 0o020 != 0 && found.gid() != found.uid();
        let by_others = !is_link && (mode & 0o002 != 0 || by_group);
        by_others.then(|| format!("{} can be written by others", path.display()))
    }

    /// A directory above the store: who can write to it can put another one in its place.
    fn doubt_above(self, path: &Path) -> Option<String> {
        let found = fs::symlink_metadata(path).ok()?;
        if found.mode() & STICKY != 0 && self.trusts_owner(&found) {
            return None;
        }
        self.doubt(path, &found)
    }
}

fn refused(code: &str, what: &str, remedy: &str) -> Failure {
    Failure::refused(code, format!("{what}: whoever that is could act with your rights"))
        .remedy(format!("{remedy}; --trust-store when you trust them that far"))
}

fn refused_store(what: &str) -> Failure {
    refused("store-owner", what, "make the store your own (chown, chmod go-w), or take another --store")
}

/// Refuses a store that others may have written, unless the user says that they are trusted.
pub(crate) fn store(root: &Path, is_trusted: bool) -> Result<()> {
    let own = User(rustix::process::geteuid().as_raw());
    if is_trusted {
        return Ok(());
    }
    if own.0 == 0 {
        let whole = fs::canonicalize(root).ok();
        let ways = [Some(root), whole.as_deref()].into_iter().flatten();
        if let Some(doubt) = ways.flat_map(|way| way.ancestors().skip(1)).find_map(|above| own.doubt_above(above)) {
            return Err(refused_store(&format!("the store {} lies where {doubt}", root.display())));
        }
    }
    let Ok(found) = fs::metadata(root) else { return Ok(()) };
    if let Some(doubt) = own.doubt(root, &found) {
        return Err(refused_store(&format!("the store {doubt}")));
    }
    for (part, depth) in PARTS {
        inside(own, &root.join(part), depth)?;
    }
    Ok(())
}

/// Something in a store, and what is below it.
fn inside(own: User, path: &Path, depth: u32) -> Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::system(format_args!("looking at {}", path.display()))(error)),
    };
    if let Some(doubt) = own.doubt(path, &found) {
        return Err(refused_store(&format!("in the store, {doubt}")));
    }
    if found.is_symlink() {
        let what = format!("in the store, {} is a link", path.display());
        return Err(refused_store(&what));
    }
    if depth == 0 || !found.is_dir() {
        return Ok(());
    }
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Failure::system(format_args!("reading {}", path.display())))?,
    };
    entries.flatten().try_for_each(|entry| inside(own, &entry.path(), depth - 1))
}

/// Refuses, for root, an image by path that somebody else may have written: it says whose rights its processes have. An
/// ordinary user's restore gives no rights but that user's own.
pub(crate) fn image(place: &Place, is_trusted: bool) -> Result<()> {
    let Place::Path(path) = place else { return Ok(()) };
    let own = User(rustix::process::geteuid().as_raw());
    let doubt = fs::metadata(path).ok().and_then(|found| own.doubt(path, &found));
    match doubt {
        Some(doubt) if own.0 == 0 && !is_trusted => Err(refused(
            "image-owner",
            &format!("the image {doubt}"),
            "restore it as that user, or make it your own (a copy, chown, chmod go-w)",
        )),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn code(root: &Path) -> Option<String> {
        store(root, false).err().map(|failure| failure.code)
    }

    #[test]
    fn only_a_store_that_nobody_else_can_write_is_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        assert_eq!(code(&root), None, "none yet");
        let refused = Some("store-owner".to_owned());
        for directory in ["", "jobs", "jobs/sim", "jobs/sim/1", ".jobs", ".rollback/sim"] {
            let directory = root.join(directory);
            fs::create_dir_all(&directory).unwrap();
            for path in directory.ancestors().take_while(|path| path.starts_with(&root)) {
                mode(path, 0o700);
            }
            assert_eq!(code(&root), None, "{}", directory.display());
            mode(&directory, 0o707);
            assert_eq!(code(&root), refused, "{}", directory.display());
            assert!(store(&root, true).is_ok());
            mode(&directory, 0o700);
        }
        fs::write(root.join(".jobs/sim.json"), "{}").unwrap();
        mode(&root.join(".jobs/sim.json"), 0o600);
        assert_eq!(code(&root), None);
        symlink("/", root.join("jobs/link")).unwrap();
        assert_eq!(code(&root), refused);
    }

    /// Only root can give files away.
    #[test]
    fn root_trusts_nobody_else() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (root, file) = (folder.path().join("store"), folder.path().join("image"));
        fs::create_dir_all(root.join(".jobs")).unwrap();
        fs::write(&file, "").unwrap();
        let place = Place::Path(file.clone());
        assert_eq!((code(&root), image(&place, false)), (None, Ok(())));
        for path in [root.join(".jobs"), root.clone(), folder.path().to_owned(), file] {
            chown(&path, Some(65534), None).unwrap();
            let found = (code(&root), image(&place, false).err().map(|failure| failure.code));
            let expected = if path == *folder.path() || path.starts_with(&root) {
                (Some("store-owner".to_owned()), None)
            } else {
                (None, Some("image-owner".to_owned()))
            };
            assert_eq!(found, expected, "{}", path.display());
            assert!(store(&root, true).is_ok() && image(&place, true).is_ok());
            chown(&path, Some(0), None).unwrap();
        }
    }
}
