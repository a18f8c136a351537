//! A device whose tenant signs its grants, and a server that somebody else has taken.

use std::time::Duration;

use aws_lc_rs::signature::Ed25519KeyPair;
use cloudlink_agent::clock::wall_clock;
use cloudlink_certs::{GrantStatement, PrivateKey};
use cloudlink_proto::link::message::command_status::State;
use cloudlink_proto::link::message::{
    CollectMetrics, Command, CommandStatus, FileGet, FilePut, Reboot, RestartService, Shutdown, StreamRequest, command,
    stream_request,
};
use cloudlink_proto::stream::Control;
use tokio::time::Instant;
use uuid::Uuid;

use crate::server::Device;
use crate::stream::{Said, Scene, forward, terminal};

const TENANT: Uuid = Uuid::from_u128(7);
const DEVICE: Uuid = Uuid::from_u128(8);
/// What [`Scene::request`] says that it is under.
const GRANT: Uuid = Uuid::from_u128(99);

fn new_key() -> PrivateKey {
    PrivateKey::from_pkcs8_der(Ed25519KeyPair::generate().unwrap().to_pkcs8().unwrap().as_ref()).unwrap()
}

/// All that a device can be let do, for an hour.
fn statement() -> GrantStatement {
    let now = wall_clock().replace_nanosecond(0).unwrap();
    let scopes = [
        "metrics:read",
        "service:restart",
        "device:reboot",
        "device:shutdown",
        "shell:open",
        "tcp:open",
        "file:read",
        "file:write",
    ];
    GrantStatement {
        tenant: TENANT,
        grant: GRANT,
        signed_at: now,
        starts_at: now,
        ends_at: now + time::Duration::HOUR,
        scopes: scopes.map(str::to_owned).to_vec(),
        devices: vec![DEVICE],
        operators: None,
        reason: "a test".to_owned(),
        request: None,
    }
}

async fn signing(key: &PrivateKey) -> Scene {
    let sections = |device: &Device| {
        let path = device.path("tenant.pem");
        std::fs::write(&path, key.public_key().to_pem()).unwrap();
        format!(
            "[access]\nkeys = [{path:?}]\n[terminal]\nenabled = true\nargv = [\"/bin/sh\"]\n\
             [forward]\nallow = [\"127.0.0.1:9\"]\n[file]\nroots = [\"/etc\", \"/tmp\"]\n"
        )
    };
    Scene::with(sections).await
}

fn restart() -> command::Kind {
    command::Kind::RestartService(RestartService { service: "web".to_owned() })
}

async fn order(scene: &mut Scene, number: u128, kind: command::Kind, statement: &str) -> CommandStatus {
    let bytes = |uuid: Uuid| uuid.as_bytes().to_vec().into();
    let command = Command {
        id: bytes(Uuid::from_u128(number)),
        grant_id: bytes(GRANT),
        start_within_ms: 60_000,
        grant_statement: statement.to_owned(),
        kind: Some(kind),
        ..Command::default()
    };
    scene.link.send(command).await;
    scene.link.status().await
}

#[tokio::test]
async fn a_server_alone_has_nothing_done() {
    let (key, foreign) = (new_key(), new_key());
    let mut scene = signing(&key).await;
    let good = statement();
    let forged = [
        (String::new(), "grant_unsigned"),
        ("x".to_owned(), "grant_invalid"),
        (good.sign(&foreign).unwrap(), "grant_invalid"),
        (GrantStatement { grant: Uuid::from_u128(1), ..good.clone() }.sign(&key).unwrap(), "grant_invalid"),
        (GrantStatement { tenant: Uuid::from_u128(1), ..good.clone() }.sign(&key).unwrap(), "grant_invalid"),
        (GrantStatement { devices: vec![Uuid::from_u128(1)], ..good.clone() }.sign(&key).unwrap(), "grant_invalid"),
        (GrantStatement { scopes: vec!["logs:read".to_owned()], ..good.clone() }.sign(&key).unwrap(), "grant_invalid"),
    ];
    let kinds = [
        command::Kind::CollectMetrics(CollectMetrics {}),
        restart(),
        command::Kind::Reboot(Reboot {}),
        command::Kind::Shutdown(Shutdown {}),
    ];
    let streams = [
        terminal(),
        forward("127.0.0.1", 9),
        stream_request::Kind::FileGet(FileGet { path: "/etc/hostname".to_owned() }),
        stream_request::Kind::FilePut(FilePut { path: "/tmp/x".to_owned(), size: 1, mode: 0o600 }),
    ];
    let mut number = 0;
    for (text, code) in &forged {
        for kind in &kinds {
            number += 1;
            let status = order(&mut scene, number, kind.clone(), text).await;
            assert_eq!((status.state(), status.code.as_str()), (State::Refused, *code), "{status:?}");
            assert!(!status.message.is_empty());
        }
        for kind in &streams {
            let request = StreamRequest { grant_statement: text.clone(), ..scene.request(kind.clone()) };
            assert_eq!(scene.refused(request).await.code, *code);
        }
    }
    scene.server.no_stream_within(Duration::from_millis(300)).await;
    assert!(!scene.device.path("restarts").exists());

    let text = good.sign(&key).unwrap();
    let status = order(&mut scene, 1, restart(), &text).await;
    assert_eq!(status.code, "grant_unsigned", "what was refused is not done later");
    let status = order(&mut scene, 1000, restart(), &text).await;
    assert_eq!(status.state(), State::Accepted, "{status:?}");
    while !matches!(scene.link.status().await.state(), State::Succeeded) {}
    assert_eq!(std::fs::read_to_string(scene.device.path("restarts")).unwrap(), "web\n");
    scene.stop().await;
}

#[tokio::test]
async fn the_device_cuts_a_stream_at_the_end_that_was_signed() {
    let key = new_key();
    let mut scene = signing(&key).await;
    let lasts = time::Duration::seconds(4);
    let text = GrantStatement { ends_at: statement().starts_at + lasts, ..statement() }.sign(&key).unwrap();
    // The server gives it ten minutes.
    let request = StreamRequest { grant_statement: text, ..scene.request(terminal()) };
    let begun = Instant::now();
    scene.link.send(request).await;
    let mut stream = scene.server.stream().await;
    assert_eq!(stream.said().await, Said::Control(Control::Ready));
    stream.gone().await;
    assert!(begun.elapsed() <= Duration::from_secs(5), "{:?}", begun.elapsed());
    scene.stop().await;
}

/// A server that somebody else has taken asks for a stream again, under whatever else the tenant has signed.
#[tokio::test]
async fn no_other_leave_gives_a_stream_more_time() {
    let key = new_key();
    let mut scene = signing(&key).await;
    let lasts = time::Duration::seconds(4);
    let short = GrantStatement { ends_at: statement().starts_at + lasts, ..statement() };
    let (other, reading) = (Uuid::from_u128(100), vec!["file:read".to_owned()]);
    let put = || {
        let path = format!("/tmp/cloudlink-signed-{}", std::process::id());
        stream_request::Kind::FilePut(FilePut { path, size: 1 << 20, mode: 0o600 })
    };
    let begun = Instant::now();
    let request = StreamRequest { grant_statement: short.sign(&key).unwrap(), ..scene.request(put()) };
    scene.link.send(request.clone()).await;
    let mut stream = scene.server.stream().await;
    assert_eq!(stream.said().await, Said::Control(Control::Ready));

    let get = stream_request::Kind::FileGet(FileGet { path: "/etc/hostname".to_owned() });
    let read_only = GrantStatement { scopes: reading, ..statement() }.sign(&key).unwrap();
    scene.link.send(StreamRequest { kind: Some(get), grant_statement: read_only, ..request.clone() }).await;
    let of_another = GrantStatement { grant: other, ..statement() }.sign(&key).unwrap();
    let grant_id = other.as_bytes().to_vec().into();
    scene.link.send(StreamRequest { grant_id, grant_statement: of_another, ..request }).await;

    stream.gone().await;
    assert!(begun.elapsed() <= Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(scene.log().matches("a stream was asked for that there was already").count(), 2);
    scene.stop().await;
}
