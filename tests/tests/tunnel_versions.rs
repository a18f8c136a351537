//! OpenVPN clients of other versions than the one that is installed here, as our own client's machine replays them: what they
//! say about themselves decides what they get, from the keys of old to the data format of the newest.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use cloudlink_proto::openvpn::{
    self, Cipher, ClientConfig, ClientEvent, Event, Format, HEADROOM, Output, Pushed, Session, Start, TAILROOM,
};
use cloudlink_tests::clock;
use cloudlink_tests::dial::client_config;
use cloudlink_tests::enroll::Enrolled;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::netns;
use cloudlink_tests::server::{SERVER_NAME, Settings};
use cloudlink_tests::traffic;
use futures_util::future::try_join_all;
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use uuid::Uuid;

/// For a tunnel, and for an answer.
const LIMIT: Duration = Duration::from_secs(20);
const RENEWED_EVERY: Duration = Duration::from_secs(3);
/// Long enough for keys to be renewed twice.
const PINGS: u16 = 45;
const BETWEEN_PINGS: Duration = Duration::from_millis(200);

/// What a version says, and what it is to get.
#[derive(Clone, Copy, Debug)]
struct Version {
    name: &'static str,
    peer_info: &'static str,
    /// What it would use if nothing were agreed on.
    fallback: Option<&'static str>,
    ciphers: &'static [Cipher],
    asks_for_push: bool,
    cipher: Cipher,
    format: &'static str,
    has_key_export: bool,
}

const OLD: Version = Version {
    name: "2.4.12",
    peer_info: "IV_VER=2.4.12\nIV_PLAT=linux\nIV_PROTO=2\nIV_NCP=2\nIV_CIPHERS=AES-256-GCM:AES-128-GCM:BF-CBC\n",
    fallback: Some("BF-CBC"),
    ciphers: &[Cipher::Aes256Gcm, Cipher::Aes128Gcm],
    asks_for_push: true,
    cipher: Cipher::Aes256Gcm,
    format: "V2",
    has_key_export: false,
};

const VERSIONS: &[Version] = &[
    OLD,
    Version { name: "2.4.9", peer_info: "IV_VER=2.4.9\nIV_PLAT=linux\nIV_PROTO=2\nIV_NCP=2\n", ..OLD },
    Version {
        name: "2.5.11",
        peer_info: "IV_VER=2.5.11\nIV_PLAT=linux\nIV_PROTO=6\nIV_NCP=2\nIV_CIPHERS=AES-256-GCM:AES-128-GCM\n",
        fallback: None,
        ..OLD
    },
    Version {
        name: "2.7.6",
        peer_info: "IV_VER=2.7.6\nIV_PLAT=linux\nIV_TCPNL=1\nIV_MTU=1600\nIV_NCP=2\n\
                    IV_CIPHERS=AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305\nIV_PROTO=8094\nIV_COMP_STUBv2=1\n",
        fallback: None,
        ciphers: &Cipher::ALL,
        format: "Epoch",
        has_key_export: true,
        ..OLD
    },
    Version {
        name: "openvpn3",
        peer_info: "IV_VER=3.11\nIV_PLAT=linux\nIV_TCPNL=1\nIV_MTU=1600\nIV_NCP=2\n\
                    IV_CIPHERS=AES-128-GCM:AES-256-GCM:CHACHA20-POLY1305\nIV_PROTO=7070\n",
        fallback: None,
        ciphers: &Cipher::ALL,
        has_key_export: true,
        ..OLD
    },
    Version {
        name: "MirageVPN",
        peer_info: "IV_PLAT=mirage\nIV_NCP=2\nIV_PROTO=140\n\
                    IV_CIPHERS=AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305\n",
        fallback: None,
        ciphers: &Cipher::ALL,
        asks_for_push: false,
        format: "V1",
        has_key_export: true,
        ..OLD
    },
    Version {
        name: "minivpn",
        peer_info: "IV_VER=2.5.5\nIV_PROTO=2\n",
        fallback: Some("AES-128-GCM"),
        ciphers: &[Cipher::Aes128Gcm],
        cipher: Cipher::Aes128Gcm,
        ..OLD
    },
];

#[test]
fn clients_of_other_versions_get_what_they_can_and_keep_it() -> anyhow::Result<()> {
    netns::test("clients_of_other_versions_get_what_they_can_and_keep_it", async || {
        let fleet = Fleet::start_with(&Settings::with_tunnels(&[])).await?;
        let served = VERSIONS.iter().map(async |version| is_served(&fleet, *version).await.context(version.name));
        try_join_all(served).await?;
        Ok(())
    })
}

async fn is_served(fleet: &Fleet, version: Version) -> anyhow::Result<()> {
    let device = fleet.enrolled(version.name).await?;
    let mut client = Client::dial(fleet, &device, version).await?;
    let pushed = client.is_up().await?;
    let agreed = *client.session.agreed().context("nothing was agreed on")?;
    let format = match agreed.format {
        Format::V1 => "V1",
        Format::V2 { .. } => "V2",
        Format::Epoch { .. } => "Epoch",
    };
    let got = (agreed.cipher, format, agreed.is_tls_ekm);
    ensure!(got == (version.cipher, version.format, version.has_key_export), "{agreed:?}");

    let (address, netmask) = pushed.ipv4.context("no address")?;
    let gateway = Ipv4Addr::from((u32::from(address) & u32::from(netmask)) + 1);
    for sequence in 0..PINGS {
        client.ping(address, gateway, sequence).await?;
        client.goes_on_for(BETWEEN_PINGS).await?;
    }
    ensure!(client.renewals >= 2, "keys were renewed {} times", client.renewals);
    let shown = fleet.wait_for_link(&device.id, "live").await?;
    ensure!(shown["link"]["epoch"] == 1 && shown["tunnel"]["cipher"] == version.cipher.name(), "{shown}");
    ensure!(shown["tunnel"]["ipv4"] == address.to_string(), "{shown}");
    Ok(())
}

/// A client without an interface: the test makes its packets, and looks at what comes.
struct Client {
    stream: TcpStream,
    session: Box<Session>,
    pushed: Option<Pushed>,
    renewals: u32,
    packets: Vec<Vec<u8>>,
}

impl Client {
    async fn dial(fleet: &Fleet, device: &Enrolled, version: Version) -> anyhow::Result<Self> {
        let mut tls = client_config(&fleet.server.ca_file(), Some(&device.credentials), &[&rustls::version::TLS13])?;
        openvpn::tls_client_config(&mut tls);
        let mut config = ClientConfig::new(Arc::new(tls), ServerName::try_from(SERVER_NAME)?);
        config.peer_info = version.peer_info.into();
        config.ciphers = version.ciphers.to_vec();
        config.push_request_every = version.asks_for_push.then_some(Duration::from_secs(5));
        config.renegotiate_every = Some(RENEWED_EVERY);
        if let Some(cipher) = version.fallback {
            config.options.extend_from_slice(format!(",cipher {cipher}").as_bytes());
        }
        let seed = [*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()].concat();
        let seed = seed.try_into().map_err(|_| anyhow::anyhow!("a seed has 32 bytes"))?;
        let start = Start { seed, unix_seconds: u32::try_from(clock::now().unix_timestamp())? };
        let stream = TcpStream::connect(fleet.server.device).await?;
        stream.set_nodelay(true)?;
        let session = Box::new(Session::client(now(), Arc::new(config), start));
        Ok(Self { stream, session, pushed: None, renewals: 0, packets: Vec::new() })
    }

    async fn is_up(&mut self) -> anyhow::Result<Pushed> {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(pushed) = self.pushed.take() {
                return Ok(pushed);
            }
            ensure!(Instant::now() < end, "no tunnel in time");
            self.step(end).await?;
        }
    }

    async fn goes_on_for(&mut self, pause: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + pause;
        while Instant::now() < end {
            self.step(end).await?;
        }
        Ok(())
    }

    /// Sends an echo request, and waits for the answer.
    async fn ping(&mut self, from: Ipv4Addr, to: Ipv4Addr, sequence: u16) -> anyhow::Result<()> {
        let packet = echo_request(from, to, sequence);
        let mut frame = [&[0; HEADROOM], packet.as_slice(), &[0; TAILROOM]].concat();
        let sealed = self.session.seal(now(), &mut frame, packet.len())?;
        self.stream.write_all(&frame[sealed]).await?;
        let end = Instant::now() + LIMIT;
        loop {
            let is_answer = |packet: &Vec<u8>| {
                packet.get(9) == Some(&1)
                    && packet.get(20) == Some(&0)
                    && packet.get(26..28) == Some(&sequence.to_be_bytes())
            };
            if std::mem::take(&mut self.packets).iter().any(is_answer) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "no answer to ping {sequence}");
            self.step(end).await?;
        }
    }

    /// Sends what is due, then waits for one thing and deals with it.
    async fn step(&mut self, end: Instant) -> anyhow::Result<()> {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Transmit(bytes) => self.stream.write_all(&bytes).await?,
                Output::Event(Event::Client(ClientEvent::Connected(pushed))) => self.pushed = Some(*pushed),
                Output::Event(Event::Rekeyed(_)) => self.renewals += 1,
                Output::Event(Event::Client(ClientEvent::Info(_)) | Event::Server(_)) => {}
                Output::Closed(reason) => bail!("the tunnel ended: {reason}"),
            }
        }
        let due = self.session.poll_timeout().map_or(end, |(due, _)| end.min(due.into()));
        tokio::select! {
            readable = self.stream.readable() => {
                readable?;
                self.receive()
            }
            () = tokio::time::sleep_until(due) => {
                self.session.handle_timeout(now());
                Ok(())
            }
        }
    }

    fn receive(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 8 * 1024];
        let read = match self.stream.try_read(&mut buffer) {
            Ok(0) => bail!("the server has closed"),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut rest = &mut buffer[..read];
        while !rest.is_empty() {
            let received = self.session.handle_input(now(), rest);
            self.packets.extend(received.packet.map(|packet| packet.to_vec()));
            let consumed = received.consumed;
            rest = &mut rest[consumed..];
        }
        Ok(())
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// An ICMP echo request of 28 bytes, in an IP packet.
fn echo_request(from: Ipv4Addr, to: Ipv4Addr, sequence: u16) -> Vec<u8> {
    const ICMP: u8 = 1;
    const HEADER: usize = 20;
    let mut packet = vec![0; HEADER];
    (packet[0], packet[3], packet[8], packet[9]) = (0x45, 28, 64, ICMP);
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    let sum = traffic::checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(traffic::echo_request(sequence, &[]));
    packet
}
