//! A real OpenID provider (npm `oidc-provider`, run by node), and a browser for its pages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aws_lc_rs::digest;
use data_encoding::BASE64URL_NOPAD;
use reqwest::header::{COOKIE, HeaderMap, LOCATION, SET_COOKIE};
use reqwest::{Certificate, Client, StatusCode, Url};
use serde_json::{Value, json};

use crate::api::install_provider;
use crate::poll::wait_for;
use crate::port;
use crate::program::{Program, bound};

/// Until node has loaded it.
const START_LIMIT: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(20);
/// Pages from the first to the last of a sign-in.
const PAGES_MAX: usize = 20;
/// Where a native client is sent back to. Nobody listens there: the browser stops.
const NATIVE_REDIRECT: &str = "http://127.0.0.1/callback";

pub const CLIENT_SECRET: &str = "a secret of the tests, and long enough";
/// What these tests never look into, for the provider takes any password.
const PASSWORD: &str = "any";

/// A running provider.
#[derive(Debug)]
pub struct Provider {
    pub issuer: String,
    pub ca_file: PathBuf,
    directory: PathBuf,
    settings: Value,
    program: Program,
}

impl Provider {
    /// Starts one whose files are under `directory`, for a server that browsers reach at `public_url`.
    pub async fn start(directory: &Path, public_url: &str) -> anyhow::Result<Self> {
        install_provider();
        std::fs::create_dir_all(directory)?;
        let address = port::free()?;
        certificate(directory)?;
        let code = "authorization_code";
        let native = |id: &str| {
            json!({
                "client_id": id, "application_type": "native", "token_endpoint_auth_method": "none",
                "redirect_uris": [NATIVE_REDIRECT], "response_types": ["code"],
                "grant_types": [code, "urn:ietf:params:oauth:grant-type:device_code"],
                "id_token_signed_response_alg": "ES256",
            })
        };
        let issuer = format!("https://{address}");
        let settings = json!({
            "issuer": issuer, "port": address.port(), "id_token_seconds": 300,
            "key": directory.join("key.pem"), "certificate": directory.join("ca.pem"),
            "accounts": directory.join("accounts.json"),
            "clients": [
                {
                    "client_id": "cloudlink", "client_secret": CLIENT_SECRET, "response_types": ["code"],
                    "redirect_uris": [format!("{public_url}/api/v1/auth/callback")], "grant_types": [code],
                },
                native("cloudlink-cli"),
                native("something-else"),
            ],
        });
        let program = run(directory, &settings)?;
        let ca_file = directory.join("ca.pem");
        let mut provider = Self { issuer, ca_file, directory: directory.to_owned(), settings, program };
        provider.accounts(&json!({}))?;
        provider.ready().await?;
        Ok(provider)
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let client = client(&[&self.ca_file])?;
        let url = format!("{}/.well-known/openid-configuration", self.issuer);
        wait_for("the OpenID provider", START_LIMIT, async || {
            if let Err(ended) = self.program.ensure_running() {
                return Ok(Err(ended));
            }
            ensure!(client.get(&url).send().await?.status().is_success(), "it is not ready");
            Ok(Ok(()))
        })
        .await?
    }

    /// Who there is: subjects with their claims.
    pub fn accounts(&self, accounts: &Value) -> anyhow::Result<()> {
        Ok(std::fs::write(self.directory.join("accounts.json"), accounts.to_string())?)
    }

    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.program.stop()?;
        Ok(())
    }

    /// Starts it again, with other keys, and ID tokens that are good for so long.
    pub async fn start_again(&mut self, id_token_seconds: u64) -> anyhow::Result<()> {
        self.program.stop()?;
        self.settings["id_token_seconds"] = id_token_seconds.into();
        self.program = run(&self.directory, &self.settings)?;
        self.ready().await
    }

    /// What a server is told of it.
    #[must_use]
    pub fn configuration(&self, public_url: &str) -> Vec<String> {
        [
            ("issuer", self.issuer.as_str()),
            ("public_url", public_url),
            ("client_secret", CLIENT_SECRET),
            ("ca_file", &self.ca_file.display().to_string()),
        ]
        .iter()
        .map(|(key, value)| format!("sign_in.{key}={value}"))
        .chain(["sign_in.admin_groups=admins", "sign_in.operator_groups=support"].map(str::to_owned))
        .collect()
    }

    /// An ID token of somebody for a native client, as its program would get it.
    pub async fn id_token(&self, client_id: &str, somebody: &str) -> anyhow::Result<String> {
        let verifier = BASE64URL_NOPAD.encode(uuid::Uuid::new_v4().simple().to_string().as_bytes());
        let challenge = BASE64URL_NOPAD.encode(digest::digest(&digest::SHA256, verifier.as_bytes()).as_ref());
        let mut url = Url::parse(&format!("{}/auth", self.issuer))?;
        url.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("client_id", client_id),
            ("redirect_uri", NATIVE_REDIRECT),
            ("scope", "openid profile email groups"),
            ("state", "s"),
            ("code_challenge", &challenge),
            ("code_challenge_method", "S256"),
        ]);
        let end = Browser::new(&[&self.ca_file])?.sign_in(url.as_str(), somebody).await?;
        let code = end.parameter("code").with_context(|| format!("no code: {end:?}"))?;
        let mut form = Url::parse("https://form")?;
        form.query_pairs_mut().extend_pairs([
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", NATIVE_REDIRECT),
            ("client_id", client_id),
            ("code_verifier", &verifier),
        ]);
        let body = form.query().unwrap_or_default().to_owned();
        let request = client(&[&self.ca_file])?.post(format!("{}/token", self.issuer));
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        let answer: Value = request.send().await?.json().await?;
        crate::api::text(&answer, "id_token")
    }
}

fn run(directory: &Path, settings: &Value) -> anyhow::Result<Program> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("oidc/provider.mjs");
    let modules = script.with_file_name("node_modules");
    ensure!(modules.is_dir(), "{} is missing: tests/scripts/prepare.sh peers", modules.display());
    let file = directory.join("settings.json");
    std::fs::write(&file, settings.to_string())?;
    let mut command = bound("node");
    command.arg(script).arg(file);
    Program::start("OpenID provider", command, &directory.join("provider.log"))
}

/// One that vouches for itself, for 127.0.0.1.
fn certificate(directory: &Path) -> anyhow::Result<()> {
    // The system's own configuration would have it be an authority, which is no server.
    let config = directory.join("openssl.cnf");
    std::fs::write(&config, "[req]\ndistinguished_name = name\n[name]\n")?;
    let output = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=provider", "-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-config"])
        .arg(&config)
        .arg("-keyout")
        .arg(directory.join("key.pem"))
        .arg("-out")
        .arg(directory.join("ca.pem"))
        .output()?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn client(ca_files: &[&Path]) -> anyhow::Result<Client> {
    let roots = ca_files.iter().map(|file| Ok(Certificate::from_pem(&std::fs::read(file)?)?));
    let roots = roots.collect::<anyhow::Result<Vec<_>>>()?;
    let builder = Client::builder().tls_certs_only(roots).no_proxy().timeout(TIMEOUT);
    Ok(builder.redirect(reqwest::redirect::Policy::none()).build()?)
}

/// Somebody's browser: it keeps cookies, and fills in the provider's forms.
#[derive(Debug)]
pub struct Browser {
    client: Client,
    /// By host and port, then by name.
    cookies: BTreeMap<String, BTreeMap<String, String>>,
}

/// Where a browser has got to.
#[derive(Clone, Debug)]
pub struct Page {
    pub url: Url,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Page {
    /// Of the address.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }
}

impl Browser {
    pub fn new(ca_files: &[&Path]) -> anyhow::Result<Self> {
        install_provider();
        Ok(Self { client: client(ca_files)?, cookies: BTreeMap::new() })
    }

    /// The value of a cookie of a host and port.
    #[must_use]
    pub fn cookie(&self, host: &str, name: &str) -> Option<&str> {
        self.cookies.get(host)?.get(name).map(String::as_str)
    }

    /// One request, as a page's link or form makes it.
    pub async fn open(&mut self, url: &Url, form: Option<&[(String, String)]>) -> anyhow::Result<Page> {
        let host = url.authority().to_owned();
        let mut request = match form {
            None => self.client.get(url.clone()),
            Some(fields) => {
                let mut encoded = Url::parse("https://form")?;
                encoded.query_pairs_mut().extend_pairs(fields);
                let body = encoded.query().unwrap_or_default().to_owned();
                self.client.post(url.clone()).header("content-type", "application/x-www-form-urlencoded").body(body)
            }
        };
        if let Some(cookies) = self.cookies.get(&host) {
            let pairs: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            request = request.header(COOKIE, pairs.join("; "));
        }
        let answer = request.send().await?;
        let jar = self.cookies.entry(host).or_default();
        for cookie in answer.headers().get_all(SET_COOKIE) {
            let pair = cookie.to_str()?.split(';').next().unwrap_or_default();
            let (name, value) = pair.split_once('=').context("not a cookie")?;
            if value.is_empty() {
                jar.remove(name)
            } else {
                jar.insert(name.to_owned(), value.to_owned())
            };
        }
        let (status, headers) = (answer.status(), answer.headers().clone());
        Ok(Page { url: url.clone(), status, headers, text: answer.text().await? })
    }

    /// Goes on from an address, signs in as somebody wherever that is asked for, and agrees to everything. Stops where nobody
    /// would be asked any more: at a page without a form, or an address that is not https.
    pub async fn sign_in(&mut self, from: &str, somebody: &str) -> anyhow::Result<Page> {
        self.sign_in_until(from, somebody, "/nowhere").await
    }

    /// The same, but it stops before it opens an address whose path ends like this.
    pub async fn sign_in_until(&mut self, from: &str, somebody: &str, stop: &str) -> anyhow::Result<Page> {
        let mut url = Url::parse(from)?;
        let mut form: Option<Vec<(String, String)>> = None;
        for _ in 0..PAGES_MAX {
            let page = self.open(&url, form.take().as_deref()).await?;
            if let Some(location) = page.headers.get(LOCATION) {
                url = page.url.join(location.to_str()?)?;
                if url.scheme() != "https" || url.path().ends_with(stop) {
                    return Ok(Page { url, ..page });
                }
                continue;
            }
            let Some((action, fields)) = read_form(&page.text, somebody) else { return Ok(page) };
            url = page.url.join(&action)?;
            form = Some(fields);
        }
        anyhow::bail!("the sign-in does not end: {url}")
    }
}

/// Where the page's first form goes, with its fields filled in.
fn read_form(page: &str, somebody: &str) -> Option<(String, Vec<(String, String)>)> {
    let form = page.split_once("<form")?.1;
    let form = form.split_once("</form>")?.0;
    let (head, inside) = form.split_once('>')?;
    let mut fields = Vec::new();
    for input in inside.split("<input").skip(1) {
        let tag = input.split_once('>')?.0;
        let Some(name) = attribute(tag, "name") else { continue };
        let value = match name.as_str() {
            "login" => somebody.to_owned(),
            "password" => PASSWORD.to_owned(),
            _ => attribute(tag, "value").unwrap_or_default(),
        };
        fields.push((name, value));
    }
    Some((attribute(head, "action")?, fields))
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let value = tag.split_once(&format!(" {name}=\""))?.1.split_once('"')?.0;
    Some(value.replace("&amp;", "&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_filled_in() {
        let page = r#"<html><form autocomplete="off" action="/a?b=1&amp;c=2" method="post">
            <input type="hidden" name="prompt" value="login"/><input required type="text" name="login" placeholder="x">
            <input type="password" name="password"><button type="submit">Sign-in</button></form>"#;
        let (action, fields) = read_form(page, "olga").unwrap();
        assert_eq!(action, "/a?b=1&c=2");
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(fields, [("prompt", "login"), ("login", "olga"), ("password", "any")]);
        assert_eq!(read_form("<p>done</p>", "olga"), None);
    }
}
