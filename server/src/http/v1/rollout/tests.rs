//! Rollouts through the API, with the task's steps taken one by one, and by chance: whatever comes in whatever order, also a node that
//! dies in the middle of a step, the totals add up and nobody is begun twice.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, RolloutId};
use http::StatusCode;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use uuid::Uuid;

use crate::http::problem::Kind;
use crate::http::testing::Scene;
use crate::lifecycle::Shutdown;
use crate::model::new_id;
use crate::model::rollout::BEGUN_MAX;
use crate::store::Visibility;
use crate::store::rollout::rollout_hold;
use crate::tasks::rollout::{look, step};

/// Adds linked devices to the customer's, at `site=north`, and gives a grant for that site.
async fn site(scene: &Scene, devices: usize) -> Uuid {
    scene.link(scene.device).await;
    for number in 1..devices {
        let id = DeviceId::from_uuid(new_id());
        scene.insert_device(id, scene.tenant, &format!("room-{number:02}"), json!({"site": "north"})).await;
        scene.link(id).await;
    }
    scene.grant(json!({"device_ids": null, "selector": {"site": "north"}})).await.as_uuid()
}

fn request(grant: Uuid, changes: Value) -> Value {
    let mut body = json!({"grant_id": grant, "selector": "site=north", "kind": "metrics.collect", "reason": "r"});
    body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    body
}

async fn plan(scene: &Scene, grant: Uuid, changes: Value) -> Value {
    let body = request(grant, changes);
    scene.post("/rollouts").by(&scene.operator).json(body).send().await.expect(StatusCode::CREATED)
}

async fn apply(scene: &Scene, plan: &Value) -> RolloutId {
    let id = plan["id"].as_str().unwrap();
    let path = format!("/rollouts/{id}/apply");
    let applied = scene.post(&path).by(&scene.operator).json(json!({"hash": plan["hash"]})).send().await;
    assert_eq!(applied.expect(StatusCode::OK)["state"], "running");
    id.parse().unwrap()
}

async fn show(scene: &Scene, id: RolloutId) -> Value {
    scene.get(&format!("/rollouts/{id}")).by(&scene.customer).send().await.expect(StatusCode::OK)
}

async fn executions(scene: &Scene, id: &str) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/rollouts/{id}/executions?limit=3{cursor}");
        let page = scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        all.extend(page["items"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { return all };
        cursor = format!("&cursor={next}");
    }
}

/// Ends the commands of the rollout that are under way.
async fn end_all(scene: &Scene, id: RolloutId, state: &str) {
    sqlx::query(
        "update commands c set state = $2, finished_at = clock_timestamp(), deadline_at = null
           from rollout_targets t where t.rollout_id = $1 and c.id = t.command_id and c.finished_at is null",
    )
    .bind(id.as_uuid())
    .bind(state)
    .execute(&scene.root)
    .await
    .unwrap();
}

/// Takes steps until nothing more is begun. Says how many were.
async fn go_on(scene: &Scene, id: RolloutId) -> usize {
    let mut begun = 0;
    loop {
        let Some(stepped) = step(&scene.store, id).await.unwrap() else { return begun };
        if stepped.begun.commands.is_empty() {
            return begun;
        }
        begun += stepped.begun.commands.len();
    }
}

fn counts(shown: &Value) -> Vec<u64> {
    ["waiting", "under_way", "succeeded", "failed", "skipped"]
        .iter()
        .map(|name| shown["totals"][name].as_u64().unwrap())
        .collect()
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_plan_says_of_each_device_why_it_is_in_or_out(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let grant = site(&scene, 3).await;
    let more = async |name: &str, labels: Value| {
        let id = DeviceId::from_uuid(new_id());
        scene.insert_device(id, scene.tenant, name, labels).await;
        id
    };
    more("unlinked", json!({"site": "north"})).await;
    let polling = more("polling", json!({"site": "north"})).await;
    scene.poll(polling).await;
    let tunnel = more("tunnel", json!({"site": "north"})).await;
    scene.tunnel(tunnel).await;
    let revoked = more("revoked", json!({"site": "north"})).await;
    scene.sql("update devices set state = 'revoked', revoked_at = now() where id = $1", revoked.as_uuid()).await;
    let nowhere = more("nowhere", json!({"site": "north", "timezone": "Mars/Base"})).await;
    scene.link(nowhere).await;
    let updated = more("updated", json!({"site": "north"})).await;
    scene.link(updated).await;
    scene.sql("update links set agent = 'agent/2' where device_id = $1", updated.as_uuid()).await;
    let old = more("old", json!({"site": "north"})).await;
    scene.link(old).await;
    scene.sql("update links set capabilities = '{}' where device_id = $1", old.as_uuid()).await;
    more("elsewhere", json!({"site": "south"})).await;

    let window = json!({"from_minute": 0, "to_minute": 1440});
    let changes = json!({"unless_agent": "agent/2", "window": window});
    let planned = plan(&scene, grant, changes).await;
    assert_eq!((&planned["state"], counts(&planned)), (&json!("planned"), vec![3, 0, 0, 0, 0]));
    let expected = json!({"not_linked": 1, "polling": 1, "no_agent": 1, "device_revoked": 1, "time_zone": 1, "version": 1, "not_able": 1});
    assert_eq!(planned["out"], expected);
    let all = executions(&scene, planned["id"].as_str().unwrap()).await;
    assert_eq!(all.iter().map(|one| one["place"].as_u64().unwrap()).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    let why = |name: &str| all.iter().find(|one| one["device_name"] == name).map(|one| one["why"].clone()).unwrap();
    assert_eq!(
        [why("lobby"), why("polling"), why("old"), why("nowhere")],
        [Value::Null, json!("polling"), json!("not_able"), json!("time_zone")]
    );
    // Who may wait need not be linked.
    let waiting = plan(&scene, grant, json!({"queue_for_seconds": 3600})).await;
    assert_eq!(waiting["out"], json!({"device_revoked": 1, "not_able": 1}));
    // What it has said since by a poll counts, and not what the link said that it had before.
    for (agent, why) in [("agent/2", json!("version")), ("agent/3", json!("not_able"))] {
        sqlx::query("update polls set agent = $2, capabilities = '{}' where device_id = $1")
            .bind(polling.as_uuid())
            .bind(agent)
            .execute(&scene.root)
            .await
            .unwrap();
        let planned = plan(&scene, grant, json!({"unless_agent": "agent/2", "queue_for_seconds": 3600})).await;
        let all = executions(&scene, planned["id"].as_str().unwrap()).await;
        let of_polling = all.iter().find(|one| one["device_id"] == polling.to_string()).unwrap();
        assert_eq!(of_polling["why"], why, "{agent}");
    }
    // Whom the grant does not let in, and what it does not allow.
    let others = plan(&scene, grant, json!({"selector": "site=south"})).await;
    assert_eq!((counts(&others)[0], &others["out"]), (0, &json!({"grant": 1})));
    assert_eq!(scene.audited(scene.tenant).await[1..], ["rollout.planned"; 5]);
    let path = format!("/rollouts/{}/apply", others["id"].as_str().unwrap());
    let nobody = scene.post(&path).by(&scene.operator).json(json!({"hash": others["hash"]})).send().await;
    nobody.expect_problem(Kind::Conflict);
    // A test of the link does not wait, here as little as by itself.
    let patient = request(grant, json!({"kind": "link.test", "queue_for_seconds": 60}));
    scene.post("/rollouts").by(&scene.operator).json(patient).send().await.expect_problem(Kind::Unprocessable);

    // Who is not to be disturbed may still be measured.
    let busy = more("busy", json!({"site": "north"})).await;
    scene.link(busy).await;
    let lock = "insert into busy_locks select id, tenant_id, 'a reading', now(), now() + interval '1 hour' from devices where id = $1";
    scene.sql(lock, busy.as_uuid()).await;
    for (kind, why) in [("device.reboot", json!("busy")), ("metrics.collect", Value::Null)] {
        let planned = plan(&scene, grant, json!({ "kind": kind })).await;
        let all = executions(&scene, planned["id"].as_str().unwrap()).await;
        let of_busy = all.iter().find(|one| one["device_id"] == busy.to_string()).unwrap();
        assert_eq!(of_busy["why"], why, "{kind}");
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_plan_is_applied_once_by_who_made_it_and_only_while_it_holds(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let scene = Scene::new(pool, database).await;
    let grant = site(&scene, 2).await;
    let planned = plan(&scene, grant, json!({})).await;
    let path = format!("/rollouts/{}/apply", planned["id"].as_str().unwrap());
    let hash = json!({"hash": planned["hash"]});
    let other = plan(&scene, grant, json!({})).await;
    assert_ne!(planned["hash"], other["hash"], "each plan has its own");
    scene
        .post(&path)
        .by(&scene.operator)
        .json(json!({"hash": other["hash"]}))
        .send()
        .await
        .expect_problem(Kind::PlanMoved);
    scene.post(&path).by(&scene.colleague).json(hash.clone()).send().await.expect_problem(Kind::Conflict);
    // A device goes, one comes, and one cannot be reached any more.
    for change in [
        "update devices set labels = '{}' where id = $1",
        "update links set closed_at = now(), close_reason = 'gone' where device_id = $1",
    ] {
        scene.sql(change, scene.device.as_uuid()).await;
        let problem =
            scene.post(&path).by(&scene.operator).json(hash.clone()).send().await.expect_problem(Kind::PlanMoved);
        assert!(problem["detail"].as_str().unwrap().contains("lobby (in, now not_"), "{problem}");
        scene.sql("update devices set labels = '{\"site\": \"north\"}' where id = $1", scene.device.as_uuid()).await;
        scene.link(scene.device).await;
    }
    apply(&scene, &planned).await;
    scene.post(&path).by(&scene.operator).json(hash).send().await.expect_problem(Kind::Conflict);
    // An old one is not applied, whatever it says.
    scene
        .sql(
            "update rollouts set created_at = now() - interval '2 hours' where id = $1",
            other["id"].as_str().unwrap().parse().unwrap(),
        )
        .await;
    let path = format!("/rollouts/{}/apply", other["id"].as_str().unwrap());
    let late = scene.post(&path).by(&scene.operator).json(json!({"hash": other["hash"]})).send().await;
    late.expect_problem(Kind::PlanMoved);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn as_many_devices_may_drift_as_the_plan_says(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let grant = site(&scene, 3).await;
    assert_eq!(plan(&scene, grant, json!({})).await["drift_max"], 0, "one in a hundred of three");
    let planned = plan(&scene, grant, json!({"drift_max": 1, "canaries": 0})).await;
    let (path, hash) = (format!("/rollouts/{}/apply", planned["id"].as_str().unwrap()), planned["hash"].clone());
    let refused = async |path: &str, hash: &Value| {
        let answer = scene.post(path).by(&scene.operator).json(json!({ "hash": hash })).send().await;
        answer.expect_problem(Kind::PlanMoved)["detail"].as_str().unwrap().to_owned()
    };
    // Two of them, and one that is no matter of links.
    let other: Uuid =
        sqlx::query_scalar("select id from devices where name = 'room-01'").fetch_one(&scene.root).await.unwrap();
    scene.unlink(scene.device).await;
    scene.unlink(DeviceId::from_uuid(other)).await;
    let detail = refused(&path, &hash).await;
    assert!(detail.contains("of 2 only that, where `drift_max` of the plan is 1"), "{detail}");
    assert!(detail.contains("lobby (in, now not_linked), room-01 (in, now not_linked)"), "{detail}");
    scene.link(DeviceId::from_uuid(other)).await;
    scene.sql("update links set capabilities = '{}' where device_id = $1", other).await;
    let detail = refused(&path, &hash).await;
    assert!(
        detail.contains("Of 1 devices more") && detail.contains("The first: room-01 (in, now not_able), lobby"),
        "{detail}"
    );
    scene.link(DeviceId::from_uuid(other)).await;
    // The one that has gone stays in, and is skipped when its turn comes.
    let id = apply(&scene, &planned).await;
    assert_eq!(go_on(&scene, id).await, 2);
    assert_eq!(counts(&show(&scene, id).await), [0, 2, 0, 0, 1]);
    // Its audit entry says how many.
    let drifted: String = sqlx::query_scalar(
        "select entry::jsonb #>> '{details,drifted}' from audit where action = 'rollout.applied' order by seq desc limit 1",
    )
    .fetch_one(&scene.root)
    .await
    .unwrap();
    assert_eq!(drifted, "1");
    // One that was out and has come back stays out.
    let planned = plan(&scene, grant, json!({"drift_max": 1, "canaries": 0})).await;
    assert_eq!(counts(&planned)[0], 2);
    scene.link(scene.device).await;
    let id = apply(&scene, &planned).await;
    assert_eq!(go_on(&scene, id).await, 2);
    assert_eq!(counts(&show(&scene, id).await), [0, 2, 0, 0, 0]);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_tenant_has_as_many_at_once_as_may_be(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let grant = site(&scene, 1).await;
    let (first, last) = (plan(&scene, grant, json!({})).await, plan(&scene, grant, json!({})).await);
    let first = apply(&scene, &first).await;
    // The others are its copies.
    sqlx::query(
        "insert into rollouts select (jsonb_populate_record(r, jsonb_build_object('id', gen_random_uuid()))).*
           from rollouts r, generate_series(2, $2) where r.id = $1",
    )
    .bind(first.as_uuid())
    .bind(i32::try_from(BEGUN_MAX).unwrap())
    .execute(&scene.root)
    .await
    .unwrap();
    let path = format!("/rollouts/{}/apply", last["id"].as_str().unwrap());
    let refused = scene.post(&path).by(&scene.operator).json(json!({"hash": last["hash"]})).send().await;
    refused.expect_problem(Kind::TooManyRollouts);
    assert_eq!(scene.audited(scene.tenant).await.last().unwrap(), "rollout.applied");
    scene.post(&format!("/rollouts/{first}/cancel")).by(&scene.operator).send().await.expect(StatusCode::OK);
    assert_eq!(go_on(&scene, first).await, 0);
    apply(&scene, &last).await;
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn nobody_plans_under_a_grant_that_names_others(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let theirs = json!({"operator_ids": [scene.colleague.id.as_uuid()]});
    let grant = scene.grant(theirs).await.as_uuid();
    let before = scene.audited(scene.tenant).await;
    let unknown = scene.post("/rollouts").by(&scene.operator).json(request(new_id(), json!({}))).send().await;
    let unknown = unknown.expect_problem(Kind::NotFound);
    let refused = scene.post("/rollouts").by(&scene.operator).json(request(grant, json!({}))).send().await;
    assert_eq!(refused.expect_problem(Kind::NotFound)["detail"], unknown["detail"]);
    assert_eq!(scene.audited(scene.tenant).await, before);
    let planned = scene.post("/rollouts").by(&scene.colleague).json(request(grant, json!({}))).send().await;
    planned.expect(StatusCode::CREATED);
}

/// How often the task has taken the rollout up in this look, and not passed it by.
async fn looked_at(scene: &Scene) -> usize {
    // It is due, as far as the task can tell.
    sqlx::query(
        "update rollouts set look_at = 'epoch', seen_look_at = case when seen_look_at = look_at then 'epoch'::timestamptz end
          where look_at is not null",
    )
        .execute(&scene.root)
        .await
        .unwrap();
    let steps = Cell::new(0);
    assert_eq!(look(&scene.store, &Shutdown::new(), |_| steps.set(steps.get() + 1)).await.unwrap(), 0);
    steps.get()
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn one_in_which_nothing_has_moved_is_passed_by(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let grant = site(&scene, 5).await;
    let id = apply(&scene, &plan(&scene, grant, json!({"canaries": 0, "batch": 2, "abort_after": 5})).await).await;
    let end_one = "update commands set state = 'failed', finished_at = now(), deadline_at = null where id = (
                       select c.id from commands c join rollout_targets t on t.command_id = c.id
                        where t.rollout_id = $1 and c.finished_at is null limit 1)";
    assert!(looked_at(&scene).await > 0, "it has just begun");
    looked_at(&scene).await;
    assert_eq!((looked_at(&scene).await, looked_at(&scene).await), (0, 0));
    // Another command under the same grant is none of its.
    let body = json!({"kind": "metrics.collect", "reason": "r", "grant_id": grant});
    scene
        .post(&format!("/devices/{}/commands", scene.device))
        .by(&scene.operator)
        .json(body)
        .send()
        .await
        .expect(StatusCode::CREATED);
    assert_eq!(looked_at(&scene).await, 0);
    // Each that ends is seen, and when all of them have, others are begun.
    scene.sql(end_one, id.as_uuid()).await;
    assert_eq!((looked_at(&scene).await, looked_at(&scene).await), (1, 0));
    scene.sql(end_one, id.as_uuid()).await;
    assert!(looked_at(&scene).await > 0);
    assert_eq!(counts(&show(&scene, id).await), [1, 2, 0, 2, 0]);
    looked_at(&scene).await;
    assert_eq!(looked_at(&scene).await, 0);
    // The database's clock was set back since.
    scene.sql("update rollouts set look_at = clock_timestamp() + interval '1 h' where id = $1", id.as_uuid()).await;
    let steps = Cell::new(0);
    look(&scene.store, &Shutdown::new(), |_| steps.set(steps.get() + 1)).await.unwrap();
    assert_eq!(steps.get(), 1, "it does not wait for an hour");
    // A node of the version before has taken it on: it tells nothing of what it has seen.
    scene.sql("update rollouts set look_at = look_at + interval '1 ms' where id = $1", id.as_uuid()).await;
    assert_eq!((looked_at(&scene).await, looked_at(&scene).await), (1, 0));
    // Its time is up.
    scene
        .sql("update rollouts set ends_at = clock_timestamp(), act_at = clock_timestamp() where id = $1", id.as_uuid())
        .await;
    assert_eq!(looked_at(&scene).await, 1);
    assert_eq!(show(&scene, id).await["state"], "expiring");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_command_outlives_its_rollout_however_long_the_node_had_to_wait(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let scene = Scene::new(pool, database).await;
    let grant = site(&scene, 2).await;
    scene.sql("update grants set ends_at = now() + interval '20 days' where id = $1", grant).await;
    let patient = json!({"canaries": 0, "lasts_seconds": 3600, "queue_for_seconds": 7200});
    let id = apply(&scene, &plan(&scene, grant, patient).await).await;
    // Somebody else has the grant for a second.
    let mut other = scene.root.begin().await.unwrap();
    sqlx::query("select from grants where id = $1 for update").bind(grant).execute(&mut *other).await.unwrap();
    let release = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        other.commit().await.unwrap();
    };
    let (stepped, ()) = tokio::join!(step(&scene.store, id), release);
    assert_eq!(stepped.unwrap().unwrap().begun.commands.len(), 2);
    let ends: Vec<(bool, bool)> = sqlx::query_as(
        "select c.expires_at = r.ends_at, c.deadline_at = r.ends_at
           from rollouts r join rollout_targets t on t.rollout_id = r.id join commands c on c.id = t.command_id",
    )
    .fetch_all(&scene.root)
    .await
    .unwrap();
    assert_eq!(ends, [(true, true); 2]);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn canaries_come_first_then_batches_and_the_end_is_told(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let grant = site(&scene, 6).await;
    let id = apply(&scene, &plan(&scene, grant, json!({"batch": 3})).await).await;
    assert_eq!(go_on(&scene, id).await, 1);
    assert_eq!(go_on(&scene, id).await, 0, "the canary has not ended");
    end_all(&scene, id, "succeeded").await;
    assert_eq!(go_on(&scene, id).await, 3);
    end_all(&scene, id, "succeeded").await;
    assert_eq!(go_on(&scene, id).await, 2);
    assert_eq!(counts(&show(&scene, id).await), [0, 2, 4, 0, 0]);
    end_all(&scene, id, "succeeded").await;
    assert_eq!(go_on(&scene, id).await, 0);
    let shown = show(&scene, id).await;
    assert_eq!((&shown["state"], counts(&shown)), (&json!("finished"), vec![0, 0, 6, 0, 0]));
    // Every command has its entry, and the rollout its own.
    let audited = scene.audited(scene.tenant).await;
    let made = audited.iter().filter(|action| *action == "command.created").count();
    assert_eq!((made, audited.last().unwrap().as_str()), (6, "rollout.finished"));
    scene.get(&format!("/rollouts/{id}")).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_fails_halts_it_and_holds_back_what_is_queued(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let grant = site(&scene, 5).await;
    let id = apply(&scene, &plan(&scene, grant, json!({"canaries": 0, "batch": 3})).await).await;
    assert_eq!(go_on(&scene, id).await, 3);
    let fail_one = "update commands set state = 'failed', finished_at = now(), deadline_at = null
                     where id = (select command_id from rollout_targets where rollout_id = $1 and place = 0)";
    scene.sql(fail_one, id.as_uuid()).await;
    assert_eq!(go_on(&scene, id).await, 0);
    let shown = show(&scene, id).await;
    assert_eq!((&shown["state"], counts(&shown)), (&json!("halted"), vec![2, 0, 0, 1, 2]));
    scene.post(&format!("/rollouts/{id}/pause")).by(&scene.operator).send().await.expect_problem(Kind::Conflict);
    scene.post(&format!("/rollouts/{id}/resume")).by(&scene.customer).send().await.expect_problem(Kind::Forbidden);
    scene.post(&format!("/rollouts/{id}/resume")).by(&scene.colleague).send().await.expect_problem(Kind::Conflict);
    scene.post(&format!("/rollouts/{id}/resume")).by(&scene.operator).send().await.expect(StatusCode::OK);
    assert_eq!(go_on(&scene, id).await, 2);
    let cancelled =
        scene.post(&format!("/rollouts/{id}/cancel")).by(&scene.customer).send().await.expect(StatusCode::OK);
    assert_eq!((&cancelled["state"], counts(&cancelled)), (&json!("cancelling"), vec![0, 0, 0, 1, 4]));
    assert_eq!(go_on(&scene, id).await, 0);
    assert_eq!(show(&scene, id).await["state"], "cancelled");
    scene.post(&format!("/rollouts/{id}/resume")).by(&scene.operator).send().await.expect_problem(Kind::Conflict);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn one_that_cannot_go_on_keeps_no_other_from_its_turn(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let grant = site(&scene, 1).await;
    let unknown = apply(&scene, &plan(&scene, grant, json!({})).await).await;
    let known = apply(&scene, &plan(&scene, grant, json!({})).await).await;
    // A newer version has made it, and its turn comes first.
    let make = "update rollouts set kind = 'of.tomorrow', look_at = now() - interval '1 day' where id = $1";
    scene.sql(make, unknown.as_uuid()).await;
    let begun = Cell::new(0);
    let look =
        async || look(&scene.store, &Shutdown::new(), |step| begun.set(begun.get() + step.begun.commands.len())).await;
    assert_eq!((look().await.unwrap(), begun.get()), (1, 1));
    assert_eq!(counts(&show(&scene, known).await), [0, 1, 0, 0, 0]);
    assert_eq!(counts(&show(&scene, unknown).await), [1, 0, 0, 0, 0]);
    assert_eq!(look().await.unwrap(), 0, "it is put off");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn without_a_grant_there_is_no_command(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let grant = site(&scene, 3).await;
    let id = apply(&scene, &plan(&scene, grant, json!({"canaries": 0})).await).await;
    scene.post(&format!("/grants/{grant}/revoke")).by(&scene.customer).send().await.expect(StatusCode::OK);
    assert_eq!(go_on(&scene, id).await, 0);
    assert_eq!(go_on(&scene, id).await, 0);
    let shown = show(&scene, id).await;
    assert_eq!((&shown["state"], counts(&shown)), (&json!("finished"), vec![0, 0, 0, 0, 3]));
    let all = executions(&scene, &id.to_string()).await;
    assert!(all.iter().all(|one| one["why"] == "grant" && one["command_id"].is_null()), "{all:?}");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn nothing_is_begun_outside_of_the_window_of_the_device(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let windows = |at: &'static str, zone: &'static str| {
        let root = scene.root.clone();
        async move {
            // 22:00 to 05:00, Monday to Friday.
            let row: (Option<String>, Option<String>) = sqlx::query_as(
                "select to_char(opens_at at time zone 'UTC', 'MM-DD HH24:MI'), to_char(closes_at at time zone 'UTC', 'MM-DD HH24:MI')
                   from window_next('{1,2,3,4,5}', 1320, 300, $1, $2::text::timestamptz)",
            )
            .bind(zone)
            .bind(at)
            .fetch_one(&root)
            .await
            .unwrap();
            (row.0.unwrap_or_default(), row.1.unwrap_or_default())
        }
    };
    let pair = |opens: &str, closes: &str| (opens.to_owned(), closes.to_owned());
    // A Tuesday; a Saturday before five, which is Friday's night, and after.
    assert_eq!(windows("2026-11-24 12:00Z", "Europe/Berlin").await, pair("11-24 21:00", "11-25 04:00"));
    assert_eq!(windows("2026-11-24 12:00Z", "America/New_York").await, pair("11-25 03:00", "11-25 10:00"));
    assert_eq!(windows("2026-11-28 03:00Z", "Europe/Berlin").await, pair("11-28 03:00", "11-28 04:00"));
    assert_eq!(windows("2026-11-28 04:00Z", "Europe/Berlin").await, pair("11-30 21:00", "12-01 04:00"));
    // In summer, by the same clocks.
    assert_eq!(windows("2026-07-07 12:00Z", "Europe/Berlin").await, pair("07-07 20:00", "07-08 03:00"));
    assert_eq!(windows("2026-07-07 12:00Z", "Mars/Base").await, pair("", ""));
    // In the night in which the clocks go from two to three, a Sunday.
    let skipped = |from: i32, to: i32| {
        let root = scene.root.clone();
        async move {
            let (opens, closes): (String, String) = sqlx::query_as(
                "select to_char(opens_at at time zone 'UTC', 'MM-DD HH24:MI'), to_char(closes_at at time zone 'UTC', 'MM-DD HH24:MI')
                   from window_next('{7}', $1, $2, 'Europe/Berlin', '2026-03-28 12:00Z')",
            )
            .bind(from)
            .bind(to)
            .fetch_one(&root)
            .await
            .unwrap();
            (opens, closes)
        }
    };
    assert_eq!(skipped(60, 240).await, pair("03-29 00:00", "03-29 02:00"));
    assert_eq!(skipped(60, 150).await, pair("03-29 00:00", "03-29 01:00"), "until the hour that is not");
    assert_eq!(skipped(150, 195).await, pair("03-29 01:00", "03-29 01:15"), "from the end of it");
    assert_eq!(skipped(130, 170).await, pair("04-05 00:10", "04-05 00:50"), "a week later");
    assert_eq!(skipped(150, 180).await, pair("04-05 00:30", "04-05 01:00"), "a week later");

    let grant = site(&scene, 2).await;
    // Three days from now, also if it is tomorrow by then.
    let day: i32 = sqlx::query_scalar("select extract(isodow from clock_timestamp() at time zone 'UTC')::integer")
        .fetch_one(&scene.root)
        .await
        .unwrap();
    let elsewhere = (day + 2) % 7 + 1;
    let window = json!({"days": [elsewhere], "from_minute": 0, "to_minute": 1440});
    let never = plan(&scene, grant, json!({"window": window, "lasts_seconds": 3600})).await;
    assert_eq!((counts(&never)[0], &never["out"]), (0, &json!({"window": 2})), "not within an hour");
    scene.sql("update grants set ends_at = now() + interval '20 days' where id = $1", grant).await;
    let later = plan(&scene, grant, json!({"window": window, "lasts_seconds": 864_000, "canaries": 0})).await;
    let id = apply(&scene, &later).await;
    assert_eq!(go_on(&scene, id).await, 0);
    let shown = show(&scene, id).await;
    assert_eq!((&shown["state"], counts(&shown)), (&json!("running"), vec![2, 0, 0, 0, 0]));
    scene.sql("update rollouts set window_days = '{1,2,3,4,5,6,7}' where id = $1", id.as_uuid()).await;
    assert_eq!(go_on(&scene, id).await, 2);
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Step,
    /// By the task itself, which passes by what has not moved.
    Look,
    /// A result comes while a node decides, and another node would decide as well.
    StepMeanwhile(usize, &'static str),
    /// The node dies before it has committed.
    LostStep,
    End(usize, &'static str),
    Pause,
    Resume,
    Cancel,
    /// Its time is up.
    Expire,
    /// The device's link is gone when its turn comes.
    Unlink(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let state = prop_oneof![
        6 => Just("succeeded"),
        1 => Just("failed"),
        1 => Just("refused"),
        1 => Just("unconfirmed"),
        1 => Just("expired"),
        1 => Just("cancelled"),
    ];
    let result = (0..9usize, state);
    prop_oneof![
        4 => Just(Act::Step),
        4 => Just(Act::Look),
        2 => result.clone().prop_map(|(place, state)| Act::StepMeanwhile(place, state)),
        2 => Just(Act::LostStep),
        12 => result.prop_map(|(place, state)| Act::End(place, state)),
        2 => Just(Act::Pause),
        3 => Just(Act::Resume),
        1 => Just(Act::Cancel),
        1 => Just(Act::Expire),
        1 => (0..9usize).prop_map(Act::Unlink),
    ]
}

/// Ends the command of the device at this place, if it has one that has not ended.
async fn end(scene: &Scene, id: RolloutId, place: usize, state: &str) {
    sqlx::query(
        "update commands set state = $3, finished_at = clock_timestamp(), deadline_at = null
          where finished_at is null and id = (select command_id from rollout_targets where rollout_id = $1 and place = $2)",
    )
    .bind(id.as_uuid())
    .bind(i32::try_from(place).unwrap())
    .bind(state)
    .execute(&scene.root)
    .await
    .unwrap();
}

async fn act_on(scene: &Scene, id: RolloutId, act: Act) {
    let change = async |what: &str| {
        let answer = scene.post(&format!("/rollouts/{id}/{what}")).by(&scene.operator).send().await;
        assert!([StatusCode::OK, StatusCode::CONFLICT].contains(&answer.status), "{}", answer.text);
    };
    match act {
        Act::Step => drop(step(&scene.store, id).await.unwrap()),
        Act::Look => drop(looked_at(scene).await),
        Act::StepMeanwhile(place, state) => {
            let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
            let Some(mut held) = rollout_hold(&mut transaction, id, false).await.unwrap() else { return };
            let begun = held.step_in_txn(&mut transaction).await.unwrap();
            end(scene, id, place, state).await;
            assert!(step(&scene.store, id).await.unwrap().is_none(), "two nodes decide at once");
            held.store_in_txn(&mut transaction, begun.again_at, &json!({})).await.unwrap();
            scene.store.commit(transaction).await.unwrap();
        }
        Act::LostStep => {
            let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
            if let Some(mut held) = rollout_hold(&mut transaction, id, false).await.unwrap() {
                let begun = held.step_in_txn(&mut transaction).await.unwrap();
                held.store_in_txn(&mut transaction, begun.again_at, &json!({})).await.unwrap();
            }
        }
        Act::End(place, state) => end(scene, id, place, state).await,
        Act::Pause => change("pause").await,
        Act::Resume => change("resume").await,
        Act::Cancel => change("cancel").await,
        Act::Expire => {
            let now = "update rollouts set ends_at = clock_timestamp(), act_at = clock_timestamp() where id = $1 and finished_at is null";
            scene.sql(now, id.as_uuid()).await;
        }
        Act::Unlink(place) => {
            sqlx::query(
                "update links set closed_at = clock_timestamp(), close_reason = 'gone' where closed_at is null
                    and device_id = (select device_id from rollout_targets where rollout_id = $1 and place = $2)",
            )
            .bind(id.as_uuid())
            .bind(i32::try_from(place).unwrap())
            .execute(&scene.root)
            .await
            .unwrap();
        }
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_totals_add_up_whatever_comes_in_whatever_order(pool: PgPoolOptions, database: PgConnectOptions) {
    const DEVICES: usize = 9;
    const BATCH: usize = 3;
    let scene = Scene::new(pool, database).await;
    let grant = site(&scene, DEVICES).await;
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..12 {
        sqlx::query("update links set closed_at = null, close_reason = null").execute(&scene.root).await.unwrap();
        let acts = prop::collection::vec(act(), 0..32).new_tree(&mut runner).unwrap().current();
        let changes = json!({"canaries": 1, "batch": BATCH, "abort_after": 3});
        let id = apply(&scene, &plan(&scene, grant, changes).await).await;
        let mut begun: BTreeSet<Uuid> = BTreeSet::new();
        for (number, act) in acts.iter().enumerate() {
            let before = show(&scene, id).await;
            act_on(&scene, id, *act).await;
            let shown = show(&scene, id).await;
            let said = || format!("{number} of {acts:?}: {shown}");
            assert_eq!(counts(&shown).iter().sum::<u64>(), DEVICES as u64, "{}", said());
            assert!(counts(&shown)[1] <= BATCH as u64, "more than a batch: {}", said());
            for (was, is) in counts(&before)[2..].iter().zip(&counts(&shown)[2..]) {
                assert!(was <= is, "what had ended has changed: {}", said());
            }
            let commands: Vec<Uuid> = sqlx::query_scalar(
                "select command_id from rollout_targets where rollout_id = $1 and command_id is not null",
            )
            .bind(id.as_uuid())
            .fetch_all(&scene.root)
            .await
            .unwrap();
            let commands = BTreeSet::from_iter(commands);
            assert!(begun.is_subset(&commands), "a command is lost: {}", said());
            let may_begin =
                before["state"] == "running" && matches!(act, Act::Step | Act::Look | Act::StepMeanwhile(..));
            assert!(may_begin || begun == commands, "begun while it must not: {}", said());
            begun = commands;
        }
        // It ends, and then every command there is belongs to one of its devices, and the other way round.
        for _ in 0..4 * DEVICES {
            act_on(&scene, id, Act::Resume).await;
            end_all(&scene, id, "succeeded").await;
            looked_at(&scene).await;
        }
        let shown = show(&scene, id).await;
        assert!(["finished", "cancelled", "expired"].contains(&shown["state"].as_str().unwrap()), "{acts:?}: {shown}");
        assert_eq!(counts(&shown)[..2], [0, 0], "{acts:?}: {shown}");
        let orphans: i64 = sqlx::query_scalar(
            "select count(*) from commands c where not exists (select from rollout_targets t where t.command_id = c.id)",
        )
        .fetch_one(&scene.root)
        .await
        .unwrap();
        assert_eq!(orphans, 0, "{acts:?}");
    }
}
