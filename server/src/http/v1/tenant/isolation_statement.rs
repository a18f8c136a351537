//! `GET /tenants/{id}/isolation-statements/{day}`. Made from the records each time it is asked for, so it is not audited: nothing
//! changes, and nobody sees what they could not see otherwise.

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use cloudlink_certs::StatementKind;
use cloudlink_proto::ids::TenantId;
use time::macros::format_description;
use time::{Date, Duration};

use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem};
use crate::http::request::{Json, NoQuery, uuid_in_path};
use crate::http::{Context, Statements};
use crate::model::isolation_statement::{
    COMPLETE_AFTER, Day, GAP_MAX, IsolationStatement, NodeDay, SignedIsolationStatement, TenantName, VERSION, conclude,
};
use crate::store::isolation_statement::{Records, Snapshot, StatementTenant};

/// A signed statement of how a tenant's devices were kept apart on a day
#[utoipa::path(get, path = "/tenants/{id}/isolation-statements/{day}", operation_id = "isolation_statement_show",
    tag = "isolation", params(("id" = uuid::Uuid, Path), ("day" = String, Path, format = Date, description = "In UTC, as 2026-11-21")),
    responses((status = 200, body = SignedIsolationStatement)))]
#[tracing::instrument(name = "http.tenant.isolation_statement", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Path((id, day)): Path<(String, String)>,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    let (id, day) = (TenantId::from_uuid(uuid_in_path(&id)?), day_in_path(&day)?);
    let statements = context.statements.as_deref().ok_or_else(Problem::internal)?;
    if caller.tenant().is_some_and(|own| own != id) {
        return Err(Problem::not_found());
    }
    let mut snapshot = Snapshot::begin(&context.store).await?;
    let tenant = snapshot.tenant(id).await?.ok_or_else(Problem::not_found)?;
    check_day(day, &tenant, statements)?;
    let content = content(statements, tenant, day, snapshot.records(id, day).await?);
    let statement = statements.signer.sign(StatementKind::Isolation, &content);
    let statement = statement.map_err(Problem::internal_because)?;
    Ok(Json(SignedIsolationStatement { statement, content }))
}

fn day_in_path(text: &str) -> Result<Day, Problem> {
    let day = Date::parse(text, format_description!("[year]-[month]-[day]"));
    day.map(Day::new).map_err(|_| Problem::bad_request("The day in the path is no date as 2026-11-21."))
}

/// Whether there is anything to say about the day.
fn check_day(day: Day, tenant: &StatementTenant, statements: &Statements) -> Result<(), Problem> {
    let none = |detail: String| Err(Problem::new(Kind::NotFound, detail));
    let (today, first) = (Day::of(tenant.now).date(), Day::of(tenant.created_at).date());
    let oldest = today.saturating_sub(Duration::days(statements.keep_days.into()));
    if day.date() > today {
        return none(format!("That day has not begun: today is {today} (UTC)."));
    }
    if day.date() < first {
        return none(format!("The tenant is there since {first} (UTC): there is nothing to say about an earlier day."));
    }
    if day.date() < oldest {
        let keep_days = statements.keep_days;
        return none(format!(
            "Proofs are kept for {keep_days} days (isolation.proof_keep_days): statements can be made from {oldest} on. \
             Keep the ones that were made before."
        ));
    }
    Ok(())
}

fn content(statements: &Statements, tenant: StatementTenant, day: Day, records: Records) -> IsolationStatement {
    let Records { nodes, drops, quarantines, openings, truncated } = records;
    let nodes: Vec<_> = nodes.into_iter().map(|node| NodeDay::new(node, tenant.now)).collect();
    let (conclusion, reasons) = conclude(&nodes);
    IsolationStatement {
        version: VERSION,
        trust_domain: statements.signer.trust_domain().to_string(),
        tenant: TenantName { id: tenant.id, name: tenant.name },
        day: day.date(),
        complete: tenant.now >= day.end() + COMPLETE_AFTER,
        made_at: tenant.now,
        conclusion,
        reasons,
        gap_seconds_max: GAP_MAX.whole_seconds(),
        nodes,
        drops,
        quarantines,
        openings,
        truncated,
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::{Value, json};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use time::OffsetDateTime;

    use super::*;
    use crate::http::testing::{Scene, Somebody};
    use crate::pki::statement::tests::SIGNER;

    /// Whole days before the present one.
    fn days_ago(days: i64) -> Day {
        Day::new(Day::of(crate::clock::now()).date() - Duration::days(days))
    }

    fn path(scene: &Scene, day: Day) -> String {
        format!("/tenants/{}/isolation-statements/{}", scene.tenant, day.date())
    }

    /// A tenant that is a month old.
    async fn scene(pool: PgPoolOptions, database: PgConnectOptions) -> Scene {
        let scene = Scene::new(pool, database).await;
        scene
            .sql("update tenants set created_at = now() - interval '30 days' where id = $1", scene.tenant.as_uuid())
            .await;
        scene
    }

    async fn ask(scene: &Scene, day: Day, by: &Somebody) -> Value {
        scene.get(&path(scene, day)).by(by).send().await.expect(StatusCode::OK)["content"].clone()
    }

    /// Runs statements of which `{}` is the start of the day.
    async fn at_day(scene: &Scene, day: Day, sql: &str) {
        let sql = sql.replace("{}", &format!("timestamptz '{} 00:00 UTC'", day.date()));
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&scene.root).await.unwrap();
    }

    /// The node carried tunnels of the tenant between these minutes of the day.
    async fn carried(scene: &Scene, day: Day, node: &str, from: u32, until: u32) {
        at_day(
            scene,
            day,
            &format!(
                "insert into tunnel_days values ('{}', ({{}} at time zone 'utc')::date, '{node}', tstzmultirange(
                     tstzrange({{}} + interval '{from} minutes', {{}} + interval '{until} minutes')))
                 on conflict (tenant_id, day, node) do update set spans = tunnel_days.spans + excluded.spans",
                scene.tenant
            ),
        )
        .await;
    }

    /// A proof in each of these minutes.
    async fn proofs(scene: &Scene, day: Day, node: &str, minutes: std::ops::Range<u32>, outcome: &str) {
        at_day(
            scene,
            day,
            &format!(
                "insert into isolation_proofs
                 select gen_random_uuid(), '{node}', 'timer', at, at + interval '2 seconds', '{outcome}', sha256('rules'), 100,
                        '[{{\"kind\": \"device_tunnel\", \"must\": \"refused\", \"attempts\": 100, \"wrong\": 1}}]'
                   from generate_series({}, {} - 1) n cross join lateral (select {{}} + n * interval '1 minute' as at) t",
                minutes.start, minutes.end
            ),
        )
        .await;
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_statement_says_what_was_measured_and_is_signed(pool: PgPoolOptions, database: PgConnectOptions) {
        let (scene, day) = (scene(pool, database).await, days_ago(1));
        carried(&scene, day, "node-1", 600, 660).await;
        carried(&scene, day, "node-1", 720, 730).await;
        proofs(&scene, day, "node-1", 590..735, "proven").await;
        proofs(&scene, day, "node-2", 0..10, "leak").await;
        let (device, tenant) = (scene.device, scene.tenant);
        at_day(&scene, day, &format!(
            "insert into device_drops values ('{device}', '{tenant}', ({{}} at time zone 'utc')::date, 'source', 7, {{}}, {{}});
             insert into grants (id, tenant_id, created_by, reason, scopes, device_ids, starts_at, ends_at)
             values ('{device}', '{tenant}', '{}', 'fix it', '{{tcp:open}}', '{{{device}}}', {{}}, {{}} + interval '1 hour');
             insert into openings (id, tenant_id, device_id, grant_id, opened_by, port, reason, created_at, expires_at, opened_at,
                                   ended_at, end_reason)
             values ('{device}', '{tenant}', '{device}', '{device}', '{}', 80, 'fix it', {{}}, {{}} + interval '1 hour', {{}},
                     {{}} + interval '1 minute', 'closed')",
            scene.customer.id, scene.operator.id)).await;
        let answer = scene.get(&path(&scene, day)).by(&scene.customer).send().await.expect(StatusCode::OK);
        let content = &answer["content"];
        assert_eq!(content["conclusion"], "proven", "{content}");
        assert_eq!((&content["version"], &content["complete"]), (&json!(1), &json!(true)));
        assert_eq!(content["tenant"], json!({"id": tenant.to_string(), "name": "Hotel"}));
        assert_eq!(content["day"], day.date().to_string());
        assert_eq!((&content["reasons"], &content["truncated"]), (&json!([]), &json!(false)));
        let [node] = content["nodes"].as_array().unwrap().as_slice() else { panic!("{content}") };
        assert_eq!(node["node"], "node-1");
        assert_eq!(
            node["carried"][1],
            json!({
                "from": format!("{}T12:00:00Z", day.date()), "until": format!("{}T12:10:00Z", day.date()),
            })
        );
        assert_eq!(node["proofs"], json!({"proven": 145, "failed": 0, "leak": 0}));
        assert_eq!((&node["attempts"], &node["longest_gap_seconds"]), (&json!(14_500), &json!(60)));
        assert_eq!(node["first_proven_at"], format!("{}T09:50:00Z", day.date()));
        assert_eq!(node["last_proven_at"], format!("{}T12:14:00Z", day.date()));
        assert_eq!(node["policies"].as_array().unwrap().len(), 1);
        assert_eq!((&content["drops"][0]["reason"], &content["drops"][0]["packets"]), (&json!("source"), &json!(7)));
        assert_eq!(content["drops"][0]["device_name"], "lobby");
        let opening = &content["openings"][0];
        assert_eq!((&opening["port"], &opening["end_reason"]), (&json!(80), &json!("closed")));

        let statement = answer["statement"].as_str().unwrap();
        let verified = SIGNER.1.verify_statement(StatementKind::Isolation, statement).unwrap();
        assert_eq!(&serde_json::from_str::<Value>(&verified.content).unwrap(), content);
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn each_conclusion_follows_from_the_rows(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        let conclusion = async |day| {
            let content = ask(&scene, day, &scene.customer).await;
            (content["conclusion"].as_str().unwrap().to_owned(), content["reasons"].as_array().unwrap().len())
        };
        let is = |conclusion: &str, reasons| (conclusion.to_owned(), reasons);

        // Proofs and leaks of nodes that did not carry the tenant's tunnels are none of its business.
        proofs(&scene, days_ago(1), "node-1", 0..10, "leak").await;
        assert_eq!(conclusion(days_ago(1)).await, is("no_tunnels", 0));

        carried(&scene, days_ago(2), "node-1", 0, 60).await;
        assert_eq!(conclusion(days_ago(2)).await, is("not_proven", 1));
        proofs(&scene, days_ago(2), "node-1", 20..60, "proven").await;
        assert_eq!(conclusion(days_ago(2)).await, is("proven_with_gaps", 1));
        proofs(&scene, days_ago(2), "node-1", 0..20, "proven").await;
        assert_eq!(conclusion(days_ago(2)).await, is("proven", 0));

        // What differed from the day before on, and was repaired on this one.
        at_day(
            &scene,
            days_ago(2),
            "insert into isolation_drifts values (gen_random_uuid(), 'node-1', {} - interval '1 second',
                 {} + interval '1 second', 'rules', '[\"a rule of somebody else\"]')",
        )
        .await;
        assert_eq!(conclusion(days_ago(2)).await, is("proven_with_gaps", 1));
        let content = ask(&scene, days_ago(2), &scene.customer).await;
        assert_eq!(content["nodes"][0]["drifts"][0]["differences"], 1, "their number, and not what they were");

        carried(&scene, days_ago(2), "node-2", 0, 60).await;
        assert_eq!(conclusion(days_ago(2)).await, is("not_proven", 2));
        proofs(&scene, days_ago(2), "node-2", 0..59, "failed").await;
        assert_eq!(conclusion(days_ago(2)).await, is("not_proven", 2), "rounds that failed prove nothing");
        proofs(&scene, days_ago(2), "node-2", 59..60, "leak").await;
        assert_eq!(conclusion(days_ago(2)).await, is("leak", 3));
        let content = ask(&scene, days_ago(2), &scene.customer).await;
        assert_eq!(content["nodes"][1]["leaks"][0]["results"][0]["wrong"], 1);
        // The next day has nothing of it.
        assert_eq!(conclusion(days_ago(1)).await, is("no_tunnels", 0));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_day_that_is_not_over_is_not_complete(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        // Not the day of this machine's clock, should it change in between.
        carried(&scene, days_ago(0), "node-1", 0, 24 * 60).await;
        let content = ask(&scene, days_ago(0), &scene.admin).await;
        let made_at: OffsetDateTime =
            OffsetDateTime::parse(content["made_at"].as_str().unwrap(), &time::format_description::well_known::Rfc3339)
                .unwrap();
        assert_eq!(content["complete"], false);
        let elapsed = (made_at - days_ago(0).start()).whole_seconds();
        assert_eq!(content["nodes"][0]["longest_gap_seconds"], elapsed, "what is to come is no gap");
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn a_quarantine_that_is_over_is_told(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        let path = |verb: &str| format!("/devices/{}/{verb}", scene.device);
        let quarantine = scene.post(&path("quarantine")).by(&scene.customer).json(json!({"reason": "it tried"}));
        quarantine.send().await.expect(StatusCode::OK);
        scene.post(&path("release")).by(&scene.customer).send().await.expect(StatusCode::OK);
        let content = ask(&scene, days_ago(0), &scene.customer).await;
        let [told] = content["quarantines"].as_array().unwrap().as_slice() else { panic!("{content}") };
        assert_eq!((&told["device_name"], &told["reason"]), (&json!("lobby"), &json!("it tried")));
        assert_eq!(ask(&scene, days_ago(1), &scene.customer).await["quarantines"], json!([]));
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn days_of_which_nothing_is_known_have_no_statement(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        let refused = async |day: String| {
            let path = format!("/tenants/{}/isolation-statements/{day}", scene.tenant);
            let problem = scene.get(&path).by(&scene.customer).send().await.expect_problem(Kind::NotFound);
            problem["detail"].as_str().unwrap().to_owned()
        };
        assert!(refused(days_ago(-1).date().to_string()).await.contains("has not begun"));
        assert!(refused(days_ago(31).date().to_string()).await.contains("is there since"));
        ask(&scene, days_ago(30), &scene.customer).await;
        scene
            .sql("update tenants set created_at = now() - interval '1 year' where id = $1", scene.tenant.as_uuid())
            .await;
        ask(&scene, days_ago(90), &scene.customer).await;
        assert!(refused(days_ago(91).date().to_string()).await.contains("kept for 90 days"));
        for day in ["yesterday", "2026-11-31", "2026-1-1", "20261121", "2026-11-21T00:00:00Z"] {
            let path = format!("/tenants/{}/isolation-statements/{day}", scene.tenant);
            scene.get(&path).by(&scene.customer).send().await.expect_problem(Kind::BadRequest);
        }
    }

    #[sqlx::test(migrator = "crate::store::MIGRATOR")]
    async fn tenants_get_their_own_statements_and_operators_none(pool: PgPoolOptions, database: PgConnectOptions) {
        let scene = scene(pool, database).await;
        let path = path(&scene, days_ago(1));
        scene.get(&path).by(&scene.admin).send().await.expect(StatusCode::OK);
        scene.get(&path).by(&scene.customer).send().await.expect(StatusCode::OK);
        scene.get(&path).by(&scene.other_customer).send().await.expect_problem(Kind::NotFound);
        scene.get(&path).by(&scene.operator).send().await.expect_problem(Kind::Forbidden);
        let unknown = format!("/tenants/{}/isolation-statements/2026-11-21", uuid::Uuid::now_v7());
        scene.get(&unknown).by(&scene.admin).send().await.expect_problem(Kind::NotFound);
        assert!(scene.audited(scene.tenant).await.is_empty());
    }
}
