//! How fast the way to the server is: NDT7, over connections of their own that go the way of the link.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::ids::CommandId;
use cloudlink_proto::link::message::LinkTest;
use cloudlink_proto::ndt::{
    Direction, GRACE, MESSAGE_BYTES_FIRST, MESSAGE_BYTES_MAX, Measurement, TcpInfo, next_size, rate,
};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{self, Message};

use crate::chain;
use crate::dial::{DialError, Route, Socket, Traffic};
use crate::executor::Failure;

/// How often it is told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// As the server knows the client.
const NAME: &str = "cloudlink-agent";

/// What is sent: random, so that nothing on the way makes it smaller.
static PAYLOAD: LazyLock<Bytes> = LazyLock::new(|| {
    let mut payload = vec![0; MESSAGE_BYTES_MAX];
    // What stays empty is sent as well.
    let _ = aws_lc_rs::rand::fill(&mut payload);
    payload.into()
});

/// Tests one direction after the other, by this route, and tells how far it is, in percent.
///
/// # Errors
/// When the server cannot be reached, refuses, or breaks off.
pub async fn run(
    test: LinkTest,
    id: CommandId,
    route: Option<Result<Route, DialError>>,
    step: impl Fn(u32),
) -> Result<Value, Failure> {
    let route = match route {
        Some(Ok(route)) => route,
        Some(Err(error)) => return Err(failure(&error)),
        None => return Err(Failure::new("internal", "nobody said by which way".to_owned())),
    };
    let is_both = test.download == test.upload;
    let mut directions = Vec::with_capacity(2);
    if test.download || is_both {
        directions.push(Direction::Download);
    }
    if test.upload || is_both {
        directions.push(Direction::Upload);
    }
    let mut results = serde_json::Map::new();
    results.insert("client".to_owned(), crate::machine::AGENT.into());
    results.insert("seconds".to_owned(), test.seconds.into());
    let lasts = Duration::from_secs(test.seconds.into());
    for (position, direction) in directions.iter().enumerate() {
        let tell = |share: f64| {
            #[expect(clippy::cast_precision_loss, reason = "one or two")]
            let all = (position as f64 + share.clamp(0.0, 1.0)) / directions.len() as f64;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 99")]
            step((all * 99.0) as u32);
        };
        let path = format!(
            "{}?client_name={NAME}&client_version={}&command_id={id}&seconds={}",
            direction.path(),
            env!("CARGO_PKG_VERSION"),
            test.seconds
        );
        let open = async { route.clone().go(Traffic::Bulk).await?.open_test(&path).await };
        let socket = open.await.map_err(|error| failure(&error))?;
        let measured = Run::new(socket, lasts)
            .measure(*direction, tell)
            .await
            .map_err(|broken| Failure::new("broke_off", format!("the {} broke off: {broken}", direction.name())))?;
        results.insert(direction.name().to_owned(), measured);
    }
    Ok(results.into())
}

fn failure(error: &DialError) -> Failure {
    let status = if let DialError::Http(problem) = error { Some(problem.status.as_u16()) } else { None };
    let code = match status {
        Some(429) => "busy",
        Some(404) => "not_offered",
        Some(_) | None => "dial_failed",
    };
    Failure::new(code, chain(error))
}

/// Why a test has no result.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the connection was lost: {}", chain(.0))]
    Lost(#[from] tungstenite::Error),
    #[error("the server stopped before its time")]
    Early,
    #[error("the server did not come to an end")]
    Late,
}

/// A test that is under way.
struct Run {
    sink: SplitSink<Socket, Message>,
    source: SplitStream<Socket>,
    begun: Instant,
    lasts: Duration,
    /// What this side has sent or received.
    bytes: u64,
    /// What the server measured, in its own words.
    told: Told,
}

#[derive(Default)]
struct Told {
    server: Option<String>,
    first: Option<TcpInfo>,
    last: Option<Measurement>,
}

impl Told {
    fn hear(&mut self, text: &str) {
        // What is no measurement is of no use, and does no harm.
        let Ok(mut measurement) = serde_json::from_str::<Measurement>(text) else { return };
        if let Some(connection) = measurement.connection_info.take() {
            self.server = Some(connection.server.chars().filter(|c| !c.is_control()).take(64).collect());
        }
        if self.first.is_none() {
            self.first = measurement.tcp_info;
        }
        self.last = Some(measurement);
    }
}

impl Run {
    fn new(socket: Socket, lasts: Duration) -> Self {
        let (sink, source) = socket.split();
        Self { sink, source, begun: Instant::now(), lasts, bytes: 0, told: Told::default() }
    }

    async fn measure(mut self, direction: Direction, tell: impl Fn(f64)) -> Result<Value, Broken> {
        let whole = self.lasts + GRACE + GRACE;
        let lasted = match direction {
            Direction::Download => timeout(whole, self.download(tell)).await,
            Direction::Upload => timeout(whole, self.upload(tell)).await,
        };
        let lasted = lasted.map_err(|_| Broken::Late)??;
        Ok(self.figures(direction, lasted))
    }

    /// Takes what comes until the server ends it. For how long that was.
    async fn download(&mut self, tell: impl Fn(f64)) -> Result<Duration, Broken> {
        let mut tick = ticks(PROGRESS_EVERY);
        let mut lasted = Duration::ZERO;
        let until = self.begun + self.lasts;
        loop {
            tokio::select! {
                biased;
                // On a slow way much may still lie before the server's end.
                () = sleep_until(until + GRACE) => break,
                _ = tick.tick() => tell(self.begun.elapsed().div_duration_f64(self.lasts)),
                message = self.source.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => {
                        self.bytes += bytes.len() as u64;
                        lasted = self.begun.elapsed();
                    }
                    Some(Ok(Message::Text(text))) => self.told.hear(&text),
                    Some(Ok(Message::Close(_))) | None => break,
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    // The server cuts off whoever is too slow to hear its end.
                    Some(Err(_)) if Instant::now() >= until => break,
                    Some(Err(error)) => return Err(error.into()),
                },
            }
        }
        // It answers the server's end, and is gone then.
        let _ = timeout(GRACE, async { while let Some(Ok(_)) = self.source.next().await {} }).await;
        if self.bytes == 0 { Err(Broken::Early) } else { Ok(lasted) }
    }

    /// Sends until the time is up, and hears meanwhile how much of it has arrived.
    async fn upload(&mut self, tell: impl Fn(f64)) -> Result<Duration, Broken> {
        let Self { sink, source, told, begun, lasts, bytes } = self;
        let until = *begun + *lasts;
        let sending = async {
            let mut size = MESSAGE_BYTES_FIRST;
            let mut tell_at = *begun;
            while Instant::now() < until {
                if Instant::now() >= tell_at {
                    tell(begun.elapsed().div_duration_f64(*lasts));
                    tell_at = Instant::now() + PROGRESS_EVERY;
                }
                sink.send(Message::Binary(PAYLOAD.slice(..size))).await?;
                *bytes += size as u64;
                size = next_size(size, *bytes);
            }
            Ok::<_, Broken>(())
        };
        let hearing = async {
            loop {
                match source.next().await {
                    Some(Ok(Message::Text(text))) => told.hear(&text),
                    Some(Ok(Message::Close(_))) | None => return Ok(()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(Broken::Lost(error)),
                }
            }
        };
        let mut hearing = std::pin::pin!(hearing);
        tokio::select! {
            // It may have had enough: that is measured, too.
            ended = &mut hearing => return ended.map(|()| begun.elapsed()),
            sent = sending => sent?,
        }
        let lasted = begun.elapsed();
        sink.send(Message::Close(None)).await?;
        // What is on its way is to arrive; the last measurement comes after it.
        match hearing.await {
            // The server may be gone as soon as it has heard the end.
            Ok(()) | Err(Broken::Lost(_)) => Ok(lasted),
            Err(broken) => Err(broken),
        }
    }

    fn figures(&self, direction: Direction, lasted: Duration) -> Value {
        let (first, last) = (self.told.first, self.told.last.as_ref());
        let seen = last.and_then(|last| last.app_info).map(|seen| {
            let time = Duration::from_micros(seen.elapsed_time);
            json!({
                "bits_per_second": rate(seen.num_bytes, time), "bytes": seen.num_bytes, "seconds": time.as_secs_f64(),
            })
        });
        let tcp = last.and_then(|last| last.tcp_info);
        // Who sends knows what it had to send again: of an upload, the server does not.
        let retransmitted = tcp
            .filter(|_| direction == Direction::Download)
            .map(|tcp| tcp.bytes_retrans.saturating_sub(first.map_or(0, |first| first.bytes_retrans)));
        json!({
            "client": {
                "bits_per_second": rate(self.bytes, lasted), "bytes": self.bytes, "seconds": lasted.as_secs_f64(),
            },
            "server": seen,
            "server_address": self.told.server,
            "min_rtt_us": tcp.map(|tcp| tcp.min_rtt),
            "retransmitted_bytes": retransmitted,
        })
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
