//! Decisions of algorithms, and what the keeper makes of them.

use std::os::fd::AsFd as _;

use nix::sys::signal::Signal;

use super::super::testing;
use super::*;
use crate::kinds::Increments;

fn keeper(folder: &std::path::Path, algorithm: &str) -> Keeper {
    let mut keeper = testing::keeper(folder);
    keeper.plan.algorithm = Some(algorithm.parse().unwrap());
    keeper.plan.keep = Keep { count: None, time: None, bytes: None };
    keeper.adviser = Adviser::of(&keeper.plan, None, Instant::now());
    keeper
}

fn made(keeper: &mut Keeper, number: u64) {
    let done = Checkpointed { number: Some(number), ..Checkpointed::default() };
    keeper.checkpointed(&done, Duration::from_secs(number), Duration::from_millis(1));
}

fn later(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

#[test]
fn a_checkpoint_is_taken_when_the_algorithm_wants_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(folder.path(), "fixed:period=10s");
    keeper.advise_life();
    assert!(!keeper.wants_checkpoint(later(9)) && keeper.wants_checkpoint(later(11)));
    // It is at work, and the algorithm has not spoken again.
    assert!(!keeper.wants_checkpoint(later(12)));
    made(&mut keeper, 1);
    assert!(!keeper.wants_checkpoint(later(9)) && keeper.wants_checkpoint(later(11)));
    let status = keeper.adviser.as_ref().unwrap().decided().unwrap();
    assert!(status.starts_with("a checkpoint now (it is due), "), "{status}");
}

#[test]
fn orders_wait_for_the_budget_and_after_failures() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(folder.path(), "fixed:period=10ms");
    keeper.plan.budget = hdcr_policy::interval::Budget::percent(10);
    keeper.advise_life();
    let done = Checkpointed { number: Some(1), worked_us: 2_000_000, ..Checkpointed::default() };
    keeper.checkpointed(&done, Duration::ZERO, Duration::from_millis(10));
    assert!(!keeper.wants_checkpoint(later(15)) && keeper.wants_checkpoint(later(25)));
    // Nothing is looked at again and again meanwhile.
    assert!(keeper.next_due() > later(15));
    keeper.failures = 5;
    keeper.advise_of_failure();
    assert!(!keeper.wants_checkpoint(later(3)) && keeper.wants_checkpoint(later(4)));
}

#[test]
fn the_kind_is_the_algorithms_unless_the_user_wants_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(folder.path(), "chain:longest=1");
    for (increments, kind, expected) in [
        (Increments::Auto, Some(Kind::Increment), true),
        (Increments::Auto, Some(Kind::Full), true),
        (Increments::Off, Some(Kind::Increment), false),
        (Increments::Off, None, false),
    ] {
        keeper.plan.increments = increments;
        keeper.adviser.as_mut().unwrap().kind = kind;
        assert_eq!(keeper.series_for(true).is_some(), expected, "{increments:?} {kind:?}");
    }
}

#[test]
fn what_is_given_up_goes_with_the_next_one_and_never_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(folder.path(), "exact");
    keeper.advise_life();
    for number in 1..=4 {
        made(&mut keeper, number);
    }
    let (keep, gone) = keeper.retention();
    assert_eq!((keep.count, gone), (Some(4), vec![1]));
    keeper.give_up_later(vec![1, 2, 3, 4, 99]);
    assert_eq!(keeper.retention().1, [1, 2, 3]);
    keeper.plan.keep = Keep { count: Some(2), time: None, bytes: None };
    assert_eq!(keeper.retention().0.count, Some(2));
    keeper.adviser = None;
    assert_eq!(keeper.retention(), (keeper.plan.keep, Vec::new()));
}

#[test]
fn a_notice_is_held_back_for_a_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(folder.path(), "on-notice:grace=60s");
    keeper.advise_life();
    let number = Signal::SIGTERM as i32;
    let received = Received { number, by_terminal: false };
    assert!(!keeper.holds_back(Received { number: Signal::SIGUSR1 as i32, ..received }));
    assert!(keeper.holds_back(received) && keeper.passed_on.is_empty());
    keeper.on_advice(Instant::now());
    assert!(keeper.passed_on.is_empty() && keeper.wants_checkpoint(Instant::now()));
    keeper.on_advice(Instant::now());
    assert!(keeper.passed_on.contains_key(&number), "nothing is at work");
    // One who does not want to wait.
    keeper.passed_on.clear();
    assert!(keeper.holds_back(received) && keeper.holds_back(received));
    assert!(keeper.passed_on.contains_key(&number));
    // Its time is over, or the program's.
    keeper.passed_on.clear();
    assert!(keeper.holds_back(received));
    keeper.on_advice(later(61));
    assert!(keeper.passed_on.contains_key(&number));
    // The program has gone back meanwhile, as it asked for.
    keeper.passed_on.clear();
    assert!(keeper.holds_back(received));
    keeper.phase = Phase::Restoring(1);
    assert_eq!(keeper.advice_due(), None);
    keeper.phase = Phase::Running;
    keeper.advise_life();
    keeper.on_advice(Instant::now());
    assert!(keeper.passed_on.contains_key(&number));
    keeper.passed_on.clear();
    assert!(keeper.holds_back(received));
    keeper.has_ended_under_notice();
    assert!(keeper.passed_on.contains_key(&number));
}

#[test]
fn an_algorithm_that_does_not_care_holds_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(folder.path(), "fixed");
    keeper.advise_life();
    let number = Signal::SIGTERM as i32;
    assert!(keeper.holds_back(Received { number, by_terminal: false }));
    keeper.on_advice(Instant::now());
    assert!(keeper.passed_on.contains_key(&number));
}

#[test]
fn a_rule_outside_that_is_not_there_holds_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = testing::keeper(folder.path());
    keeper.plan.algorithm = Some("exec:rule".parse().unwrap());
    keeper.plan.every = Every::Fixed(Duration::from_secs(10));
    let ends = std::os::unix::net::UnixStream::pair().unwrap();
    let link = Link::from(ends.0.as_fd().try_clone_to_owned().unwrap());
    keeper.adviser = Adviser::of(&keeper.plan, Some(link), Instant::now());
    keeper.advise_life();
    assert!(!keeper.wants_checkpoint(later(9)) && keeper.wants_checkpoint(later(11)));
    made(&mut keeper, 1);
    let ended = Ended { death: restart::Death::Signal(9), asked_for: false, at: Duration::from_secs(5) };
    let decided = restart::Decision::Rollback(0);
    assert_eq!(keeper.advised(decided, ended), decided);
}
