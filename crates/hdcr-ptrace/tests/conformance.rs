//! The conformance suite against the mechanism by ptrace.

mod common;
mod suite;

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
    many_threads,
    waits_go_on,
    remaining_time,
    nursery_makes_a_tree,
    nursery_dies_when_dropped,
    timed_call_begins_again,
}
