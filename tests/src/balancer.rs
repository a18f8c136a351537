//! Load balancers in front of the server: Debian's HAProxy and nginx, each with the very configuration of `docker/`, on a host of
//! its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::netns::Site;
use crate::poll::wait_for;
use crate::program::Program;

/// The ports of a node, and of a load balancer before it.
pub const DEVICE_PORT: u16 = 443;
pub const PEOPLE_PORT: u16 = 8443;
pub const OPERATIONS_PORT: u16 = 9090;

/// The nodes in the configurations.
const NODES: [&str; 2] = ["10.0.0.11", "10.0.0.12"];
/// Until it has seen that a node is ready, or is not.
const CHECK_LIMIT: Duration = Duration::from_secs(20);

/// A load balancer that runs. Dropped, it is stopped.
#[derive(Debug)]
pub struct Balancer {
    /// Where it runs.
    pub site: Arc<Site>,
    /// For HAProxy: where it can be asked.
    socket: PathBuf,
    program: Program,
}

/// A node, as a load balancer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `UP`, `DOWN`, and what is between.
    pub status: String,
    /// Connections to it now.
    pub connections: u64,
}

impl Balancer {
    /// Debian's `haproxy`, with `docker/haproxy.cfg`, on the host that is a site of the nodes' network.
    pub fn haproxy(site: &Arc<Site>, directory: &Path, nodes: impl AsRef<[Ipv4Addr]>) -> anyhow::Result<Self> {
        let socket = directory.join("haproxy.sock");
        let configuration = configured("haproxy.cfg", directory, nodes.as_ref())?;
        let more = directory.join("socket.cfg");
        // On a machine with fewer open files than a hundred thousand connections take, it may have as many as there are.
        std::fs::write(
            &more,
            format!("global\n    stats socket {} mode 600\n    no strict-limits\n", socket.display()),
        )?;
        let mut command = site.bound("haproxy");
        command.arg("-db").arg("-f").arg(configuration).arg("-f").arg(more);
        let program = Program::start("haproxy", command, &directory.join("haproxy.log"))?;
        Ok(Self { site: Arc::clone(site), socket, program })
    }

    /// Debian's `nginx`, with `docker/nginx-stream.conf`.
    pub fn nginx(site: &Arc<Site>, directory: &Path, nodes: impl AsRef<[Ipv4Addr]>) -> anyhow::Result<Self> {
        let configuration = configured("nginx-stream.conf", directory, nodes.as_ref())?;
        let text = std::fs::read_to_string(&configuration)?;
        let pid = directory.join("nginx.pid");
        std::fs::write(&configuration, text.replace("/run/nginx.pid", &pid.to_string_lossy()))?;
        let mut command = site.bound("nginx");
        command.arg("-c").arg(configuration).args(["-g", "daemon off;"]);
        let program = Program::start("nginx", command, &directory.join("nginx.log"))?;
        Ok(Self { site: Arc::clone(site), socket: PathBuf::new(), program })
    }

    /// How HAProxy sees a node: the first or the second, at its `device` or its `people` port.
    pub async fn seen(&self, backend: &str, number: usize) -> anyhow::Result<Seen> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(b"show stat\n").await?;
        let mut table = String::new();
        stream.read_to_string(&mut table).await?;
        let columns: Vec<_> = table.lines().next().context("no table")?.trim_start_matches("# ").split(',').collect();
        let place = |name| columns.iter().position(|column| *column == name).context("no such column");
        let row = format!("{backend},node-{number},");
        let row = table.lines().find(|line| line.starts_with(&row)).with_context(|| format!("no {row} in {table}"))?;
        let values: Vec<_> = row.split(',').collect();
        Ok(Seen { status: values[place("status")?].to_owned(), connections: values[place("scur")?].parse()? })
    }

    /// Waits until HAProxy sees a node so.
    pub async fn sees(&mut self, backend: &str, number: usize, status: &str) -> anyhow::Result<()> {
        wait_for(&format!("{backend} of node {number} to be {status}"), CHECK_LIMIT, async || {
            if let Err(ended) = self.program.ensure_running() {
                return Ok(Err(ended));
            }
            let seen = self.seen(backend, number).await?;
            anyhow::ensure!(seen.status == status, "{seen:?}");
            Ok(Ok(()))
        })
        .await?
    }

    pub fn log_text(&self) -> anyhow::Result<String> {
        self.program.log_text()
    }

    /// Another site, behind the load balancer, whose other end of the cable is where it is reached.
    pub fn customer(&self) -> anyhow::Result<Arc<Site>> {
        Ok(Arc::new(self.site.run(async || Site::join())?))
    }

    /// Where a site behind it dials a port of the server.
    #[must_use]
    pub fn addresses(customer: &Site, port: u16) -> [SocketAddr; 2] {
        [(customer.router_ipv4, port).into(), (customer.router_ipv6, port).into()]
    }
}

/// Writes a configuration of `docker/`, with other nodes in it, more of them if there are more, and nothing else changed.
fn configured(name: &str, directory: &Path, nodes: &[Ipv4Addr]) -> anyhow::Result<PathBuf> {
    let example = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker").join(name))?;
    anyhow::ensure!(nodes.len() >= NODES.len(), "fewer nodes than in {name}");
    let (mut lines, mut found) = (Vec::new(), 0);
    for line in example.lines() {
        let Some(place) = NODES.iter().position(|node| line.contains(node)) else {
            lines.push(line.to_owned());
            continue;
        };
        found += 1;
        // The last one of the examples stands for all others, too.
        let last = if place + 1 == NODES.len() { nodes.len() } else { place + 1 };
        for (number, node) in nodes.iter().enumerate().take(last).skip(place) {
            let named = line.replace(&format!("node-{}", place + 1), &format!("node-{}", number + 1));
            lines.push(named.replace(NODES[place], &node.to_string()));
        }
    }
    anyhow::ensure!(found == 2 * NODES.len(), "{name}: {found} lines have examples of nodes");
    let path = directory.join(name);
    std::fs::write(&path, lines.join("\n") + "\n")?;
    Ok(path)
}
