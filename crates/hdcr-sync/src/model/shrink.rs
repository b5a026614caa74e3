//! A schedule that breaks an obligation, made shorter for as long as it still does: delta debugging.

use super::random::Random;
use super::schedule::{L2, Tally, calm};
use super::storm::Storm;
use super::{Action, Setup};

/// Steps that are taken in all before it is short enough.
const EFFORT: usize = 1_000_000;

/// What this schedule breaks, and how far one has to go for it.
fn breaks(setup: Setup, schedule: &[Action], must: &str, seed: u64) -> Option<usize> {
    let mut storm = Storm::new(setup);
    for (done, action) in schedule.iter().enumerate() {
        match storm.replay(action) {
            Ok(()) => {}
            Err(broken) => return (broken == must).then_some(done + 1),
        }
    }
    let is_stuck = must == L2 && calm(&mut storm, &mut Random::new(seed), &mut Tally::default()) == Err(L2);
    is_stuck.then_some(schedule.len())
}

/// The shortest that was found; as it is if it does not break the same again.
pub(crate) fn shrink(setup: Setup, mut schedule: Vec<Action>, must: &str, seed: u64) -> Vec<Action> {
    let mut effort = EFFORT;
    let mut chunk = schedule.len();
    while chunk > 0 {
        let mut at = 0;
        let before = schedule.len();
        while at < schedule.len() {
            let end = (at + chunk).min(schedule.len());
            let shorter = [&schedule[..at], &schedule[end..]].concat();
            effort = effort.saturating_sub(shorter.len());
            if effort == 0 {
                return schedule;
            }
            match breaks(setup, &shorter, must, seed) {
                Some(length) => schedule = shorter[..length].to_vec(),
                None => at = end,
            }
        }
        // Once more through with single steps while that takes something away.
        if chunk > 1 || schedule.len() == before {
            chunk /= 2;
        }
    }
    schedule
}

/// Where a schedule ends that does not come to a commit.
pub(crate) fn stuck_at(setup: Setup, schedule: &[Action], seed: u64) -> String {
    let mut storm = Storm::new(setup);
    for action in schedule {
        if let Err(must) = storm.replay(action) {
            return must.to_owned();
        }
    }
    let before = storm.schedule.len();
    let outcome = calm(&mut storm, &mut Random::new(seed), &mut Tally::default());
    let calm: Vec<String> = storm.schedule.iter().skip(before).take(60).map(|action| format!("  {action:?}")).collect();
    let seats: Vec<String> = storm.live().iter().map(|seat| format!("{:?}", storm.world.seats[*seat])).collect();
    let hosts: Vec<String> = storm.world.hosts.iter().map(|host| format!("{host:?}")).collect();
    format!("{outcome:?} after\n{}\n{}\n{}", calm.join("\n"), seats.join("\n"), hosts.join("\n"))
}
