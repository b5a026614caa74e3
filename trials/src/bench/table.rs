//! The figures as a table for people.

use anyhow::Result;

use crate::bench::figures::{Row, Spread};
use crate::bench::limit::Limits;
use crate::bench::say;
use crate::bench::series::Bench;

/// The machine in one line.
pub(super) fn machine(bench: &Bench) -> String {
    let machine = &bench.machine;
    format!(
        "{}, {} cores, {} MiB, Linux {}; load average before {}, after {}",
        machine.processor, machine.cores, machine.memory_mib, machine.kernel, machine.busy_before, machine.busy_after
    )
}

/// MiB with one digit after the point.
pub(super) fn mib(kib: u64) -> String {
    format!("{}.{}", kib / 1024, kib % 1024 * 10 / 1024)
}

/// A row as words: what each column of [`HEAD`] says.
pub(super) fn words(row: &Row) -> [String; 10] {
    let spread = |spread: Option<Spread>| spread.map_or_else(|| "-".to_owned(), Spread::text);
    let size = |kib: Option<u64>| kib.filter(|kib| *kib > 0).map_or_else(|| "-".to_owned(), mib);
    let gap = match (row.gap_ms, row.idle_gap_ms) {
        (Some(gap), Some(idle)) => format!("{} [{:.1}]", gap.text(), idle.median),
        _ => "-".to_owned(),
    };
    let memory = row.memory_kib.map(|(before, after)| format!("{} > {}", mib(before), mib(after)));
    [
        row.act.name().to_owned(),
        row.tool.to_owned(),
        spread(row.wall_ms),
        spread(row.stopped_ms),
        gap,
        spread(row.first_ms),
        spread(row.filled_ms),
        size(row.image_kib),
        mib(row.peak_kib),
        memory.unwrap_or_else(|| "-".to_owned()),
    ]
}

/// What the columns are.
pub(super) const HEAD: [&str; 10] = [
    "act",
    "tool",
    "wall ms",
    "stop ms (tool)",
    "gap ms (program) [idle]",
    "first instruction ms",
    "all pages in ms",
    "image MiB",
    "tool peak MiB",
    "program MiB",
];

const WIDTHS: [usize; 10] = [26, 6, 25, 25, 32, 25, 25, 10, 14, 18];

/// Prints all rows, a paragraph for each program.
pub(super) fn print(bench: &Bench) -> Result<()> {
    say(&machine(bench), false)?;
    for (name, speed) in bench.limits.iter().flat_map(Limits::named) {
        say(&format!("limit: {name:<32} {speed:6.2} GiB/s"), false)?;
    }
    say(&format!("medians (least-most). {}", bench.note), false)?;
    let mut subject = "";
    for row in &bench.rows {
        if row.subject != subject {
            subject = row.subject;
            say(&format!("\n{subject}, rounds: {}", row.rounds), false)?;
            say(&line(&HEAD.map(str::to_owned)), false)?;
        }
        say(&line(&words(row)), false)?;
    }
    for (what, why) in &bench.failures {
        say(&format!("\nnot measured: {what}: {why}"), false)?;
    }
    Ok(())
}

fn line(words: &[String; 10]) -> String {
    let padded = words.iter().zip(WIDTHS).map(|(word, width)| format!("{word:<width$}"));
    padded.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}
