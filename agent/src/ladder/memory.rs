//! What worked on which network, kept on the disk: the next start there tries that first.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::network::Network;
use crate::chain;
use crate::config::Transport;
use crate::disk;

/// In the state directory.
const FILE_NAME: &str = "networks.json";
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Networks that are remembered; the one that was seen longest ago is forgotten first.
const NETWORKS_MAX: usize = 32;
/// One that was not seen for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(180 * 24 * 3600);
/// The same transport is written down again after this: each write wears a flash disk.
const WRITTEN_AGAIN_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// What worked where.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    /// The one that was seen last comes first.
    known: Vec<Known>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    network: Network,
    transport: Transport,
    /// By the device's clock, which may be wrong: what is forgotten too early costs an attempt.
    seen_unix_seconds: i64,
}

impl Memory {
    /// Takes up what is in the state directory. What cannot be read is as if it were not there.
    #[must_use]
    pub fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE_NAME);
        let known = read(&path).unwrap_or_else(|error| {
            tracing::warn!(error = chain(&error), "what worked on which network is not known any more");
            Vec::new()
        });
        Self { path, known }
    }

    /// What worked last on this network.
    #[must_use]
    pub fn of(&self, network: &Network) -> Option<Transport> {
        self.known.iter().find(|known| known.network.is(network)).map(|known| known.transport)
    }

    /// Writes down what works here now.
    pub fn remember(&mut self, network: &Network, transport: Transport, now: OffsetDateTime) {
        let now = now.unix_timestamp();
        let days = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        let is_fresh = |known: &Known| now.abs_diff(known.seen_unix_seconds) < WRITTEN_AGAIN_AFTER.as_secs();
        let is_known = |known: &Known| known.network == *network && known.transport == transport && is_fresh(known);
        if self.known.iter().any(is_known) {
            return;
        }
        self.known.retain(|known| !known.network.is(network));
        self.known.retain(|known| now.saturating_sub(known.seen_unix_seconds) < days(FORGOTTEN_AFTER));
        self.known.insert(0, Known { network: network.clone(), transport, seen_unix_seconds: now });
        self.known.truncate(NETWORKS_MAX);
        let written = serde_json::to_vec(&self.known)
            .map_err(io::Error::from)
            .and_then(|text| disk::write_atomically(&self.path, &text, disk::MODE_SECRET));
        if let Err(error) = written {
            tracing::warn!(error = chain(&error), "what works on this network cannot be written down");
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Known>> {
    let Some(content) = disk::read_if_there(path, FILE_BYTES_MAX)? else { return Ok(Vec::new()) };
    let mut known: Vec<Known> = serde_json::from_slice(&content)?;
    known.truncate(NETWORKS_MAX);
    Ok(known)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2027-01-01 00:00 UTC);

    fn network(number: u8) -> Network {
        Network { gateway: Some([192, 0, 2, number].into()), ..Network::default() }
    }

    #[test]
    fn what_worked_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::load(dir.path());
        assert_eq!(memory.of(&network(1)), None);
        memory.remember(&network(1), Transport::OpenVpn, NOW);
        memory.remember(&network(2), Transport::WebSocket, NOW);
        let mut memory = Memory::load(dir.path());
        assert_eq!(memory.of(&network(1)), Some(Transport::OpenVpn));
        assert_eq!(memory.of(&network(2)), Some(Transport::WebSocket));
        memory.remember(&network(1), Transport::WebSocket, NOW);
        assert_eq!(Memory::load(dir.path()).of(&network(1)), Some(Transport::WebSocket));
    }

    #[test]
    fn a_network_is_written_again_when_something_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut memory = Memory::load(dir.path());
        let mut writes = |network: &Network, transport, now| {
            let _ = std::fs::remove_file(&path);
            memory.remember(network, transport, now);
            path.exists()
        };
        let with_mac = Network { mac: Some("aa:bb:cc:dd:ee:ff".to_owned()), ..network(1) };
        assert!(writes(&network(1), Transport::OpenVpn, NOW));
        assert!(!writes(&network(1), Transport::OpenVpn, NOW + Duration::from_secs(3600)));
        assert!(writes(&with_mac, Transport::OpenVpn, NOW), "its gateway is known by now");
        assert!(writes(&with_mac, Transport::WebSocket, NOW));
        assert!(writes(&with_mac, Transport::WebSocket, NOW + Duration::from_secs(8 * 24 * 3600)));
        assert_eq!(memory.known.len(), 1, "all of it is one network");
    }

    #[test]
    fn it_does_not_grow_and_what_is_old_or_spoilt_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = Memory::load(dir.path());
        for number in 0..100 {
            memory.remember(&network(number), Transport::OpenVpn, NOW);
        }
        let memory = Memory::load(dir.path());
        assert_eq!((memory.known.len(), memory.of(&network(99))), (NETWORKS_MAX, Some(Transport::OpenVpn)));
        assert_eq!(memory.of(&network(1)), None);
        let mut memory = memory;
        memory.remember(&network(200), Transport::WebSocket, NOW + Duration::from_secs(181 * 24 * 3600));
        assert_eq!(memory.known.len(), 1);
        for spoilt in [&b"{"[..], b"[{\"transport\":\"pigeon\"}]", b"\xff", &vec![b' '; 100_000]] {
            std::fs::write(dir.path().join(FILE_NAME), spoilt).unwrap();
            assert!(Memory::load(dir.path()).known.is_empty());
        }
    }
}
