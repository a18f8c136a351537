//! The command line against a real server and real devices: what it prints, what it stores, and its exit codes.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::{Api, text};
use cloudlink_tests::cli::{Cli, Said};
use cloudlink_tests::fleet::{COMMAND_LIMIT, Fleet, LINK_LIMIT};
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::poll::wait_for;
use reqwest::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// Somebody's command line, with what it must give.
struct Person(Cli);

impl Person {
    fn new(fleet: &Fleet, api: &Api) -> Self {
        Self(fleet.cli(api.token()))
    }

    /// Runs a command that must end with this exit code.
    async fn says(&self, code: i32, arguments: &[&str]) -> anyhow::Result<Said> {
        let said = self.0.run(arguments).await?;
        ensure!(said.code == Some(code), "expected {code} of cloudlink {arguments:?}: {said:#?}");
        Ok(said)
    }

    async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        self.0.json(arguments).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_may_act_while_and_only_while_the_customer_allows_it() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let operator = Person::new(&fleet, &fleet.operator);
    let tenant = Person::new(&fleet, &fleet.tenant);

    let refused = operator.says(5, &["metrics", "gw-1", "--reason", "slow"]).await?;
    ensure!(refused.stdout.is_empty() && refused.stderr.contains("request id: "), "{refused:#?}");
    let refused = operator.says(5, &["metrics", "gw-1", "--reason", "slow", "--json"]).await?;
    let problem: Value = serde_json::from_str(&refused.stderr)?;
    ensure!(problem["type"] == "urn:cloudlink:problem:grant_required" && problem["exit_code"] == 5, "{problem}");

    let scopes = ["metrics:read", "service:restart", "device:reboot", "device:shutdown"];
    let mut create = vec!["grant", "create", "--device", "gw-1", "--for", "15m", "--reason", "ticket"];
    create.extend(scopes.iter().flat_map(|scope| ["--scope", scope]));
    create.extend(["--operator", "operator"]);
    let grant = tenant.json(&create).await?;
    ensure!(
        grant["operator_ids"] == json!([fleet.operator_id]) && grant["device_ids"] == json!([device.id]),
        "{grant}"
    );
    let (ends_at, grant) = (moment(&grant, "ends_at")?, text(&grant, "id")?);
    let shown = tenant.says(0, &["grant", "show", &grant]).await?.stdout;
    for part in ["in force", "gw-1", "operator", "UTC", "in 15 min"] {
        ensure!(shown.contains(part), "{part:?} is not in {shown}");
    }

    let metrics = operator.says(0, &["metrics", "gw-1", "--reason", "slow"]).await?;
    ensure!(metrics.stdout.contains("metrics.collect on gw-1: succeeded"), "{metrics:#?}");
    ensure!(metrics.stdout.contains("memory_total_bytes"), "{metrics:#?}");

    operator.says(0, &["restart", "gw-1", SERVICE, "--reason", "stuck"]).await?;
    ensure!(device.machine.restarts() == 1, "restarted {} times", device.machine.restarts());
    let other = operator.says(6, &["restart", "gw-1", "sshd", "--reason", "stuck"]).await?;
    ensure!(other.stdout.contains("refused"), "{other:#?}");

    let reboot = operator.json(&["reboot", "gw-1", "--reason", "hangs", "--grant", &grant]).await?;
    ensure!(reboot["state"] == "succeeded" && reboot["proof"]["kind"] == "boot_id", "{reboot}");
    ensure!(device.machine.reboots() == 1, "rebooted {} times", device.machine.reboots());
    fleet.wait_for_link(&device.id, "live").await?;

    let later = tenant.json(&["grant", "extend", &grant, "--by", "10m"]).await?;
    ensure!(moment(&later, "ends_at")? == ends_at + Duration::from_secs(600), "{later}, not 10 min after {ends_at}");
    tenant.says(0, &["grant", "revoke", &grant]).await?;
    operator.says(5, &["reboot", "gw-1", "--reason", "hangs"]).await?;

    let commands = operator.says(0, &["commands", "--device", "gw-1", "--state", "succeeded"]).await?;
    ensure!(commands.stdout.lines().count() == 4, "{commands:#?}");
    device.machine.stop()
}

fn moment(value: &Value, member: &str) -> anyhow::Result<OffsetDateTime> {
    Ok(OffsetDateTime::parse(&text(value, member)?, &Rfc3339)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_a_link_is_waited_for_only_on_request() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    fleet.grant(&device.id, &["service:restart"]).await?;
    device.machine.stop()?;
    fleet.wait_for_link(&device.id, "closed").await?;
    let operator = Person::new(&fleet, &fleet.operator);
    let restart = ["restart", "gw-1", SERVICE, "--reason", "stuck"];

    let refused = operator.says(8, &restart).await?;
    ensure!(refused.stderr.contains("--queue-for"), "{refused:#?}");

    // The same key is the same command.
    let queue = [restart.as_slice(), &["--queue-for", "10m", "--no-wait", "--idempotency-key", "k-1"]].concat();
    let first = operator.says(0, &queue).await?.stdout;
    ensure!(first == operator.says(0, &queue).await?.stdout, "two commands for one key");
    operator.says(0, &["command", "cancel", first.trim()]).await?;
    operator.says(6, &["command", "watch", first.trim()]).await?;
    operator.says(0, &["command", "cancel", first.trim()]).await?;

    // Waiting outlives a restart of the server, and ends when the device comes back.
    let queue = [restart.as_slice(), &["--queue-for", "10m"]].concat();
    let mut waiting = operator.0.command(&queue)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut messages = BufReader::new(waiting.stderr.take().context("piped")?).lines();
    let is_queued = async {
        while let Some(line) = messages.next_line().await? {
            if line.contains("queued") {
                return Ok(());
            }
        }
        anyhow::bail!("it was never queued")
    };
    tokio::time::timeout(LINK_LIMIT, is_queued).await??;
    fleet.server.stop()?;
    fleet.server.start_again().await?;
    device.machine.power_on()?;
    let drain = async { while let Ok(Some(_)) = messages.next_line().await {} };
    let (output, ()) =
        tokio::time::timeout(COMMAND_LIMIT * 2, async { tokio::join!(waiting.wait_with_output(), drain) })
            .await
            .context("it waits for ever")?;
    let output = output?;
    let stdout = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(0) && stdout.contains("succeeded"), "{:?}: {stdout}", output.status);
    ensure!(device.machine.restarts() == 1, "restarted {} times", device.machine.restarts());
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_in_things_by_name_and_exit_codes() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    let admin = Person::new(&fleet, &fleet.admin);
    let tenant = Person::new(&fleet, &fleet.tenant);
    let operator = Person::new(&fleet, &fleet.operator);

    signing_in(&fleet, &operator).await?;

    // People and tenants.
    admin.says(0, &["tenant", "create", "two\u{202e}way", "--grant-max", "2h"]).await?;
    let tenants = admin.says(0, &["tenants"]).await?.stdout;
    ensure!(tenants.contains("two\\u{202e}way") && tenants.contains("2h"), "{tenants}");
    admin.says(8, &["tenant", "create", "customer"]).await?;
    admin.says(0, &["tenant", "set", "customer", "--grant-max", "1d"]).await?;
    admin.says(0, &["person", "create", "night-robot", "--role", "operator"]).await?;
    let token = admin.says(0, &["token", "create", "ci", "--person", "night-robot", "--expires-in", "1d"]).await?;
    let robot = Person(fleet.cli(token.stdout.trim()));
    ensure!(robot.json(&["whoami"]).await?["name"] == "night-robot", "the new token is another's");
    admin.says(0, &["person", "deactivate", "night-robot"]).await?;
    robot.says(3, &["whoami"]).await?;
    let unknown = admin.says(4, &["person", "deactivate", "night-robt"]).await?;
    ensure!(unknown.stderr.contains("Did you mean `night-robot`?"), "{unknown:#?}");

    // Wrong roles, wrong names, wrong arguments.
    operator.says(3, &["tenant", "create", "Mine"]).await?;
    tenant.says(4, &["device", "show", "gw-1"]).await?;
    tenant.says(4, &["device", "show", "018f0000-0000-7000-8000-000000000001"]).await?;
    tenant
        .says(2, &["grant", "create", "--device", "gw-1", "--for", "15", "--scope", "metrics:read", "--reason", "r"])
        .await?;
    tenant.says(2, &["grant", "show", "gw-1"]).await?;
    let selector = ["grant", "create", "--label", "a=b", "--scope", "metrics:read", "--reason", "r"];
    tenant.says(2, &[selector.as_slice(), &["--for", "25h"]].concat()).await?;
    tenant.says(0, &[selector.as_slice(), &["--for", "23h"]].concat()).await?;

    devices(&fleet, &tenant, &operator).await?;
    pages(&tenant).await?;

    fleet.server.stop()?;
    let unreachable = operator.says(7, &["devices"]).await?;
    ensure!(unreachable.stderr.contains("cannot be reached"), "{unreachable:#?}");
    Ok(())
}

async fn signing_in(fleet: &Fleet, operator: &Person) -> anyhow::Result<()> {
    let without = |arguments: &[&str]| -> anyhow::Result<tokio::process::Command> {
        let mut command = operator.0.command(arguments)?;
        for name in ["CLOUDLINK_API", "CLOUDLINK_CA", "CLOUDLINK_TOKEN"] {
            command.env_remove(name);
        }
        Ok(command)
    };
    let (url, ca) = (fleet.server.api_url(), fleet.server.ca_file());
    let ca = ca.to_str().context("the path is text")?;
    let wrong = fleet.path("wrong.token");
    std::fs::write(&wrong, "clk_wrong")?;
    let right = fleet.path("right.token");
    // One of its own, for signing out ends it.
    let token = text(&fleet.operator.post("/tokens", &json!({ "name": "laptop" })).await?, "token")?;
    std::fs::write(&right, &token)?;
    let login = |file: &std::path::Path, ca: &[&str]| {
        let file = file.to_str().context("the path is text")?;
        without(&[&["login", "--api", &url, "--token-file", file], ca].concat())
    };

    ensure!(login(&wrong, &["--ca", ca])?.output().await?.status.code() == Some(3), "a wrong token signs in");
    let output = login(&right, &[])?.output().await?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && message.contains("--ca"), "an unknown authority is trusted: {message}");
    ensure!(without(&["whoami"])?.output().await?.status.code() == Some(3), "a failed sign-in was stored");

    ensure!(login(&right, &["--ca", ca])?.output().await?.status.success(), "a right token does not sign in");
    let profile = fleet.path("cli").join("profiles/default.toml");
    ensure!(std::fs::metadata(&profile)?.permissions().mode() & 0o777 == 0o600, "others can read the profile");
    let whoami = without(&["whoami"])?.output().await?;
    ensure!(String::from_utf8_lossy(&whoami.stdout).contains("operator"), "{whoami:?}");
    ensure!(without(&["logout"])?.output().await?.status.success(), "cannot sign out");
    ensure!(!profile.exists(), "the profile is still there");
    let over = fleet.operator.with_token(&token).call(Method::GET, "/me", &[], None).await?;
    ensure!(over.problem() == "unauthenticated", "the token outlives its sign-out: {over:?}");
    Ok(())
}

async fn devices(fleet: &Fleet, tenant: &Person, operator: &Person) -> anyhow::Result<()> {
    let mut device = fleet.device("gw-1").await?;
    tenant.says(0, &["device", "set", "gw-1", "--label", "site=north", "--label", "floor=2"]).await?;
    tenant.says(0, &["device", "set", "gw-1", "--remove-label", "floor", "--name", "gw-one"]).await?;
    let listed = tenant.json(&["devices", "--label", "site=north", "--linked"]).await?;
    ensure!(listed[0]["name"] == "gw-one" && listed[0]["labels"] == json!({"site": "north"}), "{listed}");
    ensure!(tenant.json(&["devices", "--label", "floor=2"]).await? == json!([]), "the label is still there");
    let shown = tenant.says(0, &["device", "show", "gw-one"]).await?.stdout;
    ensure!(shown.contains("live, websocket") && shown.contains("site=north"), "{shown}");
    wait_for("a regular report", LINK_LIMIT, async || tenant.says(0, &["metrics", "gw-one", "--latest"]).await).await?;

    tenant.says(3, &["reboot", "gw-one", "--reason", "customers grant, they do not command"]).await?;

    // Another customer may have a device of the same name: the operator must say which.
    let (other, _) = fleet.other_tenant("neighbour").await?;
    let token = text(&other.post("/enrollment-tokens", &json!({ "device_name": "gw-one" })).await?, "token")?;
    fleet.new_machine("namesake")?.enroll(&token)?;
    let ambiguous = operator.says(2, &["device", "show", "gw-one"]).await?;
    ensure!(ambiguous.stderr.contains(&device.id), "{ambiguous:#?}");
    operator.says(0, &["device", "show", &device.id]).await?;

    tenant.says(0, &["device", "revoke", "gw-one"]).await?;
    ensure!(tenant.json(&["device", "show", "gw-one"]).await?["state"] == "revoked", "it is not revoked");
    device.machine.stop()
}

async fn pages(tenant: &Person) -> anyhow::Result<()> {
    const COUNT: usize = 205;
    let before = tenant.json(&["enroll-token", "list"]).await?.as_array().map_or(0, Vec::len);
    for n in before..COUNT {
        tenant.says(0, &["enroll-token", "create", &format!("new-{n}"), "--expires-in", "1h"]).await?;
    }
    let all = tenant.json(&["enroll-token", "list"]).await?;
    ensure!(all.as_array().map(Vec::len) == Some(COUNT), "{all}");
    let some = tenant.says(0, &["enroll-token", "list", "--limit", "203", "--json"]).await?;
    ensure!(serde_json::from_str::<Vec<Value>>(&some.stdout)?.len() == 203, "{some:#?}");
    ensure!(some.stderr.contains("more than these 203"), "{some:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_verifies_offline_and_tampering_shows() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    let tenant = Person::new(&fleet, &fleet.tenant);
    let admin = Person::new(&fleet, &fleet.admin);
    for n in 0..5 {
        tenant.says(0, &["enroll-token", "create", &format!("gw-\u{1f4e1}-{n}")]).await?;
    }
    let listed = tenant.says(0, &["audit", "--limit", "3"]).await?;
    ensure!(listed.stdout.contains("customer user") && listed.stderr.contains("more than these 3"), "{listed:#?}");

    let file = fleet.path("audit.ndjson");
    let path = file.to_str().context("the path is text")?;
    tenant.says(0, &["audit", "export", "-o", path]).await?;
    ensure!(
        std::fs::read_to_string(&file)? == tenant.says(0, &["audit", "export"]).await?.stdout,
        "two exports differ"
    );
    admin.says(0, &["audit", "export", "--tenant", "customer", "-o", path]).await?;
    admin.says(0, &["audit", "export"]).await?;
    fleet.server.stop()?;

    let verified = tenant.json(&["audit", "verify", path]).await?;
    let head = text(&verified, "head")?;
    let whole = std::fs::read_to_string(&file)?;
    let lines: Vec<&str> = whole.lines().collect();
    ensure!(verified["entries"] == lines.len() && verified["tenant_id"] == fleet.tenant_id.as_str(), "{verified}");
    tenant.says(0, &["audit", "verify", path, "--head", &head]).await?;

    let edited = whole.replacen("gw-\u{1f4e1}-1", "gw-\u{1f4e1}-9", 1);
    ensure!(edited != whole, "the device's name is in the log");
    let cases = [
        ("edited", edited, vec![]),
        ("without its beginning", lines[1..].join("\n"), vec![]),
        ("without one entry", [&lines[..1], &lines[2..]].concat().join("\n"), vec![]),
        ("in another order", [&[lines[1], lines[0]], &lines[2..]].concat().join("\n"), vec![]),
        ("without its end", lines[..lines.len() - 1].join("\n"), vec!["--head", &head]),
    ];
    for (what, text, more) in cases {
        std::fs::write(&file, text)?;
        let said = tenant.says(1, &[["audit", "verify", path].as_slice(), &more].concat()).await.context(what)?;
        ensure!(said.stdout.is_empty() && said.stderr.contains("does not verify"), "{what}: {said:#?}");
    }
    Ok(())
}
