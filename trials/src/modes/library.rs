//! Programs that call the checkpoint library, linked with it in every way in which it is given away.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use rustix::process::Signal;

use super::stage::{LIMIT, Lacking, Stage, needs_root, shell, signal};
use crate::wait;

/// How a program is linked with the library.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Linked {
    Shared,
    Static,
}

/// The repository.
pub(crate) fn root(stage: &Stage<'_>) -> Result<PathBuf> {
    let sources = std::fs::canonicalize(&stage.place.sources)?;
    Ok(sources.parent().context("a folder around the trials")?.to_owned())
}

/// The folder that the library was built into: that of the product.
pub(crate) fn library(stage: &Stage<'_>) -> Result<PathBuf> {
    let product = stage.place.hdcr.as_ref().context("no hdcr binary was given")?;
    Ok(product.parent().context("a folder of the product")?.to_owned())
}

/// Compiles a program of `trials/library`.
pub(super) fn compiled(stage: &Stage<'_>, name: &str, linked: Linked) -> Result<PathBuf> {
    compiled_of(stage, &format!("trials/library/{name}.c"), linked)
}

/// Compiles a program of the repository.
pub(crate) fn compiled_of(stage: &Stage<'_>, source: &str, linked: Linked) -> Result<PathBuf> {
    let root = root(stage)?;
    let source = root.join(source);
    let name = source.file_stem().context("a name")?.to_string_lossy().into_owned();
    let binary = stage.path(&format!("{name}-{linked:?}"));
    let built = std::fs::canonicalize(library(stage)?)?;
    let mut command = Command::new("gcc");
    command.args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"]);
    command.arg(root.join("crates/hdcr/include")).arg("-o").arg(&binary).arg(&source);
    match linked {
        Linked::Shared => {
            // A copy that every user can read, beside the program, by the name that the program remembers.
            // Not again: a program that was linked before may be running on it.
            let library = stage.path("libhdcr.so.0");
            if !library.exists() {
                std::fs::copy(built.join("libhdcr.so"), library)?;
            }
            command.arg("-L").arg(&stage.folder).arg("-l:libhdcr.so.0").arg("-Wl,-rpath,$ORIGIN");
        }
        Linked::Static => {
            command.arg("-static").arg(built.join("libhdcr.a")).arg("-lm");
        }
    }
    let out = command.output().context("run gcc")?;
    ensure!(out.status.success(), "gcc {name}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(binary)
}

/// Every branch of a checkpoint, in three lives of each program.
fn branches_with(stage: &mut Stage<'_>, options: &[&str], linked: Linked) -> Result<()> {
    let program = compiled(stage, "branches", linked)?.display().to_string();
    let alone = stage.command(&program);
    let said = stage.end_of(alone, "branches alone")?;
    ensure!(said.status == 0 && said.out == "alone\n", "alone: {} {}", said.status, said.both());
    let name = format!("library-{linked:?}-{}", options.len()).to_lowercase();
    let mut run = vec!["run", "--name", &name, "--every", "1h"];
    run.extend(options);
    run.extend(["--", &program]);
    let said = stage.expect(0, &run)?;
    // What the first life said of its branch was rolled back with it.
    let expected = format!("branch 1 {name}@1 rollback\ndone\n");
    ensure!(said.out == expected, "it said {:?}, not {expected:?}", said.out);
    said.names(&["killed by SIGKILL; rolled back to", "as it asked for"])
}

pub(crate) fn branches(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    branches_with(stage, &[], Linked::Shared)?;
    branches_with(stage, &[], Linked::Static)?;
    branches_with(stage, &["--new-pids"], Linked::Shared)
}

/// Hooks run in their order before a checkpoint, after it and after a restore; nobody is in a critical section in an image;
/// a veto has its will, and who holds a section too long is named.
pub(crate) fn hooks(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let program = compiled(stage, "hooks", Linked::Shared)?.display().to_string();
    let said = stage.expect(0, &["run", "--name", "library-hooks", "--every", "1h", "--", &program])?;
    ensure!(said.out == "done\n", "it said {:?}", said.out);
    Ok(())
}

/// The same for an ordinary user.
pub(crate) fn of_user(stage: &mut Stage<'_>) -> Result<()> {
    stage.become_user()?;
    branches_with(stage, &[], Linked::Static)
}

/// Who is restored without a keeper is told so, and goes on without one.
pub(crate) fn by_hand(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let program = compiled(stage, "by_hand", Linked::Shared)?.display().to_string();
    let name = "library-by-hand";
    let mut job = stage.start(&["run", "--name", name, "--every", "1h", "--", &program], "says")?;
    stage.until_said("says", "ready")?;
    stage.expect(0, &["checkpoint", "--kill", name])?;
    wait::end_of(&mut job, "the job", LIMIT)?;
    stage.expect(0, &["restore", name])?;
    let said = stage.text("says");
    let expected = "restored 1 library-by-hand@1 hand\nalone\n-1 no-keeper\n";
    ensure!(said.contains(expected), "it said {said:?}, not {expected:?}");
    Ok(())
}

/// Whether any file below a folder has these bytes.
fn holds(folder: &Path, bytes: &[u8]) -> Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            holds(&path, bytes)?
        } else {
            std::fs::read(&path)?.windows(bytes.len()).any(|window| window == bytes)
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Some bytes from the middle of what the program fills memory with.
fn filled(seed: u64) -> Vec<u8> {
    let words = std::iter::successors(Some(seed), |word| {
        let word = word ^ (word << 13);
        let word = word ^ (word >> 7);
        Some(word ^ (word << 17))
    });
    words.skip(1000).take(6).flat_map(u64::to_le_bytes).collect()
}

/// Memory that is left out is zeros after a restore, however memory is read; a secret is in no file of the store.
pub(crate) fn memory(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let program = compiled(stage, "memory", Linked::Shared)?.display().to_string();
    let secret: u64 = 0x9e37_79b9_7f4a_7c15;
    let word = format!("{secret:x}");
    for (way, increments) in [("stop", "off"), ("precopy", "off"), ("fork", "off"), ("auto", "on")] {
        let name = format!("library-memory-{way}");
        let run = ["run", "--name", &name, "--every", "1h", "--snapshot", way, "--increments", increments];
        let run: Vec<&str> = run.into_iter().chain(["--", &program, &word]).collect();
        let said = stage.expect(0, &run)?;
        ensure!(said.out == "done\n", "{way}: it said {:?}", said.out);
        let shown = stage.expect(0, &["show", "--records", &name])?;
        shown.names(&["bytes are left out as the program has asked"])?;
    }
    let store = stage.path("store");
    ensure!(holds(&store, &filled(1))?, "what is kept of memory is not found");
    ensure!(!holds(&store, &filled(secret))?, "the secret is in the store");
    Ok(())
}

/// A keeper that is told nonsense goes on, and hears nobody but its own program.
pub(crate) fn hostile(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let script = root(stage)?.join("trials/library/hostile.py").display().to_string();
    let name = "library-hostile";
    let kept = format!("echo \"$HDCR_CONTROL\" > control; /usr/bin/python3 {script}; echo > over; exec sleep 1000");
    let mut job = stage.start(&["run", "--name", name, "--every", "1h", "--", "sh", "-c", &kept], "says")?;
    wait::until("the end of what it says", LIMIT, || Ok(stage.path("over").exists().then_some(())))?;
    ensure!(stage.text("says") == "done\n", "it said {}", stage.text("says"));
    let mut outside = stage.command("/usr/bin/python3");
    outside.args([&script, "outside"]).env("HDCR_CONTROL", stage.text("control").trim());
    let said = stage.end_of(outside, "somebody else")?;
    ensure!(said.out == "unheard\n", "somebody else: {}", said.both());
    stage.expect(0, &["checkpoint", name])?;
    stage.expect(0, &["stop", name])?;
    wait::end_of(&mut job, "the job", LIMIT)?;
    Ok(())
}

/// An example is killed three times and comes to the result of an undisturbed run without HDCR.
fn killed_thrice(stage: &mut Stage<'_>, name: &str, command: &[String]) -> Result<()> {
    let folder = |life: &str| format!("{name}-{life}");
    for life in ["alone", "kept"] {
        std::fs::create_dir(stage.path(&folder(life)))?;
    }
    let (program, words) = command.split_first().context("a command")?;
    let mut alone = stage.command(program);
    alone.args(words).arg("result").current_dir(stage.path(&folder("alone")));
    let said = stage.end_of(alone, name)?;
    ensure!(said.status == 0, "alone: {}", said.both());
    let script = format!("cd {} && exec \"$@\"", folder("kept"));
    let mut run = vec!["run", "--name", name, "--every", "200ms", "--", "sh", "-c", &script, "sh"];
    run.extend(command.iter().map(String::as_str));
    run.push("result");
    let says = format!("says-{name}");
    let mut job = stage.start(&run, &says)?;
    for (kill, steps) in ["step 100", "step 250", "step 450"].into_iter().enumerate() {
        stage.until_said(&says, steps)?;
        signal(stage.only(&command.join(" "))?, Signal::KILL);
        stage.until_said(&says, &format!("restart {} of 5", kill + 1))?;
    }
    let status = shell(wait::end_of(&mut job, name, LIMIT)?);
    ensure!(status == 0, "it ended with {status}: {}", stage.text(&says));
    let result = |life: &str| stage.text(&format!("{}/result", folder(life)));
    ensure!(!result("kept").is_empty() && result("kept") == result("alone"), "another result than undisturbed");
    let said = stage.text(&says);
    ensure!(said.contains("life 3, from ") && !said.contains("no checkpoint:"), "it said {said}");
    Ok(())
}

/// The examples of the library.
pub(crate) fn examples(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let solver = compiled_of(stage, "crates/hdcr/examples/solver.c", Linked::Shared)?;
    killed_thrice(stage, "library-c", &[solver.display().to_string()])?;
    let own = stage.path("solver-rust");
    std::fs::copy(library(stage)?.join("examples/solver"), &own).context("copy the example in Rust")?;
    killed_thrice(stage, "library-rust", &[own.display().to_string()])
}

/// The example in Python, which stands on the C library.
pub(crate) fn python(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let mut numpy = Command::new("/usr/bin/python3");
    let has_numpy = numpy.args(["-c", "import numpy"]).output().is_ok_and(|out| out.status.success());
    ensure!(has_numpy, Lacking("python3 has no numpy"));
    let python = root(stage)?.join("python");
    let train = python.join("examples/train.py").display().to_string();
    let words = ["/usr/bin/python3".to_owned(), train];
    let package = stage.path("package");
    std::fs::create_dir_all(package.join("hdcr"))?;
    std::fs::copy(python.join("hdcr/__init__.py"), package.join("hdcr/__init__.py"))?;
    std::fs::copy(library(stage)?.join("libhdcr.so"), package.join("hdcr/libhdcr.so"))?;
    stage.surround("PYTHONPATH", &package);
    killed_thrice(stage, "library-python", &words)
}
