//! How people outside are told of what happened: webhooks and mail. What is to be told is in the outbox (`store::notice`), written in
//! the transaction of what happened; `tasks::notice` takes it from there, and here is how it is sent.
//!
//! At least once: whoever receives something knows it again by its id.

pub mod address;
mod again;
mod letter;
pub mod mail;
pub mod webhook;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;

use self::address::Guard;
use self::letter::Letter;
use self::mail::{Mailer, Sent};
use self::webhook::{Answer, Secret, Sender};
use crate::clock;
use crate::config::Notice;
use crate::storage_key::StorageKey;
use crate::store::notice::{DueNotice, Names, Receiver, Settling};

/// Sends what is to be told.
#[derive(Debug)]
pub struct Notices {
    key: Arc<StorageKey>,
    guard: Arc<Guard>,
    /// None: there are no certificates to trust.
    sender: Option<Sender>,
    mailer: Option<Mailer>,
    webhooks_max: u32,
    keep_days: u32,
    within: Duration,
    give_up: Duration,
    disable_after: Duration,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) settling: Settling,
    /// In a word or a status code.
    pub(crate) result: String,
    /// The receiver wants nothing more at all.
    pub(crate) is_gone: bool,
}

impl Notices {
    /// `tunnels`: the addresses of devices; `ports`: what this server listens on.
    pub fn new(config: &Notice, key: Arc<StorageKey>, tunnels: Vec<IpNet>, ports: Vec<u16>) -> anyhow::Result<Self> {
        let guard = Arc::new(Guard::new(config.webhook_private, tunnels, ports));
        let within = config.attempt_timeout_seconds.duration();
        let ca_file = config.webhook_ca_file.as_deref();
        let sender = match Sender::new(Arc::clone(&guard), ca_file, within) {
            Ok(sender) => Some(sender),
            // Whoever has no webhooks needs no certificates of the system either.
            Err(error) if ca_file.is_none() => {
                tracing::warn!(error = &error as &dyn std::error::Error, "webhooks cannot be sent");
                None
            }
            Err(error) => return Err(error).context("webhooks cannot be sent"),
        };
        Ok(Self {
            key,
            guard,
            sender,
            mailer: Mailer::new(config).context("mail cannot be sent")?,
            webhooks_max: config.webhooks_max,
            keep_days: config.keep_days,
            within,
            give_up: config.give_up_seconds.duration(),
            disable_after: config.disable_after_seconds.duration(),
        })
    }

    /// What seals the secrets of webhooks.
    #[must_use]
    pub fn key(&self) -> &StorageKey {
        &self.key
    }

    #[must_use]
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// The most webhooks of one tenant.
    #[must_use]
    pub fn webhooks_max(&self) -> u32 {
        self.webhooks_max
    }

    /// How long what was sent is kept.
    #[must_use]
    pub fn keep_days(&self) -> u32 {
        self.keep_days
    }

    /// The longest that one attempt takes.
    #[must_use]
    pub fn within(&self) -> Duration {
        self.within
    }

    #[must_use]
    pub fn give_up(&self) -> Duration {
        self.give_up
    }

    /// How long nothing must have been delivered to a webhook for it to be disabled.
    #[must_use]
    pub fn disable_after(&self) -> Duration {
        self.disable_after
    }

    #[must_use]
    pub fn has_mail(&self) -> bool {
        self.mailer.is_some()
    }

    /// Tries once. `names`: of what the notice is about, for mail.
    pub(crate) async fn attempt(&self, notice: &DueNotice, names: &Names) -> Attempt {
        match &notice.receiver {
            Receiver::Webhook { id, url, secret_sealed, previous_sealed } => {
                let sealed = [Some(secret_sealed), previous_sealed.as_ref()];
                let secrets: Result<Vec<_>, _> =
                    sealed.into_iter().flatten().map(|sealed| Secret::open(&self.key, *id, sealed)).collect();
                let (secrets, sender) = match (secrets, &self.sender) {
                    (Ok(secrets), Some(sender)) => (secrets, sender),
                    (Err(error), _) => {
                        tracing::error!(%error, webhook = %id, "the secret of a webhook cannot be read");
                        return again(notice, "the server cannot read the secret");
                    }
                    (Ok(_), None) => return again(notice, "the server trusts no certificates"),
                };
                let body = notice.body.to_string().into_bytes();
                let timestamp = clock::now().unix_timestamp();
                let answer = sender.send(url, &secrets, &notice.id.to_string(), timestamp, body).await;
                of_answer(notice, answer)
            }
            Receiver::Person { active: false, .. } => never("the person is not active"),
            Receiver::Person { email: None, .. } => never("the person has no mail address"),
            Receiver::Person { name, email: Some(email), .. } => {
                let Some(mailer) = &self.mailer else { return again(notice, "this node has no mail server") };
                let (subject, text) = letter::write(&notice.event, &notice.body, names);
                let (name, address) = (name.clone(), email.clone());
                let letter = Letter { id: notice.id, at: notice.created_at, name, address, subject, text };
                match mailer.send(&letter).await {
                    Sent::Taken => delivered("250"),
                    Sent::Refused(words) => again(notice, words),
                    Sent::NoMailbox(words) => never(words),
                }
            }
        }
    }

    /// What came of an attempt that ended in a panic, which is in the log.
    pub(crate) fn panicked(notice: &DueNotice) -> Attempt {
        again(notice, "a fault of the server")
    }

    /// What [`Self::attempt`] has to know the names of.
    pub(crate) fn named(notice: &DueNotice) -> Vec<uuid::Uuid> {
        match &notice.receiver {
            Receiver::Webhook { .. } => Vec::new(),
            Receiver::Person { .. } => letter::named(&notice.body),
        }
    }
}

fn of_answer(notice: &DueNotice, answer: Answer) -> Attempt {
    match answer {
        Answer::Taken(status) => delivered(status.as_str()),
        Answer::Gone => Attempt { is_gone: true, ..never("410") },
        Answer::Refused { status, retry_after } => {
            let delay = again::at_least(again::delay(notice.attempts, again::chance()), retry_after);
            Attempt { settling: Settling::Again(delay), result: status.as_str().to_owned(), is_gone: false }
        }
        Answer::Failed(words) => again(notice, words),
    }
}

fn delivered(result: &str) -> Attempt {
    Attempt { settling: Settling::Delivered, result: result.to_owned(), is_gone: false }
}

fn again(notice: &DueNotice, result: impl Into<String>) -> Attempt {
    let settling = Settling::Again(again::delay(notice.attempts, again::chance()));
    Attempt { settling, result: result.into(), is_gone: false }
}

fn never(result: impl Into<String>) -> Attempt {
    Attempt { settling: Settling::Never, result: result.into(), is_gone: false }
}
