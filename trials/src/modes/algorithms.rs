//! Algorithms that decide when checkpoints are taken: those that come with HDCR, and some of one's own, in any language.

use std::path::PathBuf;
use std::process::Child;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::library::{compiled_of, library, root};
use super::stage::{LIMIT, Lacking, Stage, counting, needs_root, shell, signal, with_command};
use crate::wait;

const NO_OPTIONS: &[&str] = &[];
/// How far the counting programs count.
const END: usize = 240;
/// A moment to kill one, by how far it is: different ones each time.
fn moments() -> Result<[usize; 2]> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok([50 + usize::from(bytes[0]) % 40, 120 + usize::from(bytes[1]) % 60])
}

/// The newest checkpoint of a job that runs.
fn newest(stage: &mut Stage<'_>, name: &str) -> Result<Option<u64>> {
    let said = stage.expect(0, &["--json", "ps"])?;
    let found: Value = serde_json::from_str(&said.out)?;
    let job = found["jobs"].as_array().context("jobs")?.iter().find(|job| job["name"] == name);
    Ok(job.and_then(|job| job["newest"].as_u64()))
}

fn start(stage: &mut Stage<'_>, name: &str, options: &[&str], algorithm: &str) -> Result<Child> {
    let script = counting(&format!("count-{name}"), END);
    let mut run = vec!["-v", "run", "--name", name, "--every", "300ms", "--algorithm", algorithm];
    run.extend(options);
    run.extend(["--", "sh", "-c", &script]);
    stage.start(&run, &format!("says-{name}"))
}

/// A name of a job, further options, and its algorithm.
type Job = (String, &'static [&'static str], String);

/// So many jobs have their turns beside one another: they mostly sleep.
const AT_ONCE: usize = 4;

/// Several jobs of which each is killed at random.
fn all_killed_at_random(stage: &mut Stage<'_>, jobs: &[Job]) -> Result<()> {
    for some in jobs.chunks(AT_ONCE) {
        let mut stages: Vec<_> = some.iter().map(|(name, ..)| stage.beside(name)).collect();
        let ended: Vec<Result<()>> = thread::scope(|scope| {
            let threads: Vec<_> = some
                .iter()
                .zip(&mut stages)
                .map(|((name, options, algorithm), stage)| {
                    scope.spawn(move || killed_at_random(stage, name, options, algorithm).context(name.clone()))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked"))).collect()
        });
        stage.log.extend(stages.into_iter().flat_map(|stage| stage.log));
        ended.into_iter().collect::<Result<()>>()?;
    }
    nobody_left(stage)
}

/// A job that counts under an algorithm, killed at random moments once it has a checkpoint; it counts each number once.
fn killed_at_random(stage: &mut Stage<'_>, name: &str, options: &[&str], algorithm: &str) -> Result<()> {
    let mut job = start(stage, name, options, algorithm)?;
    let (count, says) = (format!("count-{name}"), format!("says-{name}"));
    for (kill, moment) in moments()?.into_iter().enumerate() {
        stage.until_counted(&count, moment)?;
        wait::until("a checkpoint", LIMIT, || newest(stage, name))?;
        signal(stage.only(&format!("sh -c exec 3>{count};"))?, Signal::KILL);
        stage.until_said(&says, &format!("restart {} of 5", kill + 1))?;
    }
    let status = shell(wait::end_of(&mut job, name, LIMIT)?);
    ensure!(status == 7, "it ended with {status}: {}", stage.text(&says));
    stage.counted(&count, END)
}

/// What runs an algorithm ends with its job.
fn nobody_left(stage: &Stage<'_>) -> Result<()> {
    wait::until("the end of who runs the algorithm", LIMIT, || {
        Ok(with_command(&stage.folder, |line| line.contains("__rule")).is_empty().then_some(()))
    })
}

/// Those that come with HDCR, and what is told of them.
pub(crate) fn own(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    stage
        .expect(64, &["run", "--algorithm", "adaptiv", "--", "true"])?
        .names(&["did you mean adaptive?", "exec:COMMAND"])?;
    let all =
        ["fixed:period=200ms", "young:mtbf=5s", "daly:mtbf=5s", "exact", "adaptive:mtbf=5s", "chain:longest=3,mtbf=5s"];
    let all = all.into_iter().chain(["levels:mtbf=5s", "cooperative:mtbf=5s"]);
    let named = |algorithm: &str| format!("algo-{}", algorithm.split(':').next().unwrap_or(algorithm));
    let jobs: Vec<Job> = all.map(|algorithm| (named(algorithm), NO_OPTIONS, algorithm.to_owned())).collect();
    all_killed_at_random(stage, &jobs)?;
    for (name, ..) in jobs {
        // What was said may have been cut off with the file.
        let said = stage.text(&format!("says-{name}"));
        ensure!(said.contains(" now ("), "it said {said}");
    }
    let said = stage.text("says-algo-chain");
    ensure!(said.contains("an increment now"), "it said {said}");
    let run = ["-v", "run", "--name", "algo-idle", "--algorithm", "on-idle:idle=200ms", "--", "sleep", "5"];
    stage.expect(0, &run)?.names(&["a checkpoint now (the program idles)"])?;
    Ok(())
}

/// An ordinary user's job has a pid namespace of its own, and the algorithm is outside of it.
pub(crate) fn of_user(stage: &mut Stage<'_>) -> Result<()> {
    stage.become_user()?;
    let rule = example(stage, "algorithm.sh")?;
    all_killed_at_random(stage, &[("algo-user".to_owned(), NO_OPTIONS, format!("exec:{rule}"))])
}

/// A copy of an example that every user can read.
fn example(stage: &Stage<'_>, name: &str) -> Result<String> {
    let copy = stage.path(name);
    std::fs::copy(root(stage)?.join("examples").join(name), &copy).with_context(|| format!("copy {name}"))?;
    Ok(copy.display().to_string())
}

/// The examples, each killed at random.
pub(crate) fn examples(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let shell = format!("exec:{}", example(stage, "algorithm.sh")?);
    let own = stage.path("algorithm");
    std::fs::copy(library(stage)?.join("examples/algorithm"), &own).context("copy the example in Rust")?;
    stage.surround("PYTHONPATH", &root(stage)?.join("python"));
    let python: PathBuf = root(stage)?.join("examples/algorithm.py");
    // Where the machine stands still for seconds a rule that is in order may be late, and another one decides.
    for attempt in 0..3 {
        let [quick, inside, rust, frugal] =
            ["shell", "shell-inside", "rust", "python"].map(|name| format!("algo-{name}-{attempt}"));
        let says = |stage: &Stage<'_>, name: &str| stage.text(&format!("says-{name}"));
        let jobs: [Job; 4] = [
            (quick.clone(), NO_OPTIONS, shell.clone()),
            (inside.clone(), &["--new-pids"], shell.clone()),
            (rust.clone(), NO_OPTIONS, format!("exec:{}", own.display())),
            (frugal.clone(), NO_OPTIONS, format!("exec:python3 {}", python.display())),
        ];
        all_killed_at_random(stage, &jobs)?;
        if [&quick, &inside, &rust, &frugal].iter().any(|name| says(stage, name).contains("has not answered within")) {
            continue;
        }
        ensure!(says(stage, &rust).contains("algorithm doubling"), "its name is not told");
        let said = says(stage, &frugal);
        ensure!(said.contains("algorithm frugal: an increment now") && said.contains("gives up @"), "it said {said}");
        return Ok(());
    }
    Err(Lacking("the machine stood still for seconds each time").into())
}

/// Rules that say nothing, nonsense, too much, or die: the job has its checkpoints by the other rule, and its result.
pub(crate) fn lost(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let all = [
        ("algo-dead", "exit 3", "has ended (exit status 3)"),
        ("algo-mute", "sleep 1000", "has not answered within"),
        ("algo-odd", "echo hello; sleep 1000", "does not greet"),
        ("algo-loud", "yes | tr -d '\\n'", "a line that is too long"),
        ("algo-late", "read h; echo '{\"hdcr\":1}'; sleep 1000", "has not answered within"),
        (
            "algo-wrong",
            "read h; echo '{\"hdcr\":1}'; read q; echo '{\"id\":99}'; sleep 1000",
            "has not answered question 1",
        ),
    ];
    let jobs = all.map(|(name, rule, _)| (name.to_owned(), NO_OPTIONS, format!("exec:{rule}")));
    all_killed_at_random(stage, &jobs)?;
    for (name, _, told) in all {
        stage
            .text(&format!("says-{name}"))
            .contains(told)
            .then_some(())
            .with_context(|| format!("it does not say {told}: {}", stage.text(&format!("says-{name}"))))?;
    }
    // One that serves well, and is killed.
    let rule = example(stage, "algorithm.sh")?;
    let mut job = start(stage, "algo-killed", &[], &format!("exec:{rule}"))?;
    stage.until_said("says-algo-killed", "algorithm once a second decides")?;
    for pid in with_command(&stage.folder, |line| line.contains("__rule")) {
        signal(pid, Signal::KILL);
    }
    stage.until_said("says-algo-killed", "is gone for good")?;
    let status = shell(wait::end_of(&mut job, "algo-killed", LIMIT)?);
    ensure!(status == 7, "it ended with {status}");
    stage.counted("count-algo-killed", END)
}

/// The end is announced: a last checkpoint is taken, the program is told then, and the same command goes on.
pub(crate) fn notice(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    let name = "algo-notice";
    for algorithm in [
        "on-notice:grace=50s,mtbf=365d",
        "exec:read h; echo '{\"hdcr\":1}'; sed -u 's/,\"ask\":\"decide\",\"event\":\"notice\".*/,\"checkpoint\":\"full\"}/; t; s/,.*/}/'",
    ] {
        let count = format!("count-{name}");
        std::fs::write(stage.path(&count), "")?;
        let mut job = start(stage, name, &["--fresh"], algorithm)?;
        stage.until_counted(&count, 100)?;
        let before = newest(stage, name)?;
        let so_far = stage.text(&count).lines().count();
        signal(job.id(), Signal::TERM);
        wait::end_of(&mut job, name, LIMIT)?;
        let said = stage.text(&format!("says-{name}"));
        ensure!(said.contains("(the end is announced)"), "{algorithm}: it said {said}");
        let script = counting(&count, END);
        let run = ["run", "--name", name, "--", "sh", "-c", &script];
        stage.expect(7, &run)?.names(&["goes on from its checkpoint"])?;
        let listed = stage.expect(0, &["--json", "list", name])?;
        ensure!(
            before.is_none_or(|before| listed.out.contains(&format!("{}", before + 1))),
            "no checkpoint after {before:?}"
        );
        ensure!(so_far >= 100, "it had counted to {so_far}");
        stage.counted(&count, END)?;
    }
    Ok(())
}

/// A program that says when: the checkpoint that is due waits for its word.
pub(crate) fn cooperative(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    ensure!(stage.place.hdcr.is_some(), Lacking("no hdcr binary was given"));
    let program = compiled_of(stage, "trials/library/moments.c", super::library::Linked::Shared)?.display().to_string();
    let run = ["-v", "run", "--name", "algo-word", "--algorithm", "cooperative", "--", &program];
    let said = stage.expect(0, &run)?;
    said.names(&["a checkpoint now (the program says so)", "done"])
}
