//! Why a session is over.

use rustls::AlertDescription;

use super::client_key::ClientKeyError;
use super::data::OpenError;
use super::key_method::KeyExchangeError;
use super::message::Reason;
use super::packet::PacketError;
use super::push::PushError;
use super::stream::FrameError;
use super::wrap::UnwrapError;

/// Why a session is over. The words are safe to log: what a peer said is in them only printable and cut.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CloseReason {
    /// The stream cannot be read on.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream ended inside a packet.
    #[error("the stream ended inside a packet")]
    Truncated,
    /// The stream ended.
    #[error("the peer closed the connection")]
    PeerClosed,
    /// An opcode that was never given out: this is no OpenVPN.
    #[error("opcode {0} is not in use")]
    Opcode(u8),
    /// The peer is older than OpenVPN 2.0, or configured to be.
    #[error("the peer uses key method 1, which is not supported")]
    KeyMethod1,
    /// A packet that is not allowed where it came.
    #[error("an unexpected packet: {0}")]
    Unexpected(&'static str),
    /// A packet that cannot be decoded.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// A packet whose wrapping is wrong: another key, or no key at all.
    #[error(transparent)]
    Unwrap(#[from] UnwrapError),
    /// A wrapped client key that cannot be read.
    #[error(transparent)]
    ClientKey(#[from] ClientKeyError),
    /// The id of another session.
    #[error("a packet belongs to another session")]
    SessionId,
    /// More control packets, or bytes, than any handshake needs.
    #[error("too many control packets")]
    Budget,
    /// TLS failed on this side, which has told the peer.
    #[error("TLS failed")]
    Tls(#[source] rustls::Error),
    /// The peer's TLS gave up, mostly because it does not like this side's certificate.
    #[error("the peer ended TLS with the alert {0:?}")]
    PeerAlert(AlertDescription),
    /// The peer's TLS said goodbye.
    #[error("the peer ended TLS")]
    PeerEndedTls,
    /// The TLS configuration asked for no certificate, or let an older version pass.
    #[error("TLS is not mutual TLS 1.3")]
    WeakTls,
    /// The key exchange message is not what it should be.
    #[error(transparent)]
    KeyExchange(#[from] KeyExchangeError),
    /// A renegotiation came with another certificate than the first handshake.
    #[error("the peer came back with another certificate")]
    CertificateChanged,
    /// The client is told with `AUTH_FAILED` that it cannot be served.
    #[error(transparent)]
    Refused(Refusal),
    /// A record that is no control message.
    #[error("a control message of {0} bytes")]
    Message(usize),
    /// An encrypted packet that no honest peer sends over TCP.
    #[error(transparent)]
    Data(#[from] OpenError),
    /// A soft reset at the wrong time, or for the wrong key.
    #[error("a renegotiation out of order")]
    Renegotiation,
    /// Soft resets faster than anybody needs.
    #[error("renegotiations too often")]
    RenegotiationRate,
    /// Asking for a push over and over.
    #[error("too many push requests")]
    PushRequests,
    /// The peer did not do in time what it should.
    #[error("no {0} in time")]
    Deadline(Waited),
    /// The peer said that it leaves.
    #[error("the peer said that it leaves")]
    PeerExit,
    /// This side was told by its owner to go.
    #[error("ended by this side")]
    Ended,
    /// Client: the server says that this client may not come.
    #[error("the server refused: {0}")]
    AuthFailed(Reason),
    /// Client: the server asks to come again.
    #[error("the server asks to reconnect: {0}")]
    Restart(Reason),
    /// Client: the server asks not to come again.
    #[error("the server asks to stop: {0}")]
    Halt(Reason),
    /// Client: what was pushed cannot be used.
    #[error(transparent)]
    Push(#[from] PushError),
}

/// What did not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Waited {
    /// A first packet.
    #[error("first packet")]
    FirstPacket,
    /// A complete handshake.
    #[error("complete handshake")]
    Handshake,
    /// A complete renegotiation.
    #[error("complete renegotiation")]
    Renegotiation,
    /// An acknowledgement of a control packet.
    #[error("acknowledgement")]
    Acknowledgement,
    /// Any sign of life.
    #[error("sign of life")]
    SignOfLife,
}

/// Why a client cannot be served. It is told so in these words, and a stock client then ends for good: only what a person must
/// change on the client belongs here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// In a stock server's words, which people search for.
    #[error("Data channel cipher negotiation failed (no shared cipher)")]
    NoSharedCipher,
    /// The client wants compression and cannot be told to leave it.
    #[error("Compression is not supported: remove comp-lzo and compress from the configuration")]
    Compression,
    /// The client brings an Ethernet interface.
    #[error("Only dev tun is supported")]
    Tap,
    /// What the server's owner says.
    #[error("{0}")]
    Denied(String),
}

impl CloseReason {
    /// A short, fixed name for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Frame(_) | Self::Truncated => "framing",
            Self::PeerClosed => "peer_closed",
            Self::Opcode(_) | Self::KeyMethod1 | Self::Unexpected(_) | Self::Packet(_) | Self::SessionId => "protocol",
            Self::Unwrap(_) | Self::ClientKey(_) => "wrapping",
            Self::Budget | Self::PushRequests | Self::RenegotiationRate => "flood",
            Self::Tls(_) | Self::WeakTls => "tls",
            Self::PeerAlert(_) | Self::PeerEndedTls => "peer_tls",
            Self::KeyExchange(_) | Self::Message(_) => "control_message",
            Self::CertificateChanged => "certificate_changed",
            Self::Refused(_) => "refused",
            Self::Data(_) => "data",
            Self::Renegotiation => "renegotiation",
            Self::Deadline(_) => "deadline",
            Self::PeerExit => "peer_exit",
            Self::Ended => "ended",
            Self::AuthFailed(_) => "auth_failed",
            Self::Restart(_) => "restart",
            Self::Halt(_) => "halt",
            Self::Push(_) => "push",
        }
    }
}
