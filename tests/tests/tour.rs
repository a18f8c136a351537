//! `make demo` and `make up`, as somebody runs them.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::fleet::directory;
use cloudlink_tests::netns;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::program::{Program, binary};
use nix::sys::signal::Signal;

const UP_LIMIT: Duration = Duration::from_secs(90);
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

fn tour(verb: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(binary("tour")?);
    command.arg(verb).arg("--free-ports");
    Ok(command)
}

/// Types a line in a shell that has read `up.env`.
fn type_line(environment: &Path, line: &str) -> anyhow::Result<Output> {
    Ok(Command::new("sh").arg("-c").arg(format!(". {}\n{line}", environment.display())).output()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_tells_its_story_and_leaves_nothing() -> anyhow::Result<()> {
    let output = tokio::task::spawn_blocking(|| anyhow::Ok(tour("demo")?.output()?)).await??;
    let told = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{told}");
    // In this order.
    let mut rest = told.as_str();
    let first_half = [
        "No grant, no command",
        "No grant in force allows this",
        "cloudlink grant create",
        "metrics.collect on demo-gateway: succeeded",
        "service.restart on demo-gateway: succeeded",
        "device.reboot on demo-gateway: succeeded",
        "proven by another boot id",
        "cloudlink grant revoke",
        "has revoked the grant",
        "cloudlink access approve",
        "It is the cache.",
        "cloudlink recording play",
        "It is the cache.",
        "cloudlink receipt show",
    ];
    let second_half = [
        "cloudlink device openvpn-profile demo-router",
        "openvpn --config demo-router.ovpn",
        "cloudlinkd isolation verify",
        "what is in force is what is declared",
        "openvpn, no agent",
        "no agent answers on this tunnel",
        "metrics.collect on demo-router: succeeded",
        "service.restart on demo-router: succeeded",
        "device.reboot on demo-router: succeeded",
        "proven by another boot id",
    ];
    let skipped = ["Skipped, the same through the stock OpenVPN client"];
    let middle = if netns::lacking().is_none() { second_half.as_slice() } else { &skipped };
    for expected in
        first_half.iter().chain(middle).chain(&["nothing removed, moved or changed", "cloudlink receipt verify"])
    {
        let at =
            rest.find(expected).with_context(|| format!("{expected:?} is missing, or not in its place:\n{told}"))?;
        rest = &rest[at + expected.len()..];
    }
    ensure!(!told.contains('\u{1b}'), "colours, and no terminal:\n{told}");
    let data_dir =
        told.split_whitespace().find_map(|word| word.strip_suffix("/data/pki/ca.pem")).context(told.clone())?;
    ensure!(!Path::new(data_dir).exists(), "{data_dir} is still there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn up_stays_until_it_is_interrupted_and_tells_a_shell_what_to_try() -> anyhow::Result<()> {
    let logs = directory()?;
    let environment = logs.path().join("up.env");
    let mut command = tour("up")?;
    command.arg("--environment").arg(&environment);
    let mut up = Program::start("tour up", command, &logs.path().join("up.log"))?;
    wait_for("up.env", UP_LIMIT, async || {
        ensure!(environment.exists(), "{}", up.log_text()?);
        Ok(())
    })
    .await?;

    for line in [
        "CLOUDLINK_TOKEN=$TENANT_TOKEN $CLOUDLINK device show $DEVICE_ID",
        "CLOUDLINK_TOKEN=$OPERATOR_TOKEN $CLOUDLINK devices",
        "CLOUDLINK_TOKEN=$ADMIN_TOKEN $CLOUDLINK tenants",
        "$CLOUDLINK devices --profile customer",
        "curl -sSf --cacert $CA_FILE -H \"Authorization: Bearer $TENANT_TOKEN\" $API_URL/api/v1/devices",
        "curl -sSf --cacert $CA_FILE $CONSOLE_URL/devices | grep -q '<script type=\"module\"'",
        "curl -sSf --cacert $CA_FILE $CONSOLE_URL/api/v1/auth/config | grep -q '\"issuer\":\"https'",
        "curl -sSf $OPS_URL/readyz",
        "openssl s_client -connect $DEVICE_ADDR -servername localhost -CAfile $CA_FILE -verify_return_error \
         -cert $DEVICE_CERT -key $DEVICE_KEY </dev/null",
    ] {
        let output = type_line(&environment, line)?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "{line}: {said}");
    }
    let refused =
        type_line(&environment, "CLOUDLINK_TOKEN=$OPERATOR_TOKEN $CLOUDLINK reboot demo-gateway --reason why")?;
    ensure!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("grant"), "{refused:?}");

    up.signal(Signal::SIGINT)?;
    let status = up.wait(COMMAND_LIMIT)?.context("it does not stop")?;
    ensure!(status.success(), "{status}: {}", up.log_text()?);
    ensure!(!environment.exists(), "up.env is still there");
    Ok(())
}
