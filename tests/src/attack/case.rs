use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use crate::netns::Site;

use super::world::World;
use super::{PROGRAMS, PYTHON};

/// For all cases, or one scan, to be sent.
const SEND_LIMIT: Duration = Duration::from_secs(60);

/// One attempt, as `tests/attack/case.py` describes it. Its number is its place there.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    pub name: String,
    /// It must work.
    pub passes: bool,
    /// Which client of an open server can make it.
    pub frees: String,
    pub refused: Refused,
    /// The kernel's rules alone let it through: only the server knows which device has which address.
    pub needs_driver: bool,
}

/// Why an open set-up shows nothing of it, where that is so.
#[derive(Clone, Debug, Deserialize)]
pub struct Refused {
    /// The open server.
    pub open: Option<String>,
    /// The kernel that forwards and filters nothing.
    pub kernel: Option<String>,
}

/// Who sends packets: at a site, or on the node's host behind the server.
#[derive(Clone, Copy, Debug)]
pub struct Attacker<'a> {
    site: Option<&'a Site>,
    world: &'a Path,
}

/// A port scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    pub name: &'static str,
    pub protocol: &'static str,
    /// Whose address it is, in the words of the world.
    pub place: &'static str,
    pub family: &'static str,
    /// The letter of its marks.
    pub kind: &'static str,
}

impl Scan {
    /// All ports of all addresses of the node.
    pub const ALL: [Self; 8] = [
        Self { name: "scan/gateway/tcp/ipv4", protocol: "tcp", place: "gateway", family: "4", kind: "a" },
        Self { name: "scan/gateway/tcp/ipv6", protocol: "tcp", place: "gateway", family: "6", kind: "b" },
        Self { name: "scan/outer/tcp/ipv4", protocol: "tcp", place: "outer", family: "4", kind: "c" },
        Self { name: "scan/outer/tcp/ipv6", protocol: "tcp", place: "outer", family: "6", kind: "d" },
        Self { name: "scan/gateway/udp/ipv4", protocol: "udp", place: "gateway", family: "4", kind: "e" },
        Self { name: "scan/gateway/udp/ipv6", protocol: "udp", place: "gateway", family: "6", kind: "f" },
        Self { name: "scan/outer/udp/ipv4", protocol: "udp", place: "outer", family: "4", kind: "g" },
        Self { name: "scan/outer/udp/ipv6", protocol: "udp", place: "outer", family: "6", kind: "h" },
    ];
    /// Those that show that scans behind the server can be seen.
    pub const OF_KERNEL: [Self; 2] = [Self::ALL[0], Self::ALL[5]];
    /// From a port of the device that is open, as if what is open had come from there.
    pub const FROM_OPEN_PORT: [Self; 2] = [
        Self { name: "scan/open-port/ipv4", protocol: "ack", place: "gateway", family: "4", kind: "i" },
        Self { name: "scan/open-port/ipv6", protocol: "ack", place: "gateway", family: "6", kind: "j" },
    ];
}

/// What a proxy, or what is taken for one, has said.
#[derive(Clone, Debug, Deserialize)]
pub struct Said {
    pub name: String,
    pub said: String,
}

impl<'a> Attacker<'a> {
    #[must_use]
    pub fn at(site: &'a Site, world: &'a World) -> Self {
        Self { site: Some(site), world: world.file() }
    }

    #[must_use]
    pub fn behind_the_server(world: &'a World) -> Self {
        Self { site: None, world: world.file() }
    }

    /// Every case there is.
    pub async fn cases(&self) -> anyhow::Result<Vec<Case>> {
        Ok(serde_json::from_str(&self.run(&["list"]).await?)?)
    }

    /// Sends all cases of these kinds through an interface, or all of all kinds.
    pub async fn send(&self, through: &str, kinds: &[&str]) -> anyhow::Result<()> {
        self.run(&[&["cases", through], kinds].concat()).await.map(drop)
    }

    /// Sends a packet to each port.
    pub async fn scan(&self, through: &str, scan: &Scan) -> anyhow::Result<()> {
        let Scan { protocol, place, family, kind, .. } = scan;
        self.run(&["scan", through, protocol, place, family, kind]).await.map(drop)
    }

    /// Asks proxies for the way out. What gets there carries the case [`Self::TALK`].
    pub async fn talk(&self) -> anyhow::Result<Vec<Said>> {
        Ok(serde_json::from_str(&self.run(&["talk"]).await?)?)
    }

    pub const TALK: usize = 36 * 36 * 36 - 1;

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = tokio::process::Command::from(self.command(arguments));
        let output = tokio::time::timeout(SEND_LIMIT, command.kill_on_drop(true).output());
        let output = output.await.context("sending takes too long")??;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "send.py {arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.map_or_else(|| Command::new(PYTHON), |site| site.command(PYTHON));
        command.arg("-B").arg(PathBuf::from(PROGRAMS).join("send.py")).arg(self.world).args(arguments);
        command
    }

    /// Sends packets of the cases with names like this, so many a second, until the stream is stopped. Their marks carry `count`.
    pub fn stream(&self, through: &str, rate: u32, count: u32, pattern: &str) -> anyhow::Result<Stream> {
        let mut command = self.command(&["stream", through, &rate.to_string(), &count.to_string(), pattern]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        Ok(Stream { child })
    }
}

/// Packets that go on and on, until it is dropped.
#[derive(Debug)]
pub struct Stream {
    child: Child,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // It ends when its standard input does.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
