//! What a poll costs the server: with a full handshake, and with a resumed session, as a device that polls again has it.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use cloudlink_proto::link::message::{Hello, MetricsReport};
use cloudlink_proto::poll::message::PollRequest;
use cloudlink_proto::poll::{self, CONTENT_TYPE, POLL_PATH};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::HandshakeKind;
use tokio::time::sleep;

use super::connect::{SETTLE, target};
use super::report::{Line, Report};
use super::seed;
use super::usage::Process;
use crate::clock;
use crate::fleet::Fleet as People;
use crate::load::Target;
use crate::load::fleet::SERVER_NAME;
use crate::load::storm::Device;

/// Polls at the same time.
const AT_ONCE: usize = 64;
/// Devices that poll first, so that what is made once is not counted.
const WARM_UP: usize = 50;

/// Lets so many devices poll twice: the second time each resumes its session.
pub async fn measure(devices: usize, report: &mut Report) -> Result<()> {
    let mut people = People::start().await.context("cannot start cloudlinkd")?;
    let database = seed::own_database(&people.server).await?;
    let fleet = seed::devices(&people, database, devices + WARM_UP, clock::now()).await?;
    let target = target(people.server.device, &fleet)?;
    let process = Process::new(people.server.program().pid());
    let device = |index| Device::new(&target, &fleet.devices[index], index, true);
    let warm_up = (devices..devices + WARM_UP).map(device).collect::<Result<Vec<_>>>()?;
    let polling = (0..devices).map(device).collect::<Result<Vec<_>>>()?;
    all(&target, &warm_up, HandshakeKind::Full).await?;
    sleep(SETTLE).await;

    let kinds = [
        (HandshakeKind::Full, "full_cpu_per_poll", "full_database_cpu_per_poll"),
        (HandshakeKind::Resumed, "resumed_cpu_per_poll", "resumed_database_cpu_per_poll"),
    ];
    for (kind, own, of_database) in kinds {
        let (cpu, descendants_cpu) = (process.cpu()?, process.descendants_cpu()?);
        all(&target, &polling, kind).await?;
        let (cpu, descendants_cpu) = (process.cpu()? - cpu, process.descendants_cpu()?.saturating_sub(descendants_cpu));
        let each = u32::try_from(devices)?;
        let ms = |cpu: std::time::Duration| (cpu / each).as_secs_f64() * 1000.0;
        report.add(&Line::new("poll", own, ms(cpu), "ms"))?;
        report.add(&Line::new("poll", of_database, ms(descendants_cpu), "ms"))?;
        sleep(SETTLE).await;
    }
    Ok(())
}

async fn all(target: &Target, devices: &[Device], kind: HandshakeKind) -> Result<()> {
    stream::iter(devices).map(|device| one(target, device, kind)).buffer_unordered(AT_ONCE).try_collect().await
}

async fn one(target: &Target, device: &Device, kind: HandshakeKind) -> Result<()> {
    let stream = device.secure(target).await?;
    ensure!(stream.get_ref().1.handshake_kind() == Some(kind), "another handshake than {kind:?}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post(POLL_PATH)
        .header(header::HOST, SERVER_NAME)
        .header(header::CONTENT_TYPE, CONTENT_TYPE)
        .body(Full::new(body(device.hello())?))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(status == StatusCode::OK, "{status}: {}", String::from_utf8_lossy(&body));
    poll::read_response(&body)?;
    // What the server says after its answer: the end, and a ticket perhaps.
    let _ = connection.await;
    Ok(())
}

/// As a device of ordinary size says it.
fn body(hello: &Hello) -> Result<Bytes> {
    let metrics = MetricsReport {
        cpu_percent: Some(12.5),
        memory_used_bytes: Some(412_000_000),
        memory_total_bytes: Some(1_000_000_000),
        uptime_seconds: Some(86_400),
        ..MetricsReport::default()
    };
    let request = PollRequest {
        boot_id: hello.boot_id.clone(),
        agent: hello.agent.clone(),
        hostname: hello.hostname.clone(),
        metrics: Some(metrics),
        ..poll::request()
    };
    Ok(poll::write_request(&request)?)
}
