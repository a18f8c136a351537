//! A data centre: each node on a host of its own, load balancers in front of them, database and NATS beside them.
//!
//! The hosts are sites, and the test's own network is what joins them: it passes packets on between them, and can stop doing so.
//! That network also has the addresses from which simulated devices dial.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context as _;
use nix::unistd::Uid;
use tempfile::TempDir;

use super::{Database, LEASE_SECONDS, Nats, Place};
use crate::api::Api;
use crate::balancer::{Balancer, DEVICE_PORT, OPERATIONS_PORT, PEOPLE_PORT};
use crate::fleet::{Fleet, directory};
use crate::netns::{SERVER_IPV4, Site, done};
use crate::program::{binary, bound};
use crate::server::{Plan, Runner, Server, Settings};

/// Where devices dial from: all of this is this host.
const DEVICES: &str = "10.0.0.0/8";
const CLUSTER_PORT: u16 = 7443;
/// Connections through one load balancer, which takes two open files for each: of 20,000 that a process has in many a machine.
const DEVICES_PER_BALANCER: usize = 9_000;
/// Of what the test does to the network.
const TABLE: &str = "cloudlink_harm";
/// Debian's `faketime`, by which a program sees another wall clock, and the real monotonic one.
const FAKETIME: &str = "faketime/libfaketime.so.1";

/// Dropped in this order.
#[derive(Debug)]
pub struct Centre {
    /// All nodes but the first.
    others: Vec<Server>,
    /// With the first node.
    pub fleet: Fleet,
    pub balancers: Vec<Balancer>,
    sites: Vec<Arc<Site>>,
    pub nats: Nats,
    pub database: Database,
    clocks: Option<Vec<PathBuf>>,
    directory: TempDir,
}

/// Whom a node may be kept from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Database,
    Nats,
    OtherNodes,
    Balancers,
}

impl Centre {
    /// So many nodes for so many devices, with more of the configuration. To be called in a network of its own
    /// ([`crate::netns::run`]).
    pub async fn start(nodes: usize, devices: usize, has_standby: bool, set: &[String]) -> anyhow::Result<Self> {
        let directory = directory()?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        ip(&["route", "add", "local", DEVICES, "dev", "lo"])?;
        let place = Place { ip: SERVER_IPV4.into(), is_durable: true };
        let database =
            if has_standby { Database::start_with_standby_at(place).await? } else { Database::start_at(place).await? };
        let nats = Nats::start_at(SERVER_IPV4.into()).await?;
        let join = |count: usize| (0..count).map(|_| Ok(Arc::new(Site::join()?))).collect::<anyhow::Result<Vec<_>>>();
        let (sites, fronts) = (join(nodes)?, join(devices.div_ceil(DEVICES_PER_BALANCER).max(1))?);
        let addresses: Vec<Ipv4Addr> = sites.iter().map(|site| site.ipv4).collect();
        let mut balancers = Vec::new();
        for (number, front) in fronts.iter().enumerate() {
            let own = directory.path().join(format!("balancer-{number}"));
            std::fs::create_dir(&own)?;
            balancers.push(Balancer::haproxy(front, &own, &addresses)?);
        }

        let clocks = clocks(directory.path(), nodes)?;
        let set = [shared(&database, &nats, &sites, &fronts), set.to_vec()].concat();
        let settings =
            |number: usize| settings(&sites[number], number, clocks.as_ref().map(|all| all[number].as_path()), &set);
        let fleet = Fleet::start_with(&settings(0)?).await?;
        let mut others = Vec::new();
        for number in 1..nodes {
            let own = directory.path().join(format!("node-{}", number + 1));
            let plan = Plan::new(&own, &settings(number)?)?;
            std::fs::create_dir(own.join("data"))?;
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(fleet.server.data_dir().join("pki")).arg(own.join("data"));
            done(copy)?;
            others.push(plan.start().await?);
        }
        let mut centre = Self { others, fleet, balancers, sites, nats, database, clocks, directory };
        centre.is_whole().await?;
        Ok(centre)
    }

    /// Waits until the load balancers see all nodes.
    pub async fn is_whole(&mut self) -> anyhow::Result<()> {
        for balancer in &mut self.balancers {
            for number in 1..=self.sites.len() {
                balancer.sees("device", number, "UP").await?;
                balancer.sees("people", number, "UP").await?;
            }
        }
        Ok(())
    }

    #[must_use]
    pub fn nodes(&self) -> usize {
        self.sites.len()
    }

    pub fn node(&mut self, number: usize) -> &mut Server {
        match number.checked_sub(1) {
            None => &mut self.fleet.server,
            Some(other) => &mut self.others[other],
        }
    }

    /// Where devices dial.
    #[must_use]
    pub fn device_addresses(&self) -> Vec<SocketAddr> {
        self.balancers.iter().map(|balancer| (balancer.site.ipv4, DEVICE_PORT).into()).collect()
    }

    /// The same caller, of whichever node the load balancer takes.
    pub fn through_balancer(&self, somebody: &Api) -> anyhow::Result<Api> {
        let front = self.balancers.first().context("there is a load balancer")?;
        let url = format!("https://{}:{PEOPLE_PORT}", front.site.ipv4);
        Api::new(&url, &self.fleet.server.ca_file(), somebody.token())
    }

    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Copies what the nodes have said.
    pub fn keep_logs(&self, directory: &Path) -> anyhow::Result<()> {
        let nodes = std::iter::once(&self.fleet.server).chain(&self.others);
        for (number, node) in nodes.enumerate() {
            std::fs::write(directory.join(format!("node-{}.log", number + 1)), node.log_text()?)?;
        }
        Ok(())
    }

    /// Nothing passes any longer between a node and these, and nobody is told: what was sent is lost, and sent again by TCP.
    pub fn cut(&self, node: usize, peers: &[Peer]) -> anyhow::Result<()> {
        let own = &self.sites[node].interface;
        let mut drops = Vec::new();
        for peer in peers {
            match peer {
                Peer::Database => {
                    let ports: Vec<_> = self.database.addresses().iter().map(|at| at.port().to_string()).collect();
                    drops.extend(at_this_host(own, &ports.join(", ")));
                }
                Peer::Nats => drops.extend(at_this_host(own, &self.nats.address.port().to_string())),
                Peer::OtherNodes => {
                    let others = self.sites.iter().filter(|site| site.interface != *own);
                    drops.extend(others.flat_map(|other| between(own, &other.interface)));
                }
                Peer::Balancers => {
                    drops.extend(self.balancers.iter().flat_map(|other| between(own, &other.site.interface)));
                }
            }
        }
        let mut rules = format!("add table inet {TABLE}\n");
        for hook in ["input", "forward", "output"] {
            rules += &format!("add chain inet {TABLE} {hook} {{ type filter hook {hook} priority 0; }}\n");
        }
        for drop in drops {
            rules += &format!("add rule inet {TABLE} {drop} drop\n");
        }
        nft(&rules)
    }

    /// Everything passes again.
    pub fn mend(&self) -> anyhow::Result<()> {
        nft(&format!("add table inet {TABLE}\ndelete table inet {TABLE}\n"))
    }

    /// Puts a node's wall clock so many seconds ahead, or behind. It runs on. Says whether that is possible here.
    pub fn put_clock(&self, node: usize, seconds: i64) -> anyhow::Result<bool> {
        let Some(clocks) = &self.clocks else { return Ok(false) };
        write_clock(&clocks[node], seconds)?;
        Ok(true)
    }
}

impl Drop for Centre {
    /// What hangs in the network would keep nodes from stopping.
    fn drop(&mut self) {
        let _ = self.mend();
    }
}

/// What all nodes are told.
fn shared(database: &Database, nats: &Nats, sites: &[Arc<Site>], fronts: &[Arc<Site>]) -> Vec<String> {
    let list = |of: &[Arc<Site>]| of.iter().map(|site| site.ipv4.to_string()).collect::<Vec<_>>().join(",");
    let fronts = list(fronts);
    vec![
        format!("database.url={}", database.url()),
        format!("cluster.nats=nats://{}", nats.address),
        format!("cluster.lease_seconds={LEASE_SECONDS}"),
        format!("device.proxy_from={fronts}"),
        format!("people.proxy_from={fronts}"),
        format!("people.names=localhost,{},{fronts}", list(sites)),
    ]
}

fn settings(site: &Site, number: usize, clock: Option<&Path>, set: &[String]) -> anyhow::Result<Settings> {
    let at = |port: u16| SocketAddr::new(IpAddr::V4(site.ipv4), port);
    let internal = at(CLUSTER_PORT);
    let mut command = site.entry();
    if let Some(clock) = clock {
        command.extend(["env".to_owned(), format!("LD_PRELOAD={}", faketime().context("it was there")?.display())]);
        command.extend(["FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(), "FAKETIME_CACHE_DURATION=1".to_owned()]);
        command.push(format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()));
    }
    command.push(binary("cloudlinkd")?.to_string_lossy().into_owned());
    let own = [
        format!("node=node-{}", number + 1),
        format!("cluster.listen={internal}"),
        format!("cluster.address={internal}"),
    ];
    Ok(Settings {
        device: Some(at(DEVICE_PORT)),
        people: Some(at(PEOPLE_PORT)),
        operations: Some(at(OPERATIONS_PORT)),
        set: own.into_iter().chain(set.iter().cloned()).collect(),
        runner: Some(Runner { user: Uid::effective(), command }),
        ..Settings::default()
    })
}

/// A file for the clock of each node, if clocks can be put.
fn clocks(directory: &Path, nodes: usize) -> anyhow::Result<Option<Vec<PathBuf>>> {
    if faketime().is_none() {
        return Ok(None);
    }
    let paths = (0..nodes).map(|number| directory.join(format!("clock-{number}")));
    let written = paths.map(|path| write_clock(&path, 0).map(|()| path));
    Ok(Some(written.collect::<anyhow::Result<_>>()?))
}

/// It may be read at any moment.
fn write_clock(path: &Path, seconds: i64) -> anyhow::Result<()> {
    let next = path.with_extension("next");
    std::fs::write(&next, format!("{seconds:+}\n"))?;
    Ok(std::fs::rename(next, path)?)
}

fn faketime() -> Option<PathBuf> {
    let libraries = std::fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path().join(FAKETIME));
    libraries.into_iter().find(|library| library.is_file())
}

/// Both ways between a site and ports of this host.
fn at_this_host(interface: &str, ports: &str) -> [String; 2] {
    [
        format!("input iifname {interface} tcp dport {{ {ports} }}"),
        format!("output oifname {interface} tcp sport {{ {ports} }}"),
    ]
}

/// Both ways between two sites.
fn between(one: &str, other: &str) -> [String; 2] {
    [format!("forward iifname {one} oifname {other}"), format!("forward iifname {other} oifname {one}")]
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let mut ip = Command::new("ip");
    ip.args(arguments);
    done(ip).map(drop)
}

fn nft(rules: &str) -> anyhow::Result<()> {
    let mut nft = bound("nft");
    nft.arg(rules);
    done(nft).map(drop)
}
