//! Names and passwords for registries, from a file in Docker's format: `{"auths": {"registry.example.com": {"auth": "…"}}}`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use bollard::auth::DockerCredentials;
use data_encoding::BASE64;
use serde::Deserialize;

use crate::disk;

const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Under which Docker keeps the login of its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

#[derive(Deserialize)]
struct Logins {
    auths: BTreeMap<String, Login>,
}

#[derive(Deserialize)]
struct Login {
    auth: String,
}

/// The login for the registry of this repository, if there is one.
pub(super) fn find(file: &Path, repository: &str) -> io::Result<Option<DockerCredentials>> {
    let content = disk::read_bounded(std::fs::File::open(file)?, FILE_BYTES_MAX)?;
    // The cause would show the text around it.
    let logins: Logins = serde_json::from_slice(&content).map_err(|_| not("a file of logins"))?;
    let registry = registry(repository);
    let found = logins.auths.iter().find(|(address, _)| host(address) == host(registry));
    let Some((_, login)) = found else { return Ok(None) };
    let decoded = BASE64.decode(login.auth.as_bytes()).map_err(|_| not("a login in base64"))?;
    let decoded = String::from_utf8(decoded).map_err(|_| not("a login in UTF-8"))?;
    let (name, password) = decoded.split_once(':').ok_or_else(|| not("a name and a password"))?;
    Ok(Some(DockerCredentials {
        username: Some(name.to_owned()),
        password: Some(password.to_owned()),
        serveraddress: Some(registry.to_owned()),
        ..DockerCredentials::default()
    }))
}

fn registry(repository: &str) -> &str {
    match repository.split_once('/') {
        Some(("docker.io", _)) => DOCKER_HUB,
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => DOCKER_HUB,
    }
}

/// Of an address that may be a URL: older tools wrote those.
fn host(address: &str) -> &str {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    address.split_once('/').map_or(address, |(host, _)| host)
}

fn not(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it is not {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_is_given_its_own_login_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logins");
        let auth = |login: &str| BASE64.encode(login.as_bytes());
        let text = format!(
            r#"{{"auths": {{"r.test:5000": {{"auth": "{}"}}, "{DOCKER_HUB}": {{"auth": "{}"}}, "https://old.test/v1/": {{"auth": "{}"}}, "bad.test": {{"auth": "?"}}}}}}"#,
            auth("a:b:c"),
            auth("hub:d"),
            auth("old:e")
        );
        std::fs::write(&path, text).unwrap();
        let found = |repository| {
            find(&path, repository).map(|login| login.map(|login| (login.username.unwrap(), login.password.unwrap())))
        };
        assert_eq!(found("r.test:5000/app").unwrap(), Some(("a".to_owned(), "b:c".to_owned())));
        assert_eq!(found("vendor/app").unwrap(), Some(("hub".to_owned(), "d".to_owned())));
        assert_eq!(found("docker.io/vendor/app").unwrap(), Some(("hub".to_owned(), "d".to_owned())));
        assert_eq!(found("old.test/app").unwrap(), Some(("old".to_owned(), "e".to_owned())));
        assert_eq!(found("r.test/app").unwrap(), None);
        assert!(found("bad.test/app").is_err());
        std::fs::write(&path, "{\"auths\": \"secret\"}").unwrap();
        assert!(!found("r.test/app").unwrap_err().to_string().contains("secret"));
    }
}
