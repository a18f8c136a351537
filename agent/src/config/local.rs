//! `[local]`: how applications on the device speak to the agent, and `[busy]`: how long they may ask not to be disturbed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parse_path;
use super::section::Section;

/// In the state directory, unless configured otherwise.
const SOCKET_NAME: &str = "local.sock";
/// What the address of a Unix socket can hold.
const SOCKET_BYTES_MAX: usize = 107;
const MODE_DEFAULT: u32 = 0o600;
const BUSY_SECONDS_DEFAULT: u64 = 24 * 3600;
const BUSY_SECONDS_MAX: u64 = 7 * 24 * 3600;

/// `[local]`: the socket for applications on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Default: `local.sock` in the state directory.
    pub socket: PathBuf,
    /// Who may use it, as permission bits in octal: `"0600"`, `"0660"` or `"0666"`. Default: `"0600"`.
    pub mode: u32,
    /// Whose the socket is. Default: the agent's own group.
    pub group: Option<String>,
}

/// `[busy]`: "not now".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// For how long a lock may be set; it may be renewed. Default: 86,400. At most 604,800.
    pub max: Duration,
}

pub(super) fn read(local: &Section<'_>, state_dir: Option<&Path>) -> Option<Local> {
    let socket = local.optional("socket", parse_path).or_else(|| Some(state_dir?.join(SOCKET_NAME)));
    if local.has("socket") && socket.as_ref().is_some_and(|path| path.as_os_str().len() > SOCKET_BYTES_MAX) {
        local.fault(
            "socket",
            &format!("is longer than {SOCKET_BYTES_MAX} bytes"),
            "socket = \"/run/cloudlink-agent/local.sock\"",
        );
    }
    let mode = local.optional("mode", |text| match text {
        "0600" => Ok(0o600),
        "0660" => Ok(0o660),
        "0666" => Ok(0o666),
        _ => Err((format!("is {text:?}"), "\"0600\", \"0660\" or \"0666\"".to_owned())),
    });
    // Whether there is such a group, the device itself knows, when the socket is made.
    let group = local.optional("group", |text| match text.is_empty() || text.chars().any(char::is_control) {
        false => Ok(text.to_owned()),
        true => Err(("is no name".to_owned(), "the name of a group".to_owned())),
    });
    local.finish();
    Some(Local { socket: socket?, mode: mode.unwrap_or(MODE_DEFAULT), group })
}

pub(super) fn read_busy(busy: &Section<'_>) -> Busy {
    let max = busy.number("max_seconds", BUSY_SECONDS_MAX).unwrap_or(BUSY_SECONDS_DEFAULT);
    busy.finish();
    Busy { max: Duration::from_secs(max) }
}
