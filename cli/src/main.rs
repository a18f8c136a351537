//! `cloudlink`: everything that an operator, a customer or a robot does with Cloudlink, over its public API and nothing
//! else. See docs/CLI.md. Reading order: `commands` (what there is), `client` (the API), `output` (how it is shown).

mod argument;
mod audit;
mod client;
mod clock;
mod commands;
mod connection;
mod duration;
mod failure;
mod model;
mod output;
mod recording;
mod resolve;
mod sign_in;
mod signing;
mod statement;
mod stream;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The only error is that another part of the program did it before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let line = commands::Line::parse();
    let json = line.is_json();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(&format!("error: the program cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let end = runtime.block_on(line.run());
    // Somebody who is expected to type, or to read, is not waited for.
    runtime.shutdown_background();
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(report) = failure.report(json) {
                output::note(&report);
            }
            failure.into()
        }
    }
}
