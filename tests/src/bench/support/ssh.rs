//! OpenSSH as a peer: an `sshd` of the benchmark's own, with keys of its own, that nothing outside of its directory is configured by.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Uid, User};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::bench::usage::Process;
use crate::fleet::directory;
use crate::poll::wait_for;
use crate::port;
use crate::program::{Program, bound};

/// Debian's, where the daemon is not on everybody's PATH.
const DAEMON: &str = "/usr/sbin/sshd";
/// What a daemon that is started by root wants to be there, and its service makes.
const EMPTY_DIRECTORY: &str = "/run/sshd";
const START_WITHIN: Duration = Duration::from_secs(20);

/// A running `sshd`. It is stopped when dropped.
#[derive(Debug)]
pub(super) struct Server {
    program: Program,
    address: SocketAddr,
    user: String,
    directory: TempDir,
}

impl Server {
    /// Starts it on a free port of the loopback interface and waits until it listens. Ciphers and all else that matters for speed are as
    /// OpenSSH has them by default.
    pub(super) async fn start() -> Result<Self> {
        let user = User::from_uid(Uid::current())?.context("whoever runs this has no name")?.name;
        let directory = directory()?;
        let path = directory.path();
        std::fs::set_permissions(path, Permissions::from_mode(0o700))?;
        for key in ["host_key", "user_key"] {
            make_key(&path.join(key))?;
        }
        let address = port::free()?;
        let host_key = std::fs::read_to_string(path.join("host_key.pub"))?;
        std::fs::write(path.join("known_hosts"), format!("[{}]:{} {host_key}", address.ip(), address.port()))?;
        std::fs::write(path.join("sshd_config"), config(path, address, &user))?;
        if Uid::current().is_root() {
            std::fs::create_dir_all(EMPTY_DIRECTORY).with_context(|| format!("cannot make {EMPTY_DIRECTORY}"))?;
        }
        let mut command = bound(DAEMON);
        command.args(["-D", "-e", "-f"]).arg(path.join("sshd_config"));
        let program = Program::start("sshd", command, &path.join("sshd.log"))?;
        let mut server = Self { program, address, user, directory };
        wait_for("an sshd that listens", START_WITHIN, async || {
            if let Err(ended) = server.program.ensure_running() {
                return Ok(Err(ended));
            }
            TcpStream::connect(server.address).await?;
            Ok(Ok(()))
        })
        .await??;
        Ok(server)
    }

    /// The daemon that listens. What serves connections are descendants of it.
    pub(super) fn process(&self) -> Process {
        Process::new(self.program.pid())
    }

    /// `ssh` to this server, with further options, and what it is to run there.
    pub(super) fn client(&self, options: &[&str], remote: &[&str]) -> Vec<String> {
        let path = self.directory.path().display();
        let settings = [
            "BatchMode=yes".to_owned(),
            "ExitOnForwardFailure=yes".to_owned(),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            format!("IdentityFile={path}/user_key"),
            "StrictHostKeyChecking=yes".to_owned(),
            format!("UserKnownHostsFile={path}/known_hosts"),
            format!("Port={}", self.address.port()),
        ];
        let settings = settings.into_iter().flat_map(|setting| ["-o".to_owned(), setting]);
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let host = format!("{}@{}", self.user, self.address.ip());
        let own = ["-F".to_owned(), "/dev/null".to_owned()];
        own.into_iter().chain(settings).chain(owned(options)).chain([host]).chain(owned(remote)).collect()
    }

    /// `ssh -N -L`, which leads from a port here to the target.
    pub(super) async fn forward(&self, target: SocketAddr) -> Result<Forward> {
        let local = port::free()?;
        let mut command = bound("ssh");
        command.args(self.client(&["-N", "-L", &format!("{local}:{target}")], &[]));
        let mut program = Program::start("ssh", command, &self.directory.path().join("ssh.log"))?;
        wait_for("an ssh that listens", START_WITHIN, async || {
            if let Err(ended) = program.ensure_running() {
                return Ok(Err(ended));
            }
            TcpStream::connect(local).await?;
            Ok(Ok(()))
        })
        .await??;
        Ok(Forward { program, local })
    }
}

/// A forwarded port.
#[derive(Debug)]
pub(super) struct Forward {
    program: Program,
    pub(super) local: SocketAddr,
}

impl Forward {
    pub(super) fn process(&self) -> Process {
        Process::new(self.program.pid())
    }
}

fn make_key(path: &Path) -> Result<()> {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "benchmark", "-f"]).arg(path);
    let output = command.output().context("cannot run ssh-keygen")?;
    ensure!(output.status.success(), "ssh-keygen: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn config(directory: &Path, address: SocketAddr, user: &str) -> String {
    let file = |name: &str| -> PathBuf { directory.join(name) };
    format!(
        "ListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {}\nAllowUsers {user}\nPermitRootLogin prohibit-password\n\
         AuthenticationMethods publickey\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n\
         StrictModes no\nPidFile none\nUseDNS no\nPrintMotd no\nPrintLastLog no\nX11Forwarding no\nPermitUserEnvironment no\n",
        file("host_key").display(),
        file("user_key.pub").display(),
    )
}
