//! Desired configuration: documents that are merged into what each device is to have, and the schema that this must be as.

use cloudlink_proto::ids::{DeviceId, TenantId};
use cloudlink_proto::link::CONFIGURATION_BYTES_MAX;
use cloudlink_proto::link::message::ConfigurationStatus;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use uuid::Uuid;

pub mod schema;

/// The capability of devices that take configuration.
pub const CAPABILITY: &str = "configuration";
/// Documents of a tenant for devices by labels, but for empty ones.
pub const DOCUMENTS_MAX: i64 = 256;
/// The highest priority; the lowest is its negative.
pub const PRIORITY_MAX: i32 = 1000;

/// A version of a document.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct ConfigurationDocument {
    pub id: Uuid,
    pub tenant_id: Uuid,
    /// Whose alone it is. Null: it is for devices by labels.
    pub device_id: Option<Uuid>,
    /// Of one for devices by labels.
    pub name: Option<String>,
    /// Grows with each change; of the newest the `ETag`.
    pub version: i64,
    /// Which devices it is for, groups resolved.
    pub selector: Option<String>,
    /// A document of a higher priority is merged later, and wins; of the same, the later name. A device's own is merged last.
    pub priority: i32,
    /// A JSON merge patch (RFC 7396). Null in lists.
    #[schema(value_type = Option<Object>)]
    pub content: Option<Value>,
    pub reason: String,
    pub created_by: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The version that this one brought back.
    pub restores: Option<i64>,
}

/// How a device stands with its configuration.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConfigurationStanding {
    /// What it is to have. Grows with each change. 0: there was never anything.
    pub desired_version: i64,
    /// What is applied, as its applications told. 0: nothing.
    pub applied_version: i64,
    /// `none`; `pending`: the device has not said yet; `applied`; `failed`; `invalid`: what its documents come to since its labels changed
    /// is not as the schema says, and it keeps what it had.
    pub state: String,
    /// Of `failed` and `invalid`: why.
    pub error: Option<String>,
    /// Since when it stands so.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

/// What a device is to have.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DeviceConfiguration {
    pub device_id: Uuid,
    #[serde(flatten)]
    pub standing: ConfigurationStanding,
    /// Of the content, in hex.
    pub sha256: Option<String>,
    #[schema(value_type = Object)]
    pub content: Value,
    /// What it is merged from, in this order.
    pub documents: Vec<ConfigurationSource>,
}

/// A document that is part of a device's configuration.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct ConfigurationSource {
    pub id: Uuid,
    /// Null: the device's own.
    pub name: Option<String>,
    pub version: i64,
}

/// A device that does not have what it is to have.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct ConfigurationDrift {
    pub device_id: Uuid,
    pub device_name: String,
    pub tenant_id: Uuid,
    #[serde(flatten)]
    pub standing: ConfigurationStanding,
}

/// What every device of a tenant understands.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct ConfigurationSchema {
    pub tenant_id: Uuid,
    /// Grows with each change: the `ETag`. 0: none was ever set, and any document will do.
    pub version: i64,
    /// JSON Schema, draft 2020-12. `{}` says nothing.
    #[schema(value_type = Object)]
    pub schema: Value,
    pub set_by: Option<Uuid>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub set_at: Option<OffsetDateTime>,
}

/// What a device tells, in storable words. The session has checked the bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigurationTold {
    pub held_version: i64,
    pub held_sha256: Vec<u8>,
    pub applied_version: i64,
    pub reported_version: i64,
    pub error: String,
}

/// See [`ConfigurationTold`].
#[must_use]
pub fn told(status: &ConfigurationStatus) -> ConfigurationTold {
    ConfigurationTold {
        held_version: status.held_version.cast_signed(),
        held_sha256: status.held_sha256.to_vec(),
        applied_version: status.applied_version.cast_signed(),
        reported_version: status.reported_version.cast_signed(),
        error: status.error.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect(),
    }
}

/// Why documents cannot be what a device is to have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("it would have more than {CONFIGURATION_BYTES_MAX} bytes")]
    TooLarge,
    #[error("{0}")]
    Schema(#[from] schema::Violation),
}

/// A device whose documents do not come to a configuration.
#[derive(Clone, Debug)]
pub struct UnfitDevice {
    pub tenant: TenantId,
    pub device: DeviceId,
    pub name: String,
    pub why: Unfit,
}

/// Applies a JSON merge patch (RFC 7396).
pub fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(patch) => {
                let entry = target.entry(key).or_insert_with(|| Value::Object(Map::new()));
                if !entry.is_object() {
                    *entry = Value::Object(Map::new());
                }
                if let Value::Object(target) = entry {
                    merge(target, patch);
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

/// What these documents come to, in this order, as JSON text.
pub fn effective<'a>(
    documents: impl IntoIterator<Item = &'a Map<String, Value>>,
    schema: Option<&schema::Schema>,
) -> Result<String, Unfit> {
    let mut whole = Map::new();
    for document in documents {
        merge(&mut whole, document);
    }
    let whole = Value::Object(whole);
    let text = whole.to_string();
    if text.len() > CONFIGURATION_BYTES_MAX {
        return Err(Unfit::TooLarge);
    }
    if let Some(schema) = schema {
        schema.check(&whole)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(object) = value else { panic!("{value} is no object") };
        object
    }

    /// Those of RFC 7396, appendix A, whose both sides are objects.
    #[test]
    fn merges_as_the_rfc_says() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"a": "foo"}), json!({"a": {"b": 1}}), json!({"a": {"b": 1}})),
        ] {
            let mut merged = object(target.clone());
            merge(&mut merged, &object(patch.clone()));
            assert_eq!(Value::Object(merged), result, "{target} + {patch}");
        }
    }

    #[test]
    fn later_documents_win_and_a_null_takes_away() {
        let documents =
            [json!({"a": 1, "b": {"c": 1, "d": 1}}), json!({"a": 2, "b": {"d": null}}), json!({"b": {"e": 3}})];
        let documents: Vec<_> = documents.into_iter().map(object).collect();
        assert_eq!(effective(&documents, None).unwrap(), r#"{"a":2,"b":{"c":1,"e":3}}"#);
        assert_eq!(effective([], None).unwrap(), "{}");
    }

    #[test]
    fn what_is_too_large_together_is_refused() {
        let part = |key: &str| object(json!({key: "x".repeat(CONFIGURATION_BYTES_MAX / 2)}));
        assert_eq!(effective(&[part("a"), part("a")], None).unwrap().len(), CONFIGURATION_BYTES_MAX / 2 + 8);
        assert_eq!(effective(&[part("a"), part("b")], None), Err(Unfit::TooLarge));
    }
}
