//! What devices measure, from the device to whoever asks for it.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_proto::link::message::{MetricsReport, device_message};
use cloudlink_tests::api::text;
use cloudlink_tests::cluster::Database;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::time::{MissedTickBehavior, interval};

const LIMIT: Duration = Duration::from_secs(60);
/// Above what the server takes for too often, with devices that are to report each second.
const REPORT_EVERY: Duration = Duration::from_millis(700);

/// Devices report each second.
fn settings(more: &[String]) -> Settings {
    let set = ["link.metrics_interval_seconds=1".to_owned()];
    Settings { set: set.into_iter().chain(more.iter().cloned()).collect(), ..Settings::default() }
}

/// The means of the only series.
fn means(samples: &Value) -> Vec<f64> {
    let points = samples["series"][0]["points"].as_array();
    points.into_iter().flatten().filter_map(|point| point["avg"].as_f64()).collect()
}

/// What Prometheus' own tool says of an exposition.
fn judged(exposition: &str) -> anyhow::Result<()> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run promtool: tests/scripts/prepare.sh peers installs it")?;
    promtool.stdin.take().context("a pipe")?.write_all(exposition.as_bytes())?;
    let said = promtool.wait_with_output()?;
    ensure!(
        said.status.success(),
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_measures_is_there_over_time_for_people_and_for_prometheus() -> anyhow::Result<()> {
    let fleet = Fleet::start_with(&settings(&[])).await?;
    let device = fleet.device("gateway").await?;
    let renamed = fleet.cli(fleet.tenant.token()).run(&["device", "set", "gateway", "--name", "gate \"1\""]).await?;
    ensure!(renamed.code == Some(0), "{renamed:?}");
    let path = format!("/devices/{}/samples?metric=uptime_seconds&step=3", device.id);
    let shown = wait_for("three samples", LIMIT, async || {
        let shown = fleet.tenant.get(&path).await?;
        ensure!(means(&shown).len() >= 3, "{shown}");
        Ok(shown)
    })
    .await?;
    let means = means(&shown);
    ensure!(means.is_sorted() && means.iter().all(|uptime| *uptime > 0.0), "{shown}");
    let offsets = fleet.tenant.get(&format!("/devices/{}/samples?metric=clock_offset_ms&step=3600", device.id)).await?;
    let offset = offsets["series"][0]["points"][0]["max"].as_f64().context("an offset")?;
    ensure!(offset.abs() < 30_000.0, "both are on the same machine: {offsets}");

    // To an operator while the customer lets it.
    let refused = fleet.operator.get(&path).await.err().context("no grant is there")?.to_string();
    ensure!(refused.contains("grant_required"), "{refused}");
    fleet.grant(&device.id, &["metrics:read"]).await?;
    fleet.operator.get(&path).await?;
    let told = fleet.cli(fleet.operator.token()).run(&["device", "samples", "gate \"1\""]).await?;
    ensure!(told.code == Some(0) && told.stdout.contains("memory_used_bytes"), "{told:?}");

    // To Prometheus by a token that may only read.
    let robot = json!({"name": "prometheus", "role": "tenant", "kind": "service", "tenant_id": fleet.tenant_id});
    let robot = text(&fleet.tenant.post("/people", &robot).await?, "id")?;
    let token = json!({"name": "scrape", "person_id": robot, "scopes": ["read"]});
    let token = text(&fleet.tenant.post("/tokens", &token).await?, "token")?;
    let exposition = fleet.tenant.with_token(&token).get_text("/metrics").await?;
    judged(&exposition)?;
    let labels = format!("{{device=\"gate \\\"1\\\"\",device_id=\"{}\"}}", device.id);
    for (name, least) in [("linked", 1.0), ("cpu_ratio", 0.0), ("memory_size_bytes", 1e6), ("uptime_seconds", 1.0)] {
        let series = format!("cloudlink_device_{name}{labels} ");
        let value = exposition.lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok());
        ensure!(value.is_some_and(|value| value >= least), "{series}\n{exposition}");
    }
    ensure!(judged("cloudlink_total{a=\"b\" 1\n").is_err(), "promtool takes anything");
    Ok(())
}

/// What the node has counted: stored, and dropped for whatever reason.
async fn counted(fleet: &Fleet) -> anyhow::Result<(u64, u64)> {
    let (_, metrics) = fleet.server.operations("/metrics").await?;
    let sum = |name: &str| {
        let series = metrics.lines().filter(|line| line.starts_with(name));
        series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    };
    Ok((sum("cloudlink_telemetry_stored_total"), sum("cloudlink_telemetry_dropped_total")))
}

async fn count(database: &mut PgConnection, sql: &str) -> anyhow::Result<u64> {
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(database).await?;
    Ok(u64::try_from(count)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_nothing_is_lost_but_what_is_counted() -> anyhow::Result<()> {
    let mut database = Database::start().await?;
    let fleet = Fleet::start_with(&settings(&[format!("database.url={}", database.url())])).await?;
    let device = fleet.enrolled("gateway").await?;
    let (mut link, _) = fleet.live(&device).await?;
    let mut tick = interval(REPORT_EVERY);
    // Reports that are late are not made up for: they would come too often.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = 0;
    let mut report = async |reports: u64| -> anyhow::Result<u64> {
        for _ in 0..reports {
            tick.tick().await;
            sent += 1;
            let report = MetricsReport { uptime_seconds: Some(sent), ..MetricsReport::default() };
            link.send(device_message::Kind::Metrics(report)).await?;
        }
        Ok(sent)
    };
    // Everything that was sent is stored or dropped.
    let all_are_counted = async |sent: u64| {
        wait_for("all to be stored or dropped", LIMIT, async || {
            let (stored, dropped) = counted(&fleet).await?;
            ensure!(stored + dropped == sent, "{stored} and {dropped} of {sent}");
            Ok((stored, dropped))
        })
        .await
    };
    let before = report(3).await?;
    all_are_counted(before).await?;
    // A crash may take what was committed in its last moment.
    let mut owner = database.look().await?;
    owner.execute("checkpoint").await?;
    owner.close().await?;
    database.kill()?;
    report(6).await?;
    database.start_again().await?;
    let sent = report(3).await?;
    let (stored, dropped) = all_are_counted(sent).await?;
    let mut owner = database.look().await?;
    let is_at_its_time =
        "select extract(epoch from max(at) - min(at)) > 0.7 * (max(uptime_seconds) - min(uptime_seconds)) - 2
                            from samples where uptime_seconds between 4 and 9";
    ensure!(count(&mut owner, "select count(*) from samples").await? == stored, "{stored} are said to be stored");
    let is_at_its_time: bool = sqlx::query_scalar(is_at_its_time).fetch_one(&mut owner).await?;
    ensure!(is_at_its_time, "the times are not those at which they came");
    let meanwhile = count(&mut owner, "select count(*) from samples where uptime_seconds between 4 and 9").await?;
    ensure!(meanwhile > 0 && meanwhile + dropped >= 6, "{meanwhile} of the outage, {dropped} dropped");
    ensure!(fleet.server.log_text()?.contains("cannot store samples"), "the database was not away");
    owner.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_older_than_it_is_to_be_kept_goes_by_whole_days() -> anyhow::Result<()> {
    let database = Database::start().await?;
    let set = [format!("database.url={}", database.url()), "telemetry.raw_keep_days=3".to_owned()];
    let mut fleet = Fleet::start_with(&settings(&set)).await?;
    let device = fleet.enrolled("gateway").await?;
    let mut owner = database.look().await?;
    // Made when it was their day, and with a sample of each.
    for days in [2, 9] {
        let old = format!(
            "do $$ declare
                 first timestamptz := date_bin('1 day', now() - interval '{days} days', '2000-01-03 00:00Z');
             begin
                 execute format('create table %I partition of samples for values from (%L) to (%L)',
                                to_char(first at time zone 'utc', '\"samples_\"YYYYMMDD'), first, first + interval '1 day');
                 insert into samples (device_id, tenant_id, at, uptime_seconds)
                     select id, tenant_id, now() - interval '{days} days', {days} from devices where id = '{}';
             end $$",
            device.id
        );
        owner.execute(AssertSqlSafe(old)).await?;
    }
    fleet.server.stop()?;
    fleet.server.start_again().await?;
    wait_for("the old day to go", LIMIT, async || {
        let left = count(&mut owner, "select count(*) from samples where uptime_seconds = 9").await?;
        ensure!(left == 0, "{left}");
        Ok(())
    })
    .await?;
    let parts = "select count(*) from pg_inherits where inhparent = 'samples'::regclass";
    ensure!((6..=7).contains(&count(&mut owner, parts).await?), "of two days ago, yesterday, today and three days");
    ensure!(
        count(&mut owner, "select count(*) from samples where uptime_seconds = 2").await? == 1,
        "too much has gone"
    );
    owner.close().await?;
    Ok(())
}
