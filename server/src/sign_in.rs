//! Signing in with an OpenID provider: what it says about somebody, and what that makes of the person here.
//!
//! `Provider` asks and verifies, `role` reads the groups, `admit` brings the person up to date and makes its token.
//! The endpoints are in `http::v1::auth`.

pub(crate) mod admit;
mod provider;
mod role;

use std::path::Path;
use std::time::Duration;

use crate::config;

pub(crate) use self::provider::{ExchangeError, Identity, Provider, VerifyError};
use self::role::Groups;

/// What everybody who signs in is held against.
#[derive(Debug)]
pub struct SignIn {
    pub(crate) provider: Provider,
    pub(crate) groups: Groups,
    /// How long a sign-in lasts.
    pub(crate) session_for: Duration,
    /// What the command line is told of the provider.
    pub(crate) told: Told,
}

/// What anybody may know.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) issuer: String,
    pub(crate) cli_client_id: String,
    pub(crate) scopes: Vec<String>,
    /// The only authorities of the provider's certificate, if not the system's. PEM.
    pub(crate) ca_pem: Option<String>,
}

/// Why there can be no signing in as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("sign_in.issuer is not an https address")]
    Issuer,
    #[error("sign_in.public_url is not an https address without a path")]
    PublicUrl,
    #[error("sign_in.ca_file cannot be read")]
    CaFile(#[source] std::io::Error),
    #[error("sign_in.ca_file holds no certificates in PEM form")]
    Ca,
    #[error("an HTTPS client cannot be made")]
    Client(#[source] reqwest::Error),
}

impl SignIn {
    /// `None` without an issuer. `base`: where browsers reach us, unless the configuration says it.
    pub fn new(config: &config::SignIn, base: &str) -> Result<Option<Self>, SetupError> {
        let Some(issuer) = &config.issuer else { return Ok(None) };
        let ca_pem = config.ca_file.as_deref().map(read_ca).transpose()?;
        let base = config.public_url.as_deref().unwrap_or(base);
        let told = Told {
            issuer: issuer.clone(),
            cli_client_id: config.cli_client_id.clone(),
            scopes: config.scopes.clone(),
            ca_pem: ca_pem.clone(),
        };
        Ok(Some(Self {
            provider: Provider::new(config, issuer, base, ca_pem.as_deref())?,
            groups: Groups::new(config),
            session_for: config.session_seconds.duration(),
            told,
        }))
    }
}

fn read_ca(path: &Path) -> Result<String, SetupError> {
    std::fs::read_to_string(path).map_err(SetupError::CaFile)
}
