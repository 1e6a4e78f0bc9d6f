//! The bug museum: each known bug is found by the seeded world within its budget, and the seed that finds it holds
//! without the bug. `TRIUNE_MUTANT_SEEDS` is the budget in seeds.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]
#![cfg(all(feature = "raft", feature = "mutants"))]

mod common;
mod world;

use triune_consensus::Mutant;
use triune_sim::Plan;

fn dies(mutant: Mutant) {
    let budget = std::env::var("TRIUNE_MUTANT_SEEDS").map_or(3_000, |text| text.parse().expect("a number"));
    let plan = Plan { first_seed: 1, seeds: budget, steps_max: 0, replay: "{seed}".to_owned() };
    std::panic::set_hook(Box::new(|_| ()));
    let sick = world::Plan { mutant: Some(mutant), ..world::Plan::of(5_000) };
    let started = std::time::Instant::now();
    let found = plan.run(|seed| world::run(seed, &sick));
    let failure = found.failure.unwrap_or_else(|| panic!("{mutant:?} survives {budget} seeds"));
    let first_line = failure.message.lines().nth(1).unwrap_or_default().to_owned();
    println!(
        "{mutant:?}: seed {} after {} steps, {} ms: {} {first_line}",
        failure.seed,
        found.steps,
        started.elapsed().as_millis(),
        failure.message.lines().next().unwrap_or_default()
    );
    let held = world::run(failure.seed, &world::Plan::of(5_000));
    assert!(held.is_ok(), "seed {} fails without the bug too: {held:?}", failure.seed);
}

#[test]
fn a_vote_before_it_is_durable_is_found() {
    dies(Mutant::VoteBeforeDurable);
}

#[test]
fn an_older_term_committed_by_counting_is_found() {
    dies(Mutant::CommitOlderTerm);
}

#[test]
fn an_apply_before_the_own_write_is_found() {
    dies(Mutant::ApplyBeforeDurable);
}

#[test]
fn a_read_round_with_a_used_id_is_found() {
    dies(Mutant::ReadIdReused);
}

#[test]
fn a_configuration_in_force_at_apply_is_found() {
    dies(Mutant::ConfigAtApply);
}

#[test]
fn an_append_without_the_log_check_is_found() {
    dies(Mutant::NoLogMatch);
}

#[test]
fn a_higher_term_counted_as_a_vote_is_found() {
    dies(Mutant::HigherTermIsGrant);
}

#[test]
fn a_late_completion_of_an_overwritten_suffix_is_found() {
    dies(Mutant::StaleCompletion);
}
