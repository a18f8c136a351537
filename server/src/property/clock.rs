//! A database whose clock the test sets.
//!
//! The functions of Postgres that tell the time make room, under another name, for functions that read a sequence: what is set there
//! holds at once, for every connection and in the middle of every transaction, as a real clock does. It is done before the migrations
//! run, so whatever they bind (defaults, constraints, bodies of functions) is bound to it, and there is nothing of ours to alter.

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::store::migrate;

/// Monday, 15 June 2020, 10:00 UTC, in microseconds: where every sequence begins. Long past, so that a real time shows.
pub(crate) const START: i64 = 1_592_215_200_000_000;
pub(super) const SECOND: i64 = 1_000_000;
pub(super) const DAY: i64 = 86_400 * SECOND;

/// The functions that tell the time.
const FUNCTIONS: [&str; 4] = ["clock_timestamp", "now", "statement_timestamp", "transaction_timestamp"];

/// Empties a database, replaces its clock, and migrates it.
pub(crate) async fn install(database: &PgConnectOptions) {
    let mut root = PgConnection::connect_with(database).await.unwrap();
    let mut script = format!(
        "drop schema public cascade;
         create schema public;
         grant usage on schema public to public;
         create schema virtual;
         create sequence virtual.micros;
         select setval('virtual.micros', {START});
         do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$;"
    );
    for name in FUNCTIONS {
        script += &format!(
            "alter function pg_catalog.{name}() rename to real_{name};
             create function pg_catalog.{name}() returns timestamptz
                 language sql volatile security definer set search_path = pg_catalog
                 as $$ select timestamptz 'epoch' + last_value * interval '1 microsecond' from virtual.micros $$;"
        );
    }
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut root).await.unwrap();
    migrate(&mut root).await.unwrap();
    root.close().await.unwrap();
}

pub(crate) async fn set(root: &PgPool, micros: i64) {
    sqlx::query("select setval('virtual.micros', $1)").bind(micros).execute(root).await.unwrap();
}

/// What could read the real clock all the same: words of the language that are no functions, and the functions by their new names.
const OTHER_CLOCKS: &str = r"\m(current_timestamp|current_date|current_time|localtimestamp|localtime|timeofday|real_\w+)\M|'(now|today|tomorrow|yesterday)'";

/// Everything in the database that says one of these: bodies of functions, and what tables, views and policies are made of.
pub(super) async fn read_otherwise(root: &PgPool) -> Vec<String> {
    let found = "
        with text as (
            select p.proname::text as name, p.prosrc as text from pg_proc p where p.pronamespace = 'public'::regnamespace
            union all select d.adrelid::regclass::text, pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d
            union all select c.conname::text, pg_get_constraintdef(c.oid) from pg_constraint c
             where c.connamespace = 'public'::regnamespace
            union all select i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) from pg_index i
            union all select t.tgname::text, pg_get_triggerdef(t.oid) from pg_trigger t where not t.tgisinternal
            union all select l.polname::text, concat(pg_get_expr(l.polqual, l.polrelid), pg_get_expr(l.polwithcheck, l.polrelid))
              from pg_policy l
            union all select v.viewname::text, v.definition from pg_views v where v.schemaname = 'public')
        select distinct name from text where text ~* $1";
    sqlx::query_scalar(found).bind(OTHER_CLOCKS).fetch_all(root).await.unwrap()
}

/// Those of these texts that say one of them.
pub(super) async fn reading_otherwise(root: &PgPool, texts: &[String]) -> Vec<String> {
    let found = sqlx::query_scalar("select text from unnest($1::text[]) text where text ~* $2");
    found.bind(texts).bind(OTHER_CLOCKS).fetch_all(root).await.unwrap()
}

/// Columns that hold a time of this millennium's later years: somebody has read another clock.
pub(super) async fn columns_of_the_present(root: &PgPool) -> Vec<String> {
    let columns: Vec<(String, String)> = sqlx::query_as(
        "select table_name::text, column_name::text from information_schema.columns c
          where table_schema = 'public' and data_type = 'timestamp with time zone' and table_name <> '_sqlx_migrations'
            and (table_name, column_name) <> ('api_tokens', 'expires_at')",
    )
    .fetch_all(root)
    .await
    .unwrap();
    assert!(columns.len() > 50, "{columns:?}");
    let mut present = Vec::new();
    for (table, column) in columns {
        let is_present = format!("select exists (select from {table} where {column} > '2024-01-01')");
        if sqlx::query_scalar(AssertSqlSafe(is_present)).fetch_one(root).await.unwrap() {
            present.push(format!("{table}.{column}"));
        }
    }
    present
}
