//! `cloudlink status`: what is wrong with a cluster, as somebody sees it who asks. Its NATS server wants TLS and a password.

use std::time::Duration;

use anyhow::ensure;
use cloudlink_tests::cli::{Cli, Said};
use cloudlink_tests::cluster::{Cluster, Database, Nats};
use cloudlink_tests::poll::wait_for;
use serde_json::{Value, json};

/// A lease, and then some: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(40);

/// Asks until the problems are of these kinds, the worst first, and gives what was said to people.
async fn problems(admin: &Cli, kinds: &[(&str, Option<&str>)]) -> anyhow::Result<Said> {
    wait_for(&format!("problems {kinds:?}"), LIMIT, async || {
        let said = admin.run(&["status", "--json"]).await?;
        let status: Value = serde_json::from_str(&said.stdout)?;
        let found: Vec<_> = status["problems"].as_array().into_iter().flatten().collect();
        let found: Vec<_> = found.iter().map(|problem| json!([problem["kind"], problem["node"]])).collect();
        let wanted: Vec<_> = kinds.iter().map(|(kind, node)| json!([kind, node])).collect();
        ensure!(found == wanted, "{status:#}");
        let said = admin.run(&["status"]).await?;
        ensure!(said.code == Some(i32::from(!kinds.is_empty())), "{said:?}");
        Ok(said)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_comes_first_and_the_exit_code_says_whether_anything_is() -> anyhow::Result<()> {
    let nats = Nats::start_guarded().await?;
    let mut cluster = Cluster::start_around(nats, Database::start().await?, 2, &[], None).await?;
    let mut device = cluster.fleet.device("gw-1").await?;
    let admin = cluster.fleet.cli(cluster.fleet.admin.token());

    // Over TLS, and by password.
    wait_for("both nodes connected to NATS", LIMIT, async || {
        let said = problems(&admin, &[]).await?;
        ensure!(said.stdout.starts_with("Nothing is wrong that is known of.\n"), "{}", said.stdout);
        let line =
            |start: &str| said.stdout.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        ensure!(["node-1", "node-2"].map(line).iter().all(|line| line.contains("connected")), "{}", said.stdout);
        ensure!(line("devices").ends_with("1 of 1 linked"), "{}", said.stdout);
        Ok(())
    })
    .await?;

    // It is for administrators.
    let operator = cluster.fleet.cli(cluster.fleet.operator.token());
    ensure!(operator.run(&["status"]).await?.code == Some(3));

    cluster.nats.program().kill()?;
    let said = problems(&admin, &[("bus_away", Some("node-1")), ("bus_away", Some("node-2"))]).await?;
    ensure!(said.stdout.lines().next().is_some_and(|line| line.starts_with("SEVERITY")), "{}", said.stdout);
    ensure!(said.stderr.contains("2 things are wrong"), "{}", said.stderr);
    cluster.nats.start_again().await?;
    problems(&admin, &[]).await?;

    // One that dies is found; one that is stopped is no problem.
    cluster.others[0].kill()?;
    let said = problems(&admin, &[("node_gone", Some("node-2"))]).await?;
    ensure!(said.stdout.contains("it has died"), "{}", said.stdout);
    cluster.others[0].start_again().await?;
    problems(&admin, &[]).await?;
    cluster.others[0].stop()?;
    problems(&admin, &[]).await?;
    device.machine.stop()
}
