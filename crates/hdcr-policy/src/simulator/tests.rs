//! The simulator against what is known, and the algorithms against the best that could be had.

use std::time::Duration;

use super::*;
use crate::algorithm::{Adaptive, Algorithm, Exact, Level, NAMES, by_name};
use crate::algorithm::{Daly, Young};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn cost(_: &Moment) -> Cost {
    Cost { stopped: s(1), total: s(1), bytes: 0 }
}

const MOMENT: Moment = Moment { kind: Kind::Full, progress: s(0), since: s(0) };

fn no_rate(_: Duration) -> Option<u64> {
    None
}

fn world(faults: &[Fault]) -> World<'_> {
    World { work: s(100), cost, dirty_rate: no_rate, restart: s(5), faults, levels: 1 }
}

fn fault(at: u64) -> Fault {
    Fault { at: s(at), severity: Level(0), again: false, last: None }
}

#[test]
fn without_faults_only_the_stops_are_paid() {
    // Every 10 seconds from beginning to beginning: at 10, 20, ..., 100; after the last nine more seconds and it is done.
    let outcome = replay(&mut Fixed::new(s(10)), &world(&[]));
    assert_eq!((outcome.checkpoints, outcome.stopped, outcome.wall), (10, s(10), s(110)));
    assert_eq!(outcome.lost, s(0));
}

#[test]
fn a_fault_loses_the_work_since_the_last_durable_checkpoint() {
    // At 10 a checkpoint, durable at 11; at 15 a fault: 4 seconds lost, 5 down, then on from 10 seconds of work.
    let outcome = replay(&mut Fixed::new(s(10)), &world(&[fault(15)]));
    assert_eq!((outcome.lost, outcome.faults), (s(4), 1));
    // In the middle of the first checkpoint: all is lost.
    let outcome = replay(&mut Fixed::new(s(10)), &world(&[Fault { at: Duration::from_millis(10_500), ..fault(0) }]));
    assert_eq!(outcome.lost, s(10));
    // A second fault while it is down: down for longer, nothing more is lost.
    let outcome = replay(&mut Fixed::new(s(10)), &world(&[fault(15), fault(18)]));
    assert_eq!((outcome.lost, outcome.faults), (s(4), 2));
}

#[test]
fn a_severe_fault_takes_the_near_levels_with_it() {
    let severe = [Fault { severity: Level(1), ..fault(35) }];
    let outcome = replay(&mut Fixed::new(s(10)), &World { levels: 2, ..world(&severe) });
    // All were at level 0: begin anew.
    assert_eq!(outcome.lost, s(32));
    let mut levels = by_name("levels", s(10)).unwrap();
    let outcome = replay(levels.as_mut(), &World { levels: 2, ..world(&severe) });
    // The first one went to level 1.
    assert!(outcome.lost < s(35), "{outcome:?}");
}

/// Each algorithm that learns, in worlds with many faults, is within two percent of the best fixed period found afterwards.
#[test]
fn what_learns_comes_near_the_best_fixed_period() {
    fn cheap(_: &Moment) -> Cost {
        Cost { stopped: Duration::from_millis(20), total: Duration::from_millis(100), bytes: 0 }
    }
    fn dear(_: &Moment) -> Cost {
        Cost { stopped: s(2), total: s(4), bytes: 0 }
    }
    for (cost, mean, law) in [
        (cheap as fn(&Moment) -> Cost, 60, Law::Exponential),
        (cheap, 600, Law::Weibull(0.7)),
        (dear, 3_600, Law::Exponential),
        (dear, 600, Law::Weibull(0.7)),
    ] {
        let faults = faults(law, s(mean), s(mean * 1_000), 0, mean);
        let world = World { work: s(mean * 100), cost, dirty_rate: no_rate, restart: s(3), faults: &faults, levels: 1 };
        let around = crate::interval::young(cost(&MOMENT).stopped, s(mean));
        let (period, best) = best_fixed(&world, around);
        let algorithms: [Box<dyn Algorithm>; 4] = [
            Box::new(Young::default()),
            Box::new(Daly::default()),
            Box::new(Exact::default()),
            Box::new(Adaptive::default()),
        ];
        for mut algorithm in algorithms {
            let outcome = replay(algorithm.as_mut(), &world);
            let ratio = outcome.efficiency() / best.efficiency();
            assert!(ratio > 0.98, "{} {mean} {law:?}: {ratio} of {best:?} at {period:?}", algorithm.name());
        }
    }
}

#[test]
fn every_algorithm_finishes_under_many_faults() {
    let faults = faults(Law::Exponential, s(40), s(100_000), 0, 11);
    for name in NAMES {
        let mut algorithm = by_name(name, s(8)).unwrap();
        assert_eq!(algorithm.name(), name);
        let outcome = replay(algorithm.as_mut(), &World { work: s(1_000), levels: 3, ..world(&faults) });
        assert!(outcome.checkpoints > 20 && outcome.efficiency() > 0.3, "{name} {outcome:?}");
    }
    assert!(by_name("none", s(1)).is_none());
}
