//! How the agent polls while no link comes about. Commands take the same way as over a link: desk, ledger, executor.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cloudlink_certs::PrivateKey;
use cloudlink_proto::ids::CommandId;
use cloudlink_proto::link::message::{
    CertificateIssued, CertificateRefused, CertificateRequest, Command, TransportFailure,
};
use tokio::time::Instant;

use super::renewal::{ASK_AGAIN_AFTER, LOOK_EVERY};
use super::{Agent, Dialling};
use crate::backoff::jitter;
use crate::chain;
use crate::config::{Config, Poll, Transport};
use crate::identity::Slot;
use crate::ladder::Failure;
use crate::metrics;
use crate::poll::{self, PollError, Polled, Schedule};
use crate::problem::{RETRY_AFTER_MAX, shown};

/// The polls of an agent.
pub(super) struct Polling {
    schedule: Schedule,
    asking: Option<Asking>,
    /// The certificate that the last one was asked with.
    slot: Slot,
    /// Of the certificate that the poll under way asks for.
    key: Option<PrivateKey>,
    /// No certificate is asked for before.
    renew_not_before: Option<Instant>,
    /// What the poll under way tells of attempts that failed.
    telling: Vec<TransportFailure>,
    /// Answers since the last link or failure: when the first came, and the last.
    answered: Option<(Instant, Instant)>,
}

type Asking = Pin<Box<dyn Future<Output = Result<Polled, PollError>> + Send>>;

impl std::fmt::Debug for Polling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Polling").field("schedule", &self.schedule).finish_non_exhaustive()
    }
}

impl Polling {
    /// Where polling is one of the transports, it is the ladder that says when to begin.
    pub(super) fn new(config: &Config, now: Instant) -> Self {
        let Poll { enabled, after_seconds } = config.poll;
        let is_own_plan = enabled && !config.server.uses(Transport::Polling);
        let after = is_own_plan.then(|| Duration::from_secs(after_seconds));
        Self {
            schedule: Schedule::new(after, now),
            asking: None,
            slot: Slot::Current,
            key: None,
            renew_not_before: None,
            telling: Vec::new(),
            answered: None,
        }
    }

    /// For how long polls were answered, without one between that failed.
    pub(super) fn proven_for(&self) -> Duration {
        self.answered.map_or(Duration::ZERO, |(first, last)| last - first)
    }

    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.schedule.poll_timeout()
    }

    /// A link is up: what a poll under way would bring comes over that one.
    pub(super) fn linked(&mut self) {
        self.schedule.stop();
        self.asking = None;
        self.key = None;
        self.answered = None;
    }

    pub(super) fn unlinked(&mut self) {
        self.schedule.unlinked(Instant::now());
    }

    /// There is something to tell, and no link.
    pub(super) fn tell(&mut self) {
        self.schedule.tell(Instant::now(), jitter());
    }

    /// The server is to be heard of soon, and there is no link.
    pub(super) fn hasten(&mut self) {
        self.schedule.hasten(Instant::now(), jitter());
    }

    /// What comes of the poll that is under way. May be dropped and called again.
    pub(super) async fn answered(&mut self) -> Result<Polled, PollError> {
        let Some(asking) = &mut self.asking else { return std::future::pending().await };
        let answered = asking.await;
        self.asking = None;
        answered
    }
}

impl Agent {
    /// Polls if it is time.
    pub(super) fn poll(&mut self, now: Instant) {
        if self.polling.poll_timeout().is_none_or(|due| due > now) {
            return;
        }
        if self.identity.slot(self.polling_slot()).is_none() {
            self.polling.schedule.stop();
            tracing::info!("without a certificate of its own the device does not poll");
            return;
        }
        self.ask();
    }

    /// Polls, as the attempt to reach the server whose turn it is.
    pub(super) fn dial_by_poll(&mut self, now: Instant) {
        self.climb.begin(now);
        self.dialling = Dialling::Not;
        self.ask();
    }

    fn ask(&mut self) {
        self.polling.schedule.begun();
        let slot = self.polling_slot();
        self.polling.slot = slot;
        let route = self.direct_route(slot);
        let mut request = poll::request(self.hello(), self.polling.schedule.interval());
        request.certificate_request = self.ask_for_renewal(Instant::now());
        self.polling.telling = request.transport_failures.clone();
        let statuses = self.desk.outstanding();
        let (sampler, executor) = (Arc::clone(&self.sampler), self.desk.executor());
        tracing::debug!(slot = ?slot, statuses = statuses.len(), "polling");
        self.polling.asking = Some(Box::pin(async move {
            let route = route?;
            // Without them the poll is worth as much.
            request.metrics = metrics::sample(&sampler).await;
            request.running = executor.running().await;
            poll::exchange(route, request, statuses).await
        }));
    }

    fn polling_slot(&self) -> Slot {
        let has = |slot| self.identity.slot(slot).is_some();
        self.trial.slot(has(Slot::Current), has(Slot::Next) && !self.is_beside())
    }

    fn ask_for_renewal(&mut self, now: Instant) -> Option<CertificateRequest> {
        if self.polling.renew_not_before.is_some_and(|at| at > now) {
            return None;
        }
        let (key, request) = self.ask_by_poll(now)?;
        self.polling.key = Some(key);
        Some(request)
    }

    pub(super) fn handle_polled(&mut self, polled: Result<Polled, PollError>) {
        let now = Instant::now();
        match polled {
            Ok(polled) => self.take_polled(now, polled),
            Err(error) => {
                let is_refused = error.is_refusal();
                tracing::warn!(error = chain(&error), refused = is_refused, "a poll failed");
                self.climb.report_poll(&error);
                self.poll_failed(now, Failure::from(&error));
            }
        }
        self.rest_tunnel();
    }

    fn poll_failed(&mut self, now: Instant, failure: Failure) {
        let slot = self.polling.slot;
        self.trial.failed(slot, failure.is_refusal, self.identity.slot(Slot::Current).is_some());
        // There is hope for the other one.
        let is_refused = failure.is_refusal && self.polling_slot() == slot;
        if self.polling.key.take().is_some() {
            self.polling.renew_not_before = Some(now + ASK_AGAIN_AFTER);
        }
        let proven_for = self.polling.proven_for();
        self.polling.answered = None;
        if !self.climb.has_polling() {
            return self.polling.schedule.failed(now, is_refused, failure.retry_after, jitter());
        }
        self.polling.schedule.stop();
        // An attempt that is under way is left alone.
        if let wait @ Some(_) = self.climb.poll_failed(now, failure, proven_for) {
            self.dial_later(wait);
        }
    }

    fn take_polled(&mut self, now: Instant, polled: Polled) {
        let Polled { response, asked_at, server_certificate_ends, has_told_all } = polled;
        let own = self.identity.slot(self.polling.slot).map(|credential| credential.certificate.identity.device);
        if own.is_some_and(|own| own.to_string() != response.device_id) {
            // Its commands would be another device's.
            tracing::error!("the server takes this device for another one");
            return self.poll_failed(now, Failure { is_answer: true, is_refusal: true, retry_after: None });
        }
        self.climb.told(&std::mem::take(&mut self.polling.telling));
        if self.climb.has_polling() {
            self.climb.polled(now);
        }
        let first = self.polling.answered.map_or(now, |(first, _)| first);
        self.polling.answered = Some((first, now));
        self.known_time.learn(response.clock_unix_ms, server_certificate_ends);
        self.settle_slots(self.polling.slot, now);
        self.desk.executor().answered(asked_at);
        let interval = Duration::from_millis(response.next_poll_ms.into());
        let (commands, receipts) = (response.commands.len(), response.receipts.len());
        tracing::info!(commands, receipts, interval_s = interval.as_secs(), "the server answered a poll");
        self.polling.schedule.answered(now, interval, jitter());
        if response.more || !has_told_all && receipts > 0 {
            self.polling.tell();
        }
        self.take_renewal(now, response.certificate_issued, response.certificate_refused);
        for id in response.receipts.iter().filter_map(|receipt| CommandId::from_wire(&receipt.id)) {
            self.desk.handle_receipt(id, self.server_unix_ms());
        }
        if let Some(configuration) = response.configuration {
            self.take_configuration(&configuration);
        }
        // Before the commands: one of them may be called back here.
        for id in response.cancels.iter().filter_map(|cancel| CommandId::from_wire(&cancel.id)) {
            tracing::info!(command.id = %id, "a command was called back");
            let status = self.desk.handle_cancel(id, self.server_unix_ms());
            self.tell(status);
        }
        for command in response.commands {
            self.take_polled_command(now, asked_at, command);
        }
    }

    fn take_renewal(&mut self, now: Instant, issued: Option<CertificateIssued>, refused: Option<CertificateRefused>) {
        let Some(key) = self.polling.key.take() else { return };
        let again_after = match (issued, refused) {
            (Some(issued), _) => {
                if self.keep_issued(&key, &issued) {
                    tracing::info!("a new certificate is here: trying it out with the next poll");
                    return self.polling.tell();
                }
                ASK_AGAIN_AFTER
            }
            (None, Some(refused)) => {
                tracing::warn!(code = ?shown(&refused.code), reason = ?shown(&refused.message), "no new certificate");
                let asked = Duration::from_millis(refused.retry_after_ms).min(RETRY_AFTER_MAX);
                if asked.is_zero() { LOOK_EVERY } else { asked }
            }
            // A server that does not renew by polling.
            (None, None) => LOOK_EVERY,
        };
        self.polling.renew_not_before = Some(now + again_after);
    }

    fn take_polled_command(&mut self, now: Instant, asked_at: Instant, mut command: Command) {
        let ids = CommandId::from_wire(&command.id).zip(cloudlink_proto::ids::GrantId::from_wire(&command.grant_id));
        let Some((id, grant_id)) = ids else { return };
        // The answer may have been under way for as long as that.
        let passed = u64::try_from(now.saturating_duration_since(asked_at).as_millis()).unwrap_or(u64::MAX);
        command.start_within_ms = command.start_within_ms.saturating_sub(passed);
        let leave = self.access.judge_command(&mut self.known_time, now, grant_id, &command);
        let server_unix_ms = self.server_unix_ms();
        let status = self.desk.handle_command(now, id, &command, leave, server_unix_ms);
        self.tell(status);
    }
}
