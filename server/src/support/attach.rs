//! From a client that asks for a stream to one that flows: a place in the session, the recording, the device's connection, and
//! then the client's own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::ids::{DeviceId, StreamId};
use cloudlink_proto::link::STREAM_TOKEN_BYTES;
use cloudlink_proto::link::message::{
    FileGet, FilePut, Forward, StreamRefused, StreamRequest, Terminal, stream_request,
};
use cloudlink_proto::stream::{Control, Mode, Party};
use futures_util::future::join_all;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use super::Support;
use super::expect::Answer;
use super::freshness::{Freshness, Gate};
use super::guest::{Guest, Seat, Size};
use super::leg::{Gait, Leg, cut};
use super::opening;
use super::pump::{End, Parts, Pump, closed};
use super::session::{Cause, NoPlace, Place, Session};
use crate::bus::Hint;
use crate::cluster::peer::Asked;
use crate::http_server::take_over;
use crate::link::{Order, StreamOrder};
use crate::model::support_session::{Direction, EndReason, FileTarget, ForwardTarget, Target};
use crate::recording::{self, Recorder, Subject};
use crate::store::link::link_node;
use crate::store::support_session::{SessionFacts, support_session_start_in_txn, support_session_tell_start_in_txn};
use crate::store::{StoreError, Visibility, single};

/// How long the client may take for its upgrade, once it is answered.
const UPGRADE_WITHIN: Duration = Duration::from_secs(5);
/// A request has no longer: the device must have come before.
const OPEN_WITHIN_MAX: Duration = Duration::from_secs(18);
/// How often another node is looked for that has the device's link, which may be on its way between two,
const ASK_ATTEMPTS: u32 = 3;
/// and after how long again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Until when a device is to have heard that a session may go on for longer.
const EXTEND_WITHIN: Duration = Duration::from_secs(5);
/// Between two attempts to send a guest away.
const PART_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A client's window.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) size: Size,
    pub(crate) term: String,
}

/// Why a client gets no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error("the session has ended: {}", .0.name())]
    Ended(EndReason),
    #[error("somebody has the session's one stream already")]
    Taken,
    #[error("the session has as many connections, or guests, as it may")]
    Full,
    #[error("nothing can be recorded")]
    Unrecorded,
    #[error("the device has no link to this node")]
    NotLinked,
    #[error("the port cannot be opened")]
    NoOpening,
    #[error("the device has refused: {code:?}")]
    Refused { code: String, message: String },
    #[error("the device did not come")]
    Silent,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Ends the session when it is dropped with one.
struct Abandoned<'a>(Option<&'a Arc<Session>>);

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.0 {
            session.end(EndReason::Closed, Instant::now());
        }
    }
}

/// A stream whose device is there.
#[derive(Debug)]
pub(crate) struct Attached {
    support: Support,
    session: Arc<Session>,
    recorder: Arc<Recorder>,
    place: Place,
    device: Leg,
    size: Size,
    gait: Gait,
    /// The device's connection is no agent's, which would say so itself.
    is_ready: bool,
    open: TaskTrackerToken,
}

impl Support {
    pub(super) fn open_within(&self) -> Duration {
        self.0.config.open_timeout_seconds.duration().min(OPEN_WITHIN_MAX)
    }

    /// Gets a stream of a session for its operator.
    pub(crate) async fn attach(&self, session: Arc<Session>, window: Window) -> Result<Attached, AttachError> {
        let open = session.streams.token();
        if let Some(ending) = session.ending() {
            return Err(AttachError::Ended(ending.reason));
        }
        let place = session.take_place().map_err(|no_place| match no_place {
            NoPlace::Taken => AttachError::Taken,
            NoPlace::Full => AttachError::Full,
        })?;
        let is_single = !matches!(session.facts.target, Target::Forward(_));
        // Whoever is gone before the answer leaves nothing behind.
        let mut abandoned = Abandoned(Some(&session).filter(|_| is_single));
        let attached = tokio::select! {
            biased;
            ending = session.ended() => return Err(AttachError::Ended(ending.reason)),
            attached = self.bring_device(&session, place.number, &window) => attached,
        };
        let (recorder, device) = attached.inspect_err(|error| {
            if let Some(reason) = error.ends(is_single) {
                session.end(reason, Instant::now());
            }
        })?;
        abandoned.0 = None;
        drop(abandoned);
        let is_ready = session.facts.target.port_via_node().is_some();
        let gait = gait(&session.facts.target);
        session.moved(Instant::now());
        Ok(Attached {
            support: self.clone(),
            session,
            recorder,
            place,
            device,
            size: window.size,
            gait,
            is_ready,
            open,
        })
    }

    async fn bring_device(
        &self,
        session: &Arc<Session>,
        number: u32,
        window: &Window,
    ) -> Result<(Arc<Recorder>, Leg), AttachError> {
        let recorder = self.start(session, window).await?;
        let device = match session.facts.target.port_via_node() {
            Some(port) => Leg::tcp(opening::connect(self, session, port).await?),
            None => self.ask_device(session, number, window).await?,
        };
        Ok((recorder, device))
    }

    /// Begins the recording, and notes that the session is live, before its first stream.
    async fn start(&self, session: &Session, window: &Window) -> Result<Arc<Recorder>, AttachError> {
        let mut recorder = session.recorder.lock().await;
        if let Some(recorder) = recorder.as_ref() {
            return Ok(Arc::clone(recorder));
        }
        let facts = &session.facts;
        let subject = match &facts.target {
            Target::Terminal => Subject::Terminal(recording::Terminal {
                columns: window.size.0,
                rows: window.size.1,
                term: Some(window.term.clone()),
                title: facts.reason.clone(),
            }),
            target @ (Target::Forward(_) | Target::File(_)) => {
                Subject::Events { kind: target.kind().name(), target: target.to_json() }
            }
        };
        let links = self.links();
        let new = recording::New { session: facts.id, subject, lag: self.0.config.recording_lag_seconds.duration() };
        let begun = Recorder::begin(links.store.clone(), &self.0.key, Arc::clone(&links.metrics), new).await;
        let begun = begun.map_err(|error| {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(session = %facts.id, error, "a support session cannot be recorded, so it may not be");
            AttachError::Unrecorded
        })?;
        session.begin(begun.health());
        let begun = Arc::clone(recorder.insert(Arc::new(begun)));
        drop(recorder);
        let started = async {
            let mut transaction = links.store.begin(Visibility::All).await?;
            let is_live = support_session_start_in_txn(&mut transaction, facts.id).await?;
            let is_told =
                is_live && support_session_tell_start_in_txn(&mut transaction, facts.id, facts.tenant).await?;
            links.store.commit(transaction).await?;
            Ok((is_live, is_told))
        };
        let (is_live, is_told) = links.store.within(started).await?;
        if is_told {
            links.bus.send(Hint::NoticesDue);
        }
        // Who ended it will be heard of in a moment.
        if is_live { Ok(begun) } else { Err(AttachError::Ended(EndReason::Closed)) }
    }

    /// Tells the device to come, and waits until it does.
    async fn ask_device(&self, session: &Session, number: u32, window: &Window) -> Result<Leg, AttachError> {
        let facts = &session.facts;
        let links = self.links();
        let id = StreamId::from_uuid(Uuid::new_v4());
        let (token, mut awaited) = links.expectations.expect(facts.device, id).ok_or(AttachError::Full)?;
        let open_within = self.open_within();
        let request = StreamRequest {
            id: id.to_wire(),
            session_id: facts.id.to_wire(),
            token: token.to_wire(),
            requested_by: facts.name.clone(),
            reason: facts.reason.clone(),
            grant_id: facts.grant.to_wire(),
            grant_statement: facts.grant_statement.clone().unwrap_or_default(),
            kind: Some(request_kind(&facts.target, window)),
            ..StreamRequest::default()
        };
        let again = StreamRequest { token: Bytes::from_static(&[0; STREAM_TOKEN_BYTES]), ..request.clone() };
        let (open_by, ends_at) = (Instant::now() + open_within, *session.deadline().borrow());
        let asking = Box::pin(self.ask(facts.device, StreamOrder { request, open_by, ends_at }));
        let answered = async {
            tokio::select! {
                biased;
                answer = awaited.answer() => Ok::<_, AttachError>(answer),
                asked = asking => match asked? {
                    Some(StreamRefused { code, message, .. }) => Ok(Some(Answer::Refused { code, message })),
                    None => Ok(awaited.answer().await),
                }
            }
        };
        match timeout(open_within, answered).await.unwrap_or(Ok(None))? {
            Some(Answer::Arrived { stream, read_ahead }) => {
                session.note_asked(number, again);
                Ok(Leg::web_socket(*stream, read_ahead, Party::Device, gait(&facts.target)).await)
            }
            Some(Answer::Refused { code, message }) => Err(AttachError::Refused { code, message }),
            None => Err(AttachError::Silent),
        }
    }

    /// Asks a device for a stream, over the link that it has here, or on another node to which it has gone since the session was
    /// opened. That one tells if the device refuses; a link here does by itself.
    async fn ask(&self, device: DeviceId, order: StreamOrder) -> Result<Option<StreamRefused>, AttachError> {
        let links = self.links();
        if let Some(link) = links.registry.find(device) {
            link.order(Order::Stream(Box::new(order)));
            return Ok(None);
        }
        let peers = links.peers.get().ok_or(AttachError::NotLinked)?;
        let request = order.into_request(Instant::now());
        for attempt in 0..ASK_ATTEMPTS {
            if attempt > 0 {
                sleep(ASK_AGAIN_AFTER).await;
            }
            let node =
                links.store.within(async { single!(links.store, |connection| link_node(connection, device)) }).await?;
            let Some(node) = node.filter(|node| *node != links.node) else { continue };
            match peers.ask(&node, device, &request).await {
                Ok(Asked::Refused(refused)) => return Ok(Some(refused)),
                Ok(Asked::Unrefused) => return Ok(None),
                // It is on its way to yet another one.
                Ok(Asked::NotLinked) => {}
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        node,
                        "cannot ask for a stream over another node"
                    );
                }
            }
        }
        Err(AttachError::NotLinked)
    }

    /// The grant ends later than before: the device, which cuts by itself, is asked again, for longer.
    pub(crate) async fn extend(&self, session: &Session, facts: SessionFacts) {
        if let Some(port) = session.facts.target.port_via_node()
            && let Err(error) = opening::renew(self, session, port).await
        {
            tracing::warn!(session = %session.facts.id, %error, "the port of a support session is not open for longer");
        }
        let asking = session.asked().into_iter().map(|request| {
            let grant_statement = facts.grant_statement.clone().unwrap_or_default();
            let request = StreamRequest { grant_statement, ..request };
            let (open_by, ends_at) = (Instant::now() + EXTEND_WITHIN, facts.deadline);
            Box::pin(self.ask(session.facts.device, StreamOrder { request, open_by, ends_at }))
        });
        for asked in join_all(asking).await {
            if let Err(error) = asked {
                tracing::warn!(session = %session.facts.id, %error, "a device does not know that a session may go on for longer");
            }
        }
    }

    /// Keeps a place for somebody who joins a terminal.
    pub(crate) fn seat(&self, session: &Arc<Session>, id: Uuid, mode: Mode) -> Result<Seat, AttachError> {
        let open = session.streams.token();
        if let Some(ending) = session.ending() {
            return Err(AttachError::Ended(ending.reason));
        }
        if !session.admit_guest(id, mode) {
            return Err(AttachError::Full);
        }
        let gone = CancellationToken::new();
        Ok(Seat { id, session: Arc::clone(session), support: self.clone(), gone, _open: open })
    }

    /// Brings somebody who was let in to the session, once the connection is there. Sends it away when its token is `over`.
    pub(crate) fn join(
        &self,
        seat: Seat,
        name: String,
        mode: Mode,
        size: Option<Size>,
        upgrade: OnUpgrade,
        over: impl Future<Output = Cause> + Send + 'static,
    ) {
        let (session, id, gone) = (Arc::clone(&seat.session), seat.id, seat.gone.clone());
        self.0.shutdown.tasks.spawn(async move {
            let part = async {
                over.await;
                loop {
                    session.part(id);
                    sleep(PART_AGAIN_AFTER).await;
                }
            };
            tokio::select! {
                () = gone.cancelled() => {}
                () = part => {}
            }
        });
        self.0.shutdown.tasks.spawn(async move {
            let Ok(Some((stream, read_ahead))) = timeout(UPGRADE_WITHIN, take_over(upgrade)).await else { return };
            let leg = Leg::web_socket(stream, read_ahead, Party::Client, Gait::Interactive).await;
            let session = Arc::clone(&seat.session);
            if let Err(guest) = session.join(Box::new(Guest { seat, name, mode, leg, size })).await {
                let reason = session.ending().map_or(EndReason::Closed, |ending| ending.reason);
                let Guest { leg, seat, .. } = *guest;
                leg.close(Some(closed(reason)), cut()).await;
                drop(seat);
            }
        });
    }
}

impl AttachError {
    /// Whether the session is over with it.
    fn ends(&self, is_single: bool) -> Option<EndReason> {
        match self {
            Self::Unrecorded => Some(EndReason::RecordingFailed),
            Self::Refused { .. } if is_single => Some(EndReason::Refused),
            Self::Silent | Self::NotLinked if is_single => Some(EndReason::DeviceGone),
            Self::Store(_) | Self::Full if is_single => Some(EndReason::Closed),
            Self::Ended(_)
            | Self::Taken
            | Self::Full
            | Self::NotLinked
            | Self::NoOpening
            | Self::Refused { .. }
            | Self::Silent
            | Self::Store(_) => None,
        }
    }
}

impl Attached {
    /// Goes on by itself once the client's connection is there, and ends the session with it if that has no other, or when the
    /// operator's token is `over`. `freshness` is of what is known
    /// of tokens.
    pub(crate) fn serve(
        self,
        upgrade: OnUpgrade,
        freshness: Arc<Freshness>,
        over: impl Future<Output = Cause> + Send + 'static,
    ) {
        let tasks = self.support.0.shutdown.tasks.clone();
        tasks.spawn(async move {
            let Self { support, session, recorder, place, device, size, gait, is_ready, open } = self;
            let upgraded = tokio::select! {
                biased;
                _ = session.ended() => None,
                upgraded = timeout(UPGRADE_WITHIN, take_over(upgrade)) => upgraded.ok().flatten(),
            };
            let end = match upgraded {
                Some((stream, read_ahead)) => {
                    let mut client = Leg::web_socket(stream, read_ahead, Party::Client, gait).await;
                    if is_ready {
                        client.pass_control(Control::Ready);
                    }
                    let (session, cut_session) = (Arc::clone(&session), &session);
                    let metrics = &support.links().metrics.support_bytes;
                    let metrics = ["to_device", "from_device"].map(|direction| metrics.with_label_values(&[direction]));
                    let gate = Gate::new(vec![Arc::clone(support.freshness()), freshness]);
                    let parts = Parts { session, recorder, place, device, client, size, gate, metrics };
                    let watch = async {
                        cut_session.end_because(over.await);
                        std::future::pending::<End>().await
                    };
                    let run = Box::pin(Pump::new(parts).run());
                    tokio::select! {
                        // Before anything passes: what is known of the token may have let it pass again.
                        biased;
                        never = watch => never,
                        end = run => end,
                    }
                }
                None => {
                    let end = session.ending().map_or(End::ClientGone, End::Cut);
                    device.close(Some(closed(end.reason())), cut()).await;
                    end
                }
            };
            if !matches!(session.facts.target, Target::Forward(_)) || end == End::Unrecorded {
                session.end(end.reason(), Instant::now());
            }
            drop(open);
        });
    }
}

fn gait(target: &Target) -> Gait {
    match target {
        Target::Terminal => Gait::Interactive,
        Target::Forward(_) | Target::File(_) => Gait::Bulk,
    }
}

fn request_kind(target: &Target, window: &Window) -> stream_request::Kind {
    match target {
        Target::Terminal => stream_request::Kind::Terminal(Terminal {
            columns: window.size.0.into(),
            rows: window.size.1.into(),
            term: window.term.clone(),
        }),
        Target::Forward(ForwardTarget { host, port, .. }) => {
            stream_request::Kind::Forward(Forward { host: host.clone(), port: (*port).into() })
        }
        Target::File(file @ FileTarget { path, direction: Direction::ToDevice, size, .. }) => {
            stream_request::Kind::FilePut(FilePut {
                path: path.clone(),
                size: size.unwrap_or_default(),
                mode: file.mode(),
            })
        }
        Target::File(FileTarget { path, direction: Direction::FromDevice, .. }) => {
            stream_request::Kind::FileGet(FileGet { path: path.clone() })
        }
    }
}
