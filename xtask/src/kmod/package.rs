//! The package of the module: what DKMS builds for each kernel, with its rule for udev, its options and its group.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{folder, object};
use crate::shell::{Shell, say};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const PACKAGING: &str = "kernel/packaging";
/// What the Rust half is made of.
const RUST: [(&str, &str); 3] =
    [("kernel/src", "hdcr"), ("crates/hdcr-abi/src", "hdcr-abi"), ("crates/hdcr-layout/src", "hdcr-layout")];

/// The files beside the source: where each comes from, and where it belongs.
const BESIDE: [(&str, &str); 4] = [
    ("60-hdcr.rules", "usr/lib/udev/rules.d/60-hdcr.rules"),
    ("modprobe.conf", "usr/lib/modprobe.d/hdcr.conf"),
    ("modules-load.conf", "usr/lib/modules-load.d/hdcr.conf"),
    ("README", "usr/share/doc/hdcr-dkms/README"),
];

/// The folder that DKMS builds in, below the root.
fn source() -> String {
    format!("usr/src/hdcr-{VERSION}")
}

/// A text of the packaging, with the version in it.
fn text(shell: &Shell, name: &str) -> Result<String> {
    let path = shell.root.join(PACKAGING).join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.replace("@VERSION@", VERSION))
}

fn put(root: &Path, place: &str, text: &str, mode: u32) -> Result<()> {
    let path = root.join(place);
    fs::create_dir_all(path.parent().context("a place in a folder")?)?;
    fs::write(&path, text)?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(mode))?)
}

/// Copies the files of a folder, those with these ends.
fn copy(from: &Path, to: &Path, ends: &[&str]) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?;
        if path.is_file() && ends.iter().any(|end| name.as_encoded_bytes().ends_with(end.as_bytes())) {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// Lays out everything below a folder that stands for the root; the Rust half must have been built.
fn lay_out(shell: &Shell, root: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    let place = root.join(source());
    let kernel = shell.root.join("kernel");
    copy(&kernel.join("glue"), &place.join("glue"), &[".c", ".h"])?;
    for name in ["Kbuild", "COPYING"] {
        fs::copy(kernel.join(name), place.join(name))?;
    }
    fs::copy(folder(shell).join(object::NAME), place.join("hdcr_rust.o_shipped"))?;
    for (from, name) in RUST {
        copy(&shell.root.join(from), &place.join("rust").join(name), &[".rs"])?;
    }
    put(root, &format!("{}/dkms.conf", source()), &text(shell, "dkms.conf")?, 0o644)?;
    for (name, place) in BESIDE {
        put(root, place, &text(shell, name)?, 0o644)?;
    }
    put(root, "DEBIAN/control", &text(shell, "debian/control")?, 0o644)?;
    for name in ["postinst", "prerm"] {
        put(root, &format!("DEBIAN/{name}"), &text(shell, &format!("debian/{name}"))?, 0o755)?;
    }
    Ok(())
}

/// Makes the package; where it lies.
pub(super) fn make(shell: &Shell) -> Result<PathBuf> {
    let root = folder(shell).join("package");
    lay_out(shell, &root)?;
    let package = folder(shell).join(format!("hdcr-dkms_{VERSION}_amd64.deb"));
    let (from, to) = (root.display().to_string(), package.display().to_string());
    ensure!(shell.run("dpkg-deb", &["--root-owner-group", "--build", &from, &to])?, "dpkg-deb failed");
    say(&format!("packed {to}"))?;
    Ok(package)
}

/// Unpacks the package, and has DKMS build it for a kernel, all in folders of its own: the module.
pub(super) fn built_by_dkms(shell: &Shell, package: &Path, release: &str) -> Result<PathBuf> {
    let trees = folder(shell).join("dkms").join(release);
    if trees.exists() {
        fs::remove_dir_all(&trees)?;
    }
    let path = |name: &str| trees.join(name).display().to_string();
    let (unpacked, tree, installed) = (path("unpacked"), path("tree"), path("installed"));
    for folder in [&unpacked, &tree, &installed] {
        fs::create_dir_all(folder)?;
    }
    ensure!(
        shell.run("dpkg-deb", &["--extract", &package.display().to_string(), &unpacked])?,
        "the package cannot be unpacked"
    );
    let source = format!("{unpacked}/usr/src");
    let places = ["--dkmstree", &tree, "--sourcetree", &source, "--installtree", &installed];
    let what = ["-m", "hdcr", "-v", VERSION, "-k", release];
    let done = shell.run("dkms", &[&["build"][..], &what, &places].concat())?;
    ensure!(done, "DKMS does not build the module for Linux {release}: {tree}/hdcr/{VERSION}/build/make.log");
    let built = format!("{tree}/hdcr/{VERSION}/{release}/x86_64/module");
    let (module, packed) = (format!("{built}/hdcr.ko"), format!("{built}/hdcr.ko.xz"));
    if Path::new(&packed).exists() {
        ensure!(shell.run("xz", &["--decompress", "--force", "--keep", &packed])?, "{packed} cannot be unpacked");
    }
    ensure!(Path::new(&module).exists(), "no module in {built}");
    Ok(PathBuf::from(module))
}

#[cfg(test)]
mod tests {
    #[test]
    fn dkms_finds_the_architecture_out_by_itself() {
        // That of dpkg has another name (amd64), by which DKMS takes the module for one that is not for this machine.
        let script = include_str!("../../../kernel/packaging/debian/postinst");
        let call = script.lines().find(|line| line.trim_start().starts_with("/usr/lib/dkms/common.postinst"));
        assert_eq!(call.map(str::trim), Some(r#"/usr/lib/dkms/common.postinst hdcr @VERSION@ "" "" "$2""#));
    }
}
