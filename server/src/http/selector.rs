//! Selectors in requests: in their grammar, or, as all of them once were, as an object of labels with their values.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::problem::Problem;
use crate::model::device::Labels;
use crate::model::selector::{Draft, Selector, SelectorError};

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub(crate) enum WrittenSelector {
    /// As in `site=north,role in (a,b),env!=test,!retired` (docs/ACCESS.md).
    Text(String),
    /// All of these labels, with these values.
    Labels(Labels),
}

impl WrittenSelector {
    pub(crate) fn read(&self) -> Result<Selector, Problem> {
        let selector = match self {
            Self::Text(text) => Draft::parse(text).and_then(resolve),
            Self::Labels(labels) => {
                labels.check().map_err(refused)?;
                Selector::try_from(labels)
            }
        };
        selector.map_err(refused)
    }
}

/// A selector in a query.
pub(crate) fn read_query(text: &str) -> Result<Selector, Problem> {
    let selector = Draft::parse(text).and_then(resolve);
    selector.map_err(|error| Problem::bad_request(format!("`selector` is not allowed: {error}.")))
}

fn resolve(draft: Draft) -> Result<Selector, SelectorError> {
    draft.resolve(&BTreeMap::new())
}

fn refused(error: impl std::fmt::Display) -> Problem {
    Problem::unprocessable(format!("`selector` is not allowed: {error}."))
}
