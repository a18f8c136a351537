//! What a stock OpenVPN client needs to reach this server: one file, complete but for the device's private key.

use std::fmt::Write as _;
use std::path::Path;

use cloudlink_certs::pem::certificate_to_pem;
use cloudlink_proto::ids::DeviceId;
use cloudlink_proto::openvpn::{
    AuthDigest, ClientKeyError, KeyDirection, KeyMetadata, Random, ServerWrapping, StaticKey,
};
use rustls_pki_types::CertificateDer;

use crate::config::Wrapping;

/// The longest path of a private key, in bytes after quoting: OpenVPN takes lines of 256.
pub const KEY_PATH_BYTES_MAX: usize = 200;
/// Where the private key is looked for unless the caller knows better: beside the profile.
pub const KEY_PATH_DEFAULT: &str = "device.key";

/// What all clients are told alike.
#[derive(Clone, Debug)]
pub struct Remote {
    pub server_name: String,
    pub port: u32,
    /// The common name of the server's certificate.
    pub common_name: String,
    /// The fleet's root.
    pub ca_pem: String,
    pub wrapping: ServerWrapping,
}

/// Where the device's private key is, as the client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPath(String);

/// Not a path that a profile can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has 1 to {KEY_PATH_BYTES_MAX} bytes, and neither control characters nor the name [inline]")]
pub struct KeyPathError;

impl KeyPath {
    /// Quotes the path, so that nothing in it ends the line or the value.
    pub fn new(path: &str) -> Result<Self, KeyPathError> {
        let quoted = format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""));
        let is_fit = !path.is_empty() && quoted.len() <= KEY_PATH_BYTES_MAX && !path.chars().any(char::is_control);
        // That name means that the key follows in the file.
        if is_fit && Path::new(path) != Path::new("[inline]") { Ok(Self(quoted)) } else { Err(KeyPathError) }
    }
}

impl Default for KeyPath {
    fn default() -> Self {
        Self::new(KEY_PATH_DEFAULT).expect("a constant path")
    }
}

impl Remote {
    /// As the configuration calls what is around the control channel.
    #[must_use]
    pub const fn wrapping_name(&self) -> &'static str {
        match self.wrapping {
            ServerWrapping::None => Wrapping::None,
            ServerWrapping::TlsAuth { .. } => Wrapping::TlsAuth,
            ServerWrapping::TlsCrypt(_) => Wrapping::TlsCrypt,
            ServerWrapping::TlsCryptV2(_) => Wrapping::TlsCryptV2,
        }
        .name()
    }

    /// The profile of this device. `random` makes it a control channel key of its own, where each device has one.
    pub fn profile(
        &self,
        device: DeviceId,
        certificate: &CertificateDer<'_>,
        key: &KeyPath,
        random: &mut Random,
    ) -> Result<String, ClientKeyError> {
        let Self { server_name, port, common_name, ca_pem, wrapping } = self;
        let KeyPath(key) = key;
        let certificate = certificate_to_pem(certificate);
        let mut text = format!(
            "# OpenVPN profile of device {device}.
client
dev tun
proto tcp-client
remote {server_name} {port}
nobind
persist-tun
persist-key
resolv-retry infinite
connect-retry 2 300
remote-cert-tls server
verify-x509-name {common_name} name
tls-version-min 1.3
# OpenVPN 2.4 does not know the option, and has the first two ciphers anyway.
ignore-unknown-option data-ciphers
data-ciphers AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305
# For clients that name one cipher only.
cipher AES-256-GCM
verb 3
# The private key was made on the device and never left it: this is where the client looks for it.
key {key}
<ca>
{ca_pem}</ca>
<cert>
{certificate}</cert>
"
        );
        write_wrapping(&mut text, wrapping, device, random)?;
        Ok(text)
    }
}

/// What goes around the control channel.
fn write_wrapping(
    text: &mut String,
    wrapping: &ServerWrapping,
    device: DeviceId,
    random: &mut Random,
) -> Result<(), ClientKeyError> {
    let written = match wrapping {
        ServerWrapping::None => Ok(()),
        ServerWrapping::TlsAuth { key, direction, digest } => {
            let (direction, digest) = (client_direction(*direction), digest_name(*digest));
            write!(text, "auth {digest}\n{direction}<tls-auth>\n{}</tls-auth>\n", key.to_pem())
        }
        ServerWrapping::TlsCrypt(key) => write!(text, "<tls-crypt>\n{}</tls-crypt>\n", key.to_pem()),
        ServerWrapping::TlsCryptV2(server) => {
            let metadata = KeyMetadata::Issuer(device.as_uuid().as_bytes()).to_bytes();
            let key = server.issue(StaticKey::generate(random), &metadata)?;
            write!(text, "<tls-crypt-v2>\n{}</tls-crypt-v2>\n", key.to_pem())
        }
    };
    written.expect("a string takes everything");
    Ok(())
}

/// The opposite of the server's.
const fn client_direction(server: KeyDirection) -> &'static str {
    match server {
        KeyDirection::Both => "",
        KeyDirection::Zero => "key-direction 1\n",
        KeyDirection::One => "key-direction 0\n",
    }
}

const fn digest_name(digest: AuthDigest) -> &'static str {
    match digest {
        AuthDigest::Sha1 => "SHA1",
        AuthDigest::Sha256 => "SHA256",
        AuthDigest::Sha384 => "SHA384",
        AuthDigest::Sha512 => "SHA512",
    }
}

#[cfg(test)]
mod tests {
    use cloudlink_proto::openvpn::{V2ClientKey, V2ServerKey};
    use uuid::Uuid;

    use super::*;

    const DEVICE: DeviceId = DeviceId::from_uuid(Uuid::from_u128(0x2222));

    fn profile(wrapping: ServerWrapping, key: &KeyPath) -> String {
        let remote = Remote {
            server_name: "link.example.com".to_owned(),
            port: 443,
            common_name: "link.example.com".to_owned(),
            ca_pem: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_owned(),
            wrapping,
        };
        let certificate = CertificateDer::from(vec![1]);
        remote.profile(DEVICE, &certificate, key, &mut Random::from_seed([7; 32])).unwrap()
    }

    fn with(wrapping: ServerWrapping) -> String {
        profile(wrapping, &KeyPath::default())
    }

    #[test]
    fn a_profile_has_all_but_the_private_key() {
        insta::assert_snapshot!(with(ServerWrapping::None), @r#"
        # OpenVPN profile of device 00000000-0000-0000-0000-000000002222.
        client
        dev tun
        proto tcp-client
        remote link.example.com 443
        nobind
        persist-tun
        persist-key
        resolv-retry infinite
        connect-retry 2 300
        remote-cert-tls server
        verify-x509-name link.example.com name
        tls-version-min 1.3
        # OpenVPN 2.4 does not know the option, and has the first two ciphers anyway.
        ignore-unknown-option data-ciphers
        data-ciphers AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305
        # For clients that name one cipher only.
        cipher AES-256-GCM
        verb 3
        # The private key was made on the device and never left it: this is where the client looks for it.
        key "device.key"
        <ca>
        -----BEGIN CERTIFICATE-----
        AA==
        -----END CERTIFICATE-----
        </ca>
        <cert>
        -----BEGIN CERTIFICATE-----
        AQ==
        -----END CERTIFICATE-----
        </cert>
        "#);
    }

    #[test]
    fn each_wrapping_is_inlined_as_the_clients_half() {
        let key = StaticKey::from_bytes([9; 256]);
        let plain = with(ServerWrapping::None);
        let added = |wrapping| with(wrapping).strip_prefix(plain.as_str()).unwrap().to_owned();
        let auth = |direction, digest| added(ServerWrapping::TlsAuth { key: key.clone(), direction, digest });
        let block = format!("<tls-auth>\n{}</tls-auth>\n", key.to_pem());
        assert_eq!(auth(KeyDirection::Zero, AuthDigest::Sha1), format!("auth SHA1\nkey-direction 1\n{block}"));
        assert_eq!(auth(KeyDirection::One, AuthDigest::Sha256), format!("auth SHA256\nkey-direction 0\n{block}"));
        assert_eq!(auth(KeyDirection::Both, AuthDigest::Sha512), format!("auth SHA512\n{block}"));
        let crypt = added(ServerWrapping::TlsCrypt(key.clone()));
        assert_eq!(crypt, format!("<tls-crypt>\n{}</tls-crypt>\n", key.to_pem()));
        let v2 = added(ServerWrapping::TlsCryptV2(V2ServerKey::from_bytes([3; 128])));
        let inside = v2.strip_prefix("<tls-crypt-v2>\n").unwrap().strip_suffix("</tls-crypt-v2>\n").unwrap();
        let client = V2ClientKey::from_pem(inside).unwrap();
        assert_ne!(client.key, StaticKey::from_bytes([0; 256]));
    }

    #[test]
    fn a_path_stays_a_path_and_one_line() {
        let line = |path| {
            let text = profile(ServerWrapping::None, &KeyPath::new(path).unwrap());
            text.lines().find(|line| line.starts_with("key ")).unwrap().to_owned()
        };
        assert_eq!(line("/etc/openvpn/device key.pem"), r#"key "/etc/openvpn/device key.pem""#);
        assert_eq!(line(r"C:\keys\device.key"), r#"key "C:\\keys\\device.key""#);
        assert_eq!(line(r#"a" 1;b"#), r#"key "a\" 1;b""#);
        let longest = "x".repeat(KEY_PATH_BYTES_MAX - 2);
        assert!(KeyPath::new(&longest).is_ok());
        for path in ["", "a\nup /bin/sh", "a\0", "[inline]", &(longest + "x"), &"\\".repeat(100)] {
            assert_eq!(KeyPath::new(path), Err(KeyPathError), "{path:?}");
        }
    }

    #[test]
    fn no_line_is_longer_than_openvpn_takes() {
        let key = KeyPath::new(&"x".repeat(KEY_PATH_BYTES_MAX - 2)).unwrap();
        let text = profile(ServerWrapping::TlsCryptV2(V2ServerKey::from_bytes([3; 128])), &key);
        assert!(text.lines().all(|line| line.len() < 256), "{text}");
    }
}
