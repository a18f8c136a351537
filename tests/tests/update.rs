//! Updates of the operating system and of the agent: they succeed only when the device is back with the new version, go back by
//! themselves otherwise, and whatever the server of the artifact does, the device stays as it was.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::api::text;
use cloudlink_tests::artifact::ArtifactServer;
use cloudlink_tests::clock::now;
use cloudlink_tests::fleet::{COMMAND_LIMIT, Device, Fleet, LINK_LIMIT};
use cloudlink_tests::load::fleet::new_authority;
use cloudlink_tests::machine::Machine;
use cloudlink_tests::middlebox::{Middlebox, Passes};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::program::binary;
use cloudlink_tests::server::Settings;
use cloudlink_tests::{port, traffic};
use serde_json::{Value, json};

/// What of an artifact makes the installer fail.
const UNFIT: &str = "unfit";

/// `$1`: the machine's directory, `$2`: the artifact. Its first line says which version it is.
const INSTALL: &str = r#"
echo "$2" >> "$1/installed"
version=$(head -n 1 "$2")
[ "$version" != unfit ] || { echo "it does not fit" >&2; exit 3; }
echo "$version" > "$1/os-next"
"#;
/// Boots what was installed.
const ACTIVATE: &str = r#"
cp "$1/os-next" "$1/os-version"
exec "$1/power-cut" "$1" rebooting
"#;
/// `$2`: the version of before.
const ROLLBACK: &str = r#"
echo "$2" >> "$1/rollbacks"
rm -f "$1/os-next"
[ "$(cat "$1/os-version")" != "$2" ] || exit 0
echo "$2" > "$1/os-version"
exec "$1/power-cut" "$1" rebooting
"#;
const COMMIT: &str = r#"echo "$2" >> "$1/commits""#;

/// `$1`: the machine's directory, `$2`: the artifact. A program that runs is not written to.
const INSTALL_AGENT: &str = r#"
cp "$1/agent" "$1/agent-before"
cp "$2" "$1/agent-next"
chmod 755 "$1/agent-next"
mv "$1/agent-next" "$1/agent"
"#;
const ACTIVATE_AGENT: &str = r#"exec "$1/power-cut" "$1" rebooting"#;
const ROLLBACK_AGENT: &str = r#"
echo "$2" >> "$1/rollbacks"
[ -e "$1/agent-before" ] || exit 0
mv "$1/agent-before" "$1/agent"
exec "$1/power-cut" "$1" rebooting
"#;

/// A device whose operating system is a file that says its version.
async fn device(fleet: &Fleet) -> anyhow::Result<Device> {
    let machine = fleet.new_machine("gateway")?;
    set_up(fleet, &machine, "")?;
    begin(fleet, machine).await
}

/// Puts the programs there, and into the configuration: with these lines more under `[update]`.
fn set_up(fleet: &Fleet, machine: &Machine, more: &str) -> anyhow::Result<()> {
    let directory = fleet.path("gateway");
    for (name, program) in [
        ("install", INSTALL),
        ("activate", ACTIVATE),
        ("rollback", ROLLBACK),
        ("commit", COMMIT),
        ("install-agent", INSTALL_AGENT),
        ("activate-agent", ACTIVATE_AGENT),
        ("rollback-agent", ROLLBACK_AGENT),
    ] {
        fs::write(directory.join(name), program)?;
    }
    fs::write(directory.join("os-version"), "1.0\n")?;
    let at = directory.display();
    machine.configure(&format!(
        r#"
[update]
hosts = ["127.0.0.1"]
plain_http = true
bytes_max = 1000000000
bytes_per_second_min = 1000
retries = 1
{more}

[update.os]
install_argv = ["/bin/sh", "{at}/install", "{at}", "{{file}}"]
activate_argv = ["/bin/sh", "{at}/activate", "{at}"]
commit_argv = ["/bin/sh", "{at}/commit", "{at}", "{{version}}"]
rollback_argv = ["/bin/sh", "{at}/rollback", "{at}", "{{version}}"]
version_argv = ["/bin/cat", "{at}/os-version"]

[update.agent]
install_argv = ["/bin/sh", "{at}/install-agent", "{at}", "{{file}}"]
activate_argv = ["/bin/sh", "{at}/activate-agent", "{at}"]
rollback_argv = ["/bin/sh", "{at}/rollback-agent", "{at}", "{{version}}"]
"#
    ))
}

async fn begin(fleet: &Fleet, mut machine: Machine) -> anyhow::Result<Device> {
    machine.enroll(&fleet.enrollment_token("gateway").await?)?;
    machine.power_on()?;
    let listed = wait_for("the device to be listed", LINK_LIMIT, async || {
        text(&fleet.tenant.get("/devices").await?["items"][0], "id")
    });
    let id = listed.await?;
    fleet.wait_for_link(&id, "live").await?;
    fleet.grant(&id, &["os:update", "agent:update"]).await?;
    Ok(Device { id, name: "gateway".to_owned(), machine })
}

/// Of the version that its first line says.
fn artifact(version: &str) -> Vec<u8> {
    let mut content = format!("{version}\n").into_bytes();
    content.extend((0_u32..75_000).flat_map(u32::to_be_bytes));
    content
}

fn said(fleet: &Fleet, name: &str) -> String {
    fs::read_to_string(fleet.path("gateway").join(name)).unwrap_or_default()
}

/// Has another configuration, and another start.
async fn reconfigure(fleet: &Fleet, device: &mut Device, old: &str, new: &str) -> anyhow::Result<()> {
    device.machine.stop()?;
    let text = fs::read_to_string(device.machine.config_file())?;
    ensure!(text.contains(old), "{text}");
    fs::write(device.machine.config_file(), text.replace(old, new))?;
    fleet.wait_for_link(&device.id, "closed").await?;
    device.machine.power_on()?;
    fleet.wait_for_link(&device.id, "live").await?;
    Ok(())
}

/// Waits until one of the programs has written there.
async fn is_written(fleet: &Fleet, name: &str) -> anyhow::Result<()> {
    wait_for(name, COMMAND_LIMIT, async || {
        ensure!(!said(fleet, name).is_empty());
        Ok(())
    })
    .await
}

/// What an update has left of artifacts on the device.
fn left_over(device: &Device) -> anyhow::Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(device.machine.state_dir().join("update")) else { return Ok(Vec::new()) };
    let names: Result<Vec<_>, _> = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    let names: std::io::Result<Vec<String>> = names;
    Ok(names?.into_iter().filter(|name| !name.ends_with(".json")).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_succeeds_when_the_device_is_back_with_the_new_version() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let device = device(&fleet).await?;
    let server = ArtifactServer::start(artifact("2.0")).await?;
    let asked = server.arguments("/breaks", "2.0");
    let boot_id = device.machine.boot_id()?;

    // As an operator would: the command waits for the end, and says what it is.
    let size = asked["size"].to_string();
    let of = |key: &str| asked[key].as_str().unwrap_or_default().to_owned();
    let done = fleet
        .cli(fleet.operator.token())
        .run(&[
            "--json",
            "update-os",
            &device.name,
            "--url",
            &of("url"),
            "--sha256",
            &of("sha256"),
            "--size",
            &size,
            "--to-version",
            "2.0",
            "--reason",
            "a test",
        ])
        .await?;
    ensure!(done.code == Some(0), "{done:?}");
    let done: Value = serde_json::from_str(&done.stdout)?;
    ensure!(done["state"] == "succeeded" && done["arguments"] == asked, "{done}");
    let data = &done["data"];
    ensure!((&data["version_before"], &data["version_after"]) == (&json!("1.0"), &json!("2.0")), "{done}");
    ensure!(device.machine.boot_id()? != boot_id && device.machine.reboots() == 1);
    ensure!((server.requests(), server.resumed()) == (2, 1), "it goes on where it broke off");
    ensure!(said(&fleet, "installed").lines().count() == 1 && said(&fleet, "commits") == "2.0\n");
    ensure!(said(&fleet, "rollbacks").is_empty() && left_over(&device)?.is_empty());

    // The same again has nothing to do.
    let id = fleet.command(&device.id, "os.update", &server.arguments("/", "2.0")).await?;
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && done["data"]["unchanged"] == true, "{done}");
    ensure!(device.machine.reboots() == 1 && server.requests() == 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_does_not_come_up_as_promised_is_rolled_back() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let device = device(&fleet).await?;
    // (what is installed, the reason, reboots)
    for (content, reason, reboots) in [(UNFIT, "installer_failed", 0), ("1.9-broken", "other_version", 2)] {
        let server = ArtifactServer::start(artifact(content)).await?;
        let id = fleet.command(&device.id, "os.update", &server.arguments("/", "2.0")).await?;
        let done = fleet.finished(&id).await?;
        ensure!((&done["state"], &done["code"]) == (&json!("failed"), &json!("rolled_back")), "{done}");
        let data = &done["data"];
        ensure!(data["reason"] == reason && data["rolled_back"] == true && data["version_after"] == "1.0", "{done}");
        ensure!(said(&fleet, "os-version") == "1.0\n" && said(&fleet, "commits").is_empty());
        ensure!(device.machine.reboots() == reboots, "{} reboots", device.machine.reboots());
        ensure!(left_over(&device)?.is_empty());
    }
    ensure!(said(&fleet, "installed").lines().count() == 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_crashes_goes_on_fetching_and_installs_once() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = device(&fleet).await?;
    let server = ArtifactServer::start(artifact("2.0")).await?;
    let id = fleet.command(&device.id, "os.update", &server.arguments("/gate", "2.0")).await?;
    let kept = device.machine.state_dir().join("update/os.artifact");
    wait_for("half of the artifact", COMMAND_LIMIT, async || {
        let have = fs::metadata(&kept)?.len();
        ensure!(have >= server.content.len() as u64 / 4, "{have} bytes");
        Ok(())
    })
    .await?;
    let shown = fleet.reaches(&id, "running").await?;
    ensure!(shown["percent"].is_null() || shown["percent"].as_i64() <= Some(80), "{shown}");

    device.machine.kill_agent()?;
    server.open_gate();
    device.machine.power_on()?;
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && done["data"]["version_after"] == "2.0", "{done}");
    ensure!(server.resumed() == 1, "it goes on where it was");
    ensure!(said(&fleet, "installed").lines().count() == 1 && left_over(&device)?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_agent_takes_over_and_one_of_another_version_does_not_stay() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = device(&fleet).await?;
    let own = fleet.path("gateway").join("agent");
    fs::copy(binary("cloudlink-agent")?, &own)?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755))?;
    device.machine.stop()?;
    device.machine.power_on_with(&own)?;
    fleet.wait_for_link(&device.id, "live").await?;
    let (before, newer) = newer_agent()?;
    let server = ArtifactServer::start(newer.clone()).await?;

    // It is whole, and it is another version than was promised.
    let id = fleet.command(&device.id, "agent.update", &server.arguments("/", "9.9.9")).await?;
    let done = fleet.finished(&id).await?;
    ensure!((&done["state"], &done["code"]) == (&json!("failed"), &json!("rolled_back")), "{done}");
    ensure!(done["data"]["reason"] == "other_version" && done["data"]["version_after"] == before, "{done}");
    ensure!(fs::read(&own)? != newer && device.machine.reboots() == 2);

    let version = next_version(&before)?;
    let id = fleet.command(&device.id, "agent.update", &server.arguments("/", &version)).await?;
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && done["data"]["version_after"] == version, "{done}");
    let shown = fleet.wait_for_link(&device.id, "live").await?;
    ensure!(shown.to_string().contains(&format!("cloudlink-agent/{version}")), "{shown}");
    ensure!(fs::read(&own)? == newer && left_over(&device)?.is_empty());
    Ok(())
}

/// The agent, and the same program under the next version: the version is one text in it, of the same length.
fn newer_agent() -> anyhow::Result<(String, Vec<u8>)> {
    let before = env!("CARGO_PKG_VERSION").to_owned();
    let (old, new) = (format!("cloudlink-agent/{before}"), format!("cloudlink-agent/{}", next_version(&before)?));
    ensure!(old.len() == new.len(), "{new}");
    let mut program = fs::read(binary("cloudlink-agent")?)?;
    let places: Vec<usize> =
        program.windows(old.len()).enumerate().filter(|(_, text)| *text == old.as_bytes()).map(|(at, _)| at).collect();
    ensure!(!places.is_empty(), "the agent does not say its version");
    for at in places {
        program[at..at + new.len()].copy_from_slice(new.as_bytes());
    }
    Ok((before, program))
}

fn next_version(version: &str) -> anyhow::Result<String> {
    let (rest, patch) = version.rsplit_once('.').context("a version")?;
    Ok(format!("{rest}.{}", patch.parse::<u32>()? + 1))
}

/// (how the server of the artifact behaves, the final state, the code)
const ATTACKS: [(&str, &str, &str); 16] = [
    ("/wrong", "failed", "digest_mismatch"),
    ("/truncated", "failed", "truncated"),
    ("/short", "failed", "size_mismatch"),
    ("/long", "failed", "size_mismatch"),
    ("/endless", "failed", "size_mismatch"),
    ("/endless-head", "failed", "unreachable"),
    ("/other-part", "failed", "size_mismatch"),
    ("/slow", "failed", "too_slow"),
    ("/loop", "failed", "too_many_redirects"),
    ("/to-file", "failed", "redirect_refused"),
    ("/to-other-host", "failed", "redirect_refused"),
    ("/to-user", "failed", "redirect_refused"),
    ("/missing", "failed", "http_status"),
    ("/../../../../etc/cron.d/evil", "failed", "digest_mismatch"),
    ("/%2e%2e%2f%2e%2e%2fagent.toml", "failed", "digest_mismatch"),
    ("/..//os-version?../../../x", "failed", "digest_mismatch"),
];

/// What there is on the device, but for what the agent keeps for itself, and its log.
fn files(fleet: &Fleet) -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let own = [fleet.path("gateway").join("state"), fleet.path("gateway").join("agent.log")];
    let (mut found, mut directories) = (BTreeMap::new(), vec![fleet.path("gateway")]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if own.contains(&path) {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else {
                found.insert(path.clone(), fs::read(path)?);
            }
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_of_artifacts_changes_the_device() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let device = device(&fleet).await?;
    let before = files(&fleet)?;
    let untouched = || -> anyhow::Result<()> {
        ensure!(said(&fleet, "os-version") == "1.0\n" && device.machine.reboots() == 0);
        ensure!(said(&fleet, "installed").is_empty() && said(&fleet, "rollbacks").is_empty());
        ensure!(left_over(&device)?.is_empty(), "{:?}", left_over(&device)?);
        let after = files(&fleet)?;
        ensure!(after == before, "{:?} and {:?}", before.keys(), after.keys());
        Ok(())
    };
    for (path, state, code) in ATTACKS {
        let server = ArtifactServer::start(artifact("2.0")).await?;
        let id = fleet.command(&device.id, "os.update", &server.arguments(path, "2.0")).await?;
        let done = fleet.finished(&id).await?;
        ensure!((&done["state"], &done["code"]) == (&json!(state), &json!(code)), "{path}: {done}");
        ensure!(done["data"]["reason"] == code && done["data"]["installed"] == false, "{path}: {done}");
        ensure!(server.requests() > 0, "{path}: it was asked");
        // What goes into buffers on the way is of the order of megabytes.
        ensure!(server.sent_bytes() < 32 * 1024 * 1024, "{path}: {} bytes were taken", server.sent_bytes());
        untouched().with_context(|| path.to_owned())?;
    }

    // What the device's configuration does not allow is not even asked for.
    let server = ArtifactServer::start(artifact("2.0")).await?;
    let with = |key: &str, value: Value| {
        let mut arguments = server.arguments("/", "2.0");
        arguments[key] = value;
        arguments
    };
    for (arguments, code) in [
        (with("size", json!(2_000_000_000)), "too_large"),
        (with("url", json!(format!("http://localhost:{}/", server.address.port()))), "source_not_allowed"),
        (with("url", json!("https://updates.example.com/os")), "source_not_allowed"),
    ] {
        let id = fleet.command(&device.id, "os.update", &arguments).await?;
        let done = fleet.finished(&id).await?;
        ensure!((&done["state"], &done["code"]) == (&json!("refused"), &json!(code)), "{done}");
        untouched()?;
    }
    ensure!(server.requests() == 0);

    // Neither is anything of what the API knows to be nonsense, or of what no grant allows.
    for (key, value) in [("url", json!("file:///etc/passwd")), ("sha256", json!("00")), ("size", json!(0))] {
        let body = json!({ "kind": "os.update", "arguments": with(key, value), "reason": "a test" });
        ensure!(fleet.operator.command(&device.id, &body).await?.status == 422, "{body}");
    }
    let (other, _) = fleet.other_operator("somebody else").await?;
    let body = json!({ "kind": "os.update", "arguments": server.arguments("/", "2.0"), "reason": "a test" });
    ensure!(other.command(&device.id, &body).await?.problem() == "grant_required");

    // It still takes a good one.
    let id = fleet.command(&device.id, "os.update", &server.arguments("/", "2.0")).await?;
    ensure!(fleet.finished(&id).await?["state"] == "succeeded");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_not_configured_for_it_says_what_is_missing() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let device = fleet.device("gateway").await?;
    fleet.grant(&device.id, &["os:update", "agent:update"]).await?;
    let server = ArtifactServer::start(artifact("2.0")).await?;
    for kind in ["os.update", "agent.update"] {
        let id = fleet.command(&device.id, kind, &server.arguments("/", "2.0")).await?;
        let done = fleet.finished(&id).await?;
        ensure!((&done["state"], &done["code"]) == (&json!("refused"), &json!("not_configured")), "{done}");
        ensure!(done["message"].as_str().is_some_and(|message| message.contains("[update.")), "{done}");
    }
    ensure!(server.requests() == 0);
    Ok(())
}

/// Goes back for this reason. Gives the data.
async fn goes_back(fleet: &Fleet, command: &str, reason: &str) -> anyhow::Result<Value> {
    let done = fleet.finished(command).await?;
    ensure!((&done["state"], &done["code"]) == (&json!("failed"), &json!("rolled_back")), "{done}");
    let data = &done["data"];
    ensure!(data["reason"] == reason && data["rolled_back"] == true && data["version_after"] == "1.0", "{done}");
    ensure!(said(fleet, "os-version") == "1.0\n", "{done}");
    Ok(data.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_goes_wrong_after_the_installation_leads_back() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let middlebox = Middlebox::start(port::free()?, fleet.server.device, Passes::Everything).await?;
    let machine = fleet.new_machine_dialling("gateway", middlebox.address)?;
    set_up(&fleet, &machine, "")?;
    let mut device = begin(&fleet, machine).await?;
    let server = ArtifactServer::start(artifact("2.0")).await?;
    let program = |name: &str, text: &str| fs::write(fleet.path("gateway").join(name), text);

    program("commit", "echo it does not suit me >&2; exit 4")?;
    let id = fleet.command(&device.id, "os.update", &server.arguments("/", "2.0")).await?;
    let data = goes_back(&fleet, &id, "commit_failed").await?;
    ensure!(data["detail"].as_str().is_some_and(|detail| detail.contains("it does not suit me")), "{data}");
    ensure!(device.machine.reboots() == 2, "into the new one, and back");

    // The agent is killed while it installs, and what runs is neither this nor that.
    program("install", "echo 1.5 > \"$1/os-version\"; echo \"$2\" >> \"$1/interrupted\"; exec sleep 60")?;
    let id = fleet.command(&device.id, "os.update", &server.arguments("/", "2.0")).await?;
    is_written(&fleet, "interrupted").await?;
    device.machine.kill_agent()?;
    device.machine.power_on()?;
    goes_back(&fleet, &id, "interrupted").await?;
    ensure!(said(&fleet, "interrupted").lines().count() == 1, "the installer is begun once");
    ensure!(device.machine.reboots() == 3);

    program("install", INSTALL)?;
    program("activate", "true")?;
    let os = "[update.os]\n";
    reconfigure(&fleet, &mut device, os, &format!("{os}confirm_seconds = 5\n")).await?;
    let id = fleet.command(&device.id, "os.update", &server.arguments("/", "2.0")).await?;
    goes_back(&fleet, &id, "not_activated").await?;
    ensure!(device.machine.reboots() == 3);

    // The new version has no way to the server.
    let cut = "echo now > \"$1/cutting\"; while [ ! -e \"$1/cut\" ]; do sleep 0.1; done";
    program("activate", &format!("{cut}\n{ACTIVATE}"))?;
    let id = fleet.command(&device.id, "os.update", &server.arguments("/", "2.0")).await?;
    is_written(&fleet, "cutting").await?;
    middlebox.set(Passes::Nothing);
    program("cut", "")?;
    wait_for("the way back", COMMAND_LIMIT, async || {
        ensure!(device.machine.reboots() == 5 && said(&fleet, "os-version") == "1.0\n");
        Ok(())
    })
    .await?;
    middlebox.set(Passes::Everything);
    goes_back(&fleet, &id, "no_contact").await?;
    ensure!(said(&fleet, "commits").is_empty() && left_over(&device)?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_waited_for_no_longer_than_the_device_wants_and_it_is_asked_whether_it_is_busy()
-> anyhow::Result<()> {
    let set = vec!["link.ping_interval_seconds=2".to_owned(), "link.max_missed_pings=10".to_owned()];
    let fleet = Fleet::start_with(&Settings { set, ..Settings::default() }).await?;
    let mut device = device(&fleet).await?;
    let server = ArtifactServer::start(artifact("2.0")).await?;
    let kept = device.machine.state_dir().join("update/os.artifact");

    // It becomes busy after it has taken the command.
    let id = fleet.command(&device.id, "os.update", &server.arguments("/gate", "2.0")).await?;
    let has = async |bytes: u64| {
        wait_for("so much of the artifact", COMMAND_LIMIT, async || {
            let have = fs::metadata(&kept)?.len();
            ensure!(have >= bytes, "{have} of {bytes} bytes");
            Ok(())
        })
        .await
    };
    has(1).await?;
    device.machine.ask("PUT", "/v1/busy", &json!({ "reason": "writing results", "seconds": 600 })).await?;
    server.open_gate();
    has(server.content.len() as u64).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(said(&fleet, "installed").is_empty() && fleet.reaches(&id, "running").await?["finished_at"].is_null());
    device.machine.ask("DELETE", "/v1/busy", &Value::Null).await?;
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && done["data"]["version_after"] == "2.0", "{done}");

    // Nothing is restarted: what counts is what is heard over the link afterwards, which is the one of before.
    let before = fleet.wait_for_link(&device.id, "live").await?;
    fs::write(fleet.path("gateway").join("activate"), "cp \"$1/os-next\" \"$1/os-version\"")?;
    let server = ArtifactServer::start(artifact("2.5")).await?;
    let id = fleet.command(&device.id, "os.update", &server.arguments("/", "2.5")).await?;
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && done["data"]["version_after"] == "2.5", "{done}");
    let after = fleet.wait_for_link(&device.id, "live").await?;
    ensure!(
        device.machine.reboots() == 1 && before["link"]["connected_at"] == after["link"]["connected_at"],
        "{after}"
    );

    // A server that holds it back.
    reconfigure(&fleet, &mut device, "[update]\n", "[update]\ndownload_seconds = 2\n").await?;
    let server = ArtifactServer::start(artifact("3.0")).await?;
    let id = fleet.command(&device.id, "os.update", &server.arguments("/gate", "3.0")).await?;
    let done = fleet.finished(&id).await?;
    ensure!((&done["state"], &done["code"]) == (&json!("failed"), &json!("download_timeout")), "{done}");
    ensure!(done["data"]["installed"] == false && done["data"]["version_after"] == "2.5", "{done}");
    ensure!(said(&fleet, "os-version") == "2.5\n" && left_over(&device)?.is_empty());
    ensure!(said(&fleet, "installed").lines().count() == 2 && device.machine.reboots() == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_come_over_tls_from_whom_the_configured_roots_vouch_for() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let (own, other) = (new_authority(now())?, new_authority(now())?);
    let roots = fleet.path("roots.pem");
    fs::write(&roots, own.certificate_pem())?;
    let machine = fleet.new_machine("gateway")?;
    set_up(&fleet, &machine, &format!("ca_file = {roots:?}"))?;
    let device = begin(&fleet, machine).await?;

    // Somebody else vouches for this one.
    let stranger = ArtifactServer::start_tls(artifact("2.0"), &other).await?;
    let id = fleet.command(&device.id, "os.update", &stranger.arguments("/", "2.0")).await?;
    let done = fleet.finished(&id).await?;
    ensure!((&done["state"], &done["code"]) == (&json!("failed"), &json!("unreachable")), "{done}");
    ensure!(done["message"].as_str().is_some_and(|message| message.contains("certificate")), "{done}");
    ensure!(stranger.connections() == 2 && stranger.requests() == 0, "it is dialled, and asked for nothing");

    // http would do by itself, but no redirect leads there from https.
    let plain = ArtifactServer::start(artifact("2.0")).await?;
    let server = ArtifactServer::start_tls(artifact("2.0"), &own).await?;
    let id = fleet.command(&device.id, "os.update", &server.arguments(&to(&plain), "2.0")).await?;
    let done = fleet.finished(&id).await?;
    ensure!((&done["state"], &done["code"]) == (&json!("failed"), &json!("redirect_refused")), "{done}");
    ensure!(plain.connections() == 0 && server.requests() == 1);
    ensure!(said(&fleet, "os-version") == "1.0\n" && said(&fleet, "installed").is_empty());
    ensure!(left_over(&device)?.is_empty() && device.machine.reboots() == 0);

    // From https to https one does, and what breaks off there goes on.
    let next = ArtifactServer::start_tls(artifact("2.0"), &own).await?;
    let path = format!("{}breaks", to(&next));
    let id = fleet.command(&device.id, "os.update", &server.arguments(&path, "2.0")).await?;
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && done["data"]["version_after"] == "2.0", "{done}");
    ensure!((next.requests(), next.resumed()) == (2, 1), "it goes on where it broke off");
    ensure!(said(&fleet, "os-version") == "2.0\n");
    Ok(())
}

/// Where a server redirects to another one.
fn to(server: &ArtifactServer) -> String {
    let url = server.arguments("/", "")["url"].as_str().unwrap_or_default().to_owned();
    format!("/to?{url}")
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_come_through_the_proxy_but_for_those_that_do_not() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let authority = new_authority(now())?;
    let (roots, password) = (fleet.path("roots.pem"), fleet.path("password"));
    fs::write(&roots, authority.certificate_pem())?;
    fs::write(&password, "wrong-word\n")?;
    let servers = [
        ArtifactServer::start_tls(artifact("2.0"), &authority).await?,
        ArtifactServer::start_tls(artifact("3.0"), &authority).await?,
    ];
    let proxy = port::free()?;
    let allowed = servers.each_ref().map(|server| format!("ConnectPort {}\n", server.address.port())).concat();
    let login = format!("BasicAuth gateway open-sesame\n{allowed}");
    let _proxy = traffic::proxy_with(proxy, &fleet.path(""), &login).await?;
    let connected = |to: &str| -> anyhow::Result<bool> {
        let log = fs::read_to_string(fleet.path("tinyproxy.log"))?;
        Ok(log.lines().any(|line| line.contains("Request") && line.contains(&format!("CONNECT {to}"))))
    };

    let machine = fleet.new_machine("gateway")?;
    set_up(&fleet, &machine, &format!("ca_file = {roots:?}"))?;
    // The device's own server goes by this name, too.
    machine.configure(&format!(
        "\n[proxy]\nurl = \"http://gateway@{proxy}\"\npassword_file = {password:?}\nno_proxy = [\"localhost\"]\n"
    ))?;
    let text = fs::read_to_string(machine.config_file())?;
    fs::write(machine.config_file(), text.replace("[\"127.0.0.1\"]", "[\"127.0.0.1\", \"localhost\"]"))?;
    let device = begin(&fleet, machine).await?;

    let through = servers[0].arguments("/breaks", "2.0");
    let id = fleet.command(&device.id, "os.update", &through).await?;
    let done = fleet.finished(&id).await?;
    ensure!((&done["state"], &done["code"]) == (&json!("failed"), &json!("unreachable")), "{done}");
    ensure!(done["message"].as_str().is_some_and(|message| message.contains("it refuses the password")), "{done}");
    ensure!(servers[0].connections() == 0, "there is no way around the proxy");

    // The password is corrected while the agent runs.
    fs::write(&password, "open-sesame\n")?;
    let id = fleet.command(&device.id, "os.update", &through).await?;
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && servers[0].resumed() == 1, "{done}");
    ensure!(connected(&servers[0].address.to_string())?);

    let mut direct = servers[1].arguments("/", "3.0");
    direct["url"] = format!("https://localhost:{}/", servers[1].address.port()).into();
    let id = fleet.command(&device.id, "os.update", &direct).await?;
    let done = fleet.finished(&id).await?;
    ensure!(done["state"] == "succeeded" && done["data"]["version_after"] == "3.0", "{done}");
    ensure!(servers[1].requests() == 1 && !connected("localhost")?);
    let log = device.machine.log_text()?;
    ensure!(!log.contains("open-sesame") && !log.contains("wrong-word"), "a password is in the log");
    Ok(())
}

/// From one poll of two seconds to the next several times, with a reboot or two, on a machine that is busy.
const POLLED_LIMIT: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_polls_is_updated_and_goes_back_all_the_same() -> anyhow::Result<()> {
    let set = vec!["poll.interval_seconds=2".to_owned()];
    let fleet = Fleet::start_with(&Settings { set, ..Settings::default() }).await?;
    let middlebox = Middlebox::start(port::free()?, fleet.server.device, Passes::Everything).await?;
    let machine = fleet.new_machine_dialling("gateway", middlebox.address)?.polling_after(1)?;
    set_up(&fleet, &machine, "")?;
    let device = begin(&fleet, machine).await?;
    middlebox.set(Passes::WholeAnswers);
    wait_for("a poll", POLLED_LIMIT, async || {
        let shown = fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
        ensure!(shown["transport"] == "polling", "{shown}");
        Ok(())
    })
    .await?;
    let polled = async |arguments: Value| {
        let body = json!({ "kind": "os.update", "arguments": arguments, "reason": "a test", "queue_for_seconds": 600 });
        let id = text(&fleet.operator.command(&device.id, &body).await?.success()?, "id")?;
        wait_for("the end of the command", POLLED_LIMIT, async || {
            let shown = fleet.operator.get(&format!("/commands/{id}")).await?;
            ensure!(!shown["finished_at"].is_null(), "{shown}");
            Ok(shown)
        })
        .await
    };

    let server = ArtifactServer::start(artifact("2.0")).await?;
    let done = polled(server.arguments("/breaks", "2.0")).await?;
    ensure!(done["state"] == "succeeded" && done["data"]["version_after"] == "2.0", "{done}");
    ensure!(device.machine.reboots() == 1 && said(&fleet, "commits") == "2.0\n" && server.resumed() == 1);

    let server = ArtifactServer::start(artifact("2.9-broken")).await?;
    let done = polled(server.arguments("/", "3.0")).await?;
    ensure!((&done["state"], &done["code"]) == (&json!("failed"), &json!("rolled_back")), "{done}");
    let data = &done["data"];
    ensure!(data["reason"] == "other_version" && data["version_after"] == "2.0", "{done}");
    ensure!(said(&fleet, "os-version") == "2.0\n" && device.machine.reboots() == 3 && left_over(&device)?.is_empty());

    // Without a restart it takes a poll of afterwards to prove it.
    fs::write(fleet.path("gateway").join("activate"), "cp \"$1/os-next\" \"$1/os-version\"")?;
    let server = ArtifactServer::start(artifact("4.0")).await?;
    let done = polled(server.arguments("/", "4.0")).await?;
    ensure!(done["state"] == "succeeded" && done["data"]["version_after"] == "4.0", "{done}");
    ensure!(device.machine.reboots() == 3 && said(&fleet, "commits") == "2.0\n4.0\n");
    let shown = fleet.tenant.get(&format!("/devices/{}", device.id)).await?;
    ensure!(shown["transport"] == "polling", "{shown}");
    Ok(())
}
