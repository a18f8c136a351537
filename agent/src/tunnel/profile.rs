//! The profile that the agent writes for a client of its own.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::TunnelError;
use crate::config::{Config, Login, Proxy, Started, WrappingKind};
use crate::disk;
use crate::identity::Slot;

/// The name of the profile in the state directory.
pub(super) const FILE_NAME: &str = "openvpn.conf";
/// The name of the file with user and password for a proxy, which the profile names.
const LOGIN_FILE_NAME: &str = "proxy.auth";
/// No file of the state directory that a profile names is called longer.
pub const LONGEST_FILE_NAME: &str = "current.pem";
/// OpenVPN's limit for a line of a profile, in bytes (`OPTION_LINE_SIZE`), less what may stand before and behind a path.
const QUOTED_PATH_BYTES_MAX: usize = 256 - 24;

/// Why a path cannot be part of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("is not text on one line")]
    NotText,
    #[error("is longer than OpenVPN reads it")]
    TooLong,
}

/// Whether a profile can name this path.
///
/// # Errors
/// When it cannot.
pub fn check_path(path: &Path) -> Result<(), PathError> {
    quoted_path(path).map(drop)
}

/// Everything that the client is told. It is told all of it by the profile, so that people can look at that; all but a password.
#[derive(Clone, Debug)]
pub struct Profile {
    text: String,
    login: Option<Login>,
}

impl Profile {
    /// # Errors
    /// When a path in it is nothing that a profile can hold.
    pub fn new(config: &Config, started: &Started, slot: Slot) -> Result<Self, TunnelError> {
        let proxy = started.http_proxy.as_ref().or(config.server.proxy());
        Ok(Self { text: text(config, started, proxy, slot)?, login: proxy.and_then(|proxy| proxy.login.clone()) })
    }

    /// Whether it goes with a password, which the client reads once.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.login.is_some()
    }

    /// Writes it where the client is told to look.
    ///
    /// # Errors
    /// When a file cannot be written, or the password for the proxy cannot be read.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let login_path = path.with_file_name(LOGIN_FILE_NAME);
        match &self.login {
            Some(login) => {
                let lines = Zeroizing::new(format!("{}\n{}\n", login.user, login.password()?.as_str()));
                disk::write_atomically(&login_path, lines.as_bytes(), disk::MODE_SECRET)?;
            }
            None => drop(disk::remove_if_there(&login_path)?),
        }
        disk::write_atomically(path, self.text.as_bytes(), disk::MODE_SECRET)
    }
}

fn text(config: &Config, started: &Started, proxy: Option<&Proxy>, slot: Slot) -> Result<String, TunnelError> {
    let server = &config.server;
    let (host, port) = server.target();
    let name = server.server_name.to_str();
    let name =
        name.parse::<cloudlink_certs::ServerName>().map_or_else(|_| name.into_owned(), |name| name.common_name());
    let identity = config.state_dir.join(slot.file_name());
    let path = |path: &Path| quoted_path(path).map_err(|reason| TunnelError::Profile { path: path.to_owned(), reason });
    let mut lines = vec![
        "# Written by cloudlink-agent at each start of the client: changes are lost.".to_owned(),
        "client".to_owned(),
        format!("dev {}", config.openvpn.interface),
        "dev-type tun".to_owned(),
        format!("remote {host} {port} tcp-client"),
        "nobind".to_owned(),
        // Seconds: as for a link, at first and at the longest. A server that asks for more time than that does not get it.
        "connect-retry 1 300".to_owned(),
        "connect-timeout 20".to_owned(),
        format!("ca {}", path(&server.ca_file)?),
        format!("cert {}", path(&identity)?),
        format!("key {}", path(&identity)?),
        // The file that the certificate was read from gets another name when it becomes the current one.
        "persist-key".to_owned(),
        "remote-cert-tls server".to_owned(),
        format!("verify-x509-name {name} name"),
        "tls-version-min 1.3".to_owned(),
        // The tunnel leads to the server and nowhere else: it must not change how the device reaches the rest of the world.
        "route-nopull".to_owned(),
        "script-security 1".to_owned(),
        "verb 3".to_owned(),
        "suppress-timestamps".to_owned(),
    ];
    if let Some(wrapping) = &started.wrapping {
        // The server has the other direction.
        let direction = if wrapping.kind == WrappingKind::TlsAuth { " 1" } else { "" };
        lines.push(format!("{} {}{direction}", wrapping.kind.name(), path(&wrapping.key)?));
    }
    if let Some(proxy) = proxy {
        let login = match &proxy.login {
            Some(_) => format!(" {} basic", path(&config.state_dir.join(LOGIN_FILE_NAME))?),
            None => String::new(),
        };
        lines.push(format!("http-proxy {} {}{login}", proxy.host, proxy.port));
    }
    let mut text = String::new();
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
    Ok(text)
}

/// In quotation marks, as OpenVPN's lexer reads them: a backslash takes the meaning from what follows.
fn quoted_path(path: &Path) -> Result<String, PathError> {
    let text = path.to_str().filter(|text| !text.chars().any(char::is_control)).ok_or(PathError::NotText)?;
    let mut quoted = String::from("\"");
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    if quoted.len() > QUOTED_PATH_BYTES_MAX { Err(PathError::TooLong) } else { Ok(quoted) }
}

/// Where the profile stands.
pub(super) fn path(config: &Config) -> PathBuf {
    config.state_dir.join(FILE_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(server: &str, openvpn: &str, slot: Slot) -> String {
        let config = Config::parse(&format!(
            "state_dir = \"/var/lib/my agent\"\n[server]\ntransport = \"openvpn\"\nca_file = \"/etc/ca.pem\"\n{server}\n\
             [openvpn]\nstart = true\n{openvpn}\n",
        ))
        .unwrap();
        Profile::new(&config, config.openvpn.started.as_ref().unwrap(), slot).unwrap().text
    }

    #[test]
    fn the_client_is_told_whom_to_dial_and_whom_to_trust() {
        let profile = profile("host = \"link.example.com\"", "", Slot::Current);
        let expected = "client\ndev cloudlink\ndev-type tun\nremote link.example.com 443 tcp-client\nnobind\n\
            connect-retry 1 300\nconnect-timeout 20\nca \"/etc/ca.pem\"\ncert \"/var/lib/my agent/current.pem\"\n\
            key \"/var/lib/my agent/current.pem\"\npersist-key\nremote-cert-tls server\n\
            verify-x509-name link.example.com name\ntls-version-min 1.3\nroute-nopull\nscript-security 1\nverb 3\n\
            suppress-timestamps\n";
        assert_eq!(profile.split_once('\n').unwrap().1, expected);
    }

    #[test]
    fn each_wrapping_has_its_line() {
        for (wrapping, line) in [
            ("tls-auth", "tls-auth \"/etc/w.key\" 1\n"),
            ("tls-crypt", "tls-crypt \"/etc/w.key\"\n"),
            ("tls-crypt-v2", "tls-crypt-v2 \"/etc/w.key\"\n"),
        ] {
            let openvpn = format!("wrapping = {wrapping:?}\nwrapping_key = \"/etc/w.key\"");
            assert!(profile("host = \"a.example\"", &openvpn, Slot::Current).ends_with(line), "{wrapping}");
        }
    }

    #[test]
    fn what_is_configured_is_dialled() {
        let server = "host = \"a.example\"\nserver_name = \"b.example\"\naddress = \"[2001:db8::7]:4443\"";
        let profile = profile(server, "interface = \"vpn9\"\nhttp_proxy = \"proxy.example:3128\"", Slot::Next);
        for line in [
            "remote 2001:db8::7 4443 tcp-client",
            "verify-x509-name b.example name",
            "dev vpn9",
            "cert \"/var/lib/my agent/next.pem\"",
            "http-proxy proxy.example 3128",
        ] {
            assert!(profile.lines().any(|found| found == line), "{line} is not in\n{profile}");
        }
    }

    #[test]
    fn a_proxys_password_is_in_a_file_of_its_own() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let profile = |proxy: &str| {
            let config = Config::parse(&format!(
                "state_dir = {:?}\n[server]\ntransport = \"openvpn\"\nca_file = \"/ca\"\nhost = \"a.example\"\n\
                 [openvpn]\nstart = true\n[proxy]\n{proxy}\n",
                dir.path()
            ))
            .unwrap();
            let profile = Profile::new(&config, config.openvpn.started.as_ref().unwrap(), Slot::Current).unwrap();
            profile.write(&path(&config)).unwrap();
            std::fs::read_to_string(path(&config)).unwrap()
        };
        let login = dir.path().join("proxy.auth");
        let text = profile("url = \"http://me:a%20secret@proxy.example:3128\"");
        assert!(text.contains(&format!("\nhttp-proxy proxy.example 3128 {login:?} basic\n")), "{text}");
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(std::fs::read_to_string(&login).unwrap(), "me\na secret\n");
        assert_eq!(std::fs::metadata(&login).unwrap().permissions().mode() & 0o777, 0o600);

        let text = profile("url = \"http://me@proxy.example:3128\"\nno_proxy = [\"example\"]");
        assert!(!text.contains("http-proxy") && !login.exists(), "{text}");
    }

    #[test]
    fn a_name_that_no_common_name_holds_is_not_expected_in_one() {
        let label = "a".repeat(60);
        let server = format!("host = \"{label}.example.com\"");
        assert!(profile(&server, "", Slot::Current).contains("verify-x509-name cloudlinkd name\n"));
    }

    #[test]
    fn no_path_breaks_out_of_its_line() {
        assert_eq!(quoted_path(Path::new(r#"/a b\c"d'"#)).unwrap(), r#""/a b\\c\"d'""#);
        assert_eq!(check_path(Path::new("/a\nscript-security 3")), Err(PathError::NotText));
        assert_eq!(check_path(Path::new(&format!("/{}", "a".repeat(240)))), Err(PathError::TooLong));
        use std::os::unix::ffi::OsStrExt as _;
        assert_eq!(check_path(Path::new(std::ffi::OsStr::from_bytes(b"/\xff"))), Err(PathError::NotText));
    }
}
