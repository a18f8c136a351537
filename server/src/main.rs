//! `cloudlinkd`: reads the configuration, and runs or prepares the node.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use cloudlink_server::config::{self, Config, Faults, Loaded, Sources};

/// The server that devices dial.
#[derive(Debug, Parser)]
#[command(name = "cloudlinkd", version, propagate_version = true)]
struct Call {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigVerb),
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
    let done = match Call::parse().verb {
        Verb::Config(verb) => config(verb),
    };
    done.unwrap_or_else(|failure| {
        let _ = writeln!(std::io::stderr(), "cloudlinkd: {failure:#}");
        let wrong_call = failure.is::<Faults>();
        if wrong_call { ExitCode::from(config::EXIT_USAGE) } else { ExitCode::FAILURE }
    })
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
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
