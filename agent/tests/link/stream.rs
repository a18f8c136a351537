//! Streams: which are opened, which are refused, and how they end. Also what the tests of each kind of stream need: the agent as
//! a process of its own, whose children and descriptors can be counted.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloudlink_proto::link::FromDevice;
use cloudlink_proto::link::message::{Forward, StreamRefused, StreamRequest, Terminal, stream_request};
use cloudlink_proto::stream::{Control, Party};
use futures_util::{SinkExt as _, StreamExt as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use crate::server::{
    Device, Fleet, Incoming, NEVER, Order, Refusal, SOON, ServerLink, ServerStream, TestServer, YOUNG, eventually,
};

pub(crate) const TERMINAL: &str = "[terminal]\nenabled = true\nargv = [\"/bin/sh\"]\n";

/// A device whose agent is a process, and the server that it is linked to.
pub(crate) struct Scene {
    pub(crate) server: TestServer,
    pub(crate) device: Device,
    pub(crate) agent: Child,
    pub(crate) link: ServerLink,
    asked: u128,
}

/// What the device says on a stream.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    Bytes(Bytes),
    Control(Control),
    /// The connection has ended.
    Gone,
}

impl Scene {
    /// With these sections in the agent's configuration.
    pub(crate) async fn new(sections: &str) -> Self {
        Self::with(|_| sections.to_owned()).await
    }

    pub(crate) async fn with(sections: impl FnOnce(&Device) -> String) -> Self {
        let mut server = TestServer::start(Arc::new(Fleet::new()), NEVER).await;
        let device = Device::enrolled(&server, YOUNG.0, YOUNG.1);
        let path = device.path("agent.toml");
        let log = "[log]\nfilter = \"trace\"\n";
        let text = std::fs::read_to_string(&path).unwrap() + &sections(&device) + log;
        std::fs::write(&path, text).unwrap();
        // Whoever starts it may have it ignore signals, which shells must heed all the same.
        let agent = Command::new("sh")
            .args(["-c", "trap '' HUP INT QUIT TERM; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_cloudlink-agent")])
            .args(["run", "--config"])
            .arg(&path)
            .env("SECRET_OF_THE_AGENT", "do-not-pass-on")
            .stderr(std::fs::File::create(device.path("log")).unwrap())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let link = server.link().await;
        Self { server, device, agent, link, asked: 0 }
    }

    /// A request that the device takes for as long as the test lasts.
    pub(crate) fn request(&mut self, kind: stream_request::Kind) -> StreamRequest {
        self.asked += 1;
        let bytes = |number| Uuid::from_u128(number).as_bytes().to_vec().into();
        StreamRequest {
            id: bytes(self.asked),
            session_id: bytes(500),
            grant_id: bytes(99),
            token: vec![u8::try_from(self.asked).unwrap(); 32].into(),
            open_within_ms: 30_000,
            ends_after_ms: 600_000,
            requested_by: "an operator".to_owned(),
            reason: "a test".to_owned(),
            kind: Some(kind),
            ..StreamRequest::default()
        }
    }

    /// Asks for a stream, and has it.
    pub(crate) async fn open(&mut self, kind: stream_request::Kind) -> ServerStream {
        let request = self.request(kind);
        self.link.send(request).await;
        self.server.stream().await
    }

    /// A terminal that is there.
    pub(crate) async fn terminal(&mut self) -> ServerStream {
        let mut stream = self.open(terminal()).await;
        assert_eq!(stream.said().await, Said::Control(Control::Ready));
        stream
    }

    pub(crate) async fn refused(&mut self, request: StreamRequest) -> StreamRefused {
        let id = request.id.clone();
        self.link.send(request).await;
        let refused = self.refusal().await;
        assert_eq!(refused.id, id);
        refused
    }

    pub(crate) async fn refusal(&mut self) -> StreamRefused {
        match self.link.next().await {
            Incoming::Message(FromDevice::StreamRefused { refused, .. }) => refused,
            other @ (Incoming::Message(_) | Incoming::Closed(_)) => panic!("expected a refusal, got {other:?}"),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.agent.id().unwrap().try_into().unwrap()
    }

    /// The agent's open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// The agent's children, zombies among them.
    pub(crate) fn children(&self) -> Vec<i32> {
        let of = |pid: i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<i32>().ok()
        };
        processes().into_iter().filter(|pid| of(*pid) == Some(self.pid())).collect()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.device.path("log")).unwrap()
    }

    /// Ends the agent as its service does.
    pub(crate) async fn stop(mut self) -> String {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        let status = timeout(SOON, self.agent.wait()).await.expect("it stops in time").unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
        self.log()
    }
}

fn processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether a process is there and no zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn terminal() -> stream_request::Kind {
    stream_request::Kind::Terminal(Terminal { columns: 80, rows: 24, term: "xterm-256color".to_owned() })
}

pub(crate) fn forward(host: &str, port: u16) -> stream_request::Kind {
    stream_request::Kind::Forward(Forward { host: host.to_owned(), port: port.into() })
}

impl ServerStream {
    pub(crate) async fn say(&mut self, control: &Control) {
        self.socket.send(Message::Text(control.to_text().into())).await.unwrap();
    }

    pub(crate) async fn pass(&mut self, bytes: impl Into<Bytes>) {
        self.socket.send(Message::Binary(bytes.into())).await.unwrap();
    }

    /// The next thing that the device says.
    pub(crate) async fn said(&mut self) -> Said {
        timeout(SOON, self.says()).await.expect("something in time")
    }

    async fn says(&mut self) -> Said {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => return Said::Bytes(bytes),
                Some(Ok(Message::Text(text))) => {
                    return Said::Control(Control::read(&text, Party::Device).unwrap());
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Said::Gone,
                Some(Ok(_)) => {}
            }
        }
    }

    /// Reads bytes until this is among them.
    pub(crate) async fn until(&mut self, what: &str) -> String {
        let mut text = Vec::new();
        loop {
            match timeout(SOON, self.says()).await {
                Ok(Said::Bytes(bytes)) => text.extend_from_slice(&bytes),
                other => {
                    panic!("expected {what:?}, got {other:?} after {}", String::from_utf8_lossy(&text))
                }
            }
            let text = String::from_utf8_lossy(&text);
            if text.contains(what) {
                return text.into_owned();
            }
        }
    }

    /// Reads to the next word, and returns the bytes before it as well.
    pub(crate) async fn word(&mut self) -> (Vec<u8>, Control) {
        let mut before = Vec::new();
        loop {
            match self.said().await {
                Said::Bytes(bytes) => before.extend_from_slice(&bytes),
                Said::Control(control) => return (before, control),
                Said::Gone => panic!("gone after {}", String::from_utf8_lossy(&before)),
            }
        }
    }

    /// Reads until the connection has ended.
    pub(crate) async fn gone(&mut self) {
        while self.said().await != Said::Gone {}
    }
}

#[tokio::test]
async fn a_device_says_what_it_streams_and_refuses_the_rest() {
    let mut scene = Scene::new("").await;
    assert!(!scene.link.hello.capabilities.iter().any(|capability| capability.starts_with("stream.")));
    for kind in [terminal(), forward("localhost", 80)] {
        let request = scene.request(kind);
        let refused = scene.refused(request).await;
        assert_eq!(refused.code, "not_allowed");
        assert!(refused.message.contains("the device's configuration allows no"), "{}", refused.message);
    }
    let mut unknown = scene.request(terminal());
    unknown.kind = None;
    assert_eq!(scene.refused(unknown).await.code, "unknown_kind");
    scene.stop().await;

    let scene = Scene::new("[terminal]\nenabled = true\n[forward]\nallow = [\"localhost:80\"]\n").await;
    let streams = ["stream.terminal", "stream.forward"].map(str::to_owned);
    assert!(scene.link.hello.capabilities.ends_with(&streams), "{:?}", scene.link.hello.capabilities);
    scene.stop().await;
}

#[tokio::test]
async fn what_comes_too_late_is_not_opened() {
    let mut scene = Scene::new(TERMINAL).await;
    let late = StreamRequest { open_within_ms: 0, ..scene.request(terminal()) };
    assert_eq!(scene.refused(late).await.code, "expired");
    let over = StreamRequest { ends_after_ms: 0, ..scene.request(terminal()) };
    assert_eq!(scene.refused(over).await.code, "expired");
    scene.server.no_stream_within(Duration::from_millis(300)).await;
    scene.stop().await;
}

#[tokio::test]
async fn a_stream_is_dialled_once_with_its_token_which_is_never_logged() {
    let mut scene = Scene::new(TERMINAL).await;
    let request = scene.request(terminal());
    scene.link.send(request.clone()).await;
    let mut stream = scene.server.stream().await;
    let token = data_encoding::BASE64URL_NOPAD.encode(&request.token);
    assert_eq!(stream.authorization, format!("Bearer {token}"));
    scene.link.send(request.clone()).await;
    scene.server.no_stream_within(Duration::from_millis(500)).await;
    stream.pass("echo it-still-$((40 + 2))\n").await;
    assert_eq!(stream.said().await, Said::Control(Control::Ready));
    stream.until("it-still-42").await;
    stream.pass("exit\n").await;
    stream.gone().await;
    // Not when it has ended, either.
    scene.link.send(request.clone()).await;
    scene.server.no_stream_within(Duration::from_millis(500)).await;
    let log = scene.stop().await;
    assert!(log.contains("opening a stream") && log.contains("a stream has ended"), "{log}");
    for secret in [&token, &format!("{:?}", request.token), &data_encoding::HEXLOWER.encode(&request.token)] {
        assert!(!log.contains(secret.as_str()), "the log has the token: {secret}");
    }
    assert!(!log.contains("it-still-42"), "the log has what was said");
}

#[tokio::test]
async fn a_stream_that_the_server_does_not_take_is_refused_on_the_link() {
    let mut scene = Scene::new(TERMINAL).await;
    scene.server.refuse_next(Refusal::Http { status: "403 Forbidden", headers: "", body: r#"{"detail":"spent"}"# });
    let request = scene.request(terminal());
    let refused = scene.refused(request).await;
    assert_eq!(refused.code, "dial_failed");
    assert!(refused.message.contains("403") && refused.message.contains("spent"), "{}", refused.message);
    scene.stop().await;
}

#[tokio::test]
async fn the_device_itself_cuts_a_stream_when_its_time_is_up() {
    let mut scene = Scene::new(TERMINAL).await;
    let begun = Instant::now();
    let request = StreamRequest { ends_after_ms: 1500, ..scene.request(terminal()) };
    scene.link.send(request).await;
    let mut stream = scene.server.stream().await;
    stream.pass("echo pid-$$-; while :; do echo on; sleep 0.05; done\n").await;
    assert_eq!(stream.said().await, Said::Control(Control::Ready));
    // The server goes on as if it knew of no end.
    stream.gone().await;
    let lasted = begun.elapsed();
    assert!((Duration::from_millis(1500)..Duration::from_millis(4500)).contains(&lasted), "{lasted:?}");
    eventually("nothing runs any more", || scene.children().is_empty()).await;
    assert!(scene.stop().await.contains("time is up"));
}

#[tokio::test]
async fn a_lost_link_cuts_no_stream_and_the_end_of_the_agent_cuts_all() {
    let mut scene = Scene::new(TERMINAL).await;
    let mut stream = scene.terminal().await;
    scene.link.order(Order::Cut).await;
    scene.link = scene.server.link().await;
    stream.pass("echo still-$((1 + 1))\n").await;
    stream.until("still-2").await;
    let children = scene.children();
    assert_eq!(children.len(), 1);
    scene.stop().await;
    stream.gone().await;
    assert!(!is_alive(children[0]));
}

#[tokio::test]
async fn an_extended_grant_moves_the_end_of_a_stream_that_runs() {
    let mut scene = Scene::new(TERMINAL).await;
    let request = StreamRequest { ends_after_ms: 3000, ..scene.request(terminal()) };
    scene.link.send(request.clone()).await;
    let mut stream = scene.server.stream().await;
    assert_eq!(stream.said().await, Said::Control(Control::Ready));
    // Of another session: it is not that stream.
    let other = StreamRequest { session_id: vec![7; 16].into(), ends_after_ms: 100, ..request.clone() };
    scene.link.send(other).await;
    scene.link.send(StreamRequest { ends_after_ms: 600_000, ..request.clone() }).await;
    tokio::time::sleep(Duration::from_millis(3800)).await;
    stream.pass("echo still-$((1 + 1))\n").await;
    stream.until("still-2").await;
    scene.link.send(StreamRequest { ends_after_ms: 100, ..request }).await;
    stream.gone().await;
    scene.server.no_stream_within(Duration::from_millis(100)).await;
    scene.stop().await;
}

#[tokio::test]
async fn without_the_signature_that_the_device_wants_nothing_is_opened() {
    let mut scene = Scene::new(&format!("[access]\nrequired = true\n{TERMINAL}")).await;
    let request = scene.request(terminal());
    let refused = scene.refused(request).await;
    assert!(["grant_unsigned", "grant_invalid"].contains(&refused.code.as_str()), "{}", refused.code);
    scene.server.no_stream_within(Duration::from_millis(300)).await;
    scene.stop().await;
}

#[tokio::test]
async fn doctor_tells_what_is_on_and_what_lacks() {
    let doctor = |scene: &Scene, sections: &str| {
        let path = scene.device.path("doctor.toml");
        let text = std::fs::read_to_string(scene.device.path("agent.toml")).unwrap();
        std::fs::write(&path, text + sections).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cloudlink-agent"));
        command.arg("doctor").arg("--config").arg(path);
        async {
            let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
            String::from_utf8(output.stdout).unwrap()
        }
    };
    let scene = Scene::new("").await;
    let said = doctor(&scene, "").await;
    for off in ["ok    terminal     off:", "ok    forward      off:", "ok    files        off:"] {
        assert!(said.contains(off), "{said} lacks {off}");
    }
    let said = doctor(
        &scene,
        "[terminal]\nenabled = true\nargv = [\"/bin/sh\"]\n[forward]\nallow = [\"localhost:80\", \"10.0.0.0/8:*\"]\n\
         [file]\nroots = [\"/var/log\", \"/nowhere\", \"/\"]\n",
    )
    .await;
    for found in [
        "ok    terminal     on: /bin/sh as ",
        "ok    forward      on: 2 target(s) allowed",
        "ok    files        on: /var/log, at most 1073741824 bytes",
        "warn  files        /nowhere: No such file",
        "warn  files        on: /, at most",
    ] {
        assert!(said.contains(found), "{said} lacks {found}");
    }
    let said = doctor(&scene, "[terminal]\nenabled = true\nargv = [\"/nowhere/sh\"]\n").await;
    assert!(said.contains("BAD   terminal     on, and cannot be opened: /nowhere/sh"), "{said}");
    scene.stop().await;
}
