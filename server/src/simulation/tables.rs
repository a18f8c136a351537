//! What the database does with the statements of a cluster: nodes, links and commands, each statement at once or not at all.
//!
//! The statements themselves are SQL. That these are the same is not believed: [`super::sql`] does both with the same questions, and
//! compares every answer and every row.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cloudlink_proto::ids::{CommandId, DeviceId};
use time::OffsetDateTime;
use uuid::Uuid;

use super::fault::Fault;
use crate::model::command::{SENT_GRACE, State};
use crate::store::dispatch::LinkKey;
use crate::store::link::{ClosedLink, Ended, LiveLink, ProvenLink};
use crate::store::node::{Joined, NewNode, Peer, Renewed, Suspect};
use crate::store::transition::Outcome;

/// Milliseconds of the database's clock.
pub(super) type Clock = i64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeRow {
    pub(super) instance: Uuid,
    pub(super) life: Uuid,
    pub(super) lease: Clock,
    pub(super) renewed_at: Clock,
    pub(super) leased_until: Clock,
    pub(super) gone_at: Option<Clock>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkRow {
    pub(super) epoch: u64,
    pub(super) node: String,
    pub(super) connected_at: Clock,
    pub(super) proven_at: Clock,
    pub(super) closed_at: Option<Clock>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommandRow {
    pub(super) device: DeviceId,
    pub(super) state: State,
    pub(super) created_at: Clock,
    pub(super) expires_at: Clock,
    pub(super) deadline_at: Option<Clock>,
    pub(super) run_within: Clock,
    pub(super) sent_epoch: Option<u64>,
    pub(super) accepted_at: Option<Clock>,
}

/// A command that is marked as sent, and is to be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claimed {
    pub(super) link: LinkKey,
    pub(super) command_id: CommandId,
    pub(super) start_within_ms: u64,
    pub(super) is_resent: bool,
}

/// A link that got its epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) epoch: u64,
    pub(super) has_open_commands: bool,
    /// The node of the link that it replaces, if that was live.
    pub(super) live_before: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    pub(super) now: Clock,
    pub(super) fault: Option<Fault>,
    pub(super) nodes: BTreeMap<String, NodeRow>,
    pub(super) links: BTreeMap<DeviceId, LinkRow>,
    pub(super) commands: BTreeMap<CommandId, CommandRow>,
}

pub(super) fn millis(duration: Duration) -> Clock {
    Clock::try_from(duration.as_millis()).expect("a short time")
}

impl Tables {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub(super) fn join(&mut self, node: &NewNode) -> Joined {
        let now = self.now;
        if let Some(row) = self.nodes.get(&node.name)
            && row.instance != node.instance
            && row.gone_at.is_none()
            && row.leased_until >= now
        {
            return Joined::Taken { until: super::time_of(row.leased_until) };
        }
        let lease = millis(node.lease);
        let row = NodeRow {
            instance: node.instance,
            life: node.life,
            lease,
            renewed_at: now,
            leased_until: now + lease,
            gone_at: None,
        };
        self.nodes.insert(node.name.clone(), row);
        Joined::Yes
    }

    pub(super) fn renew(&mut self, node: &NewNode, acknowledged: Option<OffsetDateTime>) -> Option<Renewed> {
        let (now, is_silent, is_once) =
            (self.now, self.has(Fault::NobodyIsToldThatItWasGone), self.has(Fault::WhoWasGoneIsToldOnce));
        let row = self.nodes.get_mut(&node.name).filter(|row| row.life == node.life)?;
        let gone_at = row.gone_at.filter(|gone_at| acknowledged != Some(super::time_of(*gone_at)) && !is_silent);
        row.lease = millis(node.lease);
        (row.renewed_at, row.leased_until, row.gone_at) = (now, now + row.lease, gone_at.filter(|_| !is_once));
        Some(Renewed { gone_at: gone_at.map(super::time_of), others: self.others(&node.name) })
    }

    pub(super) fn others(&self, name: &str) -> Vec<Peer> {
        let others = self.nodes.iter().filter(|(other, row)| *other != name && row.gone_at.is_none());
        others
            .map(|(name, row)| Peer {
                name: name.clone(),
                address: None,
                is_draining: false,
                handshakes_per_second: None,
                renewed_at: super::time_of(row.renewed_at),
                lease: Duration::from_millis(row.lease.unsigned_abs()),
            })
            .collect()
    }

    pub(super) fn expire(&mut self, node: &NewNode, suspects: &[Suspect]) -> Vec<String> {
        let now = self.now;
        let (by_clock, is_any_row) = (self.has(Fault::LeasesEndByTheClock), self.has(Fault::WhoeverRenewsIsGoneToo));
        let me = self.nodes.get(&node.name).filter(|me| me.life == node.life);
        if me.is_none() {
            return Vec::new();
        }
        let mut gone = Vec::new();
        for (name, row) in self.nodes.iter_mut().filter(|(name, row)| **name != node.name && row.gone_at.is_none()) {
            let renewed_at = super::time_of(row.renewed_at);
            let is_suspect =
                |suspect: &Suspect| suspect.name == *name && (is_any_row || suspect.renewed_at == renewed_at);
            if suspects.iter().any(is_suspect) || by_clock && row.leased_until < now {
                (row.gone_at, row.leased_until) = (Some(now), row.leased_until.min(now));
                gone.push(name.clone());
            }
        }
        gone
    }

    pub(super) fn leave(&mut self, node: &NewNode) {
        let now = self.now;
        if let Some(row) = self.nodes.get_mut(&node.name).filter(|row| row.life == node.life) {
            (row.gone_at, row.leased_until) = (Some(now), now);
        }
    }

    pub(super) fn unsettled(&self) -> Vec<String> {
        let has_links = |name: &str| self.links.values().any(|link| link.node == name && link.closed_at.is_none());
        let gone = self.nodes.iter().filter(|(name, row)| row.gone_at.is_some() && has_links(name));
        gone.map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn open(&mut self, node: &str, device: DeviceId) -> Opened {
        let now = self.now;
        let before = self.links.get(&device);
        let live_before = before.filter(|before| before.closed_at.is_none()).map(|before| before.node.clone());
        let keeps = self.has(Fault::EpochsAreGivenTwice) && live_before.as_ref().is_some_and(|before| before != node);
        let epoch = before.map_or(1, |before| if keeps { before.epoch } else { before.epoch + 1 });
        let row = LinkRow { epoch, node: node.to_owned(), connected_at: now, proven_at: now, closed_at: None };
        self.links.insert(device, row);
        let has_open_commands = self.commands.values().any(|row| row.device == device && !row.state.is_final());
        Opened { epoch, has_open_commands, live_before }
    }

    pub(super) fn close(&mut self, links: &[ClosedLink]) -> u64 {
        let (now, is_any) = (self.now, self.has(Fault::AnyLinkIsClosed));
        let mut closed = 0;
        for link in links {
            let Some(row) = self.links.get_mut(&link.device_id).filter(|row| row.closed_at.is_none()) else { continue };
            if is_any || link.ended == Ended::Link(row.epoch) {
                row.closed_at = Some(now);
                closed += 1;
            }
        }
        closed
    }

    pub(super) fn close_node(&mut self, name: &str, rows_max: u64) -> u64 {
        let now = self.now;
        let open = self.links.values_mut().filter(|link| link.node == name && link.closed_at.is_none());
        let some = open.take(usize::try_from(rows_max).unwrap_or(usize::MAX));
        some.map(|link| link.closed_at = Some(now)).count() as u64
    }

    pub(super) fn close_gone(&mut self, name: &str, rows_max: u64) -> u64 {
        let is_gone = self.nodes.get(name).is_some_and(|row| row.gone_at.is_some());
        if is_gone || self.has(Fault::WhoIsBackIsClosed) { self.close_node(name, rows_max) } else { 0 }
    }

    pub(super) fn silent(&self, node: &str, silent_for: Duration) -> Vec<LiveLink> {
        let until = self.now - millis(silent_for);
        let is_silent = |link: &LinkRow| link.node == node && link.closed_at.is_none() && link.proven_at <= until;
        let silent = self.links.iter().filter(|(_, link)| is_silent(link));
        silent
            .map(|(device, link)| LiveLink {
                key: LinkKey { device_id: *device, epoch: link.epoch },
                tunnel_id: None,
                has_agent: true,
            })
            .collect()
    }

    pub(super) fn superseded(&self, node: &str, keys: &[LinkKey]) -> Vec<LinkKey> {
        let stays = self.has(Fault::WhatIsClosedStays);
        let is_over = |key: &LinkKey, link: &LinkRow| {
            link.epoch > key.epoch && link.node != node || link.epoch >= key.epoch && link.closed_at.is_some() && !stays
        };
        let of_row = |key: &&LinkKey| self.links.get(&key.device_id).is_some_and(|link| is_over(key, link));
        keys.iter().filter(of_row).copied().collect()
    }

    pub(super) fn prove(&mut self, links: &[ProvenLink]) {
        let now = self.now;
        for link in links {
            let row = self.links.get_mut(&link.device_id);
            if let Some(row) = row.filter(|row| row.closed_at.is_none() && row.epoch == link.epoch) {
                row.proven_at = row.proven_at.max(now - link.heard_ms_ago.cast_signed());
            }
        }
    }

    /// A command that is due at once.
    pub(super) fn create(&mut self, id: CommandId, device: DeviceId, start_within: Clock, run_within: Clock) {
        let expires_at = self.now + start_within;
        let row = CommandRow {
            device,
            state: State::Queued,
            created_at: self.now,
            expires_at,
            deadline_at: Some(expires_at),
            run_within,
            sent_epoch: None,
            accepted_at: None,
        };
        self.commands.insert(id, row);
    }

    pub(super) fn claim(&mut self, keys: &[LinkKey]) -> Vec<Claimed> {
        let (now, is_any) = (self.now, self.has(Fault::AnyLinkClaims));
        let mut due: Vec<(Clock, CommandId, LinkKey)> = Vec::new();
        for key in keys {
            let link = self.links.get(&key.device_id);
            if !link.is_some_and(|link| is_any || (link.epoch == key.epoch && link.closed_at.is_none())) {
                continue;
            }
            let is_due = |row: &CommandRow| {
                row.device == key.device_id
                    && row.expires_at > now
                    && (row.state == State::Queued
                        || row.state == State::Sent && row.sent_epoch.is_some_and(|epoch| epoch < key.epoch))
            };
            let of_link = self.commands.iter().filter(|(_, row)| is_due(row));
            due.extend(of_link.map(|(id, row)| (row.created_at, *id, *key)));
        }
        due.sort_unstable_by_key(|(created_at, id, _)| (*created_at, *id));
        let claim = |(_, command_id, link): (Clock, CommandId, LinkKey)| {
            let row = self.commands.get_mut(&command_id).expect("it is due");
            let is_resent = row.state == State::Sent;
            (row.state, row.sent_epoch) = (State::Sent, Some(link.epoch));
            row.deadline_at = Some(row.expires_at + millis(SENT_GRACE));
            Claimed { link, command_id, start_within_ms: (row.expires_at - now).unsigned_abs(), is_resent }
        };
        due.into_iter().map(claim).collect()
    }

    pub(super) fn dispatchable(&self, node: &str) -> BTreeSet<(DeviceId, u64)> {
        let due = |row: &CommandRow| {
            let link = self.links.get(&row.device).filter(|link| link.node == node && link.closed_at.is_none())?;
            let is_due = row.state == State::Queued
                || row.state == State::Sent && row.sent_epoch.is_some_and(|epoch| epoch < link.epoch);
            is_due.then_some((row.device, link.epoch))
        };
        self.commands.values().filter_map(due).collect()
    }

    /// What a device says over the link of this epoch became of a command; or, without one, what the server says.
    pub(super) fn apply(&mut self, id: CommandId, target: State, report: Option<LinkKey>) -> Outcome {
        let (now, is_any) = (self.now, self.has(Fault::AnyLinkReports));
        let newest = |device: &DeviceId| self.links.get(device).map(|link| link.epoch);
        let Some(row) = self.commands.get(&id) else { return Outcome::Unknown };
        let is_own = report.is_none_or(|key| key.device_id == row.device);
        let is_current = is_any
            || report.is_none_or(|key| {
                let was_sent = row.sent_epoch.map_or(row.state.is_final(), |epoch| epoch <= key.epoch);
                was_sent && newest(&row.device) == Some(key.epoch)
            });
        if !is_own {
            return Outcome::Foreign;
        }
        if !is_current {
            return Outcome::Stale;
        }
        let (before, was_final) = (row.state, row.state.is_final());
        let is_legal = State::TRANSITIONS.iter().any(|(from, to)| *from == before && to.contains(&target));
        if !is_legal {
            return match (was_final, before == target) {
                (true, true) => Outcome::Repeated,
                (true, false) if target.is_final() => Outcome::Late,
                _ => Outcome::Illegal,
            };
        }
        let row = self.commands.get_mut(&id).expect("it was there");
        row.state = target;
        if target.is_final() {
            row.deadline_at = None;
        } else if row.accepted_at.is_none() {
            row.deadline_at = Some(now + row.run_within);
        }
        if matches!(target, State::Accepted | State::Running | State::Succeeded | State::Failed) {
            row.accepted_at.get_or_insert(now);
        }
        Outcome::Moved(target)
    }

    /// Ends what is over. Grants last for ever here.
    pub(super) fn sweep(&mut self) -> BTreeSet<CommandId> {
        let (now, forgets) = (self.now, self.has(Fault::SentCommandsHaveNoDeadline));
        let is_over = |row: &CommandRow| row.deadline_at.is_some_and(|deadline| deadline <= now);
        let over = self.commands.iter().filter(|(_, row)| is_over(row) && !(forgets && row.state != State::Queued));
        let over: BTreeMap<CommandId, State> = over.map(|(id, row)| (*id, row.state)).collect();
        for (id, state) in &over {
            let target = if *state == State::Queued { State::Expired } else { State::Unconfirmed };
            self.apply(*id, target, None);
        }
        over.into_keys().collect()
    }
}
