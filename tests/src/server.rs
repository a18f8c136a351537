//! `cloudlinkd`, on ports of its own, with its own Postgres unless told otherwise.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cloudlink_certs::{Authority, PrivateKey};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, chown};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::api::{Api, text};
use crate::poll::wait_for;
use crate::program::{Program, binary, bound};
use crate::{netns, port};

/// The name that devices dial; its address is always given, so it need not resolve.
pub const SERVER_NAME: &str = "localhost";
/// The name under which devices enroll.
pub const ENROLL_NAME: &str = "enroll.localhost";

/// Where devices dial, in a network in which it is free.
const DEVICE_PORT: u16 = 443;
/// The first start makes a database.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// For an orphaned Postgres to go.
const POSTGRES_LIMIT: Duration = Duration::from_secs(10);
const OPERATIONS_LIMIT: Duration = Duration::from_secs(5);
/// Of an answer of the operations port.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What the release before does not know. A node of several that a test stops is to be gone, unless the test is about its devices.
const TODAYS_CONFIG: &str = "[shutdown]\ndrain_seconds = 0\n\n";

/// What a test may want different.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Of the device port.
    pub device: Option<SocketAddr>,
    pub people: Option<SocketAddr>,
    pub operations: Option<SocketAddr>,
    /// More of the configuration, each as `table.key=value`.
    pub set: Vec<String>,
    /// By default the user of the test, with all its rights.
    pub runner: Option<Runner>,
    /// Whether it is the program of the release before ([`crate::upgrade`]).
    pub is_of_before: bool,
}

/// Who runs the server.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Owns the files.
    pub user: Uid,
    /// The program, after what changes its rights.
    pub command: Vec<String>,
}

impl Settings {
    /// Of a server with tunnels, in a network of its own ([`netns::run`]) where sites reach it, with more of the configuration.
    /// It has no devices of its own: a test of isolation switches them on (`isolation.proofs=true`), for all others they are
    /// traffic and tunnels that nobody has asked for.
    #[must_use]
    pub fn with_tunnels(set: &[&str]) -> Self {
        let tunnels = ["tunnel.enabled=true", "isolation.proofs=false"];
        let set = tunnels.iter().chain(set).map(|assignment| (*assignment).to_owned()).collect();
        Self { device: Some((netns::SERVER_IPV4, DEVICE_PORT).into()), set, ..Self::default() }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    pub device: SocketAddr,
    pub people: SocketAddr,
    pub operations: SocketAddr,
    directory: PathBuf,
    set: Vec<String>,
    runner: Option<Runner>,
    program: Program,
}

/// A server that is configured, and has not been started.
#[derive(Debug)]
pub struct Plan {
    pub device: SocketAddr,
    pub people: SocketAddr,
    pub operations: SocketAddr,
    directory: PathBuf,
    set: Vec<String>,
    runner: Option<Runner>,
}

impl Plan {
    /// Writes the configuration of a server whose files are under `directory`.
    pub fn new(directory: &Path, settings: &Settings) -> anyhow::Result<Self> {
        let choose = |given: Option<SocketAddr>| given.map_or_else(port::free, Ok);
        let (device, people, operations) =
            (choose(settings.device)?, choose(settings.people)?, choose(settings.operations)?);
        std::fs::create_dir_all(directory)?;
        let text = format!(
            r#"data_dir = "{directory}/data"
node = "test-node"

[device]
listen = "{device}"
server_name = "{SERVER_NAME}"
enroll_name = "{ENROLL_NAME}"

[people]
listen = "{people}"

[operations]
listen = "{operations}"

{today}[log]
format = "human"
filter = "info,cloudlink_server=debug"
"#,
            directory = directory.display(),
            today = if settings.is_of_before { "" } else { TODAYS_CONFIG },
        );
        std::fs::write(directory.join("cloudlinkd.toml"), text)?;
        let (directory, set, runner) = (directory.to_owned(), settings.set.clone(), settings.runner.clone());
        if let Some(runner) = &runner {
            chown(&directory, Some(runner.user), None)?;
        }
        let (people, operations) = (reached(people), reached(operations));
        Ok(Self { device, people, operations, directory, set, runner })
    }

    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("cloudlinkd.toml")
    }

    /// Makes the fleet's keys and certificates. Gives back what the program said.
    pub fn init_pki(&self) -> anyhow::Result<String> {
        let output = command_as(self.runner.as_ref(), &self.directory, &["pki", "init"], &self.set)?.output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        anyhow::ensure!(output.status.success(), "cloudlinkd pki init: {}: {said}", output.status);
        Ok(said)
    }

    /// Starts the server and waits until it is ready.
    pub async fn start(self) -> anyhow::Result<Server> {
        let program = run(&self.directory, &self.set, self.runner.as_ref())?;
        let Self { device, people, operations, directory, set, runner } = self;
        let mut server = Server { device, people, operations, directory, set, runner, program };
        server.ready().await?;
        Ok(server)
    }
}

/// Where a listener is reached from its own host: on the loopback interface, if it is on all.
fn reached(listener: SocketAddr) -> SocketAddr {
    if listener.ip().is_unspecified() { (Ipv4Addr::LOCALHOST, listener.port()).into() } else { listener }
}

impl Server {
    /// Starts a server whose files are under `directory`, and waits until it is ready.
    pub async fn start(directory: &Path, settings: &Settings) -> anyhow::Result<Self> {
        let plan = Plan::new(directory, settings)?;
        plan.init_pki()?;
        plan.start().await
    }

    /// Waits until the server says that it is ready.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        wait_for("a ready server", READY_LIMIT, async || {
            if let Err(ended) = self.program.ensure_running() {
                return Ok(Err(ended));
            }
            let (status, body) = get(self.operations, "/readyz").await?;
            anyhow::ensure!(status == 200, "{status}: {body}");
            Ok(Ok(()))
        })
        .await?
    }

    /// What the operations port answers.
    pub async fn operations(&self, path: &str) -> anyhow::Result<(u16, String)> {
        get(self.operations, path).await
    }

    #[must_use]
    pub fn api_url(&self) -> String {
        format!("https://{}", self.people)
    }

    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("cloudlinkd.toml")
    }

    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.data_dir().join("pki/ca.pem")
    }

    /// With the first administrator's token, which works once.
    #[must_use]
    pub fn bootstrap_token_file(&self) -> PathBuf {
        self.data_dir().join("admin.token")
    }

    /// The first administrator, who signs in with the first call.
    pub async fn admin(&self) -> anyhow::Result<Api> {
        let session = self.directory.join("admin.session");
        if let Ok(token) = std::fs::read_to_string(&session) {
            return Api::new(&self.api_url(), &self.ca_file(), &token);
        }
        let bootstrap = std::fs::read_to_string(self.bootstrap_token_file())?;
        let nobody = Api::new(&self.api_url(), &self.ca_file(), "")?;
        let made = nobody.post("/auth/session", &json!({ "bootstrap_token": bootstrap.trim() })).await?;
        let token = text(&made, "token")?;
        std::fs::write(session, &token)?;
        Ok(nobody.with_token(&token))
    }

    /// The fleet's authority, for a test to sign with what the server would not.
    pub fn authority(&self) -> anyhow::Result<Authority> {
        let certificate = std::fs::read(self.ca_file())?;
        let key = PrivateKey::from_pem(&std::fs::read(self.data_dir().join("pki/ca.key"))?)?;
        Ok(Authority::load(&certificate, key)?)
    }

    /// The same program with another verb, and the configuration of this server.
    pub fn command(&self, verb: &[&str]) -> anyhow::Result<Command> {
        command_as(self.runner.as_ref(), &self.directory, verb, &self.set)
    }

    pub fn log_text(&self) -> anyhow::Result<String> {
        self.program.log_text()
    }

    #[must_use]
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Stops it as a service manager would.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.program.stop()
    }

    /// Kills it without warning. Its Postgres goes on until the next start, or until this is dropped.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.program.kill()
    }

    /// Starts it again on the same ports and data, run in another way.
    pub async fn start_again_as(&mut self, runner: Runner) -> anyhow::Result<()> {
        self.runner = Some(runner);
        self.start_again().await
    }

    /// Starts it again on the same ports and data.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.launch()?;
        self.ready().await
    }

    /// The same, without waiting until it is ready.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        self.program = run(&self.directory, &self.set, self.runner.as_ref())?;
        Ok(())
    }
}

impl Drop for Server {
    /// A server that was killed could not stop its Postgres.
    fn drop(&mut self) {
        let _ = self.program.stop();
        let pid_file = self.data_dir().join("postgres/data/postmaster.pid");
        let Ok(text) = std::fs::read_to_string(pid_file) else { return };
        let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) else { return };
        let pid = Pid::from_raw(pid);
        let end = Instant::now() + POSTGRES_LIMIT;
        while kill(pid, Signal::SIGQUIT).is_ok() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn run(directory: &Path, set: &[String], runner: Option<&Runner>) -> anyhow::Result<Program> {
    Program::start("cloudlinkd", command_as(runner, directory, &["run"], set)?, &directory.join("cloudlinkd.log"))
}

/// `cloudlinkd` with a verb and the configuration of the server in `directory`.
pub fn command(directory: &Path, verb: &[&str], set: &[String]) -> anyhow::Result<Command> {
    command_as(None, directory, verb, set)
}

/// The same, run by somebody else.
pub fn command_as(runner: Option<&Runner>, directory: &Path, verb: &[&str], set: &[String]) -> anyhow::Result<Command> {
    let mut command = match runner.and_then(|runner| runner.command.split_first()) {
        Some((program, arguments)) => {
            let mut command = bound(program);
            command.args(arguments);
            command
        }
        None => bound(binary("cloudlinkd")?),
    };
    command.args(verb).arg("--config").arg(directory.join("cloudlinkd.toml"));
    for assignment in set {
        command.arg("--set").arg(assignment);
    }
    // What the developer has set must not reach the test.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CLOUDLINK_") {
            command.env_remove(name);
        }
    }
    command.env_remove("DATABASE_URL");
    Ok(command)
}

/// One plain HTTP request, with nothing in between that might hide something.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(OPERATIONS_LIMIT, exchange).await.context("no answer in time")??;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    let status = head.split(' ').nth(1).context("no status line")?.parse()?;
    Ok((status, body.to_owned()))
}
