//! Whole members in the seeded world: their machines interleaved at random, over a network, disks, clocks and
//! processes with faults; clients at the doors of random members, judged by WGL per key and by the order that the
//! watches gave. `TRIUNE_SIM_SEED` names the first seed, `TRIUNE_SIM_SEEDS` how many, `TRIUNE_SIM_STEPS` the steps of
//! each; a failure prints the one command that replays it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a test"
)]

#[path = "sim_member/clients.rs"]
mod clients;
#[path = "sim_member/node.rs"]
mod node;
#[path = "sim_member/world.rs"]
mod world;

use triune_sim::Plan;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn plan(first_seed: u64, seeds: u64) -> Plan {
    let replay = "TRIUNE_SIM_SEEDS=1 TRIUNE_SIM_SEED={seed} cargo test -p triune-node --test sim_member \
                  any_seed_keeps_every_promise -- --nocapture";
    Plan { first_seed, seeds, steps_max: 0, replay: replay.to_owned() }
}

#[test]
fn any_seed_keeps_every_promise() {
    let (first, seeds, steps) =
        (env("TRIUNE_SIM_SEED", 1), env("TRIUNE_SIM_SEEDS", 40), env("TRIUNE_SIM_STEPS", 6_000));
    let started = std::time::Instant::now();
    let summary = plan(first, seeds).run(|seed| world::run(seed, steps));
    println!("{summary}");
    println!("{} steps/s", summary.steps * 1_000 / (started.elapsed().as_millis() as u64).max(1));
    assert!(summary.failure.is_none(), "{}", summary.failure.unwrap());
    if seeds >= 40 {
        summary.counters.require(&world::SOMETIMES).unwrap();
    }
    if seeds >= 500 {
        summary.counters.require(&world::RARELY).unwrap();
    }
}

#[test]
fn one_seed_gives_one_trace() {
    for seed in 1..=2 {
        let (a, b) = (world::run(seed, 1_500).unwrap(), world::run(seed, 1_500).unwrap());
        assert_eq!((a.hash, a.steps), (b.hash, b.steps), "seed {seed}");
    }
}
