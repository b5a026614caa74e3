//! How libhdcr.so is linked: with a soname, and with the symbol versions of `hdcr.map`.
#![expect(clippy::disallowed_methods, reason = "cargo tells a build script by the environment what is built")]

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// It changes when programs that were linked before can no longer run with the library.
const SONAME: &str = "libhdcr.so.0";

fn main() -> Result<(), Box<dyn Error>> {
    for input in ["build.rs", "link.sh", "hdcr.map"] {
        println!("cargo:rerun-if-changed={input}");
    }
    for variable in ["RUSTC_LINKER", "CARGO_ENCODED_RUSTFLAGS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    if env::var("CARGO_CFG_TARGET_OS")? != "linux" {
        return Ok(());
    }
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,{SONAME}");
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let (script, map) = (here.join("link.sh"), here.join("hdcr.map"));
    let wrapper = format!("/bin/sh,{},{}", script.display(), map.display());
    if takes_wrapper(&wrapper) {
        println!("cargo:rustc-cdylib-link-arg=-wrapper");
        println!("cargo:rustc-cdylib-link-arg={wrapper}");
    } else {
        println!("cargo:warning=libhdcr.so gets no symbol versions: what links it takes no -wrapper, as gcc does");
    }
    name_beside(&PathBuf::from(env::var("OUT_DIR")?));
    Ok(())
}

/// The program that links: as the flags of rustc have it, as the configuration of cargo does, or the usual one.
fn linker() -> String {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    // A flag and what it takes are one word or two.
    let flags = flags.replace("-C\u{1f}", "-C").replace("--codegen\u{1f}", "-C").replace("--codegen=", "-C");
    let named = flags.split('\u{1f}').filter_map(|flag| flag.strip_prefix("-Clinker=")).next_back();
    named.map(str::to_owned).or_else(|| env::var("RUSTC_LINKER").ok()).unwrap_or_else(|| "cc".to_owned())
}

/// Whether what links is a program that starts others as it is told: gcc, of a place without a comma in its path.
fn takes_wrapper(wrapper: &str) -> bool {
    let mut command = Command::new(linker());
    command.args(["-wrapper", wrapper, "-E", "-x", "c", "/dev/null"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Beside libhdcr.so, as cargo names it, there is its soname as well: what was linked with `-L target/release -lhdcr` finds it
/// there. Where cargo builds elsewhere than it gives away, whoever links so makes the name himself.
fn name_beside(out: &Path) {
    let mut above = out.ancestors().skip(2);
    let (build, profile) = (above.next(), above.next());
    if build.and_then(Path::file_name) != Some(OsStr::new("build")) {
        return;
    }
    if let Some(profile) = profile {
        // There already, most of the time.
        std::os::unix::fs::symlink("libhdcr.so", profile.join(SONAME)).ok();
    }
}
