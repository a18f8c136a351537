//! A connection through an HTTP proxy: `CONNECT` (RFC 9110, section 9.3.6) with basic authentication (RFC 7617).

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use data_encoding::BASE64;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{DialError, connect, resolve_name};
use crate::config::{Login, Proxy};
use crate::machine;
use crate::problem::shown;

/// A proxy connects to the server before it answers.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// The head of its answer, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;

/// Why a proxy opened no connection.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("it cannot be reached")]
    Reach(#[source] Box<DialError>),
    #[error("the password in {} cannot be read", path.display())]
    Password { path: PathBuf, source: io::Error },
    #[error("it did not answer within {} s", ANSWER_WITHIN.as_secs())]
    TimedOut,
    #[error("the connection to it broke")]
    Broke(#[source] io::Error),
    #[error("it closed the connection and answered nothing: is it an HTTP proxy?")]
    Closed,
    #[error("it answered something that is not HTTP: is it an HTTP proxy?")]
    NotHttp,
    #[error("its answer is longer than an HTTP proxy's")]
    TooLong,
    #[error("it said more than that there is a connection: what follows is not the server's word")]
    Early,
    #[error("it wants a user and a password ({status}), and none are configured: set proxy.url")]
    NoLogin { status: u16 },
    #[error("it refuses the password of user {user:?} ({status})")]
    Login { user: String, status: u16 },
    #[error("it takes no basic authentication (407), only {offered}: let it make an exception for the server")]
    Scheme { offered: String },
    #[error("it forbids connections to {target} (403): let whoever runs it allow them")]
    Forbidden { target: String },
    #[error("it opened no connection to {target}: {status}{}", reason_of(reason))]
    Status { target: String, status: u16, reason: String },
}

fn reason_of(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" {}", shown(reason)) }
}

/// Lets the proxy connect to `target`, a name or address and a port.
pub(super) async fn open(proxy: &Proxy, target: &str) -> Result<TcpStream, ProxyError> {
    let request = request(proxy.login.as_ref(), target)?;
    let reach = |error| ProxyError::Reach(Box::new(error));
    let addresses = resolve_name(&proxy.host, proxy.port).await.map_err(reach)?;
    let mut stream = connect(&addresses).await.map_err(reach)?;
    let answered = async {
        stream.write_all(request.as_bytes()).await.map_err(ProxyError::Broke)?;
        read_answer(&mut stream).await
    };
    let answer = timeout(ANSWER_WITHIN, answered).await.map_err(|_| ProxyError::TimedOut)??;
    answer.judge(proxy.login.as_ref(), target)?;
    Ok(stream)
}

fn request(login: Option<&Login>, target: &str) -> Result<Zeroizing<String>, ProxyError> {
    let mut request = Zeroizing::new(String::with_capacity(1024));
    let _ = write!(request, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {}\r\n", machine::AGENT);
    if let Some(login) = login {
        let path = || login.password_file().cloned().unwrap_or_default();
        let password = login.password().map_err(|source| ProxyError::Password { path: path(), source })?;
        let pair = Zeroizing::new(format!("{}:{}", login.user, password.as_str()));
        let encoded = Zeroizing::new(BASE64.encode(pair.as_bytes()));
        request.push_str("Proxy-Authorization: Basic ");
        request.push_str(&encoded);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    Ok(request)
}

async fn read_answer(stream: &mut TcpStream) -> Result<Answer, ProxyError> {
    let mut said = Vec::with_capacity(1024);
    loop {
        let room = HEAD_BYTES_MAX - said.len();
        if room == 0 {
            return Err(ProxyError::TooLong);
        }
        let count = (&mut *stream).take(room as u64).read_buf(&mut said).await.map_err(ProxyError::Broke)?;
        if count == 0 {
            return Err(ProxyError::Closed);
        }
        if let Some(answer) = Answer::read(&said)? {
            return Ok(answer);
        }
    }
}

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    reason: String,
    /// Of `Proxy-Authenticate`, in small letters.
    schemes: Vec<String>,
    /// Something came behind the head.
    has_more: bool,
}

impl Answer {
    /// `None` while the head is not whole.
    fn read(said: &[u8]) -> Result<Option<Self>, ProxyError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(said) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(ProxyError::TooLong),
            Err(_) => return Err(ProxyError::NotHttp),
        };
        let schemes = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("proxy-authenticate"));
        let schemes = schemes.filter_map(|header| std::str::from_utf8(header.value).ok()?.split([' ', ',']).next());
        Ok(Some(Self {
            status: response.code.unwrap_or_default(),
            reason: response.reason.unwrap_or_default().to_owned(),
            schemes: schemes.map(str::to_ascii_lowercase).filter(|scheme| !scheme.is_empty()).collect(),
            has_more: said.len() > length,
        }))
    }

    fn judge(self, login: Option<&Login>, target: &str) -> Result<(), ProxyError> {
        let target = || target.to_owned();
        match self.status {
            // The server says nothing before it is spoken to: it would be the proxy's word.
            200..=299 if self.has_more => Err(ProxyError::Early),
            200..=299 => Ok(()),
            407 if !self.schemes.is_empty() && !self.schemes.iter().any(|scheme| scheme == "basic") => {
                Err(ProxyError::Scheme { offered: shown(&self.schemes.join(", ")) })
            }
            // Some answer 401, as if they were the server, to a password that will not do.
            status @ (401 | 407) => Err(match login {
                Some(login) => ProxyError::Login { user: login.user.clone(), status },
                None => ProxyError::NoLogin { status },
            }),
            403 => Err(ProxyError::Forbidden { target: target() }),
            status => Err(ProxyError::Status { target: target(), status, reason: self.reason }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::config::Config;

    fn proxy(url: &str) -> Proxy {
        let text =
            format!("state_dir = \"/s\"\n[server]\nhost = \"a.test\"\nca_file = \"/ca\"\n[proxy]\nurl = {url:?}\n");
        let server = Config::parse(&text).unwrap().server;
        server.proxies.of(&server).unwrap().clone()
    }

    fn judged(said: &[u8], url: &str) -> Result<(), String> {
        let answer = Answer::read(said).map_err(|error| error.to_string())?.ok_or("not whole")?;
        answer.judge(proxy(url).login.as_ref(), "a.test:443").map_err(|error| error.to_string())
    }

    #[test]
    fn the_request_says_whom_and_who() {
        let request = request(proxy("http://Aladdin:open%20sesame@p:80").login.as_ref(), "[2001:db8::1]:443").unwrap();
        let expected = format!(
            "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\nUser-Agent: {}\r\n\
             Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n",
            machine::AGENT
        );
        assert_eq!(request.as_str(), expected);
    }

    #[rstest]
    #[case::established(b"HTTP/1.0 200 Connection established\r\n\r\n", Ok(()))]
    #[case::another_success(b"HTTP/1.1 204 OK\r\nVia: x\r\n\r\n", Ok(()))]
    #[case::half(b"HTTP/1.1 200 OK\r\nVia:", Err("not whole"))]
    #[case::early(b"HTTP/1.1 200 OK\r\n\r\n\x16\x03", Err("it said more than that there is a connection"))]
    #[case::other_protocol(b"SSH-2.0-OpenSSH_9.2\r\n", Err("it answered something that is not HTTP"))]
    #[case::tls(b"\x15\x03\x01\x00\x02\x02\x46", Err("it answered something that is not HTTP"))]
    #[case::forbidden(b"HTTP/1.1 403 Filtered\r\n\r\n<html>", Err("it forbids connections to a.test:443 (403)"))]
    #[case::password(
        b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n<html>",
        Err("it refuses the password of user \"me\" (407)")
    )]
    #[case::password_of_a_server(
        b"HTTP/1.0 401 Unauthorized\r\n\r\n",
        Err("it refuses the password of user \"me\" (401)")
    )]
    #[case::other_schemes(
        b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nProxy-authenticate: Negotiate\r\n\r\n",
        Err("it takes no basic authentication (407), only ntlm, negotiate")
    )]
    #[case::one_of_the_schemes(
        b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: BASIC realm=x\r\n\r\n",
        Err("it refuses the password of user \"me\" (407)")
    )]
    #[case::gateway(b"HTTP/1.1 502 Bad \x07\r\n\r\n", Err("it answered something that is not HTTP"))]
    #[case::no_gateway(
        b"HTTP/1.1 504 Gateway Timeout\r\n\r\n",
        Err("it opened no connection to a.test:443: 504 Gateway Timeout")
    )]
    fn an_answer_is_judged(#[case] said: &[u8], #[case] expected: Result<(), &str>) {
        match (judged(said, "http://me:secret@p:80"), expected) {
            (Ok(()), Ok(())) => {}
            (Err(told), Err(expected)) => assert!(told.starts_with(expected) && !told.contains("secret"), "{told}"),
            (judged, _) => panic!("{judged:?}"),
        }
    }

    #[test]
    fn a_proxy_that_wants_a_password_says_so_to_whoever_has_none() {
        let told = judged(b"HTTP/1.1 407 No\r\n\r\n", "http://p:80").unwrap_err();
        assert!(told.contains("none are configured"), "{told}");
    }

    #[test]
    fn too_many_headers_are_not_a_proxys() {
        let said = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert!(matches!(Answer::read(said.as_bytes()), Err(ProxyError::TooLong)));
    }

    proptest! {
        #[test]
        fn whatever_it_says_is_judged(said in proptest::collection::vec(any::<u8>(), 0..512)) {
            let with_head = [b"HTTP/1.1 ".as_slice(), &said].concat();
            for said in [said, with_head] {
                if let Ok(Some(answer)) = Answer::read(&said) {
                    let _ = answer.judge(None, "a.test:443");
                }
            }
        }
    }
}
