//! Which scope a token needs on which route, if it has scopes: told by the tag of the operation and its method.

use http::Method;
use utoipa::openapi::path::Operation;

use crate::model::api_scope::ApiScope;

/// Routes that tell somebody about itself, or end its own token.
const FREE: [&str; 2] = ["me_show", "auth_logout"];

/// `None`: any valid token will do. What is not known here wants the widest scope.
pub(super) fn of(method: &Method, operation: &Operation) -> Option<ApiScope> {
    if operation.operation_id.as_deref().is_some_and(|id| FREE.contains(&id)) {
        return None;
    }
    let tag = operation.tags.as_ref().and_then(|tags| tags.first()).map_or("", String::as_str);
    Some(match (tag, method) {
        // A look into a device, live or afterwards, is more than reading: secrets are typed there.
        ("support" | "recordings", _) => ApiScope::Support,
        (_, &Method::GET) => ApiScope::Read,
        ("devices" | "groups" | "thresholds" | "configuration", _) => ApiScope::Devices,
        ("commands" | "rollouts", _) => ApiScope::Commands,
        ("openings", _) => ApiScope::Support,
        ("grants" | "access", _) => ApiScope::Grants,
        ("nodes" | "storm-plan", _) => ApiScope::Nodes,
        _ => ApiScope::Admin,
    })
}
