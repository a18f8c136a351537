//! What making, changing and rolling back have in common: a version is checked for every device that it is for, then written.

use cloudlink_proto::ids::{DeviceId, TenantId};
use cloudlink_proto::link::CONFIGURATION_BYTES_MAX;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::bus::Hint;
use crate::http::Context;
use crate::http::auth::Caller;
use crate::http::problem::{Kind, Problem, respond_as_problem};
use crate::model::audit::Subject;
use crate::model::configuration::{ConfigurationDocument, DOCUMENTS_MAX, PRIORITY_MAX, Unfit, UnfitDevice};
use crate::store::audit::audit_append;
use crate::store::configuration::{Affected, TAKEN, configuration_settle_in_txn, configuration_show};
use crate::store::{StoreError, Transaction};

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("no tenant")]
    NoTenant,
    #[error("no such tenant")]
    TenantUnknown,
    #[error("no such device")]
    DeviceUnknown,
    #[error("neither a device nor a name and a selector")]
    Whose,
    #[error("the name or the device has a document")]
    Taken,
    #[error("too many documents")]
    TooMany,
    #[error("the version is not kept")]
    NoVersion,
    #[error("a device cannot have it")]
    Unfit(UnfitDevice),
    #[error(transparent)]
    Refused(#[from] Problem),
    #[error(transparent)]
    Store(#[from] StoreError),
}

respond_as_problem!(RouteError);

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NoTenant => Self::unprocessable("Say with `tenant_id` whose devices it is for."),
            RouteError::TenantUnknown => {
                Self::unprocessable("There is no tenant of this `tenant_id` that you may see.")
            }
            RouteError::DeviceUnknown => {
                Self::unprocessable("There is no active device of this `device_id` that you may see.")
            }
            RouteError::Whose => Self::unprocessable("Give either `device_id`, or `name` and `selector`."),
            RouteError::Taken => {
                Self::new(Kind::Conflict, "There is a document of this name, or for this device. Change that one.")
            }
            RouteError::TooMany => Self::new(
                Kind::Conflict,
                format!("There are {DOCUMENTS_MAX} documents already. Make one that is not needed empty: `{{}}`."),
            ),
            RouteError::NoVersion => Self::unprocessable(
                "There is no such version any more. See GET /configuration-documents/{id}/versions.",
            ),
            RouteError::Unfit(UnfitDevice { device, name, why, .. }) => match why {
                Unfit::TooLarge => Self::unprocessable(format!(
                    "The configuration of {name} ({device}) would have more than {CONFIGURATION_BYTES_MAX} bytes."
                )),
                Unfit::Schema(violation) => Self::new(
                    Kind::ConfigurationInvalid,
                    format!("The configuration of {name} ({device}) would not be as the schema says: {violation}."),
                )
                .violation(violation.pointer, violation.rule),
            },
            RouteError::Refused(problem) => problem,
            RouteError::Store(error) if error.constraint().is_some_and(|name| TAKEN.contains(&name)) => {
                RouteError::Taken.into()
            }
            RouteError::Store(error) => error.into(),
        }
    }
}

/// The tenant that is meant, of those that the caller may act for.
pub(super) fn tenant_of(caller: &Caller, asked: Option<Uuid>) -> Result<TenantId, RouteError> {
    match (caller.tenant(), asked.map(TenantId::from_uuid)) {
        (Some(own), Some(asked)) if own != asked => Err(RouteError::TenantUnknown),
        (own, asked) => own.or(asked).ok_or(RouteError::NoTenant),
    }
}

/// As it is stored and given to devices.
pub(super) fn check_content(content: &Map<String, Value>) -> Result<String, Problem> {
    let text = serde_json::to_string(content).map_err(Problem::internal_because)?;
    if text.len() > CONFIGURATION_BYTES_MAX {
        return Err(Problem::unprocessable(format!("`content` must have at most {CONFIGURATION_BYTES_MAX} bytes.")));
    }
    Ok(text)
}

pub(super) fn check_priority(priority: i32) -> Result<(), Problem> {
    if (-PRIORITY_MAX..=PRIORITY_MAX).contains(&priority) {
        return Ok(());
    }
    Err(Problem::unprocessable(format!("`priority` must be -{PRIORITY_MAX} to {PRIORITY_MAX}.")))
}

/// What has been written is checked for all that it is for, told in the audit log, and committed; devices are given theirs.
pub(super) async fn commit(
    context: &Context,
    caller: &Caller,
    mut transaction: Transaction,
    written: (TenantId, Uuid),
    affected: &Affected,
    action: &str,
) -> Result<ConfigurationDocument, RouteError> {
    let (tenant, id) = written;
    configuration_settle_in_txn(&mut transaction, tenant, affected).await?.map_err(RouteError::Unfit)?;
    let document = configuration_show(&mut transaction, id).await?.ok_or_else(Problem::not_found)?;
    let details = json!({
        "version": document.version, "device_id": document.device_id, "name": document.name, "selector": document.selector,
        "priority": document.priority, "reason": document.reason, "restores": document.restores,
    });
    let subject = Subject::new("configuration_document", id);
    audit_append(&mut transaction, tenant, &caller.actor(), action, subject, details).await?;
    context.store.commit(transaction).await?;
    context.bus.send(Hint::ConfigurationDue(tenant));
    Ok(document)
}

/// Whom a version of this document is for.
pub(super) fn affected(document: &ConfigurationDocument, selectors: Vec<crate::model::selector::Selector>) -> Affected {
    match document.device_id {
        Some(device) => Affected::Device(DeviceId::from_uuid(device)),
        None => Affected::Selected(selectors),
    }
}
