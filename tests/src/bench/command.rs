//! How fast a command is, from the API call until its result is stored.
//!
//! The end is the `CommandReceipt` that the device gets, by which the server tells it that the result is stored. Nobody has
//! to ask the server for that, so the measuring costs it nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use cloudlink_proto::ids::CommandId;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::api::{Api, text};
use crate::load::{Event, Fleet, Swarm};

/// How long one result may take. Beyond that something is broken, not slow.
const RESULT_WITHIN: Duration = Duration::from_secs(60);
/// Two commands that follow each other go to devices that are far apart.
const STRIDE: usize = 7919;

/// Runs `count` commands, one after another, each on another device. Gives the latencies in order of size.
pub async fn latencies(operator: &Api, fleet: &Fleet, swarm: &mut Swarm, count: usize) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(count);
    for number in 0..count {
        let begin = Instant::now();
        let command = ask(operator, fleet, number).await?;
        let answered = Instant::now();
        let stored = loop {
            let (stored, at) = stored(swarm).await?;
            if stored == command {
                break at;
            }
        };
        latencies.push(stored.max(answered) - begin);
    }
    latencies.sort_unstable();
    Ok(latencies)
}

/// Runs `count` commands, `at_once` of them under way at any time, by the operators in turn. Gives the results a second.
pub async fn throughput(
    operators: &[Api],
    fleet: &Fleet,
    swarm: &mut Swarm,
    count: usize,
    at_once: usize,
) -> Result<f64> {
    let begin = Instant::now();
    let mut asking = JoinSet::new();
    let (mut begun, mut done) = (0, 0);
    let mut last = begin;
    while done < count {
        while begun < count && begun - done < at_once {
            let operator = operators.get(begun % operators.len().max(1)).context("there is no operator")?;
            asking.spawn(request(operator.clone(), device_of(fleet, begun)?));
            begun += 1;
        }
        tokio::select! {
            stored = stored(swarm) => {
                (done, last) = (done + 1, stored?.1);
            }
            Some(asked) = asking.join_next() => { asked??; }
        }
    }
    let count = u32::try_from(count)?;
    Ok(f64::from(count) / (last - begin).as_secs_f64())
}

/// The value below which this share of all lies.
#[must_use]
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "counts of measurements are far below 2^52")]
    let rank = (sorted.len() as f64 * share).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
    let rank = rank as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

async fn ask(operator: &Api, fleet: &Fleet, number: usize) -> Result<CommandId> {
    request(operator.clone(), device_of(fleet, number)?).await
}

fn device_of(fleet: &Fleet, number: usize) -> Result<String> {
    let index = number.wrapping_mul(STRIDE) % fleet.devices.len().max(1);
    Ok(fleet.devices.get(index).context("the fleet is empty")?.id.to_string())
}

async fn request(operator: Api, device: String) -> Result<CommandId> {
    let body = json!({ "kind": "metrics.collect", "arguments": {}, "reason": "benchmark" });
    let answer = operator.command(&device, &body).await?.success()?;
    text(&answer, "id")?.parse().context("the command's id is no UUID")
}

async fn stored(swarm: &mut Swarm) -> Result<(CommandId, Instant)> {
    let stored = async {
        loop {
            if let Event::Stored { command, at } = swarm.event().await? {
                return Ok((command, at));
            }
        }
    };
    timeout(RESULT_WITHIN, stored).await.context("a command had no result in time")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let sorted: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 0.5), Duration::from_millis(100));
        assert_eq!(percentile(&sorted, 0.99), Duration::from_millis(198));
        assert_eq!(percentile(&sorted[..1], 0.99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 0.99), Duration::ZERO);
    }
}
