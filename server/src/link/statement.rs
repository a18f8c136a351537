//! The statements that links share, each for many of them at once.

use cloudlink_proto::ids::{CommandId, DeviceId};

use crate::batch::Statement;
use crate::model::transport_failure::NewTransportFailure;
use crate::store::certificate::{Certificate, certificate_list};
use crate::store::link::{ClosedLink, NewLink, OpenedLink, link_close, link_open};
use crate::store::poll::{NewPoll, StoredPoll, poll_store};
use crate::store::transition::{Applied, Durability, Transition, transition_apply};
use crate::store::transport_failure::transport_failures_add;
use crate::store::{Connection, StoreError};

/// What is told beside a hello or a poll. That is stored by now, and worth more: who got no answer would be taken for linked.
async fn add_failures<'a>(
    connection: &mut Connection,
    told: impl Iterator<Item = (DeviceId, &'a [NewTransportFailure])>,
) {
    if let Err(error) = transport_failures_add(connection, told).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "cannot store which ways to the server failed, as devices tell it"
        );
    }
}

/// What is a certificate worth? Asked by serial, when a link is to be opened.
#[derive(Debug)]
pub(super) struct Standings;

impl Statement for Standings {
    type Question = Vec<u8>;
    type Answer = Option<Certificate>;
    type Key = Vec<u8>;
    const NAME: &'static str = "certificate_list";

    fn key(serial: &Vec<u8>) -> Vec<u8> {
        serial.clone()
    }

    async fn ask(
        &self,
        connection: &mut Connection,
        serials: &[Vec<u8>],
    ) -> Result<Vec<Option<Certificate>>, StoreError> {
        let mut known = certificate_list(connection, serials).await?;
        Ok(serials
            .iter()
            .map(|serial| {
                let position = known.iter().position(|certificate| certificate.serial == *serial)?;
                Some(known.swap_remove(position))
            })
            .collect())
    }
}

/// A device said hello: which epoch does its link get? None if it may not link any more.
#[derive(Debug)]
pub(crate) struct Hellos;

impl Statement for Hellos {
    type Question = NewLink;
    type Answer = Option<OpenedLink>;
    type Key = DeviceId;
    const NAME: &'static str = "link_open";

    fn key(link: &NewLink) -> DeviceId {
        link.device_id
    }

    async fn ask(&self, connection: &mut Connection, links: &[NewLink]) -> Result<Vec<Option<OpenedLink>>, StoreError> {
        let mut opened = link_open(connection, links).await?;
        let is_opened = |link: &&NewLink| opened.iter().any(|opened| opened.device_id == link.device_id);
        let told = links.iter().filter(is_opened).map(|link| (link.device_id, link.transport_failures.as_slice()));
        add_failures(connection, told).await;
        Ok(links
            .iter()
            .map(|link| {
                let position = opened.iter().position(|opened| opened.device_id == link.device_id)?;
                Some(opened.swap_remove(position))
            })
            .collect())
    }
}

/// What came of what a device reports?
#[derive(Debug)]
pub(super) struct Transitions;

impl Statement for Transitions {
    type Question = Transition;
    type Answer = Applied;
    type Key = CommandId;
    const NAME: &'static str = "transition_apply";

    fn key(transition: &Transition) -> CommandId {
        transition.command_id
    }

    async fn ask(&self, connection: &mut Connection, transitions: &[Transition]) -> Result<Vec<Applied>, StoreError> {
        let is_final = transitions.iter().any(|transition| transition.target.is_final());
        let durability = if is_final { Durability::Stored } else { Durability::Soon };
        transition_apply(connection, transitions, durability).await
    }
}

/// A link has ended.
#[derive(Debug)]
pub(super) struct Closes;

impl Statement for Closes {
    type Question = ClosedLink;
    type Answer = ();
    type Key = DeviceId;
    const NAME: &'static str = "link_close";

    fn key(link: &ClosedLink) -> DeviceId {
        link.device_id
    }

    async fn ask(&self, connection: &mut Connection, links: &[ClosedLink]) -> Result<Vec<()>, StoreError> {
        link_close(connection, links).await?;
        Ok(vec![(); links.len()])
    }
}

/// A device polls: what is to be known of it? None if it may not be here any more.
#[derive(Debug)]
pub(super) struct Polls;

impl Statement for Polls {
    type Question = NewPoll;
    type Answer = Option<StoredPoll>;
    type Key = DeviceId;
    const NAME: &'static str = "poll_store";

    fn key(poll: &NewPoll) -> DeviceId {
        poll.device_id
    }

    async fn ask(&self, connection: &mut Connection, polls: &[NewPoll]) -> Result<Vec<Option<StoredPoll>>, StoreError> {
        let stored = poll_store(connection, polls).await?;
        let of = |poll: &NewPoll| stored.iter().find(|stored| stored.device_id == poll.device_id).cloned();
        let told = polls.iter().filter(|poll| of(poll).is_some());
        add_failures(connection, told.map(|poll| (poll.device_id, poll.transport_failures.as_slice()))).await;
        Ok(polls.iter().map(of).collect())
    }
}
