//! Asking to be let in, and answering, from the command line: what comes of it is a grant, or nothing.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::{Api, text};
use cloudlink_tests::cli::{Cli, Said};
use cloudlink_tests::fleet::Fleet;
use cloudlink_tests::machine::SERVICE;
use cloudlink_tests::poll::wait_for;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// For a request to appear, and for whoever waits for it to hear of its end.
const LIMIT: Duration = Duration::from_secs(15);

/// Somebody's command line, with what it must give.
struct Person(Cli);

impl Person {
    fn new(fleet: &Fleet, api: &Api) -> Self {
        Self(fleet.cli(api.token()))
    }

    /// One more person of the fleet's tenant.
    async fn second(fleet: &Fleet) -> anyhow::Result<Self> {
        let body = json!({"name": "second user", "role": "tenant", "tenant_id": fleet.tenant_id});
        let id = text(&fleet.admin.post("/people", &body).await?, "id")?;
        let token = fleet.admin.post("/tokens", &json!({"name": "test", "person_id": id})).await?;
        Ok(Self(fleet.cli(&text(&token, "token")?)))
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

    /// Asks for something and waits for the answer, in the background.
    fn waits(&self, arguments: &[&str]) -> anyhow::Result<JoinHandle<std::io::Result<Output>>> {
        let asking = self.0.command(&[&["access", "request"], arguments, &["--wait"]].concat())?;
        let mut asking = asking;
        asking.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(tokio::spawn(async move { asking.output().await }))
    }

    /// The newest request that is open.
    async fn open_request(&self) -> anyhow::Result<String> {
        wait_for("an open request", LIMIT, async || {
            let open = self.json(&["access", "list", "--state", "open"]).await?;
            text(&open[0], "id")
        })
        .await
    }
}

async fn ended(asking: JoinHandle<std::io::Result<Output>>) -> anyhow::Result<Said> {
    let output = tokio::time::timeout(LIMIT, asking).await.context("still waits for an answer")???;
    Ok(Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_waits_for_the_answer_and_may_do_what_was_approved() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let (operator, tenant) = (Person::new(&fleet, &fleet.operator), Person::new(&fleet, &fleet.tenant));
    let ask = [
        "--device",
        "gw-1",
        "--scope",
        "service:restart",
        "--scope",
        "device:reboot",
        "--for",
        "2h",
        "--reason",
        "stuck",
    ];
    let restart = ["restart", "gw-1", SERVICE, "--reason", "stuck"];
    operator.says(5, &restart).await?;

    // Approved, but less of it.
    let asking = operator.waits(&[&ask[..], &["--answer-within", "30m", "--ticket", "4711"]].concat())?;
    let id = tenant.open_request().await?;
    let shown = tenant.says(0, &["access", "show", &id]).await?.stdout;
    for part in ["open", "answer by", "(in 30 min)", "access until", "(in 2 h)", "UTC", "gw-1", "4711", "device:reboot"]
    {
        ensure!(shown.contains(part), "{part:?} is not in {shown}");
    }
    tenant.says(2, &["access", "approve", &id, "--scope", "device:shutdown"]).await?;
    let approve = ["access", "approve", &id, "--scope", "service:restart", "--for", "10m", "--comment", "go ahead"];
    let approved = tenant.json(&approve).await?;
    let said = ended(asking).await?;
    ensure!(said.code == Some(0) && said.stdout.contains("go ahead"), "{said:#?}");
    ensure!(said.stderr.contains("is open") && said.stderr.contains("in 30 min"), "nothing of the progress: {said:#?}");
    let grant = operator.json(&["grant", "show", &text(&approved, "grant_id")?]).await?;
    ensure!(grant["scopes"] == json!(["service:restart"]) && grant["request_id"] == json!(id), "{grant}");
    ensure!(grant["operator_ids"] == json!([fleet.operator_id]), "{grant}");
    operator.says(0, &restart).await?;
    operator.says(5, &["reboot", "gw-1", "--reason", "stuck"]).await?;
    tenant.says(8, &["access", "deny", &id]).await?;
    tenant.says(0, &["grant", "revoke", &text(&approved, "grant_id")?]).await?;
    operator.says(5, &restart).await?;

    // Denied.
    let asking = operator.waits(&ask)?;
    let id = tenant.open_request().await?;
    tenant.says(0, &["access", "deny", &id, "--comment", "after six"]).await?;
    let said = ended(asking).await?;
    ensure!(said.code == Some(6) && said.stdout.contains("after six"), "{said:#?}");
    tenant.says(8, &["access", "approve", &id]).await?;

    // Taken back, by whoever asked and nobody else.
    let asking = operator.waits(&[&ask[..], &["--json"]].concat())?;
    let id = operator.open_request().await?;
    tenant.says(4, &["access", "withdraw", &id]).await?;
    operator.says(0, &["access", "withdraw", &id]).await?;
    let said = ended(asking).await?;
    let request: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:#?}"))?;
    ensure!(said.code == Some(6) && request["state"] == "withdrawn", "{said:#?}");

    // Not answered in time.
    let said = ended(operator.waits(&[&ask[..], &["--answer-within", "2s"]].concat())?).await?;
    ensure!(said.code == Some(6) && said.stdout.contains("expired"), "{said:#?}");
    let expired = tenant.json(&["access", "list", "--state", "expired"]).await?;
    tenant.says(8, &["access", "approve", &text(&expired[0], "id")?]).await?;
    wait_for("the audit log to tell of it", LIMIT, async || {
        let audit = tenant.says(0, &["audit"]).await?.stdout;
        ensure!(audit.contains("access_request.expired"), "{audit}");
        Ok(())
    })
    .await?;

    // Nobody of the vendor's answers.
    let id = text(&operator.json(&[&["access", "request"], &ask[..]].concat()).await?, "id")?;
    let admin = Person::new(&fleet, &fleet.admin);
    for (who, verb) in
        [(&operator, "approve"), (&operator, "deny"), (&admin, "approve"), (&admin, "deny"), (&admin, "withdraw")]
    {
        who.says(3, &["access", verb, &id]).await?;
    }
    operator.says(3, &["access", "policy", "create", "mine", "--scope", "device:reboot", "--max", "1h"]).await?;
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_answers_for_the_customer_and_can_be_taken_back() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let (operator, tenant) = (Person::new(&fleet, &fleet.operator), Person::new(&fleet, &fleet.tenant));
    let create =
        ["access", "policy", "create", "restarts", "--scope", "service:restart", "--device", "gw-1", "--max", "1h"];
    tenant.says(2, &[&create[..], &["--time-zone", "Europe/Nowhere"]].concat()).await?;
    let policy = text(&tenant.json(&create).await?, "id")?;
    // At no time: an hour that is over in every zone by the time it could begin.
    let never = ["--days", "mon-sun", "--hours", "00:00-00:01", "--time-zone", "Europe/Berlin"];
    let create = ["access", "policy", "create", "never", "--scope", "device:reboot", "--max", "1h"];
    tenant.says(0, &[&create[..], &never].concat()).await?;

    let ask = ["access", "request", "--device", "gw-1", "--reason", "stuck", "--wait", "--scope"];
    let asked = operator.says(0, &[&ask[..], &["service:restart", "--for", "30m"]].concat()).await?;
    ensure!(asked.stdout.contains(&format!("policy {policy}")), "{asked:#?}");
    operator.says(0, &["restart", "gw-1", SERVICE, "--reason", "stuck"]).await?;
    for (scope, span) in [("service:restart", "61m"), ("device:reboot", "30m")] {
        let open = operator
            .json(&["access", "request", "--device", "gw-1", "--reason", "r", "--scope", scope, "--for", span])
            .await?;
        ensure!(open["state"] == "open", "{open}");
    }
    let listed = tenant.says(0, &["access", "policy", "list"]).await?.stdout;
    ensure!(listed.contains("restarts") && listed.contains("00:00-00:01 Europe/Berlin"), "{listed}");
    tenant.says(0, &["access", "policy", "revoke", &policy]).await?;
    operator.says(0, &["restart", "gw-1", SERVICE, "--reason", "still in"]).await?;
    tenant.says(0, &["access", "policy", "revoke", &policy, "--revoke-grants"]).await?;
    operator.says(5, &["restart", "gw-1", SERVICE, "--reason", "out"]).await?;
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn where_two_must_approve_no_one_person_lets_anybody_in() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let (operator, tenant) = (Person::new(&fleet, &fleet.operator), Person::new(&fleet, &fleet.tenant));
    tenant.says(8, &["tenant", "set", "--approvals", "2"]).await?;
    let second = Person::second(&fleet).await?;
    tenant.says(0, &["tenant", "set", "--approvals", "2"]).await?;
    let admin = Person::new(&fleet, &fleet.admin);
    admin.says(3, &["tenant", "set", "customer", "--approvals", "1"]).await?;

    // A request.
    let restart = ["restart", "gw-1", SERVICE, "--reason", "stuck"];
    let asking =
        operator.waits(&["--device", "gw-1", "--scope", "service:restart", "--for", "1h", "--reason", "stuck"])?;
    let id = tenant.open_request().await?;
    for _ in 0..2 {
        let noted = tenant.says(0, &["access", "approve", &id]).await?;
        ensure!(noted.stderr.contains("Somebody else") && noted.stdout.contains("1 of 2"), "{noted:#?}");
    }
    operator.says(5, &restart).await?;
    second.says(0, &["access", "approve", &id]).await?;
    let said = ended(asking).await?;
    ensure!(said.code == Some(0) && said.stderr.contains("0 of 2 approvals"), "{said:#?}");
    operator.says(0, &restart).await?;

    // A grant of one's own, and a later end of it.
    let create = ["grant", "create", "--device", "gw-1", "--scope", "device:reboot", "--for", "1h", "--reason", "r"];
    let proposed = tenant.says(0, &create).await?;
    ensure!(proposed.stderr.contains("Nobody is let in yet"), "{proposed:#?}");
    operator.says(5, &["reboot", "gw-1", "--reason", "r"]).await?;
    let id = second.open_request().await?;
    let approved = second.json(&["access", "approve", &id]).await?;
    let grant = text(&approved, "grant_id")?;
    let before = operator.json(&["grant", "show", &grant]).await?;
    tenant.says(0, &["grant", "extend", &grant, "--by", "10m"]).await?;
    ensure!(operator.json(&["grant", "show", &grant]).await? == before, "one person alone has extended it");
    second.says(0, &["access", "approve", &second.open_request().await?]).await?;
    let after = operator.json(&["grant", "show", &grant]).await?;
    ensure!(after["ends_at"].as_str() > before["ends_at"].as_str(), "{after}");

    // A policy.
    let policy = ["access", "policy", "create", "reboots", "--scope", "device:reboot", "--max", "1h"];
    let policy = text(&tenant.json(&policy).await?, "id")?;
    let ask = ["access", "request", "--device", "gw-1", "--reason", "r", "--scope", "device:reboot", "--for", "30m"];
    ensure!(operator.json(&ask).await?["state"] == "open");
    tenant.says(8, &["access", "policy", "approve", &policy]).await?;
    second.says(0, &["access", "policy", "approve", &policy]).await?;
    ensure!(operator.json(&ask).await?["state"] == "approved");

    // That one is enough again.
    let proposed = tenant.says(0, &["tenant", "set", "--approvals", "1"]).await?;
    ensure!(proposed.stderr.contains("Nothing has changed yet"), "{proposed:#?}");
    tenant.says(0, &["tenant", "set", "--approvals", "1"]).await?;
    let shown = tenant.json(&["tenant", "show"]).await?;
    ensure!(shown["approvals_needed"] == 2, "{shown}");
    let agreed = second.json(&["tenant", "set", "--approvals", "1"]).await?;
    ensure!(agreed["approvals_needed"] == 1, "{agreed}");
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_can_be_signed() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let (operator, tenant) = (Person::new(&fleet, &fleet.operator), Person::new(&fleet, &fleet.tenant));
    let key = tempfile::tempdir()?;
    let key = key.path().join("key.pem");
    let key = key.to_str().context("a path of UTF-8")?;
    tenant.says(0, &["key", "create", key]).await?;
    tenant.says(0, &["key", "enroll", key, "--name", "office"]).await?;
    tenant.says(0, &["key", "require", "yes"]).await?;

    let ask = [
        "access",
        "request",
        "--device",
        "gw-1",
        "--scope",
        "service:restart",
        "--scope",
        "device:reboot",
        "--for",
        "1h",
        "--reason",
        "r",
    ];
    let id = text(&operator.json(&ask).await?, "id")?;
    let refused = tenant.says(2, &["access", "approve", &id]).await?;
    ensure!(refused.stderr.contains("signed"), "{refused:#?}");
    let approved = tenant.json(&["access", "approve", &id, "--scope", "service:restart", "--sign-with", key]).await?;
    let grant = text(&approved, "grant_id")?;
    let verified = operator.json(&["grant", "verify", &grant, "--key", key]).await?;
    ensure!(verified["request_id"] == json!(id) && verified["scopes"] == json!(["service:restart"]), "{verified}");
    device.machine.stop()
}

/// From a label to a group, to a grant, to a command; and who is not labelled so any more is not covered any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_grant_of_a_group_is_for_the_devices_that_are_labelled_as_it_said() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let (operator, tenant) = (Person::new(&fleet, &fleet.operator), Person::new(&fleet, &fleet.tenant));
    let restart = ["restart", "gw-1", SERVICE, "--reason", "stuck"];

    tenant.says(0, &["device", "set", "gw-1", "--label", "site=north"]).await?;
    tenant.says(0, &["group", "create", "night", "-l", "site in (north,south),env!=test"]).await?;
    let shown = tenant.says(0, &["group", "show", "night"]).await?.stdout;
    ensure!(shown.contains("env!=test,site in (north,south)") && shown.contains("gw-1"), "{shown}");
    ensure!(tenant.json(&["devices", "-l", "@night,!retired"]).await?[0]["name"] == "gw-1", "it is in no group");
    ensure!(tenant.json(&["devices", "-l", "@night,site!=north"]).await? == json!([]), "it is somewhere else");
    // It is the customer's: the vendor has no such group.
    let unknown = operator.says(2, &["devices", "-l", "@night"]).await?.stderr;
    ensure!(unknown.contains("no group"), "{unknown}");
    operator.says(5, &restart).await?;

    let create = |selector| {
        let scope = ["--scope", "service:restart", "--for", "15m", "--reason", "r"];
        [&["grant", "create", "-l", selector][..], &scope].concat()
    };
    for (selector, says) in
        [("", "empty"), ("site=", "at character 6"), ("@nite", "no group"), ("site,!site", "no device")]
    {
        let refused = tenant.says(2, &create(selector)).await?.stderr;
        ensure!(refused.contains(says), "{selector:?}: {refused}");
    }
    let grant = tenant.json(&create("@night,!retired")).await?;
    ensure!(grant["selector_text"] == "env!=test,!retired,site in (north,south)", "{grant}");
    operator.says(0, &restart).await?;
    ensure!(device.machine.restarts() == 1, "restarted {} times", device.machine.restarts());

    // Another meaning of the group changes nothing of what was granted.
    tenant.says(0, &["group", "set", "night", "-l", "site"]).await?;
    let shown = operator.says(0, &["grant", "show", &text(&grant, "id")?]).await?.stdout;
    ensure!(shown.contains("all with env!=test,!retired,site in (north,south)"), "{shown}");
    for (labels, code) in [
        (&["--label", "env=test"][..], 5),
        (&["--label", "env=live"], 0),
        (&["--label", "retired=yes"], 5),
        (&["--remove-label", "retired", "--label", "site=west"], 5),
        (&["--label", "site=south"], 0),
        (&["--remove-label", "site"], 5),
    ] {
        tenant.says(0, &[&["device", "set", "gw-1"], labels].concat()).await?;
        let said = operator.0.run(&restart).await?;
        ensure!(said.code == Some(code), "{labels:?}: {said:#?}");
    }
    ensure!(device.machine.restarts() == 3, "restarted {} times", device.machine.restarts());

    // Whoever asks for access by a selector asks for the devices of now.
    let ask = ["access", "request", "-l", "env=live", "--scope", "service:restart", "--for", "2h", "--reason", "stuck"];
    let request = operator.json(&ask).await?;
    ensure!(request["device_ids"] == json!([device.id]) && request["selector"].is_null(), "{request}");
    let none = ["access", "request", "-l", "env=lab", "--scope", "service:restart", "--for", "2h", "--reason", "stuck"];
    operator.says(4, &none).await?;

    // What is told of the grant when it is over says what it was for.
    tenant.says(0, &["grant", "revoke", &text(&grant, "id")?]).await?;
    let receipt =
        wait_for("the receipt", LIMIT, async || tenant.says(0, &["receipt", "show", &text(&grant, "id")?]).await)
            .await?;
    ensure!(receipt.stdout.contains("!retired,site in (north,south)"), "{receipt:#?}");
    tenant.says(0, &["group", "delete", "night"]).await?;
    tenant.says(4, &["group", "show", "night"]).await?;
    let audit = tenant.says(0, &["audit"]).await?.stdout;
    for action in ["group.created", "group.updated", "group.deleted"] {
        ensure!(audit.contains(action), "{action} is not in {audit}");
    }
    device.machine.stop()
}
