use futures_util::future::{join, join_all};
use http::StatusCode;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::time::timeout;

use super::*;
use crate::http::testing::Scene;
use crate::model::new_id;

async fn scene(pool: PgPoolOptions, database: PgConnectOptions) -> Scene {
    let scene = Scene::new(pool, database).await;
    scene.tunnel(scene.device).await;
    scene
}

async fn grant(scene: &Scene) -> GrantId {
    scene.grant(json!({"scopes": ["tcp:open"]})).await
}

async fn due(scene: &Scene) -> Vec<DueOpening> {
    let mut due = opening_list_due(&mut scene.store.connection().await.unwrap(), "node-1").await.unwrap();
    due.sort_by_key(|due| due.port);
    due
}

async fn sweep(scene: &Scene) -> usize {
    opening_sweep(&mut scene.store.connection().await.unwrap()).await.unwrap().len()
}

/// What has ended, in the order of the ports.
async fn ends(scene: &Scene) -> Vec<Option<String>> {
    sqlx::query_scalar("select end_reason from openings order by port, id").fetch_all(&scene.root).await.unwrap()
}

fn seconds_left(opening: &DueOpening) -> f64 {
    opening.until.saturating_duration_since(Instant::now()).as_secs_f64()
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_node_is_told_each_port_of_its_own_tunnels_until_its_last_opening_ends(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let scene = scene(pool, database).await;
    grant(&scene).await;
    assert!(due(&scene).await.is_empty());
    for (port, seconds) in [(22, 60), (22, 600), (80, 30), (443, 5)] {
        scene.opening(json!({"port": port, "seconds": seconds})).await;
    }
    let listed = due(&scene).await;
    let ports: Vec<_> = listed.iter().map(|due| (due.port, due.news.len())).collect();
    assert_eq!(ports, [(22, 2), (80, 1), (443, 1)]);
    for (due, seconds) in listed.iter().zip([600.0, 30.0, 5.0]) {
        assert!(seconds_left(due) <= seconds && seconds_left(due) > seconds - 3.0, "{due:?}");
        assert_eq!((due.device, due.ipv4), (scene.device, Ipv4Addr::new(100, 64, 0, 2)));
    }
    let news: Vec<_> = listed.into_iter().flat_map(|due| due.news).collect();
    opening_opened(&mut scene.store.connection().await.unwrap(), &news).await.unwrap();
    assert!(due(&scene).await.iter().all(|due| due.news.is_empty()));

    let other = opening_list_due(&mut scene.store.connection().await.unwrap(), "node-2").await.unwrap();
    assert!(other.is_empty(), "another node's tunnel");
    scene.unlink(scene.device).await;
    assert!(due(&scene).await.is_empty(), "no tunnel");
    scene.tunnel(scene.device).await;
    assert_eq!(due(&scene).await.len(), 3, "it came back");
    scene.link(scene.device).await;
    assert!(due(&scene).await.is_empty(), "a WebSocket has no IP path");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn whatever_ends_an_opening_it_is_not_due_any_more_and_is_swept(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = scene(pool, database).await;
    for (statement, id, reason) in [
        ("update openings set expires_at = clock_timestamp() where $1 is not null", scene.device.as_uuid(), "expired"),
        (
            "update grants set revoked_at = now(), revoked_by = $1 where revoked_at is null",
            scene.customer.id.as_uuid(),
            "grant_revoked",
        ),
        (
            "update grants set starts_at = now() - interval '2 s', ends_at = clock_timestamp() where $1 is not null",
            scene.device.as_uuid(),
            "expired",
        ),
        ("update people set active = false where id = $1", scene.operator.id.as_uuid(), "operator_shut_out"),
        (
            "update devices set quarantined_at = now(), quarantine_reason = 'r' where id = $1",
            scene.device.as_uuid(),
            "quarantined",
        ),
        (
            "update devices set state = 'revoked', revoked_at = now() where id = $1",
            scene.device.as_uuid(),
            "device_revoked",
        ),
    ] {
        scene.sql("update people set active = true where id = $1", scene.operator.id.as_uuid()).await;
        let sane = "update devices set quarantined_at = null, quarantine_reason = null where id = $1";
        scene.sql(sane, scene.device.as_uuid()).await;
        grant(&scene).await;
        let opening = scene.opening(json!({})).await;
        assert_eq!((due(&scene).await.len(), sweep(&scene).await), (1, 0), "{reason}");
        scene.sql(statement, id).await;
        assert_eq!((due(&scene).await.len(), sweep(&scene).await, sweep(&scene).await), (0, 1, 0), "{reason}");
        let shown = scene.get(&format!("/openings/{opening}")).by(&scene.admin).send().await.expect(StatusCode::OK);
        assert_eq!((&shown["state"], &shown["end_reason"]), (&json!("ended"), &json!(reason)));
        assert!(shown["ended_at"].as_str() <= shown["expires_at"].as_str(), "{shown}");
    }
    let audited = scene.audited(scene.tenant).await;
    assert_eq!(audited.iter().filter(|action| *action == "opening.closed").count(), 6);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_has_ended_stays_so(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = scene(pool, database).await;
    grant(&scene).await;
    let opening = scene.opening(json!({})).await;
    scene.post(&format!("/openings/{opening}/close")).by(&scene.operator).send().await.expect(StatusCode::OK);
    let again = sqlx::query("update openings set ended_at = null, end_reason = null").execute(&scene.root).await;
    assert!(StoreError::from(again.unwrap_err()).constraint() == Some("opening_end_is_final"));
}

/// No role of the server makes one by itself, and a tenant only ends them.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn an_opening_is_made_by_the_one_function_only(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = scene(pool, database).await;
    grant(&scene).await;
    scene.opening(json!({})).await;
    for visibility in [crate::store::Visibility::All, crate::store::Visibility::Tenant(scene.tenant)] {
        for statement in ["insert into openings select * from openings", "delete from openings", "truncate openings"] {
            let mut transaction = scene.store.begin(visibility).await.unwrap();
            let error = sqlx::raw_sql(statement).execute(&mut *transaction).await.unwrap_err();
            assert_eq!(
                error.as_database_error().and_then(|error| error.code()).as_deref(),
                Some("42501"),
                "{statement}"
            );
        }
    }
    for statement in [
        "update openings set expires_at = expires_at + interval '1 hour'",
        "select opening_create(null, null, null, null, null, null, null, null)",
    ] {
        let mut transaction = scene.store.begin(crate::store::Visibility::Tenant(scene.tenant)).await.unwrap();
        let error = sqlx::raw_sql(statement).execute(&mut *transaction).await.unwrap_err();
        assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("42501"), "{statement}");
    }
}

/// The revocation comes second: it waits for the opening, and finds it.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn an_opening_that_is_made_while_its_grant_is_revoked_is_ended_with_it(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let scene = scene(pool, database).await;
    let grant = grant(&scene).await;
    let mut creator = scene.store.begin(crate::store::Visibility::All).await.unwrap();
    let made: i64 = sqlx::query_scalar(
        "select count(*) from opening_create(gen_random_uuid(), $1, $2, null, 22, 'r', interval '1 hour', 16)",
    )
    .bind(scene.operator.id.as_uuid())
    .bind(scene.device.as_uuid())
    .fetch_one(&mut *creator)
    .await
    .unwrap();
    assert_eq!(made, 1);
    let revoke = async {
        scene.post(&format!("/grants/{grant}/revoke")).by(&scene.customer).send().await.expect(StatusCode::OK)
    };
    tokio::pin!(revoke);
    assert!(timeout(Duration::from_millis(300), &mut revoke).await.is_err(), "it did not wait");
    creator.commit().await.unwrap();
    revoke.await;
    assert_eq!(ends(&scene).await, [Some("grant_revoked".to_owned())]);
}

/// The revocation comes first: the opening waits for it, and is not made.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_opening_is_made_under_a_grant_that_is_being_revoked(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = scene(pool, database).await;
    let grant = grant(&scene).await;
    let mut revoker = scene.store.begin(crate::store::Visibility::Tenant(scene.tenant)).await.unwrap();
    crate::store::grant::grant_lock(&mut revoker, grant).await.unwrap();
    crate::store::grant::grant_revoke_in_txn(&mut revoker, grant, scene.customer.id).await.unwrap();
    let path = format!("/devices/{}/openings", scene.device);
    let create = scene.post(&path).by(&scene.operator).json(json!({"port": 22, "reason": "r"})).send();
    tokio::pin!(create);
    assert!(timeout(Duration::from_millis(300), &mut create).await.is_err(), "it did not wait");
    revoker.commit().await.unwrap();
    assert_eq!(create.await.status, StatusCode::FORBIDDEN);
    assert!(ends(&scene).await.is_empty());
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn whatever_comes_first_nothing_stays_open_under_what_was_ended(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = scene(pool, database).await;
    let (mut made, mut refused) = (0, 0);
    for round in 0..9 {
        let device = DeviceId::from_uuid(new_id());
        scene.insert_device(device, scene.tenant, &format!("device {round}"), json!({})).await;
        scene.tunnel(device).await;
        let grant = scene.grant(json!({"scopes": ["tcp:open"], "device_ids": [device.to_string()]})).await;
        let path = format!("/devices/{device}/openings");
        let openings = join_all(
            (1..=8).map(|port| scene.post(&path).by(&scene.operator).json(json!({"port": port, "reason": "r"})).send()),
        );
        let ending = async {
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            match round % 3 {
                0 => scene.post(&format!("/grants/{grant}/revoke")).by(&scene.customer).send().await,
                1 => scene.post(&format!("/devices/{device}/revoke")).by(&scene.customer).send().await,
                _ => {
                    let path = format!("/people/{}", scene.operator.id);
                    scene.patch(&path).by(&scene.admin).json(json!({"active": false})).send().await
                }
            }
        };
        let (ended, answers) = join(ending, openings).await;
        ended.expect(StatusCode::OK);
        made += answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count();
        refused += answers.iter().filter(|answer| answer.status.is_client_error()).count();
        assert!(answers.iter().all(|answer| !answer.status.is_server_error()), "{answers:?}");
        assert!(ends(&scene).await.iter().all(Option::is_some), "round {round}");
        scene.sql("update people set active = true where id = $1", scene.operator.id.as_uuid()).await;
    }
    assert!(made > 0 && refused > 0, "the two never met: {made} made, {refused} refused");
}
