//! `cargo xtask test`: all parts in order, their times, and one closing line of counts.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::installed;
use crate::kmod;
use crate::packages;
use crate::shell::{Shell, say};
use crate::tidy;

/// How many checks of a part ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

impl Counts {
    /// A part that is one check.
    fn one(success: bool) -> Self {
        Counts { passed: u32::from(success), failed: u32::from(!success), skipped: 0 }
    }

    pub(crate) fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    pub(crate) fn line(self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

type Part = (&'static str, fn(&Shell) -> Result<Counts>);

/// The part that runs beside others: its guests are machines of their own, and the others mostly wait.
const BESIDE: &str = "kmod";
/// The first part that it runs beside. What comes before keeps all processors busy.
const WITH: &str = "scenarios";

/// In the order of how soon they tell.
const PARTS: [Part; 12] = [
    ("fmt", fmt),
    ("tidy", |shell| tidy::report(&shell.root)),
    ("clippy", clippy),
    ("unit", unit),
    ("install", installed::check),
    ("zoo", zoo),
    ("scenarios", |shell| trials(shell, &["scenarios"])),
    ("modes", |shell| trials(shell, &["modes"])),
    ("programs", programs),
    ("golden", |shell| trials(shell, &["golden"])),
    ("faults", faults),
    ("chain", |shell| trials(shell, &["chain"])),
];

/// Small counts: `cargo xtask trial faults` and `soak faults` have the large ones.
const KILLS: &str = "30";
const FLIPS: &str = "60";

/// What a part or a step took, and what came of it.
type Time = (&'static str, Duration, Option<Counts>);

/// Runs every part that is not left out; true when nothing failed.
pub(crate) fn everything(shell: &Shell, without: &[String]) -> Result<bool> {
    for name in without {
        let known = name == BESIDE || PARTS.iter().any(|(part, _)| part == name);
        ensure!(known, "no part is named {name}");
    }
    let is_wanted = |name: &str| without.iter().all(|left_out| left_out != name);
    let mut times: Vec<Time> = Vec::new();
    let all = Instant::now();
    packages::install(shell)?;
    times.push(("packages", all.elapsed(), None));
    let began = Instant::now();
    ensure!(shell.build()?, "the build failed");
    times.push(("build", began.elapsed(), None));
    let parts = || PARTS.iter().filter(|(name, _)| is_wanted(name));
    let with = PARTS.iter().position(|(name, _)| *name == WITH).unwrap_or(0);
    let (before, beside): (Vec<_>, Vec<_>) =
        parts().partition(|part| PARTS.iter().take(with).any(|other| other.0 == part.0));
    run(shell, &before, &mut times)?;
    if is_wanted(BESIDE) {
        say(&format!("--- {BESIDE}: built, then run beside what follows, and told at the end"))?;
        let began = Instant::now();
        let prepared = kmod::prepare(shell)?;
        times.push(("kmod built", began.elapsed(), None));
        thread::scope(|scope| {
            let guests = scope.spawn(|| told_later(shell, prepared));
            let ran = run(shell, &beside, &mut times);
            let (took, told, counts) = guests.join().map_err(|_| anyhow!("the thread of {BESIDE} panicked"))?;
            say(&format!("--- {BESIDE}\n{told}"))?;
            ran?;
            times.push((BESIDE, took, Some(counts?)));
            anyhow::Ok(())
        })?;
    } else {
        run(shell, &beside, &mut times)?;
    }
    closing(&times, all.elapsed())
}

fn run(shell: &Shell, parts: &[&Part], times: &mut Vec<Time>) -> Result<()> {
    for (name, part) in parts {
        say(&format!("--- {name}"))?;
        let began = Instant::now();
        let counts = part(shell)?;
        times.push((name, began.elapsed(), Some(counts)));
    }
    Ok(())
}

/// The tests of the module, with what they say kept until nobody else speaks.
fn told_later(shell: &Shell, prepared: kmod::Prepared) -> (Duration, String, Result<Counts>) {
    let (began, mut lines) = (Instant::now(), Vec::new());
    let counts = prepared.run(shell, &[], &mut |line| {
        lines.push(line.to_owned());
        Ok(())
    });
    (began.elapsed(), lines.join("\n"), counts)
}

fn closing(times: &[Time], all: Duration) -> Result<bool> {
    let mut total = Counts::default();
    say("--- times")?;
    for (name, took, counts) in times {
        total.add(counts.unwrap_or_default());
        let counts = counts.map(Counts::line).unwrap_or_default();
        say(&format!("{name:<10} {:>7.1} s  {counts}", took.as_secs_f64()))?;
    }
    say(&format!("{:<10} {:>7.1} s  ({BESIDE} beside others)", "all", all.as_secs_f64()))?;
    say(&total.line())?;
    Ok(total.failed == 0)
}

fn fmt(shell: &Shell) -> Result<Counts> {
    let members = shell.run("cargo", &["fmt", "--all", "--check"])?;
    // The module is no member of the workspace.
    let module = shell.run("rustfmt", &["--check", "--edition", "2024", "kernel/src/lib.rs"])?;
    Ok(Counts::one(members && module))
}

fn clippy(shell: &Shell) -> Result<Counts> {
    let arguments = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    Ok(Counts::one(shell.run("cargo", &arguments)?))
}

fn unit(shell: &Shell) -> Result<Counts> {
    let mut counts = Counts::default();
    let arguments = ["test", "--quiet", "--workspace", "--no-fail-fast"];
    let success = shell.watch("cargo", &arguments, |line| {
        counts.add(of_unit_tests(line).unwrap_or_default());
    })?;
    // A test that does not compile has no counts.
    if !success && counts.failed == 0 {
        counts.failed = 1;
    }
    Ok(counts)
}

fn zoo(shell: &Shell) -> Result<Counts> {
    trials(shell, &["run", "--jobs", "2"])
}

fn programs(shell: &Shell) -> Result<Counts> {
    trials(shell, &["programs"])
}

fn faults(shell: &Shell) -> Result<Counts> {
    trials(shell, &["faults", "--kills", KILLS, "--flips", FLIPS])
}

fn trials(shell: &Shell, arguments: &[&str]) -> Result<Counts> {
    let (runner, options) = shell.runner();
    let mut all: Vec<&str> = options.iter().map(String::as_str).collect();
    all.extend(arguments);
    let mut counts = Counts::default();
    let success = shell.watch(&runner, &all, |line| {
        counts = of_trials(line).unwrap_or(counts);
    })?;
    if !success && counts.failed == 0 {
        counts.failed = 1;
    }
    Ok(counts)
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; ...`
pub(crate) fn of_unit_tests(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result:")?.split_once(". ")?.1;
    counts(rest.split("; "), ["passed", "failed", "ignored"])
}

/// `3 passed, 0 failed, 1 skipped`
pub(crate) fn of_trials(line: &str) -> Option<Counts> {
    let parts = line.split(", ");
    (parts.clone().count() == 3).then_some(())?;
    counts(parts, ["passed", "failed", "skipped"])
}

fn counts<'a>(parts: impl Iterator<Item = &'a str>, names: [&str; 3]) -> Option<Counts> {
    let numbers: Vec<u32> =
        parts.zip(names).map_while(|(part, name)| part.strip_suffix(name)?.trim().parse().ok()).collect();
    let [passed, failed, skipped] = numbers.try_into().ok()?;
    Some(Counts { passed, failed, skipped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_what_others_print() {
        let some = |passed, failed, skipped| Some(Counts { passed, failed, skipped });
        let unit = "test result: FAILED. 11 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(of_unit_tests(unit), some(11, 2, 1));
        assert_eq!(of_unit_tests("running 3 tests"), None);
        assert_eq!(of_trials("40 passed, 1 failed, 80 skipped"), some(40, 1, 80));
        assert_eq!(of_trials("passed   tree/restored (0.1 s)"), None);
    }
}
