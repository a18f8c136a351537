//! A client made by hand, which says whatever a test wants it to say.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Instant;

use cloudlink_proto::openvpn::{ServerConfig, Session};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::wire::{End, PKI, SERVER_NAME, admission, beginning, framed, frames, start};

pub(crate) const SESSION: [u8; 8] = [0xc1; 8];

/// `op | session id | acks | server's id | message id | payload`, framed.
pub(crate) fn control(first: u8, acks: &[u32], acked: [u8; 8], id: Option<u32>, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    packet.extend(SESSION);
    packet.push(u8::try_from(acks.len()).unwrap());
    packet.extend(acks.iter().flat_map(|ack| ack.to_be_bytes()));
    if !acks.is_empty() {
        packet.extend(acked);
    }
    packet.extend(id.into_iter().flat_map(u32::to_be_bytes));
    packet.extend(payload);
    framed(&packet)
}

pub(crate) fn reset() -> Vec<u8> {
    control(0x38, &[], [0; 8], Some(0), &[])
}

/// A client without wrapping on the first key.
pub(crate) struct Raw {
    pub(crate) now: Instant,
    pub(crate) server: End,
    pub(crate) server_id: [u8; 8],
    tls: ClientConnection,
    next_id: u32,
    acks: Vec<u32>,
    /// Plaintext that the server sent.
    pub(crate) heard: Vec<u8>,
}

impl Raw {
    /// A server that has heard nothing.
    pub(crate) fn server(config: ServerConfig) -> End {
        End::new(Session::server(beginning(), Arc::new(config), start(3)))
    }

    /// Resets are exchanged.
    pub(crate) fn reset() -> Self {
        Self::with(PKI.client_tls(Some(&PKI.device)))
    }

    pub(crate) fn with(tls: Arc<rustls::ClientConfig>) -> Self {
        let tls = ClientConnection::new(tls, ServerName::try_from(SERVER_NAME).unwrap()).unwrap();
        let mut server = Self::server(PKI.server_config());
        let answer = server.feed(beginning(), &reset(), usize::MAX);
        let answer = frames(&answer).remove(0);
        assert_eq!((answer[0], answer.len()), (0x40, 26));
        let server_id = answer[1..9].try_into().unwrap();
        Self { now: beginning(), server, server_id, tls, next_id: 1, acks: vec![0], heard: vec![] }
    }

    /// The TLS handshake is through on this side; nothing of the key exchange was sent.
    pub(crate) fn tls() -> Self {
        let mut raw = Self::reset();
        raw.pump();
        assert!(!raw.tls.is_handshaking());
        raw
    }

    /// The key exchange is through, too, with these strings; a server that asks is told to admit.
    pub(crate) fn keys(options: &str, peer_info: &str) -> Self {
        let mut raw = Self::tls();
        raw.write(&key_exchange(options.as_bytes(), peer_info.as_bytes()));
        raw.pump();
        if raw.server.session.admit(raw.now, &admission()).is_ok() {
            let out = raw.server.drain();
            raw.take(&out);
            raw.pump();
        }
        raw
    }

    /// One record.
    pub(crate) fn write(&mut self, plaintext: &[u8]) {
        self.tls.writer().write_all(plaintext).unwrap();
    }

    /// Exchanges packets until nothing is left to be said.
    pub(crate) fn pump(&mut self) {
        while self.server.closed.is_none() && (self.tls.wants_write() || !self.acks.is_empty()) {
            let mut bytes = Vec::new();
            while self.tls.wants_write() {
                self.tls.write_tls(&mut bytes).unwrap();
            }
            self.send_tls(&bytes);
        }
    }

    /// Sends what there is, and acknowledges nothing that comes back.
    pub(crate) fn pump_once(&mut self) {
        let mut bytes = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut bytes).unwrap();
        }
        self.send_tls(&bytes);
    }

    /// Puts TLS bytes into packets of 1000; without any there is an acknowledgement.
    pub(crate) fn send_tls(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.send(0x28, None, &[]);
        }
        for payload in bytes.chunks(1000) {
            let id = self.next_id;
            self.next_id += 1;
            self.send(0x20, Some(id), payload);
        }
    }

    fn send(&mut self, first: u8, id: Option<u32>, payload: &[u8]) {
        let acks: Vec<u32> = self.acks.drain(..self.acks.len().min(4)).collect();
        let packet = control(first, &acks, self.server_id, id, payload);
        let out = self.server.feed(self.now, &packet, usize::MAX);
        self.take(&out);
    }

    fn take(&mut self, out: &[u8]) {
        for frame in frames(out).into_iter().filter(|frame| frame[0] == 0x20) {
            let acks = usize::from(frame[9]);
            let head = 10 + acks * 4 + if acks > 0 { 8 } else { 0 };
            self.acks.push(u32::from_be_bytes(frame[head..head + 4].try_into().unwrap()));
            let mut payload = &frame[head + 4..];
            while !payload.is_empty() {
                self.tls.read_tls(&mut payload).unwrap();
                drop(self.tls.process_new_packets());
                let mut heard = vec![0; 4096];
                if let Ok(count) = self.tls.reader().read(&mut heard) {
                    self.heard.extend(&heard[..count]);
                }
            }
        }
    }

    /// A packet as it is, on its way to the server.
    pub(crate) fn inject(&mut self, bytes: &[u8]) {
        let out = self.server.feed(self.now, bytes, usize::MAX);
        self.take(&out);
    }
}

fn string(text: &[u8]) -> Vec<u8> {
    [&u16::try_from(text.len() + 1).unwrap().to_be_bytes(), text, &[0]].concat()
}

/// A client's key exchange message with empty user name and password.
pub(crate) fn key_exchange(options: &[u8], peer_info: &[u8]) -> Vec<u8> {
    let head = [[0, 0, 0, 0, 2].as_slice(), &[0x77; 112]].concat();
    [head, string(options), string(b""), string(b""), string(peer_info)].concat()
}
