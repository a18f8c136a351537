//! Files in both directions, on a real disk.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use cloudlink_proto::link::message::{FileGet, FilePut, stream_request};
use cloudlink_proto::stream::{Control, DATA_BYTES_MAX};
use data_encoding::HEXLOWER;

use crate::server::{Device, ServerStream, eventually};
use crate::stream::{Said, Scene};

const BYTES_MAX: usize = 4 * 1024 * 1024;

async fn scene() -> Scene {
    Scene::with(|device| {
        fs::create_dir_all(root(device).join("sub")).unwrap();
        format!("[file]\nroots = [{:?}]\nbytes_max = {BYTES_MAX}\n", root(device))
    })
    .await
}

fn root(device: &Device) -> std::path::PathBuf {
    device.path("files")
}

fn put(path: &Path, size: usize, mode: u32) -> stream_request::Kind {
    let path = path.to_str().unwrap().to_owned();
    stream_request::Kind::FilePut(FilePut { path, size: size as u64, mode })
}

fn get(path: &Path) -> stream_request::Kind {
    stream_request::Kind::FileGet(FileGet { path: path.to_str().unwrap().to_owned() })
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|at| u8::try_from(at * 31 % 253).unwrap()).collect()
}

fn done(bytes: &[u8]) -> Control {
    Control::Done { size: bytes.len() as u64, sha256: HEXLOWER.encode(digest(&SHA256, bytes).as_ref()) }
}

async fn send(stream: &mut ServerStream, bytes: &[u8]) {
    stream.say(&Control::File { size: bytes.len() as u64, mode: 0o600 }).await;
    for chunk in bytes.chunks(DATA_BYTES_MAX) {
        stream.pass(chunk.to_vec()).await;
    }
}

async fn failure(stream: &mut ServerStream) -> String {
    let mut word = stream.word().await.1;
    if word == Control::Ready {
        word = stream.word().await.1;
    }
    let Control::Failed { code, .. } = word else { panic!("expected a failure, got {word:?}") };
    code
}

/// All that is in a directory and below it.
fn entries(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        found.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        if path.is_dir() && !path.is_symlink() {
            found.extend(entries(&path));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_file_comes_whole_with_its_mode_and_goes_back_as_it_was() {
    let mut scene = scene().await;
    assert!(scene.link.hello.capabilities.ends_with(&["stream.file".to_owned()]));
    for (name, size) in
        [("empty", 0), ("small", 11), ("a chunk", DATA_BYTES_MAX), ("sub/grüße", 3 * DATA_BYTES_MAX + 17)]
    {
        let (path, bytes) = (root(&scene.device).join(name), content(size));
        let mut stream = scene.open(put(&path, size, 0o4751)).await;
        assert_eq!(stream.said().await, Said::Control(Control::Ready));
        assert!(!path.exists(), "not before it is whole");
        send(&mut stream, &bytes).await;
        stream.say(&done(&bytes)).await;
        assert_eq!(stream.said().await, Said::Control(done(&bytes)));
        assert!(fs::read(&path).unwrap() == bytes, "{name}");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o751, "what comes from afar does not run as its owner");
        assert_eq!(stream.said().await, Said::Gone);

        let mut stream = scene.open(get(&path)).await;
        assert_eq!(stream.said().await, Said::Control(Control::Ready));
        assert_eq!(stream.said().await, Said::Control(Control::File { size: size as u64, mode: 0o751 }));
        let (read, word) = stream.word().await;
        assert!(read == bytes && word == done(&bytes), "{name}: {word:?}");
        assert_eq!(stream.said().await, Said::Gone);
    }
    assert_eq!(entries(&root(&scene.device)), ["a chunk", "empty", "grüße", "small", "sub"]);
    let log = scene.stop().await;
    assert!(log.contains("bytes_to_device=196625"), "the log says how much it was");
}

#[tokio::test]
async fn a_file_that_was_there_is_replaced_as_a_whole_and_keeps_its_owner() {
    let mut scene = scene().await;
    let path = root(&scene.device).join("app.conf");
    fs::write(&path, "old").unwrap();
    let can_give_away = nix::unistd::geteuid().is_root();
    if can_give_away {
        std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
    }
    let before = fs::File::open(&path).unwrap();
    let mut stream = scene.open(put(&path, 3, 0o640)).await;
    send(&mut stream, b"new").await;
    stream.say(&done(b"new")).await;
    assert_eq!(stream.said().await, Said::Control(Control::Ready));
    assert_eq!(stream.said().await, Said::Control(done(b"new")));
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(std::io::read_to_string(before).unwrap(), "old", "whoever has it open still reads the old one");
    if can_give_away {
        assert_eq!(fs::metadata(&path).unwrap().uid(), 1234);
    }
    scene.stop().await;
}

#[tokio::test]
async fn what_did_not_come_as_it_was_sent_leaves_nothing() {
    let mut scene = scene().await;
    let path = root(&scene.device).join("file");
    let bytes = content(200_000);

    let mut stream = scene.open(put(&path, bytes.len(), 0o644)).await;
    send(&mut stream, &bytes).await;
    stream.say(&Control::Done { size: bytes.len() as u64, sha256: "0".repeat(64) }).await;
    assert_eq!(failure(&mut stream).await, "digest_mismatch");

    let mut stream = scene.open(put(&path, bytes.len(), 0o644)).await;
    send(&mut stream, &bytes[..100_000]).await;
    assert_eq!(failure(&mut stream).await, "size_mismatch", "another size than was asked for");

    let mut stream = scene.open(put(&path, bytes.len(), 0o644)).await;
    stream.say(&Control::File { size: bytes.len() as u64, mode: 0 }).await;
    stream.pass(bytes[..65_536].to_vec()).await;
    stream.say(&done(&bytes)).await;
    assert_eq!(failure(&mut stream).await, "size_mismatch", "fewer bytes");

    let mut stream = scene.open(put(&path, 10, 0o644)).await;
    stream.say(&Control::File { size: 10, mode: 0 }).await;
    stream.pass(vec![0; 11]).await;
    assert_eq!(failure(&mut stream).await, "size_mismatch", "more bytes");

    let mut stream = scene.open(put(&path, 10, 0o644)).await;
    assert_eq!(stream.said().await, Said::Control(Control::Ready));
    stream.pass(vec![0; 10]).await;
    stream.gone().await;

    let mut stream = scene.open(put(&path, bytes.len(), 0o644)).await;
    send(&mut stream, &bytes).await;
    assert_eq!(stream.said().await, Said::Control(Control::Ready));
    drop(stream);
    eventually("the cut is seen", || scene.log().matches("a stream has ended").count() == 6).await;
    eventually("nothing is left", || entries(&root(&scene.device)) == ["sub"]).await;
    scene.stop().await;
}

#[tokio::test]
async fn what_is_too_large_or_no_file_or_not_there_is_refused() {
    let mut scene = scene().await;
    let root = root(&scene.device);
    let request = scene.request(put(&root.join("large"), BYTES_MAX + 1, 0o644));
    assert_eq!(scene.refused(request).await.code, "too_large");
    fs::write(root.join("large"), vec![0; BYTES_MAX + 1]).unwrap();
    fs::File::create(root.join("sparse")).unwrap().set_len(1 << 40).unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    for (name, of_get, of_put) in [
        ("large", "too_large", None),
        ("sparse", "too_large", None),
        ("sub", "is_directory", Some("is_directory")),
        ("", "is_directory", Some("is_directory")),
        ("pipe", "not_a_file", Some("not_a_file")),
        ("socket", "not_a_file", Some("not_a_file")),
        ("dangling", "not_found", Some("not_a_file")),
        ("none/new", "not_found", Some("not_found")),
    ] {
        let mut stream = scene.open(get(&root.join(name))).await;
        assert_eq!(failure(&mut stream).await, of_get, "get {name}");
        if let Some(of_put) = of_put {
            let mut stream = scene.open(put(&root.join(name), 1, 0o644)).await;
            assert_eq!(failure(&mut stream).await, of_put, "put {name}");
        }
    }
    drop(socket);
    scene.stop().await;
}

#[tokio::test]
async fn neither_links_nor_dots_lead_out_nor_to_what_the_agent_lives_from() {
    let mut scene = Scene::with(|device| {
        fs::create_dir_all(root(device)).unwrap();
        // The agent's own directory is below a root as well, and yet no business of anybody's.
        format!("[file]\nroots = [{:?}, {:?}]\n", root(device), device.path("state"))
    })
    .await;
    let root = root(&scene.device);
    fs::write(scene.device.path("secret"), "secret").unwrap();
    symlink(scene.device.path("secret"), root.join("link")).unwrap();
    symlink(scene.device.dir.path(), root.join("up")).unwrap();
    symlink(scene.device.slot("current"), root.join("key")).unwrap();
    for path in [
        scene.device.path("secret"),
        root.join("../secret"),
        root.join("link"),
        root.join("up/secret"),
        root.join("up/agent.toml"),
        root.join("up/ca.pem"),
        root.join("key"),
        scene.device.slot("current"),
        scene.device.path("state/ledger"),
        "/etc/passwd".into(),
    ] {
        let mut stream = scene.open(get(&path)).await;
        assert_eq!(failure(&mut stream).await, "not_allowed", "get {}", path.display());
        let mut stream = scene.open(put(&path, 1, 0o644)).await;
        assert_eq!(failure(&mut stream).await, "not_allowed", "put {}", path.display());
    }
    let mut stream = scene.open(put(&root.join("up/new"), 1, 0o644)).await;
    assert_eq!(failure(&mut stream).await, "not_allowed");
    assert_eq!(fs::read(scene.device.path("secret")).unwrap(), b"secret");
    scene.stop().await;
}

#[tokio::test]
async fn a_file_of_the_system_without_a_size_is_read_to_its_end() {
    let mut scene = Scene::new("[file]\nroots = [\"/proc\"]\nbytes_max = 65536\n").await;
    let mut stream = scene.open(get(Path::new("/proc/version"))).await;
    assert_eq!(stream.said().await, Said::Control(Control::Ready));
    assert!(matches!(stream.said().await, Said::Control(Control::File { size: 0, .. })));
    let expected = fs::read("/proc/version").unwrap();
    assert_eq!(stream.word().await, (expected.clone(), done(&expected)));
    scene.stop().await;
}

/// A disk of 64 KiB, in a namespace of the test's own.
#[test]
fn a_full_disk_is_told_and_nothing_is_left_on_it() {
    crate::namespace::in_mounts(|| async {
        let mut scene = Scene::with(|device| {
            fs::create_dir(root(device)).unwrap();
            crate::namespace::mount_small_disk(&root(device));
            format!("[file]\nroots = [{:?}]\n", root(device))
        })
        .await;
        let root = root(&scene.device);
        let mut stream = scene.open(put(&root.join("larger"), 1_000_000, 0o644)).await;
        assert_eq!(failure(&mut stream).await, "no_space", "known before anything is sent");

        // Room for it that is gone meanwhile.
        let bytes = content(40_000);
        let mut stream = scene.open(put(&root.join("file"), bytes.len(), 0o644)).await;
        assert_eq!(stream.said().await, Said::Control(Control::Ready));
        fs::write(root.join("other"), content(40_000)).unwrap();
        send(&mut stream, &bytes).await;
        stream.say(&done(&bytes)).await;
        assert_eq!(failure(&mut stream).await, "no_space");
        eventually("nothing is left", || entries(&root) == ["other"]).await;
        scene.stop().await;
    });
}

#[tokio::test]
async fn a_cut_during_a_large_file_ends_it() {
    let mut scene = Scene::with(|device| {
        fs::create_dir(root(device)).unwrap();
        fs::File::create(root(device).join("huge")).unwrap().set_len(1 << 30).unwrap();
        format!("[file]\nroots = [{:?}]\n", root(device))
    })
    .await;
    let mut stream = scene.open(get(&root(&scene.device).join("huge"))).await;
    let (_, ready) = stream.word().await;
    assert_eq!(ready, Control::Ready);
    let before = scene.descriptors();
    stream.reset();
    eventually("its descriptors are closed", || scene.descriptors() < before).await;

    let request = scene.request(get(&root(&scene.device).join("huge")));
    let request = cloudlink_proto::link::message::StreamRequest { ends_after_ms: 300, ..request };
    scene.link.send(request).await;
    let mut stream = scene.server.stream().await;
    let begun = tokio::time::Instant::now();
    while !matches!(stream.said().await, Said::Gone | Said::Control(Control::Done { .. })) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let log = scene.stop().await;
    assert!(log.contains("time is up"), "{log}");
}

#[tokio::test]
async fn as_many_files_as_may_be_go_at_once() {
    let mut scene = scene().await;
    let bytes = Bytes::from(content(300_000));
    let root = root(&scene.device);
    let mut streams = Vec::new();
    for number in 0..cloudlink_agent::stream::FILES_MAX {
        let mut stream = scene.open(put(&root.join(number.to_string()), bytes.len(), 0o644)).await;
        assert_eq!(stream.said().await, Said::Control(Control::Ready));
        streams.push(stream);
    }
    let request = scene.request(get(&root.join("0")));
    assert_eq!(scene.refused(request).await.code, "busy");
    for stream in &mut streams {
        send(stream, &bytes).await;
    }
    for stream in &mut streams {
        stream.say(&done(&bytes)).await;
        assert_eq!(stream.said().await, Said::Control(done(&bytes)));
    }
    for number in 0..cloudlink_agent::stream::FILES_MAX {
        assert!(fs::read(root.join(number.to_string())).unwrap() == bytes);
    }
    scene.stop().await;
}
