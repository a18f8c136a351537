//! Waiting for something to be so.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

/// Between two looks. Short, for most waits are for something that takes milliseconds.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks again and again until `look` succeeds. After `limit` its last error is the answer.
pub async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + limit;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() >= end => {
                return Err(error).with_context(|| format!("waited {limit:?} for {what}"));
            }
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}
