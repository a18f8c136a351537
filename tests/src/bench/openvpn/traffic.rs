//! What packets through tunnels cost a server, and how many get through: iperf3 between stock clients, each at a site of its
//! own, and the server's host. The host reaches a port of each, which Cloudlink opens for it; the other way there is none.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::progress;
use super::server::Server;
use crate::bench::report::{Bound, Line, Report, median};
use crate::bench::usage::machine_cpu;
use crate::netns::Site;
use crate::openvpn::Client;
use crate::poll::wait_for;
use crate::program::{Program, bound};

const CLIENTS: u16 = 4;
const ROUNDS: usize = 3;
/// Of one transfer.
const SECONDS: u16 = 4;
/// Of the iperf3 server at the clients' end of each tunnel.
const PORT: u16 = 26_100;
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

const CPU_RATIO_MAX: f64 = 0.5;
const THROUGHPUT_RATIO_MIN: f64 = 1.5;

/// What is measured, with the names of its figures.
struct Case {
    clients: u16,
    direction: Direction,
    cpu_per_gb: &'static str,
    machine_cpu_per_gb: &'static str,
    throughput: &'static str,
}

/// As the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

const CASES: [Case; 4] = [
    Case {
        clients: 1,
        direction: Direction::Up,
        cpu_per_gb: "cpu_per_gb_up_1",
        machine_cpu_per_gb: "machine_cpu_per_gb_up_1",
        throughput: "throughput_up_1",
    },
    Case {
        clients: 1,
        direction: Direction::Down,
        cpu_per_gb: "cpu_per_gb_down_1",
        machine_cpu_per_gb: "machine_cpu_per_gb_down_1",
        throughput: "throughput_down_1",
    },
    Case {
        clients: CLIENTS,
        direction: Direction::Up,
        cpu_per_gb: "cpu_per_gb_up_4",
        machine_cpu_per_gb: "machine_cpu_per_gb_up_4",
        throughput: "throughput_up_4",
    },
    Case {
        clients: CLIENTS,
        direction: Direction::Down,
        cpu_per_gb: "cpu_per_gb_down_4",
        machine_cpu_per_gb: "machine_cpu_per_gb_down_4",
        throughput: "throughput_down_4",
    },
];

pub(super) async fn measure(servers: [&Server; 2], report: &mut Report) -> Result<()> {
    let sites = (0..CLIENTS).map(|_| Ok(Arc::new(Site::join()?))).collect::<Result<Vec<_>>>()?;
    let (cloudlink, stock) = (Tunnels::up(servers[0], &sites).await?, Tunnels::up(servers[1], &sites).await?);
    for case in &CASES {
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let Case { clients, direction, .. } = case;
            progress(&format!("{clients} stock clients load each server, {direction:?}, round {round} of {ROUNDS}"));
            own.push(cloudlink.load(case).await?);
            other.push(stock.load(case).await?);
        }
        let line = |name, unit, figure: fn(&Sample) -> f64| {
            let middle = |samples: &[Sample]| median(samples.iter().map(figure).collect());
            Line::new("openvpn", name, middle(&own), unit).beside(servers[1].name, middle(&other))
        };
        let cpu = line(case.cpu_per_gb, "s/GB", |sample| sample.cpu_per_gb);
        report.add(&cpu.with_ratio_goal(Bound::AtMost(CPU_RATIO_MAX)))?;
        report.add(&line(case.machine_cpu_per_gb, "s/GB", |sample| sample.machine_cpu_per_gb))?;
        let throughput = line(case.throughput, "Mbit/s", |sample| sample.mbit_per_second);
        let goal = Bound::AtLeast(THROUGHPUT_RATIO_MIN);
        report.add(&if case.clients == 1 { throughput } else { throughput.with_ratio_goal(goal) })?;
    }
    Ok(())
}

/// What one transfer showed.
struct Sample {
    cpu_per_gb: f64,
    machine_cpu_per_gb: f64,
    mbit_per_second: f64,
}

/// The tunnels of one server. Fields are dropped in this order.
struct Tunnels<'a> {
    server: &'a Server,
    receivers: Vec<(Ipv4Addr, Program)>,
    _clients: Vec<Client>,
    _directory: TempDir,
}

impl<'a> Tunnels<'a> {
    async fn up(server: &'a Server, sites: &[Arc<Site>]) -> Result<Self> {
        let directory = tempfile::tempdir().context("no directory for the clients")?;
        let (mut clients, mut receivers) = (Vec::new(), Vec::new());
        for (device, site) in sites.iter().enumerate() {
            let name = format!("client-{device}");
            let mut client = Client::start(site, directory.path(), &name, &server.profile(device)?)?;
            let address = client.is_up(1).await?.ipv4;
            clients.push(client);
            let mut iperf = site.bound("iperf3");
            iperf.args(["-s", "--forceflush", "-B", &address.to_string(), "-p", &PORT.to_string()]);
            let program = Program::start("iperf3", iperf, &directory.path().join(format!("iperf3-{device}.log")))?;
            wait_for("an iperf3 that listens", LISTENS_WITHIN, async || {
                ensure!(program.log_text()?.contains("listening"), "{}", program.log_text()?);
                Ok(())
            })
            .await?;
            receivers.push((address, program));
            server.open_port(device, PORT).await?;
        }
        Ok(Self { server, receivers, _clients: clients, _directory: directory })
    }

    async fn load(&self, case: &Case) -> Result<Sample> {
        let mut transfers = JoinSet::new();
        let (cpu, machine) = (self.server.process.cpu()?, machine_cpu()?);
        for (address, _) in self.receivers.iter().take(case.clients.into()) {
            let mut iperf = bound("iperf3");
            iperf
                .args(["-J", "-c", &address.to_string(), "-p", &PORT.to_string()])
                .args(["-t", &SECONDS.to_string()])
                .args(if case.direction == Direction::Up { &["-R"][..] } else { &[] })
                .stdin(Stdio::null());
            transfers.spawn(tokio::process::Command::from(iperf).kill_on_drop(true).output());
        }
        let (mut bytes, mut bits_per_second) = (0.0, 0.0);
        while let Some(output) = transfers.join_next().await {
            let output = output??;
            let result: Value = serde_json::from_slice(&output.stdout).context("iperf3 says nothing")?;
            let received = &result["end"]["sum_received"];
            let number = |name: &str| received[name].as_f64().with_context(|| format!("iperf3: {}", result["error"]));
            bytes += number("bytes")?;
            bits_per_second += number("bits_per_second")?;
        }
        let gigabytes = bytes / 1e9;
        let per_gb = |spent: Duration| spent.as_secs_f64() / gigabytes;
        Ok(Sample {
            cpu_per_gb: per_gb(self.server.process.cpu()?.saturating_sub(cpu)),
            machine_cpu_per_gb: per_gb(machine_cpu()?.saturating_sub(machine)),
            mbit_per_second: bits_per_second / 1e6,
        })
    }
}
