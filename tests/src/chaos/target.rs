//! The device's end of streams: what they lead to.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::unistd::Pid;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::stream::{Observed, WORD, speak};
use crate::poll::wait_for;
use crate::port;

/// For a file to be there with its first bytes.
const FILE_LIMIT: Duration = Duration::from_secs(20);
/// The number of a stream, in digits.
const NUMBER_BYTES_MAX: usize = 8;

/// A TCP server on the device. Who connects says first which stream it is.
#[derive(Debug)]
pub struct Target {
    pub address: SocketAddr,
    streams: Arc<Mutex<HashMap<usize, Arc<Observed>>>>,
}

impl Target {
    pub async fn start() -> anyhow::Result<Self> {
        let address = port::free()?;
        let listener = TcpListener::bind(address).await?;
        let streams = Arc::<Mutex<HashMap<usize, Arc<Observed>>>>::default();
        let known = Arc::clone(&streams);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let known = Arc::clone(&known);
                tokio::spawn(async move {
                    // Whoever goes before it has said who it is was not a stream yet.
                    let _ = serve(stream, &known).await;
                });
            }
        });
        Ok(Self { address, streams })
    }

    /// Knows a stream by its number, from here on.
    pub fn expect(&self, number: usize, observed: &Arc<Observed>) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(observed));
    }

    /// A program for terminals that leads there: what is typed is what the server hears.
    #[must_use]
    pub fn terminal_argv(&self) -> Vec<String> {
        let script = format!(
            "stty raw -echo; exec 3<>/dev/tcp/{}/{}; cat <&3 & exec cat >&3",
            self.address.ip(),
            self.address.port()
        );
        ["/bin/bash", "--noprofile", "--norc", "-c", &script].map(str::to_owned).to_vec()
    }
}

async fn serve(mut stream: TcpStream, known: &Mutex<HashMap<usize, Arc<Observed>>>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(WORD).await?;
    let mut number = String::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            digit if number.len() < NUMBER_BYTES_MAX => number.push(char::from(digit)),
            _ => anyhow::bail!("not a number: {number}"),
        }
    }
    let number: usize = number.parse()?;
    let observed = known.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned();
    let observed = observed.with_context(|| format!("nobody expects {number}"))?;
    let (reader, writer) = stream.split();
    speak(reader, writer, &observed.device).await;
    Ok(())
}

/// Finds the file that an agent writes for a stream: it has no name yet, but begins with the stream's number.
pub async fn find_file(agent: Pid, directory: &Path, number: usize) -> anyhow::Result<File> {
    let begin = format!("{number}\n");
    let descriptors = format!("/proc/{agent}/fd");
    wait_for("a file on the device", FILE_LIMIT, async || {
        let open = std::fs::read_dir(&descriptors)?.flatten().map(|entry| entry.path());
        let written = open.filter(|path| std::fs::read_link(path).is_ok_and(|link| link.starts_with(directory)));
        let file = written.filter_map(|path| File::open(path).ok()).find(|file| begins_with(file, begin.as_bytes()));
        file.with_context(|| format!("none of {number}"))
    })
    .await
}

fn begins_with(mut file: &File, begin: &[u8]) -> bool {
    let mut bytes = vec![0; begin.len()];
    file.metadata().is_ok_and(|metadata| metadata.is_file()) && file.read_exact(&mut bytes).is_ok() && bytes == begin
}

/// When a file was written to last, by the kernel's clock.
pub fn written_at(file: &File) -> anyhow::Result<OffsetDateTime> {
    let metadata = file.metadata()?;
    ensure!(metadata.len() > 0, "it is empty");
    Ok(OffsetDateTime::from_unix_timestamp(metadata.mtime())? + time::Duration::nanoseconds(metadata.mtime_nsec()))
}
