//! The kernel's rules, reached through the program `nft`: one call at a time, each with a limit.
//!
//! The crate's helper waits for its child for as long as that takes, and leaves it behind when nobody waits any more. A child that
//! is left behind could still open a port long after everybody has given up on that, so `timeout` stands between the two, which
//! kills it. No shell is involved.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nftables::helper::{NftablesError, apply_ruleset_raw_async, get_current_ruleset_raw_async};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::policy::FAMILY;

/// How long `nft` may take before it is killed.
const CALL_WITHIN: Duration = Duration::from_secs(3);
/// How long after that it is waited for.
const KILLED_WITHIN: Duration = Duration::from_secs(1);
/// Beyond what `PATH` names: a service's may lack what is for administrators.
const SYSTEM_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// What of a program's words is kept.
const SAID_BYTES_MAX: usize = 512;
/// A command line holds no more; a longer batch is not tried again to hear why it failed.
const ARGUMENT_BYTES_MAX: usize = 100_000;

/// Why the kernel's rules cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(
        "there is no program {program}, which isolation takes: install the package {package}, or set tunnel.enabled = false"
    )]
    NoProgram { program: &'static str, package: &'static str },
    #[error(
        "the kernel does not let this process set its rules ({said}): it takes the capability CAP_NET_ADMIN in the network's \
         own user namespace (AmbientCapabilities= of systemd, cap_add of a container)"
    )]
    NotAllowed { said: String },
    #[error(
        "this kernel cannot do what isolation takes ({said}): load its module nf_tables, and nft_ct, nft_limit, nft_socket \
         if they are apart"
    )]
    NoModule { said: String },
    #[error("nft did not take the rules: {said}")]
    Refused { said: String },
    #[error("nft did not end within {within:?}")]
    Hung { within: Duration },
    #[error("nft cannot be run")]
    Run(#[source] NftablesError),
    #[error("what nft says cannot be read")]
    Unreadable(#[source] serde_json::Error),
}

/// The way to the kernel. Whoever shares it lets one at a time call.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    nft: PathBuf,
    timeout: PathBuf,
}

impl Kernel {
    /// Looks where the programs are.
    pub(crate) fn find() -> Result<Self, KernelError> {
        let path = env::var_os("PATH").unwrap_or_default();
        Ok(Self { nft: program("nft", "nftables", &path)?, timeout: program("timeout", "coreutils", &path)? })
    }

    /// With another program in place of `nft`.
    #[cfg(test)]
    pub(super) fn with_program(self, nft: PathBuf) -> Self {
        Self { nft, ..self }
    }

    /// Whether there are rules to be had at all, and for this process.
    pub(crate) async fn check(&self) -> Result<(), KernelError> {
        let call = get_current_ruleset_raw_async(Some(&self.nft), ["list", "tables"]);
        let listed = timeout(CALL_WITHIN, call).await.map_err(|_| KernelError::Hung { within: CALL_WITHIN })?;
        listed.map(drop).map_err(|error| explain(error, true))
    }

    /// Runs commands as one transaction: all of them, or none.
    pub(crate) async fn apply(&self, commands: &[Value]) -> Result<(), KernelError> {
        self.call(&json!({"nftables": commands}).to_string()).await.map(drop)
    }

    /// Everything that is in a table of ours; `None` if there is no such table.
    pub(crate) async fn list(&self, table: &str) -> Result<Option<Vec<Value>>, KernelError> {
        if !self.tables().await?.iter().any(|name| name == table) {
            return Ok(None);
        }
        self.objects(&json!({"list": {"table": {"family": FAMILY, "name": table}}})).await.map(Some)
    }

    /// The names of all tables of our family.
    pub(super) async fn tables(&self) -> Result<Vec<String>, KernelError> {
        let tables = self.objects(&json!({"list": {"tables": {"family": FAMILY}}})).await?;
        Ok(tables.iter().filter_map(|object| Some(object["table"]["name"].as_str()?.to_owned())).collect())
    }

    async fn objects(&self, command: &Value) -> Result<Vec<Value>, KernelError> {
        let said = self.call(&json!({"nftables": [command]}).to_string()).await?;
        let mut said: Value = serde_json::from_str(&said).map_err(KernelError::Unreadable)?;
        serde_json::from_value(said["nftables"].take()).map_err(KernelError::Unreadable)
    }

    async fn call(&self, payload: &str) -> Result<String, KernelError> {
        let seconds = CALL_WITHIN.as_secs().to_string();
        let arguments = [OsStr::new("--signal=KILL"), OsStr::new(&seconds), self.nft.as_os_str()];
        let begun = Instant::now();
        let call = apply_ruleset_raw_async(payload, Some(&self.timeout), arguments);
        let within = CALL_WITHIN + KILLED_WITHIN;
        match timeout(within, call).await {
            Ok(Ok(said)) => Ok(said),
            Ok(Err(_)) if begun.elapsed() >= CALL_WITHIN => Err(KernelError::Hung { within: CALL_WITHIN }),
            Ok(Err(error)) => Err(self.reason(payload, error).await),
            Err(_) => Err(KernelError::Hung { within }),
        }
    }

    /// The helper does not keep what `nft` says to its standard error, so it is asked once more what it thinks of the same,
    /// without doing it.
    async fn reason(&self, payload: &str, error: NftablesError) -> KernelError {
        if payload.len() > ARGUMENT_BYTES_MAX {
            return explain(error, false);
        }
        let call = get_current_ruleset_raw_async(Some(&self.nft), ["--check", payload]);
        match timeout(CALL_WITHIN, call).await {
            Ok(Err(error)) => explain(error, false),
            // It would work now; or nobody knows.
            Ok(Ok(_)) | Err(_) => explain(error, false),
        }
    }
}

/// `is_first`: nothing but the kernel itself can be wrong.
fn explain(error: NftablesError, is_first: bool) -> KernelError {
    let NftablesError::NftFailed { stderr, .. } = &error else { return KernelError::Run(error) };
    let said = said(stderr);
    if said.contains("Operation not permitted") {
        KernelError::NotAllowed { said }
    } else if is_first || said.contains("not supported") {
        KernelError::NoModule { said }
    } else {
        KernelError::Refused { said }
    }
}

/// What a program said, on one line.
fn said(words: &str) -> String {
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = line.floor_char_boundary(SAID_BYTES_MAX);
    line[..end].to_owned()
}

fn program(name: &'static str, package: &'static str, path: &OsStr) -> Result<PathBuf, KernelError> {
    let dirs = env::split_paths(path).chain(SYSTEM_DIRS.map(PathBuf::from));
    let found = dirs.map(|dir| dir.join(name)).find(|path| is_executable(path).unwrap_or(false));
    found.ok_or(KernelError::NoProgram { program: name, package })
}

fn is_executable(path: &Path) -> io::Result<bool> {
    let metadata = path.metadata()?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
