//! `cloudlinkd`: reads the configuration, and runs or prepares the node.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use cloudlink_server::config::{self, Config, Faults, Loaded, Sources};
use cloudlink_server::isolation::report;
use cloudlink_server::metrics::Metrics;
use cloudlink_server::{app, clock, pki, privilege, telemetry};

/// What is in force is not what is declared.
const EXIT_DIFFERENT: u8 = 1;
/// It cannot be told.
const EXIT_UNTOLD: u8 = 2;

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
    /// Look at the kernel's rules that isolate tunnels.
    #[command(subcommand)]
    Isolation(IsolationVerb),
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

#[derive(Debug, Subcommand)]
enum IsolationVerb {
    /// Print the live rules in plain words.
    Show(IsolationArgs),
    /// Compare the live rules and settings with what is declared. Exits with 1 on any difference, with 2 if it cannot look.
    Verify(IsolationArgs),
}

#[derive(Args, Debug)]
struct IsolationArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug)]
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
        Verb::Isolation(verb) => isolation(verb),
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

/// Whoever asks in a script must be able to tell a difference from a question that was not answered.
fn isolation(verb: IsolationVerb) -> anyhow::Result<ExitCode> {
    let (IsolationVerb::Show(args) | IsolationVerb::Verify(args)) = &verb;
    let (is_json, config) = (args.json, args.config.clone().load()?.config);
    let told = on_runtime(async {
        Ok(match verb {
            IsolationVerb::Show(_) => {
                let shown = report::show(&config).await?;
                (if is_json { report::to_json(&shown) } else { shown.table() }, true)
            }
            IsolationVerb::Verify(_) => {
                let verified = report::verify(&config).await?;
                (if is_json { report::to_json(&verified) } else { verified.text() }, verified.equal)
            }
        })
    });
    match told {
        Ok((text, is_right)) => {
            let code = print(&text)?;
            Ok(if is_right { code } else { ExitCode::from(EXIT_DIFFERENT) })
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cloudlinkd: {error:#}");
            Ok(ExitCode::from(EXIT_UNTOLD))
        }
    }
}

fn on_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    privilege::prepare(true)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
