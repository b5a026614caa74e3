//! Tables of observations and decisions.

use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn kept(number: u64, base: Option<u64>, level: u8) -> Kept {
    let kind = if base.is_some() { Kind::Increment } else { Kind::Full };
    Kept { number, taken: s(number), kind, base, level: Level(level), pinned: false }
}

fn told(algorithm: &mut dyn Algorithm, now: u64, event: Event, facts: &Facts) -> Decision {
    algorithm.decide(&Observation { now: s(now), event, facts })
}

fn done(stopped: u64, total: u64) -> Event {
    let cost = Cost { stopped: s(stopped), total: s(total), bytes: 0 };
    Event::Checkpointed { kind: Kind::Full, level: Level(0), cost }
}

#[test]
fn a_fixed_period_counts_from_beginning_to_beginning() {
    let mut fixed = Fixed::new(s(10));
    let facts = Facts::default();
    assert_eq!(told(&mut fixed, 0, Event::Started, &facts), Decision::at(s(10)));
    assert_eq!(told(&mut fixed, 10, Event::Due, &facts), Decision::take(Order::default()));
    assert_eq!(told(&mut fixed, 12, done(1, 2), &facts), Decision::at(s(20)));
    assert_eq!(told(&mut fixed, 30, Event::NotCheckpointed { failures: 2 }, &facts), Decision::at(s(50)));
    assert_eq!(told(&mut fixed, 33, Event::GoodMoment, &facts), Decision::default());
}

#[test]
fn faults_make_the_learnt_time_between_them_shorter_and_their_absence_longer() {
    let mut learnt = Learnt::guessing(s(100));
    let facts = Facts::default();
    let mut see = |now, event| {
        learnt.see(&Observation { now: s(now), event, facts: &facts });
        learnt.between_faults()
    };
    let near = |found: Duration, expected: f64| (found.as_secs_f64() / expected - 1.0).abs() < 0.01;
    assert_eq!(see(0, Event::Started), s(100));
    assert_eq!(see(200, Event::Due), s(200));
    // One fault in 1,000 seconds: the third root of 100 * 1,000 * 1,000.
    assert!(near(see(1_000, Event::Recovered { took: s(1) }), 464.2));
    for now in 1_001..2_000 {
        see(now, Event::Recovered { took: s(1) });
    }
    assert!(near(see(2_000, Event::Due), 2.0));
}

#[test]
fn a_chain_is_bounded() {
    let mut chain = Chain::new(Box::new(Fixed::new(s(1))), 2);
    let kind = |chain: &mut Chain, list: &[Kept]| {
        let facts = Facts { kept: list.to_vec(), ..Facts::default() };
        told(chain, 1, Event::Due, &facts).checkpoint.and_then(|order| order.kind)
    };
    assert_eq!(kind(&mut chain, &[]), Some(Kind::Full));
    assert_eq!(kind(&mut chain, &[kept(1, None, 0)]), Some(Kind::Increment));
    assert_eq!(kind(&mut chain, &[kept(1, None, 0), kept(2, Some(1), 0)]), Some(Kind::Increment));
    let full = [kept(1, None, 0), kept(2, Some(1), 0), kept(3, Some(2), 0)];
    assert_eq!(kind(&mut chain, &full), Some(Kind::Full));
    // Where each can be restored by itself, those that were made count.
    let alone = [kept(1, None, 0), kept(2, None, 0)];
    let facts = Facts::default();
    for (made, expected) in
        [(Kind::Increment, Kind::Increment), (Kind::Increment, Kind::Full), (Kind::Full, Kind::Increment)]
    {
        told(&mut chain, 1, Event::Checkpointed { kind: made, level: Level(0), cost: Cost::default() }, &facts);
        assert_eq!(kind(&mut chain, &alone), Some(expected));
    }
    // A list that goes in a circle ends.
    assert_eq!(kind(&mut chain, &[kept(1, Some(2), 0), kept(2, Some(1), 0)]), Some(Kind::Full));
}

#[test]
fn levels_go_up_by_steps_and_the_first_goes_to_the_top() {
    let mut levels = Levels::new(Box::new(Fixed::new(s(1))), 2);
    let facts = Facts { levels: 3, ..Facts::default() };
    let mut chosen = Vec::new();
    for now in 1..=8 {
        let order = told(&mut levels, now, Event::Due, &facts).checkpoint.unwrap();
        chosen.push(order.level.0);
        told(&mut levels, now, done(0, 0), &facts);
    }
    assert_eq!(chosen, [2, 1, 0, 2, 0, 1, 0, 2]);
    let list: Vec<Kept> = [(1, 2), (2, 1), (3, 0), (4, 2), (5, 0), (6, 1), (7, 0), (8, 2)]
        .map(|(number, level)| kept(number, None, level))
        .to_vec();
    let mut given_up = levels.forget(&list);
    given_up.sort_unstable();
    assert_eq!(given_up, [1, 3]);
}

#[test]
fn a_notice_brings_a_last_checkpoint_when_there_is_time_for_it() {
    let facts = Facts::default();
    for (grace, taken) in [(None, true), (Some(s(0)), false), (Some(s(3)), false), (Some(s(4)), true)] {
        let mut notice = OnNotice::new(Box::new(Fixed::new(s(10))));
        told(&mut notice, 5, done(1, 4), &facts);
        let decision = told(&mut notice, 6, Event::Notice { grace }, &facts);
        assert_eq!(decision.checkpoint.is_some(), taken, "{grace:?}");
    }
}

#[test]
fn idleness_brings_one_checkpoint() {
    let facts = Facts::default();
    let mut idle = OnIdle::new(Box::new(Fixed::new(s(100))), s(2));
    let mut at = |now, event| told(&mut idle, now, event, &facts).checkpoint.is_some();
    assert!(!at(1, Event::Idle(s(1))));
    assert!(at(2, Event::Idle(s(2))));
    assert!(!at(3, Event::Idle(s(3))));
    assert!(!at(4, done(0, 1)));
    assert!(!at(5, Event::Idle(s(5))));
}

#[test]
fn a_due_checkpoint_waits_for_a_good_moment_but_not_for_ever() {
    let facts = Facts::default();
    let mut cooperative = Cooperative::new(Box::new(Fixed::new(s(10))));
    let mut at = |now, event| told(&mut cooperative, now, event, &facts);
    assert_eq!(at(0, Event::Started), Decision::at(s(10)));
    assert_eq!(at(5, Event::GoodMoment), Decision::default());
    assert_eq!(at(10, Event::Due), Decision::at(s(20)));
    assert_eq!(at(13, Event::GoodMoment), Decision::take(Order::default()));
    assert_eq!(at(14, done(1, 1)), Decision::at(s(23)));
    assert_eq!(at(23, Event::Due), Decision::at(s(32)));
    assert_eq!(at(32, Event::Due), Decision::take(Order::default()));
}

#[test]
fn the_adaptive_one_waits_for_a_quiet_phase() {
    let mut adaptive = Adaptive::guessing(s(1_000));
    let with = |rate| Facts { dirty_rate: Some(rate), ..Facts::default() };
    told(&mut adaptive, 1, Event::Due, &with(100));
    told(&mut adaptive, 2, done(1, 1), &with(100));
    // The exact period for a cost of 1 and a mean of some 1,000 seconds is about 44.
    assert_eq!(told(&mut adaptive, 40, Event::Due, &with(100)).checkpoint, None);
    assert_eq!(told(&mut adaptive, 50, Event::Due, &with(1_000)).checkpoint, None);
    assert!(told(&mut adaptive, 51, Event::Due, &with(10)).checkpoint.is_some());
}

#[test]
fn a_fault_that_comes_again_goes_further_back() {
    let list = [kept(1, None, 0), kept(2, None, 0)];
    let fault = |again| Fault { at: s(9), severity: Level(0), again, last: None };
    assert_eq!(newest_unless_again(&fault(false), &list), Recovery::Rollback(2));
    assert_eq!(newest_unless_again(&fault(true), &list), Recovery::Rollback(1));
    assert_eq!(newest_unless_again(&fault(true), &list[..1]), Recovery::Rollback(1));
    let three = [kept(1, None, 0), kept(2, None, 0), kept(3, None, 0)];
    assert_eq!(newest_unless_again(&Fault { last: Some(2), ..fault(true) }, &three), Recovery::Rollback(1));
    assert_eq!(newest_unless_again(&fault(true), &[]), Recovery::Begin);
}
