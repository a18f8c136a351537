use super::section::section;
use super::value::{Seconds, Secret};

const SESSION: Seconds = Seconds(43_200);
const LOCK_AFTER: u32 = 10;
const LOCK: Seconds = Seconds(900);

section! {
    /// Signing in with an OpenID provider. Without an issuer there are API tokens only.
    pub struct SignIn in "sign_in" {
        /// The provider's issuer, an https address; its discovery document is under it.
        issuer: Option<String> = None;
        /// Where browsers reach the people port, as in `https://cloudlink.example:8443`. The provider sends them back to
        /// `/api/v1/auth/callback` there. By default the first of `people.names`, with the port that is listened on.
        public_url: Option<String> = None;
        /// The client that browsers sign in as.
        client_id: String = "cloudlink".to_owned();
        /// Its secret, unless it is a public client.
        client_secret: Option<Secret> = None;
        /// The public client that the command line signs in as: device code, and loopback redirect with PKCE.
        cli_client_id: String = "cloudlink-cli".to_owned();
        /// The certificates, PEM, that the provider's certificate must go back to. By default those that the system trusts.
        ca_file: Option<std::path::PathBuf> = None;
        /// What to ask for, besides `openid`.
        scopes: Vec<String> = ["profile", "email", "groups"].map(str::to_owned).into();
        /// The claim with the groups that somebody is in.
        groups_claim: String = "groups".to_owned();
        /// Who is in one of these groups is an administrator.
        admin_groups: Vec<String> = Vec::new();
        /// Who is in one of these groups is an operator.
        operator_groups: Vec<String> = Vec::new();
        /// A tenant's people are in the group with this before the tenant's id or name. Empty: nobody is.
        tenant_group_prefix: String = "cloudlink-tenant-".to_owned();
        /// How long a sign-in lasts.
        session_seconds: Seconds = SESSION, in 300..=2_592_000;
        /// After so many failed sign-ins, an address or a person is locked out.
        lock_after_failures: u32 = LOCK_AFTER, in 1..=1_000;
        /// For how long.
        lock_seconds: Seconds = LOCK, in 1..=86_400;
    }
}
