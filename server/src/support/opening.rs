//! The way of a forward to a device without an agent: a port of the device, opened for the session under the same grant, and
//! reached by this node through the device's tunnel. What closes the port in time is the kernel.

use std::time::Duration;

use cloudlink_proto::ids::OpeningId;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::Support;
use super::attach::AttachError;
use super::session::Session;
use crate::bus::Hint;
use crate::model::audit::Actor;
use crate::model::new_id;
use crate::model::opening::{EndReason, Endpoint, OPEN_FOR_MAX, OpeningState};
use crate::store::opening::{
    Closing, NewOpening, opening_create, opening_end_in_txn, opening_lock_in_txn, opening_show,
};
use crate::store::{StoreError, Visibility, single};

/// Between two looks whether the port is open by now.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Connects to a port of the device.
pub(super) async fn connect(support: &Support, session: &Session, port: u16) -> Result<TcpStream, AttachError> {
    let until = Instant::now() + support.open_within();
    let endpoint = timeout_at(until, open(support, session, port)).await.map_err(|_| AttachError::Silent)??;
    match timeout_at(until, TcpStream::connect((endpoint.ipv4, port))).await {
        Ok(Ok(stream)) => {
            stream.set_nodelay(true).map_err(|_| AttachError::Silent)?;
            Ok(stream)
        }
        Ok(Err(error)) => {
            let code = if error.kind() == std::io::ErrorKind::ConnectionRefused {
                "connection_refused"
            } else {
                "unreachable"
            };
            Err(AttachError::Refused { code: code.to_owned(), message: error.to_string() })
        }
        Err(_) => Err(AttachError::Silent),
    }
}

/// Opens the port if that has not been done for this session, and waits until it is open.
async fn open(support: &Support, session: &Session, port: u16) -> Result<Endpoint, AttachError> {
    let mut opening = session.opening.lock().await;
    loop {
        if let Some(id) = *opening {
            let found = support
                .links()
                .store
                .within(async { single!(support.links().store, |connection| opening_show(connection, id)) });
            match found.await? {
                Some(found) if found.state == OpeningState::Requested => {
                    sleep(LOOK_EVERY).await;
                    continue;
                }
                Some(found) if found.state == OpeningState::Open => {
                    let endpoint = found.endpoint.filter(|endpoint| endpoint.node == support.node());
                    return endpoint.ok_or(AttachError::NotLinked);
                }
                // It has ended: the grant was extended beyond it, perhaps.
                Some(_) | None => {}
            }
        }
        let id = create(support, session, port).await?;
        *opening = Some(id);
        support.links().bus.send(Hint::OpeningsDue(session.facts.device));
    }
}

async fn create(support: &Support, session: &Session, port: u16) -> Result<OpeningId, AttachError> {
    let facts = &session.facts;
    let id = OpeningId::from_uuid(new_id());
    let actor = Actor::Person { id: facts.opened_by.as_uuid(), name: facts.name.clone() }.to_json();
    let new = NewOpening {
        id,
        operator: facts.opened_by,
        actor,
        device: facts.device,
        grant: Some(facts.grant),
        port,
        reason: &facts.reason,
        open_for: OPEN_FOR_MAX,
    };
    let store = &support.links().store;
    let made = async { single!(store, |connection| opening_create(connection, &new)) };
    // It stands in the way what stands in the way of the session: its tunnel is gone, or it has as many openings as it may.
    store.within(made).await?.map(|_| id).ok_or(AttachError::NoOpening)
}

/// Opens the port for longer: once more, and closes what was open before. The kernel keeps it open without a gap.
pub(super) async fn renew(support: &Support, session: &Session, port: u16) -> Result<(), AttachError> {
    let mut opening = session.opening.lock().await;
    let Some(before) = *opening else { return Ok(()) };
    let id = create(support, session, port).await?;
    *opening = Some(id);
    drop(opening);
    close_one(support, session, before).await?;
    Ok(())
}

/// Closes the port of a session that is over.
pub(super) async fn close(support: &Support, session: &Session) -> Result<(), StoreError> {
    let opening = *session.opening.lock().await;
    match opening {
        Some(id) => close_one(support, session, id).await,
        None => Ok(()),
    }
}

async fn close_one(support: &Support, session: &Session, id: OpeningId) -> Result<(), StoreError> {
    let store = &support.links().store;
    let closed = async {
        let mut transaction = store.begin(Visibility::All).await?;
        let open = opening_lock_in_txn(&mut transaction, Closing::One(id)).await?;
        let actor = crate::store::support_session::server();
        opening_end_in_txn(&mut transaction, &open, actor, EndReason::Closed).await?;
        store.commit(transaction).await
    };
    store.within(closed).await?;
    support.links().bus.send(Hint::OpeningsDue(session.facts.device));
    Ok(())
}
