//! What the owner of a session decides beforehand.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::cipher::Cipher;
use super::static_key::{StaticKey, V2ClientKey, V2ServerKey};
use super::wrap::{AuthDigest, KeyDirection};

/// The MTU that every client has without being told.
pub const MTU_DEFAULT: u16 = 1500;

/// What a session is started with: randomness and wall time, which this crate has none of.
#[derive(Clone)]
pub struct Start {
    /// Fresh random bytes of the system, for this session only.
    pub seed: [u8; 32],
    /// The wall clock in Unix seconds. It only has to be later than in the peer's last session under the same static key.
    pub unix_seconds: u32,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start").field("unix_seconds", &self.unix_seconds).finish_non_exhaustive()
    }
}

/// A server's configuration; all sessions share one.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Must ask for client certificates, speak TLS 1.3 only, and make no tickets: see [`tls_server_config`]. Sessions refuse
    /// clients that got through without.
    pub tls: Arc<rustls::ServerConfig>,
    /// What is around control packets.
    pub wrapping: ServerWrapping,
    /// The ciphers that are allowed, the preferred ones first. Default: all.
    pub ciphers: Vec<Cipher>,
    /// Whether keys come from the TLS exporter where the client can. Default: yes; off only to test the old way.
    pub has_tls_key_export: bool,
    /// Whether later handshakes are hidden under a key of the first where the client can. Default: yes.
    pub has_dynamic_tls_crypt: bool,
    /// Whether the epoch data format is used where the client can. Default: yes.
    pub has_epoch: bool,
    /// The tunnel's MTU, 576 or more. Default: 1500. Clients that cannot be told keep theirs.
    pub mtu: u16,
    /// Both sides send something at least this often. Default: 10 s.
    pub ping: Duration,
    /// A client comes again after this long without a sign of life; the server gives up after twice that. Default: 60 s.
    pub ping_restart: Duration,
    /// How often the server asks for new keys by itself. Default: never, clients do.
    pub renegotiate_every: Option<Duration>,
}

/// What is around a server's control packets.
#[derive(Clone, Debug)]
pub enum ServerWrapping {
    /// Nothing.
    None,
    /// A MAC under a key that all clients share.
    TlsAuth {
        /// The shared key.
        key: StaticKey,
        /// The server's `key-direction`, by convention [`KeyDirection::Zero`].
        direction: KeyDirection,
        /// `--auth`.
        digest: AuthDigest,
    },
    /// A MAC and a cipher under a key that all clients share.
    TlsCrypt(StaticKey),
    /// A MAC and a cipher under each client's own key.
    TlsCryptV2(V2ServerKey),
}

impl ServerConfig {
    /// Defaults around a TLS configuration.
    #[must_use]
    pub fn new(tls: Arc<rustls::ServerConfig>) -> Self {
        Self {
            tls,
            wrapping: ServerWrapping::None,
            ciphers: Cipher::ALL.to_vec(),
            has_tls_key_export: true,
            has_dynamic_tls_crypt: true,
            has_epoch: true,
            mtu: MTU_DEFAULT,
            ping: Duration::from_secs(10),
            ping_restart: Duration::from_secs(60),
            renegotiate_every: None,
        }
    }
}

/// Turns off what OpenVPN has no use for and what costs memory: tickets, resumption, early data, protocol names. Whoever
/// verifies client certificates is the caller's choice, made before.
pub fn tls_server_config(config: &mut rustls::ServerConfig) {
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = Vec::new();
}

/// A client's configuration.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Must have a client certificate; see [`tls_client_config`].
    pub tls: Arc<rustls::ClientConfig>,
    /// The name that the server's certificate must have.
    pub server_name: ServerName<'static>,
    /// What is around control packets.
    pub wrapping: ClientWrapping,
    /// What the client says about itself, `KEY=VALUE` lines. Its `IV_PROTO` decides what the server may use.
    pub peer_info: Vec<u8>,
    /// The options string.
    pub options: Vec<u8>,
    /// The ciphers that are taken; the same should stand in [`ClientConfig::peer_info`].
    pub ciphers: Vec<Cipher>,
    /// When to ask for the push, and how often: at once with zero. `None`: never, wait for it.
    pub push_request_every: Option<Duration>,
    /// Without being pushed one: how often something is sent. `None`: never.
    pub ping: Option<Duration>,
    /// Without being pushed one: how long the server may be silent.
    pub ping_restart: Duration,
    /// How often the client asks for new keys. Default: hourly, as stock clients do.
    pub renegotiate_every: Option<Duration>,
}

/// What is around a client's control packets.
#[derive(Clone, Debug)]
pub enum ClientWrapping {
    /// Nothing.
    None,
    /// A MAC under a key that all clients share.
    TlsAuth {
        /// The shared key.
        key: StaticKey,
        /// The client's `key-direction`, by convention [`KeyDirection::One`].
        direction: KeyDirection,
        /// `--auth`.
        digest: AuthDigest,
    },
    /// A MAC and a cipher under a key that all clients share.
    TlsCrypt(StaticKey),
    /// A MAC and a cipher under the client's own key.
    TlsCryptV2(V2ClientKey),
}

impl ClientConfig {
    /// A client that can all that this crate can, as a current stock one would say it.
    #[must_use]
    pub fn new(tls: Arc<rustls::ClientConfig>, server_name: ServerName<'static>) -> Self {
        let options = "V4,dev-type tun,link-mtu 1543,tun-mtu 1500,proto TCPv4_CLIENT,auth SHA1,keysize 128,key-method 2,\
                       tls-client";
        let peer_info = "IV_VER=cloudlink\nIV_TCPNL=1\nIV_MTU=1600\nIV_NCP=2\n\
                         IV_CIPHERS=AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305\nIV_PROTO=1950\n";
        Self {
            tls,
            server_name,
            wrapping: ClientWrapping::None,
            peer_info: peer_info.into(),
            options: options.into(),
            ciphers: Cipher::ALL.to_vec(),
            push_request_every: Some(Duration::from_secs(5)),
            ping: None,
            ping_restart: Duration::from_secs(120),
            renegotiate_every: Some(Duration::from_secs(3600)),
        }
    }
}

/// Turns off what OpenVPN has no use for: resumption, the server's name in clear, protocol names.
pub fn tls_client_config(config: &mut rustls::ClientConfig) {
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = Vec::new();
}
