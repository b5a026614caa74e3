//! Many seeds: none may break an obligation, and with a rule broken some must.

use super::random::Random;
use super::schedule::L2;
use super::schedule::{Plan, Tally};
use super::search::IS_SOAK;
use super::shrink::{shrink, stuck_at};
use crate::rules::{Rule, Rules};

const SEEDS: u64 = if IS_SOAK { 50_000 } else { 400 };

/// What `seed` breaks, with its schedule made short.
fn broken(seed: u64, (plan, mut random): (Plan, Random)) -> Result<Tally, String> {
    let (storm, result) = plan.run(&mut random);
    result.map_err(|must| {
        let all = storm.schedule.len();
        let short = shrink(plan.setup, storm.schedule, must, seed);
        let lines: Vec<String> = short.iter().map(|action| format!("  {action:?}")).collect();
        let setup = plan.setup;
        let end = if must == L2 { stuck_at(setup, &short, seed) } else { String::new() };
        format!("seed {seed}: {must}: {} of {all} steps, {setup:?}\n{}\n{end}", short.len(), lines.join("\n"))
    })
}

fn none_breaks_anything(draw: fn(u64) -> (Plan, Random)) {
    let first = option_env!("HDCR_SYNC_SEED").and_then(|seed| seed.parse().ok());
    let mut all = Tally::default();
    for seed in first.map_or(0..SEEDS, |first| first..first + 1) {
        match broken(seed, draw(seed)) {
            Ok(tally) => all.add(tally),
            Err(text) => {
                println!("{text}");
                panic!("seed {seed} breaks an obligation");
            }
        }
    }
    println!("{all:?}");
}

#[test]
fn no_storm_breaks_anything() {
    none_breaks_anything(|seed| Plan::new(seed, Rules::default(), 64));
}

#[test]
fn no_haunted_storm_breaks_anything() {
    none_breaks_anything(|seed| Plan::haunted(seed, Rules::default()));
}

/// What an earlier term orders is fenced by incarnation, round, boot and stay as well: no obligation hangs on this rule.
/// It keeps one who was superseded from stopping tasks for a round that cannot be committed.
#[test]
fn earlier_terms_only_disturb() {
    none_breaks_anything(|seed| Plan::haunted(seed, Rules::default().without(Rule::TermFences)));
}

/// How many seeds there may be until one shows what a rule is there for.
const ENOUGH: u64 = 3_000;

fn is_needed(rule: Rule, expected: &str, draw: fn(u64, Rules) -> (Plan, Random)) {
    let rules = Rules::default().without(rule);
    let found = (0..ENOUGH).find_map(|seed| {
        let (plan, mut random) = draw(seed, rules);
        let (_, result) = plan.run(&mut random);
        result.err().filter(|must| must.starts_with(expected)).map(|must| (seed, must))
    });
    println!("without {rule:?}: {found:?}");
    assert!(found.is_some(), "without {rule:?} nothing goes wrong");
}

#[test]
fn each_rule_is_needed_in_some_storm() {
    let few = |seed, rules| Plan::new(seed, rules, 4);
    is_needed(Rule::RoundFences, "S3 whole", few);
    is_needed(Rule::GarbageBounded, "S3 whole", few);
    is_needed(Rule::StaysCounted, "S4", Plan::haunted);
    is_needed(Rule::NewerTermDeposes, "L2", few);
    is_needed(Rule::UnknownWaits, "S3 once", few);
    is_needed(Rule::AuthorKnown, "S", few);
    is_needed(Rule::BootFences, "S4", Plan::haunted);
    is_needed(Rule::BootReadsLedger, "S4", Plan::haunted);
    is_needed(Rule::RunsOnce, "S4", Plan::haunted);
}
