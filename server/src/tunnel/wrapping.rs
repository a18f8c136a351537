//! The server's key around control packets.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cloudlink_proto::ids::DeviceId;
use cloudlink_proto::openvpn::{
    AuthDigest, KeyDirection, KeyFileError, KeyMetadata, ServerWrapping, StaticKey, V2ServerKey,
};
use zeroize::Zeroizing;

use crate::config::{Config, Wrapping};
use crate::file;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum WrappingError {
    #[error("cannot {verb} the tunnels' key {}", path.display())]
    File {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no key for tunnel.wrapping: make one with `openvpn --genkey`, or remove it", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: KeyFileError,
    },
}

/// Reads the key that the configuration asks for. The one in its default place is made if it is not there.
pub fn load(config: &Config) -> Result<ServerWrapping, WrappingError> {
    let wrapping = config.tunnel.wrapping;
    let path = match &config.tunnel.wrapping_key {
        Some(path) => path.clone(),
        None => config.data_dir.join("pki").join(format!("tunnel.{}.key", wrapping.name())),
    };
    let may_make = config.tunnel.wrapping_key.is_none();
    let invalid = |source| WrappingError::Key { path: path.clone(), source };
    Ok(match wrapping {
        Wrapping::None => ServerWrapping::None,
        Wrapping::TlsAuth => ServerWrapping::TlsAuth {
            key: static_key(&path, may_make)?.map_err(invalid)?,
            direction: KeyDirection::Zero,
            // What clients use that are told nothing else.
            digest: AuthDigest::Sha1,
        },
        Wrapping::TlsCrypt => ServerWrapping::TlsCrypt(static_key(&path, may_make)?.map_err(invalid)?),
        Wrapping::TlsCryptV2 => {
            let text = read_or_make(&path, may_make, || V2ServerKey::from_bytes(random()).to_pem())?;
            ServerWrapping::TlsCryptV2(V2ServerKey::from_pem(&text).map_err(invalid)?)
        }
    })
}

/// Whether a client came under a key that was made for its device. Only `tls-crypt-v2` knows devices.
pub(super) fn is_key_of(wrapping: &ServerWrapping, device: DeviceId, metadata: Option<&[u8]>) -> bool {
    match wrapping {
        ServerWrapping::None | ServerWrapping::TlsAuth { .. } | ServerWrapping::TlsCrypt(_) => true,
        ServerWrapping::TlsCryptV2(_) => {
            metadata.map(KeyMetadata::parse) == Some(KeyMetadata::Issuer(device.as_uuid().as_bytes()))
        }
    }
}

fn static_key(path: &Path, may_make: bool) -> Result<Result<StaticKey, KeyFileError>, WrappingError> {
    let text = read_or_make(path, may_make, || StaticKey::from_bytes(random()).to_pem())?;
    Ok(StaticKey::from_pem(&text))
}

fn read_or_make(
    path: &Path,
    may_make: bool,
    make: impl FnOnce() -> String,
) -> Result<Zeroizing<String>, WrappingError> {
    let error = |verb| move |source| WrappingError::File { verb, path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound && may_make => {
            let text = Zeroizing::new(make());
            file::create(path, text.as_bytes(), file::PRIVATE).map_err(error("write"))?;
            tracing::info!(path = %path.display(), "made the tunnels' key");
            Ok(text)
        }
        read => read.map(Zeroizing::new).map_err(error("read")),
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source has no way to fail once it is seeded");
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rstest::rstest;
    use uuid::Uuid;

    use super::*;

    fn config(dir: &tempfile::TempDir, wrapping: Wrapping) -> Config {
        fs::create_dir_all(dir.path().join("pki")).unwrap();
        let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        config.tunnel.wrapping = wrapping;
        config
    }

    fn key_of(wrapping: &ServerWrapping) -> String {
        match wrapping {
            ServerWrapping::None => String::new(),
            ServerWrapping::TlsAuth { key, .. } | ServerWrapping::TlsCrypt(key) => key.to_pem(),
            ServerWrapping::TlsCryptV2(key) => key.to_pem(),
        }
    }

    #[rstest]
    #[case(Wrapping::TlsAuth)]
    #[case(Wrapping::TlsCrypt)]
    #[case(Wrapping::TlsCryptV2)]
    fn a_key_is_made_once_and_is_for_its_owner_only(#[case] wrapping: Wrapping) {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir, wrapping);
        let first = key_of(&load(&config).unwrap());
        assert_eq!(first, key_of(&load(&config).unwrap()), "made anew");
        let path = dir.path().join(format!("pki/tunnel.{}.key", wrapping.name()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(path).unwrap(), first);
    }

    #[test]
    fn without_wrapping_no_key_is_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(load(&config(&dir, Wrapping::None)), Ok(ServerWrapping::None)));
        assert_eq!(fs::read_dir(dir.path().join("pki")).unwrap().count(), 0);
    }

    #[test]
    fn a_key_of_tls_crypt_v2_is_good_for_its_device_only() {
        let wrapping = ServerWrapping::TlsCryptV2(V2ServerKey::from_bytes([7; 128]));
        let device = DeviceId::from_uuid(Uuid::from_u128(7));
        let metadata = [[0].as_slice(), device.as_uuid().as_bytes()].concat();
        assert!(is_key_of(&wrapping, device, Some(&metadata)));
        for wrong in [None, Some([].as_slice()), Some(&metadata[..16]), Some(&[1; 17])] {
            assert!(!is_key_of(&wrapping, device, wrong), "{wrong:?}");
        }
        assert!(!is_key_of(&wrapping, DeviceId::from_uuid(Uuid::nil()), Some(&metadata)));
        assert!(is_key_of(&ServerWrapping::None, device, None));
    }

    #[test]
    fn a_key_with_a_path_of_its_own_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir, Wrapping::TlsCrypt);
        let path = dir.path().join("mine.key");
        config.tunnel.wrapping_key = Some(path.clone());
        assert!(matches!(load(&config), Err(WrappingError::File { verb: "read", .. })));
        fs::write(&path, "no key").unwrap();
        assert!(matches!(load(&config), Err(WrappingError::Key { .. })));
    }
}
