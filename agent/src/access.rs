//! Whether the tenant itself has let somebody do something, as far as this device can tell without believing any server.
//!
//! A device that wants this does nothing privileged without a statement of the grant that its tenant has signed: one that names
//! this device, this grant and the scope, and has not ended. Which keys are the tenant's it knows from its own configuration, or from its
//! enrollment; a server that runs can neither change them nor do away with the need for them. What cannot be read counts as a
//! need without keys: everything is refused.
//!
//! The time of a statement is judged at the later of the device's own clock and what is known to have been. A server can make that
//! later, and never earlier: what has ended stays so.

mod pin;

use std::fmt;
use std::path::Path;

use cloudlink_certs::grant::JwsError;
use cloudlink_certs::signing_key::{self, KEYS_MAX};
use cloudlink_certs::{DeviceIdentity, GrantStatement, GrantStatementError, GrantUse, KeyId, PublicKey};
use cloudlink_proto::ids::GrantId;
use cloudlink_proto::link::message::{Command, StreamRequest, command, stream_request};
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

pub use self::pin::{PinError, Pinned};
use crate::clock::{KnownTime, wall_clock};
use crate::identity::Identity;
use crate::{chain, config, disk};

/// How much the clock of whoever signs may be ahead of this one.
const LEEWAY: time::Duration = time::Duration::minutes(2);
/// A public key has about 200 bytes.
const KEY_FILE_BYTES_MAX: u64 = 16 * 1024;

/// What this device wants of grants.
#[derive(Debug)]
pub struct Access {
    need: Need,
    /// It is not earlier than this, as of then.
    floor: Option<(OffsetDateTime, Instant)>,
}

/// Whether grants must be signed, and by whom.
#[derive(Debug)]
pub enum Need {
    /// The server's word is enough.
    None,
    Signed {
        tenant: Uuid,
        device: Uuid,
        keys: Vec<PublicKey>,
    },
    /// They must be, and it cannot be told whether they are: everything is refused.
    Unclear(String),
}

/// What a grant lets somebody begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave {
    /// Until when; `None` if the device cannot tell.
    pub until: Option<Instant>,
}

impl Leave {
    /// Until the time that the server says, and none of the device's own.
    pub const UNLIMITED: Self = Self { until: None };

    /// The earlier of the two ends.
    #[must_use]
    pub fn not_after(self, end: Instant) -> Instant {
        self.until.map_or(end, |until| until.min(end))
    }
}

/// Why something is not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    Unsigned,
    Invalid(String),
}

impl Denied {
    /// In the words of the link protocol.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unsigned => "grant_unsigned",
            Self::Invalid(_) => "grant_invalid",
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsigned => {
                "this device wants grants that its tenant has signed, and this one is not (`cloudlink grant create --sign-with`)"
            }
            Self::Invalid(why) => why,
        })
    }
}

impl Access {
    /// Reads what the configuration says, and what was pinned at enrollment.
    #[must_use]
    pub fn load(config: &config::Access, state_dir: &Path, identity: &Identity) -> Self {
        let need = need(config, state_dir, identity.device());
        if let Need::Unclear(why) = &need {
            tracing::error!(
                why,
                "grants must be signed here, and cannot be checked: all that they are for will be refused"
            );
        }
        Self { need, floor: None }
    }

    #[must_use]
    pub fn need(&self) -> &Need {
        &self.need
    }

    /// Whether this command may be begun under its grant.
    ///
    /// # Errors
    /// It is to be refused.
    pub fn judge_command(
        &mut self,
        known_time: &mut KnownTime,
        now: Instant,
        grant: GrantId,
        command: &Command,
    ) -> Result<Leave, Denied> {
        match &command.kind {
            Some(kind) => {
                if command.override_busy {
                    self.judge(known_time, now, grant, OVERRIDE_SCOPE, &command.grant_statement)?;
                }
                self.judge(known_time, now, grant, scope_of_command(kind), &command.grant_statement)
            }
            // Of a kind that is not known, nothing is begun anyhow.
            None => Ok(Leave { until: Some(now) }),
        }
    }

    /// Whether this stream may be opened under its grant, and until when.
    ///
    /// # Errors
    /// It is to be refused.
    pub fn judge_stream(
        &mut self,
        known_time: &mut KnownTime,
        now: Instant,
        grant: GrantId,
        request: &StreamRequest,
    ) -> Result<Leave, Denied> {
        match &request.kind {
            Some(kind) => self.judge(known_time, now, grant, scope_of_stream(kind), &request.grant_statement),
            None => Ok(Leave { until: Some(now) }),
        }
    }

    fn judge(
        &mut self,
        known_time: &mut KnownTime,
        now: Instant,
        grant: GrantId,
        scope: &str,
        statement: &str,
    ) -> Result<Leave, Denied> {
        let time = self.time(known_time, now);
        let (tenant, device, keys) = match &self.need {
            Need::None => return Ok(Leave::UNLIMITED),
            Need::Unclear(why) => return Err(Denied::Invalid(why.clone())),
            Need::Signed { tenant, device, keys } => (*tenant, *device, keys),
        };
        if statement.is_empty() {
            return Err(Denied::Unsigned);
        }
        let wanted = GrantUse { tenant, device, grant: grant.as_uuid(), scope, now: time, leeway: LEEWAY };
        let statement = GrantStatement::verify(statement, keys, &wanted).map_err(|error| denied(&error, keys))?;
        // Somebody trusted has had this time on his clock.
        known_time.prove(statement.signed_at);
        let left = std::time::Duration::try_from(statement.ends_at - time).unwrap_or_default();
        Ok(Leave { until: now.checked_add(left) })
    }

    /// The later of what the device's clock says and what has been, which never goes back while the agent runs.
    fn time(&mut self, known_time: &KnownTime, now: Instant) -> OffsetDateTime {
        let known = known_time.earliest();
        let grown =
            self.floor.and_then(|(floor, at)| floor.checked_add(now.saturating_duration_since(at).try_into().ok()?));
        let floor = grown.map_or(known, |floor| floor.max(known));
        self.floor = Some((floor, now));
        floor.max(wall_clock())
    }
}

/// What a grant must allow, besides the command itself, for the device's busy lock to be overridden.
const OVERRIDE_SCOPE: &str = "busy:override";

fn scope_of_command(kind: &command::Kind) -> &'static str {
    match kind {
        command::Kind::CollectMetrics(_) | command::Kind::LinkTest(_) => "metrics:read",
        command::Kind::RestartService(_) => "service:restart",
        command::Kind::Reboot(_) => "device:reboot",
        command::Kind::Shutdown(_) => "device:shutdown",
        command::Kind::OsUpdate(_) => "os:update",
        command::Kind::AgentUpdate(_) => "agent:update",
        command::Kind::ContainerUpdate(_) => "container:update",
    }
}

fn scope_of_stream(kind: &stream_request::Kind) -> &'static str {
    match kind {
        stream_request::Kind::Terminal(_) => "shell:open",
        stream_request::Kind::Forward(_) => "tcp:open",
        stream_request::Kind::FilePut(_) => "file:write",
        stream_request::Kind::FileGet(_) => "file:read",
    }
}

fn denied(error: &GrantStatementError, keys: &[PublicKey]) -> Denied {
    let mut why = chain(error);
    if matches!(error, GrantStatementError::Jws(JwsError::UnknownKey)) {
        let known: Vec<String> = keys.iter().map(|key| KeyId::of(key).to_string()[..16].to_owned()).collect();
        why.push_str(&format!(" (trusted here: {})", known.join(", ")));
    }
    Denied::Invalid(why)
}

/// What the configuration says, and what was pinned at enrollment.
#[must_use]
pub fn need(config: &config::Access, state_dir: &Path, own: Option<&DeviceIdentity>) -> Need {
    let pinned = match Pinned::load(state_dir) {
        Ok(pinned) => pinned,
        Err(_) if config.says_all() => None,
        Err(error) => {
            return match config.is_required() {
                Some(false) => Need::None,
                Some(true) | None => Need::Unclear(chain(&error)),
            };
        }
    };
    let is_required = config.is_required().or(pinned.as_ref().map(Pinned::is_required)).unwrap_or(false);
    if !is_required {
        return Need::None;
    }
    let keys = match (&config.keys, pinned) {
        (Some(paths), _) => paths.iter().map(|path| read_key(path)).collect::<Result<Vec<_>, _>>(),
        (None, Some(pinned)) => Ok(pinned.keys().to_vec()),
        (None, None) => Ok(Vec::new()),
    };
    let own = own.map(|own| (own.tenant, own.device));
    match (keys, config.ids.or(own)) {
        (Err(why), _) => Need::Unclear(why),
        (Ok(keys), _) if keys.is_empty() => {
            Need::Unclear("grants must be signed here, and the device knows no key: set access.keys".to_owned())
        }
        (Ok(_), None) => Need::Unclear(
            "grants must be signed here, and the device has no certificate that says who it is: set access.tenant_id and access.device_id"
                .to_owned(),
        ),
        (Ok(keys), Some((tenant, device))) => Need::Signed { tenant, device, keys },
    }
}

fn read_key(path: &Path) -> Result<PublicKey, String> {
    let shown = path.display();
    let pem = disk::read_if_there(path, KEY_FILE_BYTES_MAX).map_err(|error| format!("cannot read {shown}: {error}"))?;
    let pem = pem.ok_or_else(|| format!("there is no file {shown}"))?;
    let key = PublicKey::from_pem(&pem).map_err(|error| format!("cannot use {shown}: {error}"))?;
    if signing_key::can_sign(&key) { Ok(key) } else { Err(format!("{shown} is neither of Ed25519 nor of P-256")) }
}

/// The most keys that a configuration names.
pub const KEY_FILES_MAX: usize = KEYS_MAX;

#[cfg(test)]
mod tests;
