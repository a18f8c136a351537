//! A Postgres of its own, which can be taken away without taking a node with it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User, chown};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};

use crate::poll::wait_for;
use crate::program::{Program, bound};
use crate::support::Frozen;

/// Of its socket's name.
const PORT: u16 = 5432;
/// Who may do everything in it.
const OWNER: &str = "postgres";
/// Where the distribution puts it.
const VERSIONS: &str = "/usr/lib/postgresql";
const READY_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Its files, and its processes while it runs.
#[derive(Debug)]
pub struct Database {
    directory: PathBuf,
    program: Option<Program>,
}

impl Database {
    /// Makes it, with an empty database `cloudlink`, and starts it.
    pub async fn start(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        if Uid::effective().is_root() {
            let user = User::from_name(OWNER)?.context("there is no user postgres")?;
            chown(directory, Some(user.uid), Some(user.gid))?;
        }
        let mut initdb = command("initdb")?;
        initdb.arg("--pgdata").arg(directory.join("data")).current_dir(directory);
        initdb.args(["--username", OWNER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"]);
        let made = initdb.stdin(Stdio::null()).output()?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut database = Self { directory: directory.to_owned(), program: None };
        database.start_again().await?;
        let mut owner = database.connect("postgres").await?;
        owner.execute("create database cloudlink").await?;
        owner.close().await?;
        Ok(database)
    }

    /// A login for nodes, as docs/OPERATIONS.md has it made by whoever runs the database.
    pub async fn make_login(&self, login: &str) -> anyhow::Result<()> {
        let mut owner = self.look().await?;
        let make =
            format!("create role cloudlink_app nologin; create role {login} login; grant cloudlink_app to {login}");
        owner.execute(AssertSqlSafe(make)).await?;
        Ok(owner.close().await?)
    }

    /// For somebody to log in.
    #[must_use]
    pub fn url(&self, login: &str) -> String {
        format!("postgres://{login}@localhost/cloudlink?host={}", self.directory.display())
    }

    /// As its owner, to look.
    pub async fn look(&self) -> anyhow::Result<PgConnection> {
        self.connect("cloudlink").await
    }

    async fn connect(&self, name: &str) -> anyhow::Result<PgConnection> {
        let options = PgConnectOptions::new_without_pgpass().socket(&self.directory).port(PORT).username(OWNER);
        Ok(options.database(name).connect().await?)
    }

    /// Stops it as if its machine had gone: what was committed is there when it starts again.
    pub fn stop_at_once(&mut self) -> anyhow::Result<()> {
        let Some(mut program) = self.program.take() else { return Ok(()) };
        program.signal(Signal::SIGQUIT)?;
        program.wait(STOP_LIMIT)?.context("Postgres does not stop")?;
        Ok(())
    }

    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let mut postgres = command("postgres")?;
        postgres.arg("-D").arg(self.directory.join("data")).current_dir(self.directory.join("data"));
        for setting in [
            // A port could be somebody else's by the time that it starts again.
            "listen_addresses=",
            &format!("unix_socket_directories={}", self.directory.display()),
            "max_connections=200",
            // The observers want to know when what was committed.
            "track_commit_timestamp=on",
            // Processes die here; the machine does not.
            "fsync=off",
        ] {
            postgres.args(["-c", setting]);
        }
        let mut program = Program::start("postgres", postgres, &self.directory.join("postgres.log"))?;
        wait_for("Postgres", READY_LIMIT, async || {
            program.ensure_running()?;
            Ok(self.connect("postgres").await?.close().await?)
        })
        .await?;
        self.program = Some(program);
        Ok(())
    }

    /// All its processes stand still, as long as this is there.
    pub fn freeze(&self) -> anyhow::Result<Frozen> {
        Frozen::of(&self.directory.join("data"))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let _ = self.stop_at_once();
    }
}

/// A program of Postgres, run by somebody who may.
fn command(name: &str) -> anyhow::Result<Command> {
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let versions = std::fs::read_dir(VERSIONS)?.flatten().map(|entry| entry.path());
    let newest = versions.max_by_key(version).context("Postgres is not installed")?;
    let program = newest.join("bin").join(name);
    if !Uid::effective().is_root() {
        return Ok(bound(program));
    }
    let mut command = bound("setpriv");
    command.args(["--reuid", OWNER, "--regid", OWNER, "--clear-groups", "--"]).arg(program);
    Ok(command)
}
