//! Between tenants: every operation of the document, with what belongs to another tenant in its path, its query and its body.
//! What is new in the document and not said here fails.

use std::collections::{BTreeMap, BTreeSet};

use cloudlink_proto::ids::{CommandId, DeviceId, TenantId};
use http::HeaderMap;
use uuid::Uuid;

use super::*;
use crate::bus::Hint;
use crate::http::testing::Answer;

/// One of each kind that belongs to a tenant, by what it is called in parameters: `device_id`.
pub(super) struct Things {
    ids: BTreeMap<&'static str, String>,
}

impl Things {
    /// Makes them, as far as they can be, through the API.
    pub(super) async fn of(scene: &Scene, whose: &Somebody, tenant: TenantId, device: DeviceId) -> Self {
        let made = async |path: &str, body: Value| {
            let answer = scene.post(path).by(whose).json(body).send().await.expect(StatusCode::CREATED);
            answer["id"].as_str().unwrap().to_owned()
        };
        let asked = async |path: &str, body: Value| {
            let answer = scene.post(path).by(&scene.operator).json(body).send().await.expect(StatusCode::CREATED);
            answer["id"].as_str().unwrap().to_owned()
        };
        scene.tunnel(device).await;
        let all = json!({
            "reason": "r", "scopes": ["device:reboot", "tcp:open", "shell:open"], "device_ids": [device.to_string()], "duration_seconds": 600,
        });
        let grant = made("/grants", all).await;
        let command = json!({"kind": "device.reboot", "reason": "r", "queue_for_seconds": 600});
        let rollout = json!({"kind": "device.reboot", "reason": "r", "grant_id": grant, "selector": "site"});
        let request = json!({"reason": "r", "scopes": ["device:reboot"], "device_ids": [device.to_string()], "access_seconds": 900});
        let policy = json!({"name": "n", "scopes": ["metrics:read"], "max_seconds": 600});
        let configuration = json!({"device_id": device.to_string(), "content": {"a": 1}, "reason": "r"});
        let key = json!({"name": "safe", "public_key_pem": SIGNING_KEY});
        let service = json!({"name": "robot", "role": "tenant", "kind": "service", "tenant_id": tenant.to_string()});
        let session = new_id();
        sqlx::query(
            "insert into support_sessions (id, tenant_id, device_id, grant_id, opened_by, kind, target, reason, node, expires_at)
             select $1, tenant_id, device_ids[1], id, $2, 'terminal', '{}', 'r', 'node-1', ends_at from grants where id = $3::uuid",
        )
        .bind(session)
        .bind(scene.operator.id.as_uuid())
        .bind(&grant)
        .execute(&scene.root)
        .await
        .unwrap();
        // What is made by others than people, and by them not through the API.
        for statement in [
            "insert into recordings (session_id, tenant_id, format) select id, tenant_id, 'asciicast-v2' from support_sessions where id = $1",
            "insert into receipts (grant_id, tenant_id, statement) select grant_id, tenant_id, 'signed' from support_sessions where id = $1",
            "insert into device_metrics (device_id, tenant_id, received_at, report)
             select device_id, tenant_id, now(), '{}' from support_sessions where id = $1",
            "insert into samples (device_id, tenant_id, at, cpu_percent)
             select device_id, tenant_id, now(), 50 from support_sessions where id = $1",
            "insert into link_tests (id, device_id, tenant_id, direction, node, remote_address, client_name, client_version)
             select id, device_id, tenant_id, 'upload', 'node-1', '192.0.2.7', 'c', '1' from support_sessions where id = $1",
            "insert into device_drops (device_id, tenant_id, day, reason, packets)
             select device_id, tenant_id, current_date, 'port', 1 from support_sessions where id = $1",
        ] {
            scene.sql(statement, session).await;
        }
        let webhook = made("/webhooks", json!({"url": "https://example.com/"})).await;
        let trial = scene.post(&format!("/webhooks/{webhook}/test")).by(whose).send().await;
        assert!(trial.status.is_success(), "{trial:?}");
        let threshold =
            json!({"name": "t", "metric": "cpu_percent", "comparison": "above", "value": 90, "selector": "site"});
        let threshold = made("/thresholds", threshold).await;
        sqlx::query(
            "insert into threshold_states (threshold_id, device_id, tenant_id, site, state, since)
             select id, $2, tenant_id, 'north', 'firing', now() from thresholds where id = $1::uuid",
        )
        .bind(&threshold)
        .bind(device.as_uuid())
        .execute(&scene.root)
        .await
        .unwrap();
        let ids = BTreeMap::from([
            ("tenant_id", tenant.to_string()),
            ("device_id", device.to_string()),
            ("person_id", whose.id.to_string()),
            ("service_id", made("/people", service).await),
            ("token_id", whose.token_id.to_string()),
            ("enrollment_token_id", made("/enrollment-tokens", json!({"device_name": "new"})).await),
            ("command_id", asked(&format!("/devices/{device}/commands"), command).await),
            ("opening_id", asked(&format!("/devices/{device}/openings"), json!({"port": 22, "reason": "r"})).await),
            ("access_request_id", asked("/access-requests", request).await),
            ("access_policy_id", made("/access-policies", policy).await),
            ("signing_key_id", made("/signing-keys", key).await),
            ("rollout_id", asked("/rollouts", rollout).await),
            ("grant_id", grant),
            ("support_session_id", session.to_string()),
            ("webhook_id", webhook),
            ("configuration_document_id", made("/configuration-documents", configuration).await),
            ("group_id", made("/groups", json!({"name": "g", "selector": "a=b"})).await),
            ("threshold_id", threshold),
        ]);
        Self { ids }
    }

    /// Both tenants' of a scene.
    pub(super) async fn of_both(scene: &Scene) -> (Self, Self) {
        (
            Self::of(scene, &scene.customer, scene.tenant, scene.device).await,
            Self::of(scene, &scene.other_customer, scene.other_tenant, scene.other_device).await,
        )
    }

    fn get(&self, kind: &str) -> &str {
        self.ids.get(kind).unwrap_or_else(|| panic!("say here what of a tenant is meant by {kind}"))
    }

    /// What the path of an operation is about.
    pub(super) fn in_path(&self, path: &str) -> &str {
        self.get(match path.split('/').nth(3).unwrap() {
            "tenants" => "tenant_id",
            "devices" => "device_id",
            "tokens" => "token_id",
            "people" => "person_id",
            "webhooks" => "webhook_id",
            "groups" => "group_id",
            "thresholds" => "threshold_id",
            "configuration-documents" => "configuration_document_id",
            "rollouts" => "rollout_id",
            "grants" => "grant_id",
            "commands" => "command_id",
            "openings" => "opening_id",
            "access-requests" => "access_request_id",
            "access-policies" => "access_policy_id",
            "support-sessions" => "support_session_id",
            "signing-keys" => "signing_key_id",
            // A node's, and no tenant's.
            "isolation" | "nodes" => "tenant_id",
            other if !path.contains('{') => {
                assert!(!other.is_empty());
                "tenant_id"
            }
            other => panic!("say here what of /{other} belongs to a tenant"),
        })
    }

    /// What a parameter or a member of a body names; operators belong to no tenant, so people are meant in their place.
    fn named(&self, parameter: &str) -> &str {
        self.get(match parameter {
            "device_ids" => "device_id",
            "operator_ids" => "person_id",
            other => other,
        })
    }

    /// Those of them that a text holds.
    fn within(&self, text: &str) -> Vec<&str> {
        self.ids.iter().filter(|(_, id)| text.contains(id.as_str())).map(|(kind, _)| *kind).collect()
    }
}

/// What tells two answers apart, but for what names the request: to whom they look the same, both are about nothing.
fn told(answer: &Answer, id: &str) -> (StatusCode, Vec<String>, String) {
    let headers = |headers: &HeaderMap| {
        let mut names: Vec<_> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    let request = answer.header("x-request-id").to_owned();
    let text = answer.text.replace(&request, "").replace(id, "…");
    (answer.status, headers(&answer.headers), text)
}

/// Every row of every table, digested, but for what each request notes of its token.
pub(super) async fn everything(scene: &Scene) -> BTreeMap<String, String> {
    rows(scene, "true").await
}

/// Those rows of a tenant, in tables that say whose they are.
async fn rows_of(scene: &Scene, tenant: TenantId) -> BTreeMap<String, String> {
    rows(scene, &format!("coalesce(r ->> 'tenant_id' = '{tenant}', true)")).await
}

async fn rows(scene: &Scene, condition: &str) -> BTreeMap<String, String> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') order by 1",
    )
    .fetch_all(&scene.root)
    .await
    .unwrap();
    assert!(tables.len() >= 35, "{tables:?}");
    let digest = |table: String| {
        format!(
            "select '{table}', coalesce(count(*) || ' ' || md5(string_agg(r::text, ' ' order by r::text)), '')
               from (select to_jsonb(t) - 'last_used_at' as r from {table} t) t where {condition}"
        )
    };
    let all: Vec<String> = tables.into_iter().map(digest).collect();
    let all: Vec<(String, String)> =
        sqlx::query_as(sqlx::AssertSqlSafe(all.join(" union all "))).fetch_all(&scene.root).await.unwrap();
    all.into_iter().collect()
}

fn routes_of(role: Role) -> impl Iterator<Item = Route> {
    Route::all().into_iter().filter(move |route| route.roles().contains(&role))
}

async fn scene(pool: PgPoolOptions, database: PgConnectOptions) -> Scene {
    let settings = Settings {
        failures_burst: 1_000_000,
        opening_within: Duration::from_millis(1),
        stream_recheck_every: Duration::from_millis(20),
        ..Settings::default()
    };
    let scene = Scene::with_settings(pool, database, settings).await;
    // There on the day that paths name.
    scene.sql("update tenants set created_at = '2026-01-01' where id <> $1", Uuid::nil()).await;
    scene
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn to_a_tenant_nothing_of_another_exists(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = scene(pool, database).await;
    let (own, others) = Things::of_both(&scene).await;
    let before = everything(&scene).await;
    let stranger = &scene.customer;
    let mut checked = 0;
    for route in routes_of(Tenant).filter(|route| route.path.contains("{id}")) {
        let id = others.in_path(&route.path);
        let answer = route.call(&scene, id).by(stranger).send().await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{} shows another's: {}", route.id, answer.text);
        // The same as for what is nowhere: an answer must not tell that it exists.
        let nowhere = new_id().to_string();
        let nothing = route.call(&scene, &nowhere).by(stranger).send().await;
        assert_eq!(told(&answer, id), told(&nothing, &nowhere), "{}", route.id);
        answer.expect_problem(Kind::NotFound);
        checked += 1;
    }
    assert!(checked >= 40, "{checked}");
    assert_eq!(everything(&scene).await, before, "a tenant changed what is another's");
    // To whom they belong they are there. What they do then may change them. A request is withdrawn by who has made it.
    let there = |route: &Route| route.path.contains("{id}") && route.id != "access_request_withdraw";
    for route in routes_of(Tenant).filter(there) {
        let answer = route.call(&scene, own.in_path(&route.path)).by(stranger).send().await;
        assert_ne!(answer.status, StatusCode::NOT_FOUND, "{} hides the tenant's own: {}", route.id, answer.text);
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn lists_hold_nothing_of_another_tenant_whatever_they_are_asked(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = scene(pool, database).await;
    let (own, others) = Things::of_both(&scene).await;
    let (mut lists, mut filters) = (0, 0);
    let is_list = |route: &Route| route.method == Method::GET && !route.path.contains('{') && !route.is_endless();
    for route in routes_of(Tenant).filter(is_list) {
        let page = route.call(&scene, "").by(&scene.customer).send().await;
        assert_eq!(page.status, StatusCode::OK, "{}: {}", route.id, page.text);
        assert!(others.within(&page.text).is_empty(), "{} shows {:?}", route.id, others.within(&page.text));
        lists += 1;
        // Sums name nobody.
        if !["network_show", "transport_report_show"].contains(&route.id.as_str()) {
            assert!(
                !own.within(&page.text).is_empty(),
                "{} shows nothing of the tenant's own: {}",
                route.id,
                page.text
            );
        }
    }
    for route in routes_of(Tenant).filter(|route| route.method == Method::GET) {
        let in_path = own.in_path(&route.path);
        for parameter in route.ids_in_query() {
            let ask = async |id: &str| {
                let uri = route.path.replace("{id}", in_path) + &format!("?{parameter}={id}");
                scene.call_raw(Method::GET, &uri).by(&scene.customer).send().await
            };
            let (theirs, nowhere) = (others.named(&parameter), new_id().to_string());
            let answer = ask(theirs).await;
            assert!(others.within(&answer.text).len() <= usize::from(answer.text.contains(theirs)), "{}", answer.text);
            assert_eq!(told(&answer, theirs), told(&ask(&nowhere).await, &nowhere), "{} with {parameter}", route.id);
            // Those who open sessions are the vendor's people.
            let operator = scene.operator.id.to_string();
            let is_opener =
                parameter == "person_id" && ["recording_list", "support_session_list"].contains(&route.id.as_str());
            let mine = if is_opener { &operator } else { own.named(&parameter) };
            assert_ne!(told(&ask(mine).await, mine), told(&answer, theirs), "{} ignores {parameter}", route.id);
            filters += 1;
        }
    }
    assert!(lists >= 15 && filters >= 18, "{lists} lists, {filters} filters");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn nothing_is_made_of_what_is_anothers(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = scene(pool, database).await;
    let (own, others) = Things::of_both(&scene).await;
    let with = |route: &Route, member: &str, is_list: bool, id: &str| {
        let mut body = if route.id == "person_create" {
            json!({"name": new_id().to_string(), "role": "tenant", "kind": "service"})
        } else {
            body_of(&route.id)
        };
        if member == "device_ids" {
            body.as_object_mut().unwrap().remove("selector");
        }
        if route.id == "configuration_create" && member == "device_id" {
            body = json!({"content": {}, "reason": "r"});
        }
        body[member] = if is_list { json!([id]) } else { json!(id) };
        let path = route.path.replace("{id}", own.in_path(&route.path));
        scene.call_raw(route.method.clone(), &path).header("if-match", "*").json(body)
    };
    let mut tried = BTreeSet::new();
    for (role, somebody) in [(Tenant, &scene.customer), (Operator, &scene.operator)] {
        for route in routes_of(role) {
            for (member, is_list) in route.ids_in_body() {
                // Both are tried below: an operator asks whichever tenant it likes for access to its devices, and no node is here
                // that would serve a session. A rollout is within the tenant of its grant, whoever's that is.
                if ["access_request_create", "support_session_create", "rollout_plan"].contains(&route.id.as_str()) {
                    continue;
                }
                let (all, of_other) = (everything(&scene).await, rows_of(&scene, scene.other_tenant).await);
                let (theirs, nowhere) = (others.named(&member), new_id().to_string());
                let answer = with(&route, &member, is_list, theirs).by(somebody).send().await;
                assert!(answer.status.is_client_error(), "{} takes another's {member}: {}", route.id, answer.text);
                if role == Tenant {
                    assert_eq!(everything(&scene).await, all, "{} with another's {member} changed something", route.id);
                    let nothing = with(&route, &member, is_list, &nowhere).by(somebody).send().await;
                    assert_eq!(told(&answer, theirs), told(&nothing, &nowhere), "{} with {member}", route.id);
                }
                assert_eq!(rows_of(&scene, scene.other_tenant).await, of_other, "{} with {member}", route.id);
                // What belongs there is answered otherwise: it was refused for whose it is.
                let mine = if member == "operator_ids" || (role == Operator && member == "person_id") {
                    scene.operator.id.to_string()
                } else {
                    own.named(&member).to_owned()
                };
                let fine = with(&route, &member, is_list, &mine).by(somebody).send().await;
                assert_ne!(told(&fine, &mine), told(&answer, theirs), "{} with {member}", route.id);
                tried.insert(format!("{} {member}", route.id));
            }
        }
    }
    assert!(tried.len() >= 10, "{tried:?}");
    let session = async |grant: &str| -> Option<Uuid> {
        let create = "select id from support_session_create(gen_random_uuid(), $1, $2, $3::uuid, 'shell:open', 'terminal', '{}', 'r', 'n', 9)";
        let made =
            sqlx::query_scalar(create).bind(scene.operator.id.as_uuid()).bind(scene.device.as_uuid()).bind(grant);
        made.fetch_optional(&mut *scene.store.connection().await.unwrap()).await.unwrap()
    };
    assert!(session(others.get("grant_id")).await.is_none(), "a session under another tenant's grant");
    assert!(session(own.get("grant_id")).await.is_some());
    // Both tenants' devices in one request to one of them.
    let both = json!({"reason": "r", "scopes": ["device:reboot"], "device_ids": [scene.device.to_string(), scene.other_device.to_string()], "access_seconds": 60});
    let answer = scene.post("/access-requests").by(&scene.operator).json(both).send().await;
    assert!(answer.status.is_client_error(), "{}", answer.text);
}

/// A service account's token does what its scopes say, and that within its tenant.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_scope_of_a_robots_token_reaches_another_tenant(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = scene(pool, database).await;
    let (own, others) = Things::of_both(&scene).await;
    let mut tokens = Vec::new();
    for scope in ApiScope::ALL {
        let body = json!({"name": scope.name(), "person_id": own.get("service_id"), "scopes": [scope.name()]});
        let made = scene.post("/tokens").by(&scene.customer).json(body).send().await.expect(StatusCode::CREATED);
        tokens.push((scope, format!("Bearer {}", made["token"].as_str().unwrap())));
    }
    let before = everything(&scene).await;
    let (mut found_nothing, mut lacked) = (0, 0);
    for route in routes_of(Tenant).filter(|route| route.path.contains("{id}")) {
        for (scope, header) in &tokens {
            let call = async |id: &str| route.call(&scene, id).header("authorization", header).send().await;
            let (theirs, nowhere) = (others.in_path(&route.path), new_id().to_string());
            let (answer, nothing) = (call(theirs).await, call(&nowhere).await);
            assert_eq!(told(&answer, theirs), told(&nothing, &nowhere), "{} with {}", route.id, scope.name());
            if route.operation["x-scope"] == scope.name() {
                answer.expect_problem(Kind::NotFound);
                found_nothing += 1;
            } else {
                answer.expect_problem(Kind::ScopeRequired);
                lacked += 1;
            }
        }
    }
    assert!(found_nothing >= 40 && lacked >= 200, "{found_nothing}, {lacked}");
    assert_eq!(everything(&scene).await, before, "a robot changed what is another's");
}

/// Whoever follows a command of its own hears of nothing else, however much happens beside it.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn streams_of_events_carry_nothing_of_another_tenant(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = scene(pool, database).await;
    let (own, others) = Things::of_both(&scene).await;
    let streams: Vec<Route> = routes_of(Tenant)
        // That one names nothing but kinds, and has a test of its own.
        .filter(|route| !route.is_endless())
        .filter(|route| !route.operation["responses"]["200"]["content"]["text/event-stream"].is_null())
        .collect();
    assert_eq!(streams.iter().map(|route| route.id.as_str()).collect::<Vec<_>>(), ["command_event"]);
    let hub = tokio::spawn(scene.context.clone().follow_hints());
    let follow = streams[0].call(&scene, own.get("command_id")).by(&scene.customer).send();
    let happen = async {
        for state in ["sent", "accepted", "running"] {
            for things in [&others, &own] {
                let id: Uuid = things.get("command_id").parse().unwrap();
                let update = sqlx::query("update commands set state = $2 where id = $1").bind(id).bind(state);
                update.execute(&scene.root).await.unwrap();
                scene.bus.send(Hint::CommandChanged(CommandId::from_uuid(id)));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for things in [&others, &own] {
            let id = things.get("command_id").parse().unwrap();
            let done = "update commands set state = 'succeeded', deadline_at = null, finished_at = now() where id = $1";
            scene.sql(done, id).await;
        }
    };
    let both = async { tokio::join!(follow, happen).0 };
    let answer = tokio::time::timeout(Duration::from_secs(10), both).await.expect("the stream does not end");
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.text.contains(own.get("command_id")) && answer.text.contains("succeeded"), "{}", answer.text);
    assert!(others.within(&answer.text).is_empty(), "{}", answer.text);
    scene.stopping.cancel();
    hub.await.unwrap();
}
