//! How long one barrier takes with up to 10,000 hosts, in virtual time: `cargo run --release -p hdcr-sync --example barriers`.
//!
//! A barrier is an order to all and an answer of all. Whoever sends or receives does so one message after the other. The
//! same seed gives the same table everywhere; what the numbers assume is in `Assumed`, and printed with the table.

use std::io::{self, Write};
use std::time::Duration;

use hdcr_sync::fanout::{FLAT, Tree};

/// What is assumed of hosts and network.
struct Assumed {
    /// From one host to another: at least so long, and so much more on average.
    link: Duration,
    jitter: Duration,
    /// Taken by the sender for each message, and by the receiver.
    message: Duration,
    /// What a member does between order and answer: on average, with an exponential distribution.
    work: Duration,
    /// One in so many members takes so many times as long.
    straggler: u64,
    factor: u32,
}

const ASSUMED: Assumed = Assumed {
    link: Duration::from_micros(50),
    jitter: Duration::from_micros(10),
    message: Duration::from_micros(10),
    work: Duration::from_millis(1),
    straggler: 1000,
    factor: 10,
};

const TRIALS: usize = 201;

/// How answers come back.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    /// Each to the coordinator itself.
    Direct,
    /// Each to who passed the order on, who answers for all below.
    Gathered,
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let a = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        b ^ (b >> 31)
    }

    fn exponential(&mut self, mean: Duration) -> Duration {
        let [a, b, c, d, ..] = self.next().to_le_bytes();
        let share = (f64::from(u32::from_le_bytes([a, b, c, d])) + 1.0) / 4_294_967_296.0;
        mean.mul_f64(-share.ln())
    }

    fn link(&mut self) -> Duration {
        ASSUMED.link + self.exponential(ASSUMED.jitter)
    }

    fn work(&mut self) -> Duration {
        let is_slow = self.next().is_multiple_of(ASSUMED.straggler);
        self.exponential(ASSUMED.work) * if is_slow { ASSUMED.factor } else { 1 }
    }
}

/// One after the other, as they arrive: when the last is read.
fn read_all(mut arrivals: Vec<Duration>) -> Duration {
    arrivals.sort_unstable();
    arrivals.into_iter().fold(Duration::ZERO, |free, arrival| free.max(arrival) + ASSUMED.message)
}

/// When the order was read at each place.
fn ordered(tree: Tree, members: usize, random: &mut Random) -> Vec<Duration> {
    let mut at = vec![Duration::ZERO; members];
    let pass_on = |from: Duration, to: std::ops::Range<usize>, at: &mut Vec<Duration>, random: &mut Random| {
        let mut sent = from;
        for place in to {
            sent += ASSUMED.message;
            at[place] = sent + random.link() + ASSUMED.message;
        }
    };
    pass_on(Duration::ZERO, tree.roots(), &mut at, random);
    for place in 0..members {
        pass_on(at[place], tree.children(place), &mut at, random);
    }
    at
}

/// How long the barrier took, and how long the slowest member had worked.
fn barrier(tree: Tree, members: usize, answers: Answers, random: &mut Random) -> (Duration, Duration) {
    let ordered = ordered(tree, members, random);
    let mut slowest = Duration::ZERO;
    // What has still to be read at each place before it answers for all below.
    let mut below: Vec<Vec<Duration>> = vec![Vec::new(); members];
    let mut arrivals = Vec::new();
    for place in (0..members).rev() {
        let passing = ASSUMED.message.mul_f64(f64::from(u32::try_from(tree.children(place).len()).unwrap_or(u32::MAX)));
        let work = random.work();
        slowest = slowest.max(work);
        let done = (ordered[place] + passing + work).max(read_all(std::mem::take(&mut below[place])));
        let arrival = done + ASSUMED.message + random.link();
        match tree.parent(place).filter(|_| answers == Answers::Gathered) {
            Some(parent) => below[parent].push(arrival),
            None => arrivals.push(arrival),
        }
    }
    (read_all(arrivals), slowest)
}

/// Median and 99th of a hundred, in milliseconds.
fn figures(mut all: Vec<Duration>) -> (f64, f64) {
    all.sort_unstable();
    let at = |percent: usize| all[(all.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    (at(50), at(99))
}

fn main() -> io::Result<()> {
    let mut out = io::stdout().lock();
    let Assumed { link, jitter, message, work, straggler, factor } = ASSUMED;
    writeln!(out, "One way {link:?} and {jitter:?} more on average; {message:?} for each message at either end;")?;
    writeln!(
        out,
        "each member works {work:?} on average, one in {straggler} {factor} times as long; {TRIALS} trials.\n"
    )?;
    writeln!(out, "| members | depth | slowest member | flat | tree, answers direct | tree, answers gathered |")?;
    writeln!(out, "| --- | --- | --- | --- | --- | --- |")?;
    for members in [8, 64, 512, 4096, 10_000] {
        let (flat, tree) = (Tree::new(members, members), Tree::suited(members));
        let mut cells = Vec::new();
        let mut slowest = Vec::new();
        for (tree, answers) in [(flat, Answers::Direct), (tree, Answers::Direct), (tree, Answers::Gathered)] {
            let mut random = Random(7);
            let trials = (0..TRIALS).map(|_| barrier(tree, members, answers, &mut random));
            let (took, worked): (Vec<_>, Vec<_>) = trials.unzip();
            slowest = worked;
            cells.push(figures(took));
        }
        cells.insert(0, figures(slowest));
        let text: Vec<String> = cells.iter().map(|(half, most)| format!("{half:.1} / {most:.1}")).collect();
        let depth = if members <= FLAT { 1 } else { tree.depth() };
        writeln!(out, "| {members} | {depth} | {} |", text.join(" | "))?;
    }
    Ok(())
}
