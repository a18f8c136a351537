//! `cloudlinkd`: reads the configuration, and runs or prepares the node.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use cloudlink_server::config::{self, Config, Faults, Loaded, Sources};
use cloudlink_server::metrics::Metrics;
use cloudlink_server::{app, clock, pki, privilege, telemetry};

/// The server that devices dial.
#[derive(Debug, Parser)]
#[command(name = "cloudlinkd", version, propagate_version = true)]
struct Call {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the node.
    Run(ConfigArgs),
    /// Make keys and certificates.
    #[command(subcommand)]
    Pki(PkiVerb),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print docs/METRICS.md.
    Metrics,
}

#[derive(Debug, Subcommand)]
enum PkiVerb {
    /// Make the fleet CA and the server's certificate in the data directory. Overwrites nothing.
    Init(ConfigArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Tell everything that is wrong with the configuration.
    Check(ConfigArgs),
    /// Print the configuration in force, and where each value came from.
    Show(ConfigArgs),
    /// Print docs/CONFIG.md.
    Reference,
}

#[derive(Args, Debug)]
struct ConfigArgs {
    /// The configuration file; by default /etc/cloudlink/cloudlinkd.toml if it exists.
    #[arg(long, short, value_name = "FILE", env = "CLOUDLINK_CONFIG")]
    config: Option<PathBuf>,
    /// Set one key, over the file and the environment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn load(self) -> Result<Loaded, Faults> {
        Config::load(Sources { path: self.config, environment: std::env::vars_os().collect(), set: self.set })
    }
}

fn main() -> ExitCode {
    // Every TLS connection of this process takes its cryptography from here.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let done = match Call::parse().verb {
        Verb::Run(args) => run(args),
        Verb::Pki(PkiVerb::Init(args)) => pki_init(args),
        Verb::Config(verb) => config(verb),
        Verb::Metrics => print(&Metrics::new().reference()),
    };
    done.unwrap_or_else(|failure| {
        let _ = writeln!(std::io::stderr(), "cloudlinkd: {failure:#}");
        let wrong_call = failure.is::<Faults>();
        if wrong_call { ExitCode::from(config::EXIT_USAGE) } else { ExitCode::FAILURE }
    })
}

fn run(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    let config = args.load()?.config;
    telemetry::start(&config.log);
    Ok(match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Into the log and nowhere else: whoever reads the log as JSON expects nothing else.
            tracing::error!("the node failed: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn serve(config: Config) -> anyhow::Result<()> {
    privilege::prepare(config.tunnel.enabled)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(app::run(config));
    // What still runs was told to stop twice.
    runtime.shutdown_background();
    done
}

fn pki_init(args: ConfigArgs) -> anyhow::Result<ExitCode> {
    let config = args.load()?.config;
    let made = pki::init(&config, clock::now())?;
    let (ca, server) = (made.ca_certificate.display(), made.server_certificate.display());
    print(&format!("fleet CA:            {ca}\nserver certificate:  {server}\n"))
}

fn config(verb: ConfigVerb) -> anyhow::Result<ExitCode> {
    let text = match verb {
        ConfigVerb::Check(args) => {
            let path = args.load()?.path;
            path.map_or_else(
                || "the defaults are in force\n".to_owned(),
                |path| format!("{} is right\n", path.display()),
            )
        }
        ConfigVerb::Show(args) => Config::show(&args.load()?.shown),
        ConfigVerb::Reference => config::reference(),
    };
    print(&text)
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
