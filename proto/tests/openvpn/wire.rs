//! What the tests of `proto::openvpn` share: certificates, and two sessions on a virtual wire in virtual time.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use cloudlink_certs::{
    Authority, CertificateRequest, DeviceIdentity, PrivateKey, Revocation, RevocationReason, Serial, Validity,
    create_request, pem,
};
use cloudlink_proto::openvpn::{
    Admission, ClientConfig, ClientEvent, ClientWrapping, CloseReason, Event, HEADROOM, KeyDirection, Output, PeerInfo,
    Pushed, ServerConfig, ServerEvent, ServerWrapping, Session, Start, StaticKey, TAILROOM, V2ServerKey,
    tls_client_config, tls_server_config,
};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use time::macros::datetime;
use uuid::Uuid;

pub(crate) const SERVER_NAME: &str = "cloud.example";
pub(crate) const SERVER_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

pub(crate) const SERVER_IP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);
pub(crate) const CLIENT_IP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2);

pub(crate) const OPTIONS: &str =
    "V4,dev-type tun,link-mtu 1543,tun-mtu 1500,proto TCPv4_CLIENT,auth SHA1,keysize 128,key-method 2,tls-client";

pub(crate) const PEER_2_6: &str = "IV_VER=2.6.14\nIV_PLAT=linux\nIV_TCPNL=1\nIV_MTU=1600\nIV_NCP=2\n\
    IV_CIPHERS=AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305\nIV_PROTO=990\nIV_LZO_STUB=1\nIV_COMP_STUB=1\n\
    IV_COMP_STUBv2=1\n";

/// A certificate and its key.
pub(crate) struct Leaf {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKey,
}

impl Leaf {
    pub(crate) fn certificate_pem(&self) -> String {
        pem::certificate_to_pem(&self.certificate)
    }

    fn key_der(&self) -> PrivateKeyDer<'static> {
        self.key.as_pkcs8_der().clone_key().into()
    }
}

/// The device's number, from which its serial is made.
const DEVICE_NUMBER: u8 = 7;

/// A fleet: its authority, a server, and devices.
pub(crate) struct Pki {
    pub(crate) authority: Authority,
    pub(crate) server: Leaf,
    pub(crate) device: Leaf,
    pub(crate) other_device: Leaf,
    pub(crate) expired_device: Leaf,
}

pub(crate) static PKI: LazyLock<Pki> = LazyLock::new(|| Pki::create("Test CA"));

fn new_key() -> PrivateKey {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap().to_pkcs8v1().unwrap();
    PrivateKey::from_pkcs8_der(key.as_ref()).unwrap()
}

impl Pki {
    pub(crate) fn create(name: &str) -> Self {
        let validity = |end| Validity::new(datetime!(2020-01-01 00:00 UTC), end).unwrap();
        let long = validity(datetime!(2060-01-01 00:00 UTC));
        let leaf_validity = validity(datetime!(2050-01-01 00:00 UTC));
        let authority = Authority::create(new_key(), name, Serial::from_random([1; 16]), long).unwrap();
        let key = new_key();
        let certificate = authority
            .issue_server(
                &key.public_key(),
                &[SERVER_NAME.parse().unwrap()],
                Serial::from_random([2; 16]),
                leaf_validity,
            )
            .unwrap();
        let server = Leaf { certificate, key };
        let device = |number: u8, validity| {
            let key = new_key();
            let request = CertificateRequest::from_der(&create_request(&key).unwrap()).unwrap();
            let identity = DeviceIdentity {
                trust_domain: "fleet.example".parse().unwrap(),
                tenant: Uuid::from_u128(1),
                device: Uuid::from_u128(number.into()),
            };
            let serial = Serial::from_random([number; 16]);
            Leaf { certificate: authority.issue_device(&request, &identity, serial, validity).unwrap(), key }
        };
        let expired_device = device(9, validity(datetime!(2021-01-01 00:00 UTC)));
        let (device, other_device) = (device(DEVICE_NUMBER, leaf_validity), device(8, leaf_validity));
        Self { authority, server, device, other_device, expired_device }
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate_der().clone()).unwrap();
        roots
    }

    pub(crate) fn server_tls(&self) -> Arc<rustls::ServerConfig> {
        self.server_tls_with(vec![])
    }

    /// A server that knows that the device was revoked.
    pub(crate) fn server_tls_revoking(&self) -> Arc<rustls::ServerConfig> {
        let revoked_at = datetime!(2026-01-01 00:00 UTC);
        let serial = Serial::from_random([DEVICE_NUMBER; 16]).as_bytes().to_vec();
        let entry = Revocation { serial, revoked_at, reason: RevocationReason::KeyCompromise };
        let next_update = datetime!(2050-01-01 00:00 UTC);
        self.server_tls_with(vec![self.authority.issue_revocation_list(1, &[entry], revoked_at, next_update).unwrap()])
    }

    fn server_tls_with(&self, lists: Vec<CertificateRevocationListDer<'static>>) -> Arc<rustls::ServerConfig> {
        let provider = Arc::new(default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()), Arc::clone(&provider)).with_crls(lists);
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![self.server.certificate.clone()], self.server.key_der())
            .unwrap();
        tls_server_config(&mut config);
        Arc::new(config)
    }

    pub(crate) fn client_tls(&self, leaf: Option<&Leaf>) -> Arc<rustls::ClientConfig> {
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match leaf {
            Some(leaf) => builder.with_client_auth_cert(vec![leaf.certificate.clone()], leaf.key_der()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        tls_client_config(&mut config);
        Arc::new(config)
    }

    /// As OpenSSL does it: a key exchange with nothing post-quantum, and the authority's certificate sent along.
    pub(crate) fn stock_client_tls(&self) -> Arc<rustls::ClientConfig> {
        let mut provider = default_provider();
        provider.kx_groups.retain(|group| group.name() == rustls::NamedGroup::X25519);
        let chain = vec![self.device.certificate.clone(), self.authority.certificate_der().clone()];
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(chain, self.device.key_der())
            .unwrap();
        tls_client_config(&mut config);
        Arc::new(config)
    }

    pub(crate) fn server_config(&self) -> ServerConfig {
        ServerConfig::new(self.server_tls())
    }

    pub(crate) fn client_config(&self) -> ClientConfig {
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let mut config = ClientConfig::new(self.client_tls(Some(&self.device)), name);
        config.renegotiate_every = None;
        config
    }
}

/// Every kind of wrapping, as a server and a client have it.
pub(crate) fn wrappings() -> Vec<(&'static str, ServerWrapping, ClientWrapping)> {
    use cloudlink_proto::openvpn::AuthDigest::{Sha1, Sha256};

    let key = StaticKey::from_bytes(std::array::from_fn(|index| u8::try_from(index * 7 % 251).unwrap()));
    let auth = |server, client, digest| {
        (
            ServerWrapping::TlsAuth { key: key.clone(), direction: server, digest },
            ClientWrapping::TlsAuth { key: key.clone(), direction: client, digest },
        )
    };
    let (auth_server, auth_client) = auth(KeyDirection::Zero, KeyDirection::One, Sha1);
    let (both_server, both_client) = auth(KeyDirection::Both, KeyDirection::Both, Sha256);
    let v2_server = V2ServerKey::from_bytes([3; 128]);
    let v2_client = v2_server.issue(StaticKey::from_bytes([9; 256]), b"\0device 7").unwrap();
    vec![
        ("plain", ServerWrapping::None, ClientWrapping::None),
        ("tls-auth", auth_server, auth_client),
        ("tls-auth without direction", both_server, both_client),
        ("tls-crypt", ServerWrapping::TlsCrypt(key.clone()), ClientWrapping::TlsCrypt(key)),
        ("tls-crypt-v2", ServerWrapping::TlsCryptV2(v2_server), ClientWrapping::TlsCryptV2(v2_client)),
    ]
}

pub(crate) fn admission() -> Admission {
    Admission {
        ipv4: CLIENT_IP,
        netmask: Ipv4Addr::new(255, 255, 255, 0),
        gateway: SERVER_IP,
        ipv6: None,
        peer_id: 5,
        options: vec![],
    }
}

pub(crate) fn start(seed: u8) -> Start {
    Start { seed: [seed; 32], unix_seconds: 1_790_000_000 }
}

#[expect(clippy::disallowed_methods, reason = "virtual time has to start somewhere")]
pub(crate) fn beginning() -> Instant {
    static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);
    *BEGINNING
}

/// One end, and what came out of it.
pub(crate) struct End {
    pub(crate) session: Session,
    pub(crate) events: Vec<Event>,
    pub(crate) packets: Vec<Vec<u8>>,
    pub(crate) closed: Option<CloseReason>,
    /// Everything that it ever sent, but for encrypted packets.
    pub(crate) sent: Vec<u8>,
}

impl End {
    pub(crate) fn new(session: Session) -> Self {
        Self { session, events: vec![], packets: vec![], closed: None, sent: vec![] }
    }

    /// Feeds bytes in pieces of at most `cut`.
    pub(crate) fn feed(&mut self, now: Instant, bytes: &[u8], cut: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in bytes.chunks(cut) {
            let mut piece = piece.to_vec();
            let mut rest = piece.as_mut_slice();
            while !rest.is_empty() {
                let received = self.session.handle_input(now, rest);
                self.packets.extend(received.packet.map(|packet| packet.to_vec()));
                let consumed = received.consumed;
                assert!(consumed > 0, "no progress");
                rest = &mut rest[consumed..];
            }
            out.extend(self.drain());
        }
        out
    }

    pub(crate) fn drain(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(output) = self.session.poll_output() {
            assert!(self.closed.is_none(), "something came after the end: {output:?}");
            match output {
                Output::Transmit(bytes) => {
                    assert!(bytes.len() <= 32 * 1024, "{} bytes at once", bytes.len());
                    out.extend(bytes);
                }
                Output::Event(event) => self.events.push(event),
                Output::Closed(reason) => self.closed = Some(reason),
            }
        }
        self.sent.extend_from_slice(&out);
        out
    }

    pub(crate) fn timeout(&mut self, now: Instant) -> Vec<u8> {
        self.session.handle_timeout(now);
        self.drain()
    }

    pub(crate) fn seal(&mut self, now: Instant, packet: &[u8]) -> Vec<u8> {
        self.try_seal(now, packet).expect("a live session seals")
    }

    pub(crate) fn try_seal(&mut self, now: Instant, packet: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = [&[0; HEADROOM], packet, &[0; TAILROOM]].concat();
        let frame = self.session.seal(now, &mut buffer, packet.len()).ok()?;
        Some(buffer[frame].to_vec())
    }

    pub(crate) fn rekeyed(&self) -> Vec<u8> {
        let key = |event: &Event| match event {
            Event::Rekeyed(key) => Some(key.value()),
            Event::Server(_) | Event::Client(_) => None,
        };
        self.events.iter().filter_map(key).collect()
    }

    pub(crate) fn pushed(&self) -> Option<&Pushed> {
        self.events.iter().find_map(|event| match event {
            Event::Client(ClientEvent::Connected(pushed)) => Some(pushed.as_ref()),
            Event::Client(ClientEvent::Info(_)) | Event::Server(_) | Event::Rekeyed(_) => None,
        })
    }

    pub(crate) fn peer_info(&self) -> Option<&PeerInfo> {
        self.events.iter().find_map(|event| match event {
            Event::Server(ServerEvent::Authenticated(client)) => Some(&client.info),
            Event::Client(_) | Event::Server(ServerEvent::Connected) | Event::Rekeyed(_) => None,
        })
    }
}

/// What a server does with a client that has proven itself.
pub(crate) enum Decision {
    Admit(Admission),
    Refuse(String),
    Wait,
}

/// A server and a client on a wire that cuts as it likes.
pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) server: End,
    pub(crate) client: End,
    pub(crate) decision: Decision,
    /// Bytes on their way.
    pub(crate) to_server: Vec<u8>,
    pub(crate) to_client: Vec<u8>,
    /// The largest piece that arrives at once.
    pub(crate) cut: usize,
}

impl Pair {
    pub(crate) fn new(server: impl Into<Arc<ServerConfig>>, client: impl Into<Arc<ClientConfig>>) -> Self {
        let now = beginning();
        Self {
            now,
            server: End::new(Session::server(now, server.into(), start(1))),
            client: End::new(Session::client(now, client.into(), start(2))),
            decision: Decision::Admit(admission()),
            to_server: vec![],
            to_client: vec![],
            cut: usize::MAX,
        }
    }

    pub(crate) fn standard() -> Self {
        Self::new(PKI.server_config(), PKI.client_config())
    }

    /// Moves bytes until nothing is on its way.
    pub(crate) fn settle(&mut self) {
        loop {
            self.to_server.extend(self.client.drain());
            self.to_client.extend(self.server.drain());
            self.decide();
            if self.to_server.is_empty() && self.to_client.is_empty() {
                return;
            }
            let bytes = std::mem::take(&mut self.to_server);
            self.to_client.extend(self.server.feed(self.now, &bytes, self.cut));
            self.decide();
            let bytes = std::mem::take(&mut self.to_client);
            self.to_server.extend(self.client.feed(self.now, &bytes, self.cut));
        }
    }

    pub(crate) fn decide(&mut self) {
        if self.server.peer_info().is_none() {
            return;
        }
        // A second answer is an error that changes nothing.
        match &self.decision {
            Decision::Admit(admission) => drop(self.server.session.admit(self.now, admission)),
            Decision::Refuse(reason) => drop(self.server.session.refuse(self.now, reason.clone())),
            Decision::Wait => {}
        }
        self.to_client.extend(self.server.drain());
    }

    /// Lets time pass, with everything that it brings.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let timeouts = [self.server.session.poll_timeout(), self.client.session.poll_timeout()];
            let Some(at) = timeouts.into_iter().flatten().map(|(at, _)| at).min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            self.to_client.extend(self.server.timeout(self.now));
            self.to_server.extend(self.client.timeout(self.now));
        }
        self.now = end;
    }

    /// Lets time pass until the client is connected.
    pub(crate) fn connect(&mut self) {
        for _ in 0..20 {
            self.settle();
            if self.client.pushed().is_some() {
                return;
            }
            self.pass(Duration::from_millis(500));
        }
        panic!("not connected: server {:?}, client {:?}", self.server.closed, self.client.closed);
    }

    /// Sends a packet each way and expects it to arrive.
    pub(crate) fn exchange_packets(&mut self, mark: u8) {
        let (up, down) = (packet(CLIENT_IP, SERVER_IP, mark), packet(SERVER_IP, CLIENT_IP, mark));
        let frame = self.client.seal(self.now, &up);
        self.to_server.extend(frame);
        let frame = self.server.seal(self.now, &down);
        self.to_client.extend(frame);
        self.settle();
        assert_eq!(self.server.packets.pop().as_ref(), Some(&up), "lost upwards: {:?}", self.server.closed);
        assert_eq!(self.client.packets.pop().as_ref(), Some(&down), "lost downwards: {:?}", self.client.closed);
    }
}

/// A whole IPv4 packet.
pub(crate) fn packet(source: Ipv4Addr, destination: Ipv4Addr, mark: u8) -> Vec<u8> {
    let mut packet = vec![mark; 64];
    packet[..20].fill(0);
    packet[0] = 0x45;
    packet[3] = 64;
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet
}

/// Packets of a stream, without their lengths.
pub(crate) fn frames(mut stream: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk() {
        let (frame, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
        frames.push(frame.to_vec());
        stream = rest;
    }
    frames
}

/// A frame around a packet.
pub(crate) fn framed(packet: &[u8]) -> Vec<u8> {
    [&u16::try_from(packet.len()).unwrap().to_be_bytes(), packet].concat()
}
