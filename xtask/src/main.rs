//! The project's tasks: `cargo xtask TASK`. Logic that deserves types instead of shell.

mod check;
mod install;
mod installed;
mod kmod;
mod packages;
mod page;
mod shell;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

use crate::shell::Shell;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The tasks of the project")]
struct Command {
    #[command(subcommand)]
    task: Task,
    /// Where cargo builds.
    #[arg(long, global = true, env = "CARGO_TARGET_DIR")]
    target_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// A long computation under HDCR, killed three times and rolled back each time.
    Demo,
    /// Everything that the CI checks: formatting, lints, unit tests, tidy, trials.
    Test {
        /// Leave out parts: fmt, clippy, unit, tidy, install, kmod, zoo, scenarios, modes, programs, golden, faults, chain.
        #[arg(long, value_delimiter = ',')]
        without: Vec<String>,
    },
    /// The rules about the sources that no compiler checks.
    Tidy,
    /// Trials of the zoo, by name, `lot` (the programs picked by lot, installed where missing), `chain` (images on top of one another), `faults` (the tool killed, images tampered with, surroundings that fail), `golden` (images of the past), `modes` (the ways in which it is used), `programs` (real ones), or `scenarios` (stories of what users have met); further arguments go to the runner (see `cargo xtask trial --help`).
    #[command(disable_help_flag = true)]
    Trial {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Manual pages (`man/man1`, `man/man3`) and completions for shells (`completions`), in the directory where cargo builds.
    Man,
    /// The program, the checkpoint library for C and Python, manual pages and completions, built and put below a prefix.
    Install {
        #[command(flatten)]
        places: install::Places,
        /// Instead: install into a folder where cargo builds, and try what is there then.
        #[arg(long)]
        check: bool,
    },
    /// Adds golden images of this version, of the programs named or of all that have none yet (see docs/format.md).
    Golden {
        /// Programs of `trials/golden`.
        names: Vec<String>,
    },
    /// The kernel module: `build` it, `package` it for DKMS, or `test` it in guests (all tests, or those whose names begin as given).
    Kmod {
        #[command(subcommand)]
        task: Kmod,
    },
    /// Measures beside CRIU: `all` (the default) or `small`, and by itself `often`; see `cargo xtask bench --help`.
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The same trials many times over.
    Soak {
        /// A trial, or the beginning of the names of several; `faults` kills and flips, and `chain` makes links and kills, ten times as often as this; `kills` kills the mechanism after each of its calls, at programs of 1, 8 and 64 threads, in C, Go and java; `sync` searches the states of the protocol for parallel jobs as far as memory allows.
        name: String,
        /// How many times.
        #[arg(long, default_value_t = 100)]
        times: u32,
    },
}

#[derive(Debug, Subcommand)]
enum Kmod {
    /// For the kernels 6.1 and 6.12 of Debian 12, and the running one if its headers are there.
    Build,
    /// A Debian package of its source (`hdcr-dkms`), which DKMS builds for each kernel that is installed.
    Package,
    /// On both kernels.
    Test {
        /// Beginnings of names.
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    let command = Command::parse();
    match run(&command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            shell::complain(&error);
            ExitCode::from(2)
        }
    }
}

fn run(command: &Command) -> Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace above xtask")?;
    let target = command.target_dir.clone();
    let shell = Shell::new(root, &target.unwrap_or_else(|| root.join("target")));
    match &command.task {
        Task::Demo => {
            shell::say(
                "a long computation is killed three times under hdcr, and has to end with the results of an undisturbed run",
            )?;
            packages::install(&shell)?;
            shell.trials(&["demo"])
        }
        Task::Test { without } => check::everything(&shell, without),
        Task::Tidy => {
            let broken = tidy::report(root)?;
            Ok(broken.failed == 0)
        }
        Task::Trial { arguments } if arguments.first().is_some_and(|first| first == "lot") => {
            lot(&shell, arguments.get(1..).unwrap_or_default())
        }
        Task::Trial { arguments } => {
            let own = ["chain", "faults", "golden", "modes", "programs", "scenarios"];
            let is_own = arguments.first().is_some_and(|first| own.contains(&first.as_str()));
            let mut all = if is_own { Vec::new() } else { vec!["run"] };
            all.extend(arguments.iter().map(String::as_str));
            shell.trials(&all)
        }
        Task::Kmod { task: Kmod::Build } => kmod::build(&shell),
        Task::Kmod { task: Kmod::Package } => kmod::package(&shell),
        Task::Kmod { task: Kmod::Test { names } } => Ok(kmod::test(&shell, names)?.failed == 0),
        Task::Man => {
            ensure!(shell.build_product()?, "the build failed");
            man(&shell)
        }
        Task::Install { places, check } => installation(&shell, places, *check),
        Task::Golden { names } => golden(&shell, names),
        Task::Soak { name, times } if name == "faults" => {
            let count = times.saturating_mul(10).to_string();
            shell.trials(&["faults", "--kills", &count, "--flips", &count])
        }
        Task::Soak { name, times } if name == "chain" => {
            let count = times.saturating_mul(10).to_string();
            shell.trials(&["chain", "--links", &count, "--kills", &count])
        }
        Task::Soak { name, .. } if name == "sync" => {
            let search = ["HDCR_SYNC_SOAK=1", "cargo", "test", "--release", "-p", "hdcr-sync", "--", "--nocapture"];
            shell.run("env", &search)
        }
        Task::Soak { name, times } if name == "kills" => {
            packages::install_named(&shell, &["golang-go".to_owned(), "default-jdk-headless".to_owned()])?;
            let rounds = times.div_ceil(50).max(2).to_string();
            shell.run("cargo", &["test", "--package", "hdcr-ptrace", "--test", "kills", "--", &rounds])
        }
        Task::Bench { arguments } => {
            let mut all = vec!["bench"];
            all.extend(arguments.iter().map(String::as_str));
            shell.trials(&all)
        }
        Task::Soak { name, times } => shell.trials(&["run", name, "--repeat", &times.to_string()]),
    }
}

/// The programs picked by lot: all, or those named.
fn lot(shell: &Shell, arguments: &[String]) -> Result<bool> {
    let mut all = vec!["programs", "--lot"];
    all.extend(arguments.iter().map(String::as_str));
    ensure!(shell.build()?, "the build failed");
    let names: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    packages::install_named(shell, &shell.lot_packages(&names)?)?;
    shell.trials(&all)
}

/// In a name space of its own the host has a neutral name, which the images keep.
fn golden(shell: &Shell, names: &[String]) -> Result<bool> {
    ensure!(shell.build()?, "the build failed");
    let (runner, options) = shell.runner();
    let script = "echo golden > /proc/sys/kernel/hostname && exec \"$@\"";
    let mut all = vec!["--uts", "sh", "-c", script, "sh", &runner];
    all.extend(options.iter().map(String::as_str));
    all.extend(["golden", "--make"]);
    all.extend(names.iter().map(String::as_str));
    shell.run("unshare", &all)
}

/// Builds, and installs what was built.
fn installation(shell: &Shell, places: &install::Places, is_check: bool) -> Result<bool> {
    // Where it cannot go is told before anything is built.
    places.root()?;
    ensure!(shell.build_product()?, "the build failed");
    if is_check {
        return Ok(installed::check(shell)?.failed == 0);
    }
    ensure!(man(shell)?, "no manual pages");
    install::install(shell, places)?;
    Ok(true)
}

/// Pages of commands and completions come from the description of the command line in the program itself, those of the library
/// from its header.
fn man(shell: &Shell) -> Result<bool> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (program, pages) = (shell.target().join("release/hdcr"), shell.target().join("man/man1"));
    let completions = shell.target().join("completions");
    std::fs::create_dir_all(&completions)?;
    for (name, file) in [("bash", "hdcr"), ("zsh", "_hdcr"), ("fish", "hdcr.fish")] {
        std::fs::write(completions.join(file), shell.output(&text(&program), &["completions", name])?)?;
    }
    let made = shell.run(&text(&program), &["manpage", &text(&pages)])?;
    install::write_pages(shell, &shell.target().join("man/man3"))?;
    shell::say(&format!("manual pages in {}, completions in {}", pages.display(), completions.display()))?;
    Ok(made)
}
