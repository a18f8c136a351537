//! docs/OPENVPN-CLIENTS.md, carried out to the letter: what makers of devices read is what works.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use cloudlink_tests::fleet::{Fleet, LINK_LIMIT, directory};
use cloudlink_tests::netns::{self, SERVER_IPV4, Site, done};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::program::{Program, binary};
use cloudlink_tests::server::Settings;

const PAGE: &str = include_str!("../../docs/OPENVPN-CLIENTS.md");
/// The names that the page uses.
const SERVER: &str = "devices.example.com";
const ENROLL: &str = "enroll.devices.example.com";
const DEVICE: &str = "gw-1";

/// What stands in the page's blocks of this kind.
fn blocks(kind: &str) -> Vec<&'static str> {
    let fenced = PAGE.split("\n```").skip(1).step_by(2);
    fenced.filter_map(|block| block.split_once('\n')).filter(|(of, _)| *of == kind).map(|(_, text)| text).collect()
}

#[test]
fn a_device_is_enrolled_and_connected_as_the_page_says() -> anyhow::Result<()> {
    netns::test("a_device_is_enrolled_and_connected_as_the_page_says", async || {
        let names =
            [("server_name", SERVER), ("enroll_name", ENROLL)].map(|(key, name)| format!("device.{key}={name}"));
        let fleet = Fleet::start_with(&Settings::with_tunnels(&names.each_ref().map(String::as_str))).await?;
        let (site, directory) = (Site::join()?, directory()?);
        let here = directory.path();
        std::fs::write(here.join("hosts"), format!("{SERVER_IPV4} {SERVER} {ENROLL}\n"))?;
        std::fs::copy(fleet.server.ca_file(), here.join("ca.pem"))?;

        let [token, enroll, profile, start] = blocks("sh")[..] else { anyhow::bail!("the page has other commands") };
        done(as_customer(&fleet, here, token)?)?;
        done(on_device(&site, here, enroll))?;
        // The answer was lost, and the device asks again.
        let first = std::fs::read(here.join("enrolled.json"))?;
        done(on_device(&site, here, enroll))?;
        ensure!(std::fs::read(here.join("enrolled.json"))? == first, "another certificate for the same key");
        done(as_customer(&fleet, here, profile)?)?;
        let command = on_device(&site, here, &format!("exec {start}"));
        let mut client = Program::start("openvpn", command, &here.join("openvpn.log"))?;

        let [says] = blocks("")[..] else { anyhow::bail!("the page shows another log") };
        wait_for("what the page shows of the client's log", LINK_LIMIT, async || {
            client.ensure_running()?;
            let log = client.log_text()?;
            for line in says.lines() {
                let line = line.trim_end_matches(" …");
                ensure!(log.contains(line), "{line:?} is not in\n{log}");
            }
            Ok(())
        })
        .await?;
        wait_for("the device to be listed as the page says", LINK_LIMIT, async || {
            let listed = done(as_customer(&fleet, here, "cloudlink devices")?)?;
            ensure!(
                PAGE.contains("`live, openvpn, no agent`") && listed.contains("live, openvpn, no agent"),
                "{listed}"
            );
            Ok(())
        })
        .await?;
        let shown = done(as_customer(&fleet, here, &format!("cloudlink device show {DEVICE}"))?)?;
        ensure!(shown.contains("tunnel ") && shown.contains("OpenVPN 2."), "{shown}");
        client.stop()?;
        Ok(())
    })
}

/// Commands of the customer, who has signed in.
fn as_customer(fleet: &Fleet, directory: &Path, commands: &str) -> anyhow::Result<Command> {
    let program = binary("cloudlink")?;
    let programs = program.parent().context("programs are in a directory")?.display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("sh");
    command
        .args(["-ec", commands])
        .current_dir(directory)
        .env("PATH", format!("{programs}:{path}"))
        .env("CLOUDLINK_CONFIG_DIR", directory)
        .env("CLOUDLINK_API", fleet.server.api_url())
        .env("CLOUDLINK_CA", fleet.server.ca_file())
        .env("CLOUDLINK_TOKEN", fleet.tenant.token());
    Ok(command)
}

/// Commands on the device, where the server's names resolve.
fn on_device(site: &Site, directory: &Path, commands: &str) -> Command {
    let mut command = site.bound("unshare");
    let resolving = format!("mount --bind hosts /etc/hosts\n{commands}");
    command.args(["--mount", "sh", "-ec", &resolving]).current_dir(directory);
    command
}
