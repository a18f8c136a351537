//! TLS 1.3 as rustls speaks it, for a small part of its price and the same in every run.
//!
//! Fuzzers would spend their time on elliptic curves and hashes, which they cannot learn anything about, and could not repeat
//! what they found. Here rustls does everything that it always does, but all cryptography is one quick [`Mixer`], and random
//! numbers can be started anew. No secret is safe with it.

use std::cell::Cell;
use std::sync::{Arc, LazyLock};

use cloudlink_proto::openvpn::{tls_client_config, tls_server_config};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundOpaqueMessage,
    OutboundPlainMessage, PrefixedPayload, Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::crypto::hash::{self, Hash, HashAlgorithm};
use rustls::crypto::hmac::{self, Hmac};
use rustls::crypto::tls13::HkdfUsingHmac;
use rustls::crypto::{
    ActiveKeyExchange, CipherSuiteCommon, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{
    CipherSuite, ConnectionTrafficSecrets, ContentType, DigitallySignedStruct, DistinguishedName, Error, NamedGroup,
    ProtocolVersion, SignatureAlgorithm, SignatureScheme, SupportedCipherSuite, Tls13CipherSuite,
};

thread_local! {
    static STATE: Cell<u64> = const { Cell::new(0) };
}

/// Starts the random numbers anew, so that the next sessions of this thread are like the last ones.
pub(crate) fn restart() {
    STATE.set(0);
}

/// A server that knows whoever shows [`CERTIFICATE`] or [`OTHER_CERTIFICATE`].
pub(crate) static SERVER: LazyLock<Arc<rustls::ServerConfig>> = LazyLock::new(|| {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Verifier))
        .with_cert_resolver(certified(CERTIFICATE));
    tls_server_config(&mut config);
    Arc::new(config)
});

pub(crate) static CLIENT: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| client(CERTIFICATE));
/// One that is somebody else.
pub(crate) static OTHER_CLIENT: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| client(OTHER_CERTIFICATE));

const CERTIFICATE: &[u8] = b"a certificate";
const OTHER_CERTIFICATE: &[u8] = b"another one";

fn client(certificate: &'static [u8]) -> Arc<rustls::ClientConfig> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier))
        .with_client_cert_resolver(certified(certificate));
    tls_client_config(&mut config);
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![SupportedCipherSuite::Tls13(&SUITE)],
        kx_groups: vec![&Quick],
        secure_random: &Counter,
        ..default_provider()
    })
}

fn certified(certificate: &'static [u8]) -> Arc<SingleCertAndKey> {
    let chain = vec![CertificateDer::from(certificate)];
    Arc::new(CertifiedKey::new(chain, Arc::new(Quick)).into())
}

/// Numbers that look random.
#[derive(Debug)]
struct Counter;

impl SecureRandom for Counter {
    fn fill(&self, out: &mut [u8]) -> Result<(), GetRandomFailed> {
        for block in out.chunks_mut(8) {
            let count = STATE.get() + 1;
            STATE.set(count);
            let mixed = (count.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ count << 7).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            block.copy_from_slice(&mixed.to_be_bytes()[..block.len()]);
        }
        Ok(())
    }
}

/// Everything that rustls asks a provider of cryptography for.
#[derive(Debug)]
struct Quick;

static SUITE: Tls13CipherSuite = Tls13CipherSuite {
    common: CipherSuiteCommon {
        suite: CipherSuite::TLS13_AES_128_GCM_SHA256,
        hash_provider: &Quick,
        confidentiality_limit: u64::MAX,
    },
    hkdf_provider: &HkdfUsingHmac(&Quick),
    aead_alg: &Quick,
    quic: None,
};

const BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// Takes 64 bits at a time, and gives 32 bytes that depend on all of them.
#[derive(Clone, Copy, Default)]
struct Mixer {
    lanes: [u64; 4],
    count: u64,
    /// The last bytes, until they are eight.
    tail: u64,
}

impl Mixer {
    fn keyed(key: &[u8]) -> Self {
        let mut mixer = Self::default();
        mixer.add(key);
        mixer.word(0x6b65_7900);
        mixer
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while !self.is_whole()
            && let Some((first, rest)) = bytes.split_first()
        {
            self.byte(*first);
            bytes = rest;
        }
        while let Some((word, rest)) = bytes.split_first_chunk() {
            self.word(u64::from_be_bytes(*word));
            self.count += 8;
            bytes = rest;
        }
        bytes.iter().for_each(|byte| self.byte(*byte));
    }

    const fn is_whole(&self) -> bool {
        self.count.is_multiple_of(8)
    }

    fn byte(&mut self, byte: u8) {
        self.tail = self.tail << 8 | u64::from(byte);
        self.count += 1;
        if self.is_whole() {
            self.word(self.tail);
            self.tail = 0;
        }
    }

    fn word(&mut self, word: u64) {
        let [a, b, c, d] = self.lanes;
        let mixed = (a ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.lanes = [b ^ mixed >> 29, c.wrapping_add(mixed), d.rotate_left(23) ^ word, mixed];
    }

    fn sum(mut self) -> [u8; BYTES] {
        self.word(self.tail);
        self.word(self.count);
        let mut sum = [0; BYTES];
        for block in sum.chunks_exact_mut(8) {
            self.word(0x5555);
            block.copy_from_slice(&self.lanes[3].to_be_bytes());
        }
        sum
    }
}

fn sum(parts: &[&[u8]]) -> [u8; BYTES] {
    let mut mixer = Mixer::default();
    parts.iter().for_each(|part| mixer.add(part));
    mixer.sum()
}

impl Hash for Quick {
    fn start(&self) -> Box<dyn hash::Context> {
        Box::new(Mixer::default())
    }

    fn hash(&self, data: &[u8]) -> hash::Output {
        hash::Output::new(&sum(&[data]))
    }

    fn output_len(&self) -> usize {
        BYTES
    }

    fn algorithm(&self) -> HashAlgorithm {
        HashAlgorithm::SHA256
    }
}

impl hash::Context for Mixer {
    fn fork_finish(&self) -> hash::Output {
        hash::Output::new(&self.sum())
    }

    fn fork(&self) -> Box<dyn hash::Context> {
        Box::new(*self)
    }

    fn finish(self: Box<Self>) -> hash::Output {
        hash::Output::new(&self.sum())
    }

    fn update(&mut self, data: &[u8]) {
        self.add(data);
    }
}

impl Hmac for Quick {
    fn with_key(&self, key: &[u8]) -> Box<dyn hmac::Key> {
        Box::new(Mixer::keyed(key))
    }

    fn hash_output_len(&self) -> usize {
        BYTES
    }
}

impl hmac::Key for Mixer {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> hmac::Tag {
        let mut mixer = *self;
        mixer.add(first);
        middle.iter().for_each(|part| mixer.add(part));
        mixer.add(last);
        hmac::Tag::new(&mixer.sum())
    }

    fn tag_len(&self) -> usize {
        BYTES
    }
}

/// Hides nothing, but only who has the key can make a tag.
struct Records(Mixer);

impl Records {
    fn new(key: &AeadKey, iv: &Iv) -> Self {
        let mut mixer = Mixer::keyed(key.as_ref());
        mixer.add(iv.as_ref());
        Self(mixer)
    }

    fn tag(&self, payload: &[u8], sequence: u64) -> [u8; TAG_BYTES] {
        let mut mixer = self.0;
        mixer.add(&sequence.to_be_bytes());
        mixer.add(payload);
        *mixer.sum().first_chunk().unwrap()
    }
}

impl Tls13AeadAlgorithm for Quick {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(Records::new(&key, &iv))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(Records::new(&key, &iv))
    }

    fn key_len(&self) -> usize {
        16
    }

    fn extract_keys(&self, _: AeadKey, _: Iv) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Err(UnsupportedOperationError)
    }
}

impl MessageEncrypter for Records {
    fn encrypt(&mut self, message: OutboundPlainMessage<'_>, sequence: u64) -> Result<OutboundOpaqueMessage, Error> {
        let mut payload = PrefixedPayload::with_capacity(self.encrypted_payload_len(message.payload.len()));
        payload.extend_from_chunks(&message.payload);
        payload.extend_from_slice(&message.typ.to_array());
        let tag = self.tag(payload.as_ref(), sequence);
        payload.extend_from_slice(&tag);
        Ok(OutboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload))
    }

    fn encrypted_payload_len(&self, bytes: usize) -> usize {
        bytes + 1 + TAG_BYTES
    }
}

impl MessageDecrypter for Records {
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        sequence: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let end = message.payload.len().checked_sub(TAG_BYTES).ok_or(Error::DecryptError)?;
        let (payload, tag) = message.payload.split_at(end);
        if self.tag(payload, sequence) != *tag {
            return Err(Error::DecryptError);
        }
        message.payload.truncate(end);
        message.into_tls13_unpadded_message()
    }
}

struct Exchange([u8; BYTES]);

impl SupportedKxGroup for Quick {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut own = [0; BYTES];
        Counter.fill(&mut own)?;
        Ok(Box::new(Exchange(own)))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let peer: [u8; BYTES] = peer.try_into().map_err(|_| Error::General("not a share".to_owned()))?;
        let secret: Vec<u8> = self.0.iter().zip(peer).map(|(own, other)| own ^ other).collect();
        Ok(secret.as_slice().into())
    }

    fn pub_key(&self) -> &[u8] {
        &self.0
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl SigningKey for Quick {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(Self) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for Quick {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(sum(&[message]).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// Knows two certificates.
#[derive(Debug)]
struct Verifier;

impl Verifier {
    fn know(certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let is_known = [CERTIFICATE, OTHER_CERTIFICATE].contains(&certificate.as_ref());
        if is_known { Ok(()) } else { Err(rustls::CertificateError::UnknownIssuer.into()) }
    }

    fn verify(message: &[u8], signature: &DigitallySignedStruct) -> Result<HandshakeSignatureValid, Error> {
        if signature.signature() == sum(&[message]) {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(rustls::CertificateError::BadSignature.into())
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::know(certificate).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        _: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::verify(message, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        _: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::verify(message, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::know(certificate).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        _: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::verify(message, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        _: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::verify(message, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
