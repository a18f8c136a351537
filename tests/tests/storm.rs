//! A fleet that comes back at once, and what the server says of it beforehand.

use std::time::Duration;

use cloudlink_tests::api::install_provider;
use cloudlink_tests::bench::usage::Process;
use cloudlink_tests::bench::{connect, seed};
use cloudlink_tests::clock;
use cloudlink_tests::fleet::Fleet as People;
use cloudlink_tests::load::storm::{Device, Storm};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use tokio::time::Instant;

/// Far below what a busy machine without optimisation does.
const RATE: usize = 40;
const MEASURED: usize = 100;
const DEVICES: usize = 600;
const WITHIN: Duration = Duration::from_secs(90);
/// What was planned is right within this.
const TOLERANCE: f64 = 0.25;
/// And what it costs: a node goes by the last hundred or so, and each takes what the machine gives it at that moment.
const COST_TOLERANCE: f64 = 0.5;

fn assert_near(what: &str, planned: f64, was: f64, tolerance: f64) {
    assert!((was / planned - 1.0).abs() <= tolerance, "{what}: planned {planned:.3}, was {was:.3}");
}

#[tokio::test]
async fn a_storm_is_what_was_planned() -> anyhow::Result<()> {
    install_provider();
    let set = [format!("admission.handshakes_per_second={RATE}"), "admission.waiting_max=200".to_owned()];
    let mut people = People::start_with(&Settings { set: set.into(), ..Settings::default() }).await?;
    let fleet = seed::devices(&people, seed::own_database(&people.server).await?, DEVICES, clock::now()).await?;
    let targets = [connect::target(people.server.device, &fleet)?];

    // The node measures what they cost, with full handshakes and resumed ones.
    let few = Device::of(&targets[0], &fleet, 0..MEASURED, true)?;
    for _ in 0..2 {
        let mut storm = Storm::begin(&targets, &few);
        storm.until_live(MEASURED, WITHIN).await?;
        storm.stop().await;
    }
    wait_for("all to be measured", WITHIN, async || {
        let costs = people.admin.get("/storm-plan?devices=1").await?["costs"].clone();
        anyhow::ensure!(costs["connections_measured"] == 2 * MEASURED, "{costs}");
        anyhow::ensure!(costs["full_cpu_ms"].is_number() && costs["resumed_cpu_ms"].is_number(), "{costs}");
        Ok(())
    })
    .await?;

    // Now the storm: with full handshakes, as after a long night.
    let some = Device::of(&targets[0], &fleet, 0..MEASURED, false)?;
    let mut storm = Storm::begin(&targets, &some);
    storm.until_live(MEASURED, WITHIN).await?;
    storm.stop().await;
    let plan = people.admin.get(&format!("/storm-plan?devices={DEVICES}")).await?;
    let planned = |field: &str| plan[field].as_f64().unwrap_or(f64::NAN);
    let all = Device::of(&targets[0], &fleet, 0..DEVICES, false)?;
    let process = Process::new(people.server.program().pid());
    let (begun, cpu) = (Instant::now(), process.cpu()?);
    let mut storm = Storm::begin(&targets, &all);
    let live = storm.until_live(DEVICES, WITHIN).await?;
    let cpu = process.cpu()? - cpu;
    let attempts = storm.attempts();
    let at = |share: usize| (live[DEVICES * share / 100 - 1] - begun).as_secs_f64();
    assert_eq!(plan["bottleneck"], "fixed_rate", "{plan}");
    assert_near("half of them back, in seconds", planned("half_back_seconds"), at(50), TOLERANCE);
    assert_near("nine tenths back, in seconds", planned("nine_tenths_back_seconds"), at(90), TOLERANCE);
    let attempts = f64::from(u32::try_from(attempts)?) / f64::from(u32::try_from(DEVICES)?);
    assert_near("attempts of a device", planned("attempts_per_device"), attempts, TOLERANCE);
    // What another such storm would take is what this one took. A machine that others use as well is not as fast now as it was before.
    let again = people.admin.get(&format!("/storm-plan?devices={DEVICES}")).await?;
    let planned = again["cpu_seconds_per_node"].as_f64().unwrap_or(f64::NAN);
    assert_near("processor time, in seconds", planned, cpu.as_secs_f64(), COST_TOLERANCE);

    storm.stop().await;
    Ok(())
}
