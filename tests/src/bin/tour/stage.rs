//! The fleet that the tour goes through: a server, three people, a device; and how it is told.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::Context as _;
use cloudlink_tests::cli::Cli;
use cloudlink_tests::machine::Machine;
use cloudlink_tests::oidc::Provider;
use cloudlink_tests::port;
use cloudlink_tests::server::{Plan, Server, Settings};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

pub(crate) const CUSTOMER: &str = "demo-customer";
pub(crate) const DEVICE: &str = "demo-gateway";
/// Who may sign in to the console.
pub(crate) const CONSOLE_CUSTOMER: &str = "tina";
pub(crate) const CONSOLE_OPERATOR: &str = "olga";

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ports {
    /// Where a server would, as far as that is possible.
    Usual,
    Free,
    /// In a network of its own, where devices reach it over a wire, some of them through tunnels.
    Own,
}

/// Who types. Each is also the name of a profile of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Person {
    Admin,
    Customer,
    Operator,
}

/// What a step is meant to end in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    Success,
    Refusal,
}

/// Everything that runs. Dropped in this order.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) device: Machine,
    pub(crate) server: Server,
    cli: Cli,
    /// Signs people in to the console, where there is one.
    provider: Option<Provider>,
    directory: TempDir,
}

impl Person {
    pub(crate) const fn profile(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Customer => "customer",
            Self::Operator => "operator",
        }
    }
}

impl Stage {
    /// Starts a server with a new PKI and database, and sets up a machine that is switched off. For the console there is an OpenID provider
    /// with two people, who sign in with any password.
    pub(crate) async fn set(ports: Ports, has_console: bool) -> anyhow::Result<Self> {
        let directory = cloudlink_tests::fleet::directory()?;
        let settings = match ports {
            Ports::Own => Settings::with_tunnels(&[]),
            Ports::Usual | Ports::Free => Settings { device: choose(ports, &[443, 4443])?, ..Settings::default() },
        };
        let (people, operations) = (choose(ports, &[8443])?, choose(ports, &[9090])?);
        let mut settings = Settings { people, operations, ..settings };
        let provider = match people.filter(|_| has_console) {
            Some(people) => {
                let url = format!("https://localhost:{}", people.port());
                let provider = Provider::start(&directory.path().join("provider"), &url).await?;
                provider.accounts(&json!({
                    CONSOLE_CUSTOMER: { "name": CONSOLE_CUSTOMER, "groups": [format!("cloudlink-tenant-{CUSTOMER}")] },
                    CONSOLE_OPERATOR: { "name": CONSOLE_OPERATOR, "groups": ["support"] },
                }))?;
                settings.set.extend(provider.configuration(&url));
                Some(provider)
            }
            None => None,
        };
        let plan = Plan::new(&directory.path().join("server"), &settings)?;
        let config = shown(&plan.config_file())?;
        type_line("server", &["cloudlinkd", "pki", "init", "--config", &config], None);
        for line in plan.init_pki()?.lines() {
            println!("  {line}");
        }
        type_line("server", &["cloudlinkd", "run", "--config", &config], None);
        let server = plan.start().await?;
        let device = Machine::new(&directory.path().join(DEVICE), server.device, &server.ca_file())?;
        let cli = Cli::new(&directory.path().join("cli"));
        std::fs::create_dir(directory.path().join("tokens"))?;
        Ok(Self { device, server, cli, provider, directory })
    }

    /// Signs the administrator in and makes the customer and the people.
    pub(crate) async fn people(&self) -> anyhow::Result<()> {
        self.login(Person::Admin, &self.server.bootstrap_token_file()).await?;
        self.cloudlink(Person::Admin, &["tenant", "create", CUSTOMER], Expect::Success).await?;
        self.person(Person::Customer, &["--role", "tenant", "--tenant", CUSTOMER]).await?;
        self.person(Person::Operator, &["--role", "operator"]).await
    }

    async fn person(&self, person: Person, role: &[&str]) -> anyhow::Result<()> {
        let name = person.profile();
        self.cloudlink(Person::Admin, &[&["person", "create", name], role].concat(), Expect::Success).await?;
        let file = self.token_file(person);
        self.secret(Person::Admin, &["token", "create", "laptop", "--person", name], &file).await?;
        self.login(person, &file).await
    }

    async fn login(&self, person: Person, token_file: &Path) -> anyhow::Result<()> {
        let (ca_file, token_file) = (shown(&self.server.ca_file())?, shown(token_file)?);
        let api = self.server.api_url();
        let arguments = ["login", "--api", &api, "--ca", &ca_file, "--token-file", &token_file];
        self.cloudlink(person, &arguments, Expect::Success).await?;
        Ok(())
    }

    /// Enrolls the device with a token of the customer, and switches it on.
    pub(crate) async fn enroll(&mut self) -> anyhow::Result<()> {
        self.enroll_machine(DEVICE, "device", &self.device).await?;
        let config = shown(&self.device.config_file())?;
        type_line("device", &["cloudlink-agent", "run", "--config", &config], None);
        self.device.power_on()
    }

    /// Enrolls a machine under a name, as somebody who sits at it.
    pub(crate) async fn enroll_machine(&self, name: &str, who: &str, machine: &Machine) -> anyhow::Result<()> {
        let token_file = self.directory.path().join("tokens").join(name);
        self.secret(Person::Customer, &["enroll-token", "create", name, "--label", "site=north"], &token_file).await?;
        let (config, token) = (shown(&machine.config_file())?, shown(&token_file)?);
        type_line(who, &["cloudlink-agent", "enroll", "--config", &config, "--token-file", &token], None);
        let mut command = Command::from(machine.agent()?);
        command.args(["enroll", "--config", &config, "--token-file", &token]).env("NO_COLOR", "1");
        let (status, _) = watch(command, "").await?;
        anyhow::ensure!(status.success(), "the device could not be enrolled");
        Ok(())
    }

    /// Types a `cloudlink` line as somebody, shows what it says, and gives back what it wrote to standard output.
    pub(crate) async fn cloudlink(&self, person: Person, arguments: &[&str], expect: Expect) -> anyhow::Result<String> {
        let arguments = [arguments, &["--profile", person.profile()]].concat();
        type_line(person.profile(), &[&["cloudlink"], arguments.as_slice()].concat(), None);
        let (status, stdout) = watch(self.cli.command(&arguments)?, "").await?;
        match (status.success(), expect) {
            (true, Expect::Success) | (false, Expect::Refusal) => Ok(stdout),
            (true, Expect::Refusal) => anyhow::bail!("that should have been refused"),
            (false, Expect::Success) => anyhow::bail!("that should have worked, but ended with {status}"),
        }
    }

    /// The same, with something to read from a pipe. It must succeed.
    pub(crate) async fn type_into(&self, person: Person, arguments: &[&str], input: &str) -> anyhow::Result<()> {
        let arguments = [arguments, &["--profile", person.profile()]].concat();
        let words: Vec<_> = ["cloudlink"].iter().chain(&arguments).map(|word| quoted(word)).collect();
        println!("\n{}$ echo {} | {}", person.profile(), quoted(input.trim_end()), words.join(" "));
        let (status, _) = watch(self.cli.command(&arguments)?, input).await?;
        anyhow::ensure!(status.success(), "that should have worked, but ended with {status}");
        Ok(())
    }

    /// Types a `cloudlinkd` line on the server's host, and shows what it says.
    pub(crate) async fn cloudlinkd(&self, verb: &[&str]) -> anyhow::Result<()> {
        let config = shown(&self.server.config_file())?;
        type_line("server", &[&["cloudlinkd"], verb, &["--config", &config]].concat(), None);
        let (status, _) = watch(self.server.command(verb)?.into(), "").await?;
        anyhow::ensure!(status.success(), "that should have worked, but ended with {status}");
        Ok(())
    }

    /// Types a line whose standard output is a secret, into a file.
    async fn secret(&self, person: Person, arguments: &[&str], file: &Path) -> anyhow::Result<()> {
        let arguments = [arguments, &["--profile", person.profile()]].concat();
        type_line(person.profile(), &[&["cloudlink"], arguments.as_slice()].concat(), Some(file));
        let said = self.cli.run(&arguments).await?;
        for line in said.stderr.lines() {
            println!("  {line}");
        }
        anyhow::ensure!(said.code == Some(0), "that should have worked");
        std::fs::write(file, said.stdout)?;
        Ok(())
    }

    /// What is machine-readable, for the tour itself; not shown.
    pub(crate) async fn ask(&self, person: Person, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        self.cli.json(&[arguments, &["--profile", person.profile()]].concat()).await
    }

    /// Where the console is, for those who can sign in there.
    pub(crate) fn console(&self) -> Option<String> {
        self.provider.as_ref().map(|_| format!("https://localhost:{}", self.server.people.port()))
    }

    pub(crate) fn token_file(&self, person: Person) -> PathBuf {
        match person {
            Person::Admin => self.server.bootstrap_token_file(),
            Person::Customer | Person::Operator => self.directory.path().join("tokens").join(person.profile()),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Stops everything, and makes sure of it.
    pub(crate) fn clear(mut self) -> anyhow::Result<()> {
        self.device.stop()?;
        let status = self.server.stop()?;
        anyhow::ensure!(status.success(), "the server ended with {status}:\n{}", self.server.log_text()?);
        for address in [self.server.device, self.server.people, self.server.operations] {
            anyhow::ensure!(port::is_free(address), "somebody still listens at {address}");
        }
        Ok(())
    }
}

/// Says what comes next, and why.
pub(crate) fn chapter(title: &str, text: &str) {
    println!("\n\n── {title} {}", "─".repeat(96_usize.saturating_sub(title.chars().count())));
    for line in text.lines() {
        println!("   {}", line.trim());
    }
}

/// The first port of the list that is free, or any.
fn choose(ports: Ports, wanted: &[u16]) -> anyhow::Result<Option<SocketAddr>> {
    let address = |port: &u16| SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
    let usual = match ports {
        Ports::Usual | Ports::Own => wanted.iter().map(address).find(|address| port::is_free(*address)),
        Ports::Free => None,
    };
    usual.map_or_else(|| port::free().map(Some), |address| Ok(Some(address)))
}

pub(crate) fn type_line(who: &str, words: &[&str], into: Option<&Path>) {
    let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    let into = into.map(|file| format!(" > {}", file.display())).unwrap_or_default();
    println!("\n{who}$ {}{into}", words.join(" "));
}

/// As a shell wants it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:=@%+-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

pub(crate) fn shown(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().context("the path is not UTF-8")?.to_owned())
}

/// Runs a program and shows what it says while it says it; gives back how it ended and its standard output.
async fn watch(mut command: Command, input: &str) -> anyhow::Result<(ExitStatus, String)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child =
        command.spawn().with_context(|| format!("cannot run {:?}", OsStr::new(command.as_std().get_program())))?;
    // Closed at the end of this: what it is to read is short.
    child.stdin.take().context("standard input is piped")?.write_all(input.as_bytes()).await?;
    let stdout = child.stdout.take().context("standard output is piped")?;
    let stderr = child.stderr.take().context("standard error is piped")?;
    let (stdout, stderr, status) = tokio::join!(show(stdout), show(stderr), child.wait());
    stderr?;
    Ok((status?, stdout?))
}

async fn show(stream: impl AsyncRead + Unpin) -> anyhow::Result<String> {
    let mut lines = BufReader::new(stream).lines();
    let mut all = String::new();
    while let Some(line) = lines.next_line().await? {
        println!("  {line}");
        all.push_str(&line);
        all.push('\n');
    }
    Ok(all)
}
