//! Roll-backs of jobs that do not go as usual: the user ends them in the middle; the newest checkpoint is damaged.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::stage::{LIMIT, Lacking, Stage, counting, needs_root, shell, signal, with_command};
use crate::wait;

/// Files that the program writes anew after the checkpoint.
const FILES: u32 = 400;

/// A request to end that comes while files are rolled back leaves them as they were before the roll-back.
pub(crate) fn interrupted(stage: &mut Stage<'_>) -> Result<()> {
    const ROUNDS: usize = 10;
    needs_root()?;
    fs::create_dir(stage.path("data"))?;
    let script = format!(
        "for i in $(seq {FILES}); do echo old > data/$i; done; echo > ready; while [ ! -e go ]; do sleep 0.02; done; \
         for i in $(seq {FILES}); do echo newer > data/$i; done; echo > changed; while :; do sleep 0.05; done"
    );
    for round in 0..ROUNDS {
        if interrupted_once(stage, &script).with_context(|| format!("round {round}"))? {
            return Ok(());
        }
    }
    Err(Lacking("no roll-back was met in the middle").into())
}

/// `false`: the roll-back was over already.
fn interrupted_once(stage: &mut Stage<'_>, script: &str) -> Result<bool> {
    let name = "keeper-interrupted";
    for file in ["ready", "go", "changed"] {
        fs::remove_file(stage.path(file)).ok();
    }
    let run = ["run", "--name", name, "--fresh", "--every", "1h", "--files", "data", "--", "sh", "-c", script];
    let mut job = stage.start(&run, "says")?;
    stage.until_said("ready", "\n")?;
    stage.expect(0, &["checkpoint", name])?;
    fs::write(stage.path("go"), "")?;
    stage.until_said("changed", "\n")?;
    let journal = stage.path("store/.rollback/keeper-interrupted/rollback.journal");
    signal(stage.only("sh -c")?, Signal::KILL);
    wait::until("the roll-back", LIMIT, || {
        let begun = fs::metadata(&journal).is_ok_and(|journal| journal.len() > 0);
        Ok((begun || stage.text("says").contains("rolled back to")).then_some(()))
    })?;
    signal(job.id(), Signal::TERM);
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 143, "the job ended with {status}: {}", stage.text("says"));
    ensure!(!journal.exists(), "the roll-back is half done");
    let all: BTreeSet<String> = (1..=FILES).map(|number| stage.text(&format!("data/{number}"))).collect();
    ensure!(all.len() == 1, "some files are rolled back, and others are not: {all:?}");
    Ok(all.contains("newer\n"))
}

/// The worker dies when the program runs again and nobody has been told: what the program has done by then is undone, too.
pub(crate) fn untold(stage: &mut Stage<'_>) -> Result<()> {
    needs_root()?;
    // No two lives give a file the same name.
    let script = "import os, random, time\nos.mkdir('d')\nnames = set()\ncount = open('count', 'w', buffering=1)\n\
        def new():\n    return '%030x' % random.SystemRandom().getrandbits(120)\n\
        for i in range(1, 201):\n    name = new()\n    open('d/' + name, 'w').close()\n    names.add(name)\n    \
        if i % 3 == 2:\n        old, name = names.pop(), new()\n        os.rename('d/' + old, 'd/' + name)\n        names.add(name)\n    \
        if i % 5 == 4:\n        os.remove('d/' + names.pop())\n    print(i, file=count)\n    time.sleep(0.02)\n\
        assert set(os.listdir('d')) == names, set(os.listdir('d')) ^ names\nraise SystemExit(7)\n";
    fs::write(stage.path("names.py"), script)?;
    let fifo = stage.path("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600))?;
    stage.surround("HDCR_TRIAL_DIE_UNTOLD", &fifo);
    let run = ["-v", "run", "--name", "untold", "--every", "1h", "--", "python3", "names.py"];
    let mut job = stage.start(&run, "says")?;
    stage.until_counted("count", 20)?;
    stage.expect(0, &["checkpoint", "untold"])?;
    let so_far = stage.text("count").lines().count();
    stage.until_counted("count", so_far + 10)?;
    let is_program = |line: &str| line.ends_with("python3 names.py") && !line.contains("untold");
    signal(*with_command(&stage.folder, is_program).first().context("no program")?, Signal::KILL);
    // Whoever opens it for reading is about to tell.
    let mut options = fs::OpenOptions::new();
    options.write(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    let mut word = wait::until("the restore", LIMIT, || Ok(options.open(&fifo).ok()))?;
    stage.until_counted("count", so_far + 30)?;
    fs::remove_file(&fifo)?;
    word.write_all(b"die")?;
    drop(word);
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    let said = stage.text("says");
    ensure!(status == 7, "the job ended with {status}: {said}");
    ensure!(!said.contains("not undone"), "a roll-back that was over was undone: {said}");
    stage.counted("count", 200)
}

/// What is known of files is told of as incomplete only when something may have been done that nobody has seen.
pub(crate) fn complete(stage: &mut Stage<'_>) -> Result<()> {
    const DOUBT: &str = "rollback-incomplete";
    needs_root()?;
    let name = "keeper-complete";
    let script = counting("count", 300);
    let run = ["run", "--name", name, "--every", "1h", "--", "sh", "-c", &script];
    let mut lines = 5;
    for (says, killed) in [("first", false), ("second", true), ("third", false)] {
        let mut job = stage.start(&run, says)?;
        lines += 20;
        stage.until_counted("count", lines)?;
        if says == "second" {
            ensure!(!stage.text(says).contains(DOUBT), "nothing has run since: {}", stage.text(says));
        }
        stage.expect(0, &["checkpoint", name])?;
        lines += 5;
        stage.until_counted("count", lines)?;
        if killed {
            // Nobody sees what the program does from here on.
            signal(job.id(), Signal::KILL);
            wait::end_of(&mut job, "the keeper", LIMIT)?;
            stage.end_all()?;
        } else {
            stage.expect(0, &["checkpoint", name, "--kill"])?;
            let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
            ensure!(status == 75, "the job ended with {status}");
        }
    }
    ensure!(stage.text("third").contains(DOUBT), "its keeper was killed: {}", stage.text("third"));
    // Once more by hand: what that has done is not known to the keeper after it.
    stage.start(&["restore", name], "by-hand")?;
    stage.until_counted("count", lines + 20)?;
    ensure!(!stage.text("by-hand").contains(DOUBT), "nothing has run since: {}", stage.text("by-hand"));
    stage.end_all()?;
    stage.expect(7, &run)?.names(&[DOUBT])?;
    stage.counted("count", 300)
}

/// Keeps 200 files in ways of its own, and looks after each batch of work whether they are as it left them. Stands still
/// where it is held.
const MODEL: &str = r"
import os, random, time
dice, files, made = random.Random(1), {}, 0

def write(path, text):
    with open(path, 'w') as file:
        file.write(text)

def name(kind):
    global made
    made += 1
    return f'data/{made % 3}/{kind}{made}'

for directory in range(3):
    os.makedirs(f'data/{directory}')
for _ in range(200):
    path = name('first')
    write(path, path)
    files[path] = path

def work():
    way, path = dice.randrange(6), dice.choice(sorted(files))
    text, other = name('text'), dice.choice(sorted(files))
    if way == 0:
        write(path, text)
        files[path] = text
    elif way == 1:
        write(path + '.tmp', text)
        os.rename(path + '.tmp', path)
        files[path] = text
    elif way == 2:
        new = name('renamed')
        os.rename(path, new)
        files[new] = files.pop(path)
    elif way == 3 and path != other:
        os.rename(path, other)
        files[other] = files.pop(path)
    elif way == 4:
        os.unlink(path)
        del files[path]
    if len(files) < 200:
        new = name('new')
        write(new, text)
        files[new] = text

for batch in range(1, BATCHES + 1):
    for _ in range(20):
        work()
    found = {}
    for directory in range(3):
        for path in os.listdir(f'data/{directory}'):
            path = f'data/{directory}/{path}'
            with open(path) as file:
                found[path] = file.read()
    if found != files:
        print('differ:', set(found.items()) ^ set(files.items()), flush=True)
        os._exit(3)
    with open('count', 'a') as count:
        count.write(f'{batch}\n')
    while os.path.exists(f'hold-{batch}'):
        time.sleep(0.01)
os._exit(7)
";

/// Keeper and program die at the same moment, again and again, as when the machine has no memory left or is switched off: what
/// was done to files since the last checkpoint is undone by the keeper after that.
pub(crate) fn all_killed(stage: &mut Stage<'_>) -> Result<()> {
    const ROUNDS: usize = 5;
    /// So many batches from one hold to the next, and from a checkpoint to the hold.
    const APART: usize = 100;
    const SINCE: usize = 90;
    needs_root()?;
    let name = "all-killed";
    let script = MODEL.replace("BATCHES", &(APART * (ROUNDS + 1)).to_string());
    let run = ["run", "--name", name, "--every", "1h", "--keep", "10", "--", "python3", "-c", &script];
    for round in 1..=ROUNDS {
        fs::write(stage.path(&format!("hold-{}", round * APART)), "")?;
    }
    for round in 1..=ROUNDS {
        let mut job = stage.start(&run, &format!("says-{round}"))?;
        stage.until_counted("count", round * APART - SINCE)?;
        stage.expect(0, &["checkpoint", name])?;
        let done = stage.text("count").lines().count();
        ensure!(done < round * APART, "nothing was done since the checkpoint");
        stage.until_counted("count", round * APART)?;
        // Who answers has heard of all that was done before.
        stage.expect(0, &["ps"])?.names(&[name])?;
        let mut all = with_command(&stage.folder, |_| true);
        all.sort_unstable_by_key(|pid| *pid != job.id());
        for pid in &all {
            signal(*pid, Signal::KILL);
        }
        wait::end_of(&mut job, "the keeper", LIMIT)?;
        all.into_iter().try_for_each(|pid| wait::gone(pid, LIMIT))?;
        stage.end_all()?;
        fs::remove_file(stage.path(&format!("hold-{}", round * APART)))?;
    }
    let mut job = stage.start(&run, "last")?;
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 7, "the job ended with {status}: {}", stage.text("last"));
    stage.counted("count", APART * (ROUNDS + 1))
}

/// A job whose newest checkpoint is damaged goes on from the one before, and says so.
pub(crate) fn damaged(stage: &mut Stage<'_>) -> Result<()> {
    let name = "keeper-damaged";
    let script = counting("count", 150);
    let run = ["run", "--name", name, "--every", "1h", "--", "sh", "-c", &script];
    let mut job = stage.start(&run, "says")?;
    stage.until_counted("count", 5)?;
    stage.expect(0, &["checkpoint", name])?;
    stage.until_counted("count", 10)?;
    stage.expect(0, &["checkpoint", name, "--kill"])?;
    let status = shell(wait::end_of(&mut job, "the job", LIMIT)?);
    ensure!(status == 75, "the job ended with {status}");
    fs::write(stage.path("store/jobs/keeper-damaged/2/manifest"), "nonsense")?;
    let said = stage.expect(7, &run)?;
    said.names(&["checkpoint keeper-damaged@2 cannot be used", "goes on from its checkpoint keeper-damaged@1"])?;
    stage.counted("count", 150)
}
