//! A peer made by hand that has got through TLS, or as far as it likes, and then says whatever a fuzzer's bytes say.

use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use cloudlink_proto::openvpn::{ClientConfig, Farewell, ServerConfig, Session};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};

use crate::quick;
use crate::raw::{control, key_exchange};
use crate::script::{byte, check_silence, client_config, number, server_config, string};
use crate::wire::*;

/// Plays a fuzzer's bytes; panics where a promise is broken.
pub(crate) fn run(mut bytes: &[u8]) {
    let Some(first) = byte(&mut bytes) else { return };
    let mut insider = Insider::new(first & 1 == 1, first & 2 == 2, usize::from(first >> 2 & 3));
    if first >> 4 & 3 > 0 {
        insider.pump();
    }
    if first >> 4 & 3 > 1 {
        insider.exchange_keys(first >> 6, b"");
        insider.pump();
    }
    if first >> 4 & 3 > 2 {
        insider.own(0);
        insider.say(0, b"");
        insider.pump();
    }
    for _ in 0..STEPS_MAX {
        if insider.step(&mut bytes).is_none() || insider.victim.closed.is_some() {
            break;
        }
    }
    // It never had a key for packets.
    assert!(insider.victim.packets.is_empty());
    check_silence(insider.now, &mut insider.victim);
}

/// Steps of a script; the rest is ignored.
const STEPS_MAX: usize = 200;

const PEERS: [&[u8]; 4] = [
    b"IV_VER=2.6.14\nIV_NCP=2\nIV_CIPHERS=AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305\nIV_PROTO=478\nIV_MTU=1600\n",
    b"IV_PROTO=2\nIV_NCP=2\n",
    b"IV_PROTO=8094\nIV_CIPHERS=AES-128-GCM\n",
    b"IV_PROTO=140\nIV_NCP=2\n",
];

const MESSAGES: [&[u8]; 12] = [
    b"PUSH_REQUEST",
    b"PUSH_REPLY,topology subnet,ifconfig 10.77.0.2 255.255.255.0,peer-id 0,cipher AES-256-GCM,ping 10,ping-restart 60,\
      protocol-flags cc-exit tls-ekm",
    b"PUSH_REPLY,",
    b"PUSH_REPLY,push-continuation 2",
    b"AUTH_FAILED,TEMP[backoff ",
    b"RESTART,[N]",
    b"HALT,",
    b"INFO,",
    b"AUTH_PENDING,timeout ",
    b"EXIT",
    b"CR_RESPONSE,",
    b"",
];

struct Insider {
    now: Instant,
    victim: End,
    is_server: bool,
    victim_id: [u8; 8],
    /// One for each key id.
    channels: [Channel; 8],
    /// The newest key.
    key: u8,
}

#[derive(Default)]
struct Channel {
    tls: Option<Connection>,
    next_id: u32,
    acks: Vec<u32>,
}

impl Insider {
    /// Resets are exchanged.
    fn new(is_server: bool, has_dynamic_tls_crypt: bool, habits: usize) -> Self {
        quick::restart();
        let session = if is_server {
            let configs = &SERVERS[usize::from(has_dynamic_tls_crypt)];
            Session::server(beginning(), Arc::clone(&configs[habits & 1]), start(1))
        } else {
            Session::client(beginning(), Arc::clone(&CLIENTS[habits & 1]), start(2))
        };
        let mut insider = Self {
            now: beginning(),
            victim: End::new(session),
            is_server,
            victim_id: [0; 8],
            channels: std::array::from_fn(|_| Channel::default()),
            key: 0,
        };
        if is_server {
            insider.open_channel(0);
            insider.packet(0x38, false, &[]);
        } else {
            let reset = insider.victim.drain();
            insider.take(&reset);
            insider.packet(0x40, true, &[]);
        }
        insider
    }

    fn step(&mut self, bytes: &mut &[u8]) -> Option<()> {
        match byte(bytes)? & 0x0f {
            0 => {
                let text = string(bytes)?;
                self.write(&text);
            }
            1 => {
                let (peer, info) = (byte(bytes)?, string(bytes)?);
                self.exchange_keys(peer, &info);
            }
            2 => {
                let (first, acks, id) = (byte(bytes)?, byte(bytes)?, byte(bytes)?);
                let acks: Vec<u32> = (0..u32::from(acks & 0x0f)).collect();
                let id = (first >> 3 != 5).then_some(id.into());
                let packet = control(first, &acks, self.victim_id, id, &string(bytes)?);
                self.inject(&packet);
            }
            3 | 4 => self.pump(),
            5 => self.pass(Duration::from_millis(u64::try_from(number(bytes)?).unwrap_or(0))),
            6 => {
                let next = self.victim.session.poll_timeout().map(|(at, _)| at);
                self.pass(next.map_or(Duration::ZERO, |at| at.saturating_duration_since(self.now)));
            }
            7 => self.renegotiate(),
            8 => {
                let what = byte(bytes)?;
                self.own(what);
            }
            9 | 10 => {
                let (which, text) = (byte(bytes)?, string(bytes)?);
                self.say(which, &text);
            }
            11 => {
                let bytes = string(bytes)?;
                self.packet(0x20 | self.key, true, &bytes);
            }
            12 => {
                let packet = string(bytes)?;
                self.inject(&framed(if packet.is_empty() { &[0x48] } else { &packet }));
            }
            13 => {
                if let Some(Connection::Client(tls)) = &mut self.channel().tls {
                    drop(tls.refresh_traffic_keys());
                }
            }
            14 => self.channel().tls.iter_mut().for_each(|tls| tls.send_close_notify()),
            // What is to be sent comes in pieces, the last one first.
            _ => {
                let pieces = byte(bytes)?;
                self.send_in_disorder(pieces.into());
            }
        }
        Some(())
    }

    fn channel(&mut self) -> &mut Channel {
        &mut self.channels[usize::from(self.key)]
    }

    fn open_channel(&mut self, key: u8) {
        let tls = if self.is_server {
            let name = ServerName::try_from(SERVER_NAME).unwrap();
            ClientConnection::new(Arc::clone(&quick::CLIENT), name).unwrap().into()
        } else {
            ServerConnection::new(Arc::clone(&quick::SERVER)).unwrap().into()
        };
        self.key = key;
        *self.channel() = Channel { tls: Some(tls), ..Channel::default() };
    }

    fn write(&mut self, plaintext: &[u8]) {
        if let Some(tls) = &mut self.channel().tls {
            // There is a limit before TLS is up.
            drop(tls.writer().write_all(plaintext));
        }
    }

    fn exchange_keys(&mut self, peer: u8, info: &[u8]) {
        let peer_info = [PEERS[usize::from(peer & 3)], info].concat();
        let options = if peer & 4 == 0 { OPTIONS.as_bytes() } else { b"V4,dev-type tun,comp-lzo,cipher AES-256-GCM" };
        let message = if self.is_server {
            key_exchange(options, &peer_info)
        } else {
            [&[0, 0, 0, 0, 2], [7; 64].as_slice(), &[0, 3, b'V', b'4', 0], info].concat()
        };
        self.write(&message);
    }

    fn say(&mut self, which: u8, text: &[u8]) {
        // Servers have to say one thing first.
        let which = usize::from(which) + usize::from(!self.is_server);
        self.write(&[MESSAGES[which % MESSAGES.len()], text, &[0]].concat());
    }

    /// What the victim's owner does.
    fn own(&mut self, what: u8) {
        let (now, session) = (self.now, &mut self.victim.session);
        match what & 7 {
            0 | 1 => drop(session.admit(now, &admission())),
            2 => drop(session.refuse(now, "no".to_owned())),
            3 => session.end(now, &Farewell::Restart("[N]".to_owned())),
            4 => session.end(now, &Farewell::AuthFailedTemporarily { backoff_seconds: 7, text: String::new() }),
            5 => session.renegotiate(now),
            6 => session.exit(now),
            _ => drop(self.victim.try_seal(now, &packet(CLIENT_IP, SERVER_IP, 1))),
        }
        let out = self.victim.drain();
        self.take(&out);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let out = self.victim.timeout(self.now);
        self.take(&out);
    }

    fn renegotiate(&mut self) {
        let next = if self.key == 7 { 1 } else { self.key + 1 };
        self.open_channel(next);
        self.packet(0x18 | next, true, &[]);
    }

    /// Exchanges packets until nothing is left to be said, or for long enough.
    fn pump(&mut self) {
        for _ in 0..PUMPS_MAX {
            let bytes = self.tls_bytes();
            if bytes.is_empty() && self.channel().acks.is_empty() {
                break;
            }
            if bytes.is_empty() {
                self.packet(0x28 | self.key, true, &[]);
            }
            for payload in bytes.chunks(1000) {
                self.packet(0x20 | self.key, true, payload);
            }
        }
    }

    fn tls_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Some(tls) = &mut self.channel().tls {
            while tls.wants_write() {
                tls.write_tls(&mut bytes).unwrap();
            }
        }
        bytes
    }

    fn send_in_disorder(&mut self, pieces: usize) {
        let bytes = self.tls_bytes();
        let (key, victim_id) = (self.key, self.victim_id);
        let first_id = self.channel().next_id;
        let size = bytes.len().div_ceil(pieces.max(1)).max(1);
        let packet = |(id, piece): (u32, &[u8])| control(0x20 | key, &[], victim_id, Some(id), piece);
        let packets: Vec<Vec<u8>> = (first_id..).zip(bytes.chunks(size)).map(packet).collect();
        self.channel().next_id += u32::try_from(packets.len()).unwrap();
        packets.iter().rev().for_each(|packet| self.inject(packet));
    }

    /// An honest packet, but for its payload.
    fn packet(&mut self, first: u8, has_acks: bool, payload: &[u8]) {
        let victim_id = self.victim_id;
        let channel = self.channel();
        let count = if has_acks { channel.acks.len().min(4) } else { 0 };
        let acks: Vec<u32> = channel.acks.drain(..count).collect();
        let id = (first >> 3 != 5).then(|| {
            channel.next_id += 1;
            channel.next_id - 1
        });
        self.inject(&control(first, &acks, victim_id, id, payload));
    }

    fn inject(&mut self, bytes: &[u8]) {
        let out = self.victim.feed(self.now, bytes, usize::MAX);
        self.take(&out);
    }

    fn take(&mut self, out: &[u8]) {
        for frame in frames(out) {
            let (opcode, key) = (frame[0] >> 3, frame[0] & 7);
            // Acknowledgements, packets, and what is wrapped.
            if matches!(opcode, 5 | 6 | 9) || frame.len() < 14 {
                continue;
            }
            self.victim_id = frame[1..9].try_into().unwrap();
            let acks = usize::from(frame[9]);
            let head = 10 + acks * 4 + if acks > 0 { 8 } else { 0 };
            let Some(id) = frame.get(head..head + 4) else { continue };
            let id = u32::from_be_bytes(id.try_into().unwrap());
            let is_new = self.channels[usize::from(key)].tls.is_none();
            if opcode == 3 && key != self.key || opcode == 7 && is_new {
                self.open_channel(key);
                if opcode == 3 {
                    self.packet(0x18 | key, false, &[]);
                }
            }
            let channel = &mut self.channels[usize::from(key)];
            channel.acks.push(id);
            let mut payload = &frame[head + 4..];
            while let Some(tls) = &mut channel.tls
                && !payload.is_empty()
            {
                if tls.read_tls(&mut payload).is_err() || tls.process_new_packets().is_err() {
                    break;
                }
                drop(tls.reader().read(&mut [0; 4096]));
            }
        }
    }
}

/// Rounds of a handshake are far fewer.
const PUMPS_MAX: usize = 20;

static SERVERS: LazyLock<[[Arc<ServerConfig>; 2]; 2]> = LazyLock::new(|| {
    [false, true].map(|has_dynamic_tls_crypt| {
        [None, Some(Duration::from_secs(10))].map(|renegotiate_every| {
            ServerConfig { has_dynamic_tls_crypt, renegotiate_every, ..server_config() }.into()
        })
    })
});

static CLIENTS: LazyLock<[Arc<ClientConfig>; 2]> = LazyLock::new(|| {
    [None, Some(Duration::from_secs(10))]
        .map(|renegotiate_every| ClientConfig { renegotiate_every, ..client_config() }.into())
});
