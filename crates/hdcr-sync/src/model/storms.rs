//! Many seeds: none may break an obligation, and with a rule broken some must.

use super::schedule::L2;
use super::schedule::{Plan, Tally};
use super::search::IS_SOAK;
use super::shrink::{shrink, stuck_at};
use crate::rules::{Rule, Rules};

const SEEDS: u64 = if IS_SOAK { 50_000 } else { 400 };

/// What `seed` breaks, with its schedule made short.
fn broken(seed: u64, rules: Rules, most: usize) -> Result<Tally, String> {
    let (plan, mut random) = Plan::new(seed, rules, most);
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

#[test]
fn no_storm_breaks_anything() {
    let first = option_env!("HDCR_SYNC_SEED").and_then(|seed| seed.parse().ok());
    let seeds = first.map_or(0..SEEDS, |first| first..first + 1);
    let mut all = Tally::default();
    for seed in seeds {
        let tally = broken(seed, Rules::default(), 64).unwrap_or_else(|text| {
            println!("{text}");
            Tally { steps: usize::MAX, ..Tally::default() }
        });
        assert!(tally.steps != usize::MAX, "seed {seed} breaks an obligation");
        all.steps += tally.steps;
        all.commits += tally.commits;
        all.rollbacks += tally.rollbacks;
        all.longest_calm = all.longest_calm.max(tally.longest_calm);
        all.most_ticks = all.most_ticks.max(tally.most_ticks);
    }
    println!("{all:?}");
}

/// How many seeds there may be until one shows what a rule is there for.
const ENOUGH: u64 = 3_000;

fn is_needed(rule: Rule, expected: &str) {
    let rules = Rules::default().without(rule);
    let found = (0..ENOUGH).find_map(|seed| {
        let (plan, mut random) = Plan::new(seed, rules, 4);
        let (_, result) = plan.run(&mut random);
        result.err().filter(|must| must.starts_with(expected)).map(|must| (seed, must))
    });
    println!("without {rule:?}: {found:?}");
    assert!(found.is_some(), "without {rule:?} nothing goes wrong");
}

#[test]
fn each_rule_is_needed_in_some_storm() {
    is_needed(Rule::RoundFences, "S3 whole");
    is_needed(Rule::GarbageBounded, "S3 whole");
    is_needed(Rule::StaysCounted, "S4 known");
    is_needed(Rule::NewerTermDeposes, "L2");
    is_needed(Rule::UnknownWaits, "S3 once");
    is_needed(Rule::AuthorKnown, "");
}
