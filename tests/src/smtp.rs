//! A mail server (Debian's python3-aiosmtpd) on a loopback port, that keeps what it takes and refuses what it is told to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use data_encoding::BASE64;
use serde::Deserialize;

use crate::poll::wait_for;
use crate::port;
use crate::program::{Program, bound};

pub const USER: &str = "cloudlink";
pub const PASSWORD: &str = "a password with spaces & $igns";
const START_LIMIT: Duration = Duration::from_secs(20);

/// What it does with each message; the word in `answers` is looked up for each receiver before anything else.
const PROGRAM: &str = r#"
import base64, json, os, ssl, sys, threading
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

port, directory, mode, user, password = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5]

class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        note({"attempt": address})
        try:
            answer = open(os.path.join(directory, "answer")).read().strip()
        except FileNotFoundError:
            answer = ""
        if answer:
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        is_tls = server.transport.get_extra_info("ssl_object") is not None
        note({"from": envelope.mail_from, "to": envelope.rcpt_tos, "is_tls": is_tls,
              "is_authenticated": session.authenticated is True, "data": base64.b64encode(envelope.content).decode()})
        return "250 OK"

def note(what):
    with open(os.path.join(directory, "messages"), "a") as file:
        file.write(json.dumps(what) + "\n")

def authenticate(server, session, envelope, mechanism, data):
    return AuthResult(success=data.login == user.encode() and data.password == password.encode())

options = {}
if mode != "none":
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(os.path.join(directory, "server.pem"), os.path.join(directory, "server.key"))
    options = {"authenticator": authenticate, "auth_required": True}
    if mode == "starttls":
        options |= {"tls_context": tls, "require_starttls": True}
    else:
        options |= {"ssl_context": tls, "auth_require_tls": False}
Controller(Handler(), hostname="127.0.0.1", port=port, **options).start()
open(os.path.join(directory, "ready"), "w").close()
threading.Event().wait()
"#;

/// A running mail server.
#[derive(Debug)]
pub struct MailServer {
    pub address: SocketAddr,
    directory: PathBuf,
    _program: Program,
}

/// A message that it took.
#[derive(Clone, Debug)]
pub struct Mail {
    pub from: String,
    pub to: Vec<String>,
    pub is_tls: bool,
    pub is_authenticated: bool,
    /// As it came, head and all.
    pub text: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Mail { from: String, to: Vec<String>, is_tls: bool, is_authenticated: bool, data: String },
    Attempt { attempt: String },
}

impl MailServer {
    /// `mode`: `starttls`, `tls`, `none`, as in the configuration. With TLS it demands [`USER`] and [`PASSWORD`].
    pub async fn start(directory: &Path, mode: &str, certificate_pem: &str, key_pem: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("server.pem"), certificate_pem)?;
        std::fs::write(directory.join("server.key"), key_pem)?;
        std::fs::write(directory.join("server.py"), PROGRAM)?;
        let address = port::free()?;
        // Debian's own Python has Debian's packages.
        let mut command = bound("/usr/bin/python3");
        command.arg(directory.join("server.py")).arg(address.port().to_string()).arg(directory);
        command.args([mode, USER, PASSWORD]);
        let mut program = Program::start("aiosmtpd", command, &directory.join("server.log"))?;
        wait_for("a mail server", START_LIMIT, async || {
            if let Err(ended) = program.ensure_running() {
                return Ok(Err(ended));
            }
            anyhow::ensure!(directory.join("ready").exists(), "it has not begun");
            Ok(Ok(()))
        })
        .await??;
        Ok(Self { address, directory: directory.to_owned(), _program: program })
    }

    /// What it says to each receiver of a message from now on, instead of taking it; empty: it takes all.
    pub fn answer(&self, answer: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.directory.join("answer"), answer)?)
    }

    /// The messages that it took.
    pub fn messages(&self) -> anyhow::Result<Vec<Mail>> {
        let mut messages = Vec::new();
        for line in self.lines()? {
            if let Line::Mail { from, to, is_tls, is_authenticated, data } = line {
                let text = String::from_utf8(BASE64.decode(data.as_bytes())?)?;
                messages.push(Mail { from, to, is_tls, is_authenticated, text });
            }
        }
        Ok(messages)
    }

    /// How often somebody wanted to write to this address.
    pub fn attempts(&self, address: &str) -> anyhow::Result<usize> {
        let is_it = |line: &Line| matches!(line, Line::Attempt { attempt } if attempt == address);
        Ok(self.lines()?.iter().filter(|line| is_it(line)).count())
    }

    fn lines(&self) -> anyhow::Result<Vec<Line>> {
        let text = std::fs::read_to_string(self.directory.join("messages")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }
}

impl Mail {
    /// A line of the head, continued ones joined. An error unless there is exactly one.
    pub fn header(&self, name: &str) -> anyhow::Result<String> {
        let (head, _) = self.text.split_once("\r\n\r\n").context("a message without a head")?;
        let head = head.replace("\r\n ", " ").replace("\r\n\t", " ");
        let mut found = head.split("\r\n").filter_map(|line| line.split_once(": ")).filter(|(key, _)| *key == name);
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Ok(value.to_owned()),
            _ => anyhow::bail!("not one {name} in {}", self.text),
        }
    }
}
