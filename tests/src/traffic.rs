//! What goes through a network: made, counted and looked at.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, socket};
use tokio::net::UdpSocket;

use crate::netns::{Site, done};
use crate::poll::wait_for;
use crate::program::{Program, bound};

/// For a program to begin, or to write what it has.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);
/// For a hundred megabytes, on a machine that does much else besides.
const IPERF_LIMIT: Duration = Duration::from_secs(120);

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the device to the server.
    Up,
    Down,
}

/// An `iperf3` server on a device, in its tunnel. The node is its client, for it may reach a port of the device that is open, and
/// the device may not reach any of the node's. It serves one client after the other.
#[derive(Debug)]
pub struct Iperf {
    address: IpAddr,
    server: Program,
    /// How many clients it has served.
    served: AtomicUsize,
}

impl Iperf {
    /// Where it listens: to be opened.
    pub const PORT: u16 = 5201;

    pub fn listen(site: &Site, address: impl Into<IpAddr>, directory: &Path) -> anyhow::Result<Self> {
        let address = address.into();
        let mut command = site.bound("iperf3");
        command.args(["--server", "--forceflush", "--bind", &address.to_string(), "--port", &Self::PORT.to_string()]);
        let server = Program::start("iperf3", command, &directory.join(format!("iperf3-{}.log", address.is_ipv6())))?;
        Ok(Self { address, server, served: AtomicUsize::new(0) })
    }

    /// Waits until it is done with the last client.
    async fn is_ready(&self) -> anyhow::Result<()> {
        let served = self.served.fetch_add(1, Ordering::Relaxed);
        wait_for("iperf3", BEGIN_LIMIT, async || {
            let log = self.server.log_text()?;
            anyhow::ensure!(log.matches("Server listening").count() > served, "{log}");
            Ok(())
        })
        .await
    }

    /// Sends so many bytes between the device and here, and gives back how many have arrived.
    pub async fn send(&self, bytes: u64, way: Way) -> anyhow::Result<u64> {
        self.is_ready().await?;
        let mut command = Command::new("iperf3");
        command.args(["--json", "--client", &self.address.to_string(), "--port", &Self::PORT.to_string()]);
        command.args(["--bytes", &bytes.to_string()]);
        if way == Way::Up {
            command.arg("--reverse");
        }
        let output = tokio::process::Command::from(command).kill_on_drop(true).output();
        let output = tokio::time::timeout(IPERF_LIMIT, output).await.context("iperf3 took too long")??;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        report["end"]["sum_received"]["bytes"].as_u64().with_context(|| report.to_string())
    }
}

/// Pings devices from the node, of any size and as fast as may be, and takes no notice of answers: what a node may send to a
/// device of which nothing is open.
#[derive(Debug)]
pub struct EchoRequests {
    socket: UdpSocket,
}

impl EchoRequests {
    /// From one of the addresses of where the caller is.
    pub fn from(address: Ipv4Addr) -> anyhow::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let made = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
        bind(made.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, 0)))?;
        // It is a socket with datagrams, to which every call of this type applies.
        Ok(Self { socket: UdpSocket::from_std(made.into())? })
    }

    pub async fn send(&self, to: Ipv4Addr, payload: &[u8]) -> anyhow::Result<()> {
        self.socket.send_to(&echo_request(0, payload), (to, 0)).await?;
        Ok(())
    }

    /// As many as the socket takes at once, each with so many bytes.
    pub fn flood(&self, to: Ipv4Addr, count: usize, bytes: usize) {
        let request = echo_request(0, &vec![7; bytes]);
        for _ in 0..count {
            // The interface's own queue may be full, too.
            let _ = self.socket.try_send_to(&request, (to, 0).into());
        }
    }
}

/// An ICMP echo request, without an IP header.
#[must_use]
pub fn echo_request(sequence: u16, payload: &[u8]) -> Vec<u8> {
    const ECHO_REQUEST: u8 = 8;
    let mut message = vec![ECHO_REQUEST, 0, 0, 0, 0, 0];
    message.extend(sequence.to_be_bytes());
    message.extend(payload);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// Of the Internet protocols (RFC 1071).
#[must_use]
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or(u16::MAX)).to_be_bytes()
}

/// What passes an interface, written down by `tcpdump`.
#[derive(Debug)]
pub struct Capture {
    program: Program,
    file: PathBuf,
}

/// A connection in one direction: addresses and ports of both ends.
type Flow = (IpAddr, u16, IpAddr, u16);

/// Everything that was captured.
#[derive(Debug)]
pub struct Captured {
    /// Of all packets, one after the other, with all headers.
    pub bytes: Vec<u8>,
    /// What went over each connection, in its order.
    pub streams: BTreeMap<Flow, Vec<u8>>,
}

impl Capture {
    /// Captures on an interface where the caller is.
    pub async fn start(interface: &str, file: &Path) -> anyhow::Result<Self> {
        Self::with(bound("tcpdump"), interface, file).await
    }

    /// Captures on an interface at a site.
    pub async fn start_at(site: &Site, interface: &str, file: &Path) -> anyhow::Result<Self> {
        Self::with(site.bound("tcpdump"), interface, file).await
    }

    async fn with(mut command: Command, interface: &str, file: &Path) -> anyhow::Result<Self> {
        // As root, for nobody else may write where tests do; each packet at once; whole ones.
        command
            .args(["-Z", "root", "-U", "--immediate-mode", "-s", "0", "-n", "-B", "16384", "-i", interface, "-w"])
            .arg(file);
        let program = Program::start("tcpdump", command, &file.with_extension("log"))?;
        wait_for("tcpdump", BEGIN_LIMIT, async || {
            anyhow::ensure!(program.log_text()?.contains("listening on"), "{}", program.log_text()?);
            Ok(())
        })
        .await?;
        Ok(Self { program, file: file.to_owned() })
    }

    /// Ends it, and reads what was captured. Nothing may be missing.
    pub fn stop(mut self) -> anyhow::Result<Captured> {
        self.program.signal(Signal::SIGINT)?;
        self.program.wait(BEGIN_LIMIT)?.context("tcpdump does not end")?;
        let log = self.program.log_text()?;
        anyhow::ensure!(log.contains("\n0 packets dropped by kernel"), "{log}");
        Captured::read(&std::fs::read(&self.file)?)
    }
}

impl Captured {
    /// Reads a file in pcap format, in the byte order of this machine.
    fn read(mut file: &[u8]) -> anyhow::Result<Self> {
        const HEADER: usize = 24;
        const RECORD_HEADER: usize = 16;
        /// Ethernet, and IP packets without anything before them.
        const LINK_ETHERNET: u32 = 1;
        const LINK_RAW: u32 = 101;
        let word = |bytes: &[u8], at: usize| {
            let word = bytes.get(at..at + 4).context("the capture is cut off")?;
            anyhow::Ok(u32::from_ne_bytes(word.try_into()?))
        };
        anyhow::ensure!(word(file, 0)? == 0xa1b2_c3d4, "not a capture of this machine");
        let skip = match word(file, 20)? {
            LINK_ETHERNET => 14,
            LINK_RAW => 0,
            other => anyhow::bail!("a capture of link type {other}"),
        };
        file = &file[HEADER..];
        let (mut bytes, mut segments) = (Vec::new(), BTreeMap::<Flow, Vec<(u32, Vec<u8>)>>::new());
        while !file.is_empty() {
            let (captured, sent) = (word(file, 8)?, word(file, 12)?);
            anyhow::ensure!(captured == sent, "only {captured} of {sent} bytes were captured");
            let len = RECORD_HEADER + usize::try_from(captured)?;
            let packet = file.get(RECORD_HEADER..len).context("the capture is cut off")?;
            bytes.extend_from_slice(packet);
            if let Some((flow, sequence, payload)) = packet.get(skip..).and_then(segment) {
                segments.entry(flow).or_default().push((sequence, payload.to_vec()));
            }
            file = &file[len..];
        }
        let streams = segments.into_iter().map(|(flow, segments)| anyhow::Ok((flow, stream(segments)?)));
        Ok(Self { bytes, streams: streams.collect::<Result<_, _>>()? })
    }

    /// Whether something was seen anywhere: in a packet, or spread over a connection.
    #[must_use]
    pub fn shows(&self, what: &[u8]) -> bool {
        let is_in = |bytes: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        is_in(&self.bytes) || self.streams.values().any(|stream| is_in(stream))
    }
}

/// The flow, sequence number and payload of a TCP segment; the number of a SYN is that of the byte behind it.
fn segment(packet: &[u8]) -> Option<(Flow, u32, &[u8])> {
    const TCP: u8 = 6;
    const SYN: u8 = 2;
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 if packet.get(9)? == &TCP => {
            let header = usize::from(packet[0] & 0x0f) * 4;
            let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            let address = |at: usize| Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into());
            (address(12)?, address(16)?, packet.get(header..len)?)
        }
        6 if packet.get(6)? == &TCP => {
            let address = |at: usize| Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into());
            let len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            (address(8)?, address(24)?, packet.get(40..40 + len)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let sequence = u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?);
    let is_syn = tcp.get(13)? & SYN != 0;
    let payload = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?;
    Some(((source, port(0)?, destination, port(2)?), sequence.wrapping_add(is_syn.into()), payload))
}

/// Puts segments together; what was sent twice counts once. They were captured from the first one on.
fn stream(segments: Vec<(u32, Vec<u8>)>) -> anyhow::Result<Vec<u8>> {
    let first = segments.first().map_or(0, |segment| segment.0);
    let mut ordered = BTreeMap::<u32, Vec<u8>>::new();
    for (sequence, payload) in segments {
        let at = ordered.entry(sequence.wrapping_sub(first)).or_default();
        if payload.len() > at.len() {
            *at = payload;
        }
    }
    let mut stream = Vec::new();
    for (offset, payload) in ordered {
        let offset = usize::try_from(offset)?;
        // The last acknowledgements are of bytes that are there.
        if payload.is_empty() {
            continue;
        }
        anyhow::ensure!(offset <= stream.len(), "a segment is missing at {}", stream.len());
        let known = (stream.len() - offset).min(payload.len());
        stream.extend_from_slice(&payload[known..]);
    }
    Ok(stream)
}

/// A proxy for `CONNECT`, by `tinyproxy`, where the caller is.
pub async fn proxy(address: std::net::SocketAddr, directory: &Path) -> anyhow::Result<Program> {
    proxy_with(address, directory, "").await
}

/// The same with more of its configuration.
pub async fn proxy_with(address: std::net::SocketAddr, directory: &Path, more: &str) -> anyhow::Result<Program> {
    let file = directory.join("tinyproxy.conf");
    let text = format!(
        "Port {}\nListen {}\nTimeout 600\nMaxClients 20\nLogLevel Connect\nConnectPort 443\n{more}",
        address.port(),
        address.ip(),
    );
    std::fs::write(&file, text)?;
    let mut command = bound("tinyproxy");
    command.arg("-d").arg("-c").arg(&file);
    let mut program = Program::start("tinyproxy", command, &directory.join("tinyproxy.log"))?;
    wait_for("the proxy", BEGIN_LIMIT, async || {
        if let Err(ended) = program.ensure_running() {
            return Ok(Err(ended));
        }
        drop(tokio::net::TcpStream::connect(address).await?);
        Ok(Ok(()))
    })
    .await??;
    Ok(program)
}

/// The value of a counter or gauge, over all of its labels that match: 0 before its first time.
pub fn metric(metrics: &str, name: &str, label: &str) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' '])) else { continue };
        let (labels, value) = rest.rsplit_once(' ').with_context(|| line.to_owned())?;
        if labels.contains(label) {
            sum += value.parse::<f64>()?;
        }
    }
    Ok(sum)
}

/// Whether anything answers a ping at a site, or refuses to.
pub fn is_silent(site: &Site, address: IpAddr, interface: &str) -> anyhow::Result<bool> {
    let mut command = site.command("sh");
    let line = format!("ping -c 2 -i 0.2 -W 1 -I {interface} {address} || true");
    command.arg("-c").arg(line);
    Ok(done(command)?.contains(" 0 received"))
}
