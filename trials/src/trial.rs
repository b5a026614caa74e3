//! One trial: a guest prepares, HDCR does its work, the guest and the witness judge.

pub(crate) mod subject;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::guest::{Built, Unbuilt};
use crate::product::{self, Product};
use crate::report::{Finished, Outcome, Report};
use crate::trial::subject::{Lacking, Subject};
use crate::witness::Witness;

/// What HDCR does to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Nothing: the guest alone, a trial of the guest.
    Undisturbed,
    /// A checkpoint in each round; the guest runs on.
    Running,
    /// Checkpoint and kill, then restore, in each round.
    Restored,
    /// HDCR must refuse by name and leave the guest alone.
    Refused,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Undisturbed => "undisturbed",
            Mode::Running => "running",
            Mode::Restored => "restored",
            Mode::Refused => "refused",
        }
    }
}

/// What to run and how.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) hdcr: Option<PathBuf>,
    pub(crate) modes: Vec<Mode>,
    pub(crate) rounds: u32,
    pub(crate) times: u32,
    pub(crate) jobs: usize,
    pub(crate) keep: bool,
}

/// Runs every guest in every mode that fits it.
pub(crate) fn run_all(plan: &Plan, built: &[Built], report: &mut Report) -> Result<()> {
    let all: Vec<(&Built, Mode)> =
        built.iter().flat_map(|b| modes_of(b, plan).into_iter().map(move |mode| (b, mode))).collect();
    ensure!(!all.is_empty(), "no trial fits the modes asked for");
    let all: Vec<(&Built, Mode)> = (0..plan.times).flat_map(|_| all.clone()).collect();
    let next = AtomicUsize::new(0);
    let report = Mutex::new(report);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.jobs)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while let Some((built, mode)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let finished = run_one(plan, built, *mode)?;
                        if let Ok(mut report) = report.lock() {
                            report.add(&finished)?;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker of the runner died")))?;
        }
        Ok(())
    })
}

fn modes_of(built: &Built, plan: &Plan) -> Vec<Mode> {
    let is_static = built.name != built.guest.name;
    let fitting: &[Mode] = match (&built.guest.refused, &plan.hdcr) {
        (_, None) if plan.modes.is_empty() => &[Mode::Undisturbed],
        (Some(_), _) => &[Mode::Undisturbed, Mode::Refused],
        (None, _) if is_static => &[Mode::Undisturbed, Mode::Restored],
        (None, _) => &[Mode::Undisturbed, Mode::Running, Mode::Restored],
    };
    let wanted = |mode: &&Mode| plan.modes.is_empty() || plan.modes.contains(mode);
    fitting.iter().filter(wanted).copied().collect()
}

/// Runs one trial in a folder of its own; only trouble of the runner itself is an error.
fn run_one(plan: &Plan, built: &Built, mode: Mode) -> Result<Finished> {
    let began = Instant::now();
    let folder = tempfile::Builder::new().prefix(&format!("hdcr-trial-{}-", built.name)).tempdir()?;
    let mut finished = Finished {
        name: built.name.clone(),
        mode: mode.name().to_owned(),
        outcome: Outcome::Passed,
        milliseconds: 0,
        checkpoint_milliseconds: Vec::new(),
        restore_milliseconds: Vec::new(),
        folder: None,
        log: Vec::new(),
    };
    finished.outcome = match &built.binary {
        Err(Unbuilt::Broken(why)) => Outcome::Failed(why.clone()),
        Err(Unbuilt::Lacking(why)) => Outcome::Skipped(why.clone()),
        Ok(_) if built.guest.needs_root && !rustix::process::geteuid().is_root() => {
            Outcome::Skipped("needs root".to_owned())
        }
        Ok(_) if plan.hdcr.is_none() && mode != Mode::Undisturbed => {
            Outcome::Skipped("no hdcr binary was given".to_owned())
        }
        Ok(binary) => {
            let mut subject = Subject::new(&built.guest, binary, folder.path(), plan)?;
            let product =
                plan.hdcr.clone().map(|binary| Product { binary, folder: folder.path().to_owned(), log: Vec::new() });
            let result = act(&mut subject, product, mode, &mut finished);
            let cleaned = subject.clean();
            finished.log.extend(subject.log);
            match result.and(cleaned) {
                Ok(()) => Outcome::Passed,
                Err(error) if error.is::<Lacking>() => Outcome::Skipped(error.to_string()),
                Err(error) => Outcome::Failed(format!("{error:#}")),
            }
        }
    };
    finished.milliseconds = began.elapsed().as_millis();
    if plan.keep || matches!(finished.outcome, Outcome::Failed(_)) {
        finished.folder = Some(folder.keep());
    }
    Ok(finished)
}

fn act(subject: &mut Subject<'_>, product: Option<Product>, mode: Mode, finished: &mut Finished) -> Result<()> {
    subject.start()?;
    let Some(mut product) = product.filter(|_| mode != Mode::Undisturbed) else {
        for round in 1..=subject.rounds {
            subject.await_ready(round)?;
            subject.go(round, Duration::ZERO)?;
        }
        return subject.verdict();
    };
    let result = rounds(subject, &mut product, mode, finished);
    finished.log.append(&mut product.log);
    result?;
    subject.verdict()
}

fn rounds(subject: &mut Subject<'_>, product: &mut Product, mode: Mode, finished: &mut Finished) -> Result<()> {
    for round in 1..=subject.rounds {
        subject.await_ready(round)?;
        let before = Witness::at_rest(subject.pid, &subject.excused())?;
        let left = Instant::now();
        let image = subject.folder.join(format!("image.{round}"));
        let image = product::utf8(&image)?;
        match mode {
            Mode::Refused => refuse(subject, product, image)?,
            Mode::Undisturbed | Mode::Running => {
                check_and_checkpoint(subject, product, &["-o", image], finished)?;
            }
            Mode::Restored => {
                check_and_checkpoint(subject, product, &["-o", image, "--kill"], finished)?;
                subject.await_death(&product.pids(image)?)?;
                let (pid, took) = product.restore(image)?;
                finished.restore_milliseconds.push(took.as_millis());
                ensure!(pid == subject.pid, "restored as {pid}, was {}", subject.pid);
                subject.is_child = false;
            }
        }
        let away = left.elapsed();
        let after = Witness::look(subject.pid)?;
        let differences = before.differences(&after, &subject.excused());
        if !differences.is_empty() {
            let shown = differences.iter().take(40).cloned();
            subject.log.extend(shown);
            anyhow::bail!("/proc differs in {} places, first {}", differences.len(), differences[0]);
        }
        subject.go(round, away)?;
    }
    Ok(())
}

fn check_and_checkpoint(
    subject: &Subject<'_>,
    product: &mut Product,
    options: &[&str],
    finished: &mut Finished,
) -> Result<()> {
    let pid = subject.pid.to_string();
    product.must(&["check", &pid])?;
    let mut arguments = vec!["checkpoint", pid.as_str()];
    arguments.extend(options);
    let answer = product.must(&arguments)?;
    finished.checkpoint_milliseconds.push(answer.took.as_millis());
    Ok(())
}

/// `check` and `checkpoint` must both refuse, name the reason, and leave no image; `late:` what shows under the freeze alone.
fn refuse(subject: &Subject<'_>, product: &mut Product, image: &str) -> Result<()> {
    let pid = subject.pid.to_string();
    let word = subject.refused.as_deref().unwrap_or_default();
    let both: [&[&str]; 2] = [&["check", &pid], &["checkpoint", &pid, "-o", image, "--kill"]];
    let (word, commands) = word.strip_prefix("late:").map_or((word, both.as_slice()), |word| (word, &both[1..]));
    for command in commands {
        let answer = product.run(command)?;
        ensure!(!answer.success, "hdcr {} did not refuse", command[0]);
        let named = answer.text.to_lowercase().contains(&word.to_lowercase());
        ensure!(named, "hdcr {} does not name {word}: {}", command[0], answer.text.trim());
    }
    ensure!(!std::path::Path::new(image).exists(), "a refused checkpoint left an image");
    Ok(())
}
