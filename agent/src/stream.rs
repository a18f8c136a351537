//! Streams of support sessions: a terminal, a connection to a target, a file. Each is a WebSocket of its own that the device dials
//! when it is asked to, in the same way as the link, and serves in a task of its own.
//!
//! Two ends hold, whatever is said on a stream: the grant's, which the device measures itself with a monotonic clock, and the
//! agent's own. A lost link ends no stream; a stream that is lost takes with it what ran for it.

mod end;
mod file;
pub mod forward;
mod leg;
pub mod terminal;

use std::collections::{HashMap, VecDeque};
use std::mem::{self, Discriminant};
use std::sync::Arc;
use std::time::Duration;

use cloudlink_proto::ids::StreamId;
use cloudlink_proto::link::STATUS_MESSAGE_BYTES_MAX;
use cloudlink_proto::link::message::{StreamRefused, StreamRequest, stream_request};
use cloudlink_proto::stream::{CAPABILITY_FILE, CAPABILITY_FORWARD, CAPABILITY_TERMINAL};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::end::{Cut, Deadline, End};
use self::file::Files;
use self::leg::Leg;
use crate::access::{Denied, Leave};
use crate::chain;
use crate::config::{self, Config};
use crate::dial::{DialError, Route, Traffic};
use crate::problem::shown;

/// The most terminals at once. One more is refused as `busy`.
pub const TERMINALS_MAX: usize = 16;
/// The most forwarded connections at once: a browser opens many. One more is refused as `busy`.
pub const FORWARDS_MAX: usize = 128;
/// The most files under way at once. One more is refused as `busy`.
pub const FILES_MAX: usize = 16;
/// The ids of so many streams are remembered; none of them is opened again.
const REMEMBERED_MAX: usize = 4096;
/// A bound for what cannot be added to a clock.
const LASTS_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// The server cuts a stream when its time is up, and can say why. So long later the device does it by itself.
const CUT_AFTER: Duration = Duration::from_millis(300);
/// How long a stop waits for what runs in terminals to be gone.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// The streams of this device.
#[derive(Debug)]
pub struct Streams {
    settings: Arc<Settings>,
    remembered: VecDeque<StreamId>,
    live: HashMap<tokio::task::Id, Live>,
    tasks: JoinSet<Option<StreamRefused>>,
    stop: CancellationToken,
}

/// What the configuration lets streams do.
#[derive(Debug)]
struct Settings {
    terminal: config::Terminal,
    forward: config::Forward,
    files: Files,
    openvpn: config::OpenVpn,
}

/// A stream that was begun.
#[derive(Debug)]
struct Live {
    id: StreamId,
    kind: Kind,
    /// Which of the kinds of requests it came of: one scope each.
    asked: Discriminant<stream_request::Kind>,
    /// Of what it is, and under which grant.
    session_id: bytes::Bytes,
    grant_id: bytes::Bytes,
    deadline: Deadline,
}

/// What may be begun.
#[derive(Debug)]
struct Begun {
    kind: Kind,
    asked: Discriminant<stream_request::Kind>,
    leave: Leave,
}

/// Kinds of streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Terminal,
    Forward,
    File,
}

/// Why a stream is not opened.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("this agent does not know that kind of stream")]
    UnknownKind,
    #[error("{0}")]
    NotAllowed(String),
    #[error("{0}")]
    Denied(Denied),
    #[error("it came too late to be opened")]
    Expired,
    #[error("the device serves {0} streams of that kind already")]
    Busy(usize),
    #[error("the device takes files of at most {0} bytes")]
    TooLarge(u64),
    #[error("the agent is stopping")]
    Stopping,
    #[error("the device cannot dial for the stream")]
    Dial(#[source] DialError),
    #[error("the device has no room for the stream")]
    Internal(#[source] std::io::Error),
}

impl Streams {
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let settings = Settings {
            terminal: config.terminal.clone(),
            forward: config.forward.clone(),
            files: Files { settings: config.file.clone(), withheld: config.withheld() },
            openvpn: config.openvpn.clone(),
        };
        Self {
            settings: Arc::new(settings),
            remembered: VecDeque::new(),
            live: HashMap::new(),
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Whether none is live.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// What this device can stream: among the capabilities of its `Hello`.
    #[must_use]
    pub fn capabilities(&self) -> Vec<&'static str> {
        [Kind::Terminal, Kind::Forward, Kind::File]
            .into_iter()
            .filter(|kind| self.settings.has(*kind))
            .map(Kind::capability)
            .collect()
    }

    /// Takes a request of the server. What is to be answered at once is returned; a stream that is begun tells of itself on its
    /// own connection, or comes out of [`Self::done`].
    pub fn handle_request(
        &mut self,
        now: Instant,
        id: StreamId,
        request: StreamRequest,
        leave: Result<Leave, Denied>,
        route: Result<Route, DialError>,
    ) -> Option<StreamRefused> {
        if self.remembered.contains(&id) {
            // Nothing is answered: a refusal could end the one that was opened.
            self.move_end(now, id, &request, leave);
            return None;
        }
        self.remember(id);
        let begun = self.may_begin(&request, leave).and_then(|begun| Ok((begun, route.map_err(Refusal::Dial)?)));
        match begun {
            Ok((begun, route)) => {
                self.begin(now, id, begun, request, route);
                None
            }
            Err(refusal) => Some(refusal.told(id)),
        }
    }

    /// Asked for again, a stream ends at another time: the grant was extended. It is judged like a new one, and stays the one
    /// that it is: leave to read files gives no more time to write one, nor another grant to what this one has let in.
    fn move_end(&self, now: Instant, id: StreamId, request: &StreamRequest, leave: Result<Leave, Denied>) {
        let asked = request.kind.as_ref().map(mem::discriminant);
        let is_it = |live: &&Live| {
            live.id == id
                && Some(live.asked) == asked
                && live.session_id == request.session_id
                && live.grant_id == request.grant_id
        };
        let Some(live) = self.live.values().find(is_it) else {
            tracing::warn!(stream.id = %id, "a stream was asked for that there was already: nothing is done");
            return;
        };
        match leave {
            Ok(leave) => {
                tracing::info!(stream.id = %id, ends_after_ms = request.ends_after_ms, "a stream ends at another time");
                live.deadline.set(cut_at(now, request, leave));
            }
            Err(denied) => {
                tracing::warn!(stream.id = %id, code = denied.code(), %denied, "a stream's end stays as it is");
            }
        }
    }

    fn remember(&mut self, id: StreamId) {
        if self.remembered.len() >= REMEMBERED_MAX {
            self.remembered.pop_front();
        }
        self.remembered.push_back(id);
    }

    /// The one place that decides whether anything is begun for a request. `leave` is what the tenant's signature says.
    fn may_begin(&self, request: &StreamRequest, leave: Result<Leave, Denied>) -> Result<Begun, Refusal> {
        let asked = request.kind.as_ref().ok_or(Refusal::UnknownKind)?;
        let leave = leave.map_err(Refusal::Denied)?;
        let kind = Kind::of(asked);
        self.settings.check(asked)?;
        if request.open_within_ms == 0 || request.ends_after_ms == 0 {
            return Err(Refusal::Expired);
        }
        if self.stop.is_cancelled() {
            return Err(Refusal::Stopping);
        }
        let live = self.live.values().filter(|live| live.kind == kind).count();
        if live >= kind.max() {
            return Err(Refusal::Busy(live));
        }
        Ok(Begun { kind, asked: mem::discriminant(asked), leave })
    }

    fn begin(&mut self, now: Instant, id: StreamId, begun: Begun, request: StreamRequest, route: Route) {
        let Begun { kind, asked, leave } = begun;
        let session_id = uuid::Uuid::from_slice(&request.session_id).unwrap_or_default();
        let span = tracing::info_span!("stream", id = %id, session.id = %session_id, kind = kind.name());
        // Of the request itself nothing is logged: it holds the token.
        tracing::info!(
            parent: &span,
            requested_by = ?shown(&request.requested_by), reason = ?shown(&request.reason), what = ?what(&request), "opening a stream",
        );
        let tunnel = match &route {
            Route::Inside(tunnel) => Some((tunnel.clone(), self.settings.openvpn.clone())),
            Route::Direct { .. } => None,
        };
        let (deadline, cut) = Deadline::new(cut_at(now, &request, leave), self.stop.child_token(), tunnel);
        let (session_id, grant_id) = (request.session_id.clone(), request.grant_id.clone());
        let opening = Opening {
            id,
            open_by: now + Duration::from_millis(request.open_within_ms).min(LASTS_MAX),
            cut,
            request,
            settings: Arc::clone(&self.settings),
        };
        let task = self.tasks.spawn(opening.run(route).instrument(span));
        self.live.insert(task.id(), Live { id, kind, asked, session_id, grant_id, deadline });
    }

    /// The next stream that ends; what is to be told of it on the link, if anything. Pending while there is none. May be dropped
    /// and called again.
    pub async fn done(&mut self) -> Option<StreamRefused> {
        match self.tasks.join_next_with_id().await {
            Some(Ok((id, refused))) => {
                self.live.remove(&id);
                refused
            }
            Some(Err(error)) => {
                tracing::error!(%error, "a stream broke off");
                self.live.remove(&error.id());
                None
            }
            None => std::future::pending().await,
        }
    }

    /// Cuts all streams, and waits until what ran for them is gone.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        let gone = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(STOP_WITHIN, gone).await.is_err() {
            tracing::warn!("a stream has not come to its end");
        }
    }
}

/// A stream that is to be opened.
struct Opening {
    id: StreamId,
    open_by: Instant,
    cut: Cut,
    request: StreamRequest,
    settings: Arc<Settings>,
}

impl Opening {
    /// Dials, and serves to the end. What is returned is to be told on the link.
    async fn run(self, route: Route) -> Option<StreamRefused> {
        let begun = Instant::now();
        let mut leg = match self.dial(route).await {
            Ok(leg) => leg,
            Err(refusal) => return Some(refusal.told(self.id)),
        };
        let end = self.serve(&mut leg).await;
        tracing::info!(
            end = %end, bytes_to_device = leg.receiver.bytes(), bytes_from_device = leg.sender.bytes,
            lasted_ms = begun.elapsed().as_millis(), "a stream has ended",
        );
        end.say_last(&mut leg, &self.cut).await;
        None
    }

    async fn dial(&self, route: Route) -> Result<Leg, Refusal> {
        let open = async {
            let way = route.go(Traffic::Bulk).await?;
            way.open_stream(&self.request.token).await
        };
        let opened = tokio::select! {
            opened = timeout_at(self.open_by, open) => opened.map_err(|_| Refusal::Expired)?.map_err(Refusal::Dial)?,
            _ = self.cut.due() => return Err(Refusal::Stopping),
        };
        Leg::new(opened).map_err(Refusal::Internal)
    }

    /// Whoever serves sees to it that nothing is left of the stream when it is cut.
    async fn serve(&self, leg: &mut Leg) -> End {
        let (settings, cut) = (&self.settings, &self.cut);
        match &self.request.kind {
            Some(stream_request::Kind::Terminal(asked)) => {
                terminal::serve(leg, asked, &settings.terminal, &self.request, cut).await
            }
            Some(stream_request::Kind::Forward(asked)) => {
                cut.or(forward::serve(leg, asked, &settings.forward.allow)).await
            }
            Some(stream_request::Kind::FilePut(asked)) => cut.or(file::put(leg, asked, &settings.files)).await,
            Some(stream_request::Kind::FileGet(asked)) => cut.or(file::get(leg, asked, &settings.files)).await,
            None => End::Left,
        }
    }
}

impl Settings {
    fn has(&self, kind: Kind) -> bool {
        match kind {
            Kind::Terminal => self.terminal.enabled,
            Kind::Forward => !self.forward.allow.is_empty(),
            Kind::File => !self.files.settings.roots.is_empty(),
        }
    }

    /// What can be told from the configuration alone.
    fn check(&self, asked: &stream_request::Kind) -> Result<(), Refusal> {
        let kind = Kind::of(asked);
        if !self.has(kind) {
            let message = format!("the device's configuration allows no {}", kind.name());
            return Err(Refusal::NotAllowed(message));
        }
        match asked {
            stream_request::Kind::Forward(forward) => {
                forward::check(forward, &self.forward.allow).map_err(|denied| Refusal::NotAllowed(denied.to_string()))
            }
            stream_request::Kind::FilePut(put) if put.size > self.files.settings.bytes_max => {
                Err(Refusal::TooLarge(self.files.settings.bytes_max))
            }
            stream_request::Kind::Terminal(_) | stream_request::Kind::FilePut(_) | stream_request::Kind::FileGet(_) => {
                Ok(())
            }
        }
    }
}

impl Kind {
    const fn of(asked: &stream_request::Kind) -> Self {
        match asked {
            stream_request::Kind::Terminal(_) => Self::Terminal,
            stream_request::Kind::Forward(_) => Self::Forward,
            stream_request::Kind::FilePut(_) | stream_request::Kind::FileGet(_) => Self::File,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Terminal => "terminal",
            Self::Forward => "forward",
            Self::File => "file",
        }
    }

    const fn capability(self) -> &'static str {
        match self {
            Self::Terminal => CAPABILITY_TERMINAL,
            Self::Forward => CAPABILITY_FORWARD,
            Self::File => CAPABILITY_FILE,
        }
    }

    const fn max(self) -> usize {
        match self {
            Self::Terminal => TERMINALS_MAX,
            Self::Forward => FORWARDS_MAX,
            Self::File => FILES_MAX,
        }
    }
}

impl Refusal {
    fn code(&self) -> &'static str {
        match self {
            Self::UnknownKind => "unknown_kind",
            Self::NotAllowed(_) => "not_allowed",
            Self::Denied(denied) => denied.code(),
            Self::Expired => "expired",
            Self::Busy(_) => "busy",
            Self::TooLarge(_) => "too_large",
            Self::Stopping => "stopping",
            Self::Dial(_) => "dial_failed",
            Self::Internal(_) => "internal",
        }
    }

    /// Logs it. The answer is to be told.
    fn told(&self, id: StreamId) -> StreamRefused {
        let message = chain(self);
        tracing::warn!(stream.id = %id, code = self.code(), reason = message, "refused a stream");
        StreamRefused { id: id.to_wire(), code: self.code().to_owned(), message: shortened(&message) }
    }
}

/// The device's own end of a stream: a moment after the server's, which is to be first, or the end of what the tenant has signed.
fn cut_at(now: Instant, request: &StreamRequest, leave: Leave) -> Instant {
    let ends_after = Duration::from_millis(request.ends_after_ms).min(LASTS_MAX);
    leave.not_after(now + ends_after + CUT_AFTER)
}

/// What it is to, for the log.
fn what(request: &StreamRequest) -> String {
    match &request.kind {
        Some(stream_request::Kind::Forward(forward)) => shown(&format!("{}:{}", forward.host, forward.port)),
        Some(stream_request::Kind::FilePut(put)) => format!("to {}", shown(&put.path)),
        Some(stream_request::Kind::FileGet(get)) => format!("from {}", shown(&get.path)),
        Some(stream_request::Kind::Terminal(_)) | None => String::new(),
    }
}

fn shortened(text: &str) -> String {
    text[..text.floor_char_boundary(STATUS_MESSAGE_BYTES_MAX)].to_owned()
}
