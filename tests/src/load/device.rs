//! One simulated device on a real link. It answers as the agent does, but keeps no ledger on disk: what is measured is the
//! server.

use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use cloudlink_proto::ids::{CommandId, DeviceId};
use cloudlink_proto::link::message::goodbye::Code;
use cloudlink_proto::link::message::{Command, CommandStatus, Hello, MetricsReport, command, command_status};
use cloudlink_proto::link::{FromServer, State};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::link::{self, Next, sleep_until};
use super::swarm::{Event, Reporter};

/// The link of one device, from its WebSocket handshake to its end.
pub(super) struct Link<S> {
    link: link::Link<S>,
    /// When the next report is due; `None` before the welcome, or if the server wants none.
    report_at: Option<Instant>,
    report_interval: Duration,
    index: usize,
    reporter: Reporter,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    /// Opens a link and waits until it is welcomed.
    pub(super) async fn open(stream: S, id: DeviceId, index: usize, reporter: Reporter) -> Result<Self> {
        let link = link::Link::open(stream, hello(id, index)).await?;
        let mut link = Self { link, report_at: None, report_interval: Duration::ZERO, index, reporter };
        while link.link.state() == State::AwaitWelcome {
            link.step().await?;
        }
        Ok(link)
    }

    /// Serves the link until `stop` asks for a goodbye. An error is an end that nobody asked for.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> Result<()> {
        loop {
            if let Some(close) = self.link.close() {
                bail!("{:?} ended the link with {:?}, {:?}", close.by, close.code, close.message);
            }
            tokio::select! {
                step = self.step() => step?,
                () = stop.cancelled() => break,
            }
        }
        self.link.goodbye(Code::ShuttingDown, "the load test is over");
        while self.link.state() != State::Closed {
            self.step().await?;
        }
        Ok(())
    }

    /// Sends what is due, then waits for one thing and deals with it. To be cancelled only when the link is to end.
    async fn step(&mut self) -> Result<()> {
        match self.link.next(sleep_until(self.report_at)).await? {
            Next::Said(incoming) => self.act(*incoming).await,
            Next::Woken(()) => self.report(),
            Next::Nothing => Ok(()),
        }
    }

    async fn act(&mut self, incoming: FromServer) -> Result<()> {
        match incoming {
            FromServer::Welcome(admission) => {
                self.report_interval = admission.metrics_interval;
                // A fleet reports spread over the interval.
                self.report_at = (!self.report_interval.is_zero())
                    .then(|| Instant::now() + self.report_interval.mul_f64(fraction(self.index)));
                self.reporter.report(Event::Live { index: self.index, at: Instant::now() }).await;
            }
            FromServer::Command { id, command, .. } => self.obey(id, &command)?,
            FromServer::CommandReceipt { id } => {
                self.reporter.report(Event::Stored { command: id, at: Instant::now() }).await;
            }
            FromServer::CommandCancel { .. }
            | FromServer::CertificateIssued(_)
            | FromServer::CertificateRefused(_)
            | FromServer::Reconnect { .. }
            | FromServer::StreamRequest { .. }
            | FromServer::Configuration(_)
            | FromServer::Goodbye => {}
        }
        Ok(())
    }

    /// Answers as the agent does: accepted, running, final.
    fn obey(&mut self, id: CommandId, command: &Command) -> Result<()> {
        let status = |state: command_status::State| CommandStatus {
            id: id.to_wire(),
            state: state.into(),
            ..CommandStatus::default()
        };
        match &command.kind {
            Some(command::Kind::CollectMetrics(_)) => {
                self.link.send(status(command_status::State::Accepted))?;
                self.link.send(status(command_status::State::Running))?;
                let data_json = Bytes::from(serde_json::to_vec(&report_json(self.index))?);
                let succeeded = status(command_status::State::Succeeded);
                self.link.send(CommandStatus { data_json, ..succeeded })?;
            }
            Some(
                command::Kind::RestartService(_)
                | command::Kind::Reboot(_)
                | command::Kind::Shutdown(_)
                | command::Kind::OsUpdate(_)
                | command::Kind::AgentUpdate(_)
                | command::Kind::ContainerUpdate(_)
                | command::Kind::LinkTest(_),
            )
            | None => {
                let refused = status(command_status::State::Refused);
                let code = if command.kind.is_none() { "unknown_kind" } else { "not_allowed" };
                self.link.send(CommandStatus { code: code.to_owned(), ..refused })?;
            }
        }
        Ok(())
    }

    fn report(&mut self) -> Result<()> {
        if self.link.state() == State::Live {
            self.link.send(report(self.index))?;
        }
        self.report_at = Some(Instant::now() + self.report_interval);
        Ok(())
    }
}

/// A number from 0 to 1 that is as good as drawn, and the same in each run.
fn fraction(index: usize) -> f64 {
    const GOLDEN_RATIO: f64 = 0.618_033_988_749_894_9;
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    (f64::from(index) * GOLDEN_RATIO).fract()
}

fn hello(id: DeviceId, index: usize) -> Hello {
    Hello {
        versions: Vec::new(),
        capabilities: ["metrics.collect", "service.restart", "device.reboot", "device.shutdown"]
            .map(str::to_owned)
            .into(),
        boot_id: id.to_string(),
        agent: concat!("cloudlink-load/", env!("CARGO_PKG_VERSION")).to_owned(),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        hostname: format!("gateway-{index}"),
        clock_unix_ms: 0,
        transport_failures: Vec::new(),
        boot_hint: 0,
        busy_lock: None,
        configuration: None,
    }
}

fn report(index: usize) -> MetricsReport {
    MetricsReport {
        cpu_percent: Some(100.0 * fraction(index)),
        memory_used_bytes: Some(412_000_000),
        memory_total_bytes: Some(1_000_000_000),
        disk_used_bytes: Some(2_100_000_000),
        disk_total_bytes: Some(7_900_000_000),
        temperature_celsius: Some(51.5),
        load_1m: Some(0.42),
        load_5m: Some(0.37),
        load_15m: Some(0.31),
        uptime_seconds: Some(86_400),
        clock_unix_ms: None,
    }
}

/// The result of `metrics.collect`: a report under the names of `link.proto`.
fn report_json(index: usize) -> serde_json::Value {
    let report = report(index);
    serde_json::json!({
        "cpu_percent": report.cpu_percent,
        "memory_used_bytes": report.memory_used_bytes,
        "memory_total_bytes": report.memory_total_bytes,
        "disk_used_bytes": report.disk_used_bytes,
        "disk_total_bytes": report.disk_total_bytes,
        "temperature_celsius": report.temperature_celsius,
        "load_1m": report.load_1m,
        "load_5m": report.load_5m,
        "load_15m": report.load_15m,
        "uptime_seconds": report.uptime_seconds,
    })
}
