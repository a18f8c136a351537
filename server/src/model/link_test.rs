//! Tests of how fast the ways to devices are.

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Done,
    /// The client closed a download before its time.
    Left,
    /// It was cut: it took too long.
    Time,
    /// It had carried as much as it may.
    Bytes,
    /// It was cut: the client does not speak NDT7.
    Protocol,
    /// The connection broke, or was cut because the device was revoked.
    Lost,
}

impl Outcome {
    pub const ALL: [Self; 6] = [Self::Done, Self::Left, Self::Time, Self::Bytes, Self::Protocol, Self::Lost];

    /// Name in the API and the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Left => "left",
            Self::Time => "time",
            Self::Bytes => "bytes",
            Self::Protocol => "protocol",
            Self::Lost => "lost",
        }
    }
}

/// One direction, as the node has measured it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct LinkTest {
    pub id: Uuid,
    /// The command that ordered it, if one did.
    pub command_id: Option<Uuid>,
    /// `download` or `upload`, as the device sees it.
    pub direction: String,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    pub node: String,
    pub remote_address: String,
    /// As the client calls itself.
    pub client_name: String,
    pub client_version: String,
    /// `done`, `left`, `time`, `bytes`, `protocol` or `lost`. This and the figures are null while it runs, and for ever if its node was
    /// lost meanwhile.
    pub outcome: Option<String>,
    pub seconds: Option<f64>,
    /// In messages of the test.
    pub bytes: Option<i64>,
    /// Of what has arrived, by the node's kernel.
    pub bits_per_second: Option<i64>,
    pub min_rtt_us: Option<i64>,
    /// By the node: of a download, therefore.
    pub retransmitted_bytes: Option<i64>,
}
