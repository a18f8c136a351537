//! How many tests there may be at once on this node: in all, of a tenant, and of a device.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloudlink_proto::ids::{DeviceId, TenantId};

use crate::config::LinkTest;

/// The tests of this node.
#[derive(Debug, Default)]
pub(crate) struct Tests(Mutex<Inside>);

/// No larger than the tests that there may be.
#[derive(Debug, Default)]
struct Inside {
    devices: HashSet<DeviceId>,
    tenants: HashMap<TenantId, u32>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    Node,
    Tenant,
    Device,
}

/// A place, for as long as it is held.
#[derive(Debug)]
pub(super) struct Place {
    tests: Arc<Tests>,
    device: DeviceId,
    tenant: TenantId,
}

impl Tests {
    pub(super) fn enter(
        this: &Arc<Self>,
        config: &LinkTest,
        device: DeviceId,
        tenant: TenantId,
    ) -> Result<Place, Full> {
        let mut inside = this.lock();
        if inside.devices.contains(&device) {
            return Err(Full::Device);
        }
        let of_tenant = inside.tenants.get(&tenant).copied().unwrap_or_default();
        if of_tenant >= config.tenant_max {
            return Err(Full::Tenant);
        }
        if inside.devices.len() >= config.node_max as usize {
            return Err(Full::Node);
        }
        inside.devices.insert(device);
        inside.tenants.insert(tenant, of_tenant + 1);
        Ok(Place { tests: Arc::clone(this), device, tenant })
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        // Plain sets and numbers: nothing between them can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.tests.lock();
        inside.devices.remove(&self.device);
        if let Some(tests) = inside.tenants.get_mut(&self.tenant) {
            *tests -= 1;
            if *tests == 0 {
                inside.tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::new_id;

    #[test]
    fn a_device_a_tenant_and_a_node_have_no_more_than_they_may() {
        let config = LinkTest { node_max: 3, tenant_max: 2, ..LinkTest::default() };
        let tests = Arc::new(Tests::default());
        let devices: Vec<_> = (0..5).map(|_| DeviceId::from_uuid(new_id())).collect();
        let (one, other) = (TenantId::from_uuid(new_id()), TenantId::from_uuid(new_id()));
        let enter = |device: usize, tenant| Tests::enter(&tests, &config, devices[device], tenant);
        let first = enter(0, one).unwrap();
        assert_eq!(enter(0, one).unwrap_err(), Full::Device);
        let second = enter(1, one).unwrap();
        assert_eq!(enter(2, one).unwrap_err(), Full::Tenant);
        let third = enter(3, other).unwrap();
        assert_eq!(enter(4, other).unwrap_err(), Full::Node);
        drop(second);
        let fourth = enter(2, one).unwrap();
        drop((first, third, fourth));
        let inside = tests.lock();
        assert!(inside.devices.is_empty() && inside.tenants.is_empty(), "{inside:?}");
    }
}
