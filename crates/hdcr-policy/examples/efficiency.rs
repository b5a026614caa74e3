//! Prints the table of `docs/algorithms.md`: what each algorithm makes of the same faults, beside the best fixed period
//! that could have been chosen afterwards.
#![expect(clippy::print_stdout, reason = "a table is what it is for")]

use std::time::Duration;

use hdcr_policy::algorithm::{Cost, Kind, NAMES, by_name};
use hdcr_policy::interval::young;
use hdcr_policy::simulator::{Law, Moment, World, best_fixed, faults, replay};

/// A small program: stops for 5 ms, an increment for 2; durable after 50 ms.
fn small(moment: &Moment) -> Cost {
    let stopped = if moment.kind == Kind::Full { 5 } else { 2 };
    Cost { stopped: Duration::from_millis(stopped), total: Duration::from_millis(50), bytes: 0 }
}

/// A large one: stops for 2 s, an increment for 1 s; durable after a minute.
fn large(moment: &Moment) -> Cost {
    let stopped = if moment.kind == Kind::Full { 2 } else { 1 };
    Cost { stopped: Duration::from_secs(stopped), total: Duration::from_mins(1), bytes: 0 }
}

/// It changes much for seven of eight minutes, and little in the eighth.
#[expect(clippy::unnecessary_wraps, reason = "the world asks for an option")]
fn in_phases(progress: Duration) -> Option<u64> {
    Some(if (progress.as_secs() / 60).is_multiple_of(8) { 1 << 20 } else { 200 << 20 })
}

fn main() {
    let seeds = 5_u32;
    println!("| cost | mean time between faults | law | algorithm | efficiency | of the best fixed period |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (what, cost, mean) in [
        ("small", small as fn(&Moment) -> Cost, Duration::from_mins(1)),
        ("small", small, Duration::from_hours(1)),
        ("large", large, Duration::from_hours(1)),
        ("large", large, Duration::from_hours(24)),
    ] {
        for (law, told) in [(Law::Exponential, "exponential"), (Law::Weibull(0.7), "Weibull 0.7")] {
            for name in NAMES {
                let (mut mine, mut best) = (0.0, 0.0);
                for seed in 0..seeds {
                    let faults = faults(law, mean, mean * 400, 0, u64::from(seed));
                    let world = World {
                        work: mean * 100,
                        cost,
                        dirty_rate: in_phases,
                        restart: Duration::from_secs(2),
                        faults: &faults,
                        levels: 1,
                    };
                    let moment = Moment { kind: Kind::Full, progress: Duration::ZERO, since: Duration::ZERO };
                    let around = young(cost(&moment).stopped, mean);
                    let period = Duration::from_secs(30);
                    let Some(mut algorithm) = by_name(name, period) else { continue };
                    mine += replay(algorithm.as_mut(), &world).efficiency() / f64::from(seeds);
                    best += best_fixed(&world, around).1.efficiency() / f64::from(seeds);
                }
                let mean = mean.as_secs();
                println!(
                    "| {what} | {mean} s | {told} | {name} | {:.2} % | {:.2} % |",
                    100.0 * mine,
                    100.0 * mine / best
                );
            }
        }
    }
}
