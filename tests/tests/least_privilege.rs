//! The server as `docker/cloudlinkd.service` runs it: a user of its own, two capabilities, hardly anything to write to or to
//! execute. And without one thing that it takes: refused, in words that name it.

use std::fs::{Permissions, read_to_string, set_permissions, write};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use cloudlink_tests::fleet::{Fleet, directory};
use cloudlink_tests::netns::{self, Site, done};
use cloudlink_tests::openvpn::Pings;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::program::Program;
use cloudlink_tests::rights::{Installed, within};
use cloudlink_tests::server::{Plan, Runner, Settings, command_as};
use cloudlink_tests::traffic::metric;
use nix::unistd::Pid;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;

const UNIT: &str = include_str!("../../docker/cloudlinkd.service");
const UNIT_WITH_POSTGRES: &str = include_str!("../../docker/cloudlinkd.service.d/postgres.conf");
const COMPOSE: &str = include_str!("../../docker/compose.yaml");
const COMPOSE_WITH_TUNNELS: &str = include_str!("../../docker/compose.tunnels.yaml");
const DOCKERFILE: &str = include_str!("../../docker/Dockerfile");
/// On the file, permitted and not in effect: what the process may not have is left out, instead of refusing to run it.
const FILE_CAPABILITIES: &str = "cap_net_admin,cap_net_bind_service+p";
/// Where the unit has the program.
const INSTALLED: &str = "/usr/bin/cloudlinkd";
/// Bits in `/proc/<pid>/status`.
const NET_ADMIN: u64 = 1 << 12;
const NET_BIND_SERVICE: u64 = 1 << 10;
/// For a refused start to end.
const REFUSED_LIMIT: Duration = Duration::from_secs(60);
/// For a drift to be found and repaired.
const REPAIR_LIMIT: Duration = Duration::from_secs(10);
/// Of a device.
const SUPPORT_PORT: u16 = 8022;
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// What a shell would be.
const SHELLS: &str = "dash bash sh ksh mksh zsh busybox";

/// Does what the unit asks of systemd with the file system, as far as it is mounts: $1 may be written to, $2 executed, and
/// nothing else. What comes after is started in there.
const MOUNTS: &str = r#"
    set -e
    writable=$1 executable=$2
    shift 2
    mount --bind "$writable" "$writable"
    mount -o remount,bind,noexec "$writable"
    for path in $executable; do
        path=$(readlink -f "$path")
        [ -e "$path" ] || continue
        mount --bind "$path" "$path"
        mount -o remount,bind,ro,exec "$path"
    done
    mount --bind /proc/sys /proc/sys
    mount --bind /proc/sys/net /proc/sys/net
    mount -o remount,bind,ro /proc/sys
    mount -o remount,bind,ro,noexec /
    exec "$@"
"#;

/// Lets everybody open /dev/net/tun, as udev does: what may be done with it takes CAP_NET_ADMIN.
const TUN: &str = r#"
    set -e
    mount -t tmpfs -o mode=0755 tmpfs /dev/net
    mknod -m 0666 /dev/net/tun c 10 200
    exec "$@"
"#;

/// What a container runtime does with /proc/sys.
const READ_ONLY_SETTINGS: &str = r#"
    set -e
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
    exec "$@"
"#;

/// Puts $1 in the place of each shell. What comes after is started in there.
const TRAP: &str = r#"
    set -e
    trap=$1 shells=$2
    shift 2
    for shell in $shells; do
        path=$(readlink -f "/usr/bin/$shell")
        [ ! -e "$path" ] || mount --bind "$trap" "$path"
    done
    exec "$@"
"#;

/// The values of a setting of the unit, and of what is added to it for a Postgres of the node's own.
fn unit_values(key: &str) -> impl Iterator<Item = &str> {
    let lines = UNIT.lines().chain(UNIT_WITH_POSTGRES.lines());
    lines.filter_map(move |line| line.strip_prefix(key)?.strip_prefix('=')).flat_map(str::split_whitespace)
}

/// As the unit runs it.
fn as_the_unit(installed: &Installed) -> Runner {
    let capabilities: Vec<_> =
        unit_values("AmbientCapabilities").map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect();
    let runner = installed.with_capabilities(&capabilities.iter().map(String::as_str).collect::<Vec<_>>());
    let program = installed.program();
    let executable: Vec<_> = unit_values("ExecPaths")
        .map(|path| if path == INSTALLED { &program } else { path.trim_start_matches('-') })
        // With which the test becomes the user.
        .chain(["/usr/bin/setpriv"])
        .collect();
    let writable = std::env::temp_dir().display().to_string();
    within(MOUNTS, &[&writable, &executable.join(" ")], runner)
}

/// The settings that compose makes for a container with tunnels, as `sysctl -w` takes them.
fn container_settings() -> Vec<String> {
    let lines = COMPOSE.lines().chain(COMPOSE_WITH_TUNNELS.lines()).map(str::trim);
    let settings =
        lines.filter_map(|line| line.trim_start_matches("sysctls: { ").trim_end_matches(" }").split_once(": "));
    settings.filter(|(key, _)| key.starts_with("net.")).map(|(key, value)| format!("{key}={value}")).collect()
}

/// As the image's build does.
fn set_capabilities(installed: &Installed) -> anyhow::Result<()> {
    let mut setcap = Command::new("setcap");
    setcap.args([FILE_CAPABILITIES, &installed.program()]);
    ensure!(DOCKERFILE.contains(FILE_CAPABILITIES));
    done(setcap).map(drop)
}

/// Runs something where a process sees the file system.
fn beside(pid: Pid, words: &[&str]) -> anyhow::Result<Output> {
    Ok(Command::new("nsenter").arg(format!("--mount=/proc/{pid}/ns/mnt")).arg("--").args(words).output()?)
}

/// A line of `/proc/<pid>/status`.
fn status(pid: &str, key: &str) -> anyhow::Result<String> {
    let text = read_to_string(format!("/proc/{pid}/status"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    Ok(value.with_context(|| format!("no {key} in {text}"))?.trim().to_owned())
}

fn capabilities(pid: &str, set: &str) -> anyhow::Result<u64> {
    Ok(u64::from_str_radix(&status(pid, set)?, 16)?)
}

async fn fleet(runner: Runner) -> anyhow::Result<Fleet> {
    let runner = Some(within(TUN, &[], runner));
    Fleet::start_with(&Settings { runner, ..Settings::with_tunnels(&["isolation.proofs=true"]) }).await
}

/// A device gets a link, another one a tunnel, in which a port is opened; and isolation can be proven.
async fn serves(fleet: &Fleet) -> anyhow::Result<()> {
    let linked = fleet.device("linked").await?;
    let site = Arc::new(Site::join()?);
    let (device, mut client) = fleet.client(&site, "tunnelled").await?;
    let tunnel = client.is_up(1).await?;
    Pings::default().come_back(&client, &tunnel).await?;
    let _listener = site.run(async || Ok(std::net::TcpListener::bind((tunnel.ipv4, SUPPORT_PORT))?))?;
    let connect = || timeout(CONNECT_LIMIT, TcpStream::connect((tunnel.ipv4, SUPPORT_PORT)));
    ensure!(!matches!(connect().await, Ok(Ok(_))), "it was open before anybody opened it");
    fleet.open_port(&device.id, SUPPORT_PORT).await?;
    connect().await.context("an open port does not answer")??;
    fleet.wait_for_link(&linked.id, "live").await?;
    let proof = fleet.admin.post("/isolation/proofs", &json!({})).await?;
    ensure!(proof["outcome"] == "proven", "{proof:#}");
    Ok(())
}

/// What somebody else breaks is repaired: rules, and settings.
async fn repairs(fleet: &Fleet) -> anyhow::Result<()> {
    let repaired = async |kind: &str| {
        wait_for(&format!("repaired isolation: {kind}"), REPAIR_LIMIT, async || {
            let (_, metrics) = fleet.server.operations("/metrics").await?;
            let found = metric(&metrics, "cloudlink_isolation_drifts_total", kind)?;
            let (status, body) = fleet.server.operations("/readyz").await?;
            ensure!(found >= 1.0 && status == 200, "{found} {body}");
            Ok(())
        })
        .await
    };
    let nft = |arguments: &[&str]| {
        let mut nft = Command::new("nft");
        nft.args(arguments);
        done(nft)
    };
    nft(&["flush", "table", "inet", "cloudlink"])?;
    repaired("rules").await?;
    ensure!(nft(&["list", "chain", "inet", "cloudlink", "cl_enter"])?.contains("cl_tunnel4"));

    let forwarding = "/proc/sys/net/ipv4/conf/cloudlink0/forwarding";
    write(forwarding, "1")?;
    repaired("setting").await?;
    ensure!(read_to_string(forwarding)?.trim() == "0");
    // Whoever may set it may ask, with no right more.
    done(fleet.server.command(&["isolation", "verify"])?).map(drop)
}

/// Waits for a start to be refused, and gives back what was said.
fn refused(runner: Runner) -> anyhow::Result<String> {
    let directory = directory()?;
    let files = directory.path().join("server");
    let settings = Settings { runner: Some(runner), ..Settings::with_tunnels(&[]) };
    let plan = Plan::new(&files, &settings)?;
    plan.init_pki()?;
    let command = command_as(settings.runner.as_ref(), &files, &["run"], &settings.set)?;
    let mut program = Program::start("cloudlinkd", command, &directory.path().join("log"))?;
    let ended = program.wait(REFUSED_LIMIT)?;
    let log = program.log_text()?;
    ensure!(ended.and_then(|status| status.code()) == Some(1), "{ended:?}: {log}");
    Ok(log)
}

#[test]
fn two_capabilities_and_what_the_unit_leaves_suffice() -> anyhow::Result<()> {
    netns::test("two_capabilities_and_what_the_unit_leaves_suffice", async || {
        let installed = Installed::make()?;
        let mut fleet = fleet(as_the_unit(&installed)).await?;
        serves(&fleet).await?;
        repairs(&fleet).await?;

        let pid = fleet.server.program().pid();
        let own = pid.to_string();
        ensure!(status(&own, "Uid")?.split_whitespace().all(|uid| uid == installed.user().uid.to_string()));
        ensure!(status(&own, "NoNewPrivs")? == "1");
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            ensure!(capabilities(&own, set)? == NET_ADMIN | NET_BIND_SERVICE, "{set}: {}", status(&own, set)?);
        }
        // For nft; Postgres gets nothing.
        ensure!(capabilities(&own, "CapAmb")? == NET_ADMIN);
        let postgres = read_to_string(fleet.server.data_dir().join("postgres/data/postmaster.pid"))?;
        let postgres = postgres.lines().next().context("no process id of Postgres")?;
        for set in ["CapPrm", "CapEff", "CapAmb", "CapInh"] {
            ensure!(capabilities(postgres, set)? == 0, "{set}: {}", status(postgres, set)?);
        }

        // The test sees what the server would: not even root could.
        let denied = |words: &[&str]| anyhow::Ok(String::from_utf8(beside(pid, words)?.stderr)?);
        ensure!(denied(&["/usr/bin/true"])?.contains("Permission denied"));
        ensure!(denied(&["/usr/bin/bash", "-c", "true"])?.contains("Permission denied"));
        let error = write(format!("/proc/{pid}/root/etc/cloudlink-was-here"), "").err();
        ensure!(error.is_some_and(|error| error.kind() == ErrorKind::ReadOnlyFilesystem));
        ensure!(fleet.server.stop()?.success());
        Ok(())
    })
}

#[test]
fn a_program_file_with_two_capabilities_suffices() -> anyhow::Result<()> {
    netns::test("a_program_file_with_two_capabilities_suffices", async || {
        let installed = Installed::make()?;
        set_capabilities(&installed)?;
        let runner = installed.with_options(&["--inh-caps=-all", "--ambient-caps=-all"]);
        let mut fleet = fleet(runner).await?;
        serves(&fleet).await?;
        repairs(&fleet).await?;

        let pid = fleet.server.program().pid().to_string();
        ensure!(capabilities(&pid, "CapPrm")? == NET_ADMIN | NET_BIND_SERVICE);
        // It was not ambient when the program was started.
        ensure!(capabilities(&pid, "CapAmb")? == NET_ADMIN);
        ensure!(fleet.server.stop()?.success());
        Ok(())
    })
}

/// A container gives a user of its own no capability, but lets the program's file give it those that the container has; and
/// /proc/sys is not to be written.
#[test]
fn a_container_that_makes_the_settings_itself_suffices() -> anyhow::Result<()> {
    netns::test("a_container_that_makes_the_settings_itself_suffices", async || {
        let installed = Installed::make()?;
        set_capabilities(&installed)?;
        for setting in container_settings() {
            let mut sysctl = Command::new("sysctl");
            sysctl.arg("-w").arg(setting);
            done(sysctl)?;
        }
        let in_container = ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all,+net_admin"];
        let runner = installed.with_options(&in_container);
        let mut fleet = fleet(within(READ_ONLY_SETTINGS, &[], runner)).await?;
        serves(&fleet).await?;
        let pid = fleet.server.program().pid().to_string();
        ensure!(capabilities(&pid, "CapPrm")? == NET_ADMIN && capabilities(&pid, "CapBnd")? == NET_ADMIN);
        ensure!(fleet.server.stop()?.success());

        // The same program runs where there are no tunnels and no capabilities.
        let nothing = installed.with_options(&["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]);
        let (program, arguments) = nothing.command.split_first().context("a command")?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--version");
        done(command)?;
        Ok(())
    })
}

#[test]
fn what_lacks_for_tunnels_is_named() -> anyhow::Result<()> {
    netns::test("what_lacks_for_tunnels_is_named", async || {
        let installed = Installed::make()?;
        let said = refused(installed.with_capabilities(&["net_bind_service"]))?;
        ensure!(said.contains("lacks the capability CAP_NET_ADMIN"), "{said}");
        ensure!(said.contains("AmbientCapabilities=CAP_NET_ADMIN"), "{said}");

        let no_tun = r#"set -e; mount -t tmpfs tmpfs /dev/net; exec "$@""#;
        let runner = installed.with_capabilities(&["net_admin", "net_bind_service"]);
        let said = refused(within(no_tun, &[], runner.clone()))?;
        ensure!(said.contains("/dev/net/tun cannot be opened"), "{said}");
        let not_ours = r#"set -e; mount -t tmpfs tmpfs /dev/net; mknod -m 0600 /dev/net/tun c 10 200; exec "$@""#;
        let said = refused(within(not_ours, &[], runner))?;
        ensure!(said.contains("access to /dev/net/tun"), "{said}");
        Ok(())
    })
}

#[test]
fn no_shell_is_ever_started() -> anyhow::Result<()> {
    netns::test("no_shell_is_ever_started", async || {
        let installed = Installed::make()?;
        let (trap, calls) = (installed.path("trap"), installed.path("calls"));
        write(
            &trap,
            format!("#!/usr/bin/perl\nopen F, '>>', '{}'; print F \"@ARGV\\n\"; exit 127;\n", calls.display()),
        )?;
        set_permissions(&trap, Permissions::from_mode(0o755))?;
        write(&calls, "")?;
        set_permissions(&calls, Permissions::from_mode(0o666))?;

        // The first start makes a database, and initdb has a shell of its own.
        let runner = installed.with_capabilities(&["net_admin", "net_bind_service"]);
        let mut fleet = fleet(runner.clone()).await?;
        fleet.server.stop()?;
        let trapped = within(TRAP, &[&trap.display().to_string(), SHELLS], runner);
        fleet.server.start_again_as(within(TUN, &[], trapped)).await?;
        serves(&fleet).await?;
        repairs(&fleet).await?;
        let pid = fleet.server.program().pid();
        ensure!(read_to_string(&calls)?.is_empty(), "{}", read_to_string(&calls)?);
        ensure!(beside(pid, &["sh", "-c", "the trap works"])?.status.code() == Some(127));
        ensure!(fleet.server.stop()?.success());
        ensure!(read_to_string(&calls)? == "-c the trap works\n", "{}", read_to_string(&calls)?);
        Ok(())
    })
}
