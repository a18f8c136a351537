//! Port forwards: real programs at both ends, over every way to a device.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aws_lc_rs::digest::{self, SHA256};
use cloudlink_tests::api::text;
use cloudlink_tests::bench::usage::Process;
use cloudlink_tests::cli::Cli;
use cloudlink_tests::fleet::{Fleet, LINK_LIMIT};
use cloudlink_tests::netns::{self, Site};
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::server::Settings;
use cloudlink_tests::support::Forwarding;
use data_encoding::HEXLOWER;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(40);
/// For all bytes of a large exchange, in programs that are not optimized, on a machine that does other things as well.
const BYTES_LIMIT: Duration = Duration::from_secs(300);
const CHUNK: usize = 64 * 1024;
const MIB: usize = 1024 * 1024;
/// Longer than any default after which a kernel gives up a peer that takes nothing.
const STALL: Duration = Duration::from_secs(45);
/// Beyond what the kernels and programs in between keep for a target that takes nothing.
const STALLED_BYTES: usize = 24 * MIB;

/// Of connections that nobody reads.
const FULL_STREAMS: usize = 8;
/// Nothing was taken for so long.
const FULL_AFTER: Duration = Duration::from_secs(3);
/// Beyond what kernels keep on the way.
const FULL_BYTES_MAX: usize = 128 * MIB;
/// What one connection that is held up in both directions may take of any program on its way.
const FULL_STREAM_MEMORY_MAX: u64 = 1024 * 1024;

/// Of bytes that are no text, and not all the same.
fn chunk(number: usize) -> Vec<u8> {
    (0..CHUNK).map(|byte| u8::try_from((byte * 31 + number * 7) % 251).unwrap_or_default()).collect()
}

/// A TCP server that takes all that comes, to its end. Then it tells its digest, and says as much itself.
async fn digests(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (hash, count) = taken(&mut stream).await?;
            stream.write_all(hash.as_bytes()).await?;
            for number in 0..count / CHUNK {
                stream.write_all(&chunk(number)).await?;
            }
            stream.shutdown().await
        });
    }
}

/// The digest of all that comes, and how much it is.
async fn taken(stream: &mut TcpStream) -> std::io::Result<(String, usize)> {
    let (mut hash, mut count, mut bytes) = (digest::Context::new(&SHA256), 0, vec![0; CHUNK]);
    loop {
        match stream.read(&mut bytes).await? {
            0 => return Ok((HEXLOWER.encode(hash.finish().as_ref()), count)),
            read => {
                hash.update(&bytes[..read]);
                count += read;
            }
        }
    }
}

/// Says so many bytes, and that this is all; and hears the same from a server of [`digests`].
async fn exchange(address: SocketAddr, bytes: usize) -> anyhow::Result<()> {
    let whole = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut hash = digest::Context::new(&SHA256);
        for number in 0..bytes / CHUNK {
            let chunk = chunk(number);
            hash.update(&chunk);
            stream.write_all(&chunk).await?;
        }
        // From here on only the other side has something to say.
        stream.shutdown().await?;
        let expected = HEXLOWER.encode(hash.finish().as_ref());
        let mut there = vec![0; expected.len()];
        stream.read_exact(&mut there).await.context("the answer to an end")?;
        ensure!(there == expected.as_bytes(), "something else arrived there");
        let (here, count) = taken(&mut stream).await?;
        ensure!(here == expected && count == bytes, "something else arrived here: {count} bytes");
        Ok(())
    };
    timeout(BYTES_LIMIT, whole).await.context("it takes too long")?
}

/// A web server, of a few lines.
async fn greets(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            // One request after the other, on a connection that stays.
            loop {
                let mut path = None;
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await? == 0 {
                        return std::io::Result::Ok(());
                    }
                    if line == "\r\n" {
                        break;
                    }
                    path = path.or_else(|| line.split(' ').nth(1).map(str::to_owned));
                }
                let body = format!("you asked for {}", path.unwrap_or_default());
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await?;
            }
        });
    }
}

/// Asks a web server some things, several at once.
async fn browse(address: SocketAddr) -> anyhow::Result<()> {
    let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build()?;
    let ask = async |page: usize| {
        let answer = http.get(format!("http://{address}/page/{page}")).send().await?.error_for_status()?.text().await?;
        ensure!(answer == format!("you asked for /page/{page}"), "{answer}");
        anyhow::Ok(())
    };
    tokio::try_join!(ask(1), ask(2), ask(3), ask(4), ask(5), ask(6), ask(7), ask(8))?;
    ask(9).await
}

/// A listener on a device's loopback interface, on a port that may be forwarded to.
async fn listener() -> anyhow::Result<(TcpListener, u16)> {
    let address = port::free()?;
    Ok((TcpListener::bind(address).await?, address.port()))
}

/// The same, of a device elsewhere, on all of its addresses.
fn listener_at(site: &Site) -> anyhow::Result<(TcpListener, u16)> {
    let port = port::free()?.port();
    let listener = site.run(async || Ok(std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?))?;
    listener.set_nonblocking(true)?;
    Ok((TcpListener::from_std(listener)?, port))
}

/// What leads to this port.
fn route(port: u16) -> String {
    format!("0:localhost:{port}")
}

async fn says(cli: &Cli, code: i32, arguments: &[&str]) -> anyhow::Result<String> {
    let said = cli.run(arguments).await?;
    ensure!(said.code == Some(code), "not {code} of {arguments:?}: {said:#?}");
    Ok(said.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_websocket_all_bytes_go_both_ways() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    let cli = fleet.cli(fleet.operator.token());
    let (digest, digest_port) = listener().await?;
    let (web, web_port) = listener().await?;
    tokio::spawn(digests(digest));
    tokio::spawn(greets(web));
    let nobody = port::free()?.port();

    says(&cli, 5, &["forward", "gw-1", &route(web_port), "--reason", "r"]).await?;
    fleet.grant(&device.id, &["shell:open"]).await?;
    says(&cli, 5, &["forward", "gw-1", &route(web_port), "--reason", "r"]).await?;
    fleet.support_grant(&device.id, 900).await?;
    says(&cli, 8, &["forward", "gw-1", &route(web_port), "--reason", "r", "--direct"]).await?;
    // A port that is taken here: nothing was asked for.
    let before = fleet.tenant.get("/support-sessions").await?;
    let taken = format!("{web_port}:localhost:{web_port}");
    says(&cli, 1, &["forward", "gw-1", &taken, "--reason", "r"]).await?;
    ensure!(fleet.tenant.get("/support-sessions").await? == before);

    let (web, digest) = (route(web_port), route(digest_port));
    let (forbidden, nobody) = (route(26_999), route(nobody));
    let forwarding = Forwarding::start(&cli, "gw-1", &[&web, &digest, &forbidden, &nobody], &[]).await?;
    browse(forwarding.local(0)?).await?;
    exchange(forwarding.local(1)?, 100 * MIB).await?;

    for (n, reason) in [(2, "not_allowed"), (3, "connection_refused")] {
        let mut refused = TcpStream::connect(forwarding.local(n)?).await?;
        let end = timeout(LIMIT, refused.read(&mut [0])).await.context("it hangs")?;
        ensure!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        let session = forwarding.session(n)?;
        wait_for("a connection that failed", LIMIT, async || {
            let failed = forwarding.of("connection_failed");
            let said = failed
                .iter()
                .any(|event| event["session_id"] == session["id"] && event["error"].to_string().contains(reason));
            ensure!(said, "no {reason}: {failed:?}");
            Ok(())
        })
        .await?;
    }
    // A refusal is the end of one connection, and not of the others.
    browse(forwarding.local(0)?).await?;

    let sessions = [forwarding.session(0)?, forwarding.session(1)?];
    forwarding.signal(Signal::SIGINT)?;
    let (code, said) = forwarding.ends().await?;
    ensure!(code == Some(0), "{code:?}: {said}");
    fleet.session_ended(&sessions[0], "closed").await?;
    let ended = fleet.session_ended(&sessions[1], "closed").await?;
    let moved = 100 * MIB as u64;
    ensure!(ended["bytes_to_device"] == moved && ended["bytes_from_device"] == moved + 64, "not all bytes: {ended}");
    let list = cli.run(&["support", "list", "--device", "gw-1"]).await?.stdout;
    ensure!(list.contains(&format!("forward of localhost:{web_port}")), "{list}");
    device.machine.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_takes_its_time_is_waited_for() -> anyhow::Result<()> {
    let fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    fleet.support_grant(&device.id, 900).await?;
    let (slow, slow_port) = listener().await?;
    let cli = fleet.cli(fleet.operator.token());
    let forwarding = Forwarding::start(&cli, "gw-1", &[&route(slow_port)], &[]).await?;
    let mut sending = TcpStream::connect(forwarding.local(0)?).await?;
    let (mut target, _) = timeout(LIMIT, slow.accept()).await.context("nobody came")??;
    let send = async {
        for number in 0..STALLED_BYTES / CHUNK {
            sending.write_all(&chunk(number)).await?;
        }
        Ok(sending.shutdown().await?)
    };
    let take = async {
        // Time has to pass: that is what this is about.
        tokio::time::sleep(STALL).await;
        anyhow::Ok(taken(&mut target).await?)
    };
    let ((), (_, count)) = timeout(BYTES_LIMIT, async { tokio::try_join!(send, take) }).await.context("it hangs")??;
    ensure!(count == STALLED_BYTES, "{count} bytes of {STALLED_BYTES}");
    ensure!(forwarding.of("connection_failed").is_empty(), "{:?}", forwarding.of("connection_failed"));
    device.machine.stop()
}

/// Writes until nothing more is taken for a while. How much that was.
async fn fill(stream: &mut TcpStream) -> anyhow::Result<usize> {
    let (bytes, mut count) = (chunk(0), 0);
    loop {
        match timeout(FULL_AFTER, stream.write(&bytes)).await {
            Ok(written) => count += written?,
            Err(_) => return Ok(count),
        }
        ensure!(count < FULL_BYTES_MAX, "{count} bytes are taken, and nobody reads them");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_read_holds_up_who_writes_and_takes_no_memory() -> anyhow::Result<()> {
    let mut fleet = Fleet::start().await?;
    let mut device = fleet.device("gw-1").await?;
    fleet.support_grant(&device.id, 900).await?;
    let (target, target_port) = listener().await?;
    let cli = fleet.cli(fleet.operator.token());
    let forwarding = Forwarding::start(&cli, "gw-1", &[&route(target_port)], &[]).await?;
    let pids = [fleet.server.program().pid(), device.machine.agent_pid()?, forwarding.pid()?];
    let memory = || pids.iter().map(|pid| Process::new(*pid).anonymous_bytes()).collect::<anyhow::Result<Vec<_>>>();
    let connect = async || {
        let near = TcpStream::connect(forwarding.local(0)?).await?;
        let (far, _) = timeout(LIMIT, target.accept()).await.context("nobody came")??;
        anyhow::Ok((near, far))
    };
    // What is made for the first connection stays.
    let (mut near, mut far) = connect().await?;
    let (held, held_back) = (fill(&mut near).await?, fill(&mut far).await?);
    let before = memory()?;
    let mut others = Vec::new();
    for _ in 0..FULL_STREAMS {
        others.push(connect().await?);
    }
    let mut filling = JoinSet::new();
    for (mut near, mut far) in others {
        filling.spawn(async move {
            // In both directions at once.
            let held = tokio::try_join!(fill(&mut near), fill(&mut far))?;
            anyhow::Ok((near, far, held))
        });
    }
    let others = filling.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let grown = before.iter().zip(memory()?).map(|(before, after)| after.saturating_sub(*before));
    let each: Vec<u64> = grown.map(|grown| grown / FULL_STREAMS as u64).collect();
    // Of cloudlinkd, cloudlink-agent and cloudlink.
    ensure!(each.iter().all(|bytes| *bytes <= FULL_STREAM_MEMORY_MAX), "each connection takes {each:?} bytes");
    // They all go on where they were.
    let others = others.into_iter().chain([(near, far, (held, held_back))]);
    for (mut near, mut far, (held, held_back)) in others {
        near.shutdown().await?;
        far.shutdown().await?;
        let taken = timeout(BYTES_LIMIT, async { tokio::try_join!(taken(&mut far), taken(&mut near)) });
        let ((_, there), (_, here)) = taken.await.context("it hangs")??;
        ensure!((there, here) == (held, held_back), "{there} bytes of {held}, {here} of {held_back}");
    }
    ensure!(forwarding.of("connection_failed").is_empty(), "{:?}", forwarding.of("connection_failed"));
    device.machine.stop()
}

#[test]
fn through_a_tunnel_all_is_the_same() -> anyhow::Result<()> {
    netns::test("through_a_tunnel_all_is_the_same", async || {
        let fleet = Fleet::start_with(&Settings::with_tunnels(&[])).await?;
        let site = Arc::new(Site::join()?);
        let mut machine = fleet.new_machine("gw-1")?.at(&site).through_tunnel("start = true")?;
        machine.enroll(&fleet.enrollment_token("gw-1").await?)?;
        machine.power_on()?;
        let device = wait_for("an agent in a tunnel", LINK_LIMIT * 2, async || {
            let devices = fleet.tenant.get("/devices").await?;
            let device = &devices["items"][0];
            ensure!(device["link"]["has_agent"] == true && device["link"]["transport"] == "openvpn", "{devices}");
            text(device, "id")
        })
        .await?;
        fleet.support_grant(&device, 900).await?;
        let (digest, digest_port) = listener_at(&site)?;
        let (web, web_port) = listener_at(&site)?;
        tokio::spawn(digests(digest));
        tokio::spawn(greets(web));
        let cli = fleet.cli(fleet.operator.token());
        let routes = [route(web_port), route(digest_port)];
        let routes = [routes[0].as_str(), routes[1].as_str()];
        for options in [[].as_slice(), &["--direct"]] {
            let forwarding = Forwarding::start(&cli, "gw-1", &routes, options).await?;
            let failed = || format!("{options:?}: {:?}", forwarding.of("connection_failed"));
            browse(forwarding.local(0)?).await.with_context(failed)?;
            exchange(forwarding.local(1)?, 10 * MIB).await.with_context(failed)?;
            forwarding.signal(Signal::SIGINT)?;
            let (code, said) = forwarding.ends().await?;
            ensure!(code == Some(0), "{code:?}: {said}");
        }
        let mut terminal = fleet.shell(&fleet.operator, "gw-1").await?;
        terminal.answers("echo $((6 * 7))x", "42x").await?;
        terminal.type_in("exit 3\r")?;
        ensure!(terminal.ends().await? == 3, "{}", terminal.seen());
        machine.stop()
    })
}

#[test]
fn a_device_without_an_agent_is_reached_directly() -> anyhow::Result<()> {
    netns::test("a_device_without_an_agent_is_reached_directly", async || {
        let fleet = Fleet::start_with(&Settings::with_tunnels(&[])).await?;
        let site = Arc::new(Site::join()?);
        let (device, mut client) = fleet.client(&site, "gw-1").await?;
        let tunnel = client.is_up(1).await?;
        fleet.wait_for_link(&device.id, "live").await?;
        fleet.support_grant(&device.id, 900).await?;
        let (digest, digest_port) = listener_at(&site)?;
        let (web, web_port) = listener_at(&site)?;
        tokio::spawn(digests(digest));
        tokio::spawn(greets(web));
        let cli = fleet.cli(fleet.operator.token());
        says(&cli, 8, &["forward", "gw-1", &route(web_port), "--reason", "r"]).await?;
        says(&cli, 8, &["shell", "gw-1", "--reason", "r"]).await?;
        // Only the device itself.
        says(&cli, 2, &["forward", "gw-1", "0:192.168.7.20:80", "--reason", "r", "--direct"]).await?;

        let (web, digest) = (route(web_port), route(digest_port));
        let forwarding = Forwarding::start(&cli, "gw-1", &[&web, &digest], &["--direct"]).await?;
        browse(forwarding.local(0)?).await?;
        exchange(forwarding.local(1)?, 10 * MIB).await?;
        let session = forwarding.session(0)?;
        forwarding.signal(Signal::SIGTERM)?;
        let (code, said) = forwarding.ends().await?;
        ensure!(code == Some(0), "{code:?}: {said}");
        fleet.session_ended(&session, "closed").await?;
        // What was open for it is closed with it.
        wait_for("a closed port", LIMIT, async || {
            let connect = TcpStream::connect((tunnel.ipv4, web_port));
            let connected = timeout(Duration::from_secs(3), connect).await;
            ensure!(!matches!(connected, Ok(Ok(_))), "it is open");
            Ok(())
        })
        .await?;
        let list = cli.run(&["support", "show", &text(&session, "id")?]).await?.stdout;
        ensure!(list.contains("direct"), "{list}");
        Ok(())
    })
}
