use serde::{Deserialize, Serialize};

use super::section::section;
use super::value::Seconds;

const ECHO_REQUESTS: u32 = 20;
const QUARANTINE_NEVER: u32 = 0;
const PROOF_INTERVAL: Seconds = Seconds(60);
const PROOF_KEEP_DAYS: u32 = 90;

section! {
    /// What keeps the devices in tunnels from each other, from the Internet and from this node. In force whenever tunnels are.
    pub struct Isolation in "isolation" {
        /// What may be forwarded: `host`: nothing on this host, which serves nothing else; `interface`: nothing from or to the
        /// tunnels' interface, for a host that others use as well.
        scope: Scope = Scope::Host;
        /// How many pings of its gateway a device gets answered in a second.
        echo_requests_per_second: u32 = ECHO_REQUESTS, in 1..=100_000;
        /// A device that tries so many packets within a minute that it may not send is put into quarantine. 0: none is.
        quarantine_after_packets: u32 = QUARANTINE_NEVER, in 0..=1_000_000_000;
        /// Whether two devices of the node's own try all the time what must not be possible.
        proofs: bool = true;
        /// How often they try.
        proof_interval_seconds: Seconds = PROOF_INTERVAL, in 10..=3_600;
        /// How long their results, drifts, and what devices tried are kept, and statements can be made of them.
        proof_keep_days: u32 = PROOF_KEEP_DAYS, in 1..=3_650;
    }
}

/// How much of the host's forwarding is ours to forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Host,
    Interface,
}

impl Scope {
    pub(in crate::config) const ALL: [Self; 2] = [Self::Host, Self::Interface];

    /// The word in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Interface => "interface",
        }
    }
}
