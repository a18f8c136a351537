//! TLS inside the control channel, without its socket (wire page §3.3).

use std::io::{BufRead, Write};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConnection, Connection, ProtocolVersion, ServerConnection};
use zeroize::Zeroizing;

/// One TLS session: each key has its own.
pub(super) struct Tls(Box<Connection>);

impl Tls {
    pub(super) fn server(config: &Arc<rustls::ServerConfig>) -> Result<Self, rustls::Error> {
        let connection = ServerConnection::new(Arc::clone(config))?;
        Ok(Self(Box::new(connection.into())))
    }

    pub(super) fn client(
        config: &Arc<rustls::ClientConfig>,
        name: &ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        let connection = ClientConnection::new(Arc::clone(config), name.clone())?;
        Ok(Self(Box::new(connection.into())))
    }

    /// Takes bytes of the peer. Records that come out are to be [taken](Tls::take_record) before the next call. After an
    /// error there is an alert to be [sent](Tls::drain).
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), rustls::Error> {
        while !bytes.is_empty() {
            // An error means that a buffer of rustls is full, which an honest handshake never makes it.
            let taken = self.0.read_tls(&mut bytes).map_err(|_| rustls::Error::General("buffer full".to_owned()))?;
            self.0.process_new_packets()?;
            if taken == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The plaintext of one record: control messages and key exchanges have no other limits.
    pub(super) fn take_record(&mut self) -> Option<Zeroizing<Vec<u8>>> {
        let mut reader = self.0.reader();
        // An error says that nothing is there, or that the peer is gone: `has_peer_closed` tells.
        let record = Zeroizing::new(reader.fill_buf().ok()?.to_vec());
        if record.is_empty() {
            return None;
        }
        reader.consume(record.len());
        Some(record)
    }

    /// One record of plaintext for the peer.
    pub(super) fn write(&mut self, plaintext: &[u8]) {
        self.0.writer().write_all(plaintext).expect("rustls buffers 64 KiB, and messages go out one by one");
    }

    /// Appends what is to be sent.
    pub(super) fn drain(&mut self, out: &mut Vec<u8>) {
        while self.0.wants_write() {
            self.0.write_tls(out).expect("a vector takes everything");
        }
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    pub(super) fn is_tls13(&self) -> bool {
        self.0.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    pub(super) fn peer_chain(&self) -> Option<&[CertificateDer<'static>]> {
        self.0.peer_certificates()
    }

    pub(super) fn has_peer_closed(&mut self) -> bool {
        self.0.process_new_packets().is_ok_and(|state| state.peer_has_closed())
    }

    pub(super) fn export(&self, label: &[u8]) -> Result<[u8; 256], rustls::Error> {
        self.0.export_keying_material([0; 256], label, None)
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("is_handshaking", &self.is_handshaking()).finish_non_exhaustive()
    }
}
