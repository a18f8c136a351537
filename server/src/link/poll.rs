//! A poll: what a device says, and is told, when no link comes about. One request, one answer, and nothing of it stays in memory.
//!
//! A poll is evidence that the device is there, but no link: it neither takes an epoch nor touches the row of one. What it reports
//! counts in the epoch of the device's newest link. So a link that opens meanwhile wins: the report of an older epoch is not taken, and the
//! device says it again. Commands are claimed in that epoch, too, and only while no agent answers on a live link.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use cloudlink_proto::ids::{CommandId, DeviceId, TunnelId};
use cloudlink_proto::link::message::{Command, CommandCancel, CommandReceipt, CommandStatus, Configuration};
use cloudlink_proto::poll::message::{PollRequest, PollResponse, Running, running};
use cloudlink_proto::poll::{
    self as wire, CANCELS_MAX, COMMANDS_MAX, CONTENT_TYPE as PROTOBUF, NEXT_POLL_MS, PollError, REQUEST_BYTES_MAX,
};
use data_encoding::HEXLOWER;
use futures_util::future::join_all;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::admission::{Identified, check_doors, check_standing, register};
use super::command::{self, to_wire};
use super::dispatch::{Waking, give_up, note_sending};
use super::opening::{storable, suspect_clone};
use super::problem::{Answer, Problem};
use super::renew::renew;
use super::{Shared, account};
use crate::bus::Hint;
use crate::clock;
use crate::metrics::Failure;
use crate::model::boot::hint_told;
use crate::model::configuration::ConfigurationTold;
use crate::model::{busy_lock, configuration, transport_failure};
use crate::store::busy_lock::busy_lock_tell;
use crate::store::configuration::{ConfigurationKnown, configuration_due_polled, configuration_tell};
use crate::store::dispatch::{Dispatch, LinkKey, PollClaim, dispatch_claim_polled};
use crate::store::link::link_prove_boot_in_txn;
use crate::store::poll::NewPoll;
use crate::store::{StoreError, Visibility, single};

/// When a device comes back whose poll before is being answered.
const TURN_RETRY_SECONDS: u32 = 5;

/// Answers a request of a device under [`wire::POLL_PATH`].
pub(super) async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    peer: Result<Identified, Problem>,
    tunnel_id: Option<TunnelId>,
    remote: IpAddr,
) -> Result<Answer, Problem> {
    if request.method() != Method::POST {
        return Err(Problem::method_not_allowed("POST"));
    }
    if tunnel_id.is_some() {
        return Err(Problem::not_found("inside a tunnel a device links; it polls outside of it"));
    }
    let peer = peer?;
    let _turn = Turn::take(shared, peer.device_id)?;
    let request = read(request).await?;
    let _registration = register(shared, &peer)?;
    check_doors(shared)?;
    check_standing(shared, &peer).await?;
    let response = exchange(shared, &peer, request, remote).await?;
    let body = wire::write_response(&response).map_err(|error| {
        tracing::error!(device = %peer.device_id, %error, "what a device that polls is to be told breaks a limit");
        Problem::internal()
    })?;
    shared.metrics.polls.inc();
    let mut answer = Response::new(Full::new(body));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(answer)
}

/// A device has one poll at a time at a node: another is one of somebody who has its key, or does not wait for answers.
struct Turn<'a> {
    shared: &'a Shared,
    device: DeviceId,
}

impl<'a> Turn<'a> {
    fn take(shared: &'a Shared, device: DeviceId) -> Result<Self, Problem> {
        // As many as there are connections, which are limited.
        if !shared.polling.lock().unwrap_or_else(PoisonError::into_inner).insert(device) {
            let detail = "the device's poll before this one is being answered";
            return Err(Problem::too_many_requests(detail, TURN_RETRY_SECONDS));
        }
        Ok(Self { shared, device })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.polling.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.device);
    }
}

async fn read(request: Request<Incoming>) -> Result<PollRequest, Problem> {
    let body = Limited::new(request.into_body(), REQUEST_BYTES_MAX).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() { too_large() } else { Problem::bad_request("the body is incomplete") }
    })?;
    let request = wire::read_request(&body.to_bytes()).map_err(|error| match error {
        PollError::TooLarge(_) => too_large(),
        // It names a field, and nothing that the device said.
        error @ (PollError::Malformed | PollError::Field(_) | PollError::NoCommonVersion) => {
            Problem::bad_request(format!("the body is no request of a poll: {error}"))
        }
    })?;
    wire::version(&request).map_err(|error| Problem::bad_request(error.to_string()))?;
    Ok(request)
}

fn too_large() -> Problem {
    let detail = format!("the body is over {REQUEST_BYTES_MAX} bytes");
    Problem::new("too_large", StatusCode::PAYLOAD_TOO_LARGE, "Too large", detail, Failure::Http)
}

/// First what the device says is stored, then it is given what is due: what it has told of is not sent again.
async fn exchange(
    shared: &Arc<Shared>,
    peer: &Identified,
    mut request: PollRequest,
    remote: IpAddr,
) -> Result<PollResponse, Problem> {
    let statuses = std::mem::take(&mut request.statuses);
    let busy = request.busy_lock.take().as_ref().and_then(busy_lock::told);
    let told = configuration_told(&mut request);
    let metrics = request.metrics.take();
    let certificate_request = request.certificate_request.take();
    let boot_id = storable(std::mem::take(&mut request.boot_id));
    let poll = new_poll(shared, peer, request, boot_id.clone(), remote);
    let hostname = poll.hostname.clone();
    let mut stored = shared.polls.ask(poll).await?.ok_or_else(Problem::revoked)?;
    if let Some(metrics) = metrics {
        shared.take_report(peer.device_id, peer.tenant_id, metrics, stored.since_last, Instant::now());
    }
    if let Some(previous) = stored.previous.as_ref().filter(|_| stored.is_known_boot) {
        suspect_clone(shared, peer, previous, &boot_id, &hostname).await;
    }
    let reporter = LinkKey { device_id: peer.device_id, epoch: stored.epoch };
    // A live link of the device says it itself.
    if !stored.is_linked && (busy.is_some() || stored.has_busy_lock) {
        let store = &shared.store;
        let told = async { single!(store, |connection| busy_lock_tell(connection, reporter, busy.as_ref())) };
        store.within(told).await.map_err(failed)?;
    }
    let configuration = match (told, stored.configuration.take()) {
        (Some(told), Some(known)) if !stored.is_linked => configure(shared, peer, reporter, &told, &known).await,
        _ => None,
    };
    if stored.has_open_commands {
        prove_boot(shared, reporter, &boot_id).await?;
    }
    let receipts = store_statuses(shared, reporter, &boot_id, statuses).await;
    let (commands, cancels) = if stored.has_open_commands && !stored.is_linked {
        claim(shared, reporter, &boot_id).await?
    } else {
        (Vec::new(), Vec::new())
    };
    let (certificate_issued, certificate_refused) = match certificate_request {
        Some(request) => match renew(shared, peer.tenant_id, peer.device_id, &request.csr_der).await {
            Ok(issued) => (Some(issued), None),
            Err(refused) => (None, Some(refused)),
        },
        None => (None, None),
    };
    tracing::debug!(device = %peer.device_id, commands = commands.len(), receipts = receipts.len(), "a device has polled");
    Ok(PollResponse {
        version: wire::VERSION,
        device_id: peer.device_id.to_string(),
        tenant_id: peer.tenant_id.to_string(),
        clock_unix_ms: u64::try_from(clock::unix_ms()).unwrap_or(0),
        next_poll_ms: next_poll_ms(shared),
        receipts,
        more: commands.len() >= COMMANDS_MAX || cancels.len() >= CANCELS_MAX,
        commands,
        cancels,
        certificate_issued,
        certificate_refused,
        configuration,
    })
}

/// What a device says of its configuration, if it takes any.
fn configuration_told(request: &mut PollRequest) -> Option<ConfigurationTold> {
    let told = request.configuration.take();
    let takes = request.capabilities.iter().any(|capability| capability == configuration::CAPABILITY);
    takes.then(|| told.as_ref().map(configuration::told).unwrap_or_default())
}

/// Writes down how far the device is, and gives it what it is to have, if that is newer. What fails is for the next poll: this one has
/// commands to bring.
async fn configure(
    shared: &Shared,
    peer: &Identified,
    reporter: LinkKey,
    told: &ConfigurationTold,
    known: &ConfigurationKnown,
) -> Option<Configuration> {
    if !known.needs_look(told) {
        return None;
    }
    let store = &shared.store;
    let due = async {
        if known.is_stale() {
            super::configuration::settle(shared, Some(&[peer.tenant_id.as_uuid()])).await?;
        }
        let due = async {
            single!(store, |connection| configuration_tell(connection, reporter, told))?;
            single!(store, |connection| configuration_due_polled(connection, reporter.device_id))
        };
        store.within(due).await
    };
    let due = due.await.inspect_err(|error| {
        let error = error as &dyn std::error::Error;
        tracing::warn!(device = %reporter.device_id, error, "cannot see to the configuration of a device that polls");
    });
    due.ok().flatten()
}

fn next_poll_ms(shared: &Shared) -> u32 {
    let interval = u32::try_from(shared.poll.interval_seconds.duration().as_millis()).unwrap_or(u32::MAX);
    interval.clamp(*NEXT_POLL_MS.start(), *NEXT_POLL_MS.end())
}

fn new_poll(shared: &Shared, peer: &Identified, request: PollRequest, boot_id: String, remote: IpAddr) -> NewPoll {
    NewPoll {
        device_id: peer.device_id,
        certificate_serial: HEXLOWER.encode(&peer.serial),
        node: shared.node.clone(),
        remote_address: remote,
        boot_id,
        boot_hint: hint_told(request.boot_hint()),
        agent: storable(request.agent),
        os: storable(request.os),
        hostname: storable(request.hostname),
        clock_offset_ms: clock::offset_ms(request.clock_unix_ms),
        capabilities: request.capabilities.into_iter().map(storable).collect(),
        running: request.running.into_iter().map(running_json).collect(),
        interval: shared.poll.interval_seconds.duration(),
        transport_failures: transport_failure::told(&request.transport_failures, request.clock_unix_ms),
    }
}

fn running_json(running: Running) -> Value {
    let kind = match running.kind() {
        running::Kind::Service => "service",
        running::Kind::Container => "container",
        running::Kind::Unspecified => "other",
    };
    json!({"name": storable(running.name), "state": storable(running.state), "kind": kind})
}

/// What the boot says about open commands, as on a new link.
async fn prove_boot(shared: &Shared, device: LinkKey, boot_id: &str) -> Result<(), Problem> {
    let proven = async {
        let mut transaction = shared.store.begin(Visibility::All).await?;
        let ended = link_prove_boot_in_txn(&mut transaction, device.device_id, boot_id).await?;
        transaction.commit().await?;
        Ok::<_, StoreError>(ended)
    };
    for (id, applied) in shared.store.within(proven).await.map_err(failed)? {
        account(shared, id, applied);
        shared.bus.send(Hint::CommandChanged(id));
    }
    Ok(())
}

/// Gives receipts of what is stored. What is not, the device says again.
async fn store_statuses(
    shared: &Shared,
    reporter: LinkKey,
    boot_id: &str,
    statuses: Vec<CommandStatus>,
) -> Vec<CommandReceipt> {
    // All at once, so that they share a statement.
    let stored = statuses.into_iter().map(|status| async move {
        let id = CommandId::from_wire(&status.id)?;
        let transition = command::reported(reporter, boot_id, id, status)?;
        let target = transition.target;
        let applied = shared.transitions.ask(transition).await.ok()?;
        let answer = command::settle(shared, reporter, id, target, applied);
        (answer == command::Answer::Receipt).then(|| CommandReceipt { id: id.to_wire() })
    });
    join_all(stored).await.into_iter().flatten().collect()
}

/// Marks what is due as sent, and gives it once that is on the disk.
async fn claim(shared: &Shared, device: LinkKey, boot_id: &str) -> Result<(Vec<Command>, Vec<CommandCancel>), Problem> {
    let claim = PollClaim {
        device,
        boot_id,
        interval: shared.poll.interval_seconds.duration(),
        commands_max: i64::try_from(COMMANDS_MAX).unwrap_or(i64::MAX),
        callbacks_max: i64::try_from(CANCELS_MAX).unwrap_or(i64::MAX),
    };
    let store = &shared.store;
    let asked_at = Instant::now();
    let dispatch = store.within(async { single!(store, |connection| dispatch_claim_polled(connection, &claim)) });
    let Dispatch { commands, unreadable, callbacks } = dispatch.await.map_err(failed)?;
    give_up(shared, unreadable).await;
    let send = |mut command| {
        let _span = note_sending(shared, &mut command, Waking { woken_by: "poll", asked_at });
        to_wire(command, Instant::now())
    };
    let cancel = |callback: crate::store::dispatch::Callback| CommandCancel {
        id: callback.command_id.to_wire(),
        reason: callback.reason.to_owned(),
    };
    Ok((commands.into_iter().map(send).collect(), callbacks.into_iter().map(cancel).collect()))
}

fn failed(error: StoreError) -> Problem {
    if error.is_retryable() {
        return Problem::unavailable();
    }
    tracing::error!(error = &error as &dyn std::error::Error, "a poll cannot be answered");
    Problem::internal()
}
