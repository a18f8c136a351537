//! What a support session is like, beside OpenSSH on the same machine in the same run: the echo of a key, and bytes through a
//! forwarded port.
//!
//! Everything is real: `cloudlinkd`, `cloudlink-agent` and `cloudlink`; `sshd` and `ssh`. Both sides are up all the time and take turns, so
//! that whatever else the machine does is the same for both, and the median of several rounds is shown.

pub mod echo;
pub mod forward;
mod ssh;

use std::time::Duration;

use anyhow::Result;

use super::usage::Process;

/// The other program, as it is named in results.
const PEER: &str = "openssh";

/// Those who have a part in what one side does.
struct Parties {
    processes: Vec<Process>,
    /// The descendants of these as well, as far as they have not ended.
    parents: Vec<Process>,
}

impl Parties {
    fn cpu(&self) -> Result<Duration> {
        let own = self.processes.iter().map(|process| process.cpu()).sum::<Result<Duration>>()?;
        Ok(own + self.parents.iter().map(|parent| parent.descendants_cpu()).sum::<Result<Duration>>()?)
    }
}

/// Tells whoever waits what is being done. Results are on standard output, alone.
#[expect(clippy::print_stderr, reason = "a benchmark of minutes says what it does")]
fn progress(what: &str) {
    eprintln!("support: {what}");
}
