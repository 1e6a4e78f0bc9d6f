//! Raft in the seeded world. `TRIUNE_SIM_SEED` names the first seed, `TRIUNE_SIM_SEEDS` how many,
//! `TRIUNE_SIM_STEPS` the steps of each; a failure prints the one command that replays it.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "tests")]
#![cfg(all(feature = "raft", feature = "check"))]

mod common;
mod world;

use triune_sim::Plan;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn plan(first_seed: u64, seeds: u64) -> Plan {
    let replay = "TRIUNE_SIM_SEEDS=1 TRIUNE_SIM_SEED={seed} cargo test -p triune-consensus --profile sim \
                  --features check --test sim_raft any_seed_keeps_every_promise -- --nocapture";
    Plan { first_seed, seeds, steps_max: 0, replay: replay.to_owned() }
}

#[test]
fn any_seed_keeps_every_promise() {
    let (first, seeds) = (env("TRIUNE_SIM_SEED", 1), env("TRIUNE_SIM_SEEDS", 60));
    let how = world::Plan::of(env("TRIUNE_SIM_STEPS", 5_000));
    let started = std::time::Instant::now();
    let summary = plan(first, seeds).run_on_threads(1, None, |seed| world::run(seed, &how));
    println!("{summary}");
    println!("{} steps/s", summary.steps * 1_000 / (started.elapsed().as_millis() as u64).max(1));
    assert!(summary.failure.is_none(), "{}", summary.failure.unwrap());
    if seeds >= 60 {
        summary.counters.require(&world::SOMETIMES).unwrap();
    }
}

#[test]
fn one_seed_gives_one_trace() {
    let how = world::Plan::of(2_000);
    for seed in 1..=3 {
        let (a, b) = (world::run(seed, &how).unwrap(), world::run(seed, &how).unwrap());
        assert_eq!((a.hash, a.steps), (b.hash, b.steps), "seed {seed}");
    }
}

/// The bug museum: each known bug is found, and the seeds that find it hold without it.
#[cfg(feature = "mutants")]
mod mutants {
    use super::*;
    use triune_consensus::Mutant;

    fn dies(mutant: Mutant) {
        let (first, budget) = (env("TRIUNE_SIM_SEED", 1), env("TRIUNE_MUTANT_SEEDS", 3_000));
        std::panic::set_hook(Box::new(|_| ()));
        let sick = world::Plan { mutant: Some(mutant), ..world::Plan::of(5_000) };
        let started = std::time::Instant::now();
        let found = plan(first, budget).run(|seed| world::run(seed, &sick));
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
}
