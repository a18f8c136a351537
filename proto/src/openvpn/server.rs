//! The server's end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;

use super::budget::Budget;
use super::cipher;
use super::client_key;
use super::close::{CloseReason, Refusal};
use super::config::{MTU_DEFAULT, ServerConfig, ServerWrapping, Start};
use super::control::Which;
use super::counters::count;
use super::data::Format;
use super::inner::InnerPolicy;
use super::key::{Key, Phase};
use super::key_method::{ClientMessage, ServerSecret};
use super::message::{Message, encode};
use super::opcode::{KeyId, Opcode};
use super::options::Options;
use super::peer_info::{Abilities, PeerInfo};
use super::push::{Admission, replies};
use super::random::Random;
use super::session::{Agreed, Event, Role, Session};
use super::state::{Event as Step, State};
use super::static_key::StaticKey;
use super::timer::FIRST_PACKET_WITHIN;
use super::wrap::Wrap;

/// Times that a client may ask for its push in one [`PUSH_REPLY_INTERVAL`].
pub const PUSH_REQUESTS_MAX: u32 = 64;
/// A client that asks again gets its push again, but not more often than this.
pub const PUSH_REPLY_INTERVAL: Duration = Duration::from_secs(30);

/// What happened to a server's session.
#[derive(Debug, PartialEq)]
pub enum ServerEvent {
    /// A client has proven who it is: to be answered with [`Session::admit`] or [`Session::refuse`], any time before the
    /// handshake's deadline. Nothing is told to the client until then.
    Authenticated(Box<Authenticated>),
    /// The tunnel is up.
    Connected,
}

/// Who a client is, and what it says about itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// Its certificate, then whatever it sent with it: stock clients send their authority's, too. Never empty.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Claims of the client.
    pub info: PeerInfo,
    /// With `tls-crypt-v2`: what was written into its key when it was made, for [`KeyMetadata::parse`](super::KeyMetadata). The
    /// key may be another device's than the certificate: whoever issues keys for one device each has to compare. One that
    /// does not fit is best answered with [`Farewell::AuthFailedTemporarily`], since a stock client never comes back from
    /// [`Session::refuse`].
    pub key_metadata: Option<Vec<u8>>,
}

/// How a server ends a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// Without a word: a stock client comes again after a pause of its own.
    Silent,
    /// The client comes again. The text may start with flags in brackets, `[N]` for "to the next server".
    Restart(String),
    /// The client's process ends for good.
    Halt(String),
    /// The client's process ends for good, with its user to blame.
    AuthFailed(String),
    /// The client comes again after so many seconds, if it can be told (2.6); others are cut off without a word.
    AuthFailedTemporarily {
        /// Seconds.
        backoff_seconds: u32,
        /// For people to read.
        text: String,
    },
}

/// What only a server has.
#[derive(Debug)]
pub(super) struct ServerSide {
    pub(super) config: Arc<ServerConfig>,
    time: u32,
    /// The static key in use, for mixing into later ones. With `tls-crypt-v2` it is known after the first packet.
    client_key: Option<Box<StaticKey>>,
    key_metadata: Option<Vec<u8>>,
    /// In this interval, which began at `push_requests_since`.
    push_requests: u32,
    push_requests_since: Instant,
    pushed_at: Instant,
    /// The client waits for its push.
    wants_push: bool,
    has_temporary_failure: bool,
    mtu_max: Option<u16>,
    takes_pushed_cipher: bool,
    has_compression: bool,
    /// What the client gets, when that is decided.
    admission: Option<Box<Admission>>,
    /// What that means for its packets.
    pub(super) inner: Option<InnerPolicy>,
}

impl ServerSide {
    /// What a client has to begin with.
    pub(super) fn expected_reset(&self) -> Opcode {
        match self.config.wrapping {
            ServerWrapping::TlsCryptV2(_) => Opcode::HardResetClientV3,
            ServerWrapping::None | ServerWrapping::TlsAuth { .. } | ServerWrapping::TlsCrypt(_) => {
                Opcode::HardResetClientV2
            }
        }
    }

    /// Cuts the wrapped key off a packet. Only the first one counts: keys are never replaced.
    pub(super) fn client_key<'a>(&mut self, packet: &'a [u8]) -> Result<(&'a [u8], Option<Wrap>), CloseReason> {
        let ServerWrapping::TlsCryptV2(server_key) = &self.config.wrapping else {
            return Err(CloseReason::Unexpected("wrapped client key"));
        };
        if self.client_key.is_some() {
            let (packet_bytes, _) = client_key::split(packet)?;
            return Ok((&packet[..packet_bytes], None));
        }
        let unwrapped = server_key.unwrap(packet)?;
        let wrap = Wrap::crypt(&unwrapped.key, true, self.time);
        self.key_metadata = Some(unwrapped.metadata);
        self.client_key = Some(Box::new(unwrapped.key));
        Ok((&packet[..unwrapped.packet_bytes], Some(wrap)))
    }

    fn static_key(&self) -> Option<StaticKey> {
        match &self.config.wrapping {
            ServerWrapping::None => None,
            ServerWrapping::TlsAuth { key, .. } | ServerWrapping::TlsCrypt(key) => Some(key.clone()),
            ServerWrapping::TlsCryptV2(_) => self.client_key.as_deref().cloned(),
        }
    }

    /// What is agreed on with such a client, but for the peer id, which comes with its admission.
    fn agree(&self, info: &PeerInfo, options: &Options) -> Result<Agreed, Refusal> {
        if options.is_tap() {
            return Err(Refusal::Tap);
        }
        if options.has_compression() && !info.has_stub_v2 {
            return Err(Refusal::Compression);
        }
        let cipher = cipher::choose(&self.config.ciphers, info, options).ok_or(Refusal::NoSharedCipher)?;
        let has = |ability| info.abilities.has(ability);
        let has_flags = has(Abilities::CC_EXIT_NOTIFY);
        let is_epoch = self.config.has_epoch && has_flags && has(Abilities::DATA_V2) && has(Abilities::DATA_EPOCH);
        let format = if is_epoch {
            Format::Epoch { peer_id: 0 }
        } else if has(Abilities::DATA_V2) {
            Format::V2 { peer_id: 0 }
        } else {
            Format::V1
        };
        Ok(Agreed {
            cipher,
            format,
            is_tls_ekm: self.config.has_tls_key_export && has(Abilities::TLS_KEY_EXPORT),
            is_dynamic_tls_crypt: self.config.has_dynamic_tls_crypt && has_flags && has(Abilities::DYNAMIC_TLS_CRYPT),
            has_exit: has_flags,
            // A client that cannot be told has the default.
            mtu: info.mtu_max.map_or(MTU_DEFAULT, |mtu_max| self.config.mtu.min(mtu_max)),
        })
    }

    /// All options of a client, in the order in which stock servers send them.
    fn options(&self, agreed: &Agreed, admission: &Admission) -> Vec<String> {
        let mut options = vec![
            format!("route-gateway {}", admission.gateway),
            "topology subnet".to_owned(),
            format!("ping {}", self.config.ping.as_secs().max(1)),
            format!("ping-restart {}", self.config.ping_restart.as_secs().max(1)),
            format!("ifconfig {} {}", admission.ipv4, admission.netmask),
        ];
        if let Some(ipv6) = &admission.ipv6 {
            options.push(format!("ifconfig-ipv6 {}/{} {}", ipv6.address, ipv6.prefix_bits, ipv6.gateway));
        }
        if agreed.format != Format::V1 {
            options.push(format!("peer-id {}", admission.peer_id & 0x00ff_ffff));
        }
        if self.takes_pushed_cipher {
            options.push(format!("cipher {}", agreed.cipher.name()));
        }
        options.extend(flags(agreed));
        if self.mtu_max.is_some() {
            options.push(format!("tun-mtu {}", agreed.mtu));
        }
        if self.has_compression {
            options.push("compress stub-v2".to_owned());
        }
        options.extend(admission.options.iter().cloned());
        options
    }
}

/// How the protocol's variants are switched on: an unknown flag is fatal to some clients, so only what they asked for.
fn flags(agreed: &Agreed) -> Option<String> {
    if !agreed.has_exit {
        return agreed.is_tls_ekm.then(|| "key-derivation tls-ekm".to_owned());
    }
    let flags = [
        (true, " cc-exit"),
        (agreed.is_tls_ekm, " tls-ekm"),
        (agreed.is_dynamic_tls_crypt, " dyn-tls-crypt"),
        (matches!(agreed.format, Format::Epoch { .. }), " aead-epoch"),
    ];
    let set: String = flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).collect();
    Some(format!("protocol-flags{set}"))
}

/// The session does not wait for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no admission is awaited in state {0:?}")]
pub struct AdmitError(pub State);

impl Session {
    /// A session for a connection that a client has just opened.
    #[must_use]
    pub fn server(now: Instant, config: Arc<ServerConfig>, start: Start) -> Self {
        let time = start.unix_seconds;
        let wrap = match &config.wrapping {
            // With client keys it is known after the first packet; until then nothing is sent.
            ServerWrapping::None | ServerWrapping::TlsCryptV2(_) => Wrap::Plain,
            ServerWrapping::TlsAuth { key, direction, digest } => Wrap::auth(key, *direction, *digest, time),
            ServerWrapping::TlsCrypt(key) => Wrap::crypt(key, true, time),
        };
        let key = Key::new(KeyId::FIRST, Phase::AwaitReset, Opcode::HardResetServerV2, now);
        let side = ServerSide {
            config,
            time,
            client_key: None,
            key_metadata: None,
            push_requests: 0,
            push_requests_since: now,
            pushed_at: now,
            wants_push: false,
            has_temporary_failure: false,
            mtu_max: None,
            takes_pushed_cipher: false,
            has_compression: false,
            admission: None,
            inner: None,
        };
        let random = Random::from_seed(start.seed);
        Self::new(Role::Server(Box::new(side)), now, random, wrap, key, FIRST_PACKET_WITHIN)
    }

    /// Takes the client in, and tells it what it gets.
    ///
    /// # Errors
    /// No client waits for this: it has not proven itself, was taken in before, or is gone.
    pub fn admit(&mut self, now: Instant, admission: &Admission) -> Result<(), AdmitError> {
        self.now = self.now.max(now);
        let state = self.state();
        let error = AdmitError(state);
        let is_awaited = matches!(state, State::Handshaking | State::AwaitAdmission);
        let (Role::Server(side), Some(agreed), true) = (&mut self.role, &mut self.agreed, is_awaited) else {
            return Err(error);
        };
        if side.admission.is_some() {
            return Err(error);
        }
        side.admission = Some(Box::new(admission.clone()));
        side.inner =
            Some(InnerPolicy { ipv4: admission.ipv4, ipv6: admission.ipv6.map(|ipv6| ipv6.address), mtu: agreed.mtu });
        // Both sides send it, as stock peers do, although it says nothing over TCP.
        agreed.format = agreed.format.with_peer_id(admission.peer_id & 0x00ff_ffff);
        if let Some(data) = &mut self.current.data {
            data.set_format(agreed.format);
        }
        self.connect();
        Ok(())
    }

    /// Turns the client away, and tells it why. It then ends for good.
    ///
    /// # Errors
    /// As [`Session::admit`].
    pub fn refuse(&mut self, now: Instant, reason: String) -> Result<(), AdmitError> {
        self.now = self.now.max(now);
        let state = self.state();
        let is_awaited = matches!(state, State::Handshaking | State::AwaitAdmission) && self.agreed.is_some();
        if !is_awaited {
            return Err(AdmitError(state));
        }
        self.refuse_with(Refusal::Denied(reason));
        Ok(())
    }

    /// Ends the session. [`Output::Closed`](super::Output::Closed) follows when the client has heard it.
    pub fn end(&mut self, now: Instant, farewell: &Farewell) {
        self.now = self.now.max(now);
        let has_temporary_failure = matches!(&self.role, Role::Server(side) if side.has_temporary_failure);
        let text = match farewell {
            Farewell::Silent => None,
            Farewell::Restart(text) => Some(message("RESTART", text)),
            Farewell::Halt(text) => Some(message("HALT", text)),
            Farewell::AuthFailed(text) => Some(message("AUTH_FAILED", text)),
            Farewell::AuthFailedTemporarily { backoff_seconds, text } => {
                has_temporary_failure.then(|| format!("AUTH_FAILED,TEMP[backoff {backoff_seconds}]:{text}"))
            }
        };
        match text {
            Some(text) => self.leave(CloseReason::Ended, Some(encode(&text))),
            None => self.close(CloseReason::Ended),
        }
    }

    /// Takes a new TLS configuration for renegotiations, such as one with a newer revocation list.
    pub fn set_server_config(&mut self, config: Arc<ServerConfig>) {
        if let Role::Server(side) = &mut self.role {
            side.config = config;
        }
    }

    pub(super) fn client_keys_received(&mut self, which: Which, record: &[u8]) -> Result<(), CloseReason> {
        let message = ClientMessage::decode(record)?;
        let secret = ServerSecret::new(self.random.array());
        let info = message.info();
        let options = Options::new(message.options);
        let key = self.key(which);
        key.has_peer_keys = true;
        key.has_sent_keys = true;
        key.write(&secret.encode_message(&options.mirrored()));
        if which == Which::Current {
            self.negotiate(info, &options)?;
        }
        self.derive(which, &message.secret, &secret)
    }

    fn negotiate(&mut self, info: PeerInfo, options: &Options) -> Result<(), CloseReason> {
        let Role::Server(side) = &mut self.role else { return Ok(()) };
        side.wants_push = info.abilities.has(Abilities::REQUEST_PUSH);
        side.has_temporary_failure = info.abilities.has(Abilities::AUTH_FAILED_TEMP);
        side.mtu_max = info.mtu_max;
        side.takes_pushed_cipher = info.takes_pushed_cipher();
        side.has_compression = options.has_compression();
        let agreed = match side.agree(&info, options) {
            Ok(agreed) => agreed,
            Err(refusal) => {
                self.refuse_with(refusal);
                return Ok(());
            }
        };
        let (static_key, time, key_metadata) = (side.static_key(), side.time, side.key_metadata.take());
        self.agreed = Some(agreed);
        if agreed.is_dynamic_tls_crypt {
            self.derive_later_wrap(static_key.as_ref(), time)?;
        }
        let chain = self.current.tls.as_ref().and_then(super::tls::Tls::peer_chain).unwrap_or_default();
        let authenticated = Authenticated { certificates: chain.to_vec(), info, key_metadata };
        self.events.push_back(Event::Server(ServerEvent::Authenticated(Box::new(authenticated))));
        Ok(())
    }

    fn refuse_with(&mut self, refusal: Refusal) {
        let text = encode(&format!("AUTH_FAILED,{refusal}"));
        self.leave(CloseReason::Refused(refusal), Some(text));
    }

    pub(super) fn server_message(&mut self, message: &Message<'_>) -> Result<(), CloseReason> {
        match message {
            Message::PushRequest => self.push_requested(),
            Message::Exit => Err(CloseReason::PeerExit),
            Message::PushReply(_)
            | Message::AuthFailed(_)
            | Message::Restart(_)
            | Message::Halt(_)
            | Message::Info(_)
            | Message::AuthPending(_)
            | Message::Other => {
                count(&mut self.counters.control_messages);
                Ok(())
            }
        }
    }

    fn push_requested(&mut self) -> Result<(), CloseReason> {
        let (now, state) = (self.now, self.state());
        let Role::Server(side) = &mut self.role else { return Ok(()) };
        if now >= side.push_requests_since + PUSH_REPLY_INTERVAL {
            (side.push_requests, side.push_requests_since) = (0, now);
        }
        side.push_requests += 1;
        if side.push_requests > PUSH_REQUESTS_MAX {
            return Err(CloseReason::PushRequests);
        }
        side.wants_push = true;
        if state == State::Live && now >= side.pushed_at + PUSH_REPLY_INTERVAL {
            self.push();
        }
        self.connect();
        Ok(())
    }

    /// Pushes when everything is there for it: keys on both sides, the owner's word, and the client's ear.
    pub(super) fn connect(&mut self) {
        let state = self.state();
        let Role::Server(side) = &mut self.role else { return };
        if state != State::AwaitAdmission || side.admission.is_none() || !side.wants_push {
            return;
        }
        self.push();
        self.step(Step::Admitted);
        self.deadlines.sent_at = self.now;
        self.deadlines.received_at = self.now;
        self.budget = Budget::new(self.now);
        self.events.push_back(Event::Server(ServerEvent::Connected));
    }

    fn push(&mut self) {
        let (Role::Server(side), Some(agreed)) = (&mut self.role, &self.agreed) else { return };
        let Some(admission) = &side.admission else { return };
        let replies = replies(&side.options(agreed, admission));
        side.pushed_at = self.now;
        self.messages.extend(replies.iter().map(|reply| encode(reply)));
    }
}

fn message(name: &str, text: &str) -> String {
    if text.is_empty() { name.to_owned() } else { format!("{name},{text}") }
}
