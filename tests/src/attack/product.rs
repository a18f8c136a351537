use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::openvpn::{Client, Pings, Tunnel};
use crate::poll::wait_for;
use crate::server::Settings;

use super::case::Attacker;
use super::host::here;
use super::watch::{Seen, Watchers};
use super::world::World;

const PEOPLE_PORT: u16 = 8443;
const OPERATIONS_PORT: u16 = 9090;
/// For all that was sent to be taken.
const QUEUE_LIMIT: Duration = Duration::from_secs(30);

/// `cloudlinkd` in the world, with ports for people and machines on all addresses, and the two devices in their tunnels.
#[derive(Debug)]
pub struct Product {
    pub attacker: Client,
    /// As the API has it.
    pub attacker_id: String,
    pub victim: Client,
    /// As the API has it.
    pub victim_id: String,
    pub own: Tunnel,
    pub other: Tunnel,
    pub watchers: Watchers,
    pub fleet: Fleet,
    pub world: World,
}

impl Product {
    pub const INTERFACE: &str = "cloudlink0";

    /// Starts it on the host that this runs on, with more of the configuration.
    pub async fn start(directory: &Path, set: &[&str]) -> anyhow::Result<Self> {
        let world = World::join(directory).await?;
        let mut settings = Settings::with_tunnels(set);
        settings.people = Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, PEOPLE_PORT)));
        settings.operations = Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, OPERATIONS_PORT)));
        let fleet = Fleet::start_with(&settings).await?;
        let through = |profile: crate::openvpn::Profile| profile.with("allow-recursive-routing");
        let (attacker_device, mut attacker) = fleet.client_with(&world.attacker, "attacker", through).await?;
        let (victim_device, mut victim) = fleet.client_with(&world.victim, "victim", through).await?;
        let (own, other) = (attacker.is_up(1).await?, victim.is_up(1).await?);
        world.tunnels(&own, &other, &Self::ports())?;
        let (attacker_id, victim_id) = (attacker_device.id, victim_device.id);
        let mut it =
            Self { attacker, attacker_id, victim, victim_id, own, other, watchers: Watchers::default(), fleet, world };
        it.watch().await?;
        it.world.settles().await?;
        Ok(it)
    }

    fn ports() -> Value {
        json!({ "link_port": 80, "device_port": 443, "people": PEOPLE_PORT, "operations": OPERATIONS_PORT })
    }

    /// Lets all that comes of the attacker over TCP and UDP come from this port.
    pub fn attack_from(&self, port: u16) -> anyhow::Result<()> {
        let mut ports = Self::ports();
        ports["source_port"] = port.into();
        self.world.tunnels(&self.own, &self.other, &ports)
    }

    /// Begins to watch everywhere, anew where interfaces have been made anew.
    pub async fn watch(&mut self) -> anyhow::Result<()> {
        self.watch_node().await?;
        let Self { own, other, world, .. } = self;
        self.watchers.add([world.watch_attacker(own).await?, world.watch_victim(other).await?]);
        Ok(())
    }

    /// Begins to watch everywhere but at the devices.
    pub async fn watch_node(&mut self) -> anyhow::Result<()> {
        let Self { own, other, world, .. } = self;
        // Those who listen make room first.
        self.watchers = Watchers::default();
        self.watchers.add(world.watch_outside().await?);
        self.watchers.add([world.watch_node(Self::INTERFACE, &inside(own, other)).await?]);
        Ok(())
    }

    /// What was seen of all that the device has sent, and of all that came of it.
    pub async fn seen(&mut self) -> anyhow::Result<Seen> {
        // What is sent through a tunnel stays in its order. There may be more in front than a queue takes.
        wait_for("pings behind all attempts", QUEUE_LIMIT, async || {
            Pings::default().come_back(&self.attacker, &self.own).await
        })
        .await?;
        self.watchers.quiet().await
    }

    /// Who sends through the attacker's tunnel.
    #[must_use]
    pub fn device(&self) -> Attacker<'_> {
        Attacker::at(&self.world.attacker, &self.world)
    }

    /// The attacker's way past its tunnel: the cable of its site.
    pub fn outside(&self) -> anyhow::Result<String> {
        let link = here(&format!("ip -json link show dev {}", self.world.attacker.interface))?;
        let link: Value = serde_json::from_str(&link)?;
        Ok(format!("wan0/{}", link[0]["address"].as_str().context("no hardware address")?))
    }

    /// Who writes into the server's interface as if the server had let it through.
    #[must_use]
    pub fn inside(&self) -> Attacker<'_> {
        Attacker::behind_the_server(&self.world)
    }

    /// The server's interface, as [`Self::inside`] has it: of the same kind as the server's queues.
    pub const QUEUE: &str = "queue:cloudlink0+";
    /// The place where packets are before the kernel has judged them.
    pub const UNJUDGED: &str = "interface";
}

/// What passes the server's interface: into the host before the kernel's rules, and out of it behind them.
fn inside(own: &Tunnel, other: &Tunnel) -> [Value; 2] {
    let mut out = super::packets(Product::INTERFACE, "out", "tunnels");
    let device = "device";
    out["destinations"] = json!({
        own.ipv4.to_string(): "answer",
        own.ipv6.to_string(): "answer",
        other.ipv4.to_string(): device,
        other.ipv6.to_string(): device,
        "169.254.0.3": device,
        "fe80::3": device,
    });
    [super::packets(Product::INTERFACE, "in", Product::UNJUDGED), out]
}
