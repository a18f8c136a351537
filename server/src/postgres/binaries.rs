//! Where `postgres` and `initdb` are.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::privilege;

/// The oldest major version that the schema is made for.
pub const VERSION_MIN: u32 = 15;
/// Where Debian keeps each version: `<version>/bin`.
const DEBIAN_DIR: &str = "/usr/lib/postgresql";

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    #[error(
        "no Postgres {VERSION_MIN} or newer was found on PATH or in {DEBIAN_DIR}. Install it (apt-get install postgresql), \
         name its directory (postgres.binaries), or use a server of your own (database.url)"
    )]
    Missing,
    #[error("{} holds no `postgres` and `initdb` of version {VERSION_MIN} or newer", path.display())]
    MissingIn { path: PathBuf },
    #[error(
        "the data is of Postgres {version}, which was not found: install it (apt-get install postgresql-{version}), or bring \
         the data to the new version with pg_upgrade"
    )]
    MissingVersion { version: u32 },
}

/// The binaries of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) dir: PathBuf,
    pub(super) version: u32,
}

impl Binaries {
    /// Those of `version`, if there is data of that version already, else the newest.
    pub(super) async fn find(configured: Option<&Path>, version: Option<u32>) -> Result<Self, BinariesError> {
        let candidates = match configured {
            Some(dir) => vec![dir.to_owned()],
            None => candidate_dirs(),
        };
        let mut found = Vec::new();
        for dir in candidates {
            if let Some(version) = version_in(&dir).await.filter(|version| *version >= VERSION_MIN) {
                found.push(Self { dir, version });
            }
        }
        if found.is_empty() {
            return Err(
                configured.map_or(BinariesError::Missing, |dir| BinariesError::MissingIn { path: dir.to_owned() })
            );
        }
        match version {
            Some(version) => found
                .into_iter()
                .find(|binaries| binaries.version == version)
                .ok_or(BinariesError::MissingVersion { version }),
            None => found.into_iter().max_by_key(|binaries| binaries.version).ok_or(BinariesError::Missing),
        }
    }
}

fn candidate_dirs() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).collect::<Vec<_>>();
    let debian = std::fs::read_dir(DEBIAN_DIR).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    on_path.into_iter().chain(debian).filter(|dir| dir.is_absolute()).collect()
}

/// The version of the binaries in a directory, if both are there.
async fn version_in(dir: &Path) -> Option<u32> {
    if !dir.join("initdb").is_file() {
        return None;
    }
    let mut command = Command::new(dir.join("postgres"));
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let told = privilege::without(&mut command).ok()?.wait_with_output().await.ok()?;
    parse_version(&String::from_utf8_lossy(&told.stdout))
}

/// From `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` and `postgres (PostgreSQL) 18beta1`.
fn parse_version(told: &str) -> Option<u32> {
    let (_, version) = told.split_once("(PostgreSQL) ")?;
    let digits = version.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_are_told() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_version("postgres: command not found"), None);
    }

    #[tokio::test]
    async fn the_error_says_what_to_install() {
        let empty = tempfile::tempdir().unwrap();
        let error = Binaries::find(Some(empty.path()), None).await.unwrap_err();
        assert!(matches!(error, BinariesError::MissingIn { .. }));
        let error = Binaries::find(None, Some(9)).await.unwrap_err();
        assert!(error.to_string().contains("apt-get install postgresql-9"), "{error}");
    }
}
