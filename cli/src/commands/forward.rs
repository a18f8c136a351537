//! TCP ports of a device, reached from here.

mod connection;
mod route;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use super::shell::killed;
use super::{Context, support};
use crate::client::{Answer, Client};
use crate::failure::Failure;
use crate::model::SupportSession;
use crate::output::Output;
use crate::resolve;
use crate::stream;
use connection::{End, Name, Told};
use route::Route;

/// Connections of one session at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 128;
/// Words of connections that wait to be said.
const TOLD_MAX: usize = 64;
/// How often a session is looked at: it may end while there is no connection.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// A server that cannot be reached for so long has ended the session, or will have.
const UNREACHABLE_LOOKS_MAX: u32 = 30;
/// Why the server may close one connection of a session that goes on.
const OF_ONE_CONNECTION: [&str; 3] = ["device_gone", "exited", "refused"];
/// For the sessions to be closed when this program is told to end.
const CLOSE_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct Forward {
    /// Name or id of the device
    device: String,
    // Not a comment, in which rustdoc would see a link.
    #[arg(
        required = true,
        value_name = "[BIND:]PORT:HOST:PORT",
        help = "Where to listen here, and where that leads, as the device sees it: 8080:localhost:80 (repeatable)"
    )]
    routes: Vec<Route>,
    /// Through the tunnel to a port of the device itself, for devices without an agent
    #[arg(long)]
    direct: bool,
    #[command(flatten)]
    why: support::Why,
}

/// What leads where.
#[derive(Debug)]
struct Line {
    session: Uuid,
    listener: TcpListener,
}

impl Forward {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        let client = Arc::new(context.client()?);
        let device = resolve::device(&client, &self.device).await?.value.id.to_string();
        // Before anything is asked for: a port that is taken here needs no session.
        let mut listeners = Vec::new();
        for route in &self.routes {
            let listener = TcpListener::bind((route.bind, route.port));
            listeners.push(listener.await.with_context(|| format!("cannot listen at {}:{}", route.bind, route.port))?);
        }
        let why = self.why.clone().asked(context)?;
        let mut lines = Vec::new();
        let mut opened = Opened { client: Arc::clone(&client), sessions: Vec::new() };
        for (route, listener) in self.routes.iter().zip(listeners) {
            let target = route.target(self.direct);
            let session = match why.open(context, &client, &device, "forward", target).await {
                Ok(session) => session.value,
                Err(failure) => {
                    opened.close().await;
                    return Err(failure);
                }
            };
            opened.sessions.push(session.id);
            let local = listener.local_addr().context("a listener has no address")?;
            say_listening(&context.output, &session, route, local)?;
            lines.push(Line { session: session.id, listener });
        }
        let end = tokio::select! {
            end = serve(&client, &context.output, lines) => end,
            // That is how it is meant to end.
            _ = killed() => Ok(()),
        };
        if matches!(end, Err(Failure::Closed { .. })) {
            if opened.sessions.len() == 1 {
                return end;
            }
            // What ended one session may end the others: they are to have that reason, and not that they were closed.
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        opened.close().await;
        end
    }
}

/// The sessions that this program has opened, to be closed with it.
#[derive(Debug)]
struct Opened {
    client: Arc<Client>,
    sessions: Vec<Uuid>,
}

impl Opened {
    async fn close(self) {
        let close =
            futures_util::future::join_all(self.sessions.iter().map(|id| self.client.support_session_close(*id)));
        // One that is over is over; one that cannot be closed now ends by itself when nothing moves.
        let _ = tokio::time::timeout(CLOSE_MAX, close).await;
    }
}

/// Serves all lines until the first session has ended, and tells why.
async fn serve(client: &Arc<Client>, output: &Output, lines: Vec<Line>) -> Result<(), Failure> {
    let (tell, mut told) = mpsc::channel(TOLD_MAX);
    let mut ends = JoinSet::new();
    for line in lines {
        let id = line.session;
        ends.spawn(watch(Arc::clone(client), id));
        ends.spawn(accept(Arc::clone(client), line, tell.clone()));
    }
    let warned = Mutex::new(BTreeSet::new());
    loop {
        tokio::select! {
            Some(told) = told.recv() => say(output, &told, &warned)?,
            Some(end) = ends.join_next() => {
                let failure = end.map_err(|error| Failure::Other(error.into()))?;
                if output.json {
                    output.json_line(&json!({ "event": "ended", "reason": reason(&failure) }))?;
                }
                return Err(failure);
            }
        }
    }
}

fn reason(failure: &Failure) -> Value {
    match failure {
        Failure::Closed { reason, .. } => reason.as_str().into(),
        Failure::Usage(_)
        | Failure::NotSignedIn(_)
        | Failure::NotFound(_)
        | Failure::Refused(_)
        | Failure::Unreachable { .. }
        | Failure::Ended
        | Failure::Device { .. }
        | Failure::Status(_)
        | Failure::OutputClosed
        | Failure::Other(_) => Value::Null,
    }
}

/// Accepts connections until the session ends.
async fn accept(client: Arc<Client>, line: Line, tell: mpsc::Sender<Told>) -> Failure {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            (place, line.listener.accept().await)
        };
        tokio::select! {
            (place, accepted) = accepted => {
                // Too many open files, or a peer that has gone again.
                let Ok((tcp, peer)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let (client, name) = (Arc::clone(&client), Name { session: line.session, peer, tell: tell.clone() });
                connections.spawn(async move {
                    let end = connect(&client, tcp, name).await;
                    drop(place);
                    end
                });
            }
            Some(end) = connections.join_next() => match end {
                Ok(None) => {}
                Ok(Some(failure)) => return failure,
                Err(error) => return Failure::Other(error.into()),
            },
        }
    }
}

/// One connection from its beginning to its end. What ends the whole session is given back.
async fn connect(client: &Client, tcp: TcpStream, name: Name) -> Option<Failure> {
    let end = connection::run(client, tcp, &name).await;
    let Name { session, peer, tell } = name;
    let told = match end {
        End::Closed { sent, received } => Told::Closed { session, peer, sent, received },
        End::Broken(failure) if ends_session(&failure) => return Some(failure),
        End::Broken(failure) => Told::Failed { session, peer, failure },
    };
    // Whoever listens to it goes with the whole program.
    let _ = tell.send(told).await;
    None
}

/// Whether that was not the end of one connection, but of all.
fn ends_session(failure: &Failure) -> bool {
    matches!(failure, Failure::Closed { reason, .. } if !OF_ONE_CONNECTION.contains(&reason.as_str()))
}

/// Looks at the session until it has ended.
async fn watch(client: Arc<Client>, id: Uuid) -> Failure {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unreachable = 0;
    loop {
        looks.tick().await;
        match client.support_session(id).await {
            Ok(Answer { value, .. }) if value.ended_at.is_some() => {
                let reason = value.end_reason.unwrap_or_default();
                return Failure::Closed { reason, message: String::new() };
            }
            Ok(_) => unreachable = 0,
            Err(failure) if failure.is_transient() && unreachable < UNREACHABLE_LOOKS_MAX => unreachable += 1,
            Err(failure) => {
                // Whoever was shut out may not look any more. On a connection, the server says why.
                tokio::time::sleep(LOOK_INTERVAL).await;
                return failure;
            }
        }
    }
}

fn say_listening(output: &Output, session: &SupportSession, route: &Route, local: SocketAddr) -> Result<(), Failure> {
    if output.json {
        return output.json_line(&json!({
            "event": "listening", "session_id": session.id, "local": local, "target": route.far(),
            "expires_at": session.expires_at,
        }));
    }
    let until = output.here().local(session.expires_at);
    output.line(&format!("{local} leads to {}, until {until} at most; session {}", route.far(), session.id))
}

/// Says what a connection has to say. Warnings come on each connection, and are said once.
fn say(output: &Output, told: &Told, warned: &Mutex<BTreeSet<(Uuid, u64)>>) -> Result<(), Failure> {
    match told {
        Told::Opened { session, peer } => {
            if output.json {
                output.json_line(&json!({ "event": "connection_opened", "session_id": session, "peer": peer }))?;
            }
        }
        Told::Closed { session, peer, sent, received } => {
            if output.json {
                output.json_line(&json!({
                    "event": "connection_closed", "session_id": session, "peer": peer,
                    "bytes_to_device": sent, "bytes_from_device": received,
                }))?;
            }
        }
        Told::Failed { session, peer, failure } => {
            if output.json {
                let report = failure.report(true).and_then(|report| serde_json::from_str::<Value>(&report).ok());
                output.json_line(&json!({
                    "event": "connection_failed", "session_id": session, "peer": peer, "error": report,
                }))?;
            } else if let Some(report) = failure.report(false) {
                output.note(&format!("{peer}: {report}"));
            }
        }
        Told::Warning { session, seconds_left, reason } => {
            // Each connection of a session hears it.
            let is_new = warned.lock().unwrap_or_else(PoisonError::into_inner).insert((*session, *seconds_left));
            if is_new && output.json {
                let mut line = json!({ "event": "warning", "session_id": session, "seconds_left": seconds_left });
                if let Some(reason) = reason {
                    line["reason"] = json!(reason);
                }
                output.json_line(&line)?;
            } else if is_new {
                output.note(&stream::warning(*seconds_left, reason.as_deref()));
            }
        }
    }
    Ok(())
}
