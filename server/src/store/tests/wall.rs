//! Between tenants: every table and every function of the catalogue, tried from the other side. What is new there and not said
//! here fails.

use serde_json::Value;

use super::*;

/// Columns that tell whose a row is, and what they hold of both tenants' rows.
struct Table {
    name: String,
    column: &'static str,
    own: Uuid,
    others: Uuid,
}

impl Table {
    fn of(&self, whose: Uuid) -> String {
        format!("{} = '{whose}'", self.column)
    }
}

/// Every table in which a tenant may do anything at all.
async fn tables(scene: &Scene) -> Vec<Table> {
    let open: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c
          where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
            and case when c.relkind = 'S' then has_sequence_privilege('cloudlink_tenant', c.oid, 'usage, select, update')
                     else has_any_column_privilege('cloudlink_tenant', c.oid, 'select, insert, update, references')
                       or has_table_privilege('cloudlink_tenant', c.oid, 'delete, truncate, trigger') end
          order by 1",
    )
    .fetch_all(&scene.root)
    .await
    .unwrap();
    assert!(open.len() >= 25, "{open:?}");
    let with_tenant: Vec<String> = tables_of_tenants(scene).await.into_iter().map(|(name, _)| name).collect();
    let table = |name: String| {
        let (column, own, others) = match name.as_str() {
            "tenants" => ("id", scene.tenant.as_uuid(), scene.other_tenant.as_uuid()),
            "api_tokens" => ("person_id", scene.customer.id.as_uuid(), scene.other_customer.id.as_uuid()),
            known if with_tenant.iter().any(|name| name == known) => {
                ("tenant_id", scene.tenant.as_uuid(), scene.other_tenant.as_uuid())
            }
            other => panic!("say here whose a row of {other} is, or take it from cloudlink_tenant"),
        };
        Table { name, column, own, others }
    };
    open.into_iter().map(table).collect()
}

/// The columns of a table for which the tenants' role has the privilege.
async fn columns(scene: &Scene, table: &Table, privilege: &str) -> Vec<String> {
    let columns = sqlx::query_scalar(
        "select attname::text from pg_attribute
          where attrelid = $1::regclass and attnum > 0 and not attisdropped
            and has_column_privilege('cloudlink_tenant', attrelid, attname, $2)
          order by attnum",
    );
    columns.bind(&table.name).bind(privilege).fetch_all(&scene.root).await.unwrap()
}

/// What a tenant's update of a row may set, one column each, so that nothing changes where it can say so.
async fn settings(scene: &Scene, table: &Table) -> Vec<String> {
    let readable = columns(scene, table, "select").await;
    let setting = |column: String| {
        let value = if readable.contains(&column) { &column } else { "default" };
        format!("{column} = {value}")
    };
    columns(scene, table, "update").await.into_iter().map(setting).collect()
}

/// One row of a table, as its superuser sees it.
async fn row(scene: &Scene, table: &Table, whose: Uuid) -> Value {
    let row = format!("select to_jsonb(t) from {} t where {} limit 1", table.name, table.of(whose));
    let row = sqlx::query_scalar(AssertSqlSafe(row)).fetch_optional(&scene.root).await.unwrap();
    row.unwrap_or_else(|| panic!("{} has no row of each tenant: fill() lacks it", table.name))
}

/// An insert of such a row, with those columns that a tenant may write. Its id is new.
fn insertion(table: &Table, columns: &[String], mut row: Value) -> String {
    if columns.iter().any(|column| column == "id") {
        row["id"] = Uuid::now_v7().to_string().into();
    }
    if table.name == "people" {
        // A tenant makes service accounts, and no people.
        row["kind"] = "service".into();
    }
    let (name, columns, row) = (&table.name, columns.join(", "), row.to_string().replace('\'', "''"));
    format!("insert into {name} ({columns}) select {columns} from jsonb_populate_record(null::{name}, '{row}')")
}

/// Whether it was refused for whom it is of: by a right, by row-level security, or by a trigger that looks at it.
fn is_refused(outcome: &str) -> bool {
    matches!(outcome, "42501" | "23514")
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_table_lets_a_tenant_reach_anothers_rows(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    fill(&scene).await;
    let (tenant, other) = (Visibility::Tenant(scene.tenant), Visibility::Tenant(scene.other_tenant));
    let (mut read, mut written, mut inserted) = (0, 0, 0);
    for table in tables(&scene).await {
        let (name, theirs) = (&table.name, table.of(table.others));
        let count =
            format!("do $$ begin perform from {name} where {theirs}; if found then raise 'seen'; end if; end $$");
        if !columns(&scene, &table, "select").await.is_empty() {
            assert_eq!(attempt(&scene, other, &count).await, "P0001", "{name} hides the tenant's own");
            assert_eq!(attempt(&scene, tenant, &count).await, "0 rows", "{name} shows another's");
            read += 1;
        }
        for setting in settings(&scene, &table).await {
            let update = format!("update {name} set {setting} where {theirs}");
            assert_eq!(attempt(&scene, tenant, &update).await, "0 rows", "{update}");
            // What is final is seen, and refused for that.
            let own = attempt(&scene, other, &update).await;
            assert!(
                own == "23514" || own.parse::<u64>().is_err() && own != "0 rows" && own != "42501",
                "{update}: {own}"
            );
            let everywhere = attempt(&scene, tenant, &format!("update {name} set {setting}")).await;
            let all: i64 =
                sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {name} where {}", table.of(table.own))))
                    .fetch_one(&scene.root)
                    .await
                    .unwrap();
            assert!(is_refused(&everywhere) || everywhere == format!("{all} rows"), "{name}: {setting}: {everywhere}");
            written += 1;
        }
        let moved = format!("update {name} set {} = '{}'", table.column, table.others);
        assert_eq!(attempt(&scene, tenant, &moved).await, "42501", "{moved}");
        let insertable = columns(&scene, &table, "insert").await;
        if !insertable.is_empty() {
            let insert = insertion(&table, &insertable, row(&scene, &table, table.others).await);
            let outcome = attempt(&scene, tenant, &insert).await;
            assert!(is_refused(&outcome), "{insert}: {outcome}");
            // The same is fine for whom it is of, up to what must be there once only.
            let own = attempt(&scene, other, &insert).await;
            assert!(own == "1 rows" || own == "23505", "{insert}: {own}");
            inserted += 1;
        }
        for statement in [format!("delete from {name} where {theirs}"), format!("truncate {name} cascade")] {
            assert_eq!(attempt(&scene, tenant, &statement).await, "42501", "{statement}");
        }
    }
    assert!(read >= 25 && written >= 25 && inserted >= 8, "{read} read, {written} written, {inserted} inserted");
}

/// The rows that a tenant makes name nobody and nothing of another tenant, which a foreign key alone would let it.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_row_that_a_tenant_makes_names_what_is_anothers(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    fill(&scene).await;
    let mut tried = 0;
    for table in tables(&scene).await {
        let insertable = columns(&scene, &table, "insert").await;
        let references: Vec<String> = sqlx::query_scalar(
            "select a.attname::text from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[1]
              where k.conrelid = $1::regclass and k.contype = 'f' and a.attname = any ($2)",
        )
        .bind(&table.name)
        .bind(&insertable)
        .fetch_all(&scene.root)
        .await
        .unwrap();
        let (own, others) = (row(&scene, &table, table.own).await, row(&scene, &table, table.others).await);
        for column in references {
            if others[&column].is_null() {
                continue;
            }
            let mut mixed = own.clone();
            mixed[&column] = others[&column].clone();
            let insert = insertion(&table, &insertable, mixed);
            let outcome = attempt(&scene, Visibility::Tenant(scene.tenant), &insert).await;
            assert!(is_refused(&outcome), "{}.{column} of another: {outcome}", table.name);
            tried += 1;
        }
    }
    assert!(tried >= 12, "{tried}");
}

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn without_a_tenant_the_tenants_role_does_nothing(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    fill(&scene).await;
    let attempt = async |statement: String| {
        let mut transaction = scene.store.begin(Visibility::All).await.unwrap();
        transaction.execute("set local role cloudlink_tenant").await.unwrap();
        let result = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await;
        result.map_or_else(|error| code(&error), |done| format!("{} rows", done.rows_affected()))
    };
    for table in tables(&scene).await {
        let name = &table.name;
        let seen = format!("do $$ begin perform from {name}; if found then raise 'seen'; end if; end $$");
        let seen = attempt(seen).await;
        assert!(seen == "0 rows" || seen == "42501", "{name}: {seen}");
        for setting in settings(&scene, &table).await {
            assert_eq!(attempt(format!("update {name} set {setting}")).await, "0 rows", "{name}");
        }
        let insertable = columns(&scene, &table, "insert").await;
        if !insertable.is_empty() {
            let outcome = attempt(insertion(&table, &insertable, row(&scene, &table, table.own).await)).await;
            assert!(is_refused(&outcome), "{name}: {outcome}");
        }
    }
}

/// What a function with the owner's rights answers a tenant that names what is another's: `$own` and `$other` are the two
/// tenants, `$person`, `$stranger` their people, and `$thing` the other one's grant, request, policy or webhook.
const FUNCTIONS: [(&str, &str, &str); 15] = [
    ("audit_append", "audit_append('$other', '{}', 'x', '{}', '{}')", "42501"),
    (
        "audit_append_all",
        "audit_append_all('$other', array['{}'::jsonb], '{x}', array['{}'::jsonb], array['{}'::jsonb])",
        "42501",
    ),
    ("notice_emit", "notice_emit('$other', 'grant.created', '{}', true, null)", "42501"),
    ("notice_emit", "notice_emit('$own', 'x', '{}', false, array['$stranger'::uuid])", "0"),
    ("webhook_rotate", "webhook_rotate('$thing', sha256(''), '1 hour')", "nothing"),
    ("email_set", "email_set('$stranger', 'x@example.com')", "nothing"),
    ("person_private", "(person_private('$stranger')).email", "nothing"),
    ("person_private", "(person_private('$operator')).email", "nothing"),
    (
        "access_request_propose",
        "access_request_propose(gen_random_uuid(), '$person', '$grant', null, null, null, null, 'r', null, now() + '1 hour', null, '1 hour')",
        "grant_over",
    ),
    (
        "access_request_propose",
        "access_request_propose(gen_random_uuid(), '$stranger', null, '{shell:open}', null, array['$thing'::uuid], null, 'r', null, null, '1 hour', '1 hour')",
        "person",
    ),
    (
        "access_request_decide",
        "access_request_decide('$thing', '$person', 'approve', null, null, null, null, gen_random_uuid(), null, null)",
        "unknown",
    ),
    (
        "access_request_decide",
        "access_request_decide('$request', '$stranger', 'deny', null, null, null, null, null, null, null)",
        "person",
    ),
    ("access_request_withdraw", "access_request_withdraw('$thing', '$stranger')", "unknown"),
    ("access_policy_approve", "access_policy_approve('$thing', '$person')", "unknown"),
    ("tenant_set_approvals", "tenant_set_approvals('$stranger', 2, '1 hour')", "person"),
];

#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn no_function_with_the_owners_rights_crosses_for_a_tenant(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    fill(&scene).await;
    scene.sql("update people set email = 'olga@example.com' where id <> $1", Uuid::nil()).await;
    let functions: Vec<(String, bool, bool)> = sqlx::query_as(
        "select p.proname::text, has_function_privilege('cloudlink_tenant', p.oid, 'execute'),
                coalesce(p.proconfig @> array['search_path=public, pg_temp'], false)
           from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prosecdef
            -- Nobody calls those of triggers.
            and p.prorettype <> 'trigger'::regtype order by 1",
    )
    .fetch_all(&scene.root)
    .await
    .unwrap();
    assert!(functions.len() >= 14, "{functions:?}");
    for (name, is_the_tenants, has_path) in &functions {
        assert!(has_path, "{name} looks for tables where its caller says");
        let is_tried = FUNCTIONS.iter().any(|(tried, ..)| tried == name);
        assert_eq!(is_tried, *is_the_tenants, "{name}: try it here with what is another tenant's");
    }
    let before = contents(&scene).await;
    let (request, own_request): (Uuid, Uuid) = (scene.other_device.as_uuid(), scene.device.as_uuid());
    let grant: Uuid = sqlx::query_scalar("select id from grants where tenant_id = $1")
        .bind(scene.other_tenant.as_uuid())
        .fetch_one(&scene.root)
        .await
        .unwrap();
    for (name, call, expected) in FUNCTIONS {
        let call = call
            .replace("$own", &scene.tenant.to_string())
            .replace("$other", &scene.other_tenant.to_string())
            .replace("$person", &scene.customer.id.to_string())
            .replace("$stranger", &scene.other_customer.id.to_string())
            .replace("$operator", &scene.operator.id.to_string())
            .replace("$grant", &grant.to_string())
            .replace("$request", &own_request.to_string())
            .replace("$thing", &request.to_string());
        let mut transaction = scene.store.begin(Visibility::Tenant(scene.tenant)).await.unwrap();
        transaction.execute("select set_config('cloudlink.mail', 'on', true)").await.unwrap();
        let answer = format!("select coalesce(({call})::text, 'nothing')");
        let said = sqlx::query_scalar::<_, String>(AssertSqlSafe(answer)).fetch_one(&mut *transaction).await;
        let said = said.unwrap_or_else(|error| code(&error));
        assert_eq!(said, expected, "{call}");
        // What was refused in a word is given up by whoever asked. Here it is kept, to see that it was nothing.
        if said != "42501" {
            scene.store.commit(transaction).await.unwrap();
        }
        assert_eq!(contents(&scene).await, before, "{name} has changed something");
    }
}

/// What is in all tables, table by table.
async fn contents(scene: &Scene) -> Vec<(String, Option<String>)> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' order by 1",
    )
    .fetch_all(&scene.root)
    .await
    .unwrap();
    let digest = |table| format!("select '{table}', md5(string_agg(t::text, ' ' order by t::text)) from {table} t");
    let all: Vec<String> = tables.into_iter().map(digest).collect();
    sqlx::query_as(AssertSqlSafe(all.join(" union all "))).fetch_all(&scene.root).await.unwrap()
}

/// The server's own role has nothing of the tenants' role but the right to take it: it decides nothing in their place.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn the_servers_own_role_decides_nothing_for_a_tenant(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    fill(&scene).await;
    let inherits = "select pg_has_role('cloudlink_app', 'cloudlink_tenant', 'usage')";
    let inherits: bool = sqlx::query_scalar(inherits).fetch_one(&scene.root).await.unwrap();
    assert!(!inherits, "cloudlink_app has the rights of cloudlink_tenant");
    let token = |created_by| {
        format!(
            "insert into enrollment_tokens (id, tenant_id, created_by, secret_hash, device_name, expires_at)
             values (gen_random_uuid(), '{}', '{created_by}', sha256('x'), 'x', now())",
            scene.tenant
        )
    };
    for statement in [
        "insert into signing_keys (id, tenant_id, name, algorithm, public_key, created_by)
         select gen_random_uuid(), tenant_id, 'mine', algorithm, sha256('mine'), created_by from signing_keys"
            .to_owned(),
        "update signing_keys set public_key = sha256('mine')".to_owned(),
        "update signing_keys set revoked_at = now()".to_owned(),
        "update tenants set signed_grants = false".to_owned(),
        "update tenants set recording_keep_days = 1".to_owned(),
        "update tenants set approvals_needed = 1".to_owned(),
        "update tenants set internal = false".to_owned(),
        "update grants set statement = 'x'".to_owned(),
        "insert into webhooks (id, tenant_id, url, events, secret_sealed, created_by)
         select gen_random_uuid(), tenant_id, url, events, secret_sealed, created_by from webhooks"
            .to_owned(),
        "update enrollment_tokens set secret_hash = sha256('mine')".to_owned(),
        "update enrollment_tokens set expires_at = now() + interval '1 day'".to_owned(),
        token(scene.operator.id),
        token(scene.customer.id),
    ] {
        assert_eq!(attempt(&scene, Visibility::All, &statement).await, "42501", "{statement}");
    }
    assert_eq!(attempt(&scene, Visibility::All, &token(scene.admin.id)).await, "1 rows");
    super::super::setup::privilege_check(&scene.store).await.unwrap();
}

/// A server whose role was given a right too many does not start.
#[sqlx::test(migrator = "crate::store::MIGRATOR")]
async fn a_right_too_many_is_found_at_the_start(pool: PgPoolOptions, database: PgConnectOptions) {
    let scene = Scene::new(pool, database).await;
    for (right, table) in [
        ("insert", "signing_keys"),
        ("update (signed_grants)", "tenants"),
        ("update (ends_at)", "grants"),
        ("insert", "access_policies"),
        ("update", "audit"),
    ] {
        let change = |verb, to| AssertSqlSafe(format!("{verb} {right} on {table} {to} cloudlink_app"));
        sqlx::raw_sql(change("grant", "to")).execute(&scene.root).await.unwrap();
        let error = super::super::setup::privilege_check(&scene.store).await.unwrap_err().to_string();
        assert!(error.contains(&format!("on table {table}")), "{error}");
        sqlx::raw_sql(change("revoke", "from")).execute(&scene.root).await.unwrap();
    }
    super::super::setup::privilege_check(&scene.store).await.unwrap();
}
