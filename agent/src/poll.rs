//! Fallback polling: one request over HTTPS now and then, when no link comes about. [`Schedule`] decides when, without a clock of its own;
//! [`exchange()`] makes the request.

use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::link::message::{CommandStatus, Hello};
use cloudlink_proto::poll::message::{PollRequest, PollResponse};
use cloudlink_proto::poll::{self, CONTENT_TYPE, POLL_PATH, RESPONSE_BYTES_MAX};
use http::{Request, StatusCode, header};
use http_body_util::Full;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use crate::backoff::about;
use crate::dial::{DialError, Route, Traffic};
use crate::exchange::{self, ExchangeError};
use crate::machine;
use crate::problem::{BODY_BYTES_MAX, Problem, RETRY_AFTER_MAX};

/// How often a device polls that no server has told otherwise.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(900);
/// A poll that failed is tried again after this, then after twice as long, up to the interval.
const RETRY_FIRST: Duration = Duration::from_secs(30);
/// What there is to tell is told after this, then after twice as long, up to the interval: the server has other things to do.
const NEWS_FIRST: Duration = Duration::from_secs(1);
/// How long a link may still come about before a poll is made because the server is to be heard of.
const HASTE: Duration = Duration::from_secs(10);
/// How often a device polls that the server does not want.
const REFUSED_RETRY: Duration = Duration::from_secs(900);
/// From the request to the answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// When to poll: never while there is a link.
#[derive(Debug)]
pub struct Schedule {
    /// Without a link for so long; `None`: never.
    after: Option<Duration>,
    interval: Duration,
    due: Option<Instant>,
    /// Failed one after the other.
    failures: u32,
    /// Early ones, one after the other, because there was something to tell.
    early: u32,
    /// Whether the one under way is such a one.
    is_early: bool,
    /// Whether a poll was answered since the last link.
    is_polling: bool,
    /// Whether there is something to tell that the last request did not.
    has_news: bool,
}

impl Schedule {
    /// `after` as configured; `None`: never.
    #[must_use]
    pub fn new(after: Option<Duration>, now: Instant) -> Self {
        Self {
            after,
            interval: INTERVAL_DEFAULT,
            due: after.map(|after| now + after),
            failures: 0,
            early: 0,
            is_early: false,
            is_polling: false,
            has_news: false,
        }
    }

    /// A link is up, or what was asked of the server had no answer and is asked again when somebody says so.
    pub fn stop(&mut self) {
        let Self { after, interval, .. } = *self;
        *self = Self {
            after,
            interval,
            due: None,
            failures: 0,
            early: 0,
            is_early: false,
            is_polling: false,
            has_news: false,
        };
    }

    /// The link is lost.
    pub fn unlinked(&mut self, now: Instant) {
        self.due = self.after.map(|after| now + after);
    }

    /// When to poll next.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// What the server is told of it.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// A poll is under way.
    pub fn begun(&mut self) {
        self.due = None;
        self.is_early = self.has_news;
        self.has_news = false;
    }

    /// There is something to tell. A device that does not poll yet does not begin for that.
    pub fn tell(&mut self, now: Instant, jitter: f64) {
        if !self.is_polling || self.has_news {
            return;
        }
        self.has_news = true;
        if let Some(due) = self.due {
            self.due = Some(due.min(now + self.early_wait(jitter)));
        }
    }

    /// The server is to be heard of soon: also a device begins that does not poll yet. What a poll under way brings was asked for before.
    pub fn hasten(&mut self, now: Instant, jitter: f64) {
        if self.after.is_none() && !self.is_polling {
            return;
        }
        self.has_news = true;
        if let Some(due) = self.due {
            self.due = Some(due.min(now + about(HASTE, jitter)));
        }
    }

    /// The server has answered, and wants to hear again after this long.
    pub fn answered(&mut self, now: Instant, interval: Duration, jitter: f64) {
        (self.interval, self.failures, self.is_polling) = (interval, 0, true);
        if !self.is_early && !self.has_news {
            self.early = 0;
        }
        let wait = if self.has_news { self.early_wait(jitter) } else { about(interval, jitter) };
        self.due = Some(now + wait);
    }

    /// There was no answer, or a refusal. `retry_after` is what the server asked for.
    pub fn failed(&mut self, now: Instant, is_refused: bool, retry_after: Option<Duration>, jitter: f64) {
        let wait = RETRY_FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(self.interval.max(NEWS_FIRST));
        let wait = if is_refused { REFUSED_RETRY } else { wait };
        self.failures = self.failures.saturating_add(1);
        // Never before the time that was asked for.
        let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        self.due = Some(now + about(wait, jitter).max(asked.mul_f64(1.0 + jitter / 10.0)));
    }

    fn early_wait(&mut self, jitter: f64) -> Duration {
        let wait = NEWS_FIRST.saturating_mul(2_u32.saturating_pow(self.early)).min(self.interval.max(NEWS_FIRST));
        self.early = self.early.saturating_add(1);
        wait.mul_f64(1.0 + jitter)
    }
}

/// Why a poll came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("the server did not answer within {} s", ANSWERED_WITHIN.as_secs())]
    TimedOut,
    #[error("{0}")]
    Refused(Problem),
    #[error("the request cannot be sent")]
    Request(#[source] poll::PollError),
    #[error("the answer is none")]
    Answer(#[source] poll::PollError),
}

impl PollError {
    /// Whether the server refuses who this device is.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Dial(error) => error.is_refusal(),
            Self::Refused(problem) => matches!(problem.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN),
            Self::Exchange(error) => error.is_refusal(),
            Self::TimedOut | Self::Request(_) | Self::Answer(_) => false,
        }
    }

    /// Whether the server itself has said so, by whatever way it was reached.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Dial(error) => error.is_answer(),
            Self::Refused(_) => true,
            Self::Exchange(_) | Self::TimedOut | Self::Request(_) | Self::Answer(_) => self.is_refusal(),
        }
    }

    /// When the server wants to be asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Dial(error) => error.retry_after(),
            Self::Refused(problem) => problem.retry_after,
            Self::Exchange(_) | Self::TimedOut | Self::Request(_) | Self::Answer(_) => None,
        }
    }
}

/// What came of a poll.
#[derive(Debug)]
pub struct Polled {
    pub response: PollResponse,
    /// When the request went out, or before: what is given in durations counts from then at the latest.
    pub asked_at: Instant,
    /// When the certificate ends that the server proved itself with.
    pub server_certificate_ends: Option<OffsetDateTime>,
    /// Whether there was room for all that was to be told.
    pub has_told_all: bool,
}

/// A request that says who the device is.
#[must_use]
pub fn request(hello: Hello, interval: Duration) -> PollRequest {
    PollRequest {
        capabilities: hello.capabilities,
        boot_id: hello.boot_id,
        boot_hint: hello.boot_hint,
        agent: hello.agent,
        os: hello.os,
        hostname: hello.hostname,
        clock_unix_ms: hello.clock_unix_ms,
        transport_failures: hello.transport_failures,
        interval_ms: u32::try_from(interval.as_millis()).unwrap_or(u32::MAX),
        busy_lock: hello.busy_lock,
        configuration: hello.configuration,
        ..poll::request()
    }
}

/// Sends the request, with as much of `statuses` as there is room for, over a connection of its own.
///
/// # Errors
/// When there is no answer, or a refusal.
pub async fn exchange(
    route: Route,
    mut request: PollRequest,
    statuses: Vec<CommandStatus>,
) -> Result<Polled, PollError> {
    let has_told_all = poll::add_statuses(&mut request, statuses);
    let body = poll::write_request(&request).map_err(PollError::Request)?;
    let way = route.go(Traffic::Sparse).await?;
    let server_certificate_ends = way.server_certificate_ends;
    let request = http_request(&way.authority, body);
    let asked_at = Instant::now();
    let answered = exchange::exchange(way.wire, request, RESPONSE_BYTES_MAX);
    let (head, body) = timeout(ANSWERED_WITHIN, answered).await.map_err(|_| PollError::TimedOut)??;
    if head.status != StatusCode::OK {
        let body = &body[..body.len().min(BODY_BYTES_MAX)];
        return Err(PollError::Refused(Problem::read(head.status, &head.headers, body)));
    }
    let response = poll::read_response(&body).map_err(PollError::Answer)?;
    Ok(Polled { response, asked_at, server_certificate_ends, has_told_all })
}

fn http_request(authority: &str, body: Bytes) -> Request<Full<Bytes>> {
    Request::post(POLL_PATH)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, CONTENT_TYPE)
        .header(header::ACCEPT, CONTENT_TYPE)
        .header(header::USER_AGENT, machine::AGENT)
        .body(Full::new(body))
        .expect("a configured server name is a valid header")
}

#[cfg(test)]
mod tests {
    use cloudlink_proto::link::message::{BootHint, ConfigurationStatus};

    use super::*;
    use crate::busy::Busy;

    const AFTER: Duration = Duration::from_secs(300);
    const MIDDLE: f64 = 0.5;

    fn seconds(schedule: &Schedule, now: Instant) -> Option<f64> {
        schedule.poll_timeout().map(|due| due.duration_since(now).as_secs_f64())
    }

    #[tokio::test]
    async fn polls_only_without_a_link_and_after_a_while() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Some(AFTER), now);
        assert_eq!(seconds(&schedule, now), Some(300.0));
        schedule.stop();
        assert_eq!(seconds(&schedule, now), None);
        schedule.tell(now, MIDDLE);
        assert_eq!(seconds(&schedule, now), None, "the link tells");
        schedule.unlinked(now);
        assert_eq!(seconds(&schedule, now), Some(300.0));
        schedule.tell(now, MIDDLE);
        assert_eq!(seconds(&schedule, now), Some(300.0), "it does not begin earlier for that");

        let mut never = Schedule::new(None, now);
        never.unlinked(now);
        assert_eq!(seconds(&never, now), None);
    }

    #[tokio::test]
    async fn comes_back_when_the_server_says_give_or_take_a_tenth() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Some(AFTER), now);
        for (jitter, expected) in [(0.0, 54.0), (MIDDLE, 60.0), (1.0, 66.0)] {
            schedule.begun();
            assert_eq!(seconds(&schedule, now), None, "one at a time");
            schedule.answered(now, Duration::from_secs(60), jitter);
            assert!((seconds(&schedule, now).unwrap() - expected).abs() < 1e-6, "{schedule:?}");
        }
        assert_eq!(schedule.interval(), Duration::from_secs(60));
    }

    #[tokio::test]
    async fn what_fails_is_tried_again_sooner_and_sooner_less() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Some(AFTER), now);
        let mut waits = Vec::new();
        for _ in 0..7 {
            schedule.begun();
            schedule.failed(now, false, None, MIDDLE);
            waits.push(seconds(&schedule, now).unwrap().round());
        }
        assert_eq!(waits, [30.0, 60.0, 120.0, 240.0, 480.0, 900.0, 900.0]);
        schedule.answered(now, Duration::from_secs(5), MIDDLE);
        schedule.failed(now, false, None, MIDDLE);
        assert_eq!(seconds(&schedule, now), Some(5.0), "never later than the next poll would have been");
        schedule.failed(now, true, None, MIDDLE);
        assert_eq!(seconds(&schedule, now), Some(900.0), "somebody must act first");
        schedule.failed(now, false, Some(Duration::from_secs(100)), 0.0);
        assert_eq!(seconds(&schedule, now), Some(100.0), "never before the time that was asked for");
    }

    #[tokio::test]
    async fn news_are_told_soon_and_never_without_end() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Some(AFTER), now);
        schedule.answered(now, Duration::from_secs(60), MIDDLE);
        schedule.tell(now, 0.0);
        assert_eq!(seconds(&schedule, now), Some(1.0));
        schedule.begun();
        schedule.answered(now, Duration::from_secs(60), MIDDLE);
        assert_eq!(seconds(&schedule, now), Some(60.0), "it was told");

        let mut waits = Vec::new();
        for _ in 0..8 {
            schedule.begun();
            schedule.tell(now, 0.0);
            schedule.answered(now, Duration::from_secs(60), 0.0);
            waits.push(seconds(&schedule, now).unwrap());
        }
        assert_eq!(waits, [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]);

        // Also when it is the answer that makes the news, again and again.
        schedule.begun();
        schedule.answered(now, Duration::from_secs(60), 0.5);
        schedule.begun();
        schedule.answered(now, Duration::from_secs(60), 0.5);
        let mut waits = Vec::new();
        for _ in 0..8 {
            schedule.tell(now, 0.0);
            waits.push(seconds(&schedule, now).unwrap());
            schedule.begun();
            schedule.answered(now, Duration::from_secs(60), 0.5);
        }
        assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
    }

    #[tokio::test]
    async fn whoever_wants_to_hear_of_the_server_does_not_wait_until_it_is_time_to_poll() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Some(AFTER), now);
        schedule.hasten(now, MIDDLE);
        assert_eq!(seconds(&schedule, now), Some(10.0));
        // What was asked before proves nothing.
        schedule.begun();
        schedule.hasten(now, MIDDLE);
        assert_eq!(seconds(&schedule, now), None, "one at a time");
        schedule.answered(now, Duration::from_secs(900), 0.0);
        assert_eq!(seconds(&schedule, now), Some(1.0));

        let mut never = Schedule::new(None, now);
        never.hasten(now, MIDDLE);
        assert_eq!(seconds(&never, now), None);
        schedule.stop();
        schedule.hasten(now, MIDDLE);
        assert_eq!(seconds(&schedule, now), None, "there is a link");
    }

    #[test]
    fn a_request_says_what_a_hello_says() {
        let dir = tempfile::tempdir().unwrap();
        let busy = Busy::load(dir.path(), Duration::from_secs(60));
        busy.set("results", Duration::from_secs(60)).unwrap();
        let status = ConfigurationStatus { held_version: 1, held_sha256: vec![1; 32].into(), ..Default::default() };
        let hello = machine::hello("boot", BootHint::Watchdog, &[], &[], &busy, Some(status.clone()));
        let request = request(hello.clone(), Duration::from_secs(900));
        assert_eq!((&request.boot_id, &request.agent, request.interval_ms), (&hello.boot_id, &hello.agent, 900_000));
        assert_eq!(request.versions, [poll::VERSION]);
        assert_eq!(request.boot_hint(), BootHint::Watchdog);
        assert_eq!(request.busy_lock.as_ref().unwrap().reason, "results");
        assert_eq!(request.configuration, Some(status));
        assert!(poll::write_request(&request).is_ok());
    }
}
