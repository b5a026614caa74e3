//! How pages are compressed: as brings them to the store the soonest, by trial.
//!
//! The first 16 MiB are compressed by LZ4, whatever it costs: a small image is to be small. Then each way gets a few loads in
//! turns, the time from their first page to their last byte in the store is taken, and the fastest by the median has the next
//! 64 MiB; LZ4 where it is about as fast as none. A store that is slow makes its writer wait, so time saved by bytes saved counts as it should.
//! Where LZ4 saves more than a third of the time, Zstandard is tried as well.

use std::time::Duration;

use hdcr_image::Compression;

/// Nothing is tried before so many bytes.
const FIRST: u64 = 16 << 20;
/// What the fastest gets before all are tried again.
const SPAN: u64 = 64 << 20;
/// Each way gets so many loads in a trial.
const TURNS: usize = 5;
/// LZ4 may be slower than none by such a part of that: no more than times differ by chance, and the image is smaller.
const MARGIN: u64 = 16;
/// A smaller load tells nothing.
const LEAST: usize = 256 << 10;
/// The fastest Zstandard.
const ZSTD: Compression = Compression::Zstd(1);

/// How pages are compressed (`--compress`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CompressionRequest {
    /// As brings them to the store the soonest.
    #[default]
    Auto,
    /// All alike.
    Always(Compression),
}

impl CompressionRequest {
    /// That of the first pages.
    pub(crate) fn first(self) -> Compression {
        match self {
            Self::Auto => Compression::Lz4,
            Self::Always(compression) => compression,
        }
    }
}

/// The ways, in the order in which they have their turns.
const WAYS: [Compression; 3] = [Compression::None, Compression::Lz4, ZSTD];

/// Times of the ways, in picoseconds a byte.
type Times = [Vec<u64>; WAYS.len()];

#[derive(Debug)]
enum Phase {
    /// So many bytes go as they do now.
    Steady(u64),
    /// These turns are still to come; the times so far.
    Trial(Vec<usize>, Times),
}

/// Which way the next load goes.
#[derive(Debug)]
pub(crate) struct Pace {
    fixed: Option<Compression>,
    /// The place of the present way.
    now: usize,
    phase: Phase,
    slow: bool,
}

fn median(times: &[u64]) -> Option<u64> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

impl Pace {
    pub(crate) fn of(request: CompressionRequest) -> Self {
        let fixed = match request {
            CompressionRequest::Auto => None,
            CompressionRequest::Always(compression) => Some(compression),
        };
        Self { fixed, now: 1, phase: Phase::Steady(FIRST), slow: false }
    }

    /// How the next load is to be compressed.
    pub(crate) fn next(&self) -> Compression {
        self.fixed.or_else(|| WAYS.get(self.now).copied()).unwrap_or_default()
    }

    /// A load of so many bytes went as it should, and took so long.
    pub(crate) fn went(&mut self, took: Duration, bytes: usize) {
        let len = u64::try_from(bytes).unwrap_or(u64::MAX);
        match &mut self.phase {
            _ if self.fixed.is_some() => {}
            Phase::Steady(left) if *left > len => *left -= len,
            Phase::Steady(_) => {
                let ways = if self.slow { WAYS.len() } else { WAYS.len() - 1 };
                self.now = 0;
                self.phase = Phase::Trial((1..ways * TURNS).rev().map(|turn| turn % ways).collect(), Times::default());
            }
            Phase::Trial(_, _) if bytes < LEAST => {}
            Phase::Trial(turns, times) => {
                if let Some(times) = times.get_mut(self.now) {
                    times.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).saturating_mul(1000) / len.max(1));
                }
                match turns.pop() {
                    Some(next) => self.now = next,
                    None => self.settle(),
                }
            }
        }
    }

    /// The trial is over.
    fn settle(&mut self) {
        let Phase::Trial(_, times) = std::mem::replace(&mut self.phase, Phase::Steady(SPAN)) else { return };
        let [none, lz4, zstd] = times.map(|times| median(&times).unwrap_or(u64::MAX));
        self.slow = lz4.saturating_mul(3) <= none.saturating_mul(2);
        self.now = match () {
            () if zstd < lz4 && zstd <= none => 2,
            () if lz4 <= none.saturating_add(none / MARGIN) => 1,
            () => 0,
        };
        tracing::debug!(none, lz4, zstd, compression = ?self.next(), "picoseconds a byte of a page to the store");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ways of loads of 1 MiB to a store that takes so many microseconds for the bytes of one, where LZ4 leaves half and
    /// Zstandard a quarter of them.
    fn ways(store: u64, loads: usize) -> Vec<Compression> {
        let mut pace = Pace::of(CompressionRequest::Auto);
        let mut went = Vec::new();
        for _ in 0..loads {
            let way = pace.next();
            let took = match way {
                Compression::None => store,
                Compression::Lz4 => 200 + store / 2,
                Compression::Zstd(_) => 800 + store / 4,
            };
            pace.went(Duration::from_micros(took), 1 << 20);
            went.push(way);
        }
        went
    }

    fn share(ways: &[Compression], way: Compression) -> usize {
        ways.iter().filter(|one| **one == way).count() * 100 / ways.len()
    }

    #[test]
    fn the_fastest_way_to_the_store_is_taken() {
        assert!(ways(100, 16).iter().all(|way| *way == Compression::Lz4), "a small image");
        let fast = ways(300, 1024);
        assert!(share(&fast, Compression::None) > 85 && share(&fast, ZSTD) == 0);
        let disk = ways(1000, 1024);
        assert!(share(&disk, Compression::Lz4) > 85 && share(&disk, ZSTD) == 0, "{}", share(&disk, Compression::Lz4));
        let slow = ways(10_000, 1024);
        assert!(share(&slow, ZSTD) > 70, "{}", share(&slow, ZSTD));
    }

    #[test]
    fn what_is_asked_for_is_done() {
        let mut pace = Pace::of(CompressionRequest::Always(Compression::None));
        for _ in 0..100 {
            assert_eq!(pace.next(), Compression::None);
            pace.went(Duration::from_millis(1), 1 << 20);
        }
    }
}
