//! Commands: their kinds and their states. A new kind is added here, in `link.proto` and in the agent's executors.

use std::time::Duration;

use cloudlink_proto::link::{
    SHA256_BYTES, URL_BYTES_MAX, VERSION_BYTES_MAX, image_repository, is_container_name, message,
};
use cloudlink_proto::ndt::SECONDS_MAX;
use data_encoding::HEXLOWER;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// The longest that a command may wait for its device to link.
pub const QUEUE_FOR_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a now-or-never command may take to be begun by its linked device.
pub const START_WITHIN_DEFAULT: Duration = Duration::from_secs(30);

/// What a device is told to do, with its arguments. In JSON: `{"kind": "service.restart", "arguments": {"service": "…"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", content = "arguments", deny_unknown_fields)]
pub enum Instruction {
    #[serde(rename = "metrics.collect")]
    CollectMetrics {},
    #[serde(rename = "service.restart")]
    RestartService {
        /// Name of the service as on the device's allow-list, 1 to 128 bytes of `A-Z a-z 0-9 . _ @ : -`.
        service: String,
    },
    #[serde(rename = "device.reboot")]
    Reboot {},
    #[serde(rename = "device.shutdown")]
    Shutdown {},
    #[serde(rename = "os.update")]
    UpdateOs(Update),
    #[serde(rename = "agent.update")]
    UpdateAgent(Update),
    #[serde(rename = "container.update")]
    UpdateContainer {
        /// Name of a container that is there: 1 to 128 of `A-Z a-z 0-9 _ . -`, the first a letter or a digit.
        container: String,
        /// `<repository>@sha256:<64 hexadecimal digits, small letters>`, the repository at most 255 bytes. A tag is not taken.
        image: String,
    },
    #[serde(rename = "link.test")]
    TestLink {
        /// One after the other. Left out: `download`, then `upload`.
        #[serde(default = "both_directions")]
        directions: Vec<Direction>,
        /// For each of them, 1 to 10. Left out: 10.
        #[serde(default = "test_seconds")]
        seconds: u32,
    },
}

/// What a device is to fetch, to check and to install.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// `https`, or `http` where the device allows that; without user, password and fragment. 1 to 2,048 bytes.
    pub url: String,
    /// Of the whole file: 64 hexadecimal digits, small letters.
    pub sha256: String,
    /// In bytes, at least 1.
    pub size: i64,
    /// What the device will say that it runs: 1 to 128 printable ASCII characters without blanks, the first not -.
    pub version: String,
}

/// Which way the bytes of a test go, as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = LinkTestDirection)]
pub enum Direction {
    Download,
    Upload,
}

fn both_directions() -> Vec<Direction> {
    vec![Direction::Download, Direction::Upload]
}

const fn test_seconds() -> u32 {
    SECONDS_MAX
}

/// The longest name of a service, in bytes.
pub const SERVICE_NAME_BYTES_MAX: usize = 128;

/// Why something is not an instruction.
#[derive(Debug, thiserror::Error)]
pub enum InstructionError {
    #[error("no such kind of command")]
    UnknownKind,
    #[error("the arguments do not fit this kind of command: {0}")]
    Arguments(serde_json::Error),
    #[error(
        "a service has 1 to {SERVICE_NAME_BYTES_MAX} characters of A-Z a-z 0-9 . _ @ : - and does not begin with -"
    )]
    ServiceName,
    #[error("{0}")]
    Update(&'static str),
    #[error("`container` must be 1 to 128 characters of A-Z a-z 0-9 _ . - and begin with a letter or a digit")]
    Container,
    #[error("`image` must be <repository>@sha256:<64 hexadecimal digits in small letters>, without a tag")]
    Image,
    #[error("`directions` is one of [\"download\"], [\"upload\"] and [\"download\", \"upload\"]")]
    Directions,
    #[error("`seconds` is 1 to {SECONDS_MAX}")]
    Seconds,
    #[error("a test of the link is now or never: leave out `queue_for_seconds`")]
    NowOrNever,
}

/// What every instruction of one kind has in common.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Name in the API, the database and the capabilities of a device.
    pub name: &'static str,
    /// The scope that a grant must give.
    pub scope: &'static str,
    /// How long the device may take from accepting it to its final report.
    pub run_within: Duration,
    /// What proves that it was done.
    pub proof: Proof,
    /// Whether a device may do it that has no link and polls. What does it must be proven by the device's report alone.
    pub by_polling: bool,
    /// Whether a device that holds a busy lock is not to be asked for it.
    pub disturbs: bool,
}

/// What proves that a command succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The device's report.
    Report,
    /// A link of the device with another boot id.
    OtherBoot,
    /// The loss of the link after `running`, and no return of the same boot.
    LinkLost,
}

impl Instruction {
    /// Every kind there is.
    pub const KINDS: [&Kind; 8] = [
        &Self::COLLECT_METRICS,
        &Self::RESTART_SERVICE,
        &Self::REBOOT,
        &Self::SHUTDOWN,
        &Self::UPDATE_OS,
        &Self::UPDATE_AGENT,
        &Self::UPDATE_CONTAINER,
        &Self::TEST_LINK,
    ];

    const COLLECT_METRICS: Kind = Kind {
        name: "metrics.collect",
        scope: "metrics:read",
        run_within: Duration::from_secs(30),
        proof: Proof::Report,
        by_polling: true,
        disturbs: false,
    };
    const RESTART_SERVICE: Kind = Kind {
        name: "service.restart",
        scope: "service:restart",
        run_within: Duration::from_secs(180),
        proof: Proof::Report,
        by_polling: false,
        disturbs: true,
    };
    const REBOOT: Kind = Kind {
        name: "device.reboot",
        scope: "device:reboot",
        run_within: Duration::from_secs(900),
        proof: Proof::OtherBoot,
        by_polling: false,
        disturbs: true,
    };
    const SHUTDOWN: Kind = Kind {
        name: "device.shutdown",
        scope: "device:shutdown",
        run_within: Duration::from_secs(180),
        proof: Proof::LinkLost,
        by_polling: false,
        disturbs: true,
    };
    // The device reports only once it is back with the new version, or with the old one. A slow download takes hours.
    const UPDATE_OS: Kind = Kind {
        name: "os.update",
        scope: "os:update",
        run_within: Duration::from_secs(12 * 3600),
        proof: Proof::Report,
        by_polling: true,
        disturbs: true,
    };
    const UPDATE_AGENT: Kind = Kind { name: "agent.update", scope: "agent:update", ..Self::UPDATE_OS };
    const UPDATE_CONTAINER: Kind = Kind { name: "container.update", scope: "container:update", ..Self::UPDATE_OS };

    const TEST_LINK: Kind = Kind {
        name: "link.test",
        scope: "metrics:read",
        run_within: Duration::from_secs(120),
        proof: Proof::Report,
        by_polling: false,
        disturbs: false,
    };

    #[must_use]
    pub fn kind(&self) -> &'static Kind {
        match self {
            Self::CollectMetrics {} => &Self::COLLECT_METRICS,
            Self::RestartService { .. } => &Self::RESTART_SERVICE,
            Self::Reboot {} => &Self::REBOOT,
            Self::Shutdown {} => &Self::SHUTDOWN,
            Self::UpdateOs(_) => &Self::UPDATE_OS,
            Self::UpdateAgent(_) => &Self::UPDATE_AGENT,
            Self::UpdateContainer { .. } => &Self::UPDATE_CONTAINER,
            Self::TestLink { .. } => &Self::TEST_LINK,
        }
    }

    /// Reads an instruction as somebody asks for it. Absent arguments are none.
    pub fn parse(kind: &str, arguments: serde_json::Value) -> Result<Self, InstructionError> {
        let kind = Self::kind_named(kind).ok_or(InstructionError::UnknownKind)?;
        let arguments = if arguments.is_null() { serde_json::json!({}) } else { arguments };
        let tagged = serde_json::json!({"kind": kind.name, "arguments": arguments});
        let instruction: Self = serde_json::from_value(tagged).map_err(InstructionError::Arguments)?;
        match &instruction {
            Self::RestartService { service } if !is_service_name(service) => Err(InstructionError::ServiceName),
            Self::UpdateOs(update) | Self::UpdateAgent(update) => {
                update.check().map_err(InstructionError::Update)?;
                Ok(instruction)
            }
            Self::UpdateContainer { container, .. } if !is_container_name(container) => {
                Err(InstructionError::Container)
            }
            Self::UpdateContainer { image, .. } if image_repository(image).is_none() => Err(InstructionError::Image),
            Self::TestLink { seconds, .. } if !(1..=SECONDS_MAX).contains(seconds) => Err(InstructionError::Seconds),
            Self::TestLink { directions, .. } if !are_directions(directions) => Err(InstructionError::Directions),
            Self::RestartService { .. }
            | Self::CollectMetrics {}
            | Self::Reboot {}
            | Self::Shutdown {}
            | Self::UpdateContainer { .. }
            | Self::TestLink { .. } => Ok(instruction),
        }
    }

    /// The arguments alone, as they are stored.
    #[must_use]
    pub fn arguments(&self) -> serde_json::Value {
        match self {
            Self::RestartService { service } => serde_json::json!({ "service": service }),
            Self::UpdateOs(update) | Self::UpdateAgent(update) => serde_json::json!(update),
            Self::UpdateContainer { container, image } => {
                serde_json::json!({ "container": container, "image": image })
            }
            Self::TestLink { directions, seconds } => {
                serde_json::json!({ "directions": directions, "seconds": seconds })
            }
            Self::CollectMetrics {} | Self::Reboot {} | Self::Shutdown {} => serde_json::json!({}),
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn kind_named(name: &str) -> Option<&'static Kind> {
        Self::KINDS.into_iter().find(|kind| kind.name == name)
    }

    #[must_use]
    pub fn to_wire(&self) -> message::command::Kind {
        match self {
            Self::CollectMetrics {} => message::command::Kind::CollectMetrics(message::CollectMetrics {}),
            Self::RestartService { service } => {
                message::command::Kind::RestartService(message::RestartService { service: service.clone() })
            }
            Self::Reboot {} => message::command::Kind::Reboot(message::Reboot {}),
            Self::Shutdown {} => message::command::Kind::Shutdown(message::Shutdown {}),
            Self::UpdateOs(update) => message::command::Kind::OsUpdate(Box::new(update.to_wire())),
            Self::UpdateAgent(update) => message::command::Kind::AgentUpdate(Box::new(update.to_wire())),
            Self::UpdateContainer { container, image } => {
                let update = message::ContainerUpdate { container: container.clone(), image: image.clone() };
                message::command::Kind::ContainerUpdate(Box::new(update))
            }
            Self::TestLink { directions, seconds } => message::command::Kind::LinkTest(message::LinkTest {
                download: directions.contains(&Direction::Download),
                upload: directions.contains(&Direction::Upload),
                seconds: *seconds,
            }),
        }
    }
}

impl Update {
    fn check(&self) -> Result<(), &'static str> {
        let url = Url::parse(&self.url).ok().filter(|url| {
            let plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
            plain && matches!(url.scheme(), "https" | "http") && url.has_host()
        });
        if url.is_none() || self.url.len() > URL_BYTES_MAX || !self.url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "`url` must be an https or http URL without user, password and fragment, of at most 2048 bytes",
            );
        }
        if self.digest().is_none_or(|digest| digest.len() != SHA256_BYTES) {
            return Err("`sha256` must be 64 hexadecimal digits in small letters");
        }
        if self.size < 1 {
            return Err("`size` must be the number of bytes, at least 1");
        }
        // A leading dash could be taken for an option by the programs that are given it.
        let is_plain = self.version.bytes().all(|byte| byte.is_ascii_graphic()) && !self.version.starts_with('-');
        if !(1..=VERSION_BYTES_MAX).contains(&self.version.len()) || !is_plain {
            return Err("`version` must be 1 to 128 printable ASCII characters without blanks, the first not -");
        }
        Ok(())
    }

    fn digest(&self) -> Option<Vec<u8>> {
        HEXLOWER.decode(self.sha256.as_bytes()).ok()
    }

    fn to_wire(&self) -> message::Update {
        message::Update {
            artifact: Some(message::Artifact {
                url: self.url.clone(),
                sha256: self.digest().unwrap_or_default().into(),
                size: u64::try_from(self.size).unwrap_or_default(),
            }),
            version: self.version.clone(),
        }
    }
}

/// One of them or both, in the order in which they are tested.
fn are_directions(directions: &[Direction]) -> bool {
    matches!(directions, [_] | [Direction::Download, Direction::Upload])
}

/// A leading dash could be taken for an option by whatever restarts the service.
fn is_service_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._@:-".contains(&byte);
    (1..=SERVICE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed) && !name.starts_with('-')
}

/// One instruction to one device, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Command {
    pub id: Uuid,
    pub tenant_id: Uuid,
    pub device_id: Uuid,
    pub grant_id: Uuid,
    pub requested_by: Uuid,
    pub kind: String,
    #[schema(value_type = Object)]
    pub arguments: serde_json::Value,
    pub reason: String,
    pub state: State,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Not begun on the device after this. Never later than the end of the grant.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// When the server gives up on the present state. Null in a final state.
    #[serde(with = "time::serde::rfc3339::option")]
    pub deadline_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub sent_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub accepted_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// When somebody asked to call it back after it was sent.
    #[serde(with = "time::serde::rfc3339::option")]
    pub cancel_requested_at: Option<OffsetDateTime>,
    /// How far, 0 to 100, if known.
    pub percent: Option<i16>,
    /// Why it ended as it did: a stable code.
    pub code: Option<String>,
    /// The same for people.
    pub message: Option<String>,
    /// Structured result of the command's kind.
    #[schema(value_type = Option<Object>)]
    pub data: Option<serde_json::Value>,
    /// What proves the result: `{"kind": "device_report" | "boot_id" | "link_lost", …}`.
    #[schema(value_type = Option<Object>)]
    pub proof: Option<serde_json::Value>,
    /// To be done also while the device holds a busy lock.
    pub override_busy: bool,
    /// While it is queued, and its device polls: it will run by then. Null: the device does not poll, or too late for the command.
    #[serde(with = "time::serde::rfc3339::option")]
    pub runs_by: Option<OffsetDateTime>,
}

/// Where a command stands.
///
/// ```text
/// queued ──> sent ──> accepted ──> running ──> succeeded
///   │          │          │           ├──────> failed
///   │          │          └───────────┴──────> unconfirmed   (no final report in time)
///   │          ├────> refused, failed, succeeded (a report may skip states)
///   ├──────────┴────> expired, cancelled                     (never begun)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = CommandState)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Stored, not yet sent. Deadline: its expiry.
    Queued,
    /// Sent over a link. Deadline: its expiry and `SENT_GRACE`.
    Sent,
    /// The device has it on disk. Deadline: the kind's `run_within`.
    Accepted,
    /// The device is at it. Deadline: unchanged.
    Running,
    /// Final: done and proven.
    Succeeded,
    /// Final: begun, and it did not work.
    Failed,
    /// Final: the device will not do it; nothing was begun.
    Refused,
    /// Final: not begun in time, and never will be.
    Expired,
    /// Final: called back before it was begun.
    Cancelled,
    /// Final: it was sent, and the device never said what became of it.
    Unconfirmed,
}

/// How long after a sent command's expiry its device may still report what it did before.
pub const SENT_GRACE: Duration = Duration::from_secs(60);

impl State {
    /// Every transition there is.
    pub const TRANSITIONS: &[(Self, &[Self])] = &[
        (Self::Queued, &[Self::Sent, Self::Expired, Self::Cancelled]),
        (
            Self::Sent,
            &[
                Self::Accepted,
                Self::Running,
                Self::Succeeded,
                Self::Failed,
                Self::Refused,
                Self::Expired,
                Self::Cancelled,
                Self::Unconfirmed,
            ],
        ),
        (
            Self::Accepted,
            &[
                Self::Running,
                Self::Succeeded,
                Self::Failed,
                Self::Refused,
                Self::Expired,
                Self::Cancelled,
                Self::Unconfirmed,
            ],
        ),
        (Self::Running, &[Self::Running, Self::Succeeded, Self::Failed, Self::Unconfirmed]),
        (Self::Succeeded, &[]),
        (Self::Failed, &[]),
        (Self::Refused, &[]),
        (Self::Expired, &[]),
        (Self::Cancelled, &[]),
        (Self::Unconfirmed, &[]),
    ];

    /// The states from which this one may be reached: the `where` of each update.
    #[must_use]
    pub fn origins(self) -> Vec<&'static str> {
        Self::TRANSITIONS.iter().filter(|(_, to)| to.contains(&self)).map(|(from, _)| from.name()).collect()
    }

    #[must_use]
    pub fn is_final(self) -> bool {
        Self::TRANSITIONS.iter().any(|(from, to)| *from == self && to.is_empty())
    }

    /// Name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Unconfirmed => "unconfirmed",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::TRANSITIONS.iter().map(|(state, _)| *state).find(|state| state.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_in_the_table_once_and_reachable() {
        for (state, _) in State::TRANSITIONS {
            assert_eq!(State::TRANSITIONS.iter().filter(|(from, _)| from == state).count(), 1, "{state:?}");
            assert_eq!(State::named(state.name()), Some(*state));
            assert!(*state == State::Queued || !state.origins().is_empty(), "{state:?} cannot be reached");
        }
    }

    #[test]
    fn what_may_run_by_polling_is_proven_by_the_report_alone() {
        let by_polling: Vec<_> = Instruction::KINDS.into_iter().filter(|kind| kind.by_polling).collect();
        assert!(!by_polling.is_empty() && by_polling.iter().all(|kind| kind.proof == Proof::Report));
    }

    #[test]
    fn instructions_are_read_strictly() {
        use serde_json::json;
        assert_eq!(Instruction::parse("device.reboot", json!(null)).unwrap(), Instruction::Reboot {});
        assert!(matches!(Instruction::parse("device.melt", json!({})), Err(InstructionError::UnknownKind)));
        for arguments in [json!({"force": true}), json!([]), json!("now")] {
            let read = Instruction::parse("device.reboot", arguments.clone());
            assert!(matches!(read, Err(InstructionError::Arguments(_))), "{arguments}: {read:?}");
        }
        let restart = |service: &str| Instruction::parse("service.restart", json!({ "service": service }));
        assert!(restart("getty@tty1.service").is_ok());
        for service in ["", "a b", "a;b", "../x", "ü", "--now", "a\0", &"x".repeat(129)] {
            assert!(matches!(restart(service), Err(InstructionError::ServiceName)), "{service:?}");
        }
    }

    #[test]
    fn updates_name_a_plain_file_by_its_digest() {
        use serde_json::json;
        let good = json!({"url": "https://u.example.com/os.raucb?x=1", "sha256": "ab".repeat(32), "size": 7, "version": "2.0"});
        let parse = |key: &str, value: serde_json::Value| {
            let mut arguments = good.clone();
            arguments[key] = value;
            Instruction::parse("os.update", arguments)
        };
        let read = parse("version", json!("2.1")).unwrap();
        assert_eq!((read.kind().scope, &read.arguments()["version"]), ("os:update", &json!("2.1")));
        for (key, value) in [
            ("url", json!("file:///etc/passwd")),
            ("url", json!("https://user:secret@u.example.com/")),
            ("url", json!("https://u.example.com/#a")),
            ("url", json!("//u.example.com/")),
            ("url", json!(format!("https://u.example.com/{}", "x".repeat(2048)))),
            ("sha256", json!("AB".repeat(32))),
            ("sha256", json!("ab".repeat(31))),
            ("size", json!(0)),
            ("size", json!(-1)),
            ("version", json!("")),
            ("version", json!("a b")),
            ("version", json!("--no-verify")),
        ] {
            let read = parse(key, value.clone());
            assert!(matches!(read, Err(InstructionError::Update(_))), "{key} {value}: {read:?}");
        }
        assert!(matches!(parse("delta", json!("x")), Err(InstructionError::Arguments(_))));
    }

    #[test]
    fn a_container_gets_an_image_by_its_digest() {
        use serde_json::json;
        let digits = "ab".repeat(32);
        let image = format!("registry.example.com/vendor/app@sha256:{digits}");
        let parse = |container: &str, image: &str| {
            Instruction::parse("container.update", json!({ "container": container, "image": image }))
        };
        let read = parse("app", &image).unwrap();
        assert_eq!((read.kind().scope, &read.arguments()["image"]), ("container:update", &json!(image)));
        for container in ["", "-app", "a/b"] {
            assert!(matches!(parse(container, &image), Err(InstructionError::Container)), "{container}");
        }
        for image in ["", "vendor/app", "vendor/app:1.0", &format!("vendor/app:1.0@sha256:{digits}")] {
            assert!(matches!(parse("app", image), Err(InstructionError::Image)), "{image}");
        }
    }

    #[test]
    fn a_test_of_a_link_has_directions_and_seconds() {
        use serde_json::json;
        let parse = |arguments| Instruction::parse("link.test", arguments);
        let both = Instruction::TestLink { directions: both_directions(), seconds: 10 };
        assert_eq!(parse(json!(null)).unwrap(), both);
        assert_eq!(parse(json!({"directions": ["download", "upload"], "seconds": 10})).unwrap(), both);
        for directions in [json!([]), json!(["upload", "download"]), json!(["upload", "upload"])] {
            let read = parse(json!({ "directions": directions }));
            assert!(matches!(read, Err(InstructionError::Directions)), "{read:?}");
        }
        for seconds in [0, 11] {
            assert!(matches!(parse(json!({ "seconds": seconds })), Err(InstructionError::Seconds)));
        }
        assert!(matches!(parse(json!({"directions": ["sideways"]})), Err(InstructionError::Arguments(_))));
    }

    #[test]
    fn arguments_are_stored_as_they_are_read() {
        for json in [
            serde_json::json!({"kind": "service.restart", "arguments": {"service": "nginx"}}),
            serde_json::json!({"kind": "metrics.collect", "arguments": {}}),
            serde_json::json!({"kind": "container.update", "arguments": {"container": "app", "image": "a@sha256:b"}}),
            serde_json::json!({"kind": "link.test", "arguments": {"directions": ["upload"], "seconds": 3}}),
        ] {
            let instruction: Instruction = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(instruction.arguments(), json["arguments"]);
        }
    }

    #[test]
    fn kinds_read_as_they_are_written() {
        let json = serde_json::json!({"kind": "service.restart", "arguments": {"service": "nginx"}});
        let instruction: Instruction = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(instruction.kind().scope, "service:restart");
        assert_eq!(serde_json::to_value(&instruction).unwrap(), json);
    }
}
