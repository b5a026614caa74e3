//! `cargo xtask install`: what a distribution gives away, at the places where others look for it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::page::{self, Texts};
use crate::shell::{Shell, say};

/// By this name programs that were linked with the library look for it.
pub(crate) const SONAME: &str = "libhdcr.so.0";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where it goes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Places {
    /// Where it will be used.
    #[arg(long, default_value = "/usr/local")]
    prefix: PathBuf,
    /// The folder of the libraries, below the prefix (Debian: lib/x86_64-linux-gnu).
    #[arg(long, default_value = "lib")]
    libdir: PathBuf,
    /// The folder of the Python package, below the prefix. Without it: where the python3 of this machine looks for packages.
    #[arg(long)]
    pythondir: Option<PathBuf>,
    /// A folder that stands for the root of the file system, for who makes a package.
    #[arg(long, env = "DESTDIR")]
    destdir: Option<PathBuf>,
}

impl Places {
    /// Everything below a folder that stands for the root.
    pub(crate) fn below(destdir: &Path, prefix: &str) -> Self {
        let pythondir = Some(PathBuf::from("lib/python3/dist-packages"));
        Self { prefix: prefix.into(), libdir: "lib".into(), pythondir, destdir: Some(destdir.to_owned()) }
    }

    /// The folder that is written to.
    pub(crate) fn root(&self) -> Result<PathBuf> {
        let inside = self.prefix.strip_prefix("/").context("--prefix is no absolute path")?;
        ensure!(self.libdir.is_relative(), "--libdir is no path below the prefix");
        ensure!(
            self.pythondir.as_ref().is_none_or(|folder| folder.is_relative()),
            "--pythondir is no path below the prefix"
        );
        Ok(match &self.destdir {
            Some(destdir) if !destdir.as_os_str().is_empty() => std::path::absolute(destdir)?.join(inside),
            _ => self.prefix.clone(),
        })
    }
}

/// A folder to install into.
struct Into<'a> {
    root: &'a Path,
}

impl Into<'_> {
    /// Writes a file under its name at once: a program that has the old one open or mapped keeps it.
    fn write(&self, path: impl AsRef<Path>, bytes: &[u8], mode: u32) -> Result<()> {
        self.put(path.as_ref(), |new| {
            fs::write(new, bytes)?;
            Ok(fs::set_permissions(new, fs::Permissions::from_mode(mode))?)
        })
    }

    fn copy(&self, from: &Path, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.write(path, &bytes, mode)
    }

    fn link(&self, to: &Path, path: impl AsRef<Path>) -> Result<()> {
        self.put(path.as_ref(), |new| Ok(symlink(to, new)?))
    }

    fn put(&self, path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let path = self.root.join(path);
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        let folder = path.parent().context("a folder")?;
        let new = folder.join(format!(".{name}.new"));
        let all = || -> Result<()> {
            fs::create_dir_all(folder)?;
            // What an earlier call has left.
            fs::remove_file(&new).ok();
            make(&new)?;
            Ok(fs::rename(&new, &path)?)
        };
        all().with_context(|| format!("write {}", path.display()))
    }
}

/// What `pkg-config` reads.
fn pkg_config(places: &Places) -> String {
    format!(
        "prefix={}\nlibdir=${{prefix}}/{}\nincludedir=${{prefix}}/include\n\nName: hdcr\nDescription: Checkpoint and \
         rollback: what a program may ask of it\nVersion: {VERSION}\nLibs: -L${{libdir}} -lhdcr\nLibs.private: -lm \
         -lpthread -ldl\nCflags: -I${{includedir}}\n",
        places.prefix.display(),
        places.libdir.display()
    )
}

/// The pages of section 3: one, and for each function one that leads there.
pub(crate) fn write_pages(shell: &Shell, folder: &Path) -> Result<()> {
    let read = |path: &str| fs::read_to_string(shell.root.join(path)).with_context(|| format!("read {path}"));
    let header = read("crates/hdcr/include/hdcr.h")?;
    let (versions, example) = (read("crates/hdcr/hdcr.map")?, read("crates/hdcr/examples/count.c")?);
    fs::create_dir_all(folder)?;
    let texts = Texts { header: &header, versions: &versions, example: &example, version: VERSION };
    fs::write(folder.join("hdcr.3"), page::page(&texts))?;
    for function in page::functions(&header) {
        fs::write(folder.join(format!("{function}.3")), ".so man3/hdcr.3\n")?;
    }
    Ok(())
}

/// The folder below the prefix in which the python3 of this machine looks for packages, or would if it were of that prefix.
fn python_folder(shell: &Shell, prefix: &Path) -> Option<PathBuf> {
    let script = "import site, sys\nprint(*sys.version_info[:2], sep='.')\nprint(*site.getsitepackages(), sep='\\n')";
    let told = shell.output("python3", &["-c", script]).ok()?;
    let mut lines = told.lines();
    let usual = PathBuf::from(format!("lib/python{}/site-packages", lines.next()?));
    let below = lines.filter_map(|line| Path::new(line).strip_prefix(prefix).ok());
    Some(below.filter(|path| path.starts_with("lib")).map(Path::to_owned).next().unwrap_or(usual))
}

/// Installs what has been built, manual pages and completions included.
pub(crate) fn install(shell: &Shell, places: &Places) -> Result<()> {
    let (root, built) = (places.root()?, shell.target().join("release"));
    let into = Into { root: &root };
    into.copy(&built.join("hdcr"), "bin/hdcr", 0o755)?;
    into.copy(&built.join("hdcrd"), "bin/hdcrd", 0o755)?;
    into.copy(&built.join("libhdcr.so"), places.libdir.join(SONAME), 0o644)?;
    into.link(Path::new(SONAME), places.libdir.join("libhdcr.so"))?;
    into.copy(&built.join("libhdcr.a"), places.libdir.join("libhdcr.a"), 0o644)?;
    into.copy(&shell.root.join("crates/hdcr/include/hdcr.h"), "include/hdcr.h", 0o644)?;
    into.write(places.libdir.join("pkgconfig/hdcr.pc"), pkg_config(places).as_bytes(), 0o644)?;
    // Where valgrind's users find those of others.
    into.copy(&shell.root.join("crates/hdcr/hdcr.supp"), places.libdir.join("valgrind/hdcr.supp"), 0o644)?;
    for section in ["man1", "man3"] {
        let pages = shell.target().join("man").join(section);
        for entry in fs::read_dir(&pages).with_context(|| format!("read {}", pages.display()))? {
            let entry = entry?;
            into.copy(&entry.path(), Path::new("share/man").join(section).join(entry.file_name()), 0o644)?;
        }
    }
    let completions = [
        ("hdcr", "share/bash-completion/completions/hdcr"),
        ("_hdcr", "share/zsh/site-functions/_hdcr"),
        ("hdcr.fish", "share/fish/vendor_completions.d/hdcr.fish"),
    ];
    for (name, path) in completions {
        into.copy(&shell.target().join("completions").join(name), path, 0o644)?;
    }
    match places.pythondir.clone().or_else(|| python_folder(shell, &places.prefix)) {
        Some(folder) => python(shell, &into, places, &folder)?,
        None => say("no python3 here to tell where packages lie: without the Python package (--pythondir)")?,
    }
    say(&format!("installed in {}", root.display()))
}

/// The Python package, with the library beside it: it is found there when the dynamic linker does not look at this prefix.
fn python(shell: &Shell, into: &Into<'_>, places: &Places, folder: &Path) -> Result<()> {
    let (sources, package) = (shell.root.join("python/hdcr"), folder.join("hdcr"));
    for entry in fs::read_dir(&sources)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "py.typed" || Path::new(&name).extension().is_some_and(|ending| ending == "py") {
            into.copy(&entry.path(), package.join(name), 0o644)?;
        }
    }
    let up: PathBuf = package.components().map(|_| "..").collect();
    into.link(&up.join(&places.libdir).join(SONAME), package.join("libhdcr.so"))
}
