//! `GET /support-sessions/{id}/stream`: a WebSocket for the operator who opened the session, and for those who join a terminal. What
//! is said on it is in `proto/src/stream/`. Whatever stands in the way is told before the upgrade.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use cloudlink_proto::ids::{DeviceId, SupportSessionId};
use cloudlink_proto::link::{TERM_BYTES_MAX, TERMINAL_CELLS_MAX};
use cloudlink_proto::stream::{Mode, SUBPROTOCOL};
use http::StatusCode;
use hyper::upgrade::OnUpgrade;
use serde::Deserialize;

use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::pass_on::pass_on;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::http::request::{Id, Query};
use crate::http::token_watch::Over;
use crate::http::v1::command::create::explain;
use crate::model::new_id;
use crate::model::person::Role;
use crate::model::support_session::{EndReason, SessionState, Target};
use crate::store::command::{Missing, Obstacle, command_explain};
use crate::store::support_session::{NewGuest, support_guest_join, support_session_show};
use crate::store::{StoreError, single};
use crate::support::attach::{AttachError, Window};
use crate::support::session::Cause;
use crate::websocket::{self, HandshakeError};

const COLUMNS_DEFAULT: u16 = 80;
const ROWS_DEFAULT: u16 = 24;
/// Known everywhere, and harmless where it is not.
const TERM_DEFAULT: &str = "xterm-256color";

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamQuery {
    /// To type as well (`operate`), or only to see (`watch`). People of the device's owner may only watch.
    #[param(value_type = Option<String>)]
    mode: Option<Mode>,
    /// The window's, of a terminal: 1 to 1,000.
    columns: Option<u16>,
    /// The window's, of a terminal: 1 to 1,000.
    rows: Option<u16>,
    /// `TERM`, of a terminal.
    term: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no such session")]
    Unknown,
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("another node serves it")]
    OtherNode(String),
    #[error("only a terminal can be joined")]
    Foreign,
    #[error("nobody is there to be joined")]
    NotLive,
    #[error("the owner may only watch")]
    WatchOnly,
    #[error("no grant allows it: {}", .0.name())]
    GrantRequired(Missing),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Unknown => Self::not_found(),
            RouteError::Handshake(error) => Self::bad_request(format!("No WebSocket came of it: {error}.")),
            RouteError::OtherNode(node) => {
                Self::new(Kind::Conflict, format!("The node {node:?} serves this session. Ask that one."))
            }
            RouteError::Foreign => Self::new(
                Kind::Forbidden,
                "Another operator opened this session. A terminal can be joined, a forward or a file copy cannot.",
            ),
            RouteError::NotLive => Self::new(
                Kind::Conflict,
                "Nobody is there yet: join when the operator who opened the session has come.",
            ),
            RouteError::WatchOnly => {
                Self::new(Kind::Forbidden, "You may watch what operators do, and not type. Ask with `mode` = `watch`.")
            }
            RouteError::GrantRequired(missing) => {
                Self::new(Kind::GrantRequired, explain(missing)).reason(missing.name())
            }
            RouteError::Attach(error) => error.into(),
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) => error.into(),
        }
    }
}

impl From<AttachError> for Problem {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Ended(reason) => session_ended(Some(reason)),
            AttachError::Taken => Self::new(Kind::Conflict, "This session has its one stream already."),
            AttachError::Full => Self::new(
                Kind::TooManySessions,
                "The session has as many connections, or guests, as it may. Close one that is not needed.",
            ),
            AttachError::Unrecorded => Self::new(
                Kind::RecordingUnavailable,
                "The session cannot be recorded now, so it may not be. Ask again when the server has its database.",
            ),
            AttachError::NotLinked => {
                Self::new(Kind::NotLinked, "The device has lost its link. Ask again when it is back.")
            }
            AttachError::NoOpening => Self::new(
                Kind::NoTunnel,
                "The port cannot be opened: the device has lost its tunnel, or has as many openings as it may.",
            ),
            AttachError::Refused { code, message } => {
                let plain = |text: &str| text.chars().filter(|char| !char.is_control()).collect::<String>();
                let detail = format!("The device has refused ({}): {}", plain(&code), plain(&message));
                Self::new(Kind::StreamRefused, detail).reason("refused")
            }
            AttachError::Silent => {
                let detail = "The device did not come in time. It may have lost its link, or be too busy: ask again.";
                Self::new(Kind::StreamRefused, detail).reason("silent")
            }
            AttachError::Store(error) => error.into(),
        }
    }
}

fn session_ended(reason: Option<EndReason>) -> Problem {
    let why = reason.map_or("it is over", EndReason::sentence);
    Problem::new(Kind::SessionEnded, format!("The session has ended: {why}. Open another one."))
}

/// The bytes of a support session
///
/// A WebSocket (HTTP/1.1) with the subprotocol `cloudlink.stream.v1`. For the operator who opened it: the session's one stream, or
/// one connection of a forward. For others: a terminal to watch or to type in. The answer waits for the device.
#[utoipa::path(get, path = "/support-sessions/{id}/stream", operation_id = "support_session_stream",
    tag = "support", params(("id" = uuid::Uuid, Path), StreamQuery),
    responses((status = 101, description = "A WebSocket")))]
#[tracing::instrument(name = "http.support_session.stream", skip_all)]
pub(crate) async fn handler(
    State(context): State<Context>,
    caller: Caller,
    Id(id): Id,
    Query(query): Query<StreamQuery>,
    mut request: Request,
) -> Result<Response, RouteError> {
    let id = SupportSessionId::from_uuid(id);
    let mut transaction = context.store.begin(caller.visibility()).await?;
    let shown = support_session_show(&mut transaction, id).await?.ok_or(RouteError::Unknown)?;
    drop(transaction);
    let headers = websocket::accept(request.headers(), SUBPROTOCOL)?;
    let window = query.window()?;
    if shown.state == SessionState::Ended {
        return Err(session_ended(shown.end_reason.as_deref().and_then(EndReason::named)).into());
    }
    let support = context.support()?;
    if shown.node != support.node() {
        return match pass_on(&context, &shown.node, request).await {
            Some(answer) => Ok(answer?),
            None => Err(RouteError::OtherNode(shown.node)),
        };
    }
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().ok_or(HandshakeError::NoUpgrade)?;
    let session = support.find(id).ok_or(AttachError::Ended(EndReason::Closed))?;
    let token = context.tokens.watch(caller.session());
    let over = async move {
        let Over { since: over_at, is_shut_out, silent_since } = token.over().await;
        let reason = if is_shut_out { EndReason::OperatorShutOut } else { EndReason::TokenEnded };
        Cause { reason, over_at, silent_since }
    };
    let is_terminal = session.facts.target == Target::Terminal;
    let is_opener = caller.person() == session.facts.opened_by;
    if is_opener && !(is_terminal && session.is_taken()) {
        if query.mode == Some(Mode::Watch) {
            return Err(RouteError::NotLive);
        }
        support.attach(session, window).await?.serve(upgrade, Arc::clone(context.tokens.freshness()), over);
        return Ok(switching(headers));
    }
    if !is_terminal {
        return Err(RouteError::Foreign);
    }
    if !session.is_taken() {
        return Err(RouteError::NotLive);
    }
    let mode = match (caller.role(), query.mode) {
        (Role::Operator, mode) => mode.unwrap_or(Mode::Operate),
        (Role::Tenant, None | Some(Mode::Watch)) => Mode::Watch,
        (Role::Tenant, Some(Mode::Operate)) | (Role::Admin, _) => return Err(RouteError::WatchOnly),
    };
    let guest = new_id();
    let seat = support.seat(&session, guest, mode)?;
    let new = NewGuest {
        id: guest,
        session: id,
        person: caller.person(),
        actor: caller.actor().to_json(),
        scope: session.facts.target.scope(),
        operates: mode == Mode::Operate,
    };
    if !single!(context.store, |connection| support_guest_join(connection, &new))? {
        return Err(refused(&context, &caller, session.facts.device, new.scope).await);
    }
    let size = (query.columns.is_some() || query.rows.is_some()).then_some(window.size);
    support.join(seat, caller.session().name.clone(), mode, size, upgrade, over);
    Ok(switching(headers))
}

/// Why somebody may not join.
async fn refused(context: &Context, caller: &Caller, device: DeviceId, scope: &str) -> RouteError {
    let explained = async {
        single!(context.store, |connection| command_explain(connection, caller.person(), device, None, &[scope]))
    };
    match explained.await {
        Ok(Obstacle::Grant { missing, .. }) => RouteError::GrantRequired(missing),
        Ok(
            Obstacle::DeviceUnknown
            | Obstacle::DeviceRevoked
            | Obstacle::NotLinked
            | Obstacle::NoAgent { .. }
            | Obstacle::Polling { .. }
            | Obstacle::Gone,
        ) => session_ended(None).into(),
        Err(error) => error.into(),
    }
}

fn switching(headers: http::HeaderMap) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers;
    answer
}

impl StreamQuery {
    fn window(&self) -> Result<Window, Problem> {
        let cells = |name: &str, cells: Option<u16>, default: u16| match cells {
            None => Ok(default),
            Some(cells) if (1..=TERMINAL_CELLS_MAX).contains(&u32::from(cells)) => Ok(cells),
            Some(_) => Err(Problem::unprocessable(format!("`{name}` must be 1 to {TERMINAL_CELLS_MAX}."))),
        };
        let term = self.term.as_deref().unwrap_or(TERM_DEFAULT);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
        if term.is_empty() || term.len() > TERM_BYTES_MAX || !term.bytes().all(is_plain) {
            let detail = format!("`term` must have 1 to {TERM_BYTES_MAX} letters, digits and `._+-`.");
            return Err(Problem::unprocessable(detail));
        }
        let size = (cells("columns", self.columns, COLUMNS_DEFAULT)?, cells("rows", self.rows, ROWS_DEFAULT)?);
        Ok(Window { size, term: term.to_owned() })
    }
}
