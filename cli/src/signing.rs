//! Signing grants on the tenant's own machine, with a key that no server ever sees.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context as _;
use aws_lc_rs::signature::Ed25519KeyPair;
use cloudlink_certs::{GrantStatement, KeyId, PrivateKey, PublicKey, signing_key};
use jiff::Timestamp;
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::output::{Here, Table};
use crate::resolve::Names;

/// The largest file that a key is looked for in.
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Makes a key, and the file of its private half, for its owner only.
pub(crate) fn create(path: &Path) -> Result<PublicKey, Failure> {
    let pair = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8()).context("the system gives no randomness")?;
    let key = PrivateKey::from_pkcs8_der(pair.as_ref()).map_err(anyhow::Error::new)?;
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        if error.kind() == io::ErrorKind::AlreadyExists {
            return Failure::Usage(format!("{} is there already, and is not overwritten", path.display()));
        }
        anyhow::Error::new(error).context(format!("{} cannot be written", path.display())).into()
    })?;
    let written = file.write_all(key.to_pem().as_bytes()).and_then(|()| file.sync_all());
    if let Err(error) = written {
        let _ = fs::remove_file(path);
        return Err(anyhow::Error::new(error).context(format!("{} cannot be written", path.display())).into());
    }
    Ok(key.public_key())
}

/// Reads a key that can sign grants. One that others can read as well is refused.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKey, Failure> {
    let mode = fs::metadata(path).with_context(|| format!("{} cannot be read", path.display()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(Failure::Usage(format!(
            "{0} can be read by others than its owner\nWhoever has it can let anybody in: chmod 600 {0}",
            path.display()
        )));
    }
    let key = PrivateKey::from_pem(read(path)?.as_bytes()).map_err(|error| unusable(path, &error.to_string()))?;
    if signing_key::can_sign(&key.public_key()) { Ok(key) } else { Err(unusable(path, "it is of another kind")) }
}

/// Reads the public half of a key, out of a file with either half.
pub(crate) fn public_key(path: &Path) -> Result<PublicKey, Failure> {
    let pem = read(path)?;
    let key = PublicKey::from_pem(pem.as_bytes())
        .or_else(|_| PrivateKey::from_pem(pem.as_bytes()).map(|key| key.public_key()))
        .map_err(|_| unusable(path, "it holds no PEM key"))?;
    if signing_key::can_sign(&key) { Ok(key) } else { Err(unusable(path, "it is of another kind")) }
}

fn read(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let read = || {
        let file = File::open(path)?;
        if file.metadata()?.len() > KEY_FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        io::read_to_string(file)
    };
    Ok(Zeroizing::new(read().with_context(|| format!("{} cannot be read", path.display()))?))
}

fn unusable(path: &Path, why: &str) -> Failure {
    let hint = "Grants are signed with a key of Ed25519 or P-256, PEM, not encrypted: `cloudlink key create`";
    Failure::Usage(format!("{} cannot be used: {why}\n{hint}", path.display()))
}

/// In whole seconds, as statements have them; earlier, if it is none.
pub(crate) fn statement_time(at: Timestamp) -> Result<OffsetDateTime, Failure> {
    OffsetDateTime::from_unix_timestamp(at.as_second())
        .map_err(|_| Failure::Usage("that is beyond all calendars".to_owned()))
}

pub(crate) fn timestamp(at: OffsetDateTime) -> Timestamp {
    Timestamp::from_second(at.unix_timestamp()).unwrap_or_default()
}

/// What is signed, or was, in full: ids where the server's word for a name would not do.
pub(crate) fn record(statement: &GrantStatement, key: KeyId, names: &Names, here: &Here) -> Table {
    let named = |id: &Uuid| match names.name(*id) {
        name if name == id.to_string() => name,
        name => format!("{id} ({name})"),
    };
    let mut table = Table::record();
    table.field("grant", statement.grant.to_string());
    table.field("tenant", statement.tenant.to_string());
    table.field("scopes", statement.scopes.join(", "));
    table.field("devices", statement.devices.iter().map(named).collect::<Vec<_>>().join(", "));
    let operators = statement.operators.as_ref();
    table.field(
        "operators",
        operators
            .map_or_else(|| "every operator".to_owned(), |ids| ids.iter().map(named).collect::<Vec<_>>().join(", ")),
    );
    table.field("begins", here.full(timestamp(statement.starts_at)));
    table.field("ends", here.full(timestamp(statement.ends_at)));
    table.field("reason", statement.reason.clone());
    if let Some(request) = statement.request {
        table.field("request", request.to_string());
    }
    table.field("signed", here.full(timestamp(statement.signed_at)));
    table.field("key", key.to_string());
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_owners_alone_and_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let public = create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(private_key(&path).unwrap().public_key(), public);
        assert_eq!(public_key(&path).unwrap(), public);
        assert!(matches!(create(&path), Err(Failure::Usage(_))), "it is not overwritten");
        assert_eq!(private_key(&path).unwrap().public_key(), public);
        let half = dir.path().join("key.pub.pem");
        fs::write(&half, public.to_pem()).unwrap();
        assert_eq!(public_key(&half).unwrap(), public);
        fs::set_permissions(&half, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(private_key(&half).is_err());
    }

    #[test]
    fn a_key_that_others_can_read_signs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        create(&path).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(private_key(&path), Err(Failure::Usage(_))), "{mode:o}");
        }
    }
}
