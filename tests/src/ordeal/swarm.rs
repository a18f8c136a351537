//! A process with many simulated devices: started by [`super::run`], stopped with SIGTERM.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::device::{Device, Shared, Transport};
use crate::history::Book;
use crate::load::Credential;
use crate::program::{Program, binary, bound};
use crate::server::SERVER_NAME;

/// What a process of devices is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// One credential a line.
    #[arg(long)]
    pub credentials: PathBuf,
    /// The first line that is this process's.
    #[arg(long)]
    pub first: usize,
    #[arg(long)]
    pub count: usize,
    /// One of so many has an OpenVPN client in place of an agent. 0: none.
    #[arg(long)]
    pub tunnels_of: usize,
    /// Where to dial.
    #[arg(long, value_delimiter = ',')]
    pub addresses: Vec<SocketAddr>,
    /// The fleet's authority, PEM.
    #[arg(long)]
    pub ca: PathBuf,
    #[arg(long)]
    pub history: PathBuf,
    #[arg(long)]
    pub seed: u64,
    /// They come for the first time spread over so long.
    #[arg(long)]
    pub spread_ms: u64,
}

impl Arguments {
    /// The process that does this.
    pub fn start(&self, log: &Path) -> anyhow::Result<Program> {
        let mut command = bound(binary("ordeal")?);
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        command.arg("devices").arg("--credentials").arg(&self.credentials).arg("--ca").arg(&self.ca);
        command.arg("--history").arg(&self.history).args(["--addresses", &addresses.join(",")]);
        for (name, value) in [
            ("--first", self.first as u64),
            ("--count", self.count as u64),
            ("--tunnels-of", self.tunnels_of as u64),
            ("--seed", self.seed),
            ("--spread-ms", self.spread_ms),
        ] {
            command.args([name, &value.to_string()]);
        }
        Program::start("devices", command, log)
    }

    /// Is those devices, until SIGTERM.
    pub async fn run(&self) -> anyhow::Result<()> {
        let authority = std::fs::read(&self.ca)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&authority).context("no certificate")?)?;
        let shared = Arc::new(Shared {
            addresses: self.addresses.clone(),
            server_name: SERVER_NAME.try_into()?,
            roots: Arc::new(roots),
            book: Book::open(&self.history)?,
        });
        let mut asked_to_stop = signal(SignalKind::terminate())?;
        let (stop, mut devices) = (CancellationToken::new(), JoinSet::new());
        let lines = std::fs::read_to_string(&self.credentials)?;
        for (index, line) in lines.lines().enumerate().skip(self.first).take(self.count) {
            let credential = Arc::new(Credential::from_line(line).with_context(|| format!("line {index}"))?);
            let device = Device::new(&shared, credential, index, self.transport(index), self.seed);
            let place = u32::try_from(index - self.first)?;
            let after = Duration::from_millis(self.spread_ms) * place / u32::try_from(self.count.max(1))?;
            devices.spawn(device.run(after, stop.clone()));
        }
        loop {
            tokio::select! {
                _ = asked_to_stop.recv(), if !stop.is_cancelled() => stop.cancel(),
                ended = devices.join_next() => match ended {
                    // One that cannot write its history has made all of it worthless.
                    Some(ended) => ended??,
                    None => return Ok(()),
                },
            }
        }
    }

    fn transport(&self, index: usize) -> Transport {
        let is_tunnel = self.tunnels_of > 0 && index % self.tunnels_of == self.tunnels_of - 1;
        if is_tunnel { Transport::Tunnel } else { Transport::Link }
    }
}
