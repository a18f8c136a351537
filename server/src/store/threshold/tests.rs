use std::time::Duration as StdDuration;

use futures_util::future::join_all;
use http::StatusCode;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::*;
use crate::http::testing::Scene;
use crate::model::new_id;
use crate::store::Visibility;

const FRESH: StdDuration = StdDuration::from_secs(600);

/// A tenant that is told of everything by a webhook.
async fn begin(pool: PgPoolOptions, database: PgConnectOptions) -> Scene {
    let scene = Scene::new(pool, database).await;
    for somebody in [&scene.customer, &scene.other_customer] {
        let webhook = scene.post("/webhooks").by(somebody).json(json!({"url": "https://example.com/"}));
        webhook.send().await.expect(StatusCode::CREATED);
    }
    scene
}

/// Above 90 % of the processors, clear at 80 %, at once, with 300 s of quiet for a site.
async fn threshold(scene: &Scene, changes: Value) -> Uuid {
    let mut body = json!({
        "name": "hot", "metric": "cpu_percent", "comparison": "above", "value": 90, "clear_value": 80, "selector": "site",
    });
    body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let made = scene.post("/thresholds").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
    made["id"].as_str().unwrap().parse().unwrap()
}

/// So many more devices at a site.
async fn devices(scene: &Scene, site: &str, count: i32) -> Vec<DeviceId> {
    let ids: Vec<Uuid> = (0..count).map(|_| new_id()).collect();
    sqlx::query(
        "insert into devices (id, tenant_id, name, labels, enrolled_at)
         select id, $2, $3 || n, jsonb_build_object('site', $3::text), clock_timestamp()
           from unnest($1::uuid[]) with ordinality as i(id, n)",
    )
    .bind(&ids)
    .bind(scene.tenant.as_uuid())
    .bind(site)
    .execute(&scene.root)
    .await
    .unwrap();
    ids.into_iter().map(DeviceId::from_uuid).collect()
}

/// What the devices report now.
async fn report(scene: &Scene, devices: &[DeviceId], cpu_percent: f64) {
    report_before(scene, devices, cpu_percent, 0).await;
}

/// What they reported so many seconds ago.
async fn report_before(scene: &Scene, devices: &[DeviceId], cpu_percent: f64, seconds: i32) {
    let ids: Vec<Uuid> = devices.iter().map(|device| device.as_uuid()).collect();
    sqlx::query(
        "insert into device_metrics (device_id, tenant_id, received_at, report)
         select id, tenant_id, clock_timestamp() - make_interval(secs => $3), jsonb_build_object('cpu_percent', $2::float8)
           from devices where id = any ($1)
             on conflict (device_id) do update set received_at = excluded.received_at, report = excluded.report",
    )
    .bind(&ids)
    .bind(cpu_percent)
    .bind(seconds)
    .execute(&scene.root)
    .await
    .unwrap();
}

async fn step(scene: &Scene) -> Option<Stepped> {
    let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
    let stepped = threshold_step_in_txn(&mut transaction, FRESH).await.unwrap();
    scene.store.commit(transaction).await.unwrap();
    stepped
}

/// Looks at all devices by all rules, as if all were due.
async fn round(scene: &Scene) {
    scene.sql("update thresholds set due_at = now() where due_at is not null and id <> $1", Uuid::nil()).await;
    for _ in 0..1000 {
        match step(scene).await {
            Some(stepped) => assert!(stepped.outcome.is_ok(), "{stepped:?}"),
            None => return,
        }
    }
    panic!("there is no end to it");
}

/// As if every hold-down had ended.
async fn hold_downs_end(scene: &Scene) {
    scene.sql("update threshold_holds set until = now() where threshold_id <> $1", Uuid::nil()).await;
}

/// What the tenant's webhook is told since the last time: event, site, how many, and which devices.
async fn told(scene: &Scene) -> Vec<(String, Value, i64, Vec<String>)> {
    let rows: Vec<(String, Value)> = sqlx::query_as(
        "with gone as (delete from notices where tenant_id = $1 and event like 'metric.%' returning id, event, body, created_at)
         select event, body -> 'data' from gone order by created_at, id",
    )
    .bind(scene.tenant.as_uuid())
    .fetch_all(&scene.root)
    .await
    .unwrap();
    let devices = |data: &Value| {
        let devices = data["devices"].as_array().unwrap().iter();
        devices.map(|device| device["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let told = |(event, data): (String, Value)| {
        let event = event.trim_start_matches("metric.threshold_").to_owned();
        (event, data["site"].clone(), data["count"].as_i64().unwrap(), devices(&data))
    };
    rows.into_iter().map(told).collect()
}

fn of_north(event: &str, names: &[&str]) -> (String, Value, i64, Vec<String>) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    (event.to_owned(), json!("north"), i64::try_from(names.len()).unwrap(), names)
}

async fn alerts(scene: &Scene, query: &str) -> Vec<(String, String, bool)> {
    let page = scene.get(&format!("/alerts{query}")).by(&scene.customer).send().await.expect(StatusCode::OK);
    let alert = |alert: &Value| {
        let text = |member: &str| alert[member].as_str().unwrap().to_owned();
        (text("device_name"), text("state"), alert["is_told"] == true)
    };
    page["items"].as_array().unwrap().iter().map(alert).collect()
}

fn alert(name: &str, state: &str, is_told: bool) -> (String, String, bool) {
    (name.to_owned(), state.to_owned(), is_told)
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_crossing_is_told_once_and_its_end_at_the_clear_value(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = begin(pool, database).await;
    let id = threshold(&scene, json!({"severity": "critical"})).await;
    let device = [scene.device];
    report(&scene, &device, 90.0).await;
    round(&scene).await;
    assert!(told(&scene).await.is_empty() && alerts(&scene, "").await.is_empty());
    report(&scene, &device, 95.0).await;
    // Of another tenant nothing is seen, whatever it measures.
    report(&scene, &[scene.other_device], 95.0).await;
    let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
    scene.sql("update thresholds set due_at = now() where id <> $1", Uuid::nil()).await;
    let stepped = threshold_step_in_txn(&mut transaction, FRESH).await.unwrap().unwrap();
    let expected = Outcome { devices: 1, crossed: 1, cleared: 0, has_notices: true };
    assert_eq!(stepped.outcome.unwrap(), expected);
    // The node dies before the commit: another one tells it.
    transaction.rollback().await.unwrap();
    for _ in 0..3 {
        round(&scene).await;
    }
    let body: Value = sqlx::query_scalar("select body from notices where event = 'metric.threshold_crossed'")
        .fetch_one(&scene.root)
        .await
        .unwrap();
    assert_eq!(body["tenant_id"], scene.tenant.to_string());
    let rule = &body["data"]["threshold"];
    assert_eq!(
        (&rule["id"], &rule["metric"], &rule["severity"], &rule["value"]),
        (&json!(id), &json!("cpu_percent"), &json!("critical"), &json!(90.0))
    );
    let named = &body["data"]["devices"][0];
    assert_eq!((&named["device_id"], named["value"].as_f64()), (&json!(scene.device.to_string()), Some(95.0)));
    assert_eq!(told(&scene).await, [of_north("crossed", &["lobby"])]);
    assert_eq!(alerts(&scene, "").await, [alert("lobby", "firing", true)]);
    // Neither across nor clear.
    report(&scene, &device, 85.0).await;
    round(&scene).await;
    assert_eq!(alerts(&scene, "?state=firing").await.len(), 1);
    report(&scene, &device, 80.0).await;
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("cleared", &["lobby"])]);
    round(&scene).await;
    assert!(told(&scene).await.is_empty() && alerts(&scene, "").await.is_empty());
    let left: i64 = sqlx::query_scalar("select count(*) from threshold_states").fetch_one(&scene.root).await.unwrap();
    assert_eq!(left, 0);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_does_not_last_or_is_old_does_not_count(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = begin(pool, database).await;
    threshold(&scene, json!({"for_seconds": 120, "name": "lasting"})).await;
    let device = [scene.device];
    report_before(&scene, &device, 95.0, 500).await;
    round(&scene).await;
    assert_eq!(alerts(&scene, "").await, [alert("lobby", "pending", false)]);
    assert_eq!(alerts(&scene, "?state=firing").await, []);
    // However long ago that was: it is the same report.
    round(&scene).await;
    report_before(&scene, &device, 95.0, 450).await;
    round(&scene).await;
    assert_eq!(alerts(&scene, "").await, [alert("lobby", "pending", false)]);
    report_before(&scene, &device, 85.0, 390).await;
    round(&scene).await;
    assert_eq!(alerts(&scene, "").await, []);
    report_before(&scene, &device, 95.0, 380).await;
    round(&scene).await;
    report_before(&scene, &device, 95.0, 200).await;
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("crossed", &["lobby"])]);
    // By a report of an hour ago nothing begins, and nothing ends.
    threshold(&scene, json!({"name": "at once"})).await;
    report_before(&scene, &device, 95.0, 3600).await;
    round(&scene).await;
    assert_eq!(alerts(&scene, "").await, [alert("lobby", "firing", true)]);
    // Unless the device polls, so that it is its last one.
    scene.poll(scene.device).await;
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("crossed", &["lobby"])]);
    assert_eq!(alerts(&scene, "").await.len(), 2);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_site_that_goes_as_a_whole_is_two_events_and_so_is_its_return(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let scene = begin(pool, database).await;
    threshold(&scene, json!({})).await;
    let site = devices(&scene, "tower", 600).await;
    let (first, rest) = site.split_at(1);
    let count = async |event: &str, counts: &[i64]| {
        let events = told(&scene).await;
        let told: Vec<i64> = events.iter().map(|(.., count, _)| *count).collect();
        assert_eq!(told, counts);
        for (kind, site, count, names) in events {
            assert_eq!((kind.as_str(), &site), (event, &json!("tower")));
            assert_eq!(names.len(), usize::try_from(count).unwrap().min(DEVICES_TOLD_MAX));
        }
    };
    report(&scene, first, 95.0).await;
    round(&scene).await;
    count("crossed", &[1]).await;
    // More than one step looks at.
    report(&scene, rest, 95.0).await;
    round(&scene).await;
    round(&scene).await;
    count("crossed", &[]).await;
    assert_eq!(alerts(&scene, "?limit=200").await.iter().filter(|(.., is_told)| !is_told).count(), 200);
    // Another site waits for nobody.
    report(&scene, &[scene.device], 95.0).await;
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("crossed", &["lobby"])]);
    hold_downs_end(&scene).await;
    round(&scene).await;
    count("crossed", &[599]).await;
    report(&scene, &site, 5.0).await;
    round(&scene).await;
    let cleared: i64 = sqlx::query_scalar("select count(*) from notices where event like 'metric.%'")
        .fetch_one(&scene.root)
        .await
        .unwrap();
    assert_eq!(cleared, 1, "those that the first step has seen");
    hold_downs_end(&scene).await;
    round(&scene).await;
    let all: i64 = told(&scene).await.iter().map(|(.., count, _)| *count).sum();
    assert_eq!(all, 600);
    hold_downs_end(&scene).await;
    round(&scene).await;
    assert!(told(&scene).await.is_empty());
    let holds: i64 = sqlx::query_scalar("select count(*) from threshold_holds").fetch_one(&scene.root).await.unwrap();
    assert_eq!(holds, 0);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_comes_and_goes_while_a_site_is_held_is_told_in_turns(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = begin(pool, database).await;
    threshold(&scene, json!({})).await;
    let other = devices(&scene, "north", 1).await;
    let now = async |lobby: f64, north: f64| {
        report(&scene, &[scene.device], lobby).await;
        report(&scene, &other, north).await;
        round(&scene).await;
    };
    now(95.0, 0.0).await;
    assert_eq!(told(&scene).await, [of_north("crossed", &["lobby"])]);
    // One comes and goes; of the other, which is told, the end and the beginning are no news.
    now(95.0, 95.0).await;
    now(95.0, 0.0).await;
    assert!(told(&scene).await.is_empty(), "the hold-down is not over");
    assert_eq!(alerts(&scene, "").await, [alert("lobby", "firing", true)]);
    hold_downs_end(&scene).await;
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("crossed", &["north1"]), of_north("cleared", &["north1"])]);
    now(0.0, 0.0).await;
    now(95.0, 0.0).await;
    hold_downs_end(&scene).await;
    round(&scene).await;
    assert!(told(&scene).await.is_empty());
    now(0.0, 0.0).await;
    assert_eq!(told(&scene).await, [of_north("cleared", &["lobby"])]);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn of_nodes_that_look_at_once_one_tells(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = begin(pool, database).await;
    for name in ["a", "b", "c"] {
        threshold(&scene, json!({"name": name, "hold_down_seconds": 0})).await;
    }
    let site = devices(&scene, "north", 30).await;
    for (cpu_percent, event) in [(95.0, "crossed"), (0.0, "cleared"), (95.0, "crossed")] {
        report(&scene, &site, cpu_percent).await;
        scene.sql("update thresholds set due_at = now() where id <> $1", Uuid::nil()).await;
        let steps = join_all((0..12).map(|_| step(&scene))).await;
        assert_eq!(steps.iter().flatten().count(), 3, "each rule once");
        let told = told(&scene).await;
        assert_eq!(
            told.iter().map(|(event, _, count, _)| (event.as_str(), *count)).collect::<Vec<_>>(),
            [(event, 30); 3]
        );
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_that_the_rule_is_not_for_any_more_is_clear(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = begin(pool, database).await;
    let id = threshold(&scene, json!({"hold_down_seconds": 0, "selector": "site,!spare"})).await;
    let more = devices(&scene, "north", 3).await;
    let all: Vec<DeviceId> = more.iter().copied().chain([scene.device]).collect();
    report(&scene, &all, 95.0).await;
    round(&scene).await;
    assert_eq!(told(&scene).await[0].2, 4);
    // Revoked, labelled otherwise, and moved: the last one goes on at the site at which it was.
    let revoke = scene.post(&format!("/devices/{}/revoke", more[0])).by(&scene.customer);
    revoke.send().await.expect(StatusCode::OK);
    let labels = |labels| json!({"labels": labels});
    for (device, labels) in
        [(more[1], labels(json!({"site": "north", "spare": "1"}))), (more[2], labels(json!({"site": "south"})))]
    {
        let update =
            scene.patch(&format!("/devices/{device}")).by(&scene.customer).header("if-match", "*").json(labels);
        update.send().await.expect(StatusCode::OK);
    }
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("cleared", &["north1", "north2"])]);
    assert_eq!(alerts(&scene, "").await.len(), 2);
    // So is everything by a rule that is deleted, and then nobody looks at it any more.
    let delete = scene.post(&format!("/thresholds/{id}/delete")).by(&scene.customer);
    delete.send().await.expect(StatusCode::OK);
    assert!(alerts(&scene, "").await.is_empty());
    round(&scene).await;
    let mut cleared = told(&scene).await;
    cleared[0].3.sort();
    assert_eq!(cleared, [of_north("cleared", &["lobby", "north3"])]);
    round(&scene).await;
    assert!(told(&scene).await.is_empty());
    let due: Option<OffsetDateTime> = sqlx::query_scalar("select due_at from thresholds where id = $1")
        .bind(id)
        .fetch_one(&scene.root)
        .await
        .unwrap();
    assert_eq!(due, None);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_device_without_contact_is_one_that_neither_is_linked_nor_polls(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let scene = begin(pool, database).await;
    let rule = json!({"metric": "no_contact_seconds", "value": 600, "clear_value": 0, "hold_down_seconds": 0});
    threshold(&scene, rule).await;
    scene.link(scene.device).await;
    scene.sql("update links set proven_at = now() - interval '20 minutes' where device_id <> $1", Uuid::nil()).await;
    scene.sql("update devices set enrolled_at = now() - interval '1 day' where id <> $1", Uuid::nil()).await;
    round(&scene).await;
    assert!(told(&scene).await.is_empty(), "a live link is contact");
    scene.unlink(scene.device).await;
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("crossed", &["lobby"])]);
    scene.sql("update links set connected_at = now() - interval '2 hours' where device_id <> $1", Uuid::nil()).await;
    scene.poll(scene.device).await;
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("cleared", &["lobby"])]);
    // As soon as it is later than it may be, and not before.
    scene.sql("update polls set polled_at = now() - interval '33 minutes' where device_id <> $1", Uuid::nil()).await;
    round(&scene).await;
    assert!(told(&scene).await.is_empty());
    scene.sql("update polls set silent_at = now() - interval '1 s' where device_id <> $1", Uuid::nil()).await;
    scene.sql("update polls set next_by = silent_at where device_id <> $1", Uuid::nil()).await;
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("crossed", &["lobby"])]);
    scene.link(scene.device).await;
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("cleared", &["lobby"])]);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_report_stops_a_round(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = begin(pool, database).await;
    threshold(&scene, json!({"hold_down_seconds": 0})).await;
    let site = devices(&scene, "north", 6).await;
    report(&scene, &site, 95.0).await;
    let reports = [
        json!({"cpu_percent": "much"}),
        json!({"cpu_percent": null}),
        json!([]),
        json!({"cpu_percent": {"a": 1}}),
        json!("x"),
    ];
    for (device, report) in site.iter().zip(reports) {
        let update = sqlx::query("update device_metrics set report = $2 where device_id = $1");
        update.bind(device.as_uuid()).bind(report).execute(&scene.root).await.unwrap();
    }
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("crossed", &["north6"])]);
}

/// Whatever is wrong with what one rule is about, the others go on, and so does this one when it is mended.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_rule_that_cannot_be_looked_at_holds_up_no_other(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = begin(pool, database).await;
    // Made first, so that it is due first.
    let broken = threshold(&scene, json!({"name": "broken", "metric": "load_1m", "value": 1, "clear_value": 1})).await;
    threshold(&scene, json!({})).await;
    // No device can send that: a number beyond all that the database computes with.
    let report = "insert into device_metrics (device_id, tenant_id, received_at, report)
                  select id, tenant_id, now(), '{\"cpu_percent\": 95, \"load_1m\": 1e400}' from devices where id = $1";
    scene.sql(report, scene.device.as_uuid()).await;
    let failed = step(&scene).await.unwrap();
    assert!(failed.threshold == broken && failed.outcome.is_err(), "{failed:?}");
    assert!(step(&scene).await.unwrap().outcome.is_ok());
    assert!(step(&scene).await.is_none(), "it is put off");
    // Not for an hour, if that is what the clock was set back by.
    scene.sql("update thresholds set due_at = clock_timestamp() + interval '1 h' where id = $1", broken).await;
    assert_eq!(step(&scene).await.unwrap().threshold, broken);
    assert_eq!(told(&scene).await, [of_north("crossed", &["lobby"])]);
    scene.sql("update device_metrics set report = '{\"load_1m\": 2}' where device_id <> $1", Uuid::nil()).await;
    round(&scene).await;
    assert_eq!(told(&scene).await, [of_north("crossed", &["lobby"])]);
}
