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
