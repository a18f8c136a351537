//! How long the packets of one client take while others do their handshakes.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::time::sleep;

use super::progress;
use super::server::Server;
use crate::bench::command::percentile;
use crate::bench::report::{Bound, Line, Report};
use crate::load::{Fleet, Pace, Protocol, Swarm};
use crate::netns::Site;
use crate::openvpn::Client;

/// Between two handshakes.
const HANDSHAKE_EVERY: Duration = Duration::from_millis(20);
/// For so long before the first ping, so that as many are under way as will be.
const RUN_UP: Duration = Duration::from_secs(1);
/// In seconds, as ping wants it.
const PING_EVERY: &str = "0.01";
/// Of one round.
const PINGS: usize = 1000;
/// Of one round, and then some: the last handshake begins after the last ping.
const HANDSHAKES: usize = 600;
const ROUNDS: usize = 2;
/// What a ping that does not come back is counted as.
const LOST: Duration = Duration::from_secs(10);

const P99_RATIO_MAX: f64 = 0.2;

pub(super) async fn measure(servers: [&Server; 2], fleet: &Arc<Fleet>, report: &mut Report) -> Result<()> {
    let site = Arc::new(Site::join()?);
    let (mut cloudlink, mut stock) = (Pinged::up(servers[0], &site).await?, Pinged::up(servers[1], &site).await?);
    for round in 1..=ROUNDS {
        progress(&format!("ping during 50 handshakes a second with each server, round {round} of {ROUNDS}"));
        cloudlink.ping(fleet).await?;
        stock.ping(fleet).await?;
    }
    let (own, other) = (cloudlink.sorted(), stock.sorted());
    let line = |name, share| {
        let ms = |sorted: &[Duration]| percentile(sorted, share).as_secs_f64() * 1000.0;
        Line::new("openvpn", name, ms(&own), "ms").beside(servers[1].name, ms(&other))
    };
    report.add(&line("ping_p50", 0.5))?;
    report.add(&line("ping_p99", 0.99).with_ratio_goal(Bound::AtMost(P99_RATIO_MAX)))
}

/// A server with the client that pings through it.
struct Pinged<'a> {
    server: &'a Server,
    client: Client,
    gateway: Ipv4Addr,
    latencies: Vec<Duration>,
    _directory: TempDir,
}

impl<'a> Pinged<'a> {
    async fn up(server: &'a Server, site: &Arc<Site>) -> Result<Self> {
        let directory = tempfile::tempdir().context("no directory for the client")?;
        let mut client = Client::start(site, directory.path(), "client", &server.profile(0)?)?;
        let gateway = client.is_up(1).await?.gateway_ipv4;
        Ok(Self { server, client, gateway, latencies: Vec::new(), _directory: directory })
    }

    /// Other devices than the client's come all the time, and stay.
    async fn ping(&mut self, fleet: &Arc<Fleet>) -> Result<()> {
        let target = self.server.target()?;
        let coming = Swarm::connect(&target, fleet, Protocol::OpenVpn, 1..1 + HANDSHAKES, Pace::Every(HANDSHAKE_EVERY));
        let pinging = async {
            sleep(RUN_UP).await;
            let mut ping = self.client.site.command("ping");
            ping.args(["-n", "-i", PING_EVERY, "-c", &PINGS.to_string(), &self.gateway.to_string()])
                .stdin(Stdio::null());
            Ok(tokio::process::Command::from(ping).kill_on_drop(true).output().await?)
        };
        let (swarm, output) = tokio::try_join!(coming, pinging)?;
        let latencies = latencies(&String::from_utf8(output.stdout)?)?;
        ensure!(!latencies.is_empty(), "no ping came back: {}", String::from_utf8_lossy(&output.stderr));
        let lost = PINGS.saturating_sub(latencies.len());
        self.latencies.extend(latencies.into_iter().chain(std::iter::repeat_n(LOST, lost)));
        swarm.stop().await;
        Ok(())
    }

    fn sorted(mut self) -> Vec<Duration> {
        self.latencies.sort_unstable();
        self.latencies
    }
}

/// Reads them from what `ping` prints.
fn latencies(output: &str) -> Result<Vec<Duration>> {
    let times = output.lines().filter_map(|line| line.split_once("time=")?.1.strip_suffix(" ms"));
    times.map(|ms| Ok(Duration::from_secs_f64(ms.parse::<f64>()? / 1000.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_read() {
        let output = "PING 10.78.0.1 (10.78.0.1) 56(84) bytes of data.\n\
                      64 bytes from 10.78.0.1: icmp_seq=1 ttl=64 time=0.250 ms\n\
                      64 bytes from 10.78.0.1: icmp_seq=2 ttl=64 time=12 ms\n\n\
                      2 packets transmitted, 2 received, 0% packet loss, time 10ms\n";
        assert_eq!(latencies(output).unwrap(), [Duration::from_micros(250), Duration::from_millis(12)]);
    }
}
