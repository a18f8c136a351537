//! How a stream ends: by what is said on it, or because it is cut, whatever is said on it.

use std::time::Duration;

use cloudlink_proto::stream::Control;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::leg::Leg;
use super::shortened;
use crate::config::OpenVpn;
use crate::tunnel::interface::{self, Interface};

/// How long it may take that the last word of the device is on its way.
const LAST_WORD_WITHIN: Duration = Duration::from_millis(200);

/// How a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// All was said.
    #[error("done")]
    Done,
    /// The device could not do it, or not go on.
    #[error("{code}: {message}")]
    Failed { code: &'static str, message: String },
    #[error("the other side has closed")]
    Left,
    /// The server's reason.
    #[error("closed by the server: {0}")]
    Closed(String),
    #[error("lost: {0}")]
    Lost(String),
    #[error("the other side broke the protocol: {0}")]
    Protocol(String),
    /// The device cut it itself.
    #[error("time is up")]
    TimeIsUp,
    #[error("the agent stops")]
    Stopping,
}

/// When a stream is to be cut.
#[derive(Debug)]
pub(super) struct Cut {
    deadline: watch::Receiver<Instant>,
    stop: CancellationToken,
    /// What it goes through. Its connection would not show that it is gone.
    tunnel: Option<(Interface, OpenVpn)>,
}

/// Moves the time at which a stream is cut.
#[derive(Debug)]
pub(super) struct Deadline(watch::Sender<Instant>);

impl Deadline {
    pub(super) fn new(at: Instant, stop: CancellationToken, tunnel: Option<(Interface, OpenVpn)>) -> (Self, Cut) {
        let (sender, deadline) = watch::channel(at);
        (Self(sender), Cut { deadline, stop, tunnel })
    }

    pub(super) fn set(&self, at: Instant) {
        self.0.send_replace(at);
    }
}

impl Cut {
    /// Waits for it.
    pub(super) async fn due(&self) -> End {
        tokio::select! {
            () = self.time_is_up() => End::TimeIsUp,
            () = self.stop.cancelled() => End::Stopping,
            end = self.tunnel_is_gone() => end,
        }
    }

    async fn time_is_up(&self) {
        let mut deadline = self.deadline.clone();
        loop {
            let at = *deadline.borrow_and_update();
            tokio::select! {
                () = sleep_until(at) => return,
                Ok(()) = deadline.changed() => {}
            }
        }
    }

    async fn tunnel_is_gone(&self) -> End {
        match &self.tunnel {
            Some((tunnel, settings)) => End::Lost(interface::gone(settings, tunnel).await.to_string()),
            None => std::future::pending().await,
        }
    }

    /// Does something that leaves nothing behind when it is dropped.
    pub(super) async fn or(&self, work: impl Future<Output = End>) -> End {
        tokio::select! {
            biased;
            end = self.due() => end,
            end = work => end,
        }
    }

    /// Does something, unless it takes too long.
    async fn at_most(&self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => {}
            _ = self.due() => {}
        }
    }
}

impl End {
    pub(super) fn failed(code: &'static str, message: impl Into<String>) -> Self {
        Self::Failed { code, message: message.into() }
    }

    /// Lets the other side know, if it is there to hear and there is time.
    pub(super) async fn say_last(&self, leg: &mut Leg, cut: &Cut) {
        match self {
            Self::Failed { code, message } => {
                let failed = Control::Failed { code: (*code).to_owned(), message: shortened(message) };
                let said = async {
                    if leg.sender.say(&failed).await.is_ok() {
                        leg.close().await;
                    }
                };
                cut.at_most(said).await;
            }
            Self::Done | Self::Left | Self::Closed(_) => cut.at_most(leg.close()).await,
            // Not a byte later than can be helped.
            Self::TimeIsUp | Self::Stopping | Self::Protocol(_) => {
                let _ = timeout(LAST_WORD_WITHIN, leg.close()).await;
            }
            Self::Lost(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_cut_at_the_end_that_it_has_by_then() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let (deadline, cut) = Deadline::new(at(10), CancellationToken::new(), None);
        let moved = async {
            sleep_until(at(9)).await;
            deadline.set(at(100));
            sleep_until(at(50)).await;
            deadline.set(at(60));
            std::future::pending::<End>().await
        };
        assert!(matches!(cut.or(moved).await, End::TimeIsUp));
        assert_eq!(begun.elapsed().as_secs(), 60);
        // Nobody is left to move it.
        drop(deadline);
        assert!(matches!(cut.due().await, End::TimeIsUp));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_cut_when_the_agent_stops() {
        let stop = CancellationToken::new();
        let (_deadline, cut) = Deadline::new(Instant::now() + Duration::from_secs(10), stop.clone(), None);
        stop.cancel();
        assert!(matches!(cut.due().await, End::Stopping));
    }
}
