//! The guests of the zoo: found, described by their own first lines, compiled.
//!
//! A guest says what it needs in a line `// zoo: key=value ...`:
//! `rounds=N` how many rounds it can do, `static=yes` built without shared libraries as well, `needs=root`,
//! `musl=yes` built with another libc as well (with and without shared libraries),
//! `refused=WORD` must be refused by name (`late:WORD`: by a checkpoint only, as `check` cannot see it),
//! `session=outside` stays in the session of its starter,
//! `volatile=A,B` witness entries that change by themselves, `cc=FLAG,FLAG` further flags of the compiler,
//! `tail=FLAG,FLAG` flags after the source, `covers=A,B` resources shown beside the one of its name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};

/// What a guest says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) name: String,
    pub(crate) source: PathBuf,
    pub(crate) about: String,
    pub(crate) rounds: u32,
    pub(crate) builds: Vec<Build>,
    pub(crate) needs_root: bool,
    pub(crate) refused: Option<String>,
    pub(crate) session_outside: bool,
    pub(crate) volatile: Vec<String>,
    pub(crate) flags: Vec<String>,
    pub(crate) tail: Vec<String>,
}

/// A guest that can be started, or the reason why not.
#[derive(Debug, Clone)]
pub(crate) struct Built {
    pub(crate) guest: Guest,
    /// The trial's name: the guest's, with `-static`, `-musl` or `-musl-static` for such a build.
    pub(crate) name: String,
    pub(crate) binary: Result<PathBuf, Unbuilt>,
}

/// Why there is no program of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unbuilt {
    /// The compiler for this kind of build is not installed.
    Lacking(String),
    /// It does not compile.
    Broken(String),
}

impl std::fmt::Display for Unbuilt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Unbuilt::Lacking(why) | Unbuilt::Broken(why)) = self;
        f.write_str(why)
    }
}

/// How a guest is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Build {
    compiler: &'static str,
    suffix: &'static str,
    flags: &'static [&'static str],
}

/// Headers of the kernel, which musl's own compiler does not look for.
const KERNEL_HEADERS: [&str; 4] = ["-idirafter", "/usr/include", "-idirafter", "/usr/include/x86_64-linux-gnu"];
const SHARED: Build = Build { compiler: "gcc", suffix: "", flags: &[] };
const STATIC: Build = Build { compiler: "gcc", suffix: "-static", flags: &["-static"] };
const MUSL: Build = Build { compiler: "musl-gcc", suffix: "-musl", flags: &[] };
const MUSL_STATIC: Build = Build { compiler: "musl-gcc", suffix: "-musl-static", flags: &["-static"] };

/// The guests whose name begins with one of `wanted`; all when nothing is wanted.
pub(crate) fn find(zoo: &Path, wanted: &[String]) -> Result<Vec<Guest>> {
    let mut guests = Vec::new();
    for entry in fs::read_dir(zoo).with_context(|| format!("read {}", zoo.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "c") {
            let text = fs::read_to_string(&path)?;
            guests.push(describe(&path, &text).with_context(|| format!("describe {}", path.display()))?);
        }
    }
    guests.sort_by(|a, b| a.name.cmp(&b.name));
    let exact = |g: &Guest| wanted.contains(&g.name);
    let begins = |g: &Guest| wanted.iter().any(|w| g.name.starts_with(w.as_str()));
    if !wanted.is_empty() {
        let all_exact = wanted.iter().all(|w| guests.iter().any(|g| g.name == *w));
        guests.retain(|g| if all_exact { exact(g) } else { begins(g) });
        ensure!(!guests.is_empty(), "no guest is named {}", wanted.join(", "));
    }
    Ok(guests)
}

fn describe(path: &Path, text: &str) -> Result<Guest> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let about = text.lines().next().unwrap_or_default();
    let mut guest = Guest {
        name: name.into_owned(),
        source: path.to_owned(),
        about: about.trim_start_matches('/').trim().to_owned(),
        rounds: 1,
        builds: vec![SHARED],
        ..Guest::default()
    };
    for line in text.lines().take(6) {
        for word in line.strip_prefix("// zoo:").unwrap_or("").split_whitespace() {
            let (key, value) = word.split_once('=').context("key=value expected")?;
            set(&mut guest, key, value)?;
        }
    }
    Ok(guest)
}

fn set(guest: &mut Guest, key: &str, value: &str) -> Result<()> {
    let list = || value.split(',').map(str::to_owned).collect::<Vec<_>>();
    match key {
        "rounds" => guest.rounds = value.parse().context("rounds")?,
        "static" => guest.builds.push(STATIC),
        "musl" => guest.builds.extend([MUSL, MUSL_STATIC]),
        "needs" => guest.needs_root = value == "root",
        "refused" => guest.refused = Some(value.to_owned()),
        "session" => guest.session_outside = value == "outside",
        "volatile" => guest.volatile = list(),
        "cc" => guest.flags = list(),
        "tail" => guest.tail = list(),
        // For the tidy test: which resource files this guest shows beside its own name.
        "covers" => {}
        _ => bail!("unknown key {key}"),
    }
    Ok(())
}

/// Compiles what is older than its source, two at a time. A guest that does not compile is a failed trial, not an end.
pub(crate) fn build_all(guests: &[Guest], into: &Path) -> Result<Vec<Built>> {
    fs::create_dir_all(into)?;
    let into = fs::canonicalize(into)?;
    let wanted: Vec<(&Guest, Build)> =
        guests.iter().flat_map(|g| g.builds.iter().map(move |build| (g, *build))).collect();
    let next = AtomicUsize::new(0);
    let built = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((guest, how)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let one = build(guest, *how, &into);
                    if let Ok(mut list) = built.lock() {
                        list.push(one);
                    }
                }
            });
        }
    });
    let mut built = built.into_inner().unwrap_or_default();
    built.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(built)
}

fn build(guest: &Guest, how: Build, into: &Path) -> Built {
    let name = format!("{}{}", guest.name, how.suffix);
    let binary = into.join(&name);
    let built = compile(guest, how, &binary).map_err(|error| match error.downcast_ref::<std::io::Error>() {
        Some(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            Unbuilt::Lacking(format!("there is no {}", how.compiler))
        }
        _ => Unbuilt::Broken(format!("{error:#}")),
    });
    Built { guest: guest.clone(), name, binary: built.map(|()| binary) }
}

fn compile(guest: &Guest, how: Build, binary: &Path) -> Result<()> {
    let header = guest.source.with_file_name("zoo.h");
    let built_at = fs::metadata(binary).and_then(|m| m.modified()).ok();
    let is_older = |path: &Path| {
        let changed = fs::metadata(path).and_then(|m| m.modified()).ok();
        changed.is_some() && changed < built_at
    };
    if is_older(&guest.source) && is_older(&header) {
        return Ok(());
    }
    let headers = if how.compiler == MUSL.compiler { &KERNEL_HEADERS[..] } else { &[] };
    let out = Command::new(how.compiler)
        .args(["-O1", "-g", "-Wall", "-Wextra", "-pthread"])
        .args(headers)
        .args(how.flags)
        .args(&guest.flags)
        .arg("-o")
        .arg(binary)
        .arg(&guest.source)
        .args(&guest.tail)
        .output()
        .with_context(|| format!("run {}", how.compiler))?;
    ensure!(out.status.success(), "{} {}: {}", how.compiler, guest.name, String::from_utf8_lossy(&out.stderr));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_describes_itself() {
        let text =
            "// A thing: all of it.\n// zoo: rounds=3 static=yes musl=yes needs=root\n// zoo: volatile=ShdPnd,timers\n";
        let guest = describe(Path::new("zoo/thing.c"), text).unwrap();
        assert_eq!(guest.name, "thing");
        assert_eq!(guest.about, "A thing: all of it.");
        assert_eq!(guest.rounds, 3);
        assert!(guest.needs_root && !guest.session_outside);
        assert_eq!(guest.volatile, ["ShdPnd", "timers"]);
        let suffixes: Vec<&str> = guest.builds.iter().map(|build| build.suffix).collect();
        assert_eq!(suffixes, ["", "-static", "-musl", "-musl-static"]);
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        let error = describe(Path::new("x.c"), "// X.\n// zoo: round=3\n").unwrap_err();
        assert_eq!(error.to_string(), "unknown key round");
    }
}
