//! What was recorded of support sessions.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub enum Format {
    /// asciicast v2, of terminals.
    #[serde(rename = "asciicast-v2")]
    AsciicastV2,
    /// A JSON object a line, of forwards and files.
    #[serde(rename = "events-v1")]
    EventsV1,
}

impl Format {
    const ALL: [Self; 2] = [Self::AsciicastV2, Self::EventsV1];

    /// Name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AsciicastV2 => "asciicast-v2",
            Self::EventsV1 => "events-v1",
        }
    }

    /// The format of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::AsciicastV2 => "application/x-asciicast",
            Self::EventsV1 => "application/x-ndjson",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordingState {
    /// Its session goes on, or ended a moment ago.
    Recording,
    /// Whole.
    Finished,
    /// The node that wrote it went away. Whole up to its last second.
    CutShort,
    /// By retention. What is known of it stays, with its digest.
    Deleted,
}

impl RecordingState {
    pub const ALL: [Self; 4] = [Self::Recording, Self::Finished, Self::CutShort, Self::Deleted];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Recording => "recording",
            Self::Finished => "finished",
            Self::CutShort => "cut_short",
            Self::Deleted => "deleted",
        }
    }

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Recording {
    pub session_id: Uuid,
    pub tenant_id: Uuid,
    pub device_id: Uuid,
    pub grant_id: Uuid,
    pub opened_by: Uuid,
    /// `terminal`, `forward` or `file`.
    pub kind: String,
    /// Why the session was opened.
    pub reason: String,
    pub format: Format,
    pub state: RecordingState,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// When its session ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// Of its text; null until that is known.
    pub bytes: Option<i64>,
    /// SHA-256 of its text, in hex; null until that is known, and when it was cut short and a part of it cannot be decrypted.
    pub digest: Option<String>,
    /// When it is deleted by its tenant's policy.
    #[serde(with = "time::serde::rfc3339")]
    pub keep_until: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub deleted_at: Option<OffsetDateTime>,
}
