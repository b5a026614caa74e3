//! The kernels themselves: stock images of Debian, unpacked beside the build and never installed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::shell::{Shell, say};

/// The image of a release: that of this machine, or one that is fetched.
pub(super) fn of(shell: &Shell, folder: &Path, release: &str) -> Result<PathBuf> {
    let installed = PathBuf::from(format!("/boot/vmlinuz-{release}"));
    if installed.exists() {
        return Ok(installed);
    }
    let place = folder.join("images").join(release);
    let image = place.join(format!("boot/vmlinuz-{release}"));
    if image.exists() {
        return Ok(image);
    }
    fs::create_dir_all(&place)?;
    let package = format!("linux-image-{release}");
    say(&format!("fetching {package}"))?;
    let at = place.display().to_string();
    let script = "cd \"$1\" && apt-get download -qq \"$2\" && dpkg-deb -x \"$2\"_*.deb . && rm \"$2\"_*.deb";
    ensure!(shell.run("sh", &["-c", script, "sh", &at, &package])?, "{package} cannot be fetched");
    ensure!(image.exists(), "{package} has no {}", image.display());
    Ok(image)
}
