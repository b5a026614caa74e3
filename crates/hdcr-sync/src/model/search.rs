//! The exhaustive search: every order of events within a budget, and, with one rule broken, the proof that it would tell.

use std::collections::BTreeSet;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::must::{self, Must};
use super::{Action, Budget, Fault, Setup, World};
use crate::rules::Rule;

/// Set when the crate is built by `cargo xtask soak sync`: larger budgets.
pub(crate) const IS_SOAK: bool = option_env!("HDCR_SYNC_SOAK").is_some();

impl Model for Setup {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.world()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.actions(self, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        if world.is_idle(&action) {
            return None;
        }
        let mut after = world.clone();
        after.act(self, &action);
        (after != *world).then_some(after)
    }

    /// Each rollback is another incarnation; two after one another show what a third would.
    fn within_boundary(&self, world: &World) -> bool {
        world.ledger.last().is_none_or(|(entry, _)| entry.incarnation.0 <= 2)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties: Vec<Property<Self>> = vec![
            Property::sometimes("a checkpoint is committed", |_, world: &World| !world.told.is_empty()),
            Property::sometimes("the job runs again", |_, world: &World| {
                world.seats.iter().flat_map(|seat| &seat.machine).any(|m| m.is_ready() && m.incarnation().0 > 0)
            }),
        ];
        properties.extend(must_properties());
        properties
    }
}

macro_rules! properties {
    ($($number:literal)*) => {
        [$(Property::always(must::MUSTS[$number].0, |_, world: &World| must::MUSTS[$number].1(world))),*]
    };
}

fn must_properties() -> [Property<Setup>; 13] {
    properties!(0 1 2 3 4 5 6 7 8 9 10 11 12)
}

/// A search that visits more fails: it would not be one to the end.
const MOST: usize = 4_000_000;

/// How far the others go.
const SOME: usize = if IS_SOAK { 5_000_000 } else { 50_000 };

fn base(members: u32) -> Setup {
    Setup { members, coordinators: 1, has_line: true, ..Setup::default() }
}

/// Everything that can happen within the budget; none of it may break anything.
fn holds(name: &str, setup: Setup, sometimes: &[&'static str]) {
    let visits = searched(name, setup, sometimes, MOST);
    assert!(visits < MOST, "{name}: not searched to the end");
}

/// What can happen soonest: the budget is too large for a search to the end.
fn holds_so_far(name: &str, setup: Setup) {
    searched(name, setup, &[], SOME);
}

fn searched(name: &str, setup: Setup, sometimes: &[&'static str], most: usize) -> usize {
    let began = Instant::now();
    let checker = setup.checker().finish_when(HasDiscoveries::AnyFailures).target_state_count(most).spawn_dfs().join();
    let found = checker.discoveries();
    let states = checker.unique_state_count();
    println!("{name}: {states} states, depth {}, {:.1} s", checker.max_depth(), began.elapsed().as_secs_f64());
    for (must, path) in &found {
        let is_must = must::MUSTS.iter().any(|(name, _): &Must| name == must);
        let actions: Vec<String> = path.clone().into_actions().iter().map(|a| format!("{a:?}")).collect();
        assert!(!is_must, "{name}: {must} is broken by\n{}", actions.join("\n"));
    }
    for must in sometimes {
        assert!(found.contains_key(must), "{name}: it never comes to pass that {must}");
    }
    checker.state_count()
}

/// With a rule broken, the shortest way to what it prevents.
fn shows(rule: Rule, setup: Setup, expected: &'static str) {
    let setup = Setup { rules: setup.rules.without(rule), ..setup };
    breaks(&format!("without {rule:?}"), setup, expected);
}

fn breaks(name: &str, setup: Setup, expected: &'static str) {
    let wanted: BTreeSet<&'static str> =
        must::MUSTS.iter().map(|(must, _)| *must).filter(|must| must.starts_with(expected)).collect();
    let began = Instant::now();
    let checker =
        setup.checker().finish_when(HasDiscoveries::AnyOf(wanted)).target_state_count(10 * MOST).spawn_bfs().join();
    let mut found: Vec<_> =
        checker.discoveries().into_iter().filter(|(name, _)| name.len() > 2 && name.contains(':')).collect();
    found.sort_by_key(|(name, _)| *name);
    let states = checker.unique_state_count();
    let took = began.elapsed().as_secs_f64();
    for (must, path) in &found {
        let length = path.clone().into_actions().len();
        println!("{name}: {must} after {length} steps, {states} states, {took:.1} s");
    }
    assert!(found.iter().any(|(must, _)| must.starts_with(expected)), "{name}: {expected} holds, {states} states");
}

const BACK_AGAIN: &[&str] = &["the job runs again"];
const COMMITS: &[&str] = &["a checkpoint is committed"];

fn with(setup: Setup, budget: Budget) -> Setup {
    Setup { budget, ..setup }
}

const NONE: Budget = Budget {
    checkpoints: 1,
    leases: 0,
    deadlines: 0,
    agents: 0,
    hosts: 0,
    coordinators: 0,
    suspicions: 0,
    unknowns: 0,
    failures: 0,
    deaths: 0,
    ends: 0,
    arrivals: 0,
    power: 0,
    packets: 0,
    boots: 0,
};

fn fresh(members: u32) -> Setup {
    Setup { has_line: false, ..base(members) }
}

fn slow(members: u32) -> Setup {
    Setup { is_slow: true, ..fresh(members) }
}

fn rivals() -> Setup {
    Setup { coordinators: 2, ..fresh(2) }
}

fn struck() -> Setup {
    Setup { is_struck: true, ..base(2) }
}

const LEASES: Budget = Budget { leases: 2, failures: 1, ..NONE };
const AGENT: Budget = Budget { agents: 1, boots: 1, ..NONE };
const RIVALS: Budget = Budget { checkpoints: 2, ..NONE };
const UNKNOWN: Budget = Budget { unknowns: 1, ..NONE };
const BACK: Budget = Budget { checkpoints: 0, ..NONE };

#[test]
fn rounds_with_leases_and_failures() {
    holds("2 members, slow engine, leases, failure", with(slow(2), LEASES), COMMITS);
    holds("3 members, lease", with(fresh(3), Budget { leases: 1, ..NONE }), COMMITS);
    holds_so_far("2 members, 2 rounds, lease", with(fresh(2), Budget { checkpoints: 2, leases: 1, ..NONE }));
}

#[test]
fn rounds_with_crashes() {
    holds_so_far("2 members, agent crashes", with(fresh(2), AGENT));
    holds_so_far("2 members, host crashes", with(fresh(2), Budget { hosts: 1, boots: 1, ..NONE }));
    holds("2 members, power cut", with(fresh(2), Budget { power: 1, ..NONE }), COMMITS);
}

#[test]
fn rounds_with_two_coordinators() {
    holds_so_far("2 members, rival coordinators", with(rivals(), RIVALS));
    holds_so_far("2 members, unknown writes", with(rivals(), UNKNOWN));
    holds_so_far("2 members, coordinator crashes", with(rivals(), Budget { coordinators: 1, ..NONE }));
}

#[test]
fn traffic_in_rounds() {
    holds_so_far("2 members, traffic", with(fresh(2), Budget { packets: 2, leases: 1, ..NONE }));
}

#[test]
fn ways_back() {
    holds("rollback on fewer hosts", with(struck(), Budget { deadlines: 2, ..BACK }), BACK_AGAIN);
    let crash = Budget { deadlines: 1, deaths: 1, agents: 1, boots: 1, ..BACK };
    holds_so_far("rollback, agent crashes", with(base(2), crash));
    let spare = Setup { spares: 1, ..struck() };
    holds("rollback on a spare", with(spare, Budget { deadlines: 1, ..BACK }), BACK_AGAIN);
    holds("a task dies", with(base(2), Budget { deaths: 1, ..BACK }), BACK_AGAIN);
}

#[test]
fn members_come_and_go() {
    let setup = Setup { spares: 1, ..fresh(1) };
    holds_so_far("a member joins", with(setup, Budget { arrivals: 1, ..NONE }));
    holds("a member leaves", with(fresh(2), Budget { ends: 1, ..NONE }), COMMITS);
}

#[test]
fn each_rule_of_a_round_is_needed() {
    let lease = with(fresh(2), LEASES);
    // The barrier before the hold only keeps the hold short: by itself it can go.
    holds("without FreezeBarrier", Setup { rules: lease.rules.without(Rule::FreezeBarrier), ..lease }, COMMITS);
    shows(Rule::HoldBarrier, lease, "S1 still");
    shows(Rule::CaptureBarrier, lease, "S1 still");
    shows(Rule::DurableBarrier, lease, "S3 whole");
    shows(Rule::DurableAfterThaw, lease, "S3 once");
    shows(Rule::LeaseThaws, lease, "L1 lease");
    shows(Rule::LeaseRefuses, lease, "S1 still");
}

#[test]
fn each_rule_of_the_commit_is_needed() {
    shows(Rule::CommitAfterWrite, with(fresh(2), NONE), "S");
    shows(Rule::ClaimFirst, with(rivals(), RIVALS), "fence");
}

#[test]
fn each_rule_of_a_rollback_is_needed() {
    shows(Rule::RestoreBarrier, with(base(2), Budget { deaths: 1, ..BACK }), "S4 gate");
    shows(Rule::FenceBeforeRestore, with(base(2), Budget { suspicions: 1, ..BACK }), "S4 one run");
    shows(Rule::SuspectsRemembered, with(base(2), Budget { suspicions: 1, ..BACK }), "S4 known");
    shows(Rule::RollbackFirst, with(base(2), Budget { deaths: 1, ..BACK }), "S4 one origin");
    shows(Rule::JoinWaits, with(Setup { spares: 1, ..fresh(1) }, Budget { arrivals: 1, ..BACK }), "S4 known");
    shows(Rule::GateLease, with(base(2), Budget { deaths: 1, leases: 1, ..BACK }), "L1 lease");
    shows(Rule::EndsCounted, with(base(2), Budget { deaths: 1, ends: 1, ..NONE }), "S4 known");
}

#[test]
fn promises_from_below_are_needed() {
    let packets = Budget { packets: 2, ..NONE };
    let leaky = Setup { fault: Fault::LeakyHold, ..with(fresh(2), packets) };
    shows(Rule::ChannelsChecked, leaky, "S1 S2 cut");
    let cut = with(fresh(2), Budget { power: 1, ..NONE });
    breaks("unsynced shares", Setup { fault: Fault::UnsyncedShares, ..cut }, "S5");
    breaks("an unsynced ledger", Setup { fault: Fault::UnsyncedLedger, ..cut }, "S5");
}
