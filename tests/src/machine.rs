//! A device: `cloudlink-agent` on a machine that can be rebooted.
//!
//! The machine is a small shell script that runs the agent. The agent's configured reboot command kills the agent without
//! warning, as a power cut would, after which the script writes a new boot id and runs the agent again. The shutdown command
//! does the same and ends the script.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::netns::Site;
use crate::program::{Program, binary, bound};
use crate::server::{ENROLL_NAME, SERVER_NAME};
use crate::support::PROMPT;

/// The service that may be restarted.
pub const SERVICE: &str = "web-ui";

/// Ports that may be forwarded to: those of [`port::free`](crate::port::free).
pub const FORWARD_PORTS: &str = "27000-27999";

const ENROLL_LIMIT: Duration = Duration::from_secs(30);

/// `$1`: the agent, `$2`: its configuration. Runs in the machine's directory.
const POWER_ON: &str = r#"#!/bin/sh
trap 'kill -TERM "$agent"; wait "$agent"; exit 0' TERM
[ -e boot_id ] || cat /proc/sys/kernel/random/uuid > boot_id
while :; do
    "$1" run --config "$2" &
    agent=$!
    echo "$agent" > agent.pid
    wait "$agent"
    status=$?
    [ ! -e power_off ] || { rm power_off boot_id; exit 0; }
    [ -e rebooting ] || exit "$status"
    rm rebooting
    cat /proc/sys/kernel/random/uuid > boot_id
    echo booted >> boots
done
"#;

/// `$1`: the machine's directory, `$2`: the file that tells what this is.
const POWER_CUT: &str = r#"#!/bin/sh
touch "$1/$2"
kill -KILL "$(cat "$1/agent.pid")"
"#;

/// `$1`: the machine's directory, `$2`: the service. Takes for as long as it is held up.
const RESTART: &str = r#"#!/bin/sh
echo "$2" >> "$1/restarts"
while [ -e "$1/hold" ]; do sleep 0.05; done
"#;

/// A device that is, or will be, enrolled.
#[derive(Debug)]
pub struct Machine {
    directory: PathBuf,
    /// Where it stands, if not where the server is.
    site: Option<Arc<Site>>,
    running: Option<Program>,
}

impl Machine {
    /// Sets a machine up, switched off, that will dial `server`.
    pub fn new(directory: &Path, server: SocketAddr, ca_file: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory.join("files"))?;
        for (name, text) in [("power-on", POWER_ON), ("power-cut", POWER_CUT), ("restart", RESTART)] {
            let path = directory.join(name);
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        }
        let text = format!(
            r#"state_dir = "{directory}/state"
boot_id_path = "{directory}/boot_id"

[server]
host = "{SERVER_NAME}"
port = {port}
enroll_name = "{ENROLL_NAME}"
address = "{server}"
ca_file = "{ca_file}"

[service]
allow = ["{SERVICE}"]
restart_argv = ["{directory}/restart", "{directory}", "{{service}}"]

[power]
reboot_argv = ["{directory}/power-cut", "{directory}", "rebooting"]
shutdown_argv = ["{directory}/power-cut", "{directory}", "power_off"]

[terminal]
enabled = true
argv = ["/usr/bin/env", "LC_ALL=C.UTF-8", "PS1={PROMPT}", "/bin/bash", "--noprofile", "--norc"]

[forward]
allow = ["localhost:{FORWARD_PORTS}", "127.0.0.1:{FORWARD_PORTS}"]

[file]
roots = ["{directory}/files"]

[log]
filter = "info,cloudlink_agent=debug"
"#,
            directory = directory.display(),
            port = server.port(),
            ca_file = ca_file.display(),
        );
        std::fs::write(directory.join("agent.toml"), text)?;
        Ok(Self { directory: directory.to_owned(), site: None, running: None })
    }

    /// The same machine, on the network of a site.
    #[must_use]
    pub fn at(self, site: &Arc<Site>) -> Self {
        Self { site: Some(Arc::clone(site)), ..self }
    }

    /// The same machine, with another program in its terminals.
    pub fn with_terminal(self, argv: &[String]) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(self.config_file())?;
        let (before, rest) = text.split_once("[terminal]\n").context("no terminal")?;
        let (_, after) = rest.split_once("\n\n").context("no end of it")?;
        // JSON's strings are TOML's as well.
        let argv = serde_json::to_string(argv)?;
        std::fs::write(self.config_file(), format!("{before}[terminal]\nenabled = true\nargv = {argv}\n\n{after}"))?;
        Ok(self)
    }

    /// The same machine, with its link in a tunnel: what the agent is told under `[openvpn]`.
    pub fn through_tunnel(self, openvpn: &str) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(self.config_file())?;
        let text = text.replace("[server]\n", &format!("[openvpn]\n{openvpn}\n\n[server]\ntransport = \"openvpn\"\n"));
        std::fs::write(self.config_file(), text)?;
        Ok(self)
    }

    /// The same machine, which polls when it has been without a link for so long.
    pub fn polling_after(self, seconds: u32) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(self.config_file())?;
        std::fs::write(self.config_file(), format!("{text}\n[poll]\nafter_seconds = {seconds}\n"))?;
        Ok(self)
    }

    /// Adds to its agent's configuration.
    pub fn configure(&self, sections: &str) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(self.config_file())?;
        Ok(std::fs::write(self.config_file(), format!("{text}{sections}"))?)
    }

    /// A command of its agent, to be run where the machine stands.
    pub fn agent(&self) -> anyhow::Result<Command> {
        Ok(self.bound(binary("cloudlink-agent")?))
    }

    fn bound(&self, program: impl AsRef<OsStr>) -> Command {
        match &self.site {
            Some(site) => site.bound(program),
            None => bound(program),
        }
    }

    /// Enrolls with a token, as whoever installs a device would. Gives back what the agent printed.
    pub fn enroll(&self, token: &str) -> anyhow::Result<String> {
        let token_file = self.directory.join("token");
        std::fs::write(&token_file, token)?;
        let log = self.directory.join("enroll.log");
        let mut command = self.agent()?;
        command.arg("enroll").arg("--config").arg(self.config_file()).arg("--token-file").arg(&token_file);
        let mut program = Program::start("cloudlink-agent enroll", command, &log)?;
        let status = program.wait(ENROLL_LIMIT)?.context("the agent did not enroll in time")?;
        let output = program.log_text()?;
        anyhow::ensure!(status.success(), "cloudlink-agent enroll ended with {status}:\n{output}");
        Ok(output)
    }

    /// Switches the machine on.
    pub fn power_on(&mut self) -> anyhow::Result<()> {
        self.power_on_with(&binary("cloudlink-agent")?)
    }

    /// Switches the machine on, with an agent of its own.
    pub fn power_on_with(&mut self, agent: &Path) -> anyhow::Result<()> {
        let mut command = self.bound(self.directory.join("power-on"));
        command.current_dir(&self.directory).arg(agent).arg(self.config_file());
        self.running = Some(Program::start("cloudlink-agent", command, &self.directory.join("agent.log"))?);
        Ok(())
    }

    /// Stops the agent, and with it the machine, as a service manager would.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut program) = self.running.take() {
            program.stop()?;
        }
        Ok(())
    }

    /// Kills the agent on a machine that goes on: the boot id stays. [`Self::power_on`] starts it again.
    pub fn kill_agent(&mut self) -> anyhow::Result<()> {
        kill(self.agent_pid()?, Signal::SIGKILL)?;
        if let Some(mut program) = self.running.take() {
            program.wait(ENROLL_LIMIT)?;
        }
        Ok(())
    }

    /// Whether the machine has switched itself off.
    pub fn is_off(&mut self) -> anyhow::Result<bool> {
        match &mut self.running {
            Some(program) => Ok(program.exit_status()?.is_some()),
            None => Ok(true),
        }
    }

    pub fn agent_pid(&self) -> anyhow::Result<Pid> {
        Ok(Pid::from_raw(std::fs::read_to_string(self.directory.join("agent.pid"))?.trim().parse()?))
    }

    pub fn boot_id(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.directory.join("boot_id"))?.trim().to_owned())
    }

    /// How often the machine has rebooted.
    #[must_use]
    pub fn reboots(&self) -> usize {
        lines(&self.directory.join("boots"))
    }

    /// Holds restarts of services up: they are begun, and do not end.
    pub fn hold_restarts(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(self.directory.join("hold"), "")?)
    }

    pub fn release_restarts(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.directory.join("hold"))?)
    }

    /// How often a service was restarted.
    #[must_use]
    pub fn restarts(&self) -> usize {
        lines(&self.directory.join("restarts"))
    }

    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }

    /// Below which files may be copied.
    #[must_use]
    pub fn files_dir(&self) -> PathBuf {
        self.directory.join("files")
    }

    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Asks the agent as an application does that knows nothing but HTTP.
    pub async fn ask(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let mut stream = UnixStream::connect(self.state_dir().join("local.sock")).await?;
        let body = body.to_string();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{method} {path}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        Ok(serde_json::from_str(body)?)
    }

    pub fn log_text(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.directory.join("agent.log"))?).into_owned())
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}
