//! `cargo xtask kmod`: the kernel module built, and tested in guests that run stock kernels of Debian.

mod archive;
mod guest;
mod image;
mod object;
mod package;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::check::Counts;
use crate::packages;
use crate::shell::{Shell, say};
use guest::{Guest, Tell};

/// The kernels that the module is built for and tested on: the beginning of their release, and the package of their headers.
const KERNELS: [(&str, &str); 2] = [("6.1.", "linux-headers-cloud-amd64"), ("6.12.", "linux-headers-6.12-cloud-amd64")];

/// Every feature that the module can do without, hidden from it.
const ALL_HIDDEN: u64 = u64::MAX >> 1;

/// A kernel with the module built for it.
#[derive(Debug)]
struct Built {
    release: String,
    module: PathBuf,
}

/// Where things are built.
fn folder(shell: &Shell) -> PathBuf {
    shell.target().join("kmod")
}

/// Why nothing can be built or tested here.
fn missing(shell: &Shell) -> Result<Option<String>> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(Some("the module is for x86_64 only".to_owned()));
    }
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !os.contains("VERSION_CODENAME=bookworm") {
        return Ok(Some("its compiler and its kernels are those of Debian 12".to_owned()));
    }
    let path = shell.root.join("xtask/packages.toml");
    let list: List = toml::from_str(&fs::read_to_string(&path)?).context("read packages.toml")?;
    let names: Vec<String> = list.kmod.into_keys().collect();
    if !packages::are_installed(shell, &names)? && !packages::is_root(shell)? {
        return Ok(Some("its packages are not installed, and only root can do that".to_owned()));
    }
    packages::install_named(shell, &names)?;
    Ok(None)
}

#[derive(Debug, Deserialize)]
struct List {
    kmod: BTreeMap<String, String>,
}

/// Builds the Rust object once, and the module for each kernel.
fn built(shell: &Shell) -> Result<Vec<Built>> {
    let folder = folder(shell);
    fs::create_dir_all(&folder)?;
    let object = object::build(shell, &folder)?;
    KERNELS.iter().map(|(start, package)| module(shell, &object, start, package)).collect()
}

/// The module for the newest installed kernel headers of a series.
fn module(shell: &Shell, object: &Path, start: &str, package: &str) -> Result<Built> {
    let release = newest(start).with_context(|| format!("no headers of Linux {start}x from {package}"))?;
    of_release(shell, object, release)
}

fn of_release(shell: &Shell, object: &Path, release: String) -> Result<Built> {
    let place = folder(shell).join(&release);
    fs::create_dir_all(place.join("glue"))?;
    fs::copy(object, place.join("hdcr_rust.o_shipped"))?;
    let source = shell.root.join("kernel");
    fs::copy(source.join("Kbuild"), place.join("Kbuild"))?;
    for entry in fs::read_dir(source.join("glue"))? {
        let path = entry?.path();
        fs::copy(&path, place.join("glue").join(path.file_name().context("a name")?))?;
    }
    let headers = format!("/lib/modules/{release}/build");
    let make = ["-s", "-C", &headers, &format!("M={}", place.display()), "KCFLAGS=-Werror", "modules"];
    ensure!(shell.run("make", &make)?, "the module does not build for Linux {release}");
    let module = place.join("hdcr.ko");
    say(&format!("built {}", module.display()))?;
    Ok(Built { release, module })
}

/// The newest release of a series with headers.
fn newest(start: &str) -> Option<String> {
    let entries = fs::read_dir("/lib/modules").ok()?.flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_ours = |name: &String| name.starts_with(start) && name.ends_with("cloud-amd64");
    names.filter(is_ours).filter(|name| has_headers(name)).max_by_key(|name| numbers(name))
}

fn has_headers(release: &str) -> bool {
    Path::new("/lib/modules").join(release).join("build/Makefile").exists()
}

fn numbers(release: &str) -> Vec<u32> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

/// `cargo xtask kmod build`.
pub(crate) fn build(shell: &Shell) -> Result<bool> {
    if let Some(reason) = missing(shell)? {
        say(&format!("not built: {reason}"))?;
        return Ok(false);
    }
    let kernels = built(shell)?;
    let running = shell.output("uname", &["-r"])?.trim().to_owned();
    let is_missing = kernels.iter().all(|kernel| kernel.release != running);
    if is_missing && has_headers(&running) {
        of_release(shell, &folder(shell).join(object::NAME), running)?;
    } else if is_missing {
        say(&format!(
            "not built for the running kernel, {running}: its headers are not installed (linux-headers-{running})"
        ))?;
    }
    Ok(true)
}

/// `cargo xtask kmod package`.
pub(crate) fn package(shell: &Shell) -> Result<bool> {
    if let Some(reason) = missing(shell)? {
        say(&format!("not packed: {reason}"))?;
        return Ok(false);
    }
    fs::create_dir_all(folder(shell))?;
    object::build(shell, &folder(shell))?;
    package::make(shell)?;
    Ok(true)
}

/// What is built for the tests of the module, and the counts of what has been tested so far.
#[derive(Debug)]
pub(crate) struct Prepared {
    counts: Counts,
    guests: Vec<Guest>,
}

/// Builds all that the tests need, and tests the pure parts here. Where nothing can be built there are no guests.
pub(crate) fn prepare(shell: &Shell) -> Result<Prepared> {
    if let Some(reason) = missing(shell)? {
        say(&format!("skipped: the kernel module, as {reason}"))?;
        return Ok(Prepared { counts: Counts { skipped: 1, ..Counts::default() }, guests: Vec::new() });
    }
    let counts = object::test_pure_parts(shell, &folder(shell))?;
    let kernels = built(shell)?;
    let package = package::make(shell)?;
    let (program, hdcr) = (guest::program(shell)?, guest::hdcr(shell)?);
    let mut guests = Vec::new();
    for kernel in &kernels {
        let image = image::of(shell, &folder(shell), &kernel.release)?;
        // What users get is what is tested: built by DKMS, from the package.
        let packed = package::built_by_dkms(shell, &package, &kernel.release)?;
        for (hide, module) in [(0, &packed), (ALL_HIDDEN, &kernel.module)] {
            let name = format!("{}{}", kernel.release, if hide == 0 { ", by DKMS" } else { ", nothing looked up" });
            let (image, module) = (image.clone(), module.clone());
            guests.push(Guest { name, image, module, program: program.clone(), hdcr: hdcr.clone(), hide });
        }
    }
    Ok(Prepared { counts, guests })
}

impl Prepared {
    /// All tests on each kernel, and those of what is looked up without any look-up. What there is to say goes to `tell`.
    pub(crate) fn run(self, shell: &Shell, names: &[String], tell: Tell<'_>) -> Result<Counts> {
        let mut counts = self.counts;
        for guest in self.guests {
            counts.add(guest.run(shell, &folder(shell), names, tell)?);
        }
        tell(&counts.line())?;
        Ok(counts)
    }
}

/// `cargo xtask kmod test`.
pub(crate) fn test(shell: &Shell, names: &[String]) -> Result<Counts> {
    prepare(shell)?.run(shell, names, &mut say)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert!(numbers("6.1.0-56-cloud-amd64") > numbers("6.1.0-9-cloud-amd64"));
        assert_eq!(numbers("6.12.117+deb12-cloud-amd64"), [6, 12, 117, 12, 64]);
    }
}
