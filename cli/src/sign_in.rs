//! Signing in with an OpenID provider: this program gets an ID token from it, and the server judges that. Nothing of the
//! provider's is kept.

mod device;
mod loopback;
mod provider;

use crate::failure::Failure;
use crate::model::SignInConfig;
use provider::Provider;

/// How somebody gets to the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// With a browser on this host, which comes back to this program (RFC 8252).
    Loopback {
        /// Open it, besides telling the address.
        open: bool,
    },
    /// With a browser on any host, and a code that is typed there (RFC 8628).
    Device,
}

/// An ID token of whoever is at the keyboard. `None`: the server knows no provider.
pub(crate) async fn id_token(config: &SignInConfig, way: Way) -> Result<Option<String>, Failure> {
    let (Some(issuer), Some(client_id)) = (&config.issuer, &config.cli_client_id) else { return Ok(None) };
    let provider = Provider::discover(issuer, client_id, &config.scopes, config.ca_pem.as_deref()).await?;
    match way {
        Way::Loopback { open } => loopback::id_token(&provider, open).await.map(Some),
        Way::Device => device::id_token(&provider).await.map(Some),
    }
}
