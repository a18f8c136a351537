//! The `cloudlink` command, as a person would run it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::process::Command;

use crate::program::binary;

/// No command of these tests takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Somebody at a command line.
#[derive(Clone, Debug)]
pub struct Cli {
    api_url: String,
    ca_file: PathBuf,
    token: String,
    /// Where the command keeps its profiles: not the developer's.
    config_dir: PathBuf,
}

/// What a command said.
#[derive(Clone, Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Cli {
    #[must_use]
    pub fn new(api_url: &str, ca_file: &Path, token: &str, config_dir: &Path) -> Self {
        Self {
            api_url: api_url.to_owned(),
            ca_file: ca_file.to_owned(),
            token: token.to_owned(),
            config_dir: config_dir.to_owned(),
        }
    }

    /// The command, to be started by the caller.
    pub fn command(&self, arguments: &[impl AsRef<OsStr>]) -> anyhow::Result<Command> {
        let mut command = Command::new(binary("cloudlink")?);
        command
            .args(arguments)
            .env("CLOUDLINK_API", &self.api_url)
            .env("CLOUDLINK_CA", &self.ca_file)
            .env("CLOUDLINK_TOKEN", &self.token)
            .env("CLOUDLINK_CONFIG_DIR", &self.config_dir)
            .env_remove("CLOUDLINK_PROFILE")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[impl AsRef<OsStr>]) -> anyhow::Result<Said> {
        let output = self.command(arguments)?.output();
        let output = tokio::time::timeout(LIMIT, output).await.context("cloudlink did not end in time")??;
        Ok(Said {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).context("cloudlink printed something other than UTF-8")?,
            stderr: String::from_utf8(output.stderr).context("cloudlink printed something other than UTF-8")?,
        })
    }

    /// Runs a command that must succeed and answer in JSON.
    pub async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let said = self.run(&[arguments, &["--json"]].concat()).await?;
        anyhow::ensure!(said.code == Some(0), "cloudlink {arguments:?}: {said:?}");
        serde_json::from_str(&said.stdout).with_context(|| format!("cloudlink {arguments:?}: {said:?}"))
    }
}
