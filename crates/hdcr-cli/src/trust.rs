//! Whether a store, or an image, can be trusted with the rights of this user.
//!
//! Whoever writes to a store says what is executed as whom: its images hold memory and credentials, its records name
//! processes to be killed, its journals name files to be overwritten, and a link in it leads whatever is written or removed
//! elsewhere. So all of it has to belong to this user or to root, and nobody else may write to it; but for the files that a
//! roll-back has put aside, which keep their owners. What only looks (`list`, `show`, `verify`, `check`) takes every byte for
//! hostile anyway and asks for nothing.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::failure::{Failure, Result};
use crate::task::Place;

/// Directories of a store, and how many levels below each are looked at: down to the parts of an image, and not at what a
/// roll-back keeps, which has the owners of the files.
const PARTS: [(&str, u32); 4] = [("jobs", 3), (".jobs", 1), (".rollback", 1), ("parallel", 4)];
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

/// What is looked at, and what is said when it is not to be trusted.
#[derive(Clone, Copy, Debug)]
struct Kind {
    what: &'static str,
    code: &'static str,
    remedy: &'static str,
}

const STORE: Kind = Kind {
    what: "store",
    code: "store-owner",
    remedy: "make the store your own (chown -R, chmod -R go-w) in a directory of your own, or take another --store",
};

const IMAGE: Kind = Kind {
    what: "image",
    code: "image-owner",
    remedy: "restore it as that user, or take a copy of your own (cp -r, not cp -a) in a directory of your own",
};

impl Kind {
    fn refused(self, what: &str) -> Failure {
        Failure::refused(self.code, format!("{what}: whoever that is could act with your rights"))
            .remedy(format!("{}; --trust-store when you trust them that far", self.remedy))
    }

    /// The directories above, by the name that was given and by where it leads.
    fn above(self, own: User, path: &Path) -> Result<()> {
        let whole = fs::canonicalize(path).ok();
        let ways = [Some(path), whole.as_deref()].into_iter().flatten();
        match ways.flat_map(|way| way.ancestors().skip(1)).find_map(|above| own.doubt_above(above)) {
            Some(doubt) => Err(self.refused(&format!("the {} {} lies where {doubt}", self.what, path.display()))),
            None => Ok(()),
        }
    }

    /// Itself; and the link that its name is.
    fn itself(self, own: User, path: &Path) -> Result<()> {
        let found = [fs::symlink_metadata(path), fs::metadata(path)];
        match found.into_iter().flatten().find_map(|found| own.doubt(path, &found)) {
            Some(doubt) => Err(self.refused(&format!("the {} {doubt}", self.what))),
            None => Ok(()),
        }
    }

    /// Something in it, and what is below that.
    fn inside(self, own: User, path: &Path, depth: u32) -> Result<()> {
        let found = match fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.closed(format_args!("looking at {}", path.display()), error)),
        };
        if let Some(doubt) = own.doubt(path, &found) {
            return Err(self.refused(&format!("in the {}, {doubt}", self.what)));
        }
        if found.is_symlink() {
            return Err(self.refused(&format!("in the {}, {} is a link", self.what, path.display())));
        }
        if depth == 0 || !found.is_dir() { Ok(()) } else { self.below(own, path, depth) }
    }

    /// What cannot be looked at: when it is closed to this user, that helps which helps with what is somebody else's.
    fn closed(self, doing: std::fmt::Arguments<'_>, error: std::io::Error) -> Failure {
        let is_denied = error.kind() == ErrorKind::PermissionDenied;
        let failure = Failure::system(doing)(error);
        if is_denied { failure.remedy(self.remedy) } else { failure }
    }

    /// What is in a directory.
    fn below(self, own: User, path: &Path, depth: u32) -> Result<()> {
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| self.closed(format_args!("reading {}", path.display()), error))?,
        };
        let depth = depth.saturating_sub(1);
        entries.flatten().try_for_each(|entry| self.inside(own, &entry.path(), depth))
    }
}

/// Refuses a store that others may have written, unless the user says that they are trusted.
pub(crate) fn store(root: &Path, is_trusted: bool) -> Result<()> {
    let own = User(rustix::process::geteuid().as_raw());
    if is_trusted {
        return Ok(());
    }
    if own.0 == 0 {
        STORE.above(own, root)?;
    }
    STORE.itself(own, root)?;
    PARTS.into_iter().try_for_each(|(part, depth)| STORE.inside(own, &root.join(part), depth))
}

/// Refuses, for root, an image by path that somebody else may have written, or can put another one in the place of: it says
/// whose rights its processes have. An ordinary user's restore gives no rights but that user's own.
pub(crate) fn image(place: &Place, is_trusted: bool) -> Result<()> {
    let Place::Path(path) = place else { return Ok(()) };
    let own = User(rustix::process::geteuid().as_raw());
    if own.0 != 0 || is_trusted {
        return Ok(());
    }
    IMAGE.above(own, path)?;
    IMAGE.itself(own, path)?;
    if path.is_dir() { IMAGE.below(own, path, 1) } else { Ok(()) }
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
        for directory in ["", "jobs", "jobs/sim", "jobs/sim/1", "jobs/sim/.free", ".jobs", ".rollback/sim"] {
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
        let part = root.join("jobs/sim/1/pages-0");
        fs::write(&part, "").unwrap();
        mode(&part, 0o602);
        assert_eq!(code(&root), refused);
        mode(&part, 0o600);
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
        let directory = folder.path().join("images/last");
        fs::create_dir_all(root.join(".jobs")).unwrap();
        fs::create_dir_all(&directory).unwrap();
        let part = directory.join("pages-0");
        fs::write(&file, "").unwrap();
        fs::write(&part, "").unwrap();
        let images = [Place::Path(file.clone()), Place::Path(directory.clone())];
        let codes = || {
            let of = |place: &Place| image(place, false).err().map(|failure| failure.code);
            (code(&root), of(&images[0]), of(&images[1]))
        };
        assert_eq!(codes(), (None, None, None));
        let around = folder.path().to_owned();
        let all = [&root.join(".jobs"), &root, &around, &file, &part, &directory, &folder.path().join("images")];
        for path in all {
            chown(path, Some(65534), None).unwrap();
            let has = |of: &Path| path.starts_with(of) || of.starts_with(path);
            let expected = |of: &Path, code: &str| has(of).then(|| code.to_owned());
            let image_code = |of| expected(of, "image-owner");
            assert_eq!(
                codes(),
                (expected(&root, "store-owner"), image_code(&file), image_code(&directory)),
                "{}",
                path.display()
            );
            assert!(store(&root, true).is_ok() && images.iter().all(|place| image(place, true).is_ok()));
            chown(path, Some(0), None).unwrap();
        }
        // A part that leads elsewhere, and a name that somebody else can let lead elsewhere.
        let link = around.join("link");
        symlink(&directory, &link).unwrap();
        assert_eq!(image(&Place::Path(link.clone()), false), Ok(()));
        std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
        assert_eq!(image(&Place::Path(link), false).unwrap_err().code, "image-owner");
        symlink(&file, directory.join("pages-1")).unwrap();
        assert_eq!(codes().2.as_deref(), Some("image-owner"));
    }
}
