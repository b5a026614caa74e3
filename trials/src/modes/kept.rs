//! Which checkpoints of a job are kept.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stage::{LIMIT, Stage, counting, shell};
use crate::wait;

/// The numbers of the checkpoints of a job.
fn numbers(stage: &mut Stage<'_>, name: &str) -> Result<Vec<String>> {
    let listed: Value = serde_json::from_str(&stage.expect(0, &["list", name, "--json"])?.out)?;
    let all = listed["checkpoints"].as_array().into_iter().flatten();
    let mut all: Vec<String> = all.filter_map(|row| Some(row["snapshot"].as_str()?.to_owned())).collect();
    all.sort();
    Ok(all)
}

/// By count, by age and by size: each gives up what it does, and the newest stays. Without a count as many stay as the others let.
pub(crate) fn limits(stage: &mut Stage<'_>) -> Result<()> {
    let ways: [(&str, &[&str], &[u32]); 5] = [
        ("count", &["--keep", "2"], &[4, 5]),
        ("size", &["--keep-size", "1"], &[5]),
        ("age", &["--keep-for", "1ms"], &[5]),
        ("long", &["--keep-for", "1h", "--keep-size", "1T"], &[1, 2, 3, 4, 5]),
        ("both", &["--keep-for", "1h", "--keep", "3"], &[3, 4, 5]),
    ];
    for (name, limits, kept) in ways {
        let script = counting(name, 2000);
        let mut run = vec!["run", "--name", name, "--every", "1h"];
        run.extend(limits);
        run.extend(["--", "sh", "-c", &script]);
        let mut job = stage.start(&run, "says")?;
        stage.until_counted(name, 5)?;
        for _ in 1..5 {
            stage.expect(0, &["checkpoint", name])?;
        }
        stage.expect(0, &["checkpoint", name, "--kill"])?;
        ensure!(shell(wait::end_of(&mut job, "the job", LIMIT)?) == 75, "{}", stage.text("says"));
        let expected: Vec<String> = kept.iter().map(|number| format!("{name}@{number}")).collect();
        let found = numbers(stage, name)?;
        ensure!(found == expected, "with {limits:?} it keeps {found:?}");
    }
    Ok(())
}

/// By hand: what goes is told beforehand and gone afterwards; what may not go is named, with the reason.
pub(crate) fn pruned(stage: &mut Stage<'_>) -> Result<()> {
    let name = "pruned";
    stage.expect(64, &["prune"])?.names(&["--keep", "usage"])?;
    let run = ["run", "--name", name, "--every", "1h", "--keep", "9", "--", "sleep", "1000"];
    let mut job = stage.start(&run, "says")?;
    stage.only("sleep 1000")?;
    for _ in 0..5 {
        stage.expect(0, &["checkpoint", name])?;
    }
    stage.expect(0, &["prune", name, "--keep", "4", "--dry-run"])?.names(&["would remove 1 checkpoint", "pruned@1"])?;
    ensure!(numbers(stage, name)?.len() == 5, "a dry run removes nothing");
    stage.expect(0, &["prune", "--keep", "4"])?.names(&["removed 1 checkpoint", "pruned@1"])?;
    // Whoever reads one needs it.
    let image = stage.path("store/jobs").join(name).join("2");
    let part = fs::read_dir(&image)?.flatten().map(|part| part.path()).next().context("an empty image")?;
    let reader = File::open(part)?;
    let own = format!("process {} (trials) reads it", std::process::id());
    stage.expect(69, &["rm", "pruned@2"])?.names(&["image-in-use", &own, "--force"])?;
    let said = stage.expect(0, &["prune", name, "--keep-for", "1ms"])?;
    said.names(&["removed 2 checkpoints", "pruned@3, pruned@4", "pruned@2 stays: ", &own])?;
    said.names(&["pruned@5 stays: the job runs, and would go back to it"])?;
    ensure!(numbers(stage, name)? == ["pruned@2", "pruned@5"], "{:?}", numbers(stage, name)?);
    drop(reader);
    stage.expect(0, &["stop", name])?;
    wait::end_of(&mut job, "the job", LIMIT)?;
    let said = stage.expect(0, &["prune", "--keep-size", "1", "--json"])?;
    let pruned: Value = serde_json::from_str(&said.out)?;
    ensure!(pruned["removed"] == serde_json::json!(["pruned@2"]), "{pruned}");
    stage.expect(69, &["prune", "prunde", "--keep", "1"])?.names(&["did you mean pruned?"])?;
    stage.expect(0, &["prune", "--keep", "1"])?.names(&["nothing to remove"])
}

/// A checkpoint that another one goes on from can go, and that is said.
pub(crate) fn base(stage: &mut Stage<'_>) -> Result<()> {
    let run = ["run", "--name", "base", "--every", "1h", "--increments", "on", "--", "sleep", "1000"];
    stage.start(&run, "says")?;
    stage.only("sleep 1000")?;
    stage.expect(0, &["checkpoint", "base"])?;
    stage.expect(0, &["checkpoint", "base"])?;
    stage.expect(0, &["rm", "base@1"])?.names(&["base@2 goes on from base@1, and keeps what it needs of it"])?;
    stage.expect(0, &["verify", "base"])?.names(&["whole"])?;
    stage.expect(0, &["stop", "base"])?;
    stage.end_all()
}
