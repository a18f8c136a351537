//! What applications on the device may ask of the agent, over a Unix socket: HTTP/1.1, JSON, one request a connection. Who may use it,
//! the permissions of the socket say.
//!
//! | request | |
//! |---|---|
//! | `GET /v1/status` | how the device stands |
//! | `GET /v1/busy` | the busy lock, or null |
//! | `PUT /v1/busy` | set or renew it: `{"reason": "…", "seconds": 3600}` |
//! | `DELETE /v1/busy` | end it |
//! | `GET /v1/configuration` | the configuration that the device is to have, or null: `{"version": 3, "sha256": "…", "document": {…}}` |
//! | `GET /v1/configuration?after=3&wait=20` | the same, once it is another version, or after so many seconds |
//! | `PUT /v1/configuration/applied` | say what came of it: `{"version": 3, "applied": true}`, or false with a `reason` |
//! | `GET /v1/services/NAME/restart` | wait to hear of a restart: `{"id": "…"}`, or null after a while |
//! | `POST /v1/services/NAME/restart/ID` | say what came of it: `{"restarted": true}`, or false with a `reason` |

mod restart;

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::link::CONFIGURATION_BYTES_MAX;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::busy::{Busy, BusyError};
use crate::chain;
use crate::config::Local as LocalConfig;
use crate::desired::{Desired, SayError};
use crate::exchange::{ExchangeError, exchange};
use crate::machine::AGENT;

pub use self::restart::{NotRestarted, Restarts};

/// Connections at once, twice as many as applications can wait. Who comes later waits.
const CONNECTIONS_MAX: usize = 64;
/// The largest body of a request.
const BODY_BYTES_MAX: usize = 4096;
/// The largest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Until the head of a request is there; and for everything but its wait.
const SERVED_WITHIN: Duration = Duration::from_secs(10);
/// How long an application waits to hear of a restart before it has to ask again.
const WAIT: Duration = Duration::from_secs(25);
/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 256;
/// The largest answer: a configuration, and what is around it.
const ANSWER_BYTES_MAX: usize = CONFIGURATION_BYTES_MAX + 1024;
/// How long a client of ours waits for the answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// Changes of a kind at will. Each is a write to the disk, and the server is told.
const WRITES_AT_WILL: u32 = 8;
/// From then on they wait for this, one after the other.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Whoever would have to wait for longer is refused.
const TURN_WITHIN: Duration = Duration::from_secs(5);
/// After an accept that failed: there may be no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// What applications can ask about, kept by the agent.
#[derive(Debug)]
pub struct Desk {
    pub busy: Arc<Busy>,
    pub desired: Arc<Desired>,
    restarts: Arc<Restarts>,
    link: Mutex<Option<&'static str>>,
    busy_turns: Turns,
    configuration_turns: Turns,
}

/// Who may write to the disk when: some at will, and from then on one after the other.
#[derive(Debug)]
struct Turns {
    /// When the next one is due that is not at will.
    next: Mutex<Instant>,
}

impl Turns {
    fn new() -> Self {
        Self { next: Mutex::new(Instant::now()) }
    }

    /// For whoever asks now. `None`: there are too many.
    fn take(&self, now: Instant) -> Option<Instant> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let due = (*next).max(now);
        let turn = now.max(due.checked_sub(WRITE_EVERY * (WRITES_AT_WILL - 1)).unwrap_or(now));
        if turn > now + TURN_WITHIN {
            return None;
        }
        *next = due + WRITE_EVERY;
        Some(turn)
    }
}

impl Desk {
    #[must_use]
    pub fn new(busy: Arc<Busy>, desired: Desired, restarts: Arc<Restarts>) -> Self {
        let (busy_turns, configuration_turns) = (Turns::new(), Turns::new());
        Self { busy, desired: Arc::new(desired), restarts, link: Mutex::new(None), busy_turns, configuration_turns }
    }

    /// By which transport the device is linked now, if it is.
    pub fn linked(&self, transport: Option<&'static str>) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = transport;
    }

    fn status(&self) -> Value {
        let link = *self.link.lock().unwrap_or_else(PoisonError::into_inner);
        json!({"agent": AGENT, "link": link, "busy": self.shown_busy(), "configuration": self.desired.standing()})
    }

    fn shown_busy(&self) -> Value {
        let lock = self.busy.in_force();
        lock.map_or(Value::Null, |lock| json!({"reason": lock.reason, "seconds_left": lock.left.as_secs()}))
    }
}

/// Serves applications for as long as it is kept.
#[derive(Debug)]
pub struct Serving(#[expect(dead_code, reason = "dropping it ends the task")] AbortOnDropHandle<()>);

/// Begins to serve. The state directory's lock makes sure that no other agent is at the same socket.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(config: &LocalConfig, desk: Arc<Desk>) -> io::Result<Serving> {
    let listener = listen(config)?;
    Ok(Serving(AbortOnDropHandle::new(tokio::spawn(accept(listener, desk)))))
}

fn listen(config: &LocalConfig) -> io::Result<UnixListener> {
    let path = &config.socket;
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something else than a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    if let Some(group) = &config.group {
        let group = nix::unistd::Group::from_name(group)?.ok_or_else(|| io::Error::other("there is no such group"))?;
        std::os::unix::fs::chown(path, None, Some(group.gid.as_raw()))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(config.mode))?;
    Ok(listener)
}

async fn accept(listener: UnixListener, desk: Arc<Desk>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = Arc::clone(&desk);
                tokio::spawn(async move {
                    let _place = place;
                    let _ = timeout(SERVED_WITHIN + WAIT, serve_one(stream, desk)).await;
                });
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "an application was not let in");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn serve_one(stream: UnixStream, desk: Arc<Desk>) {
    let answering = service_fn(|request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, std::convert::Infallible>(answer(&desk, request).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(SERVED_WITHIN).keep_alive(false).max_buf_size(HEAD_BYTES_MAX);
    // Who breaks off, or does not speak HTTP, has his reasons.
    let _ = server.serve_connection(TokioIo::new(stream), answering).await;
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BusyRequest {
    reason: String,
    seconds: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Restarted {
    restarted: bool,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Applied {
    version: u64,
    applied: bool,
    #[serde(default)]
    reason: String,
}

async fn answer(desk: &Desk, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    match (path.as_str(), request.method()) {
        ("/v1/status", &Method::GET) => answered(StatusCode::OK, &desk.status()),
        ("/v1/status", _) => not_allowed("GET"),
        ("/v1/busy", &Method::GET) => answered(StatusCode::OK, &desk.shown_busy()),
        ("/v1/busy", &Method::PUT) => match read(request).await {
            Ok(BusyRequest { reason, seconds }) => {
                let length = Duration::from_secs(seconds);
                change(desk, move |busy| busy.set(&reason, length)).await
            }
            Err(refused) => *refused,
        },
        ("/v1/busy", &Method::DELETE) => change(desk, Busy::clear).await,
        ("/v1/busy", _) => not_allowed("GET, PUT, DELETE"),
        ("/v1/configuration", &Method::GET) => show_configuration(desk, request.uri().query()).await,
        ("/v1/configuration", _) => not_allowed("GET"),
        ("/v1/configuration/applied", &Method::PUT) => match read(request).await {
            Ok(said) => say_applied(desk, said).await,
            Err(refused) => *refused,
        },
        ("/v1/configuration/applied", _) => not_allowed("PUT"),
        (path, method) => match path.strip_prefix("/v1/services/").and_then(|rest| rest.split_once("/restart")) {
            Some((service, _)) if !desk.restarts.has(service) => refused(
                StatusCode::NOT_FOUND,
                "no such service is restarted by its application (service.by_application)",
            ),
            Some((service, "")) if method == Method::GET => {
                let id = desk.restarts.wait(service, WAIT).await;
                answered(StatusCode::OK, &id.map_or(Value::Null, |id| json!({ "id": id })))
            }
            Some((_, "")) => not_allowed("GET"),
            Some((service, id)) => match id.strip_prefix('/').and_then(|id| Uuid::parse_str(id).ok()) {
                Some(id) if method == Method::POST => confirm(desk, service, id, request).await,
                Some(_) => not_allowed("POST"),
                None => no_path(),
            },
            None => no_path(),
        },
    }
}

async fn show_configuration(desk: &Desk, query: Option<&str>) -> Response<Full<Bytes>> {
    match read_wait(query.unwrap_or_default()) {
        Some((known, within)) if !within.is_zero() => desk.desired.wait(known, within).await,
        Some(_) => {}
        None => {
            let detail = "the query is after=VERSION&wait=SECONDS, both whole numbers";
            return refused(StatusCode::BAD_REQUEST, detail);
        }
    }
    respond(StatusCode::OK, desk.desired.shown())
}

/// Which version is known, and for how long to wait for another one; no longer than is allowed.
fn read_wait(query: &str) -> Option<(u64, Duration)> {
    let (mut known, mut seconds) = (0, 0);
    for (name, value) in
        query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=')).collect::<Option<Vec<_>>>()?
    {
        match name {
            "after" => known = value.parse().ok()?,
            "wait" => seconds = value.parse().ok()?,
            _ => return None,
        }
    }
    Some((known, Duration::from_secs(seconds).min(WAIT)))
}

async fn say_applied(desk: &Desk, Applied { version, applied, reason }: Applied) -> Response<Full<Bytes>> {
    let outcome = if applied { Ok(()) } else { Err(reason) };
    let desired = Arc::clone(&desk.desired);
    let said = match write(&desk.configuration_turns, move || desired.say(version, outcome)).await {
        Ok(said) => said,
        Err(refused) => return *refused,
    };
    match said {
        Ok(()) => {
            tracing::info!(version, applied, "an application has said whether the configuration is applied");
            answered(StatusCode::OK, &desk.desired.standing())
        }
        Err(error @ SayError::Version(_)) => refused(StatusCode::CONFLICT, &error.to_string()),
        Err(error @ SayError::Reason) => refused(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string()),
        Err(error @ SayError::Disk(_)) => {
            tracing::error!(error = chain(&error), "it cannot be written down whether the configuration is applied");
            refused(StatusCode::INTERNAL_SERVER_ERROR, &chain(&error))
        }
    }
}

async fn confirm(desk: &Desk, service: &str, id: Uuid, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let Restarted { restarted, reason } = match read(request).await {
        Ok(said) => said,
        Err(refused) => return *refused,
    };
    if reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        let detail = format!("a reason has at most {REASON_BYTES_MAX} bytes, none of them a control character");
        return refused(StatusCode::UNPROCESSABLE_ENTITY, &detail);
    }
    if desk.restarts.confirm(service, id, if restarted { Ok(()) } else { Err(reason) }) {
        answered(StatusCode::OK, &Value::Null)
    } else {
        refused(StatusCode::NOT_FOUND, "nobody waits for that any more")
    }
}

fn no_path() -> Response<Full<Bytes>> {
    refused(StatusCode::NOT_FOUND, "there is no such path")
}

async fn change(
    desk: &Desk,
    change: impl FnOnce(&Busy) -> Result<(), BusyError> + Send + 'static,
) -> Response<Full<Bytes>> {
    let busy = Arc::clone(&desk.busy);
    let changed = match write(&desk.busy_turns, move || change(&busy)).await {
        Ok(changed) => changed,
        Err(refused) => return *refused,
    };
    match changed {
        Ok(()) => {
            tracing::info!(lock = ?desk.busy.in_force(), "an application has changed the busy lock");
            answered(StatusCode::OK, &desk.shown_busy())
        }
        Err(error @ (BusyError::Reason | BusyError::Length(_))) => {
            refused(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string())
        }
        Err(error @ BusyError::Disk(_)) => {
            tracing::error!(error = chain(&error), "the busy lock cannot be changed");
            refused(StatusCode::INTERNAL_SERVER_ERROR, &chain(&error))
        }
    }
}

/// Writes in its turn, and on no thread that others need.
async fn write<T: Send + 'static>(
    turns: &Turns,
    what: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Box<Response<Full<Bytes>>>> {
    let Some(turn) = turns.take(Instant::now()) else {
        let detail = "there are too many changes: leave some time between them";
        return Err(Box::new(refused(StatusCode::TOO_MANY_REQUESTS, detail)));
    };
    sleep_until(turn).await;
    spawn_blocking(what).await.map_err(|error| {
        tracing::error!(%error, "a change broke off");
        Box::new(refused(StatusCode::INTERNAL_SERVER_ERROR, "it broke off"))
    })
}

async fn read<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> Result<T, Box<Response<Full<Bytes>>>> {
    let refuse = |status, detail: &str| Box::new(refused(status, detail));
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|_| refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or broken off"))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| refuse(StatusCode::BAD_REQUEST, &error.to_string()))
}

fn answered(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    respond(status, body.to_string())
}

fn respond(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refused(status: StatusCode, detail: &str) -> Response<Full<Bytes>> {
    answered(status, &json!({"error": detail}))
}

fn not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, "the method does not fit the path");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// Why an agent did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no agent answers at {0}: is it running, and may you use its socket?")]
    Unreachable(String, #[source] io::Error),
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("the agent does not answer")]
    TimedOut,
    #[error("{0}")]
    Refused(String),
}

/// Asks the agent that serves this socket.
///
/// # Errors
/// When it does not answer, or refuses.
pub async fn ask(socket: &Path, method: Method, path: &str, body: Option<&Value>) -> Result<Value, AskError> {
    let asking = async {
        let unreachable = |error| AskError::Unreachable(socket.display().to_string(), error);
        let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
        let body = body.map(ToString::to_string).unwrap_or_default();
        let mut request = Request::new(Full::new(Bytes::from(body)));
        (*request.method_mut(), *request.uri_mut()) = (method, path.parse().expect("ours are paths"));
        request.headers_mut().insert(http::header::HOST, HeaderValue::from_static("localhost"));
        let (head, body) = exchange(stream, request, ANSWER_BYTES_MAX).await?;
        let answer: Value = serde_json::from_slice(&body).map_err(|_| ExchangeError::Answer)?;
        if head.status.is_success() {
            return Ok(answer);
        }
        Err(AskError::Refused(answer["error"].as_str().unwrap_or("the agent refuses").escape_debug().to_string()))
    };
    timeout(ANSWERED_WITHIN, asking).await.map_err(|_| AskError::TimedOut)?
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::config::ServiceName;
    use crate::desired::tests::given;

    const HOUR: Duration = Duration::from_secs(3600);

    fn start(dir: &Path) -> (LocalConfig, Arc<Desk>, Serving) {
        let config = LocalConfig { socket: dir.join("local.sock"), mode: 0o660, group: None };
        let restarts = Restarts::new(&[ServiceName::parse("meter").unwrap()]);
        let desk = Arc::new(Desk::new(Arc::new(Busy::load(dir, HOUR)), Desired::load(dir), Arc::new(restarts)));
        let serving = serve(&config, Arc::clone(&desk)).unwrap();
        (config, desk, serving)
    }

    #[tokio::test]
    async fn a_lock_is_set_shown_and_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let (config, desk, _serving) = start(dir.path());
        assert_eq!(std::fs::metadata(&config.socket).unwrap().permissions().mode() & 0o777, 0o660);
        let busy = async |method, body: Option<Value>| ask(&config.socket, method, "/v1/busy", body.as_ref()).await;
        assert_eq!(busy(Method::GET, None).await.unwrap(), Value::Null);
        let set = busy(Method::PUT, Some(json!({"reason": "results", "seconds": 600}))).await.unwrap();
        assert_eq!(set["reason"], "results");
        assert_eq!(desk.busy.in_force().unwrap().reason, "results");
        desk.linked(Some("websocket"));
        let status = ask(&config.socket, Method::GET, "/v1/status", None).await.unwrap();
        assert_eq!((&status["busy"]["reason"], &status["link"]), (&json!("results"), &json!("websocket")));
        assert_eq!(busy(Method::DELETE, None).await.unwrap(), Value::Null);
        assert_eq!(desk.busy.in_force(), None);
    }

    #[tokio::test]
    async fn a_lock_that_is_changed_without_end_is_changed_slowly() {
        let dir = tempfile::tempdir().unwrap();
        let (config, desk, _serving) = start(dir.path());
        let lock = json!({"reason": "r", "seconds": 60});
        let begun = Instant::now();
        let change = async || ask(&config.socket, Method::PUT, "/v1/busy", Some(&lock)).await;
        let asked = futures_util::future::join_all((0..32).map(|_| change())).await;
        let made = asked.iter().filter(|answer| answer.is_ok()).count() as u64;
        let most = u64::from(WRITES_AT_WILL) + 1 + begun.elapsed().as_secs();
        assert!((8..=most).contains(&made), "{made} of at most {most}");
        assert!(
            asked.iter().any(|answer| matches!(answer, Err(AskError::Refused(why)) if why.contains("too many"))),
            "{asked:?}"
        );
        // Nobody waits for those that were refused.
        tokio::time::timeout(2 * TURN_WITHIN, change()).await.unwrap().unwrap();
        assert_eq!(desk.busy.in_force().unwrap().reason, "r");
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (config, desk, _serving) = start(dir.path());
        for body in [
            json!({"reason": "", "seconds": 60}),
            json!({"reason": "r", "seconds": 0}),
            json!({"reason": "r", "seconds": 3601}),
            json!({"reason": "r", "seconds": -1}),
            json!({"reason": "r"}),
            json!({"reason": "r", "seconds": 60, "force": true}),
            json!({"reason": "r".repeat(BODY_BYTES_MAX), "seconds": 60}),
        ] {
            let refused = ask(&config.socket, Method::PUT, "/v1/busy", Some(&body)).await;
            assert!(matches!(refused, Err(AskError::Refused(_))), "{refused:?}");
        }
        for (method, path) in [(Method::POST, "/v1/busy"), (Method::GET, "/v2/busy"), (Method::PUT, "/v1/status")] {
            assert!(matches!(ask(&config.socket, method, path, None).await, Err(AskError::Refused(_))));
        }
        assert_eq!(desk.busy.in_force(), None);
    }

    #[tokio::test]
    async fn an_application_hears_of_a_restart_and_says_what_came_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (config, desk, _serving) = start(dir.path());
        let tell = async |id: &str, body: Value| {
            let path = format!("/v1/services/meter/restart/{id}");
            ask(&config.socket, Method::POST, &path, Some(&body)).await
        };
        let application = async {
            let heard = ask(&config.socket, Method::GET, "/v1/services/meter/restart", None).await.unwrap();
            let id = heard["id"].as_str().unwrap().to_owned();
            for nonsense in [json!({"restarted": "yes"}), json!({"restarted": false, "reason": "a\nb"}), json!({})] {
                assert!(tell(&id, nonsense).await.is_err());
            }
            assert!(tell(&Uuid::nil().to_string(), json!({"restarted": true})).await.is_err());
            tell(&id, json!({"restarted": false, "reason": "in a reading"})).await.unwrap();
            assert!(tell(&id, json!({"restarted": true})).await.is_err());
        };
        let (asked, ()) = tokio::join!(desk.restarts.ask("meter", 3 * SERVED_WITHIN), application);
        assert_eq!(asked, Err(NotRestarted::Refused("in a reading".to_owned())));
        for path in ["/v1/services/other/restart", "/v1/services/meter/restarts", "/v1/services/meter/restart/1"] {
            assert!(matches!(ask(&config.socket, Method::GET, path, None).await, Err(AskError::Refused(_))), "{path}");
        }
    }

    #[tokio::test]
    async fn an_application_hears_of_another_configuration_and_says_what_came_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (config, desk, _serving) = start(dir.path());
        let get =
            async |query: &str| ask(&config.socket, Method::GET, &format!("/v1/configuration{query}"), None).await;
        let say = async |body: Value| ask(&config.socket, Method::PUT, "/v1/configuration/applied", Some(&body)).await;
        assert_eq!(get("").await.unwrap(), Value::Null);
        assert!(say(json!({"version": 0, "applied": true})).await.is_err());
        let take = async { desk.desired.take(&given(4, r#"{"interval":60}"#)) };
        let (heard, taken) = tokio::join!(biased; get("?after=0&wait=20"), take);
        assert!(taken.unwrap());
        let heard = heard.unwrap();
        assert_eq!((&heard["version"], &heard["document"]), (&json!(4), &json!({"interval": 60})));
        assert_eq!(get("?after=3&wait=20").await.unwrap(), heard, "it is another one already");
        assert_eq!(get("?after=4&wait=1").await.unwrap(), heard, "there is no other one");
        for query in ["?after=x", "?wait=-1", "?wait", "?since=3", "?wait=1&wait=x"] {
            assert!(get(query).await.is_err(), "{query}");
        }
        for nonsense in [
            json!({"version": 3, "applied": true}),
            json!({"version": 4, "applied": false}),
            json!({"version": 4, "applied": false, "reason": "a\nb"}),
            json!({"version": 4}),
        ] {
            assert!(say(nonsense).await.is_err());
        }
        let said = say(json!({"version": 4, "applied": false, "reason": "no such sensor"})).await.unwrap();
        assert_eq!(said, json!({"version": 4, "applied_version": 0, "error": "no such sensor"}));
        let said = say(json!({"version": 4, "applied": true})).await.unwrap();
        assert_eq!(said, json!({"version": 4, "applied_version": 4, "error": null}));
        let status = ask(&config.socket, Method::GET, "/v1/status", None).await.unwrap();
        assert_eq!(status["configuration"], said);
        assert!(ask(&config.socket, Method::POST, "/v1/configuration", None).await.is_err());
    }

    #[tokio::test]
    async fn who_says_nothing_is_let_go_and_keeps_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let (config, _desk, _serving) = start(dir.path());
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(UnixStream::connect(&config.socket).await.unwrap());
        }
        silent[0].write_all(b"GET /v1/busy HT").await.unwrap();
        // Served once the others are let go.
        let mut late = UnixStream::connect(&config.socket).await.unwrap();
        late.write_all(b"GET /v1/busy HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(3 * SERVED_WITHIN, late.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced_and_another_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (config, desk, serving) = start(dir.path());
        drop(serving);
        let serving = serve(&config, Arc::clone(&desk)).unwrap();
        assert_eq!(ask(&config.socket, Method::GET, "/v1/busy", None).await.unwrap(), Value::Null);
        drop(serving);
        std::fs::remove_file(&config.socket).unwrap();
        std::fs::write(&config.socket, "precious").unwrap();
        assert_eq!(serve(&config, desk).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&config.socket).unwrap(), "precious");
    }
}
