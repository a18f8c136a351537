//! What the database itself holds against a server with faults: the rights of its roles, and the rows that they see.

use std::sync::atomic::{AtomicUsize, Ordering};

use cloudlink_proto::ids::DeviceId;
use futures_util::future::{join, join_all};
use http::StatusCode;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Row};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::*;
use crate::http::testing::Scene;

mod choice;
mod wall;

/// Tables that hold a tenant's rows: all with a tenant_id, and the tenants themselves.
async fn tables_of_tenants(scene: &Scene) -> Vec<(String, &'static str)> {
    let mut tables: Vec<(String, &str)> = sqlx::query_scalar(
        "select c.relname::text from pg_class c join pg_attribute a on a.attrelid = c.oid
          where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.attname = 'tenant_id'
            and not a.attisdropped and not c.relispartition order by 1",
    )
    .fetch_all(&scene.root)
    .await
    .unwrap()
    .into_iter()
    .map(|table| (table, "tenant_id"))
    .collect();
    assert!(tables.len() >= 11, "{tables:?}");
    tables.push(("tenants".to_owned(), "id"));
    tables
}

/// Rows of both tenants in every table that has a tenant_id.
/// What comes of a tenant's letting somebody in, for the device $1.
const SUPPORT: [&str; 21] = [
    "insert into signing_keys (id, tenant_id, name, algorithm, public_key, created_by)
     select gen_random_uuid(), g.tenant_id, 'key', 'ed25519', sha256(d.id::text::bytea), g.created_by
       from devices d join grants g on g.tenant_id = d.tenant_id where d.id = $1 limit 1",
    "insert into access_requests (id, tenant_id, requested_by, scopes, device_ids, reason, answer_by, access_until, approvals_needed)
     select d.id, d.tenant_id, g.created_by, '{shell:open}', array[d.id], 'r', now() + '1 hour', now() + '2 hours', 1
       from devices d join grants g on g.tenant_id = d.tenant_id where d.id = $1 limit 1",
    "insert into access_decisions (request_id, tenant_id, person_id, decision)
     select id, tenant_id, requested_by, 'deny' from access_requests where id = $1",
    "insert into access_policies (id, tenant_id, name, scopes, days, from_minute, to_minute, time_zone, max_seconds, created_by)
     select id, tenant_id, 'p', '{shell:open}', '{1}', 0, 60, 'UTC', 60, requested_by from access_requests where id = $1",
    "insert into support_sessions (id, tenant_id, device_id, grant_id, opened_by, kind, target, reason, node, expires_at)
     select d.id, d.tenant_id, d.id, g.id, g.created_by, 'terminal', '{}', 'r', 'node', now()
       from devices d join grants g on g.tenant_id = d.tenant_id where d.id = $1 limit 1",
    "insert into support_guests (id, session_id, tenant_id, person_id)
     select gen_random_uuid(), id, tenant_id, opened_by from support_sessions where id = $1",
    "insert into recordings (session_id, tenant_id, format) select id, tenant_id, 'asciicast-v2' from support_sessions where id = $1",
    "insert into recording_chunks (session_id, tenant_id, seq, sealed) select session_id, tenant_id, 0, '' from recordings where session_id = $1",
    "insert into receipts (grant_id, tenant_id, statement) select grant_id, tenant_id, 's' from support_sessions where id = $1",
    "insert into webhooks (id, tenant_id, url, events, secret_sealed, created_by)
     select id, tenant_id, 'https://example.com/', '{grant.created}', sha256(''), opened_by from support_sessions where id = $1",
    "insert into device_groups (id, tenant_id, name, selector, created_by)
     select id, tenant_id, 'g', '{\"site\": \"north\"}', created_by from webhooks where id = $1",
    "insert into rollouts (id, tenant_id, grant_id, requested_by, actor, kind, arguments, scope, by_polling, disturbs, reason, selector_text, selector,
                           canaries, batch, rate, abort_after, start_within_seconds, may_queue, lasts_seconds)
     select s.id, s.tenant_id, s.grant_id, s.opened_by, '{}', 'device.reboot', '{}', 'device:reboot', false, true, 'r', 'site=north',
            '{\"site\": \"north\"}', 1, 1, 1, 1, 1, true, 60 from support_sessions s where s.id = $1",
    "insert into rollout_targets (rollout_id, tenant_id, device_id, place) select id, tenant_id, id, 0 from rollouts where id = $1",
    "insert into thresholds (id, tenant_id, name, metric, comparison, value, clear_value, for_seconds, selector, severity, hold_down_seconds,
                             created_by)
     select id, tenant_id, 't', 'cpu_percent', 'above', 90, 80, 0, '{\"site\": \"north\"}', 'info', 60, created_by
       from webhooks where id = $1",
    "insert into threshold_states (threshold_id, device_id, tenant_id, site, state, since)
     select id, id, tenant_id, 'north', 'firing', now() from thresholds where id = $1",
    "insert into threshold_holds (threshold_id, site, event, tenant_id, until) select id, 'north', 'crossed', tenant_id, now() from thresholds where id = $1",
    "insert into configuration_documents (id, tenant_id, device_id) select id, tenant_id, id from devices where id = $1",
    "insert into configuration_versions (document_id, tenant_id, version, content, reason, created_by)
     select id, tenant_id, 1, '{}', 'r', created_by from webhooks where id = $1",
    "insert into configuration_schemas (tenant_id, content, set_by) select tenant_id, '{}', created_by from webhooks where id = $1",
    "insert into configuration_contents (tenant_id, sha256, content) select tenant_id, sha256('{}'), '{}' from devices where id = $1",
    "insert into notices (id, tenant_id, event, body, webhook_id) select id, tenant_id, 'grant.created', '{}', id from webhooks where id = $1",
];

async fn fill(scene: &Scene) {
    scene.grant(json!({})).await;
    scene.command(json!({})).await;
    let body =
        json!({"reason": "r", "scopes": ["device:reboot"], "selector": {"site": "north"}, "duration_seconds": 600});
    scene.post("/grants").by(&scene.other_customer).json(body).send().await.expect(StatusCode::CREATED);
    let body = json!({"kind": "device.reboot", "reason": "r", "queue_for_seconds": 60});
    let path = format!("/devices/{}/commands", scene.other_device);
    scene.post(&path).by(&scene.operator).json(body).send().await.expect(StatusCode::CREATED);
    for somebody in [&scene.customer, &scene.other_customer] {
        let body = json!({"device_name": "new"});
        scene.post("/enrollment-tokens").by(somebody).json(body).send().await.expect(StatusCode::CREATED);
    }
    for device in [scene.device, scene.other_device] {
        scene.tunnel(device).await;
        scene.sql("insert into device_boots (device_id, tenant_id, boot_id) select id, tenant_id, 'b' from devices where id = $1", device.as_uuid()).await;
        scene.sql("insert into device_metrics (device_id, tenant_id, received_at, report) select id, tenant_id, now(), '{}' from devices where id = $1", device.as_uuid()).await;
        scene.sql("insert into polls (device_id, tenant_id, polled_at, interval_seconds, next_by, silent_at, certificate_serial, node, remote_address, boot_id, agent, os, hostname, clock_offset_ms, capabilities, running) select id, tenant_id, now(), 900, now(), now(), uuid_send(id), 'node', '192.0.2.7', 'b', 'a', 'o', 'h', 0, '{}', '[]' from devices where id = $1", device.as_uuid()).await;
        scene.sql("insert into busy_locks select id, tenant_id, 'r', now(), now() + interval '1 hour' from devices where id = $1", device.as_uuid()).await;
        scene.sql("insert into transport_failures select id, tenant_id, 'websocket', 'tls', 'timed_out', 1, now() from devices where id = $1", device.as_uuid()).await;
        scene
            .sql(
                "insert into samples (device_id, tenant_id, at) select id, tenant_id, now() from devices where id = $1",
                device.as_uuid(),
            )
            .await;
        for table in ["samples_five_minutes", "samples_hour"] {
            let row = format!(
                "insert into {table} (device_id, tenant_id, at, stats) select id, tenant_id, now(), '{{}}' from devices where id = $1"
            );
            sqlx::query(AssertSqlSafe(row)).bind(device.as_uuid()).execute(&scene.root).await.unwrap();
        }
        scene.sql("insert into link_tests (id, device_id, tenant_id, direction, node, remote_address, client_name, client_version) select gen_random_uuid(), id, tenant_id, 'upload', 'node', '192.0.2.7', 'c', '1' from devices where id = $1", device.as_uuid()).await;
        scene.sql("insert into device_drops (device_id, tenant_id, day, reason, packets) select id, tenant_id, current_date, 'port', 1 from devices where id = $1", device.as_uuid()).await;
        scene.sql("insert into tunnel_days (tenant_id, day, node, spans) select tenant_id, current_date, 'node', '{[2026-11-22, 2026-11-23)}' from devices where id = $1", device.as_uuid()).await;
        scene.sql("insert into openings (id, tenant_id, device_id, grant_id, opened_by, port, reason, expires_at) select gen_random_uuid(), d.tenant_id, d.id, g.id, g.created_by, 22, 'r', now() from devices d join grants g on g.tenant_id = d.tenant_id where d.id = $1", device.as_uuid()).await;
        for made in SUPPORT {
            scene.sql(made, device.as_uuid()).await;
        }
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_a_newer_version_has_added_is_not_in_the_way_and_what_is_missing_is(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let mut owner = pool.connect_with(database.clone()).await.unwrap().acquire().await.unwrap();
    owner
        .execute(
            "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
             values (99991231235959, 'of a newer version', true, '\\x00', 0)",
        )
        .await
        .unwrap();
    let database = Hosts::from(database);
    setup::migrate(&database).await.unwrap();
    setup::schema_check(&database).await.unwrap();

    owner
        .execute("delete from _sqlx_migrations where version = (select min(version) from _sqlx_migrations)")
        .await
        .unwrap();
    let error = setup::schema_check(&database).await.unwrap_err().to_string();
    assert!(error.contains("is missing"), "{error}");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_change_of_the_schema_waits_for_nobody_for_long(pool: PgPoolOptions, database: PgConnectOptions) {
    let pool = pool.connect_with(database.clone()).await.unwrap();
    let mut user = pool.begin().await.unwrap();
    user.execute("lock table _sqlx_migrations in access exclusive mode").await.unwrap();
    let error = setup::migrate(&Hosts::from(database.clone())).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    user.rollback().await.unwrap();
    setup::migrate(&Hosts::from(database)).await.unwrap();
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn every_table_of_tenants_has_row_level_security(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let open: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c
          where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relrowsecurity
            and (exists (select from pg_attribute a where a.attrelid = c.oid and a.attname in ('tenant_id', 'person_id'))
                 or has_table_privilege('cloudlink_tenant', c.oid, 'select'))",
    )
    .fetch_all(&scene.root)
    .await
    .unwrap();
    assert!(open.is_empty(), "without row-level security: {open:?}");
}

/// Rights and policies are those of the table that a query names: whoever could name a part of it would see all tenants there.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_role_of_the_server_reads_a_partition_by_its_name(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    sqlx::query("select samples_keep(7, 31, 400)")
        .execute(&mut *scene.store.connection().await.unwrap())
        .await
        .unwrap();
    let parts: Vec<(String, bool)> = sqlx::query_as(
        "select c.relname::text, c.relrowsecurity and not exists (
                    select from unnest(array['cloudlink_app', 'cloudlink_tenant']) as r(role)
                     where has_any_column_privilege(r.role, c.oid, 'select, insert, update, references')
                        or has_table_privilege(r.role, c.oid, 'delete, truncate, trigger'))
           from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relispartition",
    )
    .fetch_all(&scene.root)
    .await
    .unwrap();
    assert!(parts.len() >= 6, "{parts:?}");
    assert!(parts.iter().all(|(_, is_closed)| *is_closed), "{parts:?}");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_query_without_a_where_shows_one_tenant(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    fill(&scene).await;
    let mut seen = 0;
    for (table, column) in tables_of_tenants(&scene).await {
        let everything = format!("select {column} as tenant from {table}");
        let all: Vec<Option<Uuid>> =
            sqlx::query_scalar(AssertSqlSafe(everything.clone())).fetch_all(&scene.root).await.unwrap();
        assert!(all.contains(&Some(scene.other_tenant.as_uuid())), "{table} has no row to be hidden: fill() lacks it");
        let mut transaction = scene.store.begin(Visibility::Tenant(scene.tenant)).await.unwrap();
        match sqlx::query_scalar(AssertSqlSafe(everything)).fetch_all(&mut *transaction).await {
            Ok(tenants) => {
                let tenants: Vec<Option<Uuid>> = tenants;
                assert!(tenants.contains(&Some(scene.tenant.as_uuid())), "{table} hides the tenant's own");
                // Operators belong to no tenant, and may be named in grants.
                let is_fine = |tenant: &Option<Uuid>| {
                    *tenant == Some(scene.tenant.as_uuid()) || (table == "people" && tenant.is_none())
                };
                assert!(tenants.iter().all(is_fine), "{table} shows another tenant's rows: {tenants:?}");
                seen += 1;
            }
            Err(error) => assert_eq!(code(&error), "42501", "{table}: {error}"),
        }
    }
    assert!(seen >= 10);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_connection_forgets_its_tenant_with_the_transaction(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool.max_connections(1), database).await;
    let transaction = scene.store.begin(Visibility::Tenant(scene.tenant)).await.unwrap();
    drop(transaction);
    let mut connection = scene.store.connection().await.unwrap();
    let row = sqlx::query("select current_user::text, current_tenant()").fetch_one(&mut *connection).await.unwrap();
    assert_eq!((row.get::<String, _>(0), row.get::<Option<Uuid>, _>(1)), ("cloudlink_app".to_owned(), None));
}

fn code(error: &sqlx::Error) -> String {
    error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned()
}

/// Runs a statement as a role of the server, and returns the code of its error.
async fn attempt(scene: &Scene, visibility: Visibility, statement: &str) -> String {
    let mut transaction = scene.store.begin(visibility).await.unwrap();
    let result = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *transaction).await;
    result.map_or_else(|error| code(&error), |done| format!("{} rows", done.rows_affected()))
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_role_of_the_server_makes_commands_or_history_by_itself(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    fill(&scene).await;
    let statements = [
        "insert into commands select * from commands",
        "delete from commands",
        "truncate commands",
        "alter table commands disable trigger user",
        "insert into audit select * from audit",
        "update audit set entry = 'x'",
        "delete from audit",
        "truncate audit",
        "alter table audit disable trigger user",
        "drop trigger audit_is_append_only on audit",
        "insert into audit_chains select * from audit_chains",
        "update audit_chains set hash = ''",
        "delete from audit_chains",
        "delete from grants",
        "delete from devices",
        "delete from tenants",
        "create table leak (id integer)",
        "create or replace function grant_in_force(g grants, at timestamptz) returns boolean language sql as 'select true'",
    ];
    for visibility in [Visibility::All, Visibility::Tenant(scene.tenant)] {
        for statement in statements {
            assert_eq!(attempt(&scene, visibility, statement).await, "42501", "{visibility:?} may {statement}");
        }
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn on_behalf_of_a_tenant_nothing_of_another_changes(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    fill(&scene).await;
    let (own, other) = (scene.tenant, scene.other_tenant);
    let visibility = Visibility::Tenant(own);
    // Not allowed at all.
    for statement in [
        "select * from api_tokens".to_owned(),
        "select secret_hash from api_tokens".to_owned(),
        "update api_tokens set expires_at = now()".to_owned(),
        "update api_tokens set person_id = person_id".to_owned(),
        format!(
            "insert into api_tokens (id, person_id, name, secret_hash, expires_at)
             values (gen_random_uuid(), '{}', 'x', sha256('x'), now())",
            scene.other_customer.id
        ),
        "update enrollment_tokens set used_at = null, device_id = null".to_owned(),
        "update grants set policy_max_seconds = 2147483647".to_owned(),
        "update grants set scopes = '{device:reboot}'".to_owned(),
        "update grants set reason = 'x'".to_owned(),
        "update people set email = 'x@example.com'".to_owned(),
        "update people set role = 'admin'".to_owned(),
        // Of people. Its service accounts it may shut out, and there are none.
        "update people set active = false".to_owned(),
        "insert into tenants (id, name) values (gen_random_uuid(), 'x')".to_owned(),
        "update tenants set name = 'x'".to_owned(),
        "update commands set grant_id = grant_id".to_owned(),
        format!("update devices set tenant_id = '{other}'"),
        "select command_create(null, null, null, null, null, null, null, null, null, null, null, null, null)"
            .to_owned(),
        format!("select audit_append('{other}', '{{}}', 'x', '{{}}', '{{}}')"),
        format!("select audit_append('{}', '{{}}', 'x', '{{}}', '{{}}')", Uuid::nil()),
        format!(
            "insert into enrollment_tokens (id, tenant_id, created_by, secret_hash, device_name, expires_at)
                 values (gen_random_uuid(), '{other}', '{}', sha256('x'), 'x', now())",
            scene.customer.id
        ),
        format!("update grants set tenant_id = '{other}'"),
    ] {
        assert_eq!(attempt(&scene, visibility, &statement).await, "42501", "may {statement}");
    }
    // Allowed, on its own rows.
    for (statement, rows) in [
        ("update tenants set grant_max_seconds = 60", 1),
        ("update devices set name = name", 1),
        ("update grants set ends_at = ends_at", 1),
        ("update api_tokens set revoked_at = null", 1),
        ("update commands set code = 'x'", 1),
        ("update certificates set state = state", 1),
    ] {
        assert_eq!(attempt(&scene, visibility, statement).await, format!("{rows} rows"), "{statement}");
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn waiting_for_too_long_is_worth_another_try(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let mut holder = scene.store.begin(Visibility::All).await.unwrap();
    super::tenant::tenant_lock(&mut holder, scene.tenant).await.unwrap();
    for limit in ["set local lock_timeout = '50ms'", "set local statement_timeout = '50ms'"] {
        let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
        transaction.execute(limit).await.unwrap();
        let error = super::tenant::tenant_lock(&mut transaction, scene.tenant).await.unwrap_err();
        assert!(error.is_retryable(), "{limit}: {error:?}");
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_is_final_stays_as_it_is(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    scene.grant(json!({})).await;
    let id = scene.command(json!({})).await;
    scene.post(&format!("/commands/{id}/cancel")).by(&scene.operator).send().await.expect(StatusCode::OK);
    let revive = "update commands set state = 'queued', finished_at = null, deadline_at = now() + interval '1 hour'";
    assert_eq!(attempt(&scene, Visibility::All, revive).await, "23514");
}

/// Whatever comes first, a command is refused, or it is cancelled with its grant.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_revoked_grant_leaves_nothing_queued(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let path = format!("/devices/{}/commands", scene.device);
    let body = json!({"kind": "device.reboot", "reason": "r", "queue_for_seconds": 600});
    let (mut made, mut refused) = (0, 0);
    for round in 0..12 {
        let grant = scene.grant(json!({})).await;
        let answered = AtomicUsize::new(0);
        let commands = join_all((0..16).map(|_| async {
            let answer = scene.post(&path).by(&scene.operator).json(body.clone()).send().await;
            answered.fetch_add(1, Ordering::Relaxed);
            answer
        }));
        let revocation = async {
            // In the midst of the commands, later from round to round.
            while answered.load(Ordering::Relaxed) < round {
                tokio::task::yield_now().await;
            }
            scene.post(&format!("/grants/{grant}/revoke")).by(&scene.customer).send().await.expect(StatusCode::OK);
        };
        let ((), answers) = join(revocation, commands).await;
        made += answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count();
        refused += answers.iter().filter(|answer| answer.status == StatusCode::FORBIDDEN).count();
        assert!(answers.iter().all(|answer| matches!(answer.status.as_u16(), 201 | 403)), "{answers:?}");
        let open: i64 = sqlx::query_scalar("select count(*) from commands where state <> 'cancelled'")
            .fetch_one(&scene.root)
            .await
            .unwrap();
        assert_eq!(open, 0, "round {round}");
    }
    assert!(made > 0 && refused > 0, "the two never met: {made} made, {refused} refused");
    let cancelled: i64 = sqlx::query_scalar("select count(*) from commands").fetch_one(&scene.root).await.unwrap();
    assert_eq!(usize::try_from(cancelled).unwrap(), made);
    let audited = scene.audited(scene.tenant).await;
    let count = |action: &str| audited.iter().filter(|audited| *audited == action).count();
    assert_eq!((count("command.created"), count("command.finished")), (made, made));
    assert_eq!(count("command.refused"), refused);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_revoked_device_and_a_shut_out_operator_leave_nothing_queued(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let scene = Scene::new(pool, database).await;
    scene.grant(json!({"device_ids": null, "selector": {"site": "north"}})).await;
    let body = json!({"kind": "device.reboot", "reason": "r", "queue_for_seconds": 600});
    let mut created = 0;
    for round in 0..8 {
        let device = DeviceId::from_uuid(crate::model::new_id());
        scene.insert_device(device, scene.tenant, &format!("device {round}"), json!({"site": "north"})).await;
        let path = format!("/devices/{device}/commands");
        let answered = AtomicUsize::new(0);
        let commands = join_all((0..12).map(|_| async {
            let answer = scene.post(&path).by(&scene.operator).json(body.clone()).send().await;
            answered.fetch_add(1, Ordering::Relaxed);
            answer
        }));
        let closing = async {
            while answered.load(Ordering::Relaxed) < round {
                tokio::task::yield_now().await;
            }
            if round % 2 == 0 {
                scene.post(&format!("/devices/{device}/revoke")).by(&scene.customer).send().await
            } else {
                let path = format!("/people/{}", scene.operator.id);
                scene.patch(&path).by(&scene.admin).json(json!({"active": false})).send().await
            }
        };
        let (closed, answers) = join(closing, commands).await;
        closed.expect(StatusCode::OK);
        created += answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count();
        let open = sqlx::query_scalar("select count(*) from commands where state <> 'cancelled'");
        let open: i64 = open.fetch_one(&scene.root).await.unwrap();
        assert_eq!(open, 0, "round {round}");
        scene.sql("update people set active = true where id = $1", scene.operator.id.as_uuid()).await;
    }
    assert!(created > 0, "the two never met");
}

/// Nothing that the API asks on every command may need to read a whole table.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn making_a_command_stays_cheap_with_many_grants_and_devices(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    scene.link(scene.device).await;
    sqlx::raw_sql(AssertSqlSafe(format!(
        "insert into tenants (id, name) select gen_random_uuid(), 'tenant ' || n from generate_series(1, 200) n;
         insert into grants (id, tenant_id, created_by, reason, scopes, selector, starts_at, ends_at, policy_max_seconds)
             select gen_random_uuid(), t.id, '{0}', 'r', '{{device:reboot}}', '{{\"a\": \"b\"}}', now() - interval '2 h', now() - interval '1 h', 0
               from tenants t, generate_series(1, 100);
         insert into devices (id, tenant_id, name) select gen_random_uuid(), t.id, 'device ' || n from tenants t, generate_series(1, 100) n;
         analyze;", scene.customer.id)))
        .execute(&scene.root)
        .await
        .unwrap();
    let plan: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
        "explain select g.id from devices d join grants g on grant_covers(g, d, '{}', 'device:reboot') and grant_in_force(g, clock_timestamp())
          where d.id = '{}' and d.state = 'active' order by g.ends_at desc limit 1 for share of g", scene.operator.id, scene.device)))
        .fetch_all(&scene.root)
        .await
        .unwrap();
    assert!(!plan.iter().any(|line| line.contains("Seq Scan")), "{plan:#?}");
}

/// Whoever was put out stays out, whatever a query of the server does.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_revocation_is_final(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let grant = scene.grant(json!({})).await;
    let token = scene.post("/tokens").by(&scene.customer).json(json!({"name": "n"})).send().await;
    let token = token.expect(StatusCode::CREATED)["id"].as_str().unwrap().to_owned();
    for path in [
        format!("/grants/{grant}/revoke"),
        format!("/devices/{}/revoke", scene.device),
        format!("/tokens/{token}/revoke"),
    ] {
        scene.post(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
    }
    for visibility in [Visibility::All, Visibility::Tenant(scene.tenant)] {
        // The server itself revokes no grants, and so has nothing to take back.
        let by_grants = if visibility == Visibility::All { "42501" } else { "23514" };
        for statement in [
            "update grants set revoked_at = null, revoked_by = null where revoked_at is not null",
            "update grants set revoked_at = now() + interval '1 hour' where revoked_at is not null",
        ] {
            assert_eq!(attempt(&scene, visibility, statement).await, by_grants, "{visibility:?} may {statement}");
        }
        for statement in [
            "update devices set state = 'active', revoked_at = null where state = 'revoked'",
            "update certificates set state = 'active', revoked_at = null where state = 'revoked'",
            "update api_tokens set revoked_at = null where revoked_at is not null",
        ] {
            assert_eq!(attempt(&scene, visibility, statement).await, "23514", "{visibility:?} may {statement}");
        }
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_tenants_transaction_without_its_tenant_writes_no_history(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
    transaction.execute("set local role cloudlink_tenant").await.unwrap();
    let append = format!("select audit_append('{}', '{{}}', 'x', '{{}}', '{{}}')", scene.tenant);
    let error = sqlx::raw_sql(AssertSqlSafe(append)).execute(&mut *transaction).await.unwrap_err();
    assert_eq!(code(&error), "42501");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_is_reserved_waits_for_nobody(pool: PgPoolOptions, database: PgConnectOptions) {
    let pool = pool.max_connections(1).acquire_timeout(Duration::from_secs(1));
    let store = Store::new(pool, database);
    let _all = store.connection().await.unwrap();
    let waiting = store.connection().await;
    assert!(matches!(waiting, Err(StoreError::Unavailable(_))), "{waiting:?}");
    store.reserved().connection().await.unwrap();
}

/// Passes connections on to a database, until it is to fall silent: as a host does that is gone without a word.
async fn host_that_falls_silent(
    database: &PgConnectOptions,
    silent: CancellationToken,
) -> (PgConnectOptions, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let real = (database.get_host().to_owned(), database.get_port());
    let relay = tokio::spawn(async move {
        let mut carried = Vec::new();
        while let Ok((client, _)) = listener.accept().await {
            let (client, server) = (Arc::new(client), Arc::new(TcpStream::connect(real.clone()).await.unwrap()));
            for (from, to) in [(Arc::clone(&client), Arc::clone(&server)), (server, client)] {
                let silent = silent.clone();
                tokio::spawn(silent.run_until_cancelled_owned(pass(Arc::clone(&from), Arc::clone(&to))));
                // Not closed before all is over.
                carried.push((from, to));
            }
        }
    });
    (database.clone().host("127.0.0.1").port(port), AbortOnDropHandle::new(relay))
}

async fn pass(from: Arc<TcpStream>, to: Arc<TcpStream>) {
    let mut bytes = [0; 4096];
    while from.readable().await.is_ok() {
        let Ok(mut left) = from.try_read(&mut bytes).map(|count| &bytes[..count]) else { continue };
        if left.is_empty() {
            return;
        }
        while !left.is_empty() && to.writable().await.is_ok() {
            left = &left[to.try_write(left).unwrap_or(0)..];
        }
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_host_that_was_replaced_and_says_nothing_keeps_no_place_in_the_pool(
    pool: PgPoolOptions,
    database: PgConnectOptions,
) {
    let silent = CancellationToken::new();
    let (host, _relay) = host_that_falls_silent(&database, silent.clone()).await;
    let store = Store::new(pool.max_connections(1), host);
    let taken = store.connection().await.unwrap();
    silent.cancel();
    store.primary.switch();
    drop(taken);
    let given_up = async {
        while store.pool().size() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), given_up).await.expect("its place is free for another host's connection");
}
