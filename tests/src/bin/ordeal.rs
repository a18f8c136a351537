//! The programs of an ordeal: simulated devices, and the checker, which reads what they and the database remember.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use cloudlink_tests::api::install_provider;
use cloudlink_tests::check::{Evidence, Limits};
use cloudlink_tests::ordeal::swarm;

/// Faults that are told one by one.
const TOLD_MAX: usize = 50;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Debug, Subcommand)]
enum Program {
    /// Be many devices, until SIGTERM.
    Devices(swarm::Arguments),
    /// Judge a run. Exits with 1 when a promise was not kept.
    Check {
        /// The histories of a run.
        directory: PathBuf,
        /// The database, as its owner.
        #[arg(long)]
        database: String,
        /// For how long the database may show a link wrongly.
        #[arg(long)]
        presence_seconds: u64,
        /// How long after a grant was taken back a command that is under way may be begun.
        #[arg(long)]
        revocation_ms: u64,
    },
}

fn main() -> Result<ExitCode> {
    install_provider();
    let Arguments { program } = Arguments::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    match program {
        Program::Devices(arguments) => {
            runtime.block_on(Box::pin(arguments.run()))?;
            Ok(ExitCode::SUCCESS)
        }
        Program::Check { directory, database, presence_seconds, revocation_ms } => {
            let evidence = runtime.block_on(Box::pin(Evidence::read(&directory, &database)))?;
            let presence = Duration::from_secs(presence_seconds);
            let revocation = Duration::from_millis(revocation_ms);
            Ok(judge(&evidence, &Limits { presence, revocation }))
        }
    }
}

#[expect(clippy::print_stdout, reason = "the verdict is for whoever runs it")]
fn judge(evidence: &Evidence, limits: &Limits) -> ExitCode {
    let (faults, figures) = evidence.faults(limits);
    println!("{figures:?}");
    for fault in faults.iter().take(TOLD_MAX) {
        println!("{fault}");
    }
    if faults.is_empty() {
        println!("every promise was kept");
        return ExitCode::SUCCESS;
    }
    println!("{} faults", faults.len());
    ExitCode::FAILURE
}
