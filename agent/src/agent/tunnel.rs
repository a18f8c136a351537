//! The tunnel that the link goes through: which certificate its client has, and whether it is still the same tunnel.

use std::time::Duration;

use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::{Close, Party};
use tokio::time::Instant;

use super::{Agent, Dialling, Reason};
use crate::backoff::jitter;
use crate::chain;
use crate::config::{Config, OpenVpn, Started, Transport};
use crate::dial::{DialError, Route};
use crate::identity::Slot;
use crate::link::Link;
use crate::tunnel::TunnelError;
use crate::tunnel::client::{self, Client, Handle, Start};
use crate::tunnel::interface::{self, Interface, LOOK_EVERY};
use crate::tunnel::profile::Profile;

/// How soon a tunnel is dialled through that came up.
pub(super) const DIAL_WITHIN: Duration = Duration::from_secs(1);
/// How long a client may take for its tunnel. Longer than the 60 s after which a client gives an attempt up, in which a server
/// that has much to do may let it wait.
const UP_WITHIN: Duration = Duration::from_secs(75);
/// When a certificate is tried out for which there was no time, because a command is under way.
const BUSY_RETRY: Duration = Duration::from_secs(10);

/// The tunnel as the agent sees it.
#[derive(Debug)]
pub(super) struct Tunnel {
    settings: OpenVpn,
    /// `None` if somebody else runs the client.
    own: Option<OwnClient>,
    /// What was there at the last look.
    seen: Option<Interface>,
    look_at: Instant,
}

#[derive(Debug)]
struct OwnClient {
    client: Client,
    started: Started,
    /// The certificate that the client was started with.
    slot: Option<Slot>,
    /// Whether it was started with a password for a proxy.
    has_password: bool,
    /// It is to be started anew with the same certificate.
    is_outdated: bool,
}

impl OwnClient {
    /// The client, and what it is to be started with. If that cannot be, the next attempt tries it again.
    fn plan(&mut self, config: &Config, slot: Slot, is_to_start: bool) -> Result<(Handle, Option<Start>), TunnelError> {
        let start = || Ok((client::program(&self.started)?, Profile::new(config, &self.started, slot)?));
        let start: Option<Start> = is_to_start.then(start).transpose()?;
        self.slot = Some(slot);
        if let Some((_, profile)) = &start {
            (self.has_password, self.is_outdated) = (profile.has_password(), false);
        }
        Ok((self.client.handle(), start))
    }
}

impl Tunnel {
    /// `None` when the link is to go another way.
    pub(super) fn new(config: &Config) -> Option<Self> {
        if !config.server.uses(Transport::OpenVpn) {
            return None;
        }
        let own = match &config.openvpn.started {
            Some(started) => Some(OwnClient {
                client: Client::new(config),
                started: started.clone(),
                slot: None,
                has_password: false,
                is_outdated: false,
            }),
            None => {
                tracing::info!(
                    interface = config.openvpn.interface,
                    "the tunnel and its certificate belong to whoever runs the OpenVPN client: this agent renews nothing",
                );
                None
            }
        };
        Some(Self { settings: config.openvpn.clone(), own, seen: None, look_at: Instant::now() })
    }

    /// Whether the certificate that proves the device is somebody else's business.
    pub(super) fn is_beside(&self) -> bool {
        self.own.is_none()
    }

    /// Whether there is another tunnel than at the last look, or none any more.
    fn look(&mut self, now: Instant) -> bool {
        self.look_at = now + LOOK_EVERY;
        let found = match interface::find(&self.settings) {
            // Nothing was seen, neither that it is there nor that it is gone.
            Err(TunnelError::Interfaces(_)) => return false,
            found => found.ok(),
        };
        if found == self.seen {
            return false;
        }
        match &found {
            Some(found) => {
                tracing::info!(interface = found.name, address = %found.address, gateway = %found.gateway, "a tunnel is up");
            }
            None => tracing::info!(interface = self.settings.interface, "the tunnel is gone"),
        }
        self.seen = found;
        true
    }

    /// Ends the client, if it is the agent's.
    pub(super) async fn stop(self) {
        if let Some(own) = self.own {
            own.client.stop().await;
        }
    }
}

impl Agent {
    /// When to look whether there is a tunnel: as long as one may be wanted.
    pub(super) fn tunnel_look_at(&self) -> Option<Instant> {
        let tunnel = self.tunnel.as_ref()?;
        self.climb.is_in_use(Transport::OpenVpn).then_some(tunnel.look_at)
    }

    /// Lets the agent's own client end when the link goes, or is to go, another way: its tunnel would take the link over.
    pub(super) fn rest_tunnel(&mut self) {
        if self.climb.is_in_use(Transport::OpenVpn) {
            return;
        }
        let Some(own) = self.tunnel.as_mut().and_then(|tunnel| tunnel.own.as_mut()) else { return };
        if own.slot.take().is_some() {
            own.client.handle().rest();
        }
    }

    /// The client has read a password that may be another one by now: the next attempt starts it anew.
    pub(super) fn doubt_password(&mut self) {
        if let Some(own) = self.tunnel.as_mut().and_then(|tunnel| tunnel.own.as_mut()) {
            own.is_outdated = own.has_password;
        }
    }

    /// Dials as soon as there is a tunnel, and gives up a link whose tunnel is gone: nothing would be heard of it until its
    /// pings are missed.
    pub(super) fn look_at_tunnel(&mut self, now: Instant) {
        if self.tunnel_look_at().is_none_or(|at| at > now) {
            return;
        }
        let Some(tunnel) = &mut self.tunnel else { return };
        let is_news = tunnel.look(now);
        let is_up = tunnel.seen.is_some();
        if self.link.as_ref().is_some_and(|link| link.tunnel.is_some() && link.tunnel != tunnel.seen) {
            self.handle_closed(&ended("its tunnel is gone"));
        }
        let is_next = self.climb.next(now) == Transport::OpenVpn;
        if is_news && is_up && is_next && self.link.is_none() && matches!(self.dialling, Dialling::At(..)) {
            self.dialling = Dialling::At(now + DIAL_WITHIN.mul_f64(jitter()), Reason::Own);
        }
    }

    /// Dials through the tunnel; before that, starts the client if it is the agent's and has another certificate, or none.
    pub(super) fn dial_inside(&mut self, now: Instant, slot: Slot) {
        let is_to_start = |agent: &Self| {
            agent
                .tunnel
                .as_ref()
                .and_then(|tunnel| tunnel.own.as_ref())
                .is_some_and(|own| own.slot != Some(slot) || own.is_outdated)
        };
        let is_to_start = is_to_start(self);
        if is_to_start && self.link.is_some() && self.desk.is_at_work() {
            // The end of the old tunnel is the end of the link: not while a command is under way.
            self.dialling = Dialling::At(now + BUSY_RETRY, Reason::Own);
            return;
        }
        self.climb.begin(now);
        let is_inside = self.link.as_ref().is_some_and(|link| link.tunnel.is_some());
        let old = if is_to_start && is_inside { self.leave_link(&ended("its tunnel is made anew")) } else { None };
        let Some(tunnel) = &mut self.tunnel else { return };
        let settings = tunnel.settings.clone();
        let client = match &mut tunnel.own {
            Some(_) if self.identity.slot(slot).is_none() => Err(DialError::NotEnrolled),
            Some(own) => own.plan(&self.config, slot, is_to_start).map(Some).map_err(DialError::Tunnel),
            None => Ok(None),
        };
        let hello = self.hello();
        self.climb.tells(&hello.transport_failures);
        let opening = async move {
            if let Some((old, _)) = old {
                old.close(Code::Replaced, "the tunnel is made anew, with another certificate").await;
            }
            if let Some((handle, start)) = client? {
                if let Some((program, profile)) = start {
                    handle.start(program, profile);
                }
                handle.up(UP_WITHIN).await?;
            }
            let tunnel = interface::find(&settings)?;
            tokio::select! {
                opened = Link::open(Route::Inside(tunnel.clone()), hello) => opened,
                gone = interface::gone(&settings, &tunnel) => Err(gone.into()),
            }
        };
        self.dialling = Dialling::Now(slot, Box::pin(opening));
    }

    /// The certificate that the client has stands in the place of the current one now. It goes on with what it has read.
    pub(super) fn rename_slot_of_client(&mut self) {
        let Some(own) = self.tunnel.as_mut().and_then(|tunnel| tunnel.own.as_mut()) else { return };
        own.slot = Some(Slot::Current);
        match Profile::new(&self.config, &own.started, Slot::Current) {
            Ok(profile) => own.client.handle().rename(profile),
            Err(error) => tracing::error!(error = chain(&error), "the OpenVPN client cannot be started again"),
        }
    }
}

/// The end of a link together with its tunnel.
fn ended(message: &str) -> Close {
    let (by, code) = (Party::Transport, Code::Unspecified);
    Close { by, code, message: message.to_owned(), retry_after: Duration::ZERO }
}

/// Whether there may be another tunnel already than the one that was dialled through.
pub(super) fn may_be_dialled_at_once(error: &DialError) -> bool {
    matches!(error, DialError::Tunnel(TunnelError::Gone { .. }))
}

/// Whether an attempt may have failed because of the certificate that it was made with. A client cannot tell: a tunnel that does
/// not come up with one certificate, and does with the other, is evidence enough.
pub(super) fn may_be_the_certificate(error: &DialError) -> bool {
    error.is_refusal() || matches!(error, DialError::Tunnel(TunnelError::Client { .. } | TunnelError::TimedOut { .. }))
}
