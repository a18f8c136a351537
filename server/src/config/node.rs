use std::path::PathBuf;

use super::section::section;

const HOST_NAME_FILE: &str = "/proc/sys/kernel/hostname";

section! {
    /// Keys at the top of the file.
    pub(in crate::config) struct Node in "" {
        /// Where keys, the embedded database and the first administrator's token are kept.
        data_dir: PathBuf = "/var/lib/cloudlink".into();
        /// This node's name in links and logs; by default the host name. No two nodes of one database may share it.
        node: Option<String> = None;
        /// The trust domain in the identities of devices, `spiffe://<trust domain>/…`. It cannot be changed once devices
        /// are enrolled.
        trust_domain: String = "cloudlink.internal".to_owned();
    }
}

/// The host's name, or a fixed one where it has none.
pub(in crate::config) fn host_name() -> String {
    let name = std::fs::read_to_string(HOST_NAME_FILE).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}
