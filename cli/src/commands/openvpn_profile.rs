//! The file that makes a stock OpenVPN client reach its server.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_json::json;
use zeroize::Zeroizing;

use super::Context;
use crate::failure::Failure;
use crate::output::note;
use crate::resolve;

/// The largest file that a private key is looked for in.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Args)]
pub(crate) struct OpenVpnProfile {
    /// Name or id
    device: String,
    /// Where the client will find the device's private key; without it, device.key where the client is started
    #[arg(long, value_name = "PATH", conflicts_with = "key_file")]
    key_path: Option<String>,
    /// File with the device's private key (PEM), to be put into the profile; it is sent nowhere
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Write to this file, for its owner only; without it, to standard output
    #[arg(long, short, visible_alias = "out", value_name = "FILE")]
    output: Option<PathBuf>,
}

impl OpenVpnProfile {
    pub(crate) async fn run(&self, context: &Context) -> Result<(), Failure> {
        // Before anything is asked for: the server notes who was given what.
        let key = self.key_file.as_deref().map(Key::read).transpose()?;
        let client = context.client()?;
        let device = resolve::device(&client, &self.device).await?.value;
        let mut profile = Zeroizing::new(client.openvpn_profile(device.id, self.key_path.as_deref()).await?);
        if let Some(key) = &key {
            key.check_fits(&profile)?;
            profile = inline(&profile, &key.pem);
        }
        match &self.output {
            Some(path) => {
                write(path, profile.as_bytes()).with_context(|| format!("{} cannot be written", path.display()))?;
                note(&format!("Wrote {}: openvpn --config {0}", path.display()));
            }
            None if context.output.json => {
                context.output.json(&json!({ "device_id": device.id, "profile": profile.as_str() }))?;
            }
            None => profile.lines().try_for_each(|line| context.output.line(line))?,
        }
        if let (None, Some(line)) = (&key, profile.lines().find(|line| is_key(line))) {
            note(&format!("The device's private key is not in it. The client looks for it here: {line}"));
        }
        Ok(())
    }
}

/// A private key as it stands in its file.
struct Key {
    pem: Zeroizing<String>,
}

impl Key {
    fn read(path: &Path) -> Result<Self, Failure> {
        let read = || {
            let file = File::open(path)?;
            if file.metadata()?.len() > KEY_FILE_BYTES_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            io::read_to_string(file)
        };
        let text = Zeroizing::new(read().with_context(|| format!("{} cannot be read", path.display()))?);
        Self::find(&text).ok_or_else(|| {
            Failure::Usage(format!(
                "{} holds no private key that can be used\nIt is PEM, and not encrypted. Of an encrypted one give the path: --key-path",
                path.display()
            ))
        })
    }

    /// The first private key in a text that may hold certificates, too.
    fn find(text: &str) -> Option<Self> {
        let is_mark = |line: &str, word| line.starts_with(word) && line.ends_with("PRIVATE KEY-----");
        let begin = text.lines().skip_while(|line| !is_mark(line.trim_end(), "-----BEGIN "));
        let mut pem = Zeroizing::new(String::with_capacity(text.len()));
        for line in begin.map(str::trim_end) {
            pem.push_str(line);
            pem.push('\n');
            if is_mark(line, "-----END ") {
                PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()?;
                return Some(Self { pem });
            }
        }
        None
    }

    /// Whether it is the key of the profile's certificate: with another one, the client would be refused.
    fn check_fits(&self, profile: &str) -> Result<(), Failure> {
        let certificate = profile.split_once("<cert>").map(|(_, rest)| rest);
        let certificate = certificate.and_then(|text| CertificateDer::from_pem_slice(text.as_bytes()).ok());
        let certificate = certificate.context("the server's profile has no certificate: is this program too old?")?;
        let key = PrivateKeyDer::from_pem_slice(self.pem.as_bytes()).map_err(anyhow::Error::new)?;
        match CertifiedKey::from_der(vec![certificate], key, &aws_lc_rs::default_provider()) {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::Usage(
                "the private key is not the one of the device's certificate\nTake the key that the device enrolled with.".to_owned(),
            )),
        }
    }
}

fn is_key(line: &str) -> bool {
    line.starts_with("key ")
}

/// The profile with the key in place of its path, and of the remark above that.
fn inline(profile: &str, key_pem: &str) -> Zeroizing<String> {
    let mut with_key = Zeroizing::new(String::with_capacity(profile.len() + key_pem.len() + 16));
    let lines: Vec<_> = profile.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let is_about_key = line.starts_with('#') && lines.get(at + 1).is_some_and(|next| is_key(next));
        if is_key(line) {
            for part in ["<key>\n", key_pem, "</key>\n"] {
                with_key.push_str(part);
            }
        } else if !is_about_key {
            with_key.push_str(line);
            with_key.push('\n');
        }
    }
    with_key
}

/// A file that appears when it is complete, for its owner only: there may be keys in it.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.part", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use ::aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
    use cloudlink_certs::pem::certificate_to_pem;
    use cloudlink_certs::{Authority, PrivateKey, Serial, Validity};
    use time::Duration;
    use time::macros::datetime;

    use super::*;

    const PROFILE: &str = "client\n# Of the key.\nkey \"device.key\"\n<cert>\nkey-like\n</cert>\n";

    fn new_key() -> PrivateKey {
        let pkcs8 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap().to_pkcs8v1().unwrap();
        PrivateKey::from_pkcs8_der(pkcs8.as_ref()).unwrap()
    }

    /// A certificate and its key, as PEM.
    fn pair() -> (String, String) {
        let valid = Validity::starting_at(datetime!(2026-01-01 00:00 UTC), Duration::days(9)).unwrap();
        let authority = Authority::create(new_key(), "Test", Serial::from_random([1; 16]), valid).unwrap();
        let (key, names) = (new_key(), ["device.example".parse().unwrap()]);
        let serial = Serial::from_random([2; 16]);
        let certificate = authority.issue_server(&key.public_key(), &names, serial, valid).unwrap();
        (certificate_to_pem(&certificate), key.to_pem().to_string())
    }

    #[test]
    fn the_key_takes_the_place_of_its_path() {
        assert_eq!(
            *inline(PROFILE, "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"),
            "client\n<key>\n-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n</key>\n<cert>\nkey-like\n</cert>\n"
        );
    }

    #[test]
    fn a_key_is_found_among_certificates_and_nothing_else_comes_with_it() {
        let (certificate, key) = pair();
        let text = format!("{certificate}{key}{certificate}");
        assert_eq!(*Key::find(&text).unwrap().pem, key);
        assert_eq!(*Key::find(&text.replace('\n', "\r\n")).unwrap().pem, key);
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        for text in ["", certificate.as_str(), &encrypted, &key[..key.len() - 40]] {
            assert!(Key::find(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let ((certificate, key), (other_certificate, other_key)) = (pair(), pair());
        let profile = format!("<ca>\n{other_certificate}</ca>\n<cert>\n{certificate}</cert>\n");
        Key::find(&key).unwrap().check_fits(&profile).unwrap();
        let refused = Key::find(&other_key).unwrap().check_fits(&profile).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(refused.report(false).unwrap().contains("enrolled with"));
    }

    #[test]
    fn what_is_written_is_for_its_owner_only_and_replaces_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("device.ovpn");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
