//! The lines of the ledger: `<checksum> <length> <JSON>`, the checksum the first 8 bytes of SHA-256 over length and JSON, in
//! hex; the length that of the JSON, in bytes, five digits.

use aws_lc_rs::digest;
use cloudlink_proto::ids::CommandId;
use cloudlink_proto::link::message::command_status;
use cloudlink_proto::link::{DATA_JSON_BYTES_MAX, STATUS_MESSAGE_BYTES_MAX};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::Kind;

/// The longest line: a final report with 32,768 bytes of data and a message whose every byte is escaped.
pub(super) const BYTES_MAX: u64 = 48 * 1024;
/// Checksum, blank, length, blank.
const HEAD_BYTES: usize = CHECKSUM_CHARS + 1 + LENGTH_CHARS + 1;
const CHECKSUM_CHARS: usize = 16;
const LENGTH_CHARS: usize = 5;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Record {
    /// It will be run.
    Accepted {
        #[serde(with = "command_id")]
        id: CommandId,
        kind: WrittenKind,
        boot_id: String,
        at_unix_ms: u64,
    },
    /// It will not be run.
    Refused {
        #[serde(with = "command_id")]
        id: CommandId,
        at_unix_ms: u64,
        report: Report,
    },
    /// It was begun.
    Running {
        #[serde(with = "command_id")]
        id: CommandId,
    },
    /// This became of it.
    Final {
        #[serde(with = "command_id")]
        id: CommandId,
        report: Report,
    },
    /// The server has the report.
    Receipted {
        #[serde(with = "command_id")]
        id: CommandId,
    },
    /// All that is left of a receipted command after compaction.
    Known {
        #[serde(with = "command_id")]
        id: CommandId,
        at_unix_ms: u64,
        state: FinalState,
        code: String,
    },
}

/// A kind of command as it was written down. A later version of the agent, which this one has taken the place of, may have known
/// more: that is no damage, and is written down again as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WrittenKind {
    Known(Kind),
    Unknown(String),
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub state: FinalState,
    /// Stable, snake_case; empty for success.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What the kind of command gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

/// The states after which nothing more happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalState {
    Succeeded,
    Failed,
    Refused,
    Expired,
    Cancelled,
}

impl Report {
    #[must_use]
    pub fn without_data(state: FinalState, code: &str, message: &str) -> Self {
        Self { state, code: code.to_owned(), message: message.to_owned(), data: None }
    }

    /// Cut to what a link and a line of the ledger carry. Data that is too large is dropped: half of it would not be JSON.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.message.truncate(self.message.floor_char_boundary(STATUS_MESSAGE_BYTES_MAX));
        if self.data.as_ref().is_some_and(|data| data.to_string().len() > DATA_JSON_BYTES_MAX) {
            self.data = Some(serde_json::json!({ "too_large": true }));
        }
        self
    }
}

impl FinalState {
    #[must_use]
    pub const fn to_wire(self) -> command_status::State {
        match self {
            Self::Succeeded => command_status::State::Succeeded,
            Self::Failed => command_status::State::Failed,
            Self::Refused => command_status::State::Refused,
            Self::Expired => command_status::State::Expired,
            Self::Cancelled => command_status::State::Cancelled,
        }
    }
}

/// From where on the ledger cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In bytes from the beginning of the file.
    pub offset: u64,
}

/// How a ledger ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Whole,
    /// The last line was never completely written.
    Torn {
        whole_bytes: u64,
    },
    Damaged(Damage),
}

/// What is in a ledger.
#[derive(Debug)]
pub(super) struct Reading {
    /// All that can be read, also after damage: an id that is known is one that does not run again.
    pub(super) records: Vec<Record>,
    pub(super) ending: Ending,
}

/// Reads a whole ledger.
pub(super) fn read(content: &[u8]) -> Reading {
    let mut records = Vec::new();
    let mut ending = Ending::Whole;
    let mut offset = 0;
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        let at = offset as u64;
        offset += line.len();
        if let Some(record) = line.strip_suffix(b"\n").and_then(Record::from_line) {
            records.push(record);
        } else if matches!(ending, Ending::Whole) {
            let last = offset == content.len();
            ending = if last && is_torn(line) {
                Ending::Torn { whole_bytes: at }
            } else {
                Ending::Damaged(Damage { offset: at })
            };
        }
    }
    Reading { records, ending }
}

/// Whether the end of this line was never written: it is shorter than it says, or the file system shows zeros where its end
/// would be. A line that is all there and wrong was right once, and may have been acted on: that is damage.
fn is_torn(line: &[u8]) -> bool {
    if line.ends_with(b"\n") {
        return false;
    }
    let Some(length) = line.get(CHECKSUM_CHARS + 1..HEAD_BYTES - 1) else {
        return true;
    };
    let length = std::str::from_utf8(length).ok().and_then(|digits| digits.parse::<usize>().ok());
    line.ends_with(&[0]) || length.is_some_and(|length| line.len() <= HEAD_BYTES + length)
}

impl Record {
    pub(super) fn to_line(&self) -> Vec<u8> {
        let json = serde_json::to_string(self).expect("records have string keys and no failing serializers");
        let checked = format!("{:0width$} {json}", json.len(), width = LENGTH_CHARS);
        format!("{} {checked}\n", checksum(checked.as_bytes())).into_bytes()
    }

    fn from_line(line: &[u8]) -> Option<Self> {
        let (sum, rest) = line.split_at_checked(CHECKSUM_CHARS)?;
        let checked = rest.strip_prefix(b" ")?;
        if checksum(checked).as_bytes() != sum {
            return None;
        }
        let json = checked.get(LENGTH_CHARS + 1..)?;
        serde_json::from_slice(json).ok()
    }
}

fn checksum(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    HEXLOWER.encode(&digest.as_ref()[..CHECKSUM_CHARS / 2])
}

mod command_id {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{CommandId, Uuid};

    pub(super) fn serialize<S: Serializer>(id: &CommandId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CommandId, D::Error> {
        Uuid::deserialize(deserializer).map(CommandId::from_uuid)
    }
}
