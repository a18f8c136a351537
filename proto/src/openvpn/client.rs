//! The client's end.

use std::sync::Arc;
use std::time::Instant;

use super::budget::Budget;
use super::close::CloseReason;
use super::config::{ClientConfig, ClientWrapping, MTU_DEFAULT, Start};
use super::control::Which;
use super::counters::count;
use super::data::Format;
use super::key::{Key, Phase};
use super::key_method::{ClientMessage, ClientSecret, ServerSecret};
use super::message::{Message, Reason, encode};
use super::opcode::{KeyId, Opcode};
use super::options::Options;
use super::peer_info::{Abilities, PeerInfo};
use super::push::{Continuation, PushError, Pushed};
use super::random::Random;
use super::session::{Agreed, Event, Role, Session};
use super::state::{Event as Step, State};
use super::static_key::StaticKey;
use super::timer::HANDSHAKE_WITHIN;
use super::wrap::Wrap;

/// The longest time that a server may ask a client to wait for its push.
pub const PENDING_WITHIN_MAX: std::time::Duration = std::time::Duration::from_secs(1800);

/// What happened to a client's session.
#[derive(Debug, PartialEq)]
pub enum ClientEvent {
    /// The tunnel is up, and this is what the client got.
    Connected(Box<Pushed>),
    /// The server has something for people to read.
    Info(Reason),
}

/// What only a client has.
#[derive(Debug)]
pub(super) struct ClientSide {
    pub(super) config: Arc<ClientConfig>,
    time: u32,
    abilities: Abilities,
    pub(super) push_request_at: Option<Instant>,
    pub(super) pushed: Pushed,
    is_push_complete: bool,
}

impl ClientSide {
    pub(super) fn wrapped_key(&self) -> &[u8] {
        match &self.config.wrapping {
            ClientWrapping::TlsCryptV2(key) => &key.wrapped,
            ClientWrapping::None | ClientWrapping::TlsAuth { .. } | ClientWrapping::TlsCrypt(_) => &[],
        }
    }

    fn static_key(&self) -> Option<StaticKey> {
        match &self.config.wrapping {
            ClientWrapping::None => None,
            ClientWrapping::TlsAuth { key, .. } | ClientWrapping::TlsCrypt(key) => Some(key.clone()),
            ClientWrapping::TlsCryptV2(client_key) => Some(client_key.key.clone()),
        }
    }

    fn agree(&self) -> Result<Agreed, PushError> {
        let pushed = &self.pushed;
        let cipher = match (&pushed.cipher, Options::new(self.config.options.clone()).cipher()) {
            (Some(_), _) => pushed.known_cipher(),
            // As a client that negotiates none.
            (None, Some(own)) => super::cipher::Cipher::from_name(own),
            (None, None) => self.config.ciphers.first().copied(),
        };
        let cipher = cipher.filter(|cipher| self.config.ciphers.contains(cipher)).ok_or(PushError::Cipher)?;
        let peer_id = pushed.peer_id.filter(|_| self.abilities.has(Abilities::DATA_V2));
        let format = match (peer_id, pushed.has_epoch) {
            (Some(peer_id), true) => Format::Epoch { peer_id },
            (None, true) => return Err(PushError::EpochWithoutPeerId),
            (Some(peer_id), false) => Format::V2 { peer_id },
            (None, false) => Format::V1,
        };
        Ok(Agreed {
            cipher,
            format,
            is_tls_ekm: pushed.has_tls_ekm,
            is_dynamic_tls_crypt: pushed.has_dynamic_tls_crypt,
            has_exit: pushed.has_cc_exit,
            mtu: pushed.mtu.unwrap_or(MTU_DEFAULT),
        })
    }
}

impl Session {
    /// A session for a connection that was just opened to a server.
    #[must_use]
    pub fn client(now: Instant, config: Arc<ClientConfig>, start: Start) -> Self {
        let time = start.unix_seconds;
        let (wrap, reset) = match &config.wrapping {
            ClientWrapping::None => (Wrap::Plain, Opcode::HardResetClientV2),
            ClientWrapping::TlsAuth { key, direction, digest } => {
                (Wrap::auth(key, *direction, *digest, time), Opcode::HardResetClientV2)
            }
            ClientWrapping::TlsCrypt(key) => (Wrap::crypt(key, false, time), Opcode::HardResetClientV2),
            ClientWrapping::TlsCryptV2(key) => (Wrap::crypt(&key.key, false, time), Opcode::HardResetClientV3),
        };
        let key = Key::new(KeyId::FIRST, Phase::AwaitReset, reset, now);
        let side = ClientSide {
            abilities: PeerInfo::parse(&config.peer_info).abilities,
            config,
            time,
            push_request_at: None,
            pushed: Pushed::default(),
            is_push_complete: false,
        };
        let random = Random::from_seed(start.seed);
        Self::new(Role::Client(Box::new(side)), now, random, wrap, key, HANDSHAKE_WITHIN)
    }

    /// Tells the server, if it can be told, that this client leaves.
    pub fn exit(&mut self, now: Instant) {
        self.now = self.now.max(now);
        if self.agreed.is_some_and(|agreed| agreed.has_exit) {
            self.leave(CloseReason::Ended, Some(encode("EXIT")));
        } else {
            self.close(CloseReason::Ended);
        }
    }

    /// Takes a new configuration for renegotiations, such as one with a renewed certificate. Servers pin the certificate of
    /// the first handshake, so it is of use only where the server does not.
    pub fn set_client_config(&mut self, config: Arc<ClientConfig>) {
        if let Role::Client(side) = &mut self.role {
            side.config = config;
        }
    }

    pub(super) fn send_client_keys(&mut self, which: Which) {
        let secret = ClientSecret::new(self.random.array());
        let Role::Client(side) = &self.role else { return };
        let message =
            ClientMessage { secret, options: side.config.options.clone(), peer_info: side.config.peer_info.clone() };
        let encoded = message.encode();
        let key = self.key(which);
        key.write(&encoded);
        key.client_secret = Some(message.secret);
        key.has_sent_keys = true;
    }

    pub(super) fn server_keys_received(&mut self, which: Which, record: &[u8]) -> Result<(), CloseReason> {
        let server = ServerSecret::decode_message(record)?;
        let key = self.key(which);
        key.has_peer_keys = true;
        let client = key.client_secret.take().ok_or(CloseReason::Unexpected("key exchange"))?;
        if which == Which::Current {
            // How keys are made of them is pushed.
            key.secrets = Some((client, server));
            return Ok(());
        }
        self.derive(which, &client, &server)
    }

    pub(super) fn client_message(&mut self, message: Message<'_>) -> Result<(), CloseReason> {
        match message {
            Message::PushReply(options) => return self.push_received(options),
            Message::AuthFailed(reason) => return Err(CloseReason::AuthFailed(reason)),
            Message::Restart(reason) => return Err(CloseReason::Restart(reason)),
            Message::Halt(reason) => return Err(CloseReason::Halt(reason)),
            Message::Exit => return Err(CloseReason::PeerExit),
            Message::Info(reason) => self.events.push_back(Event::Client(ClientEvent::Info(reason))),
            Message::AuthPending(within) => {
                let within = within.unwrap_or(HANDSHAKE_WITHIN).min(PENDING_WITHIN_MAX);
                self.deadlines.handshake_at = self.deadlines.handshake_at.max(self.now + within);
            }
            Message::PushRequest | Message::Other => count(&mut self.counters.control_messages),
        }
        Ok(())
    }

    fn push_received(&mut self, options: &str) -> Result<(), CloseReason> {
        let state = self.state();
        let Role::Client(side) = &mut self.role else { return Ok(()) };
        if side.is_push_complete || !matches!(state, State::Handshaking | State::AwaitAdmission) {
            count(&mut self.counters.control_messages);
            return Ok(());
        }
        if side.pushed.add(options)? == Continuation::More {
            return Ok(());
        }
        side.is_push_complete = true;
        let agreed = side.agree()?;
        let (static_key, time) = (side.static_key(), side.time);
        self.agreed = Some(agreed);
        if agreed.is_dynamic_tls_crypt {
            self.derive_later_wrap(static_key.as_ref(), time)?;
        }
        if let Some((client, server)) = self.current.secrets.take() {
            self.derive(Which::Current, &client, &server)?;
        }
        self.keys_complete();
        Ok(())
    }

    /// Something of what the tunnel needs has come: keys, push, or both.
    pub(super) fn keys_complete(&mut self) {
        let now = self.now;
        let state = self.state();
        let side = match &mut self.role {
            Role::Server(_) => {
                self.connect();
                self.shrink();
                return;
            }
            Role::Client(side) => side,
        };
        if state != State::AwaitAdmission {
            return;
        }
        if !side.is_push_complete {
            // As stock clients do, which give the server a moment to push by itself.
            side.push_request_at = side.config.push_request_every.map(|_| now + PUSH_REQUEST_AFTER);
            return;
        }
        let pushed = Box::new(side.pushed.clone());
        side.pushed.options = Vec::new();
        side.push_request_at = None;
        self.step(Step::Admitted);
        self.deadlines.sent_at = now;
        self.deadlines.received_at = now;
        self.budget = Budget::new(now);
        self.events.push_back(Event::Client(ClientEvent::Connected(pushed)));
        self.shrink();
    }

    pub(super) fn request_push(&mut self) {
        let now = self.now;
        let Role::Client(side) = &mut self.role else { return };
        side.push_request_at = side.config.push_request_every.map(|every| now + every);
        self.messages.push_back(encode("PUSH_REQUEST"));
    }
}

/// The first push request comes this long after the keys.
const PUSH_REQUEST_AFTER: std::time::Duration = std::time::Duration::from_secs(1);
