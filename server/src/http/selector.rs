//! Selectors in requests: in their grammar, or, as all of them once were, as an object of labels with their values. The groups that
//! they name are those of whoever asks, and are taken for what they mean at this moment.

use std::collections::BTreeMap;

use cloudlink_proto::ids::TenantId;
use serde::Deserialize;
use sqlx::PgConnection;

use super::problem::Problem;
use crate::model::device::Labels;
use crate::model::selector::{Draft, Selector, SelectorError};
use crate::store::group::group_selectors;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub(crate) enum WrittenSelector {
    /// As in `site=north,role in (a,b),env!=test,!retired,@group` (docs/ACCESS.md).
    Text(String),
    /// All of these labels, with these values.
    Labels(Labels),
}

impl WrittenSelector {
    pub(crate) async fn resolve(
        &self,
        connection: &mut PgConnection,
        owner: Option<TenantId>,
    ) -> Result<Selector, Problem> {
        match self {
            Self::Text(text) => {
                resolve(connection, owner, Draft::parse(text).map_err(refused)?).await?.map_err(refused)
            }
            Self::Labels(labels) => {
                labels.check().map_err(refused)?;
                Selector::try_from(labels).map_err(refused)
            }
        }
    }
}

/// What a draft says, with the owner's groups as they are now.
pub(crate) async fn resolve(
    connection: &mut PgConnection,
    owner: Option<TenantId>,
    draft: Draft,
) -> Result<Result<Selector, SelectorError>, Problem> {
    let names = draft.groups();
    let groups = if names.is_empty() { BTreeMap::new() } else { group_selectors(connection, owner, &names).await? };
    Ok(draft.resolve(&groups))
}

fn refused(error: impl std::fmt::Display) -> Problem {
    Problem::unprocessable(format!("`selector` is not allowed: {error}."))
}
