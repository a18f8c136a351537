//! A database that is switched from one host to another by force.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::{Api, text};
use cloudlink_tests::cluster::{Cluster, Database};
use cloudlink_tests::fleet::{Device, LINK_LIMIT};
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Server;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

/// For a node to find where the database is, with all that waits for it: the lease of the tests is 5 s.
const SWITCH_LIMIT: Duration = Duration::from_secs(30);
/// For a device that has lost its link in an outage, with the pause that it may make after some attempts in vain.
const BACK_LIMIT: Duration = Duration::from_secs(120);
/// Between two commands that one person asks for.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Of asking, before and after a switch.
const AROUND: Duration = Duration::from_secs(2);

/// Asks for restarts one after another, at each of the nodes in turn, until told to stop. Whoever gets no answer asks again with the
/// same key, as the API wants it. Gives back the ids.
async fn ask(nodes: &[Api], device: &str, mut stop: watch::Receiver<bool>) -> anyhow::Result<Vec<String>> {
    let path = format!("/devices/{device}/commands");
    let body = json!({ "kind": "service.restart", "arguments": { "service": SERVICE }, "reason": "a test" });
    let mut made = Vec::new();
    let mut nodes = nodes.iter().cycle();
    while !*stop.borrow_and_update() {
        let key = Uuid::new_v4().to_string();
        let answer = wait_for("an answer", SWITCH_LIMIT, async || {
            let node = nodes.next().context("there are nodes")?;
            node.call(Method::POST, &path, &[("Idempotency-Key", &key)], Some(&body)).await?.success()
        })
        .await?;
        made.push(text(&answer, "id")?);
        let _ = timeout_at(Instant::now() + ASK_EVERY, stop.changed()).await;
    }
    Ok(made)
}

/// The operator at each node.
fn operators(cluster: &Cluster) -> anyhow::Result<Vec<Api>> {
    let fleet = &cluster.fleet;
    let at = |node: &Server| Api::new(&node.api_url(), &fleet.server.ca_file(), fleet.operator.token());
    [&fleet.server].into_iter().chain(&cluster.others).map(at).collect()
}

/// Every command has succeeded, and the device has begun as many, not one more.
async fn each_was_run_once(cluster: &Cluster, device: &Device, made: &[String]) -> anyhow::Result<()> {
    for command in made {
        let done = cluster.fleet.finished(command).await?;
        ensure!(done["state"] == "succeeded", "{done}");
    }
    ensure!(device.machine.restarts() == made.len(), "{} of {}", device.machine.restarts(), made.len());
    Ok(())
}

async fn commands_in(database: &mut PgConnection) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar("select count(*) from commands").fetch_one(database).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_is_where_it_is_switched_to() -> anyhow::Result<()> {
    let mut database = Database::start_with_standby().await?;
    let mut owner = database.look().await?;
    owner.execute("create table committed (round integer)").await?;
    owner.close().await?;
    for round in 0..3_i32 {
        let mut owner = database.look().await?;
        sqlx::query("insert into committed values ($1)").bind(round).execute(&mut owner).await?;
        database.switch_over().await?;
        database.follow_again().await?;
        let mut owner = database.look().await?;
        let count: i64 = sqlx::query_scalar("select count(*) from committed").fetch_one(&mut owner).await?;
        ensure!(count == i64::from(round) + 1, "{count}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_is_lost_or_run_twice() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_on(Database::start_with_standby().await?, 2, &[]).await?;
    let mut devices = Vec::new();
    for name in ["gw-1", "gw-2"] {
        let device = cluster.fleet.device(name).await?;
        cluster.fleet.grant(&device.id, &["service:restart"]).await?;
        devices.push(device);
    }
    let epoch_before = cluster.fleet.tenant.get(&format!("/devices/{}", devices[0].id)).await?["link"]["epoch"].clone();
    let (stop, stopped) = watch::channel(false);
    let operators = operators(&cluster)?;
    let asking = join_all(devices.iter().map(|device| ask(&operators, &device.id, stopped.clone())));
    let Cluster { fleet, others, database, .. } = &mut cluster;
    let switching = async {
        // To the second host, and back to the first one, which has followed meanwhile.
        for _ in 0..2 {
            sleep(AROUND).await;
            database.switch_over().await?;
            fleet.server.ready().await?;
            others[0].ready().await?;
            database.follow_again().await?;
        }
        sleep(AROUND).await;
        anyhow::Ok(stop.send(true)?)
    };
    let (asked, switched) = tokio::join!(asking, switching);
    switched?;
    let mut count = 0;
    for (device, made) in devices.iter().zip(asked) {
        let made = made?;
        ensure!(made.len() > 40, "only {} commands", made.len());
        each_was_run_once(&cluster, device, &made).await?;
        count += made.len();
    }
    let stored = commands_in(&mut cluster.database.look().await?).await?;
    ensure!(usize::try_from(stored)? == count, "{stored} commands are stored, {count} were asked for");
    // Nobody had to dial again.
    let shown = cluster.fleet.tenant.get(&format!("/devices/{}", devices[0].id)).await?;
    ensure!(shown["link"]["epoch"] == epoch_before && shown["link"]["state"] == "live", "{epoch_before}: {shown}");
    for mut device in devices {
        device.machine.stop()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_was_sent_before_a_crash_is_not_cancelled_as_never_begun() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(1).await?;
    let mut device = cluster.fleet.device("gw-1").await?;
    let grant = cluster.fleet.grant(&device.id, &["service:restart"]).await?;
    device.machine.hold_restarts()?;
    // What nobody waits for is not on the disk when the crash comes.
    let mut owner = cluster.database.look().await?;
    owner.execute("alter system set wal_writer_delay = '10s'").await?;
    owner.execute("select pg_reload_conf()").await?;
    let command = cluster.fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await?;
    let begun_by = Instant::now() + LINK_LIMIT;
    while device.machine.restarts() == 0 {
        ensure!(Instant::now() < begun_by, "the restart does not begin");
        sleep(Duration::from_millis(1)).await;
    }
    cluster.database.kill()?;
    cluster.fleet.server.kill()?;
    cluster.database.start_again().await?;
    let mut owner = cluster.database.look().await?;
    let state: String = sqlx::query_scalar("select state from commands where id = $1::uuid")
        .bind(&command)
        .fetch_one(&mut owner)
        .await?;
    ensure!(state != "queued", "the database has forgotten that it was sent");
    cluster.fleet.server.start_again().await?;
    cluster.fleet.tenant.post(&format!("/grants/{grant}/revoke"), &json!({})).await?;
    device.machine.release_restarts()?;
    let done = cluster.fleet.finished(&command).await?;
    ensure!(done["state"] == "succeeded" && device.machine.restarts() == 1, "{done}");
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_comes_back_is_not_the_database_any_more() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_on(Database::start_with_standby().await?, 2, &[]).await?;
    let mut device = cluster.fleet.device("gw-1").await?;
    cluster.fleet.grant(&device.id, &["service:restart"]).await?;
    // Who gets no answer asks again with the same key, so that each is stored once.
    let mut key = Uuid::new_v4().to_string();
    let mut made = 0;
    let mut restart = async |cluster: &Cluster| -> anyhow::Result<i64> {
        let path = format!("/devices/{}/commands", device.id);
        let body = json!({ "kind": "service.restart", "arguments": { "service": SERVICE }, "reason": "a test" });
        let answer =
            cluster.fleet.operator.call(Method::POST, &path, &[("Idempotency-Key", &key)], Some(&body)).await?;
        let command = text(&answer.success()?, "id")?;
        key = Uuid::new_v4().to_string();
        made += 1;
        let done = cluster.fleet.finished(&command).await?;
        ensure!(done["state"] == "succeeded", "{done}");
        Ok(made)
    };
    restart(&cluster).await?;
    cluster.database.switch_over().await?;
    // It is the first of the list, is written to, and was not told of anything.
    let mut before = cluster.database.start_the_one_before().await?;
    cluster.fleet.server.ready().await?;
    let made = wait_for("a command at the new host", BACK_LIMIT, async || restart(&cluster).await).await?;
    ensure!(commands_in(&mut before).await? == 1);
    ensure!(commands_in(&mut cluster.database.look().await?).await? == made);

    // Nor is it when nothing else can be reached, and for a node that begins anew, and has met the new one.
    let history = cluster.others[0].data_dir().join("database.history");
    wait_for("the new history to be kept", SWITCH_LIMIT, async || {
        let kept = std::fs::read_to_string(&history)?;
        ensure!(kept.ends_with(" 2\n"), "{kept}");
        Ok(())
    })
    .await?;
    cluster.database.kill()?;
    cluster.others[0].kill()?;
    cluster.others[0].launch()?;
    wait_for("a node that waits for the database", LINK_LIMIT, async || {
        let said = cluster.others[0].log_text()?;
        ensure!(said.contains("the database is not there yet"), "{said}");
        ensure!(said.contains("a host of the database is refused"), "{said}");
        Ok(())
    })
    .await?;
    for node in [&cluster.fleet.server, &cluster.others[0]] {
        let (status, said) = node.operations("/readyz").await?;
        ensure!(status == 503, "{said}");
    }
    cluster.database.start_again().await?;
    cluster.others[0].ready().await?;
    cluster.fleet.server.ready().await?;
    // The device may have lost its link meanwhile.
    wait_for("a command after the outage", BACK_LIMIT, async || restart(&cluster).await).await?;
    ensure!(commands_in(&mut before).await? == 1);
    device.machine.stop()
}
