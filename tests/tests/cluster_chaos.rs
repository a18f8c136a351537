//! Three nodes behind HAProxy, with NATS and a database, are hurt in every way while simulated devices on both transports and
//! commands under grants go on. Afterwards a checker that knows only what devices, API and database wrote down proves what was
//! promised.
//!
//! What is done follows from a seed: `CHAOS_SEED` plays it again. `CHAOS_SECONDS`, `DEVICES` and `COMMANDS_PER_SECOND` make more of
//! it, and `CHAOS_DIRECTORY` keeps the histories; `make chaos` runs half an hour.

use std::path::PathBuf;
use std::time::Duration;

use cloudlink_tests::ordeal::run::{Scale, run};
use cloudlink_tests::{clock, netns};

/// What two processors bear without optimisation: three minutes in all.
const SECONDS: u64 = 100;
const DEVICES: u64 = 1_500;
const COMMANDS_PER_SECOND: u64 = 60;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn what_is_promised_is_kept_whatever_is_hurt() -> anyhow::Result<()> {
    let drawn = u64::from(std::process::id()) ^ clock::now().unix_timestamp().unsigned_abs();
    let scale = Scale {
        seed: from_environment("CHAOS_SEED").unwrap_or(drawn),
        length: Duration::from_secs(from_environment("CHAOS_SECONDS").unwrap_or(SECONDS)),
        devices: usize::try_from(from_environment("DEVICES").unwrap_or(DEVICES))?,
        commands_per_second: u32::try_from(from_environment("COMMANDS_PER_SECOND").unwrap_or(COMMANDS_PER_SECOND))?,
        directory: std::env::var_os("CHAOS_DIRECTORY").map(PathBuf::from),
    };
    if let Some(what) = netns::lacking() {
        eprintln!("skipped: what_is_promised_is_kept_whatever_is_hurt: {what}");
        return Ok(());
    }
    run(&scale)
}
