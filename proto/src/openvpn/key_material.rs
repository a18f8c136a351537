//! The 256 bytes that the data keys are cut from (wire page §4).

use aws_lc_rs::hmac;
use md5::Md5;
use zeroize::Zeroizing;

use super::key_method::{ClientSecret, ServerSecret};
use super::packet::SessionId;

/// The exporter's label for data keys.
pub(super) const DATA_KEYS_LABEL: &[u8] = b"EXPORTER-OpenVPN-datakeys";
/// The exporter's label for the key that wraps the control packets of later keys.
pub(super) const DYNAMIC_TLS_CRYPT_LABEL: &[u8] = b"EXPORTER-OpenVPN-dynamic-tls-crypt";

/// `client→server cipher 64 | client→server MAC 64 | server→client cipher 64 | server→client MAC 64`.
pub(super) struct KeyMaterial(Zeroizing<[u8; Self::BYTES]>);

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    ToServer,
    ToClient,
}

impl KeyMaterial {
    pub(super) const BYTES: usize = 256;

    pub(super) fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The legacy way, for peers without a TLS exporter: TLS 1.0's pseudo-random function over what both sides contributed.
    pub(super) fn from_prf(
        client: &ClientSecret,
        server: &ServerSecret,
        client_id: SessionId,
        server_id: SessionId,
    ) -> Self {
        let mut master = Zeroizing::new([0; 48]);
        prf(
            client.pre_master(),
            &[b"OpenVPN master secret", client.random1(), server.random1()].concat(),
            master.as_mut_slice(),
        );
        let mut keys = Zeroizing::new([0; Self::BYTES]);
        let seed: [&[u8]; 5] =
            [b"OpenVPN key expansion", client.random2(), server.random2(), client_id.as_bytes(), server_id.as_bytes()];
        prf(master.as_slice(), &seed.concat(), keys.as_mut_slice());
        Self(keys)
    }

    pub(super) fn cipher(&self, flow: Flow) -> &[u8] {
        &self.0[flow.offset()..][..64]
    }

    /// With AEAD ciphers the MAC's slot gives the implicit part of the nonce.
    pub(super) fn implicit_iv(&self, flow: Flow) -> [u8; 8] {
        *self.0[flow.offset() + 64..].first_chunk().expect("a slot has 64 bytes")
    }
}

impl std::fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyMaterial").finish_non_exhaustive()
    }
}

impl Flow {
    const fn offset(self) -> usize {
        match self {
            Self::ToServer => 0,
            Self::ToClient => 128,
        }
    }
}

/// TLS 1.0's: one half of the secret through MD5, the other through SHA-1, both laid over each other.
fn prf(secret: &[u8], seed: &[u8], out: &mut [u8]) {
    let half = secret.len().div_ceil(2);
    p_hash(|parts| hmac_md5(&secret[..half], parts), seed, out);
    let sha1 = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &secret[secret.len() - half..]);
    p_hash(|parts| hmac_sha1(&sha1, parts), seed, out);
}

/// Lays `HMAC(A(1) ‖ seed) ‖ HMAC(A(2) ‖ seed) ‖ …` over `out`, with `A(n) = HMAC(A(n - 1))` and `A(0) = seed`.
fn p_hash<const N: usize>(mac: impl Fn(&[&[u8]]) -> [u8; N], seed: &[u8], out: &mut [u8]) {
    let mut a = mac(&[seed]);
    for chunk in out.chunks_mut(N) {
        for (byte, over) in chunk.iter_mut().zip(mac(&[&a, seed])) {
            *byte ^= over;
        }
        a = mac(&[&a]);
    }
}

fn hmac_sha1(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 20] {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    context.sign().as_ref().try_into().expect("SHA-1 has 20 bytes")
}

/// aws-lc offers no MD5, for good reason: it is here only because old peers make their keys with it.
fn hmac_md5(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    use ::hmac::{KeyInit, Mac};

    let mut mac = ::hmac::Hmac::<Md5>::new_from_slice(key).expect("HMAC takes any key");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn the_legacy_way_equals_appendix_a() {
        let mut client = [1; 112];
        client[48..80].fill(2);
        client[80..].fill(3);
        let mut server = [4; 64];
        server[32..].fill(5);
        let (client, server) = (ClientSecret::new(client), ServerSecret::new(server));

        let mut master = [0; 48];
        prf(client.pre_master(), &[b"OpenVPN master secret", client.random1(), server.random1()].concat(), &mut master);
        assert_eq!(
            HEXLOWER.encode(&master),
            "94038ec644a1be8052d10fa6f636c2633ce51a01928088210892d685f98cab51728d50abaca2f4c54bb30294f19d7788"
        );

        let client_id = SessionId::new([1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        let server_id = SessionId::new([0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]).unwrap();
        let keys = KeyMaterial::from_prf(&client, &server, client_id, server_id);
        assert_eq!(HEXLOWER.encode(&keys.cipher(Flow::ToServer)[..16]), "9a2f72a4ff2448a70b198700ea570dd8");
        assert_eq!(HEXLOWER.encode(&keys.cipher(Flow::ToClient)[..16]), "d859888b06e3a11735a42a3fd264068b");
        assert_eq!(
            HEXLOWER.encode(digest(&SHA256, keys.0.as_slice()).as_ref()),
            "91f35b81ed91dd5e6eab8db12154cd0d310acebeeff8914fabdd05f30a5d2795"
        );
    }
}
