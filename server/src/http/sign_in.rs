//! One attempt to sign in: what goes wrong is counted, by the address and by the person, and locks them out when it is too much.

use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::Context;
use super::auth::too_many_failures;
use super::problem::{Kind, Problem};
use crate::bus::Hint;
use crate::model::audit::{Actor, PLATFORM, Subject};
use crate::model::token::{Kind as TokenKind, Token};
use crate::secret::{self, TokenHash};
use crate::sign_in::admit::{Admission, Refusal, admit};
use crate::sign_in::{Identity, SignIn, VerifyError};
use crate::store::audit::audit_append;
use crate::store::sign_in::{sign_in_fail, sign_in_forgive, sign_in_locked_for};
use crate::store::{StoreError, Visibility, single};

/// Somebody at an address who is not locked out.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    context: &'a Context,
    address: IpAddr,
}

impl<'a> Attempt<'a> {
    pub(crate) async fn begin(context: &'a Context, address: IpAddr) -> Result<Self, Problem> {
        context.limits.failures.look(address, Instant::now()).map_err(too_many_failures)?;
        context.refuse_locked_out(&[address.to_string()]).await?;
        Ok(Self { context, address })
    }

    /// What somebody showed does not hold.
    pub(crate) async fn failed(&self, detail: &'static str) -> Result<Problem, StoreError> {
        self.count(None).await?;
        self.context.metrics.sign_ins.with_label_values(&["failed"]).inc();
        Ok(Problem::new(Kind::SignInFailed, detail))
    }

    /// Lets in whom the provider has identified, if it may come in.
    pub(crate) async fn finish(
        &self,
        sign_in: &SignIn,
        id_token: &str,
        identity: Result<Identity, VerifyError>,
        kind: TokenKind,
    ) -> Result<(Token, secret::Token), Problem> {
        let identity = match identity {
            Ok(identity) => identity,
            Err(VerifyError::Provider(error)) => {
                self.context.metrics.sign_ins.with_label_values(&["provider_unavailable"]).inc();
                return Err(provider_unavailable(error));
            }
            Err(VerifyError::Invalid(why)) => {
                tracing::info!(?why, "an ID token does not hold");
                return Err(self.failed("The ID token is not one that this server takes: sign in again.").await?);
            }
        };
        let key = key(&identity);
        self.context.refuse_locked_out(std::slice::from_ref(&key)).await?;
        let hash = TokenHash::of_text(id_token);
        let Admission { outcome, changed, called_back, ended } =
            admit(&self.context.store, sign_in, &identity, hash, kind).await?;
        self.context.tell_called_back(&called_back);
        self.context.tell_ended(&ended);
        if let Some(person) = changed {
            self.context.bus.send(Hint::PersonChanged(person));
        }
        match outcome {
            Ok(admitted) => {
                single!(self.context.store, |connection| sign_in_forgive(connection, &key))?;
                self.context.metrics.sign_ins.with_label_values(&["succeeded"]).inc();
                Ok(admitted)
            }
            Err(refusal) => {
                self.count(Some(key)).await?;
                self.context.metrics.sign_ins.with_label_values(&["refused"]).inc();
                Err(refused(refusal))
            }
        }
    }

    /// Counts one that went wrong. The moment at which it locks somebody out is in the audit log, once.
    pub(crate) async fn count(&self, person: Option<String>) -> Result<(), StoreError> {
        let _ = self.context.limits.failures.take(self.address, Instant::now());
        let (after, lock_for) = (self.context.lock_after_failures, self.context.lock_for);
        let mut transaction = self.context.store.begin(Visibility::All).await?;
        for (what, key) in [("address", Some(self.address.to_string())), ("person", person)] {
            let Some(key) = key else { continue };
            if sign_in_fail(&mut transaction, &key, after, lock_for).await? {
                let actor = Actor::Server { name: "cloudlinkd".to_owned() };
                let details = json!({"by": what, "key": key, "seconds": lock_for.as_secs()});
                let subject = Subject::new("sign_in", Uuid::nil());
                audit_append(&mut transaction, PLATFORM, &actor, "sign_in.locked_out", subject, details).await?;
            }
        }
        self.context.store.commit(transaction).await
    }
}

impl Context {
    pub(crate) async fn refuse_locked_out(&self, keys: &[String]) -> Result<(), Problem> {
        match single!(self.store, |connection| sign_in_locked_for(connection, keys))? {
            None => Ok(()),
            Some(wait) => {
                self.metrics.sign_ins.with_label_values(&["locked_out"]).inc();
                Err(locked_out(wait))
            }
        }
    }
}

/// What a person's failures are counted by. The provider's word for it may be long, and is nobody's business.
fn key(identity: &Identity) -> String {
    let text = format!("{}\0{}", identity.issuer, identity.subject);
    format!("person:{}", HEXLOWER.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref()))
}

pub(crate) fn locked_out(wait: Duration) -> Problem {
    let detail = "Too many sign-ins from your address, or by you, have failed. Wait as Retry-After says.";
    Problem::new(Kind::LockedOut, detail).retry_after(wait)
}

pub(crate) fn sign_in_off() -> Problem {
    Problem::new(Kind::SignInOff, "This server has no OpenID provider. Use an API token; docs/SIGN-IN.md says how.")
}

pub(crate) fn provider_unavailable(error: impl std::error::Error + Send + Sync + 'static) -> Problem {
    tracing::warn!(error = &error as &dyn std::error::Error, "the OpenID provider cannot be used");
    let detail = "The OpenID provider does not answer as it should. API tokens work as before; try again later.";
    Problem::new(Kind::ProviderUnavailable, detail).retry_after(Duration::from_secs(5))
}

fn refused(refusal: Refusal) -> Problem {
    let detail = match refusal {
        Refusal::NoRole => {
            "You are in no group that may come in. Ask whoever runs the OpenID provider to add you to one."
        }
        Refusal::SeveralRoles => {
            "Your groups stand for several roles, or several tenants: nobody may be more than one. Leave all groups but one."
        }
        Refusal::ShutOut => "An administrator has shut you out. Ask for being let in again.",
        Refusal::Replayed => "This ID token was traded before, and each is good for one session. Sign in again.",
    };
    Problem::new(Kind::SignInRefused, detail).reason(refusal.name())
}
