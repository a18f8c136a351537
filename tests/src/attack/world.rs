use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::netns::{SERVER_IPV4, SERVER_IPV6, Site};
use crate::openvpn::Tunnel;
use crate::poll::wait_for;
use crate::program::Program;
use crate::traffic::proxy;

use super::host::here;
use super::watch::{Watch, packets};

/// Of the documentation's networks (RFC 5737, RFC 3849).
const INTERNET_IPV4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
const INTERNET_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 0x80);
/// Where hosts in clouds find their secrets.
const METADATA_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Addresses of a tunnel's ends that are valid between the two only.
const LINK_IPV4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(169, 254, 0, 1), Ipv4Addr::new(169, 254, 0, 2), Ipv4Addr::new(169, 254, 0, 3)];

/// For the kernel to be sure of addresses.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
const PROXY_PORT: u16 = 3128;
/// What runs on the node besides, on all addresses, and answers whoever asks.
const TCP_PORTS: [(&str, u16); 7] = [
    ("ssh", 22),
    ("dns", 53),
    ("rpc", 111),
    ("docker", 2375),
    ("nats", 4222),
    ("postgres", 5432),
    ("http-alternative", 8080),
];
const UDP_PORTS: [(&str, u16); 6] =
    [("dns", 53), ("dhcp", 67), ("ntp", 123), ("snmp", 161), ("ike", 500), ("mdns", 5353)];
/// What there is on the Internet.
const INTERNET_PORTS: [u16; 4] = [22, 53, 80, 443];

/// Everybody but the node, to which each has a route, and which routes to each.
#[derive(Debug)]
pub struct World {
    pub attacker: Arc<Site>,
    pub victim: Arc<Site>,
    pub internet: Site,
    pub other_node: Site,
    directory: PathBuf,
    file: PathBuf,
    _proxy: Program,
}

impl World {
    /// Makes it around the host that this runs on. Its files go to `directory`.
    pub async fn join(directory: &Path) -> anyhow::Result<Self> {
        let internet = Site::join()?;
        internet.sh(&format!(
            "for address in {INTERNET_IPV4}/32 {METADATA_IPV4}/32; do ip addr add $address dev lo; done
             ip addr add {INTERNET_IPV6}/128 dev lo nodad"
        ))?;
        here(&format!("ip route add default via {}; ip -6 route add default via {}", internet.ipv4, internet.ipv6))?;
        let world = Self {
            attacker: Arc::new(Site::join()?),
            victim: Arc::new(Site::join()?),
            internet,
            other_node: Site::join()?,
            directory: directory.to_owned(),
            file: directory.join("world.json"),
            _proxy: proxy((Ipv4Addr::UNSPECIFIED, PROXY_PORT).into(), directory).await?,
        };
        Ok(world)
    }

    /// The description of the world for the attacker's programs.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Lets the two devices have these tunnels, and the other node the networks beside theirs. Says what the attacker knows.
    pub fn tunnels(&self, own: &Tunnel, victim: &Tunnel, ports: &Value) -> anyhow::Result<()> {
        let network = u32::from(own.gateway_ipv4) - 1;
        let mask = u32::from(own.netmask);
        let size = (!mask).wrapping_add(1);
        let beside = |host: u32| {
            let ipv6 = u128::from(own.gateway_ipv6) - 1 + (1_u128 << 64) + u128::from(host);
            (Ipv4Addr::from(network + size + host), Ipv6Addr::from(ipv6))
        };
        let (others_ipv4, others_ipv6) = beside(0);
        let Site { ipv4, ipv6, .. } = &self.other_node;
        here(&format!(
            "ip route replace {others_ipv4}/{} via {ipv4}; ip -6 route replace {others_ipv6}/64 via {ipv6}",
            mask.leading_ones()
        ))?;
        let nobody = (Ipv4Addr::from(network + size - 2), Ipv6Addr::from(u128::from(own.gateway_ipv6) + 0xfff0));
        let link = |host: u8| (LINK_IPV4[usize::from(host) - 1], Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host.into()));
        let (gateway, device) = (beside(1), beside(7));
        for (ipv4, ipv6) in [gateway, device] {
            self.other_node
                .sh(&format!("ip addr replace {ipv4}/32 dev lo; ip addr replace {ipv6}/128 dev lo nodad"))?;
        }
        let mut told = json!({
            "own": both((own.ipv4, own.ipv6)),
            "victim": both((victim.ipv4, victim.ipv6)),
            "gateway": both((own.gateway_ipv4, own.gateway_ipv6)),
            "outer": both((SERVER_IPV4, SERVER_IPV6)),
            "cable": both((self.attacker.router_ipv4, self.attacker.router_ipv6)),
            "victim_site": both((self.victim.ipv4, self.victim.ipv6)),
            "internet": both((INTERNET_IPV4, INTERNET_IPV6)),
            "other_gateway": both(gateway),
            "other_device": both(device),
            "nobody": both(nobody),
            "node_link": both(link(1)),
            "own_link": both(link(2)),
            "victim_link": both(link(3)),
            "broadcast": Ipv4Addr::from(network + size - 1),
            "proxy_port": PROXY_PORT,
            "tcp_ports": ports_of(&TCP_PORTS),
            "udp_ports": ports_of(&UDP_PORTS),
        });
        told["tcp_ports"]["proxy"] = PROXY_PORT.into();
        for (name, port) in ports.as_object().context("not an object")? {
            if name.ends_with("_port") {
                told[name] = port.clone();
            } else {
                told["tcp_ports"][name] = port.clone();
            }
        }
        std::fs::write(&self.file, told.to_string())?;
        Ok(())
    }

    /// Waits until nobody asks any longer whether somebody else has his IPv6 addresses: until then nothing is forwarded to them.
    pub async fn settles(&self) -> anyhow::Result<()> {
        const ASK: &str = "ip -6 -o addr show tentative";
        wait_for("addresses that are sure", SETTLE_LIMIT, async || {
            let mut unsure = here(ASK)?;
            for site in [&*self.attacker, &*self.victim, &self.internet, &self.other_node] {
                unsure += &site.sh(ASK)?;
            }
            anyhow::ensure!(unsure.is_empty(), "{unsure}");
            Ok(())
        })
        .await
    }

    /// Watches what arrives behind cables, and what the programs there answer.
    pub async fn watch_outside(&self) -> anyhow::Result<[Watch; 2]> {
        let there =
            |place: &str| json!({ "packets": [packets("wan0", "in", place)], "tcp": INTERNET_PORTS, "udp": [53] });
        Ok([
            Watch::start_at(&self.internet, self.log("internet"), &there("Internet")).await?,
            Watch::start_at(&self.other_node, self.log("other-node"), &there("other node")).await?,
        ])
    }

    /// Watches what the node's own stack takes, with all that runs there, and these packets. `interface` has the tunnels.
    pub async fn watch_node(&self, interface: &str, packets: &[Value]) -> anyhow::Result<Watch> {
        let port = |ports: &[(&str, u16)]| ports.iter().map(|(_, port)| *port).collect::<Vec<_>>();
        let told = json!({
            "packets": packets,
            "raw": "node",
            "groups": [interface],
            "tcp": port(&TCP_PORTS),
            "udp": port(&UDP_PORTS),
        });
        Watch::start(self.log("node"), &told).await
    }

    /// Watches what the attacker is answered.
    pub async fn watch_attacker(&self, tunnel: &Tunnel) -> anyhow::Result<Watch> {
        let told = json!({ "packets": [packets(&tunnel.interface, "in", "answer")] });
        Watch::start_at(&self.attacker, self.log("attacker"), &told).await
    }

    /// Watches what the other device gets, through its tunnel and beside it.
    pub async fn watch_victim(&self, tunnel: &Tunnel) -> anyhow::Result<Watch> {
        let told = json!({
            "packets": [packets(&tunnel.interface, "in", "device"), packets("wan0", "in", "site")],
            "tcp": [22],
            "udp": [53],
        });
        Watch::start_at(&self.victim, self.log("victim"), &told).await
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.watch.log"))
    }
}

fn both((ipv4, ipv6): (Ipv4Addr, Ipv6Addr)) -> Value {
    json!({ "4": IpAddr::from(ipv4), "6": IpAddr::from(ipv6) })
}

fn ports_of(ports: &[(&str, u16)]) -> Value {
    ports.iter().map(|(name, port)| ((*name).to_owned(), Value::from(*port))).collect::<serde_json::Map<_, _>>().into()
}
