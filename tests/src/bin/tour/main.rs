//! `make demo` and `make up`: a throw-away fleet, and the main job told as a tour.
//!
//! Everything runs for real, as somebody would run it: [`stage`] has the fleet, [`demo`] the story with [`support`] and [`tunnel`] in
//! its middle, [`up`] leaves the stage to the user.

#![expect(clippy::print_stdout, reason = "telling is what this program is for")]

mod demo;
mod stage;
mod support;
mod tunnel;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use cloudlink_tests::api::install_provider;
use cloudlink_tests::netns;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::stage::Ports;

/// Takes you through Cloudlink with a throw-away fleet
#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    verb: Verb,
    /// Listen on ports that nobody uses, rather than on 443 (or 4443), 8443 and 9090
    #[arg(long, global = true)]
    free_ports: bool,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Verb {
    /// The main job, from enrollment to the end of the grant; leaves nothing running
    Demo,
    /// A server with one device, until Ctrl-C; writes target/up.env
    Up {
        /// Where to write, as shell variables, what there is; by default target/up.env
        #[arg(long, value_name = "FILE")]
        environment: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    install_provider();
    let line = Line::parse();
    let told = match line.verb {
        // The tunnels' interface, and the devices behind it, are nothing that a host should see.
        Verb::Demo if netns::lacking().is_none() => netns::run(async || play(line.verb.clone(), Ports::Own).await),
        Verb::Demo | Verb::Up { .. } => {
            let ports = if line.free_ports { Ports::Free } else { Ports::Usual };
            Runtime::new().map_err(Into::into).and_then(|runtime| runtime.block_on(play(line.verb.clone(), ports)))
        }
    };
    match (told, line.verb) {
        (Ok(false), _) => ExitCode::SUCCESS,
        (Ok(true), verb) => {
            println!("\nEverything is stopped and removed.");
            // That is how `up` ends, but not how `demo` does.
            if matches!(verb, Verb::Up { .. }) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        (Err(error), _) => {
            println!("\nThe tour ends here: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether it was interrupted.
async fn play(verb: Verb, ports: Ports) -> anyhow::Result<bool> {
    // What is interrupted is dropped, and dropping it stops what it started.
    tokio::select! {
        told = Box::pin(run(verb, ports)) => told.map(|()| false),
        interrupted = interrupted() => interrupted.map(|()| true),
    }
}

async fn run(verb: Verb, ports: Ports) -> anyhow::Result<()> {
    match verb {
        Verb::Demo => Box::pin(demo::run(ports)).await,
        Verb::Up { environment } => Box::pin(up::run(ports, environment)).await,
    }
}

async fn interrupted() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
