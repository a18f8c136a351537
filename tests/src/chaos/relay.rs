//! A device's way to its node, which can be cut.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::port;

/// Stands between a device and a node. Gone when it is dropped.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    /// How often it was cut.
    cuts: watch::Sender<u32>,
}

impl Relay {
    pub async fn start(node: SocketAddr) -> anyhow::Result<Self> {
        let address = port::free()?;
        let listener = TcpListener::bind(address).await?;
        let cuts = watch::Sender::new(0);
        let cut = cuts.subscribe();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cut.clone();
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(node).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {
                            // As by a router that forgot: nobody says goodbye.
                            let _ = (near.set_zero_linger(), far.set_zero_linger());
                        }
                    }
                });
            }
        });
        Ok(Self { address, cuts })
    }

    /// Cuts every connection that there is now.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}
