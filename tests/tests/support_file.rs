//! Files, to a device and from it: whole, unchanged, and only where they may be.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use cloudlink_tests::api::text;
use cloudlink_tests::cli::{Cli, Said};
use cloudlink_tests::fleet::{Device, Fleet};
use cloudlink_tests::poll::wait_for;
use data_encoding::HEXLOWER;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;

const LIMIT: Duration = Duration::from_secs(40);
/// Longer than it takes to interrupt it.
const LARGE_BYTES: u64 = 900 * 1024 * 1024;

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|byte| u8::try_from((byte * 131 + byte / 251) % 256).unwrap_or_default()).collect()
}

async fn cp(cli: &Cli, code: i32, from: &str, to: &str) -> anyhow::Result<Said> {
    let said = cli.run(&["cp", from, to, "--reason", "a test"]).await?;
    ensure!(said.code == Some(code), "not {code} of cp {from} {to}: {said:#?}");
    Ok(said)
}

fn utf8(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("not UTF-8")
}

/// On the device, as it is typed.
fn there(device: &Device, name: &str) -> anyhow::Result<String> {
    Ok(format!("{}:{}", device.name, utf8(&device.machine.files_dir().join(name))?))
}

fn names(directory: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    entries.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_as_they_are() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let cli = fleet.cli(fleet.operator.token());
    let here = fleet.path("here");
    fs::create_dir(&here)?;
    let (original, back) = (here.join("original"), here.join("back"));
    fs::write(&original, "none")?;
    cp(&cli, 5, utf8(&original)?, &there(&device, "copy")?).await?;
    fleet.support_grant(&device.id, 900).await?;

    for (size, mode) in [(0, 0o600), (1, 0o640), (65_536, 0o755), (65_537, 0o444), (20_000_000, 0o600)] {
        let content = bytes(size);
        // Read-only ones, too, are replaced.
        let _ = fs::remove_file(&original);
        fs::write(&original, &content)?;
        fs::set_permissions(&original, fs::Permissions::from_mode(mode))?;
        let copied = cli.json(&["cp", utf8(&original)?, &there(&device, "copy")?, "--reason", "r"]).await?;
        let expected = HEXLOWER.encode(digest(&SHA256, &content).as_ref());
        ensure!(copied["size"] == size && copied["sha256"] == expected, "{copied}");
        let copy = device.machine.files_dir().join("copy");
        ensure!(fs::read(&copy)? == content, "{size} bytes differ there");
        ensure!(fs::metadata(&copy)?.permissions().mode() & 0o7777 == mode, "not {mode:o}");
        let ended = fleet.session_ended(&fleet.newest_session().await?, "exited").await?;
        ensure!(ended["bytes_to_device"] == size && ended["result"]["device_sha256"] == expected, "{ended}");

        cp(&cli, 0, &there(&device, "copy")?, utf8(&back)?).await?;
        ensure!(fs::read(&back)? == content, "{size} bytes differ here");
        let ended = fleet.session_ended(&fleet.newest_session().await?, "exited").await?;
        ensure!(ended["bytes_from_device"] == size && ended["result"]["device_sha256"] == expected, "{ended}");
    }
    ensure!(names(&device.machine.files_dir())? == ["copy"], "something else is there");

    // Into a directory; to and from pipes.
    cp(&cli, 0, &there(&device, "copy")?, utf8(&here)?).await?;
    ensure!(here.join("copy").is_file());
    fs::write(device.machine.files_dir().join("text"), "from there\n")?;
    let said = cp(&cli, 0, &there(&device, "text")?, "-").await?;
    ensure!(said.stdout == "from there\n", "{said:#?}");
    let target = there(&device, "piped")?;
    let mut command = cli.command(&["cp", "-", &target, "--reason", "a test"])?;
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("piped")?;
    stdin.write_all(b"from a pipe\n").await?;
    drop(stdin);
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.context("it hangs")??;
    ensure!(output.status.success(), "{output:?}");
    ensure!(fs::read_to_string(device.machine.files_dir().join("piped"))? == "from a pipe\n");
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_goes_where_it_may_not() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let cli = fleet.cli(fleet.operator.token());
    let (here, outside) = (fleet.path("here"), fleet.path("outside"));
    fs::create_dir(&here)?;
    fs::create_dir(&outside)?;
    let file = here.join("file");
    fs::write(&file, "content")?;
    fs::write(outside.join("secret"), "secret")?;
    let files = device.machine.files_dir();
    symlink(&outside, files.join("way-out"))?;
    symlink(outside.join("secret"), files.join("link"))?;
    fs::create_dir(files.join("directory"))?;
    let grant = fleet.support_grant(&device.id, 900).await?;

    let from = async |code: i32, path: &str| {
        let said = cp(&cli, code, &format!("gw-1:{path}"), utf8(&here.join("got"))?).await?;
        ensure!(names(&here)? == ["file"], "{path} left something here");
        anyhow::Ok(said)
    };
    let inside = |name: &str| Ok::<_, anyhow::Error>(utf8(&files.join(name))?.to_owned());
    from(6, "/etc/hosts").await?;
    from(6, utf8(&outside.join("secret"))?).await?;
    from(6, &inside("../../outside/secret")?).await?;
    from(6, &inside("way-out/secret")?).await?;
    from(6, &inside("link")?).await?;
    from(6, &inside("directory")?).await?;
    let missing = from(6, &inside("missing")?).await?;
    ensure!(missing.stderr.replace('_', " ").contains("not found"), "{missing:#?}");
    from(2, "relative").await?;

    let to = async |code: i32, path: &str| {
        let said = cp(&cli, code, utf8(&file)?, &format!("gw-1:{path}")).await?;
        let mut left = names(&files)?;
        left.sort();
        ensure!(left == ["directory", "link", "way-out"] && names(&outside)? == ["secret"], "{path}: {left:?}");
        anyhow::Ok(said)
    };
    to(6, utf8(&outside.join("new"))?).await?;
    to(6, &inside("../../outside/new")?).await?;
    to(6, &inside("way-out/new")?).await?;
    to(6, &inside("directory")?).await?;
    to(6, &inside("missing/new")?).await?;
    ensure!(fs::read_to_string(outside.join("secret"))? == "secret", "written through a link");

    // Here.
    cp(&cli, 4, utf8(&here.join("missing"))?, &there(&device, "new")?).await?;
    cp(&cli, 2, utf8(&file)?, utf8(&here.join("copy"))?).await?;
    cp(&cli, 2, "gw-1:/a", "gw-2:/b").await?;

    // One direction is not the other.
    fleet.tenant.post(&format!("/grants/{}/revoke", text(&grant, "id")?), &serde_json::json!({})).await?;
    fleet.grant(&device.id, &["file:write"]).await?;
    fs::write(files.join("readable"), "x")?;
    from(5, &inside("readable")?).await?;
    fs::remove_file(files.join("readable"))?;
    cp(&cli, 0, utf8(&file)?, &there(&device, "new")?).await?;
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_interrupted_leaves_nothing_at_either_end() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let cli = fleet.cli(fleet.operator.token());
    let here = fleet.path("here");
    fs::create_dir(&here)?;
    fleet.support_grant(&device.id, 900).await?;
    let files = device.machine.files_dir();
    let (local, remote) = (here.join("large"), files.join("large"));
    for (source, target, from, to) in [
        (&local, &files, utf8(&local)?.to_owned(), there(&device, "arrives")?),
        (&remote, &here, there(&device, "large")?, utf8(&here.join("arrives"))?.to_owned()),
    ] {
        fs::File::create(source)?.set_len(LARGE_BYTES)?;
        let before = names(target)?.len();
        let mut command = cli.command(&["cp", &from, &to, "--reason", "a test"])?;
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        wait_for("a session in which bytes flow", LIMIT, async || {
            let session = fleet.newest_session().await?;
            ensure!(session["state"] == "live", "{session}");
            Ok(())
        })
        .await?;
        kill(Pid::from_raw(child.id().context("it has ended")?.cast_signed()), Signal::SIGINT)?;
        let status = tokio::time::timeout(LIMIT, child.wait()).await.context("it goes on")??;
        ensure!(status.code() == Some(130), "{status}");
        wait_for("nothing", LIMIT, async || {
            let names = names(target)?;
            ensure!(names.len() == before, "{names:?}");
            Ok(())
        })
        .await?;
        fleet.session_ended(&fleet.newest_session().await?, "closed").await?;
        fs::remove_file(source)?;
    }
    device.machine.stop()
}
