//! How fast the way to a device is: the agent's own test, a public NDT7 client, and clients that want to do harm.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use cloudlink_proto::ndt::{DOWNLOAD_PATH, SUBPROTOCOL, UPLOAD_PATH};
use cloudlink_tests::api::text;
use cloudlink_tests::bench::usage::Process;
use cloudlink_tests::dial::{self, Credentials};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::program::{Program, bound};
use cloudlink_tests::server::{SERVER_NAME, Settings};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::version::TLS13;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Until something is shown that follows by itself.
const LIMIT: Duration = Duration::from_secs(30);
/// For the public client's two tests, which it gives 12 s each.
const CLIENT_LIMIT: Duration = Duration::from_secs(60);

type Socket = WebSocketStream<TlsStream<TcpStream>>;

fn settings(set: &[&str]) -> Settings {
    Settings { set: set.iter().map(|set| (*set).to_owned()).collect(), ..Settings::default() }
}

/// The tests of a device, newest first, once so many have ended.
async fn ended(fleet: &Fleet, device: &str, count: usize) -> anyhow::Result<Vec<Value>> {
    let path = format!("/devices/{device}/link-tests");
    wait_for("the tests to be stored", LIMIT, async || {
        let shown = fleet.tenant.get(&path).await?;
        let tests = shown["items"].as_array().context("no list")?;
        ensure!(tests.len() == count && tests.iter().all(|test| !test["outcome"].is_null()), "{shown}");
        Ok(tests.clone())
    })
    .await
}

/// A refusal, as it was told.
#[derive(Debug)]
struct Refused {
    status: u16,
    retry_after: Option<u64>,
    problem: Value,
}

/// Asks for a test with a device's certificate.
async fn ask(fleet: &Fleet, credentials: &Credentials, path: &str) -> anyhow::Result<Result<Socket, Refused>> {
    let config = dial::client_config(&fleet.server.ca_file(), Some(credentials), &[&TLS13])?;
    let stream = dial::tls(fleet.server.device, SERVER_NAME, config).await?;
    let mut request = format!("wss://{SERVER_NAME}{path}").into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse()?);
    match timeout(LIMIT, tokio_tungstenite::client_async(request, stream)).await? {
        Ok((socket, _)) => Ok(Ok(socket)),
        Err(Error::Http(answer)) => {
            let retry_after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
            let problem = serde_json::from_slice(answer.body().as_deref().unwrap_or_default())?;
            Ok(Err(Refused { status: answer.status().as_u16(), retry_after, problem }))
        }
        Err(error) => Err(error.into()),
    }
}

async fn begin(fleet: &Fleet, credentials: &Credentials, path: &str) -> anyhow::Result<Socket> {
    match ask(fleet, credentials, path).await? {
        Ok(socket) => Ok(socket),
        Err(refused) => bail!("{refused:?}"),
    }
}

async fn refused(fleet: &Fleet, credentials: &Credentials, words: &str) -> anyhow::Result<()> {
    let Err(refused) = ask(fleet, credentials, DOWNLOAD_PATH).await? else { bail!("it was let in") };
    ensure!(refused.status == 429 && refused.retry_after.is_some_and(|after| after > 0), "{refused:?}");
    let detail = refused.problem["detail"].as_str().unwrap_or_default();
    ensure!(
        refused.problem["type"] == "urn:cloudlink:problem:too_many_requests" && detail.contains(words),
        "{refused:?}"
    );
    Ok(())
}

/// Reads to the end. How many bytes there were.
async fn drain(socket: &mut Socket) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let all = async {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(data) = message {
                bytes += data.len() as u64;
            }
        }
    };
    timeout(LIMIT, all).await.context("no end")?;
    Ok(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_has_an_agent_test_its_way() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let device = fleet.device("gateway").await?;
    let operator = fleet.cli(fleet.operator.token());
    let without = operator.run(&["link-test", "gateway", "--seconds", "1"]).await?;
    ensure!(without.code == Some(5), "{without:?}");
    fleet.grant(&device.id, &["metrics:read"]).await?;

    let command = operator.json(&["link-test", "gateway", "--seconds", "2", "--reason", "slow"]).await?;
    ensure!(command["state"] == "succeeded" && command["kind"] == "link.test", "{command}");
    for direction in ["download", "upload"] {
        let result = &command["data"][direction];
        for side in ["client", "server"] {
            let seen = &result[side];
            let rate = seen["bits_per_second"].as_f64().context("no rate")?;
            let seconds = seen["seconds"].as_f64().context("no time")?;
            ensure!(rate > 1e6 && seconds > 0.5, "{direction} {side}: {command}");
        }
        ensure!(result["min_rtt_us"].as_u64().is_some_and(|rtt| rtt < 1_000_000), "{command}");
    }
    ensure!(command["data"]["download"]["retransmitted_bytes"].is_u64(), "{command}");

    let tests = ended(&fleet, &device.id, 2).await?;
    for (test, direction) in tests.iter().zip(["upload", "download"]) {
        ensure!(test["direction"] == direction && test["outcome"] == "done", "{test}");
        ensure!(test["command_id"] == command["id"] && test["client_name"] == "cloudlink-agent", "{test}");
        ensure!(test["bits_per_second"].as_f64().is_some_and(|rate| rate > 1e6), "{test}");
        ensure!(test["bytes"].as_u64().is_some_and(|bytes| bytes > 100_000), "{test}");
        ensure!(test["remote_address"] == "127.0.0.1", "{test}");
    }
    let again = operator.run(&["link-test", "gateway", "--seconds", "1", "--direction", "upload"]).await?;
    ensure!(
        again.code == Some(0) && again.stdout.contains("Mbit/s") && !again.stdout.contains("download"),
        "{again:?}"
    );
    let listed = operator.run(&["device", "link-tests", "gateway"]).await?;
    ensure!(listed.code == Some(0) && listed.stdout.lines().count() == 4, "{listed:?}");

    // Now or never.
    let body = json!({"kind": "link.test", "reason": "r", "queue_for_seconds": 60});
    let queued = fleet.operator.post(&format!("/devices/{}/commands", device.id), &body).await;
    ensure!(queued.err().context("it was taken")?.to_string().contains("now or never"));
    Ok(())
}

/// Debian's HAProxy shows the device's certificate to the node: the public client knows none.
fn haproxy(fleet: &Fleet, credentials: &Credentials) -> anyhow::Result<(Program, String)> {
    let directory = fleet.server.data_dir().join("haproxy");
    std::fs::create_dir_all(&directory)?;
    let pem = directory.join("device.pem");
    let block = |label: &str, der: &[u8]| {
        let text = data_encoding::BASE64.encode(der);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    let key = block("PRIVATE KEY", credentials.key.as_pkcs8_der().secret_pkcs8_der());
    std::fs::write(&pem, block("CERTIFICATE", &credentials.certificate) + &key)?;
    let address = port::free()?;
    let configuration = directory.join("haproxy.cfg");
    std::fs::write(
        &configuration,
        format!(
            "global\n    no strict-limits\n\
             defaults\n    mode http\n    timeout connect 10s\n    timeout client 60s\n    timeout server 60s\n    timeout tunnel 60s\n\
             frontend ndt\n    bind {address}\n    default_backend node\n\
             backend node\n    server node {node} ssl verify required ca-file {ca} crt {pem} sni str({SERVER_NAME}) ssl-min-ver TLSv1.3\n",
            node = fleet.server.device,
            ca = fleet.server.ca_file().display(),
            pem = pem.display(),
        ),
    )?;
    let mut command = bound("haproxy");
    command.arg("-db").arg("-f").arg(&configuration);
    Ok((Program::start("haproxy", command, &directory.join("haproxy.log"))?, address.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_client_measures_as_well() -> anyhow::Result<()> {
    let fleet = Fleet::start_with(&settings(&["link_test.megabytes_max=100000"])).await?;
    let device = fleet.enrolled("gateway").await?;
    let (mut haproxy, address) = haproxy(&fleet, &device.credentials)?;
    wait_for("HAProxy", LIMIT, async || {
        haproxy.ensure_running()?;
        Ok(TcpStream::connect(&address).await?)
    })
    .await?;
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/ndt7/client.cjs");
    let run = tokio::process::Command::new("node").arg(client).arg(&address).kill_on_drop(true).output();
    let said = timeout(CLIENT_LIMIT, run).await.context("the client has no end")??;
    let told: Value = serde_json::from_slice(&said.stdout)
        .with_context(|| format!("{said:?}\n{}", haproxy.log_text().unwrap_or_default()))?;
    ensure!(told["code"] == 0 && told["errors"] == json!([]), "{told}");
    for direction in ["download", "upload"] {
        ensure!(told["measurements"][direction].as_u64().is_some_and(|count| count >= 5), "{told}");
        let last = &told[direction]["LastServerMeasurement"];
        ensure!(last["Test"] == direction && last["Origin"] == "server", "{told}");
        ensure!(last["AppInfo"]["NumBytes"].as_u64().is_some_and(|bytes| bytes > 1_000_000), "{told}");
        ensure!(last["TCPInfo"]["MinRTT"].as_u64().is_some_and(|rtt| rtt > 0), "{told}");
        ensure!(
            told[direction]["LastClientMeasurement"]["MeanClientMbps"].as_f64().is_some_and(|rate| rate > 1.0),
            "{told}"
        );
    }
    let tests = ended(&fleet, &device.id, 2).await?;
    for (test, direction) in tests.iter().zip(["upload", "download"]) {
        ensure!(test["direction"] == direction && test["client_name"] == "public-client", "{test}");
        ensure!(test["bits_per_second"].as_f64().is_some_and(|rate| rate > 1e6), "{test}");
    }
    ensure!(tests[1]["outcome"] == "done", "{tests:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_more_tests_or_faster_ones_than_they_may() -> anyhow::Result<()> {
    let set = ["link_test.seconds_max=2", "link_test.mbit_per_second_max=8", "link_test.tenant_per_hour_max=3"];
    let fleet = Fleet::start_with(&settings(&set)).await?;
    let (device, neighbour) = (fleet.enrolled("gateway").await?, fleet.enrolled("neighbour").await?);
    let mut running = begin(&fleet, &device.credentials, DOWNLOAD_PATH).await?;
    refused(&fleet, &device.credentials, "the device runs a test already").await?;
    refused(&fleet, &neighbour.credentials, "link_test.tenant_max").await?;
    // 8 Mbit/s for 2 s are 2 MB. A loaded machine may be slower, and never faster.
    let bytes = drain(&mut running).await?;
    ensure!((1..=2_200_000).contains(&bytes), "{bytes} bytes");
    let tests = ended(&fleet, &device.id, 1).await?;
    ensure!(tests[0]["outcome"] == "done" && tests[0]["bytes"] == bytes, "{tests:?}");
    for _ in 0..2 {
        drain(&mut begin(&fleet, &neighbour.credentials, &format!("{DOWNLOAD_PATH}?seconds=1")).await?).await?;
    }
    ended(&fleet, &neighbour.id, 2).await?;
    refused(&fleet, &device.credentials, "link_test.tenant_per_hour_max").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_means_harm_is_cut_in_time_and_hurts_nobody() -> anyhow::Result<()> {
    let set = [
        "link_test.seconds_max=2",
        "link_test.tenant_max=10",
        "link_test.node_max=10",
        "link.ping_interval_seconds=1",
        "link.max_missed_pings=3",
    ];
    let mut fleet = Fleet::start_with(&settings(&set)).await?;
    let bystander = fleet.device("bystander").await?;
    let before = fleet.wait_for_link(&bystander.id, "live").await?;
    let mut devices = Vec::new();
    for name in ["deaf", "talker", "giant", "endless", "slow"] {
        devices.push(fleet.enrolled(name).await?);
    }
    let process = Process::new(fleet.server.program().pid());
    let memory = process.peak_bytes()?;
    let begun = Instant::now();
    // Takes nothing of a download.
    let deaf = begin(&fleet, &devices[0].credentials, DOWNLOAD_PATH).await?;
    // Sends where it may only listen.
    let mut talker = begin(&fleet, &devices[1].credentials, DOWNLOAD_PATH).await?;
    talker.send(Message::Binary(vec![7; 100].into())).await?;
    // Says that a message of 4 GiB comes.
    let mut giant = begin(&fleet, &devices[2].credentials, UPLOAD_PATH).await?;
    let header = [0x82, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4];
    giant.get_mut().write_all(&header).await?;
    giant.get_mut().flush().await?;
    // Sends on and on, and takes nothing of what it is told.
    let mut endless = begin(&fleet, &devices[3].credentials, UPLOAD_PATH).await?;
    let sending = tokio::spawn(async move {
        let payload = bytes::Bytes::from(vec![7; 1 << 20]);
        while endless.send(Message::Binary(payload.clone())).await.is_ok() {}
    });
    // Sends nothing at all.
    let slow = begin(&fleet, &devices[4].credentials, UPLOAD_PATH).await?;

    let expected = ["time", "protocol", "protocol", "time", "time"];
    for (device, outcome) in devices.iter().zip(expected) {
        let tests = ended(&fleet, &device.id, 1).await?;
        ensure!(tests[0]["outcome"] == outcome, "expected {outcome}: {tests:?}");
        let seconds = tests[0]["seconds"].as_f64().context("no time")?;
        // 2 s, and 3 s of grace; the rest is a loaded machine's.
        ensure!(seconds < 8.0, "{tests:?}");
    }
    timeout(LIMIT, sending).await.context("who sends for ever is not cut")??;
    drop((deaf, slow));
    let grown = process.peak_bytes()?.saturating_sub(memory);
    ensure!(grown < 80 << 20, "{grown} bytes more, after {:?}", begun.elapsed());
    // The same link as before, with pings each second.
    let after = fleet.wait_for_link(&bystander.id, "live").await?;
    ensure!(text(&before["link"], "connected_at")? == text(&after["link"], "connected_at")?, "{before}\n{after}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_revoked_tests_no_longer() -> anyhow::Result<()> {
    let fleet = Fleet::start_with(&settings(&["link_test.seconds_max=10", "link_test.tenant_max=2"])).await?;
    let (revoked, other) = (fleet.enrolled("gateway").await?, fleet.enrolled("neighbour").await?);
    let mut cut = begin(&fleet, &revoked.credentials, DOWNLOAD_PATH).await?;
    let mut whole = begin(&fleet, &other.credentials, DOWNLOAD_PATH).await?;
    ensure!(matches!(cut.next().await, Some(Ok(_))) && matches!(whole.next().await, Some(Ok(_))));
    let both = async { tokio::try_join!(drain(&mut cut), drain(&mut whole)) };
    let revoking = async {
        fleet.tenant.post(&format!("/devices/{}/revoke", revoked.id), &json!({})).await?;
        let asked = Instant::now();
        let tests = ended(&fleet, &revoked.id, 1).await?;
        Ok::<_, anyhow::Error>((tests, asked.elapsed()))
    };
    let (_, (tests, after)) = tokio::try_join!(both, revoking)?;
    ensure!(tests[0]["outcome"] == "lost", "{tests:?}");
    // Within a second; the rest is a loaded machine's.
    ensure!(after < Duration::from_secs(4), "{after:?}");
    let tests = ended(&fleet, &other.id, 1).await?;
    ensure!(tests[0]["outcome"] == "done", "{tests:?}");
    Ok(())
}
