//! Grants that a tenant signs itself, so that a device can tell whether it was let do something, whatever a server says.
//!
//! A grant statement is a JSON Web Signature in its compact form (RFC 7515): `header.content.signature`, each in base64url without
//! padding, on one line of at most [`GRANT_STATEMENT_BYTES_MAX`] bytes.
//!
//! * Header: exactly `alg` (`EdDSA` for an Ed25519 key, `ES256` for one of P-256), `typ` `vnd.cloudlink.grant+jwt`, and `kid`, the
//!   [`KeyId`] of the key. There is no `crit`, and no key: keys have to come from elsewhere, or they would prove nothing.
//! * Content: a JSON object with exactly the members of [`GrantStatement`], under their names of RFC 7519 where there are some:
//!   `iss`, `jti`, `iat`, `nbf`, `exp`, `scopes`, `devices`, `operators`, `reason`, `request`. Each is there once. A member that a
//!   reader does not know could narrow what is allowed, and makes the statement invalid.
//!
//! [`GrantStatement::open`] says whether one is genuine, [`GrantStatement::check`] whether it allows something at a time, and
//! [`GrantStatement::verify`] both.

use std::collections::HashSet;
use std::hash::Hash;

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::jws;
pub use crate::jws::{BYTES_MAX as GRANT_STATEMENT_BYTES_MAX, JwsError, SignError as SignJwsError};
use crate::key::{PrivateKey, PublicKey};
use crate::signing_key::KeyId;

/// The most scopes that one statement names.
pub const SCOPES_MAX: usize = 64;
/// The longest name of a scope, in bytes.
pub const SCOPE_BYTES_MAX: usize = 64;
/// The most devices, or operators, that one statement names. Its size is the closer limit.
pub const NAMED_MAX: usize = 1000;
/// The longest reason, in characters.
pub const REASON_CHARS_MAX: usize = 1024;

const TYP: &str = "vnd.cloudlink.grant+jwt";

/// What a tenant has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantStatement {
    /// `iss`: the tenant.
    pub tenant: Uuid,
    /// `jti`: the grant. A later statement with the same replaces it.
    pub grant: Uuid,
    /// `iat`: when it was signed, in whole seconds.
    pub signed_at: OffsetDateTime,
    /// `nbf`: from when on, in whole seconds.
    pub starts_at: OffsetDateTime,
    /// `exp`: until when, in whole seconds; not at that moment any more.
    pub ends_at: OffsetDateTime,
    /// What may be done.
    pub scopes: Vec<String>,
    /// On which devices: always by id, since what a label says is the server's word.
    pub devices: Vec<Uuid>,
    /// Who may do it; `None`: every operator. The server sees to that: a device cannot tell who somebody is.
    pub operators: Option<Vec<Uuid>>,
    pub reason: String,
    /// The access request that it answers.
    pub request: Option<Uuid>,
}

/// What is to be done, where and when.
#[derive(Clone, Copy, Debug)]
pub struct GrantUse<'a> {
    pub tenant: Uuid,
    pub device: Uuid,
    pub grant: Uuid,
    pub scope: &'a str,
    pub now: OffsetDateTime,
    /// How much the tenant's clock may be ahead of this one. The end of a grant knows no leeway.
    pub leeway: Duration,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(with = "id")]
    iss: Uuid,
    #[serde(with = "id")]
    jti: Uuid,
    iat: i64,
    nbf: i64,
    exp: i64,
    scopes: Vec<String>,
    #[serde(with = "ids")]
    devices: Vec<Uuid>,
    #[serde(with = "ids_or_null")]
    operators: Option<Vec<Uuid>>,
    reason: String,
    #[serde(with = "id_or_null")]
    request: Option<Uuid>,
}

/// What is wrong with what a statement says, whoever signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    #[error("`iat`, `nbf` and `exp` must be seconds since 1970, and `exp` later than the others")]
    Times,
    #[error("`scopes` must name 1 to {SCOPES_MAX} scopes, each once, in 1 to {SCOPE_BYTES_MAX} of a-z 0-9 _ . : -")]
    Scopes,
    #[error("`devices` must name 1 to {NAMED_MAX} devices, each once")]
    Devices,
    #[error("`operators` must be null, or name 1 to {NAMED_MAX} operators, each once")]
    Operators,
    #[error("`reason` must have 1 to {REASON_CHARS_MAX} characters, and no control characters")]
    Reason,
}

/// Why a grant was not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignGrantError {
    #[error("the grant cannot be signed as it is")]
    Terms(#[source] TermsError),
    #[error("the grant cannot be signed; if it is too large, make several grants with fewer devices each")]
    Jws(#[source] SignJwsError),
}

/// Why a statement does not allow something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantStatementError {
    #[error("this is not a grant statement that counts")]
    Jws(#[source] JwsError),
    #[error("the grant statement contradicts itself")]
    Terms(#[source] TermsError),
    #[error("the grant statement is another tenant's")]
    OtherTenant,
    #[error("the grant statement is for grant {named}, not for the one that is used")]
    OtherGrant { named: Uuid },
    #[error("the grant statement does not name this device; sign a grant that does")]
    OtherDevice,
    #[error("the grant statement does not allow {scope}; sign a grant that does")]
    OtherScope { scope: String },
    #[error(
        "the grant statement was signed at {}, and here it is {}: set the clock of the one that is wrong",
        shown(*signed_at), shown(*now)
    )]
    SignedLater { signed_at: OffsetDateTime, now: OffsetDateTime },
    #[error("the grant statement holds from {} on, and here it is {}", shown(*starts_at), shown(*now))]
    NotYet { starts_at: OffsetDateTime, now: OffsetDateTime },
    #[error("the grant statement ended at {}, and here it is {}; sign a new grant", shown(*ends_at), shown(*now))]
    Ended { ends_at: OffsetDateTime, now: OffsetDateTime },
}

impl GrantStatement {
    /// Signs it.
    pub fn sign(&self, key: &PrivateKey) -> Result<String, SignGrantError> {
        self.check_terms().map_err(SignGrantError::Terms)?;
        let content = Content {
            iss: self.tenant,
            jti: self.grant,
            iat: self.signed_at.unix_timestamp(),
            nbf: self.starts_at.unix_timestamp(),
            exp: self.ends_at.unix_timestamp(),
            scopes: self.scopes.clone(),
            devices: self.devices.clone(),
            operators: self.operators.clone(),
            reason: self.reason.clone(),
            request: self.request,
        };
        jws::sign(TYP, &content, key).map_err(SignGrantError::Jws)
    }

    /// Reads a statement that one of the keys has signed. Whether it allows anything, now and here, is [`Self::check`]'s.
    pub fn open(text: &str, keys: &[PublicKey]) -> Result<(Self, KeyId), GrantStatementError> {
        let (content, key) = jws::open::<Content>(TYP, text, keys).map_err(GrantStatementError::Jws)?;
        let statement = Self::of(content).map_err(GrantStatementError::Terms)?;
        Ok((statement, KeyId::of(key)))
    }

    /// Whether it allows this.
    pub fn check(&self, wanted: &GrantUse<'_>) -> Result<(), GrantStatementError> {
        let now = wanted.now;
        if self.tenant != wanted.tenant {
            return Err(GrantStatementError::OtherTenant);
        }
        if self.grant != wanted.grant {
            return Err(GrantStatementError::OtherGrant { named: self.grant });
        }
        if !self.devices.contains(&wanted.device) {
            return Err(GrantStatementError::OtherDevice);
        }
        if !self.scopes.iter().any(|scope| scope == wanted.scope) {
            return Err(GrantStatementError::OtherScope { scope: wanted.scope.to_owned() });
        }
        if self.ends_at <= now {
            return Err(GrantStatementError::Ended { ends_at: self.ends_at, now });
        }
        let latest = now.saturating_add(wanted.leeway);
        if self.signed_at > latest {
            return Err(GrantStatementError::SignedLater { signed_at: self.signed_at, now });
        }
        if self.starts_at > latest {
            return Err(GrantStatementError::NotYet { starts_at: self.starts_at, now });
        }
        Ok(())
    }

    /// Reads a statement that one of the keys has signed, if it allows this.
    pub fn verify(text: &str, keys: &[PublicKey], wanted: &GrantUse<'_>) -> Result<Self, GrantStatementError> {
        let (statement, _) = Self::open(text, keys)?;
        statement.check(wanted)?;
        Ok(statement)
    }

    fn of(content: Content) -> Result<Self, TermsError> {
        let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| TermsError::Times);
        let statement = Self {
            tenant: content.iss,
            grant: content.jti,
            signed_at: at(content.iat)?,
            starts_at: at(content.nbf)?,
            ends_at: at(content.exp)?,
            scopes: content.scopes,
            devices: content.devices,
            operators: content.operators,
            reason: content.reason,
            request: content.request,
        };
        statement.check_terms()?;
        Ok(statement)
    }

    fn check_terms(&self) -> Result<(), TermsError> {
        let times = [self.signed_at, self.starts_at, self.ends_at];
        if times.iter().any(|time| time.nanosecond() != 0 || time.unix_timestamp() < 0)
            || self.ends_at <= self.starts_at
            || self.ends_at <= self.signed_at
        {
            return Err(TermsError::Times);
        }
        if !are_named_once(&self.scopes, SCOPES_MAX) || !self.scopes.iter().all(|scope| is_scope(scope)) {
            return Err(TermsError::Scopes);
        }
        if !are_named_once(&self.devices, NAMED_MAX) {
            return Err(TermsError::Devices);
        }
        if self.operators.as_ref().is_some_and(|operators| !are_named_once(operators, NAMED_MAX)) {
            return Err(TermsError::Operators);
        }
        if !(1..=REASON_CHARS_MAX).contains(&self.reason.chars().count()) || self.reason.contains(char::is_control) {
            return Err(TermsError::Reason);
        }
        Ok(())
    }
}

fn are_named_once<T: Eq + Hash>(named: &[T], max: usize) -> bool {
    (1..=max).contains(&named.len()) && named.iter().collect::<HashSet<_>>().len() == named.len()
}

fn is_scope(scope: &str) -> bool {
    let is_of_scopes = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.:-".contains(&byte);
    (1..=SCOPE_BYTES_MAX).contains(&scope.len()) && scope.bytes().all(is_of_scopes)
}

fn shown(at: OffsetDateTime) -> String {
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// UUIDs in the one form of RFC 9562: 36 characters, lowercase.
pub(crate) mod id {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use uuid::Uuid;

    pub(crate) fn parse(text: &str) -> Option<Uuid> {
        let id = Uuid::try_parse(text).ok()?;
        let mut buffer = Uuid::encode_buffer();
        (id.hyphenated().encode_lower(&mut buffer) == text).then_some(id)
    }

    pub(crate) fn serialize<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&id.hyphenated())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| D::Error::custom("not an id"))
    }
}

mod ids {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(ids: &[Uuid], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(|id| id.hyphenated().to_string()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Uuid>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let ids = texts.iter().map(|text| super::id::parse(text)).collect::<Option<_>>();
        ids.ok_or_else(|| D::Error::custom("not ids"))
    }
}

/// Null must be written: what is left out is not everybody.
mod ids_or_null {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(ids: &Option<Vec<Uuid>>, serializer: S) -> Result<S::Ok, S::Error> {
        match ids {
            Some(ids) => super::ids::serialize(ids, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Uuid>>, D::Error> {
        let Some(texts) = Option::<Vec<String>>::deserialize(deserializer)? else { return Ok(None) };
        let ids = texts.iter().map(|text| super::id::parse(text)).collect::<Option<_>>();
        ids.map(Some).ok_or_else(|| D::Error::custom("not ids"))
    }
}

mod id_or_null {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(id: &Option<Uuid>, serializer: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => super::id::serialize(id, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uuid>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        super::id::parse(&text).map(Some).ok_or_else(|| D::Error::custom("not an id"))
    }
}
