//! A way from one program to another, which can be cut, or swallow all that goes there.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::port;

/// Stands in front of a server. Gone when it is dropped.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    /// How often it was cut.
    cuts: watch::Sender<u32>,
    is_open: watch::Sender<bool>,
}

impl Relay {
    pub async fn start(server: SocketAddr) -> anyhow::Result<Self> {
        let address = port::free()?;
        let listener = TcpListener::bind(address).await?;
        let (cuts, is_open) = (watch::Sender::new(0), watch::Sender::new(true));
        let (cut, open) = (cuts.subscribe(), is_open.subscribe());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass(near, server, cut.clone(), open.clone()));
            }
        });
        Ok(Self { address, cuts, is_open })
    }

    /// Cuts every connection that there is now.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// From now on nothing passes, and nobody is told.
    pub fn close(&self) {
        self.is_open.send_replace(false);
    }

    /// New connections pass again. Those of before are cut.
    pub fn open(&self) {
        self.is_open.send_replace(true);
    }
}

async fn pass(mut near: TcpStream, server: SocketAddr, mut cut: watch::Receiver<u32>, mut open: watch::Receiver<bool>) {
    cut.mark_unchanged();
    if !*open.borrow() {
        return until(&mut open, true).await;
    }
    let Ok(mut far) = TcpStream::connect(server).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => return,
        _ = cut.changed() => {}
        () = until(&mut open, false) => until(&mut open, true).await,
    }
    // As by a router that forgot: nobody says goodbye.
    let _ = (near.set_zero_linger(), far.set_zero_linger());
}

/// Also when there is no relay any more.
async fn until(open: &mut watch::Receiver<bool>, wanted: bool) {
    let _ = open.wait_for(|is_open| *is_open == wanted).await;
}
