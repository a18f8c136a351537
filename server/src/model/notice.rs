//! What people outside are told of, and who of them.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// Something that happened. Webhooks name those that they want.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Event {
    #[serde(rename = "access_request.created")]
    AccessRequestCreated,
    #[serde(rename = "access_request.approved")]
    AccessRequestApproved,
    #[serde(rename = "access_request.denied")]
    AccessRequestDenied,
    #[serde(rename = "access_request.withdrawn")]
    AccessRequestWithdrawn,
    #[serde(rename = "access_request.expired")]
    AccessRequestExpired,
    #[serde(rename = "access_policy.created")]
    AccessPolicyCreated,
    #[serde(rename = "access_policy.revoked")]
    AccessPolicyRevoked,
    /// The tenant's settings, how many must approve among them.
    #[serde(rename = "tenant.updated")]
    TenantUpdated,
    #[serde(rename = "grant.created")]
    GrantCreated,
    #[serde(rename = "grant.extended")]
    GrantExtended,
    #[serde(rename = "grant.revoked")]
    GrantRevoked,
    #[serde(rename = "grant.ended")]
    GrantEnded,
    #[serde(rename = "support_session.started")]
    SupportSessionStarted,
    #[serde(rename = "support_session.ended")]
    SupportSessionEnded,
    #[serde(rename = "receipt.made")]
    ReceiptMade,
    /// Nothing was delivered to a webhook for so long that it is off now.
    #[serde(rename = "webhook.disabled")]
    WebhookDisabled,
    /// Devices of a site are across a threshold.
    #[serde(rename = "metric.threshold_crossed")]
    ThresholdCrossed,
    /// And are not any more.
    #[serde(rename = "metric.threshold_cleared")]
    ThresholdCleared,
}

impl Event {
    pub const ALL: [Self; 18] = [
        Self::AccessRequestCreated,
        Self::AccessRequestApproved,
        Self::AccessRequestDenied,
        Self::AccessRequestWithdrawn,
        Self::AccessRequestExpired,
        Self::AccessPolicyCreated,
        Self::AccessPolicyRevoked,
        Self::TenantUpdated,
        Self::GrantCreated,
        Self::GrantExtended,
        Self::GrantRevoked,
        Self::GrantEnded,
        Self::SupportSessionStarted,
        Self::SupportSessionEnded,
        Self::ReceiptMade,
        Self::WebhookDisabled,
        Self::ThresholdCrossed,
        Self::ThresholdCleared,
    ];

    /// Name in the API, in what is sent, and in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AccessRequestCreated => "access_request.created",
            Self::AccessRequestApproved => "access_request.approved",
            Self::AccessRequestDenied => "access_request.denied",
            Self::AccessRequestWithdrawn => "access_request.withdrawn",
            Self::AccessRequestExpired => "access_request.expired",
            Self::AccessPolicyCreated => "access_policy.created",
            Self::AccessPolicyRevoked => "access_policy.revoked",
            Self::TenantUpdated => "tenant.updated",
            Self::GrantCreated => "grant.created",
            Self::GrantExtended => "grant.extended",
            Self::GrantRevoked => "grant.revoked",
            Self::GrantEnded => "grant.ended",
            Self::SupportSessionStarted => "support_session.started",
            Self::SupportSessionEnded => "support_session.ended",
            Self::ReceiptMade => "receipt.made",
            Self::WebhookDisabled => "webhook.disabled",
            Self::ThresholdCrossed => "metric.threshold_crossed",
            Self::ThresholdCleared => "metric.threshold_cleared",
        }
    }

    /// The event of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }

    /// Who gets mail of it, if there is a mail server: those who have to answer, those who wait for an answer, and those whose
    /// devices are entered. The end of a session or of a grant is told by the receipt. `data`: what happened, as the API shows it.
    #[must_use]
    pub fn audience(self, data: &Value) -> Audience {
        match self {
            Self::AccessRequestCreated
            | Self::AccessRequestWithdrawn
            | Self::AccessPolicyCreated
            | Self::AccessPolicyRevoked
            | Self::TenantUpdated
            | Self::SupportSessionStarted
            | Self::ReceiptMade => Audience::tenant(),
            Self::AccessRequestApproved | Self::AccessRequestDenied | Self::AccessRequestExpired => {
                Audience { is_tenant: false, people: ids(&data["requested_by"]) }
            }
            Self::GrantCreated | Self::GrantExtended | Self::GrantRevoked => {
                // Whoever asked for it hears that it was approved.
                let is_asked_for = self == Self::GrantCreated && data["request_id"].is_string();
                let people = if is_asked_for { Vec::new() } else { ids(&data["operator_ids"]) };
                Audience { is_tenant: true, people }
            }
            Self::WebhookDisabled => Audience { is_tenant: true, people: ids(&data["created_by"]) },
            // What devices measure is for systems that watch over them.
            Self::GrantEnded | Self::SupportSessionEnded | Self::ThresholdCrossed | Self::ThresholdCleared => {
                Audience::default()
            }
        }
    }
}

/// Who gets mail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// All people of the tenant that it is about.
    pub is_tenant: bool,
    /// And these, operators mostly.
    pub people: Vec<Uuid>,
}

impl Audience {
    fn tenant() -> Self {
        Self { is_tenant: true, people: Vec::new() }
    }
}

/// One id, or a list of them, or none.
fn ids(value: &Value) -> Vec<Uuid> {
    let one = std::slice::from_ref(value);
    let all = value.as_array().map_or(one, Vec::as_slice);
    all.iter().filter_map(|id| id.as_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_event_has_one_name_everywhere() {
        for event in Event::ALL {
            assert_eq!(serde_json::to_value(event).unwrap(), event.name());
            assert_eq!(Event::named(event.name()), Some(event));
        }
        assert_eq!(Event::named("grant"), None);
    }

    #[test]
    fn an_answer_goes_to_who_asked_and_a_question_to_who_can_answer() {
        let olga = Uuid::from_u128(7);
        let request = json!({"requested_by": olga});
        assert_eq!(Event::AccessRequestCreated.audience(&request), Audience { is_tenant: true, people: vec![] });
        assert_eq!(Event::AccessRequestDenied.audience(&request), Audience { is_tenant: false, people: vec![olga] });
        let grant = json!({"operator_ids": [olga], "request_id": null});
        assert_eq!(Event::GrantCreated.audience(&grant), Audience { is_tenant: true, people: vec![olga] });
        let asked = json!({"operator_ids": [olga], "request_id": Uuid::from_u128(8)});
        assert_eq!(Event::GrantCreated.audience(&asked), Audience { is_tenant: true, people: vec![] });
        assert_eq!(Event::GrantRevoked.audience(&asked), Audience { is_tenant: true, people: vec![olga] });
        assert!(Event::GrantRevoked.audience(&json!({"operator_ids": null})).people.is_empty());
    }
}
