//! Devices whose certificate is known and whose link the database is yet to hear of: how many at once, and how many of one
//! tenant. When the database is slow they pile up, and are told to come back before it is asked for them. No I/O.

use std::collections::HashMap;

use cloudlink_proto::ids::TenantId;

/// Who is being registered.
#[derive(Debug)]
pub(crate) struct Registrations {
    max: u32,
    total: u32,
    /// None of them is 0.
    tenants: HashMap<TenantId, u32>,
}

impl Registrations {
    pub(crate) fn new(max: u32) -> Self {
        Self { max, total: 0, tenants: HashMap::new() }
    }

    /// One more of the tenant, if it may. Beyond half of all, no tenant has more than its part.
    pub(crate) fn begin(&mut self, tenant: TenantId) -> bool {
        let own = self.tenants.get(&tenant).copied().unwrap_or(0);
        let tenants = u32::try_from(self.tenants.len()).unwrap_or(u32::MAX).saturating_add(u32::from(own == 0));
        let is_let_in = self.total < self.max && (self.total < self.max / 2 || own < self.max.div_ceil(tenants));
        if is_let_in {
            self.total += 1;
            *self.tenants.entry(tenant).or_insert(0) += 1;
        }
        is_let_in
    }

    /// One of the tenant is done with.
    pub(crate) fn end(&mut self, tenant: TenantId) {
        let Some(own) = self.tenants.get_mut(&tenant) else { return };
        *own -= 1;
        self.total -= 1;
        if *own == 0 {
            self.tenants.remove(&tenant);
        }
    }

    pub(crate) const fn total(&self) -> u32 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn tenant(number: u128) -> TenantId {
        TenantId::from_uuid(Uuid::from_u128(number))
    }

    /// How many of the tenant get in before one does not.
    fn fill(registrations: &mut Registrations, tenant: TenantId) -> u32 {
        std::iter::from_fn(|| registrations.begin(tenant).then_some(())).map(|()| 1).sum()
    }

    #[test]
    fn a_tenant_alone_has_all() {
        let mut registrations = Registrations::new(10);
        assert_eq!(fill(&mut registrations, tenant(1)), 10);
        assert_eq!(fill(&mut registrations, tenant(2)), 0);
        registrations.end(tenant(1));
        assert_eq!(fill(&mut registrations, tenant(2)), 1, "whoever has least is next");
    }

    #[test]
    fn beyond_half_each_has_its_part() {
        let mut registrations = Registrations::new(10);
        assert!(registrations.begin(tenant(2)));
        assert_eq!(fill(&mut registrations, tenant(1)), 5);
        assert_eq!(fill(&mut registrations, tenant(2)), 4);
        assert_eq!(registrations.total(), 10);
        (0..5).for_each(|_| registrations.end(tenant(1)));
        (0..5).for_each(|_| registrations.end(tenant(2)));
        assert_eq!((registrations.total(), registrations.tenants.len()), (0, 0));
    }
}
