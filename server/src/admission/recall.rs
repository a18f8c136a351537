//! Which tenant's devices came from where: all that is known of somebody before a handshake.

use std::collections::HashMap;

use cloudlink_proto::ids::TenantId;

use super::turnstile::Class;
use crate::link::limit::Source;

/// Sources of one generation. Two are kept, so between this many and twice as many are remembered: about 5 MB.
const GENERATION_MAX: usize = 32_768;

/// Sources of devices that were let in lately. Strangers leave no trace in it, so they cannot push anybody out.
#[derive(Debug, Default)]
pub(crate) struct Recall {
    young: HashMap<Source, TenantId>,
    /// What nobody has come from since the young ones began; forgotten when those are too many.
    old: HashMap<Source, TenantId>,
}

impl Recall {
    pub(crate) fn class_of(&self, source: Source) -> Class {
        self.young
            .get(&source)
            .or_else(|| self.old.get(&source))
            .map_or(Class::Unknown, |tenant| Class::Tenant(*tenant))
    }

    /// A device of the tenant was let in from there. Of several tenants behind one address the last one counts.
    pub(crate) fn learn(&mut self, source: Source, tenant: TenantId) {
        if self.young.len() >= GENERATION_MAX && !self.young.contains_key(&source) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(source, tenant);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use uuid::Uuid;

    use super::*;

    fn source(number: usize) -> Source {
        Source::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap()))
    }

    fn tenant(number: u128) -> TenantId {
        TenantId::from_uuid(Uuid::from_u128(number))
    }

    #[test]
    fn whose_devices_came_last_from_there_counts() {
        let mut recall = Recall::default();
        assert_eq!(recall.class_of(source(1)), Class::Unknown);
        recall.learn(source(1), tenant(1));
        recall.learn(source(1), tenant(2));
        assert_eq!(recall.class_of(source(1)), Class::Tenant(tenant(2)));
        assert_eq!(recall.class_of(source(2)), Class::Unknown);
    }

    #[test]
    fn what_is_remembered_has_an_end_and_who_comes_again_is_not_forgotten() {
        let mut recall = Recall::default();
        for number in 0..3 * GENERATION_MAX {
            recall.learn(source(number), tenant(1));
            if number % 1_000 == 0 {
                recall.learn(source(0), tenant(2));
            }
            assert!(recall.young.len() + recall.old.len() <= 2 * GENERATION_MAX);
        }
        assert_eq!(recall.class_of(source(0)), Class::Tenant(tenant(2)));
        assert_eq!(recall.class_of(source(1)), Class::Unknown);
        assert_eq!(recall.class_of(source(3 * GENERATION_MAX - 1)), Class::Tenant(tenant(1)));
    }
}
