//! The `cloudlink` command, as a person would run it.

use std::ffi::{OsStr, OsString};
use std::path::Path;
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
    environment: Vec<(&'static str, OsString)>,
}

/// What a command said.
#[derive(Clone, Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Cli {
    /// Somebody who has signed in nowhere. Profiles are kept in `config_dir`: not the developer's.
    #[must_use]
    pub fn new(config_dir: &Path) -> Self {
        Self { environment: vec![("CLOUDLINK_CONFIG_DIR", config_dir.into()), ("NO_COLOR", "1".into())] }
    }

    /// The same, with an API and a token in the environment.
    #[must_use]
    pub fn with_token(mut self, api_url: &str, ca_file: &Path, token: &str) -> Self {
        self.environment.extend([
            ("CLOUDLINK_API", api_url.into()),
            ("CLOUDLINK_CA", ca_file.into()),
            ("CLOUDLINK_TOKEN", token.into()),
        ]);
        self
    }

    /// What it finds in its environment.
    #[must_use]
    pub fn environment(&self) -> &[(&'static str, OsString)] {
        &self.environment
    }

    /// The command, to be started by the caller.
    pub fn command(&self, arguments: &[impl AsRef<OsStr>]) -> anyhow::Result<Command> {
        let mut command = Command::new(binary("cloudlink")?);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CLOUDLINK_") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
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
