//! What holds for the whole API: its contract, who is refused, and the shape of every error.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use http::Method;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::*;
use crate::http::Settings;
use crate::http::problem::Kind;
use crate::http::testing::{Call, Relay, Scene, Somebody, create_somebody};
use crate::secret::{Purpose, Token};
use crate::store::Visibility;
use crate::store::tenant::tenant_lock;

mod wall;

use wall::{Things, everything};

/// One operation of the document, of those that are not open to all.
struct Route {
    method: Method,
    path: String,
    id: String,
    operation: Value,
}

impl Route {
    fn all() -> Vec<Self> {
        let document = serde_json::to_value(openapi()).unwrap();
        let mut routes = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap().to_owned();
                let method = method.to_uppercase().parse().unwrap();
                if operation["x-open"].is_null() {
                    routes.push(Self { method, path: path.clone(), id, operation: operation.clone() });
                }
            }
        }
        assert!(routes.len() >= 30, "the document has lost its routes");
        routes
    }

    fn roles(&self) -> Vec<Role> {
        let names = self.operation["x-roles"].as_array();
        let names = names.unwrap_or_else(|| panic!("{} does not say who may call it", self.id));
        assert!(!names.is_empty(), "{} is open to nobody", self.id);
        names.iter().map(|name| Role::named(name.as_str().unwrap()).unwrap()).collect()
    }

    /// A well-formed request for the thing with this id.
    fn call(&self, scene: &Scene, id: &str) -> Call {
        let call = scene
            .call_raw(
                self.method.clone(),
                &self
                    .path
                    .replace("{id}", id)
                    .replace("{name}", id)
                    .replace("{day}", "2026-11-21")
                    .replace("{version}", "1"),
            )
            .header("if-match", "*");
        if self.operation["requestBody"].is_null() { call } else { call.json(body_of(&self.id)) }
    }

    /// Whether it goes on for as long as its caller may call: there is no whole answer.
    fn is_endless(&self) -> bool {
        self.id == "event_stream"
    }

    /// The parameters of the query that are ids.
    fn ids_in_query(&self) -> Vec<String> {
        let parameters = self.operation["parameters"].as_array().into_iter().flatten();
        let ids = parameters.filter(|parameter| parameter["in"] == "query" && is_id(&parameter["schema"]));
        ids.map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The members of the body that are ids, and whether each is a list of them.
    fn ids_in_body(&self) -> Vec<(String, bool)> {
        let schema = &self.operation["requestBody"]["content"]["application/json"]["schema"];
        let Some(name) = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) else { return Vec::new() };
        let document = serde_json::to_value(openapi()).unwrap();
        let components = &document["components"]["schemas"];
        let members = components[name]["properties"].as_object().unwrap().clone();
        let ids = members.into_iter().filter(|(member, schema)| {
            let is_named = is_id(schema) || is_id(&schema["items"]);
            assert!(is_named || !holds_ids(schema, components), "{}: look for ids within {member} as well", self.id);
            is_named
        });
        ids.map(|(member, schema)| (member, is_id(&schema["items"]))).collect()
    }
}

fn is_id(schema: &Value) -> bool {
    schema["format"] == "uuid"
}

/// Whether there are ids in what a schema describes, however deep.
fn holds_ids(schema: &Value, components: &Value) -> bool {
    let name = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next());
    is_id(schema)
        || name.is_some_and(|name| holds_ids(&components[name], components))
        || match schema {
            Value::Object(members) => members.values().any(|member| holds_ids(member, components)),
            Value::Array(members) => members.iter().any(|member| holds_ids(member, components)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
}

const SIGNING_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAgytKK+NuDCGuTJ+Fn2nRCmTMjmNzkH8CfPsm2mi0yZU=\n-----END PUBLIC KEY-----\n";

/// A body that each operation takes.
fn body_of(operation: &str) -> Value {
    match operation {
        "tenant_create" => json!({"name": "New"}),
        "tenant_update" => json!({"grant_max_seconds": 600}),
        "person_create" => json!({"name": "new", "role": "operator"}),
        "person_update" => json!({"active": true}),
        "token_create" => json!({"name": "new"}),
        "enrollment_token_create" => json!({"device_name": "new"}),
        "device_update" => json!({"name": "new"}),
        "device_quarantine" => json!({"reason": "r"}),
        "grant_create" => {
            json!({"reason": "r", "scopes": ["device:reboot"], "selector": {"a": "b"}, "duration_seconds": 60})
        }
        "grant_extend" => json!({"ends_at": "2030-01-01T00:00:00Z"}),
        "signing_key_require" => json!({"required": false}),
        "signing_key_create" => json!({"name": "new", "public_key_pem": SIGNING_KEY}),
        "access_request_create" => json!({
            "device_ids": [new_id()], "scopes": ["device:reboot"], "reason": "r", "access_seconds": 60,
        }),
        "access_request_approve" | "access_request_deny" | "node_drain" | "node_resume" => json!({}),
        "access_policy_create" => json!({"name": "n", "scopes": ["device:reboot"], "max_seconds": 600}),
        "command_create" => json!({"kind": "device.reboot", "reason": "r"}),
        "isolation_proof_create" => json!({}),
        "person_email_set" => json!({"email": "new@example.com"}),
        "group_create" => json!({"name": "new", "selector": "a=b"}),
        "group_update" => json!({"name": "newer"}),
        "configuration_create" => json!({"name": "new", "selector": "a=b", "content": {}, "reason": "r"}),
        "configuration_update" => json!({"content": {}, "reason": "r"}),
        "configuration_rollback" => json!({"version": 1, "reason": "r"}),
        "configuration_schema_set" => json!({"schema": {}}),
        "rollout_plan" => {
            json!({"grant_id": new_id(), "selector": "a=b", "kind": "device.reboot", "reason": "r"})
        }
        "rollout_apply" => json!({"hash": "00"}),
        "threshold_create" => {
            json!({"name": "new", "metric": "cpu_percent", "comparison": "above", "value": 90, "selector": "a=b"})
        }
        "threshold_update" => json!({"name": "newer"}),
        "webhook_create" => json!({"url": "https://example.com/"}),
        "opening_create" => json!({"port": 22, "reason": "r"}),
        "support_session_create" => json!({"kind": "terminal", "reason": "r"}),
        other => panic!("{other} takes a body: say here which"),
    }
}

#[test]
fn the_document_is_the_committed_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let generated: Value = serde_json::to_value(openapi()).unwrap();
    assert_eq!(generated["openapi"], "3.1.0");
    let text = serde_json::to_string_pretty(&generated).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let is_same = serde_json::from_str::<Value>(&committed).is_ok_and(|committed| committed == generated);
    assert!(
        is_same,
        "docs/openapi.json is not what the code says: run this test with UPDATE_SNAPSHOTS=1, and read the diff"
    );
}

#[test]
fn every_operation_says_who_may_call_it_and_how_it_fails() {
    let mut ids = std::collections::BTreeSet::new();
    for route in Route::all() {
        route.roles();
        assert!(ids.insert(route.id.clone()), "{} is the name of two operations", route.id);
        assert_eq!(route.operation["security"], json!([{"token": []}, {"cookie": []}]), "{}", route.id);
        let scope = route.operation["x-scope"].as_str();
        assert!(
            scope.is_some() || ["me_show", "auth_logout"].contains(&route.id.as_str()),
            "{} has no scope",
            route.id
        );
        let problem = &route.operation["responses"]["default"]["content"]["application/problem+json"]["schema"]["$ref"];
        assert_eq!(problem, "#/components/schemas/ProblemDetails", "{}", route.id);
        assert!(route.path.starts_with("/api/v1/"), "{}", route.path);
    }
}

#[test]
fn what_is_open_to_all_is_told_one_by_one() {
    let document = serde_json::to_value(openapi()).unwrap();
    let operations =
        document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    let open =
        operations.filter(|operation| operation["x-open"] == true).map(|operation| operation["operationId"].clone());
    assert_eq!(open.collect::<Vec<_>>(), ["auth_callback", "auth_config", "auth_login", "auth_session"]);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn every_route_refuses_a_token_without_its_scope(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let things = Things::of(&scene, &scene.customer, scene.tenant, scene.device).await;
    let before = everything(&scene).await;
    for route in Route::all() {
        let Some(needed) = route.operation["x-scope"].as_str() else { continue };
        let others: Vec<_> = ApiScope::ALL.map(ApiScope::name).into_iter().filter(|name| *name != needed).collect();
        for somebody in [&scene.admin, &scene.operator, &scene.customer] {
            sqlx::query("update api_tokens set scopes = $2 where id = $1")
                .bind(somebody.token_id.as_uuid())
                .bind(&others)
                .execute(&scene.root)
                .await
                .unwrap();
        }
        for (role, somebody) in [(Admin, &scene.admin), (Operator, &scene.operator), (Tenant, &scene.customer)] {
            let expected = if route.roles().contains(&role) { Kind::ScopeRequired } else { Kind::Forbidden };
            route.call(&scene, things.in_path(&route.path)).by(somebody).send().await.expect_problem(expected);
        }
    }
    for somebody in [&scene.admin, &scene.operator, &scene.customer] {
        scene.sql("update api_tokens set scopes = null where id = $1", somebody.token_id.as_uuid()).await;
    }
    assert_eq!(everything(&scene).await, before, "a refused request changed something");
}

/// Makes the token one that a browser shows in its cookie.
async fn in_browser(scene: &Scene, somebody: &Somebody) -> String {
    scene.sql("update api_tokens set kind = 'browser' where id = $1", somebody.token_id.as_uuid()).await;
    format!("theme=dark; __Host-cloudlink={}", somebody.token)
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_browsers_token_comes_in_its_cookie_only(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let get = || scene.get("/me");
    // One that was made for something else does not become a cookie.
    let cookie = format!("__Host-cloudlink={}", scene.customer.token);
    get().header("cookie", &cookie).send().await.expect_problem(Kind::Unauthenticated);
    let cookie = in_browser(&scene, &scene.customer).await;
    get().by(&scene.customer).send().await.expect_problem(Kind::Unauthenticated);
    let me = get().header("cookie", &cookie).send().await.expect(StatusCode::OK);
    assert_eq!(me["id"], scene.customer.id.to_string());
    // Another cookie of the name, from whoever set it, and nothing is believed; a header goes before.
    let twice = get().header("cookie", &cookie).header("cookie", &format!("__Host-cloudlink={}", scene.admin.token));
    twice.send().await.expect_problem(Kind::Unauthenticated);
    let both = get().header("cookie", &cookie).by(&scene.admin).send().await.expect(StatusCode::OK);
    assert_eq!(both["id"], scene.admin.id.to_string());
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn what_another_site_has_a_browser_send_is_refused(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let cookie = in_browser(&scene, &scene.customer).await;
    let call = |call: Call, headers: &[(&'static str, &str)]| {
        let call = call.header("cookie", &cookie).header("host", "cloudlink.example:8443");
        headers.iter().fold(call, |call, (name, value)| call.header(name, value))
    };
    let post = || scene.post("/enrollment-tokens").json(json!({"device_name": "new"}));
    for headers in [
        &[][..],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[("origin", "http://cloudlink.example:8443")],
        &[("origin", "https://cloudlink.example")],
        &[("origin", "https://cloudlink.example:8443"), ("sec-fetch-site", "same-site")],
        &[("origin", "https://evil.example"), ("sec-fetch-site", "same-origin")],
        &[("sec-fetch-site", "cross-site")],
        &[("sec-fetch-site", "none")],
    ] {
        call(post(), headers).send().await.expect_problem(Kind::CrossSite);
        let socket = call(scene.get("/devices"), headers).header("upgrade", "websocket");
        socket.send().await.expect_problem(Kind::CrossSite);
    }
    for headers in [
        &[("origin", "https://cloudlink.example:8443")][..],
        &[("sec-fetch-site", "same-origin")],
        &[("origin", "https://cloudlink.example:8443"), ("sec-fetch-site", "same-origin")],
    ] {
        call(post(), headers).send().await.expect(StatusCode::CREATED);
    }
    // Looking changes nothing, and is for the browser's own rules to keep from others.
    call(scene.get("/devices"), &[("sec-fetch-site", "cross-site")]).send().await.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_document_is_open_to_anybody(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let answer = scene.call_raw(Method::GET, "/openapi.json").send().await;
    assert_eq!(answer.expect(StatusCode::OK), serde_json::to_value(openapi()).unwrap());
}

/// The headers of those who are nobody to us.
async fn strangers(scene: &Scene) -> Vec<(&'static str, Option<String>)> {
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    let mut strangers = vec![
        ("no token", None),
        ("junk", bearer("junk")),
        ("an empty token", Some("Bearer ".to_owned())),
        ("a well-formed token that nobody has", bearer(Token::generate(Purpose::Api).expose())),
        ("a token for another purpose", bearer(Token::generate(Purpose::Enrollment).expose())),
        ("another scheme", Some(format!("Basic {}", scene.admin.token))),
        ("no scheme", Some(scene.admin.token.clone())),
        ("two tokens in one", Some(format!("Bearer {} {}", scene.admin.token, scene.admin.token))),
    ];
    for (name, statement) in [
        ("expired", "update api_tokens set expires_at = now() - interval '1 second' where person_id = $1"),
        ("revoked", "update api_tokens set revoked_at = now() where person_id = $1"),
        ("inactive", "update people set active = false where id = $1"),
    ] {
        for role in Role::ALL {
            let tenant = (role == Tenant).then_some(scene.tenant);
            let somebody = create_somebody(&scene.store, &format!("{name} {}", role.name()), role, tenant).await;
            scene.sql(statement, somebody.id.as_uuid()).await;
            strangers.push((name, bearer(&somebody.token)));
        }
    }
    strangers
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn every_route_refuses_strangers(pool: PgPoolOptions, database: PgConnectOptions) {
    let settings = Settings { failures_burst: 1_000_000, ..Settings::default() };
    let scene = Scene::with_settings(pool, database, settings).await;
    let things = Things::of(&scene, &scene.customer, scene.tenant, scene.device).await;
    let strangers = strangers(&scene).await;
    let before = everything(&scene).await;
    for route in Route::all() {
        for (who, header) in &strangers {
            let mut call = route.call(&scene, things.in_path(&route.path));
            if let Some(header) = header {
                call = call.header("authorization", header);
            }
            let answer = call.send().await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{} lets {who} in", route.id);
            answer.expect_problem(Kind::Unauthenticated);
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
        // One good and one bad header are no better than a bad one.
        let call = route.call(&scene, things.in_path(&route.path)).by(&scene.admin).by(&scene.operator);
        call.send().await.expect_problem(Kind::Unauthenticated);
    }
    assert_eq!(everything(&scene).await, before, "a stranger changed something");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn every_route_refuses_the_roles_that_it_does_not_name(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let things = Things::of(&scene, &scene.customer, scene.tenant, scene.device).await;
    let before = everything(&scene).await;
    for route in Route::all() {
        let roles = route.roles();
        for (role, somebody) in [(Admin, &scene.admin), (Operator, &scene.operator), (Tenant, &scene.customer)] {
            if roles.contains(&role) {
                continue;
            }
            let answer = route.call(&scene, things.in_path(&route.path)).by(somebody).send().await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{} lets {role:?} in: {}", route.id, answer.text);
            answer.expect_problem(Kind::Forbidden);
        }
    }
    assert_eq!(everything(&scene).await, before, "a refused request changed something");
}

/// Whatever the vendor's people call, about whatever thing: nobody is let in, and nobody for longer.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_operator_and_no_administrator_lets_anybody_in(pool: PgPoolOptions, database: PgConnectOptions) {
    let settings = Settings { failures_burst: 1_000_000, ..Settings::default() };
    let scene = Scene::with_settings(pool, database, settings).await;
    let grant = scene.grant(json!({})).await;
    let request = scene.access_request(json!({})).await;
    let policy = scene.access_policy(json!({"scopes": ["metrics:read"]})).await;
    let access = async || {
        let rows: Value = sqlx::query_scalar(
            "select jsonb_build_object('grants', (select jsonb_agg(t order by id) from grants t),
                'decisions', (select jsonb_agg(t) from access_decisions t),
                'policies', (select jsonb_agg(t order by id) from access_policies t),
                'approved', (select jsonb_agg(id) from access_requests where outcome = 'approved'),
                'approvals', (select jsonb_agg(approvals_needed) from tenants where name in ('Hotel', 'Clinic')))",
        )
        .fetch_one(&scene.root)
        .await
        .unwrap();
        rows
    };
    let before = access().await;
    let ids = [grant.as_uuid(), request, policy, scene.tenant.as_uuid(), scene.device.as_uuid()];
    let mut answers = std::collections::BTreeMap::new();
    // Whoever has signed out would be refused for that.
    for route in Route::all().into_iter().filter(|route| route.id != "auth_logout" && !route.is_endless()) {
        for somebody in [&scene.operator, &scene.admin] {
            for id in ids {
                let answer = route.call(&scene, &id.to_string()).by(somebody).send().await;
                answers.insert(route.id.clone(), answer.status);
            }
            assert_eq!(access().await, before, "{} lets somebody in", route.id);
        }
    }
    for refused in [
        "access_request_approve",
        "access_request_deny",
        "access_policy_create",
        "access_policy_approve",
        "access_policy_revoke",
        "grant_create",
        "grant_extend",
        "grant_revoke",
    ] {
        assert_eq!(answers[refused], StatusCode::FORBIDDEN, "{refused}");
    }
    // Nor does the database let the server's own role.
    for statement in [
        "insert into grants select * from grants",
        "update grants set ends_at = ends_at + interval '1 hour'",
        "update grants set scopes = '{shell:open}'",
        "insert into access_policies select * from access_policies",
        "insert into access_policies (id, tenant_id, name, scopes, days, from_minute, to_minute, time_zone, max_seconds, created_by)
         select gen_random_uuid(), tenant_id, name, scopes, days, from_minute, to_minute, time_zone, max_seconds, created_by
           from access_policies",
        "update access_policies set max_seconds = 31622400, revoked_at = null",
        "insert into access_decisions (request_id, tenant_id, person_id, decision) select id, tenant_id, requested_by, 'approve' from access_requests",
        "update access_requests set outcome = 'approved', closed_at = now()",
        "insert into access_requests select * from access_requests",
        "update tenants set approvals_needed = 1",
    ] {
        let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
        let result = sqlx::raw_sql(statement).execute(&mut *transaction).await;
        let error = result.expect_err(statement);
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "42501", "{statement}");
    }
    // And what decides is there in a transaction of the tenant only, whoever is said to ask.
    for function in [
        "select access_request_decide($1, $2, 'approve', null, null, null, null, null, null, null)",
        "select access_request_propose($1, $2, null, '{device:reboot}', null, array[$1], null, 'r', null, null, '1 hour', '1 hour')",
        "select access_policy_approve($1, $2)",
        "select tenant_set_approvals($2, 2, '1 hour') where $1 is not null",
    ] {
        let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
        let said =
            sqlx::query(function).bind(request).bind(scene.customer.id.as_uuid()).execute(&mut *transaction).await;
        assert_eq!(said.unwrap_err().as_database_error().unwrap().code().unwrap(), "42501", "{function}");
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn every_error_is_problem_details(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let admin = &scene.admin;
    let problem = async |call: Call, kind: Kind| call.by(admin).send().await.expect_problem(kind);
    problem(scene.get("/nowhere"), Kind::NotFound).await;
    problem(scene.call_raw(Method::GET, "/api"), Kind::NotFound).await;
    problem(scene.call_raw(Method::POST, "/"), Kind::NotFound).await;
    problem(scene.get("/devices/"), Kind::NotFound).await;
    problem(scene.get("/devices/../me"), Kind::NotFound).await;
    problem(scene.get("/devices/%ff%fe"), Kind::BadRequest).await;
    problem(scene.get("/devices/%00"), Kind::BadRequest).await;
    problem(scene.get("/devices/..%2f..%2fme"), Kind::BadRequest).await;
    problem(scene.get(&format!("/devices/{}", scene.device.as_uuid().simple())), Kind::BadRequest).await;
    problem(scene.get("/me?x=1"), Kind::BadRequest).await;
    problem(scene.post("/tenants").body("application/json", "{"), Kind::BadRequest).await;
    problem(scene.post("/tenants").body("application/json", vec![0xff, 0xfe]), Kind::BadRequest).await;
    problem(scene.post("/tenants").body("application/json", r#"{"name":"x"}{"name":"y"}"#), Kind::BadRequest).await;
    problem(scene.post("/tenants").body("application/json", "[".repeat(60_000)), Kind::BadRequest).await;
    problem(scene.post("/tenants").body("text/plain", r#"{"name":"x"}"#), Kind::BadRequest).await;
    problem(scene.post("/tenants").json(json!({"name": "x", "unknown": 1})), Kind::BadRequest).await;
    problem(scene.post("/tenants"), Kind::BadRequest).await;
    let huge = json!({"name": "x".repeat(BODY_BYTES_MAX)});
    problem(scene.post("/tenants").json(huge), Kind::TooLarge).await;
    let answer = scene.call(Method::DELETE, "/devices").by(admin).send().await;
    answer.expect_problem(Kind::MethodNotAllowed);
    assert_eq!(answer.header("allow"), "GET,HEAD");
    let long = problem(scene.post("/tenants").json(json!({("x".repeat(10_000)): 1})), Kind::BadRequest).await;
    assert!(long["detail"].as_str().unwrap().chars().count() <= 500, "what a caller sends is not sent back at length");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_fault_of_ours_tells_nothing_of_the_inside(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let panics = get(|| async {
        if true {
            panic!("the secret inside")
        }
    });
    let scene_context = scene.context.clone();
    let scene = scene.behind(wrap(Router::new().route("/panic", panics), scene_context));
    let answer = scene.call_raw(Method::GET, "/panic").send().await;
    answer.expect_problem(Kind::Internal);
    assert!(!answer.text.contains("secret"));
    // A row that this binary cannot read is the same kind of fault.
    let Scene { context, .. } = &scene;
    sqlx::query("alter table devices drop constraint devices_state_check, drop constraint devices_check")
        .execute(&scene.root)
        .await
        .unwrap();
    scene.sql("update devices set state = 'melted' where id = $1", scene.device.as_uuid()).await;
    let api = router(context.clone());
    let scene = scene.behind(api);
    let answer = scene.get("/devices").by(&scene.admin).send().await;
    answer.expect_problem(Kind::Internal);
    assert!(!answer.text.contains("melted") && !answer.text.contains("devices"), "{}", answer.text);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn whoever_is_slow_is_told_in_time(pool: PgPoolOptions, database: PgConnectOptions) {
    let settings = Settings { request_within: Duration::from_millis(200), ..Settings::default() };
    let scene = Scene::with_settings(pool, database, settings).await;
    // A body that never comes.
    let body = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    let call = scene.post("/tenants").by(&scene.admin).body("application/json", body);
    call.send().await.expect_problem(Kind::Unavailable);
    // A row that somebody else holds.
    let mut holder = scene.store.begin(Visibility::All).await.unwrap();
    tenant_lock(&mut holder, scene.tenant).await.unwrap();
    let update = || {
        let call = scene.patch(&format!("/tenants/{}", scene.tenant)).by(&scene.customer).header("if-match", "*");
        call.json(json!({"grant_max_seconds": 600})).send()
    };
    update().await.expect_problem(Kind::Unavailable);
    drop(holder);
    let freed = async {
        while update().await.status != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed).await.expect("the row stays locked");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn headers_that_come_twice_or_in_another_encoding_are_refused(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let path = format!("/devices/{}/commands", scene.device);
    let body = json!({"kind": "device.reboot", "reason": "r"});
    let call = || scene.post(&path).by(&scene.operator).json(body.clone());
    let twice = call().header("idempotency-key", "a").header("idempotency-key", "b");
    twice.send().await.expect_problem(Kind::BadRequest);
    call().header("idempotency-key", "\u{fc}").send().await.expect_problem(Kind::BadRequest);
    let patch = scene.patch(&format!("/devices/{}", scene.device)).by(&scene.customer).json(json!({"name": "x"}));
    patch.header("if-match", "\u{fc}").send().await.expect_problem(Kind::BadRequest);
    let call = scene.get("/me").header("authorization", &format!("Bearer \u{fc}{}", scene.admin.token));
    call.send().await.expect_problem(Kind::Unauthenticated);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_route_outside_the_table_fails_closed(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let api = Router::new().route("/leak", get(v1::device::list::handler));
    let context = scene.context.clone();
    let scene = scene.behind(wrap(api, context));
    let call = scene.call_raw(Method::GET, "/leak").by(&scene.admin);
    call.send().await.expect_problem(Kind::Unauthenticated);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn request_ids_are_echoed_when_they_are_sane(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let id_for = async |given: Option<&str>| {
        let mut call = scene.get("/nowhere");
        if let Some(given) = given {
            call = call.header("x-request-id", given);
        }
        let answer = call.send().await;
        answer.expect_problem(Kind::NotFound);
        answer.header("x-request-id").to_owned()
    };
    assert_eq!(id_for(Some("deploy-7.a_b")).await, "deploy-7.a_b");
    for given in [None, Some(""), Some("a b"), Some("a\"b"), Some("{\"a\":1}"), Some(&"x".repeat(65))] {
        let id = id_for(given).await;
        assert_eq!(id.len(), 36, "{given:?} was taken");
    }
    assert_ne!(id_for(None).await, id_for(None).await);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn every_answer_has_the_headers_that_protect_browsers(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    for call in [scene.get("/me").by(&scene.admin), scene.get("/nowhere"), scene.call_raw(Method::GET, "/openapi.json")]
    {
        let answer = call.send().await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("content-security-policy"), "default-src 'none'; frame-ancestors 'none'");
        assert!(answer.header("strict-transport-security").starts_with("max-age="));
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn requests_are_counted_by_route_and_never_by_path(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let before = scene.context.metrics.render().unwrap();
    assert!(!before.contains("/api/v1/devices/{id}"));
    scene.get(&format!("/devices/{}", scene.device)).by(&scene.admin).send().await.expect(StatusCode::OK);
    scene.get("/nowhere/to/be/found").send().await.expect_problem(Kind::NotFound);
    let text = scene.context.metrics.render().unwrap();
    assert!(text.contains(r#"cloudlink_http_requests_total{route="/api/v1/devices/{id}",status="2xx"} 1"#), "{text}");
    assert!(text.contains(r#"{route="unmatched",status="4xx"} 1"#));
    assert!(!text.contains("nowhere") && !text.contains(&scene.device.to_string()));
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_token_is_used_only_so_often(pool: PgPoolOptions, database: PgConnectOptions) {
    let settings = Settings { token_requests_per_second: 1, token_requests_burst: 3, ..Settings::default() };
    let scene = Scene::with_settings(pool, database, settings).await;
    for _ in 0..3 {
        scene.get("/me").by(&scene.operator).send().await.expect(StatusCode::OK);
    }
    let answer = scene.get("/me").by(&scene.operator).send().await;
    answer.expect_problem(Kind::TooManyRequests);
    assert_eq!(answer.header("retry-after"), "1");
    scene.get("/me").by(&scene.colleague).send().await.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn an_address_that_fails_too_often_is_refused_unread(pool: PgPoolOptions, database: PgConnectOptions) {
    let settings = Settings { failures_burst: 3, ..Settings::default() };
    let scene = Scene::with_settings(pool, database, settings).await;
    let from =
        |call: Call, last: u8| call.extension(ConnectInfo(SocketAddr::from((Ipv4Addr::new(192, 0, 2, last), 40_000))));
    let junk = || scene.get("/me").header("authorization", "Bearer junk");
    for _ in 0..3 {
        from(scene.get("/me").by(&scene.admin), 1).send().await.expect(StatusCode::OK);
        from(junk(), 1).send().await.expect_problem(Kind::Unauthenticated);
    }
    let answer = from(scene.get("/me").by(&scene.admin), 1).send().await;
    answer.expect_problem(Kind::TooManyRequests);
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=4).contains(&wait), "{wait}");
    from(scene.get("/me").by(&scene.admin), 2).send().await.expect(StatusCode::OK);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_use_of_a_token_is_noted_once_a_minute(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    let used_at = async || -> Option<time::OffsetDateTime> {
        let used_at = sqlx::query_scalar("select last_used_at from api_tokens where id = $1");
        used_at.bind(scene.operator.token_id.as_uuid()).fetch_one(&scene.root).await.unwrap()
    };
    let use_it = || async { scene.get("/me").by(&scene.operator).send().await.expect(StatusCode::OK) };
    assert_eq!(used_at().await, None);
    use_it().await;
    let first = used_at().await;
    assert!(first.is_some());
    use_it().await;
    assert_eq!(used_at().await, first);
    let age = "update api_tokens set last_used_at = last_used_at - interval '61 seconds' where id = $1";
    scene.sql(age, scene.operator.token_id.as_uuid()).await;
    use_it().await;
    assert!(used_at().await > first);
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_database_that_goes_away_is_told_and_comes_back(pool: PgPoolOptions, database: PgConnectOptions) {
    let mut relay = Relay::open((database.get_host().to_owned(), database.get_port()), 0).await;
    let database = database.host("127.0.0.1").port(relay.address.port());
    let scene = Scene::new(pool.acquire_timeout(Duration::from_secs(5)), database).await;
    let list = || scene.get("/devices").by(&scene.operator).send();
    list().await.expect(StatusCode::OK);
    relay.cut().await;
    for _ in 0..3 {
        let answer = list().await;
        answer.expect_problem(Kind::Unavailable);
        assert_eq!(answer.header("retry-after"), "3");
    }
    let _relay = relay.mend().await;
    let back = async {
        while list().await.status != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), back).await.expect("the API did not come back with its database");
}

/// Shifts the clock of the database, for connections that are made from now on.
async fn shift_clock(root: &sqlx::PgPool, by: &str) {
    let name: String = sqlx::query_scalar("select current_database()").fetch_one(root).await.unwrap();
    for statement in [
        "create schema shifted".to_owned(),
        "grant usage on schema shifted to public".to_owned(),
        format!(
            "create function shifted.clock_timestamp() returns timestamptz language sql volatile
                 as $$ select pg_catalog.clock_timestamp() + interval '{by}' $$"
        ),
        format!(r#"alter database "{name}" set search_path = shifted, pg_catalog, public"#),
        // Under each of its signatures: an older one is kept for older nodes.
        "do $$ declare signature regprocedure; begin
             for signature in select oid::regprocedure from pg_proc where proname in ('command_create', 'commands_create') loop
                 execute format('alter function %s set search_path = shifted, pg_catalog, public, pg_temp', signature);
             end loop;
         end $$"
            .to_owned(),
    ] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(root).await.unwrap();
    }
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_clock_of_the_database_decides(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool.clone(), database.clone()).await;
    scene.link(scene.device).await;
    let grant = scene.grant(json!({"duration_seconds": 900})).await;
    let command = json!({"kind": "device.reboot", "reason": "r"});
    let path = format!("/devices/{}/commands", scene.device);
    scene.post(&path).by(&scene.operator).json(command.clone()).send().await.expect(StatusCode::CREATED);

    shift_clock(&scene.root, "16 minutes").await;
    let store = crate::store::Store::new(pool.clone(), database.clone());
    let context =
        Context::new(store, scene.bus.clone(), Default::default(), Settings::default(), scene.stopping.clone());
    let scene = scene.behind(router(context));
    let refused = scene.post(&path).by(&scene.operator).json(command).send().await;
    assert_eq!(refused.expect_problem(Kind::GrantRequired)["reason"], "ended");
    let shown = scene.get(&format!("/grants/{grant}")).by(&scene.customer).send().await.expect(StatusCode::OK);
    assert_eq!(shown["state"], "ended");

    sqlx::raw_sql("drop schema shifted cascade").execute(&scene.root).await.unwrap();
    shift_clock(&scene.root, "25 hours").await;
    let store = crate::store::Store::new(pool, database);
    let context =
        Context::new(store, scene.bus.clone(), Default::default(), Settings::default(), scene.stopping.clone());
    let scene = scene.behind(router(context));
    scene.get("/me").by(&scene.operator).send().await.expect_problem(Kind::Unauthenticated);
}
