//! The audit log: who did what, in a chain of hashes a tenant.

use cloudlink_proto::ids::TenantId;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

/// The platform's own chain: what concerns no single tenant.
pub const PLATFORM: TenantId = TenantId::from_uuid(Uuid::nil());

/// Who did it.
#[derive(Clone, Debug)]
pub enum Actor {
    Person {
        id: Uuid,
        name: String,
    },
    Device {
        id: Uuid,
        name: String,
    },
    /// The server itself, by a deadline or at its set-up.
    Server {
        name: String,
    },
}

impl Actor {
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Person { id, name } => json!({"kind": "person", "id": id, "name": name}),
            Self::Device { id, name } => json!({"kind": "device", "id": id, "name": name}),
            Self::Server { name } => json!({"kind": "server", "id": null, "name": name}),
        }
    }
}

/// To what it was done.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    pub kind: &'static str,
    pub id: Uuid,
}

impl Subject {
    #[must_use]
    pub const fn new(kind: &'static str, id: Uuid) -> Self {
        Self { kind, id }
    }

    #[must_use]
    pub fn to_json(self) -> serde_json::Value {
        json!({"kind": self.kind, "id": self.id})
    }
}

/// One entry, as `cloudlink audit verify` reads it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct AuditEntry {
    /// Whose chain; the nil UUID is the platform's.
    pub tenant_id: Uuid,
    pub seq: i64,
    /// The JSON text that was hashed, byte for byte.
    pub entry: String,
    /// `SHA-256(hash of the entry before || entry)`, in hex. Before the first: 32 zero bytes.
    pub hash: String,
}
