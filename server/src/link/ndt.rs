//! Tests of how fast the way to a device is: NDT7 on the device port, by the device's certificate. See docs/LINK-TEST.md.
//!
//! A test is a WebSocket of its own, that is as full as it gets for some seconds. So that nobody else is hurt, it is counted before it is
//! let in, and its rate, bytes and time have an end. On the node its memory is one payload, which all tests share, and one
//! message of its peer.

mod line;
mod place;

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::ndt::{
    AppInfo, ConnectionInfo, Direction, GRACE, MEASURE_EVERY, MESSAGE_BYTES_FIRST, MESSAGE_BYTES_MAX, Measurement,
    QUERY_BYTES_MAX, TAKEN_BY_SENDER_BYTES_MAX, TAKEN_BYTES_MAX, TcpInfo, least_time, next_size, rate,
};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use percent_encoding::percent_decode_str;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep_until, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use uuid::Uuid;

use self::line::Line;
pub(crate) use self::place::Tests;
use self::place::{Full, Place};
use super::Shared;
use super::admission::{Identified, check_doors, check_standing};
use super::problem::Problem;
use super::stream::Stream;
use crate::config;
use crate::model::link_test::Outcome;
use crate::model::new_id;
use crate::store::link_test::{Figures, NewLinkTest, link_test_begin, link_test_finish};
use crate::store::{StoreError, single};

/// What TLS gives out at once, a few times.
const READ_BUFFER_BYTES: usize = 64 * 1024;
/// How long the peer may take to close after it was told to.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// The longest name and version of a client, in characters.
const CLIENT_CHARS_MAX: usize = 64;
/// When to come again while somebody else tests.
const BUSY_RETRY_SECONDS: u32 = 15;
/// When to come again after too many tests.
const RATE_RETRY_SECONDS: u32 = 600;

/// What is sent: random, so that nothing on the way makes it smaller.
static PAYLOAD: LazyLock<Bytes> = LazyLock::new(|| {
    let mut payload = vec![0; MESSAGE_BYTES_MAX];
    aws_lc_rs::rand::fill(&mut payload).expect("the system has randomness");
    payload.into()
});

/// What a request says.
#[derive(Debug)]
pub(super) struct Asked {
    direction: Direction,
    remote: IpAddr,
    client_name: String,
    client_version: String,
    command_id: Option<Uuid>,
    /// No longer than that.
    seconds: Option<u32>,
}

impl Asked {
    pub(super) fn read(direction: Direction, query: &str, remote: IpAddr) -> Result<Self, Problem> {
        if query.len() > QUERY_BYTES_MAX {
            return Err(Problem::bad_request(format!("a query has at most {QUERY_BYTES_MAX} bytes")));
        }
        let mut asked = Self {
            direction,
            remote,
            client_name: String::new(),
            client_version: String::new(),
            command_id: None,
            seconds: None,
        };
        let mut library = (String::new(), String::new());
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = value.replace('+', " ");
            let value = percent_decode_str(&value)
                .decode_utf8()
                .map_err(|_| Problem::bad_request("the query is not UTF-8, URL-encoded"))?;
            match name {
                "client_name" => asked.client_name = cleaned(&value),
                "client_version" => asked.client_version = cleaned(&value),
                "client_library_name" => library.0 = cleaned(&value),
                "client_library_version" => library.1 = cleaned(&value),
                "seconds" => asked.seconds = value.parse().ok(),
                "command_id" => asked.command_id = Uuid::try_parse(&value).ok(),
                // Whatever else clients tell of themselves is not kept.
                _ => {}
            }
        }
        if asked.client_name.is_empty() {
            (asked.client_name, asked.client_version) = library;
        }
        Ok(asked)
    }
}

/// What a client calls itself, as it is kept and shown.
fn cleaned(text: &str) -> String {
    let is_kept = |c: &char| c.is_ascii_alphanumeric() || "._ /+-".contains(*c);
    text.chars().filter(is_kept).take(CLIENT_CHARS_MAX).collect()
}

/// A test that was let in.
#[derive(Debug)]
pub(super) struct Test {
    id: Uuid,
    direction: Direction,
    limits: Limits,
    /// Held until the goodbye: whoever has heard that may begin the next one.
    place: Option<Place>,
}

/// Where a test has its end.
#[derive(Clone, Copy, Debug)]
struct Limits {
    lasts: Duration,
    bytes: u64,
    bits_per_second: u64,
}

impl Limits {
    fn of(config: &config::LinkTest, seconds: Option<u32>) -> Self {
        let most = config.seconds_max;
        Self {
            lasts: Duration::from_secs(seconds.unwrap_or(most).clamp(1, most).into()),
            bytes: u64::from(config.megabytes_max) * 1_000_000,
            bits_per_second: u64::from(config.mbit_per_second_max) * 1_000_000,
        }
    }
}

/// Decides whether there may be one more test, and notes that it begins.
pub(super) async fn admit(shared: &Shared, peer: &Identified, is_inside: bool, asked: Asked) -> Result<Test, Problem> {
    let refuse = |reason: &'static str, problem: Problem| {
        shared.metrics.link_tests_refused.with_label_values(&[reason]).inc();
        problem
    };
    if !shared.link_test.enabled {
        let detail = "this server offers no tests of links: link_test.enabled is false";
        return Err(refuse("disabled", Problem::not_found(detail)));
    }
    check_doors(shared)?;
    let place = Tests::enter(&shared.tests, &shared.link_test, peer).map_err(|full| {
        let (reason, detail) = match full {
            Full::Node => ("node", "this node runs as many tests as it may: link_test.node_max"),
            Full::Tenant => ("tenant", "the tenant's devices run as many tests as they may: link_test.tenant_max"),
            Full::Device => ("device", "the device runs a test already"),
        };
        refuse(reason, Problem::too_many_requests(detail, BUSY_RETRY_SECONDS))
    })?;
    if !is_inside {
        check_standing(shared, peer).await?;
    }
    let id = note_beginning(shared, peer, &asked).await.map_err(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot note that a test of a link begins");
        Problem::unavailable()
    })?;
    let Some(id) = id else {
        let detail =
            "the tenant's devices have run as many tests within an hour as they may: link_test.tenant_per_hour_max";
        return Err(refuse("hour", Problem::too_many_requests(detail, RATE_RETRY_SECONDS)));
    };
    Ok(Test {
        id,
        direction: asked.direction,
        limits: Limits::of(&shared.link_test, asked.seconds),
        place: Some(place),
    })
}

/// `None`: there were too many in the last hour.
async fn note_beginning(shared: &Shared, peer: &Identified, asked: &Asked) -> Result<Option<Uuid>, StoreError> {
    let test = NewLinkTest {
        id: new_id(),
        device_id: peer.device_id,
        tenant_id: peer.tenant_id,
        command_id: asked.command_id,
        direction: asked.direction,
        node: &shared.node,
        remote: asked.remote,
        client_name: &asked.client_name,
        client_version: &asked.client_version,
    };
    let (store, most) = (&shared.store, shared.link_test.tenant_per_hour_max);
    let is_noted = async { single!(store, |connection| link_test_begin(connection, &test, most)) };
    Ok(store.within(is_noted).await?.then_some(test.id))
}

impl Test {
    /// Runs it in a task of its own, which ends in time whatever the peer does.
    pub(super) fn begin(mut self: Box<Self>, shared: &Arc<Shared>, stream: Stream, read_ahead: Bytes) {
        let shared = Arc::clone(shared);
        tokio::spawn(Box::pin(async move {
            shared.metrics.link_tests_running.inc();
            let figures = self.run(stream, read_ahead).await;
            shared.metrics.link_tests_running.dec();
            let labels = [self.direction.name(), figures.outcome.name()];
            shared.metrics.link_tests.with_label_values(&labels).inc();
            tracing::info!(
                test.id = %self.id, direction = self.direction.name(), outcome = figures.outcome.name(), bytes = figures.bytes,
                bits_per_second = figures.bits_per_second, "a test of a link has ended",
            );
            let (store, id) = (&shared.store, self.id);
            let noted = store.within(async { single!(store, |connection| link_test_finish(connection, id, &figures)) });
            if let Err(error) = noted.await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot store what a test of a link has measured"
                );
            }
        }));
    }

    async fn run(&mut self, mut stream: Stream, read_ahead: Bytes) -> Figures {
        let place = self.place.take();
        let taken_bytes_max = match self.direction {
            Direction::Download => TAKEN_BY_SENDER_BYTES_MAX,
            Direction::Upload => TAKEN_BYTES_MAX,
        };
        let line = Line::of(stream.tcp());
        stream.read_ahead(READ_BUFFER_BYTES);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(2 * MESSAGE_BYTES_MAX)
            .max_message_size(Some(taken_bytes_max))
            .max_frame_size(Some(taken_bytes_max));
        let socket =
            WebSocketStream::from_partially_read(stream, read_ahead.to_vec(), Role::Server, Some(config)).await;
        let (sink, source) = socket.split();
        let meter = Meter::new(self, line);
        let mut running = Running { test: self, sink, source, meter, limits: self.limits };
        // Whatever the peer does, or leaves undone.
        let until = Instant::now() + self.limits.lasts + GRACE;
        let revoked = async {
            match &place {
                Some(place) => place.revoked.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let ended = async {
            match running.test.direction {
                Direction::Download => timeout_at(until, running.download()).await,
                Direction::Upload => timeout_at(until, running.upload()).await,
            }
        };
        let outcome = tokio::select! {
            biased;
            () = revoked => Outcome::Lost,
            ended = ended => ended.unwrap_or(Outcome::Time),
        };
        let figures = running.meter.figures(outcome);
        drop(place);
        running.close(outcome).await;
        figures
    }
}

/// A test that is under way.
struct Running<'a> {
    test: &'a Test,
    sink: SplitSink<WebSocketStream<Stream>, Message>,
    source: SplitStream<WebSocketStream<Stream>>,
    meter: Meter,
    limits: Limits,
}

impl Running<'_> {
    async fn download(&mut self) -> Outcome {
        let Self { sink, source, meter, limits, .. } = self;
        tokio::select! {
            biased;
            outcome = hear(source, Pace::new(meter.begun, *limits)) => outcome,
            outcome = send(sink, meter, *limits) => outcome,
        }
    }

    /// Takes what comes, and tells now and then how much that was.
    async fn upload(&mut self) -> Outcome {
        let Self { sink, source, meter, limits, .. } = self;
        let mut tick = interval(MEASURE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pace = Pace::new(meter.begun, *limits);
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => {
                    if sink.send(meter.tell()).await.is_err() {
                        return Outcome::Lost;
                    }
                }
                // What is not read waits with the peer, whose own kernel holds it back.
                () = sleep_until(pace.read_from), if pace.read_from > Instant::now() => {}
                message = source.next(), if pace.read_from <= Instant::now() => match judge(message) {
                    Heard::Bytes(bytes) => {
                        meter.bytes += bytes;
                        if pace.is_over(bytes) {
                            return Outcome::Bytes;
                        }
                    }
                    Heard::Other(bytes) if pace.is_over(bytes) => return Outcome::Bytes,
                    Heard::Other(_) => {}
                    Heard::Close => return Outcome::Done,
                    Heard::Wrong => return Outcome::Protocol,
                    Heard::Lost => return Outcome::Lost,
                },
            }
        }
    }

    /// Tells the last that was measured, and why it is over. Whoever does not take that is cut off.
    async fn close(mut self, outcome: Outcome) {
        let (code, reason) = match outcome {
            Outcome::Done | Outcome::Left | Outcome::Bytes => (CloseCode::Normal, "the test is over"),
            Outcome::Time => (CloseCode::Normal, "the test took too long"),
            Outcome::Protocol => (CloseCode::Protocol, "that is not NDT7"),
            Outcome::Lost => return self.meter.line.abort(),
        };
        let has_peer_closed = match self.test.direction {
            Direction::Download => outcome == Outcome::Left,
            Direction::Upload => outcome == Outcome::Done,
        };
        let closed = async {
            if has_peer_closed {
                // The answer to that waits to be sent.
                self.sink.flush().await?;
            } else {
                self.sink.send(self.meter.tell()).await?;
                self.sink.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await?;
            }
            // What is still on its way is taken, so that the peer hears why.
            while self.source.next().await.transpose()?.is_some() {}
            Ok::<_, tungstenite::Error>(())
        };
        let closed = timeout(CLOSE_WITHIN, closed).await;
        tracing::debug!(test.id = %self.test.id, clean = matches!(closed, Ok(Ok(()))), "closed a test");
        if closed.is_err() {
            self.meter.line.abort();
        }
    }
}

/// Sends as fast as the peer takes it, up to what it may be.
async fn send(sink: &mut SplitSink<WebSocketStream<Stream>, Message>, meter: &mut Meter, limits: Limits) -> Outcome {
    let mut tick = interval_at(meter.begun + MEASURE_EVERY, MEASURE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let until = meter.begun + limits.lasts;
    let (mut size, mut send_from) = (MESSAGE_BYTES_FIRST, meter.begun);
    if sink.send(meter.tell()).await.is_err() {
        return Outcome::Lost;
    }
    loop {
        tokio::select! {
            biased;
            () = sleep_until(until) => return Outcome::Done,
            _ = tick.tick() => {
                if sink.send(meter.tell()).await.is_err() {
                    return Outcome::Lost;
                }
            }
            () = sleep_until(send_from) => {
                if sink.send(Message::Binary(PAYLOAD.slice(..size))).await.is_err() {
                    return Outcome::Lost;
                }
                meter.bytes += size as u64;
                if meter.bytes >= limits.bytes {
                    return Outcome::Bytes;
                }
                size = next_size(size, meter.bytes);
                send_from = meter.begun + least_time(meter.bytes, limits.bits_per_second);
            }
        }
    }
}

/// Listens while it sends. Only what ends the test comes back.
async fn hear(source: &mut SplitStream<WebSocketStream<Stream>>, mut pace: Pace) -> Outcome {
    loop {
        sleep_until(pace.read_from).await;
        match judge(source.next().await) {
            Heard::Other(bytes) if pace.is_over(bytes) => return Outcome::Bytes,
            Heard::Other(_) => {}
            Heard::Close => return Outcome::Left,
            Heard::Lost => return Outcome::Lost,
            // A download goes one way.
            Heard::Bytes(_) | Heard::Wrong => return Outcome::Protocol,
        }
    }
}

/// What a peer may have this node take, whatever it calls it.
struct Pace {
    begun: Instant,
    limits: Limits,
    taken: u64,
    read_from: Instant,
}

impl Pace {
    fn new(begun: Instant, limits: Limits) -> Self {
        Self { begun, limits, taken: 0, read_from: begun }
    }

    /// Takes in that a message of so many bytes came. Whether that is all there may be.
    fn is_over(&mut self, bytes: u64) -> bool {
        self.taken = self.taken.saturating_add(bytes);
        self.read_from = self.begun + least_time(self.taken, self.limits.bits_per_second);
        self.taken >= self.limits.bytes
    }
}

enum Heard {
    Bytes(u64),
    /// What the peer measures, or nothing.
    Other(u64),
    Close,
    Wrong,
    Lost,
}

fn judge(message: Option<Result<Message, tungstenite::Error>>) -> Heard {
    match message {
        Some(Ok(Message::Binary(bytes))) => Heard::Bytes(bytes.len() as u64),
        Some(Ok(Message::Close(_))) => Heard::Close,
        Some(Ok(message @ (Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {
            Heard::Other(message.len() as u64)
        }
        Some(Err(tungstenite::Error::Capacity(_) | tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8(_))) => {
            Heard::Wrong
        }
        Some(Err(_)) | None => Heard::Lost,
    }
}

/// Measures.
struct Meter {
    direction: Direction,
    line: Line,
    begun: Instant,
    /// What the connection had carried before.
    before: Option<TcpInfo>,
    /// In binary messages.
    bytes: u64,
    /// Told once.
    connection: Option<ConnectionInfo>,
}

impl Meter {
    fn new(test: &Test, line: Line) -> Self {
        let (client, server) = line.addresses();
        let connection = ConnectionInfo { client, server, uuid: test.id.to_string() };
        let before = line.info();
        Self { direction: test.direction, line, begun: Instant::now(), before, bytes: 0, connection: Some(connection) }
    }

    /// What was measured so far, as it is told.
    fn tell(&mut self) -> Message {
        let elapsed = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let measurement = Measurement {
            app_info: Some(AppInfo { num_bytes: self.bytes, elapsed_time: elapsed }),
            connection_info: self.connection.take(),
            origin: Some("server".to_owned()),
            test: Some(self.direction),
            tcp_info: self.line.info().map(|info| TcpInfo { elapsed_time: elapsed, ..info }),
        };
        Message::Text(serde_json::to_string(&measurement).expect("plain text and numbers").into())
    }

    /// What counts is what has arrived, as the kernel knows it.
    fn figures(&self, outcome: Outcome) -> Figures {
        let (lasted, now) = (self.begun.elapsed(), self.line.info());
        let since = |of: fn(&TcpInfo) -> u64| match (&self.before, &now) {
            (Some(before), Some(now)) => Some(of(now).saturating_sub(of(before))),
            _ => None,
        };
        let carried = match self.direction {
            Direction::Download => since(|info| info.bytes_acked),
            Direction::Upload => since(|info| info.bytes_received),
        };
        Figures {
            outcome,
            seconds: lasted.as_secs_f64(),
            bytes: self.bytes,
            bits_per_second: rate(carried.unwrap_or(self.bytes), lasted),
            min_rtt_us: now.map(|info| info.min_rtt),
            retransmitted_bytes: since(|info| info.bytes_retrans),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_part_of_a_test_counts_all_the_same() {
        for direction in [Direction::Download, Direction::Upload] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let far = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let near = Stream::Plain(listener.accept().await.unwrap().0);
            // More than the kernel takes of a download that nobody reads.
            let limits = Limits { lasts: Duration::from_secs(60), bytes: 20_000_000, bits_per_second: 100_000_000_000 };
            let mut test = Test { id: new_id(), direction, limits, place: None };
            let (mut sink, _unread) = WebSocketStream::from_raw_socket(far, Role::Client, None).await.split();
            let talking = tokio::spawn(async move {
                let said = Message::Text("x".repeat(100_000).into());
                while sink.send(said.clone()).await.is_ok() {}
            });
            let figures = test.run(near, Bytes::new()).await;
            talking.abort();
            assert_eq!(figures.outcome, Outcome::Bytes, "{figures:?}");
            assert!(figures.bytes < 20_000_000, "{figures:?}");
        }
    }

    fn asked(query: &str) -> Result<Asked, Problem> {
        Asked::read(Direction::Upload, query, IpAddr::from([192, 0, 2, 7]))
    }

    #[test]
    fn a_client_says_who_it_is_in_clean_words() {
        let named = asked("client_name=cloud%3Clink%00+agent&client_version=1.0%2F2&x=y&server_a=b&&=&flag").unwrap();
        assert_eq!((named.client_name.as_str(), named.client_version.as_str()), ("cloudlink agent", "1.0/2"));
        let library = asked("client_library_name=ndt7-js&client_library_version=0.1.4").unwrap();
        assert_eq!((library.client_name.as_str(), library.client_version.as_str()), ("ndt7-js", "0.1.4"));
        assert_eq!(asked(&format!("client_name={}", "x".repeat(4000))).unwrap().client_name.len(), CLIENT_CHARS_MAX);
        let id = new_id();
        assert_eq!(asked(&format!("command_id={id}")).unwrap().command_id, Some(id));
        assert_eq!(asked("command_id=1").unwrap().command_id, None);
        assert!(asked("client_name=%FF").is_err() && asked(&"x".repeat(QUERY_BYTES_MAX + 1)).is_err());
        assert!(asked("").is_ok());
    }
}
