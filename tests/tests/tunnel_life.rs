//! The life of a tunnel: it comes and goes with its client, its server and its device, and is that device's link meanwhile.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use cloudlink_tests::dial::Heard;
use cloudlink_tests::enroll::Enrolled;
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::netns::{self, Site};
use cloudlink_tests::openvpn::{Client, Pings, Tunnel, UP};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::server::Settings;
use cloudlink_tests::traffic::metric;
use futures_util::future::{join_all, try_join_all};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);
/// The server cuts a revoked tunnel within 1 s; the rest is for a client, and for a test, on a busy machine.
const CUT_LIMIT: Duration = Duration::from_secs(4);
/// What a client says when its connection is gone.
const RESET: &str = "Connection reset, restarting";
/// What a client says when it was told to come again.
const RESTART: &str = "server-pushed-connection-reset";

async fn fleet(set: &[&str]) -> anyhow::Result<Fleet> {
    Fleet::start_with(&Settings::with_tunnels(set)).await
}

async fn show(fleet: &Fleet, device: &Enrolled) -> anyhow::Result<Value> {
    fleet.tenant.get(&format!("/devices/{}", device.id)).await
}

async fn gauge(fleet: &Fleet, name: &str) -> anyhow::Result<f64> {
    metric(&fleet.server.operations("/metrics").await?.1, name, "")
}

async fn live_tunnels(fleet: &Fleet, count: f64) -> anyhow::Result<()> {
    wait_for(&format!("{count} live tunnels"), LIMIT, async || {
        let live = gauge(fleet, "cloudlink_tunnels_live").await?;
        ensure!(live.total_cmp(&count).is_eq(), "{live}");
        Ok(())
    })
    .await
}

#[test]
fn a_device_without_an_agent_is_linked_and_takes_no_commands() -> anyhow::Result<()> {
    netns::test("a_device_without_an_agent_is_linked_and_takes_no_commands", async || {
        // A device that may ping as often as it does below.
        let fleet = fleet(&["isolation.echo_requests_per_second=200"]).await?;
        let site = Arc::new(Site::join()?);
        let (device, mut client) = fleet.client(&site, "legacy").await?;
        let tunnel = client.is_up(1).await?;
        let shown = fleet.wait_for_link(&device.id, "live").await?;
        let link = &shown["link"];
        ensure!(link["transport"] == "openvpn" && link["has_agent"] == false && link["epoch"] == 1, "{shown}");
        let from = link["remote_address"].as_str().context("no address")?;
        ensure!(from.starts_with(&site.ipv4.to_string()), "{shown}");
        let inside = &shown["tunnel"];
        ensure!(inside["ipv4"] == tunnel.ipv4.to_string() && inside["ipv6"] == tunnel.ipv6.to_string(), "{shown}");
        ensure!(inside["client"].as_str().is_some_and(|client| client.contains("2.6")), "{shown}");
        ensure!(inside["platform"] == "linux" && inside["cipher"] == "AES-256-GCM", "{shown}");

        fleet.grant(&device.id, &["device:reboot"]).await?;
        let body = json!({ "kind": "device.reboot", "arguments": {}, "reason": "a test" });
        let begun = Instant::now();
        let refused = fleet.operator.command(&device.id, &body).await?;
        ensure!((refused.status.as_u16(), refused.problem()) == (409, "no_agent"), "{:?}", refused.body);
        let detail = refused.body["detail"].as_str().unwrap_or_default();
        ensure!(detail.contains("no agent answers on this tunnel"), "{detail}");
        ensure!(begun.elapsed() < CUT_LIMIT, "it was waited for");

        let cli = fleet.cli(fleet.tenant.token()).run(&["devices"]).await?;
        ensure!(cli.stdout.contains("openvpn"), "{}", cli.stdout);

        // Traffic shows, if later.
        Pings { count: 20, interval: Duration::from_millis(10), size: 1_000, fragments: false }
            .come_back(&client, &tunnel)
            .await?;
        wait_for("the traffic to be shown", LIMIT, async || {
            let shown = show(&fleet, &device).await?;
            for direction in ["in", "out"] {
                let count = |what: &str| shown["tunnel"][format!("{what}_{direction}")].as_u64().unwrap_or_default();
                ensure!(count("packets") >= 40 && count("bytes") >= 40 * 1_028, "{shown}");
            }
            Ok(())
        })
        .await?;

        client.program().stop()?;
        let shown = fleet.wait_for_link(&device.id, "closed").await?;
        ensure!(shown["tunnel"] == Value::Null, "{shown}");
        live_tunnels(&fleet, 0.0).await
    })
}

#[test]
fn the_newest_link_wins_over_both_transports() -> anyhow::Result<()> {
    netns::test("the_newest_link_wins_over_both_transports", async || {
        let fleet = fleet(&[]).await?;
        let site = Arc::new(Site::join()?);
        let device = fleet.enrolled("gateway").await?;
        let (mut link, welcome) = fleet.live(&device).await?;
        ensure!(welcome.epoch == 1);

        // A tunnel ends a WebSocket.
        let mut client = fleet.start_client(&site, "gateway", &fleet.profile(&device)?)?;
        client.is_up(1).await?;
        ensure!(link.hear_the_end().await? == Heard::Closed(4002));
        let shown = fleet.wait_for_link(&device.id, "live").await?;
        ensure!(shown["link"]["transport"] == "openvpn" && shown["link"]["epoch"] == 2, "{shown}");

        // A WebSocket ends a tunnel. Its client comes again, for it cannot know better, and then is the newest.
        let (mut link, welcome) = fleet.live(&device).await?;
        ensure!(welcome.epoch == 3);
        client.says(RESET).await?;
        let tunnel = client.is_up(2).await?;
        ensure!(link.hear_the_end().await? == Heard::Closed(4002));
        Pings::default().come_back(&client, &tunnel).await?;
        let shown = fleet.wait_for_link(&device.id, "live").await?;
        ensure!(shown["link"]["transport"] == "openvpn" && shown["link"]["epoch"] == 4, "{shown}");

        // The same certificate from elsewhere, which is what a cable that was pulled looks like.
        let elsewhere = Arc::new(Site::join()?);
        site.unplug()?;
        let mut second = fleet.start_client(&elsewhere, "elsewhere", &fleet.profile(&device)?)?;
        let moved = second.is_up(1).await?;
        ensure!((moved.ipv4, moved.ipv6) == (tunnel.ipv4, tunnel.ipv6), "{moved:?} after {tunnel:?}");
        Pings::default().come_back(&second, &moved).await?;
        ensure!(show(&fleet, &device).await?["link"]["epoch"] == 5);

        // Both at once, each as stubborn as the other: there is never more than one.
        site.plug()?;
        client.is_up(3).await?;
        second.says(RESET).await?;
        second.is_up(2).await?;
        live_tunnels(&fleet, 1.0).await?;
        ensure!(client.is_running()? && second.is_running()?);
        Ok(())
    })
}

#[test]
fn a_client_or_a_server_that_is_killed_comes_back_to_the_same_addresses() -> anyhow::Result<()> {
    netns::test("a_client_or_a_server_that_is_killed_comes_back_to_the_same_addresses", async || {
        let mut fleet = fleet(&[]).await?;
        let site = Arc::new(Site::join()?);
        let (device, mut client) = fleet.client(&site, "gateway").await?;
        let (_, mut other) = fleet.client(&site, "other").await?;
        let (tunnel, others) = (client.is_up(1).await?, other.is_up(1).await?);
        ensure!(tunnel.ipv4 != others.ipv4 && tunnel.ipv6 != others.ipv6);
        let same = |again: &Tunnel| (again.ipv4, again.ipv6) == (tunnel.ipv4, tunnel.ipv6);

        client.kill()?;
        fleet.wait_for_link(&device.id, "closed").await?;
        client.start_again()?;
        let again = client.is_up(2).await?;
        ensure!(same(&again), "{again:?} after {tunnel:?}");
        Pings::default().come_back(&client, &again).await?;
        ensure!(fleet.wait_for_link(&device.id, "live").await?["link"]["epoch"] == 2);
        Pings::default().come_back(&other, &others).await?;

        // Nobody tells the clients anything; they come by themselves.
        fleet.server.kill()?;
        fleet.server.start_again().await?;
        let again = client.is_up(3).await?;
        ensure!(same(&again), "{again:?} after {tunnel:?}");
        Pings::default().come_back(&client, &again).await?;
        let others_again = other.is_up(2).await?;
        ensure!((others_again.ipv4, others_again.ipv6) == (others.ipv4, others.ipv6));
        Pings::default().come_back(&other, &others_again).await?;
        live_tunnels(&fleet, 2.0).await
    })
}

#[test]
fn addresses_and_patience_are_as_configured() -> anyhow::Result<()> {
    netns::test("addresses_and_patience_are_as_configured", async || {
        let fleet = fleet(&[
            "tunnel.interface=vpn-test",
            "tunnel.pool_ipv4=10.200.0.0/16",
            // Eight addresses: the network, the node, the broadcast, and five for devices.
            "tunnel.slice_prefix=29",
            "tunnel.pool_ipv6=fd00:1:2::/48",
            "tunnel.mtu=1400",
            "tunnel.ping_interval_seconds=1",
            "tunnel.dead_after_seconds=5",
        ])
        .await?;
        let (site, far) = (Arc::new(Site::join()?), Arc::new(Site::join()?));
        let mut clients = start(&fleet, &[Arc::clone(&site)], 4).await?;
        let (silent, mut unplugged) = fleet.client(&far, "unplugged").await?;
        let mut addresses = BTreeSet::new();
        for (_, client) in &mut clients {
            let tunnel = client.is_up(1).await?;
            ensure!(tunnel.gateway_ipv4 == Ipv4Addr::new(10, 200, 0, 1), "{tunnel:?}");
            ensure!(tunnel.gateway_ipv6 == "fd00:1:2::1".parse::<Ipv6Addr>()?, "{tunnel:?}");
            for option in ["tun-mtu 1400", "ping 1", "ping-restart 5"] {
                ensure!(tunnel.pushed.iter().any(|pushed| pushed == option), "{tunnel:?}");
            }
            let largest = Pings { size: 1_400 - 48, ..Pings::default() };
            largest.come_back(client, &tunnel).await?;
            addresses.insert(tunnel.ipv4);
        }
        let tunnel = unplugged.is_up(1).await?;
        addresses.insert(tunnel.ipv4);
        let expected = (2..=6).map(|host| Ipv4Addr::new(10, 200, 0, host)).collect();
        ensure!(addresses == expected, "{addresses:?}");

        // There is none left for a sixth, which is told so, and asks again.
        let (_, mut late) = fleet.client(&site, "late").await?;
        late.says_times("AUTH_FAILED,TEMP[backoff 60]:all tunnel addresses of this node are in use", 2).await?;
        ensure!(late.is_running()?);

        // One goes without a word: both ends notice, each in its time. What it had is kept for it.
        far.unplug()?;
        let gone = Instant::now();
        fleet.wait_for_link(&silent.id, "closed").await?;
        ensure!(gone.elapsed() > Duration::from_secs(5), "given up after {:?}", gone.elapsed());
        unplugged.says("Inactivity timeout (--ping-restart)").await?;
        far.plug()?;
        let again = unplugged.is_up(2).await?;
        ensure!((again.ipv4, again.ipv6) == (tunnel.ipv4, tunnel.ipv6), "{again:?} after {tunnel:?}");
        Pings::default().come_back(&unplugged, &again).await?;
        live_tunnels(&fleet, 5.0).await
    })
}

#[test]
fn a_database_that_fails_leaves_tunnels_alone() -> anyhow::Result<()> {
    netns::test("a_database_that_fails_leaves_tunnels_alone", async || {
        let mut fleet = fleet(&[]).await?;
        let site = Arc::new(Site::join()?);
        let (device, mut client) = fleet.client(&site, "gateway").await?;
        let tunnel = client.is_up(1).await?;
        let (_, mut second) = fleet.client(&site, "second").await?;
        second.is_up(1).await?;
        second.program().stop()?;

        let lasting = Pings { count: 30, ..Pings::default() };
        let outage = async {
            let pid_file = fleet.server.data_dir().join("postgres/data/postmaster.pid");
            let pid =
                std::fs::read_to_string(pid_file)?.lines().next().context("an empty lock file")?.trim().parse()?;
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            second.start_again()?;
            anyhow::Ok(())
        };
        tokio::try_join!(outage, lasting.come_back(&client, &tunnel))?;
        fleet.server.ready().await?;
        let again = second.is_up(2).await?;
        Pings::default().come_back(&second, &again).await?;
        Pings::default().come_back(&client, &tunnel).await?;
        ensure!(client.log_text()?.matches(UP).count() == 1, "it was cut: {}", client.log_text()?);
        let shown = fleet.wait_for_link(&device.id, "live").await?;
        ensure!(shown["link"]["epoch"] == 1, "{shown}");
        live_tunnels(&fleet, 2.0).await
    })
}

#[test]
fn a_revoked_device_is_cut_and_its_client_stays_alive() -> anyhow::Result<()> {
    netns::test("a_revoked_device_is_cut_and_its_client_stays_alive", async || {
        let fleet = fleet(&[]).await?;
        let site = Arc::new(Site::join()?);
        let (device, mut client) = fleet.client(&site, "gateway").await?;
        let (_, mut other) = fleet.client(&site, "other").await?;
        let (tunnel, others) = (client.is_up(1).await?, other.is_up(1).await?);
        Pings::default().come_back(&client, &tunnel).await?;

        let begun = Instant::now();
        fleet.tenant.post(&format!("/devices/{}/revoke", device.id), &json!({})).await?;
        client.says("restarting").await?;
        ensure!(begun.elapsed() < CUT_LIMIT, "{:?}", begun.elapsed());
        let shown = fleet.wait_for_link(&device.id, "closed").await?;
        let seconds = seconds_between(&shown["revoked_at"], &shown["link"]["closed_at"])?;
        ensure!((0.0..=1.0).contains(&seconds), "cut {seconds} s after it was revoked: {shown}");

        // It dials again, and gets nothing; nor does it give up, for it may have been a mistake.
        client.says_times("TCP connection established", 2).await?;
        client.says_times("Peer Connection Initiated", 2).await?;
        client.says_times("restarting", 2).await?;
        let log = client.log_text()?;
        ensure!(log.matches(UP).count() == 1, "{log}");
        ensure!(client.is_running()?, "{log}");
        Pings::default().come_back(&other, &others).await?;
        live_tunnels(&fleet, 1.0).await?;
        ensure!(client.is_running()?, "{log}");
        Ok(())
    })
}

fn seconds_between(from: &Value, to: &Value) -> anyhow::Result<f64> {
    let time = |value: &Value| {
        let text = value.as_str().with_context(|| format!("no time: {value}"))?;
        anyhow::Ok(time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)?)
    };
    Ok((time(to)? - time(from)?).as_seconds_f64())
}

#[test]
fn a_server_that_stops_tells_its_clients_one_after_the_other() -> anyhow::Result<()> {
    netns::test("a_server_that_stops_tells_its_clients_one_after_the_other", async || {
        let mut fleet = fleet(&["shutdown.soft_seconds=8"]).await?;
        let site = Arc::new(Site::join()?);
        let mut clients = start(&fleet, &[site], 8).await?;
        for (_, client) in &mut clients {
            let tunnel = client.is_up(1).await?;
            Pings::default().come_back(client, &tunnel).await?;
        }
        live_tunnels(&fleet, 8.0).await?;
        let status = fleet.server.stop()?;
        ensure!(status.success(), "{status}");
        let mut seconds = BTreeSet::new();
        for (_, client) in &mut clients {
            client.says(RESTART).await?;
            let log = client.log_text()?;
            let line = log.lines().find(|line| line.contains(RESTART)).context("just seen")?;
            // Of the time of day, to the second.
            seconds.insert(line.get(..19).context("no time")?.to_owned());
            ensure!(client.is_running()?);
        }
        ensure!(seconds.len() >= 4, "not spread: {seconds:?}");

        fleet.server.start_again().await?;
        for (_, client) in &mut clients {
            let tunnel = client.is_up(2).await?;
            Pings::default().come_back(client, &tunnel).await?;
        }
        Ok(())
    })
}

#[test]
fn two_hundred_clients_come_at_once() -> anyhow::Result<()> {
    netns::test("two_hundred_clients_come_at_once", async || {
        let fleet = fleet(&[]).await?;
        let sites: Vec<_> = (0..8).map(|_| Ok(Arc::new(Site::join()?))).collect::<anyhow::Result<_>>()?;
        let mut clients = start(&fleet, &sites, 200).await?;
        let tunnels = join_all(clients.iter_mut().map(|(_, client)| client.is_up(1))).await;
        let tunnels: Vec<Tunnel> = tunnels.into_iter().collect::<Result<_, _>>()?;
        live_tunnels(&fleet, 200.0).await?;

        let addresses: BTreeSet<_> = tunnels.iter().map(|tunnel| (tunnel.ipv4, tunnel.ipv6)).collect();
        ensure!(addresses.len() == 200, "{} addresses", addresses.len());
        // Each through its own, all at the same time.
        let few = Pings { count: 2, ..Pings::default() };
        let pings = clients.iter().zip(&tunnels).map(|((_, client), tunnel)| few.come_back(client, tunnel));
        try_join_all(pings).await?;
        for (_, client) in &mut clients {
            ensure!(client.log_text()?.matches(UP).count() == 1);
        }
        let opened = gauge(&fleet, "cloudlink_tunnels_opened_total").await?;
        ensure!(opened.total_cmp(&200.0).is_eq(), "{opened} were opened");
        drop(clients);
        live_tunnels(&fleet, 0.0).await
    })
}

/// Enrolls as many devices, and starts their clients as close to each other as can be.
async fn start(fleet: &Fleet, sites: &[Arc<Site>], count: usize) -> anyhow::Result<Vec<(Enrolled, Client)>> {
    let mut devices = Vec::new();
    for number in 0..count {
        devices.push(fleet.enrolled(&format!("gateway-{number}")).await?);
    }
    let sites = sites.iter().cycle();
    let started = devices.into_iter().zip(sites).map(|(device, site)| {
        let client = fleet.start_client(site, &device.id, &fleet.profile(&device)?)?;
        Ok((device, client))
    });
    started.collect()
}
