//! What was measured, once and over all rounds.

use std::time::Duration;

use serde::Serialize;

/// What is done with a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Act {
    /// A checkpoint into a new file in memory (tmpfs) of a program that runs on.
    Checkpoint,
    /// The same once more, over an image that the one before has replaced. CRIU makes new files each time.
    Recycled,
    /// A checkpoint onto a disk, durable.
    Durable,
    /// The same once more, over an image.
    DurableRecycled,
    /// A restore from memory.
    Restore,
    /// The same with memory that comes when the program runs.
    Lazy,
}

impl Act {
    /// Whether all bytes are to be on a disk at its end.
    pub(super) fn is_durable(self) -> bool {
        matches!(self, Act::Durable | Act::DurableRecycled)
    }

    pub(super) const ALL: [Act; 6] =
        [Act::Checkpoint, Act::Recycled, Act::Durable, Act::DurableRecycled, Act::Restore, Act::Lazy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Act::Checkpoint => "checkpoint, tmpfs",
            Act::Recycled => "the same, image recycled",
            Act::Durable => "checkpoint, disk, durable",
            Act::DurableRecycled => "the same, disk, recycled",
            Act::Restore => "restore, tmpfs",
            Act::Lazy => "restore --lazy auto",
        }
    }
}

/// One act of one tool on one program.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    pub(super) subject: &'static str,
    pub(super) tool: &'static str,
    pub(super) act: Act,
    pub(super) round: usize,
    /// Load average over one minute when it began.
    pub(super) busy: String,
    /// From the start of the command to its end, and to all bytes on disk where durable.
    pub(super) wall_us: u64,
    /// How long the program stood still, as the tool tells it.
    pub(super) stopped_us: Option<u64>,
    /// The longest gap that the program saw in those seconds.
    pub(super) gap_us: Option<u64>,
    /// The same of the seconds before.
    pub(super) idle_gap_us: Option<u64>,
    /// From the start of the command to the first instruction of the program.
    pub(super) first_us: Option<u64>,
    /// From the start of the command to the moment in which no page is missing any more.
    pub(super) filled_us: Option<u64>,
    pub(super) image_kib: Option<u64>,
    pub(super) peak_kib: u64,
    /// Memory of all processes of the program, shared pages counted once, before and after.
    pub(super) memory_kib: Option<(u64, u64)>,
}

/// The least, the median and the most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) least: f64,
    pub(super) median: f64,
    pub(super) most: f64,
}

impl Spread {
    /// In milliseconds.
    pub(super) fn of(microseconds: &mut [u64]) -> Option<Self> {
        microseconds.sort_unstable();
        let ms = |us: &u64| Duration::from_micros(*us).as_secs_f64() * 1000.0;
        Some(Spread {
            least: microseconds.first().map(ms)?,
            median: microseconds.get(microseconds.len() / 2).map(ms)?,
            most: microseconds.last().map(ms)?,
        })
    }

    pub(super) fn text(self) -> String {
        format!("{:.1} ({:.1}-{:.1})", self.median, self.least, self.most)
    }
}

/// All rounds of one act of one tool on one program.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) subject: &'static str,
    pub(super) tool: &'static str,
    pub(super) act: Act,
    pub(super) rounds: usize,
    pub(super) wall_ms: Option<Spread>,
    pub(super) stopped_ms: Option<Spread>,
    pub(super) gap_ms: Option<Spread>,
    pub(super) idle_gap_ms: Option<Spread>,
    pub(super) first_ms: Option<Spread>,
    pub(super) filled_ms: Option<Spread>,
    pub(super) image_kib: Option<u64>,
    pub(super) peak_kib: u64,
    pub(super) memory_kib: Option<(u64, u64)>,
}

impl Row {
    fn of(samples: &[&Sample]) -> Option<Self> {
        let first = samples.first()?;
        let spread = |of: fn(&Sample) -> Option<u64>| {
            Spread::of(&mut samples.iter().copied().filter_map(of).collect::<Vec<u64>>())
        };
        Some(Self {
            subject: first.subject,
            tool: first.tool,
            act: first.act,
            rounds: samples.len(),
            wall_ms: spread(|sample| Some(sample.wall_us)),
            stopped_ms: spread(|sample| sample.stopped_us),
            gap_ms: spread(|sample| sample.gap_us),
            idle_gap_ms: spread(|sample| sample.idle_gap_us),
            first_ms: spread(|sample| sample.first_us),
            filled_ms: spread(|sample| sample.filled_us),
            image_kib: samples.iter().filter_map(|sample| sample.image_kib).max(),
            peak_kib: samples.iter().map(|sample| sample.peak_kib).max().unwrap_or(0),
            memory_kib: samples.last().and_then(|sample| sample.memory_kib),
        })
    }
}

/// Samples as rows, in the order of their first appearance.
pub(super) fn rows(samples: &[Sample]) -> Vec<Row> {
    let mut keys = Vec::new();
    for sample in samples {
        let key = (sample.subject, sample.act, sample.tool);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let place = |subject| samples.iter().position(|sample| sample.subject == subject);
    keys.sort_by_key(|(subject, act, _)| (place(*subject), *act));
    let of = |key: &(&str, Act, &str)| {
        let all = samples.iter().filter(|s| (s.subject, s.act, s.tool) == *key);
        Row::of(&all.collect::<Vec<_>>())
    };
    keys.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_become_one_row_with_a_median() {
        let sample = |round, wall_us, first_us| Sample {
            subject: "a",
            tool: "hdcr",
            act: Act::Restore,
            round,
            busy: String::new(),
            wall_us,
            stopped_us: None,
            gap_us: None,
            idle_gap_us: None,
            first_us,
            filled_us: None,
            image_kib: None,
            peak_kib: wall_us,
            memory_kib: None,
        };
        let rows = rows(&[sample(0, 3000, None), sample(1, 1000, Some(5)), sample(2, 2000, None)]);
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!(row.wall_ms, Some(Spread { least: 1.0, median: 2.0, most: 3.0 }));
        assert_eq!(row.first_ms.map(Spread::text).as_deref(), Some("0.0 (0.0-0.0)"));
        assert_eq!((row.rounds, row.stopped_ms, row.peak_kib), (3, None, 3000));
    }
}
