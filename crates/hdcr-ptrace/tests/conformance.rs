//! The conformance suite against the mechanism by ptrace.

mod guests;
mod suite;

use std::time::{Duration, Instant};

use hdcr_engine::mechanism::{Deadline, Mechanism, MechanismError, Scope};
use hdcr_ptrace::{Faults, Ptrace};

macro_rules! conform {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                suite::$name(&Ptrace::new(Faults::default())).unwrap();
            }
        )*
    };
}

conform! {
    freeze_and_thaw,
    batch_results,
    writes_are_followed,
    copies_stay,
    many_threads,
    waits_go_on,
    remaining_time,
    nursery_makes_a_tree,
    nursery_dies_when_dropped,
    timed_call_begins_again,
    stopped_and_leaderless,
    pending_signals_stay,
    whole_tree,
    stopped_job_stays_stopped,
    vfork_in_progress,
    the_dead,
    signals_all_taken,
    refusals,
    rseq_sections_abort,
    storms,
    waits_end,
    waits_begin_anew,
}

#[test]
fn held_by_another() {
    let other = |pid| {
        let by = Deadline(Instant::now() + Duration::from_secs(20));
        let refused = Ptrace::new(Faults::default()).freeze(Scope::Tree(pid), by);
        matches!(refused, Err(MechanismError::Traced { .. }))
    };
    suite::held_by_another(&Ptrace::new(Faults::default()), &other).unwrap();
}
