//! Stores and images that somebody else may have written.

use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::stage::{LIMIT, Stage, counting, needs_root, shell, signal};
use crate::wait;

const NOBODY: u32 = 65534;

/// Root uses no store that an ordinary user owns, or that others can write, and restores no image of somebody else, unless
/// it is told to; what only looks is free to.
pub(crate) fn store(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let script = counting("count", 200);
    let run = ["run", "--name", "sim", "--every", "1h", "--", "sh", "-c", &script];
    let mut job = stage.start(&run, "says")?;
    stage.until_counted("count", 5)?;
    stage.expect(0, &["checkpoint", "sim", "-o", "image"])?;
    stage.expect(0, &["checkpoint", "sim", "--kill"])?;
    ensure!(shell(wait::end_of(&mut job, "the job", LIMIT)?) == 75, "{}", stage.text("says"));
    let bystander = stage.program("exec sleep 1000")?.id();
    let pid = bystander.to_string();
    let root = stage.path("store");
    for (what, wrong, right) in [
        ("its owner", Doubt::Owner(root.clone(), NOBODY), Doubt::Owner(root.clone(), 0)),
        ("its mode", Doubt::Mode(root.clone(), 0o777), Doubt::Mode(root.clone(), 0o700)),
        ("the jobs", Doubt::Owner(root.join("jobs"), NOBODY), Doubt::Owner(root.join("jobs"), 0)),
        (
            "the records",
            Doubt::Owner(root.join(".jobs/sim.json"), NOBODY),
            Doubt::Owner(root.join(".jobs/sim.json"), 0),
        ),
        ("the folder around it", Doubt::Owner(stage.folder.clone(), NOBODY), Doubt::Owner(stage.folder.clone(), 0)),
    ] {
        wrong.put().context(what)?;
        for command in [&run[..], &["checkpoint", &pid], &["restore", "sim"], &["restore", "./image"], &["rm", "sim"]] {
            stage.expect(69, command).context(what)?.names(&["store-owner", "--trust-store"]).context(what)?;
        }
        for command in [&["list"][..], &["show", "sim"], &["verify", "sim"], &["check", "sim"], &["ps"]] {
            stage.expect(0, command).context(what)?;
        }
        right.put().context(what)?;
    }
    lchown(stage.path("image"), Some(NOBODY), None)?;
    stage.expect(69, &["restore", "./image"])?.names(&["image-owner", "--trust-store"])?;
    // A copy that keeps the owners of what is in it.
    let copy = stage.path("copies/image");
    fs::create_dir_all(&copy)?;
    for part in fs::read_dir(root.join("jobs/sim/1"))? {
        let part = part?;
        fs::copy(part.path(), copy.join(part.file_name()))?;
    }
    let folder = stage.path("copies");
    for doubtful in [copy.join("frames"), folder] {
        lchown(&doubtful, Some(NOBODY), None)?;
        stage.expect(69, &["restore", "./copies/image"])?.names(&["image-owner", "cp -r"])?;
        lchown(&doubtful, Some(0), None)?;
    }
    lchown(&root, Some(NOBODY), None)?;
    let restored = stage.run(&["restore", "./image", "--trust-store"])?;
    ensure!(restored.status == 7, "{}", restored.both());
    stage.expect(0, &["checkpoint", &pid, "--trust-store"])?;
    let mut trusting = vec!["run", "--trust-store"];
    trusting.extend(run.iter().skip(1));
    stage.expect(7, &trusting)?;
    stage.expect(0, &["rm", "sim", "--trust-store"])?;
    signal(bystander, Signal::KILL);
    stage.counted("count", 200)
}

/// Something about a file.
enum Doubt {
    Owner(std::path::PathBuf, u32),
    Mode(std::path::PathBuf, u32),
}

impl Doubt {
    fn put(&self) -> io::Result<()> {
        match self {
            Self::Owner(path, user) => lchown(path, Some(*user), None),
            Self::Mode(path, mode) => fs::set_permissions(path, fs::Permissions::from_mode(*mode)),
        }
    }
}

/// An ordinary user trusts no store that another user has made, but one of a group of one's own.
pub(crate) fn store_of_user(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    stage.become_user()?;
    let root = stage.path("store");
    let make = |mode: u32, owner: u32| -> Result<()> {
        fs::create_dir(&root)?;
        fs::set_permissions(&root, fs::Permissions::from_mode(mode))?;
        lchown(&root, Some(owner), Some(owner))?;
        Ok(())
    };
    let gone = |root: &Path| fs::remove_dir_all(root);
    make(0o777, 12345)?;
    stage.expect(69, &["run", "--name", "a", "--", "true"])?.names(&["store-owner", "12345"])?;
    gone(&root)?;
    make(0o777, NOBODY)?;
    stage.expect(69, &["run", "--name", "a", "--", "true"])?.names(&["store-owner", "written by others"])?;
    gone(&root)?;
    make(0o775, NOBODY)?;
    stage.expect(0, &["run", "--name", "a", "--", "true"])?;
    Ok(())
}
