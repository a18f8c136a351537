//! The system's settings of the tunnels' interface: one list, which is set when the interface is made, compared, and watched.

use std::fs;
use std::io;
use std::path::Path;

/// What no setting of the system may open: this host forwards nothing between tunnels, listens to no router in them, and
/// takes an address only from where its route points.
const SETTINGS: &[(&str, &str, &str)] = &[
    ("ipv4", "forwarding", "0"),
    ("ipv4", "accept_redirects", "0"),
    ("ipv4", "send_redirects", "0"),
    ("ipv4", "secure_redirects", "0"),
    ("ipv4", "shared_media", "0"),
    ("ipv4", "accept_source_route", "0"),
    ("ipv4", "rp_filter", "1"),
    ("ipv6", "disable_ipv6", "0"),
    ("ipv6", "forwarding", "0"),
    ("ipv6", "accept_ra", "0"),
    ("ipv6", "autoconf", "0"),
    ("ipv6", "accept_redirects", "0"),
    ("ipv6", "accept_source_route", "0"),
    // No address of its own making: nobody could be told, and each would ask for routers into nowhere.
    ("ipv6", "addr_gen_mode", "1"),
    ("ipv6", "router_solicitations", "0"),
];
const ALL_RP_FILTER: &str = "/proc/sys/net/ipv4/conf/all/rp_filter";

/// Why the settings are not as they must be.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    #[error("this kernel runs without IPv6, which tunnels need: start it without ipv6.disable=1")]
    NoIpv6,
    #[error("{key} cannot be set to {value}: /proc/sys must be writable, or the setting made beforehand")]
    Setting { key: String, value: &'static str, source: io::Error },
    #[error("{key} is still {found} after it was set to {value}")]
    Ignored { key: String, value: &'static str, found: String },
}

/// Sets what is not set already, so that a read-only /proc/sys with the right settings will do; then looks whether it is.
pub(crate) fn harden(interface: &str) -> Result<(), SettingError> {
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Err(SettingError::NoIpv6);
    }
    for &(family, setting, value) in SETTINGS {
        let key = key(family, interface, setting);
        let failed = |source| SettingError::Setting { key: key.clone(), value, source };
        if read(&key).map_err(failed)? == value {
            continue;
        }
        fs::write(&key, value).map_err(failed)?;
        let found = read(&key).map_err(failed)?;
        if found != value {
            return Err(SettingError::Ignored { found, key, value });
        }
    }
    Ok(())
}

/// The kernel takes the looser of the two.
pub(crate) fn warn_of_loose_sources() {
    if read(ALL_RP_FILTER).is_ok_and(|value| value == "2") {
        tracing::warn!("{ALL_RP_FILTER} is 2: it loosens the strict source check of the tunnels' interface");
    }
}

/// What is otherwise than declared, in words.
pub(super) fn differences(interface: &str) -> Vec<String> {
    let different = SETTINGS.iter().filter_map(|&(family, setting, value)| {
        let key = key(family, interface, setting);
        match read(&key) {
            Ok(found) if found == value => None,
            Ok(found) => Some(format!("{key} is {found:?} and not {value:?}")),
            Err(error) => Some(format!("{key} cannot be read: {error}")),
        }
    });
    different.collect()
}

fn key(family: &str, interface: &str, setting: &str) -> String {
    format!("/proc/sys/net/{family}/conf/{interface}/{setting}")
}

fn read(key: &str) -> io::Result<String> {
    Ok(fs::read_to_string(key)?.trim().to_owned())
}
