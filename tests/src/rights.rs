//! `cloudlinkd` with fewer rights than root's. Takes root, who gives them up.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use nix::unistd::User;
use tempfile::TempDir;

use crate::fleet::directory;
use crate::netns::done;
use crate::program::binary;
use crate::server::Runner;

/// A user that every system has, and that owns nothing.
const USER: &str = "nobody";

/// A copy of the program, for who may not enter the directory that it was built in.
#[derive(Debug)]
pub struct Installed {
    directory: TempDir,
    user: User,
}

impl Installed {
    pub fn make() -> anyhow::Result<Self> {
        let directory = directory()?;
        // Not by this process: what another of its threads starts meanwhile would hold the copy open for writing, and nobody
        // may execute what somebody writes (ETXTBSY).
        let mut copy = Command::new("cp");
        copy.arg(binary("cloudlinkd")?).arg(directory.path());
        done(copy)?;
        let user = User::from_name(USER)?.with_context(|| format!("there is no user {USER}"))?;
        Ok(Self { directory, user })
    }

    /// Where it is.
    #[must_use]
    pub fn program(&self) -> String {
        self.path("cloudlinkd").display().to_string()
    }

    /// Of another file beside it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Who runs it.
    #[must_use]
    pub const fn user(&self) -> &User {
        &self.user
    }

    /// Started as a service manager would: as the user, with these capabilities and never another one.
    #[must_use]
    pub fn with_capabilities(&self, capabilities: &[&str]) -> Runner {
        let raised: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
        let sets = ["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}=-all{raised}"));
        let options = sets.iter().map(String::as_str).chain(["--no-new-privs"]);
        self.with_options(&options.collect::<Vec<_>>())
    }

    /// The same, with what these options of setpriv leave it.
    #[must_use]
    pub fn with_options(&self, options: &[&str]) -> Runner {
        let (uid, gid) = (self.user.uid.to_string(), self.user.gid.to_string());
        let who = ["setpriv", "--pdeathsig", "TERM", "--reuid", &uid, "--regid", &gid, "--clear-groups"];
        let program = self.program();
        let what = ["--", program.as_str()];
        let words = who.iter().chain(options).chain(&what);
        Runner { user: self.user.uid, command: words.map(|&word| word.to_owned()).collect() }
    }
}

/// The same, in a view of the file system that `script` makes.
#[must_use]
pub fn within(script: &str, arguments: &[&str], runner: Runner) -> Runner {
    let before = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"];
    let words = before.iter().chain(arguments).map(|&word| word.to_owned());
    Runner { command: words.chain(runner.command).collect(), ..runner }
}
