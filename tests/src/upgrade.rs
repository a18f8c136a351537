//! The version before, which runs beside today's while a cluster is upgraded.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Uid;

use crate::program::binary;
use crate::server::Runner;

const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/build-base.sh");

/// Runs the `cloudlinkd` of before, which is built if it is not yet. `None`, and a line that says so: this checkout has no history
/// that reaches back to it.
#[expect(clippy::print_stderr, reason = "what was not tested is said")]
pub fn base() -> anyhow::Result<Option<Runner>> {
    let target = binary("cloudlinkd")?;
    let target = target.ancestors().nth(2).expect("programs are in a directory of a profile");
    let built = Command::new(BUILD).env("CARGO_TARGET_DIR", target).output()?;
    let said = String::from_utf8_lossy(&built.stderr);
    anyhow::ensure!(built.status.success(), "{BUILD}: {said}");
    let path = PathBuf::from(String::from_utf8(built.stdout)?.trim());
    if path.as_os_str().is_empty() {
        eprintln!("{}", said.trim());
        return Ok(None);
    }
    Ok(Some(runner(&path)))
}

/// Runs today's.
pub fn current() -> anyhow::Result<Runner> {
    Ok(runner(&binary("cloudlinkd")?))
}

fn runner(program: &Path) -> Runner {
    Runner { user: Uid::effective(), command: vec![program.display().to_string()] }
}
