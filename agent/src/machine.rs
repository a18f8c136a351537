//! What the device tells about itself in its `Hello`.

use std::io;
use std::path::Path;

use cloudlink_proto::link::STRING_BYTES_MAX;
use cloudlink_proto::link::message::{BootHint, ConfigurationStatus, Hello, TransportFailure};
use sysinfo::System;

use crate::busy::Busy;
use crate::clock;
use crate::command::Kind;
use crate::{desired, disk};

/// A boot id is a UUID; whatever stands in for it may be somewhat longer.
const BOOT_ID_BYTES_MAX: u64 = 128;

/// Name and version of this software.
pub const AGENT: &str = concat!("cloudlink-agent/", env!("CARGO_PKG_VERSION"));

/// The version alone.
#[must_use]
pub fn version() -> &'static str {
    // Of what the server is told: one text, so that both are always the same.
    AGENT.split_once('/').map_or(AGENT, |(_, version)| version)
}

/// Reads which boot of the operating system this is.
///
/// # Errors
/// When the file cannot be read or says nothing: without a boot id, no reboot could ever be proven.
pub fn boot_id(path: &Path) -> io::Result<String> {
    let content = disk::read_bounded(std::fs::File::open(path)?, BOOT_ID_BYTES_MAX)?;
    let text = String::from_utf8(content).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text"))?;
    let boot_id = text.trim();
    if boot_id.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    Ok(boot_id.to_owned())
}

/// The first message of a link.
#[must_use]
pub fn hello(
    boot_id: &str,
    boot_hint: BootHint,
    streams: &[&str],
    failures: &[TransportFailure],
    busy: &Busy,
    configuration: Option<ConfigurationStatus>,
) -> Hello {
    let own = Kind::ALL.iter().map(|kind| kind.name()).chain([desired::CAPABILITY]);
    Hello {
        // The session fills in what it speaks.
        versions: Vec::new(),
        capabilities: own.chain(streams.iter().copied()).map(str::to_owned).collect(),
        boot_id: boot_id.to_owned(),
        agent: AGENT.to_owned(),
        os: shortened(System::long_os_version().unwrap_or_default()),
        hostname: shortened(System::host_name().unwrap_or_default()),
        clock_unix_ms: clock::unix_ms(clock::wall_clock()),
        transport_failures: failures.to_vec(),
        boot_hint: boot_hint.into(),
        busy_lock: Some(busy.told()).filter(|lock| lock.left_ms > 0),
        configuration,
    }
}

fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(STRING_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_id_is_trimmed_and_never_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boot_id");
        assert!(boot_id(&path).is_err());
        std::fs::write(&path, "3f0c9a52-0000\n").unwrap();
        assert_eq!(boot_id(&path).unwrap(), "3f0c9a52-0000");
        for spoilt in [&b" \n"[..], b"\xff", &[b'a'; 200]] {
            std::fs::write(&path, spoilt).unwrap();
            assert!(boot_id(&path).is_err(), "{spoilt:?}");
        }
    }
}
