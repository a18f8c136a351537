use std::path::PathBuf;

use super::database::read_secret;
use super::section::{Given, section};
use super::value::{HostName, MailFrom, Seconds, Secret};

const PORT: u32 = 587;
const TIMEOUT: Seconds = Seconds(10);
const GIVE_UP: Seconds = Seconds(86_400);
const DISABLE_AFTER: Seconds = Seconds(432_000);
const WEBHOOKS_MAX: u32 = 16;
const KEEP_DAYS: u32 = 30;

section! {
    /// How people outside are told of requests, decisions and sessions: webhooks, and mail.
    pub struct Notice in "notice" {
        /// The mail server. Without it, no mail is sent.
        mail_host: Option<HostName> = None;
        mail_port: u32 = PORT, in 1..=65_535;
        /// `starttls`, `tls`, or `none` for a server on this very host.
        mail_tls: MailTls = MailTls::Starttls;
        /// The certificates, PEM, that the mail server's certificate must go back to. By default those that the system trusts.
        mail_ca_file: Option<PathBuf> = None;
        mail_user: Option<String> = None;
        mail_password: Option<Secret> = None;
        /// A file that holds `mail_password`, instead of `mail_password`.
        mail_password_file: Option<PathBuf> = None;
        /// Whom mail is from.
        mail_from: MailFrom = "cloudlink@localhost".parse().expect("a mail address");
        /// Whether webhooks may be sent to addresses of private networks and of this host, and over http.
        webhook_private: bool = false;
        /// The certificates, PEM, that receivers' certificates must go back to. By default those that the system trusts.
        webhook_ca_file: Option<PathBuf> = None;
        /// The most webhooks of one tenant.
        webhooks_max: u32 = WEBHOOKS_MAX, in 1..=1_000;
        /// For one attempt to deliver something.
        attempt_timeout_seconds: Seconds = TIMEOUT, in 1..=120;
        /// What could not be delivered for this long is given up.
        give_up_seconds: Seconds = GIVE_UP, in 60..=2_592_000;
        /// A webhook to which nothing could be delivered for this long is disabled.
        disable_after_seconds: Seconds = DISABLE_AFTER, in 60..=31_536_000;
        /// How long it is kept what was delivered, or given up, and when.
        keep_days: u32 = KEEP_DAYS, in 1..=3_650;
    }
}

impl Notice {
    /// Replaces each `…_file` by what it holds.
    pub(in crate::config) fn read_secrets(&mut self, given: &mut Given<'_>) {
        let keys = ("mail_password", "mail_password_file");
        read_secret(&mut self.mail_password, self.mail_password_file.as_deref(), "notice", keys, given);
    }
}

/// How the mail server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailTls {
    Starttls,
    Tls,
    None,
}

impl MailTls {
    pub(in crate::config) const ALL: [Self; 3] = [Self::Starttls, Self::Tls, Self::None];

    /// The word in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starttls => "starttls",
            Self::Tls => "tls",
            Self::None => "none",
        }
    }
}
