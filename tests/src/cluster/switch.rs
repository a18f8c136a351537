use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// One address in front of several, as simple as can be: a connection goes to whichever was chosen last.
#[derive(Debug)]
pub struct Switch {
    pub address: SocketAddr,
    chosen: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

impl Switch {
    /// Begins with the first.
    pub async fn start(targets: Vec<SocketAddr>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, chosen) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let current = Arc::clone(&chosen);
        let accepting = tokio::spawn(async move {
            // Dropped with this, they end.
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let target = targets[current.load(Ordering::Relaxed)];
                connections.spawn(async move {
                    if let Ok(mut other) = TcpStream::connect(target).await {
                        let _ = copy_bidirectional(&mut stream, &mut other).await;
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, chosen, accepting: accepting.abort_handle() })
    }

    /// Where connections go from now on.
    pub fn choose(&self, target: usize) {
        self.chosen.store(target, Ordering::Relaxed);
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
