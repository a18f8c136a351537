//! Runs the benchmarks.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use cloudlink_tests::api::install_provider;
use cloudlink_tests::bench::connect::Cost;
use cloudlink_tests::bench::openvpn::{self, Part};
use cloudlink_tests::bench::peer::Peer;
use cloudlink_tests::bench::report::{Line, Report};
use cloudlink_tests::bench::usage::Process;
use cloudlink_tests::bench::{command, connect, poll, rollout, scale, seed, storm, support, telemetry};
use cloudlink_tests::clock;
use cloudlink_tests::fleet::Fleet as People;
use cloudlink_tests::load::{Fleet, Protocol, Swarm};
use cloudlink_tests::netns;
use cloudlink_tests::server::Settings;

const MEMORY_KB_MAX: f64 = 12.0;
const CPU_MS_MAX: f64 = 0.9;
const LATENCY_P50_MS_MAX: f64 = 5.0;
const LATENCY_P99_MS_MAX: f64 = 25.0;
/// Commands that are not counted: connections to the API and to the database are made.
const COMMANDS_WARM_UP: usize = 100;
/// Tokens by which commands at the same time are asked for. The server lets each make 1,000 requests a second.
const OPERATORS: usize = 16;

/// What links and tunnels cost beside other servers, how fast a command is, and what a support session is like. One JSON object
/// a line.
#[derive(Debug, Parser)]
struct Arguments {
    /// Measure only this; may be given more than once, or with commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Only>,
    /// Devices to connect.
    #[arg(long, default_value_t = 10_000)]
    links: usize,
    /// Devices of a rollout.
    #[arg(long, default_value_t = 15_000)]
    rollout: usize,
    /// Devices that poll.
    #[arg(long, default_value_t = 2_000)]
    polls: usize,
    /// Commands, one after another.
    #[arg(long, default_value_t = 1_000)]
    commands: usize,
    /// Commands at the same time.
    #[arg(long, default_value_t = 1_000)]
    parallel: usize,
    /// Commands in all, that many at the same time.
    #[arg(long, default_value_t = 10_000)]
    parallel_commands: usize,
    /// Size of one transfer through a forwarded port, in MiB.
    #[arg(long, default_value_t = 512)]
    forward_mib: u64,
    /// Where the results are kept.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Exit with 1 when a goal is missed.
    #[arg(long)]
    strict: bool,
}

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    /// Links over WebSocket, and commands.
    Links,
    /// Everything about tunnels of OpenVPN clients.
    Openvpn,
    OpenvpnHandshake,
    OpenvpnTraffic,
    OpenvpnPing,
    OpenvpnMemory,
    /// Everything about support sessions.
    Support,
    SupportEcho,
    SupportForward,
    /// Devices that poll.
    Poll,
    /// One command to a whole fleet.
    Rollout,
    /// A node that is killed with all its links.
    Storm,
    /// What a fleet takes all the time, and what each thing that happens leaves.
    Scale,
    /// Samples of what devices measure.
    Telemetry,
}

impl Arguments {
    fn wants(&self, what: Only) -> bool {
        self.only.is_empty() || self.only.contains(&what)
    }

    fn wants_echo(&self) -> bool {
        self.wants(Only::Support) || self.wants(Only::SupportEcho)
    }

    fn wants_forward(&self) -> bool {
        self.wants(Only::Support) || self.wants(Only::SupportForward)
    }

    fn openvpn_parts(&self) -> Vec<Part> {
        let only = |part| match part {
            Part::Handshake => Only::OpenvpnHandshake,
            Part::Traffic => Only::OpenvpnTraffic,
            Part::Ping => Only::OpenvpnPing,
            Part::Memory => Only::OpenvpnMemory,
        };
        Part::ALL.into_iter().filter(|part| self.wants(Only::Openvpn) || self.wants(only(*part))).collect()
    }
}

fn main() -> Result<ExitCode> {
    install_provider();
    let arguments = Arguments::parse();
    let mut report = Report::create(&arguments.out)?;
    if arguments.wants(Only::Links) || arguments.wants_echo() {
        tokio::runtime::Runtime::new()?.block_on(Box::pin(measure_links(&mut report, &arguments)))?;
    }
    if arguments.wants_forward() {
        let forward = support::forward::measure(arguments.forward_mib, &mut report);
        tokio::runtime::Runtime::new()?.block_on(Box::pin(forward))?;
    }
    if arguments.wants(Only::Poll) {
        let poll = poll::measure(arguments.polls, &mut report);
        tokio::runtime::Runtime::new()?.block_on(Box::pin(poll))?;
    }
    if arguments.wants(Only::Rollout) {
        let rollout = rollout::measure(arguments.rollout, &mut report);
        tokio::runtime::Runtime::new()?.block_on(Box::pin(rollout))?;
    }
    if arguments.wants(Only::Scale) {
        let scale = scale::measure(arguments.links, arguments.parallel_commands, &mut report);
        tokio::runtime::Runtime::new()?.block_on(Box::pin(scale))?;
    }
    if arguments.wants(Only::Storm) {
        let storm = storm::measure(arguments.links, &mut report);
        tokio::runtime::Runtime::new()?.block_on(Box::pin(storm))?;
    }
    if arguments.wants(Only::Telemetry) {
        let telemetry = telemetry::measure(arguments.links, &mut report);
        tokio::runtime::Runtime::new()?.block_on(Box::pin(telemetry))?;
    }
    let parts = arguments.openvpn_parts();
    match netns::lacking() {
        _ if parts.is_empty() => {}
        None => netns::run(async || openvpn::run(&parts, &mut report).await)?,
        Some(what) => skip(what),
    }
    Ok(if arguments.strict && report.missed() > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[expect(clippy::print_stderr, reason = "whoever measures is told what is not")]
fn skip(what: &str) {
    eprintln!("skipped: openvpn: {what}");
}

/// And what is measured beside many links.
async fn measure_links(report: &mut Report, arguments: &Arguments) -> Result<()> {
    let now = clock::now();
    // All those who ask for commands at the same time come from this machine.
    let settings = Settings { set: vec!["people.connections_per_address_max=2048".to_owned()], ..Settings::default() };
    let mut people = People::start_with(&settings).await.context("cannot start cloudlinkd")?;
    let database = seed::own_database(&people.server).await?;
    let fleet = Arc::new(seed::devices(&people, database, arguments.links, now).await?);
    let target = connect::target(people.server.device, &fleet)?;
    let process = Process::new(people.server.program().pid());
    let (cost, mut swarm) = connect::measure(process, &target, &fleet, Protocol::Link).await?;

    if arguments.wants(Only::Links) {
        let database_ms = cost.descendants_cpu.as_secs_f64() * 1000.0;
        report.add(&Line::new("connect", "database_cpu_per_connect", database_ms, "ms"))?;
        measure_commands(report, &people, &fleet, &mut swarm, arguments).await?;
    }
    if arguments.wants_echo() {
        support::echo::measure(&mut people, report).await?;
    }
    // One process has not files enough for the devices of two servers, and an idle server disturbs the next.
    swarm.stop().await;
    drop(people);

    if !arguments.wants(Only::Links) {
        return Ok(());
    }
    for peer in Peer::ALL {
        let peer_cost = connect::measure_peer(peer, &fleet, now).await?;
        add_connect(report, &cost, peer, &peer_cost)?;
    }
    Ok(())
}

fn add_connect(report: &mut Report, cost: &Cost, peer: Peer, peer_cost: &Cost) -> Result<()> {
    let kb = |cost: &Cost| cost.memory_bytes / 1000.0;
    let memory = Line::new("connect", "memory_per_idle_link", kb(cost), "kB");
    report.add(&memory.beside(peer.name(), kb(peer_cost)).with_goal(MEMORY_KB_MAX))?;
    let ms = |cost: &Cost| cost.cpu.as_secs_f64() * 1000.0;
    let cpu = Line::new("connect", "cpu_per_connect", ms(cost), "ms");
    report.add(&cpu.beside(peer.name(), ms(peer_cost)).with_goal(CPU_MS_MAX))
}

async fn measure_commands(
    report: &mut Report,
    people: &People,
    fleet: &Fleet,
    swarm: &mut Swarm,
    arguments: &Arguments,
) -> Result<()> {
    seed::grant(people).await?;
    let operator = &people.operator;
    command::latencies(operator, fleet, swarm, COMMANDS_WARM_UP).await?;
    let latencies = command::latencies(operator, fleet, swarm, arguments.commands).await?;
    let percentile_ms = |share| command::percentile(&latencies, share).as_secs_f64() * 1000.0;
    report.add(&Line::new("command", "latency_p50", percentile_ms(0.5), "ms").with_goal(LATENCY_P50_MS_MAX))?;
    report.add(&Line::new("command", "latency_p99", percentile_ms(0.99), "ms").with_goal(LATENCY_P99_MS_MAX))?;

    let operators = seed::operators(people, OPERATORS).await?;
    command::throughput(&operators, fleet, swarm, arguments.parallel, arguments.parallel).await?;
    let rate = command::throughput(&operators, fleet, swarm, arguments.parallel_commands, arguments.parallel).await?;
    report.add(&Line::new("command", "parallel_throughput", rate, "commands/s"))
}
