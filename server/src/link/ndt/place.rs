//! How many tests there may be at once on this node: in all, of a tenant, and of a device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloudlink_proto::ids::{DeviceId, TenantId};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::LinkTest;
use crate::link::admission::Identified;

/// How often somebody who waits for the end of all tests looks.
const EMPTIED_CHECK: Duration = Duration::from_millis(50);

/// The tests of this node.
#[derive(Debug, Default)]
pub(crate) struct Tests(Mutex<Inside>);

/// No larger than the tests that there may be.
#[derive(Debug, Default)]
struct Inside {
    devices: HashMap<DeviceId, Entered>,
    tenants: HashMap<TenantId, u32>,
}

/// Who tests.
#[derive(Debug)]
struct Entered {
    certificate_serial: Box<[u8]>,
    revoked: CancellationToken,
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
    /// The device, or its certificate, was revoked.
    pub(super) revoked: CancellationToken,
}

impl Tests {
    pub(super) fn enter(this: &Arc<Self>, config: &LinkTest, peer: &Identified) -> Result<Place, Full> {
        let (device, tenant) = (peer.device_id, peer.tenant_id);
        let mut inside = this.lock();
        if inside.devices.contains_key(&device) {
            return Err(Full::Device);
        }
        let of_tenant = inside.tenants.get(&tenant).copied().unwrap_or_default();
        if of_tenant >= config.tenant_max {
            return Err(Full::Tenant);
        }
        if inside.devices.len() >= config.node_max as usize {
            return Err(Full::Node);
        }
        let revoked = CancellationToken::new();
        let entered = Entered { certificate_serial: peer.serial.clone(), revoked: revoked.clone() };
        inside.devices.insert(device, entered);
        inside.tenants.insert(tenant, of_tenant + 1);
        Ok(Place { tests: Arc::clone(this), device, tenant, revoked })
    }

    /// Ends the test of a device that was revoked; with a serial only if it came with that certificate.
    pub(crate) fn revoke(&self, device: DeviceId, certificate_serial: Option<&[u8]>) {
        let inside = self.lock();
        if let Some(entered) = inside.devices.get(&device)
            && certificate_serial.is_none_or(|serial| *serial == *entered.certificate_serial)
        {
            entered.revoked.cancel();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().devices.len()
    }

    /// Waits until there is none.
    pub(crate) async fn emptied(&self) {
        while self.len() > 0 {
            sleep(EMPTIED_CHECK).await;
        }
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
    use tokio::time::Instant;

    use super::*;
    use crate::model::new_id;

    fn peer(tenant_id: TenantId) -> Identified {
        let device_id = DeviceId::from_uuid(new_id());
        Identified { device_id, tenant_id, serial: [7].into(), expires_at: Instant::now() }
    }

    fn tenant() -> TenantId {
        TenantId::from_uuid(new_id())
    }

    #[test]
    fn a_device_a_tenant_and_a_node_have_no_more_than_they_may() {
        let config = LinkTest { node_max: 3, tenant_max: 2, ..LinkTest::default() };
        let tests = Arc::new(Tests::default());
        let (one, other) = (tenant(), tenant());
        let [a, b, c] = [(); 3].map(|()| peer(one));
        let [d, e] = [(); 2].map(|()| peer(other));
        let enter = |peer| Tests::enter(&tests, &config, peer);
        let first = enter(&a).unwrap();
        assert_eq!(enter(&a).unwrap_err(), Full::Device);
        let second = enter(&b).unwrap();
        assert_eq!(enter(&c).unwrap_err(), Full::Tenant);
        let third = enter(&d).unwrap();
        assert_eq!(enter(&e).unwrap_err(), Full::Node);
        drop(second);
        let fourth = enter(&c).unwrap();
        drop((first, third, fourth));
        let inside = tests.lock();
        assert!(inside.devices.is_empty() && inside.tenants.is_empty(), "{inside:?}");
    }

    #[test]
    fn a_revocation_ends_the_test_that_it_is_meant_for() {
        let config = LinkTest { node_max: 3, tenant_max: 3, ..LinkTest::default() };
        let tests = Arc::new(Tests::default());
        let peers = [(); 3].map(|()| peer(tenant()));
        let places = [0, 1, 2].map(|number| Tests::enter(&tests, &config, &peers[number]).unwrap());
        tests.revoke(peers[0].device_id, None);
        tests.revoke(peers[1].device_id, Some(&[7]));
        // Of a certificate of before.
        tests.revoke(peers[2].device_id, Some(&[6]));
        tests.revoke(DeviceId::from_uuid(new_id()), None);
        assert_eq!(places.each_ref().map(|place| place.revoked.is_cancelled()), [true, true, false]);
        assert_eq!(tests.len(), 3, "until they have ended");
    }
}
