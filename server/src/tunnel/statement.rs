//! The statements that tunnels share, each for many of them at once.

use cloudlink_proto::ids::DeviceId;

use crate::batch::Statement;
use crate::store::tunnel::{Candidate, TunnelTraffic, address_lease, tunnel_count};
use crate::store::{Connection, StoreError};

/// Which address does the device have? None: there is none left, or it may not open a tunnel.
#[derive(Debug)]
pub(super) struct Leases {
    pub(super) slice: u32,
    pub(super) hosts_max: u32,
}

impl Statement for Leases {
    type Question = Candidate;
    type Answer = Option<u32>;
    type Key = DeviceId;
    const NAME: &'static str = "address_lease";
    const EVEN_UNHEARD: bool = false;

    fn key(candidate: &Candidate) -> DeviceId {
        candidate.device_id
    }

    async fn ask(&self, connection: &mut Connection, candidates: &[Candidate]) -> Result<Vec<Option<u32>>, StoreError> {
        let leased = address_lease(connection, self.slice, self.hosts_max, candidates).await?;
        let host =
            |candidate: &Candidate| Some(leased.iter().find(|leased| leased.device_id == candidate.device_id)?.host);
        Ok(candidates.iter().map(host).collect())
    }
}

/// A tunnel has ended, and this is what went through it.
#[derive(Debug)]
pub(super) struct Totals;

impl Statement for Totals {
    type Question = TunnelTraffic;
    type Answer = ();
    type Key = DeviceId;
    const NAME: &'static str = "tunnel_count";

    fn key(total: &TunnelTraffic) -> DeviceId {
        total.device_id
    }

    async fn ask(&self, connection: &mut Connection, totals: &[TunnelTraffic]) -> Result<Vec<()>, StoreError> {
        tunnel_count(connection, totals).await?;
        Ok(vec![(); totals.len()])
    }
}
