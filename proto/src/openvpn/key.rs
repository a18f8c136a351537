//! One key of a session: a control channel with its own TLS session, and the data keys that come out of it.

use std::time::Instant;

use super::data::DataKeys;
use super::key_method::{ClientSecret, ServerSecret};
use super::opcode::{KeyId, Opcode};
use super::reliable::Reliable;
use super::tls::Tls;

/// How far a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The peer's reset has not come.
    AwaitReset,
    /// TLS, then the key exchange.
    Exchange,
    /// Everything that was sent is acknowledged: both sides have the keys.
    Active,
}

/// A key that can send and receive control packets.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) id: KeyId,
    pub(super) phase: Phase,
    pub(super) started_at: Instant,
    /// When the phase became [`Phase::Active`].
    pub(super) active_at: Instant,
    /// The reset that is still to be sent.
    pub(super) reset: Option<Opcode>,
    pub(super) reliable: Reliable,
    /// Made when it is needed: a peer that sends nothing but a reset costs none.
    pub(super) tls: Option<Tls>,
    /// TLS bytes that are still to be put into packets.
    pub(super) tls_out: Vec<u8>,
    /// The certificate was looked at.
    pub(super) is_peer_checked: bool,
    /// This side's key exchange message is written.
    pub(super) has_sent_keys: bool,
    /// The peer's is read.
    pub(super) has_peer_keys: bool,
    /// A client's own contribution, until the server's is there.
    pub(super) client_secret: Option<ClientSecret>,
    /// Both contributions, until a client knows how to make keys of them.
    pub(super) secrets: Option<(ClientSecret, ServerSecret)>,
    pub(super) data: Option<Box<DataKeys>>,
}

impl Key {
    pub(super) fn new(id: KeyId, phase: Phase, reset: Opcode, now: Instant) -> Self {
        Self {
            id,
            phase,
            started_at: now,
            active_at: now,
            reset: Some(reset),
            reliable: Reliable::default(),
            tls: None,
            tls_out: Vec::new(),
            is_peer_checked: false,
            has_sent_keys: false,
            has_peer_keys: false,
            client_secret: None,
            secrets: None,
            data: None,
        }
    }

    /// Everything that was to be sent is sent and acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.reset.is_none() && self.tls_out.is_empty() && self.reliable.is_acknowledged()
    }

    /// Both messages of the key exchange went through.
    pub(super) fn is_complete(&self) -> bool {
        self.phase == Phase::Exchange && self.has_sent_keys && self.has_peer_keys && self.is_idle()
    }

    /// Writes one message, which becomes one record.
    pub(super) fn write(&mut self, plaintext: &[u8]) {
        if let Some(tls) = &mut self.tls {
            tls.write(plaintext);
            tls.drain(&mut self.tls_out);
        }
    }

    /// Gives back memory that only a handshake needs.
    pub(super) fn shrink(&mut self) {
        self.reliable.shrink();
        self.tls_out.shrink_to_fit();
    }
}

/// The data keys of the key before, which die slowly.
#[derive(Debug)]
pub(super) struct Retired {
    pub(super) id: KeyId,
    pub(super) data: Box<DataKeys>,
    pub(super) dies_at: Instant,
    /// Packets still go out with it, because the peer may not be ready for the new one.
    pub(super) is_sending: bool,
}
