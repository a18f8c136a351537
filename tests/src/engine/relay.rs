//! What stands between an agent and its engine, and knows when to let nothing more through.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const REQUEST_BYTES_MAX: usize = 256 * 1024;

/// When the agent is lost, as one request sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The engine does not hear of it.
    Before,
    /// The engine has it, and may be at it still.
    During,
    /// The engine has done it, and the agent does not hear that.
    After,
}

/// Passes requests on until one is reached, and then none.
#[derive(Debug)]
pub struct Relay {
    pub socket: PathBuf,
    requests: Arc<Mutex<Vec<String>>>,
    reached: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// `last`: which request is the last one, counted from 0.
    pub fn start(socket: PathBuf, engine: &Path, last: usize, moment: Moment) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(&socket)?;
        let (told, reached) = watch::channel(false);
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (engine, noted, told) = (engine.to_owned(), Arc::clone(&requests), Arc::new(told));
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (engine, noted, told) = (engine.clone(), Arc::clone(&noted), Arc::clone(&told));
                // An agent that is lost breaks it off.
                tokio::spawn(async move {
                    let _ = pass(near, &engine, &noted, &told, last, moment).await;
                });
            }
        });
        Ok(Self { socket, requests, reached, task })
    }

    /// Waits for the last request.
    pub async fn reached(&self) {
        let mut reached = self.reached.clone();
        let _ = reached.wait_for(|reached| *reached).await;
    }

    /// The request lines, without those that ask for the version.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    mut near: UnixStream,
    engine: &Path,
    noted: &Mutex<Vec<String>>,
    told: &watch::Sender<bool>,
    last: usize,
    moment: Moment,
) -> anyhow::Result<()> {
    let request = read_request(&mut near).await?;
    let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
    let is_counted = !line.contains("/version ");
    let number = {
        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
        if is_counted {
            noted.push(line);
        }
        noted.len() - usize::from(is_counted)
    };
    let is_last = is_counted && number == last;
    if *told.borrow() || is_last && moment == Moment::Before {
        told.send_replace(true);
        return std::future::pending().await;
    }
    let mut far = UnixStream::connect(engine).await?;
    far.write_all(&request).await?;
    if !is_last {
        copy_bidirectional(&mut near, &mut far).await?;
        return Ok(());
    }
    if moment == Moment::After {
        far.read_u8().await?;
    }
    drop(far);
    told.send_replace(true);
    std::future::pending().await
}

/// Its head, and a body of the length that is said there.
async fn read_request(near: &mut UnixStream) -> anyhow::Result<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(Ok(0), |length| length.trim().parse())?;
            if request.len() >= head.len() + 4 + length {
                return Ok(request);
            }
        }
        anyhow::ensure!(request.len() < REQUEST_BYTES_MAX, "a request is too large");
        let read = near.read_buf(&mut request).await?;
        (read > 0).then_some(()).context("it ended")?;
    }
}
