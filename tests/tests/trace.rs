//! One trace from a call of the API to a device's result, whichever nodes had a part in it.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::{Answer, Api, text};
use cloudlink_tests::cluster::{Cluster, Database, Switch};
use cloudlink_tests::collector::{Collector, Manner, Seen};
use cloudlink_tests::fleet::{Device, Fleet};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::server::{Server, Settings};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use reqwest::Method;
use serde_json::{Value, json};

/// Spans are gathered for half a second; the machine may be busy.
const TOLD_LIMIT: Duration = Duration::from_secs(20);
const CALLER: &str = "00f067aa0ba902b7";
const COMMAND_ROUTE: &str = "POST /api/v1/devices/{id}/commands";
const SESSION_ROUTE: &str = "POST /api/v1/devices/{id}/support-sessions";

/// A call under a trace of the caller's own. `trace` is a digit that tells it from others.
async fn call(api: &Api, trace: char, path: &str, body: &Value) -> anyhow::Result<Answer> {
    let parent = format!("00-{}-{CALLER}-01", id_of(trace));
    api.call(Method::POST, path, &[("traceparent", &parent)], Some(body)).await
}

fn id_of(trace: char) -> String {
    trace.to_string().repeat(32)
}

/// The spans of a trace, once these are among them, each once and in this order.
async fn told<const N: usize>(collector: &Collector, trace: char, names: [&str; N]) -> anyhow::Result<[Seen; N]> {
    wait_for(&format!("spans {names:?}"), TOLD_LIMIT, async || {
        let mut spans = collector.of(&id_of(trace));
        let mut found = Vec::new();
        for name in names {
            let position = spans.iter().position(|span| span.name == name);
            found.push(spans.swap_remove(position.with_context(|| format!("no {name} in {spans:#?}"))?));
        }
        ensure!(spans.is_empty(), "and more: {spans:#?}");
        found.try_into().ok().context("as many as were asked for")
    })
    .await
}

/// Each is the next one's parent, the caller the first one's.
fn ensure_chain(spans: &[&Seen]) -> anyhow::Result<()> {
    let mut parent = CALLER;
    for span in spans {
        ensure!(span.parent == parent && span.start_ns <= span.end_ns && !span.is_error, "{parent}: {span:#?}");
        parent = &span.id;
    }
    Ok(())
}

fn measure() -> Value {
    json!({ "kind": "metrics.collect", "reason": "a test" })
}

async fn spans_told(server: &Server, outcome: &str) -> anyhow::Result<u64> {
    let (_, metrics) = server.operations("/metrics").await?;
    let series = format!("cloudlink_trace_spans_total{{outcome=\"{outcome}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
    Ok(line.context("no such series")?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_goes_from_the_call_over_nodes_to_the_device_and_back() -> anyhow::Result<()> {
    let collector = Collector::start((Ipv4Addr::LOCALHOST, 0).into(), Manner::Takes).await?;
    // What a hint tells, the timer is not to be first with.
    let set = [Collector::setting(collector.address), "link.reconcile_interval_seconds=60".to_owned()];
    let mut cluster = Cluster::start_on(Database::start().await?, 2, &set).await?;
    let fleet = &cluster.fleet;
    let switch = Switch::start(vec![cluster.others[0].device, fleet.server.device]).await?;
    let Device { id: device, mut machine, .. } = fleet.device_dialling("gw-1", switch.address).await?;

    // Asked of the first node, sent and ended by the second.
    fleet.grant(&device, &["metrics:read"]).await?;
    let path = format!("/devices/{device}/commands");
    let command = call(&fleet.operator, 'a', &path, &measure()).await?.success()?;
    ensure!(fleet.finished(&text(&command, "id")?).await?["state"] == "succeeded");
    let names = [COMMAND_ROUTE, "command.insert", "command.dispatch", "command.run"];
    let [request, insert, dispatch, run] = told(&collector, 'a', names).await?;
    ensure_chain(&[&request, &insert, &dispatch, &run])?;
    let nodes = [&request, &insert, &dispatch, &run].map(|span| span.node.as_str());
    ensure!(nodes == ["node-1", "node-1", "node-2", "node-2"], "{nodes:?}");
    ensure!(request.kind == SpanKind::Server && request.attributes["http.response.status_code"] == "201");
    ensure!(dispatch.attributes["cloudlink.dispatch.woken_by"] == "hint", "{dispatch:#?}");
    ensure!(run.attributes["cloudlink.command.state"] == "succeeded" && run.events == ["accepted"], "{run:#?}");
    // The device's own log has it, too, and so has the server's.
    ensure!(machine.log_text()?.contains(&id_of('a')), "{}", machine.log_text()?);

    // Asked of the first node, passed on, answered by the second.
    fleet.support_grant(&device, 900).await?;
    let session = json!({ "kind": "terminal", "reason": "a test" });
    let path = format!("/devices/{device}/support-sessions");
    let made = call(&fleet.operator, 'b', &path, &session).await?.success()?;
    ensure!(made["node"] == "node-2", "{made}");
    let spans = wait_for("three spans", TOLD_LIMIT, async || {
        let spans = collector.of(&id_of('b'));
        ensure!(spans.len() == 3, "{spans:#?}");
        Ok(spans)
    })
    .await?;
    let of =
        |node: &str, kind| spans.iter().find(|span| span.node == node && span.kind == kind).context("no such span");
    let (first, passed) = (of("node-1", SpanKind::Server)?, of("node-1", SpanKind::Client)?);
    let second = of("node-2", SpanKind::Server)?;
    ensure_chain(&[first, passed, second])?;
    ensure!(
        first.name == SESSION_ROUTE && second.name == SESSION_ROUTE && passed.attributes["cloudlink.node"] == "node-2"
    );

    // Whoever is nobody begins none, and whoever does not want to be kept is not.
    let nobody = fleet.operator.with_token("clk_nobody");
    ensure!(call(&nobody, 'c', &path, &session).await?.status == 401);
    let parent = format!("00-{}-{CALLER}-00", id_of('c'));
    let kept_out = [("traceparent", parent.as_str())];
    fleet.operator.call(Method::GET, "/me", &kept_out, None).await?.success()?;

    // The node that was asked is gone before the device comes: the other one goes on with the trace.
    machine.stop()?;
    fleet.wait_for_link(&device, "closed").await?;
    let waiting = json!({ "kind": "metrics.collect", "reason": "a test", "queue_for_seconds": 600 });
    let second = Api::new(&cluster.others[0].api_url(), &fleet.server.ca_file(), fleet.operator.token())?;
    let path = format!("/devices/{device}/commands");
    let command = call(&second, 'd', &path, &waiting).await?.success()?;
    let [request, insert] = told(&collector, 'd', [COMMAND_ROUTE, "command.insert"]).await?;
    cluster.others[0].kill()?;
    let fleet = &cluster.fleet;
    switch.choose(1);
    machine.power_on()?;
    ensure!(fleet.finished(&text(&command, "id")?).await?["state"] == "succeeded");
    let names = [COMMAND_ROUTE, "command.insert", "command.dispatch", "command.run"];
    let [_, _, dispatch, run] = told(&collector, 'd', names).await?;
    ensure_chain(&[&request, &insert, &dispatch, &run])?;
    ensure!((insert.node.as_str(), dispatch.node.as_str(), run.node.as_str()) == ("node-2", "node-1", "node-1"));
    ensure!(collector.of(&id_of('c')).is_empty(), "{:#?}", collector.of(&id_of('c')));
    machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_spans_and_nothing_else() -> anyhow::Result<()> {
    let address = port::free()?;
    let settings = Settings { set: vec![Collector::setting(address)], ..Settings::default() };
    let mut fleet = Fleet::start_with(&settings).await?;
    let mut device = fleet.device("gw-1").await?;
    fleet.grant(&device.id, &["metrics:read"]).await?;
    let path = format!("/devices/{}/commands", device.id);
    let run = async |fleet: &Fleet, trace: char| {
        let command = call(&fleet.operator, trace, &path, &measure()).await?.success()?;
        ensure!(fleet.finished(&text(&command, "id")?).await?["state"] == "succeeded");
        anyhow::Ok(())
    };
    // Nobody listens; then somebody does, who never answers.
    run(&fleet, 'a').await?;
    wait_for("lost spans", TOLD_LIMIT, async || {
        ensure!(spans_told(&fleet.server, "failed").await? > 0);
        Ok(())
    })
    .await?;
    let hanging = Collector::start(address, Manner::Hangs).await?;
    for _ in 0..20 {
        run(&fleet, 'b').await?;
    }
    ensure!(spans_told(&fleet.server, "exported").await? == 0 && hanging.all().is_empty());
    // It is gone, and comes back: what is told from then on is kept.
    hanging.stop().await;
    let collector = Collector::start(address, Manner::Takes).await?;
    wait_for("spans of a later trace", Duration::from_secs(40), async || {
        run(&fleet, 'e').await?;
        ensure!(collector.of(&id_of('e')).iter().any(|span| span.name == "command.run"));
        Ok(())
    })
    .await?;
    // The last ones are told when the node stops.
    run(&fleet, 'f').await?;
    fleet.server.stop()?;
    ensure!(
        collector.of(&id_of('f')).iter().any(|span| span.name == "command.run"),
        "{:#?}",
        collector.of(&id_of('f'))
    );
    device.machine.stop()
}
