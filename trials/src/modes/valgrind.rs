//! Programs that call the library, under memcheck and helgrind: without HDCR, and rolled back.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::library::{Linked, compiled, root};
use super::stage::{LIMIT, Lacking, Stage, needs_root, shell};
use crate::wait;

/// What valgrind ends with when it has found something, in the program or in a child of it.
const FOUND: i32 = 9;

fn needs_valgrind() -> Result<()> {
    let told = Command::new("valgrind").arg("--version").output();
    ensure!(told.is_ok_and(|told| told.status.success()), Lacking("no valgrind here"));
    Ok(())
}

/// The words that start a program under a tool; what that finds goes to files that begin with its name.
fn words(stage: &Stage<'_>, tool: &str) -> Result<Vec<String>> {
    let told = stage.path(&format!("{tool}-%p.found"));
    let races = root(stage)?.join("crates/hdcr/hdcr.supp");
    let mut all = vec!["valgrind".to_owned(), "--quiet".to_owned(), "--vgdb=no".to_owned(), format!("--tool={tool}")];
    all.push(format!("--error-exitcode={FOUND}"));
    all.push(format!("--log-file={}", told.display()));
    if tool == "helgrind" {
        all.push(format!("--suppressions={}", races.display()));
    }
    Ok(all)
}

/// What has been found since it was last asked for.
fn found(stage: &Stage<'_>) -> Result<String> {
    let mut all = String::new();
    for entry in std::fs::read_dir(&stage.folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "found") {
            all.push_str(&std::fs::read_to_string(&path)?);
            std::fs::remove_file(&path)?;
        }
    }
    Ok(all)
}

/// A program runs under a tool without HDCR: its status, and what was found.
fn run_alone(stage: &mut Stage<'_>, tool: &str, program: &Path, wrong: &[&str]) -> Result<(i32, String)> {
    let words = words(stage, tool)?;
    let (valgrind, options) = words.split_first().context("a command")?;
    let mut command = stage.command(valgrind);
    command.args(options);
    if tool == "memcheck" {
        command.args(["--leak-check=full", "--errors-for-leak-kinds=definite,possible"]);
    }
    command.arg(program).args(wrong);
    let said = stage.end_of(command, &format!("{tool} {wrong:?}"))?;
    ensure!(!wrong.is_empty() || said.out == "alone\n", "under {tool} it said {}", said.both());
    Ok((said.status, found(stage)?))
}

/// All calls where there is no keeper, and what each tool is there for is found.
pub(crate) fn alone(stage: &mut Stage<'_>) -> Result<()> {
    needs_valgrind()?;
    let program = compiled(stage, "alone", Linked::Shared)?;
    for (tool, wrong, words) in [("memcheck", "short", "Invalid write"), ("helgrind", "race", "Possible data race")] {
        let (status, told) = run_alone(stage, tool, &program, &[])?;
        ensure!(status == 0 && told.is_empty(), "{tool} ended with {status}: {told}");
        let (status, told) = run_alone(stage, tool, &program, &[wrong])?;
        ensure!(status == FOUND && told.contains(words), "{tool} did not find the {wrong}: {status}, {told}");
    }
    Ok(())
}

/// The words by which a program is run as a job under a tool.
fn job(stage: &Stage<'_>, tool: &str, name: &str) -> Result<Vec<String>> {
    let program = compiled(stage, name, Linked::Shared)?.display().to_string();
    let name = format!("library-{tool}-{name}");
    let mut all = ["run", "--name", &name, "--every", "1h", "--"].map(str::to_owned).to_vec();
    all.extend(words(stage, tool)?);
    all.push(program);
    Ok(all)
}

/// Under a keeper, in all lives of each program. Leaks are not looked for there: to a child of fork(2) what only the agent of
/// its parent knew is lost.
pub(crate) fn kept(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    needs_valgrind()?;
    // It waits most of its time.
    let hooks = job(stage, "memcheck", "hooks")?;
    let mut beside = stage.start(&hooks.iter().map(String::as_str).collect::<Vec<_>>(), "hooks-says")?;
    for (tool, name) in [("memcheck", "branches"), ("helgrind", "branches"), ("memcheck", "memory")] {
        let words = job(stage, tool, name)?;
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.extend((name == "memory").then_some("9e3779b97f4a7c15"));
        let said = stage.expect(0, &words)?;
        ensure!(said.out.ends_with("done\n"), "{tool}: {name} said {}", said.both());
    }
    let status = shell(wait::end_of(&mut beside, "hooks", LIMIT)?);
    let said = stage.text("hooks-says");
    ensure!(status == 0 && said.contains("done\n"), "memcheck: hooks ended with {status}: {said}");
    let told = found(stage)?;
    ensure!(told.is_empty(), "{told}");
    Ok(())
}
