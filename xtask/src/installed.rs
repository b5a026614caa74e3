//! Whether what `cargo xtask install` puts down works: it is installed into a folder that stands for the root, and programs
//! are compiled with what `pkg-config` says, and run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::check::Counts;
use crate::install::{self, Places, SONAME};
use crate::shell::{Shell, say};

const PREFIX: &str = "/opt/hdcr";

/// A file that includes the header twice.
const TWICE: &str = "#include <hdcr.h>\n#include <hdcr.h>\n";

/// Runs a command that has to succeed; what it said.
fn said(command: &mut Command) -> Result<String> {
    let what = format!("{command:?}");
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("start {what}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(out.status.success(), "{what}: {}{}", text(&out.stdout), text(&out.stderr));
    Ok(text(&out.stdout))
}

fn is_there(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What is installed, and where programs are made of it.
struct Trial {
    folder: PathBuf,
    root: PathBuf,
}

impl Trial {
    /// The words that `pkg-config` answers with, as a shell would read them.
    fn flags(&self, asks: &[&str]) -> Result<String> {
        let mut command = Command::new("pkg-config");
        command.args(asks).arg("hdcr").env("PKG_CONFIG_SYSROOT_DIR", self.folder.join("root"));
        command.env("PKG_CONFIG_LIBDIR", self.root.join("lib/pkgconfig"));
        Ok(said(&mut command)?.trim().to_owned())
    }

    /// Compiles the example behind a twofold inclusion and runs it.
    fn compiles(&self, compiler: &str, ending: &str, asks: &[&str]) -> Result<()> {
        let (source, program) = (self.folder.join(format!("count.{ending}")), self.folder.join("count"));
        let script = format!("{compiler} -Wall -Wextra -Werror -pedantic -o \"$1\" \"$2\" {}", self.flags(asks)?);
        said(Command::new("sh").args(["-c", &script, "sh"]).args([&program, &source]))?;
        let told = said(Command::new(&program).env("LD_LIBRARY_PATH", self.root.join("lib")))?;
        ensure!(told == "counted to 5000000\n", "{compiler}: it said {told:?}");
        Ok(())
    }

    fn all(&self, shell: &Shell) -> Result<()> {
        let example = fs::read_to_string(shell.root.join("crates/hdcr/examples/count.c"))?;
        for ending in ["c", "cc"] {
            fs::write(self.folder.join(format!("count.{ending}")), format!("{TWICE}{example}"))?;
        }
        for dialect in ["c99", "gnu17"] {
            self.compiles(&format!("cc -std={dialect}"), "c", &["--cflags", "--libs"])?;
        }
        let needed = said(Command::new("readelf").args(["--wide", "--dynamic"]).arg(self.folder.join("count")))?;
        ensure!(needed.contains(&format!("[{SONAME}]")), "the program does not want {SONAME}: {needed}");
        self.compiles("cc -static", "c", &["--static", "--cflags", "--libs"])?;
        if is_there("c++") {
            self.compiles("c++ -std=c++11", "cc", &["--cflags", "--libs"])?;
        }
        let mut program = Command::new(self.root.join("bin/hdcr"));
        ensure!(said(program.arg("--version"))?.starts_with("hdcr "), "hdcr does not tell its version");
        self.python()
    }

    /// The package finds the library beside it.
    fn python(&self) -> Result<()> {
        if !is_there("python3") {
            return Ok(());
        }
        let script = "import hdcr\nassert hdcr._library is not None\nassert not hdcr.is_enabled()\nprint('found')";
        let mut command = Command::new("python3");
        command.args(["-B", "-W", "error", "-c", script]).env_remove("HDCR_LIBRARY").env_remove("HDCR_CONTROL");
        let told = said(command.env("PYTHONPATH", self.root.join("lib/python3/dist-packages")))?;
        ensure!(told == "found\n", "python3 said {told:?}");
        Ok(())
    }
}

/// Every name that a page of section 3 leads to is there, and is the page.
fn pages(root: &Path) -> Result<()> {
    let folder = root.join("share/man/man3");
    let page = fs::read_to_string(folder.join("hdcr.3"))?;
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(name == "hdcr" || page.contains(&format!(".SS {name}\n")), "{name} is not in hdcr(3)");
    }
    Ok(())
}

/// The part of the test command.
pub(crate) fn check(shell: &Shell) -> Result<Counts> {
    if !is_there("pkg-config") {
        say("skipped: no pkg-config here (the Debian package pkgconf)")?;
        return Ok(Counts { skipped: 1, ..Counts::default() });
    }
    let folder = shell.target().join(format!("installed-{}", std::process::id()));
    let tried = tried(shell, &folder);
    fs::remove_dir_all(&folder).ok();
    if let Err(error) = &tried {
        say(&format!("failed: {error:#}"))?;
    }
    Ok(Counts { passed: u32::from(tried.is_ok()), failed: u32::from(tried.is_err()), skipped: 0 })
}

fn tried(shell: &Shell, folder: &Path) -> Result<()> {
    ensure!(crate::man(shell)?, "no manual pages");
    let places = Places::below(&folder.join("root"), PREFIX);
    install::install(shell, &places)?;
    // A second time, over what is there.
    install::install(shell, &places)?;
    let root = places.root()?;
    pages(&root)?;
    Trial { folder: folder.to_owned(), root }.all(shell)
}
