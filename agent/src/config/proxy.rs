//! `[proxy]`: the HTTP proxy that everything goes through which the agent dials, and whom it dials without.

mod exception;

use std::fmt;
use std::io;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use self::exception::Exception;
use super::section::Section;
use super::{Fault, Server, parse_host, parse_path};
use crate::disk;

/// The longest user name and the longest password, in bytes.
const LOGIN_BYTES_MAX: usize = 255;
/// The most entries of `no_proxy`, here or in the environment.
const EXCEPTIONS_MAX: usize = 256;
/// What `NO_PROXY` and the like may have, in bytes.
const VARIABLE_BYTES_MAX: usize = 16 * 1024;
const URL_HINT: &str = "such as \"http://proxy.example.com:3128\" or \"http://user:password@proxy.example.com:3128\", \
                        with special characters of user and password as %40";

/// What is dialled through a proxy, and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    proxy: Option<Proxy>,
    exceptions: Vec<Exception>,
    /// `HTTPS_PROXY` and `NO_PROXY` count. Default: false.
    from_environment: bool,
}

/// Where an HTTP proxy is, and what it wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    pub host: String,
    pub port: u16,
    pub login: Option<Login>,
}

/// Basic authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    password: Password,
}

#[derive(Clone, PartialEq, Eq)]
enum Password {
    Here(Zeroizing<String>),
    /// Read at each attempt: it may be changed while the agent runs.
    InFile(PathBuf),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(_) => f.write_str("[redacted]"),
            Self::InFile(path) => path.fmt(f),
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Login {
    /// # Errors
    /// When it stands in a file that cannot be read, or has no password.
    pub fn password(&self) -> io::Result<Zeroizing<String>> {
        let path = match &self.password {
            Password::Here(password) => return Ok(password.clone()),
            Password::InFile(path) => path,
        };
        let read = std::fs::File::open(path).and_then(|file| disk::read_bounded(file, LOGIN_BYTES_MAX as u64 + 2));
        let content = Zeroizing::new(read?);
        let text = std::str::from_utf8(&content).ok().map(|text| text.trim_end_matches(['\r', '\n']));
        let text = text.filter(|text| is_credential(text) && !text.is_empty());
        let text =
            text.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is not one line with a password"))?;
        Ok(Zeroizing::new(text.to_owned()))
    }

    /// The file that the password stands in.
    #[must_use]
    pub fn password_file(&self) -> Option<&PathBuf> {
        if let Password::InFile(path) = &self.password { Some(path) } else { None }
    }
}

impl Proxies {
    /// The proxy for this server.
    #[must_use]
    pub fn of(&self, server: &Server) -> Option<&Proxy> {
        let address = server.address.map(|address| address.ip().to_string());
        let (_, port) = server.target();
        let mut names = [Some(server.host.as_str()), address.as_deref()].into_iter().flatten();
        let is_excepted = names.any(|name| self.excepts(name, port));
        self.proxy.as_ref().filter(|_| !is_excepted)
    }

    /// The proxy for a host that is not the server.
    #[must_use]
    pub fn of_host(&self, host: &str, port: u16) -> Option<&Proxy> {
        self.proxy.as_ref().filter(|_| !self.excepts(host, port))
    }

    fn excepts(&self, name: &str, port: u16) -> bool {
        self.exceptions.iter().any(|exception| exception.holds(name, port))
    }

    /// Whether something is configured, for whatever server.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.proxy.is_some()
    }

    /// Where the proxy's password stands.
    #[must_use]
    pub fn password_file(&self) -> Option<&PathBuf> {
        self.proxy.as_ref()?.login.as_ref()?.password_file()
    }

    /// Takes from the environment what it says, if that counts.
    pub(super) fn honour(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<(), Fault> {
        if !self.from_environment {
            return Ok(());
        }
        // As curl: the name in small letters counts first.
        let first = |names: [&'static str; 2]| {
            let found = names.into_iter().find_map(|name| Some((name, variable(name)?)));
            found.filter(|(_, value)| !value.trim().is_empty())
        };
        let fault = |name: &str, (problem, hint): (String, String)| Fault {
            line: None,
            problem: format!("{name} in the environment {problem}"),
            hint,
        };
        if let Some((name, url)) = first(["https_proxy", "HTTPS_PROXY"]) {
            self.proxy = Some(parse_url(url.trim()).map_err(|error| fault(name, error))?);
        }
        if let Some((name, text)) = first(["no_proxy", "NO_PROXY"]) {
            let entries = text.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty());
            let entries: Vec<&str> = entries.take(EXCEPTIONS_MAX + 1).collect();
            if text.len() > VARIABLE_BYTES_MAX || entries.len() > EXCEPTIONS_MAX {
                return Err(fault(name, ("is too long".to_owned(), format!("at most {EXCEPTIONS_MAX} entries"))));
            }
            // What it does not understand is nobody's name: other programs may.
            self.exceptions.extend(entries.into_iter().filter_map(|entry| entry.parse::<Exception>().ok()));
        }
        Ok(())
    }
}

/// What is faulty is left out, with a fault.
pub(super) fn read(section: &Section<'_>) -> Proxies {
    let mut proxy = section.optional("url", parse_url);
    let from_environment = section.boolean("from_environment").unwrap_or(false);
    if from_environment && section.has("url") {
        section.fault("from_environment", "is of no use with a url", "say where the proxy is in one place");
    }
    if let Some(path) = section.optional("password_file", parse_path) {
        match proxy.as_mut().and_then(|proxy| proxy.login.as_mut()) {
            Some(login) if matches!(&login.password, Password::Here(password) if password.is_empty()) => {
                login.password = Password::InFile(path);
            }
            Some(_) => {
                section.fault("password_file", "is of no use: there is a password in url", "leave one of them out");
            }
            None => section.fault("password_file", "is of no use without a user", "url = \"http://user@proxy:3128\""),
        }
    }
    let exceptions = read_exceptions(section);
    section.finish();
    Proxies { proxy, exceptions, from_environment }
}

fn read_exceptions(section: &Section<'_>) -> Vec<Exception> {
    let texts = section.strings("no_proxy").unwrap_or_default();
    if texts.len() > EXCEPTIONS_MAX {
        section.fault(
            "no_proxy",
            &format!("has more than {EXCEPTIONS_MAX} entries"),
            "name a domain or a network above them",
        );
    }
    let mut exceptions = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(exception) => exceptions.push(exception),
            Err(error) => section.fault(
                "no_proxy",
                &format!("has {text:?}, which {error}"),
                "such as \"example.com\", \".internal\", \"10.0.0.0/8\", \"[fd00::1]:443\" or \"*\"",
            ),
        }
    }
    exceptions
}

/// The text is never part of what is told: there may be a password in it.
fn parse_url(text: &str) -> Result<Proxy, (String, String)> {
    let wrong = |what: &str| (what.to_owned(), URL_HINT.to_owned());
    // As for curl, one without a scheme is HTTP.
    let url = Zeroizing::new(if text.contains("://") { text.to_owned() } else { format!("http://{text}") });
    let uri: http::Uri = url.parse().map_err(|_| wrong("is not a URL"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(wrong("asks for TLS to the proxy, which is not known here")),
        _ => return Err(wrong("is not the URL of an HTTP proxy")),
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(wrong("has a path"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let host = parse_host(host).map_err(|_| wrong("has no host"))?;
    let port = authority.port_u16().filter(|port| *port > 0).ok_or_else(|| wrong("has no port"))?;
    let login = match authority.as_str().rsplit_once('@') {
        Some((userinfo, _)) => {
            Some(parse_login(userinfo).ok_or_else(|| wrong("has a user or password that cannot be"))?)
        }
        None => None,
    };
    Ok(Proxy { host, port, login })
}

fn parse_login(userinfo: &str) -> Option<Login> {
    let decoded = |text: &str| {
        let text = percent_decode_str(text).decode_utf8().ok()?.into_owned();
        is_credential(&text).then_some(text)
    };
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let user = decoded(user).filter(|user| !user.is_empty() && !user.contains(':'))?;
    Some(Login { user, password: Password::Here(Zeroizing::new(decoded(password)?)) })
}

/// It becomes a line of OpenVPN's file, too.
fn is_credential(text: &str) -> bool {
    text.len() <= LOGIN_BYTES_MAX && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::config::Config;

    const BEGINNING: &str = "state_dir = \"/s\"\n[server]\nhost = \"link.example.com\"\nca_file = \"/ca\"\n[proxy]\n";

    fn proxies(section: &str) -> Proxies {
        Config::parse(&format!("{BEGINNING}{section}")).unwrap().server.proxies
    }

    fn with_environment(section: &str, variables: &[(&str, &str)]) -> Result<Option<Proxy>, Fault> {
        let mut server = Config::parse(&format!("{BEGINNING}{section}")).unwrap().server;
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        server.proxies.honour(variable)?;
        Ok(server.proxies.of(&server).cloned())
    }

    #[test]
    fn user_and_password_are_part_of_the_url_and_never_shown() {
        let proxy = proxies("url = \"http://us%40er:p%3Ass%2Fw%C3%B6rd@[2001:db8::1]:3128/\"").proxy.unwrap();
        assert_eq!(proxy.to_string(), "[2001:db8::1]:3128");
        let login = proxy.login.as_ref().unwrap();
        assert_eq!((login.user.as_str(), login.password().unwrap().as_str()), ("us@er", "p:ss/wörd"));
        assert!(!format!("{proxy:?}").contains("p:ss"), "{proxy:?}");
        assert_eq!(
            proxies("url = \"proxy:80\"").proxy.unwrap(),
            Proxy { host: "proxy".to_owned(), port: 80, login: None }
        );
    }

    #[test]
    fn a_password_in_a_file_is_read_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let section = format!("url = \"http://u@proxy:80\"\npassword_file = {file:?}");
        let login = proxies(&section).proxy.unwrap().login.unwrap();
        assert!(login.password().is_err());
        for password in ["one", "two"] {
            std::fs::write(&file, format!("{password}\n")).unwrap();
            assert_eq!(login.password().unwrap().as_str(), password);
        }
        for spoilt in ["", "\n", "two\nlines", &"a".repeat(300)] {
            std::fs::write(&file, spoilt).unwrap();
            assert!(login.password().is_err(), "{spoilt:?}");
        }
    }

    #[rstest]
    #[case::not_a_url("url = \"http://u:secret@@:/\"", "proxy.url")]
    #[case::tls("url = \"https://u:secret@proxy:443\"", "proxy.url asks for TLS to the proxy")]
    #[case::socks("url = \"socks5://u:secret@proxy:1080\"", "proxy.url is not the URL of an HTTP proxy")]
    #[case::no_port("url = \"http://u:secret@proxy\"", "proxy.url has no port")]
    #[case::a_path("url = \"http://u:secret@proxy:80/x\"", "proxy.url has a path")]
    #[case::a_line_break("url = \"http://u:secret%0A@proxy:80\"", "proxy.url has a user or password that cannot be")]
    #[case::a_colon("url = \"http://u%3A:secret@proxy:80\"", "proxy.url has a user or password that cannot be")]
    #[case::two_places(
        "url = \"http://u:secret@proxy:80\"\nfrom_environment = true",
        "proxy.from_environment is of no use"
    )]
    #[case::two_passwords(
        "url = \"http://u:secret@proxy:80\"\npassword_file = \"/p\"",
        "proxy.password_file is of no use"
    )]
    #[case::nobody(
        "url = \"http://proxy:80\"\npassword_file = \"/p\"",
        "proxy.password_file is of no use without a user"
    )]
    #[case::an_exception("no_proxy = [\"a b\"]", "proxy.no_proxy has \"a b\"")]
    fn faults_are_told_without_the_password(#[case] section: &str, #[case] expected: &str) {
        let faults = Config::parse(&format!("{BEGINNING}{section}")).unwrap_err();
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert!(told.len() == 1 && told[0].contains(expected), "{told:?}");
        assert!(!told[0].contains("secret"), "{told:?}");
    }

    #[test]
    fn the_environment_counts_only_when_it_is_to() {
        let variables = [("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", "localhost, ???,10.0.0.0/8")];
        assert_eq!(with_environment("", &variables).unwrap(), None);
        let section = "from_environment = true";
        assert_eq!(with_environment(section, &variables).unwrap().unwrap().to_string(), "proxy:3128");
        assert_eq!(with_environment(section, &[("HTTPS_PROXY", "")]).unwrap(), None);
        let both = [("https_proxy", "small:1"), ("HTTPS_PROXY", "large:2")];
        assert_eq!(with_environment(section, &both).unwrap().unwrap().to_string(), "small:1");
        let excepted = [("HTTPS_PROXY", "proxy:3128"), ("no_proxy", "other.test example.com")];
        assert_eq!(with_environment(section, &excepted).unwrap(), None);
        let fault = with_environment(section, &[("HTTPS_PROXY", "http://u:secret@proxy")]).unwrap_err();
        assert!(fault.to_string().starts_with("HTTPS_PROXY in the environment has no port"), "{fault}");
        assert!(!fault.to_string().contains("secret"), "{fault}");
    }

    #[test]
    fn what_is_dialled_is_compared_by_name_and_by_address() {
        let of = |server: &str, section: &str| {
            let text = BEGINNING.replace("host = ", &format!("{server}\nhost = "));
            let server = Config::parse(&format!("{text}url = \"proxy:1\"\n{section}")).unwrap().server;
            server.proxies.of(&server).is_some()
        };
        assert!(of("", "no_proxy = [\"192.0.2.7\"]"));
        assert!(!of("", "no_proxy = [\".example.com\"]"));
        assert!(!of("address = \"192.0.2.7:443\"", "no_proxy = [\"192.0.2.0/24\"]"));
        assert!(of("address = \"192.0.2.7:4443\"", "no_proxy = [\"192.0.2.7:443\"]"));
        assert!(!of("", "no_proxy = [\"*\"]"));
    }
}
