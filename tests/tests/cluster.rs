//! Several nodes as one: whichever is asked, and whichever goes away.

use std::time::Duration;

use anyhow::ensure;
use aws_lc_rs::digest::{SHA256, digest};
use cloudlink_tests::api::{Api, text};
use cloudlink_tests::cluster::{Cluster, Switch};
use cloudlink_tests::dial;
use cloudlink_tests::fleet::Device;
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Server;
use cloudlink_tests::support::{PROMPT, cut_off_ms};
use cloudlink_tests::terminal::Terminal;
use data_encoding::HEXLOWER;
use nix::sys::signal::Signal;
use rustls::version::TLS13;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Lease, and then some: the machine may be busy.
const GONE_LIMIT: Duration = Duration::from_secs(30);

/// The same person at another node.
fn at(cluster: &Cluster, node: &Server, person: &Api) -> anyhow::Result<Api> {
    Api::new(&node.api_url(), &cluster.fleet.server.ca_file(), person.token())
}

async fn node_of(cluster: &Cluster, device: &Device) -> anyhow::Result<String> {
    let shown = cluster.fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
    ensure!(shown["link"]["state"] == "live", "{shown}");
    text(&shown["link"], "node")
}

async fn is_linked_to(cluster: &Cluster, device: &Device, node: &str) -> anyhow::Result<()> {
    wait_for(&format!("a link to {node}"), GONE_LIMIT, async || {
        let found = node_of(cluster, device).await?;
        ensure!(found == node, "linked to {found}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_node_is_asked_it_is_done() -> anyhow::Result<()> {
    let cluster = Cluster::start(2).await?;
    let fleet = &cluster.fleet;
    let switch = Switch::start(vec![cluster.others[0].device, fleet.server.device]).await?;
    let mut device = cluster.fleet.device_dialling("gw-1", switch.address).await?;
    ensure!(node_of(&cluster, &device).await? == "node-2");

    // Asked of the first node, run over the link of the second: a hint tells it, no timer.
    fleet.grant(&device.id, &["metrics:read"]).await?;
    for _ in 0..10 {
        let command = fleet.command(&device.id, "metrics.collect", &json!({})).await?;
        let done = fleet.finished(&command).await?;
        ensure!(done["state"] == "succeeded", "{done}");
    }
    let (_, metrics) = cluster.others[0].operations("/metrics").await?;
    let hints = metrics.lines().find(|line| line.starts_with("cloudlink_cluster_hints_total{direction=\"in\"}"));
    ensure!(hints.is_some_and(|line| !line.ends_with(" 0")), "{hints:?}");

    // What becomes of a command, as it comes, from the node that has nothing to do with it.
    fleet.grant(&device.id, &["service:restart"]).await?;
    device.machine.hold_restarts()?;
    let command = fleet.command(&device.id, "service.restart", &json!({ "service": SERVICE })).await?;
    fleet.reaches(&command, "running").await?;
    let mut events = fleet.operator.read(&format!("/commands/{command}/events")).await?;
    let (mut told, mut is_held) = (String::new(), true);
    while let Some(piece) = events.chunk().await? {
        told.push_str(std::str::from_utf8(&piece)?);
        if is_held && told.contains("\"running\"") {
            device.machine.release_restarts()?;
            is_held = false;
        }
    }
    ensure!(told.contains("\"running\"") && told.contains("\"succeeded\""), "{told}");

    // A terminal of the first node's, on the link of the second; the device's stream comes to the first one.
    fleet.support_grant(&device.id, 900).await?;
    switch.choose(1);
    let mut terminal = fleet.shell(&fleet.operator, "gw-1").await?;
    let session = fleet.newest_session().await?;
    ensure!(session["node"] == "node-2" && session["state"] == "live", "{session}");
    terminal.answers("echo answer=$((6 * 7))", "answer=42").await?;
    // The customer watches through yet the other node.
    let customer = fleet.cli(fleet.tenant.token());
    let watching = Terminal::start(&customer, &["shell", "--watch", &text(&session, "id")?], 100, 30)?;
    terminal.answers("echo seen=$((6 * 8))", "seen=48").await?;
    watching.shows("seen=48").await?;
    // Revoked at one node, cut on the other.
    let grants = fleet.tenant.get("/grants?limit=1").await?;
    let grant = text(&grants["items"][0], "id")?;
    at(&cluster, &cluster.others[0], &fleet.tenant)?.post(&format!("/grants/{grant}/revoke"), &json!({})).await?;
    ensure!(terminal.ends().await? == 9, "{}", terminal.seen());
    let ended = fleet.session_ended(&session, "grant_revoked").await?;
    ensure!(cut_off_ms(&ended)? <= 1000, "{ended}");

    // And straight at the node that has the link, in the plain way.
    fleet.support_grant(&device.id, 900).await?;
    switch.choose(0);
    let mut terminal = fleet.shell(&fleet.operator, "gw-1").await?;
    terminal.shows(PROMPT).await?;
    terminal.type_in("exit 3\r")?;
    ensure!(terminal.ends().await? == 3, "{}", terminal.seen());
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_had_that_is_killed_is_closed_by_the_others() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2).await?;
    let switch = Switch::start(vec![cluster.others[0].device, cluster.fleet.server.device]).await?;
    let mut device = cluster.fleet.device_dialling("gw-1", switch.address).await?;
    cluster.fleet.support_grant(&device.id, 900).await?;
    let mut terminal = cluster.fleet.shell(&cluster.fleet.operator, "gw-1").await?;
    let session = cluster.fleet.newest_session().await?;
    // Nobody answers: the device is nowhere until its node is known to be gone.
    switch.choose(0);
    cluster.others[0].kill()?;
    wait_for("a closed link", GONE_LIMIT, async || {
        let shown = cluster.fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
        ensure!(shown["link"]["state"] != "live" && shown["link"]["close_reason"] == "node_lost", "{shown}");
        Ok(())
    })
    .await?;
    cluster.fleet.session_ended(&session, "node_lost").await?;
    terminal.ends().await?;
    // Elsewhere it is served.
    switch.choose(1);
    is_linked_to(&cluster, &device, "node-1").await?;
    // The same node comes back, at once, and is one of them again.
    cluster.others[0].start_again().await?;
    switch.choose(0);
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_nodes_is_heard_on_the_port_of_nodes() -> anyhow::Result<()> {
    let cluster = Cluster::start(1).await?;
    let server = &cluster.fleet.server;
    let device = cluster.fleet.enrolled("gw-1").await?;
    let mut database = cluster.database.look().await?;
    let address: String = sqlx::query_scalar("select address from nodes").fetch_one(&mut database).await?;
    // A node's certificate names a hash of its name; it is of an authority of their own.
    let hash = HEXLOWER.encode(&digest(&SHA256, b"node-1").as_ref()[..16]);
    let (name, authority) = (format!("{hash}.node.cloudlink.internal"), server.data_dir().join("pki/cluster.pem"));
    for credentials in [None, Some(&device.credentials)] {
        let config = dial::client_config(&authority, credentials, &[&TLS13])?;
        let mut stream = dial::tls(address.parse()?, &name, config).await?;
        // With TLS 1.3 a client hears of a certificate that is not taken when it reads.
        let _ = stream.write_all(b"GET /api/v1/me HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let refused = stream.read(&mut [0; 1]).await.expect_err("somebody was heard").to_string();
        ensure!(refused.contains("CertificateRequired") || refused.contains("UnknownCA"), "{refused}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_gives_up_what_others_took_over() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2).await?;
    let switch = Switch::start(vec![cluster.others[0].device, cluster.fleet.server.device]).await?;
    let mut device = cluster.fleet.device_dialling("gw-1", switch.address).await?;
    switch.choose(1);
    cluster.others[0].program().signal(Signal::SIGSTOP)?;
    wait_for("a closed link", GONE_LIMIT, async || {
        let shown = cluster.fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
        ensure!(shown["link"]["close_reason"] == "node_lost", "{shown}");
        Ok(())
    })
    .await?;
    cluster.others[0].program().signal(Signal::SIGCONT)?;
    // It had the connection all the time, and lets it go.
    is_linked_to(&cluster, &device, "node-1").await?;
    ensure!(cluster.others[0].log_text()?.contains("other nodes took this one to be gone"));
    cluster.others[0].ready().await?;
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn links_outlive_a_database_that_nobody_reaches() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2).await?;
    let switch = Switch::start(vec![cluster.others[0].device]).await?;
    let mut device = cluster.fleet.device_dialling("gw-1", switch.address).await?;
    let path = format!("/devices/{}", device.id);
    let before = cluster.fleet.tenant.get(&path).await?["link"]["epoch"].clone();
    cluster.database.kill()?;
    // Longer than a lease.
    let until = tokio::time::Instant::now() + Duration::from_secs(9);
    wait_for("leases to have ended", GONE_LIMIT, async || {
        ensure!(tokio::time::Instant::now() > until, "not yet");
        Ok(())
    })
    .await?;
    cluster.database.start_again().await?;
    cluster.fleet.server.ready().await?;
    cluster.others[0].ready().await?;
    cluster.fleet.grant(&device.id, &["metrics:read"]).await?;
    let command = cluster.fleet.command(&device.id, "metrics.collect", &json!({})).await?;
    ensure!(cluster.fleet.finished(&command).await?["state"] == "succeeded");
    let after = cluster.fleet.tenant.get(&path).await?;
    ensure!(after["link"]["epoch"] == before && after["link"]["node"] == "node-2", "{before}: {after}");
    device.machine.stop()
}
