//! Whom to call as whom: from options, the environment and the profile that `cloudlink login` stored.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Far above any token.
const TOKEN_BYTES_MAX: u64 = 4096;
/// Far above any bundle of authorities.
const CA_BYTES_MAX: u64 = 1024 * 1024;
const PROFILE_NAME_BYTES_MAX: usize = 64;

/// A secret: what authenticates the caller.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    /// What is in a file or a variable, without the line end.
    pub(crate) fn new(text: &str) -> Result<Self, Failure> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::NotSignedIn("what was given as token is none: expected clk_… on one line".to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    #[must_use]
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether it is the first administrator's, which is traded for one that calls the API, and works once.
    #[must_use]
    pub(crate) fn is_bootstrap(&self) -> bool {
        self.0.starts_with("clb_")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Whom to call as whom.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) api: Url,
    /// PEM; `None`: the authorities that the system trusts.
    pub(crate) ca_pem: Option<String>,
    pub(crate) token: Secret,
}

impl Connection {
    /// The only authorities to trust, if not the system's.
    pub(crate) fn ca_certificates(&self) -> Result<Option<Vec<reqwest::Certificate>>, Failure> {
        ca_certificates(self.ca_pem.as_deref())
    }
}

/// The certificates of a PEM text, if there is one.
pub(crate) fn ca_certificates(pem: Option<&str>) -> Result<Option<Vec<reqwest::Certificate>>, Failure> {
    let Some(pem) = pem else { return Ok(None) };
    let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
        .map_err(|_| anyhow!("the CA file holds no certificates in PEM form"))?;
    if certificates.is_empty() {
        return Err(anyhow!("the CA file holds no certificates in PEM form").into());
    }
    Ok(Some(certificates))
}

/// What was said on the command line or in the environment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    pub(crate) api: Option<String>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) profile: Option<String>,
}

/// The environment, read through a function so that tests need not change the process's.
pub(crate) struct Environment<'a>(&'a dyn Fn(&str) -> Option<OsString>);

impl fmt::Debug for Environment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

impl<'a> Environment<'a> {
    #[must_use]
    pub(crate) fn new(read: &'a dyn Fn(&str) -> Option<OsString>) -> Self {
        Self(read)
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        (self.0)(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    fn text(&self, name: &str) -> Result<Option<String>, Failure> {
        match (self.0)(name).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => {
                value.into_string().map(Some).map_err(|_| Failure::Usage(format!("{name} is not valid UTF-8")))
            }
        }
    }

    /// A token from the environment, if there is one.
    pub(crate) fn token(&self) -> Result<Option<Secret>, Failure> {
        if let Some(text) = self.text("CLOUDLINK_TOKEN")? {
            return Secret::new(&text).map(Some);
        }
        self.path("CLOUDLINK_TOKEN_FILE").map(|path| token_from_file(&path)).transpose()
    }
}

/// Where and under which name profiles are kept.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    pub(crate) name: String,
}

/// What `cloudlink login` stores: one file a profile, for its owner's eyes only.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    pub(crate) api: String,
    pub(crate) token: Secret,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_pem: Option<String>,
}

impl Store {
    pub(crate) fn new(wish: &Wish, environment: &Environment<'_>) -> Result<Self, Failure> {
        let name = wish.profile.clone().unwrap_or_else(|| "default".to_owned());
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty()
            || name.len() > PROFILE_NAME_BYTES_MAX
            || name.starts_with('.')
            || !name.chars().all(is_plain)
        {
            return Err(Failure::Usage(format!(
                "`{name}` cannot be a profile's name\nAllowed: letters, digits, `-`, `_` and `.`, at most {PROFILE_NAME_BYTES_MAX}."
            )));
        }
        let directory = environment
            .path("CLOUDLINK_CONFIG_DIR")
            .or_else(|| {
                environment.path("XDG_CONFIG_HOME").filter(|path| path.is_absolute()).map(|path| path.join("cloudlink"))
            })
            .or_else(|| environment.path("HOME").map(|path| path.join(".config/cloudlink")))
            .ok_or_else(|| {
                Failure::Usage("there is no place for profiles\nSet CLOUDLINK_CONFIG_DIR or HOME.".to_owned())
            })?;
        Ok(Self { directory: directory.join("profiles"), name })
    }

    #[must_use]
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.toml", self.name))
    }

    /// The stored profile; `None` if there is none.
    pub(crate) fn load(&self) -> Result<Option<Profile>, Failure> {
        let path = self.path();
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&path, error)),
        };
        let mode = file.metadata().map_err(|error| unreadable(&path, error))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(Failure::Usage(format!(
                "{0} holds a token and is open to others (mode {1:03o})\nRun: chmod 600 {0}",
                path.display(),
                mode & 0o777
            )));
        }
        let text = read_bounded(&mut file, CA_BYTES_MAX + TOKEN_BYTES_MAX).map_err(|error| unreadable(&path, error))?;
        let profile = toml::from_str(&text)
            // The error's own words would quote the line, which may be the one with the token.
            .map_err(|error| anyhow!("{}: {}", path.display(), error.message()))
            .context("the profile cannot be read; log in again to replace it")?;
        Ok(Some(profile))
    }

    pub(crate) fn save(&self, profile: &Profile) -> Result<(), Failure> {
        let path = self.path();
        let write = || -> anyhow::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
            let text = toml::to_string(profile)?;
            let temporary = self.directory.join(format!(".{}.{}.tmp", self.name, std::process::id()));
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
            let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
            if let Err(error) = written.and_then(|()| fs::rename(&temporary, &path)) {
                let _ = fs::remove_file(&temporary);
                return Err(error.into());
            }
            Ok(())
        };
        write().with_context(|| format!("{} cannot be written", path.display())).map_err(Failure::from)
    }

    /// Whether there was one.
    pub(crate) fn remove(&self) -> Result<bool, Failure> {
        let path = self.path();
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => {
                Err(anyhow::Error::new(error).context(format!("{} cannot be removed", path.display())).into())
            }
        }
    }
}

/// Options go before the environment, and that before the profile. A profile's token is only ever sent to its own API.
pub(crate) fn connection(wish: &Wish, environment: &Environment<'_>) -> Result<Connection, Failure> {
    let store = Store::new(wish, environment)?;
    let profile = store.load()?;
    if profile.is_none() && wish.profile.is_some() {
        return Err(Failure::NotSignedIn(format!(
            "there is no profile `{0}`\nSign in: cloudlink login --profile {0} --api https://HOST:8443",
            store.name
        )));
    }
    let not_signed_in =
        || Failure::NotSignedIn("not signed in\nSign in: cloudlink login --api https://HOST:8443".to_owned());
    let stored_api = profile.as_ref().map(|profile| api_url(&profile.api)).transpose()?;
    let api = match &wish.api {
        Some(text) => api_url(text)?,
        None => stored_api.clone().ok_or_else(not_signed_in)?,
    };
    let same_api = stored_api.as_ref() == Some(&api);
    let token = match (environment.token()?, &profile) {
        (Some(token), _) => token,
        (None, Some(profile)) if same_api => profile.token.clone(),
        (None, Some(_)) => {
            return Err(Failure::NotSignedIn(format!(
                "the profile `{}` is for another API than {api}\nIts token is not sent there. Sign in: cloudlink login --api {api}",
                store.name
            )));
        }
        (None, None) => return Err(not_signed_in()),
    };
    let ca_pem = match &wish.ca {
        Some(path) => Some(ca_from_file(path)?),
        None => profile.filter(|_| same_api).and_then(|profile| profile.ca_pem),
    };
    Ok(Connection { api, ca_pem, token })
}

/// `https://HOST[:PORT][/PREFIX]`.
pub(crate) fn api_url(text: &str) -> Result<Url, Failure> {
    let wrong =
        |why: &str| Failure::Usage(format!("`{text}` is no address of an API: {why}\nExpected: https://HOST:8443"));
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    if url.scheme() != "https" {
        return Err(wrong("it must begin with https://"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("it has more than a host, a port and a path"));
    }
    Ok(url)
}

/// The first line of a file, or of standard input for `-`.
pub(crate) fn token_from_file(path: &Path) -> Result<Secret, Failure> {
    let read = if path == Path::new("-") {
        read_bounded(&mut io::stdin().lock(), TOKEN_BYTES_MAX)
    } else {
        File::open(path).and_then(|mut file| read_bounded(&mut file, TOKEN_BYTES_MAX))
    };
    Secret::new(&read.map_err(|error| unreadable(path, error))?)
}

pub(crate) fn ca_from_file(path: &Path) -> Result<String, Failure> {
    File::open(path).and_then(|mut file| read_bounded(&mut file, CA_BYTES_MAX)).map_err(|error| unreadable(path, error))
}

fn read_bounded(from: &mut impl Read, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    from.take(bytes_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {bytes_max} bytes")));
    }
    Ok(text)
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    anyhow::Error::new(error).context(format!("{} cannot be read", path.display())).into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    struct Home {
        directory: tempfile::TempDir,
        variables: HashMap<&'static str, String>,
    }

    impl Home {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap(), variables: HashMap::new() }
        }

        fn with(mut self, name: &'static str, value: &str) -> Self {
            self.variables.insert(name, value.to_owned());
            self
        }

        fn read(&self, name: &str) -> Option<OsString> {
            match name {
                "CLOUDLINK_CONFIG_DIR" => Some(self.directory.path().into()),
                name => self.variables.get(name).map(OsString::from),
            }
        }

        fn connection(&self, wish: &Wish) -> Result<Connection, Failure> {
            connection(wish, &Environment::new(&|name| self.read(name)))
        }

        fn store(&self) -> Store {
            Store::new(&Wish::default(), &Environment::new(&|name| self.read(name))).unwrap()
        }

        fn signed_in(self) -> Self {
            let profile = Profile {
                api: "https://api.example:8443".to_owned(),
                token: Secret::new("clk_stored\n").unwrap(),
                ca_pem: Some("stored CA".to_owned()),
            };
            self.store().save(&profile).unwrap();
            self
        }
    }

    fn api(url: &str) -> Wish {
        Wish { api: Some(url.to_owned()), ..Wish::default() }
    }

    #[test]
    fn a_profile_is_for_its_owner_only_and_reads_back() {
        let home = Home::new().signed_in();
        let path = home.store().path();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
        let connection = home.connection(&Wish::default()).unwrap();
        assert_eq!(connection.api.as_str(), "https://api.example:8443/");
        assert_eq!(connection.token.reveal(), "clk_stored");
        assert_eq!(connection.ca_pem.as_deref(), Some("stored CA"));
        assert!(home.store().remove().unwrap());
        assert!(!home.store().remove().unwrap());
    }

    #[test]
    fn a_profile_that_others_can_read_is_refused() {
        let home = Home::new().signed_in();
        fs::set_permissions(home.store().path(), fs::Permissions::from_mode(0o644)).unwrap();
        let failure = home.connection(&Wish::default()).unwrap_err();
        assert!(failure.report(false).unwrap().contains("chmod 600"));
    }

    #[test]
    fn a_broken_profile_is_reported_without_its_token() {
        let home = Home::new().signed_in();
        fs::write(home.store().path(), "api = 1\ntoken = \"clk_stored\" x").unwrap();
        let report = home.connection(&Wish::default()).unwrap_err().report(false).unwrap();
        assert!(!report.contains("clk_stored"), "{report}");
    }

    #[test]
    fn a_stored_token_is_never_sent_to_another_api() {
        let home = Home::new().signed_in();
        let failure = home.connection(&api("https://other.example:8443")).unwrap_err();
        assert_eq!(failure.exit_code(), 3);
        let same = home.connection(&api("https://api.example:8443/")).unwrap();
        assert_eq!(same.token.reveal(), "clk_stored");
    }

    #[test]
    fn the_environment_goes_before_the_profile() {
        let home = Home::new().signed_in().with("CLOUDLINK_TOKEN", "clk_environment");
        assert_eq!(home.connection(&Wish::default()).unwrap().token.reveal(), "clk_environment");
        let elsewhere = home.connection(&api("https://other.example:8443")).unwrap();
        assert_eq!(elsewhere.token.reveal(), "clk_environment");
        assert_eq!(elsewhere.ca_pem, None, "the CA of the profile vouches for its own API only");
    }

    #[test]
    fn a_token_file_of_the_environment_is_read() {
        let home = Home::new();
        let path = home.directory.path().join("token");
        fs::write(&path, "clk_file\n").unwrap();
        let home = home.with("CLOUDLINK_TOKEN_FILE", path.to_str().unwrap());
        assert_eq!(home.connection(&api("https://api.example")).unwrap().token.reveal(), "clk_file");
    }

    #[test]
    fn without_a_token_nothing_is_called() {
        assert_eq!(Home::new().connection(&api("https://api.example")).unwrap_err().exit_code(), 3);
        assert_eq!(Home::new().connection(&Wish::default()).unwrap_err().exit_code(), 3);
        let named = Wish { profile: Some("other".to_owned()), ..Wish::default() };
        assert_eq!(Home::new().signed_in().connection(&named).unwrap_err().exit_code(), 3);
    }

    #[test]
    fn names_of_profiles_stay_in_their_directory() {
        for name in ["", ".", "../x", "a/b", "a\0b", ".hidden", &"x".repeat(65)] {
            let wish = Wish { profile: Some(name.to_owned()), ..Wish::default() };
            assert_eq!(Home::new().connection(&wish).unwrap_err().exit_code(), 2, "{name:?}");
        }
    }

    #[test]
    fn only_https_addresses_without_extras_are_accepted() {
        for text in
            ["http://a", "a:8443", "", "https://", "https://u:p@a", "https://a/?x", "https://a/#x", "file:///etc"]
        {
            assert_eq!(api_url(text).unwrap_err().exit_code(), 2, "{text:?}");
        }
        assert!(api_url("https://[::1]:8443/prefix").is_ok());
    }

    #[test]
    fn secrets_do_not_show() {
        assert!(!format!("{:?}", Secret::new("clk_x").unwrap()).contains("clk_x"));
        for text in ["", " ", "a b", "a\nb", "ü"] {
            assert_eq!(Secret::new(text).unwrap_err().exit_code(), 3, "{text:?}");
        }
    }
}
