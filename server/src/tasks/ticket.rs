//! Keeps the keys of session tickets fresh, which all nodes share.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::lifecycle::Shutdown;
use crate::link::{Links, Tickets};

/// For the metrics of failed tasks.
const NAME: &str = "ticket_keys";
/// How often they are read at least: keys that another node has just made are known soon.
const REFRESH_EVERY_MAX: Duration = Duration::from_secs(60);
/// After a failure.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Until the soft stop.
pub(super) async fn run(links: Links, tickets: Arc<Tickets>, shutdown: Shutdown) {
    let every = tickets.refresh_every().min(REFRESH_EVERY_MAX);
    loop {
        let pause = match tickets.refresh(&links.0.store).await {
            Ok(()) => every,
            Err(error) => {
                links.0.metrics.task_failures.with_label_values(&[NAME]).inc();
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot read the keys of session tickets");
                AGAIN_AFTER.min(every)
            }
        };
        tokio::select! {
            () = shutdown.soft.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}
