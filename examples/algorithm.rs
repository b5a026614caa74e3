//! A checkpoint algorithm in Rust: the trait of `hdcr_policy`, served to `hdcr run` by the line protocol.
//!
//!     cargo build --release -p hdcr --example algorithm
//!     hdcr run --algorithm exec:target/release/examples/algorithm -- ./simulate
//!
//! It doubles its pause as long as nothing happens, and begins again after a crash: young runs crash more often than those
//! that have been running for long.

use std::time::Duration;

use hdcr::algorithm::{
    Algorithm, Decision, Event, Fault, Kept, Observation, Order, Recovery, newest_unless_again, oldest_beyond, serve,
};

const FIRST: Duration = Duration::from_millis(300);
const LONGEST: Duration = Duration::from_mins(10);

#[derive(Debug)]
struct Doubling {
    pause: Duration,
}

impl Algorithm for Doubling {
    fn name(&self) -> &'static str {
        "doubling"
    }

    fn decide(&mut self, seen: &Observation<'_>) -> Decision {
        match seen.event {
            Event::Due | Event::Notice { .. } => Decision::take(Order::default()),
            Event::Started | Event::Recovered { .. } => {
                self.pause = FIRST;
                Decision::at(seen.now.saturating_add(self.pause))
            }
            Event::Checkpointed { .. } => {
                self.pause = self.pause.saturating_mul(2).min(LONGEST);
                Decision::at(seen.now.saturating_add(self.pause))
            }
            Event::NotCheckpointed { .. } => Decision::at(seen.now.saturating_add(self.pause)),
            Event::Idle(_) | Event::GoodMoment => Decision::default(),
        }
    }

    fn forget(&mut self, kept: &[Kept]) -> Vec<u64> {
        oldest_beyond(kept, 4)
    }

    fn recover(&mut self, fault: &Fault, kept: &[Kept]) -> Recovery {
        newest_unless_again(fault, kept)
    }
}

fn main() -> std::io::Result<()> {
    serve(&mut Doubling { pause: FIRST })
}
