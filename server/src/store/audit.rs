//! The audit log. Written by `audit_append()` alone, in the transaction of what it records, and last in it: writers of one
//! tenant wait for one another from there to the commit.

use cloudlink_proto::ids::TenantId;
use sqlx::PgConnection;
use uuid::Uuid;

use super::StoreError;
use crate::model::audit::{Actor, AuditEntry, Subject};

/// Appends to the chain of a tenant, or of [`crate::model::audit::PLATFORM`]. Call it last before the commit.
pub async fn audit_append(
    connection: &mut PgConnection,
    tenant: TenantId,
    actor: &Actor,
    action: &str,
    subject: Subject,
    details: serde_json::Value,
) -> Result<(), StoreError> {
    sqlx::query!(
        "select audit_append($1, $2, $3, $4, $5)",
        tenant.as_uuid(),
        actor.to_json(),
        action,
        subject.to_json(),
        details
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// Entries after number `after` and up to number `until`, oldest first.
pub async fn audit_after(
    connection: &mut PgConnection,
    tenant: TenantId,
    after: i64,
    until: i64,
    limit: i64,
) -> Result<Vec<AuditEntry>, StoreError> {
    Ok(sqlx::query_as!(
        AuditEntry,
        r#"select tenant_id, seq, entry, encode(hash, 'hex') as "hash!" from audit
            where tenant_id = $1 and seq > $2 and seq <= $3 order by seq limit $4"#,
        tenant.as_uuid(),
        after,
        until,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// What [`audit_before`] looks for.
#[derive(Clone, Debug, Default)]
pub struct AuditSought {
    /// With a smaller number.
    pub before: Option<i64>,
    /// With a greater one.
    pub after: i64,
    /// Each of them is in the entry, in whatever case.
    pub words: Vec<String>,
}

/// At most so many of those that fit, newest first.
pub async fn audit_before(
    connection: &mut PgConnection,
    tenant: TenantId,
    sought: &AuditSought,
    limit: i64,
) -> Result<Vec<AuditEntry>, StoreError> {
    Ok(sqlx::query_as!(
        AuditEntry,
        r#"select tenant_id, seq, entry, encode(hash, 'hex') as "hash!" from audit
            where tenant_id = $1 and ($2::bigint is null or seq < $2) and seq > $3
              and (select bool_and(strpos(lower(entry), lower(word)) > 0) from unnest($4::text[]) word) is not false
            order by seq desc limit $5"#,
        tenant.as_uuid(),
        sought.before,
        sought.after,
        &sought.words,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// The numbers of the newest entries of every chain.
pub async fn audit_heads(connection: &mut PgConnection) -> Result<Vec<(Uuid, i64)>, StoreError> {
    let heads = sqlx::query!("select tenant_id, seq from audit_chains");
    Ok(heads.fetch_all(connection).await?.into_iter().map(|head| (head.tenant_id, head.seq)).collect())
}

/// What the entries after number `after` are about: the first words of their actions.
pub async fn audit_topics(
    connection: &mut PgConnection,
    tenant: TenantId,
    after: i64,
) -> Result<Vec<String>, StoreError> {
    let topics = sqlx::query_scalar!(
        r#"select distinct split_part(action, '.', 1) as "topic!" from audit where tenant_id = $1 and seq > $2"#,
        tenant.as_uuid(),
        after
    );
    Ok(topics.fetch_all(connection).await?)
}

/// The number of the newest entry; 0 when there is none.
pub async fn audit_head(connection: &mut PgConnection, tenant: TenantId) -> Result<i64, StoreError> {
    let head = sqlx::query_scalar!("select max(seq) from audit where tenant_id = $1", tenant.as_uuid());
    Ok(head.fetch_one(connection).await?.unwrap_or(0))
}
