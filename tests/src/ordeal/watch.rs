//! What the database says of links, looked at all the time.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Row as _};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::history::{Book, PRESENCE, Sample, Shown, now_us};

const EVERY: Duration = Duration::from_secs(1);
/// For an answer. Later it says nothing of any one moment.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Looks until `stop`, whichever of these hosts is the primary.
pub async fn watch(hosts: Vec<PgConnectOptions>, directory: &Path, stop: CancellationToken) -> anyhow::Result<()> {
    let book = Book::open(&directory.join(PRESENCE))?;
    let (mut database, mut seen) = (None, HashMap::new());
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return Ok(()),
        }
        // Without an answer there is nothing to be judged; what was said before stays known.
        match timeout(LOOK_LIMIT, look(&hosts, &mut database, &mut seen)).await {
            Ok(Ok(sample)) => book.write(&sample)?,
            Ok(Err(_)) | Err(_) => database = None,
        }
    }
}

async fn look(
    hosts: &[PgConnectOptions],
    database: &mut Option<PgConnection>,
    seen: &mut HashMap<Uuid, Shown>,
) -> anyhow::Result<Sample> {
    let connection = match database {
        Some(connection) => connection,
        None => database.insert(primary(hosts).await?),
    };
    let from_us = now_us();
    // A standby tells what was.
    let rows = sqlx::query(
        "select device_id, epoch, closed_at is null as is_live, pg_is_in_recovery() as is_standby from links",
    )
    .fetch_all(connection)
    .await?;
    let to_us = now_us();
    let mut changed = Vec::new();
    for row in &rows {
        ensure!(!row.try_get::<bool, _>("is_standby")?, "it is no primary any more");
        let epoch = u64::try_from(row.try_get::<i64, _>("epoch")?)?;
        let shown = Shown { device: row.try_get("device_id")?, epoch, is_live: row.try_get("is_live")? };
        if seen.insert(shown.device, shown) != Some(shown) {
            changed.push(shown);
        }
    }
    Ok(Sample { from_us, to_us, changed })
}

async fn primary(hosts: &[PgConnectOptions]) -> anyhow::Result<PgConnection> {
    for host in hosts {
        let Ok(mut connection) = host.connect().await else { continue };
        let is_standby = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut connection).await;
        if is_standby.is_ok_and(|is_standby: bool| !is_standby) {
            return Ok(connection);
        }
    }
    None.context("there is no primary")
}
