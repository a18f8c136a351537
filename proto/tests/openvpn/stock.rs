//! Real OpenVPN processes against our sessions over loopback TCP, in a network namespace of their own.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cloudlink_proto::openvpn::{
    Admission, Agreed, ClientConfig, CloseReason, Counters, Event, Farewell, ServerConfig, ServerEvent, Session,
};
use tempfile::TempDir;

use crate::wire::{CLIENT_IP, End, PKI, Pki, SERVER_IP, SERVER_IP_V6, admission, start};

/// In a namespace of its own nobody else has it.
pub(crate) const PORT: u16 = 28_000;
/// How long anything may take that does not say otherwise.
const PATIENCE: Duration = Duration::from_secs(20);
const NAMESPACE_MARK: &str = "OPENVPN_TEST_NAMESPACE";

/// Runs `test` of `interop`, by its name, in a network namespace of its own. Says why when that is not possible here.
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
pub(crate) fn in_namespace(name: &str, test: impl FnOnce()) {
    let name = format!("interop::{name}");
    if std::env::var_os(NAMESPACE_MARK).is_some() {
        run(Command::new("ip").args(["link", "set", "lo", "up"]));
        test();
        return;
    }
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    let has_openvpn = Command::new("openvpn").arg("--version").output().is_ok();
    if !is_root || !has_openvpn {
        println!("skipped: {name} needs root and the openvpn package");
        return;
    }
    let output = Command::new("unshare")
        .args(["--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(NAMESPACE_MARK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "the test has another name than {name}: {text}");
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[expect(clippy::disallowed_methods, reason = "real peers live in real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "real peers live in real time")]
fn unix_seconds() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u32::try_from(since.as_secs()).unwrap()
}

/// Waits for something with a limit, and says what it waited for.
pub(crate) fn wait_for<T>(what: &str, within: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let end = now() + within;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(now() < end, "no {what} within {within:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Certificates and keys as files.
pub(crate) struct Files {
    folder: TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        let files = Self { folder: tempfile::tempdir().unwrap() };
        files.write("ca.crt", &PKI.authority.certificate_pem());
        for (name, leaf) in [("server", &PKI.server), ("device", &PKI.device)] {
            files.write(&format!("{name}.crt"), &leaf.certificate_pem());
            files.write(&format!("{name}.key"), &leaf.key.to_pem());
        }
        files
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn named(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Lets `openvpn --genkey` write a file.
    pub(crate) fn generate(&self, arguments: &[&str], name: &str) -> String {
        run(Command::new("openvpn").args(arguments).arg(self.path(name)));
        self.read(name)
    }
}

/// A stock OpenVPN process and what it says.
pub(crate) struct OpenVpn {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl OpenVpn {
    pub(crate) fn client(files: &Files, arguments: &[&str]) -> Self {
        let mut command = Command::new("openvpn");
        command
            .args(["--client", "--dev", "tun", "--proto", "tcp-client", "--remote", "127.0.0.1", &PORT.to_string()])
            .args(["--nobind", "--remote-cert-tls", "server", "--verb", "4", "--connect-retry", "1"])
            .args(["--ca", &files.named("ca.crt"), "--cert", &files.named("device.crt")])
            .args(["--key", &files.named("device.key")])
            .args(arguments);
        Self::spawn(command)
    }

    pub(crate) fn server(files: &Files, arguments: &[&str]) -> Self {
        let mut command = Command::new("openvpn");
        command
            .args(["--server", "10.77.0.0", "255.255.255.0", "--topology", "subnet", "--dev", "tun"])
            .args(["--proto", "tcp-server", "--local", "127.0.0.1", "--port", &PORT.to_string(), "--verb", "4"])
            .args(["--dh", "none", "--keepalive", "10", "60"])
            .args(["--ca", &files.named("ca.crt"), "--cert", &files.named("server.crt")])
            .args(["--key", &files.named("server.key")])
            .args(arguments);
        let server = Self::spawn(command);
        server.wait_for_line("Initialization Sequence Completed");
        server
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, output) = (Arc::clone(&log), BufReader::new(child.stdout.take().unwrap()));
        let reader = thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Self { child, log, reader: Some(reader) }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn has_line(&self, part: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(part))
    }

    pub(crate) fn wait_for_line(&self, part: &str) {
        let end = now() + PATIENCE;
        while !self.has_line(part) {
            assert!(now() < end, "no {part:?} in time:\n{}", self.log().join("\n"));
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn wait_for_exit(&mut self) -> Option<i32> {
        wait_for("end of openvpn", PATIENCE, || self.child.try_wait().unwrap()).code()
    }

    /// Lines that a healthy session never has.
    pub(crate) fn complaints(&self) -> Vec<String> {
        const BAD: [&str; 7] =
            ["ERROR", "Error", "WARNING: 'link-mtu'", "dropped", "Bad ", "out of sync", "inconsistent"];
        self.log().into_iter().filter(|line| BAD.iter().any(|bad| line.contains(bad))).collect()
    }
}

impl Drop for OpenVpn {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(self.reader.take().map(JoinHandle::join));
    }
}

/// What a server of ours has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connected: usize,
    pub(crate) rekeyed: usize,
    pub(crate) echoes: usize,
    pub(crate) closed: Vec<CloseReason>,
    pub(crate) agreed: Option<Agreed>,
    pub(crate) counters: Option<Counters>,
    pub(crate) key_metadata: Option<Vec<u8>>,
}

/// A server of ours that answers pings by itself.
pub(crate) struct Server {
    seen: Arc<Mutex<Seen>>,
    farewell: Arc<Mutex<Option<Farewell>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn new(config: ServerConfig) -> Self {
        Self::with(config, admission())
    }

    pub(crate) fn with(config: ServerConfig, admission: Admission) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", PORT)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let farewell = Arc::new(Mutex::new(None));
        let is_over = Arc::new(AtomicBool::new(false));
        let config = Arc::new(config);
        let thread = {
            let (seen, farewell, is_over) = (Arc::clone(&seen), Arc::clone(&farewell), Arc::clone(&is_over));
            thread::spawn(move || {
                let mut seed = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let Ok((stream, _)) = listener.accept() else {
                        thread::sleep(Duration::from_millis(10));
                        continue;
                    };
                    seed += 1;
                    let mut start = start(seed);
                    start.unix_seconds = unix_seconds();
                    let session = Session::server(now(), Arc::clone(&config), start);
                    let mut connection = Connection::new(stream, session);
                    while connection.turn() && !is_over.load(Ordering::Relaxed) {
                        connection.serve(&admission, &mut seen.lock().unwrap());
                        if let Some(farewell) = farewell.lock().unwrap().take() {
                            connection.end.session.end(now(), &farewell);
                        }
                    }
                    connection.serve(&admission, &mut seen.lock().unwrap());
                    seen.lock().unwrap().closed.extend(connection.end.closed);
                }
            })
        };
        Self { seen, farewell, is_over, thread: Some(thread) }
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    pub(crate) fn say_farewell(&self, farewell: Farewell) {
        *self.farewell.lock().unwrap() = Some(farewell);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// A session on a real connection.
pub(crate) struct Connection {
    stream: TcpStream,
    pub(crate) end: End,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, session: Session) -> Self {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut connection = Self { stream, end: End::new(session) };
        let first = connection.end.drain();
        connection.send(&first);
        connection
    }

    pub(crate) fn client(config: ClientConfig) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", PORT)).unwrap();
        let mut start = start(99);
        start.unix_seconds = unix_seconds();
        Self::new(stream, Session::client(now(), Arc::new(config), start))
    }

    /// Reads once and does what is due; false when it is over.
    pub(crate) fn turn(&mut self) -> bool {
        let mut bytes = vec![0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => self.end.session.handle_end_of_stream(now()),
            Ok(count) => {
                let out = self.end.feed(now(), &bytes[..count], usize::MAX);
                self.send(&out);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => self.end.session.handle_end_of_stream(now()),
        }
        let out = self.end.timeout(now());
        self.send(&out);
        self.end.closed.is_none()
    }

    fn send(&mut self, bytes: &[u8]) {
        // A peer that is gone shows when reading.
        drop(self.stream.write_all(bytes));
    }

    pub(crate) fn send_packet(&mut self, packet: &[u8]) {
        let frame = self.end.seal(now(), packet);
        self.send(&frame);
    }

    /// Admits whoever comes, and answers pings.
    fn serve(&mut self, admission: &Admission, seen: &mut Seen) {
        for event in std::mem::take(&mut self.end.events) {
            match event {
                Event::Server(ServerEvent::Authenticated(client)) => {
                    // Stock clients send their authority's certificate, too.
                    assert_eq!(client.certificates.first(), Some(&PKI.device.certificate));
                    seen.key_metadata = client.key_metadata;
                    self.end.session.admit(now(), admission).expect("asked for it");
                    let out = self.end.drain();
                    self.send(&out);
                }
                Event::Server(ServerEvent::Connected) => {
                    seen.connected += 1;
                    seen.agreed = self.end.session.agreed().copied();
                }
                Event::Rekeyed(_) => seen.rekeyed += 1,
                Event::Client(_) => unreachable!("this is a server"),
            }
        }
        for packet in std::mem::take(&mut self.end.packets) {
            if let Some(answer) = echo_reply(&packet).or_else(|| echo_reply_v6(&packet)) {
                seen.echoes += 1;
                self.send_packet(&answer);
            }
        }
        seen.counters = Some(*self.end.session.counters());
    }

    /// Sends echo requests through the tunnel, one each turn, and expects all answers.
    pub(crate) fn ping(&mut self, count: u16, pause: Duration) {
        for sequence in 0..count {
            self.send_packet(&echo_request(sequence));
            let end = now() + PATIENCE;
            loop {
                assert!(self.turn(), "closed while pinging: {:?}", self.end.closed);
                let answers = std::mem::take(&mut self.end.packets);
                if answers
                    .iter()
                    .any(|answer| answer.len() == 28 && answer[20] == 0 && answer[26..28] == sequence.to_be_bytes())
                {
                    break;
                }
                assert!(now() < end, "no answer to ping {sequence}");
            }
            let next = now() + pause;
            while now() < next {
                assert!(self.turn(), "closed between pings: {:?}", self.end.closed);
            }
        }
    }
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!u16::try_from(folded).unwrap()).to_be_bytes()
}

fn echo_request(sequence: u16) -> Vec<u8> {
    let mut packet = vec![0; 28];
    packet[0] = 0x45;
    packet[3] = 28;
    packet[8] = 64;
    packet[9] = 1;
    packet[12..16].copy_from_slice(&CLIENT_IP.octets());
    packet[16..20].copy_from_slice(&SERVER_IP.octets());
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    packet[20] = 8;
    packet[26..28].copy_from_slice(&sequence.to_be_bytes());
    let sum = checksum(&packet[20..]);
    packet[22..24].copy_from_slice(&sum);
    packet
}

/// The answer to an echo request for the server.
fn echo_reply(packet: &[u8]) -> Option<Vec<u8>> {
    let is_request = packet.len() >= 28 && packet[0] == 0x45 && packet[9] == 1 && packet[20] == 8;
    let is_for_server = packet.get(16..20)? == SERVER_IP.octets();
    if !is_request || !is_for_server {
        return None;
    }
    let mut answer = packet.to_vec();
    let (source, destination) = (&packet[12..16], &packet[16..20]);
    answer[12..16].copy_from_slice(destination);
    answer[16..20].copy_from_slice(source);
    answer[20] = 0;
    answer[22..24].fill(0);
    let sum = checksum(&answer[20..]);
    answer[22..24].copy_from_slice(&sum);
    Some(answer)
}

/// The same for IPv6, whose checksum covers the addresses.
fn echo_reply_v6(packet: &[u8]) -> Option<Vec<u8>> {
    let is_request = packet.len() >= 48 && packet[6] == 58 && packet[40] == 128;
    if !is_request || packet[24..40] != SERVER_IP_V6.octets() {
        return None;
    }
    let mut answer = packet.to_vec();
    let (source, destination) = (&packet[8..24], &packet[24..40]);
    answer[8..24].copy_from_slice(destination);
    answer[24..40].copy_from_slice(source);
    answer[40] = 129;
    answer[42..44].fill(0);
    let length = [0, 0, packet[4], packet[5], 0, 0, 0, 58];
    let sum = checksum(&[&answer[8..40], &length, &answer[40..]].concat());
    answer[42..44].copy_from_slice(&sum);
    Some(answer)
}

/// Real pings through the kernel and the stock client: none may be lost.
pub(crate) fn ping(address: impl Into<IpAddr>, count: u32, interval: &str, size: u16) {
    let output = Command::new("ping")
        .args(["-c", &count.to_string(), "-i", interval, "-W", "2", "-s", &size.to_string(), "-M", "do"])
        .arg(address.into().to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&format!("{count} received")), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

/// A certificate authority of somebody else.
pub(crate) fn stranger() -> Pki {
    Pki::create("Other CA")
}
