//! Which checkpoints of a job are kept.

use anyhow::{Result, ensure};
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
