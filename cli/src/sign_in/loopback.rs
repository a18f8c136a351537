//! A browser on this host, which the provider sends back to a port that this program listens on for a moment (RFC 8252).

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use reqwest::Url;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::provider::{Provider, challenge, claim, random};
use crate::failure::Failure;
use crate::output::note;

/// How long somebody may take at the provider.
const WITHIN: Duration = Duration::from_secs(300);
/// For a browser to say what it wants. Some open connections that they never use.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
const REQUEST_BYTES_MAX: u64 = 16 * 1024;
/// Connections that are read at a time, and answers that wait.
const CONNECTIONS_MAX: usize = 16;
const PATH: &str = "/callback";

/// What the browser brought.
#[derive(Debug, PartialEq, Eq)]
struct CameBack {
    code: Result<String, String>,
}

pub(super) async fn id_token(provider: &Provider, open: bool) -> Result<String, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot listen on 127.0.0.1")?;
    let port = listener.local_addr().context("cannot listen on 127.0.0.1")?.port();
    let redirect = format!("http://127.0.0.1:{port}{PATH}");
    let (state, nonce, verifier) = (random()?, random()?, random()?);
    let mut url = provider.endpoints.authorization.clone();
    url.query_pairs_mut().extend_pairs([
        ("response_type", "code"),
        ("client_id", &provider.client_id),
        ("redirect_uri", &redirect),
        ("scope", &provider.scope),
        ("state", &state),
        ("nonce", &nonce),
        ("code_challenge", &challenge(&verifier)),
        ("code_challenge_method", "S256"),
    ]);
    note("Sign in with a browser on this host. On another one: cloudlink login --device");
    note(&format!("Open: {url}"));
    if open {
        open_browser(&url);
    }
    let came_back = tokio::time::timeout(WITHIN, wait(listener, &state)).await;
    let came_back =
        came_back.map_err(|_| Failure::NotSignedIn("nobody signed in in time\nRun it again.".to_owned()))??;
    let code = came_back
        .code
        .map_err(|error| Failure::NotSignedIn(format!("the OpenID provider did not let you in\n{error}")))?;
    let form = [
        ("grant_type", "authorization_code"),
        ("code", &code),
        ("redirect_uri", &redirect),
        ("client_id", &provider.client_id),
        ("code_verifier", &verifier),
    ];
    let id_token = provider.tokens(&form).await?.map_err(|refusal| refusal.failure())?;
    if claim(&id_token, "nonce").as_ref().and_then(|nonce| nonce.as_str()) != Some(&nonce) {
        return Err(anyhow!("the OpenID provider's answer belongs to another sign-in").into());
    }
    Ok(id_token)
}

/// Without a browser, the address is on the terminal.
fn open_browser(url: &Url) {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let _ = Command::new(program)
        .arg(url.as_str())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
}

/// The first request that knows the state. Whatever else connects is told nothing.
async fn wait(listener: TcpListener, state: &str) -> Result<CameBack, Failure> {
    let (found, mut results) = mpsc::channel(CONNECTIONS_MAX);
    loop {
        tokio::select! {
            Some(came_back) = results.recv() => return Ok(came_back),
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("cannot listen on 127.0.0.1")?;
                // One that is not read is closed.
                let Ok(permit) = found.clone().try_reserve_owned() else { continue };
                let state = state.to_owned();
                tokio::spawn(async move {
                    if let Ok(Ok(Some(came_back))) = tokio::time::timeout(REQUEST_WITHIN, serve(stream, &state)).await {
                        permit.send(came_back);
                    }
                });
            }
        }
    }
}

async fn serve(mut stream: TcpStream, state: &str) -> std::io::Result<Option<CameBack>> {
    let mut head = Vec::new();
    let mut bounded = (&mut stream).take(REQUEST_BYTES_MAX);
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if bounded.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
    }
    let came_back = read(&String::from_utf8_lossy(&head), state);
    let (status, text) = match &came_back {
        Some(CameBack { code: Ok(_) }) => {
            ("200 OK", "You are signed in. Close this window and go back to the terminal.")
        }
        Some(CameBack { code: Err(_) }) => ("200 OK", "You are not signed in. The terminal says why."),
        None => ("404 Not Found", "There is nothing here."),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         Content-Security-Policy: default-src 'none'\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(came_back)
}

/// What a request brings, if it is the one that we wait for.
fn read(head: &str, state: &str) -> Option<CameBack> {
    let target = head.strip_prefix("GET ")?.split(' ').next()?;
    let url = Url::parse("http://127.0.0.1").and_then(|base| base.join(target)).ok()?;
    let parameter = |name: &str| {
        let mut values = url.query_pairs().filter(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        values.next().filter(|_| values.next().is_none())
    };
    if url.path() != PATH || parameter("state")? != state {
        return None;
    }
    let code = match parameter("error") {
        Some(error) => Err(parameter("error_description").unwrap_or(error)),
        None => Ok(parameter("code")?),
    };
    Some(CameBack { code })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came_back(target: &str) -> Option<CameBack> {
        read(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"), "s")
    }

    #[test]
    fn the_code_is_taken_with_our_state_only() {
        assert_eq!(came_back("/callback?code=c%20d&state=s"), Some(CameBack { code: Ok("c d".to_owned()) }));
        for target in [
            "/callback?code=c",
            "/callback?code=c&state=other",
            "/callback?code=c&state=s&state=s",
            "/callback?code=c&code=d&state=s",
            "/callback?state=s",
            "/favicon.ico",
            "/other?code=c&state=s",
            "",
        ] {
            assert_eq!(came_back(target), None, "{target}");
        }
        assert_eq!(read("POST /callback?code=c&state=s HTTP/1.1", "s"), None);
    }

    #[test]
    fn an_error_is_taken_in_its_own_words() {
        let told = came_back("/callback?error=access_denied&error_description=not+you&state=s");
        assert_eq!(told, Some(CameBack { code: Err("not you".to_owned()) }));
        let bare = came_back("/callback?error=access_denied&state=s");
        assert_eq!(bare, Some(CameBack { code: Err("access_denied".to_owned()) }));
    }
}
