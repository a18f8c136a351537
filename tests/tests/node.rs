//! A node's life: configuration, start, stop, and what is done to its database.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use cloudlink_tests::fleet;
use cloudlink_tests::poll::wait_for;
use cloudlink_tests::port;
use cloudlink_tests::program::Program;
use cloudlink_tests::server::{self, Server, Settings};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tempfile::TempDir;
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(60);
const NOBODY: [i32; 0] = [];

#[test]
fn every_fault_of_a_configuration_is_told_before_a_port_is_bound() -> anyhow::Result<()> {
    let directory = fleet::directory()?;
    let address = port::free()?;
    let text = format!("data_dri = \"/x\"\n[people]\nlisten = \"{address}\"\n[device]\nlinks_max = 0\n");
    std::fs::write(directory.path().join("cloudlinkd.toml"), text)?;
    for verb in [["run"].as_slice(), &["config", "check"], &["config", "show"], &["pki", "init"]] {
        let output = server::command(directory.path(), verb, &["log.format=loud".to_owned()])?.output()?;
        assert_eq!(output.status.code(), Some(64), "{verb:?}: {}", told(&output));
        let told = told(&output);
        for fault in [
            "cloudlinkd.toml:1: data_dri: there is no such key. Did you mean data_dir?",
            "cloudlinkd.toml:5: device.links_max: out of range: from 1 to 1000000",
            "--set log.format: log.format: expected \"auto\", \"human\" or \"json\"",
        ] {
            assert!(told.contains(fault), "{verb:?}: {told}");
        }
    }
    Ok(())
}

#[test]
fn without_keys_the_server_names_the_command_that_makes_them() -> anyhow::Result<()> {
    let directory = fleet::directory()?;
    write_config(&directory, "")?;
    let output = server::command(directory.path(), &["run"], &[])?.output()?;
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(told(&output).contains("cloudlinkd pki init"), "{}", told(&output));
    Ok(())
}

#[tokio::test]
async fn a_stopped_server_leaves_no_process_and_a_started_one_finds_its_data() -> anyhow::Result<()> {
    let (_directory, mut server) = start().await?;
    let admin = server.admin().await?;
    let before = admin.get("/me").await?;
    let token = std::fs::read(server.bootstrap_token_file())?;
    assert!(!residents(&server)?.is_empty());

    let status = server.stop()?;
    assert!(status.success(), "{status}");
    assert_eq!(residents(&server)?, NOBODY);
    assert!(!pid_file(&server).exists());

    server.start_again().await?;
    assert_eq!(admin.get("/me").await?, before);
    assert_eq!(std::fs::read(server.bootstrap_token_file())?, token);
    Ok(())
}

#[tokio::test]
async fn a_killed_server_starts_again_and_stops_the_database_that_it_left_behind() -> anyhow::Result<()> {
    let (_directory, mut server) = start().await?;
    let before = server.admin().await?.get("/me").await?;
    let orphan = postmaster(&server)?;
    server.program().kill()?;
    assert!(residents(&server)?.contains(&orphan.as_raw()));

    server.start_again().await?;
    assert_ne!(postmaster(&server)?, orphan);
    assert!(!residents(&server)?.contains(&orphan.as_raw()), "the orphan still runs");
    assert_eq!(server.admin().await?.get("/me").await?, before);
    Ok(())
}

#[tokio::test]
async fn a_lock_file_with_the_number_of_another_process_does_not_keep_the_database_down() -> anyhow::Result<()> {
    let (_directory, mut server) = start().await?;
    postmaster(&server)?;
    let stale = std::fs::read_to_string(pid_file(&server))?;
    server.stop()?;
    let (_, rest) = stale.split_once('\n').expect("a lock file has lines");
    std::fs::write(pid_file(&server), format!("{}\n{rest}", std::process::id()))?;
    server.start_again().await
}

#[tokio::test]
async fn a_database_that_is_killed_comes_back_and_the_server_never_ends() -> anyhow::Result<()> {
    let (_directory, mut server) = start().await?;
    let admin = server.admin().await?;
    let before = admin.get("/me").await?;
    let killed = postmaster(&server)?;
    kill(killed, Signal::SIGKILL)?;

    wait_for("a server that says it is not ready", LIMIT, async || {
        let (status, body) = server.operations("/readyz").await?;
        anyhow::ensure!(status == 503 && body.contains("\"database\":false"), "{status}: {body}");
        Ok(())
    })
    .await?;
    assert_eq!(server.operations("/healthz").await?.0, 200);

    server.ready().await?;
    assert_ne!(postmaster(&server)?, killed);
    assert_eq!(admin.get("/me").await?, before);
    let (_, metrics) = server.operations("/metrics").await?;
    assert!(metrics.contains("\ncloudlink_postgres_restarts_total 1\n"), "{metrics}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_could_rewrite_its_history_refuses_to_run() -> anyhow::Result<()> {
    let (_directory, mut server) = start().await?;
    for (privilege, table, role) in [
        ("delete", "audit", "cloudlink_app"),
        ("update (entry)", "audit", "cloudlink_tenant"),
        ("insert", "commands", "cloudlink_app"),
    ] {
        as_owner(&server, &format!("grant {privilege} on {table} to {role}")).await?;
        server.stop()?;
        let output = server::command(&directory_of(&server), &["run"], &[])?.output()?;
        assert_eq!(output.status.code(), Some(1));
        let privilege_name = privilege.split(' ').next().unwrap_or_default();
        let expected = format!("its role {role} may {privilege_name} on table {table}");
        assert!(told(&output).contains(&expected), "{}", told(&output));
        assert_eq!(residents(&server)?, NOBODY, "the database was stopped as well");
        let postgres = bare_postgres(&server).await?;
        as_owner(&server, &format!("revoke {privilege} on {table} from {role}")).await?;
        drop(postgres);
        server.start_again().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_waits_for_a_database_that_is_not_there_yet() -> anyhow::Result<()> {
    let directory = fleet::directory()?;
    let nobody = port::free()?;
    let operations =
        write_config(&directory, &format!("[database]\nurl = \"postgres://nobody:secret@{nobody}/none\"\n"))?;
    assert!(server::command(directory.path(), &["pki", "init"], &[])?.output()?.status.success());
    let log = directory.path().join("log");
    let mut program = Program::start("cloudlinkd", server::command(directory.path(), &["run"], &[])?, &log)?;

    wait_for("a server that waits for its database", LIMIT, async || {
        let (status, body) = server::get(operations, "/readyz").await?;
        anyhow::ensure!(status == 503 && body.contains("\"stage\":\"starting\""), "{status}: {body}");
        anyhow::ensure!(program.log_text()?.contains("the database is not there yet"));
        Ok(())
    })
    .await?;
    assert_eq!(server::get(operations, "/healthz").await?.0, 200);
    assert!(program.stop()?.success());
    assert!(!program.log_text()?.contains("secret"), "{}", program.log_text()?);
    Ok(())
}

#[tokio::test]
async fn a_server_runs_on_a_database_of_somebody_else_through_its_absences() -> anyhow::Result<()> {
    let (_directory, mut other) = start().await?;
    as_owner(&other, "create database elsewhere").await?;
    let socket = other.data_dir().join("postgres/run").canonicalize()?;
    let url = |login| format!("postgres://{login}@localhost/elsewhere?host={}", socket.display());
    let set =
        [format!("database.url={}", url("cloudlink_server")), format!("database.migrate_url={}", url("postgres"))];

    let directory = fleet::directory()?;
    write_config(&directory, "")?;
    assert!(server::command(directory.path(), &["pki", "init"], &[])?.output()?.status.success());
    let by_hand = [set.as_slice(), &["database.migrate=false".to_owned()]].concat();
    let output = server::command(directory.path(), &["run"], &by_hand)?.output()?;
    assert_eq!(output.status.code(), Some(1), "a schema that is not there is refused: {}", told(&output));

    let settings = Settings { set: set.into(), ..Settings::default() };
    let mut server = Server::start(&directory.path().join("server"), &settings).await?;
    assert!(!server.data_dir().join("postgres").exists(), "no Postgres of its own");
    let admin = server.admin().await?;
    let before = admin.get("/me").await?;

    other.stop()?;
    wait_for("a server without its database", LIMIT, async || {
        let (status, body) = server.operations("/readyz").await?;
        anyhow::ensure!(status == 503, "{status}: {body}");
        Ok(())
    })
    .await?;
    let answer = admin.call(reqwest::Method::GET, "/me", &[], None).await?;
    assert_eq!((answer.status.as_u16(), answer.problem()), (503, "unavailable"));
    assert!(answer.headers.contains_key("retry-after"));

    other.start_again().await?;
    server.ready().await?;
    assert_eq!(admin.get("/me").await?, before);

    assert!(server.stop()?.success());
    let output = server::command(&directory_of(&server), &["config", "show"], &by_hand)?.output()?;
    assert!(!String::from_utf8_lossy(&output.stdout).contains("elsewhere"), "addresses are secret");
    Ok(())
}

#[tokio::test]
async fn people_are_spoken_to_in_tls_1_3_only() -> anyhow::Result<()> {
    let (_directory, server) = start().await?;
    let connect = |version| {
        std::process::Command::new("openssl")
            .args(["s_client", version, "-verify_return_error", "-CAfile"])
            .arg(server.ca_file())
            .args(["-verify_hostname", "localhost", "-connect", &server.people.to_string()])
            .stdin(std::process::Stdio::null())
            .output()
    };
    let new = connect("-tls1_3")?;
    assert!(new.status.success(), "{}", told(&new));
    let old = connect("-tls1_2")?;
    assert!(!old.status.success());
    assert!(told(&old).contains("alert protocol version"), "{}", told(&old));
    Ok(())
}

#[tokio::test]
async fn a_stopping_server_says_so_and_a_second_signal_ends_it_at_once() -> anyhow::Result<()> {
    let (_directory, mut server) = start_with(&["shutdown.soft_seconds=600"]).await?;
    // A connection whose handshake never comes holds the soft stop.
    let _slow = TcpStream::connect(server.people).await?;
    wait_for("the connection to be accepted", LIMIT, async || {
        let (_, metrics) = server.operations("/metrics").await?;
        anyhow::ensure!(metrics.contains("\ncloudlink_people_connections 1\n"));
        Ok(())
    })
    .await?;

    server.program().signal(Signal::SIGTERM)?;
    wait_for("a server that says it stops", LIMIT, async || {
        let (status, body) = server.operations("/readyz").await?;
        anyhow::ensure!(status == 503 && body.contains("\"stage\":\"stopping\""), "{status}: {body}");
        Ok(())
    })
    .await?;
    assert_eq!(server.program().exit_status()?, None);
    server.program().signal(Signal::SIGTERM)?;
    let status = server.program().wait(LIMIT)?;
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    assert_eq!(residents(&server)?, NOBODY);
    Ok(())
}

#[tokio::test]
async fn a_database_that_does_not_stop_is_killed_and_recovers() -> anyhow::Result<()> {
    let (_directory, mut server) = start_with(&["postgres.stop_timeout_seconds=1"]).await?;
    let before = server.admin().await?.get("/me").await?;
    kill(postmaster(&server)?, Signal::SIGSTOP)?;
    assert!(server.stop()?.success());
    wait_for("the end of the processes without their postmaster", LIMIT, async || {
        let residents = residents(&server)?;
        anyhow::ensure!(residents.is_empty(), "{residents:?}");
        Ok(())
    })
    .await?;
    server.start_again().await?;
    assert_eq!(server.admin().await?.get("/me").await?, before);
    Ok(())
}

#[tokio::test]
async fn two_servers_do_not_share_a_data_directory() -> anyhow::Result<()> {
    let (_directory, server) = start().await?;
    let output = server::command(&directory_of(&server), &["run"], &[])?.output()?;
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("another cloudlinkd runs in"), "{}", told(&output));
    assert_eq!(server.operations("/readyz").await?.0, 200);
    Ok(())
}

async fn start() -> anyhow::Result<(TempDir, Server)> {
    start_with(&[]).await
}

async fn start_with(set: &[&str]) -> anyhow::Result<(TempDir, Server)> {
    let directory = fleet::directory()?;
    let settings = Settings { set: set.iter().map(|&set| set.to_owned()).collect(), ..Settings::default() };
    let server = Server::start(&directory.path().join("server"), &settings).await?;
    Ok((directory, server))
}

/// A configuration on free ports; the operations port is returned.
fn write_config(directory: &TempDir, more: &str) -> anyhow::Result<SocketAddr> {
    let (device, people, operations) = (port::free()?, port::free()?, port::free()?);
    let text = format!(
        "data_dir = {:?}\n[device]\nlisten = \"{device}\"\n[people]\nlisten = \"{people}\"\n\
         [operations]\nlisten = \"{operations}\"\n{more}",
        directory.path().join("data")
    );
    std::fs::write(directory.path().join("cloudlinkd.toml"), text)?;
    Ok(operations)
}

fn told(output: &Output) -> String {
    // Log lines are JSON, in which quotation marks are escaped.
    String::from_utf8_lossy(&output.stderr).replace("\\\"", "\"")
}

fn directory_of(server: &Server) -> std::path::PathBuf {
    server.config_file().parent().expect("a file is in a directory").to_owned()
}

fn cluster(server: &Server) -> std::path::PathBuf {
    server.data_dir().join("postgres/data")
}

fn pid_file(server: &Server) -> std::path::PathBuf {
    cluster(server).join("postmaster.pid")
}

fn postmaster(server: &Server) -> anyhow::Result<Pid> {
    let text = std::fs::read_to_string(pid_file(server))?;
    Ok(Pid::from_raw(text.lines().next().unwrap_or_default().trim().parse()?))
}

/// The processes that work in the cluster's directory.
fn residents(server: &Server) -> anyhow::Result<Vec<i32>> {
    let directory = cluster(server).canonicalize()?;
    let works_there = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory);
    let processes = std::fs::read_dir("/proc")?.flatten();
    Ok(processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(works_there).collect())
}

async fn as_owner(server: &Server, statement: &str) -> anyhow::Result<()> {
    let socket = server.data_dir().join("postgres/run");
    let options = PgConnectOptions::new_without_pgpass().socket(socket).username("postgres").database("cloudlink");
    let mut connection = options.port(5432).connect().await?;
    connection.execute(AssertSqlSafe(statement.to_owned())).await?;
    connection.close().await?;
    Ok(())
}

/// The cluster without its server, as an administrator would start it to mend something.
async fn bare_postgres(server: &Server) -> anyhow::Result<Program> {
    let directory = directory_of(server);
    let mut command = postgres_command(&cluster(server))?;
    command.args(["-c", "listen_addresses=", "-c"]);
    command.arg(format!("unix_socket_directories={}", server.data_dir().join("postgres/run").display()));
    let mut program = Program::start("postgres", command, &directory.join("postgres.log"))?;
    wait_for("a bare Postgres", LIMIT, async || {
        program.ensure_running()?;
        as_owner(server, "select 1").await
    })
    .await?;
    Ok(program)
}

fn postgres_command(cluster: &Path) -> anyhow::Result<std::process::Command> {
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::process::CommandExt as _;

    let version = std::fs::read_to_string(cluster.join("PG_VERSION"))?;
    let mut command = std::process::Command::new(format!("/usr/lib/postgresql/{}/bin/postgres", version.trim()));
    let owner = cluster.metadata()?;
    if nix::unistd::geteuid().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    command.arg("-D").arg(cluster).current_dir(cluster);
    Ok(command)
}
