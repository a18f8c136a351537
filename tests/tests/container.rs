//! Updates of containers, with a real engine: the new container stays only when it runs, and the old one is back otherwise, whatever is
//! lost at whatever moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_agent::busy::Busy;
use cloudlink_agent::command::{ContainerUpdate, Instruction, Kind};
use cloudlink_agent::config::Config;
use cloudlink_agent::executor::{Bus, Executor, Steps};
use cloudlink_agent::ledger::{FinalState, Report};
use cloudlink_agent::metrics::Sampler;
use cloudlink_proto::ids::CommandId;
use cloudlink_tests::api::text;
use cloudlink_tests::engine::relay::{Moment, Relay};
use cloudlink_tests::engine::{self, Engine, Image, RUNS, repository};
use cloudlink_tests::fleet::{self, Fleet};
use cloudlink_tests::machine::Machine;
use cloudlink_tests::middlebox::{Middlebox, Passes};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::server::Settings;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);
const HOUR: Duration = Duration::from_secs(3600);
const SMALL: usize = 1000;
/// Beside the root of a test's images.
const LARGE: usize = 8_000_000;

const GOOD: Image<'_> = Image { name: "good", command: RUNS, check: None, bytes: SMALL };

/// The part of an agent that carries commands out, on what a device keeps over its restarts. A process could not be ended at a chosen
/// moment.
struct Device {
    directory: TempDir,
    settings: String,
}

impl Device {
    fn new(settings: &str) -> anyhow::Result<Self> {
        let directory = fleet::directory()?;
        fs::write(directory.path().join("boot_id"), "boot-1\n")?;
        fs::write(directory.path().join("logins.json"), engine::logins())?;
        Ok(Self { directory, settings: settings.to_owned() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn reboot(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.path("boot_id"), "boot-2\n")?)
    }

    fn phase(&self) -> anyhow::Result<String> {
        let journal: Value = serde_json::from_slice(&fs::read(self.path("update/container.json"))?)?;
        text(&journal["phase"], "is")
    }

    fn agent(&self, socket: &Path) -> anyhow::Result<(Executor, Steps)> {
        self.agent_for(socket, "app")
    }

    fn agent_for(&self, socket: &Path, container: &str) -> anyhow::Result<(Executor, Steps)> {
        let at = self.directory.path().display();
        let own = [
            format!("login_file = \"{at}/logins.json\""),
            "confirm_seconds = 20".to_owned(),
            "stable_seconds = 1".to_owned(),
        ];
        let is_unset = |line: &&String| line.split(' ').next().is_some_and(|key| !self.settings.contains(key));
        let own: String = own.iter().filter(is_unset).map(|line| format!("{line}\n")).collect();
        let text = format!(
            "state_dir = \"{at}\"\nboot_id_path = \"{at}/boot_id\"\n[server]\nhost = \"a.test\"\nca_file = \"/ca\"\n\
             [update.container]\nsocket = {socket:?}\nallow = [{container:?}, \"other\"]\n\
             repositories = [\"{}\", \"127.0.0.1:1/vendor/\"]\n{own}{}\n",
            repository(""),
            self.settings
        );
        let config = Config::parse(&text).map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
        let busy = Arc::new(Busy::load(self.directory.path(), HOUR));
        Ok(Executor::new(&config, Bus::System, Arc::new(Mutex::new(Sampler::new())), busy))
    }

    /// Nobody is lost on the way.
    async fn update(&self, engine: &Engine, container: &str, image: &str) -> anyhow::Result<Report> {
        let (agent, _steps) = self.agent(&engine.socket())?;
        carry_out(&agent, new_id(), container, image).await
    }

    /// Another agent takes over what was begun.
    async fn go_on_for(&self, engine: &Engine, id: CommandId, container: &str) -> anyhow::Result<Report> {
        let (agent, _steps) = self.agent_for(&engine.socket(), container)?;
        let instruction = agent.unfinished(id, Kind::UpdateContainer).context("there is nothing to go on with")?;
        execute(&agent, id, &instruction).await
    }
}

/// With a server that is heard of when that is wanted.
async fn execute(agent: &Executor, id: CommandId, instruction: &Instruction) -> anyhow::Result<Report> {
    let server = async {
        loop {
            agent.contact_wanted().await;
            agent.answered(Instant::now());
        }
    };
    tokio::select! {
        done = timeout(LIMIT, agent.execute(id, instruction, false, None)) => Ok(done?),
        () = server => unreachable!("it has no end"),
    }
}

fn new_id() -> CommandId {
    CommandId::from_uuid(Uuid::now_v7())
}

fn instruction(container: &str, image: &str) -> Instruction {
    Instruction::UpdateContainer(ContainerUpdate { container: container.to_owned(), image: image.to_owned() })
}

async fn carry_out(agent: &Executor, id: CommandId, container: &str, image: &str) -> anyhow::Result<Report> {
    let instruction = instruction(container, image);
    if let Some(failure) = agent.refusal(&instruction) {
        return Ok(Report::without_data(FinalState::Refused, failure.code, &failure.message));
    }
    execute(agent, id, &instruction).await
}

fn data(report: &Report) -> Value {
    report.data.clone().unwrap_or_default()
}

/// What a container is made with that must not be lost.
fn configuration() -> Value {
    json!({ "Env": ["OWN=1"], "Labels": { "own": "1" }, "HostConfig": { "RestartPolicy": { "Name": "unless-stopped" } } })
}

/// Runs under its name, of this image, as it was made.
async fn ensure_runs(engine: &Engine, name: &str, image: &str) -> anyhow::Result<Value> {
    let found = engine.container(name).await?.context("it is gone")?;
    ensure!(found["State"]["Running"] == true && found["Config"]["Image"] == image, "{found}");
    ensure!(found["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped", "{found}");
    ensure!(found["Config"]["Labels"]["own"] == "1" && found["Config"]["Env"].to_string().contains("OWN=1"), "{found}");
    ensure!(engine.names(name).await? == [name], "{:?}", engine.names(name).await?);
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_container_is_like_the_old_one_but_for_the_image() -> anyhow::Result<()> {
    engine::test("the_new_container_is_like_the_old_one_but_for_the_image", async |engine| {
        let before = engine.publish(Image { name: "before", ..GOOD }).await?;
        let check = Some("test -e /data/kept");
        let after = engine.publish(Image { name: "after", check, bytes: LARGE, ..GOOD }).await?;
        for network in ["own-1", "own-2"] {
            let made = json!({ "Name": network, "Driver": "bridge", "Internal": true }).to_string();
            engine.done("POST", "/networks/create", Some(&made)).await?;
        }
        fs::create_dir(engine.path("host"))?;
        let mut made = configuration();
        let own = json!({
            "NetworkMode": "own-1", "Memory": 64 * 1024 * 1024, "CapDrop": ["NET_RAW"], "ReadonlyRootfs": true,
            "Binds": [format!("{}:/host:ro", engine.path("host").display()), "named:/named"],
            "Tmpfs": { "/tmp": "" }, "ExtraHosts": ["plc:192.0.2.9"], "Ulimits": [{ "Name": "nofile", "Soft": 99, "Hard": 99 }],
        });
        for (key, value) in own.as_object().context("an object")? {
            made["HostConfig"][key] = value.clone();
        }
        made["StopTimeout"] = 3.into();
        made["NetworkingConfig"] = json!({ "EndpointsConfig": { "own-1": { "Aliases": ["alias-1"] } } });
        let old_id = engine.run("app", &before, made).await?;
        let connect = json!({ "Container": "app", "EndpointConfig": { "Aliases": ["alias-2"] } }).to_string();
        engine.done("POST", "/networks/own-2/connect", Some(&connect)).await?;
        let old = engine.container("app").await?.context("the old one")?;
        // What the old one has written is where the new one's check looks for it.
        fs::write(Path::new(volume(&old).as_str().context("a volume")?).join("kept"), "")?;

        // What an agent has left that died at the wrong moment.
        let another = Uuid::now_v7();
        let left = json!({ "Image": before, "Labels": { "net.cloudlink.command": another } }).to_string();
        engine.done("POST", &format!("/containers/create?name=app.new-{}", another.simple()), Some(&left)).await?;

        let device = Device::new("")?;
        let (agent, mut steps) = device.agent(&engine.socket())?;
        let id = new_id();
        let report = carry_out(&agent, id, "app", &after).await?;
        ensure!(report.state == FinalState::Succeeded, "{report:?}");
        let said = data(&report);
        ensure!(said["image_before"] == before && said["image_after"] == after && said["old_removed"] == true, "{said}");
        let mut percents = Vec::new();
        while let Ok((_, percent)) = steps.try_recv() {
            percents.push(percent);
        }
        ensure!(percents.is_sorted() && percents.contains(&80) && percents.contains(&90), "{percents:?}");

        let new = ensure_runs(&engine, "app", &after).await?;
        ensure!(new["Id"] != old_id && new["State"]["Health"]["Status"] == "healthy", "{new}");
        ensure!(new["Config"]["Labels"]["net.cloudlink.command"] == id.to_string(), "{new}");
        ensure!(new["Config"]["Env"].to_string().contains("OF_IMAGE=after"), "what is the image's own is the new one's");
        ensure!(!new["Config"]["Env"].to_string().contains("OF_IMAGE=before"), "{new}");
        ensure!(new["Config"]["Hostname"].as_str() == new["Id"].as_str().map(|id| &id[..12]), "{new}");
        ensure!(volume(&new) == volume(&old), "{new}");
        let (mut host_before, mut host_after) = (old["HostConfig"].clone(), new["HostConfig"].clone());
        // The one without a name has one now.
        host_before["Mounts"].take();
        host_after["Mounts"].take();
        ensure!(host_before == host_after, "{host_before}\n{host_after}");
        let networks = &new["NetworkSettings"]["Networks"];
        for (network, alias) in [("own-1", "alias-1"), ("own-2", "alias-2")] {
            ensure!(networks[network]["Aliases"][0] == alias, "{networks}");
        }
        ensure!(networks.as_object().is_some_and(|networks| networks.len() == 2), "{networks}");
        ensure!(!engine.has_image(&before).await?, "the old image takes no more room");

        // The same again has nothing to do.
        let report = device.update(&engine, "app", &after).await?;
        ensure!(report.state == FinalState::Succeeded && data(&report)["unchanged"] == true, "{report:?}");
        ensure!(engine.container("app").await?.context("it")?["Id"] == new["Id"]);
        Ok(())
    })
    .await
}

/// Where the engine keeps what is mounted at /data.
fn volume(container: &Value) -> Value {
    let mounts = container["Mounts"].as_array().into_iter().flatten();
    mounts
        .filter(|mount| mount["Destination"] == "/data")
        .map(|mount| mount["Source"].clone())
        .next()
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_run_leads_back() -> anyhow::Result<()> {
    engine::test("what_does_not_run_leads_back", async |engine| {
        let before = engine.publish(Image { name: "before", ..GOOD }).await?;
        let old_id = engine.run("app", &before, configuration()).await?;
        // (what the image does, its check, the reason)
        for (name, command, check, reason) in [
            ("ends", "exit 3", None, "exited"),
            ("fails-later", "sleep 0.5; exit 0", None, "exited"),
            ("ill", RUNS, Some("exit 1"), "unhealthy"),
            ("undecided", RUNS, Some("sleep 50"), "not_healthy"),
        ] {
            let image = engine.publish(Image { name, command, check, bytes: SMALL }).await?;
            let device = Device::new("")?;
            let report = device.update(&engine, "app", &image).await?;
            ensure!(report.state == FinalState::Failed && report.code == "rolled_back", "{name}: {report:?}");
            let said = data(&report);
            ensure!(said["reason"] == reason && said["rolled_back"] == true && said["image_after"] == before, "{said}");
            let now = ensure_runs(&engine, "app", &before).await?;
            ensure!(now["Id"] == old_id, "it is the old one itself");
            ensure!(!engine.has_image(&image).await?, "what was pulled in vain takes no room");
        }

        // It runs, and nobody hears of it.
        let image = engine.publish(GOOD).await?;
        let device = Device::new("")?;
        let (agent, _steps) = device.agent(&engine.socket())?;
        let report = timeout(LIMIT, agent.execute(new_id(), &instruction("app", &image), false, None)).await?;
        ensure!(report.code == "rolled_back" && data(&report)["reason"] == "no_contact", "{report:?}");
        ensure!(ensure_runs(&engine, "app", &before).await?["Id"] == old_id);

        // One that did not run is put back as it was; and one that did not may be mended.
        engine.done("POST", "/containers/app/stop", None).await?;
        let ends = engine.publish(Image { name: "ends", command: "exit 3", ..GOOD }).await?;
        let report = device.update(&engine, "app", &ends).await?;
        ensure!(report.code == "rolled_back", "{report:?}");
        ensure!(engine.container("app").await?.context("it")?["State"]["Running"] == false);
        let report = device.update(&engine, "app", &image).await?;
        ensure!(report.state == FinalState::Succeeded, "{report:?}");
        ensure_runs(&engine, "app", &image).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_or_may_not_be_changes_nothing() -> anyhow::Result<()> {
    engine::test("what_cannot_be_had_or_may_not_be_changes_nothing", async |engine| {
        let before = engine.publish(Image { name: "before", ..GOOD }).await?;
        let image = engine.publish(Image { bytes: LARGE, ..GOOD }).await?;
        let old_id = engine.run("app", &before, configuration()).await?;
        let other_digest = format!("{}@sha256:{}", repository("good"), "0a".repeat(32));
        let other_registry = image.replace("127.0.0.1:5000", "127.0.0.1:1");
        let elsewhere = image.replace("vendor", "stranger");
        fs::write(engine.path("no-logins.json"), r#"{"auths": {}}"#)?;
        let no_login = format!("login_file = {:?}", engine.path("no-logins.json"));
        let much = format!("free_bytes_min = {}", 1_u64 << 40);
        // (settings, container, image, state, code)
        for (settings, container, image, state, code) in [
            ("", "app", &other_digest, FinalState::Failed, "no_image"),
            ("", "app", &other_registry, FinalState::Failed, "pull_failed"),
            ("", "other", &image, FinalState::Failed, "no_container"),
            ("bytes_max = 1000000", "app", &image, FinalState::Failed, "too_large"),
            (&much, "app", &image, FinalState::Failed, "no_space"),
            ("login_file = \"/nowhere\"", "app", &image, FinalState::Failed, "login_file"),
            (&no_login, "app", &image, FinalState::Failed, "pull_failed"),
            ("", "stranger", &image, FinalState::Refused, "not_allowed"),
            ("", "app", &elsewhere, FinalState::Refused, "source_not_allowed"),
        ] {
            let report = Device::new(settings)?.update(&engine, container, image).await?;
            ensure!(report.state == state && report.code == code, "{code}: {report:?}");
            if state == FinalState::Failed {
                ensure!(data(&report)["installed"] == false && data(&report)["reason"] == code, "{report:?}");
            }
            ensure!(ensure_runs(&engine, "app", &before).await?["Id"] == old_id);
            ensure!(!engine.has_image(image).await?, "{code}");
        }
        for configuration in [
            json!({ "HostConfig": { "AutoRemove": true } }),
            json!({ "Labels": { "com.docker.swarm.service.id": "1" } }),
        ] {
            let id = engine.run("other", &before, configuration).await?;
            let report = Device::new("")?.update(&engine, "other", &image).await?;
            ensure!(report.code == "not_replaceable", "{report:?}");
            engine.done("DELETE", &format!("/containers/{id}?force=1"), None).await?;
        }
        // It became busy while the image was pulled, and stays so.
        let busy = Device::new("pull_seconds = 2")?;
        Busy::load(busy.directory.path(), HOUR).set("writing results", HOUR)?;
        let report = busy.update(&engine, "app", &image).await?;
        ensure!(report.code == "device_busy" && data(&report)["installed"] == false, "{report:?}");
        ensure!(ensure_runs(&engine, "app", &before).await?["Id"] == old_id && !engine.has_image(&image).await?);

        engine.run("other", &before, json!({ "HostConfig": { "NetworkMode": format!("container:{old_id}") } })).await?;
        let report = Device::new("")?.update(&engine, "app", &image).await?;
        ensure!(report.code == "not_replaceable" && report.message.contains("network"), "{report:?}");

        let nowhere = Device::new("")?;
        let (agent, _steps) = nowhere.agent(Path::new("/nowhere/engine.sock"))?;
        let report = carry_out(&agent, new_id(), "app", &image).await?;
        ensure!(report.code == "engine" && data(&report)["installed"] == false, "{report:?}");
        Ok(())
    })
    .await
}

/// More than an update makes.
const REQUESTS_MAX: usize = 23;
/// Devices at a time.
const AT_A_TIME: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_lost_at_any_moment_leaves_one_of_the_two() -> anyhow::Result<()> {
    engine::test("an_agent_that_is_lost_at_any_moment_leaves_one_of_the_two", async |engine| {
        let before = engine.publish(Image { name: "before", ..GOOD }).await?;
        let (good, ends) =
            (engine.publish(GOOD).await?, engine.publish(Image { name: "ends", command: "exit 3", ..GOOD }).await?);
        // Others keep the images, so that no device takes them from another.
        for (name, image) in [("keeps-1", &before), ("keeps-2", &good), ("keeps-3", &ends)] {
            engine.run(name, image, json!({})).await?;
        }
        let ways = [
            (Moment::Before, &good, true),
            (Moment::During, &good, true),
            (Moment::After, &good, true),
            (Moment::After, &ends, false),
        ];
        let cases = ways
            .into_iter()
            .flat_map(|(moment, image, runs)| (0..REQUESTS_MAX).map(move |last| (moment, image, runs, last)));
        let (engine, before) = (&engine, &before);
        let lost: Vec<bool> = futures_util::stream::iter(cases)
            .map(async |(moment, image, runs, last)| {
                let what = format!("{moment:?} request {last} of an image that {}", if runs { "runs" } else { "ends" });
                lose_agent(engine, before, image, moment, runs, last).await.context(what)
            })
            .buffer_unordered(AT_A_TIME)
            .try_collect()
            .await?;
        let lost = lost.into_iter().filter(|lost| *lost).count();
        ensure!((50..4 * REQUESTS_MAX).contains(&lost), "{lost} agents were lost");
        println!("{lost} agents were lost");
        Ok(())
    })
    .await
}

/// Whether it came to that request.
async fn lose_agent(
    engine: &Engine,
    before: &str,
    image: &str,
    moment: Moment,
    runs: bool,
    last: usize,
) -> anyhow::Result<bool> {
    let name = format!("app-{}-{last}", Uuid::now_v7().simple());
    let device = Device::new("")?;
    let old_id = engine.run(&name, before, configuration()).await?;
    let relay = Relay::start(device.path("relay.sock"), &engine.socket(), last, moment)?;
    let id = new_id();
    let lost = {
        let (agent, _steps) = device.agent_for(&relay.socket, &name)?;
        let instruction = instruction(&name, image);
        tokio::select! {
            report = execute(&agent, id, &instruction) => Some(report?),
            () = relay.reached() => None,
        }
    };
    let (report, was_lost) = match lost {
        Some(report) => (report, false),
        None => (device.go_on_for(engine, id, &name).await?, true),
    };
    if moment == Moment::During {
        forget_late(engine, &name).await?;
    }
    match (report.state, report.code.as_str()) {
        (FinalState::Succeeded, _) => {
            ensure!(runs, "{report:?}");

            ensure_runs(engine, &name, image).await?;
        }
        (FinalState::Failed, "rolled_back") => {
            ensure!(was_lost || !runs, "{report:?}");
            ensure!(ensure_runs(engine, &name, before).await?["Id"] == old_id, "{report:?}");
        }
        _ => anyhow::bail!("{report:?}"),
    }
    // Once more has nothing to do, or says the same.
    let again = device.go_on_for(engine, id, &name).await?;
    ensure!((again.state, &again.code) == (report.state, &report.code), "{report:?}, then {again:?}");
    engine.done("DELETE", &format!("/containers/{name}?force=1&v=1"), None).await?;
    Ok(was_lost)
}

/// An engine that takes long to make a container may be done when nobody waits any more. It was never started; the next update removes
/// it.
async fn forget_late(engine: &Engine, name: &str) -> anyhow::Result<()> {
    for late in engine.names(&format!("{name}.new-")).await? {
        let state = engine.container(&late).await?.context("it")?["State"].clone();
        ensure!(state["Status"] == "created", "{late}: {state}");
        engine.done("DELETE", &format!("/containers/{late}?v=1"), None).await?;
    }
    Ok(())
}

/// What the engine was asked last when the power goes, and how many requests before; whether the new image runs; and how far the update
/// has come then.
const POWER_CUTS: [(&str, usize, bool, &str); 6] = [
    ("/containers/create", 0, true, "replacing"),
    ("/stop", 0, true, "replacing"),
    ("/start", 0, true, "replacing"),
    ("/start", 2, true, "confirming"),
    ("DELETE", 0, true, "committing"),
    ("DELETE", 0, false, "rolling_back"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_lost_comes_back_with_one_of_the_two() -> anyhow::Result<()> {
    engine::test("a_machine_that_is_lost_comes_back_with_one_of_the_two", async |mut engine| {
        let before = engine.publish(Image { name: "before", ..GOOD }).await?;
        let (good, ends) =
            (engine.publish(GOOD).await?, engine.publish(Image { name: "ends", command: "exit 3", ..GOOD }).await?);
        // The engine starts these by itself when it starts.
        let mut configuration = configuration();
        configuration["HostConfig"]["RestartPolicy"]["Name"] = "always".into();
        for (name, image) in [("keeps-1", &before), ("keeps-2", &good), ("keeps-3", &ends)] {
            engine.run(name, image, json!({})).await?;
        }
        for (asked, later, runs, phase) in POWER_CUTS {
            let device = Device::new("")?;
            engine.run("app", &before, configuration.clone()).await?;
            let image = if runs { &good } else { &ends };
            // The same update tells which request it is.
            let all = Relay::start(device.path("all.sock"), &engine.socket(), usize::MAX, Moment::After)?;
            let (agent, _steps) = device.agent(&all.socket)?;
            carry_out(&agent, new_id(), "app", image).await?;
            let last = all.requests().iter().position(|line| line.contains(asked)).context("it is not asked")? + later;
            engine.done("DELETE", "/containers/app?force=1&v=1", None).await?;
            engine.run("app", &before, configuration.clone()).await?;

            let relay = Relay::start(device.path("relay.sock"), &engine.socket(), last, Moment::After)?;
            let id = new_id();
            let (agent, _steps) = device.agent(&relay.socket)?;
            tokio::select! {
                report = carry_out(&agent, id, "app", image) => anyhow::bail!("{asked}: {report:?}"),
                () = relay.reached() => {}
            }
            drop(agent);
            ensure!(device.phase()? == phase, "{asked}: {}", device.phase()?);
            engine.power_cut()?;
            device.reboot()?;
            engine.power_on().await?;
            let report = device.go_on_for(&engine, id, "app").await?;
            let expected = if phase == "committing" { &good } else { &before };
            ensure!((report.state == FinalState::Succeeded) == (phase == "committing"), "{asked}: {report:?}");
            ensure!(report.state == FinalState::Succeeded || report.code == "rolled_back", "{asked}: {report:?}");
            let found = engine.container("app").await?.context("it is gone")?;
            ensure!(found["State"]["Running"] == true && found["Config"]["Image"] == *expected, "{asked}: {found}");
            ensure!(found["HostConfig"]["RestartPolicy"]["Name"] == "always", "{asked}: {found}");
            ensure!(engine.names("app").await? == ["app"], "{asked}: {:?}", engine.names("app").await?);
            engine.done("DELETE", "/containers/app?force=1&v=1", None).await?;
        }
        Ok(())
    })
    .await
}

impl Device {
    /// An update that is lost when the old container has been stopped.
    async fn lose_update(&self, engine: &Engine, image: &str) -> anyhow::Result<()> {
        let relay = Relay::start(self.path("relay.sock"), &engine.socket(), usize::MAX, Moment::After)?;
        let (agent, _steps) = self.agent(&relay.socket)?;
        let stopped = wait_for("the old container to be stopped", LIMIT, async || {
            ensure!(relay.requests().iter().any(|line| line.contains("/rename")));
            Ok(())
        });
        tokio::select! {
            report = carry_out(&agent, new_id(), "app", image) => anyhow::bail!("it ended: {report:?}"),
            stopped = stopped => stopped,
        }
    }

    /// An agent that knows of no update, until the journal says this.
    async fn keep_whole_until(&self, engine: &Engine, phase: &str) -> anyhow::Result<()> {
        let (agent, _steps) = self.agent(&engine.socket())?;
        agent.tidy(Kind::UpdateContainer);
        let done = wait_for("the container of before", LIMIT, async || {
            let found = self.phase()?;
            ensure!(found == phase, "{found}");
            Ok(())
        });
        tokio::select! {
            () = agent.keep_whole() => unreachable!("it has no end"),
            done = done => done,
        }
    }

    fn journal(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.path("update/container.json"))?)?)
    }

    fn set_phase(&self, phase: Value) -> anyhow::Result<()> {
        let mut journal = self.journal()?;
        journal["phase"] = phase;
        Ok(fs::write(self.path("update/container.json"), journal.to_string())?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_update_goes_on_with_is_put_back() -> anyhow::Result<()> {
    engine::test("what_no_update_goes_on_with_is_put_back", async |engine| {
        let before = engine.publish(Image { name: "before", ..GOOD }).await?;
        // It takes some time to start, in which the agent can be lost.
        let good = engine.publish(Image { check: Some("sleep 1"), ..GOOD }).await?;
        let old_id = engine.run("app", &before, configuration()).await?;
        let device = Device::new("stable_seconds = 60\nconfirm_seconds = 100")?;
        device.lose_update(&engine, &good).await?;
        // Nobody is disturbed who has nothing.
        engine.done("POST", "/containers/app/stop", None).await.ok();
        Busy::load(device.directory.path(), HOUR).set("writing results", HOUR)?;
        device.keep_whole_until(&engine, "rolled_back").await?;
        let back = ensure_runs(&engine, "app", &before).await?;
        ensure!(back["Id"] == old_id && engine.names("app").await? == ["app"], "{back}");
        ensure!(!engine.has_image(&good).await?, "what was pulled in vain takes no room");

        // What has been back all along is left alone.
        Busy::load(device.directory.path(), HOUR).clear()?;
        device.set_phase(json!({ "is": "rolling_back", "reason": "exited", "detail": "" }))?;
        device.keep_whole_until(&engine, "rolled_back").await?;
        let same = ensure_runs(&engine, "app", &before).await?;
        ensure!(same["State"]["StartedAt"] == back["State"]["StartedAt"], "{same}");

        // What was removed cannot be put back, and is no reason to do nothing ever after.
        engine.done("DELETE", "/containers/app?force=1&v=1", None).await?;
        device.set_phase(json!({ "is": "replacing" }))?;
        let report = device.update(&engine, "app", &good).await?;
        ensure!(report.code == "no_container", "{report:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_restarts_the_agent_again_and_again_does_not_stay() -> anyhow::Result<()> {
    engine::test("a_container_that_restarts_the_agent_again_and_again_does_not_stay", async |engine| {
        let before = engine.publish(Image { name: "before", ..GOOD }).await?;
        let good = engine.publish(GOOD).await?;
        let old_id = engine.run("app", &before, configuration()).await?;
        let device = Device::new("stable_seconds = 60\nconfirm_seconds = 100")?;
        let (id, instruction) = (new_id(), instruction("app", &good));
        for agents in 0..=3 {
            let (agent, _steps) = device.agent(&engine.socket())?;
            let confirming = wait_for("the new container to be watched", LIMIT, async || {
                ensure!(device.journal()?["phase"]["agents"] == agents);
                Ok(())
            });
            tokio::select! {
                report = execute(&agent, id, &instruction) => anyhow::bail!("it ended: {report:?}"),
                confirming = confirming => confirming?,
            }
        }
        let report = device.go_on_for(&engine, id, "app").await?;
        ensure!(report.code == "rolled_back" && data(&report)["reason"] == "restarted_too_often", "{report:?}");
        ensure!(ensure_runs(&engine, "app", &before).await?["Id"] == old_id);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_away_for_a_while_is_waited_for() -> anyhow::Result<()> {
    engine::test("an_engine_that_is_away_for_a_while_is_waited_for", async |mut engine| {
        let before = engine.publish(Image { name: "before", ..GOOD }).await?;
        let good = engine.publish(GOOD).await?;
        let mut configuration = configuration();
        configuration["HostConfig"]["RestartPolicy"]["Name"] = "always".into();
        engine.run("app", &before, configuration).await?;
        let device = Device::new("confirm_seconds = 90\nstable_seconds = 5\n")?;
        let (agent, _steps) = device.agent(&engine.socket())?;
        let id = new_id();
        let update = tokio::spawn(async move { carry_out(&agent, id, "app", &good).await });
        wait_for("the new container", LIMIT, async || {
            ensure!(device.phase()? == "confirming");
            Ok(())
        })
        .await?;
        // The containers end with it, and are started by it again.
        engine.power_cut()?;
        engine.power_on().await?;
        let report = update.await??;
        ensure!(report.state == FinalState::Succeeded, "{report:?}");
        ensure!(engine.names("app").await? == ["app"]);
        Ok(())
    })
    .await
}

/// What a whole agent needs to know to update one container.
fn configure(machine: &Machine, engine: &Engine) -> anyhow::Result<()> {
    let logins = engine.path("logins.json");
    fs::write(&logins, engine::logins())?;
    machine.configure(&format!(
        "\n[update.container]\nsocket = {:?}\nallow = [\"app\"]\nrepositories = [\"{}\"]\nlogin_file = {logins:?}\nstable_seconds = 4\n",
        engine.socket(),
        repository("")
    ))
}

/// What a command is asked for with.
fn arguments(image: &str) -> Value {
    json!({ "container": "app", "image": image })
}

async fn listed(fleet: &Fleet) -> anyhow::Result<String> {
    wait_for("the device to be listed", fleet::LINK_LIMIT, async || {
        text(&fleet.tenant.get("/devices").await?["items"][0], "id")
    })
    .await
}

/// As an operator would, on a device with a whole agent.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_gives_a_container_another_image() -> anyhow::Result<()> {
    engine::test("an_operator_gives_a_container_another_image", async |engine| {
        let before = engine.publish(Image { name: "before", ..GOOD }).await?;
        let good = engine.publish(Image { bytes: LARGE, ..GOOD }).await?;
        let ends = engine.publish(Image { name: "ends", command: "exit 3", ..GOOD }).await?;
        engine.run("app", &before, configuration()).await?;
        let fleet = Fleet::start().await?;
        let mut machine = fleet.new_machine("gateway")?;
        configure(&machine, &engine)?;
        machine.enroll(&fleet.enrollment_token("gateway").await?)?;
        machine.power_on()?;
        let device = listed(&fleet).await?;
        fleet.wait_for_link(&device, "live").await?;

        // Neither without the scope, nor by a tag.
        let body =
            |image: &str| json!({ "kind": "container.update", "arguments": arguments(image), "reason": "a test" });
        fleet.grant(&device, &["os:update", "agent:update"]).await?;
        ensure!(fleet.operator.command(&device, &body(&good)).await?.status == 403);
        let grant = fleet.grant(&device, &["container:update"]).await?;
        let tag = format!("{}:latest", repository("good"));
        ensure!(fleet.operator.command(&device, &body(&tag)).await?.status == 422);

        let cli = fleet.cli(fleet.operator.token());
        let update = async |image: &str| {
            let what = ["update-container", "gateway", "--container", "app", "--image", image, "--reason", "a test"];
            cli.run(&[&["--json"][..], &what].concat()).await
        };
        let done = update(&ends).await?;
        ensure!(done.code.is_some_and(|code| code != 0), "{done:?}");
        let done: Value = serde_json::from_str(&done.stdout)?;
        ensure!(done["code"] == "rolled_back" && done["data"]["reason"] == "exited", "{done}");
        ensure_runs(&engine, "app", &before).await?;

        let done = update(&good).await?;
        ensure!(done.code == Some(0), "{done:?}");
        let done: Value = serde_json::from_str(&done.stdout)?;
        ensure!(done["state"] == "succeeded" && done["data"]["image_after"] == good, "{done}");
        ensure_runs(&engine, "app", &good).await?;

        // A rollout carries it like anything else.
        let asked = arguments(&before).to_string();
        let plan = ["rollout", "plan", "container.update", "--arguments", &asked, "--grant", &grant, "-l", "!retired"];
        let planned = cli.run(&[&plan[..], &["--reason", "a test", "--json"]].concat()).await?;
        ensure!(planned.code == Some(0), "{planned:?}");
        let planned: Value = serde_json::from_str(&planned.stdout)?;
        let applied = cli.run(&["rollout", "apply", &text(&planned, "id")?, &text(&planned, "hash")?]).await?;
        ensure!(applied.code == Some(0), "{applied:?}");
        let shown = fleet.operator.get(&format!("/rollouts/{}", text(&planned, "id")?)).await?;
        ensure!(shown["totals"]["succeeded"] == 1, "{shown}");
        ensure_runs(&engine, "app", &before).await?;

        // The agent dies while the new container shows what it is worth: another goes on, and nothing is done twice.
        let id = fleet.command(&device, "container.update", &arguments(&good)).await?;
        let journal = machine.state_dir().join("update/container.json");
        wait_for("the new container", fleet::COMMAND_LIMIT, async || {
            let journal: Value = serde_json::from_slice(&fs::read(&journal)?)?;
            ensure!(journal["phase"]["is"] == "confirming" && journal["update"]["image"] == good, "{journal}");
            Ok(())
        })
        .await?;
        let new_id = engine.container("app").await?.context("it")?["Id"].clone();
        machine.kill_agent()?;
        machine.power_on()?;
        let done = fleet.finished(&id).await?;
        ensure!(done["state"] == "succeeded" && done["data"]["container_id"] == new_id, "{done}");
        ensure!(ensure_runs(&engine, "app", &good).await?["Id"] == new_id);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_polls_says_which_containers_run_and_updates_them() -> anyhow::Result<()> {
    engine::test("a_device_that_polls_says_which_containers_run_and_updates_them", async |engine| {
        let before = engine.publish(Image { name: "before", ..GOOD }).await?;
        let good = engine.publish(GOOD).await?;
        engine.run("app", &before, configuration()).await?;
        let set = vec!["poll.interval_seconds=2".to_owned()];
        let fleet = Fleet::start_with(&Settings { set, ..Settings::default() }).await?;
        let middlebox = Middlebox::start(port::free()?, fleet.server.device, Passes::Everything).await?;
        let mut machine = fleet.new_machine_dialling("gateway", middlebox.address)?.polling_after(1)?;
        configure(&machine, &engine)?;
        // What an engine says has passwords in it.
        let config = fs::read_to_string(machine.config_file())?;
        fs::write(machine.config_file(), config.replace("info,cloudlink_agent=debug", "trace"))?;
        machine.enroll(&fleet.enrollment_token("gateway").await?)?;
        middlebox.set(Passes::WholeAnswers);
        machine.power_on()?;
        let device = listed(&fleet).await?;
        let shows = async |state: &str| {
            wait_for("what runs", fleet::COMMAND_LIMIT, async || {
                let shown = fleet.tenant.get(&format!("/devices/{device}")).await?;
                let app = json!({ "name": "app", "state": state, "kind": "container" });
                ensure!(shown["poll"]["running"].as_array().is_some_and(|running| running.contains(&app)), "{shown}");
                Ok(())
            })
            .await
        };
        shows("running").await?;
        let examined = machine.agent()?.arg("doctor").arg("--config").arg(machine.config_file()).output()?;
        let examined = String::from_utf8_lossy(&examined.stdout).into_owned();
        ensure!(examined.contains("containers   app running"), "{examined}");
        engine.done("POST", "/containers/app/stop", None).await?;
        shows("exited").await?;

        fleet.grant(&device, &["container:update"]).await?;
        let mut body = json!({ "kind": "container.update", "arguments": arguments(&good), "reason": "a test" });
        body["queue_for_seconds"] = 600.into();
        let id = text(&fleet.operator.command(&device, &body).await?.success()?, "id")?;
        let done = fleet.finished(&id).await?;
        ensure!(done["state"] == "succeeded" && done["data"]["image_after"] == good, "{done}");
        ensure_runs(&engine, "app", &good).await?;
        shows("running").await?;
        let log = machine.log_text()?;
        ensure!(
            log.contains(" TRACE ") && !log.contains("OWN=1") && !log.contains("X-Registry-Auth"),
            "it is in the log"
        );
        Ok(())
    })
    .await
}
