//! The attempt that takes time: a port of a device is reached while it is open, and neither before nor after.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::lookout::{Expected, Knock, Lookout, Phase};
use crate::isolation::Isolation;
use crate::tunnel::plane::Plane;
use crate::tunnel::slice::Addresses;

/// How long the port is open.
const OPEN_FOR: Duration = Duration::from_secs(2);
/// How much later the kernel may close it: it counts in ticks.
const CLOSED_WITHIN: Duration = Duration::from_millis(100);
/// How long a connection is tried. The first segment goes out at once, the second after a second.
const TRY_FOR: Duration = Duration::from_millis(150);
/// How long a segment may take through the tunnel, if it is let through.
const ARRIVES_WITHIN: Duration = Duration::from_millis(750);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What is tried: a port of the first device; the second one's is never open.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    pub(super) isolation: &'a Arc<Isolation>,
    pub(super) plane: &'a Plane,
    pub(super) lookout: &'a Lookout,
    pub(super) devices: [Addresses; 2],
    pub(super) port: u16,
}

impl Opening<'_> {
    /// Tries it. An error: the port could not be opened, and nothing is known.
    pub(super) async fn run(&self) -> Result<(), String> {
        self.expect(Phase::Before);
        self.knock(&self.devices).await;
        let closed_at = Instant::now() + OPEN_FOR;
        self.expect(Phase::Open);
        if let Err(error) = self.isolation.open(self.devices[0], self.port, closed_at).await {
            return Err(format!("a port of a device could not be opened: {error}"));
        }
        self.set_driver(closed_at);
        self.knock(&self.devices).await;
        self.arrives().await;
        sleep_until(closed_at + CLOSED_WITHIN).await;
        self.expect(Phase::After);
        self.knock(&self.devices[..1]).await;
        // The kernel has done it already; this is for whoever remembers what is open.
        let _ = self.isolation.close(self.devices[0], self.port).await;
        Ok(())
    }

    fn expect(&self, phase: Phase) {
        self.lookout.expect(Expected { port: self.port, devices: self.devices, phase });
    }

    /// The driver's wall has to let the same pass.
    fn set_driver(&self, until: Instant) {
        let ip = IpAddr::from(self.devices[0].ipv4);
        if let (Some(owner), Some(host)) = (self.plane.owner(ip), self.plane.slice().host_of(ip)) {
            self.plane.set_openings(host, owner.tunnel, &[(self.port, until)]);
        }
    }

    /// Begins connections to the port, and gives them up.
    async fn knock(&self, devices: &[Addresses]) {
        let ips = devices.iter().flat_map(|device| [IpAddr::V4(device.ipv4), IpAddr::V6(device.ipv6)]);
        let tries = ips.map(|ip| {
            let to = SocketAddr::new(ip, self.port);
            async move {
                // Refused at once by the kernel's rules, or never answered: the device says nothing.
                let _: Result<io::Result<TcpStream>, _> = timeout(TRY_FOR, TcpStream::connect(to)).await;
            }
        });
        futures_util::future::join_all(tries).await;
    }

    async fn arrives(&self) {
        let arrived = async {
            let knock = |is_ipv4| Knock { phase: Phase::Open, device: 0, is_ipv4, has_arrived: true };
            while self.lookout.knocks(knock(true)) == 0 || self.lookout.knocks(knock(false)) == 0 {
                sleep(LOOK_EVERY).await;
            }
        };
        let _ = timeout(ARRIVES_WITHIN, arrived).await;
    }
}
