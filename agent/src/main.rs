//! The command line of the agent.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use cloudlink_agent::agent::{Agent, load_anchor};
use cloudlink_agent::backoff::{Backoff, jitter};
use cloudlink_agent::clock::KnownTime;
use cloudlink_agent::config::{Config, ConfigError, LogFormat};
use cloudlink_agent::disk::StateDir;
use cloudlink_agent::doctor::{self, Verdict};
use cloudlink_agent::enroll::{EnrollError, Token, enroll};
use cloudlink_agent::executor::Bus;
use cloudlink_agent::identity::Identity;
use cloudlink_agent::problem::shown;
use cloudlink_agent::stream::terminal;
use cloudlink_agent::tunnel::client;
use cloudlink_agent::{chain, local, tls};
use http::Method;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The configuration is at fault.
const EXIT_CONFIG: u8 = 64;
/// The server cannot be reached: try again.
const EXIT_UNAVAILABLE: u8 = 69;
/// The server refuses the token.
const EXIT_REFUSED: u8 = 77;
/// How often `enroll` tries before it gives up. `run` goes on for ever.
const ENROLL_ATTEMPTS_MAX: u32 = 5;

/// The device side of Cloudlink.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trade a token for a certificate, once in a device's life
    Enroll {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Where the token stands; - for standard input
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
    },
    /// Keep the link up and carry out commands
    Run {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Enroll first with this token, if the device is not enrolled yet; - for standard input
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Look at everything that a link needs, and say what to do
    Doctor {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Ask not to be disturbed: while the lock is in force, no reboot, shutdown or restart is begun
    #[command(subcommand)]
    Busy(BusyCommand),
    /// The configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum BusyCommand {
    /// Set or renew the lock
    Set {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// For how many seconds from now
        #[arg(long, value_name = "SECONDS")]
        seconds: u64,
        /// Why, for those who wait
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// End it
    Clear {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show it
    Show {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say all that is wrong with the file
    Check {
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    if let Some(error) = client::become_if_asked(std::env::args_os()) {
        say(&format!("cannot become the OpenVPN client: {error}"));
        return ExitCode::FAILURE;
    }
    if let Some(error) = terminal::become_if_asked(std::env::args_os()) {
        say(&format!("cannot become the terminal's program: {error}"));
        return ExitCode::FAILURE;
    }
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("nothing has installed another cryptography provider before");
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("cloudlink-agent: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let path = match &command {
        Command::Enroll { config, .. }
        | Command::Run { config, .. }
        | Command::Doctor { config }
        | Command::Busy(
            BusyCommand::Set { config, .. } | BusyCommand::Clear { config } | BusyCommand::Show { config },
        )
        | Command::Config(ConfigCommand::Check { config }) => config.clone(),
    };
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(error) => {
            say_config_error(&error);
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    start_log(&config);
    // Two workers: the ledger waits for the disk on one of them, and the link must go on meanwhile.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let status = runtime.block_on(async {
        match command {
            Command::Enroll { token_file, .. } => enroll_command(&config, &token_file).await,
            Command::Run { token_file, .. } => Box::pin(run_command(config, token_file)).await,
            Command::Doctor { .. } => Ok(doctor_command(&config).await),
            Command::Busy(command) => busy_command(&config, command).await,
            Command::Config(ConfigCommand::Check { .. }) => {
                print(&format!("{} is good", path.display()));
                Ok(ExitCode::SUCCESS)
            }
        }
    });
    // A sensor that hangs is not waited for any longer.
    runtime.shutdown_timeout(Duration::from_secs(2));
    status
}

async fn enroll_command(config: &Config, token_file: &std::path::Path) -> anyhow::Result<ExitCode> {
    let token = Token::read(token_file)?;
    let state_dir = StateDir::open(&config.state_dir)?;
    let mut identity = load_identity(&state_dir)?;
    if identity.is_enrolled() {
        print("already enrolled");
        return Ok(ExitCode::SUCCESS);
    }
    match enroll_patiently(config, &state_dir, &mut identity, &token, Some(ENROLL_ATTEMPTS_MAX)).await? {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            say(&format!("cloudlink-agent: not enrolled: {}", chain(&error)));
            if !error.is_retryable() {
                return Ok(ExitCode::from(EXIT_REFUSED));
            }
            say("  `cloudlink-agent doctor` with the same --config tells what is in the way");
            Ok(ExitCode::from(EXIT_UNAVAILABLE))
        }
    }
}

async fn run_command(config: Config, token_file: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let stop = stop_on_signal()?;
    let state_dir = StateDir::open(&config.state_dir)?;
    let mut identity = load_identity(&state_dir)?;
    // Beside a client of somebody else it is that client's certificate which counts.
    let needs_certificate = config.server.is_dialled_directly() || config.openvpn.started.is_some();
    if needs_certificate && !identity.is_enrolled() {
        let token_file = token_file.context("the device is not enrolled: give --token-file, or run `enroll` first")?;
        let token = Token::read(&token_file)?;
        let enrolled = tokio::select! {
            enrolled = enroll_patiently(&config, &state_dir, &mut identity, &token, None) => enrolled?,
            () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
        };
        if let Err(error) = enrolled {
            say(&format!("cloudlink-agent: not enrolled: {}", chain(&error)));
            return Ok(ExitCode::from(EXIT_REFUSED));
        }
    }
    drop(identity);
    Box::pin(Agent::new(config, state_dir, Bus::System)?.run(stop)).await;
    Ok(ExitCode::SUCCESS)
}

fn load_identity(state_dir: &StateDir) -> anyhow::Result<Identity> {
    Identity::load(state_dir.path())
        .with_context(|| format!("cannot read the device's key and certificate in {}", state_dir.path().display()))
}

/// Tries until it works, is refused, or was tried often enough.
async fn enroll_patiently(
    config: &Config,
    state_dir: &StateDir,
    identity: &mut Identity,
    token: &Token,
    attempts_max: Option<u32>,
) -> anyhow::Result<Result<(), EnrollError>> {
    let anchor = load_anchor(config)?;
    let known_time = KnownTime::load(state_dir.path(), tls::authority_made(&anchor));
    let mut backoff = Backoff::default();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let error = match enroll(&config.server, &anchor, &known_time, identity, token).await {
            Ok(enrolled) => {
                tracing::info!(device.id = ?shown(&enrolled.device_id), tenant.id = ?shown(&enrolled.tenant_id), "enrolled");
                print(&format!(
                    "enrolled as device {} of tenant {}",
                    shown(&enrolled.device_id),
                    shown(&enrolled.tenant_id)
                ));
                return Ok(Ok(()));
            }
            Err(error) => error,
        };
        if !error.is_retryable() || attempts_max.is_some_and(|max| attempts >= max) {
            return Ok(Err(error));
        }
        let wait = error.retry_after().unwrap_or(Duration::ZERO) + backoff.next(jitter());
        tracing::warn!(error = chain(&error), wait_ms = wait.as_millis(), "not enrolled yet");
        tokio::time::sleep(wait).await;
    }
}

async fn busy_command(config: &Config, command: BusyCommand) -> anyhow::Result<ExitCode> {
    let (method, body) = match command {
        BusyCommand::Set { seconds, reason, .. } => (Method::PUT, Some(json!({"reason": reason, "seconds": seconds}))),
        BusyCommand::Clear { .. } => (Method::DELETE, None),
        BusyCommand::Show { .. } => (Method::GET, None),
    };
    let lock = local::ask(&config.local.socket, method, "/v1/busy", body.as_ref()).await?;
    let reason = lock["reason"].as_str().map(|reason| reason.escape_debug().to_string());
    print(&match (reason, lock["seconds_left"].as_u64()) {
        (Some(reason), Some(seconds)) => format!("busy for another {seconds} s: {reason}"),
        _ => "not busy".to_owned(),
    });
    Ok(ExitCode::SUCCESS)
}

async fn doctor_command(config: &Config) -> ExitCode {
    let findings = doctor::examine(config, &Bus::System).await;
    for finding in &findings {
        print(&finding.to_string());
    }
    let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
    if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}

fn start_log(config: &Config) {
    // With more, the WebSocket library logs what goes over it: tokens, and what was typed; and that of the container engine the
    // environments of containers, with their passwords.
    let filter = ["tungstenite=info", "bollard=info"]
        .into_iter()
        .map(|quiet| quiet.parse().expect("it is a directive"))
        .fold(tracing_subscriber::EnvFilter::new(&config.log.filter), tracing_subscriber::EnvFilter::add_directive);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match config.log.format {
        LogFormat::Human => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn say_config_error(error: &ConfigError) {
    say(&format!("cloudlink-agent: {}", chain(error)));
    if let ConfigError::Faults { path, faults } = error {
        for fault in faults {
            say(&format!("  {}: {fault}", path.display()));
        }
    }
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
fn print(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "there is no log before the configuration is read")]
fn say(line: &str) {
    eprintln!("{line}");
}
