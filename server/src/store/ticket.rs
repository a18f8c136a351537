//! Keys of session tickets, which all nodes share, by the database's clock.

use sqlx::PgConnection;

use super::StoreError;

/// A key, encrypted.
#[derive(Clone, Debug)]
pub(crate) struct SealedKey {
    pub(crate) number: i64,
    pub(crate) sealed: Vec<u8>,
}

/// What there is, and what time it is.
#[derive(Clone, Debug)]
pub(crate) struct TicketKeys {
    /// Seconds since 1970.
    pub(crate) now: f64,
    /// Of the period that is, the one before and the one after.
    pub(crate) keys: Vec<SealedKey>,
}

/// Keys of these periods, and of nothing else: those of before are deleted.
pub(crate) async fn ticket_keys(connection: &mut PgConnection, period_seconds: i32) -> Result<TicketKeys, StoreError> {
    let now = sqlx::query_scalar!(r#"select extract(epoch from clock_timestamp())::float8 as "now!""#)
        .fetch_one(&mut *connection)
        .await?;
    #[expect(clippy::cast_possible_truncation, reason = "seconds since 1970")]
    let number = (now / f64::from(period_seconds)).floor() as i64;
    // Of a time that no node is configured with any more: older than the longest that may be.
    sqlx::query!(
        "delete from ticket_keys
          where (period_seconds = $1 and number < $2) or made_at < clock_timestamp() - interval '3 days'",
        period_seconds,
        number - 1,
    )
    .execute(&mut *connection)
    .await?;
    let keys = sqlx::query_as!(
        SealedKey,
        "select number, sealed from ticket_keys where period_seconds = $1 and number between $2 and $3 order by number",
        period_seconds,
        number - 1,
        number + 1,
    )
    .fetch_all(connection)
    .await?;
    Ok(TicketKeys { now, keys })
}

/// Adds a key, unless another node was faster. True: it is this one.
pub(crate) async fn ticket_key_add(
    connection: &mut PgConnection,
    period_seconds: i32,
    key: &SealedKey,
) -> Result<bool, StoreError> {
    let added = sqlx::query!(
        "insert into ticket_keys (period_seconds, number, sealed) values ($1, $2, $3) on conflict do nothing",
        period_seconds,
        key.number,
        key.sealed,
    )
    .execute(connection)
    .await?;
    Ok(added.rows_affected() > 0)
}
