//! What the groups that somebody is in make of it here.

use std::collections::BTreeSet;

use crate::config;

/// Which groups mean what.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    admin: Vec<String>,
    operator: Vec<String>,
    tenant_prefix: String,
}

/// What groups say by their names alone. Whether there is such a tenant is for the database to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claimed {
    pub(crate) admin: bool,
    pub(crate) operator: bool,
    /// Ids or names.
    pub(crate) tenants: BTreeSet<String>,
}

impl Groups {
    pub(crate) fn new(config: &config::SignIn) -> Self {
        Self {
            admin: config.admin_groups.clone(),
            operator: config.operator_groups.clone(),
            tenant_prefix: config.tenant_group_prefix.clone(),
        }
    }

    pub(crate) fn claimed(&self, groups: &[String]) -> Claimed {
        let tenants = groups.iter().filter_map(|group| group.strip_prefix(&self.tenant_prefix));
        Claimed {
            admin: groups.iter().any(|group| self.admin.contains(group)),
            operator: groups.iter().any(|group| self.operator.contains(group)),
            tenants: tenants.filter(|tenant| !tenant.is_empty()).map(str::to_owned).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(groups: &[&str]) -> Claimed {
        let known = Groups {
            admin: vec!["admins".to_owned()],
            operator: vec!["support".to_owned(), "field".to_owned()],
            tenant_prefix: "tenant-".to_owned(),
        };
        known.claimed(&groups.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn groups_count_by_their_whole_name() {
        assert_eq!(claimed(&["Admins", "admins2", "support ", "tenant-", "tenan-x", ""]), Claimed::default());
        assert!(claimed(&["x", "admins"]).admin);
        assert!(claimed(&["field"]).operator);
        assert_eq!(claimed(&["tenant-hotel", "tenant-hotel"]).tenants, BTreeSet::from(["hotel".to_owned()]));
    }

    #[test]
    fn somebody_can_be_in_groups_of_several_roles() {
        let claimed = claimed(&["support", "tenant-a", "tenant-b", "admins"]);
        assert!(claimed.admin && claimed.operator);
        assert_eq!(claimed.tenants.len(), 2);
    }
}
